//! Ranges and clones through the public door, against byte arrays, on volumes of several
//! geometries; fsck.ocfs2 judges what is left. Rows of the regression catalogue by number.
#![allow(clippy::unwrap_used, reason = "a test fails where it panics")]
#![allow(clippy::print_stdout, reason = "says which geometry failed")]

mod support;

use std::time::Duration;

use fs::Errno;
use fs::volume::{CloneAs, FileHandle, Ino, MountOptions, RangeMode, SeekFor, SetAttr, Volume};
use fs::xattr::XattrMode;
use futures_util::future::{Either, select};
use runtime::sim::{CrashModel, DiskOptions, Fault, SimDisk, SimRng};
use runtime::{DeviceErrorKind, Op};
use support::*;

/// Block size, cluster size, megabytes, features.
const GEOMETRIES: [(u32, u32, u64, &str); 4] = [
    (4096, 4096, 64, ALL),
    (512, 4096, 64, ALL),
    (1024, 32768, 128, ALL),
    (4096, 1 << 20, 320, ALL),
];

const ALLOCATE: RangeMode = RangeMode::Allocate { keep_size: false };
const ALLOCATE_KEEP: RangeMode = RangeMode::Allocate { keep_size: true };
const ZERO: RangeMode = RangeMode::Zero { keep_size: false };
const ZERO_KEEP: RangeMode = RangeMode::Zero { keep_size: true };
const NEW: CloneAs = CloneAs::New { uid: 7, gid: 8 };

/// Space past the end of a file is what keep-size is for, and the kernel's own habit.
const PAST_THE_END: &[&str] = &["INODE_SPARSE_SIZE"];

fn everywhere(test: impl AsyncFn(&Rig)) {
    for (block, cluster, size_mb, features) in GEOMETRIES {
        println!("-- block {block} cluster {cluster} {features}");
        let rig = Rig::new(block, cluster, size_mb, features);
        rig.run(test(&rig));
        rig.fsck_image(&rig.disk.image(), PAST_THE_END);
    }
}

/// A stream of numbers, the same each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }
}

/// What the range means for the bytes.
fn apply(model: &mut Vec<u8>, mode: RangeMode, at: usize, len: usize) {
    let end = at + len;
    let extends = matches!(mode, ALLOCATE | ZERO);
    if extends && end > model.len() {
        model.resize(end, 0);
    }
    if !matches!(mode, RangeMode::Allocate { .. }) {
        let end = end.min(model.len());
        model[at.min(end)..end].fill(0);
    }
}

async fn change(
    volume: &Volume,
    file: &FileHandle,
    model: &mut Vec<u8>,
    mode: RangeMode,
    at: usize,
    len: usize,
) {
    volume
        .fallocate(file, mode, at as u64, len as u64)
        .await
        .unwrap();
    apply(model, mode, at, len);
}

async fn open(volume: &Volume, ino: Ino) -> FileHandle {
    volume.open(ino, READ_WRITE).await.unwrap()
}

async fn truncate(volume: &Volume, ino: Ino, size: u64) {
    let set = SetAttr {
        size_bytes: Some(size),
        ..SetAttr::default()
    };
    volume.setattr(ino, set).await.unwrap();
}

