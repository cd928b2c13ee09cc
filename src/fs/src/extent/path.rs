//! Walking a tree: from the root down to a leaf, and from leaf to leaf, checking on the way what a
//! single block's validation cannot see.
//!
//! Depth falls by exactly one with each step and is bounded at the root, so that no arrangement of
//! pointers on disk makes a walk endless. Neighbours are found through the parents, never through
//! the leaves' next pointers.

use ondisk::{BlockNr, ExtentListRef, ExtentRec, Kind, RootKind, extent_list};

use super::root::Root;
use crate::cache::BlockRef;
use crate::core::Core;
use crate::error::Result;
use crate::limits::TREE_DEPTH_MAX;

/// One list on the way down.
#[derive(Debug, Clone)]
pub(super) struct Step {
    pub block: BlockRef,
    pub kind: RootKind,
    /// The record that was followed. 0 in the leaf.
    pub index: usize,
}

impl Step {
    /// Looks at the list.
    pub fn list<T>(&self, look: impl FnOnce(ExtentListRef<'_>) -> T) -> T {
        look(extent_list(&self.block.data(), self.kind))
    }

    pub fn used(&self) -> usize {
        self.list(|list| list.used().len())
    }

    pub fn capacity(&self) -> usize {
        self.list(|list| list.records.len())
    }

    pub fn record(&self, index: usize) -> Option<ExtentRec> {
        self.list(|list| list.used().get(index).copied())
    }
}

/// Root first, leaf last.
#[derive(Debug, Clone)]
pub(super) struct Path {
    pub steps: Vec<Step>,
}

/// Which child to follow.
#[derive(Clone, Copy)]
enum Way {
    /// The one a key belongs to: the last that does not start behind it.
    Key(u32),
    First,
    Last,
}

impl Path {
    /// To the leaf that a key belongs to.
    pub async fn find(core: &Core, root: &Root, key: u32) -> Result<Path> {
        Path::begin(root)?.descend(core, Way::Key(key)).await
    }

    #[cfg(test)]
    pub async fn leftmost(core: &Core, root: &Root) -> Result<Path> {
        Path::begin(root)?.descend(core, Way::First).await
    }

    pub async fn rightmost(core: &Core, root: &Root) -> Result<Path> {
        Path::begin(root)?.descend(core, Way::Last).await
    }

    fn begin(root: &Root) -> Result<Path> {
        let step = Step {
            block: root.block.clone(),
            kind: root.kind,
            index: 0,
        };
        let nr = root.block.nr();
        let (depth, next_free, room) = step.list(|list| {
            (
                list.depth(),
                list.header.l_next_free_rec.get(),
                list.records.len(),
            )
        });
        if depth > TREE_DEPTH_MAX {
            return Err(Root::corrupt(
                nr,
                "l_tree_depth",
                depth.into(),
                "deeper than any tree grows",
            ));
        }
        if usize::from(next_free) > room || room == 0 {
            return Err(Root::corrupt(
                nr,
                "l_next_free_rec",
                next_free.into(),
                "more records than fit",
            ));
        }
        Ok(Path { steps: vec![step] })
    }

    /// Goes on from the last step to a leaf.
    async fn descend(mut self, core: &Core, way: Way) -> Result<Path> {
        loop {
            let step = self.steps.last_mut().expect("a path has its root");
            let nr = step.block.nr();
            let depth = step.list(|list| list.depth());
            if depth == 0 {
                return Ok(self);
            }
            step.check_interior()?;
            step.index = step.list(|list| match way {
                Way::First => 0,
                Way::Last => list.used().len() - 1,
                Way::Key(key) => list
                    .used()
                    .partition_point(|rec| rec.e_cpos.get() <= key)
                    .saturating_sub(1),
            });
            let child = step
                .record(step.index)
                .expect("the index is of a used record")
                .block();
            self.steps.push(child_of(core, nr, depth, child).await?);
        }
    }

    pub fn leaf(&self) -> &Step {
        self.steps.last().expect("a path has its root")
    }

    /// The lists above the leaf, root first.
    pub fn interior(&self) -> &[Step] {
        &self.steps[..self.steps.len() - 1]
    }

    /// Tree depth: 0 if the root is the leaf.
    pub fn depth(&self) -> usize {
        self.steps.len() - 1
    }

    /// The leaf's records, without a first one that is empty; checked.
    pub fn records(&self, core: &Core, root: &Root) -> Result<Vec<ExtentRec>> {
        let leaf = self.leaf();
        let records: Vec<ExtentRec> = leaf.list(|list| list.used().to_vec());
        let skip = usize::from(records.first().is_some_and(|rec| rec.is_empty_leaf()));
        let records = records[skip..].to_vec();
        check_leaf(core, root, leaf.block.nr(), &records)?;
        Ok(records)
    }

