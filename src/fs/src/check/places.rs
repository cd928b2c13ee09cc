//! The blocks of the suballocators: which of them are claimed in their group's bitmap, and which are
//! used by somebody.

use ondisk::{BlockNr, SlotNr, Suballoc};

/// An allocator of single blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AllocatorId {
    /// Its inode.
    pub nr: BlockNr,
    /// [`SlotNr::INVALID`] for the global inode allocator.
    pub slot: SlotNr,
    pub of_inodes: bool,
}

/// A group of an allocator.
pub(super) struct Group {
    pub nr: BlockNr,
    pub allocator: AllocatorId,
    /// Runs of its blocks, as (first, count), in the order of bits.
    pub runs: Vec<(u64, u32)>,
    pub bits: u32,
    claimed: Vec<u8>,
    seen: Vec<u8>,
    /// A byte for the inode behind each bit, in groups of inodes.
    states: Vec<u8>,
}

/// Where a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub group: usize,
    pub bit: u32,
}

#[derive(Default)]
pub(super) struct Places {
    pub groups: Vec<Group>,
    /// Runs of blocks with their group and first bit, sorted once all are there.
    index: Vec<(u64, u32, usize, u32)>,
    sorted: bool,
}

/// What a block's bit says to one who uses the block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// All is well.
    First(Place),
    /// Somebody else uses it as well.
    Again(Place),
    /// Its bit is clear.
    Unclaimed(Place),
    /// It is in no group of such an allocator.
    Outside,
}

fn bit(bytes: &[u8], bit: u32) -> bool {
    bytes
        .get(bit as usize / 8)
        .is_some_and(|byte| byte >> (bit % 8) & 1 == 1)
}

impl Group {
    pub fn new(
        nr: BlockNr,
        allocator: AllocatorId,
        runs: Vec<(u64, u32)>,
        bits: u32,
        bitmap: &[u8],
    ) -> Group {
        let mut claimed = bitmap[..bitmap.len().min(bits.div_ceil(8) as usize)].to_vec();
        claimed.resize(bits.div_ceil(8) as usize, 0);
        let mut seen = vec![0; claimed.len()];
        // The descriptor.
        if let Some(first) = seen.first_mut() {
            *first |= 1;
        }
        let states = if allocator.of_inodes {
            vec![0; bits as usize]
        } else {
            Vec::new()
        };
        Group {
            nr,
            allocator,
            runs,
            bits,
            claimed,
            seen,
            states,
        }
    }

    pub fn is_claimed(&self, at: u32) -> bool {
        at < self.bits && bit(&self.claimed, at)
    }

    pub fn is_seen(&self, at: u32) -> bool {
        bit(&self.seen, at)
    }

    pub fn see(&mut self, at: u32) {
        if let Some(byte) = self.seen.get_mut(at as usize / 8) {
            *byte |= 1 << (at % 8);
        }
    }

    pub fn state(&self, at: u32) -> u8 {
        self.states.get(at as usize).copied().unwrap_or(0)
    }

    pub fn state_mut(&mut self, at: u32) -> Option<&mut u8> {
        self.states.get_mut(at as usize)
    }

    /// The block of a bit.
    pub fn block(&self, at: u32) -> Option<BlockNr> {
        let mut left = at;
        for &(first, count) in &self.runs {
            if left < count {
                return Some(BlockNr(first + u64::from(left)));
            }
            left -= count;
        }
        None
    }

    /// Bits that are claimed, the descriptor's apart.
    pub fn claimed_count(&self) -> u64 {
        let all: u64 = self.claimed.iter().map(|b| u64::from(b.count_ones())).sum();
        all.saturating_sub(u64::from(self.is_claimed(0)))
    }

    /// Whether a block that says this of its allocation is at this bit.
    pub fn agrees(&self, at: u32, own: BlockNr, suballoc: Suballoc) -> bool {
        suballoc.slot == self.allocator.slot
            && u32::from(suballoc.bit) == at
            && suballoc.group_of(own) == Some(self.nr)
    }
}

impl Places {
    pub fn add(&mut self, group: Group) {
        let mut first_bit = 0;
        for &(first, count) in &group.runs {
            self.index
                .push((first, count, self.groups.len(), first_bit));
            first_bit += count;
        }
        self.groups.push(group);
        self.sorted = false;
    }

    /// To be called once all groups are there.
    pub fn sort(&mut self) {
        self.index.sort_unstable();
        self.sorted = true;
    }

    /// Whether a group of that descriptor is there.
    pub fn find(&self, nr: BlockNr) -> Option<Place> {
        debug_assert!(self.sorted);
        let after = self.index.partition_point(|run| run.0 <= nr.0);
        let &(first, count, group, first_bit) = self.index.get(after.checked_sub(1)?)?;
        let into = nr.0 - first;
        (into < u64::from(count)).then(|| Place {
            group,
            bit: first_bit + into as u32,
        })
    }

    /// The inode behind a block, if it is in a group of inodes.
    pub fn inode(&self, nr: BlockNr) -> Option<Place> {
        self.find(nr)
            .filter(|place| self.groups[place.group].allocator.of_inodes && place.bit > 0)
    }

    pub fn state(&self, place: Place) -> u8 {
        self.groups[place.group].state(place.bit)
    }

    pub fn state_mut(&mut self, place: Place) -> Option<&mut u8> {
        self.groups[place.group].state_mut(place.bit)
    }

    /// A block of metadata that is no inode is used.
    pub fn use_metadata(&mut self, nr: BlockNr) -> Use {
        let Some(place) = self.find(nr) else {
            return Use::Outside;
        };
        let group = &mut self.groups[place.group];
        if group.allocator.of_inodes || place.bit == 0 {
            return Use::Outside;
        }
        if group.is_seen(place.bit) {
            return Use::Again(place);
        }
        group.see(place.bit);
        if group.is_claimed(place.bit) {
            Use::First(place)
        } else {
            Use::Unclaimed(place)
        }
    }
}
