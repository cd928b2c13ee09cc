//! Writing cached data back: when it is old, when memory is short, when somebody wants it on the
//! device.
//!
//! ```text
//!  turn ─► runs of dirty pages ─► in written clusters: together      ─► clean
//!                             └─► elsewhere: step by step, in order
//!                                 (the inode is taken only to change its tree)
//! ```
//! A write-back is a write like others (`write_step`): data first, then the commit that shows it.
//! Lock order: turn → inode → journal handle. A write-back holds no inode while its data is on the
//! way, so the file's users go on meanwhile.

use std::ops::Range;
use std::pin::pin;

use futures_util::future::{join_all, select};

use super::payload::Payload;
use super::step::{By, cluster_at};
use crate::error::{Error, Result};
use crate::inode::InodeRef;
use crate::journal::wait::Turn;
use crate::limits;
use crate::lock::{ReadGuard, WriteGuard};
use crate::pages::{Ledger, PAGE_BYTES, Room, Run, pages_of};
use crate::run_cache;
use crate::volume::Volume;

/// All pages of a file.
const ALL: Range<u64> = 0..u64::MAX;

/// The right to change where a file's data lies: nothing is written back, and nobody else looks.
pub(in crate::volume) struct Hold<'i> {
    // Dropped in this order.
    _inode: WriteGuard<'i>,
    _turn: Turn<'i>,
}

impl Volume {
    pub(in crate::volume) fn ledger(&self) -> &std::rc::Rc<Ledger> {
        &self.core().inodes.pages
    }

