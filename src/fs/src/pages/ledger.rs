//! What the pages of a volume's files take together: the budget, who is evicted, who is written
//! back next.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use ondisk::BlockNr;

use super::{Hand, PAGE_BYTES};
use crate::inode::InodeRef;
use crate::journal::wait::Signal;

/// The volume's account of its cached pages.
pub struct Ledger {
    /// In pages.
    budget: usize,
    /// Cached, and promised to those who are about to cache.
    held: Cell<usize>,
    promised: Cell<usize>,
    /// Dirty, or on their way.
    dirty: Cell<usize>,
    /// Pages in the order in which the clock's hand comes to them; some are gone meanwhile.
    clock: RefCell<VecDeque<(BlockNr, u64)>>,
    /// Files with pages: those are kept in memory for them.
    files: RefCell<HashMap<BlockNr, InodeRef>>,
    /// Files with dirty pages, the one that waits longest first.
    queue: RefCell<VecDeque<InodeRef>>,
    /// Those of them that the write-back has in hand.
    in_hand: RefCell<Vec<InodeRef>>,
    /// Pages have become clean, or a write-back has failed.
    pub changed: Signal,
    /// Somebody waits for room, or much is dirty.
    pub pressed: Signal,
    waiting: Cell<usize>,
    hits: Cell<u64>,
    misses: Cell<u64>,
    read_ahead: Cell<u64>,
    written_back: Cell<u64>,
    evicted: Cell<u64>,
}

/// Figures of a volume's page cache, in pages of 4096 bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PageCounts {
    pub budget: u64,
    pub cached: u64,
    /// Not on the device yet.
    pub dirty: u64,
    /// Since mount: found in the cache, and not.
    pub hits: u64,
    pub misses: u64,
    pub read_ahead: u64,
    pub written_back: u64,
    pub evicted: u64,
}

impl Ledger {
    pub fn new(budget_bytes: usize) -> Rc<Self> {
        Rc::new(Ledger {
            budget: budget_bytes / PAGE_BYTES,
            held: Cell::new(0),
            promised: Cell::new(0),
            dirty: Cell::new(0),
            clock: RefCell::default(),
            files: RefCell::default(),
            queue: RefCell::default(),
            in_hand: RefCell::default(),
            changed: Signal::default(),
            pressed: Signal::default(),
            waiting: Cell::new(0),
            hits: Cell::new(0),
            misses: Cell::new(0),
            read_ahead: Cell::new(0),
            written_back: Cell::new(0),
            evicted: Cell::new(0),
        })
    }

    /// Most pages that one write may bring in; a longer one goes past the cache.
    pub fn write_max(&self) -> usize {
        self.budget / 4
    }

    pub fn dirty(&self) -> usize {
        self.dirty.get()
    }

    /// So much is dirty, or somebody waits for room, that writing back should not wait for age.
    pub fn is_pressed(&self) -> bool {
        self.dirty.get() > self.budget / 4 || (self.waiting.get() > 0 && self.dirty.get() > 0)
    }

    /// Room for so many pages, if eviction makes it.
    pub fn try_room(self: &Rc<Self>, pages: usize) -> Option<Room> {
        let wanted = (self.held.get() + self.promised.get() + pages).saturating_sub(self.budget);
        let clean = self.held.get().saturating_sub(self.dirty.get());
        if wanted > 0 && (wanted > clean || !self.evict(wanted)) {
            return None;
        }
        self.promised.set(self.promised.get() + pages);
        Some(Room {
            ledger: self.clone(),
            left: pages,
        })
    }

    /// Says that somebody waits for room, until the answer is dropped.
    pub fn wait(self: &Rc<Self>) -> Waiting {
        self.waiting.set(self.waiting.get() + 1);
        self.pressed.notify();
        Waiting(self.clone())
    }

    /// Evicts so many pages, in the order of the clock; false if there are not as many to evict.
    fn evict(&self, pages: usize) -> bool {
        let mut left = pages;
        // Twice around: the first pass may only take marks of use away.
        let mut steps = 2 * self.clock.borrow().len();
        while left > 0 && steps > 0 {
            steps -= 1;
            let Some((nr, index)) = self.clock.borrow_mut().pop_front() else {
                break;
            };
            let file = self.files.borrow().get(&nr).cloned();
            match file
                .as_ref()
                .map_or(Hand::Gone, |file| file.pages.evict(index))
            {
                Hand::Gone => {}
                Hand::Kept => self.clock.borrow_mut().push_back((nr, index)),
                Hand::Evicted => {
                    left -= 1;
                    self.evicted.set(self.evicted.get() + 1);
                    self.left(1);
                    if let Some(file) = file {
                        self.let_go(&file);
                    }
                }
            }
        }
        left == 0
    }

