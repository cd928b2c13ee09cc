//! A mounted volume: the one public door of this crate. Front ends call it and nothing else.
//!
//! Every operation passes the gate (unmount waits for those inside), names what it needs in owned
//! values, and answers with a typed error. An operation that meets corruption stops all writing:
//! the volume turns read-only, keeps the first cause, and goes on serving reads.
//!
//! An operation that writes is run to its end: its future is not to be dropped half-way. A write to
//! the device that is on its way then could reach clusters, or a range, that somebody else has
//! meanwhile. Who may give up waiting spawns the operation and gives up its answer.

mod acl;
mod attr;
mod clone;
mod fill;
mod heal;
mod is_inode;
mod lookup;
mod mount;
mod names;
mod open;
mod ranges;
mod read;
mod read_cached;
#[cfg(test)]
mod recovery_tests;
mod remove;
mod rename;
mod truncate;
mod types;
mod write;
mod xattrs;

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use ondisk::BlockNr;
use ondisk::feature::InodeFlags;
use runtime::Buffer;

use crate::alloc;
use crate::check;
use crate::core::Core;
use crate::error::{Error, Result};
use crate::inode::InodeRef;
use crate::journal::wait::Turns;
use crate::limits;
use crate::lock::{ReadGuard, RwLock};

pub use crate::pages::PageCounts;
pub use clone::CloneAs;
pub use open::FileHandle;
pub use ranges::{ExtentInfo, RangeMode, SeekFor};
pub use types::{
    Attr, Coherency, DirEntry, FileKind, IfExists, Ino, MountOptions, NewInode, OnError, OpenFlags,
    RenameMode, SetAttr, SetTime, StatFs, VolumeInfo, Written,
};
pub use write::{Attempted, Counters, Fallback, LockLevel, Path, WriteCounts};

use write::WriteCounters;

/// A mounted volume. Clones are the same volume; it lives on the thread that mounted it.
#[derive(Clone)]
pub struct Volume(Rc<Inner>);

pub(crate) struct Inner {
    core: Core,
    /// Held shared by every operation, exclusively by unmount.
    gate: RwLock,
    mounted: Cell<bool>,
    /// Renames across directories, one at a time: nobody else moves an ancestor meanwhile.
    rename: RwLock,
    /// Why nothing is written, if nothing is.
    read_only: RefCell<Option<String>>,
    recovered: bool,
    /// Open handles on the whole volume.
    opens: Cell<usize>,
    /// The truncate log will be flushed in a moment.
    flush_planned: Cell<bool>,
    coherency: Coherency,
    copy_on_write_bytes: u32,
    /// The task that writes cached data back is there.
    write_back_planned: Cell<bool>,
    /// It is at work.
    write_back_turn: Turns,
    /// What the last round of it met, for those who wait for room.
    write_back_failed: RefCell<Option<Error>>,
    write_counters: WriteCounters,
    /// A page of zeroes, shared by all that pad with it.
    zero_page: OnceCell<Arc<Buffer>>,
    /// Corrected blocks will be written again in a moment.
    heal_planned: Cell<bool>,
}

impl std::fmt::Debug for Volume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Volume({})", self.0.core.device.info().name)
    }
}

impl Volume {
    pub(crate) fn core(&self) -> &Core {
        &self.0.core
    }

    /// The root directory.
    pub fn root(&self) -> Ino {
        self.core().geometry.root_dir.into()
    }

    /// Memory of the volume's device, for [`Volume::read_buffer`] and [`Volume::write_buffer`].
    pub fn device_buffer(&self, len: usize) -> Buffer {
        self.core().device.allocate(len)
    }

    /// Open handles now.
    pub fn open_count(&self) -> usize {
        self.0.opens.get()
    }

    /// Why writes are refused, if they are.
    pub fn read_only(&self) -> Option<String> {
        if let Some(cause) = self.0.read_only.borrow().as_ref() {
            return Some(cause.clone());
        }
        if !self.core().journal.is_set() {
            return None;
        }
        self.core().journal.aborted()
    }

    /// Returns the cause once an error has stopped writing; `None` if the volume is unmounted, or
    /// was never to be written.
    pub async fn until_stopped(&self) -> Option<String> {
        if !self.core().journal.is_set() {
            return None;
        }
        self.core().journal.until_aborted().await
    }

