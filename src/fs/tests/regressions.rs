//! What the random tests have found, one test each, with its story.

#![allow(clippy::unwrap_used, reason = "a test fails where it panics")]

mod support;

use bytes::Bytes;
use fs::volume::{IfExists, MountOptions, SetAttr, Volume};
use runtime::Op;
use runtime::sim::{Choice, CrashModel, DiskOptions, Fault, Image, SimDisk, SimRng, Simulation};
use support::*;

fn mounted(rig: &Rig, sim: &Simulation) -> (SimDisk, Volume) {
    let disk = SimDisk::with(rig.disk.image(), DiskOptions::default(), Some(&sim.world()));
    let mount = Volume::mount(disk.device(), sim.host(), MountOptions::default());
    let volume = sim.block_on(mount).unwrap().unwrap();
    (disk, volume)
}

/// The content of a file of the root directory, after a mount of its own.
fn content_of(image: Image, name: &[u8]) -> fs::Result<Vec<u8>> {
    let sim = Simulation::new(7);
    let disk = SimDisk::with(image, DiskOptions::default(), None);
    sim.block_on(async {
        let volume = Volume::mount(disk.device(), sim.host(), MountOptions::default()).await?;
        let ino = volume.lookup(volume.root(), name).await?.ino;
        get(&volume, ino).await
    })
    .unwrap()
}

/// Everything in the cache of the disk is lost.
fn lose_all(disk: &SimDisk) -> Image {
    disk.crash(CrashModel::LoseAll, &mut SimRng::new(1)).image()
}

/// A write past the end left a hole, and a truncate upwards a size without clusters, on volumes
/// whose files have none: our own next mount refused the dinode as corrupt, fsck.ocfs2 cut it.
#[test]
fn without_sparse_files_the_end_of_a_file_moves_over_zeroes() {
    let rig = Rig::new(4096, 4096, 24, PLAIN);
    rig.run(async {
        let volume = rig.mount().await.unwrap();
        let root = volume.root();
        let a = put(&volume, root, b"a", b"begin").await.unwrap().ino;
        let file = volume.open(a, READ_WRITE).await.unwrap();
        write_all(&volume, &file, 2_500_000, b"end").await.unwrap();
        // No space: the size is what it was, and so is the space.
        let free = volume.statfs().await.unwrap().free_bytes;
        let written = volume
            .write(&file, 100 << 20, Bytes::from_static(b"far"))
            .await;
        assert_eq!(written.error.unwrap().errno(), fs::Errno::ENOSPC);
        assert_eq!(written.bytes, 0);
        volume.close(file).await.unwrap();
        let set = |size| SetAttr {
            size_bytes: Some(size),
            ..SetAttr::default()
        };
        assert_eq!(
            volume.setattr(a, set(100 << 20)).await.unwrap_err().errno(),
            fs::Errno::ENOSPC
        );
        let mut content = b"begin".to_vec();
        content.resize(2_500_000, 0);
        content.extend(b"end");
        assert!(get(&volume, a).await.unwrap() == content);
        let b = put(&volume, root, b"b", b"").await.unwrap().ino;
        volume.setattr(b, set(1_000_000)).await.unwrap();
        volume.unmount().await.unwrap();
        let volume = rig.mount().await.unwrap();
        assert!(volume.statfs().await.unwrap().free_bytes + (2 << 20) >= free);
        assert!(get(&volume, a).await.unwrap() == content);
        assert!(get(&volume, b).await.unwrap() == vec![0; 1_000_000]);
        volume.unmount().await.unwrap();
    });
    rig.fsck();
}

/// What fsync has to wait for was kept in the inode's memory only, which is given up with the last
/// handle: a file opened again for its fsync, or a directory named for it, was acknowledged at once.
#[test]
fn an_fsync_covers_what_closed_handles_have_changed() {
    let rig = Rig::new(4096, 4096, 24, ALL);
    for through_handle in [false, true] {
        let sim = Simulation::new(1);
        let (disk, volume) = mounted(&rig, &sim);
        let content = pattern(1, 30_000);
        sim.block_on(async {
            let root = volume.root();
            put(&volume, root, b"f", &content).await.unwrap();
            let ino = volume.lookup(root, b"f").await.unwrap().ino;
            if through_handle {
                let file = volume.open(ino, READ_WRITE).await.unwrap();
                volume.fsync(&file, false).await.unwrap();
            } else {
                volume.fsync_ino(root, false).await.unwrap();
            }
        })
        .unwrap();
        assert!(content_of(lose_all(&disk), b"f").unwrap() == content);
    }
}

