//! The revoke block: volume blocks whose older copies in the log must not be replayed.
//!
//! The crash rule it serves: a metadata block that was freed and has become file data would be overwritten by its old
//! copy. A revoke in transaction t voids copies in transactions up to t.

use super::{BlockType, Header, Tid};
use crate::BlockNr;
use crate::access::{layout, over_block, prefix_mut};
use crate::be::U32;
use crate::corrupt::{Check, Corrupt, Structure};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What precedes the block numbers, which have 4 bytes, or 8 in a wide journal.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct RevokeHeader {
    pub r_header: Header,
    /// Bytes in use, this header included.
    pub r_count: U32,
}
layout!(RevokeHeader, 16, r_count @ 12);
over_block!(RevokeHeader);

const fn record_bytes(wide: bool) -> usize {
    if wide { 8 } else { 4 }
}

/// Blocks that one revoke block can name.
pub const fn revokes_per_block(block_size: usize, wide: bool) -> usize {
    (block_size - size_of::<RevokeHeader>()) / record_bytes(wide)
}

/// The blocks that a revoke block names. `place` is where in the journal it was read from, for the error.
///
/// # Errors
/// If it claims to use more bytes than it has.
pub fn revoked_blocks(
    block: &[u8],
    wide: bool,
    place: BlockNr,
) -> Result<impl Iterator<Item = BlockNr> + '_, Corrupt> {
    let used = RevokeHeader::of(block).r_count.get();
    let check = Check::new(Structure::JournalRevoke, place);
    check.at_most("r_count", used, block.len() as u64)?;
    let records = block
        .get(size_of::<RevokeHeader>()..used as usize)
        .unwrap_or_default();
    Ok(records.chunks_exact(record_bytes(wide)).map(|record| {
        BlockNr(
            record
                .iter()
                .fold(0, |number, &byte| number << 8 | u64::from(byte)),
        )
    }))
}

/// Fills a revoke block.
#[derive(Debug)]
pub struct RevokeWriter<'a> {
    block: &'a mut [u8],
    wide: bool,
    at: usize,
}

impl<'a> RevokeWriter<'a> {
    /// Makes `block` a revoke block of transaction `tid` that names nothing yet.
    pub fn new(block: &'a mut [u8], tid: Tid, wide: bool) -> Self {
        block.fill(0);
        let at = size_of::<RevokeHeader>();
        *prefix_mut(block) = RevokeHeader {
            r_header: Header::new(BlockType::Revoke, tid),
            r_count: (at as u32).into(),
        };
        Self { block, wide, at }
    }

    /// Names a block. `false`, and nothing changed, if there is no room.
    ///
    /// # Panics
    /// If the block's number needs 64 bits and the journal has 32: the features were chosen wrongly at mount.
    #[must_use]
    pub fn push(&mut self, nr: BlockNr) -> bool {
        let bytes = record_bytes(self.wide);
        let Some(place) = self.block.get_mut(self.at..self.at + bytes) else {
            return false;
        };
        assert!(
            self.wide || nr.0 >> 32 == 0,
            "block {nr} in a journal with 32-bit block numbers"
        );
        place.copy_from_slice(&nr.0.to_be_bytes()[8 - bytes..]);
        self.at += bytes;
        RevokeHeader::of_mut(self.block).r_count.set(self.at as u32);
        true
    }
}
