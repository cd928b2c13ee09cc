//! Directory entries: records that fill a block (or an inode's inline data) from its start to its end.
//!
//! `fs` walks them with [`DirBlock::entries`], whose every step checks the record it yields, so that a damaged length
//! ends the walk with an error and not outside the block.

use crate::access::{layout, prefix, prefix_mut};
use crate::corrupt::{Check, Corrupt, Structure};
use crate::file_type::FileType;
use crate::le::{U16, U64};
use crate::{BlockNr, DirTrailer, Geometry, Ino};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Longest name.
pub const MAX_NAME_LEN: usize = 255;

/// What precedes the name.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct DirEntryHeader {
    /// 0: the record is free.
    pub inode: U64,
    /// Bytes to the next record.
    pub rec_len: U16,
    pub name_len: u8,
    /// A [`FileType`].
    pub file_type: u8,
}
layout!(DirEntryHeader, 12, rec_len @ 8, name_len @ 10, file_type @ 11);

/// Bytes that an entry with a name of this length needs.
pub const fn dirent_len(name_len: usize) -> usize {
    (size_of::<DirEntryHeader>() + name_len + 3) & !3
}

/// The shortest record there can be.
pub const MIN_DIRENT_LEN: usize = dirent_len(1);

/// Whether a name can be one: not empty, not too long, no slash and no NUL.
pub fn is_legal_name(name: &[u8]) -> bool {
    (1..=MAX_NAME_LEN).contains(&name.len()) && !name.iter().any(|byte| matches!(byte, 0 | b'/'))
}

/// The area of a directory's entries: a whole block, a block before its trailer, or inline data.
#[derive(Clone, Copy, Debug)]
pub struct DirBlock<'a> {
    area: &'a [u8],
    nr: BlockNr,
}

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// Byte offset in the block or the inline data.
    pub offset: usize,
    /// The inode; [`BlockNr::NONE`] if the record is free.
    pub inode: Ino,
    /// Bytes to the next record.
    pub rec_len: usize,
    /// As stored; see [`DirEntry::kind`].
    pub file_type: u8,
    /// As stored, in a free record too.
    pub name: &'a [u8],
}

impl DirEntry<'_> {
    /// Whether nothing is in it.
    pub const fn is_free(&self) -> bool {
        !self.inode.is_some()
    }

    /// The type, if the entry says one.
    pub const fn kind(&self) -> Option<FileType> {
        FileType::of_dirent(self.file_type)
    }

    /// Bytes that another entry could take of this record: all of a free one, else what its own name leaves.
    pub const fn room(&self) -> usize {
        if self.is_free() {
            self.rec_len
        } else {
            self.rec_len.saturating_sub(dirent_len(self.name.len()))
        }
    }
}

impl<'a> DirBlock<'a> {
    /// The entries of a directory's block; `trailer` as [`Geometry::has_dir_trailer`](crate::Geometry::has_dir_trailer)
    /// says.
    ///
    /// # Panics
    /// If the block is shorter than a trailer.
    pub fn new(block: &'a [u8], nr: BlockNr, trailer: bool) -> Self {
        Self {
            area: &block[..entries_end(block.len(), trailer)],
            nr,
        }
    }

    /// The entries of an inline directory: `data` is the whole room of inline data
    /// ([`inline_data`](crate::inline_data)) of the dinode in block `nr`.
    pub const fn inline(data: &'a [u8], nr: BlockNr) -> Self {
        Self { area: data, nr }
    }

