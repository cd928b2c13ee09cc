//! Volumes to damage, ways to damage them, and a use of what is left: mounted, walked, written, unmounted.
//! For `tests/damage.rs` and the fuzz targets.
#![allow(clippy::unwrap_used, reason = "a test fails where it panics")]
#![allow(clippy::print_stdout, reason = "shows the errors of one seed")]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use fs::volume::{FileKind, IfExists, Ino, MountOptions, RenameMode, SetAttr, Volume};
use fs::xattr::XattrMode;
use fs::{Errno, Error};
use ondisk::Kind;
use runtime::sim::{DiskOptions, Image, SimDisk, Simulation};

use crate::support::{READ_WRITE, Rig, new_inode, pattern, put, write_all};

pub const NO_CHECKSUMS: &str = "sparse,unwritten,inline-data,extended-slotmap,nometaecc,xattr,indexed-dirs,refcount,discontig-bg";

/// A volume with everything in it: trees of some depth, indexed directories, long attributes,
/// an orphan, a journal to replay.
pub fn furnish(rig: &Rig) -> Image {
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
pub fn metadata(image: &Image, block: u64) -> Vec<u64> {
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

/// One to four pieces of damage, chosen by `below` (a number less than what it is given). The blocks that
/// were hit.
pub fn damage(
    image: &mut Image,
    block: u64,
    places: &[u64],
    below: &mut dyn FnMut(u64) -> u64,
) -> BTreeSet<u64> {
    let mut hit = BTreeSet::new();
    for _ in 0..1 + below(4) {
        let any = |below: &mut dyn FnMut(u64) -> u64| places[below(places.len() as u64) as usize];
        let nr = any(below);
        hit.insert(nr);
        let at = nr * block;
        // Most fields are in the first part of a block.
        let within = match below(3) {
            0 => below(block),
            1 => below(0x140.min(block)),
            _ => 0xc0 + below(0x60),
        };
        let field = |size: u64| at + (within & !(size - 1)).min(block - size);
        match below(8) {
            0 | 1 => image.write(at + within, &[below(256) as u8]),
            2 => {
                let mut byte = [0];
                image.read(at + within, &mut byte);
                image.write(at + within, &[byte[0] ^ (1 << below(8))]);
            }
            3 => {
                let value = [0, 1, 0x7fff, 0xffff, 3][below(5) as usize] as u16;
                image.write(field(2), &value.to_le_bytes());
            }
            4 => {
                let value = [0, 1, u32::MAX, 1 << 31, 70_000][below(5) as usize];
                image.write(field(4), &value.to_le_bytes());
            }
            // Loops and cross links: one structure's pointer leads to another.
            5 | 6 => image.write(field(8), &any(below).to_le_bytes()),
            _ => {
                let other = image.read_vec(any(below) * block, block as usize);
                let from = below(block) as usize;
                let len = (1 + below(200) as usize).min(block as usize - from);
                image.write(at + from as u64, &other[from..from + len]);
            }
        }
    }
    hit
}

/// What a block with a checksum is, by its bytes: the end of directory blocks, the beginning of others.
fn kind_of(block: &[u8]) -> Option<Kind> {
    let kind = match block.get(..7)? {
        b"INODE01" => Kind::Dinode,
        b"OCFSV2\0" => Kind::SuperBlock,
        b"EXBLK01" => Kind::ExtentBlock,
        b"GROUP01" => Kind::GroupDesc,
        b"XATTR01" => Kind::XattrBlock,
        b"DXDIR01" => Kind::DxRoot,
        b"DXLEAF1" => Kind::DxLeaf,
        b"REFCNT1" => Kind::RefcountBlock,
        _ if block.windows(7).any(|word| word == b"DIRTRL1") => Kind::DirBlock { trailer: true },
        _ => return None,
    };
    Some(kind)
}

/// Gives damaged blocks the checksums that make them look whole.
pub fn repair(image: &mut Image, block: u64, places: impl IntoIterator<Item = u64>) {
    for nr in places {
        let mut bytes = image.read_vec(nr * block, block as usize);
        if let Some(kind) = kind_of(&bytes) {
            kind.compute(&mut bytes);
            image.write(nr * block, &bytes);
        }
    }
}

/// How often a block was found to be corrupt.
pub static CORRUPT: AtomicU64 = AtomicU64::new(0);

/// An error of a damaged volume names the block, if it says that one is corrupt.
pub fn check(error: &Error) {
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

pub fn kept<T>(result: Result<T, Error>) -> Option<T> {
    result.inspect_err(check).ok()
}

/// Everything that can be read.
pub async fn walk(volume: &Volume) -> Vec<Ino> {
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

pub async fn exercise(volume: &Volume, files: &[Ino]) {
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

pub fn try_image(image: Image, seed: u64) -> Option<Error> {
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
        // Whatever it finds: it ends.
        let mut hear = |_| std::ops::ControlFlow::Continue(());
        volume.check(&mut hear).await.unwrap();
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
