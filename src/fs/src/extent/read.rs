//! Finding clusters. Called by every data path and by whatever hangs on a tree.

use ondisk::feature::ExtentFlags;
use ondisk::{BlockNr, ExtentRec};

use super::path::Path;
use super::root::Root;
use super::{Mapping, Run};
use crate::core::Core;
use crate::error::Result;

/// Where cluster `cpos` is. In a hole, `clusters` reaches to the next record, or to the end of all.
pub async fn lookup(core: &Core, root: &Root, cpos: u32) -> Result<Mapping> {
    let mut path = Path::find(core, root, cpos).await?;
    let records = path.records(core, root)?;
    let after = records.partition_point(|rec| rec.e_cpos.get() <= cpos);
    if let Some(rec) = after.checked_sub(1).map(|at| &records[at])
        && u64::from(cpos) < rec.end(0)
    {
        let into = cpos - rec.e_cpos.get();
        let physical =
            rec.block().0 + (u64::from(into) * u64::from(core.geometry.blocks_per_cluster()));
        return Ok(Mapping {
            cpos,
            clusters: u32::from(rec.leaf_clusters()) - into,
            physical: Some(BlockNr(physical)),
            flags: rec.flags(),
        });
    }
    let mut next = records.get(after).map(|rec| rec.e_cpos.get());
    // A leaf may turn out to hold nothing but an empty record.
    while next.is_none() && path.next(core).await? {
        next = path
            .records(core, root)?
            .first()
            .map(|rec| rec.e_cpos.get());
    }
    // A hole without length would keep its reader where he is.
    if let Some(next) = next.filter(|next| *next <= cpos) {
        let rule = "a leaf holds records that belong to the left of it";
        let nr = path.leaf().block.nr();
        return Err(Root::corrupt(nr, "e_cpos", next.into(), rule));
    }
    let clusters = next.map_or((u32::MAX - cpos).max(1), |next| next - cpos);
    Ok(Mapping {
        cpos,
        clusters,
        physical: None,
        flags: ExtentFlags::empty(),
    })
}

/// The last record that does not start behind `key`: how trees keyed by hashes are searched.
pub async fn floor(core: &Core, root: &Root, key: u32) -> Result<Option<Run>> {
    let mut path = Path::find(core, root, key).await?;
    loop {
        let records = path.records(core, root)?;
        let after = records.partition_point(|rec| rec.e_cpos.get() <= key);
        if let Some(at) = after.checked_sub(1) {
            return Ok(Some(Run::of(&records[at])));
        }
        if !path.previous(core).await? {
            return Ok(None);
        }
    }
}

/// The records from the one that holds cluster `from` on (whole, so the first may start before it),
/// at most `max`. To go on, ask from the end of the last; an empty answer is the end of the tree.
pub async fn runs(core: &Core, root: &Root, from: u32, max: usize) -> Result<Vec<Run>> {
    let mut path = Path::find(core, root, from).await?;
    let mut found: Vec<Run> = Vec::new();
    let keyed = root.is_keyed();
    loop {
        let records = path.records(core, root)?;
        if let (Some(last), Some(first)) = (found.last(), records.first()) {
            check_order(root, path.leaf().block.nr(), last, first)?;
        }
        let wanted = records.iter().filter(|rec| {
            let last = if keyed {
                u64::from(rec.e_cpos.get()) + 1
            } else {
                rec.end(0)
            };
            last > u64::from(from)
        });
        found.extend(wanted.take(max - found.len()).map(Run::of));
        if found.len() >= max || !path.next(core).await? {
            return Ok(found);
        }
    }
}

/// The last `max` records that reach beyond cluster `from`, in ascending order: what a truncation,
/// which goes from the end, takes away next.
pub async fn last_runs(core: &Core, root: &Root, from: u32, max: usize) -> Result<Vec<Run>> {
    let mut path = Path::rightmost(core, root).await?;
    let mut found = Vec::new();
    loop {
        for rec in path.records(core, root)?.iter().rev() {
            if found.len() >= max || rec.end(0) <= u64::from(from) {
                found.reverse();
                return Ok(found);
            }
            found.push(Run::of(rec));
        }
        if !path.previous(core).await? {
            found.reverse();
            return Ok(found);
        }
    }
}

fn check_order(root: &Root, nr: BlockNr, last: &Run, first: &ExtentRec) -> Result<()> {
    let cpos = first.e_cpos.get();
    let ascends = if root.is_keyed() {
        last.cpos < cpos
    } else {
        last.end() <= u64::from(cpos)
    };
    if ascends {
        return Ok(());
    }
    Err(Root::corrupt(
        nr,
        "e_cpos",
        cpos.into(),
        "a leaf starts before the end of the one to its left",
    ))
}
