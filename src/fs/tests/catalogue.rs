//! The regression catalogue's rows about writes, by number: what the kernel's write path got wrong
//! over the years, as scenarios. (Rows that other files have: 2, 3 in `write_path`; 12, 20 to 26 in
//! `ranges`; 42 in `door`; crashes of all kinds in `crash`.)
#![allow(clippy::unwrap_used, reason = "a test fails where it panics")]

mod support;

use std::time::Duration;

use bytes::Bytes;
use fs::volume::{
    CloneAs, Coherency, Fallback, FileHandle, Ino, LockLevel, MountOptions, OpenFlags, Path,
    RangeMode, SetAttr, Volume,
};
use fs::{Errno, Error};
use futures_util::future::join_all;
use runtime::sim::{CrashModel, DiskOptions, Fault, SimDisk, SimRng, Simulation};
use runtime::{DeviceErrorKind, Op};
use support::*;

/// A disk in a world: requests end in any order, some time later.
fn busy_disk(rig: &Rig, sim: &Simulation) -> SimDisk {
    SimDisk::with(rig.disk.image(), DiskOptions::default(), Some(&sim.world()))
}

async fn mount(disk: &SimDisk, sim: &Simulation, options: MountOptions) -> Volume {
    Volume::mount(disk.device(), sim.host(), options)
        .await
        .unwrap()
}

/// Mounts the volume on a busy disk, once for each of some seeds, lets `play` happen there, and has
/// what is left judged.
fn on_busy_disks(rig: &Rig, seeds: u64, play: impl AsyncFn(&Volume, &Simulation, u64)) {
    for seed in 0..seeds {
        let sim = Simulation::new(seed);
        let disk = busy_disk(rig, &sim);
        sim.block_on(async {
            let volume = mount(&disk, &sim, MountOptions::default()).await;
            play(&volume, &sim, seed).await;
            volume.unmount().await.unwrap();
        })
        .unwrap();
        rig.fsck_image(&disk.image(), &[]);
    }
}

/// What was on the medium before the volume got there: nobody may ever read it in a file.
const OLD: u8 = 0xEE;

/// A volume of which every free cluster holds old bytes.
fn over_old_bytes(rig: &Rig) {
    rig.run(async {
        let volume = rig.mount().await.unwrap();
        let root = volume.root();
        let ino = put(&volume, root, b"old", b"").await.unwrap().ino;
        let file = volume.open(ino, DIRECT).await.unwrap();
        let mut at = 0;
        loop {
            let written = volume
                .write(&file, at, Bytes::from(vec![OLD; 1 << 20]))
                .await;
            at += written.bytes;
            if let Some(error) = written.error {
                assert_eq!(error.errno(), Errno::ENOSPC);
                break;
            }
        }
        volume.close(file).await.unwrap();
        volume.unlink(root, b"old").await.unwrap();
        volume.unmount().await.unwrap();
    });
}

async fn set_size(volume: &Volume, ino: Ino, size: u64) -> fs::Result<()> {
    let set = SetAttr {
        size_bytes: Some(size),
        ..SetAttr::default()
    };
    volume.setattr(ino, set).await.map(drop)
}

async fn new_file(volume: &Volume, name: &[u8], flags: OpenFlags) -> FileHandle {
    let ino = put(volume, volume.root(), name, b"").await.unwrap().ino;
    volume.open(ino, flags).await.unwrap()
}

async fn explained(
    volume: &Volume,
    file: &FileHandle,
    at: u64,
    data: &[u8],
) -> fs::volume::Written {
    let data = Bytes::copy_from_slice(data);
    volume.write_explained(file, at, data).await
}

