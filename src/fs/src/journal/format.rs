//! The journal's blocks as bytes, built and taken apart. All integers are big-endian.
//!
//! ```text
//!  log:  │descriptor│data│data│…│descriptor│data│…│commit│descriptor│…        (wraps at s_maxlen)
//! ```
//! A descriptor says by its tags which home block each of the following data blocks belongs to.

use ondisk::{BlockNr, Check, Structure, Why};
use runtime::WallTime;

use super::Tid;
use crate::error::{Error, Result};

/// What every block of the log but data starts with; a data block that does so is escaped.
pub(super) const MAGIC: [u8; 4] = [0xC0, 0x3B, 0x39, 0x98];

const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const SUPER_V1: u32 = 3;
const SUPER_V2: u32 = 4;
const REVOKE: u32 = 5;

const HEADER_BYTES: usize = 12;
const UUID_BYTES: usize = 16;

/// The data block's first four bytes were the magic number and are zero in the log.
const TAG_ESCAPE: u16 = 1;
const TAG_SAME_UUID: u16 = 2;
const TAG_LAST: u16 = 8;

const COMPAT_CHECKSUM: u32 = 1;
const INCOMPAT_64BIT: u32 = 2;
const INCOMPAT_ASYNC_COMMIT: u32 = 4;
/// Revoke, 64bit, async_commit: what a replay here understands.
const INCOMPAT_KNOWN: u32 = 7;
/// Incompatible features by bit.
const INCOMPAT_NAMES: [&str; 6] = [
    "revoke",
    "64bit",
    "async_commit",
    "csum_v2",
    "csum_v3",
    "fast_commit",
];

/// `h_chksum_type` of a CRC-32, and its `h_chksum_size`.
const CHECKSUM_CRC32: (u8, u8) = (1, 4);

fn get(block: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(block[at..at + 4].try_into().expect("four bytes"))
}

fn put(block: &mut [u8], at: usize, value: u32) {
    block[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

/// What a block of the log is, if it is not data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BlockType {
    Descriptor,
    Commit,
    Revoke,
}

/// Type and transaction of a block of the log; `None` for anything else.
pub(super) fn header(block: &[u8]) -> Option<(BlockType, u32)> {
    if block[..4] != MAGIC {
        return None;
    }
    let kind = match get(block, 4) {
        DESCRIPTOR => BlockType::Descriptor,
        COMMIT => BlockType::Commit,
        REVOKE => BlockType::Revoke,
        _ => return None,
    };
    Some((kind, get(block, 8)))
}

fn begin(block_size: usize, kind: u32, tid: Tid) -> Vec<u8> {
    let mut block = vec![0; block_size];
    block[..4].copy_from_slice(&MAGIC);
    put(&mut block, 4, kind);
    put(&mut block, 8, tid.sequence());
    block
}

/// One entry of a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tag {
    pub home: BlockNr,
    pub escaped: bool,
}

/// How long tags are, and so how many fit.
#[derive(Debug, Clone, Copy)]
pub(super) struct TagForm {
    block_size: usize,
    wide: bool,
}

impl TagForm {
    pub fn new(block_size: usize, wide: bool) -> Self {
        TagForm { block_size, wide }
    }

    fn bytes(self) -> usize {
        if self.wide { 12 } else { 8 }
    }

    /// Tags of one descriptor. Like the kernel, room for one UUID more is left free behind them.
    pub fn per_descriptor(self) -> usize {
        (self.block_size - HEADER_BYTES - 2 * UUID_BYTES) / self.bytes()
    }

    /// Blocks of the log that a transaction of so many blocks takes, its commit block included.
    pub fn log_blocks(self, blocks: usize) -> usize {
        blocks + blocks.div_ceil(self.per_descriptor()) + 1
    }

    /// A descriptor for at most [`TagForm::per_descriptor`] blocks. The UUID behind the first tag is
    /// zero, as the kernel writes it: nobody shares a journal.
    pub fn descriptor(self, tid: Tid, tags: &[Tag]) -> Vec<u8> {
        assert!(
            !tags.is_empty() && tags.len() <= self.per_descriptor(),
            "{} tags",
            tags.len()
        );
        let mut block = begin(self.block_size, DESCRIPTOR, tid);
        let mut at = HEADER_BYTES;
        for (index, tag) in tags.iter().enumerate() {
            let mut flags = if tag.escaped { TAG_ESCAPE } else { 0 };
            if index > 0 {
                flags |= TAG_SAME_UUID;
            }
            if index + 1 == tags.len() {
                flags |= TAG_LAST;
            }
            put(&mut block, at, tag.home.0 as u32);
            block[at + 6..at + 8].copy_from_slice(&flags.to_be_bytes());
            if self.wide {
                put(&mut block, at + 8, (tag.home.0 >> 32) as u32);
            }
            at += self.bytes();
            if index == 0 {
                at += UUID_BYTES;
            }
        }
        block
    }