#[test]
fn r12_random_ranges_writes_sizes_and_clones_follow_a_byte_array() {
    everywhere(async |rig| {
        let volume = rig.mount().await.unwrap();
        let root = volume.root();
        let ino = put(&volume, root, b"f", b"").await.unwrap().ino;
        let file = open(&volume, ino).await;
        let cluster = u64::from(volume.info().cluster_size);
        let span = (cluster * 40).min(6 << 20);
        let mut model = Vec::new();
        let mut clones: Vec<(Ino, Vec<u8>)> = Vec::new();
        let mut dice = Dice(0xBEEF_0001 + cluster);
        for step in 0..250u64 {
            let mut at = dice.below(span);
            let most = 1 + dice.below(span / 2);
            let mut len = 1 + dice.below(most);
            if dice.below(3) == 0 {
                at -= at % cluster;
                len = len.next_multiple_of(cluster);
            }
            let (at, len) = (at as usize, len as usize);
            match dice.below(20) {
                0..3 => change(&volume, &file, &mut model, ALLOCATE, at, len).await,
                3 => change(&volume, &file, &mut model, ALLOCATE_KEEP, at, len).await,
                4..8 => change(&volume, &file, &mut model, RangeMode::PunchHole, at, len).await,
                8..10 => change(&volume, &file, &mut model, ZERO, at, len).await,
                10 => change(&volume, &file, &mut model, ZERO_KEEP, at, len).await,
                11..17 => {
                    let data = pattern(step + 1, len);
                    write_all(&volume, &file, at as u64, &data).await.unwrap();
                    model.resize(model.len().max(at + len), 0);
                    model[at..at + len].copy_from_slice(&data);
                }
                17..19 => {
                    truncate(&volume, ino, at as u64).await;
                    model.resize(at, 0);
                }
                _ => {
                    if clones.len() == 3 {
                        let (gone, _) = clones.remove(0);
                        let name = format!("c{}", gone.0);
                        volume.unlink(root, name.as_bytes()).await.unwrap();
                    }
                    let made = volume.clone_file(ino, root, b"c", NEW).await.unwrap();
                    assert_eq!(made.size_bytes, model.len() as u64);
                    let name = format!("c{}", made.ino.0);
                    let mode = fs::volume::RenameMode::NoReplace;
                    volume
                        .rename(root, b"c", root, name.as_bytes(), mode)
                        .await
                        .unwrap();
                    clones.push((made.ino, model.clone()));
                }
            }
            let size = volume.getattr(ino).await.unwrap().size_bytes;
            assert_eq!(size, model.len() as u64, "step {step}");
            assert!(get(&volume, ino).await.unwrap() == model, "step {step}");
            if step % 10 == 0 {
                self_consistent(&volume, &file, &model).await;
            }
            for (clone, content) in &clones {
                assert!(
                    get(&volume, *clone).await.unwrap() == *content,
                    "step {step}"
                );
            }
        }
        volume.close(file).await.unwrap();
        volume.unmount().await.unwrap();
        let volume = rig.mount().await.unwrap();
        assert!(get(&volume, ino).await.unwrap() == model);
        for (clone, content) in &clones {
            assert!(get(&volume, *clone).await.unwrap() == *content);
        }
        volume.unmount().await.unwrap();
    });
}

/// Holes are zero, data and holes take turns, the extents say the same.
async fn self_consistent(volume: &Volume, file: &FileHandle, model: &[u8]) {
    let size = model.len() as u64;
    let mut at = 0;
    while at < size {
        let data = volume.seek(file, SeekFor::Data, at).await.unwrap();
        let stop = data.unwrap_or(size);
        assert!(model[at as usize..stop as usize].iter().all(|&b| b == 0));
        let Some(data) = data else { break };
        let hole = volume
            .seek(file, SeekFor::Hole, data)
            .await
            .unwrap()
            .unwrap();
        assert!(hole > data && hole <= size);
        at = hole;
    }
    let none = volume.seek(file, SeekFor::Hole, size).await.unwrap();
    assert_eq!(none, None);
    let (mut from, mut all) = (0, Vec::new());
    loop {
        let some = volume.extents(file.ino(), from, 3).await.unwrap();
        let Some(last) = some.last() else { break };
        from = last.logical + last.length;
        all.extend(some);
    }
    assert!(
        all.windows(2)
            .all(|w| w[0].logical + w[0].length <= w[1].logical)
    );
    for extent in all.iter().filter(|e| !e.unwritten && e.logical < size) {
        let found = volume.seek(file, SeekFor::Data, extent.logical).await;
        assert_eq!(found.unwrap(), Some(extent.logical));
    }
}

