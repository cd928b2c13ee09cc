//! The local alloc: a window of the global bitmap that our slot allocates from.
//!
//! The window's clusters are set in the global bitmap when it is opened; its own bitmap says which
//! have been handed out. The clear rest goes back when the window moves on, at unmount, and, if we
//! crash, when the slot is recovered. Clusters freed later never return to the window, so a clear
//! bit in it was free when it was opened, and needs no look at the pins.

use std::time::Duration;

use ondisk::{ClusterNr, Dinode, Kind, SlotNr, Structure, capacity, local_alloc, local_alloc_mut};

use super::chain::corrupt;
use super::{bitmap, bits};
use crate::cache::BlockRef;
use crate::core::Core;
use crate::error::Result;
use crate::journal::Handle;
use crate::system::SystemFile;

/// Largest default window, in MiB.
const WINDOW_MAX_MB: u64 = 256;
/// How long we do without a window once none was to be had.
const WINDOW_PAUSE: Duration = Duration::from_secs(30);
/// Blocks that opening or closing a window changes, roughly: window, bitmap inode, two groups.
const CREDITS: u32 = 8;

/// A window as its block has it.
struct Window {
    block: BlockRef,
    first: u32,
    total: u32,
    used: u32,
}

impl Window {
    async fn open(core: &Core, slot: SlotNr) -> Result<Window> {
        let nr = core.system.of(SystemFile::LocalAlloc, slot);
        let block = core.cache.read(nr, Kind::Dinode).await?;
        Window::of(core, block)
    }

    fn of(core: &Core, block: BlockRef) -> Result<Window> {
        let nr = block.nr();
        let (first, total, used) = {
            let data = block.data();
            if Dinode::of(&data).body() != ondisk::Body::LocalAlloc {
                let flags = Dinode::of(&data).i_flags.get().into();
                return Err(corrupt(
                    nr,
                    Structure::LocalAlloc,
                    "i_flags",
                    flags,
                    "not a local alloc",
                ));
            }
            let window = local_alloc(&data);
            (
                window.header.la_bm_off.get(),
                window.dinode.total(),
                window.dinode.used(),
            )
        };
        if total > 0 && !core.geometry.holds_clusters(ClusterNr(first), total) {
            let rule = "the window lies outside the volume";
            return Err(corrupt(
                nr,
                Structure::LocalAlloc,
                "la_bm_off",
                first.into(),
                rule,
            ));
        }
        Ok(Window {
            block,
            first,
            total,
            used,
        })
    }

    fn free(&self) -> u32 {
        self.total.saturating_sub(self.used)
    }

    /// A run of clear bits that is not set aside.
    fn find(&self, core: &Core, goal: Option<ClusterNr>, min: u32, max: u32) -> Option<(u32, u32)> {
        let goal = goal.and_then(|goal| goal.0.checked_sub(self.first));
        let data = self.block.data();
        let bitmap = local_alloc(&data).bitmap;
        let reserved = core.alloc.reserved.borrow();
        if reserved.is_empty() {
            return bits::find(bitmap, self.total, goal, min, max);
        }
        let mut bitmap = bitmap.to_vec();
        for &(start, count) in reserved.iter() {
            let first = start.saturating_sub(self.first).min(self.total);
            let end = (start + count).saturating_sub(self.first).min(self.total);
            (first..end).for_each(|bit| bits::set(&mut bitmap, bit));
        }
        bits::find(&bitmap, self.total, goal, min, max)
    }

    fn take(&self, h: &mut Handle<'_>, bit: u32, count: u32) -> Result<(ClusterNr, u32)> {
        let mut data = h.modify(&self.block);
        let window = local_alloc_mut(&mut data);
        let used = window.dinode.used() + count;
        if used > self.total {
            let rule = "fewer than the set bits";
            return Err(corrupt(
                self.block.nr(),
                Structure::LocalAlloc,
                "i_used",
                self.used.into(),
                rule,
            ));
        }
        for bit in bit..bit + count {
            bits::set(window.bitmap, bit);
        }
        window.dinode.set_used(used);
        Ok((ClusterNr(self.first + bit), count))
    }