/// The note that data waits for a flush was cleared when the flush began: a second fsync that came
/// meanwhile was acknowledged before the flush had ended, or although it failed.
#[test]
fn an_fsync_does_not_trust_a_flush_that_another_one_has_begun() {
    let rig = Rig::new(4096, 4096, 24, ALL);
    let sim = Simulation::new(1);
    let (disk, volume) = mounted(&rig, &sim);
    let file = sim
        .block_on(async {
            let ino = put(&volume, volume.root(), b"f", &pattern(1, 8192))
                .await
                .unwrap()
                .ino;
            volume.sync().await.unwrap();
            let file = volume.open(ino, READ_WRITE).await.unwrap();
            write_all(&volume, &file, 0, &pattern(2, 8192))
                .await
                .unwrap();
            volume.sync().await.unwrap();
            write_all(&volume, &file, 0, &pattern(3, 8192))
                .await
                .unwrap();
            file
        })
        .unwrap();
    disk.inject(Fault::hold().on(Op::Flush).times(1));
    let (first, same) = (volume.clone(), file.clone());
    sim.world().spawn_named("first", async move {
        first.fsync(&same, true).await.unwrap();
    });
    sim.run_for(std::time::Duration::from_millis(2)).unwrap();
    sim.block_on(volume.fsync(&file, true)).unwrap().unwrap();
    let image = disk.crash_image(&Choice::default());
    assert!(content_of(image, b"f").unwrap() == pattern(3, 8192));
    disk.release_held();
}

/// Data that was written while a commit was on its way, its flush behind it, was taken to be
/// covered by that commit.
#[test]
fn an_fsync_does_not_trust_a_commit_that_is_on_its_way() {
    let rig = Rig::new(4096, 4096, 24, ALL);
    let sim = Simulation::new(1);
    let (disk, volume) = mounted(&rig, &sim);
    let file = sim
        .block_on(async {
            let ino = put(&volume, volume.root(), b"f", &pattern(1, 8192))
                .await
                .unwrap()
                .ino;
            volume.open(ino, READ_WRITE).await.unwrap()
        })
        .unwrap();
    // The commit's last flush is held: it was submitted before the write that follows.
    disk.inject(Fault::hold().on(Op::Flush).after(1).times(1));
    let committing = volume.clone();
    sim.world().spawn_named("commit", async move {
        committing.sync().await.unwrap();
    });
    sim.run_for(std::time::Duration::from_millis(2)).unwrap();
    let (writer, same) = (volume.clone(), file.clone());
    sim.world().spawn_named("writer", async move {
        // Inside the grain of the times: no handle, no transaction of its own.
        write_all(&writer, &same, 0, &pattern(2, 8192))
            .await
            .unwrap();
    });
    sim.run_for(std::time::Duration::from_millis(1)).unwrap();
    let (syncing, same) = (volume.clone(), file.clone());
    let synced = std::rc::Rc::new(std::cell::Cell::new(false));
    let done = synced.clone();
    sim.world().spawn_named("fsync", async move {
        syncing.fsync(&same, true).await.unwrap();
        done.set(true);
    });
    sim.run_for(std::time::Duration::from_millis(1)).unwrap();
    disk.release_held();
    while !synced.get() {
        sim.run_for(std::time::Duration::from_micros(1)).unwrap();
    }
    let image = disk.crash_image(&Choice::default());
    assert!(content_of(image, b"f").unwrap() == pattern(2, 8192));
}

/// A name made in a directory by itself is durable once the directory is.
#[test]
fn an_fsync_of_a_directory_keeps_its_new_names() {
    let rig = Rig::new(4096, 4096, 24, ALL);
    let sim = Simulation::new(1);
    let (disk, volume) = mounted(&rig, &sim);
    sim.block_on(async {
        let root = volume.root();
        let dir = volume.mkdir(root, b"d", new_inode()).await.unwrap().ino;
        volume
            .create(dir, b"f", new_inode(), IfExists::Fail)
            .await
            .unwrap();
        volume.fsync_ino(dir, false).await.unwrap();
    })
    .unwrap();
    let disk = SimDisk::with(lose_all(&disk), DiskOptions::default(), None);
    let sim = Simulation::new(2);
    sim.block_on(async {
        let volume = Volume::mount(disk.device(), sim.host(), MountOptions::default())
            .await
            .unwrap();
        volume.resolve(volume.root(), b"d/f", false).await.unwrap();
    })
    .unwrap();
}
