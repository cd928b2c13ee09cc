//! The global bitmap: contiguous runs of clusters.

use ondisk::{BlockNr, ClusterNr, Structure, chain_list, group_first_cluster};

use super::chain::{Allocator, Want, corrupt};
use crate::core::Core;
use crate::error::Result;
use crate::journal::Handle;
use crate::system::SystemFile;

/// The global bitmap's allocator.
pub(super) async fn open(core: &Core) -> Result<Allocator> {
    Allocator::open(core, core.system_file(SystemFile::GlobalBitmap), true).await
}

/// Takes a run of `min` to `max` clusters. `None` if nowhere that many are free in a row.
pub(super) async fn claim(
    core: &Core,
    h: &mut Handle<'_>,
    goal: Option<ClusterNr>,
    min: u32,
    max: u32,
) -> Result<Option<(ClusterNr, u32)>> {
    let bitmap = open(core).await?;
    let goal = goal.filter(|goal| core.geometry.holds_clusters(*goal, 1));
    let goal = match goal {
        Some(cluster) => {
            let (group, bit) = group_of(core, &bitmap, cluster)?;
            Some((group, Some(bit)))
        }
        None => core.alloc.cluster_group.get().map(|group| (group, None)),
    };
    let Some(taken) = bitmap.claim(core, h, goal, Want { min, max }).await? else {
        return Ok(None);
    };
    core.alloc.cluster_group.set(Some(taken.group.nr()));
    let first = group_first_cluster(taken.group.nr(), &core.geometry).ok_or_else(|| {
        corrupt(
            taken.group.nr(),
            Structure::GroupDesc,
            "bg_blkno",
            0,
            "beyond 2^32 clusters",
        )
    })?;
    Ok(Some((ClusterNr(first.0 + taken.bit), taken.count)))
}

/// Clears the bits of a run. Whoever had data in them calls [`Handle::freed`] too.
pub(super) async fn free(
    core: &Core,
    h: &mut Handle<'_>,
    start: ClusterNr,
    count: u32,
) -> Result<()> {
    let bitmap = open(core).await?;
    if !core.geometry.holds_clusters(start, count) {
        let rule = "freed clusters lie outside the volume";
        return Err(corrupt(
            bitmap.block.nr(),
            Structure::Dinode,
            "cluster",
            start.0.into(),
            rule,
        ));
    }
    let per_group = u32::from(chain_list(&bitmap.block.data()).header.cl_cpg.get());
    let (mut at, end) = (start.0, start.0 + count);
    while at < end {
        let (group, bit) = group_of(core, &bitmap, ClusterNr(at))?;
        let here = (end - at).min(per_group - bit);
        bitmap.free(core, h, group, bit, here).await?;
        at += here;
    }
    Ok(())
}

/// The group that a cluster's bit is in, and the bit.
fn group_of(core: &Core, bitmap: &Allocator, cluster: ClusterNr) -> Result<(BlockNr, u32)> {
    let per_group = u32::from(chain_list(&bitmap.block.data()).header.cl_cpg.get());
    if per_group == 0 {
        return Err(corrupt(
            bitmap.block.nr(),
            Structure::ChainList,
            "cl_cpg",
            0,
            "groups without clusters",
        ));
    }
    let index = cluster.0 / per_group;
    let group = if index == 0 {
        core.geometry.first_cluster_group
    } else {
        core.geometry.first_block(ClusterNr(index * per_group))
    };
    Ok((group, cluster.0 % per_group))
}
