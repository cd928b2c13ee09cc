//! Room in the index: the inline root becomes a cluster of leaves, a full leaf's cluster is split in two.
//!
//! ```text
//!   root: entries          root: [0 → cluster A]       root: [0 → A] [split → B]
//!                     ──►    A: leaf leaf leaf …   ──►   A: hashes below split   B: from split on
//! ```
//! Both steps are part of the operation that needs the room, in its handle: if we crash, either the
//! index as it was is on disk, or the new one whole.

use ondisk::feature::ExtentFlags;
use ondisk::hash::DirHash;
use ondisk::{BlockNr, DxEntry, DxLeaf, DxRoot, Kind, RootKind, capacity, init_extent_list};

use super::index;
use crate::alloc;
use crate::cache::BlockRef;
use crate::core::Core;
use crate::error::{Error, Result};
use crate::extent::{self, Root};
use crate::journal::Handle;

/// The root or leaf for a hash, with room for one more entry.
pub(super) async fn list_with_room(
    core: &Core,
    h: &mut Handle<'_>,
    root: &BlockRef,
    hash: DirHash,
) -> Result<BlockRef> {
    if index::is_inline(root) {
        if !index::is_full(root) {
            return Ok(root.clone());
        }
        spill(core, h, root).await?;
    }
    let cluster = index::cluster(core, root, hash.major).await?;
    let leaf = index::leaf(core, cluster, hash.minor).await?;
    if !index::is_full(&leaf) {
        return Ok(leaf);
    }
    let majors: Vec<u32> = used(&leaf).iter().map(|entry| entry.hash().major).collect();
    let Some(split) = choose(majors, cluster.cpos, hash.major) else {
        let full = "as many names of one hash as an index leaf holds";
        return Err(Error::NoSpace(full.to_owned()));
    };
    split_cluster(core, h, root, cluster.first, split).await?;
    // The split leaves entries on both sides, or the new one alone on its side.
    index::list(core, root, hash).await
}

/// Most blocks that making room for `name` changes or makes: none while there is room.
pub(super) async fn leaves_changed(core: &Core, dir: &BlockRef, name: &[u8]) -> Result<u32> {
    let root = index::root(core, dir).await?;
    let list = index::list(core, &root, index::hash_of(core, name)).await?;
    let leaves = core.geometry.blocks_per_cluster();
    Ok(match index::is_full(&list) {
        false => 0,
        true if index::is_inline(&root) => leaves,
        true => 2 * leaves,
    })
}

fn used(list: &BlockRef) -> Vec<DxEntry> {
    index::entries(list.kind(), &list.data()).used().to_vec()
}

/// The root's entries go to a first cluster of leaves.
async fn spill(core: &Core, h: &mut Handle<'_>, root: &BlockRef) -> Result<()> {
    let entries = used(root);
    let (first, leaves) = new_cluster(core, h, None).await?;
    {
        let mut data = h.modify(root);
        let record = DxRoot::of_mut(&mut data);
        record.dr_flags &= !DxRoot::INLINE;
        let count = capacity::extents_in_dx_root(data.len());
        init_extent_list(&mut data, RootKind::DxRoot, 0, count as u16);
    }
    add_cluster(core, h, root, 0, first).await?;
    for entry in entries {
        let leaf = index::leaf_in_cluster(core, entry.hash().minor);
        index::push(h, &leaves[leaf as usize], entry)?;
    }
    Ok(())
}

/// Hashes from `split` on move from the cluster at `old` to a new one. A leaf's entries go to the
/// leaf of the same place, because the minor hash has chosen it.
async fn split_cluster(
    core: &Core,
    h: &mut Handle<'_>,
    root: &BlockRef,
    old: BlockNr,
    split: u32,
) -> Result<()> {
    let (first, leaves) = new_cluster(core, h, Some(old)).await?;
    add_cluster(core, h, root, split, first).await?;
    for (nr, new) in (old.0..).zip(&leaves) {
        let leaf = core.cache.read(BlockNr(nr), Kind::DxLeaf).await?;
        let (moving, staying): (Vec<_>, Vec<_>) = used(&leaf)
            .into_iter()
            .partition(|entry| entry.hash().major >= split);
        if moving.is_empty() {
            continue;
        }
        DxLeaf::init(&mut h.modify(&leaf), leaf.nr(), &core.geometry);
        for entry in staying {
            index::push(h, &leaf, entry)?;
        }
        for entry in moving {
            index::push(h, new, entry)?;
        }
    }
    Ok(())
}

/// A cluster of empty leaves, not yet in the tree.
async fn new_cluster(
    core: &Core,
    h: &mut Handle<'_>,
    near: Option<BlockNr>,
) -> Result<(BlockNr, Vec<BlockRef>)> {
    let goal = near.and_then(|nr| core.geometry.cluster_of(nr));
    let (cluster, _) = alloc::claim_clusters(core, h, goal, 1, 1).await?;
    let first = core.geometry.first_block(cluster);
    let leaves = (first.0..first.0 + u64::from(core.geometry.blocks_per_cluster()))
        .map(|nr| {
            let leaf = h.fresh(BlockNr(nr), Kind::DxLeaf);
            DxLeaf::init(&mut h.modify(&leaf), BlockNr(nr), &core.geometry);
            leaf
        })
        .collect();
    Ok((first, leaves))
}

async fn add_cluster(
    core: &Core,
    h: &mut Handle<'_>,
    root: &BlockRef,
    cpos: u32,
    first: BlockNr,
) -> Result<()> {
    let tree = Root::new(root.clone(), RootKind::DxRoot);
    extent::insert(core, h, &tree, cpos, first, 1, ExtentFlags::empty()).await
}

/// Where to split a cluster that is for hashes from `cpos` on, because one leaf is full (of `majors`)
/// and `new` belongs there. `None` if no split would make room: all have the hash of the new one.
///
/// Else each side of the split lacks something of the full leaf. (Linux takes the median even if all
/// entries are from it on, and then gives up.)
fn choose(mut majors: Vec<u32>, cpos: u32, new: u32) -> Option<u32> {
    majors.sort_unstable();
    let (&lowest, &highest) = (majors.first()?, majors.last()?);
    if lowest != highest {
        let middle = majors.len() / 2;
        let above = majors[middle..].iter().find(|&&major| major > lowest);
        return Some(*above.unwrap_or(&highest));
    }
    if lowest == new {
        return None;
    }
    if lowest == cpos {
        // The new one is above, and the next cluster of the same record may follow.
        return Some(cpos + 1);
    }
    Some(lowest.max(new))
}

#[cfg(test)]
mod tests {
    use super::choose;

    #[test]
    fn a_split_makes_room_or_is_refused() {
        assert_eq!(choose(vec![5, 1, 9, 3], 0, 4), Some(5));
        // Most have the lowest hash: the median would move everything.
        assert_eq!(choose(vec![2, 2, 2, 7], 0, 2), Some(7));
        assert_eq!(choose(vec![2, 2, 2, 7], 2, 3), Some(7));
        assert_eq!(choose(vec![4, 4], 0, 4), None);
        assert_eq!(choose(vec![4, 4], 4, 8), Some(5));
        assert_eq!(choose(vec![4, 4], 0, 3), Some(4));
        assert_eq!(choose(vec![4, 4], 0, 9), Some(9));
    }
}
