//! The tree's right edge: new leaves and levels, and leaves that have become empty.

use ondisk::{BlockNr, ExtentBlock, ExtentRec, Kind, RootKind, Suballoc, extent_list_mut};

use super::path::{Path, Step};
use super::root::Root;
use crate::alloc;
use crate::cache::BlockRef;
use crate::core::Core;
use crate::error::Result;
use crate::journal::Handle;
use crate::system::SystemFile;

/// Makes room at the end and returns the path to the leaf that has it: one more leaf, or, where the
/// root was the leaf, a leaf that took over its records.
pub(super) async fn append_leaf(core: &Core, h: &mut Handle<'_>, root: &Root) -> Result<Path> {
    let mut path = Path::rightmost(core, root).await?;
    let Some(level) = path
        .interior()
        .iter()
        .rposition(|step| step.used() < step.capacity())
    else {
        let was_leaf = path.depth() == 0;
        push_down(core, h, root).await?;
        path = Path::rightmost(core, root).await?;
        // The new block holds more records than any root, so that there is room now.
        if was_leaf && path.leaf().used() < path.leaf().capacity() {
            return Ok(path);
        }
        return Box::pin(append_leaf(core, h, root)).await;
    };
    add_branch(core, h, root, &path, level).await?;
    Path::rightmost(core, root).await
}

/// Moves the root's records into a new block, which becomes the root's one child.
async fn push_down(core: &Core, h: &mut Handle<'_>, root: &Root) -> Result<()> {
    let step = Step {
        block: root.block.clone(),
        kind: root.kind,
        index: 0,
    };
    let (depth, records) = step.list(|list| (list.depth(), list.used().to_vec()));
    let child = new_block(core, h, depth).await?;
    {
        let mut data = h.modify(&child);
        let list = extent_list_mut(&mut data, RootKind::ExtentBlock);
        list.records[..records.len()].copy_from_slice(&records);
        list.header.l_next_free_rec.set(records.len() as u16);
    }
    let end = records.last().map_or(0, |rec| rec.end(depth)) as u32;
    {
        let mut data = h.modify(&root.block);
        let list = extent_list_mut(&mut data, root.kind);
        list.records.fill(ExtentRec::zeroed());
        list.records[0] = ExtentRec::interior(0, end, child.nr());
        list.header.l_next_free_rec.set(1);
        list.header.l_tree_depth.set(depth + 1);
    }
    if depth == 0 {
        root.set_last_leaf(h, child.nr());
    }
    Ok(())
}

/// A new leaf, with the lists that lead to it from the list at `level` of the right edge, which has
/// room. Its range is set when it gets its first record.
async fn add_branch(
    core: &Core,
    h: &mut Handle<'_>,
    root: &Root,
    edge: &Path,
    level: usize,
) -> Result<()> {
    let last = edge.leaf();
    let end = last
        .used()
        .checked_sub(1)
        .and_then(|at| last.record(at))
        .map_or(0, |rec| rec.end(0));
    let start = end.min(u32::MAX.into()) as u32;
    let leaf = new_block(core, h, 0).await?;
    let mut child = leaf.nr();
    for depth in 1..edge.depth() - level {
        let block = new_block(core, h, depth as u16).await?;
        append_record(
            h,
            &block,
            RootKind::ExtentBlock,
            ExtentRec::interior(start, 0, child),
        );
        child = block.nr();
    }
    let step = &edge.interior()[level];
    append_record(
        h,
        &step.block,
        step.kind,
        ExtentRec::interior(start, 0, child),
    );
    {
        let mut data = h.modify(&last.block);
        ExtentBlock::of_mut(&mut data)
            .h_next_leaf_blk
            .set(leaf.nr().0);
    }
    root.set_last_leaf(h, leaf.nr());
    Ok(())
}

fn append_record(h: &mut Handle<'_>, block: &BlockRef, kind: RootKind, rec: ExtentRec) {
    let mut data = h.modify(block);
    let mut list = extent_list_mut(&mut data, kind);
    let at = list.as_ref().used().len();
    assert!(
        list.insert(at, rec),
        "the list was chosen because it has room"
    );
}

async fn new_block(core: &Core, h: &mut Handle<'_>, depth: u16) -> Result<BlockRef> {
    let place = alloc::claim_metadata(core, h).await?;
    let block = h.fresh(place.block, Kind::ExtentBlock);
    let suballoc = Suballoc {
        slot: place.slot,
        bit: place.bit,
        group: place.group,
    };
    ExtentBlock::init(
        &mut h.modify(&block),
        place.block,
        &core.geometry,
        suballoc,
        depth,
    );
    Ok(block)
}

/// Takes the rightmost leaf, whose records are gone or moved, off the tree, with the lists that
/// become empty. With the last leaf the root becomes an empty leaf itself.
pub(super) async fn drop_last_leaf(core: &Core, h: &mut Handle<'_>, root: &Root) -> Result<()> {
    let path = Path::rightmost(core, root).await?;
    let mut before = path.clone();
    let has_before = before.previous(core).await?;
    for level in (0..path.depth()).rev() {
        release_block(core, h, &path.steps[level + 1].block).await?;
        let step = &path.steps[level];
        let left = {
            let mut data = h.modify(&step.block);
            let mut list = extent_list_mut(&mut data, step.kind);
            list.remove(step.index);
            list.as_ref().used().len()
        };
        if left > 0 {
            break;
        }
    }
    if has_before {
        let leaf = &before.leaf().block;
        ExtentBlock::of_mut(&mut h.modify(leaf))
            .h_next_leaf_blk
            .set(0);
        root.set_last_leaf(h, leaf.nr());
    } else {
        let mut data = h.modify(&root.block);
        let list = extent_list_mut(&mut data, root.kind);
        list.records.fill(ExtentRec::zeroed());
        list.header.l_next_free_rec.set(0);
        list.header.l_tree_depth.set(0);
        drop(data);
        root.set_last_leaf(h, BlockNr::NONE);
    }
    Ok(())
}

async fn release_block(core: &Core, h: &mut Handle<'_>, block: &BlockRef) -> Result<()> {
    let place = ExtentBlock::of(&block.data()).suballoc();
    let Suballoc { slot, bit, group } = place;
    alloc::release_place(
        core,
        h,
        SystemFile::ExtentAlloc,
        slot,
        bit,
        group,
        block.nr(),
    )
    .await
}
