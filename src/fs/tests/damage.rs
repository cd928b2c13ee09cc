//! Volumes that somebody has damaged: bytes, fields and pointers of metadata changed at random, on
//! volumes without checksums (what a repaired checksum would let through) and with them; images
//! that are cut, random, or say wrong sizes. Each is mounted, walked, written and unmounted: no
//! panic, no hang, no memory without bound, and an error that names the block.

#![allow(clippy::print_stdout, reason = "says which seed failed")]
#![allow(clippy::unwrap_used, reason = "a test fails where it panics")]

#[path = "support/damaged.rs"]
mod damaged;
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use damaged::{CORRUPT, NO_CHECKSUMS, damage, furnish, metadata, repair, try_image};
use fs::volume::{MountOptions, Volume};
use rand::RngCore;
use runtime::sim::{DiskOptions, Image, SimDisk, SimRng, Simulation};
use support::*;

/// Longest that one damaged volume may take.
const PATIENCE: Duration = Duration::from_secs(40);

/// Ends the process with the seed's name if a case takes too long: a loop without any I/O can not
/// be ended from within.
struct Watchdog(Arc<AtomicU64>);

impl Watchdog {
    fn new(test: &'static str) -> Watchdog {
        let current = Arc::new(AtomicU64::new(0));
        let seen = Arc::downgrade(&current);
        std::thread::spawn(move || {
            let (mut last, mut since) = (0, std::time::Instant::now());
            while let Some(current) = seen.upgrade() {
                let now = current.load(Ordering::Relaxed);
                if now != last {
                    (last, since) = (now, std::time::Instant::now());
                } else if since.elapsed() > PATIENCE {
                    println!("{test}: OCELOT_SEED={} hangs", now.saturating_sub(1));
                    std::process::abort();
                }
                drop(current);
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        Watchdog(current)
    }

    fn case(&self, seed: u64) -> Witness {
        self.0.store(seed + 1, Ordering::Relaxed);
        Witness(seed)
    }
}

struct Witness(u64);

impl Drop for Witness {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("OCELOT_SEED={} reproduces this", self.0);
        }
    }
}

/// The most memory this process ever had, in bytes.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|rest| rest.trim().split(' ').next()?.parse::<u64>().ok());
    number.unwrap_or(0) * 1024
}

fn damaged(test: &'static str, rigs: &[(u64, &str)], repaired: bool, default: u64) {
    let bases: Vec<(u64, Image, Vec<u64>)> = rigs
        .iter()
        .map(|(block, features)| {
            let image = furnish(&Rig::new(*block as u32, 4096, 24, features));
            let places = metadata(&image, *block);
            (*block, image, places)
        })
        .collect();
    let watchdog = Watchdog::new(test);
    let (mut mounted, mut refused) = (0, 0);
    for seed in seeds(default) {
        let _witness = watchdog.case(seed);
        let (block, image, places) = &bases[seed as usize % bases.len()];
        let mut rng = SimRng::new(seed);
        let mut image = image.clone();
        let hit = damage(&mut image, *block, places, &mut |bound| rng.below(bound));
        if repaired {
            repair(&mut image, *block, hit);
        }
        match try_image(image, seed) {
            None => mounted += 1,
            Some(_) => refused += 1,
        }
    }
    let peak = peak_memory() >> 20;
    println!("{test}: {mounted} mounted, {refused} refused, at most {peak} MiB");
    assert!(
        CORRUPT.load(Ordering::Relaxed) > 0,
        "no damage was ever noticed"
    );
    assert!(peak < 1500, "{peak} MiB of memory");
}

#[test]
fn damage_that_no_checksum_shows_is_survived() {
    damaged(
        "without checksums",
        &[(4096, NO_CHECKSUMS), (512, NO_CHECKSUMS)],
        false,
        400,
    );
}

#[test]
fn damage_that_checksums_show_is_survived() {
    damaged("with checksums", &[(4096, ALL), (1024, ALL)], false, 120);
}

