//! Power loss at every point of scripted runs through the door. Each run is recorded once, then
//! crashed after every change and flush with a drawn outcome of what was in the cache: kept, lost,
//! torn. The image must mount, show the tree as it was after some operation not before the last
//! acknowledged fsync (names, kinds, links, sizes, attributes all of that one moment), with file
//! bytes of that time or later; and go on working. Crashes inside the recovery are among them.
//!
//! `OCELOT_SEED=n` runs only that one, `OCELOT_SEEDS=n` more.

#![allow(clippy::print_stdout, reason = "says which seed failed")]
#![allow(clippy::unwrap_used, reason = "a test fails where it panics")]

mod support;

use std::collections::BTreeMap;

use bytes::Bytes;
use fs::volume::{FileKind, IfExists, Ino, MountOptions, NewInode, RenameMode, SetAttr, Volume};
use fs::xattr::XattrMode;
use runtime::sim::{Choice, CrashModel, DiskOptions, Image, SimDisk, SimRng, Simulation, Trace};
use support::*;

/// Block size, cluster size, megabytes, features.
const GEOMETRIES: [(u32, u32, u64, &str); 4] = [
    (4096, 4096, 24, ALL),
    (512, 4096, 24, ALL),
    (1024, 32768, 40, ALL),
    (4096, 4096, 24, PLAIN),
];
/// Every so many replayed images are shown to fsck.ocfs2.
const FSCK_EVERY: usize = 120;

/// One operation of a script, by path.
#[derive(Debug, Clone)]
enum Op {
    Create(String),
    Mkdir(String),
    Symlink(String, usize),
    Link(String, String),
    Unlink(String),
    Rmdir(String),
    Rename(String, String, RenameMode),
    /// Position, length, and what the pattern begins with.
    Write(String, u64, usize, u64),
    Truncate(String, u64),
    Chmod(String, u16),
    SetXattr(String, String, usize),
    RemoveXattr(String, String),
    Fsync(String),
    Sync,
}

use Op::*;

fn path(text: &str) -> String {
    text.to_owned()
}

/// A little of everything, each kind near its limits of form: inline to extents, growing and
/// shrinking trees, an index that splits, attributes in and outside of the inode.
fn script(seed: u64) -> Vec<Op> {
    let mut rng = SimRng::new(seed);
    let mut ops = Vec::new();
    let dirs = ["", "/a", "/a/b", "/c"];
    ops.extend([Mkdir(path("/a")), Mkdir(path("/a/b")), Mkdir(path("/c"))]);
    let mut files: Vec<String> = Vec::new();
    let mut serial = 0;
    for _ in 0..70 {
        let dir = dirs[rng.below(4) as usize];
        serial += 1;
        let long = if rng.below(4) == 0 {
            "long".repeat(40)
        } else {
            String::new()
        };
        let fresh = format!("{dir}/n{serial}{long}");
        if files.len() < 3 {
            ops.extend([Create(fresh.clone()), Write(fresh.clone(), 0, 3000, serial)]);
            files.push(fresh);
            continue;
        }
        let at = rng.below(files.len() as u64) as usize;
        let file = files[at].clone();
        match rng.below(26) {
            0..3 => {
                ops.push(Create(fresh.clone()));
                files.push(fresh);
            }
            3 => ops.extend([Mkdir(fresh.clone()), Rmdir(fresh)]),
            4 => {
                ops.push(Symlink(
                    fresh.clone(),
                    [20, 700, 4000][rng.below(3) as usize],
                ));
                ops.push(Unlink(fresh));
            }
            5 => {
                ops.push(Link(file, fresh.clone()));
                ops.push(Unlink(fresh));
            }
            6..8 => {
                ops.push(Unlink(file));
                files.remove(at);
            }
            8..10 => {
                ops.push(Rename(file, fresh.clone(), RenameMode::Replace));
                files[at] = fresh;
            }
            10 => {
                let other = files[rng.below(files.len() as u64) as usize].clone();
                if other != file {
                    ops.push(Rename(file, other, RenameMode::Exchange));
                }
            }
            11 => {
                let other = rng.below(files.len() as u64) as usize;
                if other != at {
                    ops.push(Rename(file, files[other].clone(), RenameMode::Replace));
                    files.remove(at);
                }
            }
            12..16 => {
                let position = [0, 5, 3000, 4096, 70_000, 150_000][rng.below(6) as usize];
                let len = [1, 100, 4096, 8000, 60_000][rng.below(5) as usize];
                ops.push(Write(file, position, len, serial));
            }
            16 => ops.push(Truncate(file, rng.below(100_000))),
            17 => ops.push(Chmod(file, 0o600 + rng.below(64) as u16)),
            18 | 19 => {
                let name = format!("user.x{}", rng.below(3));
                let len = [10, 300, 5000][rng.below(3) as usize];
                ops.push(SetXattr(file.clone(), name.clone(), len));
                if rng.below(3) == 0 {
                    ops.push(RemoveXattr(file, name));
                }
            }
            20..25 => ops.push(Fsync(file)),
            _ => ops.push(Sync),
        }
    }
    ops.push(Sync);
    ops
}

