//! The journal's superblock: block 0 of a journal file.
//!
//! The crash rule it serves: `s_start` is not 0 while there may be something to replay. It is set before the first
//! transaction since then may be needed, and moved (with `s_sequence`) only over transactions whose blocks are at home.
//! The converse does not hold: mkfs makes journals that start at 1 with nothing there. A replay finds that out.

use super::{BlockType, Header, MAGIC, Tid};
use crate::BlockNr;
use crate::access::{layout, over_block};
use crate::be::{I32, U32};
use crate::corrupt::{Check, Corrupt, Structure};
use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The superblock as far as it is used. `s_users` follows at 0x100 in blocks that are large enough.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct SuperBlock {
    pub s_header: Header,
    pub s_blocksize: U32,
    /// Blocks of the journal, this one included.
    pub s_maxlen: U32,
    /// First block of the log.
    pub s_first: U32,
    /// First transaction expected in the log.
    pub s_sequence: U32,
    /// Block where the log starts; 0 if it is empty.
    pub s_start: U32,
    /// Why the journal was aborted, as a negative errno.
    pub s_errno: I32,
    pub s_feature_compat: U32,
    pub s_feature_incompat: U32,
    pub s_feature_ro_compat: U32,
    pub s_uuid: [u8; 16],
    pub s_nr_users: U32,
    pub s_dynsuper: U32,
    pub s_max_transaction: U32,
    pub s_max_trans_data: U32,
    pub s_checksum_type: u8,
    pub s_padding2: [u8; 3],
    pub s_num_fc_blks: U32,
    pub s_padding: [U32; 41],
    pub s_checksum: U32,
}
layout!(
    SuperBlock, 0x100,
    s_blocksize @ 0x0C, s_maxlen @ 0x10, s_first @ 0x14, s_sequence @ 0x18, s_start @ 0x1C, s_errno @ 0x20,
    s_feature_compat @ 0x24, s_feature_incompat @ 0x28, s_feature_ro_compat @ 0x2C, s_uuid @ 0x30,
    s_nr_users @ 0x40, s_max_transaction @ 0x48, s_checksum_type @ 0x50, s_num_fc_blks @ 0x54, s_checksum @ 0xFC,
);
over_block!(SuperBlock);

bitflags! {
    /// Features that one who does not know them can ignore.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct JournalCompat: u32 {
        /// Commit blocks carry a CRC of their transaction.
        const CHECKSUM = 0x1;
        const _ = !0;
    }
}

bitflags! {
    /// Features that must be known to replay the log.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct JournalIncompat: u32 {
        /// Revoke blocks may occur.
        const REVOKE = 0x01;
        /// Block numbers have 64 bits.
        const WIDE = 0x02;
        /// A commit block may be written before what it commits.
        const ASYNC_COMMIT = 0x04;
        const CSUM_V2 = 0x08;
        const CSUM_V3 = 0x10;
        const FAST_COMMIT = 0x20;
        const _ = !0;
    }
}

impl JournalIncompat {
    /// What this implementation replays.
    pub const SUPPORTED: Self = Self::REVOKE.union(Self::WIDE).union(Self::ASYNC_COMMIT);
}

/// What a new journal starts with.
#[derive(Debug, Clone, Copy)]
pub struct NewJournal {
    /// Blocks of the journal's file.
    pub blocks: u32,
    /// The volume's UUID.
    pub uuid: [u8; 16],
    pub compat: JournalCompat,
    pub incompat: JournalIncompat,
}

impl SuperBlock {
    /// Makes `block` the superblock of an empty journal, V2.
    pub fn init(block: &mut [u8], new: &NewJournal) {
        block.fill(0);
        let size = block.len() as u32;
        let this = Self::of_mut(block);
        this.s_header = Header::new(BlockType::SuperBlockV2, Tid(0));
        this.s_blocksize = size.into();
        this.s_maxlen = new.blocks.into();
        // Two blocks of 512 bytes are the superblock of 1024 that Linux defines.
        this.s_first = (if size < 1024 { 2 } else { 1 }).into();
        this.s_sequence = 1.into();
        this.s_uuid = new.uuid;
        this.s_nr_users = 1.into();
        this.s_feature_compat = new.compat.bits().into();
        this.s_feature_incompat = new.incompat.bits().into();
    }

    /// Whether the feature fields mean anything.
    pub fn is_v2(&self) -> bool {
        self.s_header.h_blocktype.get() == BlockType::SuperBlockV2 as u32
    }

    /// Compatible features; none in a V1 superblock.
    pub fn compat(&self) -> JournalCompat {
        JournalCompat::from_bits_retain(if self.is_v2() {
            self.s_feature_compat.get()
        } else {
            0
        })
    }

    /// Incompatible features; none in a V1 superblock.
    pub fn incompat(&self) -> JournalIncompat {
        let bits = if self.is_v2() {
            self.s_feature_incompat.get()
        } else {
            0
        };
        JournalIncompat::from_bits_retain(bits)
    }

    /// Whether block numbers in tags and revoke records have 64 bits.
    pub fn is_wide(&self) -> bool {
        self.incompat().contains(JournalIncompat::WIDE)
    }

    /// First transaction expected in the log.
    pub fn sequence(&self) -> Tid {
        Tid(self.s_sequence.get())
    }

    /// Whether there is nothing to replay. A new journal of mkfs says no, and has nothing either.
    pub fn is_clean(&self) -> bool {
        self.s_start.get() == 0
    }

    /// The block of the log after `block`: the one behind it, or the first one.
    pub fn next_block(&self, block: u32) -> u32 {
        match block.checked_add(1) {
            Some(next) if next < self.s_maxlen.get() => next,
            _ => self.s_first.get(),
        }
    }

    /// Whether `block`, read from `nr`, is the superblock of a journal of at most `file_blocks` blocks that we can
    /// replay.
    ///
    /// # Errors
    /// The rule it breaks.
    pub fn validate(block: &[u8], nr: BlockNr, file_blocks: u64) -> Result<(), Corrupt> {
        let this = Self::of(block);
        let check = Check::new(Structure::JournalSuperBlock, nr);
        check.equals("h_magic", this.s_header.h_magic.get(), MAGIC)?;
        let kind = this.s_header.h_blocktype.get();
        let known = matches!(
            BlockType::of(kind),
            Some(BlockType::SuperBlockV1 | BlockType::SuperBlockV2)
        );
        check.rule(known, "h_blocktype", kind, "no superblock")?;
        check.equals("s_blocksize", this.s_blocksize.get(), block.len() as u64)?;
        let (length, first, start) = (this.s_maxlen.get(), this.s_first.get(), this.s_start.get());
        check.at_most("s_maxlen", length, file_blocks)?;
        check.rule(
            first > 0 && first < length,
            "s_first",
            first,
            "must lie behind the superblock, in the journal",
        )?;
        // Not held to s_first: with blocks of 512 bytes mkfs says that the log starts at 1 while its first block is 2.
        check.rule(start < length, "s_start", start, "must lie in the journal")?;
        let unknown = this
            .incompat()
            .difference(JournalIncompat::SUPPORTED)
            .bits();
        check.rule(
            unknown == 0,
            "s_feature_incompat",
            unknown,
            "features we do not know",
        )?;
        let read_only = if this.is_v2() {
            this.s_feature_ro_compat.get()
        } else {
            0
        };
        check.rule(
            read_only == 0,
            "s_feature_ro_compat",
            read_only,
            "features we do not know",
        )
    }
}
