//! Mount and unmount: from a device to a volume, and back.
//!
//! ```text
//!  mount    superblock ─ system directory ─ slot ─ journals (replay) ─ local alloc, truncate log
//!           ─ orphans ─ commit timer
//!  unmount  gate closed ─ truncate log flushed ─ local alloc returned ─ commit ─ checkpoint
//!           ─ journal marked clean ─ slot released
//! ```
//! If we crash anywhere in between, the next mount begins again: every step is either a
//! transaction or repeatable.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use ondisk::feature::Incompat;
use ondisk::metaecc::Verdict;
use ondisk::{BlockNr, Geometry, Kind, PROBE_BYTES, SUPER_BLOCK, SlotNr, SuperError};
use runtime::{BlockDevice, BlockDeviceExt, Host};

use super::write::WriteCounters;
use super::{Coherency, Inner, MountOptions, Volume};
use crate::alloc;
use crate::cache::Cache;
use crate::core::{Core, Late};
use crate::dir;
use crate::error::{Error, Result};
use crate::inode::Inodes;
use crate::journal::wait::Turns;
use crate::journal::{Journal, JournalSetup};
use crate::lock::RwLock;
use crate::slot_map::SlotMap;
use crate::system::{System, SystemFile};

impl Volume {
    /// Mounts the volume on a device. Recovers it first if it was not cleanly unmounted.
    ///
    /// # Errors
    /// [`Error::NotAVolume`] and [`Error::Incompatible`] say what is on the device instead;
    /// [`Error::Corrupt`] which block of it is broken.
    pub async fn mount(
        device: Rc<dyn BlockDevice>,
        host: Rc<dyn Host>,
        options: MountOptions,
    ) -> Result<Volume> {
        let (geometry, corrected) = read_geometry(&*device).await?;
        let geometry = Rc::new(geometry);
        let mut read_only = refuse_or_restrict(&geometry)?;
        if options.read_only {
            read_only = Some("mounted read-only".into());
        }
        if device.info().read_only && read_only.is_none() {
            return Err(Error::ReadOnly(format!(
                "device {} cannot be written; mount it read-only",
                device.info().name
            )));
        }
        let cache = Rc::new(Cache::new(
            device.clone(),
            geometry.clone(),
            options.cache_bytes,
        ));
        let parts = Parts {
            device,
            host,
            geometry,
            cache,
            page_cache_bytes: options.page_cache_bytes,
            writing: (options.coherency, options.copy_on_write_bytes),
        };
        let system = parts.find_system().await?;
        let volume = match read_only {
            Some(cause) => parts.mount_read_only(system, cause).await?,
            None => parts.mount_writable(system, options).await?,
        };
        if corrected {
            // Once more, so that it is counted and written again as any other block.
            volume
                .core()
                .cache
                .read(SUPER_BLOCK, Kind::SuperBlock)
                .await?;
        }
        Ok(volume)
    }

    /// Ends the volume: waits for the operations inside, writes everything home and leaves it as
    /// a clean unmount does.
    ///
    /// # Errors
    /// With files open it is [`Error::Busy`] and nothing happened. After a device error the volume
    /// is unmounted all the same, and needs recovery.
    pub async fn unmount(&self) -> Result<()> {
        let _gate = self.0.gate.write().await;
        if !self.0.mounted.get() {
            return Ok(());
        }
        if self.open_count() > 0 {
            return Err(Error::Busy(format!("{} open files", self.open_count())));
        }
        self.0.mounted.set(false);
        self.end_check();
        if !self.core().journal.is_set() {
            self.ledger().clear();
            return Ok(()); // mounted read-only: nothing was written
        }
        // Nobody begins a write-back any more; one that is at work ends.
        let _turn = self.0.write_back_turn.take().await;
        let settled = match self.read_only() {
            None => self.settle_volume().await,
            Some(cause) => Err(Error::ReadOnly(cause)),
        };
        let lost = self.ledger().clear();
        let wound_up = self.wind_up().await;
        let result = match settled {
            Err(error) if lost > 0 => {
                tracing::error!(volume = ?self, pages = lost, %error, "cached data is lost");
                Err(error)
            }
            _ => wound_up,
        };
        if let Err(error) = &result {
            tracing::error!(volume = ?self, %error, "unmounted uncleanly");
        }
        result
    }

