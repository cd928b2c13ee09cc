//! The vocabulary of the public door: inode numbers, attributes, flags. Shaped like POSIX's and
//! FUSE's, with owned values only.

use runtime::WallTime;

/// An inode's number: the block of its dinode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ino(pub u64);

impl From<ondisk::BlockNr> for Ino {
    fn from(nr: ondisk::BlockNr) -> Self {
        Ino(nr.0)
    }
}

impl From<Ino> for ondisk::BlockNr {
    fn from(ino: Ino) -> Self {
        ondisk::BlockNr(ino.0)
    }
}

/// What an inode is: one of the seven types.
pub use ondisk::FileType as FileKind;

/// What stat tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attr {
    pub ino: Ino,
    /// Differs between two inodes that had the same number.
    pub generation: u32,
    pub kind: FileKind,
    /// Permission, set-id and sticky bits.
    pub permissions: u16,
    pub links: u32,
    pub uid: u32,
    pub gid: u32,
    /// For device nodes, as `makedev` packs it in 64 bits; else 0.
    pub rdev: u64,
    pub size_bytes: u64,
    /// Allocated space, in units of 512 bytes.
    pub blocks: u64,
    pub atime: WallTime,
    pub mtime: WallTime,
    pub ctime: WallTime,
}

/// A time to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    Now,
    At(WallTime),
}

/// Attributes to change; `None` leaves one as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission, set-id and sticky bits (the type cannot change).
    pub permissions: Option<u16>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size_bytes: Option<u64>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
}

/// Who and what a new inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NewInode {
    pub permissions: u16,
    pub uid: u32,
    pub gid: u32,
}

/// How an inode is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OpenFlags {
    pub read: bool,
    pub write: bool,
    /// Every write goes to the end of the file, decided under the lock.
    pub append: bool,
    /// Past the cache.
    pub direct: bool,
    /// A write is answered once it is durable.
    pub dsync: bool,
    /// Fail with EAGAIN rather than wait for a lock or for space.
    pub nowait: bool,
    /// Cut to zero bytes.
    pub truncate: bool,
    /// A write past the end fails, and does nothing, rather than move the end.
    pub fixed_size: bool,
}

/// What happens when a name to create is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfExists {
    /// O_EXCL.
    Fail,
    /// The existing regular file is what was asked for.
    Use,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RenameMode {
    /// The target's name, if taken, goes to the source.
    #[default]
    Replace,
    NoReplace,
    /// Both exist and change places.
    Exchange,
}

/// One entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    pub ino: Ino,
    pub name: Vec<u8>,
    pub kind: Option<FileKind>,
    /// Where to go on reading after this entry.
    pub next: u64,
}

/// How far a write came. `bytes` are in, whatever `error` says.
#[derive(Debug, Clone, Default)]
pub struct Written {
    pub bytes: u64,
    /// Where the first byte went (the end of the file at that moment, for append).
    pub position: u64,
    pub error: Option<crate::Error>,
    /// What it took, for those who asked.
    pub attempts: Vec<super::Attempted>,
}

/// Space and inodes of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatFs {
    pub block_size: u32,
    pub cluster_size: u32,
    pub total_bytes: u64,
    pub free_bytes: u64,
    pub total_inodes: u64,
    pub free_inodes: u64,
    pub name_max: u32,
}

/// What a mounted volume is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeInfo {
    pub label: String,
    /// Upper-case hex, as the cluster names it.
    pub uuid: String,
    pub device: String,
    pub block_size: u32,
    pub cluster_size: u32,
    pub slot: u16,
    pub max_slots: u16,
    /// Feature names as mkfs.ocfs2 spells the bits.
    pub features: Vec<String>,
    /// Why writes are refused, if they are.
    pub read_only: Option<String>,
    /// The volume was not cleanly unmounted and was recovered by this mount.
    pub recovered: bool,
    /// Single-bit errors corrected since mount.
    pub corrected_errors: u64,
}

/// How direct writes of several nodes to one file are kept coherent: the kernel's mount option
/// `coherency`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Coherency {
    /// A direct write has the file for its node, so that other nodes' cached data never goes stale.
    #[default]
    Full,
    /// Direct writes of several nodes run at the same time; only buffered ones are coherent.
    Buffered,
}

/// What becomes of everything once an error has stopped writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnError {
    /// The volume is read-only from then on, and serves what it can read.
    #[default]
    RemountReadOnly,
    /// Whoever mounted it ends its process: somebody else takes over.
    Panic,
}

/// How to mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountOptions {
    /// Nothing is written, not even a recovery: a volume that needs one is refused.
    pub read_only: bool,
    /// Longest time a change waits for its commit.
    pub commit_interval: std::time::Duration,
    /// Clean metadata kept in memory, in bytes.
    pub cache_bytes: usize,
    /// File data kept in memory, in bytes, dirty or not.
    pub page_cache_bytes: usize,
    pub coherency: Coherency,
    /// A write to shared clusters makes copies of aligned pieces of so many bytes of the file, as far
    /// as one extent goes; 0 for the clusters it touches only. Larger pieces keep files together.
    pub copy_on_write_bytes: u32,
    /// For the one who mounts, by [`Volume::until_stopped`](super::Volume::until_stopped): this
    /// crate ends no process.
    pub on_error: OnError,
}

impl Default for MountOptions {
    fn default() -> Self {
        MountOptions {
            read_only: false,
            commit_interval: crate::limits::COMMIT_INTERVAL,
            cache_bytes: crate::limits::CACHE_BYTES,
            page_cache_bytes: crate::limits::PAGE_CACHE_BYTES,
            coherency: Coherency::Full,
            copy_on_write_bytes: crate::limits::COPY_ON_WRITE_BYTES,
            on_error: OnError::default(),
        }
    }
}
