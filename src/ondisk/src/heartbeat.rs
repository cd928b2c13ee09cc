//! The heartbeat block: a node's sign of life on disk. Node n writes block n of the system file `heartbeat` (or of a
//! global heartbeat region) every two seconds, the whole block, with a CRC of its own kind.

use crate::BlockNr;
use crate::access::{layout, over_block};
use crate::corrupt::{Check, Corrupt, Structure, Why};
use crate::le::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What a node writes into its block; the rest of the block is zero.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct HeartbeatBlock {
    /// Changes with every beat: seconds since the epoch.
    pub hb_seq: U64,
    /// The writer.
    pub hb_node: u8,
    pub hb_pad1: [u8; 3],
    /// See [`HeartbeatBlock::checksum`].
    pub hb_cksum: U32,
    /// Drawn when the node starts beating. Changes when it has restarted.
    pub hb_generation: U64,
    /// After how long without a beat the writer is to be taken for dead.
    pub hb_dead_ms: U32,
}
layout!(
    HeartbeatBlock, 0x1C,
    hb_node @ 0x08, hb_cksum @ 0x0C, hb_generation @ 0x10, hb_dead_ms @ 0x18,
);
over_block!(HeartbeatBlock);

/// Where the checksum is.
const CHECKSUM: core::ops::Range<usize> = 0x0C..0x10;

impl HeartbeatBlock {
    /// The checksum of a heartbeat block: CRC-32 from 0, not inverted at the end, over the whole block with the field
    /// itself zero.
    ///
    /// # Panics
    /// If the block is shorter than the structure.
    pub fn checksum(block: &[u8]) -> u32 {
        // The library starts from the complement of what it is given and ends with a complement.
        let mut hasher = crc32fast::Hasher::new_with_initial(!0);
        hasher.update(&block[..CHECKSUM.start]);
        hasher.update(&[0; 4]);
        hasher.update(&block[CHECKSUM.end..]);
        !hasher.finalize()
    }

    /// Makes `block` node `node`'s sign of life.
    pub fn init(block: &mut [u8], node: u8, sequence: u64, generation: u64, dead_ms: u32) {
        block.fill(0);
        let this = Self::of_mut(block);
        this.hb_seq = sequence.into();
        this.hb_node = node;
        this.hb_generation = generation.into();
        this.hb_dead_ms = dead_ms.into();
        let checksum = Self::checksum(block);
        Self::of_mut(block).hb_cksum = checksum.into();
    }

    /// Whether nobody has written the block, or its writer has left in order.
    pub fn is_silent(&self) -> bool {
        self.hb_seq.get() == 0
    }

    /// Whether `block`, read from `nr`, is what node `node` wrote. A block of zeros is.
    ///
    /// # Errors
    /// The rule it breaks. A torn write shows here as a wrong checksum: read again.
    pub fn validate(block: &[u8], nr: BlockNr, node: u8) -> Result<(), Corrupt> {
        let this = Self::of(block);
        let check = Check::new(Structure::Heartbeat, nr);
        let (found, computed) = (this.hb_cksum.get(), Self::checksum(block));
        if found != computed {
            let sums = Why::Checksum {
                found_crc: found,
                found_ecc: 0,
                crc: computed,
                ecc: 0,
            };
            return Err(check.fail(sums));
        }
        if this.is_silent() {
            return Ok(());
        }
        check.equals("hb_node", this.hb_node, node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CRC bit by bit, as the kernel's `crc32_le(0, …)` is defined.
    fn naive(block: &[u8]) -> u32 {
        block.iter().fold(0, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |crc: u32, _| {
                if crc & 1 == 1 {
                    crc >> 1 ^ 0xEDB8_8320
                } else {
                    crc >> 1
                }
            })
        })
    }

    #[test]
    fn checksum_starts_from_zero_and_leaves_itself_out() {
        let mut block = vec![0; 512];
        HeartbeatBlock::init(&mut block, 3, 1_700_000_000, 0x1234_5678_9ABC, 62_000);
        HeartbeatBlock::validate(&block, BlockNr(3), 3).expect("just written");
        assert_eq!(block[0x10..0x14], [0xBC, 0x9A, 0x78, 0x56]);
        let stored = HeartbeatBlock::of(&block).hb_cksum.get();
        block[CHECKSUM].fill(0);
        assert_eq!(stored, naive(&block));
    }

    #[test]
    fn silence_is_valid_and_damage_is_not() {
        let mut block = vec![0; 512];
        HeartbeatBlock::validate(&block, BlockNr(3), 3).expect("zeros have checksum zero");
        HeartbeatBlock::init(&mut block, 3, 1, 2, 3);
        assert!(
            HeartbeatBlock::validate(&block, BlockNr(3), 4).is_err(),
            "another node's"
        );
        block[300] ^= 1;
        assert!(
            HeartbeatBlock::validate(&block, BlockNr(3), 3).is_err(),
            "torn"
        );
    }
}
