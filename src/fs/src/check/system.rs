//! The first phase: superblock and backups, the system directory, journals, slot map. After it the
//! system files are known.

use std::collections::BTreeMap;

use ondisk::feature::InodeFlags;
use ondisk::jbd2;
use ondisk::{BlockNr, Dinode, FileType, Kind, SUPER_BLOCK, SlotNr, SuperBlock, SystemFile};

use super::report::Phase;
use super::view::{Step, Stop};
use super::{Checker, Code, Spot};
use crate::error::Error;
use crate::limits::JOURNAL_MIN_BYTES;

/// System files by what they are, and whose inode is one.
#[derive(Default)]
pub(super) struct Files {
    by_name: BTreeMap<(SystemFile, u16), BlockNr>,
}

impl Files {
    pub fn of(&self, file: SystemFile, slot: u16) -> Option<BlockNr> {
        self.by_name.get(&(file, slot)).copied()
    }

    /// The slot whose orphan directory an inode is.
    pub fn orphan_slot(&self, ino: BlockNr) -> Option<u16> {
        let all = self.by_name.iter();
        all.filter(|((file, _), _)| *file == SystemFile::OrphanDir)
            .find(|(_, nr)| **nr == ino)
            .map(|((_, slot), _)| *slot)
    }

    pub fn all(&self, file: SystemFile) -> Vec<(u16, BlockNr)> {
        let all = self.by_name.iter().filter(|((is, _), _)| *is == file);
        all.map(|((_, slot), nr)| (*slot, *nr)).collect()
    }
}

fn is_optional(file: SystemFile) -> bool {
    use SystemFile::*;
    matches!(
        file,
        BadBlocks | Heartbeat | UserQuota | GroupQuota | LocalUserQuota | LocalGroupQuota
    )
}

