//! Volumes made by mkfs.ocfs2, mounted through the public door on a simulated disk, and judged by
//! fsck.ocfs2.
#![allow(clippy::unwrap_used, reason = "a test fails where it panics")]
#![allow(dead_code, reason = "each test binary uses its part")]

pub mod bench;
pub mod checker;
pub mod tree;

use std::path::{Path, PathBuf};
use std::process::Command;

use bytes::Bytes;
use fs::volume::{Attr, FileHandle, IfExists, Ino, MountOptions, NewInode, OpenFlags, Volume};
use fs::{Error, Result};
use runtime::sim::{DiskOptions, Image, SimDisk, Simulation};

pub const ALL: &str = "sparse,unwritten,inline-data,extended-slotmap,metaecc,xattr,indexed-dirs,refcount,discontig-bg";
pub const PLAIN: &str =
    "nosparse,nounwritten,noinline-data,nometaecc,noxattr,noindexed-dirs,norefcount";

/// One of ocfs2-tools: output and status.
pub fn tool(name: &str, args: &[&str]) -> (String, i32) {
    let program = format!("/usr/sbin/{name}");
    let out = Command::new(program)
        .args(args)
        .output()
        .expect("ocfs2-tools are installed");
    let text = [out.stdout, out.stderr].concat();
    (
        String::from_utf8_lossy(&text).into_owned(),
        out.status.code().unwrap_or(-1),
    )
}

/// A folder for images, in memory where there is such a place.
pub fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        tempfile::tempdir_in(memory).unwrap()
    } else {
        tempfile::tempdir().unwrap()
    }
}

/// A volume's image file, and the disk that was loaded from it.
pub struct Rig {
    dir: tempfile::TempDir,
    pub sim: Simulation,
    pub disk: SimDisk,
    /// What fsck.ocfs2 says of the volume as mkfs.ocfs2 made it (with 512-byte blocks it makes a
    /// system directory that lacks its index).
    born_with: Vec<String>,
    /// Our own checker has nothing against it as mkfs.ocfs2 made it.
    born_clean: bool,
}

impl Rig {
    pub fn new(block: u32, cluster: u32, size_mb: u64, features: &str) -> Rig {
        let dir = scratch();
        let path = dir.path().join("volume");
        std::fs::File::create(&path)
            .unwrap()
            .set_len(size_mb << 20)
            .unwrap();
        let (block, cluster) = (block.to_string(), cluster.to_string());
        let features = format!("--fs-features={features}");
        let journal = if cluster.parse::<u32>().unwrap() >= 1 << 20 {
            "size=16M"
        } else {
            "size=4M"
        };
        let args = [
            "-q",
            "-x",
            "-F",
            "-M",
            "local",
            "-N",
            "2",
            "-b",
            &block,
            "-C",
            &cluster,
            "-J",
            journal,
            &features,
            path.to_str().unwrap(),
        ];
        let (output, status) = tool("mkfs.ocfs2", &args);
        assert_eq!(status, 0, "{output}");
        let (born_with, _, _) = complaints(&path);
        let image = Image::load(&path).unwrap();
        let born_clean =
            checker::check_image(&image).is_ok_and(|checked| checked.summary.is_clean());
        let sim = Simulation::new(1);
        sim.set_step_budget(u64::MAX);
        let disk = SimDisk::with(image, DiskOptions::default(), None);
        Rig {
            dir,
            sim,
            disk,
            born_with,
            born_clean,
        }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("volume")
    }

    /// Mounts it with the virtual clock.
    pub async fn mount(&self) -> Result<Volume> {
        Volume::mount(self.disk.device(), self.sim.host(), MountOptions::default()).await
    }