    /// The bytes that entries fill.
    pub const fn area(&self) -> &'a [u8] {
        self.area
    }

    /// All records, free ones too, from the start. After an error there is nothing more.
    pub const fn entries(&self) -> DirEntries<'a> {
        DirEntries {
            area: self.area,
            nr: self.nr,
            offset: 0,
        }
    }

    /// The records from `offset` on, which must be the start of one: a bad offset yields an error or wrong names, so a
    /// position kept from an earlier walk is only good while the block has not changed.
    pub const fn entries_from(&self, offset: usize) -> DirEntries<'a> {
        DirEntries {
            area: self.area,
            nr: self.nr,
            offset,
        }
    }

    /// The entry of this name.
    ///
    /// # Errors
    /// The first broken record before it.
    pub fn find(&self, name: &[u8]) -> Result<Option<DirEntry<'a>>, Corrupt> {
        for entry in self.entries() {
            let entry = entry?;
            if !entry.is_free() && entry.name == name {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    /// Bytes of the largest hole another entry could go to: what a trailer's `db_free_rec_len` says.
    ///
    /// # Errors
    /// The first broken record.
    pub fn largest_room(&self) -> Result<usize, Corrupt> {
        self.entries()
            .try_fold(0, |largest, entry| Ok(largest.max(entry?.room())))
    }

    /// Whether every record is sound.
    ///
    /// # Errors
    /// The first broken record.
    pub fn check(&self) -> Result<(), Corrupt> {
        self.entries().try_for_each(|entry| entry.map(drop))
    }

    /// Whether `block`, read from `nr`, is a block of directory `dir` (`indexed` as its dinode says): its trailer, if it
    /// has one, and all records.
    ///
    /// # Errors
    /// The rule it breaks.
    pub fn validate(
        block: &[u8],
        nr: BlockNr,
        geometry: &Geometry,
        dir: Ino,
        indexed: bool,
    ) -> Result<(), Corrupt> {
        let trailer = geometry.has_dir_trailer(indexed);
        if trailer {
            DirTrailer::validate(block, nr, dir)?;
        }
        DirBlock::new(block, nr, trailer).check()
    }
}

/// Where the entries of a block end.
pub const fn entries_end(block_size: usize, trailer: bool) -> usize {
    if trailer {
        block_size - size_of::<DirTrailer>()
    } else {
        block_size
    }
}

/// Walks the records of a [`DirBlock`].
#[derive(Clone, Debug)]
pub struct DirEntries<'a> {
    area: &'a [u8],
    nr: BlockNr,
    offset: usize,
}

impl<'a> Iterator for DirEntries<'a> {
    type Item = Result<DirEntry<'a>, Corrupt>;

    fn next(&mut self) -> Option<Self::Item> {
        let offset = self.offset;
        let rest = self.area.get(offset..)?;
        if rest.is_empty() {
            return None;
        }
        let entry = read_entry(rest, offset, self.nr);
        // After an error the walk has lost its place.
        self.offset = entry
            .as_ref()
            .map_or(self.area.len(), |entry| offset + entry.rec_len);
        Some(entry)
    }
}

impl core::iter::FusedIterator for DirEntries<'_> {}

/// The record at the start of `rest`, which runs to the end of the area.
fn read_entry(rest: &[u8], offset: usize, nr: BlockNr) -> Result<DirEntry<'_>, Corrupt> {
    let check = Check::new(Structure::DirBlock, nr);
    check.at(
        rest.len() >= MIN_DIRENT_LEN,
        offset,
        "no room for an entry before the end",
        rest.len() as u64,
    )?;
    let header: &DirEntryHeader = prefix(rest);
    let rec_len = usize::from(header.rec_len.get());
    let name_len = usize::from(header.name_len);
    let left = rest.len();
    let rule = |holds, rule| check.at(holds, offset, rule, rec_len as u64);
    rule(
        rec_len >= MIN_DIRENT_LEN,
        "rec_len is smaller than the smallest entry",
    )?;
    rule(rec_len.is_multiple_of(4), "rec_len is no multiple of four")?;
    rule(
        rec_len >= dirent_len(name_len),
        "rec_len is too small for the name",
    )?;
    rule(rec_len <= left, "rec_len leads past the end")?;
    rule(
        rec_len == left || left - rec_len >= MIN_DIRENT_LEN,
        "rec_len leaves a rest that no entry fits into",
    )?;
    Ok(DirEntry {
        offset,
        inode: BlockNr(header.inode.get()),
        rec_len,
        file_type: header.file_type,
        name: &rest[size_of::<DirEntryHeader>()..size_of::<DirEntryHeader>() + name_len],
    })
}