    /// The tags of a descriptor, to the one marked as last or the block's end.
    pub fn tags(self, block: &[u8]) -> Vec<Tag> {
        let mut tags = Vec::new();
        let mut at = HEADER_BYTES;
        while at + self.bytes() <= self.block_size {
            let flags = u16::from_be_bytes([block[at + 6], block[at + 7]]);
            let mut home = u64::from(get(block, at));
            if self.wide {
                home |= u64::from(get(block, at + 8)) << 32;
            }
            tags.push(Tag {
                home: BlockNr(home),
                escaped: flags & TAG_ESCAPE != 0,
            });
            at += self.bytes();
            if flags & TAG_SAME_UUID == 0 {
                at += UUID_BYTES;
            }
            if flags & TAG_LAST != 0 {
                break;
            }
        }
        tags
    }

    /// The blocks of a revoke block, which lies at `nr`.
    pub fn revoked(self, block: &[u8], nr: BlockNr) -> Result<Vec<BlockNr>> {
        let used = get(block, HEADER_BYTES) as usize;
        Check::new(Structure::JournalRevoke, nr).at_most(
            "r_count",
            used as u64,
            self.block_size as u64,
        )?;
        let width = if self.wide { 8 } else { 4 };
        let records = block[..used].get(HEADER_BYTES + 4..).unwrap_or_default();
        let number = |record: &[u8]| record.iter().fold(0, |nr, byte| nr << 8 | u64::from(*byte));
        Ok(records
            .chunks_exact(width)
            .map(|record| BlockNr(number(record)))
            .collect())
    }
}

/// The block that makes a transaction real.
pub(super) fn commit(block_size: usize, tid: Tid, now: WallTime) -> Vec<u8> {
    let mut block = begin(block_size, COMMIT, tid);
    block[0x30..0x38].copy_from_slice(&now.seconds.to_be_bytes());
    put(&mut block, 0x38, now.nanoseconds);
    block
}

/// When a transaction was committed, in seconds.
pub(super) fn commit_seconds(block: &[u8]) -> u64 {
    u64::from(get(block, 0x30)) << 32 | u64::from(get(block, 0x34))
}

/// Whether a commit block's checksum (COMPAT_CHECKSUM) is that of the transaction, or absent.
pub(super) fn commit_checksum_fits(block: &[u8], computed: u32) -> bool {
    let (kind, stored) = ((block[12], block[13]), get(block, 16));
    (kind == CHECKSUM_CRC32 && stored == computed) || (kind == (0, 0) && stored == 0)
}

/// The journal's checksum over the blocks of a transaction: CRC-32, most significant bit first,
/// without inversion at the end. Started with `!0`.
pub(super) fn checksum(seed: u32, bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let mut value = (byte as u32) << 24;
            let mut bit = 0;
            while bit < 8 {
                value = (value << 1) ^ if value >> 31 == 1 { 0x04C1_1DB7 } else { 0 };
                bit += 1;
            }
            table[byte] = value;
            byte += 1;
        }
        table
    };
    bytes.iter().fold(seed, |crc, byte| {
        (crc << 8) ^ TABLE[usize::from((crc >> 24) as u8 ^ byte)]
    })
}

/// The journal's own superblock, its first block: where the log starts, and with which transaction.
#[derive(Debug, Clone)]
pub(super) struct LogSuper {
    block: Vec<u8>,
}

impl LogSuper {
    /// From the first block of a journal of `file_blocks` blocks, which lies at `nr`.
    pub fn new(block: Vec<u8>, nr: BlockNr, file_blocks: u64) -> Result<Self> {
        let check = Check::new(Structure::JournalSuperBlock, nr);
        let found: [u8; 8] = block[..8].try_into().expect("eight bytes");
        let kind = get(&block, 4);
        if block[..4] != MAGIC || (kind != SUPER_V1 && kind != SUPER_V2) {
            return Err(check.fail(Why::Signature { found }).into());
        }
        let this = LogSuper { block };
        check.equals(
            "s_blocksize",
            get(&this.block, 0x0C),
            this.block.len() as u64,
        )?;
        check.at_most("s_maxlen", this.end(), file_blocks)?;
        let (first, start) = (this.first(), this.start());
        check.rule(
            first > 0 && first < this.end(),
            "s_first",
            first,
            "must lie in the log",
        )?;
        check.rule(
            start == 0 || (first..this.end()).contains(&start),
            "s_start",
            start,
            "must lie in the log",
        )?;
        let unknown = this.incompat() & !INCOMPAT_KNOWN;
        if unknown != 0 {
            return Err(Error::Incompatible(format!(
                "the journal at block {nr} has {}",
                feature_names(unknown)
            )));
        }
        if this.feature(0x2C) != 0 {
            let bits = this.feature(0x2C);
            return Err(Error::Incompatible(format!(
                "journal ro_compat features {bits:#x}"
            )));
        }
        Ok(this)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.block
    }