/// Regression 1, the seed: where Ocelot comes from. In the kernel a direct write that could not be
/// done as direct I/O fell back to buffered I/O and came back partial. The AIO layer called again
/// for the rest, with the same kiocb, which still carried the *unaligned* flag of the first attempt:
/// the aligned rest was treated, and unlocked, as what it was not.
///
/// Here an unaligned direct request goes past the end of a file on a volume without append-dio, so it
/// falls back; the device fails in the middle, so it comes back partial; and goes on with the rest,
/// which begins on a block. The rest is planned afresh, nothing of the first attempt is left, and
/// nobody's lock is.
#[test]
fn r01_an_unaligned_fallback_comes_back_partial_and_goes_on_aligned() {
    let rig = Rig::new(4096, 4096, 64, &format!("{ALL},noappend-dio"));
    let mut partial = 0;
    for fails_at in 0..12 {
        let sim = Simulation::new(fails_at);
        let disk = busy_disk(&rig, &sim);
        let stopped = std::cell::Cell::new(false);
        sim.block_on(async {
            let volume = mount(&disk, &sim, MountOptions::default()).await;
            let file = new_file(&volume, b"f", DIRECT).await;
            write_all(&volume, &file, 0, &[1; 10_000]).await.unwrap();
            volume.sync().await.unwrap();
            let data = pattern(fails_at + 1, (9 << 20) - 100);
            let fault = Fault::fail(DeviceErrorKind::Failed).on(Op::Write);
            disk.inject(fault.after(fails_at).times(1));
            let first = explained(&volume, &file, 100, &data).await;
            disk.clear_faults();
            let Some(error) = first.error else {
                assert_eq!(first.bytes, data.len() as u64);
                volume.close(file).await.unwrap();
                return volume.unmount().await.unwrap();
            };
            assert_eq!(error.errno(), Errno::EIO);
            if volume.read_only().is_some() {
                return stopped.set(true); // it was the journal's write that failed
            }
            let told = first.attempts.iter();
            assert!(
                told.clone()
                    .all(|a| a.fallback == Some(Fallback::NoAppendDirect) && !a.direct)
            );
            assert_eq!(told.map(|a| a.bytes).sum::<u64>(), first.bytes);
            let at = 100 + first.bytes;
            let rest = &data[first.bytes as usize..];
            if first.bytes > 0 {
                partial += 1;
                assert!(at.is_multiple_of(4096), "the rest is aligned");
            }
            let second = explained(&volume, &file, at, rest).await;
            assert!(second.error.is_none());
            assert_eq!(second.bytes, rest.len() as u64);
            assert!(first.bytes == 0 || second.attempts.iter().all(|a| !a.edges_serialised));
            // Over clusters that are there now it is direct, and what it needs is only a share.
            let third = explained(&volume, &file, 4096, &data[3996..3996 + 8192]).await;
            let [attempt] = third.attempts[..] else {
                panic!("{third:?}")
            };
            assert_eq!((attempt.path, attempt.fallback), (Path::InPlace, None));
            assert!(attempt.direct && !attempt.exclusive && !attempt.edges_serialised);
            let mut model = vec![1u8; 100];
            model.extend(&data);
            assert!(get(&volume, file.ino()).await.unwrap() == model);
            // Nobody's lock is left: one who wants the file for itself gets it.
            set_size(&volume, file.ino(), 5).await.unwrap();
            volume.close(file).await.unwrap();
            volume.unmount().await.unwrap();
        })
        .unwrap();
        if !stopped.get() {
            rig.fsck_image(&disk.image(), &[]);
        }
    }
    assert!(partial > 0, "some came back partial");
}

/// Regression 4: the level of the cluster lock was changed by a remount between taking and releasing
/// it, and the wrong one was released. Here the level is the plan's, and goes with it.
#[test]
fn r04_the_lock_level_is_the_plans() {
    let rig = Rig::new(4096, 4096, 64, ALL);
    for (coherency, level) in [
        (Coherency::Full, LockLevel::Exclusive),
        (Coherency::Buffered, LockLevel::Shared),
    ] {
        rig.run(async {
            let options = MountOptions {
                coherency,
                ..MountOptions::default()
            };
            let volume = Volume::mount(rig.disk.device(), rig.sim.host(), options)
                .await
                .unwrap();
            let name = format!("{coherency:?}");
            let file = new_file(&volume, name.as_bytes(), DIRECT).await;
            write_all(&volume, &file, 0, &[1; 20_000]).await.unwrap();
            let levels = async |at, len| {
                let written = explained(&volume, &file, at, &vec![2; len]).await;
                let all = written.attempts.iter().map(|a| a.lock);
                all.collect::<Vec<_>>()
            };
            assert_eq!(levels(4096, 4096).await, [level]);
            assert_eq!(levels(5, 9).await, [level], "unaligned");
            // In one request: what needs the file for itself has all of it so.
            assert!(
                levels(16_384, 50_000)
                    .await
                    .iter()
                    .all(|l| *l == LockLevel::Exclusive)
            );
            assert_eq!(levels(4096, 4096).await, [level]);
            set_size(&volume, file.ino(), 0).await.unwrap();
            volume.close(file).await.unwrap();
            volume.unmount().await.unwrap();
        });
    }
    rig.fsck();
}

