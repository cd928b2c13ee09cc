//! A leaf of a directory's index: one block of a cluster of entries. The minor hash selects the block in the cluster.

use crate::access::{layout, over_block};
use crate::capacity::{self, offset};
use crate::corrupt::{Check, Corrupt, Structure};
use crate::dx::init_entries;
use crate::le::{U32, U64};
use crate::{BlockCheck, BlockNr, Geometry};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What precedes the entry list.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct DxLeaf {
    pub dl_signature: [u8; 8],
    pub dl_check: BlockCheck,
    pub dl_blkno: U64,
    pub dl_fs_generation: U32,
    pub dl_reserved0: U32,
    pub dl_reserved1: U64,
}
layout!(DxLeaf, 0x28, dl_check @ 0x08, dl_blkno @ 0x10, dl_fs_generation @ 0x18, dl_reserved1 @ 0x20);
over_block!(DxLeaf);

impl DxLeaf {
    /// What the block must start with.
    pub const SIGNATURE: [u8; 8] = *b"DXLEAF1\0";

    /// Makes `block` an empty leaf.
    pub fn init(block: &mut [u8], nr: BlockNr, geometry: &Geometry) {
        block.fill(0);
        let size = block.len();
        let this = Self::of_mut(block);
        this.dl_signature = Self::SIGNATURE;
        this.dl_fs_generation = geometry.fs_generation.0.into();
        this.dl_blkno = nr.0.into();
        init_entries(
            &mut block[offset::DX_LEAF_LIST..],
            capacity::entries_in_dx_leaf(size),
        );
    }

    /// Whether `block`, read from `nr`, is an index leaf of the volume.
    ///
    /// # Errors
    /// The rule it breaks.
    pub fn validate(block: &[u8], nr: BlockNr, geometry: &Geometry) -> Result<(), Corrupt> {
        let this = Self::of(block);
        let check = Check::new(Structure::DxLeaf, nr);
        check.signature(&this.dl_signature, &Self::SIGNATURE)?;
        check.own_block(this.dl_blkno.get())?;
        check.generation(this.dl_fs_generation.get(), geometry.fs_generation)?;
        Self::entries(block).check_limits(check, capacity::entries_in_dx_leaf(block.len()))
    }
}
