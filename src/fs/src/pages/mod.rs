//! The page cache: file data in memory of the device, above the write path.
//!
//! ```text
//!  buffered write ─► page, dirty ──(age, pressure, fsync)──► the write path ─► device
//!  buffered read  ◄─ page ◄──────── miss, read-ahead ◄────── device
//! ```
//! A dirty page is a promise to the file's users, and nothing else: no extent, no size and no bitmap
//! says anything of it yet. Writing it back is an ordinary write, which puts the data on the device
//! before the commit that shows it; so no commit ever waits for cached data, and a crash leaves what
//! the write path leaves.
//!
//! The rules this room owns:
//! * A page's bytes are shared and copied on write: a page that is on its way to the device, or in a
//!   reader's hands, does not change.
//! * A page is dropped only if it is neither dirty nor on its way.
//! * What failed to be written is dirty again: nothing is lost while the volume is mounted.
//! * Whoever changes where a file's data lies holds [`Pages::turn`], as a write-back does; it comes
//!   before the inode's lock.

mod ahead;
mod ledger;
#[cfg(test)]
mod tests;

pub use ahead::ReadAhead;
pub use ledger::{Ledger, PageCounts, Room};

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ondisk::BlockNr;
use rangemap::RangeSet;
use runtime::Buffer;

use crate::journal::wait::{Signal, Turns};

/// Bytes of a page. Clusters are a whole number of them, and they of blocks.
pub const PAGE_BYTES: usize = 4096;

/// The pages that bytes `from..to` touch.
pub fn pages_of(from: u64, to: u64) -> Range<u64> {
    from / PAGE_BYTES as u64..to.div_ceil(PAGE_BYTES as u64)
}

struct Page {
    bytes: Arc<Buffer>,
    /// The device does not have it, and nobody is writing it there.
    dirty: bool,
    /// A write-back has its bytes as they were; it can be dirty again meanwhile.
    writing: bool,
    /// Since the clock's hand last passed.
    used: bool,
}

/// The pages of one file.
pub struct Pages {
    nr: BlockNr,
    ledger: Rc<Ledger>,
    map: RefCell<BTreeMap<u64, Page>>,
    dirty: Cell<usize>,
    writing: Cell<usize>,
    /// One past the last byte of cached data, if the volume does not know it yet; else 0.
    end: Cell<u64>,
    /// Clusters of the file that its dirty pages will need and that were promised to it.
    delayed: RefCell<RangeSet<u32>>,
    /// When the first page became dirty.
    dirty_since: Cell<Option<Duration>>,
    /// It waits in the ledger's queue to be written back.
    queued: Cell<bool>,
    /// Counts what makes bytes read from the device outdated.
    stamp: Cell<u64>,
    /// Ranges that are being read.
    filling: RefCell<Vec<Range<u64>>>,
    filled: Signal,
    /// Held by a write-back, and by whoever changes where the file's data lies.
    pub turn: Turns,
}

/// A run of pages on its way to the device.
pub struct Run {
    pub first: u64,
    pub pages: Vec<Arc<Buffer>>,
    /// One past the last byte of the file when the pages were as they are here.
    pub size: u64,
}

impl Run {
    pub fn range(&self) -> Range<u64> {
        self.first..self.first + self.pages.len() as u64
    }
}

impl Pages {
    pub fn new(nr: BlockNr, ledger: Rc<Ledger>) -> Self {
        Pages {
            nr,
            ledger,
            map: RefCell::default(),
            dirty: Cell::new(0),
            writing: Cell::new(0),
            end: Cell::new(0),
            delayed: RefCell::default(),
            dirty_since: Cell::new(None),
            queued: Cell::new(false),
            stamp: Cell::new(0),
            filling: RefCell::default(),
            filled: Signal::default(),
            turn: Turns::default(),
        }
    }

