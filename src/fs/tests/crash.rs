//! Power loss at every point of random runs through the door: one client, or several at once. Each run
//! is recorded once, mount and unmount included, then crashed after every change and flush with outcomes of
//! every class for what was in the cache or on its way: all lost, all kept, a prefix, one dropped, one alone
//! kept, any subset, torn sector by sector. The image must mount, show what `support::recorded` allows,
//! and go on working. Crashes inside the recovery are among them; a sample is shown to fsck.ocfs2.
//!
//! Images are counted by content: two outcomes that come to the same are one. `OCELOT_CRASHES=n` goes on
//! until there are so many, from seed `OCELOT_FIRST_SEED` on; `OCELOT_SEED=n` runs that seed alone;
//! `OCELOT_THREADS=n` says how many run at once.

#![allow(clippy::print_stdout, reason = "says which seed failed, and counts")]
#![allow(clippy::unwrap_used, reason = "a test fails where it panics")]

#[path = "support/recorded.rs"]
mod recorded;
#[path = "support/script.rs"]
mod script;
mod support;
#[path = "support/view.rs"]
mod view;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fs::volume::{MountOptions, NewInode, Volume};
use futures_util::future::join_all;
use runtime::sim::{
    Choice, CrashModel, DiskOptions, Image, Keep, SimDisk, SimRng, Simulation, VolatileChange,
};

use recorded::{Client, Run};
use script::Can;
use support::*;
use view::View;

/// Block size, cluster size, megabytes, features.
const GEOMETRIES: [(u32, u32, u64, &str); 4] = [
    (4096, 4096, 24, ALL),
    (512, 4096, 24, ALL),
    (1024, 32768, 40, ALL),
    (4096, 4096, 24, PLAIN),
];
/// Every so many replayed images are shown to fsck.ocfs2.
const FSCK_EVERY: u64 = 200;

/// The device of a seed: with a cache, sometimes without, sometimes with large sectors.
fn disk_options(seed: u64) -> DiskOptions {
    let block = GEOMETRIES[(seed % 4) as usize].0;
    DiskOptions {
        volatile_cache: seed % 5 != 4,
        block_size: if seed % 3 == 2 { block } else { 512 },
        ..DiskOptions::default()
    }
}

/// Mounts in a world of its own, does something, unmounts.
fn on<T>(disk: &SimDisk, seed: u64, work: impl AsyncFnOnce(&Volume) -> T) -> T {
    let sim = Simulation::new(seed);
    sim.set_step_budget(u64::MAX);
    sim.block_on(async {
        let volume = Volume::mount(disk.device(), sim.host(), MountOptions::default())
            .await
            .unwrap_or_else(|error| panic!("mount: {error}"));
        let result = work(&volume).await;
        volume.unmount().await.unwrap();
        result
    })
    .unwrap()
}

fn record(base: &Image, seed: u64) -> Run {
    let sim = Simulation::new(seed);
    sim.set_step_budget(u64::MAX);
    let all = seed % 4 != 3;
    let can = Can {
        xattrs: all,
        ranges: all,
        clones: all,
    };
    let (count, length) = if seed.is_multiple_of(2) {
        (1, 80)
    } else {
        (3, 28)
    };
    let mut clients: Vec<Client> = (0..count)
        .map(|number| Client::new(seed, number, length, can))
        .collect();
    let disk = SimDisk::with(base.clone(), disk_options(seed), None);
    on(&disk, seed, async |volume| {
        for client in &clients {
            let name = &client.home.as_bytes()[1..];
            let new = NewInode {
                permissions: 0o755,
                ..new_inode()
            };
            volume.mkdir(volume.root(), name, new).await.unwrap();
        }
    });
    let disk = SimDisk::with(disk.image(), disk_options(seed), Some(&sim.world()));
    // From before the mount, so that mounting is crashed as well.
    disk.record();
    let options = MountOptions {
        commit_interval: Duration::from_micros(700),
        ..MountOptions::default()
    };
    sim.block_on(async {
        let mount = Volume::mount(disk.device(), sim.host(), options);
        let volume = mount.await.unwrap();
        let plays = clients.iter_mut().map(|client| client.play(&volume, &disk));
        join_all(plays).await;
        volume.unmount().await.unwrap();
        for client in &mut clients {
            client.unmounted(&disk);
        }
    })
    .unwrap();
    assert_eq!(disk.stats().overlapping_writes, 0);
    let trace = disk.take_trace().unwrap();
    Run { trace, clients }
}

/// Outcomes of every class for these changes.
fn outcomes(volatile: &[VolatileChange], sector: u32, rng: &mut SimRng) -> Vec<Choice> {
    let count = volatile.len();
    let mut choices = vec![Choice::default()];
    if count == 0 {
        return choices;
    }
    choices.push(Choice::first(count));
    if count > 1 {
        let whole = |kept: bool| {
            if kept {
                Keep::Everything
            } else {
                Keep::Nothing
            }
        };
        let (lost, alone) = (rng.below(count as u64), rng.below(count as u64));
        let each = |keep: &dyn Fn(u64) -> bool| {
            Choice((0..count as u64).map(|at| whole(keep(at))).collect())
        };
        choices.push(each(&|at| at != lost));
        choices.push(each(&|at| at == alone));
        for model in [CrashModel::Prefix, CrashModel::Subset] {
            choices.push(model.choose(volatile, sector, rng));
        }
    }
    for _ in 0..2 {
        choices.push(CrashModel::Torn.choose(volatile, sector, rng));
    }
    choices
}

