//! Cloning a file: both refer to the same clusters afterwards. Called by the copy operations.
//!
//! Several handles. First the source gets a refcount tree if it has none, and the target joins it; then extents are
//! marked shared in the source and entered into the target, piece by piece. Each handle leaves both files sound; the
//! target is a prefix of the clone until the last one, so the caller keeps it hidden (an orphan) until then.

use ondisk::feature::{DynFeatures, ExtentFlags};
use ondisk::{
    BlockNr, Body, Dinode, Generation, Kind, NewRefcount, RefcountBlock, Suballoc, inline_data,
    inline_data_mut,
};

use super::{CHANGE_BLOCKS, leaf, root};
use crate::alloc;
use crate::core::Core;
use crate::error::{Error, Result};
use crate::extent::{self, Root, Run};
use crate::inode::Inode;

/// Blocks that one step may touch, refcounts aside.
const STEP_BLOCKS: u32 = 64;
/// Clusters shared by one handle: each may have a refcount record of its own.
const CLUSTERS_AT_ONCE: u32 = 2048;
/// Extents looked at in one go.
const RUNS_AT_ONCE: usize = 64;

/// Makes `target`, an empty regular file whose block was set up for extents (or inline data, if the source has its data
/// inline), share all data of `source`. The size comes last. Attributes and times are the caller's.
///
/// The caller holds both inodes' locks exclusively and has written back what it has of the source in memory.
///
/// # Errors
/// `Invalid` if the target is not empty or inline data does not fit; `NoSpace`.
pub async fn reflink(core: &Core, source: &Inode, target: &Inode) -> Result<()> {
    if target.dinode().i_clusters.get() > 0
        || target
            .dinode()
            .dyn_features()
            .contains(DynFeatures::HAS_REFCOUNT)
    {
        return Err(Error::Invalid(format!(
            "inode {} is not empty",
            target.nr().0
        )));
    }
    if source.dinode().body() == Body::Inline {
        return clone_inline(core, source, target).await;
    }
    if target.dinode().body() != Body::Extents {
        return Err(Error::Invalid(format!(
            "inode {} has no extents",
            target.nr().0
        )));
    }
    if !source
        .dinode()
        .dyn_features()
        .contains(DynFeatures::HAS_REFCOUNT)
    {
        alloc::with_space(core, async || make_tree(core, source).await).await?;
    }
    join(core, source, target).await?;
    let tree = Root::dinode(source.block());
    let mut from = 0u32;
    loop {
        let runs = extent::runs(core, &tree, from, RUNS_AT_ONCE).await?;
        let Some(last) = runs.last() else { break };
        let end = u64::from(last.cpos) + u64::from(last.clusters);
        for run in runs.iter().flat_map(|run| pieces(core, run)) {
            alloc::with_space(core, async || share_run(core, source, target, &run).await).await?;
        }
        let Ok(next) = u32::try_from(end) else { break };
        from = next;
    }
    set_size(core, source, target).await
}

/// Copies data that lies in the inode's block.
async fn clone_inline(core: &Core, source: &Inode, target: &Inode) -> Result<()> {
    let data = inline_data(&source.block().data()).to_vec();
    let size = source.dinode().i_size.get();
    let used = usize::try_from(size).unwrap_or(usize::MAX).min(data.len());
    let mut h = core.journal.begin(2).await?;
    {
        let mut bytes = h.modify(target.block());
        let fits = Dinode::of(&bytes).body() == Body::Inline && inline_data(&bytes).len() >= used;
        if !fits {
            return Err(Error::Invalid(format!(
                "inode {} has no room for inline data",
                target.nr().0
            )));
        }
        let room = inline_data_mut(&mut bytes);
        room.fill(0);
        room[..used].copy_from_slice(&data[..used]);
        Dinode::of_mut(&mut bytes).i_size.set(size);
    }
    target.changed_in(h.commit());
    Ok(())
}