    /// The first block of the log in the file.
    pub fn first(&self) -> u32 {
        get(&self.block, 0x14)
    }

    /// One past the last block of the log in the file.
    pub fn end(&self) -> u32 {
        get(&self.block, 0x10)
    }

    /// The transaction expected at [`LogSuper::start`].
    pub fn sequence(&self) -> u32 {
        get(&self.block, 0x18)
    }

    /// Where the oldest transaction starts; 0 if there is none.
    pub fn start(&self) -> u32 {
        get(&self.block, 0x1C)
    }

    /// The error that stopped the last owner's journal.
    pub fn errno(&self) -> i32 {
        get(&self.block, 0x20) as i32
    }

    pub fn set_tail(&mut self, start: u32, sequence: u32) {
        put(&mut self.block, 0x18, sequence);
        put(&mut self.block, 0x1C, start);
    }

    pub fn clear_errno(&mut self) {
        put(&mut self.block, 0x20, 0);
    }

    /// Our own transactions have no checksum and are not committed asynchronously.
    pub fn clear_checksum_features(&mut self) {
        if get(&self.block, 4) == SUPER_V2 {
            let (compat, incompat) = (self.feature(0x24), self.feature(0x28));
            put(&mut self.block, 0x24, compat & !COMPAT_CHECKSUM);
            put(&mut self.block, 0x28, incompat & !INCOMPAT_ASYNC_COMMIT);
        }
    }

    /// Tags have 64-bit block numbers.
    pub fn wide(&self) -> bool {
        self.incompat() & INCOMPAT_64BIT != 0
    }

    pub fn checksummed(&self) -> bool {
        self.feature(0x24) & COMPAT_CHECKSUM != 0
    }

    /// Commit blocks may have reached the device before their transaction.
    pub fn async_commit(&self) -> bool {
        self.incompat() & INCOMPAT_ASYNC_COMMIT != 0
    }

    fn incompat(&self) -> u32 {
        self.feature(0x28)
    }

    /// Features are what only the second version has.
    fn feature(&self, at: usize) -> u32 {
        if get(&self.block, 4) == SUPER_V2 {
            get(&self.block, at)
        } else {
            0
        }
    }
}

fn feature_names(bits: u32) -> String {
    (0..32)
        .filter(|bit| bits >> bit & 1 == 1)
        .map(|bit| {
            INCOMPAT_NAMES
                .get(bit)
                .map_or(format!("incompat bit {bit}"), |&s| s.to_owned())
        })
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_come_back_as_they_were() {
        for (block_size, wide) in [(512, false), (1024, true), (4096, false), (4096, true)] {
            let form = TagForm::new(block_size, wide);
            for count in [1, 2, form.per_descriptor()] {
                let high = if wide { 7 << 32 } else { 0 };
                let tags: Vec<Tag> = (0..count as u64)
                    .map(|i| Tag {
                        home: BlockNr(high + 1000 + i),
                        escaped: i % 3 == 0,
                    })
                    .collect();
                let block = form.descriptor(Tid(77), &tags);
                assert_eq!(header(&block), Some((BlockType::Descriptor, 77)));
                assert_eq!(form.tags(&block), tags);
            }
        }
    }

    #[test]
    fn the_checksum_is_the_usual_crc_without_its_end() {
        // CRC-32/MPEG-2's check value.
        assert_eq!(checksum(!0, b"123456789"), 0x0376_E6E7);
    }

    #[test]
    fn a_revoke_block_ends_where_it_says() {
        let form = TagForm::new(512, false);
        let mut block = begin(512, REVOKE, Tid(1));
        put(&mut block, 12, 24);
        put(&mut block, 16, 5);
        put(&mut block, 20, 6);
        assert_eq!(
            form.revoked(&block, BlockNr(9)).unwrap(),
            [BlockNr(5), BlockNr(6)]
        );
        put(&mut block, 12, 513);
        assert!(form.revoked(&block, BlockNr(9)).is_err());
        put(&mut block, 12, 3);
        assert!(form.revoked(&block, BlockNr(9)).unwrap().is_empty());
    }
}