#[test]
fn damage_under_repaired_checksums_is_survived() {
    damaged("repaired", &[(4096, ALL), (512, ALL)], true, 200);
}

#[test]
fn what_is_no_volume_is_refused() {
    // Without checksums: one flipped bit of a size would be corrected.
    let rig = Rig::new(4096, 4096, 24, NO_CHECKSUMS);
    let whole = rig.disk.image();
    let watchdog = Watchdog::new("no volume");
    let mut rng = SimRng::new(1);
    let refused = |seed: u64, image: Image, wanted: &[&str]| {
        let _witness = watchdog.case(seed);
        let error = try_image(image, seed)
            .expect("it must not mount")
            .to_string();
        assert!(
            wanted.iter().any(|word| error.contains(word)),
            "{seed}: {error}"
        );
    };
    refused(1, Image::empty(0), &["no blocks"]);
    refused(2, Image::empty(8 << 20), &["not a mountable"]);
    let mut random = vec![0; 4 << 20];
    rng.fill_bytes(&mut random);
    refused(3, Image::from_bytes(&random), &["not a mountable"]);
    for (n, size) in [512, 4096, 8192, 12_288, 1 << 20, (24 << 20) - 4096]
        .into_iter()
        .enumerate()
    {
        let mut image = whole.clone();
        image.resize(size);
        refused(
            10 + n as u64,
            image,
            &["truncated", "not a mountable", "block"],
        );
    }
    // The block and cluster size fields of the superblock, which is at block 2.
    for (n, bits) in [0u32, 8, 9, 10, 11, 13, 31, 64, u32::MAX]
        .into_iter()
        .enumerate()
    {
        for (m, offset) in [0xc0 + 0x38, 0xc0 + 0x3c].into_iter().enumerate() {
            let mut image = whole.clone();
            let before = image.read_vec(2 * 4096 + offset, 4);
            image.write(2 * 4096 + offset, &bits.to_le_bytes());
            if before != bits.to_le_bytes() {
                refused(
                    (100 + 10 * n + m) as u64,
                    image,
                    &["block", "not a mountable"],
                );
            }
        }
    }
}

/// A truncation asks a tree for its last record and takes that away. Where the records of a leaf
/// are not those that its parent promises, it took nothing away, and asked for ever. A reader was
/// told of a hole without length there, and stayed where it was.
#[test]
fn a_tree_out_of_order_is_neither_read_nor_emptied_for_ever() {
    const BLOCK: u64 = 4096;
    let image = furnish(&Rig::new(BLOCK as u32, 4096, 24, NO_CHECKSUMS));
    let sim = Simulation::new(1);
    let disk = SimDisk::with(image.clone(), DiskOptions::default(), None);
    let ino = sim
        .block_on(async {
            let volume = Volume::mount(disk.device(), sim.host(), MountOptions::default())
                .await
                .unwrap();
            let ino = volume.lookup(volume.root(), b"sparse").await.unwrap().ino;
            volume.unmount().await.unwrap();
            ino
        })
        .unwrap();
    let image = disk.image();
    let watchdog = Watchdog::new("order");
    // The list in the inode and the records in it are 16 bytes each, as are those of a leaf.
    let root = ino.0 * BLOCK + 0xc0;
    let number = |at: u64| u64::from_le_bytes(image.read_vec(at, 8).try_into().unwrap());
    let leaves: Vec<u64> = (0..2)
        .map(|n| number(root + 16 + n * 16 + 8) * BLOCK + 0x30)
        .collect();
    let mut keys = vec![root + 16, root + 32];
    for leaf in leaves {
        keys.extend([0, 1, 56, 147].map(|n| leaf + 16 + n * 16));
    }
    let mut seed = 0;
    for key in keys {
        for cpos in [0u32, 1, 307, 616, 617, 5000, u32::MAX] {
            seed += 1;
            let _witness = watchdog.case(seed);
            let mut image = image.clone();
            image.write(key, &cpos.to_le_bytes());
            try_image(image, seed);
        }
    }
    assert!(CORRUPT.load(Ordering::Relaxed) > 0);
}
