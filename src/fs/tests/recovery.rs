//! Recovery through the door, by the numbers of the regression catalogue: what each story must not do
//! again, crashed at every point where it could.

#![allow(clippy::unwrap_used, reason = "a test fails where it panics")]

mod support;

use std::time::Duration;

use bytes::Bytes;
use fs::Errno;
use fs::volume::{CloneAs, IfExists, MountOptions, OpenFlags, SetAttr, Volume};
use runtime::sim::{Choice, CrashModel, DiskOptions, Image, SimDisk, SimRng, Simulation};
use support::*;

const DIRECT: OpenFlags = OpenFlags {
    direct: true,
    ..READ_WRITE
};

/// Plays `work` on a recorded disk, then hands every crash of it, mounted again, to `judge`, with the
/// point and whether `work` had ended before it. Gives the images that are left.
fn crash_everywhere(
    base: Image,
    work: impl AsyncFn(&Volume, &SimDisk),
    judge: impl AsyncFn(&Volume, usize),
) -> Vec<Image> {
    let sim = Simulation::new(1);
    let disk = SimDisk::with(base, DiskOptions::default(), Some(&sim.world()));
    disk.record();
    let options = MountOptions {
        commit_interval: Duration::from_micros(500),
        ..MountOptions::default()
    };
    sim.block_on(async {
        let mount = Volume::mount(disk.device(), sim.host(), options);
        let volume = mount.await.unwrap();
        work(&volume, &disk).await;
        volume.unmount().await.unwrap();
    })
    .unwrap();
    let trace = disk.take_trace().unwrap();
    let mut rng = SimRng::new(1);
    let mut left = Vec::new();
    for point in trace.interesting_points() {
        for model in [CrashModel::LoseAll, CrashModel::KeepAll, CrashModel::Any] {
            let choice = model.choose(&trace.volatile_at(point), 512, &mut rng);
            let disk = SimDisk::with(trace.image_at(point, &choice), DiskOptions::default(), None);
            let sim = Simulation::new(point as u64);
            sim.block_on(async {
                let mount = Volume::mount(disk.device(), sim.host(), MountOptions::default());
                let volume = mount.await.unwrap_or_else(|error| panic!("{error}"));
                judge(&volume, point).await;
                volume.unmount().await.unwrap();
            })
            .unwrap();
            left.push(disk.image());
        }
    }
    left
}

/// A few of many images to fsck.ocfs2.
fn fsck_some(rig: &Rig, images: &[Image], count: usize) {
    for image in images.iter().step_by((images.len() / count).max(1)) {
        rig.fsck_image(image, &[]);
    }
}

async fn content(volume: &Volume, name: &[u8]) -> Option<Vec<u8>> {
    match volume.lookup(volume.root(), name).await {
        Ok(attr) => Some(get(volume, attr.ino).await.unwrap()),
        Err(error) => {
            assert_eq!(error.errno(), Errno::ENOENT, "{error}");
            None
        }
    }
}

/// Regression 7: a direct write that extends a file, and dies. The size is the old one, or covers valid
/// data only; what was claimed past it is nobody's again; the file is there.
#[test]
fn regression_7_an_extending_direct_write_leaves_no_foreign_bytes() {
    let rig = Rig::new(4096, 4096, 24, ALL);
    // What a new file must never show.
    rig.run(async {
        let volume = rig.mount().await.unwrap();
        let secret = vec![0xAB; 2 << 20];
        put(&volume, volume.root(), b"old", &secret).await.unwrap();
        put(&volume, volume.root(), b"f", &pattern(1, 5000))
            .await
            .unwrap();
        volume.unlink(volume.root(), b"old").await.unwrap();
        volume.unmount().await.unwrap();
    });
    let mut whole = pattern(1, 5000);
    whole.extend(pattern(2, 300_000));
    let left = crash_everywhere(
        rig.disk.image(),
        async |volume, _| {
            let ino = volume.lookup(volume.root(), b"f").await.unwrap().ino;
            let file = volume.open(ino, DIRECT).await.unwrap();
            write_all(volume, &file, 5000, &pattern(2, 300_000))
                .await
                .unwrap();
            volume.close(file).await.unwrap();
        },
        async |volume, _| {
            let found = content(volume, b"f").await.expect("the file is kept");
            assert!(found.len() >= 5000 && found == whole[..found.len()]);
        },
    );
    fsck_some(&rig, &left, 8);
}

