//! Inodes in memory: identity, locks and open count. Attributes are not copied: they are read from
//! the dinode's block, so that a rolled-back handle takes them back as well.

use std::cell::{Cell, Ref, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};

use ondisk::{BlockNr, Dinode, Kind};

use crate::cache::BlockRef;
use crate::core::Core;
use crate::error::{Error, Result};
use crate::journal::Tid;
use crate::limits;
use crate::lock::{ReadGuard, RwLock, WriteGuard};
use crate::pages::{Ledger, Pages};
use crate::range_lock::RangeLocks;
use crate::run_cache::RunCache;

/// An inode that somebody uses.
pub struct Inode {
    nr: BlockNr,
    block: BlockRef,
    /// Shared to read the file or the directory, exclusive to change it.
    pub lock: RwLock,
    /// Writes that run at the same time, under the shared lock.
    pub ranges: RangeLocks,
    /// Extents found lately.
    pub runs: RunCache,
    /// Its data in memory.
    pub pages: Pages,
    /// Open handles. Unlinked with this above zero, it waits in the orphan directory.
    pub opens: Cell<u32>,
    /// What fsync has to wait for.
    unsettled: Cell<Unsettled>,
    /// Where that goes when nobody uses the inode any more.
    left: Rc<RefCell<Left>>,
    /// Deleted: the block may already be another inode.
    deleted: Cell<bool>,
}

pub type InodeRef = Rc<Inode>;

impl Inode {
    pub fn nr(&self) -> BlockNr {
        self.nr
    }

    pub fn block(&self) -> &BlockRef {
        &self.block
    }

    /// The fixed part of the dinode. Not to be held across an await.
    pub fn dinode(&self) -> Ref<'_, Dinode> {
        Ref::map(self.block.data(), Dinode::of)
    }

    /// Bytes of the file, for its users: with cached data that the volume does not know yet.
    pub fn size(&self) -> u64 {
        self.dinode().i_size.get().max(self.pages.end())
    }

    /// The right to read it, unless it is gone.
    pub async fn shared(&self) -> Result<ReadGuard<'_>> {
        let guard = self.lock.read().await;
        if self.deleted.get() {
            Err(Error::Stale(self.nr))
        } else {
            Ok(guard)
        }
    }

    /// The right to read it, if it is there and nobody is in the way.
    pub fn try_shared(&self) -> Option<ReadGuard<'_>> {
        self.lock.try_read().filter(|_| !self.deleted.get())
    }

    /// The right to change it, unless it is gone.
    pub async fn exclusive(&self) -> Result<WriteGuard<'_>> {
        let guard = self.lock.write().await;
        if self.deleted.get() {
            Err(Error::Stale(self.nr))
        } else {
            Ok(guard)
        }
    }

    /// Notes that fsync has to wait for this transaction.
    pub fn changed_in(&self, tid: Tid) {
        let tid = Some(tid);
        self.unsettled.set(Unsettled {
            tid,
            ..self.unsettled.get()
        });
    }

    /// Notes that a write of file data has ended that no commit is sure to cover.
    pub fn data_written(&self) {
        let now = self.unsettled.get();
        let written = now.written + 1;
        self.unsettled.set(Unsettled { written, ..now });
    }

    /// What is to be made durable for an fsync that begins now.
    pub fn unsettled(&self) -> Unsettled {
        self.unsettled.get()
    }

    /// The device was flushed for the data that `covered` counts. Not earlier: another fsync that
    /// runs at the same time must not take a flush for done that has only begun.
    pub fn data_flushed(&self, covered: Unsettled) {
        let now = self.unsettled.get();
        let flushed = now.flushed.max(covered.written);
        self.unsettled.set(Unsettled { flushed, ..now });
    }
}

impl Drop for Inode {
    fn drop(&mut self) {
        let unsettled = self.unsettled.get();
        if !self.deleted.get() && (unsettled.tid.is_some() || unsettled.has_data()) {
            self.left.borrow_mut().add(self.nr, unsettled);
        }
    }
}

