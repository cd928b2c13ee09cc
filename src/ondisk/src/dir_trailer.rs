//! The trailer of a directory block: where the block's checksum and its place in the list of blocks with holes are.
//!
//! It looks like an unused entry to a reader that does not know it.

use crate::access::{layout, prefix, prefix_mut};
use crate::corrupt::{Check, Corrupt, Structure};
use crate::le::{U16, U64};
use crate::{BlockCheck, BlockNr, Ino};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The last 64 bytes of a directory block, on volumes with META_ECC and in indexed directories.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct DirTrailer {
    /// Always 0, where an entry has its inode.
    pub db_compat_inode: U64,
    /// Always 64, where an entry has its length.
    pub db_compat_rec_len: U16,
    pub db_compat_name_len: u8,
    pub db_reserved0: u8,
    pub db_reserved1: U16,
    /// Largest hole in the block, while it is on the list.
    pub db_free_rec_len: U16,
    pub db_signature: [u8; 8],
    pub db_reserved2: U64,
    /// Next block of the list of blocks with holes, whose head is in the index root.
    pub db_free_next: U64,
    pub db_blkno: U64,
    pub db_parent_dinode: U64,
    pub db_check: BlockCheck,
}
layout!(
    DirTrailer, 0x40,
    db_compat_rec_len @ 0x08, db_free_rec_len @ 0x0E, db_signature @ 0x10, db_free_next @ 0x20, db_blkno @ 0x28,
    db_parent_dinode @ 0x30, db_check @ 0x38,
);

impl DirTrailer {
    /// What the trailer carries.
    pub const SIGNATURE: [u8; 8] = *b"DIRTRL1\0";

    /// The trailer of a directory block.
    ///
    /// # Panics
    /// If the block is shorter than a trailer.
    pub fn of(block: &[u8]) -> &Self {
        prefix(&block[block.len() - size_of::<Self>()..])
    }

    /// The trailer of a directory block, to change.
    ///
    /// # Panics
    /// If the block is shorter than a trailer.
    pub fn of_mut(block: &mut [u8]) -> &mut Self {
        let start = block.len() - size_of::<Self>();
        prefix_mut(&mut block[start..])
    }

    /// Writes the trailer of a new block of directory `dir`. Its entries are the caller's business, and so is
    /// `largest_hole` among them.
    ///
    /// # Panics
    /// If the block is shorter than a trailer.
    pub fn init(block: &mut [u8], nr: BlockNr, dir: Ino, largest_hole: u16) {
        let this = Self::of_mut(block);
        *this = Self::new_zeroed();
        this.db_signature = Self::SIGNATURE;
        this.db_compat_rec_len.set(size_of::<Self>() as u16);
        this.db_parent_dinode.set(dir.0);
        this.db_blkno.set(nr.0);
        this.db_free_rec_len.set(largest_hole);
    }

    /// Whether the trailer of `block`, read from `nr`, is one of directory `dir`.
    ///
    /// # Errors
    /// The rule it breaks.
    pub fn validate(block: &[u8], nr: BlockNr, dir: Ino) -> Result<(), Corrupt> {
        let this = Self::of(block);
        let check = Check::new(Structure::DirTrailer, nr);
        check.signature(&this.db_signature, &Self::SIGNATURE)?;
        check.own_block(this.db_blkno.get())?;
        check.equals("db_parent_dinode", this.db_parent_dinode.get(), dir.0)
    }
}