    /// Gives the clusters that were not handed out back to the global bitmap, and is empty then.
    async fn close(&self, core: &Core, h: &mut Handle<'_>) -> Result<()> {
        let unused: Vec<(u32, u32)> = {
            let data = self.block.data();
            bits::clear_runs(local_alloc(&data).bitmap, self.total).collect()
        };
        for (bit, count) in unused {
            // Nobody has had them since the window was opened: nothing to pin.
            bitmap::free(core, h, ClusterNr(self.first + bit), count).await?;
        }
        let mut data = h.modify(&self.block);
        local_alloc_mut(&mut data).clear();
        Ok(())
    }
}

/// Takes clusters from our window, which moves on if it has too few left. `None` if this is not for
/// the window to give.
pub(super) async fn claim(
    core: &Core,
    h: &mut Handle<'_>,
    goal: Option<ClusterNr>,
    min: u32,
    max: u32,
) -> Result<Option<(ClusterNr, u32)>> {
    let size = window_clusters(core);
    if max > size / 2 || is_paused(core) {
        return Ok(None);
    }
    let window = Window::open(core, core.slot).await?;
    // Fragmented, but with enough in all: shorter runs are better than a new window. Else only a run
    // as long as asked for keeps it.
    let at_least = if window.free() >= max { min } else { max };
    if let Some((bit, count)) = window.find(core, goal, at_least, max) {
        return window.take(h, bit, count).map(Some);
    }
    if !core.alloc.reserved.borrow().is_empty() {
        return Ok(None); // the bitmap gives instead
    }
    move_on(core, h, window, size).await?;
    let window = Window::open(core, core.slot).await?;
    match window.find(core, goal, min, max) {
        Some((bit, count)) => window.take(h, bit, count).map(Some),
        None => Ok(None),
    }
}

/// Sets a run of our window aside; the window moves on first if it has too few left and nothing in
/// it is set aside.
pub(super) async fn set_aside(
    core: &Core,
    goal: Option<ClusterNr>,
    max: u32,
) -> Result<Option<(ClusterNr, u32)>> {
    let size = window_clusters(core);
    if size == 0 || is_paused(core) {
        return Ok(None);
    }
    let max = max.min(size / 2).max(1);
    // In a handle, also to look only: what another one has changed may yet be rolled back.
    let mut h = core.journal.begin(CREDITS).await?;
    let mut window = Window::open(core, core.slot).await?;
    let at_least = if window.free() >= max { 1 } else { max };
    let mut found = window.find(core, goal, at_least, max);
    if found.is_none() && core.alloc.reserved.borrow().is_empty() {
        move_on(core, &mut h, window, size).await?;
        window = Window::open(core, core.slot).await?;
        found = window.find(core, goal, 1, max);
    }
    let found = found.map(|(bit, count)| (ClusterNr(window.first + bit), count));
    if let Some((start, count)) = found {
        core.alloc.reserved.borrow_mut().push((start.0, count));
    }
    if !h.is_empty() {
        h.commit();
    }
    Ok(found)
}

/// Takes a run that was set aside: it is still clear, in a window that has not moved.
pub(super) async fn take_reserved(
    core: &Core,
    h: &mut Handle<'_>,
    start: ClusterNr,
    count: u32,
) -> Result<()> {
    let window = Window::open(core, core.slot).await?;
    let bit = start
        .0
        .checked_sub(window.first)
        .filter(|bit| {
            bit.checked_add(count)
                .is_some_and(|end| end <= window.total)
        })
        .expect("the window does not move while clusters in it are set aside");
    window.take(h, bit, count)?;
    Ok(())
}

/// Takes what our window has, when nothing else has any.
pub(super) async fn claim_rest(
    core: &Core,
    h: &mut Handle<'_>,
    goal: Option<ClusterNr>,
    min: u32,
    max: u32,
) -> Result<Option<(ClusterNr, u32)>> {
    let window = Window::open(core, core.slot).await?;
    match window.find(core, goal, min, max) {
        Some((bit, count)) => window.take(h, bit, count).map(Some),
        None => Ok(None),
    }
}

