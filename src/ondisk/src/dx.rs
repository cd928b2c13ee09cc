//! Entries of a directory's index, and the list of them that index leaves and inline index roots hold.

use crate::access::{layout, list, list_mut, prefix_mut};
use crate::capacity::offset;
use crate::corrupt::{Check, Corrupt};
use crate::hash::DirHash;
use crate::le::{U16, U32, U64};
use crate::{BlockNr, DxLeaf, DxRoot};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What precedes the entries.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct DxEntryListHeader {
    pub de_reserved: U32,
    /// Entries there is room for.
    pub de_count: U16,
    /// Entries in use.
    pub de_num_used: U16,
}
layout!(DxEntryListHeader, 8, de_count @ 4, de_num_used @ 6);

/// A name's hash, and the block with its directory entry.
#[derive(
    FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, PartialEq, Eq,
)]
#[repr(C)]
pub struct DxEntry {
    pub dx_major_hash: U32,
    pub dx_minor_hash: U32,
    /// Physical block; the entry has to be searched there.
    pub dx_dirent_blk: U64,
}
layout!(DxEntry, 0x10, dx_minor_hash @ 4, dx_dirent_blk @ 8);

impl DxEntry {
    /// An entry.
    pub fn new(hash: DirHash, block: BlockNr) -> Self {
        Self {
            dx_major_hash: hash.major.into(),
            dx_minor_hash: hash.minor.into(),
            dx_dirent_blk: block.0.into(),
        }
    }

    /// The name's hash.
    pub fn hash(&self) -> DirHash {
        DirHash {
            major: self.dx_major_hash.get(),
            minor: self.dx_minor_hash.get(),
        }
    }

    /// The block with the directory entry.
    pub fn dirent_block(&self) -> BlockNr {
        BlockNr(self.dx_dirent_blk.get())
    }
}

/// Index entries of a block, in no order.
#[derive(Clone, Copy, Debug)]
pub struct DxEntriesRef<'a> {
    pub header: &'a DxEntryListHeader,
    /// All entries, used and free.
    pub records: &'a [DxEntry],
}

/// Index entries of a block, to change.
#[derive(Debug)]
pub struct DxEntriesMut<'a> {
    pub header: &'a mut DxEntryListHeader,
    /// All entries, used and free.
    pub records: &'a mut [DxEntry],
}

fn entries_at(area: &[u8]) -> DxEntriesRef<'_> {
    let (header, records) = list(area, |head: &DxEntryListHeader| head.de_count.get().into());
    DxEntriesRef { header, records }
}

fn entries_at_mut(area: &mut [u8]) -> DxEntriesMut<'_> {
    let (header, records) = list_mut(area, |head: &DxEntryListHeader| head.de_count.get().into());
    DxEntriesMut { header, records }
}

pub(crate) fn init_entries(area: &mut [u8], count: usize) {
    let header: &mut DxEntryListHeader = prefix_mut(area);
    *header = DxEntryListHeader::new_zeroed();
    header.de_count.set(count as u16);
    entries_at_mut(area).records.fill(DxEntry::new_zeroed());
}

impl DxRoot {
    /// The entries of an inline root's block. Meaningless if [`DxRoot::is_inline`] is false.
    pub fn entries(block: &[u8]) -> DxEntriesRef<'_> {
        entries_at(&block[offset::DX_ROOT_LIST..])
    }

    /// The entries of an inline root's block, to change.
    pub fn entries_mut(block: &mut [u8]) -> DxEntriesMut<'_> {
        entries_at_mut(&mut block[offset::DX_ROOT_LIST..])
    }
}

impl DxLeaf {
    /// The entries of a leaf's block.
    pub fn entries(block: &[u8]) -> DxEntriesRef<'_> {
        entries_at(&block[offset::DX_LEAF_LIST..])
    }

    /// The entries of a leaf's block, to change.
    pub fn entries_mut(block: &mut [u8]) -> DxEntriesMut<'_> {
        entries_at_mut(&mut block[offset::DX_LEAF_LIST..])
    }
}

impl<'a> DxEntriesRef<'a> {
    /// Entries in use.
    pub fn used(&self) -> &'a [DxEntry] {
        &self.records[..usize::from(self.header.de_num_used.get()).min(self.records.len())]
    }

    /// Whether no entry is free.
    pub fn is_full(&self) -> bool {
        self.used().len() == self.records.len()
    }

    /// The used entries of a hash, with their indexes: several names may share it.
    pub fn of_hash(&self, hash: DirHash) -> impl Iterator<Item = (usize, &'a DxEntry)> {
        self.used()
            .iter()
            .enumerate()
            .filter(move |(_, entry)| entry.hash() == hash)
    }

    pub(crate) fn check_limits(&self, check: Check, capacity: usize) -> Result<(), Corrupt> {
        let count = self.header.de_count.get();
        check.equals("de_count", count, capacity as u64)?;
        check.at_most("de_num_used", self.header.de_num_used.get(), count)
    }
}

impl DxEntriesMut<'_> {
    /// The same entries to read.
    pub fn as_ref(&self) -> DxEntriesRef<'_> {
        DxEntriesRef {
            header: self.header,
            records: self.records,
        }
    }

    /// Adds an entry. `false` if there is no room.
    #[must_use]
    pub fn push(&mut self, entry: DxEntry) -> bool {
        let used = self.as_ref().used().len();
        let Some(free) = self.records.get_mut(used) else {
            return false;
        };
        *free = entry;
        self.header.de_num_used.set(used as u16 + 1);
        true
    }

    /// Takes the entry at `index` out and moves the rest down; `None` if there is none.
    pub fn remove(&mut self, index: usize) -> Option<DxEntry> {
        let used = self.as_ref().used().len();
        if index >= used {
            return None;
        }
        let removed = self.records[index];
        self.records.copy_within(index + 1..used, index);
        self.records[used - 1] = DxEntry::new_zeroed();
        self.header.de_num_used.set(used as u16 - 1);
        Some(removed)
    }
}