/// What can be seen of an inode, but for bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    kind: FileKind,
    permissions: u16,
    links: u32,
    size: u64,
    target: Vec<u8>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    ino: Ino,
}

/// All that can be seen of a volume: by path, and file bytes by inode number.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct View {
    paths: BTreeMap<String, Seen>,
    bytes: BTreeMap<Ino, Vec<u8>>,
}

async fn look(volume: &Volume) -> fs::Result<View> {
    let mut view = View::default();
    let mut todo = vec![(String::new(), volume.root())];
    while let Some((dir, ino)) = todo.pop() {
        for name in names(volume, ino).await? {
            let path = format!("{dir}/{}", String::from_utf8_lossy(&name));
            if path == "/lost+found" {
                continue;
            }
            let attr = volume.lookup(ino, &name).await?;
            let mut seen = Seen {
                kind: attr.kind,
                permissions: attr.permissions,
                links: attr.links,
                size: 0,
                target: Vec::new(),
                xattrs: BTreeMap::new(),
                ino: attr.ino,
            };
            match attr.kind {
                FileKind::Directory => todo.push((path.clone(), attr.ino)),
                FileKind::Symlink => seen.target = volume.readlink(attr.ino).await?,
                _ => {
                    seen.size = attr.size_bytes;
                    view.bytes.insert(attr.ino, get(volume, attr.ino).await?);
                }
            }
            for (name, _) in volume.listxattr(attr.ino).await? {
                let value = volume.getxattr(attr.ino, &name).await?;
                seen.xattrs.insert(name, value);
            }
            view.paths.insert(path, seen);
        }
    }
    Ok(view)
}

async fn apply(volume: &Volume, op: &Op) -> fs::Result<()> {
    let root = volume.root();
    let at = async |path: &str| volume.resolve(root, path.as_bytes(), false).await;
    let parent = async |path: &str| volume.resolve_parent(root, path.as_bytes()).await;
    match op {
        Create(path) => {
            let (dir, name) = parent(path).await?;
            volume
                .create(dir, &name, new_inode(), IfExists::Fail)
                .await?;
        }
        Mkdir(path) => {
            let (dir, name) = parent(path).await?;
            volume
                .mkdir(
                    dir,
                    &name,
                    NewInode {
                        permissions: 0o755,
                        ..new_inode()
                    },
                )
                .await?;
        }
        Symlink(path, len) => {
            let (dir, name) = parent(path).await?;
            volume
                .symlink(dir, &name, &vec![b't'; *len], new_inode())
                .await?;
        }
        Link(from, to) => {
            let (dir, name) = parent(to).await?;
            volume.link(at(from).await?.ino, dir, &name).await?;
        }
        Unlink(path) => {
            let (dir, name) = parent(path).await?;
            volume.unlink(dir, &name).await?;
        }
        Rmdir(path) => {
            let (dir, name) = parent(path).await?;
            volume.rmdir(dir, &name).await?;
        }
        Rename(from, to, mode) => {
            let ((a, from), (b, to)) = (parent(from).await?, parent(to).await?);
            volume.rename(a, &from, b, &to, *mode).await?;
        }
        Write(path, position, len, seed) => {
            let file = volume.open(at(path).await?.ino, DIRECT).await?;
            let data = Bytes::from(pattern(*seed, *len));
            let written = volume.write(&file, *position, data).await;
            volume.close(file).await?;
            assert!(written.error.is_none(), "{written:?}");
        }
        Truncate(path, size) => {
            let set = SetAttr {
                size_bytes: Some(*size),
                ..SetAttr::default()
            };
            volume.setattr(at(path).await?.ino, set).await?;
        }
        Chmod(path, permissions) => {
            let set = SetAttr {
                permissions: Some(*permissions),
                ..SetAttr::default()
            };
            volume.setattr(at(path).await?.ino, set).await?;
        }
        SetXattr(path, name, len) => {
            let value = pattern(*len as u64, *len);
            let ino = at(path).await?.ino;
            volume
                .setxattr(ino, name.as_bytes(), &value, XattrMode::Any)
                .await?;
        }
        RemoveXattr(path, name) => {
            volume
                .removexattr(at(path).await?.ino, name.as_bytes())
                .await?;
        }
        Fsync(path) => volume.fsync_ino(at(path).await?.ino, false).await?,
        Sync => volume.sync().await?,
    }
    Ok(())
}

