//! Random changes against a map, on volumes of several block and cluster sizes, judged by fsck.ocfs2.

use std::collections::BTreeMap;

use runtime::sim::{SimRng, Simulation};

use super::super::{XattrMode, areas, destroy, get, list, remove, set};
use crate::alloc;
use crate::core::Core;
use crate::error::{Error, Result};
use crate::inode::Inode;
use crate::testing::{self, Volume};

pub(super) type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// Everything that is there, and nothing else.
pub(super) async fn compare(core: &Core, inode: &Inode, model: &Model) {
    let mut names = list(core, inode).await.unwrap();
    names.sort();
    let expected: Vec<_> = model
        .iter()
        .map(|(name, value)| (name.clone(), value.len() as u64))
        .collect();
    assert_eq!(names, expected);
    for (name, value) in model {
        let found = get(core, inode, name).await.unwrap();
        assert_eq!(found.as_ref(), Some(value), "{}", name.escape_ascii());
    }
}

/// A name out of `count`, of any length.
fn name(rng: &mut SimRng, count: u64) -> Vec<u8> {
    let number = rng.below(count);
    let prefix = ["user.", "trusted.", "security."][(number % 3) as usize];
    let mut name = format!("{prefix}n{number}").into_bytes();
    match number % 16 {
        0 => name.resize(255, b'z'),
        1 | 2 => name.resize(40 + (number % 150) as usize, b'y'),
        _ => {}
    }
    name
}

/// A value of any size but 65536: fsck.ocfs2 keeps sizes in 16 bits.
pub(super) fn value(rng: &mut SimRng, step: u64) -> Vec<u8> {
    let len = match rng.below(40) {
        0 => 65535,
        1..=3 => rng.below(10_000),
        4..=6 => rng.below(400),
        7 => 80,
        8 => 81,
        9 => 1,
        _ => 1 + rng.below(70),
    };
    (0..len).map(|at| (step + at) as u8).collect()
}

/// One random change, done to both. Errors that no wrong use explains come back.
pub(super) async fn change(
    core: &Core,
    inode: &Inode,
    model: &mut Model,
    rng: &mut SimRng,
    step: u64,
    names: u64,
    removals: u64,
) -> Result<()> {
    let name = name(rng, names);
    let had = model.contains_key(&name);
    if rng.below(10) < removals {
        match remove(core, inode, &name).await {
            Ok(()) => assert!(model.remove(&name).is_some()),
            Err(Error::NoAttribute(_)) => assert!(!had),
            Err(other) => return Err(other),
        }
        return Ok(());
    }
    let value = value(rng, step);
    let mode = [XattrMode::Any, XattrMode::Create, XattrMode::Replace][rng.below(3) as usize];
    match set(core, inode, &name, &value, mode).await {
        Ok(()) => {
            assert!(mode != XattrMode::Create || !had);
            assert!(mode != XattrMode::Replace || had);
            model.insert(name, value);
        }
        Err(Error::Exists(_)) => assert!(mode == XattrMode::Create && had),
        Err(Error::NoAttribute(_)) => assert!(mode == XattrMode::Replace && !had),
        Err(other) => return Err(other),
    }
    Ok(())
}

fn run(seed: u64, block: usize, cluster: usize, steps: u64) {
    let volume = Volume::make(block, cluster, 160);
    let simulation = Simulation::new(seed);
    let disk = testing::disk(&simulation, &volume);
    let mut rng = SimRng::new(seed);
    let mut model = Model::new();
    simulation
        .block_on(async {
            let core = testing::open(&simulation, &disk).await;
            let inode = core
                .inodes
                .get(&core, core.geometry.root_dir)
                .await
                .unwrap();
            for step in 0..steps {
                let (names, removals) = if step < steps / 2 {
                    (2000, 1)
                } else {
                    (300, 5)
                };
                change(&core, &inode, &mut model, &mut rng, step, names, removals)
                    .await
                    .unwrap();
                if step % (steps / 4) == steps / 4 - 1 {
                    compare(&core, &inode, &model).await;
                }
            }
            assert!(
                areas(&core, &inode).await.unwrap().len() > 10,
                "buckets were split"
            );
            testing::close(&core).await;
        })
        .unwrap();
    volume.fsck(&disk);
    simulation
        .block_on(async {
            let core = testing::open(&simulation, &disk).await;
            let inode = core
                .inodes
                .get(&core, core.geometry.root_dir)
                .await
                .unwrap();
            compare(&core, &inode, &model).await;
            destroy(&core, &inode).await.unwrap();
            let left = areas(&core, &inode).await.unwrap().len();
            assert!(left <= 1, "nothing but the inline area stays");
            testing::close(&core).await;
        })
        .unwrap();
    volume.fsck(&disk);
}

