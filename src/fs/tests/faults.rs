//! Device errors at random moments of a run through the door: in data, in metadata, in the
//! journal, and a device that is gone. Nothing panics or hangs, errors are typed, a volume whose
//! journal or metadata could not be written stops writing and goes on serving what it can read,
//! unmounting ends, and the next mount, of a device that works, recovers.

#![allow(clippy::print_stdout, reason = "says which seed failed")]
#![allow(clippy::unwrap_used, reason = "a test fails where it panics")]

mod support;

use std::time::Duration;

use bytes::Bytes;
use fs::Errno;
use fs::volume::{IfExists, MountOptions, RenameMode, SetAttr, Volume};
use fs::xattr::XattrMode;
use runtime::sim::{DiskOptions, Fault, SimDisk, SimRng, Simulation};
use runtime::{DeviceErrorKind, Op};
use support::*;

const RUNS: u64 = 60;

fn world_disk(rig: &Rig, sim: &Simulation) -> SimDisk {
    sim.set_step_budget(5_000_000);
    SimDisk::with(rig.disk.image(), DiskOptions::default(), Some(&sim.world()))
}

fn options() -> MountOptions {
    MountOptions {
        commit_interval: Duration::from_millis(2),
        ..MountOptions::default()
    }
}

/// Some operation; what it ends with is the caller's business.
async fn anything(volume: &Volume, rng: &mut SimRng, step: u64) -> Result<(), fs::Error> {
    let root = volume.root();
    let name = |n: u64| format!("f{n}").into_bytes();
    let (old, new) = (name(rng.below(step + 1)), name(step));
    match rng.below(12) {
        0..4 => {
            volume
                .create(root, &new, new_inode(), IfExists::Use)
                .await?;
        }
        4..7 => {
            let ino = volume.lookup(root, &old).await?.ino;
            let file = volume.open(ino, DIRECT).await?;
            let len = 1 + rng.below(200_000) as usize;
            let at = rng.below(100_000);
            let written = volume
                .write(&file, at, Bytes::from(pattern(step, len)))
                .await;
            let synced = volume.fsync(&file, false).await;
            volume.close(file).await?;
            assert!(written.error.is_some() || written.bytes == len as u64);
            written.error.map_or(Ok(()), Err)?;
            synced?;
        }
        7 => volume.unlink(root, &old).await?,
        8 => {
            volume
                .rename(root, &old, root, &new, RenameMode::Replace)
                .await?
        }
        9 => {
            let ino = volume.lookup(root, &old).await?.ino;
            let size_bytes = Some(rng.below(300_000));
            volume
                .setattr(
                    ino,
                    SetAttr {
                        size_bytes,
                        ..SetAttr::default()
                    },
                )
                .await?;
        }
        10 => {
            let ino = volume.lookup(root, &old).await?.ino;
            let value = pattern(step, rng.below(6000) as usize);
            volume
                .setxattr(ino, b"user.a", &value, XattrMode::Any)
                .await?;
        }
        _ => volume.sync().await?,
    }
    Ok(())
}

fn is_expected(error: &fs::Error) -> bool {
    matches!(
        error.errno(),
        Errno::EIO | Errno::EROFS | Errno::ENODEV | Errno::ENOENT | Errno::EEXIST | Errno::ENOSPC
    )
}