/// Closes the window and opens the next, smaller ones if the bitmap has no run for a large one.
async fn move_on(core: &Core, h: &mut Handle<'_>, window: Window, size: u32) -> Result<()> {
    window.close(core, h).await?;
    let smallest = megabytes(core, 1).max(1) as u32;
    let mut wanted = size;
    loop {
        if let Some((start, count)) = bitmap::claim(core, h, None, wanted, wanted).await? {
            let mut data = h.modify(&window.block);
            let new = local_alloc_mut(&mut data);
            new.header.la_bm_off.set(start.0);
            new.dinode.set_total(count);
            return Ok(());
        }
        wanted /= 2;
        if wanted <= smallest {
            break;
        }
        core.alloc.window_clusters.set(Some(wanted));
    }
    core.alloc.window_clusters.set(None);
    core.alloc
        .no_window_until
        .set(Some(core.host.now() + WINDOW_PAUSE));
    Ok(())
}

fn is_paused(core: &Core) -> bool {
    match core.alloc.no_window_until.get() {
        Some(until) if core.host.now() < until => true,
        Some(_) => {
            core.alloc.no_window_until.set(None);
            false
        }
        None => false,
    }
}

fn window_clusters(core: &Core) -> u32 {
    core.alloc
        .window_clusters
        .get()
        .unwrap_or_else(|| default_window(core))
}

/// The size of a window as the driver chooses it: up to 256 MiB, and such that windows divide a
/// cluster group evenly; not more than the slot's share of the volume, nor than its bitmap holds.
fn default_window(core: &Core) -> u32 {
    let (block, cluster) = (core.block_size(), core.geometry.cluster_size());
    let group_mb = to_megabytes(core, 8 * capacity::group_bitmap_bytes(block) as u64);
    let small_groups = (block == 512 && cluster <= 8192) || (block == 1024 && cluster == 4096);
    let megs = if small_groups {
        8
    } else {
        let mut even = group_mb.saturating_sub(16) & !4;
        if even > 2 * WINDOW_MAX_MB {
            even = WINDOW_MAX_MB;
        }
        while even > WINDOW_MAX_MB {
            even /= 2;
        }
        even
    };
    let share = u64::from(core.geometry.total_clusters / u32::from(core.geometry.max_slots.max(1)));
    let bitmap_bits = 8 * capacity::local_alloc_bytes(block) as u64;
    let megs = megs
        .min(to_megabytes(core, share))
        .min(to_megabytes(core, bitmap_bits));
    megabytes(core, megs).min(bitmap_bits) as u32
}

fn to_megabytes(core: &Core, clusters: u64) -> u64 {
    (clusters << core.geometry.cluster_size_bits) >> 20
}

fn megabytes(core: &Core, megs: u64) -> u64 {
    (megs << 20) >> core.geometry.cluster_size_bits
}

/// At mount, once our slot's journal is replayed: a window that a crash left goes back.
pub async fn load_local(core: &Core) -> Result<()> {
    return_window(core, core.slot).await
}

/// At unmount: the window goes back, so that the volume is left without one.
pub async fn shutdown_local(core: &Core) -> Result<()> {
    return_window(core, core.slot).await?;
    core.alloc.window_clusters.set(None);
    Ok(())
}

/// Closes a slot's window, whatever is in it. In one handle: if we crash, it is as it was, or gone.
pub(super) async fn return_window(core: &Core, slot: SlotNr) -> Result<()> {
    let window = Window::open(core, slot).await?;
    if local_alloc(&window.block.data()).is_empty() && window.first == 0 {
        return Ok(());
    }
    let mut h = core.journal.begin(CREDITS).await?;
    // It may have changed while we waited.
    Window::open(core, slot).await?.close(core, &mut h).await?;
    h.commit();
    Ok(())
}

/// Clusters that are set in the global bitmap but only wait in our window.
pub(super) async fn unused(core: &Core) -> Result<u32> {
    Ok(Window::open(core, core.slot).await?.free())
}
