//! Volumes that somebody has damaged: bytes, fields and pointers of metadata changed at random, on
//! volumes without checksums (what a repaired checksum would let through) and with them; images
//! that are cut, random, or say wrong sizes. Each is mounted, walked, written and unmounted: no
//! panic, no hang, no memory without bound, and an error that names the block.

#![allow(clippy::print_stdout, reason = "says which seed failed")]
#![allow(clippy::unwrap_used, reason = "a test fails where it panics")]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fs::volume::{FileKind, IfExists, Ino, MountOptions, RenameMode, SetAttr, Volume};
use fs::xattr::XattrMode;
use fs::{Errno, Error};
use rand::RngCore;
use runtime::sim::{DiskOptions, Image, SimDisk, SimRng, Simulation};
use support::*;

const NO_CHECKSUMS: &str = "sparse,unwritten,inline-data,extended-slotmap,nometaecc,xattr,indexed-dirs,refcount,discontig-bg";
/// Longest that one damaged volume may take.
const PATIENCE: Duration = Duration::from_secs(40);

/// A volume with everything in it: trees of some depth, indexed directories, long attributes,
/// an orphan, a journal to replay.
fn furnish(rig: &Rig) -> Image {
    let sim = Simulation::new(1);
    let disk = SimDisk::with(rig.disk.image(), DiskOptions::default(), None);
    sim.block_on(async {
        let volume = Volume::mount(disk.device(), sim.host(), MountOptions::default())
            .await
            .unwrap();
        let root = volume.root();
        let many = volume.mkdir(root, b"many", new_inode()).await.unwrap().ino;
        for n in 0..150 {
            let name = format!("{n}-{}", "x".repeat(n % 90));
            volume
                .create(many, name.as_bytes(), new_inode(), IfExists::Fail)
                .await
                .unwrap();
        }
        let few = volume.mkdir(root, b"few", new_inode()).await.unwrap().ino;
        put(&volume, few, b"inline", b"small").await.unwrap();
        volume
            .symlink(few, b"fast", b"inline", new_inode())
            .await
            .unwrap();
        volume
            .symlink(few, b"slow", &[b's'; 2000], new_inode())
            .await
            .unwrap();
        // Every second cluster: one record each, so that the tree grows.
        let sparse = put(&volume, root, b"sparse", b"").await.unwrap().ino;
        let file = volume.open(sparse, READ_WRITE).await.unwrap();
        for n in 0..400 {
            write_all(&volume, &file, n * 2 * 4096, b"piece")
                .await
                .unwrap();
        }
        volume.close(file).await.unwrap();
        let marked = put(&volume, root, b"marked", &pattern(1, 50_000))
            .await
            .unwrap()
            .ino;
        for n in 0..40 {
            let name = format!("user.{n}");
            let value = pattern(n, [10, 100, 700, 9000][n as usize % 4]);
            volume
                .setxattr(marked, name.as_bytes(), &value, XattrMode::Any)
                .await
                .unwrap();
        }
        let gone = put(&volume, root, b"gone", &pattern(1, 90_000))
            .await
            .unwrap()
            .ino;
        let file = volume.open(gone, READ_WRITE).await.unwrap();
        volume.unlink(root, b"gone").await.unwrap();
        volume.sync().await.unwrap();
        drop(file);
    })
    .unwrap();
    disk.image()
}

/// The blocks of an image that hold something with a signature, with it.
fn metadata(image: &Image, block: u64) -> Vec<u64> {
    const SIGNATURES: [&[u8]; 8] = [
        b"INODE01", b"EXBLK01", b"GROUP01", b"XATTR01", b"DXDIR01", b"DXLEAF1", b"REFCNT1",
        b"OCFSV2",
    ];
    let mut bytes = vec![0; block as usize];
    (0..image.size_bytes() / block)
        .filter(|nr| {
            image.read(nr * block, &mut bytes);
            let trailer = bytes.len() - 64;
            SIGNATURES.iter().any(|sign| bytes.starts_with(sign))
                || bytes[trailer..].windows(7).any(|w| w == b"DIRTRL1")
                || bytes.starts_with(&[0xC0, 0x3B, 0x39, 0x98])
        })
        .collect()
}

/// One to four pieces of damage.
fn damage(image: &mut Image, block: u64, places: &[u64], rng: &mut SimRng) {
    let any = |rng: &mut SimRng| places[rng.below(places.len() as u64) as usize];
    for _ in 0..1 + rng.below(4) {
        let at = any(rng) * block;
        // Most fields are in the first part of a block.
        let within = match rng.below(3) {
            0 => rng.below(block),
            1 => rng.below(0x140.min(block)),
            _ => 0xc0 + rng.below(0x60),
        };
        let field = |size: u64| at + (within & !(size - 1)).min(block - size);
        match rng.below(8) {
            0 | 1 => image.write(at + within, &[rng.next_u64() as u8]),
            2 => {
                let mut byte = [0];
                image.read(at + within, &mut byte);
                image.write(at + within, &[byte[0] ^ (1 << rng.below(8))]);
            }
            3 => {
                let value = [0, 1, 0x7fff, 0xffff, 3][rng.below(5) as usize] as u16;
                image.write(field(2), &value.to_le_bytes());
            }
            4 => {
                let value = [0, 1, u32::MAX, 1 << 31, 70_000][rng.below(5) as usize];
                image.write(field(4), &value.to_le_bytes());
            }
            // Loops and cross links: one structure's pointer leads to another.
            5 | 6 => image.write(field(8), &any(rng).to_le_bytes()),
            _ => {
                let other = image.read_vec(any(rng) * block, block as usize);
                let from = rng.below(block) as usize;
                let len = (1 + rng.below(200) as usize).min(block as usize - from);
                image.write(at + from as u64, &other[from..from + len]);
            }
        }
    }
}

