//! Areas against a list; then everything against a map, on volumes of several block sizes, judged by fsck.ocfs2; and
//! what the kernel wrote.

use ondisk::{BlockNr, XattrArea};
use proptest::prelude::*;

use super::area::{self, Item, Shape, Stored};
use super::name::Name;

fn item(number: u32, name_len: usize, value_len: usize) -> Item {
    let mut suffix = format!("{number:08x}").into_bytes();
    suffix.resize(name_len.max(8), b'x');
    let stored = if value_len <= 80 {
        Stored::Local(vec![number as u8; value_len])
    } else {
        Stored::Outside {
            root: super::value::empty_root(),
            size: value_len as u64,
        }
    };
    Item {
        hash: number.wrapping_mul(0x9e37_79b9),
        name: Name {
            index: 1 + (number % 5) as u8,
            suffix,
        },
        stored,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn areas_keep_their_items(
        sizes in prop::collection::vec((8usize..=255, 0usize..200), 0..60),
        shape in prop::sample::select(vec![
            (Shape::Plain, 256), (Shape::Plain, 464), (Shape::Plain, 4048),
            (Shape::Bucket { block_size: 512 }, 4096), (Shape::Bucket { block_size: 1024 }, 4096),
            (Shape::Bucket { block_size: 4096 }, 4096),
        ]),
    ) {
        let (shape, len) = shape;
        let mut items: Vec<Item> = Vec::new();
        for (number, (name, value)) in (0u32..).zip(sizes) {
            items.push(item(number, name, value));
            if !area::fits(&items, len, shape) {
                items.pop();
            }
        }
        let mut bytes = vec![0xee; len];
        area::write(&items, &mut bytes, shape);
        prop_assert_eq!(area::items(&bytes, BlockNr(7)).unwrap(), items.clone());
        let view = XattrArea::new(&bytes);
        prop_assert!(view.gap() >= 4);
        for (index, (entry, item)) in view.entries().iter().zip(&items).enumerate() {
            prop_assert_eq!(area::value_offset(&items, index, len, shape), Some(entry.value_offset()));
            let start = usize::from(entry.xe_name_offset.get());
            if let Shape::Bucket { block_size } = shape {
                prop_assert_eq!(start / block_size, (start + entry.name_value_len() - 1) / block_size);
            }
            prop_assert_eq!(item.bytes(), 16 + entry.name_value_len());
        }
        let lowest = view.entries().iter().map(|entry| entry.xe_name_offset.get()).min();
        if let Shape::Bucket { .. } = shape {
            prop_assert_eq!(view.header().xh_free_start.get(), lowest.unwrap_or(len as u16));
        }
        // The kernel turns a block into a bucket on the assumption that the last name is the lowest.
        prop_assert_eq!(view.entries().last().map(|entry| entry.xe_name_offset.get()), lowest);
    }
}

#[test]
fn an_emptied_bucket_keeps_its_hash() {
    let shape = Shape::Bucket { block_size: 512 };
    let mut bytes = vec![0; 4096];
    let one = item(3, 8, 4);
    area::write(std::slice::from_ref(&one), &mut bytes, shape);
    area::write(&[], &mut bytes, shape);
    assert_eq!(bytes[16..20], one.hash.to_le_bytes());
    assert_eq!(XattrArea::new(&bytes).header().xh_free_start.get(), 4096);
}

mod crash;
mod damage;
mod kernel;
mod model;

/// What the oracle's manifests name values by.
fn sha256(data: &[u8]) -> String {
    // The constants are the first bits of the fractional parts of roots of primes: computed, not copied.
    let primes: Vec<u64> = (2u64..)
        .filter(|n| (2..*n).all(|d| n % d != 0))
        .take(64)
        .collect();
    let root = |prime: u64, cube: bool| {
        // floor(prime^(1/k) * 2^32) by bisection in integers.
        let power = |x: u128| if cube { x * x * x } else { x * x };
        let goal = u128::from(prime) << if cube { 96 } else { 64 };
        let (mut low, mut high) = (0u128, 1u128 << 37);
        while low + 1 < high {
            let middle = (low + high) / 2;
            if power(middle) <= goal {
                low = middle
            } else {
                high = middle
            }
        }
        low as u32
    };
    let constants: Vec<u32> = primes.iter().map(|&prime| root(prime, true)).collect();
    let mut hash: Vec<u32> = primes[..8]
        .iter()
        .map(|&prime| root(prime, false))
        .collect();
    let mut message = data.to_vec();
    message.push(0x80);
    while message.len() % 64 != 56 {
        message.push(0);
    }
    message.extend_from_slice(&(data.len() as u64 * 8).to_be_bytes());
    for block in message.chunks(64) {
        let mut w: Vec<u32> = block
            .chunks(4)
            .map(|word| u32::from_be_bytes(word.try_into().unwrap()))
            .collect();
        for i in 16..64 {
            let s0 = w[i - 15].rotate_right(7) ^ w[i - 15].rotate_right(18) ^ (w[i - 15] >> 3);
            let s1 = w[i - 2].rotate_right(17) ^ w[i - 2].rotate_right(19) ^ (w[i - 2] >> 10);
            w.push(
                w[i - 16]
                    .wrapping_add(s0)
                    .wrapping_add(w[i - 7])
                    .wrapping_add(s1),
            );
        }
        let mut v = hash.clone();
        for i in 0..64 {
            let s1 = v[4].rotate_right(6) ^ v[4].rotate_right(11) ^ v[4].rotate_right(25);
            let choice = (v[4] & v[5]) ^ (!v[4] & v[6]);
            let t1 = v[7]
                .wrapping_add(s1)
                .wrapping_add(choice)
                .wrapping_add(constants[i])
                .wrapping_add(w[i]);
            let s0 = v[0].rotate_right(2) ^ v[0].rotate_right(13) ^ v[0].rotate_right(22);
            let t2 = s0.wrapping_add((v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]));
            v.rotate_right(1);
            v[4] = v[4].wrapping_add(t1);
            v[0] = t1.wrapping_add(t2);
        }
        for (sum, value) in hash.iter_mut().zip(&v) {
            *sum = sum.wrapping_add(*value);
        }
    }
    hash.iter().map(|word| format!("{word:08x}")).collect()
}

#[test]
fn the_digest_is_sha256() {
    assert_eq!(
        sha256(b"abc"),
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
    assert_eq!(sha256(&[b'a'; 119]).len(), 64);
}