    /// Whoever checks the volume learns that it goes.
    fn end_check(&self) {
        if self.core().journal.is_set() {
            self.core().journal.end_moment("the volume was unmounted");
        }
    }

    async fn wind_up(&self) -> Result<()> {
        let core = self.core();
        let clean = self.read_only().is_none();
        if clean {
            self.heal().await?;
            alloc::flush_truncate_log(core).await?;
            alloc::shutdown_local(core).await?;
        }
        core.journal.close().await?;
        if clean {
            SlotMap::release(core).await?;
        }
        Ok(())
    }
}

/// What exists before the journal does.
struct Parts {
    device: Rc<dyn BlockDevice>,
    host: Rc<dyn Host>,
    geometry: Rc<Geometry>,
    cache: Rc<Cache>,
    page_cache_bytes: usize,
    /// What the write path wants to know of the mount's options.
    writing: (Coherency, u32),
}

impl Parts {
    fn core(&self, slot: SlotNr, system: System, journal: Late<Journal>) -> Core {
        Core {
            device: self.device.clone(),
            host: self.host.clone(),
            geometry: self.geometry.clone(),
            cache: self.cache.clone(),
            journal,
            slot,
            system,
            inodes: Inodes::new(self.page_cache_bytes),
            alloc: alloc::State::default(),
        }
    }

    /// Reads the system directory. Nothing is known yet but how to read a directory.
    async fn find_system(&self) -> Result<System> {
        let core = self.core(SlotNr::INVALID, System::default(), Late::default());
        let dir = core.inodes.get(&core, self.geometry.system_dir).await?;
        let mut found: HashMap<Vec<u8>, BlockNr> = HashMap::new();
        let mut cookie = 0;
        loop {
            let (entries, done) = dir::read(&core, &dir, cookie, 256).await?;
            let Some(last) = entries.last() else { break };
            cookie = last.cookie_next;
            found.extend(entries.into_iter().map(|entry| (entry.name, entry.ino)));
            if done {
                break;
            }
        }
        System::find(self.geometry.max_slots, |name| {
            found.get(name.as_bytes()).copied()
        })
    }

    async fn mount_read_only(self, system: System, cause: String) -> Result<Volume> {
        let core = self.core(SlotNr(0), system, Late::default());
        for slot in 0..core.system.slot_count() {
            let nr = core.system.of(SystemFile::Journal, SlotNr(slot));
            let inode = core.inodes.get(&core, nr).await?;
            if inode.dinode().journal_is_dirty() {
                return Err(Error::ReadOnly(format!(
                    "the journal of slot {slot} needs recovery, which a read-only mount does not do; \
                     mount it once for writing, or run fsck.ocfs2"
                )));
            }
        }
        Ok(volume(core, Some(cause), false, self.writing))
    }

    async fn mount_writable(self, system: System, options: MountOptions) -> Result<Volume> {
        let slot = SlotMap::find(&self.cache, &self.geometry, &system).await?;
        let setup = JournalSetup {
            device: self.device.clone(),
            host: self.host.clone(),
            geometry: self.geometry.clone(),
            cache: self.cache.clone(),
            commit_interval: options.commit_interval,
        };
        // The slot first: whoever looks at the map while we replay must find us there.
        let bootstrap = self.core(slot, system.clone(), Late::default());
        SlotMap::take(&bootstrap).await?;
        let (journal, unclean) = setup.open(&bootstrap).await?;
        drop(bootstrap);
        if !unclean.is_empty() {
            tracing::warn!(
                volume = %self.device.info().name,
                slots = ?unclean,
                "not cleanly unmounted: journals replayed"
            );
        }
        let core = self.core(slot, system, Late::of(journal));
        let volume = volume(core, None, !unclean.is_empty(), self.writing);
        if let Err(error) = volume.recover(&unclean).await {
            // What was recovered stays so; the rest is for the next attempt.
            volume.core().journal.abort(&error.to_string());
            if let Err(second) = volume.core().journal.close().await {
                tracing::debug!(error = %second, "closing the journal after a failed mount");
            }
            return Err(error);
        }
        Ok(volume)
    }
}

