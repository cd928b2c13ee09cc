//! The system files: names in the system directory, and which of them every slot has a copy of.

use crate::SlotNr;

/// A kind of system file, in the format's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
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

impl SystemFile {
    /// Those there is one of.
    pub const GLOBAL: [Self; 7] = [
        Self::BadBlocks,
        Self::GlobalInodeAlloc,
        Self::SlotMap,
        Self::Heartbeat,
        Self::GlobalBitmap,
        Self::UserQuota,
        Self::GroupQuota,
    ];

    /// Those every slot has one of.
    pub const PER_SLOT: [Self; 8] = [
        Self::OrphanDir,
        Self::ExtentAlloc,
        Self::InodeAlloc,
        Self::Journal,
        Self::LocalAlloc,
        Self::TruncateLog,
        Self::LocalUserQuota,
        Self::LocalGroupQuota,
    ];

    /// Whether every slot has one.
    pub const fn is_per_slot(self) -> bool {
        self as u8 >= Self::OrphanDir as u8
    }

    /// The name, without the slot where there is one.
    const fn stem(self) -> &'static str {
        match self {
            Self::BadBlocks => "bad_blocks",
            Self::GlobalInodeAlloc => "global_inode_alloc",
            Self::SlotMap => "slot_map",
            Self::Heartbeat => "heartbeat",
            Self::GlobalBitmap => "global_bitmap",
            Self::UserQuota | Self::LocalUserQuota => "aquota.user",
            Self::GroupQuota | Self::LocalGroupQuota => "aquota.group",
            Self::OrphanDir => "orphan_dir",
            Self::ExtentAlloc => "extent_alloc",
            Self::InodeAlloc => "inode_alloc",
            Self::Journal => "journal",
            Self::LocalAlloc => "local_alloc",
            Self::TruncateLog => "truncate_log",
        }
    }

    /// The name in the system directory. `slot` does not matter for those there is one of.
    pub fn name(self, slot: SlotNr) -> String {
        if self.is_per_slot() {
            format!("{}:{:04}", self.stem(), slot.0)
        } else {
            self.stem().to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_carry_the_slot_only_where_there_is_one() {
        assert_eq!(SystemFile::Journal.name(SlotNr(12)), "journal:0012");
        assert_eq!(SystemFile::UserQuota.name(SlotNr(12)), "aquota.user");
        assert_eq!(
            SystemFile::LocalUserQuota.name(SlotNr(0)),
            "aquota.user:0000"
        );
        assert!(SystemFile::GLOBAL.iter().all(|file| !file.is_per_slot()));
        assert!(SystemFile::PER_SLOT.iter().all(|file| file.is_per_slot()));
    }
}
