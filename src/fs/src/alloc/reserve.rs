//! Clusters promised to a write on its way: its data goes there before any bitmap says so.
//!
//! A write into a hole must have its data on the device before the commit that shows the extent. It
//! must not hold a journal handle meanwhile, or nobody could change metadata while it waits for the
//! device. So the clusters are set aside in memory only: clear in our window, but not found by
//! anybody else. The handle that inserts the extent sets their bits as well. If we crash before its
//! commit they were never taken.
//!
//! Only clusters of our own window are set aside: no other node looks into that. While any are, the
//! window does not move.

use ondisk::ClusterNr;

use super::State;
use super::local;
use crate::core::Core;
use crate::error::Result;
use crate::journal::Handle;

/// A run that is set aside until dropped.
pub struct Reserved<'a> {
    state: &'a State,
    pub start: ClusterNr,
    pub count: u32,
}

impl std::fmt::Debug for Reserved<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reserved({}+{})", self.start.0, self.count)
    }
}

impl Reserved<'_> {
    /// Takes the run, in a handle: for the file from the handle's commit on.
    pub async fn claim(&self, core: &Core, h: &mut Handle<'_>) -> Result<()> {
        local::take_reserved(core, h, self.start, self.count).await
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        let mine = (self.start.0, self.count);
        self.state.reserved.borrow_mut().retain(|run| *run != mine);
    }
}

/// Sets up to `max` clusters in a row aside. `None` if our window has none to give: then the write
/// claims what it needs under its handle.
pub async fn reserve<'a>(
    core: &'a Core,
    goal: Option<ClusterNr>,
    max: u32,
) -> Result<Option<Reserved<'a>>> {
    let found = local::set_aside(core, goal, max).await?;
    Ok(found.map(|(start, count)| Reserved {
        state: &core.alloc,
        start,
        count,
    }))
}