/// What an fsync of an inode has to make durable.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unsettled {
    /// The last transaction that changed the inode.
    pub tid: Option<Tid>,
    /// Writes of file data that have ended, and how many of them were flushed.
    written: u64,
    flushed: u64,
}

impl Unsettled {
    /// Some data is not flushed.
    pub fn has_data(self) -> bool {
        self.written > self.flushed
    }

    fn and(self, other: Unsettled) -> Unsettled {
        Unsettled {
            tid: self.tid.max(other.tid),
            written: u64::from(self.has_data() || other.has_data()),
            flushed: 0,
        }
    }
}

/// What is unsettled of inodes that nobody uses: a file that is opened again for its fsync, a
/// directory that is only named for it.
#[derive(Default)]
struct Left {
    by_inode: HashMap<BlockNr, Unsettled>,
    /// For any inode: what did not fit. An fsync too many does no harm.
    of_any: Unsettled,
}

impl Left {
    fn add(&mut self, nr: BlockNr, unsettled: Unsettled) {
        if self.by_inode.len() >= limits::UNSETTLED_INODES {
            let all = self.by_inode.drain().map(|(_, unsettled)| unsettled);
            self.of_any = all.fold(self.of_any, Unsettled::and);
        }
        self.by_inode.insert(nr, unsettled);
    }

    fn take(&mut self, nr: BlockNr) -> Unsettled {
        let own = self.by_inode.remove(&nr).unwrap_or_default();
        own.and(self.of_any)
    }
}

/// The inodes in use, by number.
pub struct Inodes {
    table: RefCell<HashMap<BlockNr, Weak<Inode>>>,
    left: Rc<RefCell<Left>>,
    /// The account of the pages that files have in memory.
    pub pages: Rc<Ledger>,
}

impl Default for Inodes {
    fn default() -> Self {
        Inodes::new(limits::PAGE_CACHE_BYTES)
    }
}

impl Inodes {
    /// None yet; their cached data may take so many bytes.
    pub fn new(page_cache_bytes: usize) -> Self {
        Inodes {
            table: RefCell::default(),
            left: Rc::default(),
            pages: Ledger::new(page_cache_bytes),
        }
    }

    /// The inode of that number, read if nobody has it.
    pub async fn get(&self, core: &Core, nr: BlockNr) -> Result<InodeRef> {
        if let Some(inode) = self.peek(nr) {
            return Ok(inode);
        }
        let block = core.cache.read(nr, Kind::Dinode).await?;
        Ok(self.adopt(nr, block))
    }

    pub fn peek(&self, nr: BlockNr) -> Option<InodeRef> {
        self.table.borrow().get(&nr)?.upgrade()
    }

    /// The inode of a block that is in memory: just read, or just made.
    pub fn adopt(&self, nr: BlockNr, block: BlockRef) -> InodeRef {
        if let Some(inode) = self.peek(nr) {
            return inode;
        }
        let inode = Rc::new(Inode {
            nr,
            block,
            lock: RwLock::default(),
            ranges: RangeLocks::default(),
            runs: RunCache::default(),
            pages: Pages::new(nr, self.pages.clone()),
            opens: Cell::new(0),
            unsettled: Cell::new(self.left.borrow_mut().take(nr)),
            left: self.left.clone(),
            deleted: Cell::new(false),
        });
        let mut table = self.table.borrow_mut();
        if table.len() >= 1024 && table.len() == table.capacity() {
            table.retain(|_, weak| weak.strong_count() > 0);
        }
        table.insert(nr, Rc::downgrade(&inode));
        inode
    }

    /// Forgets a deleted inode. Whoever still has it gets `Stale`; the number is free for another.
    pub fn deleted(&self, inode: &InodeRef) {
        inode.deleted.set(true);
        self.table.borrow_mut().remove(&inode.nr);
    }
}
