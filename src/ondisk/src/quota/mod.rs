//! Quota files: global ones (a radix tree of limits and usage) and a local one a slot (changes not yet merged).
//!
//! Every block of both ends with a [`QuotaTrailer`]; what is before it is [`usable_bytes`].

mod global;
mod local;

pub use global::*;
pub use local::*;

use crate::BlockCheck;
use crate::access::{layout, over_block};
use crate::le::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Whose usage is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QuotaType {
    User,
    Group,
}

/// The first eight bytes of a quota file.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct QuotaHeader {
    /// [`QuotaType::global_magic`] or [`QuotaType::local_magic`].
    pub dqh_magic: U32,
    /// 0.
    pub dqh_version: U32,
}
layout!(QuotaHeader, 8, dqh_version @ 4);
over_block!(QuotaHeader);

/// The last eight bytes of every block of a quota file.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct QuotaTrailer {
    pub dq_check: BlockCheck,
}
layout!(QuotaTrailer, 8);

/// The version of both kinds of file.
pub const VERSION: u32 = 0;

impl QuotaType {
    /// First word of the global file.
    pub const fn global_magic(self) -> u32 {
        match self {
            Self::User => 0x0CF5_2470,
            Self::Group => 0x0CF5_2471,
        }
    }

    /// First word of a slot's local file.
    pub const fn local_magic(self) -> u32 {
        match self {
            Self::User => 0x0CF5_24C0,
            Self::Group => 0x0CF5_24C1,
        }
    }
}

/// Bytes of a block in front of its trailer.
pub const fn usable_bytes(block_size: usize) -> usize {
    block_size.saturating_sub(size_of::<QuotaTrailer>())
}
