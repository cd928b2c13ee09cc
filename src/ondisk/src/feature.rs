//! The feature sets of the superblock and the flag words of the structures, as named bits.
//!
//! The rule owned here: an incompatible bit that is not in [`Incompat::SUPPORTED`] refuses the volume, an unknown
//! read-only-compatible bit forbids writing, an unknown compatible bit is ignored. [`names`](Incompat::refused_names)
//! say which, so that the refusal names the feature.

use bitflags::bitflags;

bitflags! {
    /// Features that do not concern one who does not know them.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Compat: u32 {
        /// Copies of the superblock at 1G, 4G, 16G, 64G, 256G, 1T.
        const BACKUP_SB = 0x0001;
        /// Journals have a V2 superblock whose feature fields are respected.
        const JBD2_SB = 0x0002;
        const _ = !0;
    }
}

bitflags! {
    /// Features that must be known to read the volume at all.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Incompat: u32 {
        const HEARTBEAT_DEV = 0x0002;
        const RESIZE_INPROG = 0x0004;
        const LOCAL_MOUNT = 0x0008;
        const SPARSE_ALLOC = 0x0010;
        const TUNEFS_INPROG = 0x0020;
        const INLINE_DATA = 0x0040;
        const USERSPACE_STACK = 0x0080;
        const EXTENDED_SLOT_MAP = 0x0100;
        const XATTR = 0x0200;
        const INDEXED_DIRS = 0x0400;
        const META_ECC = 0x0800;
        const REFCOUNT_TREE = 0x1000;
        const DISCONTIG_BG = 0x2000;
        const CLUSTERINFO = 0x4000;
        const APPEND_DIO = 0x8000;
        const _ = !0;
    }
}

bitflags! {
    /// Features that must be known to write the volume.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct RoCompat: u32 {
        const UNWRITTEN = 0x0001;
        const USRQUOTA = 0x0002;
        const GRPQUOTA = 0x0004;
        const _ = !0;
    }
}

impl Incompat {
    /// What this implementation reads. The marks of an interrupted tunefs and heartbeat-only devices are known by name
    /// and refused all the same.
    pub const SUPPORTED: Self = Self::LOCAL_MOUNT
        .union(Self::SPARSE_ALLOC)
        .union(Self::INLINE_DATA)
        .union(Self::USERSPACE_STACK)
        .union(Self::EXTENDED_SLOT_MAP)
        .union(Self::XATTR)
        .union(Self::INDEXED_DIRS)
        .union(Self::META_ECC)
        .union(Self::REFCOUNT_TREE)
        .union(Self::DISCONTIG_BG)
        .union(Self::CLUSTERINFO)
        .union(Self::APPEND_DIO);

    /// The bits for which the volume has to be refused.
    pub fn refused(self) -> Self {
        self.difference(Self::SUPPORTED)
    }

    /// [`Incompat::refused`] in words: names where known, else `incompat bit 0x…`.
    pub fn refused_names(self) -> Vec<String> {
        bit_names(self.refused(), "incompat")
    }
}

impl RoCompat {
    /// With what it writes. Of quotas it keeps the structures valid, not the usage: fsck.ocfs2 recomputes that.
    pub const SUPPORTED: Self = Self::UNWRITTEN.union(Self::USRQUOTA).union(Self::GRPQUOTA);

    /// The bits that forbid writing.
    pub fn unknown(self) -> Self {
        self.difference(Self::SUPPORTED)
    }

    /// [`RoCompat::unknown`] in words.
    pub fn unknown_names(self) -> Vec<String> {
        bit_names(self.unknown(), "ro_compat")
    }
}

impl Compat {
    /// The bits that have a name.
    pub const KNOWN: Self = Self::BACKUP_SB.union(Self::JBD2_SB);

    /// Unknown bits in words. They have no consequence.
    pub fn unknown_names(self) -> Vec<String> {
        bit_names(self.difference(Self::KNOWN), "compat")
    }
}

/// Each set bit by its name, or by set and value if it has none.
fn bit_names<F: bitflags::Flags<Bits = u32>>(set: F, family: &str) -> Vec<String> {
    let bits = set.bits();
    (0..u32::BITS)
        .map(|shift| 1u32 << shift)
        .filter(|bit| bits & bit != 0)
        .map(|bit| {
            F::FLAGS
                .iter()
                .find(|flag| flag.is_named() && flag.value().bits() == bit)
                .map_or_else(
                    || format!("{family} bit {bit:#06x}"),
                    |flag| flag.name().to_owned(),
                )
        })
        .collect()
}

bitflags! {
    /// `i_flags` of a dinode: what the inode is to the file system.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct InodeFlags: u32 {
        const VALID = 0x0001;
        const ORPHANED = 0x0004;
        const SYSTEM = 0x0010;
        const SUPER_BLOCK = 0x0020;
        const LOCAL_ALLOC = 0x0040;
        const BITMAP = 0x0080;
        const JOURNAL = 0x0100;
        const HEARTBEAT = 0x0200;
        const CHAIN = 0x0400;
        /// A truncate log.
        const DEALLOC = 0x0800;
        const QUOTA = 0x1000;
        const DIO_ORPHANED = 0x2000;
        const _ = !0;
    }
}

bitflags! {
    /// `i_dyn_features` of a dinode: which forms its content has now.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct DynFeatures: u16 {
        const INLINE_DATA = 0x0001;
        const HAS_XATTR = 0x0002;
        const INLINE_XATTR = 0x0004;
        const INDEXED_DIR = 0x0008;
        const HAS_REFCOUNT = 0x0010;
        const _ = !0;
    }
}

bitflags! {
    /// `e_flags` of a leaf extent record.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct ExtentFlags: u8 {
        /// Allocated, not yet written: reads as zeros.
        const UNWRITTEN = 0x01;
        /// Shared through a refcount tree: copy before writing.
        const REFCOUNTED = 0x02;
        const _ = !0;
    }
}

/// `ij_flags` of a journal's dinode: somebody has, or had, it mounted.
pub const JOURNAL_DIRTY: u32 = 0x0001;
/// `s_state`: the kernel saw an error; fsck is due.
pub const ERROR_FS: u16 = 0x0001;
/// `ci_stackflags`: o2cb's heartbeat regions are global, not one per volume.
pub const O2CB_GLOBAL_HEARTBEAT: u8 = 0x01;
/// `s_tunefs_flag`: tunefs was removing a slot.
pub const TUNEFS_REMOVE_SLOT: u16 = 0x0001;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_named() {
        let set = Incompat::from_bits_retain(0x1_0000 | 0x0040 | 0x0002 | 0x0020);
        assert_eq!(
            set.refused_names(),
            ["HEARTBEAT_DEV", "TUNEFS_INPROG", "incompat bit 0x10000"]
        );
        assert!(Incompat::SUPPORTED.refused_names().is_empty());
        assert_eq!(
            RoCompat::from_bits_retain(0x8 | 0x1).unknown_names(),
            ["ro_compat bit 0x0008"]
        );
        assert_eq!(
            Compat::from_bits_retain(0x83).unknown_names(),
            ["compat bit 0x0080"]
        );
    }
}