    /// Nothing is cached and nothing is about to be: requests to the device need not look here.
    pub fn is_idle(&self) -> bool {
        self.map.borrow().is_empty() && self.filling.borrow().is_empty()
    }

    /// Some data is not on the device.
    pub fn is_unsettled(&self) -> bool {
        self.dirty.get() > 0 || self.writing.get() > 0 || self.end.get() > 0
    }

    /// Some page of the range is not on the device.
    pub fn is_busy(&self, range: Range<u64>) -> bool {
        if self.dirty.get() == 0 && self.writing.get() == 0 {
            return false;
        }
        let map = self.map.borrow();
        map.range(range).any(|(_, page)| page.dirty || page.writing)
    }

    pub fn dirty_since(&self) -> Option<Duration> {
        self.dirty_since.get()
    }

    /// One past the last byte of cached data that makes the file longer than the volume knows.
    pub fn end(&self) -> u64 {
        self.end.get()
    }

    /// The file's data now reaches to `end`, in memory.
    pub fn extend(&self, end: u64) {
        self.end.set(self.end.get().max(end));
    }

    /// Some page has bytes that nobody is bringing to the device.
    pub fn is_dirty(&self) -> bool {
        self.dirty.get() > 0
    }

    /// The file ends at `size` at the latest: what a dirty page has behind it is zero from now on.
    /// The caller holds the turn.
    pub fn cut(&self, size: u64, allocate: impl FnOnce() -> Buffer) {
        self.end.set(self.end.get().min(size));
        let inside = (size % PAGE_BYTES as u64) as usize;
        let mut map = self.map.borrow_mut();
        let Some(page) = map.get_mut(&(size / PAGE_BYTES as u64)) else {
            return;
        };
        if !page.dirty {
            return; // the device has the same bytes, and is seen to with them
        }
        match Arc::get_mut(&mut page.bytes) {
            Some(bytes) => bytes[inside..].fill(0),
            None => {
                let mut copy = allocate();
                copy[..inside].copy_from_slice(&page.bytes[..inside]);
                copy[inside..].fill(0);
                page.bytes = Arc::new(copy);
            }
        }
    }

    /// The volume knows the size: all of the file's data has reached it, or is gone.
    pub fn forget_end(&self) {
        self.end.set(0);
    }

    /// The page's bytes, if it is cached.
    pub fn get(&self, index: u64) -> Option<Arc<Buffer>> {
        let mut map = self.map.borrow_mut();
        let page = map.get_mut(&index)?;
        page.used = true;
        Some(page.bytes.clone())
    }

    pub fn contains(&self, index: u64) -> bool {
        self.map.borrow().contains_key(&index)
    }

    /// Enters a page that was read, unless there is one; what is there is newer.
    pub fn fill(&self, index: u64, bytes: Arc<Buffer>, room: &mut Room) {
        let mut map = self.map.borrow_mut();
        if map.contains_key(&index) || !room.take() {
            return;
        }
        map.insert(
            index,
            Page {
                bytes,
                dirty: false,
                writing: false,
                used: false,
            },
        );
        self.ledger.entered(self.nr, index);
    }

    /// Copies `data` to byte `at` of a page, which is dirty then. A page that is not cached begins
    /// as zeroes.
    pub fn write(
        &self,
        index: u64,
        at: usize,
        data: &[u8],
        now: Duration,
        room: &mut Room,
        allocate: impl FnOnce() -> Buffer,
    ) {
        let whole = at == 0 && data.len() == PAGE_BYTES;
        let mut map = self.map.borrow_mut();
        match map.get_mut(&index) {
            Some(page) => {
                match Arc::get_mut(&mut page.bytes) {
                    Some(bytes) => bytes[at..at + data.len()].copy_from_slice(data),
                    None => {
                        let mut copy = allocate();
                        if !whole {
                            copy.copy_from_slice(&page.bytes);
                        }
                        copy[at..at + data.len()].copy_from_slice(data);
                        page.bytes = Arc::new(copy);
                    }
                }
                page.used = true;
                if !std::mem::replace(&mut page.dirty, true) {
                    self.count_dirty(1);
                }
            }
            None => {
                let mut bytes = allocate();
                if !whole {
                    bytes.fill(0);
                }
                bytes[at..at + data.len()].copy_from_slice(data);
                let taken = room.take();
                debug_assert!(taken, "room was made for every page of the write");
                let page = Page {
                    bytes: Arc::new(bytes),
                    dirty: true,
                    writing: false,
                    used: true,
                };
                map.insert(index, page);
                self.ledger.entered(self.nr, index);
                self.count_dirty(1);
            }
        }
        if self.dirty_since.get().is_none() {
            self.dirty_since.set(Some(now));
        }
    }

