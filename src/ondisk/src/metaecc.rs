//! Checksums of metadata: a CRC to notice damage, a Hamming code to undo it when it is one flipped bit.
//!
//! Verified when a block is read, computed when it goes into the journal (on the copy that is written), by whoever
//! owns those two places; [`Kind`] says where in a block the check lies. Both sums run over the block
//! with the eight check bytes taken as zero. A structure of several blocks (an xattr bucket) is one buffer here.
//!
//! # The code
//! Data bits, least significant first from byte 0, are numbered by the positions 3, 5, 6, 7, 9, … : the integers that
//! are no power of two. The code is the XOR of the positions of all set bits. If one bit flips, stored and computed
//! code differ by exactly its position.
//!
//! # How it is computed fast
//! Position = bit index + a displacement that grows by one at each power of two and is constant between. So in steps
//! of 64 positions, the bits at positions 64g … 64g+63 are 64 consecutive data bits, and only one shift is needed to
//! bring them into line. Their low six position bits then depend on the column alone (all such words can be XORed
//! together and looked at once), the rest on the parity of the word; eight words share one parity computation.

use crate::BlockCheck;
use crate::access::{prefix, prefix_mut, records_of};
use crate::corrupt::{Check, Corrupt, Structure, Why};
use crate::le::U64;
use crate::{BlockNr, Kind};

/// Bytes of the check.
const CHECK_BYTES: usize = size_of::<BlockCheck>();

/// Both sums of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sums {
    /// CRC-32.
    pub crc: u32,
    /// Hamming code, low 16 bits.
    pub ecc: u16,
}

/// What [`verify`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The block is as it was written.
    Clean,
    /// One bit was flipped and has been flipped back in the buffer (not on disk). Its number counts from bit 0 of byte 0.
    Corrected {
        /// The bit.
        bit: usize,
    },
}

/// The buffer is not what was written, in more than one bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("checksum is {:#010x}/{:#06x}, computed {:#010x}/{:#06x}", stored.crc, stored.ecc, computed.crc, computed.ecc)]
pub struct Mismatch {
    /// What the block carries.
    pub stored: Sums,
    /// What its bytes give.
    pub computed: Sums,
}

impl Mismatch {
    /// The error with its place.
    pub fn at(self, what: Structure, block: BlockNr) -> Corrupt {
        Check::new(what, block).fail(Why::Checksum {
            found_crc: self.stored.crc,
            found_ecc: self.stored.ecc,
            crc: self.computed.crc,
            ecc: self.computed.ecc,
        })
    }
}

/// Both sums of `block`, its check (at `check_offset`) taken as zero.
///
/// # Panics
/// If the check does not lie inside the block, or `check_offset` or the length is no multiple of eight.
pub fn sums(block: &[u8], check_offset: usize) -> Sums {
    Sums {
        crc: crc(block, check_offset),
        ecc: ecc(block, check_offset),
    }
}

/// Computes the check of `block` and stores it at `check_offset`.
///
/// # Panics
/// As [`sums`].
pub fn compute(block: &mut [u8], check_offset: usize) {
    block[check_offset..check_offset + CHECK_BYTES].fill(0); // its bits need not be taken out again then
    let sums = sums(block, check_offset);
    *prefix_mut(&mut block[check_offset..]) = BlockCheck {
        bc_crc32e: sums.crc.into(),
        bc_ecc: sums.ecc.into(),
        bc_reserved1: 0.into(),
    };
}

