//! Walking extent trees that may be damaged: every list is held to its rules on the way, each extent
//! block is looked into once, and a walk is never deeper or longer than the tree says it is.
//!
//! A walk gives the extents of one leaf at a time, in order; those that make no sense are findings and
//! are left out.

use ondisk::feature::{ExtentFlags, Incompat};
use ondisk::{
    BlockNr, Dinode, ExtentBlock, ExtentListRef, ExtentRec, Kind, RefcountBlock, RootKind,
    extent_list,
};

use super::view::Step;
use super::{Checker, Code, Spot};

/// An extent that makes sense.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extent {
    pub cpos: u32,
    pub clusters: u32,
    pub start: BlockNr,
    pub flags: ExtentFlags,
}

/// What a tree is of, which decides what its records mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TreeKind {
    /// Data of a file: positions are clusters, with holes.
    Data,
    /// Data without holes: a directory.
    Dense,
    /// Positions are hashes: index leaves, xattr buckets.
    Keyed,
    /// Positions are clusters, each extent is one refcount block.
    Refcounts,
}

/// What a walk begins with.
pub(super) struct Tree {
    pub kind: TreeKind,
    /// Where the root is, and whose tree it is.
    pub spot: Spot,
    /// Records the root has room for.
    pub capacity: usize,
    /// The inode has a refcount tree.
    pub may_share: bool,
    /// Only the positions are wanted: nothing is reported, no block is taken as used.
    pub quiet: bool,
}

struct List {
    nr: BlockNr,
    depth: u16,
    records: Vec<ExtentRec>,
    next: usize,
    /// Positions that the parent gives it.
    low: u64,
    high: u64,
}

/// A walk on its way.
pub(super) struct Walk {
    tree: Tree,
    stack: Vec<List>,
    /// Where the last extent ended.
    end: u64,
    /// Clusters so far.
    pub clusters: u64,
    /// The last leaf, and the one it says is next.
    leaf: Option<(BlockNr, BlockNr)>,
    /// Nothing was left out.
    pub whole: bool,
}

impl Walk {
    /// Where the last extent ended: logical clusters of a file.
    pub fn end(&self) -> u64 {
        self.end
    }
}

