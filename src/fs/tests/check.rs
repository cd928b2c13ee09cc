//! The checker on sound volumes: silent where fsck.ocfs2 is, on fresh volumes, on volumes with a rich
//! tree, and on volumes that are in use while they are checked.

#![allow(clippy::unwrap_used, reason = "a test fails where it panics")]

#[allow(dead_code, reason = "only its hashes are of use here")]
#[path = "support/manifest.rs"]
mod manifest;
#[allow(dead_code, reason = "it is written, not compared")]
#[path = "support/rich_tree.rs"]
mod rich_tree;
mod support;

use std::cell::Cell;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::time::Duration;

use fs::check::{Event, Finding, Phase, Severity, Summary};
use fs::volume::{CloneAs, FileKind, MountOptions, RenameMode, SetAttr, Volume};
use fs::xattr::XattrMode;
use rich_tree::Tree;
use runtime::sim::{DiskOptions, SimDisk, SimRng, Simulation};
use support::checker::{assert_clean, check_image};
use support::*;

/// Checks a mounted volume.
async fn check(volume: &Volume) -> (Summary, Vec<Finding>) {
    let mut findings = Vec::new();
    let mut observer = |event| {
        if let Event::Finding(finding) = event {
            findings.push(finding);
        }
        ControlFlow::Continue(())
    };
    let summary = volume.check(&mut observer).await.unwrap();
    (summary, findings)
}

fn errors(findings: &[Finding]) -> Vec<&Finding> {
    let errors = findings.iter().filter(|f| f.severity == Severity::Error);
    errors.collect()
}

#[test]
fn fresh_volumes_are_clean() {
    let quotas = format!("{ALL},usrquota,grpquota");
    for (block, cluster, size_mb, features) in [
        (4096, 4096, 32, ALL),
        (4096, 4096, 32, PLAIN),
        (4096, 4096, 64, &quotas),
        (1024, 4096, 64, &quotas),
        (512, 4096, 32, ALL),
        (512, 4096, 64, &quotas),
        (2048, 32768, 128, ALL),
        (4096, 1 << 20, 1200, ALL),
        (512, 1 << 20, 400, PLAIN),
        (1024, 65536, 1100, ALL),
    ] {
        let rig = Rig::new(block, cluster, size_mb, features);
        let checked = check_image(&rig.disk.image()).unwrap();
        let place = format!("{block}/{cluster} {features}");
        assert!(
            checked.summary.is_clean(),
            "{place}: {:#?}",
            checked.findings
        );
        assert_eq!(
            checked.summary.clusters_total,
            (size_mb << 20) / u64::from(cluster),
            "{place}"
        );
        assert!(checked.summary.inodes > 10 && checked.summary.directories >= 4);
        rig.fsck();
    }
}

/// Name, block size, cluster size, megabytes, features.
const GEOMETRIES: [(u32, u32, u64, &str); 6] = [
    (4096, 4096, 320, ALL),
    (4096, 32768, 768, ALL),
    (1024, 4096, 320, ALL),
    (512, 4096, 320, ALL),
    (2048, 1 << 20, 4096, ALL),
    (4096, 4096, 400, PLAIN),
];

#[test]
fn volumes_with_a_rich_tree_are_clean_mounted_and_at_rest() {
    for (block, cluster, size_mb, features) in GEOMETRIES {
        let rig = Rig::new(block, cluster, size_mb, features);
        let mut tree = Tree::new(cluster, features == ALL);
        let place = format!("{block}/{cluster}");
        rig.run(async {
            let volume = rig.mount().await.unwrap();
            tree.write(&volume).await.unwrap();
            let root = volume.root();
            let doomed = put(&volume, root, b"doomed", &pattern(1, 400_000))
                .await
                .unwrap();
            let file = volume.open(doomed.ino, READ_WRITE).await.unwrap();
            volume.unlink(root, b"doomed").await.unwrap();
            let (summary, findings) = check(&volume).await;
            assert!(summary.is_clean(), "{place}: {:#?}", errors(&findings));
            assert_eq!((summary.orphans, summary.attempts), (1, 1), "{place}");
            volume.close(file).await.unwrap();
            volume.sync().await.unwrap();
            let (summary, findings) = check(&volume).await;
            assert!(summary.is_clean(), "{place}: {:#?}", errors(&findings));
            assert_eq!(summary.orphans, 0, "{place}");
            volume.unmount().await.unwrap();
        });
        assert_clean(&rig.disk.image());
        rig.fsck();
    }
}

