//! A volume with everything in it, damaged where the input says, its checksums repaired or not: mounted,
//! walked, written, unmounted.
#![no_main]

#[path = "../../src/fs/tests/support/damaged.rs"]
mod damaged;
#[path = "../../src/fs/tests/support/mod.rs"]
mod support;

use std::sync::LazyLock;

use damaged::{NO_CHECKSUMS, damage, furnish, metadata, repair, try_image};
use libfuzzer_sys::fuzz_target;
use runtime::sim::Image;
use support::{ALL, Rig};

struct Base {
    block: u64,
    image: Image,
    places: Vec<u64>,
}

static BASES: LazyLock<Vec<Base>> = LazyLock::new(|| {
    [(4096, ALL), (4096, NO_CHECKSUMS), (512, ALL), (1024, ALL)]
        .map(|(block, features)| {
            let image = furnish(&Rig::new(block, 4096, 24, features));
            let block = u64::from(block);
            let places = metadata(&image, block);
            Base {
                block,
                image,
                places,
            }
        })
        .into()
});

fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else {
        return;
    };
    let base = &BASES[usize::from(first % 4)];
    let mut image = base.image.clone();
    let mut numbers = rest.chunks(3);
    let mut below = |bound: u64| {
        let chunk = numbers.next().unwrap_or_default();
        chunk
            .iter()
            .fold(0, |all, byte| all << 8 | u64::from(*byte))
            % bound
    };
    // The input says in its first byte what the rest is for.
    let hit = damage(&mut image, base.block, &base.places, &mut below);
    if first & 0x80 == 0 {
        repair(&mut image, base.block, hit);
    }
    try_image(image, 1);
});
