//! The descriptor block: for each data block behind it, where in the volume that belongs.
//!
//! A tag has 8 bytes, or 12 with 64-bit block numbers. Behind the first one lie 16 bytes of UUID, which the others say
//! they share. A data block that starts with the journal's magic has its first word zeroed and its tag says so.

use super::{BlockType, Header, MAGIC, Tid};
use crate::BlockNr;
use crate::access::{layout, prefix, prefix_mut};
use crate::be::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Tag of one data block, without the high half of its number.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct TagNarrow {
    pub t_blocknr: U32,
    /// Only with CSUM features; zero here.
    pub t_checksum: U16,
    pub t_flags: U16,
}
layout!(TagNarrow, 8, t_checksum @ 4, t_flags @ 6);

/// Tag of one data block in a journal with 64-bit block numbers.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct TagWide {
    pub narrow: TagNarrow,
    pub t_blocknr_high: U32,
}
layout!(TagWide, 12, t_blocknr_high @ 8);

/// The data block's first word was the magic and has been zeroed.
pub const FLAG_ESCAPE: u16 = 1;
/// No UUID follows: it is the previous tag's.
pub const FLAG_SAME_UUID: u16 = 2;
/// The block was deleted by this transaction (never written by Linux).
pub const FLAG_DELETED: u16 = 4;
/// The last tag of the descriptor.
pub const FLAG_LAST_TAG: u16 = 8;

const UUID_BYTES: usize = 16;

/// A data block's tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag {
    /// Where in the volume the data block belongs.
    pub nr: BlockNr,
    /// As stored.
    pub flags: u16,
}

impl Tag {
    /// Whether the data block's first word has to be restored to the magic.
    pub const fn is_escaped(&self) -> bool {
        self.flags & FLAG_ESCAPE != 0
    }
}

/// Bytes of a tag.
pub const fn tag_bytes(wide: bool) -> usize {
    if wide {
        size_of::<TagWide>()
    } else {
        size_of::<TagNarrow>()
    }
}

/// Data blocks that one descriptor can announce. As Linux fills it: another tag only if a UUID would still fit behind.
pub const fn tags_per_descriptor(block_size: usize, wide: bool) -> usize {
    let tag = tag_bytes(wide);
    // Behind the header: one tag with its UUID, then tags while one with a UUID would fit.
    let behind_first = block_size - size_of::<Header>() - tag - UUID_BYTES;
    if behind_first < tag + UUID_BYTES {
        1
    } else {
        2 + (behind_first - tag - UUID_BYTES) / tag
    }
}

/// The tags of a descriptor block, up to the last one or the block's end.
pub fn tags(block: &[u8], wide: bool) -> Tags<'_> {
    Tags {
        block,
        wide,
        at: size_of::<Header>(),
        done: false,
    }
}

/// Walks the tags of a descriptor.
#[derive(Debug, Clone)]
pub struct Tags<'a> {
    block: &'a [u8],
    wide: bool,
    at: usize,
    done: bool,
}

impl Iterator for Tags<'_> {
    type Item = Tag;

    fn next(&mut self) -> Option<Tag> {
        let bytes = tag_bytes(self.wide);
        let rest = self
            .block
            .get(self.at..)
            .filter(|rest| !self.done && rest.len() >= bytes)?;
        let narrow: &TagNarrow = prefix(rest);
        let high = if self.wide {
            prefix::<TagWide>(rest).t_blocknr_high.get()
        } else {
            0
        };
        let flags = narrow.t_flags.get();
        self.at += bytes
            + if flags & FLAG_SAME_UUID == 0 {
                UUID_BYTES
            } else {
                0
            };
        self.done = flags & FLAG_LAST_TAG != 0;
        Some(Tag {
            nr: BlockNr(u64::from(high) << 32 | u64::from(narrow.t_blocknr.get())),
            flags,
        })
    }
}

impl core::iter::FusedIterator for Tags<'_> {}

/// Fills a descriptor block tag by tag.
#[derive(Debug)]
pub struct DescriptorWriter<'a> {
    block: &'a mut [u8],
    wide: bool,
    uuid: [u8; 16],
    at: usize,
    last: Option<usize>,
}

impl<'a> DescriptorWriter<'a> {
    /// Makes `block` a descriptor of transaction `tid`, without tags yet. Nobody looks at the UUID; Linux writes zeros, not
    /// the superblock's.
    pub fn new(block: &'a mut [u8], tid: Tid, uuid: [u8; 16], wide: bool) -> Self {
        block.fill(0);
        *prefix_mut(block) = Header::new(BlockType::Descriptor, tid);
        Self {
            block,
            wide,
            uuid,
            at: size_of::<Header>(),
            last: None,
        }
    }

    /// Announces the next data block. `false`, and nothing changed, if the descriptor is full: finish it and begin
    /// another one.
    ///
    /// # Panics
    /// If the block's number needs 64 bits and the journal has 32: the features were chosen wrongly at mount.
    #[must_use]
    pub fn push(&mut self, nr: BlockNr, escaped: bool) -> bool {
        let bytes = tag_bytes(self.wide);
        if self.block.len() - self.at < bytes + UUID_BYTES {
            return false;
        }
        let (high, low) = ((nr.0 >> 32) as u32, nr.0 as u32);
        assert!(
            self.wide || high == 0,
            "block {nr} in a journal with 32-bit block numbers"
        );
        let escape = if escaped { FLAG_ESCAPE } else { 0 };
        let same = if self.last.is_some() {
            FLAG_SAME_UUID
        } else {
            0
        };
        let narrow = TagNarrow {
            t_blocknr: low.into(),
            t_checksum: 0.into(),
            t_flags: (escape | same).into(),
        };
        let place = &mut self.block[self.at..];
        if self.wide {
            *prefix_mut(place) = TagWide {
                narrow,
                t_blocknr_high: high.into(),
            };
        } else {
            *prefix_mut(place) = narrow;
        }
        let first = self.last.replace(self.at).is_none();
        self.at += bytes;
        if first {
            self.block[self.at..self.at + UUID_BYTES].copy_from_slice(&self.uuid);
            self.at += UUID_BYTES;
        }
        true
    }

    /// Marks the last tag. A descriptor without tags stays as it is; there is no reason to write one.
    pub fn finish(self) {
        if let Some(at) = self.last {
            let tag: &mut TagNarrow = prefix_mut(&mut self.block[at..]);
            tag.t_flags.set(tag.t_flags.get() | FLAG_LAST_TAG);
        }
    }
}

/// Whether a data block has to be escaped to go into the log.
pub fn needs_escape(data: &[u8]) -> bool {
    data.starts_with(&MAGIC.to_be_bytes())
}

/// Escapes the copy of a data block that goes into the log, if it has to be; the answer goes into its tag.
pub fn escape(data: &mut [u8]) -> bool {
    let needed = needs_escape(data);
    if needed {
        data[..4].fill(0);
    }
    needed
}

/// Undoes [`escape`] for a data block whose tag says that it is escaped.
///
/// # Panics
/// If `data` has fewer than four bytes.
pub fn unescape(data: &mut [u8]) {
    data[..4].copy_from_slice(&MAGIC.to_be_bytes());
}
