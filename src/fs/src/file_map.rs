//! Where the blocks of a system file are: for files that are read before, or beside, the journal
//! (the journals themselves, the slot map), straight from the device.
//!
//! Such files have no holes and never change while the volume is mounted.

use ondisk::feature::ExtentFlags;
use ondisk::{BlockNr, Check, Dinode, ExtentListRef, Geometry, Kind, RootKind, Structure, Why};

use crate::cache::Cache;
use crate::error::Result;
use crate::limits::TREE_DEPTH_MAX;

/// A run of neighbouring blocks.
#[derive(Debug, Clone, Copy)]
struct Run {
    /// Its first block in the file.
    first: u64,
    start: BlockNr,
    blocks: u64,
}

/// A file's blocks, all of them.
#[derive(Debug, Clone)]
pub(crate) struct FileMap {
    runs: Vec<Run>,
    blocks: u64,
}

impl FileMap {
    /// The map of the file whose (checked) dinode these bytes are.
    pub async fn of(
        cache: &Cache,
        geometry: &Geometry,
        nr: BlockNr,
        dinode: &[u8],
    ) -> Result<Self> {
        let size = Dinode::of(dinode).i_size.get();
        let check = Check::new(Structure::ExtentList, nr);
        let mut walk = Walk {
            geometry,
            check,
            runs: Vec::new(),
            clusters: 0,
        };
        let mut pending = walk.list(ondisk::extent_list(dinode, RootKind::Dinode))?;
        // Each node that is read has a record; more nodes than clusters is a tree that turns back.
        let mut nodes_left =
            u64::from(Dinode::of(dinode).i_clusters.get()) + u64::from(TREE_DEPTH_MAX);
        while let Some((child, depth)) = pending.pop() {
            nodes_left = nodes_left.checked_sub(1).ok_or_else(|| {
                let rule = "the tree has more nodes than the file has clusters";
                check.fail(Why::Value {
                    field: "extent block",
                    found: child.0,
                    rule,
                })
            })?;
            let block = cache.load(child, Kind::ExtentBlock).await?;
            let list = ondisk::extent_list(&block, RootKind::ExtentBlock);
            Check::new(Structure::ExtentBlock, child).equals(
                "l_tree_depth",
                list.depth(),
                depth,
            )?;
            pending.extend(walk.list(list)?);
        }
        let blocks = size >> geometry.block_size_bits;
        let mapped = walk.clusters * u64::from(geometry.blocks_per_cluster());
        check.at_most("i_size in blocks", blocks, mapped)?;
        Ok(FileMap {
            runs: walk.runs,
            blocks,
        })
    }

    /// Blocks of the file.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Where a block of the file is.
    ///
    /// # Panics
    /// Past the file's end: a program error.
    pub fn block(&self, index: u64) -> BlockNr {
        self.run(index).0
    }

    /// Where a block of the file is, and how many neighbours from there on follow it on the device.
    pub fn run(&self, index: u64) -> (BlockNr, u64) {
        assert!(
            index < self.blocks,
            "block {index} of a file of {}",
            self.blocks
        );
        let at = self.runs.partition_point(|run| run.first <= index) - 1;
        let run = &self.runs[at];
        let inside = index - run.first;
        (BlockNr(run.start.0 + inside), run.blocks - inside)
    }
}

struct Walk<'a> {
    geometry: &'a Geometry,
    check: Check,
    runs: Vec<Run>,
    clusters: u64,
}

impl Walk<'_> {
    /// Takes a list's extents in, or gives its children with their depth, the leftmost last.
    fn list(&mut self, list: ExtentListRef<'_>) -> Result<Vec<(BlockNr, u16)>> {
        let depth = list.depth();
        self.check.at_most("l_tree_depth", depth, TREE_DEPTH_MAX)?;
        if depth > 0 {
            let children = list.used().iter().rev();
            return Ok(children.map(|rec| (rec.block(), depth - 1)).collect());
        }
        for rec in list.used().iter().filter(|rec| !rec.is_empty_leaf()) {
            let rule = "the file must have no holes";
            let (cpos, clusters) = (u64::from(rec.e_cpos.get()), u64::from(rec.leaf_clusters()));
            self.check
                .rule(cpos == self.clusters, "e_cpos", cpos, rule)?;
            let written = !rec.flags().contains(ExtentFlags::UNWRITTEN);
            self.check
                .rule(written, "e_flags", rec.flags().bits(), "must be written")?;
            let blocks = clusters * u64::from(self.geometry.blocks_per_cluster());
            let (start, total) = (rec.block(), self.geometry.total_blocks());
            let end = start.0.checked_add(blocks);
            let inside = start.0 > 0 && end.is_some_and(|end| end <= total);
            self.check
                .rule(inside, "e_blkno", start.0, "must lie on the volume")?;
            let first = self.clusters * u64::from(self.geometry.blocks_per_cluster());
            match self.runs.last_mut() {
                Some(last) if last.start.0 + last.blocks == start.0 => last.blocks += blocks,
                _ => self.runs.push(Run {
                    first,
                    start,
                    blocks,
                }),
            }
            self.clusters += clusters;
        }
        Ok(Vec::new())
    }
}