/// Regression 5: an unaligned direct write into a hole, or a new block, showed what the rest of the
/// block had held. Its neighbours read as zero.
#[test]
fn r05_neighbours_of_an_unaligned_write_into_a_hole_are_zero() {
    for (block, cluster, flags) in [
        (4096, 4096, DIRECT),
        (512, 32768, DIRECT),
        (1024, 1 << 20, DIRECT),
        (4096, 32768, READ_WRITE),
    ] {
        let rig = Rig::new(block, cluster, 96, ALL);
        over_old_bytes(&rig);
        rig.run(async {
            let volume = rig.mount().await.unwrap();
            let file = new_file(&volume, b"f", flags).await;
            let mut model = vec![0u8; 3_000_000];
            set_size(&volume, file.ino(), 3_000_000).await.unwrap();
            for (at, len) in [
                (5000, 100),
                (1_000_001, 70_000),
                (2_999_000, 1000),
                (40_000, 1),
            ] {
                let data = pattern(at as u64, len);
                write_all(&volume, &file, at as u64, &data).await.unwrap();
                model[at..at + len].copy_from_slice(&data);
            }
            // Preallocated, and past the end.
            let keep = RangeMode::Allocate { keep_size: true };
            volume
                .fallocate(&file, keep, 3_000_000, 500_000)
                .await
                .unwrap();
            write_all(&volume, &file, 3_200_000, b"end").await.unwrap();
            model.resize(3_200_000, 0);
            model.extend(b"end");
            assert!(get(&volume, file.ino()).await.unwrap() == model);
            set_size(&volume, file.ino(), 3_400_000).await.unwrap();
            model.resize(3_400_000, 0);
            let past = volume.open(file.ino(), DIRECT).await.unwrap();
            let seen = volume.read(&past, 0, 4_000_000).await.unwrap();
            assert!(*seen == *model);
            for handle in [file, past] {
                volume.close(handle).await.unwrap();
            }
            volume.unmount().await.unwrap();
            let volume = rig.mount().await.unwrap();
            let ino = volume.lookup(volume.root(), b"f").await.unwrap().ino;
            assert!(get(&volume, ino).await.unwrap() == model);
            volume.unmount().await.unwrap();
        });
        rig.fsck_image(&rig.disk.image(), &["INODE_SPARSE_SIZE"]);
    }
}

