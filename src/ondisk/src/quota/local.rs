//! A slot's local quota file: changes of usage that the global file does not have yet.
//!
//! ```text
//! block 0     header, information
//! block 1     chunk 0: free count and bitmap of its entries
//! block 2 …   entries of chunk 0, as many blocks as the bitmap has bits for
//! then        chunk 1 …
//! ```

use super::{QuotaHeader, QuotaType, VERSION, usable_bytes};
use crate::BlockNr;
use crate::access::{layout, list, list_mut, prefix, prefix_mut, records_of, records_of_mut};
use crate::corrupt::{Check, Corrupt, Structure};
use crate::le::{I64, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `dqi_flags` of a local file: nothing in it, quotas were switched off in order.
pub const LOCAL_CLEAN: u32 = 0x1;

/// Behind the header in block 0 of a local file.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct LocalInfo {
    /// [`LOCAL_CLEAN`].
    pub dqi_flags: U32,
    pub dqi_chunks: U32,
    /// Blocks of the file.
    pub dqi_blocks: U32,
}
layout!(LocalInfo, 0xC, dqi_chunks @ 4, dqi_blocks @ 8);

/// What precedes a chunk's bitmap.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct LocalChunkHeader {
    /// Free entries in those of the chunk's blocks that the file already has: it grows block by block.
    pub dqc_free: U32,
}
layout!(LocalChunkHeader, 4);

/// Changes of one identity's usage.
#[derive(
    FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, PartialEq, Eq,
)]
#[repr(C)]
pub struct LocalDqblk {
    pub dqb_id: U64,
    /// Bytes more, or less.
    pub dqb_spacemod: I64,
    /// Inodes more, or less.
    pub dqb_inodemod: I64,
}
layout!(LocalDqblk, 0x18, dqb_spacemod @ 8, dqb_inodemod @ 0x10);

/// Entries of a block.
pub const fn local_entries_per_block(block_size: usize) -> usize {
    usable_bytes(block_size) / size_of::<LocalDqblk>()
}

/// Blocks of entries of a chunk.
pub const fn chunk_blocks(block_size: usize) -> usize {
    let bits = (usable_bytes(block_size) - size_of::<LocalChunkHeader>()) * 8;
    bits / local_entries_per_block(block_size)
}

/// Entries of a chunk.
pub const fn chunk_entries(block_size: usize) -> usize {
    chunk_blocks(block_size) * local_entries_per_block(block_size)
}

/// Block of the file with the header of a chunk.
pub const fn chunk_header_block(block_size: usize, chunk: u32) -> u64 {
    1 + (chunk_blocks(block_size) as u64 + 1) * chunk as u64
}

/// Block of the file, and index in it, of an entry of a chunk.
pub const fn chunk_entry_place(block_size: usize, chunk: u32, entry: usize) -> (u64, usize) {
    let per_block = local_entries_per_block(block_size);
    let block = chunk_header_block(block_size, chunk) + 1 + (entry / per_block) as u64;
    (block, entry % per_block)
}

/// Free count and bitmap (a set bit is a used entry) in a chunk's header block.
pub fn local_chunk(block: &[u8]) -> (&LocalChunkHeader, &[u8]) {
    let bytes = chunk_entries(block.len()).div_ceil(8);
    list(block, |_| bytes)
}

/// Free count and bitmap in a chunk's header block, to change.
pub fn local_chunk_mut(block: &mut [u8]) -> (&mut LocalChunkHeader, &mut [u8]) {
    let bytes = chunk_entries(block.len()).div_ceil(8);
    list_mut(block, |_| bytes)
}

/// The entries of a block of entries.
pub fn local_entries(block: &[u8]) -> &[LocalDqblk] {
    records_of(&block[..local_entries_per_block(block.len()) * size_of::<LocalDqblk>()])
}

/// The entries of a block of entries, to change.
pub fn local_entries_mut(block: &mut [u8]) -> &mut [LocalDqblk] {
    let len = local_entries_per_block(block.len()) * size_of::<LocalDqblk>();
    records_of_mut(&mut block[..len])
}

impl LocalInfo {
    /// The information in block 0 of a local file.
    pub fn of(block: &[u8]) -> &Self {
        prefix(&block[size_of::<QuotaHeader>()..])
    }

    /// The information in block 0 of a local file, to change.
    pub fn of_mut(block: &mut [u8]) -> &mut Self {
        prefix_mut(&mut block[size_of::<QuotaHeader>()..])
    }

    /// Whether nothing is left to merge.
    pub fn is_clean(&self) -> bool {
        self.dqi_flags.get() & LOCAL_CLEAN != 0
    }

    /// Whether `block`, read from `nr`, is block 0 of a local file for `kind`.
    ///
    /// # Errors
    /// The rule it breaks.
    pub fn validate(block: &[u8], nr: BlockNr, kind: QuotaType) -> Result<(), Corrupt> {
        let (header, this) = (QuotaHeader::of(block), Self::of(block));
        let check = Check::new(Structure::Quota, nr);
        check.equals("dqh_magic", header.dqh_magic, kind.local_magic())?;
        check.equals("dqh_version", header.dqh_version, VERSION)?;
        let (chunks, blocks) = (this.dqi_chunks.get(), this.dqi_blocks.get());
        let last = match chunks.checked_sub(1) {
            Some(last) => chunk_header_block(block.len(), last),
            None => 0,
        };
        check.rule(
            u64::from(blocks) > last,
            "dqi_blocks",
            blocks,
            "the last chunk's header lies beyond",
        )
    }
}

/// Whether a chunk's free count is possible.
///
/// # Errors
/// If it is not.
pub fn validate_chunk(block: &[u8], nr: BlockNr) -> Result<(), Corrupt> {
    let check = Check::new(Structure::Quota, nr);
    check.at_most(
        "dqc_free",
        local_chunk(block).0.dqc_free,
        chunk_entries(block.len()) as u64,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunks_bitmap_fits_its_block() {
        for size in [512, 1024, 2048, 4096] {
            let block = vec![0; size];
            let (_, bitmap) = local_chunk(&block);
            assert_eq!(bitmap.len(), chunk_entries(size).div_ceil(8));
            assert!(bitmap.len() + 4 + 8 <= size);
            let end = chunk_entry_place(size, 0, chunk_entries(size) - 1);
            assert_eq!(end.0 + 1, chunk_header_block(size, 1));
            assert_eq!(end.1, local_entries_per_block(size) - 1);
        }
    }
}