#[test]
fn modes_have_their_meanings() {
    everywhere(async |rig| {
        let volume = rig.mount().await.unwrap();
        let root = volume.root();
        let cluster = u64::from(volume.info().cluster_size);
        let ino = put(&volume, root, b"f", b"").await.unwrap().ino;
        let file = open(&volume, ino).await;
        let stat = async || volume.getattr(ino).await.unwrap();
        // Past the end, and it stays where it is.
        let keep = volume.fallocate(&file, ALLOCATE_KEEP, 1, 3 * cluster).await;
        keep.unwrap();
        assert_eq!(stat().await.size_bytes, 0);
        assert_eq!(stat().await.blocks, 4 * cluster / 512);
        let some = volume.extents(ino, 0, 9).await.unwrap();
        assert!(some.iter().all(|e| e.unwritten && !e.shared && !e.inline));
        volume.fallocate(&file, ALLOCATE, 0, 10).await.unwrap();
        assert_eq!(stat().await.size_bytes, 10);
        let len = 4 * cluster;
        write_all(&volume, &file, 0, &vec![9; len as usize])
            .await
            .unwrap();
        let data = volume.seek(&file, SeekFor::Data, 5).await.unwrap();
        assert_eq!(data, Some(5));
        // A hole of two clusters, its edges inside their neighbours.
        let punch = RangeMode::PunchHole;
        volume
            .fallocate(&file, punch, cluster - 3, 2 * cluster + 6)
            .await
            .unwrap();
        assert_eq!(stat().await.blocks, 2 * cluster / 512);
        let hole = volume.seek(&file, SeekFor::Hole, 0).await.unwrap();
        assert_eq!(hole, Some(cluster));
        let data = volume.seek(&file, SeekFor::Data, cluster).await.unwrap();
        assert_eq!(data, Some(3 * cluster));
        let mut model = vec![9; len as usize];
        model[cluster as usize - 3..3 * cluster as usize + 3].fill(0);
        assert!(get(&volume, ino).await.unwrap() == model);
        // Zeroed: space, and no data.
        volume
            .fallocate(&file, ZERO_KEEP, 0, 8 * cluster)
            .await
            .unwrap();
        assert_eq!(stat().await.size_bytes, len);
        assert_eq!(stat().await.blocks, 8 * cluster / 512);
        let data = volume.seek(&file, SeekFor::Data, 0).await.unwrap();
        assert_eq!(data, None);
        // A punch of all behind the end takes what keep-size has left.
        volume
            .fallocate(&file, punch, len - 1, 100 * cluster)
            .await
            .unwrap();
        assert_eq!(stat().await.blocks, 4 * cluster / 512);
        let none = volume.fallocate(&file, punch, 0, 0).await.unwrap_err();
        assert_eq!(none.errno(), Errno::EINVAL);
        volume.close(file).await.unwrap();
        volume.unmount().await.unwrap();
    });
}

#[test]
fn inline_data_stays_inline_where_the_range_fits() {
    everywhere(async |rig| {
        let volume = rig.mount().await.unwrap();
        let ino = put(&volume, volume.root(), b"f", &[7; 100])
            .await
            .unwrap()
            .ino;
        let file = open(&volume, ino).await;
        let mut model = vec![7; 100];
        let inline = async || volume.extents(ino, 0, 9).await.unwrap()[0].inline;
        change(
            &volume,
            &file,
            &mut model,
            RangeMode::PunchHole,
            90,
            1 << 20,
        )
        .await;
        change(&volume, &file, &mut model, RangeMode::PunchHole, 10, 5).await;
        change(&volume, &file, &mut model, ALLOCATE, 50, 60).await;
        change(&volume, &file, &mut model, ZERO, 108, 12).await;
        assert!(inline().await);
        assert!(get(&volume, ino).await.unwrap() == model);
        change(&volume, &file, &mut model, ALLOCATE_KEEP, 0, 100_000).await;
        assert!(!inline().await);
        change(&volume, &file, &mut model, ALLOCATE, 10, 100_000).await;
        assert!(get(&volume, ino).await.unwrap() == model);
        volume.close(file).await.unwrap();
        volume.unmount().await.unwrap();
    });
}