/// Regressions 6 and 7: the power goes while writes go into holes and past the end, direct and
/// cached ones. What is read afterwards is the hole or the new data, never what the medium held
/// before; the size is an old one or one that the data reaches; nothing is left behind the end.
#[test]
fn r06_r07_a_crash_shows_a_hole_or_the_data_never_old_bytes() {
    let rig = Rig::new(4096, 32768, 128, ALL);
    over_old_bytes(&rig);
    let (sim, mut rng) = (Simulation::new(6), SimRng::new(6));
    let disk = busy_disk(&rig, &sim);
    let data = pattern(8, 400_000);
    let trace = sim
        .block_on(async {
            let volume = mount(&disk, &sim, MountOptions::default()).await;
            let direct = new_file(&volume, b"direct", DIRECT).await;
            let cached = new_file(&volume, b"cached", READ_WRITE).await;
            volume.sync().await.unwrap();
            disk.record();
            for file in [&direct, &cached] {
                write_all(&volume, file, 100_000, &data[..150_000])
                    .await
                    .unwrap(); // a gap before it
                write_all(&volume, file, 50_000, &data[..9_000])
                    .await
                    .unwrap(); // in the gap
                write_all(&volume, file, 250_000, &data).await.unwrap(); // at the end
                volume.fsync(file, true).await.unwrap();
                write_all(&volume, file, 700_001, &data[..77])
                    .await
                    .unwrap();
            }
            sim.host().sleep(Duration::from_secs(12)).await;
            let trace = disk.take_trace().unwrap();
            for file in [direct, cached] {
                volume.close(file).await.unwrap();
            }
            volume.unmount().await.unwrap();
            trace
        })
        .unwrap();
    let mut full = vec![0u8; 100_000];
    full.extend(&data[..150_000]);
    full[50_000..59_000].copy_from_slice(&data[..9_000]);
    full.extend(&data);
    full.resize(700_001, 0);
    full.extend(&data[..77]);
    let points: Vec<usize> = trace.interesting_points().collect();
    assert!(points.len() > 30, "{}", points.len());
    for (i, &point) in points.iter().enumerate() {
        let volatile = trace.volatile_at(point);
        let choice = CrashModel::Any.choose(&volatile, 512, &mut rng);
        let sim = Simulation::new(1);
        let disk = SimDisk::with(trace.image_at(point, &choice), DiskOptions::default(), None);
        sim.block_on(async {
            let volume = mount(&disk, &sim, MountOptions::default()).await;
            for name in [b"direct", b"cached"] {
                let attr = volume.lookup(volume.root(), name).await.unwrap();
                let found = get(&volume, attr.ino).await.unwrap();
                assert!(found.len() <= full.len());
                for (at, (&byte, &new)) in found.iter().zip(&full).enumerate() {
                    assert!(
                        byte == new || byte == 0,
                        "{byte:#x} at {at} after a crash at {point}"
                    );
                }
                let clusters = attr.size_bytes.div_ceil(32768) * 64;
                assert!(attr.blocks <= clusters, "space behind the end");
            }
            volume.unmount().await.unwrap();
        })
        .unwrap();
        if i % 16 == 0 {
            rig.fsck_image(&disk.image(), &[]);
        }
    }
}

/// Regressions 10, 11 and 14: sizes set, the last name taken, clones made while direct and cached
/// writes are in flight, with the smallest journal. Everything waits for what it must and comes to
/// its end, in whatever order the device completes.
#[test]
fn r10_r11_r14_truncate_unlink_and_clone_meet_writes_in_flight() {
    let rig = Rig::new(4096, 4096, 96, ALL);
    on_busy_disks(&rig, 6, async |volume, _, seed| {
        let root = volume.root();
        for round in 0..4u64 {
            let name = format!("f{round}").into_bytes();
            let direct = new_file(volume, &name, DIRECT).await;
            let cached = volume.open(direct.ino(), READ_WRITE).await.unwrap();
            write_all(volume, &direct, 0, &vec![9; 600_000])
                .await
                .unwrap();
            let writers = (0..40u64).map(|i| {
                let file = if i % 3 == 0 { &cached } else { &direct };
                let at = (i * 48_611 + seed * 777) % 900_000;
                async move {
                    let len = 1 + (i * 7919) % 60_000;
                    write_all(volume, file, at, &vec![i as u8; len as usize])
                        .await
                        .unwrap();
                }
            });
            let others = async {
                for i in 0..6u64 {
                    set_size(volume, direct.ino(), (i * 133_333) % 700_000)
                        .await
                        .unwrap();
                    let clone = format!("c{round}-{i}").into_bytes();
                    let same = CloneAs::Same;
                    volume
                        .clone_file(direct.ino(), root, &clone, same)
                        .await
                        .unwrap();
                    volume.unlink(root, &clone).await.unwrap();
                }
                volume.unlink(root, &name).await.unwrap();
            };
            futures_util::future::join(join_all(writers), others).await;
            // Without a name it still is a file.
            let size = volume.fstat(&direct).await.unwrap().size_bytes;
            let all = volume.read(&direct, 0, 2 << 20).await.unwrap();
            assert_eq!(all.len() as u64, size);
            assert!(*all == *volume.read(&cached, 0, 2 << 20).await.unwrap());
            let last = async {
                write_all(volume, &direct, 5, &[1; 100_000]).await.unwrap();
                volume.close(direct.clone()).await.unwrap();
            };
            futures_util::future::join(last, volume.close(cached.clone()))
                .await
                .1
                .unwrap();
        }
        assert_eq!(names(volume, root).await.unwrap(), [b"lost+found".to_vec()]);
    });
}

