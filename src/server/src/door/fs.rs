//! The `fs` crate's volume behind the door. Only words are changed on the way through.

use std::io::Write;
use std::ops::ControlFlow;
use std::rc::Rc;

use async_trait::async_trait;
use bytes::Bytes;
use fs::volume::{FileHandle, Volume};
use runtime::{BlockDevice, Host};

use super::{
    Attr, CheckEvent, CheckSummary, CloneAs, Counters, DirEntry, Door, ExtentInfo, FileKind,
    IfExists, Ino, MountOptions, NewInode, OnError, OpenFile, OpenFlags, RangeMode, RenameMode,
    SeekFor, SetAttr, StatFs, VolumeInfo, Written, XattrMode,
};
use crate::export::{DeviceOptions, FileDisk, FileExport};
use crate::failure::{Failure, Result};

/// A mounted volume.
pub struct FsDoor(Volume);

impl FsDoor {
    /// Mounts the volume on a device.
    pub async fn mount(
        device: Rc<dyn BlockDevice>,
        host: Rc<dyn Host>,
        options: MountOptions,
    ) -> Result<Rc<dyn Door>> {
        let on_error = options.on_error;
        let volume = Volume::mount(device, host.clone(), options).await?;
        if on_error == OnError::Panic {
            let watched = volume.clone();
            host.spawn(Box::pin(async move {
                if let Some(cause) = watched.until_stopped().await {
                    end_process(&watched.info().device, &cause);
                }
            }));
        }
        Ok(Rc::new(FsDoor(volume)))
    }
}

/// `errors = "panic"`: at once, with nothing more written, as a machine that panics. The log may be
/// going anywhere, so standard error is told as well.
fn end_process(device: &str, cause: &str) -> ! {
    let message = format!("errors=panic: the volume on device {device:?} has failed: {cause}");
    tracing::error!("{message}");
    let _ = writeln!(std::io::stderr(), "ocelotd: {message}");
    std::process::abort();
}

impl From<fs::Error> for Failure {
    fn from(error: fs::Error) -> Failure {
        Failure::new(error.errno().0, error.to_string())
    }
}

#[async_trait(?Send)]
impl Door for FsDoor {
    fn root(&self) -> Ino {
        self.0.root()
    }

    fn info(&self) -> VolumeInfo {
        self.0.info()
    }

    fn counters(&self) -> Counters {
        self.0.counters()
    }

    async fn statfs(&self) -> Result<StatFs> {
        Ok(self.0.statfs().await?)
    }

    async fn sync(&self) -> Result<()> {
        Ok(self.0.sync().await?)
    }

    async fn check(
        &self,
        hear: &mut dyn FnMut(CheckEvent) -> ControlFlow<()>,
    ) -> Result<CheckSummary> {
        Ok(self.0.check(hear).await?)
    }

    async fn unmount(&self) -> Result<()> {
        Ok(self.0.unmount().await?)
    }

    async fn getattr(&self, ino: Ino) -> Result<Attr> {
        Ok(self.0.getattr(ino).await?)
    }

    async fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr> {
        Ok(self.0.lookup(parent, name).await?)
    }

    async fn resolve(&self, base: Ino, path: &[u8], follow_last: bool) -> Result<Attr> {
        Ok(self.0.resolve(base, path, follow_last).await?)
    }

    async fn resolve_parent(&self, base: Ino, path: &[u8]) -> Result<(Ino, Vec<u8>)> {
        Ok(self.0.resolve_parent(base, path).await?)
    }

    async fn readdir(&self, dir: Ino, cookie: u64, max: usize) -> Result<Vec<DirEntry>> {
        Ok(self.0.readdir(dir, cookie, max).await?)
    }