/// A recorded run: what was seen after each operation, when it began and ended, and which
/// operation is durable since when.
struct Run {
    trace: Trace,
    views: Vec<View>,
    begun: Vec<usize>,
    /// Point, and how many operations are durable from then on.
    durable: Vec<(usize, usize)>,
    /// Point, file, and the view from which on its bytes may come.
    flushed: Vec<(usize, Ino, usize)>,
    ops: Vec<Op>,
}

/// Does the operation change the inode that `path` is now?
fn path_of(op: &Op) -> Option<&str> {
    match op {
        Write(path, ..)
        | Truncate(path, _)
        | Chmod(path, _)
        | SetXattr(path, ..)
        | RemoveXattr(path, _)
        | Create(path) => Some(path),
        _ => None,
    }
}

fn record(base: &Image, seed: u64) -> Run {
    let sim = Simulation::new(seed);
    sim.set_step_budget(u64::MAX);
    let world = sim.world();
    let disk = SimDisk::with(base.clone(), DiskOptions::default(), Some(&world));
    let ops: Vec<Op> = script(seed)
        .into_iter()
        .filter(|op| seed % 4 != 3 || !matches!(op, SetXattr(..) | RemoveXattr(..)))
        .collect();
    // Recorded from inside, so that mounting is crashed as well.
    disk.record();
    let (mut views, mut begun) = (Vec::new(), Vec::new());
    let (mut durable, mut flushed) = (Vec::new(), Vec::new());
    let options = MountOptions {
        commit_interval: std::time::Duration::from_micros(700),
        ..MountOptions::default()
    };
    sim.block_on(async {
        let volume = Volume::mount(disk.device(), sim.host(), options)
            .await
            .unwrap();
        views.push(look(&volume).await.unwrap());
        durable.push((0, 0));
        // The operation that last changed each inode by its path.
        let mut last: BTreeMap<Ino, usize> = BTreeMap::new();
        for (index, op) in ops.iter().enumerate() {
            begun.push(disk.point());
            apply(&volume, op)
                .await
                .unwrap_or_else(|e| panic!("{op:?}: {e}"));
            // The last operation decides what is there; looking changes nothing on the disk.
            let view = look(&volume).await.unwrap();
            if let Some(seen) = path_of(op).and_then(|path| view.paths.get(path)) {
                last.insert(seen.ino, index + 1);
            }
            match op {
                Sync => {
                    durable.push((disk.point(), index));
                    for ino in view.bytes.keys() {
                        flushed.push((disk.point(), *ino, index));
                    }
                }
                Fsync(path) => {
                    let ino = view.paths[path].ino;
                    durable.push((disk.point(), last.get(&ino).copied().unwrap_or(0)));
                    flushed.push((disk.point(), ino, index));
                }
                _ => {}
            }
            views.push(view);
        }
        volume.unmount().await.unwrap();
        durable.push((disk.point(), ops.len()));
    })
    .unwrap();
    assert_eq!(disk.stats().overlapping_writes, 0);
    let trace = disk.take_trace().unwrap();
    Run {
        trace,
        views,
        begun,
        durable,
        flushed,
        ops,
    }
}

/// Holds a recovered volume to the run.
fn judge(run: &Run, point: usize, shown: &View) -> Result<usize, String> {
    let least = run
        .durable
        .iter()
        .filter(|(at, _)| *at <= point)
        .map(|(_, n)| *n)
        .max();
    let least = least.unwrap_or(0);
    let most = run.begun.iter().filter(|at| **at <= point).count();
    let mut problem = String::new();
    for index in (least..=most).rev() {
        match agrees(run, index, most, point, shown) {
            Ok(()) => return Ok(index),
            Err(why) if problem.len() < 3000 => {
                problem += &format!("  not as after {index}: {why}\n");
            }
            Err(_) => {}
        }
    }
    Err(format!(
        "agrees with no state from {least} to {most}:\n{problem}"
    ))
}