/// Regression 20: a size that grows by fallocate inside the last cluster shows zeroes there, never
/// what an earlier, longer file left in it.
#[test]
fn r20_the_rest_of_the_last_cluster_reads_as_zero() {
    everywhere(async |rig| {
        let volume = rig.mount().await.unwrap();
        let cluster = volume.info().cluster_size as usize;
        let root = volume.root();
        for (i, mode) in [ALLOCATE, ZERO].into_iter().enumerate() {
            let name = [b'a' + i as u8];
            let mut model = vec![0xAA; 2 * cluster];
            let ino = put(&volume, root, &name, &model).await.unwrap().ino;
            let file = open(&volume, ino).await;
            truncate(&volume, ino, cluster as u64 + 100).await;
            model.truncate(cluster + 100);
            change(&volume, &file, &mut model, mode, cluster + 3000, 1000).await;
            assert!(get(&volume, ino).await.unwrap() == model);
            change(&volume, &file, &mut model, mode, 3 * cluster - 7, 100).await;
            assert!(get(&volume, ino).await.unwrap() == model);
            volume.close(file).await.unwrap();
        }
        volume.unmount().await.unwrap();
    });
}

/// Regression 21: too large is refused before anything is allocated.
#[test]
fn r21_too_large_is_refused_before_any_allocation() {
    everywhere(async |rig| {
        let volume = rig.mount().await.unwrap();
        let ino = put(&volume, volume.root(), b"f", b"x").await.unwrap().ino;
        let file = open(&volume, ino).await;
        let before = volume.getattr(ino).await.unwrap();
        let free = volume.statfs().await.unwrap().free_bytes;
        for mode in [
            ALLOCATE,
            ALLOCATE_KEEP,
            ZERO,
            ZERO_KEEP,
            RangeMode::PunchHole,
        ] {
            for (at, len) in [
                (0, u64::MAX),
                (u64::MAX, 1),
                (i64::MAX as u64, 1),
                (1, i64::MAX as u64),
            ] {
                let error = volume.fallocate(&file, mode, at, len).await.unwrap_err();
                assert_eq!(error.errno(), Errno::EFBIG);
            }
        }
        assert_eq!(volume.getattr(ino).await.unwrap(), before);
        assert_eq!(volume.statfs().await.unwrap().free_bytes, free);
        // What the volume has not is refused as well, and the file is as it was.
        let error = volume
            .fallocate(&file, ALLOCATE, 0, 1 << 40)
            .await
            .unwrap_err();
        assert_eq!(error.errno(), Errno::ENOSPC);
        assert_eq!(volume.getattr(ino).await.unwrap().size_bytes, 1);
        assert_eq!(get(&volume, ino).await.unwrap(), b"x");
        volume.close(file).await.unwrap();
        volume.unmount().await.unwrap();
    });
}

#[test]
fn a_volume_without_the_features_says_so() {
    let rig = Rig::new(4096, 4096, 64, PLAIN);
    rig.run(async {
        let volume = rig.mount().await.unwrap();
        let ino = put(&volume, volume.root(), b"f", b"x").await.unwrap().ino;
        let file = open(&volume, ino).await;
        for mode in [ALLOCATE, ZERO, RangeMode::PunchHole] {
            let error = volume.fallocate(&file, mode, 0, 10).await.unwrap_err();
            assert_eq!(error.errno(), Errno::EOPNOTSUPP);
        }
        let error = volume.clone_file(ino, volume.root(), b"c", NEW).await;
        assert_eq!(error.unwrap_err().errno(), Errno::EOPNOTSUPP);
        volume.close(file).await.unwrap();
        volume.unmount().await.unwrap();
    });
    rig.fsck();
}

/// Regressions 22 and 24: a clone keeps its bytes and attributes whatever happens to its source,
/// also where the attributes fill the inode, and leaves nothing behind when both are gone.
#[test]
fn r22_r24_a_clone_is_a_file_of_its_own() {
    everywhere(async |rig| {
        let first = clones_come_and_go(rig).await;
        // Allocators keep the groups that they grew by the first time.
        assert_eq!(clones_come_and_go(rig).await, first);
    });
}