fn run(seed: u64, rig: &Rig) {
    let mut rng = SimRng::new(seed);
    let sim = Simulation::new(seed);
    let disk = world_disk(rig, &sim);
    let mut failed = 0;
    sim.block_on(async {
        let volume = Volume::mount(disk.device(), sim.host(), options())
            .await
            .unwrap();
        let content = pattern(1, 100_000);
        let kept = put(&volume, volume.root(), b"kept", &content)
            .await
            .unwrap()
            .ino;
        volume.sync().await.unwrap();
        for step in 0..10 {
            anything(&volume, &mut rng, step).await.ok();
        }
        let kind = [DeviceErrorKind::Failed, DeviceErrorKind::NoSpace][rng.below(2) as usize];
        let fault = match rng.below(6) {
            0 => Fault::fail(kind).on(Op::Read),
            1 | 2 => Fault::fail(kind).on(Op::Write),
            3 => Fault::fail_after_bytes(kind, 512 * (1 + rng.below(7))).on(Op::Write),
            4 => Fault::fail(kind).on(Op::Flush),
            _ => Fault::forget(),
        };
        let times = [1, 3, u64::MAX][rng.below(3) as usize];
        if rng.below(12) == 0 {
            disk.remove();
        } else {
            disk.inject(fault.after(rng.below(40)).times(times));
        }
        for step in 10..60 {
            if let Err(error) = anything(&volume, &mut rng, step).await {
                assert!(is_expected(&error), "{error} ({error:?})");
                failed += 1;
            }
            // What is refused is refused for a cause that is kept.
            if let Some(cause) = volume.read_only() {
                let refused = volume.create(volume.root(), b"no", new_inode(), IfExists::Use);
                let error = refused.await.unwrap_err();
                assert_eq!(error.errno(), Errno::EROFS);
                assert_eq!(volume.read_only(), Some(cause));
            }
        }
        disk.clear_faults();
        if disk.stats().errors > 0 && volume.read_only().is_some() {
            // A device that is there again: everything that was there is served.
            match volume.read_ino(kept, 0, 100_000).await {
                Ok(shown) => assert!(shown == content),
                Err(error) => assert_eq!(error.errno(), Errno::ENODEV, "{error}"),
            }
        }
        volume.unmount().await.ok();
        let after = volume.getattr(volume.root()).await.unwrap_err();
        assert_eq!(after.errno(), Errno::EBUSY);
        println!("seed {seed}: {failed} failed, {:?}", volume.read_only());
    })
    .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(sim.run_until_idle().unwrap(), 0, "tasks are left");

    // What is on the disk, on a device without faults.
    let again = Simulation::new(seed + 1);
    let fresh = SimDisk::with(disk.image(), DiskOptions::default(), None);
    again
        .block_on(async {
            let volume = Volume::mount(fresh.device(), again.host(), options())
                .await
                .unwrap();
            let kept = volume.lookup(volume.root(), b"kept").await.unwrap().ino;
            assert!(get(&volume, kept).await.unwrap() == pattern(1, 100_000));
            for name in names(&volume, volume.root()).await.unwrap() {
                let attr = volume.lookup(volume.root(), &name).await.unwrap();
                if attr.kind == fs::volume::FileKind::Regular {
                    get(&volume, attr.ino).await.unwrap();
                }
            }
            put(&volume, volume.root(), b"afterwards", &pattern(2, 50_000))
                .await
                .unwrap();
            volume.unmount().await.unwrap();
        })
        .unwrap();
    checker::assert_clean(&fresh.image());
    if seed.is_multiple_of(10) {
        rig.fsck_image(&fresh.image(), &[]);
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

#[test]
fn device_errors_end_in_typed_errors_and_a_volume_that_recovers() {
    let rig = Rig::new(4096, 4096, 24, ALL);
    let small = Rig::new(1024, 4096, 24, ALL);
    for seed in seeds(RUNS) {
        let _witness = Witness(seed);
        run(seed, if seed % 2 == 0 { &rig } else { &small });
    }
}

#[test]
fn a_failed_journal_write_stops_writing_and_keeps_the_first_cause() {
    let rig = Rig::new(4096, 4096, 24, ALL);
    let sim = Simulation::new(1);
    let disk = world_disk(&rig, &sim);
    sim.block_on(async {
        let volume = Volume::mount(disk.device(), sim.host(), options())
            .await
            .unwrap();
        let root = volume.root();
        let content = pattern(1, 10_000);
        let ino = put(&volume, root, b"before", &content).await.unwrap().ino;
        volume.sync().await.unwrap();
        disk.inject(Fault::fail(DeviceErrorKind::Failed).on(Op::Write).times(1));
        volume
            .create(root, b"lost", new_inode(), IfExists::Fail)
            .await
            .unwrap();
        assert_eq!(volume.sync().await.unwrap_err().errno(), Errno::EIO);
        let cause = volume.read_only().expect("the volume is read-only");
        assert!(cause.contains("write of"), "{cause}");
        assert_eq!(volume.info().read_only, Some(cause.clone()));
        let refused = volume.mkdir(root, b"d", new_inode()).await.unwrap_err();
        assert!(refused.to_string().contains(&cause), "{refused}");
        assert!(get(&volume, ino).await.unwrap() == content);
        assert!(volume.unmount().await.is_err());
    })
    .unwrap();
    let sim = Simulation::new(2);
    let disk = SimDisk::with(disk.image(), DiskOptions::default(), None);
    sim.block_on(async {
        let volume = Volume::mount(disk.device(), sim.host(), options())
            .await
            .unwrap();
        assert!(volume.info().recovered);
        assert!(volume.lookup(volume.root(), b"before").await.is_ok());
        volume.unmount().await.unwrap();
    })
    .unwrap();
    rig.fsck_image(&disk.image(), &[]);
}

#[test]
fn a_failed_data_write_is_an_error_of_that_write_alone() {
    let rig = Rig::new(4096, 4096, 24, ALL);
    let sim = Simulation::new(1);
    let disk = world_disk(&rig, &sim);
    sim.block_on(async {
        let volume = Volume::mount(disk.device(), sim.host(), MountOptions::default())
            .await
            .unwrap();
        let root = volume.root();
        let ino = put(&volume, root, b"f", &pattern(1, 8192))
            .await
            .unwrap()
            .ino;
        let file = volume.open(ino, READ_WRITE).await.unwrap();
        disk.inject(Fault::fail(DeviceErrorKind::Failed).on(Op::Write).times(1));
        // Into a hole past the end: what was claimed goes back.
        let free = volume.statfs().await.unwrap().free_bytes;
        let written = volume
            .write(&file, 100_000, Bytes::from(pattern(2, 50_000)))
            .await;
        assert_eq!(written.error.unwrap().errno(), Errno::EIO);
        assert_eq!(written.bytes, 0);
        assert_eq!(volume.read_only(), None);
        assert_eq!(volume.getattr(ino).await.unwrap().size_bytes, 8192);
        assert_eq!(volume.statfs().await.unwrap().free_bytes, free);
        write_all(&volume, &file, 100_000, &pattern(2, 50_000))
            .await
            .unwrap();
        volume.close(file).await.unwrap();
        volume.unmount().await.unwrap();
    })
    .unwrap();
    rig.fsck_image(&disk.image(), &[]);
}

#[test]
fn a_vanished_device_ends_everything_that_waits() {
    let rig = Rig::new(4096, 4096, 24, ALL);
    for after in [0u64, 50, 200, 900, 3000] {
        let sim = Simulation::new(after);
        let disk = world_disk(&rig, &sim);
        let volume = sim
            .block_on(Volume::mount(disk.device(), sim.host(), options()))
            .unwrap()
            .unwrap();
        for task in 0..4u64 {
            let volume = volume.clone();
            sim.world().spawn_named("client", async move {
                let mut rng = SimRng::new(task);
                for step in 0..30 {
                    anything(&volume, &mut rng, step * 4 + task).await.ok();
                }
            });
        }
        sim.run_for(Duration::from_micros(after)).unwrap();
        disk.remove();
        assert_eq!(sim.run_until_idle().unwrap(), 0, "somebody waits for ever");
        // A change of what is in memory may still be taken, but not acknowledged as durable.
        let made = sim
            .block_on(volume.create(volume.root(), b"x", new_inode(), IfExists::Use))
            .unwrap();
        let error = match made {
            Ok(_) => sim.block_on(volume.sync()).unwrap().unwrap_err(),
            Err(error) => error,
        };
        assert!(
            [Errno::EROFS, Errno::ENODEV].contains(&error.errno()),
            "{error}"
        );
        assert!(sim.block_on(volume.unmount()).unwrap().is_err());
    }
}

/// Where slot 0's journal is on the device, in bytes.
fn journal_of(rig: &Rig) -> std::ops::Range<u64> {
    let path = rig.path();
    let (text, _) = tool(
        "debugfs.ocfs2",
        &["-R", "stat //journal:0000", path.to_str().unwrap()],
    );
    let mut lines = text.lines().skip_while(|line| !line.contains("## Offset"));
    let extent: Vec<u64> = lines
        .nth(1)
        .unwrap()
        .split_whitespace()
        .take(4)
        .filter_map(|word| word.parse().ok())
        .collect();
    let [_, _, clusters, block] = extent[..] else {
        panic!("{text}")
    };
    block * 4096..(block + clusters) * 4096
}

/// One failed write in a known place, early or late, with a neighbour on another device: what the
/// volume makes of it depends on the place, and the neighbour takes no notice.
#[test]
fn an_error_stops_what_it_must_and_nothing_else() {
    let rig = Rig::new(4096, 4096, 24, ALL);
    let log = journal_of(&rig);
    let first = log.start..log.start + 4096;
    for (place, data) in [
        ("log", false),
        ("log superblock", false),
        ("metadata", false),
        ("data", true),
    ] {
        for after in [0, 1, 3] {
            let sim = Simulation::new(after);
            let (disk, neighbour) = (world_disk(&rig, &sim), world_disk(&rig, &sim));
            let outcome = sim.block_on(async {
                let mount = async |disk: &SimDisk| {
                    let mount = Volume::mount(disk.device(), sim.host(), options());
                    mount.await.unwrap()
                };
                let (volume, other) = (mount(&disk).await, mount(&neighbour).await);
                let root = volume.root();
                let kept = put(&volume, root, b"kept", &pattern(1, 50_000))
                    .await
                    .unwrap()
                    .ino;
                volume.sync().await.unwrap();
                let home = volume.extents(kept, 0, 1).await.unwrap()[0].physical;
                let range = match place {
                    "log" => log.clone(),
                    "log superblock" => first.clone(),
                    "metadata" => root.0 * 4096..(root.0 + 1) * 4096,
                    _ => home..home + 50_000,
                };
                let fault = Fault::fail(DeviceErrorKind::Failed)
                    .on(Op::Write)
                    .within(range);
                let fault = disk.inject(fault.after(after).times(1));
                let mut failed = 0;
                for step in 0..12 {
                    let name = format!("f{step}");
                    let made = put(&volume, root, name.as_bytes(), &pattern(step, 9000)).await;
                    failed += usize::from(made.is_err());
                    if let Ok(file) = volume.open(kept, READ_WRITE).await {
                        let written = write_all(&volume, &file, 0, &pattern(2, 40_000)).await;
                        let synced = volume.fsync(&file, false).await;
                        failed += usize::from(written.is_err() || synced.is_err());
                        volume.close(file).await.ok();
                    }
                    // Time for a checkpoint.
                    sim.host().sleep(Duration::from_millis(12)).await;
                    let made = put(&other, root, name.as_bytes(), &pattern(step, 9000)).await;
                    made.unwrap_or_else(|error| panic!("the neighbour fails: {error}"));
                }
                let hit = disk.fault_hits(fault) > 0;
                let cause = volume.read_only();
                assert!(get(&volume, kept).await.unwrap().len() == 50_000);
                assert_eq!(other.read_only(), None);
                other.unmount().await.unwrap();
                let unmounted = volume.unmount().await;
                assert_eq!(unmounted.is_err(), cause.is_some());
                (hit, failed, cause)
            });
            let (hit, failed, cause) = outcome.unwrap();
            println!("{place}, after {after}: hit {hit}, {failed} failed, {cause:?}");
            assert!(hit || after > 0, "nothing was ever written to the {place}");
            match (hit, data) {
                (true, true) => assert!(cause.is_none() && failed == 1, "{cause:?}"),
                (true, false) => {
                    let cause = cause.expect("writing has stopped");
                    assert!(cause.contains("write of"), "{cause}");
                    assert!(failed > 0);
                }
                (false, _) => assert!(cause.is_none() && failed == 0, "{cause:?}"),
            }
            // As it was left, on a device that works.
            let again = Simulation::new(9);
            let fresh = SimDisk::with(disk.image(), DiskOptions::default(), None);
            again
                .block_on(async {
                    let mount = Volume::mount(fresh.device(), again.host(), options());
                    let volume = mount.await.unwrap();
                    let kept = volume.lookup(volume.root(), b"kept").await.unwrap().ino;
                    assert!(get(&volume, kept).await.unwrap().len() == 50_000);
                    volume.unmount().await.unwrap();
                })
                .unwrap();
            if after == 0 {
                rig.fsck_image(&fresh.image(), &[]);
                rig.fsck_image(&neighbour.image(), &[]);
            }
        }
    }
}

/// A device that takes seconds for each request is slow, and nothing else: all that was asked for is
/// done, in order, and nothing is taken for lost.
#[test]
fn a_slow_device_is_waited_for() {
    let rig = Rig::new(4096, 4096, 24, ALL);
    let sim = Simulation::new(3);
    sim.set_step_budget(5_000_000);
    let latency = Duration::from_secs(1)..Duration::from_secs(9);
    let slow = DiskOptions {
        latency,
        ..DiskOptions::default()
    };
    let disk = SimDisk::with(rig.disk.image(), slow, Some(&sim.world()));
    let mount = Volume::mount(disk.device(), sim.host(), MountOptions::default());
    let volume = sim.block_on(mount).unwrap().unwrap();
    for task in 0..3u64 {
        let volume = volume.clone();
        sim.world().spawn_named("client", async move {
            for step in 0..3 {
                let name = format!("{task}-{step}");
                let content = pattern(task + step, 30_000);
                let ino = put(&volume, volume.root(), name.as_bytes(), &content)
                    .await
                    .unwrap()
                    .ino;
                volume.fsync_ino(ino, false).await.unwrap();
            }
        });
    }
    assert_eq!(sim.run_until_idle().unwrap(), 0);
    sim.block_on(async {
        for task in 0..3u64 {
            for step in 0..3 {
                let name = format!("{task}-{step}");
                let ino = volume
                    .lookup(volume.root(), name.as_bytes())
                    .await
                    .unwrap()
                    .ino;
                assert!(get(&volume, ino).await.unwrap() == pattern(task + step, 30_000));
            }
        }
        assert_eq!(volume.read_only(), None);
        volume.unmount().await.unwrap();
    })
    .unwrap();
    assert_eq!(disk.stats().overlapping_writes, 0);
    rig.fsck_image(&disk.image(), &[]);
}
