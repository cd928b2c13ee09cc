//! The system files: found once, at mount, by their names in the system directory.

pub use ondisk::SystemFile;
use ondisk::{BlockNr, SlotNr};

use crate::error::{Error, Result};

/// Quota files exist only with the quota features; nobody needs the list of bad blocks.
fn is_optional(file: SystemFile) -> bool {
    matches!(
        file,
        SystemFile::UserQuota
            | SystemFile::GroupQuota
            | SystemFile::LocalUserQuota
            | SystemFile::LocalGroupQuota
            | SystemFile::BadBlocks
    )
}

/// Inode blocks of the system files.
#[derive(Debug, Clone, Default)]
pub struct System {
    global: [BlockNr; SystemFile::GLOBAL.len()],
    slots: Vec<[BlockNr; SystemFile::PER_SLOT.len()]>,
}

impl System {
    /// From the entries of the system directory. A file that is missing and must not be is an
    /// error that names it.
    pub fn find(max_slots: u16, lookup: impl Fn(&str) -> Option<BlockNr>) -> Result<System> {
        let resolve = |file: SystemFile, slot: SlotNr| {
            let name = file.name(slot);
            match lookup(&name) {
                Some(nr) => Ok(nr),
                None if is_optional(file) => Ok(BlockNr::NONE),
                None => Err(Error::NotAVolume(format!("system file {name} is missing"))),
            }
        };
        let mut system = System::default();
        for (place, file) in system.global.iter_mut().zip(SystemFile::GLOBAL) {
            *place = resolve(file, SlotNr(0))?;
        }
        for slot in (0..max_slots).map(SlotNr) {
            let mut files = [BlockNr::NONE; SystemFile::PER_SLOT.len()];
            for (place, file) in files.iter_mut().zip(SystemFile::PER_SLOT) {
                *place = resolve(file, slot)?;
            }
            system.slots.push(files);
        }
        Ok(system)
    }

    /// The inode block of a file; `slot` counts only for files that are one per slot.
    ///
    /// # Panics
    /// For a slot the volume has not: slots are checked where they are read.
    pub fn of(&self, file: SystemFile, slot: SlotNr) -> BlockNr {
        if file.is_per_slot() {
            self.slots[usize::from(slot.0)][file as usize - SystemFile::GLOBAL.len()]
        } else {
            self.global[file as usize]
        }
    }

    pub fn slot_count(&self) -> u16 {
        u16::try_from(self.slots.len()).expect("slots were counted by a u16")
    }
}