    pub fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.sim.block_on(future).expect("no deadlock")
    }

    /// Fails on any finding of `fsck.ocfs2 -fn` on the disk as it is.
    pub fn fsck(&self) {
        self.fsck_image(&self.disk.image(), &[]);
    }

    /// Fails on any finding on an image but those named, of our own checker too.
    pub fn fsck_image(&self, image: &Image, allowed: &[&str]) {
        if self.born_clean {
            checker::assert_clean_at_rest(image);
        }
        image.save(&self.path()).unwrap();
        let (mut found, text, status) = complaints(&self.path());
        found.retain(|line| {
            !self.born_with.contains(line) && !allowed.iter().any(|code| line.contains(code))
        });
        assert!(
            status == 0 && found.is_empty(),
            "fsck.ocfs2 ends with {status}:\n{text}"
        );
    }
}

/// The findings of `fsck.ocfs2 -fn` (each starts with its code in brackets), all it said, and its
/// status.
fn complaints(path: &Path) -> (Vec<String>, String, i32) {
    let (text, status) = tool("fsck.ocfs2", &["-fn", path.to_str().unwrap()]);
    let found = text
        .lines()
        .filter(|line| line.starts_with('['))
        .map(str::to_owned)
        .collect();
    (found, text, status)
}

pub const READ_WRITE: OpenFlags = OpenFlags {
    read: true,
    write: true,
    append: false,
    direct: false,
    dsync: false,
    nowait: false,
    truncate: false,
    fixed_size: false,
};

pub const DIRECT: OpenFlags = OpenFlags {
    direct: true,
    ..READ_WRITE
};

pub fn new_inode() -> NewInode {
    NewInode {
        permissions: 0o644,
        uid: 1000,
        gid: 1000,
    }
}

/// Bytes that differ by seed and place.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        })
        .collect()
}

/// Makes a file with this content.
pub async fn put(volume: &Volume, dir: Ino, name: &[u8], content: &[u8]) -> Result<Attr> {
    let attr = volume
        .create(dir, name, new_inode(), IfExists::Fail)
        .await?;
    let file = volume.open(attr.ino, READ_WRITE).await?;
    write_all(volume, &file, 0, content).await?;
    volume.close(file).await?;
    volume.getattr(attr.ino).await
}

pub async fn write_all(volume: &Volume, file: &FileHandle, at: u64, content: &[u8]) -> Result<()> {
    let written = volume
        .write(file, at, Bytes::copy_from_slice(content))
        .await;
    match written.error {
        None if written.bytes == content.len() as u64 => Ok(()),
        None => Err(Error::Invalid(format!("short write: {}", written.bytes))),
        Some(error) => Err(error),
    }
}

/// The whole content.
pub async fn get(volume: &Volume, ino: Ino) -> Result<Vec<u8>> {
    let size = volume.getattr(ino).await?.size_bytes;
    let mut all = Vec::new();
    while (all.len() as u64) < size {
        let piece = volume
            .read_ino(ino, all.len() as u64, size - all.len() as u64)
            .await?;
        assert!(!piece.is_empty(), "no bytes at {} of {size}", all.len());
        all.extend_from_slice(&piece);
    }
    Ok(all)
}

/// The names of a directory, without the dots, sorted.
pub async fn names(volume: &Volume, dir: Ino) -> Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    let mut cookie = 0;
    loop {
        let entries = volume.readdir(dir, cookie, 100).await?;
        let Some(last) = entries.last() else { break };
        cookie = last.next;
        names.extend(
            entries
                .into_iter()
                .map(|e| e.name)
                .filter(|n| n != b"." && n != b".."),
        );
    }
    names.sort();
    Ok(names)
}

/// The seeds a random test runs: `OCELOT_SEED` alone, or `OCELOT_SEEDS` of them, or so many, from
/// `OCELOT_FIRST_SEED` on.
pub fn seeds(default: u64) -> Vec<u64> {
    let number = |name| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    match number("OCELOT_SEED") {
        Some(seed) => vec![seed],
        None => {
            let first = number("OCELOT_FIRST_SEED").unwrap_or(0);
            (first..first + number("OCELOT_SEEDS").unwrap_or(default)).collect()
        }
    }
}
