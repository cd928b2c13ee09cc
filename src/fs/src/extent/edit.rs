//! Changing a tree: insert, remove, set flags. All three are one operation, a **splice**: some
//! neighbouring records of the leaves' sequence are replaced by some others.
//!
//! ```text
//!   leaf 0         leaf 1         leaf 2 (rightmost)
//!   a b c d        e f g h        i j
//!     └ c becomes x y z: two more records, everything behind moves
//!   a b x y        z d e f        g h i j
//! ```
//!
//! The splice goes through the leaves from left to right with the records that wait for a place,
//! and stops at the first leaf behind which nothing changes. So an append, an overwrite and a
//! truncation touch one or two leaves, a change in the middle of a large tree all to its right.

use std::collections::VecDeque;

use ondisk::feature::ExtentFlags;
use ondisk::{BlockNr, ExtentRec, extent_list_mut};

use super::Run;
use super::grow;
use super::path::Path;
use super::root::Root;
use crate::core::Core;
use crate::error::{Error, Result};
use crate::journal::Handle;
use crate::limits::EXTENT_CLUSTERS_MAX;

/// Puts `clusters` clusters that start at block `physical` at `cpos`, where the tree has a hole, and
/// counts them. A run of more than 65535 becomes several records.
pub async fn insert(
    core: &Core,
    h: &mut Handle<'_>,
    root: &Root,
    cpos: u32,
    physical: BlockNr,
    clusters: u32,
    flags: ExtentFlags,
) -> Result<()> {
    let end = u64::from(cpos) + u64::from(clusters);
    if clusters == 0 || (!root.is_keyed() && end > 1 << 32) {
        return Err(Error::Invalid(format!(
            "{clusters} clusters at {cpos} of an extent tree"
        )));
    }
    let place = Place::find(core, root, cpos, end).await?;
    if let Some(taken) = place.overlapping(root, cpos, end) {
        return Err(Root::corrupt(
            place.path.leaf().block.nr(),
            "e_cpos",
            taken.e_cpos.get().into(),
            "clusters are inserted where the tree already has some",
        ));
    }
    let mut records = place.records.clone();
    let at = records.partition_point(|rec| rec.e_cpos.get() < cpos);
    let run = Run {
        cpos,
        clusters,
        physical,
        flags,
    };
    records.splice(at..at, pieces(core, run));
    splice(core, h, root, place, merged(core, root, records)).await?;
    root.add_clusters(h, clusters)
}

/// Takes `clusters` clusters at `cpos` out of the tree, as far as it has them, and returns where they
/// were. Their space is the caller's to release; extent blocks that become empty are released here.
pub async fn remove(
    core: &Core,
    h: &mut Handle<'_>,
    root: &Root,
    cpos: u32,
    clusters: u32,
) -> Result<Vec<Run>> {
    let end = u64::from(cpos) + u64::from(clusters);
    let place = Place::find(core, root, cpos, end).await?;
    let mut removed = Vec::new();
    let mut records = Vec::new();
    for rec in &place.records {
        let [before, within, after] = cut(core, rec, cpos, end, place.target(root, rec, cpos));
        records.extend(before.into_iter().chain(after));
        removed.extend(within.map(|rec| Run::of(&rec)));
    }
    if removed.is_empty() {
        return Ok(removed);
    }
    let count: u32 = removed.iter().map(|run| run.clusters).sum();
    splice(core, h, root, place, records).await?;
    root.subtract_clusters(h, count)?;
    Ok(removed)
}

/// As [`remove`], of what the caller has just seen in the tree. That it is not found there means a
/// tree out of order: an error, because whoever empties a tree would go on for ever.
pub async fn take(
    core: &Core,
    h: &mut Handle<'_>,
    root: &Root,
    cpos: u32,
    clusters: u32,
) -> Result<Vec<Run>> {
    let removed = remove(core, h, root, cpos, clusters).await?;
    if removed.is_empty() {
        let rule = "a record that is in a leaf is not found from the root";
        return Err(Root::corrupt(root.block.nr(), "e_cpos", cpos.into(), rule));
    }
    Ok(removed)
}