    /// The file's turn.
    pub(super) async fn turn<'i>(&self, inode: &'i InodeRef, nowait: bool) -> Result<Turn<'i>> {
        if nowait {
            let turn = inode.pages.turn.try_take();
            return turn.ok_or_else(|| Error::WouldBlock("the file is written back".into()));
        }
        Ok(inode.pages.turn.take().await)
    }

    /// The file's turn and the inode for ourselves.
    pub(in crate::volume) async fn hold_shape<'i>(
        &self,
        inode: &'i InodeRef,
        nowait: bool,
    ) -> Result<Hold<'i>> {
        let turn = self.turn(inode, nowait).await?;
        let guard = self.exclusive(inode, nowait).await?;
        Ok(Hold {
            _inode: guard,
            _turn: turn,
        })
    }

    /// The right to read the file, with `from..to` on the device and its size known to the volume
    /// as far as that range goes: for those who go past the cache.
    pub(in crate::volume) async fn shared_settled<'i>(
        &self,
        inode: &'i InodeRef,
        from: u64,
        to: u64,
        nowait: bool,
    ) -> Result<ReadGuard<'i>> {
        loop {
            let guard = if nowait {
                let guard = inode.lock.try_read();
                guard.ok_or_else(|| Error::WouldBlock("the file is in use".into()))?
            } else {
                inode.shared().await?
            };
            let known = inode.dinode().i_size.get();
            let longer = inode.pages.end() > known && to > known;
            if !longer && !inode.pages.is_busy(pages_of(from, to)) {
                return Ok(guard);
            }
            drop(guard);
            if nowait {
                return Err(Error::WouldBlock("the file is written back".into()));
            }
            // Each time round at least what was dirty then has reached the device.
            let range = if longer { ALL } else { pages_of(from, to) };
            self.write_back(inode, range).await?;
        }
    }

    /// Brings what is cached of the range to the device (not durably: a flush does that).
    pub(in crate::volume) async fn write_back(
        &self,
        inode: &InodeRef,
        range: Range<u64>,
    ) -> Result<()> {
        if !inode.pages.is_unsettled() {
            return Ok(());
        }
        let _turn = inode.pages.turn.take().await;
        self.write_back_by(inode, range, By::WriteBack).await
    }

    /// All of a file.
    pub(in crate::volume) async fn settle(&self, inode: &InodeRef) -> Result<()> {
        self.write_back(inode, ALL).await
    }

    /// As [`Volume::write_back`], by somebody who holds the file: all of it, if the volume does not
    /// know the file's size and what follows reaches past what it knows.
    pub(in crate::volume) async fn settle_held(
        &self,
        inode: &InodeRef,
        range: Range<u64>,
        end: u64,
    ) -> Result<()> {
        let known = inode.dinode().i_size.get();
        let range = match inode.pages.end() > known && end > known {
            true => ALL,
            false => range,
        };
        self.write_back_by(inode, range, By::WriteBackHolding).await
    }

    /// All of a file, by somebody who holds it.
    pub(in crate::volume) async fn settle_all_held(&self, inode: &InodeRef) -> Result<()> {
        self.write_back_by(inode, ALL, By::WriteBackHolding).await
    }

    /// Cached data from byte `size` on is nobody's any more; the rest is settled. The caller holds
    /// the file.
    pub(in crate::volume) async fn cut_held(&self, inode: &InodeRef, size: u64) -> Result<()> {
        if inode.pages.is_idle() && !inode.pages.is_unsettled() {
            return Ok(());
        }
        let cluster = self.core().geometry.cluster_size() as u64;
        let page = PAGE_BYTES as u64;
        inode.pages.discard(size.div_ceil(page)..u64::MAX);
        inode
            .pages
            .cut(size, || self.core().device.allocate(PAGE_BYTES));
        let first = u32::try_from(size.div_ceil(cluster)).unwrap_or(u32::MAX);
        self.undelay(inode, first..u32::MAX);
        self.ledger().let_go(inode);
        if size == 0 {
            return Ok(());
        }
        self.settle_all_held(inode).await
    }

    /// What is cached of the range and on the device is dropped: the device has, or is about to
    /// have, other bytes there.
    pub(in crate::volume) fn drop_clean(&self, inode: &InodeRef, range: Range<u64>) {
        if !inode.pages.is_idle() {
            inode.pages.invalidate(range);
            self.ledger().let_go(inode);
        }
    }

    /// The caller has the turn.
    async fn write_back_by(&self, inode: &InodeRef, range: Range<u64>, by: By) -> Result<()> {
        let mut at = range.start;
        let mut result = Ok(());
        loop {
            let mut runs = Vec::new();
            let most = limits::WRITE_STEP as usize / PAGE_BYTES;
            while runs.len() < limits::WRITE_BACK_RUNS
                && let Some(run) = inode.pages.start_writing(at..range.end, most, inode.size())
            {
                at = run.range().end;
                runs.push(run);
            }
            if runs.is_empty() {
                break;
            }
            result = self.write_runs(inode, runs, by).await.and(result);
        }
        if result.is_ok() && !inode.pages.is_dirty() {
            // All of its data has arrived, and the size with it.
            if inode.dinode().i_size.get() >= inode.pages.end() {
                inode.pages.forget_end();
            }
        }
        result
    }

    /// Runs in written clusters go together. Others change the tree, one after the other: what one
    /// does may be what the next finds. All are tried; the first error is told.
    async fn write_runs(&self, inode: &InodeRef, runs: Vec<Run>, by: By) -> Result<()> {
        let mut plain = Vec::new();
        let mut shaping = Vec::new();
        for run in runs {
            match self.is_in_place(inode, &run).await {
                Ok(true) => plain.push(run),
                Ok(false) => shaping.push(run),
                Err(error) => {
                    tracing::debug!(inode = inode.nr().0, %error, "looking for cached data's place");
                    shaping.push(run); // it will meet the same error, and say so
                }
            }
        }
        let mut result = Ok(());
        for done in join_all(plain.iter().map(|run| self.write_run(inode, run, by))).await {
            result = result.and(done);
        }
        for run in &shaping {
            result = result.and(self.write_run(inode, run, by).await);
        }
        result
    }

    async fn is_in_place(&self, inode: &InodeRef, run: &Run) -> Result<bool> {
        let core = self.core();
        let cluster = core.geometry.cluster_size() as u64;
        let (from, to) = bytes_of(run);
        if to > inode.dinode().i_size.get() {
            return Ok(false);
        }
        let (mut at, end) = (cluster_at(from, cluster)?, cluster_at(to - 1, cluster)? + 1);
        while at < end {
            let found = run_cache::lookup(core, inode, at).await?;
            if found.physical.is_none() || !found.flags.is_empty() {
                return Ok(false);
            }
            at = at.saturating_add(found.clusters.max(1));
        }
        Ok(true)
    }

    /// One run, and what becomes of its pages.
    async fn write_run(&self, inode: &InodeRef, run: &Run, by: By) -> Result<()> {
        let cluster = self.core().geometry.cluster_size() as u64;
        let (start, end) = bytes_of(run);
        let end = end.min(run.size).max(start);
        let clusters = |from: u64, to: u64| match (cluster_at(from, cluster), to) {
            (Ok(first), to) if to > from => {
                first..cluster_at(to - 1, cluster).map_or(first, |last| last + 1)
            }
            _ => 0..0,
        };
        // The promise is kept now: what it stood for can be claimed.
        self.undelay(inode, clusters(start, end));
        let mut at = start;
        let mut result = Ok(());
        while at < end {
            let pages = &run.pages[((at - start) / PAGE_BYTES as u64) as usize..];
            let data = Payload::Pages {
                pages,
                len: end - at,
            };
            match self.write_step(inode, at, data, by).await {
                Ok((_, bytes)) => at += bytes,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        let now = self.core().host.now();
        let range = run.range();
        // A step ends with a cluster, and so with a page, or with the run.
        let written = if result.is_ok() {
            range.end
        } else {
            at / PAGE_BYTES as u64
        };
        inode.pages.written(range.start..written, true, now);
        if result.is_err() {
            inode.pages.written(written..range.end, false, now);
            self.delay(inode, clusters(at, end));
            self.ledger().keep(inode);
        }
        self.ledger().count_written_back(written - range.start);
        result
    }

    pub(super) fn delay(&self, inode: &InodeRef, clusters: Range<u32>) {
        let delayed = &self.core().alloc.delayed;
        delayed.set(delayed.get() + inode.pages.delay(clusters));
    }

    pub(super) fn undelay(&self, inode: &InodeRef, clusters: Range<u32>) {
        let delayed = &self.core().alloc.delayed;
        delayed.set(delayed.get() - inode.pages.undelay(clusters));
    }

    /// Room for pages, once enough others are clean.
    pub(in crate::volume) async fn room(&self, pages: usize, nowait: bool) -> Result<Room> {
        let ledger = self.ledger();
        if let Some(room) = ledger.try_room(pages) {
            return Ok(room);
        }
        if nowait {
            return Err(Error::WouldBlock("the page cache is full".into()));
        }
        self.0.write_back_failed.take();
        let _waiting = ledger.wait();
        self.plan_write_back();
        let ready = || {
            let room = ledger.try_room(pages).map(Ok);
            room.or_else(|| self.0.write_back_failed.borrow().clone().map(Err))
                .or_else(|| self.read_only().map(|cause| Err(Error::ReadOnly(cause))))
        };
        ledger.changed.until(ready).await
    }

    /// Space is short: cached data gets its clusters now, so that the rest is really free.
    pub(super) async fn settle_for_space(&self) {
        if self.core().alloc.delayed.get() > 0
            && let Err(error) = self.settle_volume().await
        {
            tracing::debug!(volume = ?self, %error, "cached data could not be written back");
        }
    }

    /// Every file's cached data, on the device.
    pub(in crate::volume) async fn settle_volume(&self) -> Result<()> {
        let mut result = Ok(());
        for file in self.ledger().queued() {
            result = result.and(self.settle(&file).await);
        }
        result
    }

    /// Starts the task that writes back what is old, or in the way, unless it runs.
    pub(super) fn plan_write_back(&self) {
        if self.0.write_back_planned.replace(true) {
            return;
        }
        let (host, ledger) = (self.core().host.clone(), self.ledger().clone());
        let volume = std::rc::Rc::downgrade(&self.0);
        self.core().host.spawn(Box::pin(async move {
            let mut patient = false;
            loop {
                let tick = host.sleep(limits::WRITE_BACK_INTERVAL);
                if patient {
                    tick.await;
                } else {
                    let pressed = pin!(ledger.pressed.until(|| ledger.is_pressed().then_some(())));
                    select(tick, pressed).await;
                }
                let Some(volume) = volume.upgrade().map(Volume) else {
                    return;
                };
                match volume.write_back_round().await {
                    Ok(true) => patient = false,
                    Ok(false) => return,
                    // It will be tried again, but not without a pause.
                    Err(_) => patient = true,
                }
            }
        }));
    }

    /// Looks at each waiting file once. True if some is still dirty.
    async fn write_back_round(&self) -> Result<bool> {
        let ledger = self.ledger();
        // Not through the gate: who is inside may wait for us while an unmount waits for them. The
        // unmount takes this turn instead before it goes on.
        let _at_work = self.0.write_back_turn.take().await;
        if !self.0.mounted.get() || self.read_only().is_some() {
            self.0.write_back_planned.set(false);
            ledger.changed.notify();
            return Ok(false);
        }
        let mut result = Ok(());
        for _ in 0..ledger.queue_len() {
            let Some(file) = ledger.next_dirty() else {
                break;
            };
            let now = self.core().host.now();
            let since = file.pages.dirty_since();
            let due = since.is_some_and(|since| now >= since + limits::WRITE_BACK_AGE);
            let done = if due || ledger.is_pressed() {
                self.settle(&file).await
            } else {
                Ok(())
            };
            ledger.put_back(&file);
            result = result.and(self.watch(done));
        }
        match &result {
            Ok(()) => {
                self.0.write_back_failed.take();
            }
            Err(error) => {
                tracing::warn!(volume = ?self, %error, "cached data could not be written back; it is kept");
                *self.0.write_back_failed.borrow_mut() = Some(error.clone());
                ledger.changed.notify();
            }
        }
        result?;
        let more = ledger.queue_len() > 0;
        if !more {
            self.0.write_back_planned.set(false);
        }
        Ok(more)
    }
}

/// The bytes of the file that a run's pages are for.
fn bytes_of(run: &Run) -> (u64, u64) {
    let range = run.range();
    (
        range.start * PAGE_BYTES as u64,
        range.end * PAGE_BYTES as u64,
    )
}
