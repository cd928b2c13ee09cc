//! The records: finding the block that holds those of a cluster, changing counts, and splitting or dropping blocks as
//! the number of records changes. Called by [`super`].
//!
//! A block's records are taken out as a list, changed there, merged, and written back whole; if they have become too
//! many for one block, they are dealt to two. The first record of a leaf's range is never below the leaf's position in
//! the tree.

use ondisk::feature::ExtentFlags;
use ondisk::{
    BlockNr, ClusterNr, Generation, Kind, NewRefcount, RefcountBlock, RefcountRec, RootKind,
    Suballoc, capacity, init_extent_list, init_refcount_list, refcount_list, refcount_list_mut,
};

use super::release_block;
use crate::alloc;
use crate::cache::BlockRef;
use crate::core::Core;
use crate::error::Result;
use crate::extent::{self, Root};
use crate::journal::Handle;
use crate::xattr::tree::{self, corrupt};

/// What happens to the count of every cluster in a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    More,
    /// Clusters without a record are an error: the extent said that they have one.
    Less,
}

/// A run of clusters with one count, which is never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    pub start: u64,
    pub clusters: u32,
    pub count: u32,
}

impl Record {
    fn end(&self) -> u64 {
        self.start + u64::from(self.clusters)
    }
}

/// A block of records, and the clusters it is responsible for: up to `end`.
struct Leaf {
    block: BlockRef,
    end: u64,
}

/// The block that holds the records of a cluster.
async fn find(core: &Core, root: &BlockRef, cluster: u64) -> Result<Leaf> {
    if !RefcountBlock::of(&root.data()).is_tree() {
        return Ok(Leaf {
            block: root.clone(),
            end: u64::MAX,
        });
    }
    // Positions are the low half of cluster numbers, which have no high half on any volume of this format.
    let Some((rec, end)) = tree::find(core, root, RootKind::Refcount, cluster as u32).await? else {
        return Err(corrupt(
            root.nr(),
            "l_next_free_rec",
            0,
            "a refcount tree without leaves",
        )
        .into());
    };
    let block = core.cache.read(rec.block(), Kind::RefcountBlock).await?;
    let (is_leaf, parent, cpos) = {
        let data = block.data();
        let leaf = RefcountBlock::of(&data);
        (
            leaf.is_leaf() && !leaf.is_tree(),
            leaf.rf_parent.get(),
            leaf.rf_cpos.get(),
        )
    };
    if !is_leaf || parent != root.nr().0 || cpos != rec.e_cpos.get() {
        return Err(corrupt(
            block.nr(),
            "rf_parent",
            parent,
            "not the refcount leaf that its tree takes it for",
        )
        .into());
    }
    Ok(Leaf { block, end })
}

/// The records of a block, checked.
fn records(block: &BlockRef) -> Result<Vec<Record>> {
    let data = block.data();
    let mut records: Vec<Record> = Vec::new();
    for rec in refcount_list(&data).used() {
        let record = Record {
            start: rec.r_cpos.get(),
            clusters: rec.r_clusters.get(),
            count: rec.r_refcount.get(),
        };
        let ascends = records.last().is_none_or(|last| last.end() <= record.start);
        let inside = record.start <= u64::from(u32::MAX) && record.end() <= 1 << 32;
        if !ascends || !inside || record.clusters == 0 || record.count == 0 {
            return Err(corrupt(
                block.nr(),
                "r_cpos",
                record.start,
                "refcount records overlap or are empty",
            )
            .into());
        }
        records.push(record);
    }
    Ok(records)
}

/// The count of a cluster, and for how many clusters from it on, at most `max`, it holds; 0 without a record.
pub(super) async fn count_at(
    core: &Core,
    root: &BlockRef,
    start: ClusterNr,
    max: u32,
) -> Result<(u32, u32)> {
    let cluster = u64::from(start.0);
    let leaf = find(core, root, cluster).await?;
    let records = records(&leaf.block)?;
    let at = records.partition_point(|rec| rec.end() <= cluster);
    let limit = (cluster + u64::from(max)).min(leaf.end);
    let (count, end) = match records.get(at) {
        Some(rec) if rec.start <= cluster => (rec.count, rec.end()),
        Some(rec) => (0, rec.start),
        None => (0, limit),
    };
    Ok((count, (end.min(limit) - cluster) as u32))
}

