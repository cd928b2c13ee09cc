//! The file system's public door, as the front end sees it: a mounted volume and its open files, on
//! the one thread they live on. [`FsDoor`] is the `fs` crate's; as a trait it can be stood in for.
//! Nothing here crosses threads; [`crate::volume`] does that.

mod fs;

use std::ops::ControlFlow;
use std::rc::Rc;

use async_trait::async_trait;
use bytes::Bytes;

pub use ::fs::check::{Event as CheckEvent, Finding, Severity, Summary as CheckSummary};
pub use ::fs::volume::{
    Attempted, Attr, CloneAs, Coherency, Counters, DirEntry, ExtentInfo, Fallback, FileKind,
    IfExists, Ino, LockLevel, MountOptions, NewInode, OnError, OpenFlags, Path as WritePath,
    RangeMode, RenameMode, SeekFor, SetAttr, SetTime, StatFs, VolumeInfo,
};
pub use ::fs::xattr::XattrMode;
pub use fs::FsDoor;

use crate::export::{DeviceOptions, FileExport};
use crate::failure::{Failure, Result};

/// How far a write came. `bytes` are in, whatever `error` says.
#[derive(Debug, Clone)]
pub struct Written {
    pub bytes: u64,
    /// Where the first byte went (the end of the file at that moment, for append).
    pub position: u64,
    pub error: Option<Failure>,
    /// What it took, if that was asked for.
    pub attempts: Vec<Attempted>,
}

impl Written {
    /// Nothing is in.
    pub fn failed(position: u64, failure: Failure) -> Written {
        Written {
            bytes: 0,
            position,
            error: Some(failure),
            attempts: Vec::new(),
        }
    }
}

/// A mounted volume.
#[async_trait(?Send)]
pub trait Door {
    fn root(&self) -> Ino;
    fn info(&self) -> VolumeInfo;
    fn counters(&self) -> Counters;
    async fn statfs(&self) -> Result<StatFs>;
    async fn sync(&self) -> Result<()>;
    /// Checks the whole volume; ends early once `hear` says so.
    async fn check(
        &self,
        hear: &mut dyn FnMut(CheckEvent) -> ControlFlow<()>,
    ) -> Result<CheckSummary>;
    /// Waits for operations inside, brings everything to the device and lets go of it.
    async fn unmount(&self) -> Result<()>;

    async fn getattr(&self, ino: Ino) -> Result<Attr>;
    async fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr>;
    async fn resolve(&self, base: Ino, path: &[u8], follow_last: bool) -> Result<Attr>;
    /// The directory that has, or would have, the path's last name; and that name.
    async fn resolve_parent(&self, base: Ino, path: &[u8]) -> Result<(Ino, Vec<u8>)>;
    async fn readdir(&self, dir: Ino, cookie: u64, max: usize) -> Result<Vec<DirEntry>>;
    async fn readlink(&self, ino: Ino) -> Result<Vec<u8>>;
    async fn setattr(&self, ino: Ino, set: SetAttr) -> Result<Attr>;

    async fn create(
        &self,
        parent: Ino,
        name: &[u8],
        new: NewInode,
        taken: IfExists,
    ) -> Result<Attr>;
    async fn mkdir(&self, parent: Ino, name: &[u8], new: NewInode) -> Result<Attr>;
    async fn symlink(&self, parent: Ino, name: &[u8], target: &[u8], new: NewInode)
    -> Result<Attr>;
    async fn mknod(
        &self,
        parent: Ino,
        name: &[u8],
        kind: FileKind,
        rdev: u64,
        new: NewInode,
    ) -> Result<Attr>;
    async fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr>;
    async fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()>;
    async fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()>;
    async fn rename(&self, from: (Ino, &[u8]), to: (Ino, &[u8]), mode: RenameMode) -> Result<()>;

    /// A new name for a new inode with the source's content.
    async fn clone_file(
        &self,
        source: Ino,
        parent: Ino,
        name: &[u8],
        whose: CloneAs,
    ) -> Result<Attr>;
    /// From the extent that holds `offset` on; none is the end.
    async fn extents(&self, ino: Ino, offset: u64, max: usize) -> Result<Vec<ExtentInfo>>;

    async fn listxattr(&self, ino: Ino) -> Result<Vec<(Vec<u8>, u64)>>;
    async fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>>;
    async fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()>;
    async fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<()>;

    async fn open(&self, ino: Ino, flags: OpenFlags) -> Result<Rc<dyn OpenFile>>;
}

/// An open file.
#[async_trait(?Send)]
pub trait OpenFile {
    fn ino(&self) -> Ino;
    async fn attr(&self) -> Result<Attr>;
    /// At most `len` bytes; fewer only at the end of the file.
    async fn read(&self, offset: u64, len: usize) -> Result<Bytes>;
    /// A handle opened for append takes no notice of the offset.
    async fn write(&self, offset: u64, data: Bytes, explain: bool) -> Written;
    async fn fallocate(&self, mode: RangeMode, offset: u64, len: u64) -> Result<()>;
    /// `None` is lseek's ENXIO.
    async fn seek(&self, what: SeekFor, offset: u64) -> Result<Option<u64>>;
    async fn fsync(&self, datasync: bool) -> Result<()>;
    /// Offers the file as a block device of SPDK's, on a reactor of its.
    async fn export(&self, _options: DeviceOptions) -> Result<FileExport> {
        Err(Failure::new(
            proto::errors::errno::EOPNOTSUPP,
            "this world exports no files",
        ))
    }
    async fn close(&self) -> Result<()>;
}