impl Checker<'_> {
    pub(super) async fn check_system(&mut self) -> Step<()> {
        self.report.begin(Phase::System, 4)?;
        self.check_super_block().await?;
        self.report.advance(1)?;
        self.find_system_files().await?;
        self.report.advance(1)?;
        self.check_journals().await?;
        self.report.advance(1)?;
        self.check_slot_map().await?;
        self.report.advance(1)
    }

    async fn check_super_block(&mut self) -> Step<()> {
        if let Some(bytes) = self.read(SUPER_BLOCK, Kind::SuperBlock, None).await? {
            let spot = Spot::block(SUPER_BLOCK);
            match SuperBlock::parse(&bytes) {
                Ok(geometry) if geometry == *self.geometry => {}
                Ok(_) => {
                    // s_state and sizes may be changed by those who mount it; what counts is here.
                    let message = "the superblock has changed since the volume was mounted";
                    self.note(Code::SuperblockInvalid, spot, message);
                }
                Err(error) => self.find(Code::SuperblockInvalid, spot, error.to_string()),
            }
        }
        let backups: Vec<BlockNr> = self.geometry.backup_super_blocks().collect();
        for nr in backups {
            let spot = Spot::block(nr);
            let Some(bytes) = self.read(nr, Kind::SuperBlock, None).await? else {
                continue;
            };
            let found = match SuperBlock::parse_at(&bytes, nr) {
                Ok(backup) => {
                    let ours = &self.geometry;
                    let same = backup.uuid == ours.uuid
                        && backup.fs_generation == ours.fs_generation
                        && backup.block_size_bits == ours.block_size_bits
                        && backup.cluster_size_bits == ours.cluster_size_bits
                        && backup.root_dir == ours.root_dir
                        && backup.system_dir == ours.system_dir
                        && backup.first_cluster_group == ours.first_cluster_group;
                    (!same).then(|| "it is of another volume".to_owned())
                }
                Err(error) => Some(error.to_string()),
            };
            if let Some(why) = found {
                let message = format!("backup superblock: {why}");
                self.find(Code::BackupSuperblockInvalid, spot, message);
            }
        }
        Ok(())
    }

    async fn find_system_files(&mut self) -> Step<()> {
        let dir = self.geometry.system_dir;
        let mut found: BTreeMap<Vec<u8>, BlockNr> = BTreeMap::new();
        let mut walk = self.open_dir(dir).await?;
        if walk.is_none() {
            let message = "the system directory cannot be read";
            self.find(Code::SystemFileInvalid, Spot::ino(dir), message);
        }
        while let Some(block) = self.next_dir_block(&mut walk).await? {
            for entry in block.entries() {
                let Ok(entry) = entry else { break };
                if entry.inode.is_some() {
                    found.insert(entry.name.to_vec(), entry.inode);
                }
            }
        }
        let slots = self.geometry.max_slots;
        let global = SystemFile::GLOBAL.map(|file| (file, 0));
        let per_slot = (0..slots).flat_map(|slot| SystemFile::PER_SLOT.map(|file| (file, slot)));
        for (file, slot) in global.into_iter().chain(per_slot) {
            let name = file.name(SlotNr(slot));
            match found.get(name.as_bytes()) {
                Some(&nr) if self.holds(nr) => {
                    self.files.by_name.insert((file, slot), nr);
                }
                Some(&nr) => {
                    let message = format!("{name} is inode {nr}, outside the volume");
                    self.find(Code::SystemFileInvalid, Spot::ino(dir), message);
                }
                None if is_optional(file) => {}
                None => {
                    let code = match file {
                        SystemFile::OrphanDir => Code::OrphanDirMissing,
                        _ => Code::SystemFileMissing,
                    };
                    let message = format!("{name} is missing in the system directory");
                    self.find(code, Spot::ino(dir), message);
                }
            }
        }
        Ok(())
    }

    /// The inode of a system file, if it is a regular file with these flags.
    pub(super) async fn system_inode(
        &mut self,
        file: SystemFile,
        slot: u16,
        flags: InodeFlags,
    ) -> Step<Option<(BlockNr, Vec<u8>)>> {
        let Some(nr) = self.files.of(file, slot) else {
            return Ok(None);
        };
        let Some(bytes) = self.read(nr, Kind::Dinode, Some(nr)).await? else {
            return Ok(None);
        };
        let inode = Dinode::of(&bytes);
        let wanted = flags | InodeFlags::VALID | InodeFlags::SYSTEM;
        let sound = inode.i_signature == Dinode::SIGNATURE
            && inode.flags().contains(wanted)
            && inode.file_type() == Some(FileType::Regular);
        if !sound {
            let name = file.name(SlotNr(slot));
            let message = format!(
                "{name} is no system file of its kind: flags {:#x}, mode {:#o}",
                inode.i_flags.get(),
                inode.i_mode.get()
            );
            self.find(Code::SystemFileInvalid, Spot::ino(nr), message);
            return Ok(None);
        }
        Ok(Some((nr, bytes)))
    }

    async fn check_journals(&mut self) -> Step<()> {
        let block_size = self.geometry.block_size();
        let least = JOURNAL_MIN_BYTES >> self.geometry.cluster_size_bits;
        let mut seen: Vec<(u16, BlockNr, u32, [u32; 3])> = Vec::new();
        for slot in 0..self.geometry.max_slots {
            let journal = self
                .system_inode(SystemFile::Journal, slot, InodeFlags::JOURNAL)
                .await?;
            let Some((nr, bytes)) = journal else { continue };
            let inode = Dinode::of(&bytes);
            if self.at_rest && inode.journal_is_dirty() {
                return Err(Stop::Failed(Error::Busy(format!(
                    "the journal of slot {slot} needs recovery: mount the volume, or run fsck.ocfs2"
                ))));
            }
            let clusters = inode.i_clusters.get();
            let blocks = inode.i_size.get() / block_size as u64;
            let first = self.first_extent(nr, &bytes).await?;
            let spot = Spot::ino(nr);
            let Some(first) = first else {
                self.find(
                    Code::JournalFileInvalid,
                    spot,
                    format!("journal {slot} has no block"),
                );
                continue;
            };
            let Some(features) = self.journal_super(slot, nr, first, blocks).await? else {
                continue;
            };
            seen.push((slot, nr, clusters, features));
        }
        let most = seen.iter().map(|journal| journal.2).max().unwrap_or(0);
        let union = seen.iter().fold([0; 3], |all, journal| {
            [0, 1, 2].map(|at| all[at] | journal.3[at])
        });
        for (slot, nr, clusters, features) in seen {
            if features != union {
                let message = format!(
                    "journal {slot} has the features {features:x?}, others have {union:x?}"
                );
                self.find(Code::JournalMissingFeature, Spot::ino(nr), message);
            }
            if clusters != most || u64::from(clusters) < least {
                let message = format!(
                    "journal {slot} has {clusters} clusters, others have {most}, {least} are needed"
                );
                self.find(Code::JournalTooSmall, Spot::ino(nr), message);
            }
        }
        Ok(())
    }

    /// The feature sets of a journal, if its superblock is one.
    async fn journal_super(
        &mut self,
        slot: u16,
        nr: BlockNr,
        first: BlockNr,
        blocks: u64,
    ) -> Step<Option<[u32; 3]>> {
        let spot = Spot::of(nr, first);
        let mut tries = 0;
        loop {
            // Its owner writes it in place: what is read meanwhile may be half of each.
            let Some(bytes) = self.read(first, Kind::Raw, Some(nr)).await? else {
                return Ok(None);
            };
            let journal = jbd2::SuperBlock::of(&bytes);
            let Err(error) = jbd2::SuperBlock::validate(&bytes, first, blocks) else {
                return Ok(Some([
                    journal.s_feature_compat.get(),
                    journal.s_feature_incompat.get(),
                    journal.s_feature_ro_compat.get(),
                ]));
            };
            tries += 1;
            if tries < 3 && !self.at_rest {
                continue;
            }
            let known = jbd2::JournalIncompat::SUPPORTED;
            let unknown = !journal.incompat().difference(known).is_empty();
            let code = if unknown && journal.s_header.h_magic.get() == jbd2::MAGIC {
                Code::JournalUnknownFeature
            } else {
                Code::JournalFileInvalid
            };
            self.find(code, spot, format!("journal {slot}: {error}"));
            return Ok(None);
        }
    }

    async fn check_slot_map(&mut self) -> Step<()> {
        let map = self
            .system_inode(SystemFile::SlotMap, 0, InodeFlags::empty())
            .await?;
        let Some((nr, bytes)) = map else {
            return Ok(());
        };
        let needed = ondisk::slot_map_bytes(&self.geometry);
        let block_size = self.geometry.block_size();
        let size = Dinode::of(&bytes).i_size.get();
        let first = self.first_extent(nr, &bytes).await?;
        let spot = Spot::ino(nr);
        let Some(first) = first.filter(|_| size >= needed as u64) else {
            let message = format!("{size} bytes, {needed} are needed for all slots");
            self.find(Code::SlotMapInvalid, spot, message);
            return Ok(());
        };
        let mut content = Vec::new();
        // The file begins with a cluster, which holds the largest map there is.
        for index in 0..needed.div_ceil(block_size) as u64 {
            let Some(nr) = first.checked_add(index) else {
                return Ok(());
            };
            match self.read(nr, Kind::Raw, None).await? {
                Some(bytes) => content.extend(bytes),
                None => return Ok(()),
            }
        }
        let mut nodes = Vec::new();
        match ondisk::slot_map(&content, first, &self.geometry) {
            Ok(map) => nodes.extend(map.taken().map(|(_, node)| node)),
            Err(error) => self.find(Code::SlotMapInvalid, spot, error.to_string()),
        }
        nodes.sort_unstable();
        for pair in nodes.windows(2).filter(|pair| pair[0] == pair[1]) {
            let message = format!("node {} has two slots", pair[0]);
            self.find(Code::SlotMapInvalid, spot, message);
        }
        Ok(())
    }
}
