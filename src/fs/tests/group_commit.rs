//! Many who fsync at once share commits: measured in the time of the simulated device, so that the figure is
//! the same on every machine. `benches/group_commit.rs` measures real devices.

#![allow(clippy::print_stdout, reason = "tells the figures")]
#![allow(clippy::unwrap_used, reason = "a test fails where it panics")]

mod support;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use fs::volume::{MountOptions, Volume};
use runtime::Host;
use runtime::sim::{DiskOptions, SimDisk, Simulation};
use support::*;

const TIME: Duration = Duration::from_millis(80);

/// Appends of 4 KiB, each followed by an fsync, by so many writers to files of their own: how many were
/// acknowledged in [`TIME`], and how many flushes they took.
fn run(rig: &Rig, writers: u64) -> (u64, u64) {
    let sim = Simulation::new(writers);
    sim.set_step_budget(u64::MAX);
    let options = DiskOptions {
        latency: Duration::from_micros(60)..Duration::from_micros(100),
        ..DiskOptions::default()
    };
    let disk = SimDisk::with(rig.disk.image(), options, Some(&sim.world()));
    let mount = Volume::mount(disk.device(), sim.host(), MountOptions::default());
    let volume = sim.block_on(mount).unwrap().unwrap();
    let done = Rc::new(Cell::new(0));
    let flushes = disk.stats().flushes;
    for writer in 0..writers {
        let (volume, world, done) = (volume.clone(), sim.world(), done.clone());
        sim.world().spawn_named("writer", async move {
            let name = format!("f{writer}");
            let ino = put(&volume, volume.root(), name.as_bytes(), b"")
                .await
                .unwrap()
                .ino;
            let file = volume.open(ino, READ_WRITE).await.unwrap();
            let mut position = 0;
            while world.now() < TIME {
                write_all(&volume, &file, position, &pattern(writer, 4096))
                    .await
                    .unwrap();
                volume.fsync(&file, false).await.unwrap();
                position += 4096;
                done.set(done.get() + 1);
            }
            volume.close(file).await.unwrap();
        });
    }
    sim.run_until_idle().unwrap();
    let flushes = disk.stats().flushes - flushes;
    sim.block_on(volume.unmount()).unwrap().unwrap();
    rig.fsck_image(&disk.image(), &[]);
    (done.get(), flushes)
}

#[test]
fn thirty_two_who_fsync_do_eight_times_what_one_does() {
    let rig = Rig::new(4096, 4096, 64, ALL);
    let (one, flushes_of_one) = run(&rig, 1);
    let (all, flushes) = run(&rig, 32);
    println!(
        "fsyncs in {TIME:?}: 1 writer {one} ({flushes_of_one} flushes), 32 writers {all} ({flushes} flushes), \
         {:.1} times",
        all as f64 / one as f64
    );
    assert!(all >= 8 * one, "{all} by 32 are not 8 times {one} by one");
    assert!(flushes < all, "{flushes} flushes for {all} fsyncs");
}
