//! The extent block: a node of an extent tree below its root.

use crate::access::{layout, over_block};
use crate::capacity;
use crate::corrupt::{Check, Corrupt, Structure};
use crate::le::{U16, U32, U64};
use crate::{
    BlockCheck, BlockNr, Geometry, RootKind, SlotNr, Suballoc, extent_list, init_extent_list,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What precedes the extent list.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct ExtentBlock {
    pub h_signature: [u8; 8],
    pub h_check: BlockCheck,
    pub h_suballoc_slot: U16,
    pub h_suballoc_bit: U16,
    pub h_fs_generation: U32,
    pub h_blkno: U64,
    pub h_suballoc_loc: U64,
    /// The next leaf to the right, 0 in the last and above leaves.
    pub h_next_leaf_blk: U64,
}
layout!(
    ExtentBlock, 0x30,
    h_check @ 8, h_suballoc_slot @ 0x10, h_fs_generation @ 0x14, h_blkno @ 0x18, h_suballoc_loc @ 0x20,
    h_next_leaf_blk @ 0x28,
);
over_block!(ExtentBlock);

impl ExtentBlock {
    /// What the block must start with.
    pub const SIGNATURE: [u8; 8] = *b"EXBLK01\0";

    /// Makes `block` an empty extent block of the given tree depth.
    pub fn init(
        block: &mut [u8],
        nr: BlockNr,
        geometry: &Geometry,
        suballoc: Suballoc,
        depth: u16,
    ) {
        block.fill(0);
        let size = block.len();
        let this = Self::of_mut(block);
        this.h_signature = Self::SIGNATURE;
        this.h_blkno = nr.0.into();
        this.h_fs_generation = geometry.fs_generation.0.into();
        this.h_suballoc_slot = suballoc.slot.0.into();
        this.h_suballoc_bit = suballoc.bit.into();
        this.h_suballoc_loc = suballoc.group.0.into();
        init_extent_list(
            block,
            RootKind::ExtentBlock,
            depth,
            capacity::extents_in_extent_block(size) as u16,
        );
    }

    /// Where the block was allocated.
    pub fn suballoc(&self) -> Suballoc {
        Suballoc {
            slot: SlotNr(self.h_suballoc_slot.get()),
            bit: self.h_suballoc_bit.get(),
            group: BlockNr(self.h_suballoc_loc.get()),
        }
    }

    /// Whether `block`, read from `nr`, is an extent block of the volume.
    ///
    /// # Errors
    /// The rule it breaks.
    pub fn validate(block: &[u8], nr: BlockNr, geometry: &Geometry) -> Result<(), Corrupt> {
        let this = Self::of(block);
        let check = Check::new(Structure::ExtentBlock, nr);
        check.signature(&this.h_signature, &Self::SIGNATURE)?;
        check.own_block(this.h_blkno.get())?;
        check.generation(this.h_fs_generation.get(), geometry.fs_generation)?;
        extent_list(block, RootKind::ExtentBlock)
            .check_limits(check, capacity::extents_in_extent_block(block.len()))
    }
}
