//! The global quota file: header and information in block 0, a radix tree over identities from block 1 on.
//!
//! An interior block of the tree is an array of block numbers in the file; the tree's depth follows from how many fit.
//! A leaf block holds a header and as many [`GlobalDqblk`] as fit, in no order. Depth, fan-out and entries are computed
//! from what a block has in front of its trailer.

use super::{QuotaHeader, QuotaType, VERSION, usable_bytes};
use crate::BlockNr;
use crate::access::{layout, list, list_mut, prefix, prefix_mut, records_of, records_of_mut};
use crate::corrupt::{Check, Corrupt, Structure};
use crate::le::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Block of the file that roots the tree.
pub const TREE_ROOT: u32 = 1;

/// Behind the header in block 0 of a global file.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct GlobalInfo {
    /// Seconds that space may exceed its soft limit.
    pub dqi_bgrace: U32,
    /// Seconds that inodes may exceed their soft limit.
    pub dqi_igrace: U32,
    /// Milliseconds between merges of local changes.
    pub dqi_syncms: U32,
    /// Blocks of the file.
    pub dqi_blocks: U32,
    /// First free block of the file, 0 if none.
    pub dqi_free_blk: U32,
    /// First leaf with a free entry, 0 if none.
    pub dqi_free_entry: U32,
}
layout!(GlobalInfo, 0x18, dqi_syncms @ 8, dqi_blocks @ 0xC, dqi_free_blk @ 0x10, dqi_free_entry @ 0x14);

/// What precedes the entries of a leaf block.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct GlobalLeafHeader {
    /// Next block of the list this one is on (free blocks, or blocks with free entries).
    pub dqdh_next_free: U32,
    /// Previous one.
    pub dqdh_prev_free: U32,
    /// Entries in use.
    pub dqdh_entries: U16,
    pub dqdh_pad1: U16,
    pub dqdh_pad2: U32,
}
layout!(GlobalLeafHeader, 0x10, dqdh_prev_free @ 4, dqdh_entries @ 8);

/// Limits and usage of one identity.
#[derive(
    FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, PartialEq, Eq,
)]
#[repr(C)]
pub struct GlobalDqblk {
    pub dqb_id: U32,
    /// Nodes that hold it.
    pub dqb_use_count: U32,
    pub dqb_ihardlimit: U64,
    pub dqb_isoftlimit: U64,
    /// Inodes in use.
    pub dqb_curinodes: U64,
    /// In bytes.
    pub dqb_bhardlimit: U64,
    pub dqb_bsoftlimit: U64,
    /// Bytes in use.
    pub dqb_curspace: U64,
    /// When the grace time for space ends, seconds since the epoch.
    pub dqb_btime: U64,
    /// When the grace time for inodes ends.
    pub dqb_itime: U64,
    pub dqb_pad1: U64,
    pub dqb_pad2: U64,
}
layout!(
    GlobalDqblk, 0x58,
    dqb_use_count @ 4, dqb_ihardlimit @ 8, dqb_curinodes @ 0x18, dqb_bhardlimit @ 0x20, dqb_curspace @ 0x30,
    dqb_btime @ 0x38, dqb_itime @ 0x40, dqb_pad1 @ 0x48,
);

impl GlobalDqblk {
    /// Whether the entry is free: all of it is zero.
    pub fn is_unused(&self) -> bool {
        self.as_bytes().iter().all(|&byte| byte == 0)
    }
}

/// Children of an interior block of the tree.
pub const fn tree_fanout(block_size: usize) -> u32 {
    (usable_bytes(block_size) / 4) as u32
}

/// Interior levels of the tree: as many as 32 bits of identity need.
pub const fn tree_depth(block_size: usize) -> u32 {
    let fanout = tree_fanout(block_size) as u64;
    let mut depth = 1;
    let mut reach = fanout;
    while reach < 1 << 32 {
        reach *= fanout;
        depth += 1;
    }
    depth
}

/// Which child of an interior block at `level` (0 is the root) leads to `id`.
pub const fn tree_index(block_size: usize, id: u32, level: u32) -> usize {
    let fanout = tree_fanout(block_size);
    let mut rest = id;
    let mut below = tree_depth(block_size).saturating_sub(level + 1);
    while below > 0 {
        rest /= fanout;
        below -= 1;
    }
    (rest % fanout) as usize
}

