//! A whole tree against all of its rules: for tests, after each step, and for whoever doubts a tree.

use ondisk::{BlockNr, ExtentBlock};

use super::path::Path;
use super::root::Root;
use crate::core::Core;
use crate::error::Result;

/// Reads every block of the tree and checks what this room promises: packed leaves, touching ranges,
/// merged neighbours, next pointers, last leaf, clusters count.
pub async fn self_check(core: &Core, root: &Root) -> Result<()> {
    let mut path = Path::leftmost(core, root).await?;
    let depth = path.depth();
    let mut clusters = 0u64;
    let mut last_end = 0u64;
    loop {
        let leaf = path.leaf().clone();
        let nr = leaf.block.nr();
        let records = path.records(core, root)?;
        let fail = |field, found, rule| Err(Root::corrupt(nr, field, found, rule));
        if let Some(first) = records.first() {
            let first = u64::from(first.e_cpos.get());
            if first < last_end && !root.is_keyed() {
                return fail(
                    "e_cpos",
                    first,
                    "a leaf starts before the end of the one to its left",
                );
            }
        } else if depth > 0 {
            return fail("l_next_free_rec", 0, "a leaf is empty");
        }
        clusters += records
            .iter()
            .map(|rec| u64::from(rec.leaf_clusters()))
            .sum::<u64>();
        last_end = records.last().map_or(last_end, |rec| rec.end(0));
        check_ranges(&path, last_end)?;
        let used = leaf.used();
        let before = nr;
        if !path.next(core).await? {
            if depth > 0 && (root.last_leaf() != nr || next_leaf(&leaf) != 0) {
                return fail(
                    "last leaf",
                    root.last_leaf().0,
                    "not the rightmost leaf, or it has a next",
                );
            }
            if depth == 0 && root.last_leaf() != BlockNr::NONE {
                return fail("last leaf", root.last_leaf().0, "the root is the leaf");
            }
            break;
        }
        if next_leaf(&leaf) != path.leaf().block.nr().0 {
            return fail("h_next_leaf_blk", next_leaf(&leaf), "not the next leaf");
        }
        if used != leaf.capacity() {
            return Err(Root::corrupt(
                before,
                "l_next_free_rec",
                used as u64,
                "an inner leaf is not full",
            ));
        }
    }
    if clusters != u64::from(root.clusters()) {
        let found = root.clusters().into();
        return Err(Root::corrupt(
            root.block.nr(),
            "clusters",
            found,
            "not the sum of the records",
        ));
    }
    Ok(())
}

fn next_leaf(leaf: &super::path::Step) -> u64 {
    ExtentBlock::of(&leaf.block.data()).h_next_leaf_blk.get()
}

/// Interior records on the path: they touch their left neighbours, start with the leaf's first
/// record where they open a list that is not on the left edge, and end with the tree on the right.
fn check_ranges(path: &Path, leaf_end: u64) -> Result<()> {
    let Some(first) = path.leaf().list(|list| {
        list.used()
            .iter()
            .find(|rec| !rec.is_empty_leaf())
            .map(|rec| rec.e_cpos.get())
    }) else {
        return Ok(());
    };
    let mut left_edge = true;
    let right_edge = path
        .interior()
        .iter()
        .all(|step| step.index + 1 == step.used());
    for (level, step) in path.interior().iter().enumerate() {
        let nr = step.block.nr();
        let rec = step
            .record(step.index)
            .expect("a path follows used records");
        left_edge &= step.index == 0;
        let cpos = rec.e_cpos.get();
        let fail = |field, found, rule| Err(Root::corrupt(nr, field, found, rule));
        if left_edge && cpos != 0 {
            return fail("e_cpos", cpos.into(), "the left edge does not start at 0");
        }
        let opens = path.interior()[level + 1..]
            .iter()
            .all(|step| step.index == 0);
        if !left_edge && opens && cpos != first {
            return fail("e_cpos", cpos.into(), "a child starts elsewhere");
        }
        if step.index > 0 {
            let left = step.record(step.index - 1).expect("before a used record");
            if left.end(1) != u64::from(cpos) {
                return fail(
                    "e_int_clusters",
                    left.end(1),
                    "ranges of neighbours do not touch",
                );
            }
        }
        if right_edge && rec.end(1) != leaf_end {
            return fail(
                "e_int_clusters",
                rec.end(1),
                "the right edge does not end with the tree",
            );
        }
        if step.index + 1 < step.used() && level + 1 < path.interior().len() {
            let below = &path.interior()[level + 1];
            let last = below
                .record(below.used() - 1)
                .expect("an interior list has records");
            if last.end(1) != rec.end(1) {
                return fail(
                    "e_int_clusters",
                    rec.end(1),
                    "the child's range ends elsewhere",
                );
            }
        }
    }
    Ok(())
}
