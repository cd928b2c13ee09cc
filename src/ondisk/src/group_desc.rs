//! The group descriptor: a block that holds the bitmap of a group of clusters or blocks.
//!
//! Bits are numbered least significant first. Bit 0 is the descriptor itself, always set (in the global bitmap's first
//! group: the cluster that holds it). A block group on a volume with DISCONTIG_BG may consist of several extents; then
//! an extent list lies behind a bitmap of 256 bytes, and bits run through its records in order.

use crate::access::{layout, over_block};
use crate::capacity::{self, offset};
use crate::corrupt::{Check, Corrupt, Structure};
use crate::le::{U16, U32, U64};
use crate::{
    BlockCheck, BlockNr, ChainListHeader, ClusterNr, ExtentListRef, ExtentRec, Geometry, RootKind,
    extent_list, extent_list_mut, init_extent_list,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What precedes the bitmap.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct GroupDesc {
    pub bg_signature: [u8; 8],
    /// Bytes of the bitmap.
    pub bg_size: U16,
    /// Bits that stand for something.
    pub bg_bits: U16,
    pub bg_free_bits_count: U16,
    /// The chain it is in.
    pub bg_chain: U16,
    pub bg_generation: U32,
    /// Longest run of free bits, kept by kernels from 6.10 on in the global bitmap; 0 means unknown. One that is too
    /// small hides free space from those kernels, so a writer keeps it right or sets it to 0.
    pub bg_contig_free_bits: U16,
    pub bg_reserved1: U16,
    /// Next group of the chain.
    pub bg_next_group: U64,
    /// The allocator.
    pub bg_parent_dinode: U64,
    pub bg_blkno: U64,
    pub bg_check: BlockCheck,
    pub bg_reserved2: U64,
}
layout!(
    GroupDesc, 0x40,
    bg_size @ 0x08, bg_bits @ 0x0A, bg_free_bits_count @ 0x0C, bg_chain @ 0x0E, bg_generation @ 0x10,
    bg_contig_free_bits @ 0x14, bg_next_group @ 0x18, bg_parent_dinode @ 0x20, bg_blkno @ 0x28, bg_check @ 0x30,
);
over_block!(GroupDesc);

/// What a new group starts with.
#[derive(Debug, Clone, Copy)]
pub struct NewGroup {
    /// Descriptor's own block.
    pub nr: BlockNr,
    /// The allocator's dinode.
    pub parent: BlockNr,
    /// The chain it goes to the head of.
    pub chain: u16,
    /// The group that was the head.
    pub next: BlockNr,
    /// Whether the allocator is any but the global bitmap.
    pub suballocator: bool,
}

/// What a group's allocator says about it, for [`GroupDesc::validate_in`].
#[derive(Debug, Clone, Copy)]
pub struct GroupParent<'a> {
    /// The allocator's dinode.
    pub nr: BlockNr,
    /// Its chain list's header.
    pub chains: &'a ChainListHeader,
}

impl GroupDesc {
    /// What the block must start with.
    pub const SIGNATURE: [u8; 8] = *b"GROUP01\0";

    /// Makes `block` a contiguous group of `bits` bits, of which bit 0 (the descriptor) is taken.
    pub fn init(block: &mut [u8], geometry: &Geometry, new: &NewGroup, bits: u16) {
        Self::init_fixed(block, geometry, new);
        let this = Self::of_mut(block);
        this.bg_bits = bits.into();
        this.bg_free_bits_count = bits.saturating_sub(1).into();
        block[offset::GROUP_BITMAP] = 1;
    }

    /// Makes `block` a discontiguous group of the given runs of (start block, clusters); the first one holds the
    /// descriptor. `false` if the runs do not fit into the list or the bitmap; then the block's content is undefined.
    #[must_use]
    pub fn init_discontiguous(
        block: &mut [u8],
        geometry: &Geometry,
        new: &NewGroup,
        bits_per_cluster: u16,
        runs: &[(BlockNr, u16)],
    ) -> bool {
        Self::init_fixed(block, geometry, new);
        let capacity = capacity::extents_in_group(block.len());
        init_extent_list(block, RootKind::GroupDesc, 0, capacity as u16);
        let mut clusters = 0u32;
        for &(start, length) in runs {
            let rec = ExtentRec::leaf(
                clusters,
                length,
                start,
                crate::feature::ExtentFlags::empty(),
            );
            let mut list = extent_list_mut(block, RootKind::GroupDesc);
            let at = list.as_ref().used().len();
            if !list.insert(at, rec) {
                return false;
            }
            clusters += u32::from(length);
        }
        let bits = clusters.saturating_mul(u32::from(bits_per_cluster));
        if runs.is_empty() || bits as usize > 8 * capacity::DISCONTIG_BITMAP_BYTES {
            return false;
        }
        let this = Self::of_mut(block);
        this.bg_bits = (bits as u16).into();
        this.bg_free_bits_count = (bits as u16).saturating_sub(1).into();
        block[offset::GROUP_BITMAP] = 1;
        true
    }

