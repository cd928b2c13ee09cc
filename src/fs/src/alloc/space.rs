//! How much is free, and what to do when nothing is.

use super::{bitmap, local, truncate_log};
use crate::core::Core;
use crate::error::{Error, Result};

/// Sizes for statfs, in clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    pub total_clusters: u32,
    /// Clear in the global bitmap, or waiting in our window.
    pub free_clusters: u32,
}

pub async fn space(core: &Core) -> Result<Space> {
    let global = bitmap::open(core).await?;
    let total = global.total();
    let free = total
        .saturating_sub(global.used())
        .saturating_add(local::unused(core).await?);
    Ok(Space {
        total_clusters: total,
        free_clusters: free.min(total),
    })
}

pub async fn free_clusters_total(core: &Core) -> Result<u32> {
    Ok(space(core).await?.free_clusters)
}

/// Free clusters that are not promised to cached data.
pub async fn available_clusters(core: &Core) -> Result<u32> {
    let free = free_clusters_total(core).await?;
    let delayed = u32::try_from(core.alloc.delayed.get()).unwrap_or(u32::MAX);
    Ok(free.saturating_sub(delayed))
}

/// Bytes that stay free when writes are delayed: for a group of extent blocks and one of inodes,
/// which are up to 4 MiB each, and for what others take meanwhile. Nearer to the end of space every
/// write takes its clusters at once.
const DELAYED_SLACK: u64 = 12 << 20;
/// The same in clusters, where those are large.
const DELAYED_SLACK_CLUSTERS: u64 = 64;

/// Whether data that needs `more` clusters can wait in memory, sure of its space.
pub async fn has_room_for_delayed(core: &Core, more: u64) -> Result<bool> {
    let free = u64::from(free_clusters_total(core).await?);
    let slack = (DELAYED_SLACK >> core.geometry.cluster_size_bits).max(DELAYED_SLACK_CLUSTERS);
    Ok(free >= 2 * (core.alloc.delayed.get() + more) + slack)
}

/// Runs an operation, and once more if it found no space although some is only waiting: in the
/// truncate log, or pinned until a commit or a checkpoint.
///
/// The operation opens and commits its own handles; none may be open around it.
pub async fn with_space<T>(
    core: &Core,
    mut operation: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let full = match operation().await {
        Err(full @ Error::NoSpace(_)) => full,
        other => return other,
    };
    truncate_log::flush(core, core.slot).await?;
    if core.journal.pins().is_empty() {
        // Nothing was pinned and the log was empty, or is now free without a wait.
        return operation().await.map_err(|again| prefer(again, full));
    }
    core.journal.force_commit().await?;
    if !core.journal.pins().is_empty() {
        core.journal.checkpoint().await?;
    }
    // What is pinned still is held for a check.
    core.journal.release_held().await;
    operation().await
}

fn prefer(again: Error, first: Error) -> Error {
    if matches!(again, Error::NoSpace(_)) {
        first
    } else {
        again
    }
}
