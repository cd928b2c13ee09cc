//! How much of each thing fits into a block: all of it follows from the block size and the offset of the first record.

/// The smallest block a volume can have.
pub const MIN_BLOCK_SIZE: usize = 512;
/// The largest block a volume can have.
pub const MAX_BLOCK_SIZE: usize = 4096;

/// Byte offsets in a block at which variable parts start.
pub(crate) mod offset {
    /// `id2` of a dinode: list headers, superblock, symlink text.
    pub const ID2: usize = 0xC0;
    /// List of an extent block.
    pub const EXTENT_BLOCK_LIST: usize = 0x30;
    /// Bitmap of a group descriptor.
    pub const GROUP_BITMAP: usize = 0x40;
    /// Extent list of a discontiguous group.
    pub const GROUP_LIST: usize = 0x140;
    /// Extent list or entry list of a directory index root.
    pub const DX_ROOT_LIST: usize = 0xC0;
    /// Entry list of a directory index leaf.
    pub const DX_LEAF_LIST: usize = 0x28;
    /// Record list or extent list of a refcount block.
    pub const REFCOUNT_LIST: usize = 0x80;
    /// Header of the entries, or tree root, of an xattr block.
    pub const XATTR_BLOCK_BODY: usize = 0x30;
    /// Extent list of the tree root in an xattr block.
    pub const XATTR_TREE_LIST: usize = 0x40;
}

/// Bytes of a list header in front of 16-byte records.
const LIST_HEADER: usize = 16;
/// Bytes of an extent, chain, refcount or index record.
const RECORD: usize = 16;

const fn records(block_size: usize, list: usize) -> usize {
    block_size.saturating_sub(list + LIST_HEADER) / RECORD
}

/// Extent records in a dinode whose last `inline_xattr_bytes` are an xattr area (0 if it has none).
pub const fn extents_in_inode(block_size: usize, inline_xattr_bytes: usize) -> usize {
    records(block_size.saturating_sub(inline_xattr_bytes), offset::ID2)
}

/// Extent records in an extent block.
pub const fn extents_in_extent_block(block_size: usize) -> usize {
    records(block_size, offset::EXTENT_BLOCK_LIST)
}

/// Chain records in an allocator's dinode.
pub const fn chains_in_inode(block_size: usize) -> usize {
    records(block_size, offset::ID2)
}

/// Records of a truncate log.
pub const fn truncate_records(block_size: usize) -> usize {
    block_size.saturating_sub(offset::ID2 + 8) / 8
}

/// Bytes of a local alloc's bitmap.
pub const fn local_alloc_bytes(block_size: usize) -> usize {
    block_size.saturating_sub(offset::ID2 + 16)
}

/// Bytes of inline data in a dinode whose last `inline_xattr_bytes` are an xattr area (0 if it has none).
pub const fn inline_data_bytes(block_size: usize, inline_xattr_bytes: usize) -> usize {
    block_size
        .saturating_sub(inline_xattr_bytes)
        .saturating_sub(offset::ID2 + 8)
}

/// Bytes of a fast symlink's text, its NUL included.
pub const fn fast_symlink_bytes(block_size: usize) -> usize {
    block_size.saturating_sub(offset::ID2)
}

/// Extent records in a directory index root.
pub const fn extents_in_dx_root(block_size: usize) -> usize {
    records(block_size, offset::DX_ROOT_LIST)
}

/// Entries in an inline directory index root.
pub const fn entries_in_dx_root(block_size: usize) -> usize {
    block_size.saturating_sub(offset::DX_ROOT_LIST + 8) / RECORD
}

/// Entries in a directory index leaf.
pub const fn entries_in_dx_leaf(block_size: usize) -> usize {
    block_size.saturating_sub(offset::DX_LEAF_LIST + 8) / RECORD
}

/// Records in a refcount block, and extent records in one that roots a tree.
pub const fn refcount_records(block_size: usize) -> usize {
    records(block_size, offset::REFCOUNT_LIST)
}

/// Extent records in the tree root of an xattr block.
pub const fn extents_in_xattr_root(block_size: usize) -> usize {
    records(block_size, offset::XATTR_TREE_LIST)
}

/// Bytes of a cluster group's bitmap, which runs to the end of the block.
pub const fn group_bitmap_bytes(block_size: usize) -> usize {
    block_size.saturating_sub(offset::GROUP_BITMAP)
}

/// Bytes of a block group's bitmap where groups may be discontiguous: the extent list lies behind it.
pub const DISCONTIG_BITMAP_BYTES: usize = 256;

/// Extent records of a discontiguous group.
pub const fn extents_in_group(block_size: usize) -> usize {
    records(block_size, offset::GROUP_LIST)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Capacity = fn(usize) -> usize;

    /// The table of facts/ocfs2-format.md, section 1.
    const TABLE: [(&str, Capacity, [usize; 4]); 14] = [
        (
            "extents in inode",
            |size| extents_in_inode(size, 0),
            [19, 51, 115, 243],
        ),
        (
            "extents in extent block",
            extents_in_extent_block,
            [28, 60, 124, 252],
        ),
        ("chains in inode", chains_in_inode, [19, 51, 115, 243]),
        ("truncate records", truncate_records, [39, 103, 231, 487]),
        (
            "local alloc bytes",
            local_alloc_bytes,
            [304, 816, 1840, 3888],
        ),
        (
            "inline data bytes",
            |size| inline_data_bytes(size, 0),
            [312, 824, 1848, 3896],
        ),
        (
            "fast symlink bytes",
            fast_symlink_bytes,
            [320, 832, 1856, 3904],
        ),
        ("dx root extents", extents_in_dx_root, [19, 51, 115, 243]),
        ("dx root entries", entries_in_dx_root, [19, 51, 115, 243]),
        ("dx leaf entries", entries_in_dx_leaf, [29, 61, 125, 253]),
        ("refcount records", refcount_records, [23, 55, 119, 247]),
        (
            "xattr root extents",
            extents_in_xattr_root,
            [27, 59, 123, 251],
        ),
        (
            "group bitmap bytes",
            group_bitmap_bytes,
            [448, 960, 1984, 4032],
        ),
        (
            "discontiguous group extents",
            extents_in_group,
            [11, 43, 107, 235],
        ),
    ];

    #[test]
    fn capacities_are_those_of_the_format() {
        for (name, capacity, expected) in TABLE {
            assert_eq!([512, 1024, 2048, 4096].map(capacity), expected, "{name}");
        }
    }

    #[test]
    fn inline_xattrs_take_their_room() {
        assert_eq!(extents_in_inode(4096, 256), 243 - 16);
        assert_eq!(inline_data_bytes(4096, 256), 3896 - 256);
        assert_eq!(extents_in_inode(512, 4096), 0);
    }
}
