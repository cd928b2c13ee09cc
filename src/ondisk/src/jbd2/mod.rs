//! The journal's structures, big-endian, as Linux' jbd2 writes them without its CSUM features.
//!
//! ```text
//! block 0      superblock: where the log starts, from which transaction on
//! block first… [revoke]* ([descriptor] data…)* [commit]   one transaction, wrapping around at maxlen
//! ```
//! `fs` writes with [`SuperBlock`], [`DescriptorWriter`], [`RevokeWriter`], [`CommitBlock::init`] and recovers with
//! [`Header::read`], [`tags`], [`revoked_blocks`], [`CommitBlock::checksum_holds`]. Ordering and flushing are its
//! business; here are bytes only.

mod commit;
mod descriptor;
mod revoke;
mod super_block;

pub use commit::*;
pub use descriptor::*;
pub use revoke::*;
pub use super_block::*;

use crate::access::{layout, over_block};
use crate::be::U32;
use core::fmt;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First word of every block that is the journal's own. A data block that happens to start with it is escaped.
pub const MAGIC: u32 = 0xC03B_3998;

/// What every block of the journal's own starts with.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct Header {
    pub h_magic: U32,
    /// A [`BlockType`].
    pub h_blocktype: U32,
    /// The transaction.
    pub h_sequence: U32,
}
layout!(Header, 12, h_blocktype @ 4, h_sequence @ 8);
over_block!(Header);

/// Kinds of block of the journal's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum BlockType {
    Descriptor = 1,
    Commit = 2,
    SuperBlockV1 = 3,
    SuperBlockV2 = 4,
    Revoke = 5,
}

/// Number of a transaction. Wraps around, so that order is only meaningful between near ones.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Tid(pub u32);

impl Tid {
    /// The following transaction.
    pub const fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }

    /// Whether this one comes after `other`.
    pub const fn is_after(self, other: Self) -> bool {
        self.0.wrapping_sub(other.0) as i32 > 0
    }

    /// Whether this one is `other` or comes after it.
    pub const fn is_at_or_after(self, other: Self) -> bool {
        self.0.wrapping_sub(other.0) as i32 >= 0
    }
}

impl fmt::Display for Tid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Tid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tid({})", self.0)
    }
}

impl BlockType {
    /// The kind of this number.
    pub const fn of(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Descriptor,
            2 => Self::Commit,
            3 => Self::SuperBlockV1,
            4 => Self::SuperBlockV2,
            5 => Self::Revoke,
            _ => return None,
        })
    }
}

impl Header {
    /// A header.
    pub fn new(kind: BlockType, tid: Tid) -> Self {
        Self {
            h_magic: MAGIC.into(),
            h_blocktype: (kind as u32).into(),
            h_sequence: tid.0.into(),
        }
    }

    /// Kind and transaction of a block of the journal's own; `None` for anything else, which ends the log in a recovery.
    pub fn read(block: &[u8]) -> Option<(BlockType, Tid)> {
        let this = Self::of(block);
        if this.h_magic.get() != MAGIC {
            return None;
        }
        Some((
            BlockType::of(this.h_blocktype.get())?,
            Tid(this.h_sequence.get()),
        ))
    }
}

#[cfg(test)]
mod tests;
