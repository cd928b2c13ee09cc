//! The commit block: the transaction before it is complete.
//!
//! The crash rule it serves: it may reach the device only after everything it commits (a flush lies between), or carry a
//! checksum of all that, which tells whether it did.

use super::{BlockType, Header, Tid};
use crate::access::{layout, over_block};
use crate::be::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The commit block; the rest of the block is zero.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct CommitBlock {
    pub h_header: Header,
    /// 1 with COMPAT_CHECKSUM: [`Checksum`].
    pub h_chksum_type: u8,
    /// 4 with COMPAT_CHECKSUM.
    pub h_chksum_size: u8,
    pub h_padding: [u8; 2],
    /// The first is the checksum.
    pub h_chksum: [U32; 8],
    /// When, seconds since the epoch.
    pub h_commit_sec: U64,
    pub h_commit_nsec: U32,
}
layout!(
    CommitBlock, 0x3C,
    h_chksum_type @ 0x0C, h_chksum @ 0x10, h_commit_sec @ 0x30, h_commit_nsec @ 0x38,
);
over_block!(CommitBlock);

const CHECKSUM_CRC32: u8 = 1;
const CHECKSUM_BYTES: u8 = 4;

impl CommitBlock {
    /// Makes `block` the commit of transaction `tid`, with the checksum of the transaction if the journal has
    /// [`JournalCompat::CHECKSUM`](super::JournalCompat::CHECKSUM).
    pub fn init(block: &mut [u8], tid: Tid, time: (u64, u32), checksum: Option<Checksum>) {
        block.fill(0);
        let this = Self::of_mut(block);
        this.h_header = Header::new(BlockType::Commit, tid);
        (this.h_commit_sec, this.h_commit_nsec) = (time.0.into(), time.1.into());
        if let Some(checksum) = checksum {
            this.h_chksum_type = CHECKSUM_CRC32;
            this.h_chksum_size = CHECKSUM_BYTES;
            this.h_chksum[0] = checksum.value().into();
        }
    }

    /// Whether the checksum of the blocks that were read is the one written here. A commit without one always agrees:
    /// the feature may have been switched on later.
    pub fn checksum_holds(&self, computed: Checksum) -> bool {
        let stored = self.h_chksum[0].get();
        match (self.h_chksum_type, self.h_chksum_size) {
            (CHECKSUM_CRC32, CHECKSUM_BYTES) => stored == computed.value(),
            (0, 0) => stored == 0,
            _ => false,
        }
    }
}

/// Checksum of a transaction: CRC-32, most significant bit first, from all ones, not inverted at the end, over its
/// descriptors and data blocks as they are in the log. Revoke blocks do not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checksum(u32);

impl Default for Checksum {
    fn default() -> Self {
        Self(!0)
    }
}

impl Checksum {
    /// Takes another block in.
    pub fn update(&mut self, block: &[u8]) {
        self.0 = block.iter().fold(self.0, |crc, &byte| {
            crc << 8 ^ TABLE[usize::from((crc >> 24) as u8 ^ byte)]
        });
    }

    /// The sum so far.
    pub const fn value(self) -> u32 {
        self.0
    }
}

/// Remainders of each byte.
static TABLE: [u32; 256] = {
    let mut table = [0u32; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u32) << 24;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc >> 31 == 1 {
                crc << 1 ^ 0x04C1_1DB7
            } else {
                crc << 1
            };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};