    /// The first run of dirty pages in the range, at most `max` of them: on its way to the device
    /// from now on, until [`Pages::written`]. `size` is the file's, for its users.
    pub fn start_writing(&self, range: Range<u64>, max: usize, size: u64) -> Option<Run> {
        if self.dirty.get() == 0 {
            return None;
        }
        let mut map = self.map.borrow_mut();
        let mut run: Option<Run> = None;
        for (&index, page) in map.range_mut(range) {
            // One write to a page at a time: two could reach the device in either order.
            let ready = page.dirty && !page.writing;
            match &mut run {
                None if ready => {
                    run = Some(Run {
                        first: index,
                        pages: vec![],
                        size,
                    });
                }
                None => continue,
                Some(run) if ready && index == run.range().end && run.pages.len() < max => {}
                Some(_) => break,
            }
            page.dirty = false;
            page.writing = true;
            if let Some(run) = &mut run {
                run.pages.push(page.bytes.clone());
            }
        }
        let started = run.as_ref().map_or(0, |run| run.pages.len());
        self.dirty.set(self.dirty.get() - started);
        self.writing.set(self.writing.get() + started);
        if self.dirty.get() == 0 {
            self.dirty_since.set(None);
        }
        run
    }

    /// The pages from `from` on of a run that was started are on the device; or they are dirty again.
    pub fn written(&self, range: Range<u64>, on_device: bool, now: Duration) {
        let mut map = self.map.borrow_mut();
        let (mut ended, mut clean) = (0, 0);
        for (_, page) in map.range_mut(range) {
            if !std::mem::replace(&mut page.writing, false) {
                continue;
            }
            ended += 1;
            if page.dirty {
                clean += 1; // it was counted again when it was written to meanwhile
            } else if on_device {
                clean += 1;
            } else {
                page.dirty = true;
                self.dirty.set(self.dirty.get() + 1);
            }
        }
        self.writing.set(self.writing.get() - ended);
        self.ledger.became_clean(clean);
        if self.dirty.get() > 0 && self.dirty_since.get().is_none() {
            self.dirty_since.set(Some(now));
        }
    }

    /// Drops every page of the range, dirty or not. The caller holds the turn, so none is on its
    /// way, and the inode.
    pub fn discard(&self, range: Range<u64>) {
        self.stamp.set(self.stamp.get() + 1);
        self.drop_pages(range, true);
    }

    /// Drops the pages of the range that the device has: it is about to have other bytes there, or
    /// has them since a moment.
    pub fn invalidate(&self, range: Range<u64>) {
        self.stamp.set(self.stamp.get() + 1);
        self.drop_pages(range, false);
    }

    fn drop_pages(&self, range: Range<u64>, dirty_too: bool) {
        let mut map = self.map.borrow_mut();
        if map.is_empty() {
            return;
        }
        let (mut at, mut gone) = (range.start, 0);
        while let Some(index) = map
            .range(at..range.end)
            .find(|(_, page)| !page.writing && (dirty_too || !page.dirty))
            .map(|(&index, _)| index)
        {
            if map.remove(&index).is_some_and(|page| page.dirty) {
                self.dirty.set(self.dirty.get() - 1);
                self.ledger.became_clean(1);
            }
            gone += 1;
            at = index + 1;
        }
        if self.dirty.get() == 0 {
            self.dirty_since.set(None);
        }
        self.ledger.left(gone);
    }

