//! The journal as a file of the volume: whose it is, whether it was left clean, and its recovery.
//! The kernel's counterpart is fs/ocfs2/journal.c.
//!
//! The flag *dirty* in the journal's inode is set while somebody has the slot; the *recovery
//! generation* counts replays, so that of two nodes that want to recover a slot the second one
//! sees that it was done. Both are written directly: a journal cannot log its own state.
//!
//! Order of a recovery, each step on the medium before the next:
//! ```text
//!   home writes ─ log marked empty ─ generation + 1, dirty as it has to be
//! ```
//! If we crash in between, the recovery is done again from the start, with the same result.

use ondisk::feature::Compat;
use ondisk::jbd2::{JournalCompat, JournalIncompat};
use ondisk::{BlockNr, Check, Dinode, Geometry, Kind, Structure};

use super::log::{Log, LogSuper, flush, read_block};
use super::write::write_blocks;
use super::{JournalSetup, Tid, replay};
use crate::error::{Error, Result};
use crate::file_map::FileMap;
use crate::limits::JOURNAL_MIN_BYTES;

/// What was found in a journal, and done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Recovery {
    /// The last owner did not close it: its local alloc, truncate log and orphans need recovery.
    pub dirty: bool,
    /// Transactions replayed.
    pub transactions: u32,
    /// Blocks written home.
    pub blocks: u64,
    /// The recovery generation now.
    pub generation: u32,
}

/// A journal's inode, to write.
pub(super) struct Owner {
    setup: JournalSetup,
    nr: BlockNr,
    dinode: std::cell::RefCell<Vec<u8>>,
}

impl Owner {
    async fn load(setup: &JournalSetup, nr: BlockNr) -> Result<Owner> {
        let dinode = setup.cache.load(nr, Kind::Dinode).await?;
        Ok(Owner {
            setup: setup.clone(),
            nr,
            dinode: dinode.into(),
        })
    }

    fn is_dirty(&self) -> bool {
        Dinode::of(&self.dinode.borrow()).journal_is_dirty()
    }

    fn generation(&self) -> u32 {
        Dinode::of(&self.dinode.borrow()).journal_recovery_generation()
    }

    /// Writes the flag, durably; `recovered` counts a recovery.
    pub async fn mark(&self, dirty: bool, recovered: bool) -> Result<()> {
        let mut bytes = self.dinode.borrow().clone();
        let dinode = Dinode::of_mut(&mut bytes);
        dinode.set_journal_dirty(dirty);
        if recovered {
            let generation = dinode.journal_recovery_generation();
            dinode.set_journal_recovery_generation(generation.wrapping_add(1));
        }
        if self.setup.geometry.has_metaecc() {
            Kind::Dinode.compute(&mut bytes);
        }
        self.setup.write_durably(self.nr, &bytes).await?;
        self.setup.cache.forget(self.nr);
        *self.dinode.borrow_mut() = bytes;
        Ok(())
    }
}

impl JournalSetup {
    async fn write_durably(&self, nr: BlockNr, bytes: &[u8]) -> Result<()> {
        write_blocks(&*self.device, &self.geometry, [(nr, bytes)]).await?;
        flush(&*self.device, self.device.info().volatile_cache).await
    }
}

/// The parts of a journal that is empty on the device, before it is used or left.
struct Found {
    owner: Owner,
    map: FileMap,
    superblock: LogSuper,
    next: Tid,
    recovery: Recovery,
}

/// Reads a journal, and replays it if there is anything in it.
async fn find(setup: &JournalSetup, owner: Owner) -> Result<Found> {
    let dinode = owner.dinode.borrow().clone();
    let check = Check::new(Structure::Dinode, owner.nr);
    let size = Dinode::of(&dinode).i_size.get();
    check.rule(
        size >= JOURNAL_MIN_BYTES,
        "i_size",
        size,
        "a journal has at least 4 MiB",
    )?;
    let map = FileMap::of(&setup.cache, &setup.geometry, owner.nr, &dinode).await?;
    let place = map.block(0);
    let block = read_block(&*setup.device, &setup.geometry, place).await?;
    let mut superblock = LogSuper::new(block, place, map.blocks())?;
    let errno = superblock.raw().s_errno.get();
    if errno != 0 {
        tracing::warn!(
            block = place.0,
            errno,
            "the journal's last owner met an error"
        );
        superblock.raw_mut().s_errno.set(0);
    }
    let mut recovery = Recovery {
        dirty: owner.is_dirty(),
        generation: owner.generation(),
        ..Default::default()
    };
    // One is left out, as in the kernel: a transaction of the expected number may lie in the log
    // half-written.
    let mut next = Tid(u64::from(superblock.raw().sequence().0) + 1);
    if !superblock.raw().is_clean() {
        let replayed = replay::replay(setup, &map, &superblock).await?;
        recovery.transactions = replayed.transactions;
        recovery.blocks = replayed.blocks;
        // mkfs.ocfs2 leaves a start in logs that hold nothing.
        recovery.dirty |= replayed.transactions > 0;
        next = Tid(u64::from(superblock.raw().sequence().0) + u64::from(replayed.transactions) + 1);
        // Whatever was read before may be older than what was replayed.
        setup.cache.clear();
        superblock.set_tail(0, next);
        setup.write_durably(place, superblock.bytes()).await?;
    }
    Ok(Found {
        owner,
        map,
        superblock,
        next,
        recovery,
    })
}

/// Our own journal, from the device to where handles can begin.
pub(super) async fn open(setup: &JournalSetup, nr: BlockNr) -> Result<(Owner, Log, Tid, Recovery)> {
    let owner = Owner::load(setup, nr).await?;
    let Found {
        owner,
        map,
        mut superblock,
        next,
        mut recovery,
    } = find(setup, owner).await?;
    check_addressable(&setup.geometry, &superblock)?;
    // Our own transactions have no checksum, and are not committed asynchronously.
    let raw = superblock.raw_mut();
    if raw.is_v2() {
        let (compat, incompat) = (raw.compat(), raw.incompat());
        raw.s_feature_compat
            .set(compat.difference(JournalCompat::CHECKSUM).bits());
        raw.s_feature_incompat
            .set(incompat.difference(JournalIncompat::ASYNC_COMMIT).bits());
    }
    owner.mark(true, recovery.dirty).await?;
    recovery.generation = owner.generation();
    let log = Log::new(
        setup.device.clone(),
        setup.geometry.clone(),
        map,
        superblock,
    );
    Ok((owner, log, next, recovery))
}

/// Recovers the journal of a slot whose node is dead, and marks it as clean. `None` if it is
/// clean. The slot's local alloc, truncate log, slot map entry and orphans come after this.
pub async fn recover_slot(setup: &JournalSetup, nr: BlockNr) -> Result<Option<Recovery>> {
    let owner = Owner::load(setup, nr).await?;
    if !owner.is_dirty() {
        return Ok(None);
    }
    let Found {
        owner,
        mut recovery,
        ..
    } = find(setup, owner).await?;
    owner.mark(false, true).await?;
    recovery.generation = owner.generation();
    Ok(Some(recovery))
}

/// A volume of more than 2^32 blocks needs a journal with long tags.
fn check_addressable(geometry: &Geometry, superblock: &LogSuper) -> Result<()> {
    let narrow = geometry.total_blocks() <= 1 << 32;
    if narrow || (superblock.raw().is_wide() && geometry.compat.contains(Compat::JBD2_SB)) {
        return Ok(());
    }
    Err(Error::Incompatible(format!(
        "the journal cannot address {} blocks: it needs the feature block64",
        geometry.total_blocks()
    )))
}