/// How often a block was found to be corrupt.
static CORRUPT: AtomicU64 = AtomicU64::new(0);

/// An error of a damaged volume names the block, if it says that one is corrupt.
fn check(error: &Error) {
    let text = error.to_string();
    assert!(!text.is_empty());
    if let Error::Corrupt(_) = error {
        CORRUPT.fetch_add(1, Ordering::Relaxed);
        if std::env::var("OCELOT_SEED").is_ok() {
            println!("{text}");
        }
        let names_block = text
            .split("block ")
            .skip(1)
            .any(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        assert!(names_block, "no block is named: {text}");
    }
}

fn kept<T>(result: Result<T, Error>) -> Option<T> {
    result.inspect_err(check).ok()
}

/// Everything that can be read.
async fn walk(volume: &Volume) -> Vec<Ino> {
    let mut seen = BTreeSet::new();
    let mut todo = vec![volume.root()];
    let mut files = Vec::new();
    while let Some(ino) = todo.pop() {
        let Some(attr) = (if seen.insert(ino) {
            kept(volume.getattr(ino).await)
        } else {
            None
        }) else {
            continue;
        };
        if let Some(list) = kept(volume.listxattr(ino).await) {
            for (name, _) in list {
                kept(volume.getxattr(ino, &name).await);
            }
        }
        match attr.kind {
            FileKind::Directory => {
                let (mut cookie, mut count) = (0, 0);
                while let Some(entries) = kept(volume.readdir(ino, cookie, 100).await) {
                    let Some(last) = entries.last() else { break };
                    cookie = last.next;
                    count += entries.len();
                    assert!(count < 100_000, "a directory without an end");
                    for entry in &entries {
                        if let Some(attr) = kept(volume.lookup(ino, &entry.name).await) {
                            todo.push(attr.ino);
                        }
                    }
                }
            }
            FileKind::Symlink => {
                kept(volume.readlink(ino).await);
            }
            FileKind::Regular => {
                files.push(ino);
                kept(volume.read_ino(ino, 0, 1 << 20).await);
                kept(
                    volume
                        .read_ino(ino, attr.size_bytes.saturating_sub(5000), 5000)
                        .await,
                );
            }
            _ => {}
        }
    }
    files
}

async fn exercise(volume: &Volume, files: &[Ino]) {
    let root = volume.root();
    kept(volume.statfs().await);
    for (n, ino) in files.iter().rev().take(6).enumerate() {
        if let Some(file) = kept(volume.open(*ino, READ_WRITE).await) {
            let data = Bytes::from(pattern(n as u64, 30_000));
            for at in [0, 6000, 3_000_000] {
                volume
                    .write(&file, at, data.clone())
                    .await
                    .error
                    .iter()
                    .for_each(check);
            }
            kept(volume.close(file).await);
        }
        let size_bytes = Some(5000 * n as u64);
        kept(
            volume
                .setattr(
                    *ino,
                    SetAttr {
                        size_bytes,
                        ..SetAttr::default()
                    },
                )
                .await,
        );
        kept(
            volume
                .setxattr(*ino, b"user.new", &[7; 500], XattrMode::Any)
                .await,
        );
        kept(volume.removexattr(*ino, b"user.3").await);
    }
    let many = kept(volume.lookup(root, b"many").await).map_or(root, |attr| attr.ino);
    for n in 0..12 {
        let name = format!("new {n} {}", "y".repeat(n * 15));
        kept(
            volume
                .create(many, name.as_bytes(), new_inode(), IfExists::Use)
                .await,
        );
        let old = format!("{n}-{}", "x".repeat(n));
        let to = format!("moved {n}");
        let (old, to) = (old.as_bytes(), to.as_bytes());
        kept(
            volume
                .rename(many, old, root, to, RenameMode::Replace)
                .await,
        );
        kept(volume.unlink(root, to).await);
    }
    for name in ["sparse", "marked"] {
        kept(volume.unlink(root, name.as_bytes()).await);
    }
    kept(volume.mkdir(root, b"dir", new_inode()).await);
    kept(volume.rmdir(root, b"dir").await);
    kept(volume.sync().await);
}

fn try_image(image: Image, seed: u64) -> Option<Error> {
    let sim = Simulation::new(seed);
    sim.set_step_budget(3_000_000);
    let disk = SimDisk::with(image, DiskOptions::default(), Some(&sim.world()));
    let mount = Volume::mount(disk.device(), sim.host(), MountOptions::default());
    let volume = match sim.block_on(mount).unwrap_or_else(|e| panic!("mount: {e}")) {
        Ok(volume) => volume,
        Err(error) => {
            check(&error);
            sim.run_until_idle()
                .unwrap_or_else(|e| panic!("after no mount: {e}"));
            return Some(error);
        }
    };
    sim.block_on(async {
        let files = walk(&volume).await;
        exercise(&volume, &files).await;
        if let Some(cause) = volume.read_only() {
            let refused = volume.mkdir(volume.root(), b"x", new_inode()).await;
            assert_eq!(refused.unwrap_err().errno(), Errno::EROFS, "{cause}");
        }
        kept(volume.unmount().await);
    })
    .unwrap_or_else(|e| panic!("use: {e}"));
    sim.run_until_idle()
        .unwrap_or_else(|e| panic!("after: {e}"));
    None
}

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

fn damaged(test: &'static str, rigs: &[(u64, &str)], default: u64) {
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
        damage(&mut image, *block, places, &mut rng);
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
        400,
    );
}

#[test]
fn damage_that_checksums_show_is_survived() {
    damaged("with checksums", &[(4096, ALL), (1024, ALL)], 120);
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
