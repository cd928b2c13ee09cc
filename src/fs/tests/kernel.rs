//! The Linux driver as judge, in both directions: we read and change what it wrote, it reads and changes what we
//! wrote. The driver runs in a virtual machine (`kernel-make`, `kernel-mount-check`), outside of these tests; images
//! and manifests are what passes between the two. `tests/kernel.sh` runs the whole round.

#![allow(clippy::unwrap_used, reason = "a test fails where it panics")]
#![allow(
    clippy::print_stdout,
    reason = "says which volume, and what was left out"
)]

#[path = "support/manifest.rs"]
mod manifest;
#[path = "support/rich_tree.rs"]
mod rich_tree;
mod support;

use std::path::{Path, PathBuf};
use std::rc::Rc;

use fs::volume::{FileKind, Ino, MountOptions, Volume};
use fs::{Errno, Result};
use manifest::manifest;
use rich_tree::Tree;
use runtime::Host;
use runtime::sim::{Choice, DiskOptions, Image, SimDisk, Simulation};
use support::*;

/// What fsck.ocfs2 says of volumes that only the kernel has touched, of the kernel's own making: blocks past the end
/// of a file that was preallocated with keep-size, the free start of xattr buckets, and clones of inline files that
/// have inline xattrs.
const KERNEL_HABITS: [&str; 3] = [
    "[INODE_SPARSE_SIZE]",
    "[XATTR_FREE_START_INVALID]",
    "[INLINE_DATA_COUNT_INVALID]",
];

fn path_of(variable: &str) -> PathBuf {
    std::env::var_os(variable)
        .map(PathBuf::from)
        .unwrap_or_else(|| panic!("set {variable}"))
}

/// A disk with the content of a file, and the world it is in.
struct Loaded {
    sim: Simulation,
    disk: SimDisk,
}

impl Loaded {
    fn new(image: Image) -> Loaded {
        let sim = Simulation::new(1);
        sim.set_step_budget(u64::MAX);
        let disk = SimDisk::with(image, DiskOptions::default(), None);
        Loaded { sim, disk }
    }

    fn of_file(path: &Path) -> Loaded {
        Loaded::new(Image::load(path).unwrap())
    }

    async fn mount(&self, read_only: bool) -> Result<Volume> {
        let options = MountOptions {
            read_only,
            ..MountOptions::default()
        };
        let host: Rc<dyn Host> = self.sim.host();
        Volume::mount(self.disk.device(), host, options).await
    }

    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.sim.block_on(future).expect("no deadlock")
    }
}

/// The lines of a manifest that the door can vouch for: it does not show extents.
fn expected(path: &Path) -> Vec<Vec<u8>> {
    std::fs::read(path)
        .unwrap()
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty() && !line.starts_with(b"E\t"))
        .map(<[u8]>::to_vec)
        .collect()
}

fn assert_same(have: &[Vec<u8>], want: &[Vec<u8>]) {
    let extra = have.iter().filter(|line| !want.contains(line));
    if have != want {
        for line in extra.take(20) {
            println!("have {}", line.escape_ascii());
        }
        for line in want.iter().filter(|line| !have.contains(line)).take(20) {
            println!("want {}", line.escape_ascii());
        }
        panic!("{} lines, expected {}", have.len(), want.len());
    }
}

/// What `fsck.ocfs2 -fn` finds, beyond the kernel's own habits.
fn findings(path: &Path) -> Vec<String> {
    let (text, status) = tool("fsck.ocfs2", &["-fn", path.to_str().unwrap()]);
    assert_eq!(status, 0, "fsck.ocfs2: {text}");
    text.lines()
        .filter(|line| line.starts_with('[') && !KERNEL_HABITS.iter().any(|h| line.starts_with(h)))
        .map(str::to_owned)
        .collect()
}

/// Fails on any finding that the image did not have before (mkfs.ocfs2 leaves a system directory without its index).
fn fsck(path: &Path, before: &Path) {
    let mut found = findings(path);
    if !found.is_empty() {
        let before = findings(before);
        found.retain(|line| !before.contains(line));
    }
    assert!(found.is_empty(), "{found:#?}");
}

/// `fsck.ocfs2 -fy` after a crash. Once it has replayed a journal it ends with "Unable to access cluster service",
/// also with volumes that the kernel has left on a machine without one; the second run goes through.
fn repair(path: &Path) {
    let run = || tool("fsck.ocfs2", &["-fy", path.to_str().unwrap()]);
    let (mut text, mut status) = run();
    if status == 8 && text.contains("journal replayed successfully") {
        (text, status) = run();
    }
    assert!(status <= 1, "fsck.ocfs2 -fy ends with {status}: {text}");
    assert!(text.contains("All passes succeeded"), "{text}");
}