/// Regression 13: a very large direct write over very many extents ran out of journal credits in its
/// completion. Here each step has a handle of its own.
#[test]
fn r13_a_large_write_over_many_extents() {
    let rig = Rig::new(512, 4096, 96, ALL);
    rig.run(async {
        let volume = rig.mount().await.unwrap();
        let file = new_file(&volume, b"f", DIRECT).await;
        // Every other cluster preallocated: 2,000 unwritten extents, 2,000 holes.
        for i in 0..2000u64 {
            let keep = RangeMode::Allocate { keep_size: true };
            volume.fallocate(&file, keep, i * 8192, 4096).await.unwrap();
        }
        let data = pattern(13, 16_384_000);
        let written = explained(&volume, &file, 0, &data).await;
        assert!(written.error.is_none());
        assert!(written.attempts.len() >= 4000);
        assert!(get(&volume, file.ino()).await.unwrap() == data);
        volume.close(file).await.unwrap();
        volume.unmount().await.unwrap();
    });
    rig.fsck();
}

/// Regressions 15 and 27: a look-up for "shared, or a hole?" walked the tree while another thread
/// changed it; the refcount tree went away under one who looked into it. Writers break sharing while
/// clones come and go, and each file keeps its own bytes.
#[test]
fn r15_r27_sharing_is_broken_while_clones_come_and_go() {
    let rig = Rig::new(4096, 4096, 96, ALL);
    on_busy_disks(&rig, 4, async |volume, _, seed| {
        let root = volume.root();
        let source = pattern(seed, 800_000);
        let ino = put(volume, root, b"source", &source).await.unwrap().ino;
        let users = (0..4u64).map(|user| {
            let source = &source;
            async move {
                for round in 0..5u64 {
                    let name = format!("clone{user}-{round}").into_bytes();
                    let same = CloneAs::Same;
                    let clone = volume.clone_file(ino, root, &name, same).await.unwrap().ino;
                    let flags = if (user + round) % 2 == 0 {
                        DIRECT
                    } else {
                        READ_WRITE
                    };
                    let file = volume.open(clone, flags).await.unwrap();
                    let mut own = source.clone();
                    for i in 0..6u64 {
                        let at = (i * 123_457 + user * 40_009 + round) % 790_000;
                        let data = pattern(at, 1 + (at % 9000) as usize);
                        write_all(volume, &file, at, &data).await.unwrap();
                        own[at as usize..at as usize + data.len()].copy_from_slice(&data);
                    }
                    assert!(get(volume, clone).await.unwrap() == own);
                    volume.close(file).await.unwrap();
                    volume.unlink(root, &name).await.unwrap();
                }
            }
        });
        join_all(users).await;
        assert!(get(volume, ino).await.unwrap() == source);
    });
}

/// Regression 16: a buffered write that failed half-way left blocks that showed what the medium held
/// before. Here the volume fills up in the middle: what is told to be in is in, the rest is zero or
/// not there, and the next request starts clean.
#[test]
fn r16_a_write_that_fails_half_way_exposes_nothing() {
    for (cluster, flags) in [(4096, READ_WRITE), (32768, DIRECT), (1 << 20, READ_WRITE)] {
        let rig = Rig::new(4096, cluster, 96, ALL);
        over_old_bytes(&rig);
        rig.run(async {
            let volume = rig.mount().await.unwrap();
            let filler = new_file(&volume, b"filler", READ_WRITE).await;
            let free = volume.statfs().await.unwrap().free_bytes;
            let keep = RangeMode::Allocate { keep_size: true };
            volume
                .fallocate(&filler, keep, 0, free - (9 << 20))
                .await
                .unwrap();
            let file = new_file(&volume, b"f", flags).await;
            let data = pattern(16, 30 << 20);
            let mut model: Vec<u8> = Vec::new();
            let mut at = 777;
            let mut failed = 0;
            while failed < 3 {
                let piece = &data[at..at + (3 << 20) + 1];
                let written = explained(&volume, &file, at as u64, piece).await;
                let bytes = written.bytes as usize;
                if bytes > 0 {
                    model.resize(model.len().max(at + bytes), 0);
                    model[at..at + bytes].copy_from_slice(&piece[..bytes]);
                }
                if let Some(error) = written.error {
                    assert_eq!(error.errno(), Errno::ENOSPC, "{error}");
                    failed += 1;
                    at += 50_000; // with a gap
                } else {
                    assert_eq!(bytes, piece.len());
                    at += bytes;
                }
                assert!(get(&volume, file.ino()).await.unwrap() == model);
            }
            volume.fsync(&file, false).await.unwrap();
            // There is room again, and the end moves over what failed.
            let punch = RangeMode::PunchHole;
            volume.fallocate(&filler, punch, 0, free).await.unwrap();
            set_size(&volume, file.ino(), 29 << 20).await.unwrap();
            model.resize(29 << 20, 0);
            for handle in [file, filler] {
                volume.close(handle).await.unwrap();
            }
            volume.unmount().await.unwrap();
            let volume = rig.mount().await.unwrap();
            let ino = volume.lookup(volume.root(), b"f").await.unwrap().ino;
            assert!(get(&volume, ino).await.unwrap() == model);
            volume.unmount().await.unwrap();
        });
        rig.fsck();
    }
}