    fn init_fixed(block: &mut [u8], geometry: &Geometry, new: &NewGroup) {
        block.fill(0);
        let this = Self::of_mut(block);
        this.bg_signature = Self::SIGNATURE;
        this.bg_generation = geometry.fs_generation.0.into();
        this.bg_size = (geometry.group_bitmap_bytes(new.suballocator) as u16).into();
        this.bg_chain = new.chain.into();
        this.bg_next_group = new.next.0.into();
        this.bg_parent_dinode = new.parent.0.into();
        this.bg_blkno = new.nr.0.into();
    }

    /// The next group of the chain, or [`BlockNr::NONE`].
    pub fn next_group(&self) -> BlockNr {
        BlockNr(self.bg_next_group.get())
    }

    /// Whether `block`, read from `nr`, is a group descriptor of the volume. Says nothing about its allocator: see
    /// [`GroupDesc::validate_in`].
    ///
    /// # Errors
    /// The rule it breaks.
    pub fn validate(block: &[u8], nr: BlockNr, geometry: &Geometry) -> Result<(), Corrupt> {
        let this = Self::of(block);
        let check = Check::new(Structure::GroupDesc, nr);
        check.signature(&this.bg_signature, &Self::SIGNATURE)?;
        check.own_block(this.bg_blkno.get())?;
        check.generation(this.bg_generation.get(), geometry.fs_generation)?;
        let bits = this.bg_bits.get();
        check.at_most("bg_free_bits_count", this.bg_free_bits_count.get(), bits)?;
        check.at_most("bg_bits", bits, 8 * u32::from(this.bg_size.get()))?;
        check.at_most(
            "bg_size",
            this.bg_size.get(),
            capacity::group_bitmap_bytes(block.len()) as u64,
        )?;
        match group_extents(block, geometry) {
            Some(list) => validate_parts(
                check,
                nr,
                geometry,
                list,
                capacity::extents_in_group(block.len()),
            ),
            None => Ok(()),
        }
    }

    /// [`GroupDesc::validate`], and whether the group belongs to this allocator and has a size possible there.
    ///
    /// `resizing` admits a group whose chain is about to be opened.
    ///
    /// # Errors
    /// The rule it breaks.
    pub fn validate_in(
        block: &[u8],
        nr: BlockNr,
        geometry: &Geometry,
        parent: GroupParent<'_>,
        resizing: bool,
    ) -> Result<(), Corrupt> {
        Self::validate(block, nr, geometry)?;
        let this = Self::of(block);
        let check = Check::new(Structure::GroupDesc, nr);
        check.equals("bg_parent_dinode", this.bg_parent_dinode.get(), parent.nr.0)?;
        // Linux would hold bg_size of any suballocator's group to 256 on volumes with DISCONTIG_BG, but never looks at
        // the global inode allocator, whose groups mkfs makes with bitmaps to the end of the block.
        check.at_most(
            "bg_bits",
            this.bg_bits.get(),
            parent.chains.bits_per_group(),
        )?;
        let chains = parent.chains.cl_next_free_rec.get();
        let chain = this.bg_chain.get();
        check.rule(
            chain < chains || (resizing && chain == chains),
            "bg_chain",
            chain,
            "no such chain",
        )
    }
}

