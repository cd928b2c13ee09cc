//! Allocation of clusters and of metadata blocks.
//!
//! ```text
//!  claim_clusters ─► our slot's window (local alloc) ─refill─► global bitmap
//!  claim_inode, claim_metadata ─► our slot's groups of blocks ─grow─► claim_clusters
//!  release_clusters ─► our slot's truncate log ─flush─► global bitmap
//! ```
//!
//! The rules this room owns:
//! * A cluster that is clear in the bitmap is handed out only if nothing pins it
//!   ([`Pins`](crate::journal::Pins)): if we crash before the transaction that freed it is in the
//!   log, its old owner has it again.
//! * All counts of a bitmap change with its bits, in one handle: [`chain`].
//! * What is remembered outside of blocks ([`State`]) are hints: a handle that rolls back needs to
//!   undo nothing here.

mod bitmap;
mod bits;
mod chain;
mod local;
mod recover;
mod reserve;
mod space;
mod suballoc;
#[cfg(test)]
mod tests;
mod truncate_log;

pub use local::{load_local, shutdown_local};
pub use recover::recover_slot;
pub use reserve::reserve;
pub use space::{available_clusters, free_clusters_total, has_room_for_delayed, space, with_space};
pub use suballoc::{claim_inode, claim_metadata, release_place};
pub use truncate_log::{flush_truncate_log, truncate_log_needs_flush};

use std::cell::{Cell, RefCell};
use std::time::Duration;

use ondisk::{BlockNr, ClusterNr, SlotNr};

use crate::core::Core;
use crate::error::{Error, Result};
use crate::journal::Handle;

/// Hints of the allocators; what counts is in their blocks. Nothing here may point to what a handle
/// made: it may have been rolled back since.
#[derive(Default)]
pub struct State {
    /// The cluster group that was last taken from. Those have fixed places.
    cluster_group: Cell<Option<BlockNr>>,
    /// How large the next window is, once windows of the default size are not to be had.
    window_clusters: Cell<Option<u32>>,
    /// No windows until then: free space is too fragmented for them.
    no_window_until: Cell<Option<Duration>>,
    /// Runs of our window that are set aside for writes on their way.
    reserved: RefCell<Vec<(u32, u32)>>,
    /// Clusters that data in the page cache will need: promised, not yet claimed.
    pub delayed: Cell<u64>,
}

/// Where a metadata block comes from. The block records slot, bit and group, so that it can be
/// released without a search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Whose allocator it is; [`SlotNr::INVALID`] for the global inode allocator.
    pub slot: SlotNr,
    pub bit: u16,
    /// The group's descriptor; [`BlockNr::NONE`] in contiguous groups, as the format has it.
    pub group: BlockNr,
    pub block: BlockNr,
}

/// Takes a run of `min` to `max` clusters, for a file's or a directory's data. `goal` is where it
/// would continue what the caller has. What cached data was promised is left to it.
pub async fn claim_clusters(
    core: &Core,
    h: &mut Handle<'_>,
    goal: Option<ClusterNr>,
    min: u32,
    max: u32,
) -> Result<(ClusterNr, u32)> {
    let delayed = core.alloc.delayed.get();
    if delayed > 0 {
        let free = u64::from(free_clusters_total(core).await?);
        if free < delayed + u64::from(min.max(1)) {
            return Err(Error::NoSpace(format!(
                "{min} clusters are wanted, {free} are free, of which cached data needs {delayed}"
            )));
        }
    }
    claim_promised(core, h, goal, min, max).await
}

/// As [`claim_clusters`], for what cached data itself needs to get its place: extent blocks.
async fn claim_promised(
    core: &Core,
    h: &mut Handle<'_>,
    goal: Option<ClusterNr>,
    min: u32,
    max: u32,
) -> Result<(ClusterNr, u32)> {
    let (min, max) = (min.max(1), max.max(min).max(1));
    if let Some(found) = local::claim(core, h, goal, min, max).await? {
        return Ok(found);
    }
    if let Some(found) = bitmap::claim(core, h, goal, min, max).await? {
        return Ok(found);
    }
    // The bitmap has none that long, but our window may, whatever its policy says.
    if let Some(found) = local::claim_rest(core, h, goal, min, max).await? {
        return Ok(found);
    }
    Err(Error::NoSpace(format!("no {min} free clusters in a row")))
}

/// Gives clusters of file data back. They are free once the truncate log is flushed.
pub async fn release_clusters(
    core: &Core,
    h: &mut Handle<'_>,
    start: ClusterNr,
    count: u32,
) -> Result<()> {
    truncate_log::append(core, h, start, count).await
}

/// Gives clusters back that held journaled metadata: directory blocks, index leaves, xattr buckets.
///
/// If we crashed and replayed the log after their next owner has written to them, the old metadata
/// would be back: so they wait until no block of theirs is in the log.
pub async fn release_metadata_clusters(
    core: &Core,
    h: &mut Handle<'_>,
    start: ClusterNr,
    count: u32,
) -> Result<()> {
    h.freed_metadata(start, count);
    truncate_log::append(core, h, start, count).await
}
