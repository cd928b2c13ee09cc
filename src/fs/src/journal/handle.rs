//! A handle: the right to change metadata, for one operation, all or nothing.

use std::cell::RefMut;
use std::collections::HashMap;
use std::rc::Rc;

use ondisk::{BlockNr, ClusterNr, Kind};

use super::wait::Turn;
use super::{Inner, Tid};
use crate::cache::{BlockRef, Bytes};

/// What a block was before a handle first touched it.
struct Undo {
    block: BlockRef,
    /// `None` if it was not in memory at all: what is on the device was nobody's.
    before: Option<(Bytes, Kind)>,
    joined_here: bool,
}

/// The right to change metadata, for one operation. Dropped without [`Handle::commit`], every
/// block goes back to what it was.
///
/// Never wait for a commit or a checkpoint while holding one: they wait for the handle.
pub struct Handle<'a> {
    inner: &'a Rc<Inner>,
    undo: Vec<Undo>,
    touched: HashMap<BlockNr, usize>,
    freed_metadata: Vec<(ClusterNr, u32)>,
    /// Blocks that this handle may still join to the transaction.
    credits: u32,
    committed: bool,
    _turn: Turn<'a>,
}

impl<'a> Handle<'a> {
    pub(super) fn new(inner: &'a Rc<Inner>, credits: u32, turn: Turn<'a>) -> Self {
        Handle {
            inner,
            undo: Vec::new(),
            touched: HashMap::new(),
            freed_metadata: Vec::new(),
            credits,
            committed: false,
            _turn: turn,
        }
    }

    /// The block's bytes, to change. The first call joins the block to the transaction.
    /// Not to be held across an await.
    pub fn modify<'b>(&mut self, block: &'b BlockRef) -> RefMut<'b, [u8]> {
        self.inner.cache.note_change(block.kind());
        self.modify_attributes(block)
    }

    /// As [`Handle::modify`], where no extent list is touched: what is remembered of extent trees
    /// stays good.
    pub fn modify_attributes<'b>(&mut self, block: &'b BlockRef) -> RefMut<'b, [u8]> {
        let before = (block.snapshot(), block.kind());
        self.touch(block, Some(before));
        RefMut::map(block.cell().borrow_mut(), |bytes| {
            Rc::make_mut(bytes).as_mut_slice()
        })
    }

    /// A block just allocated, as zeroes, joined. The caller fills it in.
    pub fn fresh(&mut self, nr: BlockNr, kind: Kind) -> BlockRef {
        self.inner.cache.note_change(kind);
        let (block, is_new) = self.inner.cache.fresh(nr, kind);
        let before = (!is_new).then(|| (block.snapshot(), block.kind()));
        self.touch(&block, before);
        block.set_kind(kind);
        let len = block.data().len();
        *block.cell().borrow_mut() = Rc::new(vec![0; len]);
        block
    }

    fn touch(&mut self, block: &BlockRef, before: Option<(Bytes, Kind)>) {
        let known = self.touched.get(&block.nr()).copied();
        if known.is_some_and(|index| Rc::ptr_eq(&self.undo[index].block, block)) {
            return;
        }
        let bytes = before.as_ref().map(|(bytes, _)| bytes);
        self.inner.cache.keep(block.nr(), bytes);
        let joined_here = self.inner.join(block);
        if joined_here {
            self.spend(self.inner.log_units(block));
        }
        self.touched.insert(block.nr(), self.undo.len());
        self.undo.push(Undo {
            block: block.clone(),
            before,
            joined_here,
        });
    }

    /// An operation that joins more than it announced is wrong about itself, but harmless: the log
    /// has four times the room of a transaction.
    fn spend(&mut self, units: u32) {
        if self.credits < units {
            tracing::debug!(blocks = self.undo.len(), "a handle exceeds its estimate");
        }
        self.credits = self.credits.saturating_sub(units);
    }

    /// Asks for `blocks` more than announced at the start. False if the transaction has no room:
    /// then commit the handle where the volume is consistent, and begin another.
    #[must_use]
    pub fn extend(&mut self, blocks: u32) -> bool {
        let wanted = self.credits.saturating_add(blocks);
        let fits = self.inner.fits(wanted);
        if fits {
            self.credits = wanted;
        }
        fits
    }

    /// Notes clusters whose bits this handle clears in the global bitmap: not handed out again
    /// before the transaction is committed.
    pub fn freed(&mut self, start: ClusterNr, clusters: u32) {
        // Pinned at once, so that this very handle does not take them either. If it is rolled back,
        // the pin stays on clusters that are not free, until the next commit: no harm.
        let tid = self.inner.running_tid();
        self.inner
            .pins
            .borrow_mut()
            .until_committed(start, clusters, tid);
    }

    /// Notes clusters that held journaled metadata (directory, index, xattr bucket): not handed
    /// out again before the transaction is checkpointed.
    pub fn freed_metadata(&mut self, start: ClusterNr, clusters: u32) {
        let tid = self.inner.running_tid();
        self.inner
            .pins
            .borrow_mut()
            .until_checkpointed(start, clusters, tid);
        self.freed_metadata.push((start, clusters));
    }

    /// Blocks this handle has changed so far.
    pub fn len(&self) -> usize {
        self.undo.len()
    }

    pub fn is_empty(&self) -> bool {
        self.undo.is_empty()
    }

    /// Blocks it may still join, of what it announced.
    pub fn credits(&self) -> u32 {
        self.credits
    }

    /// The transaction that the handle is part of.
    pub fn tid(&self) -> Tid {
        self.inner.running_tid()
    }

    /// The changes stay. Returns the transaction that carries them; it is durable once
    /// [`super::Journal::committed_tid`] has reached it.
    pub fn commit(mut self) -> Tid {
        self.committed = true;
        for &(start, clusters) in &self.freed_metadata {
            self.inner.forget_clusters(start, clusters);
        }
        self.inner.handle_committed();
        self.inner.running_tid()
    }
}

impl Drop for Handle<'_> {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        for undo in self.undo.drain(..).rev() {
            self.inner.cache.note_change(undo.block.kind());
            if undo.joined_here {
                self.inner.leave(&undo.block);
            }
            match undo.before {
                Some((bytes, kind)) => {
                    *undo.block.cell().borrow_mut() = bytes;
                    undo.block.set_kind(kind);
                }
                None => self.inner.cache.forget(undo.block.nr()),
            }
        }
    }
}