/// Returns how much is free afterwards.
async fn clones_come_and_go(rig: &Rig) -> u64 {
    let volume = rig.mount().await.unwrap();
    let root = volume.root();
    let block = volume.info().block_size as usize;
    for (i, len) in [0, 50, block * 3 / 4, 3_000_001].into_iter().enumerate() {
        let content = pattern(i as u64 + 1, len);
        let ino = put(&volume, root, b"f", &content).await.unwrap().ino;
        let file = open(&volume, ino).await;
        // Enough extents to fill the inode's list, if it is not inline.
        for hole in 0..if len > block { 25u64 } else { 0 } {
            let (at, len) = (hole * 120_000, 60_000);
            let punch = RangeMode::PunchHole;
            volume.fallocate(&file, punch, at, len).await.unwrap();
        }
        let names: [(&[u8], usize); 5] = [
            (b"user.small", 10),
            (b"user.more", 70),
            (b"user.large", 5000),
            (b"trusted.t", 3),
            (b"security.s", 4),
        ];
        for (name, len) in names {
            let value = pattern(5, len);
            let any = XattrMode::Any;
            volume.setxattr(ino, name, &value, any).await.unwrap();
        }
        let content = get(&volume, ino).await.unwrap();
        let set = SetAttr {
            permissions: Some(0o4751),
            ..SetAttr::default()
        };
        let source = volume.setattr(ino, set).await.unwrap();
        let clone = volume.clone_file(ino, root, b"new", NEW).await.unwrap();
        let same = volume
            .clone_file(ino, root, b"same", CloneAs::Same)
            .await
            .unwrap();
        assert_eq!((clone.uid, clone.gid, clone.permissions), (7, 8, 0o751));
        assert_eq!((same.uid, same.gid, same.permissions), (1000, 1000, 0o4751));
        assert_eq!(same.mtime, source.mtime);
        assert_eq!(
            (clone.links, clone.size_bytes, clone.blocks),
            (1, source.size_bytes, source.blocks)
        );
        let taken = volume
            .clone_file(ino, root, b"same", NEW)
            .await
            .unwrap_err();
        assert_eq!(taken.errno(), Errno::EEXIST);
        for (name, len) in names {
            let value = pattern(5, len);
            assert_eq!(volume.getxattr(same.ino, name).await.unwrap(), value);
            let found = volume.getxattr(clone.ino, name).await;
            if name.starts_with(b"security.") {
                assert_eq!(found.unwrap_err().errno(), Errno::ENODATA);
            } else {
                assert_eq!(found.unwrap(), value);
            }
        }
        let some = volume.extents(clone.ino, 0, 100).await.unwrap();
        assert!(some.iter().all(|e| e.inline || e.shared));
        // Whatever happens to one, the others keep their bytes: a part of a cluster, too.
        write_all(&volume, &file, 61_001, b"mine").await.unwrap();
        volume
            .fallocate(&file, ZERO_KEEP, 0, 130_000)
            .await
            .unwrap();
        let other = open(&volume, clone.ino).await;
        volume
            .fallocate(&other, RangeMode::PunchHole, 70_001, 200_000)
            .await
            .unwrap();
        assert!(get(&volume, same.ino).await.unwrap() == content);
        volume.unlink(root, b"f").await.unwrap();
        volume.close(file).await.unwrap();
        assert!(get(&volume, same.ino).await.unwrap() == content);
        volume.close(other).await.unwrap();
        volume.unlink(root, b"new").await.unwrap();
        assert!(get(&volume, same.ino).await.unwrap() == content);
        volume.unlink(root, b"same").await.unwrap();
    }
    let dir = volume.mkdir(root, b"d", new_inode()).await.unwrap().ino;
    let error = volume.clone_file(dir, root, b"e", NEW).await.unwrap_err();
    assert_eq!(error.errno(), Errno::EPERM);
    volume.rmdir(root, b"d").await.unwrap();
    volume.unmount().await.unwrap();
    let volume = rig.mount().await.unwrap();
    let free = volume.statfs().await.unwrap().free_bytes;
    volume.unmount().await.unwrap();
    free
}