/// Changes the counts of a range of clusters. Returns the runs that have no record any more.
pub(super) async fn change(
    core: &Core,
    h: &mut Handle<'_>,
    root: &BlockRef,
    start: ClusterNr,
    count: u32,
    change: Change,
) -> Result<Vec<(ClusterNr, u32)>> {
    let mut unused = Vec::new();
    let (mut cluster, end) = (u64::from(start.0), u64::from(start.0) + u64::from(count));
    while cluster < end {
        let leaf = find(core, root, cluster).await?;
        let to = end.min(leaf.end);
        let old = records(&leaf.block)?;
        let new = apply(&old, cluster, to, change, &mut unused)
            .map_err(|rule| corrupt(leaf.block.nr(), "r_refcount", cluster, rule))?;
        put(core, h, root, &leaf.block, new).await?;
        cluster = to;
    }
    Ok(unused)
}

/// The records after a change of `from..to`. Runs whose count has become zero are added to `unused`.
pub(super) fn apply(
    old: &[Record],
    from: u64,
    to: u64,
    change: Change,
    unused: &mut Vec<(ClusterNr, u32)>,
) -> Result<Vec<Record>, &'static str> {
    let mut new: Vec<Record> = Vec::with_capacity(old.len() + 3);
    let mut push = |start: u64, end: u64, count: u32| {
        if start >= end || count == 0 {
            return;
        }
        match new.last_mut() {
            Some(last) if last.end() == start && last.count == count => {
                last.clusters += (end - start) as u32
            }
            _ => new.push(Record {
                start,
                clusters: (end - start) as u32,
                count,
            }),
        }
    };
    // Everything in the range up to here has been dealt with.
    let mut done = from;
    let mut rest = old.iter().peekable();
    while let Some(rec) = rest.next_if(|rec| rec.start < to) {
        push(rec.start, rec.end().min(from), rec.count);
        let (start, end) = (rec.start.max(from), rec.end().min(to));
        if start < end {
            match change {
                Change::More => {
                    push(done, start, 1);
                    push(
                        start,
                        end,
                        rec.count
                            .checked_add(1)
                            .ok_or("the count is at its limit")?,
                    );
                }
                Change::Less if done < start => return Err("a shared cluster has no refcount"),
                Change::Less => {
                    push(start, end, rec.count - 1);
                    if rec.count == 1 {
                        unused.push((ClusterNr(start as u32), (end - start) as u32));
                    }
                }
            }
            done = end;
        }
        if rec.end() > to {
            if change == Change::More {
                push(done, to, 1);
            }
            done = done.max(to);
            push(to.max(rec.start), rec.end(), rec.count);
        }
    }
    match change {
        Change::More => push(done, to, 1),
        Change::Less if done < to => return Err("a shared cluster has no refcount"),
        Change::Less => {}
    }
    for rec in rest {
        push(rec.start, rec.end(), rec.count);
    }
    Ok(new)
}

/// Writes the records of a block; splits it if they are too many, drops it from its tree if there are none.
async fn put(
    core: &Core,
    h: &mut Handle<'_>,
    root: &BlockRef,
    block: &BlockRef,
    records: Vec<Record>,
) -> Result<()> {
    let is_tree = RefcountBlock::of(&root.data()).is_tree();
    if records.is_empty() && is_tree {
        return drop_leaf(core, h, root, block).await;
    }
    if records.len() <= capacity::refcount_records(core.block_size()) {
        if is_tree {
            lower(core, h, root, block, &records).await?;
        }
        write(h, block, &records);
        return Ok(());
    }
    let block = if is_tree {
        block.clone()
    } else {
        grow(core, h, root).await?
    };
    // A change adds two records at most: the halves always fit.
    let (left, right) = records.split_at(records.len() / 2);
    lower(core, h, root, &block, left).await?;
    write(h, &block, left);
    let cpos = right[0].start as u32;
    let leaf = new_leaf(core, h, root, cpos).await?;
    write(h, &leaf, right);
    extent::insert(
        core,
        h,
        &tree_of(root),
        cpos,
        leaf.nr(),
        1,
        ExtentFlags::empty(),
    )
    .await
}