/// Verifies `block` against the check it carries at `check_offset`, and repairs one flipped bit in the buffer.
///
/// # Errors
/// [`Mismatch`] if the CRC is wrong and no single bit explains it; the buffer is then unchanged.
///
/// # Panics
/// As [`sums`].
pub fn verify(block: &mut [u8], check_offset: usize) -> Result<Verdict, Mismatch> {
    let stored: &BlockCheck = prefix(&block[check_offset..]);
    let stored = Sums {
        crc: stored.bc_crc32e.get(),
        ecc: stored.bc_ecc.get(),
    };
    let found_crc = crc(block, check_offset);
    if found_crc == stored.crc {
        return Ok(Verdict::Clean);
    }
    // The slow path: only now is the code worth computing.
    let computed = Sums {
        crc: found_crc,
        ecc: ecc(block, check_offset),
    };
    let mismatch = Mismatch { stored, computed };
    let bit = data_bit(u32::from(stored.ecc ^ computed.ecc)).ok_or(mismatch)?;
    let (byte, mask) = (bit / 8, 1u8 << (bit % 8));
    // A bit inside the check counts as zero in both sums, so no single flip explains it.
    if byte >= block.len() || (check_offset..check_offset + CHECK_BYTES).contains(&byte) {
        return Err(mismatch);
    }
    block[byte] ^= mask;
    if crc(block, check_offset) == stored.crc {
        Ok(Verdict::Corrected { bit })
    } else {
        block[byte] ^= mask;
        Err(mismatch)
    }
}

impl Kind {
    /// Verifies a block of this kind ([`verify`]); kinds without a check are clean.
    ///
    /// # Errors
    /// [`Corrupt`] with the block's number.
    pub fn verify(self, block: &mut [u8], nr: BlockNr) -> Result<Verdict, Corrupt> {
        match self.check_offset(block.len()) {
            Some(offset) => {
                verify(block, offset).map_err(|mismatch| mismatch.at(self.structure(), nr))
            }
            None => Ok(Verdict::Clean),
        }
    }

    /// Computes and stores the check of a block of this kind; kinds without one are left alone.
    pub fn compute(self, block: &mut [u8]) {
        if let Some(offset) = self.check_offset(block.len()) {
            compute(block, offset);
        }
    }
}

/// CRC-32 of the block with its check taken as zero, without the usual final inversion.
fn crc(block: &[u8], check_offset: usize) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&block[..check_offset]);
    hasher.update(&[0; CHECK_BYTES]);
    hasher.update(&block[check_offset + CHECK_BYTES..]);
    !hasher.finalize()
}

/// The data bit at a code position; `None` for 0 and for powers of two, which are the code's own bits.
fn data_bit(position: u32) -> Option<usize> {
    if position.count_ones() < 2 {
        return None;
    }
    // Below it lie position - 1 integers, of which log2 + 1 are powers of two.
    Some((position - position.ilog2() - 2) as usize)
}

/// The Hamming code of the block with its check taken as zero.
fn ecc(block: &[u8], check_offset: usize) -> u16 {
    assert!(
        block.len().is_multiple_of(8)
            && check_offset.is_multiple_of(8)
            && check_offset + CHECK_BYTES <= block.len(),
        "a check at {check_offset} of a block of {}",
        block.len()
    );
    let words: &[U64] = records_of(block);
    let word = |index: usize| words.get(index).map_or(0, |word| word.get());
    let mut code = Code::default();
    let bits =
        |group: usize| Shift::of(group).align(word(group - 1), word(group)) & data_mask(group);
    code.push(first_positions(word(0)));
    for group in 1..8.min(words.len() + 1) {
        code.push(bits(group));
    }
    let mut group = 8;
    while group + 8 <= words.len() {
        // Powers of two from eight on are multiples of eight: one displacement for all of them, and a position without
        // data in the first one only.
        let shift = Shift::of(group);
        let data = &words[group - 1..group + 8];
        let mut eight: [u64; 8] =
            core::array::from_fn(|index| shift.align(data[index].get(), data[index + 1].get()));
        eight[0] &= data_mask(group);
        code.push_eight(eight);
        group += 8;
    }
    // The displacement has moved the last data bits into one group more than there are words.
    while group <= words.len() {
        code.push(bits(group));
        group += 1;
    }
    // The check has to count as zero; each of its set bits has counted for its position.
    let check = word(check_offset / 8);
    let counted = (0..64)
        .filter(|bit| check >> bit & 1 == 1)
        .fold(0, |code, bit| code ^ position(check_offset * 8 + bit));
    code.finish() ^ (counted & 0xFFFF) as u16
}