#[test]
fn blocks_of_4096() {
    run(1, 4096, 4096, 2500);
}

#[test]
fn blocks_of_2048_in_large_clusters() {
    run(2, 2048, 32768, 2500);
}

#[test]
fn blocks_of_1024() {
    run(3, 1024, 4096, 2500);
}

#[test]
fn blocks_of_512() {
    run(4, 512, 8192, 2500);
}

#[test]
fn a_set_that_finds_no_space_leaves_the_old_value() {
    let volume = Volume::make(1024, 4096, 24);
    let simulation = Simulation::new(5);
    let disk = testing::disk(&simulation, &volume);
    let mut rng = SimRng::new(5);
    let mut model = Model::new();
    simulation
        .block_on(async {
            let core = testing::open(&simulation, &disk).await;
            let inode = core
                .inodes
                .get(&core, core.geometry.root_dir)
                .await
                .unwrap();
            let mut full = 0;
            for step in 0..2000u64 {
                let name = format!("user.{}", rng.below(600)).into_bytes();
                let value: Vec<u8> = vec![step as u8; 1 + rng.below(60_000) as usize];
                match set(&core, &inode, &name, &value, XattrMode::Any).await {
                    Ok(()) => {
                        model.insert(name, value);
                    }
                    Err(Error::NoSpace(_)) => full += 1,
                    Err(other) => panic!("step {step}: {other}"),
                }
            }
            assert!(full > 10, "the volume did not get full");
            compare(&core, &inode, &model).await;
            testing::close(&core).await;
        })
        .unwrap();
    volume.fsck(&disk);
}

#[test]
fn limits_have_their_errors() {
    let volume = Volume::make(4096, 4096, 64);
    let simulation = Simulation::new(6);
    let disk = testing::disk(&simulation, &volume);
    simulation
        .block_on(async {
            let core = testing::open(&simulation, &disk).await;
            let inode = core
                .inodes
                .get(&core, core.geometry.root_dir)
                .await
                .unwrap();
            let any = XattrMode::Any;
            assert!(matches!(
                set(&core, &inode, b"user.a", &[0; 65537], any).await,
                Err(Error::TooBig(_))
            ));
            assert!(matches!(
                set(&core, &inode, &[b'u'; 256], b"", any).await,
                Err(Error::Range(_))
            ));
            assert!(matches!(
                set(&core, &inode, b"other.a", b"", any).await,
                Err(Error::NotSupported(_))
            ));
            assert!(matches!(
                remove(&core, &inode, b"user.a").await,
                Err(Error::NoAttribute(_))
            ));
            set(&core, &inode, b"user.a", &[7; 65536], any)
                .await
                .unwrap();
            assert_eq!(
                get(&core, &inode, b"user.a").await.unwrap(),
                Some(vec![7; 65536])
            );
            // Names outside ASCII, and an empty value.
            set(&core, &inode, "user.größe".as_bytes(), b"", any)
                .await
                .unwrap();
            assert_eq!(
                get(&core, &inode, "user.größe".as_bytes()).await.unwrap(),
                Some(Vec::new())
            );
            destroy(&core, &inode).await.unwrap();
            assert!(alloc::free_clusters_total(&core).await.unwrap() > 0);
        })
        .unwrap();
}