impl Volume {
    /// After the journals: windows and truncate logs of the slots that were not left cleanly, our
    /// own, then orphans.
    async fn recover(&self, slots: &[SlotNr]) -> Result<()> {
        let core = self.core();
        for &slot in slots {
            alloc::recover_slot(core, slot).await?;
            if slot != core.slot {
                // If we crash with the slot free and its window not given back, its next owner finds
                // a clean journal and a window in use: the kernel refuses to mount that.
                core.journal.force_commit().await?;
                SlotMap::set(core, slot, None).await?;
            }
        }
        alloc::load_local(core).await?;
        alloc::flush_truncate_log(core).await?;
        // Orphans wait in any slot's directory, also after a clean unmount of a crashed deletion.
        for slot in (0..core.system.slot_count()).map(SlotNr) {
            let count = match self.clean_orphans(slot).await {
                // What is broken is nobody's any more: the rest can still be read.
                Err(error @ Error::Corrupt(_)) => {
                    self.stop_writing(&error);
                    return Ok(());
                }
                result => result?,
            };
            if count > 0 {
                tracing::info!(volume = ?self, slot = slot.0, count, "finished with orphans");
            }
        }
        Ok(())
    }
}

fn volume(
    core: Core,
    read_only: Option<String>,
    recovered: bool,
    (coherency, copy_on_write_bytes): (Coherency, u32),
) -> Volume {
    Volume(Rc::new(Inner {
        core,
        gate: RwLock::default(),
        mounted: Cell::new(true),
        rename: RwLock::default(),
        read_only: RefCell::new(read_only),
        recovered,
        opens: Cell::new(0),
        flush_planned: Cell::new(false),
        coherency,
        copy_on_write_bytes,
        write_back_planned: Cell::new(false),
        write_back_turn: Turns::default(),
        write_back_failed: RefCell::default(),
        write_counters: WriteCounters::default(),
        zero_page: OnceCell::new(),
        heal_planned: Cell::new(false),
    }))
}

/// Finds the superblock and holds the device to it.
///
/// The second value is true if a bit of it had to be corrected.
async fn read_geometry(device: &dyn BlockDevice) -> Result<(Geometry, bool)> {
    let info = device.info();
    let probe_len = (PROBE_BYTES as u64).next_multiple_of(u64::from(info.block_size));
    let len = probe_len.min(info.size_bytes());
    if len == 0 {
        return Err(Error::NotAVolume(format!(
            "device {} has no blocks",
            info.name
        )));
    }
    let (start, result) = device.read(0, device.allocate(len as usize)).await;
    result?;
    let probed = ondisk::probe(&start).map_err(|error| match error {
        SuperError::Incompatible(names) => Error::Incompatible(format!(
            "{}: unsupported features: {}",
            info.name,
            names.join(", ")
        )),
        SuperError::Corrupt(corrupt) => Error::Corrupt(corrupt),
        other => Error::NotAVolume(format!("{}: {other}", info.name)),
    })?;
    let corrected = probed.verdict != Verdict::Clean;
    let geometry = probed.geometry;
    if (geometry.block_size() as u64) < u64::from(info.block_size) {
        return Err(Error::NotAVolume(format!(
            "{}: the volume's blocks of {} bytes are smaller than the device's of {}",
            info.name,
            geometry.block_size(),
            info.block_size
        )));
    }
    if geometry.total_bytes() > info.size_bytes() {
        return Err(Error::NotAVolume(format!(
            "{}: the volume has {} bytes, the device only {}: it is truncated",
            info.name,
            geometry.total_bytes(),
            info.size_bytes()
        )));
    }
    Ok((geometry, corrected))
}

/// Volumes that must not be mounted are refused by name; the answer is why the rest is only read,
/// if it is.
fn refuse_or_restrict(geometry: &Geometry) -> Result<Option<String>> {
    if !geometry.has(Incompat::LOCAL_MOUNT) {
        return Err(Error::Incompatible(
            "a cluster volume (no LOCAL_MOUNT feature): this version mounts local volumes only; \
             tunefs.ocfs2 -M local makes it one"
                .into(),
        ));
    }
    let unknown = geometry.read_only_because();
    if !unknown.is_empty() {
        return Ok(Some(format!(
            "unknown ro_compat features: {}",
            unknown.join(", ")
        )));
    }
    Ok(None)
}