/// Regression 17: an inline file grows out of its inode; the rest of its first cluster is zero, its
/// content intact, read at once and after a crash.
#[test]
fn r17_an_inline_file_grows_out_of_its_inode() {
    for flags in [READ_WRITE, DIRECT] {
        let rig = Rig::new(4096, 32768, 96, ALL);
        over_old_bytes(&rig);
        let (sim, mut rng) = (Simulation::new(17), SimRng::new(17));
        let disk = busy_disk(&rig, &sim);
        let start = pattern(17, 3000);
        let mut model = start.clone();
        model.resize(25_000, 0);
        model.extend(b"tail");
        let trace = sim
            .block_on(async {
                let volume = mount(&disk, &sim, MountOptions::default()).await;
                let ino = put(&volume, volume.root(), b"f", &start).await.unwrap().ino;
                assert!(volume.extents(ino, 0, 9).await.unwrap()[0].inline);
                volume.sync().await.unwrap();
                disk.record();
                let file = volume.open(ino, flags).await.unwrap();
                write_all(&volume, &file, 25_000, b"tail").await.unwrap();
                assert!(get(&volume, ino).await.unwrap() == model);
                volume.fsync(&file, false).await.unwrap();
                let trace = disk.take_trace().unwrap();
                volume.close(file).await.unwrap();
                volume.unmount().await.unwrap();
                trace
            })
            .unwrap();
        for point in trace.interesting_points() {
            let choice = CrashModel::Any.choose(&trace.volatile_at(point), 512, &mut rng);
            let sim = Simulation::new(1);
            let disk = SimDisk::with(trace.image_at(point, &choice), DiskOptions::default(), None);
            sim.block_on(async {
                let volume = mount(&disk, &sim, MountOptions::default()).await;
                let ino = volume.lookup(volume.root(), b"f").await.unwrap().ino;
                let found = get(&volume, ino).await.unwrap();
                assert!(found == start || found == model, "{} bytes", found.len());
                volume.unmount().await.unwrap();
            })
            .unwrap();
        }
    }
}

/// Regressions 18 and 19: sizes of inline files beyond what the inode holds, from the disk and from a
/// client, overflowed.
#[test]
fn r18_r19_sizes_beyond_what_an_inode_holds() {
    let plain = "sparse,unwritten,inline-data,nometaecc";
    let rig = Rig::new(4096, 4096, 64, plain);
    let ino = rig.run(async {
        let volume = rig.mount().await.unwrap();
        let file = new_file(&volume, b"f", READ_WRITE).await;
        write_all(&volume, &file, 0, &[7; 3000]).await.unwrap();
        // A client's sizes: out of the inode, or too large for any file.
        for size in [1 << 40, 100] {
            set_size(&volume, file.ino(), size).await.unwrap();
        }
        let limit = set_size(&volume, file.ino(), u64::MAX).await.unwrap_err();
        assert_eq!(limit.errno(), Errno::EFBIG);
        for at in [u64::MAX, u64::MAX - 5, i64::MAX as u64] {
            let written = volume
                .write(&file, at, Bytes::from_static(b"0123456789"))
                .await;
            assert_eq!(
                (written.bytes, written.error.unwrap().errno()),
                (0, Errno::EFBIG)
            );
        }
        volume.close(file).await.unwrap();
        let small = put(&volume, volume.root(), b"g", &[8; 2000])
            .await
            .unwrap()
            .ino;
        volume.unmount().await.unwrap();
        small
    });
    rig.fsck();
    // The disk's: i_size of an inline file, larger than its inode.
    let image = rig.disk.image();
    for size in [5000u64, 1 << 33, u64::MAX] {
        let disk = SimDisk::with(image.clone(), DiskOptions::default(), None);
        disk.poke(ino.0 * 4096 + 0x20, &size.to_le_bytes());
        let sim = Simulation::new(1);
        sim.block_on(async {
            let volume = mount(&disk, &sim, MountOptions::default()).await;
            let error = volume.open(ino, READ_WRITE).await.unwrap_err();
            assert!(matches!(error, Error::Corrupt(_)), "{error}");
            assert!(volume.unmount().await.is_err());
        })
        .unwrap();
    }
}