    /// To the next leaf; false at the last one.
    pub async fn next(&mut self, core: &Core) -> Result<bool> {
        self.sideways(
            core,
            |index, used| (index + 1 < used).then_some(index + 1),
            Way::First,
        )
        .await
    }

    /// To the leaf before; false at the first one.
    pub async fn previous(&mut self, core: &Core) -> Result<bool> {
        self.sideways(core, |index, _| index.checked_sub(1), Way::Last)
            .await
    }

    async fn sideways(
        &mut self,
        core: &Core,
        neighbour: impl Fn(usize, usize) -> Option<usize>,
        way: Way,
    ) -> Result<bool> {
        for level in (0..self.depth()).rev() {
            let step = &self.steps[level];
            let Some(index) = neighbour(step.index, step.used()) else {
                continue;
            };
            let nr = step.block.nr();
            let depth = step.list(|list| list.depth());
            let child = step.record(index).map_or(BlockNr(0), |rec| rec.block());
            let child = child_of(core, nr, depth, child).await?;
            self.steps.truncate(level + 1);
            self.steps[level].index = index;
            self.steps.push(child);
            let path = Path {
                steps: std::mem::take(&mut self.steps),
            };
            *self = path.descend(core, way).await?;
            return Ok(true);
        }
        Ok(false)
    }
}

impl Step {
    fn check_interior(&self) -> Result<()> {
        let nr = self.block.nr();
        self.list(|list| {
            if list.used().is_empty() {
                return Err(Root::corrupt(
                    nr,
                    "l_next_free_rec",
                    0,
                    "an interior list has children",
                ));
            }
            match list
                .used()
                .windows(2)
                .find(|pair| pair[0].e_cpos.get() >= pair[1].e_cpos.get())
            {
                None => Ok(()),
                Some(pair) => Err(Root::corrupt(
                    nr,
                    "e_cpos",
                    pair[1].e_cpos.get().into(),
                    "interior records do not ascend",
                )),
            }
        })
    }
}

/// Reads the child that a list of the given depth names.
async fn child_of(core: &Core, parent: BlockNr, depth: u16, child: BlockNr) -> Result<Step> {
    if !core.geometry.holds_block(child) {
        return Err(Root::corrupt(
            parent,
            "e_blkno",
            child.0,
            "a child outside the volume",
        ));
    }
    let block = core.cache.read(child, Kind::ExtentBlock).await?;
    let step = Step {
        block,
        kind: RootKind::ExtentBlock,
        index: 0,
    };
    let found = step.list(|list| list.depth());
    if found + 1 != depth {
        return Err(Root::corrupt(
            child,
            "l_tree_depth",
            found.into(),
            "not one less than its parent's",
        ));
    }
    Ok(step)
}

/// Records of a leaf ascend, do not overlap, are not empty, and lie inside the volume.
pub(super) fn check_leaf(
    core: &Core,
    root: &Root,
    nr: BlockNr,
    records: &[ExtentRec],
) -> Result<()> {
    let mut last: Option<&ExtentRec> = None;
    for rec in records {
        let cpos = rec.e_cpos.get();
        if rec.is_empty_leaf() {
            return Err(Root::corrupt(
                nr,
                "e_leaf_clusters",
                0,
                "only a first record may be empty",
            ));
        }
        if let Some(last) = last {
            let ascends = if root.is_keyed() {
                last.e_cpos.get() < cpos
            } else {
                last.end(0) <= u64::from(cpos)
            };
            if !ascends {
                return Err(Root::corrupt(
                    nr,
                    "e_cpos",
                    cpos.into(),
                    "records overlap or do not ascend",
                ));
            }
        }
        if !root.is_keyed() && rec.end(0) > 1 << 32 {
            return Err(Root::corrupt(
                nr,
                "e_cpos",
                cpos.into(),
                "the record ends beyond 2^32 clusters",
            ));
        }
        check_place(core, root, nr, rec)?;
        last = Some(rec);
    }
    Ok(())
}

fn check_place(core: &Core, root: &Root, nr: BlockNr, rec: &ExtentRec) -> Result<()> {
    let start = rec.block();
    let inside = if root.holds_clusters() {
        core.geometry.block_in_cluster(start) == 0
            && core.geometry.cluster_of(start).is_some_and(|cluster| {
                core.geometry
                    .holds_clusters(cluster, rec.leaf_clusters().into())
            })
    } else {
        core.geometry.holds_block(start)
    };
    if inside && start.0 != 0 {
        return Ok(());
    }
    Err(Root::corrupt(
        nr,
        "e_blkno",
        start.0,
        "clusters outside the volume or off a cluster's start",
    ))
}
