//! From the log to the home places.
//!
//! What is written home is the newest *committed* snapshot of a block, never its running bytes:
//! those may be of an operation that is not whole yet. Then, and only then, the log's room is free:
//!
//! ```text
//!   write home ─ flush ─ superblock: new tail ─ flush ─ reuse the room, release pins
//! ```
//!
//! If we crash in between, the replay writes the same bytes once more.

use std::collections::BTreeMap;
use std::rc::Rc;

use ondisk::{BlockNr, Geometry};

use super::log::Frozen;
use super::write::write_blocks;
use super::{Inner, Tid};
use crate::cache::{BlockRef, Bytes};
use crate::error::Result;

/// A transaction whose blocks are frozen: on its way to the log, or in it. Its blocks stay in
/// the cache until they are home, because a read from there would bring back older ones.
pub(super) struct Committed {
    pub tid: Tid,
    pub blocks: Vec<(BlockRef, Bytes)>,
}

impl Committed {
    pub fn frozen(&self) -> Vec<Frozen> {
        self.blocks
            .iter()
            .map(|(block, bytes)| (block.nr(), bytes.clone()))
            .collect()
    }

    /// Blocks of the log for its data.
    pub fn units(&self, geometry: &Geometry) -> usize {
        self.blocks
            .iter()
            .map(|(_, bytes)| bytes.len() >> geometry.block_size_bits)
            .sum()
    }
}

impl Inner {
    /// Sees to it that everything committed up to `tid` will be checkpointed.
    pub(super) fn request_checkpoint(self: &Rc<Self>, tid: Tid) {
        self.checkpoint_wanted
            .set(self.checkpoint_wanted.get().max(tid));
        if !self.checkpointing.replace(true) {
            let inner = self.clone();
            self.host
                .spawn(Box::pin(async move { inner.checkpoint_wanted().await }));
        }
    }

    async fn checkpoint_wanted(self: Rc<Self>) {
        while self.checkpoint_wanted.get().min(self.committed.get()) > self.checkpointed.get()
            && self.failure().is_none()
        {
            if let Err(error) = self.checkpoint_committed().await {
                self.abort(error);
            }
        }
        self.checkpointing.set(false);
        self.changed.notify();
    }

    /// Waits until everything up to `tid`, which is committed, is home.
    pub(super) async fn checkpoint(self: &Rc<Self>, tid: Tid) -> Result<()> {
        let done = || self.checkpointed.get() >= tid;
        if done() {
            return Ok(());
        }
        if let Some(error) = self.failure() {
            return Err(error);
        }
        self.request_checkpoint(tid);
        self.changed
            .until(|| {
                if done() {
                    Some(Ok(()))
                } else {
                    self.failure().map(Err)
                }
            })
            .await
    }

    async fn checkpoint_committed(&self) -> Result<()> {
        let tid = self.committed.get();
        let newest: BTreeMap<BlockNr, Bytes> = self
            .waiting
            .borrow()
            .iter()
            .flat_map(|transaction| transaction.frozen())
            .collect();
        let pieces = newest.iter().map(|(nr, bytes)| (*nr, bytes.as_slice()));
        write_blocks(&*self.device, &self.geometry, pieces).await?;
        self.log.flush().await?;
        self.log.release(tid).await?;
        self.checkpointed.set(tid);
        self.unpin(tid);
        self.release_pins();
        self.changed.notify();
        Ok(())
    }

    fn unpin(&self, tid: Tid) {
        let mut waiting = self.waiting.borrow_mut();
        while waiting
            .front()
            .is_some_and(|transaction| transaction.tid <= tid)
        {
            for (block, _) in waiting.pop_front().iter().flat_map(|t| &t.blocks) {
                block.unpin();
            }
        }
    }

    pub(super) async fn close(self: &Rc<Self>) -> Result<()> {
        let result = self.wind_up().await;
        let noted = || (!self.noting.get()).then_some(());
        self.changed.until(noted).await;
        result
    }

    async fn wind_up(self: &Rc<Self>) -> Result<()> {
        // A handle that was begun before still ends; its changes are in the last commit.
        drop(self.exclusive.take().await);
        self.wait_committed(self.running_tid()).await?;
        self.checkpoint(self.committed.get()).await?;
        if let Some(error) = self.failure() {
            return Err(error);
        }
        // The kernel leaves a number out at the end of each mount, and expects it.
        self.log.mark_empty(self.running_tid()).await?;
        self.owner.mark(false, false).await
    }
}