#[test]
fn progress_is_told_phase_by_phase_and_a_check_can_be_broken_off() {
    let rig = Rig::new(4096, 4096, 32, ALL);
    rig.run(async {
        let volume = rig.mount().await.unwrap();
        let mut phases = Vec::new();
        let mut observer = |event| {
            if let Event::Progress(progress) = event {
                assert!(progress.done <= progress.total);
                if phases.last() != Some(&progress.phase) {
                    phases.push(progress.phase);
                }
            }
            ControlFlow::Continue(())
        };
        volume.check(&mut observer).await.unwrap();
        assert_eq!(phases, Phase::ALL);
        let mut told = 0;
        let mut observer = |_| {
            told += 1;
            ControlFlow::Break(())
        };
        let error = volume.check(&mut observer).await.unwrap_err();
        assert_eq!(error.errno(), fs::Errno::EBUSY);
        assert_eq!(told, 1);
        // Nothing is left of it.
        let (summary, _) = check(&volume).await;
        assert!(summary.is_clean());
        volume.unmount().await.unwrap();
    });
}

/// One of those who use the volume while it is checked.
async fn work(volume: Volume, seed: u64, done: Rc<Cell<bool>>) -> u64 {
    let mut rng = SimRng::new(seed);
    let root = volume.root();
    let own = format!("worker{seed}");
    let dir = volume
        .mkdir(root, own.as_bytes(), new_inode())
        .await
        .unwrap()
        .ino;
    let mut operations = 0;
    while !done.get() {
        let name = format!("{}{}", rng.below(40), "n".repeat(rng.below(60) as usize));
        let name = name.as_bytes();
        let result = match rng.below(12) {
            0..=2 => put(
                &volume,
                dir,
                name,
                &pattern(seed, rng.below(60_000) as usize),
            )
            .await
            .map(drop),
            3..=4 => volume.unlink(dir, name).await,
            5 => {
                let to = format!("{}", rng.below(40));
                volume
                    .rename(dir, name, dir, to.as_bytes(), RenameMode::Replace)
                    .await
            }
            6 => match volume.mkdir(dir, name, new_inode()).await {
                Ok(made) => put(&volume, made.ino, b"x", b"x").await.map(drop),
                Err(error) => Err(error),
            },
            7 => match volume.lookup(dir, name).await {
                Ok(found) if found.kind == FileKind::Directory => {
                    let _ = volume.unlink(found.ino, b"x").await;
                    volume.rmdir(dir, name).await
                }
                Ok(found) => {
                    // Of a cluster at most: after a value whose tree has a leaf, fsck.ocfs2 takes
                    // the next such value for damaged (EXTENT_LIST_DEPTH).
                    let value = pattern(seed, rng.below(4000) as usize);
                    let key = format!("user.{}", rng.below(30));
                    volume
                        .setxattr(found.ino, key.as_bytes(), &value, XattrMode::Any)
                        .await
                }
                Err(error) => Err(error),
            },
            8 => match volume.lookup(dir, name).await {
                Ok(found) => {
                    let to = format!("c{}", rng.below(40));
                    volume
                        .clone_file(found.ino, dir, to.as_bytes(), CloneAs::Same)
                        .await
                        .map(drop)
                }
                Err(error) => Err(error),
            },
            9 => match volume.lookup(dir, name).await {
                Ok(found) => {
                    let set = SetAttr {
                        size_bytes: Some(rng.below(200_000)),
                        ..SetAttr::default()
                    };
                    volume.setattr(found.ino, set).await.map(drop)
                }
                Err(error) => Err(error),
            },
            10 => match volume.lookup(dir, name).await {
                // Deleted while open, for a while.
                Ok(found) if found.kind == FileKind::Regular => {
                    let file = volume.open(found.ino, READ_WRITE).await.unwrap();
                    let result = volume.unlink(dir, name).await;
                    let at = rng.below(500_000);
                    let _ = write_all(&volume, &file, at, b"late").await;
                    volume.close(file).await.unwrap();
                    result
                }
                _ => Ok(()),
            },
            _ => volume.sync().await,
        };
        if let Err(error) = result {
            let known = [
                fs::Errno::ENOENT,
                fs::Errno::EEXIST,
                fs::Errno::EISDIR,
                fs::Errno::ENOTDIR,
                fs::Errno::ENOTEMPTY,
                fs::Errno::EPERM,
                fs::Errno::ENOSPC,
                fs::Errno::EINVAL,
                fs::Errno::ESTALE,
            ];
            assert!(known.contains(&error.errno()), "{error}");
        }
        operations += 1;
    }
    operations
}

