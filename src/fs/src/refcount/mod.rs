//! Refcount trees: how many files share each cluster. Called where refcounted clusters are given up (truncate, unlink,
//! xattr values), where they are about to be written ([`cow`]), and where files start to share ([`reflink`]).
//!
//! ```text
//!  dinode ─ i_refcount_loc ─► root block ─ records {cluster, length, count}            few of them
//!  dinode ─────────────────►           └─ tree by cluster ─► leaf blocks of records    many
//! ```
//!
//! All inodes that ever shared anything by cloning share one root, which counts them. Every cluster of an extent with
//! the flag REFCOUNTED has a record; records are sorted, do not overlap, and neighbours of one count in one block are
//! one record. A count of 1 means that the cluster is exclusive again.
//!
//! The root is shared by inodes whose locks are independent: its blocks are only changed inside a handle, which is
//! exclusive, and what is decided from them is read inside that handle too.

mod cow;
mod leaf;
mod share;
#[cfg(test)]
mod tests;

use ondisk::feature::DynFeatures;
use ondisk::{BlockNr, ClusterNr, Dinode, Kind, RefcountBlock, refcount_list};

pub use cow::cow;
pub use share::reflink;

use crate::alloc;
use crate::cache::BlockRef;
use crate::core::Core;
use crate::error::Result;
use crate::inode::Inode;
use crate::journal::Handle;
use crate::system::SystemFile;
use crate::xattr::tree::corrupt;

/// Blocks that a change of the counts of one run of clusters may touch, as long as its records are few.
pub(crate) const CHANGE_BLOCKS: u32 = 16;

/// The root of an inode's refcount tree. That there is none where one is needed means a corrupt inode.
async fn root(core: &Core, inode: &Inode) -> Result<BlockRef> {
    let nr = {
        let dinode = inode.dinode();
        let has = dinode.dyn_features().contains(DynFeatures::HAS_REFCOUNT);
        if has {
            BlockNr(dinode.i_refcount_loc.get())
        } else {
            BlockNr::NONE
        }
    };
    if !nr.is_some() {
        return Err(corrupt(
            inode.nr(),
            "i_refcount_loc",
            0,
            "shared extents without a refcount tree",
        )
        .into());
    }
    core.cache.read(nr, Kind::RefcountBlock).await
}

/// One inode less refers to these clusters: for clusters that it gives up. Those that nobody refers to any more are
/// freed. The caller bounds `count` so that the records in that range, and what they free, fit its handle.
pub async fn decrease(
    core: &Core,
    h: &mut Handle<'_>,
    inode: &Inode,
    start: ClusterNr,
    count: u32,
) -> Result<()> {
    let root = root(core, inode).await?;
    let unused = leaf::change(core, h, &root, start, count, leaf::Change::Less).await?;
    for (start, count) in unused {
        alloc::release_clusters(core, h, start, count).await?;
    }
    Ok(())
}

/// The inode leaves its refcount tree: it is being deleted, or has nothing shared left. The last one takes the tree
/// with it, which by then has no records.
pub async fn detach(core: &Core, h: &mut Handle<'_>, inode: &Inode) -> Result<()> {
    if !inode
        .dinode()
        .dyn_features()
        .contains(DynFeatures::HAS_REFCOUNT)
    {
        return Ok(());
    }
    let root = root(core, inode).await?;
    {
        let mut bytes = h.modify(inode.block());
        let dinode = Dinode::of_mut(&mut bytes);
        dinode.set_dyn_features(dinode.dyn_features() - DynFeatures::HAS_REFCOUNT);
        dinode.i_refcount_loc.set(0);
    }
    let users = RefcountBlock::of(&root.data()).rf_count.get();
    let Some(left) = users.checked_sub(1) else {
        return Err(corrupt(root.nr(), "rf_count", 0, "a refcount tree in use has users").into());
    };
    RefcountBlock::of_mut(&mut h.modify(&root))
        .rf_count
        .set(left);
    if left > 0 {
        return Ok(());
    }
    let empty = {
        let data = root.data();
        !RefcountBlock::of(&data).is_tree() && refcount_list(&data).used().is_empty()
    };
    if !empty {
        // The kernel drops the root all the same. Clusters that the records speak of are for fsck to find.
        tracing::warn!(
            root = root.nr().0,
            "the last inode leaves a refcount tree that still has records"
        );
    }
    release_block(core, h, &root).await
}

/// Gives a refcount block back to its allocator.
async fn release_block(core: &Core, h: &mut Handle<'_>, block: &BlockRef) -> Result<()> {
    let from = RefcountBlock::of(&block.data()).suballoc();
    alloc::release_place(
        core,
        h,
        SystemFile::ExtentAlloc,
        from.slot,
        from.bit,
        from.group,
        block.nr(),
    )
    .await
}
