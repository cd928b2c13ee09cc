//! The system files: found once, at mount, by their names in the system directory.

use ondisk::{BlockNr, SlotNr};

use crate::error::{Error, Result};

/// Every file of the system directory. The first seven are the volume's, the rest one per slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum SystemFile {
    BadBlocks,
    GlobalInodeAlloc,
    SlotMap,
    Heartbeat,
    GlobalBitmap,
    UserQuota,
    GroupQuota,
    OrphanDir,
    ExtentAlloc,
    InodeAlloc,
    Journal,
    LocalAlloc,
    TruncateLog,
    LocalUserQuota,
    LocalGroupQuota,
}

/// In the order of the enum.
const FILES: [(SystemFile, &str); 15] = [
    (SystemFile::BadBlocks, "bad_blocks"),
    (SystemFile::GlobalInodeAlloc, "global_inode_alloc"),
    (SystemFile::SlotMap, "slot_map"),
    (SystemFile::Heartbeat, "heartbeat"),
    (SystemFile::GlobalBitmap, "global_bitmap"),
    (SystemFile::UserQuota, "aquota.user"),
    (SystemFile::GroupQuota, "aquota.group"),
    (SystemFile::OrphanDir, "orphan_dir"),
    (SystemFile::ExtentAlloc, "extent_alloc"),
    (SystemFile::InodeAlloc, "inode_alloc"),
    (SystemFile::Journal, "journal"),
    (SystemFile::LocalAlloc, "local_alloc"),
    (SystemFile::TruncateLog, "truncate_log"),
    (SystemFile::LocalUserQuota, "aquota.user"),
    (SystemFile::LocalGroupQuota, "aquota.group"),
];

impl SystemFile {
    pub fn per_slot(self) -> bool {
        self as usize >= SystemFile::OrphanDir as usize
    }

    /// The name in the system directory, for the given slot where it is one per slot.
    pub fn name(self, slot: SlotNr) -> String {
        let base = FILES[self as usize].1;
        if self.per_slot() {
            format!("{base}:{:04}", slot.0)
        } else {
            base.to_owned()
        }
    }

    /// Quota files exist only with the quota features.
    fn optional(self) -> bool {
        matches!(
            self,
            SystemFile::UserQuota
                | SystemFile::GroupQuota
                | SystemFile::LocalUserQuota
                | SystemFile::LocalGroupQuota
                | SystemFile::BadBlocks
        )
    }
}

/// Inode blocks of the system files.
#[derive(Debug, Clone, Default)]
pub struct System {
    global: [BlockNr; 7],
    slots: Vec<[BlockNr; 8]>,
}

impl System {
    /// From the entries of the system directory. A file that is missing and must not be is an
    /// error that names it.
    pub fn find(max_slots: u16, mut lookup: impl FnMut(&str) -> Option<BlockNr>) -> Result<System> {
        let mut resolve = |file: SystemFile, slot: SlotNr| {
            let name = file.name(slot);
            match lookup(&name) {
                Some(nr) => Ok(nr),
                None if file.optional() => Ok(BlockNr(0)),
                None => Err(Error::NotAVolume(format!("system file {name} is missing"))),
            }
        };
        let mut global = [BlockNr(0); 7];
        for (file, _) in &FILES[..7] {
            global[*file as usize] = resolve(*file, SlotNr(0))?;
        }
        let mut slots = Vec::with_capacity(usize::from(max_slots));
        for slot in 0..max_slots {
            let mut files = [BlockNr(0); 8];
            for (file, _) in &FILES[7..] {
                files[*file as usize - 7] = resolve(*file, SlotNr(slot))?;
            }
            slots.push(files);
        }
        Ok(System { global, slots })
    }

    /// The inode block of a file; `slot` counts only for files that are one per slot.
    ///
    /// # Panics
    /// For a slot the volume has not: slots are checked where they are read.
    pub fn of(&self, file: SystemFile, slot: SlotNr) -> BlockNr {
        if file.per_slot() {
            self.slots[usize::from(slot.0)][file as usize - 7]
        } else {
            self.global[file as usize]
        }
    }

    pub fn slot_count(&self) -> u16 {
        u16::try_from(self.slots.len()).expect("slots were counted by a u16")
    }
}