/// Sets and clears flags of `clusters` clusters at `cpos`, all of which the tree must have.
pub async fn set_flags(
    core: &Core,
    h: &mut Handle<'_>,
    root: &Root,
    cpos: u32,
    clusters: u32,
    set: ExtentFlags,
    clear: ExtentFlags,
) -> Result<()> {
    let end = u64::from(cpos) + u64::from(clusters);
    let place = Place::find(core, root, cpos, end).await?;
    let mut found = 0;
    let mut records = Vec::new();
    for rec in &place.records {
        let [before, within, after] = cut(core, rec, cpos, end, place.target(root, rec, cpos));
        let within = within.map(|mut rec| {
            found += u32::from(rec.leaf_clusters());
            rec.set_flags((rec.flags() | set) - clear);
            rec
        });
        records.extend(before.into_iter().chain(within).chain(after));
    }
    if found != clusters {
        return Err(Error::Invalid(format!(
            "flags of {clusters} clusters at {cpos}: the tree has {found} of them"
        )));
    }
    let records = merged(core, root, records);
    splice(core, h, root, place, records).await
}

/// Where a change happens: the records that meet or touch a range, and where they begin.
struct Place {
    /// To the leaf of the first of them.
    path: Path,
    /// That leaf's records, all of them.
    leaf: Vec<ExtentRec>,
    /// Index of the first of them in `leaf`; they may go on in the leaves behind.
    index: usize,
    records: Vec<ExtentRec>,
}

impl Place {
    async fn find(core: &Core, root: &Root, cpos: u32, end: u64) -> Result<Place> {
        // One to the left, to see the neighbour that a new record may continue. In a tree whose keys
        // are no clusters the record that holds `cpos` itself is the neighbour.
        let path = Path::find(core, root, cpos.saturating_sub(1)).await?;
        let leaf = path.records(core, root)?;
        let index = leaf
            .partition_point(|rec| rec.e_cpos.get() < cpos)
            .checked_sub(1)
            .filter(|&at| leaf[at].end(0) >= u64::from(cpos))
            .unwrap_or_else(|| leaf.partition_point(|rec| rec.e_cpos.get() < cpos));
        let mut records: Vec<ExtentRec> = Vec::new();
        let mut current = leaf[index..].to_vec();
        let mut walk = path.clone();
        'leaves: loop {
            for rec in current {
                if records
                    .last()
                    .is_some_and(|last| last.e_cpos.get() >= rec.e_cpos.get())
                {
                    let nr = walk.leaf().block.nr();
                    let found = rec.e_cpos.get().into();
                    return Err(Root::corrupt(nr, "e_cpos", found, "leaves do not ascend"));
                }
                if u64::from(rec.e_cpos.get()) > end {
                    break 'leaves;
                }
                records.push(rec);
            }
            if !walk.next(core).await? {
                break;
            }
            current = walk.records(core, root)?;
        }
        Ok(Place {
            path,
            leaf,
            index,
            records,
        })
    }

    fn overlapping(&self, root: &Root, cpos: u32, end: u64) -> Option<&ExtentRec> {
        self.records.iter().find(|rec| {
            if root.is_keyed() {
                rec.e_cpos.get() == cpos
            } else {
                u64::from(rec.e_cpos.get()) < end && rec.end(0) > u64::from(cpos)
            }
        })
    }

    /// Whether a range that starts at `cpos` can mean this record: in keyed trees only the last one
    /// that does not start behind it.
    fn target(&self, root: &Root, rec: &ExtentRec, cpos: u32) -> bool {
        if !root.is_keyed() {
            return true;
        }
        let floor = self
            .records
            .iter()
            .rev()
            .find(|rec| rec.e_cpos.get() <= cpos);
        floor.is_some_and(|floor| floor.e_cpos == rec.e_cpos)
    }
}

