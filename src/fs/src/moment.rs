//! The metadata of one moment, for a reader that takes long: the checker. The volume goes on; of a
//! block that changes for the first time, the bytes of the moment are kept.
//!
//! ```text
//!   begin (no handle open) ─────────── the volume changes ─────────── end
//!   what the reader sees of a block:
//!     kept            it has changed since: the bytes of the moment
//!     pinned          it had not reached its home place at the moment: the cache's bytes
//!     neither         the device's bytes
//! ```
//!
//! Between two handles the metadata is that of whole operations, the same that a recovery would find:
//! so whatever a reader of the moment misses is really missing. Clusters that hold metadata at the
//! moment are not handed out while it lasts ([`crate::journal::Pins`]), so that nobody's data is
//! written over what the reader has still to see.
//!
//! When space runs out because of that, those blocks are read and kept, and the clusters let go.
//!
//! Keeping costs memory. Beyond the budget the moment ends by itself; the reader is told and may begin
//! another.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::rc::Rc;

use ondisk::BlockNr;

use crate::cache::Bytes;
use crate::journal::Tid;

/// What became of a block that has changed since the moment.
#[derive(Debug, Clone)]
pub enum Kept {
    Bytes(Bytes),
    /// It was made anew while its old bytes were on the device only. Nobody has them any more, once
    /// the new ones are home.
    Lost,
}

/// A moment, while it lasts.
pub struct Moment {
    /// The transaction that ran at the moment: what is freed in it or later stays pinned.
    since: Tid,
    kept: RefCell<HashMap<BlockNr, Kept, BuildHasherDefault<DefaultHasher>>>,
    bytes: Cell<usize>,
    budget_bytes: usize,
    /// Why it has ended early.
    ended: RefCell<Option<String>>,
}

impl Moment {
    pub(crate) fn new(since: Tid, budget_bytes: usize) -> Rc<Moment> {
        Rc::new(Moment {
            since,
            kept: RefCell::default(),
            bytes: Cell::new(0),
            budget_bytes,
            ended: RefCell::default(),
        })
    }

    pub fn since(&self) -> Tid {
        self.since
    }

    /// Why it ended, if it has.
    pub fn ended(&self) -> Option<String> {
        self.ended.borrow().clone()
    }

    pub(crate) fn end(&self, cause: &str) {
        let mut ended = self.ended.borrow_mut();
        if ended.is_none() {
            tracing::debug!(
                cause,
                "the moment that was kept for a check has ended early"
            );
            *ended = Some(cause.to_owned());
            self.kept.borrow_mut().clear();
            self.bytes.set(0);
        }
    }

    /// What the block was at the moment, if it has changed since.
    pub fn kept(&self, nr: BlockNr) -> Option<Kept> {
        self.kept.borrow().get(&nr).cloned()
    }

    /// Bytes that are kept now.
    pub fn kept_bytes(&self) -> usize {
        self.bytes.get()
    }

    /// A block is about to change, or to be forgotten. `before` is what it is now; `None` if that is
    /// on the device only, and about to be overwritten there.
    pub(crate) fn keep(&self, nr: BlockNr, before: Option<Bytes>) {
        if self.ended.borrow().is_some() {
            return;
        }
        let mut kept = self.kept.borrow_mut();
        let std::collections::hash_map::Entry::Vacant(place) = kept.entry(nr) else {
            return;
        };
        let len = before.as_ref().map_or(0, |bytes| bytes.len());
        place.insert(before.map_or(Kept::Lost, Kept::Bytes));
        drop(kept);
        self.bytes.set(self.bytes.get() + len + size_of::<Kept>());
        if self.bytes.get() > self.budget_bytes {
            self.end("more metadata changes than is kept for a check");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_are_kept_until_there_are_too_many() {
        let moment = Moment::new(Tid(7), 3 << 10);
        let bytes = |value| Some(Rc::new(vec![value; 1024]));
        moment.keep(BlockNr(9), bytes(1));
        moment.keep(BlockNr(9), bytes(2));
        moment.keep(BlockNr(10), None);
        let Some(Kept::Bytes(first)) = moment.kept(BlockNr(9)) else {
            panic!("block 9 is kept");
        };
        assert_eq!(first[0], 1);
        assert!(matches!(moment.kept(BlockNr(10)), Some(Kept::Lost)));
        assert!(moment.kept(BlockNr(11)).is_none() && moment.ended().is_none());
        moment.keep(BlockNr(11), bytes(3));
        moment.keep(BlockNr(12), bytes(4));
        assert!(moment.ended().is_some());
        assert_eq!(moment.kept_bytes(), 0);
        moment.keep(BlockNr(13), bytes(5));
        assert!(moment.kept(BlockNr(13)).is_none());
    }
}
