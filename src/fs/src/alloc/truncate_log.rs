//! The truncate log: clusters that are free but still set in the global bitmap. Freeing is thus one
//! small change in our slot's own block, and the bitmap's groups are changed later, in bulk.

use ondisk::{BlockNr, ClusterNr, Dinode, Kind, SlotNr, Structure, truncate_log, truncate_log_mut};

use super::bitmap;
use super::chain::corrupt;
use crate::cache::BlockRef;
use crate::core::Core;
use crate::error::Result;
use crate::journal::Handle;
use crate::system::SystemFile;

/// Records freed in one handle: each may be in another cluster group.
const RECORDS_PER_HANDLE: usize = 16;

async fn open(core: &Core, slot: SlotNr) -> Result<BlockRef> {
    let nr: BlockNr = core.system.of(SystemFile::TruncateLog, slot);
    let block = core.cache.read(nr, Kind::Dinode).await?;
    if Dinode::of(&block.data()).body() != ondisk::Body::TruncateLog {
        let flags = Dinode::of(&block.data()).i_flags.get().into();
        return Err(corrupt(
            nr,
            Structure::TruncateLog,
            "i_flags",
            flags,
            "not a truncate log",
        ));
    }
    Ok(block)
}

/// Notes a run as freed. With the log full the run is freed in the bitmap at once.
pub(super) async fn append(
    core: &Core,
    h: &mut Handle<'_>,
    start: ClusterNr,
    count: u32,
) -> Result<()> {
    let log = open(core, core.slot).await?;
    if start.0 == 0 || count == 0 || !core.geometry.holds_clusters(start, count) {
        let rule = "freed clusters that no file can have";
        return Err(corrupt(
            log.nr(),
            Structure::TruncateLog,
            "t_start",
            start.0.into(),
            rule,
        ));
    }
    let appended = truncate_log_mut(&mut h.modify(&log)).append(start, count);
    if appended {
        return Ok(());
    }
    bitmap::free(core, h, start, count).await?;
    h.freed(start, count);
    Ok(())
}

/// Whether the log is nearly full: worth a [`flush_truncate_log`] before the next operation that
/// frees much.
pub async fn truncate_log_needs_flush(core: &Core) -> Result<bool> {
    let log = open(core, core.slot).await?;
    let data = log.data();
    let log = truncate_log(&data);
    Ok(log.used().len() * 8 >= log.records.len() * 7)
}

/// Frees what the log holds, in handles of its own. Not to be called with a handle open.
pub async fn flush_truncate_log(core: &Core) -> Result<()> {
    flush(core, core.slot).await
}

/// From the last record to the first. If we crash in between, the log is shorter and the records
/// that are gone from it are free.
pub(super) async fn flush(core: &Core, slot: SlotNr) -> Result<()> {
    const BLOCKS: u32 = 2 + 2 * RECORDS_PER_HANDLE as u32;
    let log = open(core, slot).await?;
    if truncate_log(&log.data()).used().is_empty() {
        return Ok(());
    }
    let mut h = core.journal.begin(BLOCKS).await?;
    loop {
        for _ in 0..RECORDS_PER_HANDLE {
            let Some(rec) = truncate_log_mut(&mut h.modify(&log)).pop() else {
                break;
            };
            let (start, count) = (ClusterNr(rec.t_start.get()), rec.t_clusters.get());
            if start.0 == 0 {
                continue;
            }
            bitmap::free(core, &mut h, start, count).await?;
            h.freed(start, count);
        }
        if truncate_log(&log.data()).used().is_empty() {
            h.commit();
            return Ok(());
        }
        h = core.journal.restart(h, BLOCKS).await?;
    }
}