    /// Keeps a file in memory that has pages now, and queues it if some are dirty.
    pub fn keep(&self, file: &InodeRef) {
        let pages = &file.pages;
        if !pages.map.borrow().is_empty() {
            let mut files = self.files.borrow_mut();
            files.entry(file.nr()).or_insert_with(|| file.clone());
        }
        if pages.dirty.get() > 0 && !pages.queued.replace(true) {
            self.queue.borrow_mut().push_back(file.clone());
        }
        if self.is_pressed() {
            self.pressed.notify();
        }
        self.compact();
    }

    /// Pages that went by themselves leave their place on the clock: not more of those than pages.
    fn compact(&self) {
        let mut clock = self.clock.borrow_mut();
        if clock.len() <= 2 * self.budget.max(self.held.get()) + 64 {
            return;
        }
        let files = self.files.borrow();
        let mut seen = std::collections::HashSet::new();
        clock.retain(|&(nr, index)| {
            let there = files
                .get(&nr)
                .is_some_and(|file| file.pages.contains(index));
            there && seen.insert((nr, index))
        });
    }

    /// A file whose last page went need not be kept.
    pub fn let_go(&self, file: &InodeRef) {
        if file.pages.map.borrow().is_empty() && file.pages.writing.get() == 0 {
            let gone = self.files.borrow_mut().remove(&file.nr());
            drop(gone);
        }
    }

    /// The file with dirty pages that waits longest. It is off the queue then, and in the hand of
    /// the write-back until [`Ledger::put_back`].
    pub fn next_dirty(&self) -> Option<InodeRef> {
        let file = self.queue.borrow_mut().pop_front()?;
        self.in_hand.borrow_mut().push(file.clone());
        Some(file)
    }

    /// Ends what [`Ledger::next_dirty`] began: back to the queue, if it is dirty.
    pub fn put_back(&self, file: &InodeRef) {
        self.in_hand
            .borrow_mut()
            .retain(|other| !Rc::ptr_eq(other, file));
        file.pages.queued.set(false);
        self.keep(file);
    }

    pub fn queue_len(&self) -> usize {
        self.queue.borrow().len()
    }

    /// Files that wait to be written back, and those that are being.
    pub fn queued(&self) -> Vec<InodeRef> {
        let in_hand = self.in_hand.borrow();
        in_hand
            .iter()
            .chain(self.queue.borrow().iter())
            .cloned()
            .collect()
    }

    /// The volume ends: no file is kept. Tells how many dirty pages are lost by that.
    pub fn clear(&self) -> usize {
        let dirty = self.dirty.get();
        let files: Vec<InodeRef> = {
            self.queue.take();
            self.files.take().into_values().collect()
        };
        for file in &files {
            file.pages.queued.set(false);
            file.pages.drop_pages(0..u64::MAX, true);
            file.pages.forget_end();
        }
        self.clock.take();
        dirty
    }

    pub(super) fn entered(&self, nr: BlockNr, index: u64) {
        self.held.set(self.held.get() + 1);
        self.clock.borrow_mut().push_back((nr, index));
    }

    pub(super) fn left(&self, pages: usize) {
        self.held.set(self.held.get() - pages);
    }

    pub(super) fn became_dirty(&self, pages: usize) {
        self.dirty.set(self.dirty.get() + pages);
    }

    pub(super) fn became_clean(&self, pages: usize) {
        self.dirty.set(self.dirty.get() - pages);
        if pages > 0 {
            self.changed.notify();
        }
    }

    pub fn count_read(&self, hits: u64, misses: u64) {
        self.hits.set(self.hits.get() + hits);
        self.misses.set(self.misses.get() + misses);
    }

    pub fn count_read_ahead(&self, pages: u64) {
        self.read_ahead.set(self.read_ahead.get() + pages);
    }

    pub fn count_written_back(&self, pages: u64) {
        self.written_back.set(self.written_back.get() + pages);
    }

    pub fn counts(&self) -> PageCounts {
        PageCounts {
            budget: self.budget as u64,
            cached: self.held.get() as u64,
            dirty: self.dirty.get() as u64,
            hits: self.hits.get(),
            misses: self.misses.get(),
            read_ahead: self.read_ahead.get(),
            written_back: self.written_back.get(),
            evicted: self.evicted.get(),
        }
    }
}

/// Room for pages that are about to be cached; what is not used goes back.
pub struct Room {
    ledger: Rc<Ledger>,
    left: usize,
}

impl Room {
    pub(super) fn take(&mut self) -> bool {
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        self.ledger.promised.set(self.ledger.promised.get() - 1);
        true
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let promised = &self.ledger.promised;
        promised.set(promised.get() - self.left);
        if self.left > 0 {
            self.ledger.changed.notify();
        }
    }
}

/// Somebody waits for room.
pub struct Waiting(Rc<Ledger>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.set(self.0.waiting.get() - 1);
    }
}
