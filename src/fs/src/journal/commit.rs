//! From the running transaction to the log.
//!
//! The lock of the handles is held only while all blocks of the transaction are snapshot; then the
//! next transaction runs while this one is written. Whoever waits for the running transaction
//! while another one is being written shares the next commit with all others who do.
//!
//! This is the one place where checksums of metadata are computed.

use std::rc::Rc;

use futures_util::future::{Either, select};

use super::checkpoint::Committed;
use super::{Inner, Running, Tid};
use crate::error::{Error, Result};

impl Inner {
    /// After a handle: starts what is due.
    pub(super) fn handle_committed(self: &Rc<Self>) {
        let (tid, units) = {
            let mut running = self.running.borrow_mut();
            if running.blocks.is_empty() {
                return;
            }
            running.since.get_or_insert_with(|| self.host.now());
            (running.tid, running.units)
        };
        // A nearly full transaction is committed before somebody has to wait for it.
        if units >= self.max_transaction / 4 * 3 {
            self.request_commit(tid);
        }
        self.start_ticking();
    }

    /// Sees to it that everything up to `tid` will be committed.
    pub(super) fn request_commit(self: &Rc<Self>, tid: Tid) {
        self.commit_wanted.set(self.commit_wanted.get().max(tid));
        if !self.committing.replace(true) {
            let inner = self.clone();
            self.host
                .spawn(Box::pin(async move { inner.commit_wanted().await }));
        }
    }

    async fn commit_wanted(self: Rc<Self>) {
        while self.commit_wanted.get() >= self.running_tid()
            && !self.running.borrow().blocks.is_empty()
            && self.failure().is_none()
        {
            if let Err(error) = self.commit_running().await {
                self.abort(error);
            }
        }
        self.committing.set(false);
        self.changed.notify();
    }

    async fn commit_running(self: &Rc<Self>) -> Result<()> {
        let turn = self.exclusive.take().await;
        let Some(transaction) = self.freeze() else {
            return Ok(());
        };
        drop(turn);
        self.changed.notify(); // handles may begin
        self.reserve(&transaction).await?;
        self.log
            .write(transaction.tid, &transaction.frozen(), self.host.wall())
            .await?;
        // If we crash from here on, a replay does what was acknowledged.
        let tid = transaction.tid;
        self.waiting.borrow_mut().push_back(transaction);
        self.committed.set(tid);
        self.release_pins();
        self.changed.notify();
        if self.log.free() < self.log.capacity() / 2 {
            self.request_checkpoint(tid);
        }
        Ok(())
    }

    /// Takes the running transaction: its blocks get their checksums and are snapshot, and a new
    /// one runs. `None` if it is empty (its only handle was rolled back).
    fn freeze(&self) -> Option<Committed> {
        let (tid, blocks) = {
            let mut running = self.running.borrow_mut();
            if running.blocks.is_empty() {
                return None;
            }
            let next = Running::new(running.tid.next());
            let Running { tid, blocks, .. } = std::mem::replace(&mut *running, next);
            (tid, blocks)
        };
        let checksummed = self.geometry.has_metaecc();
        let blocks = blocks
            .into_values()
            .map(|block| {
                if checksummed {
                    let mut bytes = block.cell().borrow_mut();
                    block
                        .kind()
                        .compute(Rc::make_mut(&mut *bytes).as_mut_slice());
                }
                let bytes = block.snapshot();
                (block, bytes)
            })
            .collect();
        Some(Committed { tid, blocks })
    }

    /// Room in the log, by checkpoints if need be.
    async fn reserve(self: &Rc<Self>, transaction: &Committed) -> Result<()> {
        let units = transaction.units(&self.geometry);
        while !self.log.reserve(transaction.tid, units).await? {
            let done = self.checkpointed.get();
            if self.committed.get() == done {
                let limit = self.max_transaction;
                return Err(Error::TransactionTooBig {
                    blocks: units as u32,
                    limit,
                });
            }
            self.checkpoint(done.next()).await?;
        }
        Ok(())
    }

    pub(super) fn release_pins(&self) {
        // What held metadata at a moment that somebody reads is not handed out before its end.
        let read = self
            .cache
            .moment()
            .filter(|moment| moment.ended().is_none());
        let held = read.map(|moment| moment.since().before());
        let done = self.checkpointed.get();
        let done = held.map_or(done, |held| done.min(held));
        self.pins.borrow_mut().release(self.committed.get(), done);
    }

    pub(super) async fn wait_committed(self: &Rc<Self>, tid: Tid) -> Result<()> {
        let done = || {
            let running = self.running.borrow();
            // Nothing has joined the running transaction: what was before it is all there is.
            let nothing_runs =
                running.blocks.is_empty() && self.committed.get().next() >= running.tid;
            self.committed.get() >= tid || nothing_runs
        };
        if done() {
            return Ok(());
        }
        if let Some(error) = self.failure() {
            return Err(error);
        }
        if tid >= self.running_tid() && !self.running.borrow().blocks.is_empty() {
            self.request_commit(self.running_tid());
        }
        let end = || {
            if done() {
                Some(Ok(()))
            } else {
                self.failure().map(Err)
            }
        };
        self.changed.until(end).await
    }

    /// Commits by age: as long as there is something to do, every few seconds.
    fn start_ticking(self: &Rc<Self>) {
        if self.closed.get() || self.ticking.replace(true) {
            return;
        }
        let inner = self.clone();
        self.host.spawn(Box::pin(async move { inner.tick().await }));
    }

    async fn tick(self: Rc<Self>) {
        loop {
            let now = self.host.now();
            let due = self.running.borrow().since().unwrap_or(now) + self.commit_interval;
            let stopped = self.changed.until(|| (!self.is_writable()).then_some(()));
            let stopped = std::pin::pin!(stopped);
            let slept = self.host.sleep(due.saturating_sub(now));
            if matches!(select(slept, stopped).await, Either::Right(_)) {
                break;
            }
            let (tid, since) = {
                let running = self.running.borrow();
                (running.tid, running.since())
            };
            match since {
                Some(since) if since + self.commit_interval <= self.host.now() => {
                    self.request_commit(tid);
                    let moved_on = || {
                        let gone = self.running.borrow().blocks.is_empty();
                        gone || self.committed.get() >= tid || !self.is_writable()
                    };
                    self.changed.until(|| moved_on().then_some(())).await;
                }
                Some(_) => {}
                // Nobody has written anything for a while: a good time to tidy up.
                None if self.committed.get() > self.checkpointed.get() => {
                    self.request_checkpoint(self.committed.get());
                }
                None if self.committing.get() => {}
                None => break,
            }
        }
        self.ticking.set(false);
    }
}