/// Writes an entry at `offset` of `area`, `rec_len` bytes to the next one. Bytes behind the name stay as they are.
///
/// # Panics
/// If the name is longer than 255 bytes or does not fit into `rec_len`, or `rec_len` into the area: the caller found the
/// place with a checked walk.
pub fn write_dirent(
    area: &mut [u8],
    offset: usize,
    inode: Ino,
    rec_len: usize,
    file_type: u8,
    name: &[u8],
) {
    assert!(
        dirent_len(name.len()) <= rec_len && name.len() <= MAX_NAME_LEN,
        "a name of {} in {rec_len}",
        name.len()
    );
    let record = &mut area[offset..offset + rec_len];
    *prefix_mut(record) = DirEntryHeader {
        inode: inode.0.into(),
        rec_len: (rec_len as u16).into(),
        name_len: name.len() as u8,
        file_type,
    };
    record[size_of::<DirEntryHeader>()..][..name.len()].copy_from_slice(name);
}

/// Fills `area` with one free record.
///
/// # Panics
/// If the area is shorter than an entry.
pub fn init_free_area(area: &mut [u8]) {
    area.fill(0);
    let len = area.len();
    write_dirent(area, 0, BlockNr::NONE, len, 0, b"");
}

/// Changes the length of the record at `offset`, as when it is split or takes its successor in.
///
/// # Panics
/// If there is no room for a record at `offset`.
pub fn set_rec_len(area: &mut [u8], offset: usize, rec_len: usize) {
    let header: &mut DirEntryHeader = prefix_mut(&mut area[offset..]);
    header.rec_len.set(rec_len as u16);
}

/// Changes the inode (and type) of the record at `offset`; [`BlockNr::NONE`] frees it.
///
/// # Panics
/// If there is no room for a record at `offset`.
pub fn set_inode(area: &mut [u8], offset: usize, inode: Ino, file_type: u8) {
    let header: &mut DirEntryHeader = prefix_mut(&mut area[offset..]);
    header.inode.set(inode.0);
    header.file_type = file_type;
}

/// Fills a new directory's first area with `.` and `..`.
///
/// # Panics
/// If the area is shorter than both.
pub fn init_dot_entries(area: &mut [u8], own: Ino, parent: Ino) {
    area.fill(0);
    let first = dirent_len(1);
    let rest = area.len() - first;
    write_dirent(area, 0, own, first, FileType::Directory.dirent(), b".");
    write_dirent(
        area,
        first,
        parent,
        rest,
        FileType::Directory.dirent(),
        b"..",
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(block: &[u8]) -> Vec<(Vec<u8>, usize)> {
        DirBlock::inline(block, BlockNr(9))
            .entries()
            .map(|entry| entry.expect("sound"))
            .map(|entry| (entry.name.to_vec(), entry.room()))
            .collect()
    }

    #[test]
    fn a_new_directory_has_its_dots() {
        let mut area = vec![0xFF; 312];
        init_dot_entries(&mut area, BlockNr(7), BlockNr(5));
        assert_eq!(
            names(&area),
            [(b".".to_vec(), 0), (b"..".to_vec(), 312 - 16 - 16)]
        );
        let found = DirBlock::inline(&area, BlockNr(9))
            .find(b"..")
            .expect("sound")
            .expect("there");
        assert_eq!((found.inode, found.offset), (BlockNr(5), 16));
    }

    #[test]
    fn each_rule_of_a_record_is_checked_once_and_ends_the_walk() {
        for (rec_len, name_len) in [(0, 0), (12, 0), (18, 1), (16, 5), (516, 1), (500, 1)] {
            let mut block = vec![0u8; 512];
            *prefix_mut(&mut block) = DirEntryHeader {
                inode: 1.into(),
                rec_len: rec_len.into(),
                name_len,
                file_type: 1,
            };
            let mut walk = DirBlock::new(&block, BlockNr(3), false).entries();
            let error = walk
                .next()
                .expect("a first record")
                .expect_err("it is broken");
            assert_eq!(
                (error.block, error.what),
                (BlockNr(3), Structure::DirBlock),
                "{rec_len} {name_len}"
            );
            assert!(walk.next().is_none());
        }
    }

    #[test]
    fn names_are_judged() {
        assert!(is_legal_name(b"a") && is_legal_name(&[b'x'; 255]));
        for name in [b"".as_slice(), b"a/b", b"a\0", &[b'x'; 256]] {
            assert!(!is_legal_name(name));
        }
    }
}
