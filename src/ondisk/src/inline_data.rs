//! File data or directory entries inside the dinode, and the text of fast symlinks: the variable part as bytes.

use crate::Dinode;
use crate::access::{layout, prefix, prefix_mut};
use crate::capacity::offset;
use crate::le::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What precedes inline data.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct InlineDataHeader {
    /// Bytes of room, not of data: those are `i_size`.
    pub id_count: U16,
    pub id_reserved0: U16,
    pub id_reserved1: U32,
}
layout!(InlineDataHeader, 8, id_count @ 0);

/// Where inline data starts in its block.
pub const INLINE_DATA_OFFSET: usize = offset::ID2 + size_of::<InlineDataHeader>();

/// The span of the inline data's whole room in its block: `id_count` bytes, never into the inline xattrs.
pub fn inline_data_span(block: &[u8]) -> core::ops::Range<usize> {
    let header: &InlineDataHeader = prefix(&block[offset::ID2..]);
    let end = block.len() - Dinode::of(block).inline_xattr_bytes(block.len());
    let end = end.max(INLINE_DATA_OFFSET);
    INLINE_DATA_OFFSET..end.min(INLINE_DATA_OFFSET + usize::from(header.id_count.get()))
}

/// The room of inline data, beyond the file's size too. A directory's entries fill it entirely.
pub fn inline_data(block: &[u8]) -> &[u8] {
    &block[inline_data_span(block)]
}

/// The room of inline data, to change.
pub fn inline_data_mut(block: &mut [u8]) -> &mut [u8] {
    let span = inline_data_span(block);
    &mut block[span]
}

/// Sets the room of inline data, as when inline xattrs move in or data becomes inline.
pub fn set_inline_data_count(block: &mut [u8], count: u16) {
    let header: &mut InlineDataHeader = prefix_mut(&mut block[offset::ID2..]);
    *header = InlineDataHeader {
        id_count: count.into(),
        id_reserved0: 0.into(),
        id_reserved1: 0.into(),
    };
}

/// The text of a fast symlink, without its NUL; `i_size` bytes, fewer if the block ends before (validation sees to
/// that it does not).
pub fn fast_symlink(block: &[u8]) -> &[u8] {
    let dinode = Dinode::of(block);
    let room = &block[offset::ID2..block.len() - dinode.inline_xattr_bytes(block.len())];
    let length = usize::try_from(dinode.i_size.get()).unwrap_or(usize::MAX);
    &room[..length.min(room.len())]
}

/// Writes the text of a fast symlink and its NUL over the variable part, and the size. `false`, and nothing changed, if
/// it does not fit before the inline xattrs or holds a NUL: then it needs clusters.
#[must_use]
pub fn set_fast_symlink(block: &mut [u8], target: &[u8]) -> bool {
    let end = block.len() - Dinode::of(block).inline_xattr_bytes(block.len());
    let room = &mut block[offset::ID2..end];
    if target.len() >= room.len() || target.contains(&0) {
        return false;
    }
    room.fill(0);
    room[..target.len()].copy_from_slice(target);
    Dinode::of_mut(block).i_size.set(target.len() as u64);
    true
}