/// Mounts a crashed image, perhaps with crashes inside, judges it, uses it, unmounts it.
fn recover(
    run: &Run,
    point: usize,
    image: Image,
    options: &DiskOptions,
    rng: &mut SimRng,
) -> Image {
    let mut image = image;
    for _ in 0..rng.below(5).saturating_sub(2) {
        let sim = Simulation::new(rng.below(1 << 40));
        let disk = SimDisk::with(image, options.clone(), Some(&sim.world()));
        disk.crash_after(rng.below(60));
        let mount = Volume::mount(disk.device(), sim.host(), MountOptions::default());
        drop(sim.block_on(mount).unwrap());
        image = disk.crash(CrashModel::Any, rng).image();
    }
    let disk = SimDisk::with(image, options.clone(), None);
    on(&disk, rng.below(1 << 40), async |volume| {
        let look = async || View::of(volume, "").await;
        let shown = look()
            .await
            .unwrap_or_else(|error| panic!("after the crash: {error}"));
        for client in &run.clients {
            if let Err(problem) = client.judge(point, &shown.below(&client.home)) {
                panic!("{problem}");
            }
        }
        if rng.below(4) == 0 {
            let content = pattern(99, 20_000);
            let attr = put(volume, volume.root(), b"afterwards", &content)
                .await
                .unwrap();
            let mut again = look().await.unwrap();
            assert!(again.paths.remove("/afterwards").is_some());
            assert!(again.bytes.remove(&attr.ino).unwrap() == content);
            assert!(again == shown, "a new file changes nothing else");
        }
        assert_eq!(volume.read_only(), None);
    });
    disk.image()
}

/// Says which crash it was, when a check panics.
struct Witness<'a>(u64, usize, &'a Choice);

impl Drop for Witness<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!(
                "OCELOT_SEED={} crashed at point {}: {:?}",
                self.0, self.1, self.2
            );
        }
    }
}

/// What a sweep, or all of them, came to.
#[derive(Default)]
struct Count {
    /// Outcomes tried, and different images among them.
    tried: u64,
    distinct: u64,
    fsck: u64,
}

fn sweep(seed: u64) -> Count {
    let (block, cluster, size_mb, features) = GEOMETRIES[(seed % 4) as usize];
    let rig = Rig::new(block, cluster, size_mb, features);
    let run = record(&rig.disk.image(), seed);
    let mut rng = SimRng::new(seed);
    let options = disk_options(seed);
    let (mut seen, mut judged) = (HashSet::new(), HashSet::new());
    let mut count = Count::default();
    let points: Vec<usize> = run.trace.interesting_points().collect();
    for point in points {
        let volatile = run.trace.volatile_at(point);
        let promises: usize = run.clients.iter().map(|c| c.promises(point)).sum();
        for choice in outcomes(&volatile, options.block_size, &mut rng) {
            let (image, digest) = run.trace.crash_at(point, &choice);
            count.tried += 1;
            if !judged.insert((digest, promises)) {
                continue;
            }
            count.distinct += u64::from(seen.insert(digest));
            let witness = Witness(seed, point, &choice);
            let recovered = recover(&run, point, image, &options, &mut rng);
            checker::assert_clean(&recovered);
            if (judged.len() as u64 + seed).is_multiple_of(FSCK_EVERY) {
                let halved = |client: &Client| client.may_have_space_past_the_end(point);
                let allowed: &[&str] = match run.clients.iter().any(halved) {
                    true => &["[INODE_SPARSE_SIZE]"],
                    false => &[],
                };
                rig.fsck_image(&recovered, allowed);
                count.fsck += 1;
            }
            drop(witness);
        }
    }
    count
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
    )
}

#[test]
fn a_power_loss_keeps_what_was_synced_and_halves_nothing() {
    let only = number("OCELOT_SEED");
    let wanted = only.map_or(number("OCELOT_CRASHES").unwrap_or(10_000), |_| 1);
    let first = only.or(number("OCELOT_FIRST_SEED")).unwrap_or(0);
    let threads = only.map(|_| 1).or(number("OCELOT_THREADS")).unwrap_or(2);
    let next = AtomicU64::new(first);
    let (tried, distinct, fsck) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let failed = AtomicBool::new(false);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let work = || {
            while distinct.load(Ordering::Relaxed) < wanted && !failed.load(Ordering::Relaxed) {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                let sweep = std::panic::catch_unwind(|| sweep(seed));
                let count = sweep.unwrap_or_else(|panic| {
                    failed.store(true, Ordering::Relaxed);
                    std::panic::resume_unwind(panic)
                });
                tried.fetch_add(count.tried, Ordering::Relaxed);
                fsck.fetch_add(count.fsck, Ordering::Relaxed);
                let all = distinct.fetch_add(count.distinct, Ordering::Relaxed) + count.distinct;
                println!(
                    "seed {seed}: {} of {} crashes differ, {all} in all, {:.0?}",
                    count.distinct,
                    count.tried,
                    begun.elapsed()
                );
            }
        };
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    println!(
        "{} different crashes of {} tried, {} judged by fsck.ocfs2, seeds {first}..{}",
        distinct.load(Ordering::Relaxed),
        tried.load(Ordering::Relaxed),
        fsck.load(Ordering::Relaxed),
        next.load(Ordering::Relaxed),
    );
    assert!(distinct.load(Ordering::Relaxed) >= wanted);
}