fn tree_of(root: &BlockRef) -> Root {
    Root {
        block: root.clone(),
        kind: RootKind::Refcount,
    }
}

fn write(h: &mut Handle<'_>, block: &BlockRef, records: &[Record]) {
    let mut bytes = h.modify(block);
    init_refcount_list(&mut bytes);
    let list = refcount_list_mut(&mut bytes);
    for (slot, rec) in list.records.iter_mut().zip(records) {
        *slot = RefcountRec::new(rec.start, rec.clusters, rec.count);
    }
    list.header.rl_used.set(records.len() as u16);
}

/// Makes a leaf with this position. The caller puts it into the tree.
async fn new_leaf(core: &Core, h: &mut Handle<'_>, root: &BlockRef, cpos: u32) -> Result<BlockRef> {
    let place = alloc::claim_metadata(core, h).await?;
    let generation = Generation(RefcountBlock::of(&root.data()).rf_generation.get());
    let suballoc = Suballoc {
        slot: place.slot,
        bit: place.bit,
        group: place.group,
    };
    let block = h.fresh(place.block, Kind::RefcountBlock);
    let new = NewRefcount::Leaf {
        root: root.nr(),
        cpos,
    };
    RefcountBlock::init(
        &mut h.modify(&block),
        place.block,
        &core.geometry,
        suballoc,
        generation,
        new,
    );
    Ok(block)
}

/// Turns a root of records into the root of a tree with one leaf, responsible for everything. The leaf's records are
/// the caller's to write.
async fn grow(core: &Core, h: &mut Handle<'_>, root: &BlockRef) -> Result<BlockRef> {
    let leaf = new_leaf(core, h, root, 0).await?;
    {
        let mut bytes = h.modify(root);
        bytes[REFCOUNT_LIST..].fill(0);
        let count = capacity::refcount_records(bytes.len()) as u16;
        init_extent_list(&mut bytes, RootKind::Refcount, 0, count);
        let head = RefcountBlock::of_mut(&mut bytes);
        head.rf_flags.set(RefcountBlock::TREE);
        head.rf_clusters.set(0);
        head.rf_last_eb_blk.set(0);
    }
    extent::insert(
        core,
        h,
        &tree_of(root),
        0,
        leaf.nr(),
        1,
        ExtentFlags::empty(),
    )
    .await?;
    Ok(leaf)
}

/// Where the records or the extent list start in a refcount block.
const REFCOUNT_LIST: usize = size_of::<RefcountBlock>();

/// Moves a leaf's position down if its first record lies below it: only the first leaf of a tree can get one.
async fn lower(
    core: &Core,
    h: &mut Handle<'_>,
    root: &BlockRef,
    leaf: &BlockRef,
    records: &[Record],
) -> Result<()> {
    let old = RefcountBlock::of(&leaf.data()).rf_cpos.get();
    let Some(first) = records
        .first()
        .map(|rec| rec.start as u32)
        .filter(|&first| first < old)
    else {
        return Ok(());
    };
    extent::remove(core, h, &tree_of(root), old, 1).await?;
    RefcountBlock::of_mut(&mut h.modify(leaf))
        .rf_cpos
        .set(first);
    extent::insert(
        core,
        h,
        &tree_of(root),
        first,
        leaf.nr(),
        1,
        ExtentFlags::empty(),
    )
    .await
}

/// Takes a leaf without records out of its tree. A tree without leaves is a root of records again.
async fn drop_leaf(
    core: &Core,
    h: &mut Handle<'_>,
    root: &BlockRef,
    leaf: &BlockRef,
) -> Result<()> {
    let cpos = RefcountBlock::of(&leaf.data()).rf_cpos.get();
    extent::remove(core, h, &tree_of(root), cpos, 1).await?;
    release_block(core, h, leaf).await?;
    let left = ondisk::extent_list(&root.data(), RootKind::Refcount)
        .used()
        .len();
    if left == 0 {
        let mut bytes = h.modify(root);
        init_refcount_list(&mut bytes);
        let head = RefcountBlock::of_mut(&mut bytes);
        head.rf_flags.set(0);
        head.rf_parent.set(0);
        head.rf_cpos.set(0);
        head.rf_clusters.set(0);
        head.rf_last_eb_blk.set(BlockNr::NONE.0);
    }
    Ok(())
}