    /// Enters the gate; unmount waits until the guard is dropped.
    async fn enter(&self) -> Result<ReadGuard<'_>> {
        let guard = self.enter_gate().await?;
        self.plan_healing();
        Ok(guard)
    }

    async fn enter_gate(&self) -> Result<ReadGuard<'_>> {
        let guard = self.0.gate.read().await;
        if self.0.mounted.get() {
            Ok(guard)
        } else {
            Err(Error::Busy("the volume is unmounted".into()))
        }
    }

    /// As [`Volume::enter`], if nobody has to be waited for.
    fn try_enter(&self) -> Option<ReadGuard<'_>> {
        self.0.gate.try_read().filter(|_| self.0.mounted.get())
    }

    fn is_read_only(&self) -> bool {
        let journal = &self.core().journal;
        self.0.read_only.borrow().is_some() || (journal.is_set() && journal.is_aborted())
    }

    /// As [`Volume::enter`], for operations that write.
    async fn enter_writing(&self) -> Result<ReadGuard<'_>> {
        let guard = self.enter().await?;
        match self.read_only() {
            None => Ok(guard),
            Some(cause) => Err(Error::ReadOnly(cause)),
        }
    }

    /// Passes a result on; corruption in it stops all writing.
    fn watch<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(error @ Error::Corrupt(_)) = &result {
            self.stop_writing(error);
        }
        result
    }

    /// The volume turns read-only. The first cause is kept.
    pub(crate) fn stop_writing(&self, cause: &Error) {
        let mut read_only = self.0.read_only.borrow_mut();
        if read_only.is_none() {
            tracing::error!(volume = ?self, %cause, "the volume is read-only from now on");
            if self.core().journal.is_set() {
                self.core().journal.abort(&cause.to_string());
            }
            *read_only = Some(cause.to_string());
        }
    }

    /// Clusters were freed: brings them from the truncate log to the bitmap in a moment, so that a
    /// burst of deletions is one flush.
    fn plan_flush(&self) {
        if self.0.flush_planned.replace(true) {
            return;
        }
        let sleep = self.core().host.sleep(limits::TRUNCATE_LOG_DELAY);
        let volume = Rc::downgrade(&self.0);
        self.core().host.spawn(Box::pin(async move {
            sleep.await;
            let Some(volume) = volume.upgrade().map(Volume) else {
                return;
            };
            volume.0.flush_planned.set(false);
            let Ok(_gate) = volume.enter_writing().await else {
                return;
            };
            let result = alloc::flush_truncate_log(volume.core()).await;
            if let Err(error) = volume.watch(result) {
                tracing::warn!(?volume, %error, "the truncate log could not be flushed");
            }
        }));
    }

    /// Checks the whole volume, on the medium, at one moment from now; it goes on meanwhile. Nothing
    /// is written. Findings and progress are told to `observer`, which may break it off. See
    /// [`crate::check`] for what it guarantees.
    ///
    /// # Errors
    /// [`Error::Busy`] if another check is running, the volume was unmounted, it changes faster than
    /// it can be checked, or `observer` broke off.
    pub async fn check(&self, observer: &mut check::Observer<'_>) -> Result<check::Summary> {
        // The gate is not held: an unmount ends the check.
        drop(self.enter().await?);
        check::check_mounted(self.core(), || self.0.mounted.get(), observer).await
    }

    /// An inode that a directory entry named.
    async fn inode(&self, nr: BlockNr) -> Result<InodeRef> {
        let inode = self.core().inodes.get(self.core(), nr).await?;
        if !flags(&inode).contains(InodeFlags::VALID) {
            return Err(Error::Stale(nr));
        }
        Ok(inode)
    }

    /// An inode whose number came from a client: anything may be in that block.
    async fn client_inode(&self, ino: Ino) -> Result<InodeRef> {
        let core = self.core();
        let nr = BlockNr::from(ino);
        let inode = match core.inodes.peek(nr) {
            Some(inode) => inode,
            None if ino == self.root() => core.inodes.get(core, nr).await?,
            None => {
                is_inode::is_inode(core, nr).await?;
                core.inodes.get(core, nr).await?
            }
        };
        let flags = flags(&inode);
        if !flags.contains(InodeFlags::VALID)
            || (flags.contains(InodeFlags::SYSTEM) && ino != self.root())
        {
            return Err(Error::Stale(nr));
        }
        Ok(inode)
    }

    /// As [`Volume::client_inode`], and it is a directory.
    async fn client_dir(&self, ino: Ino) -> Result<InodeRef> {
        let inode = self.client_inode(ino).await?;
        require_dir(&inode)?;
        Ok(inode)
    }
}

fn flags(inode: &InodeRef) -> InodeFlags {
    inode.dinode().flags()
}

fn kind_of(inode: &InodeRef) -> FileKind {
    inode
        .dinode()
        .file_type()
        .expect("a dinode's type was checked when it was read")
}

fn require_dir(inode: &InodeRef) -> Result<()> {
    if kind_of(inode) == FileKind::Directory {
        Ok(())
    } else {
        Err(Error::NotDirectory(inode.nr()))
    }
}

/// A directory that can still get entries: not one that was removed while somebody had it open.
fn require_live_dir(dir: &InodeRef) -> Result<()> {
    require_dir(dir)?;
    if flags(dir).contains(InodeFlags::ORPHANED) || !flags(dir).contains(InodeFlags::VALID) {
        return Err(Error::NotFound(format!(
            "directory inode {} was removed",
            dir.nr()
        )));
    }
    Ok(())
}
