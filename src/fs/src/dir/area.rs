//! The bytes of one block that hold entries, and what is done to them: find a name or a hole, split a
//! record, merge one into its predecessor. The same for a dinode's inline data and for a block of a
//! directory's clusters. Called by the rest of this room only.
//!
//! Every step over records is checked, so a damaged length ends in [`Corrupt`], never past the area.

use std::ops::Range;

use ondisk::{
    BlockNr, Corrupt, DirBlock, DirTrailer, MIN_DIRENT_LEN, Structure, dirent_len, set_inode,
    set_rec_len, write_dirent,
};

use super::{Entry, corrupt};
use crate::cache::BlockRef;
use crate::error::{Error, Result};
use crate::journal::Handle;

/// Where entries are in a block.
#[derive(Debug, Clone)]
pub(super) struct Area {
    block: BlockRef,
    span: Range<usize>,
}

/// An entry that was found.
#[derive(Debug)]
pub(super) struct Found {
    pub area: Area,
    /// Its offset in the area.
    pub at: usize,
    pub ino: BlockNr,
    pub file_type: u8,
    /// Its entry in the index, if the directory has one.
    pub slot: Option<Slot>,
}

/// An entry of the index: in the index root or in a leaf.
#[derive(Debug)]
pub(super) struct Slot {
    pub list: BlockRef,
    pub at: usize,
}

/// An entry to be added.
pub(super) struct New<'a> {
    pub name: &'a [u8],
    pub ino: BlockNr,
    pub file_type: u8,
}

impl Area {
    pub fn new(block: BlockRef, span: Range<usize>) -> Area {
        Area { block, span }
    }

    pub fn block(&self) -> &BlockRef {
        &self.block
    }

    fn with<T>(&self, f: impl FnOnce(DirBlock<'_>) -> T) -> T {
        let data = self.block.data();
        f(DirBlock::inline(&data[self.span.clone()], self.block.nr()))
    }

    pub fn find(&self, name: &[u8]) -> Result<Option<Found>, Corrupt> {
        self.with(|entries| {
            Ok(entries.find(name)?.map(|entry| Found {
                area: self.clone(),
                at: entry.offset,
                ino: entry.inode,
                file_type: entry.file_type,
                slot: None,
            }))
        })
    }

    /// The first record with room for a name of that length.
    pub fn room_for(&self, name_len: usize) -> Result<Option<usize>, Corrupt> {
        self.with(|entries| {
            for entry in entries.entries() {
                let entry = entry?;
                if entry.room() >= dirent_len(name_len) {
                    return Ok(Some(entry.offset));
                }
            }
            Ok(None)
        })
    }

    /// Bytes of the largest hole that an entry fits into; 0 if there is none.
    pub fn largest_hole(&self) -> Result<usize, Corrupt> {
        let room = self.with(|entries| entries.largest_room())?;
        Ok(if room >= MIN_DIRENT_LEN { room } else { 0 })
    }

    /// Entries in use.
    pub fn used(&self) -> Result<usize, Corrupt> {
        self.with(|entries| {
            entries
                .entries()
                .try_fold(0, |used, entry| Ok(used + usize::from(!entry?.is_free())))
        })
    }

    /// Whether a first area starts with `.` and `..`.
    pub fn check_dots(&self, dir: BlockNr) -> Result<()> {
        let mut at = 0;
        for name in [b".".as_slice(), b".."] {
            let entry = self.with(|entries| {
                let entry = entries.entries_from(at).next().transpose();
                entry.map(|entry| entry.is_some_and(|e| !e.is_free() && e.name == name))
            })?;
            if !entry {
                let rule = "a directory starts with . and ..";
                return Err(corrupt(
                    Structure::DirBlock,
                    self.block.nr(),
                    "directory",
                    dir.0,
                    rule,
                ));
            }
            at += dirent_len(name.len());
        }
        Ok(())
    }

    /// Appends the used entries at or after offset `from` to `out`, until that holds `max`. Whether
    /// the area's end was reached. `base` is where the area starts in the directory.
    pub fn list(&self, base: u64, from: usize, max: usize, out: &mut Vec<Entry>) -> Result<bool> {
        self.with(|entries| {
            // `from` was the start of a record once: find out anew where records start.
            for entry in entries.entries() {
                let entry = entry?;
                if entry.offset < from || entry.is_free() {
                    continue;
                }
                if out.len() >= max {
                    return Ok(false);
                }
                out.push(Entry {
                    name: entry.name.to_vec(),
                    ino: entry.inode,
                    file_type: entry.file_type,
                    cookie_next: base + (entry.offset + entry.rec_len) as u64,
                });
            }
            Ok(true)
        })
    }

    /// Puts an entry into the record at `at`, which has room for it.
    pub fn add(&self, h: &mut Handle<'_>, at: usize, new: &New<'_>) -> Result<(), Corrupt> {
        let (taken, rec_len) = self.with(|entries| match entries.entries_from(at).next() {
            Some(entry) => entry.map(|entry| (entry.rec_len - entry.room(), entry.rec_len)),
            None => unreachable!("the record at {at} was found in this area"),
        })?;
        let mut data = h.modify(&self.block);
        let area = &mut data[self.span.clone()];
        if taken > 0 {
            set_rec_len(area, at, taken);
        }
        write_dirent(
            area,
            at + taken,
            new.ino,
            rec_len - taken,
            new.file_type,
            new.name,
        );
        Ok(())
    }

    /// Frees the record at `at` and gives its bytes to the one before it, if it has one.
    pub fn take_out(&self, h: &mut Handle<'_>, at: usize) -> Result<(), Corrupt> {
        let (before, rec_len) = self.with(|entries| {
            let mut before = None;
            for entry in entries.entries() {
                let entry = entry?;
                if entry.offset == at {
                    return Ok((before, entry.rec_len));
                }
                before = Some((entry.offset, entry.rec_len));
            }
            unreachable!("the record at {at} was found in this area")
        })?;
        let mut data = h.modify(&self.block);
        let area = &mut data[self.span.clone()];
        set_inode(area, at, BlockNr::NONE, 0);
        if let Some((offset, len)) = before {
            set_rec_len(area, offset, len + rec_len);
        }
        Ok(())
    }

    pub fn set_inode(&self, h: &mut Handle<'_>, at: usize, ino: BlockNr, file_type: u8) {
        let mut data = h.modify(&self.block);
        set_inode(&mut data[self.span.clone()], at, ino, file_type);
    }

    /// The names in use.
    pub fn names(&self) -> Result<Vec<Vec<u8>>, Corrupt> {
        self.with(|entries| {
            entries
                .entries()
                .filter_map(|entry| match entry {
                    Ok(entry) if entry.is_free() => None,
                    entry => Some(entry.map(|entry| entry.name.to_vec())),
                })
                .collect()
        })
    }

    /// What the block's trailer says.
    pub fn trailer(&self) -> DirTrailer {
        *DirTrailer::of(&self.block.data())
    }

    pub fn change_trailer(&self, h: &mut Handle<'_>, change: impl FnOnce(&mut DirTrailer)) {
        change(DirTrailer::of_mut(&mut h.modify(&self.block)));
    }
}

impl From<&Area> for BlockNr {
    fn from(area: &Area) -> BlockNr {
        area.block.nr()
    }
}

/// A hole that the list of blocks with holes promised is not there.
pub(super) fn no_such_hole(area: &Area) -> Error {
    let said = area.trailer().db_free_rec_len.get().into();
    let rule = "the block has no hole of that size";
    corrupt(
        Structure::DirTrailer,
        area.block.nr(),
        "db_free_rec_len",
        said,
        rule,
    )
}
