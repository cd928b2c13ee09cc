//! The external xattr block: an area of xattrs, or the root of a tree of buckets of them.

use crate::access::{layout, over_block, prefix, prefix_mut};
use crate::capacity::{self, offset};
use crate::corrupt::{Check, Corrupt, Structure};
use crate::le::{U16, U32, U64};
use crate::{
    BlockCheck, BlockNr, Geometry, RootKind, SlotNr, Suballoc, XattrArea, extent_list,
    init_extent_list,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What precedes the area or the tree root.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct XattrBlock {
    pub xb_signature: [u8; 8],
    pub xb_suballoc_slot: U16,
    pub xb_suballoc_bit: U16,
    pub xb_fs_generation: U32,
    pub xb_blkno: U64,
    pub xb_check: BlockCheck,
    /// [`XattrBlock::INDEXED`].
    pub xb_flags: U16,
    pub xb_reserved0: U16,
    pub xb_reserved1: U32,
    pub xb_suballoc_loc: U64,
}
layout!(
    XattrBlock, 0x30,
    xb_suballoc_slot @ 0x08, xb_suballoc_bit @ 0x0A, xb_fs_generation @ 0x0C, xb_blkno @ 0x10, xb_check @ 0x18,
    xb_flags @ 0x20, xb_suballoc_loc @ 0x28,
);
over_block!(XattrBlock);

/// Root of the tree of buckets, without its list.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct XattrTreeRoot {
    /// Clusters of buckets.
    pub xt_clusters: U32,
    pub xt_reserved0: U32,
    pub xt_last_eb_blk: U64,
}
layout!(XattrTreeRoot, 0x10, xt_last_eb_blk @ 8);

impl XattrTreeRoot {
    /// The tree root of an indexed xattr block; its list is [`extent_list`] with [`RootKind::XattrTree`].
    pub fn of(block: &[u8]) -> &Self {
        prefix(&block[offset::XATTR_BLOCK_BODY..])
    }

    /// The tree root of an indexed xattr block, to change.
    pub fn of_mut(block: &mut [u8]) -> &mut Self {
        prefix_mut(&mut block[offset::XATTR_BLOCK_BODY..])
    }
}

impl XattrBlock {
    /// What the block must start with.
    pub const SIGNATURE: [u8; 8] = *b"XATTR01\0";
    /// `xb_flags`: the block is the root of a tree of buckets.
    pub const INDEXED: u16 = 0x1;

    /// Whether the block is the root of a tree of buckets.
    pub fn is_indexed(&self) -> bool {
        self.xb_flags.get() & Self::INDEXED != 0
    }

    /// The xattrs of a block that is not indexed.
    pub fn area(block: &[u8]) -> XattrArea<'_> {
        XattrArea::new(&block[offset::XATTR_BLOCK_BODY..])
    }

    /// Where in the block [`XattrBlock::area`] is.
    pub const fn area_span(block_size: usize) -> core::ops::Range<usize> {
        offset::XATTR_BLOCK_BODY..block_size
    }

    /// Makes `block` an empty xattr block. An indexed one gets an empty tree: its first cluster is the caller's.
    pub fn init(
        block: &mut [u8],
        nr: BlockNr,
        geometry: &Geometry,
        suballoc: Suballoc,
        indexed: bool,
    ) {
        block.fill(0);
        let size = block.len();
        let this = Self::of_mut(block);
        this.xb_signature = Self::SIGNATURE;
        this.xb_suballoc_slot = suballoc.slot.0.into();
        this.xb_suballoc_bit = suballoc.bit.into();
        this.xb_suballoc_loc = suballoc.group.0.into();
        this.xb_fs_generation = geometry.fs_generation.0.into();
        this.xb_blkno = nr.0.into();
        if indexed {
            Self::make_indexed(block, capacity::extents_in_xattr_root(size) as u16);
        }
    }

    /// Turns a block of entries (that have been moved to a bucket) into the root of an empty tree.
    fn make_indexed(block: &mut [u8], count: u16) {
        block[offset::XATTR_BLOCK_BODY..].fill(0);
        Self::of_mut(block).xb_flags.set(Self::INDEXED);
        init_extent_list(block, RootKind::XattrTree, 0, count);
    }

    /// Turns a block whose entries have been moved to a bucket into the root of an empty tree.
    pub fn set_indexed(block: &mut [u8]) {
        Self::make_indexed(block, capacity::extents_in_xattr_root(block.len()) as u16);
    }

    /// Where the block was allocated.
    pub fn suballoc(&self) -> Suballoc {
        Suballoc {
            slot: SlotNr(self.xb_suballoc_slot.get()),
            bit: self.xb_suballoc_bit.get(),
            group: BlockNr(self.xb_suballoc_loc.get()),
        }
    }

    /// Whether `block`, read from `nr`, is an xattr block of the volume with sound content.
    ///
    /// # Errors
    /// The rule it breaks.
    pub fn validate(block: &[u8], nr: BlockNr, geometry: &Geometry) -> Result<(), Corrupt> {
        let this = Self::of(block);
        let check = Check::new(Structure::XattrBlock, nr);
        check.signature(&this.xb_signature, &Self::SIGNATURE)?;
        check.own_block(this.xb_blkno.get())?;
        check.generation(this.xb_fs_generation.get(), geometry.fs_generation)?;
        if this.is_indexed() {
            let capacity = capacity::extents_in_xattr_root(block.len());
            extent_list(block, RootKind::XattrTree).check_limits(check, capacity)
        } else {
            Self::area(block).validate(nr, geometry)
        }
    }
}

/// A bucket: an area of 4096 bytes in as many blocks as that takes, sorted by hash.
#[derive(Debug)]
pub struct XattrBucket;

impl XattrBucket {
    /// The xattrs of a bucket's concatenated blocks.
    ///
    /// # Panics
    /// If the buffer is shorter than a header.
    pub fn area(bucket: &[u8]) -> XattrArea<'_> {
        XattrArea::new(bucket)
    }

    /// Whether `bucket`, read from `nr` on, is sound: as an area, sorted, and no name or value over a block's boundary.
    ///
    /// # Errors
    /// The rule it breaks.
    pub fn validate(bucket: &[u8], nr: BlockNr, geometry: &Geometry) -> Result<(), Corrupt> {
        let area = Self::area(bucket);
        area.validate(nr, geometry)?;
        let check = Check::new(Structure::XattrBucket, nr);
        let mut last = 0;
        for (index, entry) in area.entries().iter().enumerate() {
            let at = 16 * (index + 1);
            let hash = entry.xe_name_hash.get();
            check.at(last <= hash, at, "entries are not sorted by hash", hash)?;
            last = hash;
            let start = usize::from(entry.xe_name_offset.get());
            let end = start + entry.name_value_len();
            let whole = start >> geometry.block_size_bits
                == (end - 1).max(start) >> geometry.block_size_bits;
            check.at(
                whole,
                at,
                "name and value cross the boundary of a block",
                start as u64,
            )?;
        }
        Ok(())
    }
}
