//! What a slot that died without unmounting leaves to the allocators: its window and its truncate
//! log. Called once the slot's journal is replayed.

use ondisk::SlotNr;

use super::{local, truncate_log};
use crate::core::Core;
use crate::error::Result;

/// Gives a dead slot's window back and frees what its truncate log holds.
///
/// Each step is one handle in which a record disappears and its clusters become free: if we crash at
/// any point, whoever recovers the slot again finds the rest and nothing twice.
pub async fn recover_slot(core: &Core, slot: SlotNr) -> Result<()> {
    local::return_window(core, slot).await?;
    truncate_log::flush(core, slot).await
}
