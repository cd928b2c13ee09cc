//! Suballocators: groups of blocks, for inodes and for other metadata. Each slot has two, which grow
//! by a group at a time and never shrink.

use ondisk::feature::Incompat;
use ondisk::{
    BlockNr, ClusterNr, Dinode, GroupDesc, Kind, NewGroup, SlotNr, Structure, Suballoc, capacity,
    chain_list, chain_list_mut, group_bit_to_block, group_extents,
};

use super::chain::{Allocator, Taken, Want, corrupt};
use super::{Place, bitmap, claim_promised};
use crate::core::Core;
use crate::error::{Error, Result};
use crate::journal::Handle;
use crate::system::SystemFile;

/// A block for a new inode, near its parent where that is one of ours.
pub async fn claim_inode(
    core: &Core,
    h: &mut Handle<'_>,
    parent: Option<BlockNr>,
) -> Result<Place> {
    let near = match parent {
        Some(nr) => {
            let block = core.cache.read(nr, Kind::Dinode).await?;
            let place = Dinode::of(&block.data()).suballoc();
            (place.slot == core.slot)
                .then(|| place.group_of(nr))
                .flatten()
        }
        None => None,
    };
    claim(core, h, SystemFile::InodeAlloc, near).await
}

/// A block for anything else: extent block, xattr block, directory index, refcount block.
pub async fn claim_metadata(core: &Core, h: &mut Handle<'_>) -> Result<Place> {
    claim(core, h, SystemFile::ExtentAlloc, None).await
}

/// Gives a block back to the allocator it came from.
pub async fn release_place(
    core: &Core,
    h: &mut Handle<'_>,
    file: SystemFile,
    slot: SlotNr,
    bit: u16,
    group: BlockNr,
    block: BlockNr,
) -> Result<()> {
    core.cache.keep_freed(block);
    let file = if slot.is_some() {
        file
    } else {
        SystemFile::GlobalInodeAlloc
    };
    if slot.is_some() && slot.0 >= core.system.slot_count() {
        let rule = "the block's allocator is of a slot that the volume has not";
        return Err(corrupt(
            block,
            Structure::Block,
            "suballoc_slot",
            slot.0.into(),
            rule,
        ));
    }
    let allocator = Allocator::open(core, core.system.of(file, slot), false).await?;
    let Some(nr) = (Suballoc { slot, bit, group }).group_of(block) else {
        let rule = "the block's group would lie before the device";
        return Err(corrupt(
            block,
            Structure::Block,
            "suballoc_bit",
            bit.into(),
            rule,
        ));
    };
    let desc = allocator.group(core, nr).await?;
    if group_bit_to_block(&desc.data(), &core.geometry, bit) != Some(block) {
        let rule = "the bit that a block says is its own stands for another one";
        return Err(corrupt(nr, Structure::GroupDesc, "bit", bit.into(), rule));
    }
    allocator.free(core, h, nr, bit.into(), 1).await
}

/// One block: from the hinted group, from any other of ours, from a new group, or, with no space for
/// one, from another slot's groups.
async fn claim(
    core: &Core,
    h: &mut Handle<'_>,
    file: SystemFile,
    near: Option<BlockNr>,
) -> Result<Place> {
    let own = Allocator::open(core, core.system.of(file, core.slot), false).await?;
    if let Some(place) = claim_from(core, h, &own, core.slot, near).await? {
        return Ok(place);
    }
    let full = match grow(core, h, &own).await {
        Ok(group) => {
            let place = claim_from(core, h, &own, core.slot, Some(group)).await?;
            return place.ok_or_else(|| Error::NoSpace("a new group is full".into()));
        }
        Err(full @ Error::NoSpace(_)) => full,
        Err(other) => return Err(other),
    };
    let slots = core.system.slot_count();
    for other in (1..slots).map(|step| SlotNr((core.slot.0 + step) % slots)) {
        let allocator = Allocator::open(core, core.system.of(file, other), false).await?;
        if let Some(place) = claim_from(core, h, &allocator, other, None).await? {
            return Ok(place);
        }
    }
    Err(full)
}

async fn claim_from(
    core: &Core,
    h: &mut Handle<'_>,
    allocator: &Allocator,
    slot: SlotNr,
    near: Option<BlockNr>,
) -> Result<Option<Place>> {
    if allocator.used() >= allocator.total() {
        return Ok(None);
    }
    let near = near.map(|group| (group, None));
    let Some(taken) = allocator
        .claim(core, h, near, Want { min: 1, max: 1 })
        .await?
    else {
        return Ok(None);
    };
    place_of(core, &taken, slot).map(Some)
}

fn place_of(core: &Core, taken: &Taken, slot: SlotNr) -> Result<Place> {
    let (data, nr) = (taken.group.data(), taken.group.nr());
    let bit = taken.bit as u16; // a group has at most 2^16 bits
    let block = group_bit_to_block(&data, &core.geometry, bit)
        .filter(|&block| core.geometry.holds_block(block))
        .ok_or_else(|| {
            let rule = "a clear bit that stands for no block";
            corrupt(nr, Structure::GroupDesc, "bit", bit.into(), rule)
        })?;
    let group = if group_extents(&data, &core.geometry).is_some() {
        nr
    } else {
        BlockNr::NONE
    };
    Ok(Place {
        slot,
        bit,
        group,
        block,
    })
}

