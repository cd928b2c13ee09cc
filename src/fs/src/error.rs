//! What can go wrong in a volume, in one enum, and the one map to errno.

use ondisk::{BlockNr, Corrupt};
use runtime::DeviceError;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Linux's error numbers, as clients know them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

impl Errno {
    pub const EPERM: Errno = Errno(1);
    pub const ENOENT: Errno = Errno(2);
    pub const EIO: Errno = Errno(5);
    pub const EAGAIN: Errno = Errno(11);
    pub const ENOMEM: Errno = Errno(12);
    pub const EBUSY: Errno = Errno(16);
    pub const EEXIST: Errno = Errno(17);
    pub const EXDEV: Errno = Errno(18);
    pub const ENODEV: Errno = Errno(19);
    pub const ENOTDIR: Errno = Errno(20);
    pub const EISDIR: Errno = Errno(21);
    pub const EINVAL: Errno = Errno(22);
    pub const EFBIG: Errno = Errno(27);
    pub const ENOSPC: Errno = Errno(28);
    pub const EROFS: Errno = Errno(30);
    pub const EMLINK: Errno = Errno(31);
    pub const ERANGE: Errno = Errno(34);
    pub const ENAMETOOLONG: Errno = Errno(36);
    pub const ENOTEMPTY: Errno = Errno(39);
    pub const ELOOP: Errno = Errno(40);
    pub const ENODATA: Errno = Errno(61);
    pub const EOPNOTSUPP: Errno = Errno(95);
    pub const ESTALE: Errno = Errno(116);
    pub const EUCLEAN: Errno = Errno(117);
    pub const EDQUOT: Errno = Errno(122);
}

/// An operation's failure. The message says what was attempted and the number that matters; the
/// front end adds the path or the handle.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// A block on disk is not what it must be. The volume has stopped writing.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
    /// The volume uses something this program does not know, or is of a kind it does not mount.
    #[error("incompatible volume: {0}")]
    Incompatible(String),
    /// What is on the device is not an OCFS2 volume, or not a whole one.
    #[error("not a mountable OCFS2 volume: {0}")]
    NotAVolume(String),
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Writing has stopped; the first cause is kept.
    #[error("read-only volume: {0}")]
    ReadOnly(String),
    /// An operation announces more changed blocks than any transaction can hold.
    #[error("a transaction of {blocks} blocks does not fit in the journal: at most {limit}")]
    TransactionTooBig { blocks: u32, limit: u32 },
    #[error("no such file or directory: {0}")]
    NotFound(String),
    #[error("already exists: {0}")]
    Exists(String),
    #[error("not a directory: inode {}", .0.0)]
    NotDirectory(BlockNr),
    #[error("is a directory: inode {}", .0.0)]
    IsDirectory(BlockNr),
    #[error("directory not empty: inode {}", .0.0)]
    NotEmpty(BlockNr),
    #[error("name of {0} bytes is longer than 255")]
    NameTooLong(usize),
    #[error("no space left: {0}")]
    NoSpace(String),
    #[error("too many links to inode {}", .0.0)]
    TooManyLinks(BlockNr),
    #[error("file too large: {0}")]
    TooBig(String),
    #[error("invalid argument: {0}")]
    Invalid(String),
    #[error("not permitted: {0}")]
    NotPermitted(String),
    #[error("not supported: {0}")]
    NotSupported(String),
    #[error("too many symbolic links on the way")]
    SymlinkLoop,
    #[error("no such extended attribute: {0}")]
    NoAttribute(String),
    #[error("out of range: {0}")]
    Range(String),
    #[error("busy: {0}")]
    Busy(String),
    #[error("would block: {0}")]
    WouldBlock(String),
    /// The inode is deleted, or the number never was one.
    #[error("stale inode {}", .0.0)]
    Stale(BlockNr),
    #[error("cross-volume operation")]
    CrossVolume,
}

impl Error {
    pub fn errno(&self) -> Errno {
        match self {
            Error::Corrupt(_) => Errno::EUCLEAN,
            Error::Incompatible(_) | Error::NotAVolume(_) | Error::Invalid(_) => Errno::EINVAL,
            Error::Device(e) => match e.kind {
                runtime::DeviceErrorKind::Removed => Errno::ENODEV,
                runtime::DeviceErrorKind::NoSpace => Errno::ENOSPC,
                runtime::DeviceErrorKind::ReadOnly => Errno::EROFS,
                _ => Errno::EIO,
            },
            Error::ReadOnly(_) => Errno::EROFS,
            Error::NotFound(_) => Errno::ENOENT,
            Error::Exists(_) => Errno::EEXIST,
            Error::NotDirectory(_) => Errno::ENOTDIR,
            Error::IsDirectory(_) => Errno::EISDIR,
            Error::NotEmpty(_) => Errno::ENOTEMPTY,
            Error::NameTooLong(_) => Errno::ENAMETOOLONG,
            Error::NoSpace(_) | Error::TransactionTooBig { .. } => Errno::ENOSPC,
            Error::TooManyLinks(_) => Errno::EMLINK,
            Error::TooBig(_) => Errno::EFBIG,
            Error::NotPermitted(_) => Errno::EPERM,
            Error::NotSupported(_) => Errno::EOPNOTSUPP,
            Error::SymlinkLoop => Errno::ELOOP,
            Error::NoAttribute(_) => Errno::ENODATA,
            Error::Range(_) => Errno::ERANGE,
            Error::Busy(_) => Errno::EBUSY,
            Error::WouldBlock(_) => Errno::EAGAIN,
            Error::Stale(_) => Errno::ESTALE,
            Error::CrossVolume => Errno::EXDEV,
        }
    }
}