/// The code position of a data bit: the inverse of [`data_bit`].
fn position(bit: usize) -> u32 {
    let bit = bit as u32;
    // Nearly the solution of position = bit + log2(position) + 2, one step short of it at most.
    let near = bit + (bit + 2).ilog2() + 2;
    bit + near.ilog2() + 2
}

/// How data words become groups of 64 positions: the same for all groups from one power of two to the next.
#[derive(Clone, Copy)]
struct Shift(u32);

impl Shift {
    /// For the group of positions 64·group …, group not being 0.
    fn of(group: usize) -> Self {
        Self(group.ilog2() + 6 + 2)
    }

    /// A group's bits, from the two data words they lie in.
    fn align(self, previous: u64, current: u64) -> u64 {
        current << self.0 | previous >> (64 - self.0)
    }
}

/// Position 64·2^k carries no data: the mask for a group's bits.
fn data_mask(group: usize) -> u64 {
    !u64::from(group & (group - 1) == 0)
}

/// The first 57 data bits at their positions 3, 5–7, 9–15, 17–31, 33–63.
const fn first_positions(data: u64) -> u64 {
    (data & 1) << 3
        | (data >> 1 & 0x7) << 5
        | (data >> 4 & 0x7F) << 9
        | (data >> 11 & 0x7FFF) << 17
        | (data >> 26 & 0x7FFF_FFFF) << 33
}

/// Accumulates the XOR of the positions of set bits, 64 positions at a time.
#[derive(Default)]
struct Code {
    /// Words pushed so far.
    count: u32,
    /// XOR of all words: column parities.
    columns: u64,
    /// XOR of the words whose number has bit 0, 1, 2 set.
    low: [u64; 3],
    /// XOR of the words of the current eight.
    eight: u64,
    /// XOR of the numbers of those eights that have odd parity.
    high: u32,
}

impl Code {
    #[inline]
    fn push(&mut self, word: u64) {
        self.columns ^= word;
        self.eight ^= word;
        self.low[0] ^= word & 0u64.wrapping_sub(u64::from(self.count & 1));
        self.low[1] ^= word & 0u64.wrapping_sub(u64::from(self.count >> 1 & 1));
        self.low[2] ^= word & 0u64.wrapping_sub(u64::from(self.count >> 2 & 1));
        if self.count & 7 == 7 {
            self.close_eight();
        }
        self.count += 1;
    }

    /// Eight words, where the number pushed before is a multiple of eight.
    #[inline]
    fn push_eight(&mut self, w: [u64; 8]) {
        let (odd, even) = (w[1] ^ w[3] ^ w[5] ^ w[7], w[0] ^ w[2] ^ w[4] ^ w[6]);
        self.low[0] ^= odd;
        self.low[1] ^= w[2] ^ w[3] ^ w[6] ^ w[7];
        self.low[2] ^= w[4] ^ w[5] ^ w[6] ^ w[7];
        self.columns ^= odd ^ even;
        self.high ^= (self.count >> 3) * ((odd ^ even).count_ones() & 1);
        self.count += 8;
    }

    fn close_eight(&mut self) {
        self.high ^= (self.count >> 3) * (self.eight.count_ones() & 1);
        self.eight = 0;
    }

    fn finish(mut self) -> u16 {
        self.close_eight();
        /// Columns whose number has bit j set.
        const COLUMNS: [u64; 6] = [
            0xAAAA_AAAA_AAAA_AAAA,
            0xCCCC_CCCC_CCCC_CCCC,
            0xF0F0_F0F0_F0F0_F0F0,
            0xFF00_FF00_FF00_FF00,
            0xFFFF_0000_FFFF_0000,
            0xFFFF_FFFF_0000_0000,
        ];
        let mut code = self.high << 9;
        for (bit, mask) in COLUMNS.iter().enumerate() {
            code |= ((self.columns & mask).count_ones() & 1) << bit;
        }
        for (bit, words) in self.low.iter().enumerate() {
            code |= (words.count_ones() & 1) << (6 + bit);
        }
        (code & 0xFFFF) as u16
    }
}

#[cfg(test)]
mod tests;
