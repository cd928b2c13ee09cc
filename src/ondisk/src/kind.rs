//! The kinds of metadata block, for whoever handles blocks without looking into them: a cache, the journal.

use crate::corrupt::Structure;

/// What a metadata block is, as far as its checksum goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The dinode that holds the superblock, or a backup of it.
    SuperBlock,
    Dinode,
    ExtentBlock,
    GroupDesc,
    /// A block of a directory's entries. Only with a trailer does it have a checksum.
    DirBlock {
        /// Whether the block ends with a [`DirTrailer`](crate::DirTrailer).
        trailer: bool,
    },
    DxRoot,
    DxLeaf,
    XattrBlock,
    /// All blocks of a bucket in one buffer.
    XattrBucket,
    RefcountBlock,
    /// A block of a quota file, global or local.
    QuotaBlock,
    /// No structure known here, no checksum: slot map, heartbeat, symlink text, journal, data.
    Raw,
}

impl Kind {
    /// Where the [`BlockCheck`](crate::BlockCheck) lies in a buffer of `size` bytes; `None` if the kind has none.
    pub const fn check_offset(self, size: usize) -> Option<usize> {
        match self {
            Self::SuperBlock | Self::Dinode => Some(0x80),
            Self::ExtentBlock | Self::DxRoot | Self::DxLeaf | Self::XattrBucket => Some(0x08),
            Self::GroupDesc => Some(0x30),
            Self::XattrBlock => Some(0x18),
            Self::RefcountBlock => Some(0x20),
            Self::DirBlock { trailer: true } | Self::QuotaBlock => size.checked_sub(8),
            Self::DirBlock { trailer: false } | Self::Raw => None,
        }
    }

    /// The structure to name in errors.
    pub const fn structure(self) -> Structure {
        match self {
            Self::SuperBlock => Structure::SuperBlock,
            Self::Dinode => Structure::Dinode,
            Self::ExtentBlock => Structure::ExtentBlock,
            Self::GroupDesc => Structure::GroupDesc,
            Self::DirBlock { .. } => Structure::DirBlock,
            Self::DxRoot => Structure::DxRoot,
            Self::DxLeaf => Structure::DxLeaf,
            Self::XattrBlock => Structure::XattrBlock,
            Self::XattrBucket => Structure::XattrBucket,
            Self::RefcountBlock => Structure::RefcountBlock,
            Self::QuotaBlock => Structure::Quota,
            Self::Raw => Structure::Block,
        }
    }
}