/// Gives the inode a refcount tree of its own, without records.
async fn make_tree(core: &Core, inode: &Inode) -> Result<()> {
    let mut h = core.journal.begin(STEP_BLOCKS).await?;
    let place = alloc::claim_metadata(core, &mut h).await?;
    let block = h.fresh(place.block, Kind::RefcountBlock);
    let suballoc = Suballoc {
        slot: place.slot,
        bit: place.bit,
        group: place.group,
    };
    // Tells the locks of two trees that had the same block apart.
    let generation = Generation(core.host.random() as u32);
    let geometry = &core.geometry;
    RefcountBlock::init(
        &mut h.modify(&block),
        place.block,
        geometry,
        suballoc,
        generation,
        NewRefcount::Root,
    );
    {
        let mut bytes = h.modify(inode.block());
        attach(Dinode::of_mut(&mut bytes), place.block);
    }
    inode.changed_in(h.commit());
    Ok(())
}

fn attach(dinode: &mut Dinode, root: BlockNr) {
    dinode.i_refcount_loc.set(root.0);
    dinode.set_dyn_features(dinode.dyn_features() | DynFeatures::HAS_REFCOUNT);
}

/// The target becomes a user of the source's tree.
async fn join(core: &Core, source: &Inode, target: &Inode) -> Result<()> {
    let mut h = core.journal.begin(4).await?;
    let root = root(core, source).await?;
    let users = RefcountBlock::of(&root.data()).rf_count.get();
    let users = users
        .checked_add(1)
        .ok_or_else(|| Error::TooManyLinks(source.nr()))?;
    RefcountBlock::of_mut(&mut h.modify(&root))
        .rf_count
        .set(users);
    {
        let mut bytes = h.modify(target.block());
        attach(Dinode::of_mut(&mut bytes), root.nr());
    }
    target.changed_in(h.commit());
    Ok(())
}

/// An extent in pieces that one handle can share, however fragmented their refcounts are.
fn pieces(core: &Core, run: &Run) -> Vec<Run> {
    let blocks = u64::from(core.geometry.blocks_per_cluster());
    let piece = |at: u32| Run {
        cpos: run.cpos + at,
        clusters: CLUSTERS_AT_ONCE.min(run.clusters - at),
        physical: BlockNr(run.physical.0 + u64::from(at) * blocks),
        flags: run.flags,
    };
    (0..run.clusters)
        .step_by(CLUSTERS_AT_ONCE as usize)
        .map(piece)
        .collect()
}

/// Shares a piece of an extent of the source. The refcounts, both files' extents: all in one handle.
async fn share_run(core: &Core, source: &Inode, target: &Inode, run: &Run) -> Result<()> {
    let start = core
        .geometry
        .cluster_of(run.physical)
        .expect("an extent's place was checked when it was read");
    let mut h = core.journal.begin(STEP_BLOCKS + 2 * CHANGE_BLOCKS).await?;
    let root = root(core, source).await?;
    if !run.flags.contains(ExtentFlags::REFCOUNTED) {
        leaf::change(core, &mut h, &root, start, run.clusters, leaf::Change::More).await?;
        let tree = Root::dinode(source.block());
        let (set, clear) = (ExtentFlags::REFCOUNTED, ExtentFlags::empty());
        extent::set_flags(core, &mut h, &tree, run.cpos, run.clusters, set, clear).await?;
    }
    leaf::change(core, &mut h, &root, start, run.clusters, leaf::Change::More).await?;
    let tree = Root::dinode(target.block());
    let flags = run.flags | ExtentFlags::REFCOUNTED;
    extent::insert(
        core,
        &mut h,
        &tree,
        run.cpos,
        run.physical,
        run.clusters,
        flags,
    )
    .await?;
    let tid = h.commit();
    source.changed_in(tid);
    target.changed_in(tid);
    Ok(())
}

async fn set_size(core: &Core, source: &Inode, target: &Inode) -> Result<()> {
    let size = source.dinode().i_size.get();
    let mut h = core.journal.begin(2).await?;
    {
        let mut bytes = h.modify(target.block());
        Dinode::of_mut(&mut bytes).i_size.set(size);
    }
    target.changed_in(h.commit());
    Ok(())
}