/// Regression 25: a clone that fails leaves no name, no orphan, no count; the source goes on.
#[test]
fn r25_a_clone_that_fails_leaves_nothing() {
    let rig = Rig::new(4096, 4096, 64, ALL);
    rig.run(async {
        let volume = rig.mount().await.unwrap();
        let root = volume.root();
        let content = pattern(3, 1_000_000);
        let ino = put(&volume, root, b"f", &content).await.unwrap().ino;
        let large = pattern(4, 60_000);
        let any = XattrMode::Any;
        volume
            .setxattr(ino, b"user.large", &large, any)
            .await
            .unwrap();
        // No room for the attribute's value.
        let filler = put(&volume, root, b"filler", b"").await.unwrap().ino;
        let file = open(&volume, filler).await;
        let free = volume.statfs().await.unwrap().free_bytes;
        volume
            .fallocate(&file, ALLOCATE, 0, free - 40_000)
            .await
            .unwrap();
        let error = volume.clone_file(ino, root, b"c", NEW).await.unwrap_err();
        assert_eq!(error.errno(), Errno::ENOSPC);
        let missing = volume.lookup(root, b"c").await.unwrap_err();
        assert_eq!(missing.errno(), Errno::ENOENT);
        assert!(get(&volume, ino).await.unwrap() == content);
        truncate(&volume, filler, 0).await;
        volume.close(file).await.unwrap();
        let clone = volume.clone_file(ino, root, b"c", NEW).await.unwrap().ino;
        assert!(get(&volume, clone).await.unwrap() == content);
        volume.unmount().await.unwrap();
    });
    rig.fsck();
}

/// Regression 26: the power goes in the middle of a clone, at one moment after the other. The next mount
/// finds the orphan, deletes it and takes its counts back; or the clone is whole.
#[test]
fn r26_a_crash_in_a_clone_leaves_all_of_it_or_nothing() {
    let rig = Rig::new(512, 4096, 64, ALL);
    let content = rig.run(async {
        let volume = rig.mount().await.unwrap();
        let content = pattern(3, 3_100_000);
        let ino = put(&volume, volume.root(), b"f", &content)
            .await
            .unwrap()
            .ino;
        let file = open(&volume, ino).await;
        for hole in 0..250u64 {
            let punch = RangeMode::PunchHole;
            volume
                .fallocate(&file, punch, hole * 12_288, 4096)
                .await
                .unwrap();
        }
        for i in 0..4u8 {
            let (name, value) = ([b"user.".as_slice(), &[b'a' + i]].concat(), [i; 5000]);
            let any = XattrMode::Any;
            volume.setxattr(ino, &name, &value, any).await.unwrap();
        }
        volume.close(file).await.unwrap();
        let content = get(&volume, ino).await.unwrap();
        volume.unmount().await.unwrap();
        content
    });
    let before = rig.disk.image();
    let (mut orphans, mut nothing, mut whole) = (0, 0, 0);
    let mut rng = SimRng::new(26);
    for step in 0..400u32 {
        let disk = SimDisk::with(
            before.clone(),
            DiskOptions::default(),
            Some(&rig.sim.world()),
        );
        let volume = rig.run(mount_on(&rig, &disk)).unwrap();
        let made = rig.run(async {
            let root = volume.root();
            let ino = volume.lookup(root, b"f").await.unwrap().ino;
            let clone = Box::pin(volume.clone_file(ino, root, b"c", NEW));
            // It comes as far as it comes, and that reaches the log; then the power goes.
            let time = rig.sim.host().sleep(step * Duration::from_micros(97));
            let made = matches!(select(clone, time).await, Either::Left((Ok(_), _)));
            volume.sync().await.unwrap();
            made
        });
        let crashed = disk.crash(CrashModel::Any, &mut rng);
        drop(volume);
        let volume = rig.run(mount_on(&rig, &crashed)).unwrap();
        let orphaned = rig.run(async {
            let root = volume.root();
            let ino = volume.lookup(root, b"f").await.unwrap().ino;
            assert!(get(&volume, ino).await.unwrap() == content);
            // Extents that it shares with nobody left: the clone was on its way.
            let some = volume.extents(ino, 0, 100).await.unwrap();
            let shared = some.iter().any(|e| e.shared);
            let found = volume.lookup(root, b"c").await;
            let orphaned = shared && found.is_err();
            match found {
                Ok(clone) => {
                    assert!(get(&volume, clone.ino).await.unwrap() == content);
                    let value = volume.getxattr(clone.ino, b"user.d").await.unwrap();
                    assert_eq!(value, [3; 5000]);
                    whole += 1;
                }
                Err(error) => {
                    assert_eq!(error.errno(), Errno::ENOENT);
                    assert!(!made, "it was durable");
                    nothing += 1;
                }
            }
            volume.unmount().await.unwrap();
            orphaned
        });
        orphans += u32::from(orphaned);
        if (orphaned && orphans % 8 == 1) || made {
            rig.fsck_image(&crashed.image(), &[]);
        }
        if made {
            break;
        }
    }
    println!("{orphans} crashes left an orphan; {nothing} nothing, {whole} the whole clone");
    assert!(orphans > 2 && nothing > 2 && whole > 0);
}

