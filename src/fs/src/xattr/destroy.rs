//! Freeing every attribute of an inode that is being deleted. Called by [`super`].
//!
//! In as many handles as it takes, each of which leaves the volume consistent: first the large values, taken out of
//! their areas as they are freed, so that they cannot be freed twice; then the extents of buckets, from the last to the
//! first; then the xattr block. If we crash in between, the next attempt finds the rest.

use ondisk::feature::DynFeatures;
use ondisk::{Dinode, RootKind, XattrBlock};

use super::set::write;
use super::{Place, areas, external, is_indexed, tree, value};
use crate::alloc;
use crate::cache::BlockRef;
use crate::core::Core;
use crate::error::Result;
use crate::extent::{self, Root};
use crate::inode::Inode;

/// Extents and extent blocks of values that one handle frees.
const PIECES_PER_HANDLE: usize = 24;
/// Blocks that freeing one piece may touch: its group and allocator, or the records of its refcount tree.
const BLOCKS_PER_PIECE: u32 = 3;
/// Blocks that removing an extent from a tree may touch.
const REMOVE_BLOCKS: u32 = 32;

pub(super) async fn destroy(core: &Core, inode: &Inode) -> Result<()> {
    for place in areas(core, inode).await? {
        free_values(core, inode, &place).await?;
    }
    let Some(block) = external(core, inode).await? else {
        return Ok(());
    };
    if is_indexed(&block) {
        free_buckets(core, &block).await?;
    }
    alloc::with_space(core, async || {
        let mut h = core.journal.begin(REMOVE_BLOCKS).await?;
        let from = XattrBlock::of(&block.data()).suballoc();
        value::release_block(core, &mut h, &block, from).await?;
        {
            let mut bytes = h.modify(inode.block());
            let dinode = Dinode::of_mut(&mut bytes);
            dinode.i_xattr_loc.set(0);
            let mut features = dinode.dyn_features();
            features.set(
                DynFeatures::HAS_XATTR,
                features.contains(DynFeatures::INLINE_XATTR),
            );
            dinode.set_dyn_features(features);
        }
        h.commit();
        Ok(())
    })
    .await
}

/// Takes the attributes with large values out of an area, a few a handle.
async fn free_values(core: &Core, inode: &Inode, place: &Place) -> Result<()> {
    loop {
        let mut items = place.items()?;
        let mut trees = Vec::new();
        let mut pieces = 0;
        let mut index = 0;
        while index < items.len() && pieces < PIECES_PER_HANDLE {
            if !items[index].is_outside() {
                index += 1;
                continue;
            }
            let offset = place.value_offset(index)?;
            // The offsets are those of the area as it is on disk, so the list is shortened only at the end.
            let tree = value::tree(core, &place.block, offset).await?;
            pieces += tree.extents.len() + tree.nodes.len();
            trees.push(tree);
            index += 1;
        }
        if trees.is_empty() {
            return Ok(());
        }
        let mut seen = 0;
        items.retain(|item| {
            seen += 1;
            seen > index || !item.is_outside()
        });
        alloc::with_space(core, async || {
            let mut h = core
                .journal
                .begin(REMOVE_BLOCKS + BLOCKS_PER_PIECE * pieces as u32)
                .await?;
            for tree in &trees {
                value::free(core, &mut h, inode, tree).await?;
            }
            write(core, &mut h, place, &items);
            h.commit();
            Ok(())
        })
        .await?;
    }
}

/// Frees all buckets, one extent a handle.
async fn free_buckets(core: &Core, block: &BlockRef) -> Result<()> {
    let root = Root {
        block: block.clone(),
        kind: RootKind::XattrTree,
    };
    let mut extents = tree::read(core, block, RootKind::XattrTree).await?.extents;
    while let Some(rec) = extents.pop() {
        alloc::with_space(core, async || {
            let mut h = core.journal.begin(REMOVE_BLOCKS).await?;
            let start = core
                .geometry
                .cluster_of(rec.block())
                .expect("the tree was read with its records checked");
            extent::take(core, &mut h, &root, rec.e_cpos.get(), rec.clusters(0)).await?;
            alloc::release_metadata_clusters(core, &mut h, start, rec.clusters(0)).await?;
            h.commit();
            Ok(())
        })
        .await?;
    }
    Ok(())
}
