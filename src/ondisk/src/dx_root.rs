//! The root of a directory's index: entries themselves while they are few, then the extent tree of the index leaves.

use crate::access::{layout, over_block};
use crate::capacity::{self, offset};
use crate::corrupt::{Check, Corrupt, Structure};
use crate::dx::init_entries;
use crate::le::{U16, U32, U64};
use crate::{
    BlockCheck, BlockNr, Geometry, Ino, RootKind, SlotNr, Suballoc, extent_list, init_extent_list,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What precedes the entry list or extent list.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct DxRoot {
    pub dr_signature: [u8; 8],
    pub dr_check: BlockCheck,
    pub dr_suballoc_slot: U16,
    pub dr_suballoc_bit: U16,
    pub dr_fs_generation: U32,
    pub dr_blkno: U64,
    pub dr_last_eb_blk: U64,
    /// Clusters of index leaves.
    pub dr_clusters: U32,
    /// [`DxRoot::INLINE`].
    pub dr_flags: u8,
    pub dr_reserved0: u8,
    pub dr_reserved1: U16,
    /// The directory.
    pub dr_dir_blkno: U64,
    /// Names in the directory.
    pub dr_num_entries: U32,
    pub dr_reserved2: U32,
    /// First directory block with a hole.
    pub dr_free_blk: U64,
    pub dr_suballoc_loc: U64,
    pub dr_reserved3: [U64; 14],
}
layout!(
    DxRoot, 0xC0,
    dr_check @ 0x08, dr_suballoc_slot @ 0x10, dr_suballoc_bit @ 0x12, dr_fs_generation @ 0x14, dr_blkno @ 0x18,
    dr_last_eb_blk @ 0x20, dr_clusters @ 0x28, dr_flags @ 0x2C, dr_dir_blkno @ 0x30, dr_num_entries @ 0x38,
    dr_free_blk @ 0x40, dr_suballoc_loc @ 0x48, dr_reserved3 @ 0x50,
);
over_block!(DxRoot);

impl DxRoot {
    /// What the block must start with.
    pub const SIGNATURE: [u8; 8] = *b"DXDIR01\0";
    /// `dr_flags`: entries are in the root.
    pub const INLINE: u8 = 0x01;

    /// Whether the entries are in the root itself.
    pub const fn is_inline(&self) -> bool {
        self.dr_flags & Self::INLINE != 0
    }

    /// Makes `block` the index root of directory `dir`, empty.
    pub fn init(
        block: &mut [u8],
        nr: BlockNr,
        geometry: &Geometry,
        suballoc: Suballoc,
        dir: Ino,
        inline: bool,
    ) {
        block.fill(0);
        let size = block.len();
        let this = Self::of_mut(block);
        this.dr_signature = Self::SIGNATURE;
        this.dr_suballoc_slot = suballoc.slot.0.into();
        this.dr_suballoc_bit = suballoc.bit.into();
        this.dr_suballoc_loc = suballoc.group.0.into();
        this.dr_fs_generation = geometry.fs_generation.0.into();
        this.dr_blkno = nr.0.into();
        this.dr_dir_blkno = dir.0.into();
        if inline {
            this.dr_flags = Self::INLINE;
            init_entries(
                &mut block[offset::DX_ROOT_LIST..],
                capacity::entries_in_dx_root(size),
            );
        } else {
            init_extent_list(
                block,
                RootKind::DxRoot,
                0,
                capacity::extents_in_dx_root(size) as u16,
            );
        }
    }

    /// Where the block was allocated.
    pub fn suballoc(&self) -> Suballoc {
        Suballoc {
            slot: SlotNr(self.dr_suballoc_slot.get()),
            bit: self.dr_suballoc_bit.get(),
            group: BlockNr(self.dr_suballoc_loc.get()),
        }
    }

    /// Whether `block`, read from `nr`, is an index root of the volume.
    ///
    /// # Errors
    /// The rule it breaks.
    pub fn validate(block: &[u8], nr: BlockNr, geometry: &Geometry) -> Result<(), Corrupt> {
        let this = Self::of(block);
        let check = Check::new(Structure::DxRoot, nr);
        check.signature(&this.dr_signature, &Self::SIGNATURE)?;
        check.own_block(this.dr_blkno.get())?;
        check.generation(this.dr_fs_generation.get(), geometry.fs_generation)?;
        if this.is_inline() {
            return Self::entries(block)
                .check_limits(check, capacity::entries_in_dx_root(block.len()));
        }
        let (list, capacity) = (
            extent_list(block, RootKind::DxRoot),
            capacity::extents_in_dx_root(block.len()),
        );
        check.equals("l_count", list.header.l_count.get(), capacity as u64)?;
        list.check_limits(check, capacity)
    }
}