/// Regression 9: whoever does not know of orphans that direct writes leave must not mount a volume that
/// may have some. That is what an incompatible feature is for: ours is known, and one that is not is
/// refused by its bit.
#[test]
fn regression_9_a_volume_with_a_feature_we_do_not_know_is_refused() {
    // Without checksums: they would correct one bit.
    let features = ALL.replace("metaecc", "nometaecc,append-dio");
    let rig = Rig::new(4096, 4096, 24, &features);
    rig.run(async {
        let volume = rig.mount().await.unwrap();
        let features = volume.info().features;
        assert!(
            features.iter().any(|name| name == "append_dio"),
            "{features:?}"
        );
        volume.unmount().await.unwrap();
    });
    let mut image = rig.disk.image();
    let place = 2 * 4096 + 0xC0 + 0x20;
    let mut bits = [0; 4];
    image.read(place, &mut bits);
    // The bit after append-dio's.
    bits[2] |= 0x10;
    image.write(place, &bits);
    let sim = Simulation::new(1);
    let disk = SimDisk::with(image.clone(), DiskOptions::default(), None);
    let mount = Volume::mount(disk.device(), sim.host(), MountOptions::default());
    let error = sim.block_on(mount).unwrap().unwrap_err();
    assert!(matches!(error, fs::Error::Incompatible(_)), "{error}");
    assert!(error.to_string().contains("0x100000"), "{error}");
    assert_eq!(disk.image().first_difference(&image), None);
}

/// Regression 26: a clone whose making was interrupted is an orphan that shares clusters: it is deleted,
/// and the source has its clusters for itself again.
#[test]
fn regression_26_an_interrupted_clone_is_taken_back_with_its_references() {
    let rig = Rig::new(4096, 4096, 24, ALL);
    let data = pattern(3, 200_000);
    rig.run(async {
        let volume = rig.mount().await.unwrap();
        put(&volume, volume.root(), b"source", &data).await.unwrap();
        volume.unmount().await.unwrap();
    });
    let left = crash_everywhere(
        rig.disk.image(),
        async |volume, _| {
            let root = volume.root();
            let source = volume.lookup(root, b"source").await.unwrap().ino;
            for name in [b"one", b"two"] {
                let made = volume.clone_file(source, root, name, CloneAs::Same);
                made.await.unwrap();
                volume.sync().await.unwrap();
            }
        },
        async |volume, _| {
            let root = volume.root();
            assert!(content(volume, b"source").await.unwrap() == data);
            for name in [b"one", b"two"] {
                assert!(
                    content(volume, name)
                        .await
                        .is_none_or(|found| found == data)
                );
            }
            // Both can be written without the other seeing it.
            let ino = volume.lookup(root, b"source").await.unwrap().ino;
            let file = volume.open(ino, READ_WRITE).await.unwrap();
            write_all(volume, &file, 10_000, &pattern(4, 30_000))
                .await
                .unwrap();
            volume.close(file).await.unwrap();
            for name in [b"one", b"two"] {
                assert!(
                    content(volume, name)
                        .await
                        .is_none_or(|found| found == data)
                );
            }
        },
    );
    fsck_some(&rig, &left, 12);
}

/// Regression 28: what is remembered of where a file's clusters are is dropped when they change: writes
/// through a handle that has written there before go to the new place, never to the next owner's.
#[test]
fn regression_28_a_remembered_place_is_not_written_once_it_is_another_files() {
    let rig = Rig::new(4096, 4096, 24, ALL);
    rig.run(async {
        let volume = rig.mount().await.unwrap();
        let root = volume.root();
        let (a, b) = (pattern(1, 400_000), pattern(2, 400_000));
        let ino = put(&volume, root, b"a", &a).await.unwrap().ino;
        let file = volume.open(ino, DIRECT).await.unwrap();
        for round in 0..6u64 {
            write_all(&volume, &file, 0, &a).await.unwrap();
            // Shrunk through another handle; the clusters are free once that is committed.
            let set = SetAttr {
                size_bytes: Some(round * 3000),
                ..SetAttr::default()
            };
            volume.setattr(ino, set).await.unwrap();
            volume.sync().await.unwrap();
            let name = format!("b{round}");
            put(&volume, root, name.as_bytes(), &b).await.unwrap();
            write_all(&volume, &file, 0, &pattern(round + 10, 400_000))
                .await
                .unwrap();
            volume.fsync(&file, false).await.unwrap();
            assert!(
                content(&volume, name.as_bytes()).await.unwrap() == b,
                "{round}"
            );
            assert!(get(&volume, ino).await.unwrap() == pattern(round + 10, 400_000));
        }
        volume.close(file).await.unwrap();
        volume.unmount().await.unwrap();
    });
    rig.fsck();
}