impl Checker<'_> {
    fn fault(&mut self, walk: &mut Walk, code: Code, nr: BlockNr, message: String) {
        walk.whole = false;
        if !walk.tree.quiet {
            let spot = Spot {
                block: Some(nr),
                ino: walk.tree.spot.ino,
            };
            self.find(code, spot, message);
        }
    }

    /// Begins with the root's list.
    pub(super) fn walk(&mut self, tree: Tree, list: ExtentListRef<'_>) -> Walk {
        let nr = tree.spot.block.unwrap_or(BlockNr::NONE);
        let capacity = tree.capacity;
        let mut walk = Walk {
            tree,
            stack: Vec::new(),
            end: 0,
            clusters: 0,
            leaf: None,
            whole: true,
        };
        let depth = list.depth();
        // Clusters have 32 bits: at the least, a tree this deep has that many.
        if depth > crate::limits::TREE_DEPTH_MAX {
            let message = format!("an extent list of depth {depth}");
            self.fault(&mut walk, Code::ExtentListDepth, nr, message);
            return walk;
        }
        let list = self.list(&mut walk, list, nr, capacity, depth, (0, u64::MAX));
        walk.stack.push(list);
        walk
    }

    fn list(
        &mut self,
        walk: &mut Walk,
        list: ExtentListRef<'_>,
        nr: BlockNr,
        capacity: usize,
        depth: u16,
        (low, high): (u64, u64),
    ) -> List {
        let (count, used) = (
            usize::from(list.header.l_count.get()),
            usize::from(list.header.l_next_free_rec.get()),
        );
        if count > capacity || count == 0 {
            let message = format!("an extent list of {count} records, {capacity} fit");
            self.fault(walk, Code::ExtentListCount, nr, message);
        }
        let most = count.min(capacity);
        if used > most {
            let message = format!("an extent list uses {used} records of {most}");
            self.fault(walk, Code::ExtentListFree, nr, message);
        }
        if list.depth() != depth {
            let message = format!("an extent list of depth {}, expected {depth}", list.depth());
            self.fault(walk, Code::ExtentListDepth, nr, message);
        }
        let used = used.min(most).min(list.records.len());
        List {
            nr,
            depth,
            records: list.records[..used].to_vec(),
            next: 0,
            low,
            high,
        }
    }

    /// The extents of the next leaf; `None` at the end.
    pub(super) async fn next_leaf(&mut self, walk: &mut Walk) -> Step<Option<Vec<Extent>>> {
        loop {
            let Some(list) = walk.stack.last_mut() else {
                return Ok(None);
            };
            if list.depth == 0 {
                let list = walk.stack.pop().expect("it was just seen");
                return Ok(Some(self.leaf(walk, &list)));
            }
            let (at, depth, nr) = (list.next, list.depth, list.nr);
            let Some(rec) = list.records.get(at).copied() else {
                walk.stack.pop();
                continue;
            };
            list.next += 1;
            let next_cpos = list
                .records
                .get(at + 1)
                .map(|next| u64::from(next.e_cpos.get()));
            let (low, high) = (list.low, list.high);
            if at == 0 && rec.int_clusters() == 0 {
                continue; // a rotation leaves such a one
            }
            let (cpos, end) = (u64::from(rec.e_cpos.get()), rec.end(depth));
            if cpos < low || end > high {
                let message =
                    format!("record {at} covers {cpos} to {end}, its list {low} to {high}");
                self.fault(walk, Code::ExtentChildRange, nr, message);
            }
            if next_cpos.is_some_and(|next| next < end) {
                let message = format!("record {at} ends at {end}, after the next one starts");
                self.fault(walk, Code::ExtentOverlap, nr, message);
            }
            if let Some(list) = self.child(walk, nr, at, &rec, depth - 1).await? {
                walk.stack.push(list);
            }
        }
    }

    /// The list of a child.
    async fn child(
        &mut self,
        walk: &mut Walk,
        parent: BlockNr,
        at: usize,
        rec: &ExtentRec,
        depth: u16,
    ) -> Step<Option<List>> {
        let nr = rec.block();
        if !self.holds(nr) {
            let message = format!("record {at} leads to block {nr}, outside the volume");
            self.fault(walk, Code::ExtentBlknoRange, parent, message);
            return Ok(None);
        }
        let bytes = if walk.tree.quiet {
            self.view
                .read(nr, Kind::ExtentBlock)
                .await?
                .ok()
                .map(|(bytes, _)| bytes)
        } else {
            self.read(nr, Kind::ExtentBlock, walk.tree.spot.ino).await?
        };
        let Some(bytes) = bytes else {
            walk.whole = false;
            return Ok(None);
        };
        let block = ExtentBlock::of(&bytes);
        if block.h_signature != ExtentBlock::SIGNATURE {
            let message = format!(
                "record {at} of block {parent} leads to block {nr}, which is no extent block"
            );
            self.fault(walk, Code::ExtentEbInvalid, nr, message);
            return Ok(None);
        }
        if block.h_blkno.get() != nr.0 {
            let message = format!("the extent block calls itself {}", block.h_blkno.get());
            self.fault(walk, Code::EbBlkno, nr, message);
        }
        let generation = self.geometry.fs_generation.0;
        if block.h_fs_generation.get() != generation {
            let found = block.h_fs_generation.get();
            let message = format!(
                "an extent block of generation {found:#x}, the volume's is {generation:#x}"
            );
            self.fault(walk, Code::EbGen, nr, message);
        }
        if !walk.tree.quiet
            && !self.use_metadata(nr, "an extent block", block.suballoc(), walk.tree.spot)
        {
            walk.whole = false;
            return Ok(None);
        }
        let next = BlockNr(block.h_next_leaf_blk.get());
        if depth == 0 {
            if let Some((leaf, said)) = walk.leaf.filter(|(_, said)| *said != nr) {
                let message = format!("leaf {leaf} says that {said} is the next one, it is {nr}");
                self.fault(walk, Code::ExtentLeafLink, leaf, message);
            }
            walk.leaf = Some((nr, next));
        } else if next.is_some() {
            let message = format!("a block above the leaves has a next leaf, {next}");
            self.fault(walk, Code::ExtentLeafLink, nr, message);
        }
        let capacity = ondisk::capacity::extents_in_extent_block(bytes.len());
        let range = (u64::from(rec.e_cpos.get()), rec.end(depth + 1));
        let list = extent_list(&bytes, RootKind::ExtentBlock);
        Ok(Some(self.list(walk, list, nr, capacity, depth, range)))
    }

    fn leaf(&mut self, walk: &mut Walk, list: &List) -> Vec<Extent> {
        let mut extents = Vec::with_capacity(list.records.len());
        for (at, rec) in list.records.iter().enumerate() {
            if rec.is_empty_leaf() {
                if at > 0 {
                    let message = format!("record {at} covers nothing");
                    self.fault(walk, Code::ExtentRecEmpty, list.nr, message);
                }
                continue;
            }
            let (cpos, end) = (u64::from(rec.e_cpos.get()), rec.end(0));
            let start_ok = match walk.tree.kind {
                TreeKind::Dense => cpos == walk.end,
                _ => cpos >= walk.end,
            };
            if !start_ok {
                let code = match walk.tree.kind {
                    TreeKind::Dense => Code::NoHoles,
                    _ => Code::ExtentOverlap,
                };
                let message = format!(
                    "record {at} starts at {cpos}, the last one ended at {}",
                    walk.end
                );
                self.fault(walk, code, list.nr, message);
            }
            if cpos < list.low || end > list.high {
                let (low, high) = (list.low, list.high);
                let message =
                    format!("record {at} covers {cpos} to {end}, its list {low} to {high}");
                self.fault(walk, Code::ExtentChildRange, list.nr, message);
            }
            walk.end = walk.end.max(match walk.tree.kind {
                // The next hash is at least one more; how many clusters lie between says nothing.
                TreeKind::Keyed => cpos + 1,
                _ => end,
            });
            walk.clusters += u64::from(rec.leaf_clusters());
            if let Some(extent) = self.extent(walk, list.nr, at, rec) {
                extents.push(extent);
            }
        }
        extents
    }

    /// The extent of a record, if it lies where one can.
    fn extent(
        &mut self,
        walk: &mut Walk,
        nr: BlockNr,
        at: usize,
        rec: &ExtentRec,
    ) -> Option<Extent> {
        let (start, mut clusters) = (rec.block(), u32::from(rec.leaf_clusters()));
        if !self.holds(start) {
            let message = format!("record {at} leads to block {start}, outside the volume");
            self.fault(walk, Code::ExtentBlknoRange, nr, message);
            return None;
        }
        let mut start = start;
        if walk.tree.kind != TreeKind::Refcounts {
            let into = self.geometry.block_in_cluster(start);
            if into != 0 {
                let message =
                    format!("record {at} leads to block {start}, which does not start a cluster");
                self.fault(walk, Code::ExtentBlknoUnaligned, nr, message);
                start = BlockNr(start.0 - u64::from(into));
            }
            let first = start.0 / u64::from(self.geometry.blocks_per_cluster());
            let left = u64::from(self.geometry.total_clusters).saturating_sub(first);
            if u64::from(clusters) > left {
                let message =
                    format!("record {at} has {clusters} clusters from {first}, {left} are left");
                self.fault(walk, Code::ExtentClustersOverrun, nr, message);
                clusters = left as u32;
            }
        }
        let flags = rec.flags();
        if flags.contains(ExtentFlags::UNWRITTEN) && !self.geometry.has_unwritten() {
            let message = format!("record {at} is unwritten");
            self.fault(walk, Code::ExtentMarkedUnwritten, nr, message);
        }
        let shares = walk.tree.may_share && self.geometry.has(Incompat::REFCOUNT_TREE);
        let mut flags = flags;
        if flags.contains(ExtentFlags::REFCOUNTED) && !shares {
            let message = format!("record {at} is shared, but its inode has no refcount tree");
            self.fault(walk, Code::ExtentMarkedRefcounted, nr, message);
            flags.remove(ExtentFlags::REFCOUNTED);
        }
        Some(Extent {
            cpos: rec.e_cpos.get(),
            clusters,
            start,
            flags,
        })
    }

    /// What the root says of the whole tree, once the walk is at its end.
    pub(super) fn finish_walk(&mut self, walk: &mut Walk, last_leaf: u64, of: &str) {
        if !walk.whole {
            return;
        }
        let root = walk.tree.spot.block.unwrap_or(BlockNr::NONE);
        let (last, next) = walk.leaf.unwrap_or_default();
        if next.is_some() {
            let message = format!("the last leaf says that {next} is the next one");
            self.fault(walk, Code::ExtentLeafLink, last, message);
        }
        if last.0 != last_leaf {
            let message = format!("{of}: the last leaf is said to be {last_leaf}, it is {last}");
            self.fault(walk, Code::ExtentLeafLink, root, message);
        }
    }

    /// Where a file begins; nothing is reported.
    pub(super) async fn first_extent(
        &mut self,
        nr: BlockNr,
        bytes: &[u8],
    ) -> Step<Option<BlockNr>> {
        if Dinode::of(bytes).body() != ondisk::Body::Extents {
            return Ok(None);
        }
        let mut walk = self.quiet_walk(nr, bytes);
        while let Some(leaf) = self.next_leaf(&mut walk).await? {
            if let Some(first) = leaf.first() {
                return Ok((first.cpos == 0).then_some(first.start));
            }
        }
        Ok(None)
    }

    /// A walk over the data of an inode whose tree was, or will be, checked elsewhere.
    pub(super) fn quiet_walk(&mut self, nr: BlockNr, bytes: &[u8]) -> Walk {
        let tree = Tree {
            kind: TreeKind::Data,
            spot: Spot::ino(nr),
            capacity: RootKind::Dinode.capacity(bytes),
            may_share: true,
            quiet: true,
        };
        self.walk(tree, extent_list(bytes, RootKind::Dinode))
    }
}

/// A refcount block is not told apart from others by its record.
pub(super) fn is_refcount_block(bytes: &[u8]) -> bool {
    RefcountBlock::of(bytes).rf_signature == RefcountBlock::SIGNATURE
}
