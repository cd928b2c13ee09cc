//! A deleted directory's clusters go back: those of its index, its root, those of its entries.
//!
//! In several handles, since there may be any number of them. The directory is in an orphan directory
//! while this runs, and nobody looks names up in it. If we crash between two handles, what is left is a
//! smaller directory of the same kind, and recovery calls [`destroy`] again.

use ondisk::feature::DynFeatures;
use ondisk::{Dinode, DxRoot, RootKind};

use super::{Form, index};
use crate::alloc;
use crate::cache::BlockRef;
use crate::core::Core;
use crate::error::Result;
use crate::extent::{self, Root};
use crate::inode::Inode;
use crate::system::SystemFile;

/// Records taken out by one handle: no more than there is always room for in the truncate log after
/// a check, and with the path some dozens of blocks.
const RECORDS_A_STEP: usize = 4;
/// Blocks of such a step.
const STEP_BLOCKS: u32 = 64;

/// Releases all clusters and the index of a deleted directory. What is left is an inode of size 0
/// without content. All clusters held journaled metadata, and are released as such.
pub async fn destroy(core: &Core, dir: &Inode) -> Result<()> {
    let block = dir.block();
    if Form::of(block) == Form::Inline {
        return Ok(());
    }
    if Form::of(block) == Form::Indexed {
        let root = index::root(core, block).await?;
        if !index::is_inline(&root) {
            release(core, &Root::new(root.clone(), RootKind::DxRoot)).await?;
        }
        detach_index(core, block, &root).await?;
    }
    let mut h = core.journal.begin(1).await?;
    Dinode::of_mut(&mut h.modify(block)).i_size.set(0);
    h.commit();
    release(core, &Root::dinode(block)).await
}

/// Frees a tree's clusters from its end.
async fn release(core: &Core, tree: &Root) -> Result<()> {
    loop {
        let runs = extent::last_runs(core, tree, 0, RECORDS_A_STEP).await?;
        if runs.is_empty() {
            return Ok(());
        }
        if alloc::truncate_log_needs_flush(core).await? {
            alloc::flush_truncate_log(core).await?;
        }
        let mut h = core.journal.begin(STEP_BLOCKS).await?;
        for run in runs.iter().rev() {
            for gone in extent::take(core, &mut h, tree, run.cpos, run.clusters).await? {
                if let Some(start) = core.geometry.cluster_of(gone.physical) {
                    alloc::release_metadata_clusters(core, &mut h, start, gone.clusters).await?;
                }
            }
        }
        h.commit();
    }
}

/// The inode forgets its index, and the root's block goes back to where it came from.
async fn detach_index(core: &Core, dir: &BlockRef, root: &BlockRef) -> Result<()> {
    let from = DxRoot::of(&root.data()).suballoc();
    let group = from.group_of(root.nr()).unwrap_or_default();
    let mut h = core.journal.begin(STEP_BLOCKS).await?;
    {
        let mut data = h.modify(dir);
        let dinode = Dinode::of_mut(&mut data);
        dinode.i_dx_root.set(0);
        dinode.set_dyn_features(dinode.dyn_features() - DynFeatures::INDEXED_DIR);
    }
    let allocator = SystemFile::ExtentAlloc;
    alloc::release_place(
        core,
        &mut h,
        allocator,
        from.slot,
        from.bit,
        group,
        root.nr(),
    )
    .await?;
    h.commit();
    Ok(())
}