/// Regression 29: a mount after a crash that crashes itself, again and again, at every place in turn.
#[test]
fn regression_29_a_recovery_that_never_gets_through_loses_nothing() {
    let rig = Rig::new(4096, 4096, 24, ALL);
    let sim = Simulation::new(1);
    let disk = SimDisk::with(rig.disk.image(), DiskOptions::default(), Some(&sim.world()));
    let data = pattern(5, 100_000);
    sim.block_on(async {
        let mount = Volume::mount(disk.device(), sim.host(), MountOptions::default());
        let volume = mount.await.unwrap();
        let root = volume.root();
        for n in 0..40 {
            let name = format!("dir{n}");
            volume
                .mkdir(root, name.as_bytes(), new_inode())
                .await
                .unwrap();
        }
        put(&volume, root, b"f", &data).await.unwrap();
        volume.sync().await.unwrap();
    })
    .unwrap();
    let mut image = disk.crash_image(&Choice::default());
    let mut rng = SimRng::new(2);
    let mut interrupted = 0;
    for writes in 0.. {
        let sim = Simulation::new(writes);
        let disk = SimDisk::with(image, DiskOptions::default(), Some(&sim.world()));
        disk.crash_after(writes);
        let mount = Volume::mount(disk.device(), sim.host(), MountOptions::default());
        let through = sim.block_on(mount).unwrap().is_ok() && disk.has_power();
        image = disk.crash(CrashModel::Any, &mut rng).image();
        if through {
            break;
        }
        interrupted += 1;
    }
    assert!(interrupted > 10, "{interrupted} writes are too few");
    let disk = SimDisk::with(image, DiskOptions::default(), None);
    let sim = Simulation::new(9);
    sim.block_on(async {
        let mount = Volume::mount(disk.device(), sim.host(), MountOptions::default());
        let volume = mount.await.unwrap();
        assert!(content(&volume, b"f").await.unwrap() == data);
        assert_eq!(names(&volume, volume.root()).await.unwrap().len(), 42);
        volume.unmount().await.unwrap();
    })
    .unwrap();
    rig.fsck_image(&disk.image(), &[]);
}

/// Regression 31: on a full volume the clusters of a deleted file are wanted at once. Until the deletion
/// is durable they still hold that file: no new owner may have written there.
#[test]
fn regression_31_what_a_crash_may_bring_back_is_not_overwritten() {
    let rig = Rig::new(4096, 4096, 20, ALL);
    let (mut size, old) = (0, pattern(6, 60_000));
    rig.run(async {
        let volume = rig.mount().await.unwrap();
        let root = volume.root();
        for n in 0..8 {
            let name = format!("old{n}");
            put(&volume, root, name.as_bytes(), &old).await.unwrap();
        }
        // As good as full.
        let free = volume.statfs().await.unwrap().free_bytes;
        let filler = volume.create(root, b"filler", new_inode(), IfExists::Fail);
        let ino = filler.await.unwrap().ino;
        let file = volume.open(ino, READ_WRITE).await.unwrap();
        while size < free {
            let written = volume
                .write(&file, size, Bytes::from(vec![1; 64 << 10]))
                .await;
            size += written.bytes;
            if written.error.is_some() {
                break;
            }
        }
        volume.close(file).await.unwrap();
        volume.unmount().await.unwrap();
    });
    let left = crash_everywhere(
        rig.disk.image(),
        async |volume, _| {
            let root = volume.root();
            for n in 0..8 {
                let (name, new) = (format!("old{n}"), format!("new{n}"));
                volume.unlink(root, name.as_bytes()).await.unwrap();
                let made = volume.create(root, new.as_bytes(), new_inode(), IfExists::Fail);
                let ino = made.await.unwrap().ino;
                let file = volume.open(ino, DIRECT).await.unwrap();
                write_all(volume, &file, 0, &pattern(7, 60_000))
                    .await
                    .unwrap();
                volume.close(file).await.unwrap();
            }
        },
        async |volume, _| {
            for n in 0..8 {
                let name = format!("old{n}");
                let found = content(volume, name.as_bytes()).await;
                assert!(
                    found.is_none_or(|found| found == old),
                    "{name} was overwritten"
                );
            }
        },
    );
    fsck_some(&rig, &left, 6);
}