/// Entries of a leaf block.
pub const fn entries_per_leaf(block_size: usize) -> usize {
    usable_bytes(block_size).saturating_sub(size_of::<GlobalLeafHeader>())
        / size_of::<GlobalDqblk>()
}

/// The children of an interior block: block numbers in the file, 0 for none.
pub fn tree_children(block: &[u8]) -> &[U32] {
    records_of(&block[..4 * tree_fanout(block.len()) as usize])
}

/// The children of an interior block, to change.
pub fn tree_children_mut(block: &mut [u8]) -> &mut [U32] {
    let len = 4 * tree_fanout(block.len()) as usize;
    records_of_mut(&mut block[..len])
}

/// Header and entries of a leaf block.
pub fn global_leaf(block: &[u8]) -> (&GlobalLeafHeader, &[GlobalDqblk]) {
    let entries = entries_per_leaf(block.len());
    list(block, |_| entries)
}

/// Header and entries of a leaf block, to change.
pub fn global_leaf_mut(block: &mut [u8]) -> (&mut GlobalLeafHeader, &mut [GlobalDqblk]) {
    let entries = entries_per_leaf(block.len());
    list_mut(block, |_| entries)
}

impl GlobalInfo {
    /// The information in block 0 of a global file.
    pub fn of(block: &[u8]) -> &Self {
        prefix(&block[size_of::<QuotaHeader>()..])
    }

    /// The information in block 0 of a global file, to change.
    pub fn of_mut(block: &mut [u8]) -> &mut Self {
        prefix_mut(&mut block[size_of::<QuotaHeader>()..])
    }

    /// Whether `block`, read from `nr`, is block 0 of the global file for `kind`.
    ///
    /// # Errors
    /// The rule it breaks.
    pub fn validate(block: &[u8], nr: BlockNr, kind: QuotaType) -> Result<(), Corrupt> {
        let (header, this) = (QuotaHeader::of(block), Self::of(block));
        let check = Check::new(Structure::Quota, nr);
        check.equals("dqh_magic", header.dqh_magic, kind.global_magic())?;
        check.equals("dqh_version", header.dqh_version, VERSION)?;
        let blocks = this.dqi_blocks.get();
        check.rule(
            blocks > TREE_ROOT,
            "dqi_blocks",
            blocks,
            "there is at least the tree's root",
        )?;
        check.at_most("dqi_free_blk", this.dqi_free_blk, blocks - 1)?;
        check.at_most("dqi_free_entry", this.dqi_free_entry, blocks - 1)
    }
}

/// Whether the children of an interior block lie inside a file of `blocks` blocks, past its information.
///
/// # Errors
/// The child that does not.
pub fn validate_tree_block(block: &[u8], nr: BlockNr, blocks: u32) -> Result<(), Corrupt> {
    let check = Check::new(Structure::Quota, nr);
    for (index, child) in tree_children(block).iter().enumerate() {
        let child = child.get();
        let inside = child == 0 || (child > TREE_ROOT && child < blocks);
        check.at(inside, 4 * index, "child lies outside the file", child)?;
    }
    Ok(())
}

/// Whether the header of a leaf block makes sense in a file of `blocks` blocks.
///
/// # Errors
/// The rule it breaks.
pub fn validate_leaf(block: &[u8], nr: BlockNr, blocks: u32) -> Result<(), Corrupt> {
    let check = Check::new(Structure::Quota, nr);
    let (header, entries) = global_leaf(block);
    check.at_most("dqdh_entries", header.dqdh_entries, entries.len() as u64)?;
    let last = blocks.saturating_sub(1);
    check.at_most("dqdh_next_free", header.dqdh_next_free, last)?;
    check.at_most("dqdh_prev_free", header.dqdh_prev_free, last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_reaches_every_identity() {
        for size in [512, 1024, 2048, 4096] {
            let fanout = u64::from(tree_fanout(size));
            assert!(fanout.pow(tree_depth(size)) >= 1 << 32);
            assert!(fanout.pow(tree_depth(size) - 1) < 1 << 32);
            let id = 0xDEAD_BEEF;
            let path = (0..tree_depth(size)).map(|level| tree_index(size, id, level) as u64);
            assert_eq!(path.fold(0, |id, index| id * fanout + index), u64::from(id));
        }
        assert_eq!(
            (tree_depth(4096), tree_fanout(4096), entries_per_leaf(4096)),
            (4, 1022, 46)
        );
    }
}