    async fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        Ok(self.0.readlink(ino).await?)
    }

    async fn setattr(&self, ino: Ino, set: SetAttr) -> Result<Attr> {
        Ok(self.0.setattr(ino, set).await?)
    }

    async fn create(
        &self,
        parent: Ino,
        name: &[u8],
        new: NewInode,
        taken: IfExists,
    ) -> Result<Attr> {
        Ok(self.0.create(parent, name, new, taken).await?)
    }

    async fn mkdir(&self, parent: Ino, name: &[u8], new: NewInode) -> Result<Attr> {
        Ok(self.0.mkdir(parent, name, new).await?)
    }

    async fn symlink(
        &self,
        parent: Ino,
        name: &[u8],
        target: &[u8],
        new: NewInode,
    ) -> Result<Attr> {
        Ok(self.0.symlink(parent, name, target, new).await?)
    }

    async fn mknod(
        &self,
        parent: Ino,
        name: &[u8],
        kind: FileKind,
        rdev: u64,
        new: NewInode,
    ) -> Result<Attr> {
        Ok(self.0.mknod(parent, name, kind, rdev, new).await?)
    }

    async fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr> {
        Ok(self.0.link(ino, parent, name).await?)
    }

    async fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()> {
        Ok(self.0.unlink(parent, name).await?)
    }

    async fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        Ok(self.0.rmdir(parent, name).await?)
    }

    async fn rename(&self, from: (Ino, &[u8]), to: (Ino, &[u8]), mode: RenameMode) -> Result<()> {
        Ok(self.0.rename(from.0, from.1, to.0, to.1, mode).await?)
    }

    async fn clone_file(
        &self,
        source: Ino,
        parent: Ino,
        name: &[u8],
        whose: CloneAs,
    ) -> Result<Attr> {
        Ok(self.0.clone_file(source, parent, name, whose).await?)
    }

    async fn extents(&self, ino: Ino, offset: u64, max: usize) -> Result<Vec<ExtentInfo>> {
        Ok(self.0.extents(ino, offset, max).await?)
    }

    async fn listxattr(&self, ino: Ino) -> Result<Vec<(Vec<u8>, u64)>> {
        Ok(self.0.listxattr(ino).await?)
    }

    async fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        Ok(self.0.getxattr(ino, name).await?)
    }

    async fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        Ok(self.0.setxattr(ino, name, value, mode).await?)
    }

    async fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        Ok(self.0.removexattr(ino, name).await?)
    }

    async fn open(&self, ino: Ino, flags: OpenFlags) -> Result<Rc<dyn OpenFile>> {
        let handle = self.0.open(ino, flags).await?;
        Ok(Rc::new(FsFile {
            volume: self.0.clone(),
            handle,
        }))
    }
}

struct FsFile {
    volume: Volume,
    handle: FileHandle,
}

impl FsFile {
    /// Worth device memory of its own, from which it goes straight to the device or comes.
    fn is_direct(&self, offset: u64, len: usize) -> bool {
        const SECTOR: u64 = 512;
        let flags = self.handle.flags();
        let aligned = (offset | len as u64).is_multiple_of(SECTOR);
        flags.direct && !flags.append && aligned && len > 0
    }
}

/// A buffer whose window becomes shared bytes without a copy.
struct Owned(runtime::Buffer);

impl AsRef<[u8]> for Owned {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

#[async_trait(?Send)]
impl OpenFile for FsFile {
    fn ino(&self) -> Ino {
        self.handle.ino()
    }

    async fn attr(&self) -> Result<Attr> {
        Ok(self.volume.fstat(&self.handle).await?)
    }

    async fn read(&self, offset: u64, len: usize) -> Result<Bytes> {
        if self.is_direct(offset, len) {
            let buffer = self.volume.device_buffer(len);
            let (mut buffer, read) = self.volume.read_buffer(&self.handle, offset, buffer).await;
            buffer.set_window(0, read? as usize);
            return Ok(Bytes::from_owner(Owned(buffer)));
        }
        Ok(self.volume.read(&self.handle, offset, len as u64).await?)
    }

    async fn write(&self, offset: u64, data: Bytes, explain: bool) -> Written {
        let handle = &self.handle;
        let written = if explain {
            self.volume.write_explained(handle, offset, data).await
        } else if self.is_direct(offset, data.len()) {
            let mut buffer = self.volume.device_buffer(data.len());
            buffer.copy_from_slice(&data);
            drop(data);
            self.volume.write_buffer(handle, offset, buffer).await.1
        } else {
            self.volume.write(handle, offset, data).await
        };
        Written {
            bytes: written.bytes,
            position: written.position,
            error: written.error.map(Failure::from),
            attempts: written.attempts,
        }
    }

    async fn fallocate(&self, mode: RangeMode, offset: u64, len: u64) -> Result<()> {
        let handle = &self.handle;
        Ok(self.volume.fallocate(handle, mode, offset, len).await?)
    }

    async fn seek(&self, what: SeekFor, offset: u64) -> Result<Option<u64>> {
        Ok(self.volume.seek(&self.handle, what, offset).await?)
    }

    async fn fsync(&self, datasync: bool) -> Result<()> {
        Ok(self.volume.fsync(&self.handle, datasync).await?)
    }

    async fn export(&self, options: DeviceOptions) -> Result<FileExport> {
        FileDisk::export(self.volume.clone(), self.handle.clone(), options).await
    }

    async fn close(&self) -> Result<()> {
        Ok(self.volume.close(self.handle.clone()).await?)
    }
}