/// Regression 23, in part: a copy on write that fails after it has claimed its cluster gives that
/// back, and both files are as they were.
#[test]
fn r23_a_failed_copy_gives_its_clusters_back() {
    let rig = Rig::new(4096, 4096, 64, ALL);
    rig.run(async {
        let volume = rig.mount().await.unwrap();
        let root = volume.root();
        let content = pattern(3, 4 << 20);
        let ino = put(&volume, root, b"f", &content).await.unwrap().ino;
        let clone = volume.clone_file(ino, root, b"c", NEW).await.unwrap().ino;
        volume.sync().await.unwrap();
        let free = volume.statfs().await.unwrap().free_bytes;
        let file = open(&volume, ino).await;
        // What is to be copied cannot be read.
        let fault = Fault::fail(DeviceErrorKind::Failed).on(Op::Read).times(1);
        let id = rig.disk.inject(fault);
        let error = volume.fallocate(&file, RangeMode::PunchHole, 100, 50).await;
        assert_eq!(error.unwrap_err().errno(), Errno::EIO);
        assert_eq!(rig.disk.fault_hits(id), 1);
        assert_eq!(volume.statfs().await.unwrap().free_bytes, free);
        assert!(get(&volume, ino).await.unwrap() == content);
        volume
            .fallocate(&file, RangeMode::PunchHole, 100, 50)
            .await
            .unwrap();
        assert!(get(&volume, clone).await.unwrap() == content);
        volume.close(file).await.unwrap();
        volume.unmount().await.unwrap();
    });
    rig.fsck();
}

async fn mount_on(rig: &Rig, disk: &SimDisk) -> fs::Result<Volume> {
    // Hardly a cache: everything waits for the device, and others get their turn.
    let options = fs::volume::MountOptions {
        cache_bytes: 1,
        ..fs::volume::MountOptions::default()
    };
    Volume::mount(disk.device(), rig.sim.host(), options).await
}

/// What a write to shared clusters copies: an aligned mebibyte around it, as the kernel does, or what
/// the mount says; down to the clusters that it touches when space is short.
#[test]
fn r22_sharing_is_broken_for_as_much_as_the_mount_says() {
    for (copy_on_write_bytes, wanted) in [(1 << 20, 1 << 20), (64 << 10, 64 << 10), (0, 8192)] {
        let rig = Rig::new(4096, 4096, 64, ALL);
        rig.run(async {
            let options = MountOptions {
                copy_on_write_bytes,
                ..MountOptions::default()
            };
            let (device, host) = (rig.disk.device(), rig.sim.host());
            let volume = Volume::mount(device, host, options).await.unwrap();
            let root = volume.root();
            let content = pattern(1, 8 << 20);
            let ino = put(&volume, root, b"f", &content).await.unwrap().ino;
            let clone = volume.clone_file(ino, root, b"c", NEW).await.unwrap().ino;
            let own = async |ino| -> u64 {
                let all = volume.extents(ino, 0, 999).await.unwrap();
                all.iter().filter(|e| !e.shared).map(|e| e.length).sum()
            };
            assert_eq!(own(clone).await, 0);
            let file = volume.open(clone, READ_WRITE).await.unwrap();
            write_all(&volume, &file, (3 << 20) + 5000, &[9; 4096])
                .await
                .unwrap();
            volume.fsync(&file, true).await.unwrap();
            assert_eq!(own(clone).await, wanted);
            assert_eq!(own(ino).await, 0);
            let mut changed = content.clone();
            changed[(3 << 20) + 5000..][..4096].fill(9);
            assert!(get(&volume, clone).await.unwrap() == changed);
            assert!(get(&volume, ino).await.unwrap() == content);
            volume.close(file).await.unwrap();
            volume.unmount().await.unwrap();
        });
        rig.fsck();
    }
}