/// Adds a group: contiguous, or of several runs where the volume knows such groups and free space
/// is scattered. Returns its descriptor's block.
async fn grow(core: &Core, h: &mut Handle<'_>, allocator: &Allocator) -> Result<BlockNr> {
    let nr = allocator.block.nr();
    let (header, chain, next) = {
        let data = allocator.block.data();
        let list = chain_list(&data);
        // The driver's policy: every chain of the inode gets a group before one gets a second.
        let chain = (0..list.records.len()).min_by_key(|&at| list.records[at].c_total.get());
        let chain = chain.unwrap_or(0);
        (
            *list.header,
            chain as u16,
            list.records.get(chain).map(|rec| rec.first_group()),
        )
    };
    let (clusters, per_cluster) = (u32::from(header.cl_cpg.get()), header.cl_bpc.get());
    if clusters == 0 || u32::from(per_cluster) != core.geometry.blocks_per_cluster() {
        return Err(corrupt(
            nr,
            Structure::ChainList,
            "cl_bpc",
            per_cluster.into(),
            "not a cluster's blocks",
        ));
    }
    let most = 8 * core.geometry.group_bitmap_bytes(true) as u32;
    if header.bits_per_group() > most {
        let rule = "a group would have more bits than its bitmap";
        return Err(corrupt(
            nr,
            Structure::ChainList,
            "cl_cpg",
            clusters.into(),
            rule,
        ));
    }
    let Some(next) = next.filter(|_| chain <= header.cl_next_free_rec.get()) else {
        return Err(corrupt(
            nr,
            Structure::ChainList,
            "cl_next_free_rec",
            chain.into(),
            "chains with gaps",
        ));
    };
    let runs = claim_group_clusters(core, h, clusters).await?;
    let first = core.geometry.first_block(runs[0].0);
    let new = NewGroup {
        nr: first,
        parent: nr,
        chain,
        next,
        suballocator: true,
    };
    let group = h.fresh(first, Kind::GroupDesc);
    {
        let mut data = h.modify(&group);
        if let [_] = runs[..] {
            GroupDesc::init(
                &mut data,
                &core.geometry,
                &new,
                header.bits_per_group() as u16,
            );
        } else {
            let parts: Vec<(BlockNr, u16)> = runs
                .iter()
                .map(|&(start, count)| (core.geometry.first_block(start), count as u16))
                .collect();
            let fits =
                GroupDesc::init_discontiguous(&mut data, &core.geometry, &new, per_cluster, &parts);
            assert!(fits, "runs are limited to what a descriptor lists");
        }
    }
    let (bits, free) = {
        let data = group.data();
        let desc = GroupDesc::of(&data);
        (
            u32::from(desc.bg_bits.get()),
            u32::from(desc.bg_free_bits_count.get()),
        )
    };
    let added = Added {
        chain,
        clusters,
        bits,
        free,
        group: first,
    };
    link_in(core, &mut h.modify(&allocator.block), &added).ok_or_else(|| {
        let rule = "its counts leave no room for another group";
        corrupt(
            nr,
            Structure::ChainList,
            "i_total",
            allocator.total().into(),
            rule,
        )
    })?;
    Ok(first)
}

/// A group that was added, to count in its allocator.
struct Added {
    chain: u16,
    clusters: u32,
    bits: u32,
    free: u32,
    group: BlockNr,
}

/// Puts a group at the head of its chain. `None` if a count would overflow.
fn link_in(core: &Core, inode: &mut [u8], added: &Added) -> Option<()> {
    let list = chain_list_mut(inode);
    let rec = &mut list.records[usize::from(added.chain)];
    rec.c_free.set(rec.c_free.get().checked_add(added.free)?);
    rec.c_total.set(rec.c_total.get().checked_add(added.bits)?);
    rec.c_blkno.set(added.group.0);
    if list.header.cl_next_free_rec.get() == added.chain {
        list.header.cl_next_free_rec.set(added.chain + 1);
    }
    let inode = Dinode::of_mut(inode);
    let total = inode.total().checked_add(added.bits)?;
    let used = inode.used().checked_add(added.bits - added.free)?;
    inode.set_used(used);
    inode.set_total(total);
    let grown = inode.i_clusters.get().checked_add(added.clusters)?;
    inode.i_clusters.set(grown);
    inode
        .i_size
        .set(u64::from(grown) << core.geometry.cluster_size_bits);
    Some(())
}

/// Clusters for a group: in one run, or in up to as many as a descriptor can list, long ones first.
async fn claim_group_clusters(
    core: &Core,
    h: &mut Handle<'_>,
    clusters: u32,
) -> Result<Vec<(ClusterNr, u32)>> {
    let full = match claim_promised(core, h, None, clusters, clusters).await {
        Ok(run) => return Ok(vec![run]),
        Err(full @ Error::NoSpace(_)) => full,
        Err(other) => return Err(other),
    };
    if !core.geometry.has(Incompat::DISCONTIG_BG) {
        return Err(full);
    }
    let most = capacity::extents_in_group(core.block_size());
    let mut runs: Vec<(ClusterNr, u32)> = Vec::new();
    let mut missing = clusters;
    let mut at_least = clusters / 2;
    while missing > 0 && runs.len() < most && at_least > 0 {
        at_least = at_least.min(missing);
        match bitmap::claim(core, h, None, at_least, missing).await? {
            Some(run) => {
                missing -= run.1;
                runs.push(run);
            }
            None => at_least /= 2,
        }
    }
    if missing == 0 {
        return Ok(runs);
    }
    // The caller may find a block elsewhere and go on with this handle: nothing may be left of this.
    for (start, count) in runs {
        bitmap::free(core, h, start, count).await?;
    }
    Err(full)
}
