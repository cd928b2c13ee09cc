//! Sets that are large: clusters as bits, and entries to be sorted a part at a time.

/// A bit a cluster.
pub(super) struct Bits {
    words: Vec<u64>,
    count: u64,
}

impl Bits {
    pub fn new(count: u64) -> Bits {
        Bits {
            words: vec![0; count.div_ceil(64) as usize],
            count,
        }
    }

    /// Sets a run, clipped to the set's end. Gives the parts of it that were set before.
    pub fn set_run(&mut self, start: u64, len: u64) -> Vec<(u64, u64)> {
        let end = start.saturating_add(len).min(self.count);
        let mut before: Vec<(u64, u64)> = Vec::new();
        let mut bit = start;
        while bit < end {
            let word = &mut self.words[(bit / 64) as usize];
            let upto = (bit / 64 * 64 + 64).min(end);
            let width = upto - bit;
            let mask = (u64::MAX >> (64 - width)) << (bit % 64);
            let both = *word & mask;
            *word |= mask;
            if both != 0 {
                for at in (bit..upto).filter(|at| both >> (at % 64) & 1 == 1) {
                    match before.last_mut() {
                        Some((first, len)) if *first + *len == at => *len += 1,
                        _ => before.push((at, 1)),
                    }
                }
            }
            bit = upto;
        }
        before
    }

    /// Eight bits from a multiple of eight on; those past the end are clear.
    pub fn byte(&self, first: u64) -> u8 {
        let word = self.words.get((first / 64) as usize).copied().unwrap_or(0);
        (word >> (first % 64)) as u8
    }

    pub fn count_set(&self) -> u64 {
        self.words
            .iter()
            .map(|word| u64::from(word.count_ones()))
            .sum()
    }

    pub fn len(&self) -> u64 {
        self.count
    }

    #[cfg(test)]
    fn get(&self, bit: u64) -> bool {
        bit < self.count && self.words[(bit / 64) as usize] >> (bit % 64) & 1 == 1
    }
}

/// Things with a 32-bit key, in parts by the key's high bits, so that each part is sorted in little
/// time.
pub(super) struct Parts<T> {
    parts: Vec<Vec<T>>,
    shift: u32,
}

impl<T> Parts<T> {
    /// For about so many things whose keys are spread over all values.
    pub fn new(expected: u64) -> Parts<T> {
        let count = (expected / 2048 + 1).next_power_of_two().min(4096);
        Parts {
            parts: (0..count).map(|_| Vec::new()).collect(),
            shift: 32 - count.trailing_zeros(),
        }
    }

    pub fn push(&mut self, key: u32, value: T) {
        let part = u64::from(key) >> self.shift;
        self.parts[part as usize].push(value);
    }

    pub fn count(&self) -> usize {
        self.parts.len()
    }

    pub fn take(&mut self, part: usize) -> Vec<T> {
        std::mem::take(&mut self.parts[part])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_set_and_overlaps_are_told() {
        let mut bits = Bits::new(1000);
        assert!(bits.set_run(60, 10).is_empty());
        assert_eq!(bits.set_run(0, 200), [(60, 10)]);
        assert!(bits.set_run(990, 100).is_empty());
        assert_eq!(bits.set_run(64, 1), [(64, 1)]);
        assert_eq!(bits.count_set(), 210);
        assert!(bits.get(999) && !bits.get(1000) && !bits.get(200));
        assert_eq!(
            (bits.byte(192), bits.byte(200), bits.byte(2000)),
            (0xFF, 0, 0)
        );
    }

    #[test]
    fn parts_are_in_order_of_their_keys() {
        for expected in [0, 10_000, u64::MAX / 4] {
            let mut parts = Parts::new(expected);
            for key in [u32::MAX, 0, 77, 1 << 31] {
                parts.push(key, key);
            }
            let all: Vec<u32> = (0..parts.count())
                .flat_map(|part| {
                    let mut part = parts.take(part);
                    part.sort_unstable();
                    part
                })
                .collect();
            assert_eq!(all, [0, 77, 1 << 31, u32::MAX]);
        }
    }
}
