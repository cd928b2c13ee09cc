//! Inodes in memory: identity, locks and open count. Attributes are not copied: they are read from
//! the dinode's block, so that a rolled-back handle takes them back as well.

use std::cell::{Cell, Ref, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};

use async_lock::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use ondisk::{BlockNr, Dinode, Kind};

use crate::cache::BlockRef;
use crate::core::Core;
use crate::error::{Error, Result};
use crate::journal::Tid;
use crate::range_lock::RangeLocks;

/// An inode that somebody uses.
pub struct Inode {
    nr: BlockNr,
    block: BlockRef,
    /// Shared to read the file or the directory, exclusive to change it.
    pub lock: RwLock<()>,
    /// Writes that run at the same time, under the shared lock.
    pub ranges: RangeLocks,
    /// Open handles. Unlinked with this above zero, it waits in the orphan directory.
    pub opens: Cell<u32>,
    /// The last transaction that changed anything fsync has to wait for.
    pub last_tid: Cell<Option<Tid>>,
    /// File data was written since the last flush of the device.
    pub unflushed: Cell<bool>,
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

    /// The right to read it, unless it is gone.
    pub async fn shared(&self) -> Result<RwLockReadGuard<'_, ()>> {
        let guard = self.lock.read().await;
        if self.deleted.get() {
            Err(Error::Stale(self.nr))
        } else {
            Ok(guard)
        }
    }

    /// The right to change it, unless it is gone.
    pub async fn exclusive(&self) -> Result<RwLockWriteGuard<'_, ()>> {
        let guard = self.lock.write().await;
        if self.deleted.get() {
            Err(Error::Stale(self.nr))
        } else {
            Ok(guard)
        }
    }

    /// Notes that fsync has to wait for this transaction.
    pub fn changed_in(&self, tid: Tid) {
        self.last_tid.set(Some(tid));
    }
}

/// The inodes in use, by number.
#[derive(Default)]
pub struct Inodes {
    table: RefCell<HashMap<BlockNr, Weak<Inode>>>,
}

impl Inodes {
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
            lock: RwLock::new(()),
            ranges: RangeLocks::default(),
            opens: Cell::new(0),
            last_tid: Cell::new(None),
            unflushed: Cell::new(false),
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