/// A discontiguous group's parts: inside the volume, in order, summing up to its bits.
fn validate_parts(
    check: Check,
    nr: BlockNr,
    geometry: &Geometry,
    list: ExtentListRef<'_>,
    capacity: usize,
) -> Result<(), Corrupt> {
    list.check_limits(check, capacity)?;
    check.rule(
        list.depth() == 0,
        "l_tree_depth",
        list.depth(),
        "the list of a group is flat",
    )?;
    let mut clusters = 0u32;
    for (index, rec) in list.used().iter().enumerate() {
        let offset = offset::GROUP_LIST + 16 + index * size_of::<ExtentRec>();
        check.at(
            rec.e_cpos.get() == clusters,
            offset,
            "a part does not start where the last one ends",
            rec.e_cpos,
        )?;
        let start = geometry
            .cluster_of(rec.block())
            .unwrap_or(ClusterNr(u32::MAX));
        let inside = geometry.holds_clusters(start, rec.leaf_clusters().into());
        check.at(
            inside,
            offset,
            "a part lies outside the volume",
            rec.e_blkno,
        )?;
        clusters = clusters.saturating_add(rec.leaf_clusters().into());
    }
    let first = list.used().first().map_or(0, |rec| rec.e_blkno.get());
    check.equals("first part's e_blkno", first, nr.0)
}

/// The bytes of a group's bitmap: `bg_size` of them, never beyond the block.
pub fn group_bitmap(block: &[u8]) -> &[u8] {
    let bytes = usize::from(GroupDesc::of(block).bg_size.get());
    let room = &block[offset::GROUP_BITMAP..];
    &room[..bytes.min(room.len())]
}

/// The bytes of a group's bitmap, to change.
pub fn group_bitmap_mut(block: &mut [u8]) -> &mut [u8] {
    let bytes = usize::from(GroupDesc::of(block).bg_size.get());
    let room = &mut block[offset::GROUP_BITMAP..];
    let bytes = bytes.min(room.len());
    &mut room[..bytes]
}

/// The parts of a discontiguous group; `None` if the group is contiguous.
pub fn group_extents<'a>(block: &'a [u8], geometry: &Geometry) -> Option<ExtentListRef<'a>> {
    // With a bitmap of any other size the bytes at the list's place are bitmap.
    let flat = usize::from(GroupDesc::of(block).bg_size.get()) != capacity::DISCONTIG_BITMAP_BYTES
        || !geometry.has(crate::feature::Incompat::DISCONTIG_BG);
    if flat {
        return None;
    }
    let list = extent_list(block, RootKind::GroupDesc);
    (list.header.l_next_free_rec.get() > 0).then_some(list)
}

/// The block that a bit of a block group stands for; `None` if the group does not reach that far.
///
/// In the global bitmap bits are clusters: there use [`group_first_cluster`].
pub fn group_bit_to_block(block: &[u8], geometry: &Geometry, bit: u16) -> Option<BlockNr> {
    let desc = GroupDesc::of(block);
    if bit >= desc.bg_bits.get() {
        return None;
    }
    let Some(list) = group_extents(block, geometry) else {
        return BlockNr(desc.bg_blkno.get()).checked_add(bit.into());
    };
    let bits_per_cluster = geometry.blocks_per_cluster();
    let cluster = u32::from(bit) / bits_per_cluster;
    let (_, rec) = list.find(cluster)?;
    let into = u32::from(bit) - rec.e_cpos.get().checked_mul(bits_per_cluster)?;
    rec.block().checked_add(into.into())
}

/// The bit of a block group that stands for a block; `None` if the block is not in the group.
pub fn group_block_to_bit(block: &[u8], geometry: &Geometry, wanted: BlockNr) -> Option<u16> {
    let desc = GroupDesc::of(block);
    let bit = match group_extents(block, geometry) {
        None => wanted.0.checked_sub(desc.bg_blkno.get())?,
        Some(list) => {
            let bits_per_cluster = u64::from(geometry.blocks_per_cluster());
            list.used().iter().find_map(|rec| {
                let into = wanted.0.checked_sub(rec.e_blkno.get())?;
                (into < u64::from(rec.leaf_clusters()) * bits_per_cluster)
                    .then(|| u64::from(rec.e_cpos.get()) * bits_per_cluster + into)
            })?
        }
    };
    u16::try_from(bit)
        .ok()
        .filter(|&bit| bit < desc.bg_bits.get())
}

/// The cluster that bit 0 of a group of the global bitmap stands for.
///
/// The first group's descriptor lies at `first_cluster_group`, not in the cluster its bits begin with: that is 0.
pub fn group_first_cluster(nr: BlockNr, geometry: &Geometry) -> Option<ClusterNr> {
    if nr == geometry.first_cluster_group {
        Some(ClusterNr(0))
    } else {
        geometry.cluster_of(nr)
    }
}