    /// The clock's hand is at a page: true if it went.
    fn evict(&self, index: u64) -> Hand {
        let mut map = self.map.borrow_mut();
        let Some(page) = map.get_mut(&index) else {
            return Hand::Gone;
        };
        if page.dirty || page.writing || std::mem::replace(&mut page.used, false) {
            return Hand::Kept;
        }
        map.remove(&index);
        Hand::Evicted
    }

    fn count_dirty(&self, pages: usize) {
        self.dirty.set(self.dirty.get() + pages);
        self.ledger.became_dirty(pages);
    }

    /// Changes with everything that makes bytes read before outdated.
    pub fn stamp(&self) -> u64 {
        self.stamp.get()
    }

    /// Says that the range is being read, until the answer is dropped.
    pub fn start_filling(&self, range: Range<u64>) -> Filling<'_> {
        self.filling.borrow_mut().push(range.clone());
        Filling { pages: self, range }
    }

    /// Waits while a page is being read by somebody else; false if it was not.
    pub async fn wait_filled(&self, index: u64) -> bool {
        let busy = || self.filling.borrow().iter().any(|r| r.contains(&index));
        if !busy() {
            return false;
        }
        self.filled.until(|| (!busy()).then_some(())).await;
        true
    }

    pub fn is_filling(&self, index: u64) -> bool {
        self.filling.borrow().iter().any(|r| r.contains(&index))
    }

    /// The parts of `clusters` that were not promised to this file yet.
    pub fn not_delayed(&self, clusters: Range<u32>) -> Vec<Range<u32>> {
        self.delayed.borrow().gaps(&clusters).collect()
    }

    /// Clusters that are promised to the file's cached data.
    pub fn delayed(&self) -> u64 {
        let delayed = self.delayed.borrow();
        delayed
            .iter()
            .map(|range| u64::from(range.end - range.start))
            .sum()
    }

    /// Promises clusters to the file's cached data.
    pub fn delay(&self, clusters: Range<u32>) -> u64 {
        let mut delayed = self.delayed.borrow_mut();
        let new: u64 = delayed
            .gaps(&clusters)
            .map(|gap| u64::from(gap.end - gap.start))
            .sum();
        if new > 0 {
            delayed.insert(clusters);
        }
        new
    }

    /// Takes a promise back: they have their clusters, or are gone. Tells how many it was.
    pub fn undelay(&self, clusters: Range<u32>) -> u64 {
        let mut delayed = self.delayed.borrow_mut();
        if delayed.is_empty() || clusters.is_empty() {
            return 0;
        }
        let had = |range: &Range<u32>| {
            let (from, to) = (range.start.max(clusters.start), range.end.min(clusters.end));
            u64::from(to.saturating_sub(from))
        };
        let taken = delayed.overlapping(&clusters).map(had).sum();
        delayed.remove(clusters);
        taken
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        let held = self.map.borrow().len();
        let dirty = self.dirty.get() + self.writing.get();
        self.ledger.became_clean(dirty);
        self.ledger.left(held);
    }
}

/// What the clock found.
enum Hand {
    Gone,
    Kept,
    Evicted,
}

/// A range that is being read.
pub struct Filling<'a> {
    pages: &'a Pages,
    range: Range<u64>,
}

impl Drop for Filling<'_> {
    fn drop(&mut self) {
        let mut filling = self.pages.filling.borrow_mut();
        if let Some(at) = filling.iter().position(|range| *range == self.range) {
            filling.swap_remove(at);
        }
        drop(filling);
        self.pages.filled.notify();
    }
}