/// The clusters of an inode, as debugfs.ocfs2 tells.
fn clusters(image: &Path, name: &str) -> u64 {
    let request = format!("stat {name}");
    let (text, _) = tool("debugfs.ocfs2", &["-R", &request, image.to_str().unwrap()]);
    let number = text
        .split("Clusters: ")
        .nth(1)
        .unwrap_or_else(|| panic!("{name}: {text}"));
    number.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
#[ignore = "needs an image by the kernel: OCELOT_KERNEL_IMAGE, OCELOT_KERNEL_MANIFEST"]
fn what_the_kernel_wrote_is_read() {
    let path = path_of("OCELOT_KERNEL_IMAGE");
    let want = expected(&path_of("OCELOT_KERNEL_MANIFEST"));
    let original = Image::load(&path).unwrap();
    let rig = Loaded::new(original.clone());
    let unclean = rig.run(async {
        match rig.mount(true).await {
            Ok(volume) => {
                assert_same(&manifest(&volume).await.unwrap(), &want);
                volume.unmount().await.unwrap();
                false
            }
            Err(error) => {
                assert_eq!(error.errno(), Errno::EROFS, "{error}");
                println!("read-only mount: {error}");
                true
            }
        }
    });
    assert_eq!(rig.disk.image().first_difference(&original), None);
    rig.run(async {
        let volume = rig.mount(false).await.unwrap();
        assert_eq!(volume.info().recovered, unclean);
        assert_same(&manifest(&volume).await.unwrap(), &want);
        volume.unmount().await.unwrap();
    });
    let dir = scratch();
    let copy = dir.path().join("image");
    rig.disk.image().save(&copy).unwrap();
    fsck(&copy, &path);
    println!("{} lines alike; unclean: {unclean}", want.len());
}

/// Saves an image with the listing and the manifest that the kernel has to find in it.
fn hand_over(dir: &Path, name: &str, image: &Image, lines: &[Vec<u8>], tree: &Tree) {
    let path = dir.join(format!("{name}.img"));
    image.save(&path).unwrap();
    let mut text = lines.join(&b'\n');
    text.push(b'\n');
    std::fs::write(dir.join(format!("{name}.manifest")), text).unwrap();
    std::fs::write(dir.join(format!("{name}.sha256")), tree.listing()).unwrap();
}

/// Name, block size, cluster size, megabytes, features.
const GEOMETRIES: [(&str, u32, u32, u64, &str); 6] = [
    ("ours-default", 4096, 4096, 320, ALL),
    ("ours-b4k-c32k", 4096, 32768, 768, ALL),
    ("ours-b1k-c4k", 1024, 4096, 320, ALL),
    ("ours-b512-c4k", 512, 4096, 320, ALL),
    ("ours-b2k-c1m", 2048, 1 << 20, 4096, ALL),
    ("ours-plain", 4096, 4096, 400, PLAIN),
];

#[test]
#[ignore = "writes images for the kernel to judge: OCELOT_OUT_DIR"]
fn volumes_are_written_for_the_kernel() {
    let out = path_of("OCELOT_OUT_DIR");
    let only = std::env::var("OCELOT_ONLY").ok();
    for (name, block, cluster, size_mb, features) in GEOMETRIES {
        if only.as_deref().is_some_and(|only| only != name) {
            continue;
        }
        println!("-- {name}");
        let rig = Rig::new(block, cluster, size_mb, features);
        let mut tree = Tree::new(cluster, features == ALL);
        rig.run(async {
            let volume = rig.mount().await.unwrap();
            tree.write(&volume).await.unwrap();
            // Deleted while open, and cut short, right before the crash.
            let root = volume.root();
            let doomed = put(&volume, root, b"doomed", &pattern(1, 400_000))
                .await
                .unwrap();
            let file = volume.open(doomed.ino, READ_WRITE).await.unwrap();
            volume.unlink(root, b"doomed").await.unwrap();
            let lines = manifest(&volume).await.unwrap();
            tree.check(&lines);
            volume.sync().await.unwrap();
            // Only what is durable, and the journal as it is. What comes after may be there or not.
            let crash = rig.disk.crash_image(&Choice::default());
            hand_over(&out, &format!("{name}-crash"), &crash, &lines, &tree);
            volume.close(file).await.unwrap();
            volume.unmount().await.unwrap();
            hand_over(&out, name, &rig.disk.image(), &lines, &tree);
        });
        rig.fsck();
        let repaired = rig.path();
        Image::load(&out.join(format!("{name}-crash.img")))
            .unwrap()
            .save(&repaired)
            .unwrap();
        repair(&repaired);
        let want = expected(&out.join(format!("{name}-crash.manifest")));
        for image in [repaired.clone(), out.join(format!("{name}-crash.img"))] {
            let again = Loaded::of_file(&image);
            again.run(async {
                let volume = again.mount(false).await.unwrap();
                assert_same(&manifest(&volume).await.unwrap(), &want);
                volume.unmount().await.unwrap();
            });
            rig.fsck_image(&again.disk.image(), &[]);
        }
    }
}

#[test]
#[ignore = "needs an image by the kernel: OCELOT_KERNEL_IMAGE, OCELOT_OUT_DIR; OCELOT_EMPTY_IMAGE, the same volume before"]
fn what_the_kernel_wrote_is_changed_and_deleted() {
    let path = path_of("OCELOT_KERNEL_IMAGE");
    let out = path_of("OCELOT_OUT_DIR");
    let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
    let rig = Loaded::of_file(&path);
    let tree = rig.run(async {
        let volume = rig.mount(false).await.unwrap();
        let mut tree = Tree::of(&volume).await.unwrap();
        println!("{} files", tree.files.len());
        tree.change_all(&volume).await.unwrap();
        let lines = manifest(&volume).await.unwrap();
        tree.check(&lines);
        volume.unmount().await.unwrap();
        hand_over(
            &out,
            &format!("{name}-changed"),
            &rig.disk.image(),
            &lines,
            &tree,
        );
        tree
    });
    drop(tree);
    fsck(&out.join(format!("{name}-changed.img")), &path);
    println!("changed");
    let free = rig.run(async {
        let volume = rig.mount(false).await.unwrap();
        delete_all(&volume, volume.root(), true).await.unwrap();
        volume.unmount().await.unwrap();
        let volume = rig.mount(false).await.unwrap();
        let statfs = volume.statfs().await.unwrap();
        put(&volume, volume.root(), b"last", b"last").await.unwrap();
        let mut tree = Tree::of(&volume).await.unwrap();
        tree.files.retain(|path, _| path == b"last");
        let lines = manifest(&volume).await.unwrap();
        volume.unmount().await.unwrap();
        hand_over(
            &out,
            &format!("{name}-emptied"),
            &rig.disk.image(),
            &lines,
            &tree,
        );
        statfs.free_bytes / u64::from(statfs.cluster_size)
    });
    let emptied = out.join(format!("{name}-emptied.img"));
    fsck(&emptied, &path);
    let Some(empty) = std::env::var_os("OCELOT_EMPTY_IMAGE").map(PathBuf::from) else {
        println!("OCELOT_EMPTY_IMAGE is not set: free space is not compared");
        return;
    };
    let before = Loaded::of_file(&empty);
    let (free_before, slots) = before.run(async {
        let volume = before.mount(true).await.unwrap();
        let statfs = volume.statfs().await.unwrap();
        (
            statfs.free_bytes / u64::from(statfs.cluster_size),
            volume.info().max_slots,
        )
    });
    // What stays taken: groups of the allocators, and directories do not shrink.
    let mut names = vec!["/".to_owned(), "/lost+found".to_owned()];
    for slot in 0..slots {
        for file in ["inode_alloc", "extent_alloc", "orphan_dir"] {
            names.push(format!("//{file}:{slot:04}"));
        }
    }
    let sum = |image: &Path| names.iter().map(|name| clusters(image, name)).sum::<u64>();
    let grown = sum(&emptied) - sum(&empty);
    assert_eq!(
        free + grown,
        free_before,
        "allocators and directories hold {grown} more"
    );
    println!(
        "{free} clusters free, {grown} kept by allocators and directories, {free_before} in the empty volume"
    );
}

/// Deletes all names below a directory.
async fn delete_all(volume: &Volume, dir: Ino, top: bool) -> Result<()> {
    for name in names(volume, dir).await? {
        if top && name == b"lost+found" {
            continue;
        }
        let attr = volume.lookup(dir, &name).await?;
        if attr.kind == FileKind::Directory {
            Box::pin(delete_all(volume, attr.ino, false)).await?;
            volume.rmdir(dir, &name).await?;
        } else {
            volume.unlink(dir, &name).await?;
        }
    }
    Ok(())
}
