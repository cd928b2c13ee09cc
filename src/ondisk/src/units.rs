//! Identities of places and things on a volume, each its own type so that a block is never taken for a cluster.

use core::fmt;

macro_rules! identity {
    ($(#[$doc:meta])* $name:ident($int:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $int);

        impl $name {
            /// The plain number.
            pub const fn get(self) -> $int {
                self.0
            }
        }

        impl From<$int> for $name {
            fn from(value: $int) -> Self {
                Self(value)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

identity! {
    /// Number of a block on the device, counted from its start. 0 stands for "none" wherever a pointer may be absent.
    BlockNr(u64)
}
identity! {
    /// Number of a cluster, counted from the start of the device (physical) or of a file (logical).
    ClusterNr(u32)
}
identity! {
    /// Number of a node slot, below the volume's `max_slots`.
    SlotNr(u16)
}
identity! {
    /// A generation: of the volume (drawn at mkfs, repeated in every metadata block) or of an inode.
    Generation(u32)
}

/// An inode's number is the block of its dinode.
pub type Ino = BlockNr;

impl BlockNr {
    /// The absent block: what pointers that lead nowhere hold.
    pub const NONE: Self = Self(0);

    /// Whether this is a place and not [`BlockNr::NONE`].
    pub const fn is_some(self) -> bool {
        self.0 != 0
    }

    /// The block `count` further on; `None` past the end of 64 bits.
    pub const fn checked_add(self, count: u64) -> Option<Self> {
        match self.0.checked_add(count) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }
}

impl SlotNr {
    /// "No slot": in a dinode it names the global inode allocator, in the old slot map an empty slot.
    pub const INVALID: Self = Self(0xFFFF);

    /// Whether this is a slot and not [`SlotNr::INVALID`].
    pub const fn is_some(self) -> bool {
        self.0 != 0xFFFF
    }
}

/// Where an allocator took a metadata block from; every such block carries it, so that freeing needs no search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suballoc {
    /// Slot whose allocator owns the block; [`SlotNr::INVALID`] for the global inode allocator.
    pub slot: SlotNr,
    /// The block's bit in its group.
    pub bit: u16,
    /// The group's descriptor block, or [`BlockNr::NONE`] in blocks written before discontiguous groups existed.
    pub group: BlockNr,
}

impl Suballoc {
    /// The descriptor block of the group that `own` (the block that carries this) belongs to.
    ///
    /// Without a recorded group the group is contiguous and starts `bit` blocks before. `None` if that would be before
    /// the device's start, which no valid volume has.
    pub fn group_of(&self, own: BlockNr) -> Option<BlockNr> {
        if self.group.is_some() {
            Some(self.group)
        } else {
            own.0.checked_sub(u64::from(self.bit)).map(BlockNr)
        }
    }
}
