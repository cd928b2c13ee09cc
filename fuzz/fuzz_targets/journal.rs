//! The journal of a volume that was not unmounted, with a log made from the input: descriptors, revoke
//! records, commit blocks in any order and with any content, data that is a block of the volume with bytes
//! changed. Mounted (which replays it), walked, written, unmounted.
#![no_main]

#[path = "../../src/fs/tests/support/damaged.rs"]
#[allow(dead_code, reason = "each target uses its part")]
mod damaged;
#[path = "../../src/fs/tests/support/mod.rs"]
mod support;

use std::sync::LazyLock;

use damaged::{furnish, metadata, repair, try_image};
use libfuzzer_sys::fuzz_target;
use ondisk::BlockNr;
use ondisk::jbd2::{CommitBlock, DescriptorWriter, RevokeWriter, SuperBlock, Tid};
use runtime::sim::Image;
use support::{ALL, Rig, tool};

const BLOCK: usize = 4096;

struct Base {
    image: Image,
    places: Vec<u64>,
    /// The journal's first block; it is one run.
    start: u64,
}

static BASE: LazyLock<Base> = LazyLock::new(|| {
    let rig = Rig::new(BLOCK as u32, 4096, 24, ALL);
    let path = rig.path();
    let request = [
        "-R",
        "stat //journal:0000",
        path.to_str().expect("a path is text"),
    ];
    let (text, _) = tool("debugfs.ocfs2", &request);
    let mut extents = text.lines().skip_while(|line| !line.contains("## Offset"));
    let extent = extents.nth(1).expect("the journal has an extent");
    let start = extent
        .split_whitespace()
        .nth(3)
        .and_then(|word| word.parse().ok());
    let image = furnish(&rig);
    let places = metadata(&image, BLOCK as u64);
    Base {
        image,
        places,
        start: start.expect("an extent has a block"),
    }
});

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn number(&mut self) -> u64 {
        let bytes = [(); 2].map(|()| self.byte().unwrap_or(0));
        u16::from_be_bytes(bytes).into()
    }

    /// A home: mostly one of the metadata blocks, else any number.
    fn home(&mut self) -> u64 {
        let number = self.number();
        match self.byte().unwrap_or(0) {
            0..240 => BASE.places[number as usize % BASE.places.len()],
            high => number << (high - 240),
        }
    }
}

/// A block of the volume with a few bytes changed, and perhaps its checksum repaired.
fn content(input: &mut Input<'_>, home: u64) -> Vec<u8> {
    let size = BASE.image.size_bytes() / BLOCK as u64;
    let mut image = BASE.image.clone();
    let nr = if home < size { home } else { BASE.places[0] };
    let changes = input.byte().unwrap_or(0);
    for _ in 0..changes % 6 {
        let at = input.number() % BLOCK as u64;
        image.write(nr * BLOCK as u64 + at, &[input.byte().unwrap_or(0)]);
    }
    if changes & 0x80 == 0 {
        repair(&mut image, BLOCK as u64, [nr]);
    }
    image.read_vec(nr * BLOCK as u64, BLOCK)
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let mut image = BASE.image.clone();
    let mut superblock = image.read_vec(BASE.start * BLOCK as u64, BLOCK);
    let raw = SuperBlock::of_mut(&mut superblock);
    let features = input.byte().unwrap_or(0);
    // Any incompatible feature, most often those that there are.
    if features & 0x80 != 0 {
        raw.s_feature_incompat.set(u32::from(features & 0x1f));
    }
    raw.s_feature_compat.set(u32::from(features >> 6 & 1));
    let wide = raw.is_wide();
    let length = raw.s_maxlen.get();
    let mut tid = raw.sequence().0.wrapping_add(input.number() as u32);
    let mut at = 1 + input.number() as u32 % (length - 1);
    raw.s_start.set(at);
    raw.s_sequence.set(tid);
    while let Some(kind) = input.byte() {
        let mut blocks = vec![vec![0; BLOCK]];
        match kind % 8 {
            0..3 => {
                let uuid = [0; 16];
                let mut writer = DescriptorWriter::new(&mut blocks[0], Tid(tid), uuid, wide);
                let homes: Vec<u64> = (0..1 + kind / 32).map(|_| input.home()).collect();
                for home in &homes {
                    // More than a descriptor has room for is data without a tag.
                    let _ = writer.push(BlockNr(*home), kind & 8 != 0);
                }
                writer.finish();
                blocks.extend(homes.iter().map(|home| content(&mut input, *home)));
            }
            3 => {
                let mut writer = RevokeWriter::new(&mut blocks[0], Tid(tid), wide);
                for _ in 0..1 + kind / 32 {
                    let _ = writer.push(BlockNr(input.home()));
                }
            }
            4 | 5 => {
                CommitBlock::init(&mut blocks[0], Tid(tid), (u64::from(kind), 0), None);
                tid = tid.wrapping_add(1);
            }
            6 => {
                // A block of the journal's own kinds with bytes changed.
                CommitBlock::init(&mut blocks[0], Tid(tid), (0, 0), None);
                for _ in 0..1 + kind / 32 {
                    let place = input.number() as usize % 64;
                    blocks[0][place] = input.byte().unwrap_or(0);
                }
            }
            _ => {
                let place = 12 + input.number() as usize % 0xF4;
                superblock[place] = input.byte().unwrap_or(0);
                continue;
            }
        }
        for block in blocks {
            image.write((BASE.start + u64::from(at)) * BLOCK as u64, &block);
            at = if at + 1 < length { at + 1 } else { 1 };
        }
    }
    image.write(BASE.start * BLOCK as u64, &superblock);
    try_image(image, 1);
});