/// A record's parts before, within and behind a range.
fn cut(core: &Core, rec: &ExtentRec, cpos: u32, end: u64, target: bool) -> [Option<ExtentRec>; 3] {
    let (first, last) = (u64::from(rec.e_cpos.get()), rec.end(0));
    let from = u64::from(cpos).clamp(first, last);
    let to = end.clamp(from, last);
    if !target || from == to {
        return [Some(*rec), None, None];
    }
    let part = |a: u64, b: u64| {
        (a < b).then(|| {
            let into = (a - first) * u64::from(core.geometry.blocks_per_cluster());
            // Both fit: a part of a record is within it.
            ExtentRec::leaf(
                a as u32,
                (b - a) as u16,
                BlockNr(rec.block().0 + into),
                rec.flags(),
            )
        })
    };
    [part(first, from), part(from, to), part(to, last)]
}

/// A run as records.
fn pieces(core: &Core, run: Run) -> Vec<ExtentRec> {
    let mut records = Vec::new();
    let mut done = 0;
    while done < run.clusters {
        let clusters = (run.clusters - done).min(EXTENT_CLUSTERS_MAX);
        let into = u64::from(done) * u64::from(core.geometry.blocks_per_cluster());
        let start = BlockNr(run.physical.0 + into);
        records.push(ExtentRec::leaf(
            run.cpos + done,
            clusters as u16,
            start,
            run.flags,
        ));
        done += clusters;
    }
    records
}

/// The records, with those that continue each other as one.
fn merged(core: &Core, root: &Root, records: Vec<ExtentRec>) -> Vec<ExtentRec> {
    let max = root.record_max(core);
    let mut result: Vec<ExtentRec> = Vec::with_capacity(records.len());
    for rec in records {
        if let Some(last) = result.last_mut() {
            let (a, b) = (
                u32::from(last.leaf_clusters()),
                u32::from(rec.leaf_clusters()),
            );
            let into = u64::from(a) * u64::from(core.geometry.blocks_per_cluster());
            if last.end(0) == u64::from(rec.e_cpos.get())
                && last.flags() == rec.flags()
                && last.block().0 + into == rec.block().0
                && a + b <= max
            {
                last.set_leaf_clusters((a + b) as u16);
                continue;
            }
        }
        result.push(rec);
    }
    result
}

/// A leaf on the way, and what its first record's key was.
struct Seen {
    path: Path,
    first: Option<u32>,
}

/// Replaces `place.records` in the leaves' sequence by `new`.
async fn splice(
    core: &Core,
    h: &mut Handle<'_>,
    root: &Root,
    place: Place,
    new: Vec<ExtentRec>,
) -> Result<()> {
    if new == place.records {
        return Ok(());
    }
    let Place {
        path,
        leaf,
        index,
        records: old,
    } = place;
    let mut skip = old.len();
    let mut waiting: VecDeque<ExtentRec> = leaf[..index].iter().copied().chain(new).collect();
    let mut seen = vec![Seen {
        first: leaf.first().map(|rec| rec.e_cpos.get()),
        path,
    }];
    let mut rest = leaf[index..].to_vec();
    let mut written = 0;
    let at_end = loop {
        let skipped = skip.min(rest.len());
        skip -= skipped;
        waiting.extend(&rest[skipped..]);
        while written < seen.len() && waiting.len() >= seen[written].path.leaf().capacity() {
            let room = seen[written].path.leaf().capacity();
            let records: Vec<ExtentRec> = waiting.drain(..room).collect();
            write_leaf(h, &seen[written].path, &records);
            written += 1;
        }
        if written == seen.len() && waiting.is_empty() && skip == 0 {
            break false;
        }
        let mut path = seen[seen.len() - 1].path.clone();
        if !path.next(core).await? {
            break true;
        }
        rest = path.records(core, root)?;
        seen.push(Seen {
            first: rest.first().map(|rec| rec.e_cpos.get()),
            path,
        });
    };
    let mut kept = written;
    if at_end && written < seen.len() {
        // What is left fits: a full leaf would have been written.
        let records: Vec<ExtentRec> = waiting.drain(..).collect();
        if !records.is_empty() || seen[written].path.depth() == 0 {
            write_leaf(h, &seen[written].path, &records);
            kept += 1;
        }
    }
    // First the leaves that go, then the ranges: until those are set again, two of them may start
    // at the same place, which a walk would take for damage.
    if at_end {
        for _ in kept..seen.len() {
            grow::drop_last_leaf(core, h, root).await?;
        }
    }
    for leaf in &seen[..kept] {
        fix_boundary(core, h, leaf).await?;
    }
    while !waiting.is_empty() {
        let path = grow::append_leaf(core, h, root).await?;
        let mut records = path.records(core, root)?;
        records.extend(waiting.drain(..waiting.len().min(path.leaf().capacity() - records.len())));
        write_leaf(h, &path, &records);
        fix_boundary(core, h, &Seen { path, first: None }).await?;
    }
    fix_right_edge(core, h, root).await
}

