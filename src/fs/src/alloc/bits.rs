//! Runs of bits in a group's bitmap. Bits are numbered least significant first.

/// Whether the bit is set; a bit outside the bytes counts as set.
pub(super) fn is_set(bytes: &[u8], bit: u32) -> bool {
    bytes
        .get(bit as usize / 8)
        .is_none_or(|byte| byte & (1 << (bit % 8)) != 0)
}

pub(super) fn set(bytes: &mut [u8], bit: u32) {
    bytes[bit as usize / 8] |= 1 << (bit % 8);
}

pub(super) fn clear(bytes: &mut [u8], bit: u32) {
    bytes[bit as usize / 8] &= !(1 << (bit % 8));
}

/// The runs of clear bits among the first `count`, as (first, length).
pub(super) fn clear_runs(bytes: &[u8], count: u32) -> impl Iterator<Item = (u32, u32)> {
    let mut bit = 0;
    std::iter::from_fn(move || {
        while bit < count && is_set(bytes, bit) {
            // Whole bytes at once where nothing is clear.
            bit += if bit % 8 == 0 && bytes.get(bit as usize / 8) == Some(&0xFF) {
                8
            } else {
                1
            };
        }
        if bit >= count {
            return None;
        }
        let first = bit;
        while bit < count && !is_set(bytes, bit) {
            bit += if bit % 8 == 0 && bytes.get(bit as usize / 8) == Some(&0) {
                8
            } else {
                1
            };
        }
        bit = bit.min(count);
        Some((first, bit - first))
    })
}

/// A run of clear bits: from `goal` on if that is clear, else the first of `max` bits, else the
/// longest of at least `min`.
pub(super) fn find(
    bytes: &[u8],
    count: u32,
    goal: Option<u32>,
    min: u32,
    max: u32,
) -> Option<(u32, u32)> {
    let mut best: Option<(u32, u32)> = None;
    if let Some(goal) = goal.filter(|&goal| goal < count && !is_set(bytes, goal)) {
        let length = (goal..count)
            .take_while(|&bit| !is_set(bytes, bit))
            .take(max as usize)
            .count();
        if length as u32 >= min {
            return Some((goal, length as u32));
        }
    }
    for (first, length) in clear_runs(bytes, count) {
        if length >= max {
            return Some((first, max));
        }
        if length >= min && best.is_none_or(|(_, longest)| length > longest) {
            best = Some((first, length));
        }
    }
    best
}

/// The length of the longest run of clear bits.
pub(super) fn longest_clear(bytes: &[u8], count: u32) -> u32 {
    clear_runs(bytes, count)
        .map(|(_, length)| length)
        .max()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn runs_are_those_of_a_bit_set(bytes in proptest::collection::vec(
            prop_oneof![Just(0u8), Just(0xFF), any::<u8>()], 1..40), cut in 0u32..8) {
            let count = bytes.len() as u32 * 8 - cut;
            let mut expected = Vec::new();
            for bit in 0..count {
                if is_set(&bytes, bit) { continue }
                match expected.last_mut() {
                    Some((first, length)) if *first + *length == bit => *length += 1,
                    _ => expected.push((bit, 1u32)),
                }
            }
            prop_assert_eq!(clear_runs(&bytes, count).collect::<Vec<_>>(), expected.clone());
            let longest = expected.iter().map(|run| run.1).max().unwrap_or(0);
            prop_assert_eq!(longest_clear(&bytes, count), longest);
            for max in [1, 3, 17] {
                let found = find(&bytes, count, None, 1, max);
                prop_assert_eq!(found.map_or(0, |run| run.1), longest.min(max));
            }
        }
    }
}
