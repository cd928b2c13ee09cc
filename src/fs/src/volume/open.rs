//! Open files. A handle keeps its inode alive: unlinked meanwhile, it is deleted when the last
//! handle closes.

use std::cell::Cell;
use std::rc::Rc;

use super::{Attr, FileKind, Ino, OpenFlags, Volume, kind_of};
use crate::error::{Error, Result};
use crate::inode::InodeRef;
use crate::pages::ReadAhead;

/// An open file of a volume. Clones are the same handle. Close it with [`Volume::close`]; one that
/// is only dropped gives its inode up all the same, but a deletion that waits for it then waits for
/// the next mount.
#[derive(Clone)]
pub struct FileHandle(Rc<Open>);

struct Open {
    inode: InodeRef,
    flags: OpenFlags,
    volume: Volume,
    closed: Cell<bool>,
    ahead: ReadAhead,
}

impl std::fmt::Debug for FileHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "FileHandle(inode {}, {:?})",
            self.0.inode.nr(),
            self.0.flags
        )
    }
}

impl FileHandle {
    pub fn ino(&self) -> Ino {
        self.0.inode.nr().into()
    }

    pub fn flags(&self) -> OpenFlags {
        self.0.flags
    }

    pub(super) fn ahead(&self) -> &ReadAhead {
        &self.0.ahead
    }

    pub(super) fn inode(&self) -> &InodeRef {
        &self.0.inode
    }
}

impl Open {
    fn release(&self) -> bool {
        if self.closed.replace(true) {
            return false;
        }
        self.inode.opens.set(self.inode.opens.get() - 1);
        self.volume.0.opens.set(self.volume.0.opens.get() - 1);
        true
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.release();
    }
}

impl Volume {
    /// Opens a regular file (a directory only for reading, to fsync it).
    pub async fn open(&self, ino: Ino, flags: OpenFlags) -> Result<FileHandle> {
        let _gate = if flags.write || flags.truncate {
            self.enter_writing().await?
        } else {
            self.enter().await?
        };
        let result = async {
            let inode = self.client_inode(ino).await?;
            match kind_of(&inode) {
                FileKind::Regular => {}
                FileKind::Directory if !flags.write && !flags.truncate => {}
                FileKind::Directory => return Err(Error::IsDirectory(inode.nr())),
                FileKind::Symlink => return Err(Error::SymlinkLoop),
                kind => return Err(Error::NotSupported(format!("opening a {kind:?}"))),
            }
            if !flags.read && !flags.write {
                return Err(Error::Invalid(
                    "open for neither reading nor writing".into(),
                ));
            }
            if flags.truncate && !flags.write {
                return Err(Error::Invalid("truncate needs an open for writing".into()));
            }
            if flags.truncate {
                let _hold = self.hold_shape(&inode, false).await?;
                self.truncate_locked(&inode, 0).await?;
                inode.opens.set(inode.opens.get() + 1);
            } else {
                let _shared = inode.shared().await?;
                inode.opens.set(inode.opens.get() + 1);
            }
            self.0.opens.set(self.0.opens.get() + 1);
            Ok(FileHandle(Rc::new(Open {
                inode,
                flags,
                volume: self.clone(),
                closed: Cell::new(false),
                ahead: ReadAhead::default(),
            })))
        }
        .await;
        self.watch(result)
    }

    /// Closes a handle. The last close of an unlinked file deletes it.
    pub async fn close(&self, file: FileHandle) -> Result<()> {
        let _gate = self.enter().await?;
        if !file.0.release() || self.read_only().is_some() {
            return Ok(());
        }
        let result = self.delete_if_unused(&file.0.inode).await;
        self.watch(result)
    }

    /// The attributes of an open file, named or not.
    pub async fn fstat(&self, file: &FileHandle) -> Result<Attr> {
        let _gate = self.enter().await?;
        Ok(self.attr_of(file.inode()))
    }

    /// Everything written through any handle of this file is durable afterwards: its data, its
    /// size, and with `datasync` unset its attributes.
    pub async fn fsync(&self, file: &FileHandle, datasync: bool) -> Result<()> {
        let _gate = self.enter().await?;
        let result = self.fsync_inode(file.inode(), datasync).await;
        self.watch(result).map(drop)
    }

    /// As [`Volume::fsync`] by number: for directories, after names were made in them.
    pub async fn fsync_ino(&self, ino: Ino, datasync: bool) -> Result<()> {
        let _gate = self.enter().await?;
        let inode = self.client_inode(ino).await?;
        let result = self.fsync_inode(&inode, datasync).await;
        self.watch(result).map(drop)
    }

    /// Tells how many commits it waited for.
    pub(super) async fn fsync_inode(&self, inode: &InodeRef, _datasync: bool) -> Result<u32> {
        let core = self.core();
        self.settle(inode).await?;
        let unsettled = inode.unsettled();
        let mut flush = unsettled.has_data();
        let mut waited = 0;
        if let Some(tid) = unsettled.tid
            && tid > core.journal.committed_tid()
        {
            // A commit flushes the device before its commit block, and so our data, if it begins
            // after the data was written: not if it is on its way already.
            flush &= tid < core.journal.running_tid();
            core.journal.wait_committed(tid).await?;
            waited = 1;
            // Nothing was committed if all that the transaction had was taken back.
            flush |= unsettled.has_data() && tid > core.journal.committed_tid();
        }
        if flush {
            runtime::BlockDeviceExt::flush(&*core.device).await?;
        }
        inode.data_flushed(unsettled);
        Ok(waited)
    }

    /// Everything done so far on this volume is durable afterwards.
    pub async fn sync(&self) -> Result<()> {
        let _gate = self.enter().await?;
        if !self.core().journal.is_set() {
            return Ok(()); // mounted read-only
        }
        // What can be made durable is, also if some cached data cannot.
        let settled = self.settle_volume().await;
        self.core().journal.force_commit().await?;
        runtime::BlockDeviceExt::flush(&*self.core().device).await?;
        self.watch(settled)
    }
}