/// Gives a leaf these records, if it has others.
fn write_leaf(h: &mut Handle<'_>, path: &Path, records: &[ExtentRec]) {
    let leaf = path.leaf();
    if leaf.list(|list| list.used() == records) {
        return;
    }
    let mut data = h.modify(&leaf.block);
    let list = extent_list_mut(&mut data, leaf.kind);
    list.records.fill(ExtentRec::zeroed());
    list.records[..records.len()].copy_from_slice(records);
    list.header.l_next_free_rec.set(records.len() as u16); // at most the list's u16 count
}

/// Makes the ranges of a leaf and of the leaf to its left meet at the leaf's first record, in all
/// lists that name them. The left edge keeps starting at 0.
async fn fix_boundary(core: &Core, h: &mut Handle<'_>, seen: &Seen) -> Result<()> {
    let path = &seen.path;
    let first = path.leaf().record(0).map(|rec| rec.e_cpos.get());
    let Some(first) = first.filter(|_| first != seen.first) else {
        return Ok(());
    };
    let Some(parting) = path.interior().iter().rposition(|step| step.index > 0) else {
        return Ok(());
    };
    for (level, step) in path.interior().iter().enumerate().skip(parting) {
        let mut data = h.modify(&step.block);
        let list = extent_list_mut(&mut data, step.kind);
        if level == parting {
            let left = &mut list.records[step.index - 1];
            left.set_int_clusters(first.saturating_sub(left.e_cpos.get()));
        }
        let rec = &mut list.records[step.index];
        let end = rec.end(1);
        rec.e_cpos.set(first);
        // The end is what it was; where that moves too, the next boundary sets it.
        rec.set_int_clusters(end.saturating_sub(first.into()) as u32);
    }
    let mut left = path.clone();
    left.previous(core).await?;
    for step in left.interior().iter().skip(parting + 1) {
        let mut data = h.modify(&step.block);
        let rec = &mut extent_list_mut(&mut data, step.kind).records[step.index];
        rec.set_int_clusters(first.saturating_sub(rec.e_cpos.get()));
    }
    Ok(())
}

/// Makes the last record of every list on the right edge end with the last leaf record.
async fn fix_right_edge(core: &Core, h: &mut Handle<'_>, root: &Root) -> Result<()> {
    let path = Path::rightmost(core, root).await?;
    let Some(last) = path
        .leaf()
        .used()
        .checked_sub(1)
        .and_then(|at| path.leaf().record(at))
    else {
        return Ok(());
    };
    for step in path.interior() {
        let Some(rec) = step.record(step.index) else {
            continue;
        };
        let clusters = last.end(0).saturating_sub(rec.e_cpos.get().into()) as u32;
        if rec.int_clusters() != clusters {
            let mut data = h.modify(&step.block);
            extent_list_mut(&mut data, step.kind).records[step.index].set_int_clusters(clusters);
        }
    }
    Ok(())
}
