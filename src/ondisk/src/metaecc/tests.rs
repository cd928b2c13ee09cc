//! The fast code against a slow one that follows the definition word for word.

use super::*;
use proptest::prelude::*;

/// The definition: number the data bits by the integers that are no power of two, XOR the numbers of the set ones.
fn naive_ecc(block: &[u8]) -> u16 {
    let mut position = 0u32;
    let mut code = 0u32;
    for bit in 0..block.len() * 8 {
        position += 1;
        while position.is_power_of_two() {
            position += 1;
        }
        if block[bit / 8] >> (bit % 8) & 1 == 1 {
            code ^= position;
        }
    }
    code as u16
}

/// CRC bit by bit.
fn naive_crc(block: &[u8]) -> u32 {
    block.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            if crc & 1 == 1 {
                crc >> 1 ^ 0xEDB8_8320
            } else {
                crc >> 1
            }
        })
    })
}

fn block() -> impl Strategy<Value = (Vec<u8>, usize)> {
    prop::sample::select(vec![512usize, 1024, 2048, 4096])
        .prop_flat_map(|size| (prop::collection::vec(any::<u8>(), size), 0..size / 8))
        .prop_map(|(block, word)| (block, word * 8))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn sums_are_those_of_the_definition((mut block, at) in block()) {
        let found = sums(&block, at);
        block[at..at + 8].fill(0);
        prop_assert_eq!(found, Sums { crc: naive_crc(&block), ecc: naive_ecc(&block) });
    }

    #[test]
    fn every_single_flip_is_corrected((mut block, at) in block(), bit in any::<prop::sample::Index>()) {
        compute(&mut block, at);
        prop_assert_eq!(verify(&mut block, at), Ok(Verdict::Clean));
        let good = block.clone();
        let bit = bit.index(block.len() * 8);
        prop_assume!(!(at..at + 8).contains(&(bit / 8)));
        block[bit / 8] ^= 1 << (bit % 8);
        prop_assert_eq!(verify(&mut block, at), Ok(Verdict::Corrected { bit }));
        prop_assert_eq!(block, good);
    }

    #[test]
    fn two_flips_are_noticed_and_left_alone(
        (mut block, at) in block(),
        bits in any::<[prop::sample::Index; 2]>(),
    ) {
        compute(&mut block, at);
        let bits = bits.map(|bit| bit.index(block.len() * 8));
        prop_assume!(bits[0] != bits[1]);
        prop_assume!(bits.iter().all(|bit| !(at..at + 8).contains(&(bit / 8))));
        for bit in bits {
            block[bit / 8] ^= 1 << (bit % 8);
        }
        let damaged = block.clone();
        prop_assert!(verify(&mut block, at).is_err());
        prop_assert_eq!(block, damaged);
    }
}

/// All of them, in the smallest and the largest block: positions at powers of two are where a fast code would slip.
#[test]
fn each_bit_of_a_block_has_its_position() {
    for size in [512, 4096] {
        let mut position = 0u32;
        let mut block = vec![0u8; size];
        for bit in 0..size * 8 - 64 {
            position += 1;
            while position.is_power_of_two() {
                position += 1;
            }
            block[bit / 8] = 1 << (bit % 8);
            assert_eq!(
                u32::from(ecc(&block, size - 8)),
                position,
                "bit {bit} of {size}"
            );
            assert_eq!(data_bit(position), Some(bit));
            assert_eq!(super::position(bit), position);
            block[bit / 8] = 0;
        }
    }
}

#[test]
fn a_flip_in_the_stored_code_is_harmless_and_in_the_stored_crc_is_not() {
    let mut block: Vec<u8> = (0..1024u32).map(|i| (i * 7 + 3) as u8).collect();
    compute(&mut block, 0x80);
    block[0x84] ^= 1; // the code is only looked at when the CRC is wrong
    assert_eq!(verify(&mut block, 0x80), Ok(Verdict::Clean));
    block[0x84] ^= 1;
    block[0x80] ^= 1;
    assert!(verify(&mut block, 0x80).is_err());
}
