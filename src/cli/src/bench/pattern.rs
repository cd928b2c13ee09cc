//! Numbers that look random and depend on nothing but where they begin; and blocks marked with them.

use bytes::{Bytes, BytesMut};

/// A sequence of 64-bit numbers (SplitMix64).
pub struct Numbers(u64);

impl Numbers {
    pub fn from(seed: u64) -> Self {
        Numbers(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }
}

/// What the block at `offset` holds after so many writes of it.
fn words(offset: u64, version: u32) -> Numbers {
    let mut start = Numbers::from(offset ^ u64::from(version).rotate_left(40));
    Numbers::from(start.next())
}

pub fn block(offset: u64, version: u32, len: u64) -> Bytes {
    let mut words = words(offset, version);
    let mut block = BytesMut::with_capacity(len as usize);
    while (block.len() as u64) < len {
        block.extend_from_slice(&words.next().to_le_bytes());
    }
    block.freeze()
}

/// Where a block differs from what it should hold.
pub fn first_difference(offset: u64, version: u32, block: &[u8]) -> Option<usize> {
    let mut words = words(offset, version);
    let differs = |word: &[u8]| word != &words.next().to_le_bytes()[..word.len()];
    block.chunks(8).position(differs).map(|at| at * 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_known_by_its_place_and_version() {
        let one = block(4096, 3, 4096);
        assert_eq!(one.len(), 4096);
        assert_eq!(first_difference(4096, 3, &one), None);
        assert_eq!(first_difference(4096, 4, &one), Some(0));
        assert_eq!(first_difference(8192, 3, &one), Some(0));
        let mut damaged = one.to_vec();
        damaged[1001] ^= 1;
        assert_eq!(first_difference(4096, 3, &damaged), Some(1000));
    }

    #[test]
    fn numbers_stay_below_the_end() {
        let mut numbers = Numbers::from(7);
        let mut seen = [0; 10];
        for _ in 0..10_000 {
            seen[numbers.below(10) as usize] += 1;
        }
        assert!(
            seen.iter().all(|count| (800..1200).contains(count)),
            "{seen:?}"
        );
    }
}
