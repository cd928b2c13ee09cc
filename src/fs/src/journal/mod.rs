//! The journal: jbd2's format, one running transaction, exclusive handles.
//!
//! ```text
//!  handle: begin ─ modify… ─ commit()        (dropped without commit(): every block rolled back)
//!                      │
//!  running ──(fsync, size, age)──► committing ──► committed ──► checkpointed
//!  blocks joined      snapshots of all blocks     in the log    at their home places,
//!  by handles         descriptor+data, flush,                   log space reusable
//!                     commit block FUA
//! ```
//!
//! Rules this file owns:
//! * A handle is **exclusive**: one operation changes metadata at a time, and either all of its
//!   changes stay or none. A commit is made between handles, so a transaction is whole operations.
//! * If we crash before the commit block of a transaction is on the medium, none of it happened.
//! * Clusters freed by a transaction are not handed out again before it is committed, and those
//!   that held metadata not before it is checkpointed ([`Pins`]): so a replay never
//!   overwrites a new owner's bytes, and no revoke records are needed.

mod pins;

use std::cell::{Cell, RefCell, RefMut};
use std::collections::HashMap;
use std::rc::Rc;

use async_lock::{Mutex, MutexGuard};
use ondisk::{BlockNr, ClusterNr, Kind};

use crate::cache::{BlockRef, Bytes, Cache};
use crate::error::{Error, Result};

pub use pins::Pins;

/// A transaction's number, as in the journal's blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tid(pub u64);

/// The journal of our slot.
pub struct Journal {
    cache: Rc<Cache>,
    exclusive: Mutex<()>,
    running: RefCell<Running>,
    committed: Cell<Tid>,
    checkpointed: Cell<Tid>,
    pins: RefCell<Pins>,
    /// Set by the first error that stops writing.
    aborted: RefCell<Option<String>>,
}

/// The transaction that handles join.
struct Running {
    tid: Tid,
    blocks: HashMap<BlockNr, BlockRef>,
}

/// What a block was before a handle first touched it.
struct Undo {
    block: BlockRef,
    bytes: Bytes,
    kind: Kind,
    joined_here: bool,
}

/// The right to change metadata, for one operation. Dropped without [`Handle::commit`], every
/// block goes back to what it was.
pub struct Handle<'a> {
    journal: &'a Journal,
    undo: Vec<Undo>,
    touched: HashMap<BlockNr, usize>,
    freed: Vec<(ClusterNr, u32)>,
    freed_metadata: Vec<(ClusterNr, u32)>,
    committed: bool,
    _exclusive: MutexGuard<'a, ()>,
}

impl Journal {
    /// Waits for its turn and starts a handle. `blocks` is an estimate of the blocks the operation
    /// will change; a running transaction without room for them is committed first.
    pub async fn begin(&self, blocks: u32) -> Result<Handle<'_>> {
        let _ = blocks;
        let exclusive = self.exclusive.lock().await;
        if let Some(cause) = self.aborted.borrow().as_ref() {
            return Err(Error::ReadOnly(cause.clone()));
        }
        Ok(Handle {
            journal: self,
            undo: Vec::new(),
            touched: HashMap::new(),
            freed: Vec::new(),
            freed_metadata: Vec::new(),
            committed: false,
            _exclusive: exclusive,
        })
    }

    /// The transaction that a handle started now joins.
    pub fn running_tid(&self) -> Tid {
        self.running.borrow().tid
    }

    /// Everything up to here is in the log, durable.
    pub fn committed_tid(&self) -> Tid {
        self.committed.get()
    }

    /// Everything up to here is at its home place, durable.
    pub fn checkpointed_tid(&self) -> Tid {
        self.checkpointed.get()
    }

    /// Clusters that must not be handed out yet.
    pub fn pins(&self) -> std::cell::Ref<'_, Pins> {
        self.pins.borrow()
    }
}

impl Handle<'_> {
    /// The block's bytes, to change. The first call joins the block to the transaction.
    /// Not to be held across an await.
    pub fn modify<'b>(&mut self, block: &'b BlockRef) -> RefMut<'b, [u8]> {
        assert!(!self.committed, "a committed handle changes nothing");
        if !self.touched.contains_key(&block.nr()) {
            let joined_here = self.journal.join(block);
            self.touched.insert(block.nr(), self.undo.len());
            self.undo.push(Undo {
                block: block.clone(),
                bytes: block.snapshot(),
                kind: block.kind(),
                joined_here,
            });
        }
        RefMut::map(block.cell().borrow_mut(), |bytes| Rc::make_mut(bytes).as_mut_slice())
    }

    /// A block just allocated, as zeroes, joined. The caller fills it in.
    pub fn fresh(&mut self, nr: BlockNr, kind: Kind) -> BlockRef {
        let before = self.journal.cache.peek(nr).map(|old| old.kind());
        let block = self.journal.cache.fresh(nr, kind);
        self.modify(&block).fill(0);
        if let Some(kind) = before
            && let Some(undo) = self.touched.get(&nr).map(|&i| &mut self.undo[i])
        {
            undo.kind = kind;
        }
        block
    }

    /// Notes clusters whose bits this handle clears in the global bitmap: not handed out again
    /// before the transaction is committed.
    pub fn freed(&mut self, start: ClusterNr, clusters: u32) {
        self.freed.push((start, clusters));
    }

    /// Notes clusters that held journaled metadata (directory, index, xattr bucket): not handed
    /// out again before the transaction is checkpointed.
    pub fn freed_metadata(&mut self, start: ClusterNr, clusters: u32) {
        self.freed_metadata.push((start, clusters));
    }

    /// Blocks this handle has changed so far.
    pub fn len(&self) -> usize {
        self.undo.len()
    }

    pub fn is_empty(&self) -> bool {
        self.undo.is_empty()
    }

    /// The changes stay. Returns the transaction that carries them; it is durable once
    /// [`Journal::committed_tid`] has reached it.
    pub fn commit(mut self) -> Tid {
        self.committed = true;
        let tid = self.journal.running_tid();
        let mut pins = self.journal.pins.borrow_mut();
        for (start, clusters) in self.freed.drain(..) {
            pins.until_committed(start, clusters, tid);
        }
        for (start, clusters) in self.freed_metadata.drain(..) {
            pins.until_checkpointed(start, clusters, tid);
        }
        tid
    }
}

impl Drop for Handle<'_> {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        for undo in self.undo.drain(..).rev() {
            *undo.block.cell().borrow_mut() = undo.bytes;
            undo.block.set_kind(undo.kind);
            if undo.joined_here {
                self.journal.leave(&undo.block);
            }
        }
    }
}

impl Journal {
    /// Joins a block to the running transaction; false if it was in it.
    fn join(&self, block: &BlockRef) -> bool {
        let mut running = self.running.borrow_mut();
        if running.blocks.contains_key(&block.nr()) {
            return false;
        }
        block.pin();
        running.blocks.insert(block.nr(), block.clone());
        true
    }

    fn leave(&self, block: &BlockRef) {
        if self.running.borrow_mut().blocks.remove(&block.nr()).is_some() {
            block.unpin();
        }
    }
}