/// Checks a volume again and again while others change it.
fn check_under_load(seed: u64, block: u32, cluster: u32, size_mb: u64, features: &str) {
    let rig = Rig::new(block, cluster, size_mb, features);
    let sim = Simulation::new(seed);
    sim.set_step_budget(u64::MAX);
    let disk = SimDisk::with(rig.disk.image(), DiskOptions::default(), Some(&sim.world()));
    let (operations, attempts) = sim
        .block_on(async {
            let host: Rc<dyn runtime::Host> = sim.host();
            // A small cache: much is read again from the medium.
            let options = MountOptions {
                cache_bytes: 1 << 20,
                commit_interval: Duration::from_millis(20),
                ..MountOptions::default()
            };
            let volume = Volume::mount(disk.device(), host, options).await.unwrap();
            let done = Rc::new(Cell::new(false));
            let workers = (0..4).map(|at| work(volume.clone(), seed * 10 + at, done.clone()));
            let checks = async {
                let mut attempts = 0;
                for round in 0..25 {
                    let (summary, findings) = check(&volume).await;
                    let wrong = errors(&findings);
                    assert!(wrong.is_empty(), "seed {seed}, check {round}: {wrong:#?}");
                    attempts += summary.attempts;
                }
                done.set(true);
                attempts
            };
            let (operations, attempts) =
                futures_util::join!(futures_util::future::join_all(workers), checks);
            volume.unmount().await.unwrap();
            (operations.into_iter().sum::<u64>(), attempts)
        })
        .unwrap();
    assert!(
        operations > 500,
        "only {operations} operations beside the checks"
    );
    assert!(attempts < 60, "{attempts} attempts for 25 checks");
    assert_clean(&disk.image());
    rig.fsck_image(&disk.image(), &["INODE_SPARSE_SIZE"]);
}

#[test]
fn a_volume_in_use_has_no_false_findings() {
    for seed in seeds(3) {
        check_under_load(seed, 4096, 4096, 64, ALL);
        check_under_load(seed + 100, 1024, 4096, 64, ALL);
        check_under_load(seed + 200, 512, 4096, 64, ALL);
    }
}

#[test]
fn a_full_volume_can_be_checked_while_it_is_in_use() {
    // Clusters that a check holds are given up when space is needed.
    check_under_load(7, 4096, 4096, 32, ALL);
    check_under_load(8, 1024, 16384, 40, ALL);
}

#[test]
fn an_unmount_ends_a_check_and_a_second_check_is_refused() {
    let rig = Rig::new(4096, 4096, 32, ALL);
    let sim = Simulation::new(5);
    sim.set_step_budget(u64::MAX);
    let disk = SimDisk::with(rig.disk.image(), DiskOptions::default(), Some(&sim.world()));
    sim.block_on(async {
        let host: Rc<dyn runtime::Host> = sim.host();
        let volume = Volume::mount(disk.device(), host.clone(), MountOptions::default())
            .await
            .unwrap();
        let mut quiet = |_| ControlFlow::Continue(());
        let first = volume.check(&mut quiet);
        let others = async {
            host.sleep(Duration::from_micros(50)).await;
            let mut quiet = |_| ControlFlow::Continue(());
            let second = volume.check(&mut quiet).await.unwrap_err();
            assert!(second.to_string().contains("another check"), "{second}");
            volume.unmount().await.unwrap();
        };
        let (first, ()) = futures_util::join!(first, others);
        let error = first.unwrap_err();
        assert_eq!(error.errno(), fs::Errno::EBUSY);
    })
    .unwrap();
    rig.fsck_image(&disk.image(), &[]);
}
