//! Reading extent trees whole or by hash: the tree of buckets, whose positions are name hashes; those of large values,
//! whose positions are clusters; and refcount trees, whose positions are clusters of the volume. Called by
//! [`crate::xattr`] and [`crate::refcount`]; changes go through [`crate::extent`].
//!
//! An extent of buckets covers every hash from its own `cpos` up to the next extent's, whatever its length (and a
//! refcount leaf every cluster): so the search here is for the last record that does not start behind the position, not
//! for one that contains it.

use std::collections::HashSet;

use ondisk::{BlockNr, Check, Corrupt, ExtentRec, Kind, RootKind, Structure, Why, extent_list};

use crate::cache::BlockRef;
use crate::core::Core;
use crate::error::Result;
use crate::limits::TREE_DEPTH_MAX;

/// All of a tree: its extents by position, and the extent blocks below the root.
#[derive(Default)]
pub(crate) struct Tree {
    pub extents: Vec<ExtentRec>,
    pub nodes: Vec<BlockRef>,
}

/// One node while it is read: where its list is, and what its leaf records lead to.
#[derive(Clone, Copy)]
struct Level {
    root: RootKind,
    list: RootKind,
    /// The depth that its parent promises.
    depth: Option<u16>,
}

impl Level {
    fn top(root: RootKind) -> Level {
        Level {
            root,
            list: root,
            depth: None,
        }
    }

    fn below(root: RootKind, depth: u16) -> Level {
        Level {
            root,
            list: RootKind::ExtentBlock,
            depth: Some(depth),
        }
    }
}

/// Everything below a root. A tree that loops, or is deeper than any volume needs, is corrupt.
pub(crate) async fn read(core: &Core, root: &BlockRef, kind: RootKind) -> Result<Tree> {
    let mut tree = Tree::default();
    let mut seen = HashSet::new();
    // Children still to visit, the next one last: the walk is depth first, left to right.
    let mut waiting: Vec<(u16, BlockNr)> = Vec::new();
    let (mut depth, mut records) = records_of(core, root, Level::top(kind))?;
    loop {
        if depth == 0 {
            tree.extents
                .extend(records.iter().filter(|rec| !rec.is_empty_leaf()));
        } else {
            waiting.extend(records.iter().rev().map(|rec| (depth - 1, rec.block())));
        }
        let Some((next, nr)) = waiting.pop() else {
            return Ok(tree);
        };
        if !seen.insert(nr) {
            return Err(corrupt(
                root.nr(),
                "e_blkno",
                nr.0,
                "two branches of the tree meet there",
            )
            .into());
        }
        let node = core.cache.read(nr, Kind::ExtentBlock).await?;
        (depth, records) = records_of(core, &node, Level::below(kind, next))?;
        tree.nodes.push(node);
    }
}

/// The leaf record that a position belongs to, and the position where the next one starts (2^32 behind the last);
/// `None` in an empty tree.
pub(crate) async fn find(
    core: &Core,
    root: &BlockRef,
    kind: RootKind,
    position: u32,
) -> Result<Option<(ExtentRec, u64)>> {
    let (mut depth, mut records) = records_of(core, root, Level::top(kind))?;
    let mut end = 1u64 << 32;
    loop {
        if depth == 0 {
            records.retain(|rec| !rec.is_empty_leaf());
        }
        let index = records
            .partition_point(|rec| rec.e_cpos.get() <= position)
            .saturating_sub(1);
        let Some(rec) = records.get(index).copied() else {
            return Ok(None);
        };
        if let Some(next) = records.get(index + 1) {
            end = end.min(u64::from(next.e_cpos.get()));
        }
        if depth == 0 {
            return Ok(Some((rec, end)));
        }
        let node = core.cache.read(rec.block(), Kind::ExtentBlock).await?;
        (depth, records) = records_of(core, &node, Level::below(kind, depth - 1))?;
    }
}

/// The used records of one node, with its depth, which must be one less than its parent's. What they lead to is inside
/// the volume: whoever follows them need not check again.
fn records_of(
    core: &Core,
    block: &BlockRef,
    level: Level,
) -> Result<(u16, Vec<ExtentRec>), Corrupt> {
    let data = block.data();
    let list = extent_list(&data, level.list);
    let (nr, depth) = (block.nr(), list.depth());
    if level.depth.is_some_and(|expected| expected != depth) || depth > TREE_DEPTH_MAX {
        return Err(corrupt(
            nr,
            "l_tree_depth",
            u64::from(depth),
            "does not fit the level of the tree",
        ));
    }
    let used = list.header.l_next_free_rec.get();
    if usize::from(used) > list.records.len() {
        return Err(corrupt(
            nr,
            "l_next_free_rec",
            u64::from(used),
            "more than the list has room for",
        ));
    }
    let geometry = &core.geometry;
    for rec in list.used() {
        let start = rec.block();
        let inside = if depth > 0 || level.root == RootKind::Refcount {
            geometry.holds_block(start)
        } else {
            rec.is_empty_leaf()
                || geometry.holds_block(start)
                    && geometry.block_in_cluster(start) == 0
                    && geometry
                        .cluster_of(start)
                        .is_some_and(|c| geometry.holds_clusters(c, rec.clusters(0)))
        };
        if !inside {
            return Err(corrupt(nr, "e_blkno", start.0, "leads outside the volume"));
        }
    }
    Ok((depth, list.used().to_vec()))
}

/// The error for a broken rule of an extent list.
pub(crate) fn corrupt(
    block: BlockNr,
    field: &'static str,
    found: u64,
    rule: &'static str,
) -> Corrupt {
    Check::new(Structure::ExtentList, block).fail(Why::Value { field, found, rule })
}