/// Regression 45: the rest of a request that had stopped short went on without the cluster's write
/// lock. Here a request of many steps has the file to its last byte: a reader sees all of it or
/// nothing, whichever way it reads.
#[test]
fn r45_others_see_all_of_a_request_or_nothing() {
    let rig = Rig::new(4096, 4096, 96, ALL);
    on_busy_disks(&rig, 4, async |volume, sim, _| {
        for (name, flags) in [(b"d", DIRECT), (b"b", READ_WRITE)] {
            let file = new_file(volume, name, flags).await;
            let len = 10usize << 20;
            set_size(volume, file.ino(), len as u64).await.unwrap();
            let done = std::cell::Cell::new(false);
            let write = async {
                let written = explained(volume, &file, 0, &vec![5; len]).await;
                assert!(written.error.is_none());
                done.set(true);
            };
            let read = async {
                let mut seen = [0, 0];
                while !done.get() || seen == [0, 0] {
                    for flags in [DIRECT, READ_WRITE] {
                        let reader = volume.open(file.ino(), flags).await.unwrap();
                        let all = volume.read(&reader, 0, len as u64).await.unwrap();
                        let new = all.iter().filter(|byte| **byte == 5).count();
                        assert!(new == 0 || new == len, "{new} of {len} bytes are new");
                        seen[usize::from(new > 0)] += 1;
                        volume.close(reader).await.unwrap();
                    }
                    sim.host().sleep(Duration::from_micros(300)).await;
                }
            };
            futures_util::future::join(write, read).await;
            volume.close(file).await.unwrap();
        }
    });
}

/// Regression 46: a write was taken for no append because of a size that was read before the lock, or
/// its place was moved afterwards. Appenders of all kinds and one who cuts the file meet; every
/// record that was not cut is there, whole, once.
#[test]
fn r46_appends_find_their_place_under_the_lock() {
    let rig = Rig::new(4096, 4096, 96, ALL);
    on_busy_disks(&rig, 4, async |volume, _, _| {
        let file = new_file(volume, b"log", READ_WRITE).await;
        let ino = file.ino();
        let writers = (0..8u64).map(|writer| {
            async move {
                let flags = OpenFlags {
                    append: true,
                    direct: writer % 2 == 0,
                    dsync: writer % 4 == 3,
                    ..READ_WRITE
                };
                let file = volume.open(ino, flags).await.unwrap();
                for record in 0..25u64 {
                    let mut text = format!("{writer}:{record}:").into_bytes();
                    text.resize(100 + (record as usize * 37) % 5000, b'.');
                    text.push(b'\n');
                    // The offset of an append says nothing.
                    let written = volume
                        .write(&file, record * 9, Bytes::from(text.clone()))
                        .await;
                    assert_eq!(written.bytes, text.len() as u64);
                    assert!(written.error.is_none());
                }
                volume.close(file).await.unwrap();
            }
        });
        join_all(writers).await;
        let all = String::from_utf8(get(volume, ino).await.unwrap()).unwrap();
        let mut records: Vec<&str> = all.lines().map(|l| l.trim_end_matches('.')).collect();
        assert_eq!(records.len(), 200);
        records.sort_unstable();
        records.dedup();
        assert_eq!(records.len(), 200, "each once");
        volume.close(file).await.unwrap();
    });
}
