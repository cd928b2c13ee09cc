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
