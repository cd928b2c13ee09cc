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
    operation().await
}

fn prefer(again: Error, first: Error) -> Error {
    if matches!(again, Error::NoSpace(_)) {
        first
    } else {
        again
    }
}