fn agrees(run: &Run, index: usize, most: usize, point: usize, shown: &View) -> Result<(), String> {
    let known = &run.views[index];
    // An operation of several handles may be half done: a write that grows, step by step.
    let growing = match run.ops.get(index) {
        Some(Write(path, ..) | Truncate(path, _)) if index < most => known
            .paths
            .get(path)
            .map(|seen| (seen.ino, run.views[index + 1].paths[path].size)),
        _ => None,
    };
    let mut missing = known
        .paths
        .keys()
        .filter(|path| !shown.paths.contains_key(*path));
    if let Some(path) = missing.next() {
        return Err(format!("{path} is missing"));
    }
    for (path, seen) in &shown.paths {
        let Some(wanted) = known.paths.get(path) else {
            return Err(format!("{path} is unexpected"));
        };
        let mut wanted = wanted.clone();
        if let Some((ino, size)) = growing
            && ino == seen.ino
            && (wanted.size.min(size)..=wanted.size.max(size)).contains(&seen.size)
        {
            wanted.size = seen.size;
        }
        if *seen != wanted {
            return Err(format!("{path} is {} not {}", brief(seen), brief(&wanted)));
        }
    }
    for (ino, bytes) in &shown.bytes {
        let flushed = run
            .flushed
            .iter()
            .filter(|(at, of, _)| *at <= point && of == ino);
        let from = flushed.map(|(_, _, index)| *index).max().unwrap_or(0);
        let versions: Vec<&Vec<u8>> = (from.min(index)..=most)
            .filter_map(|at| run.views[at].bytes.get(ino))
            .collect();
        let foreign = bytes.iter().enumerate().find(|(at, byte)| {
            !versions
                .iter()
                .any(|v| v.get(*at).copied().unwrap_or(0) == **byte)
        });
        if let Some((at, byte)) = foreign {
            return Err(format!(
                "inode {} has {byte:02x} at {at} of {}, which is of no version since {from}",
                ino.0,
                bytes.len()
            ));
        }
    }
    Ok(())
}

fn brief(seen: &Seen) -> String {
    let xattrs: Vec<_> = seen
        .xattrs
        .iter()
        .map(|(n, v)| (n.len(), v.len()))
        .collect();
    format!(
        "({:?} {:o} links {} size {} target {} xattrs {xattrs:?} inode {})",
        seen.kind,
        seen.permissions,
        seen.links,
        seen.size,
        seen.target.len(),
        seen.ino.0
    )
}

/// Mounts a crashed image, perhaps with crashes inside, judges it, uses it, unmounts it.
fn recover(run: &Run, point: usize, image: Image, rng: &mut SimRng) -> Image {
    let mut image = image;
    for _ in 0..rng.below(5).saturating_sub(2) {
        let sim = Simulation::new(rng.below(1 << 40));
        let disk = SimDisk::with(image, DiskOptions::default(), Some(&sim.world()));
        disk.crash_after(rng.below(60));
        let mount = Volume::mount(disk.device(), sim.host(), MountOptions::default());
        drop(sim.block_on(mount).unwrap());
        image = disk.crash(CrashModel::Any, rng).image();
    }
    let sim = Simulation::new(rng.below(1 << 40));
    let disk = SimDisk::with(image, DiskOptions::default(), None);
    let mount = || Volume::mount(disk.device(), sim.host(), MountOptions::default());
    sim.block_on(async {
        let volume = mount()
            .await
            .unwrap_or_else(|e| panic!("mount after the crash: {e}"));
        let shown = look(&volume)
            .await
            .unwrap_or_else(|e| panic!("after the crash: {e}"));
        if let Err(problem) = judge(run, point, &shown) {
            panic!("{problem}");
        }
        let content = pattern(99, 20_000);
        let attr = put(&volume, volume.root(), b"afterwards", &content)
            .await
            .unwrap();
        let mut again = look(&volume).await.unwrap();
        assert!(again.paths.remove("/afterwards").is_some());
        assert!(again.bytes.remove(&attr.ino).unwrap() == content);
        assert!(again == shown, "a new file changes nothing else");
        assert_eq!(volume.read_only(), None);
        volume.unmount().await.unwrap();
    })
    .unwrap();
    disk.image()
}

/// Says which crash it was, when a check panics.
struct Witness(u64, usize, Choice);

impl Drop for Witness {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!(
                "OCELOT_SEED={} crashed at point {}: {:?}",
                self.0, self.1, self.2
            );
        }
    }
}

fn sweep(seed: u64, per_point: usize) -> usize {
    let (block, cluster, size_mb, features) = GEOMETRIES[(seed % 4) as usize];
    let rig = Rig::new(block, cluster, size_mb, features);
    let run = record(&rig.disk.image(), seed);
    let mut rng = SimRng::new(seed);
    let mut crashes = 0;
    let points: Vec<usize> = run.trace.interesting_points().collect();
    for point in points {
        for _ in 0..per_point {
            let volatile = run.trace.volatile_at(point);
            let choice = CrashModel::Any.choose(&volatile, 512, &mut rng);
            let witness = Witness(seed, point, choice.clone());
            let image = run.trace.image_at(point, &choice);
            let recovered = recover(&run, point, image, &mut rng);
            crashes += 1;
            if crashes % FSCK_EVERY == 0 {
                rig.fsck_image(&recovered, &[]);
            }
            drop(witness);
        }
    }
    crashes
}

#[test]
fn a_power_loss_keeps_what_was_synced_and_halves_nothing() {
    let mut crashes = 0;
    for seed in seeds(10) {
        let begun = std::time::Instant::now();
        let count = sweep(seed, 2);
        println!("seed {seed}: {count} crashes, {:?}", begun.elapsed());
        crashes += count;
    }
    assert!(crashes > 0);
}
