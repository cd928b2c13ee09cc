//! Refcount trees: their own form when an inode first leads to them, and, once every inode was seen,
//! their records against the extents that share clusters.

use ondisk::{
    BlockNr, Kind, RefcountBlock, RefcountRec, RootKind, capacity, extent_list, refcount_list,
};

use super::bits::Parts;
use super::extents::{Tree, TreeKind, Walk, is_refcount_block};
use super::report::Phase;
use super::view::Step;
use super::{Checker, Clusters, Code, Spot};

/// A tree, and who uses it.
pub(super) struct RefTree {
    /// An inode that does.
    ino: BlockNr,
    files: u32,
    /// The root is one.
    sound: bool,
    /// Extents that share, as (first cluster, count).
    shared: Vec<(u32, u32)>,
}

/// A walk over a tree's records.
struct Records {
    /// Blocks above the leaves; `None` if the root has the records itself.
    walk: Option<Walk>,
    pending: Vec<BlockNr>,
}

impl Checker<'_> {
    /// An inode says that its tree is here.
    pub(super) async fn check_refcount_root(&mut self, ino: BlockNr, root: BlockNr) -> Step<()> {
        if let Some(tree) = self.trees.get_mut(&root) {
            tree.files += 1;
            if !tree.sound {
                let message = format!("refcount tree {root} is none");
                self.find(Code::RefcountRootBlockInvalid, Spot::of(ino, root), message);
            }
            return Ok(());
        }
        let sound = self.check_refcount_tree(ino, root).await?;
        if !sound {
            let message = format!("refcount tree {root} is none");
            self.find(Code::RefcountRootBlockInvalid, Spot::of(ino, root), message);
        }
        self.trees.insert(
            root,
            RefTree {
                ino,
                files: 1,
                sound,
                shared: Vec::new(),
            },
        );
        Ok(())
    }

    /// A refcount block's own fields. `None` if it is none.
    async fn refcount_block(
        &mut self,
        ino: BlockNr,
        nr: BlockNr,
        root: BlockNr,
    ) -> Step<Option<Vec<u8>>> {
        let spot = Spot::of(ino, nr);
        if !self.holds(nr) {
            return Ok(None);
        }
        let Some(bytes) = self.read(nr, Kind::RefcountBlock, Some(ino)).await? else {
            return Ok(None);
        };
        if !is_refcount_block(&bytes) {
            return Ok(None);
        }
        let block = *RefcountBlock::of(&bytes);
        if block.rf_blkno.get() != nr.0 {
            let message = format!("the refcount block calls itself {}", block.rf_blkno.get());
            self.find(Code::RbBlkno, spot, message);
        }
        let generation = self.geometry.fs_generation.0;
        if block.rf_fs_generation.get() != generation {
            let found = block.rf_fs_generation.get();
            let message = format!(
                "a refcount block of generation {found:#x}, the volume's is {generation:#x}"
            );
            self.find(Code::RbGen, spot, message);
            return Ok(None);
        }
        let parent = if nr == root { BlockNr::NONE } else { root };
        if block.rf_parent.get() != parent.0 {
            let message = format!("the block says that its root is {}", block.rf_parent.get());
            self.find(Code::RbParent, spot, message);
        }
        if !self.use_metadata(nr, "a refcount block", block.suballoc(), spot) {
            return Ok(None);
        }
        Ok(Some(bytes))
    }

    /// False if there is no tree.
    async fn check_refcount_tree(&mut self, ino: BlockNr, root: BlockNr) -> Step<bool> {
        let Some(bytes) = self.refcount_block(ino, root, root).await? else {
            return Ok(false);
        };
        let block = *RefcountBlock::of(&bytes);
        let mut end = 0;
        if !block.is_tree() {
            self.check_records(ino, root, &bytes, &mut end, (0, u64::MAX));
            return Ok(true);
        }
        let mut walk = self.refcount_walk(ino, root, &bytes, false);
        while let Some(leaf) = self.next_leaf(&mut walk).await? {
            for (at, extent) in leaf.iter().enumerate() {
                let Some(bytes) = self.refcount_block(ino, extent.start, root).await? else {
                    let message =
                        format!("block {} of tree {root} is no refcount block", extent.start);
                    self.find(
                        Code::RefcountBlockInvalid,
                        Spot::of(ino, extent.start),
                        message,
                    );
                    continue;
                };
                let low = u64::from(extent.cpos);
                let high = leaf
                    .get(at + 1)
                    .map_or(u64::MAX, |next| u64::from(next.cpos));
                self.check_records(ino, extent.start, &bytes, &mut end, (low, high));
                if refcount_list(&bytes).used().is_empty() {
                    let message = "the leaf has no record";
                    self.find(
                        Code::RefcountListEmpty,
                        Spot::of(ino, extent.start),
                        message,
                    );
                }
            }
        }
        self.finish_walk(&mut walk, block.rf_last_eb_blk.get(), "the refcount tree");
        if walk.whole && u64::from(block.rf_clusters.get()) != walk.clusters {
            let message = format!(
                "the tree counts {} leaves, it has {}",
                block.rf_clusters.get(),
                walk.clusters
            );
            self.find(Code::RefcountClusters, Spot::of(ino, root), message);
        }
        Ok(true)
    }

    fn refcount_walk(&mut self, ino: BlockNr, root: BlockNr, bytes: &[u8], quiet: bool) -> Walk {
        let tree = Tree {
            kind: TreeKind::Refcounts,
            spot: Spot::of(ino, root),
            capacity: RootKind::Refcount.capacity(bytes),
            may_share: false,
            quiet,
        };
        self.walk(tree, extent_list(bytes, RootKind::Refcount))
    }

    fn check_records(
        &mut self,
        ino: BlockNr,
        nr: BlockNr,
        bytes: &[u8],
        end: &mut u64,
        (low, high): (u64, u64),
    ) {
        let spot = Spot::of(ino, nr);
        let list = refcount_list(bytes);
        let most = capacity::refcount_records(bytes.len());
        let (count, used) = (
            usize::from(list.header.rl_count.get()),
            usize::from(list.header.rl_used.get()),
        );
        if count > most {
            let message = format!("a list of {count} records, {most} fit");
            self.find(Code::RefcountListCount, spot, message);
        }
        if used > count.min(most) {
            let message = format!("a list uses {used} records of {}", count.min(most));
            self.find(Code::RefcountListUsed, spot, message);
        }
        let clusters = u64::from(self.geometry.total_clusters);
        for (at, rec) in list.used().iter().enumerate() {
            let (first, last) = (rec.r_cpos.get(), rec.end());
            if last > clusters || rec.r_clusters.get() == 0 {
                let message = format!("record {at}: clusters {first} to {last} of {clusters}");
                self.find(Code::RefcountClusterRange, spot, message);
                continue;
            }
            if first < *end || first < low || first >= high {
                let message = format!(
                    "record {at} starts at {first}, expected from {} in {low} to {high}",
                    *end
                );
                self.find(Code::RefcountClusterCollision, spot, message);
            }
            *end = (*end).max(last);
        }
    }

    /// An extent shares its clusters.
    pub(super) fn share_clusters(&mut self, root: BlockNr, first: u32, clusters: u32) {
        if let Some(tree) = self.trees.get_mut(&root) {
            tree.shared.push((first, clusters));
        }
    }

    pub(super) async fn check_refcounts(&mut self) -> Step<()> {
        let trees = std::mem::take(&mut self.trees);
        self.report.begin(Phase::Refcounts, trees.len() as u64)?;
        for (root, tree) in trees {
            self.compare_tree(root, tree).await?;
            self.report.advance(1)?;
        }
        Ok(())
    }

    async fn compare_tree(&mut self, root: BlockNr, tree: RefTree) -> Step<()> {
        let spot = Spot::of(tree.ino, root);
        if !tree.sound {
            for (first, clusters) in tree.shared {
                self.use_clusters(first.into(), clusters.into(), "shared without a tree", spot);
            }
            return Ok(());
        }
        let Ok((bytes, _)) = self.view.read(root, Kind::RefcountBlock).await? else {
            return Ok(());
        };
        let block = *RefcountBlock::of(&bytes);
        if block.rf_count.get() != tree.files {
            let message = format!(
                "the tree counts {} inodes, {} use it",
                block.rf_count.get(),
                tree.files
            );
            self.find(Code::RefcountCount, spot, message);
        }
        let mut records = Records {
            walk: None,
            pending: vec![root],
        };
        if block.is_tree() {
            records.walk = Some(self.refcount_walk(tree.ino, root, &bytes, true));
            records.pending.clear();
        }
        self.compare_records(spot, records, tree.shared).await
    }

    /// The records of the next block.
    async fn next_records(&mut self, records: &mut Records) -> Step<Option<Vec<RefcountRec>>> {
        loop {
            if let Some(nr) = records.pending.pop() {
                let Ok((bytes, _)) = self.view.read(nr, Kind::RefcountBlock).await? else {
                    continue;
                };
                if is_refcount_block(&bytes) {
                    return Ok(Some(refcount_list(&bytes).used().to_vec()));
                }
                continue;
            }
            let Some(walk) = &mut records.walk else {
                return Ok(None);
            };
            match self.next_leaf(walk).await? {
                None => return Ok(None),
                Some(leaf) => records
                    .pending
                    .extend(leaf.iter().rev().map(|extent| extent.start)),
            }
        }
    }

    /// Runs of clusters with how many extents have them, in order, beside the records.
    async fn compare_records(
        &mut self,
        spot: Spot,
        mut records: Records,
        shared: Vec<(u32, u32)>,
    ) -> Step<()> {
        let mut edges = Parts::new(2 * shared.len() as u64);
        for (first, clusters) in shared {
            edges.push(first, (first, 1i64));
            // Past the last cluster there is none; the sum need not come down there.
            if let Some(end) = first.checked_add(clusters) {
                edges.push(end, (end, -1));
            }
        }
        let mut compare = Compare {
            spot,
            queue: Vec::new(),
            done: false,
        };
        let (mut at, mut count) = (0u64, 0i64);
        for part in 0..edges.count() {
            let mut part = edges.take(part);
            part.sort_unstable();
            for (place, change) in part {
                let place = u64::from(place);
                if place > at && count > 0 {
                    self.compare_run(&mut compare, &mut records, at, place, count as u32)
                        .await?;
                }
                at = place;
                count += change;
            }
            self.view.breathe(8).await?;
        }
        self.redundant_up_to(&mut compare, &mut records, u64::MAX)
            .await
    }

    /// Clusters that `count` extents have.
    async fn compare_run(
        &mut self,
        compare: &mut Compare,
        records: &mut Records,
        first: u64,
        end: u64,
        count: u32,
    ) -> Step<()> {
        self.use_clusters(first, end - first, "shared", compare.spot);
        self.redundant_up_to(compare, records, first).await?;
        let mut at = first;
        while at < end {
            let rec = self.front(compare, records).await?;
            let (upto, said) = match rec {
                Some(rec) if rec.0 <= at && at < rec.1 => (rec.1.min(end), rec.2),
                Some(rec) => (rec.0.clamp(at + 1, end), 0),
                None => (end, 0),
            };
            if said != count {
                let message = format!(
                    "{}: {count} extents have them, recorded are {said}",
                    Clusters(at, upto - at)
                );
                self.find(Code::RefcountCountInvalid, compare.spot, message);
            }
            compare.consume(upto);
            at = upto;
        }
        Ok(())
    }

    /// Records before `end` that nobody's clusters were found for.
    async fn redundant_up_to(
        &mut self,
        compare: &mut Compare,
        records: &mut Records,
        end: u64,
    ) -> Step<()> {
        while let Some((first, last, count)) = self.front(compare, records).await? {
            if first >= end {
                break;
            }
            let upto = last.min(end);
            let message = format!(
                "{}: recorded are {count} extents, none has them",
                Clusters(first, upto - first)
            );
            self.find(Code::RefcountRecRedundant, compare.spot, message);
            compare.consume(upto);
        }
        Ok(())
    }

    /// The first record that is left, as (first, end, count).
    async fn front(
        &mut self,
        compare: &mut Compare,
        records: &mut Records,
    ) -> Step<Option<(u64, u64, u32)>> {
        while compare.queue.is_empty() && !compare.done {
            match self.next_records(records).await? {
                None => compare.done = true,
                Some(list) => {
                    let sound = list.iter().rev().filter(|rec| rec.end() > rec.r_cpos.get());
                    let ranges =
                        sound.map(|rec| (rec.r_cpos.get(), rec.end(), rec.r_refcount.get()));
                    compare.queue.extend(ranges);
                }
            }
        }
        Ok(compare.queue.last().copied())
    }
}

/// Where the comparison stands.
struct Compare {
    spot: Spot,
    /// Records of the current block, the first one last.
    queue: Vec<(u64, u64, u32)>,
    done: bool,
}

impl Compare {
    /// Records before `end` are done with.
    fn consume(&mut self, end: u64) {
        while let Some(front) = self.queue.last_mut() {
            if front.1 > end {
                front.0 = front.0.max(end);
                return;
            }
            self.queue.pop();
        }
    }
}
