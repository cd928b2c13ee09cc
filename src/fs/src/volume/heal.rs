//! A block with a single wrong bit is corrected when it is read, from its checksum. Left at that, the
//! next wrong bit in it would be one too many. So it is written again, as a change of nothing: joined
//! to a transaction, whose commit computes its checksum and whose checkpoint brings it home.

use super::Volume;
use crate::error::Result;

impl Volume {
    /// Sees to it that what was corrected is written again, in a moment.
    pub(super) fn plan_healing(&self) {
        if !self.core().cache.wants_healing()
            || self.read_only().is_some()
            || self.0.heal_planned.replace(true)
        {
            return;
        }
        let volume = self.clone();
        self.core().host.spawn(Box::pin(async move {
            volume.0.heal_planned.set(false);
            let Ok(_gate) = volume.enter_gate().await else {
                return;
            };
            if let Err(error) = volume.heal().await {
                tracing::warn!(?volume, %error, "a corrected block could not be written again");
            }
        }));
    }

    /// Writes corrected blocks again.
    pub(super) async fn heal(&self) -> Result<()> {
        let core = self.core();
        for block in core.cache.take_to_heal() {
            let units = core.geometry.blocks_per_bucket().max(1) as u32;
            let mut handle = core.journal.begin(units).await?;
            // If it was freed meanwhile its place may be somebody's data.
            if core.cache.is_current(&block) {
                drop(handle.modify(&block));
                handle.commit();
            }
        }
        Ok(())
    }
}
