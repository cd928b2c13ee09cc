//! Volumes that the Linux driver has written. They are made in a virtual machine, so these tests run
//! only where their paths (with colons between) are in `OCELOT_KERNEL_IMAGES`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::bench::{Bench, Volume, with_volume};
use super::*;

fn images() -> Vec<PathBuf> {
    let paths = std::env::var_os("OCELOT_KERNEL_IMAGES").unwrap_or_default();
    let paths = std::env::split_paths(&paths)
        .filter(|path| path.exists())
        .collect::<Vec<_>>();
    assert!(!paths.is_empty(), "OCELOT_KERNEL_IMAGES names no image");
    paths
}

/// All directories, with their paths.
async fn directories(bench: &Bench) -> Vec<(String, InodeRef)> {
    let mut all = vec![("/".to_owned(), bench.root().await)];
    let mut at = 0;
    while at < all.len() {
        let (path, dir) = all[at].clone();
        for entry in bench.list(&dir, 100).await {
            if entry.file_type != 2 || is_dot(&entry.name) {
                continue;
            }
            let path = format!("{path}{}/", String::from_utf8_lossy(&entry.name));
            all.push((path, bench.inode(entry.ino).await));
        }
        at += 1;
    }
    let system = bench.inode(bench.geometry().system_dir).await;
    all.push(("//".to_owned(), system));
    all
}

/// A directory as `debugfs.ocfs2` lists it: names to inodes.
fn listed_by_debugfs(volume: &Volume, dir: &InodeRef) -> BTreeMap<Vec<u8>, u64> {
    let text = volume.debugfs(&format!("ls <{}>", dir.nr().0));
    let line = |line: &str| {
        let mut words = line.trim_start().splitn(2, char::is_whitespace);
        let ino = words.next()?.parse().ok()?;
        // inode, record length, name length, type, name
        let mut rest = words.next()?.trim_start();
        for _ in 0..3 {
            rest = rest.split_once(char::is_whitespace)?.1.trim_start();
        }
        Some((rest.as_bytes().to_vec(), ino))
    };
    text.lines().filter_map(line).collect()
}

#[test]
#[ignore = "needs OCELOT_KERNEL_IMAGES, volumes that the kernel made"]
fn what_the_kernel_wrote_is_found() {
    for path in images() {
        let volume = Volume::copy_of(&path);
        let (mut dirs, mut names) = (0, 0);
        with_volume(&volume, 1, async |bench| {
            for (path, dir) in directories(bench).await {
                let checked = self_check(&bench.core, &dir)
                    .await
                    .expect("a sound directory");
                let listed = bench.list(&dir, 64).await;
                assert_eq!(listed.len(), checked.len(), "{path}");
                let theirs = listed_by_debugfs(&volume, &dir);
                for entry in &listed {
                    let hit = lookup(&bench.core, &dir, &entry.name).await.expect("sound");
                    let expected = Hit {
                        ino: entry.ino,
                        file_type: entry.file_type,
                    };
                    assert_eq!(hit, Some(expected), "{path}");
                    // What debugfs prints of these names is not one line, or not the name.
                    if entry.name.iter().all(|byte| byte.is_ascii_graphic()) {
                        assert_eq!(theirs.get(&entry.name), Some(&entry.ino.0), "{path}");
                    }
                }
                for absent in [b"not there".as_slice(), "auch nicht: ü".as_bytes(), b"..."] {
                    assert_eq!(
                        lookup(&bench.core, &dir, absent).await.expect("sound"),
                        None
                    );
                }
                dirs += 1;
                names += listed.len();
            }
        });
        assert!(
            dirs > 50 && names > 1000,
            "{dirs} directories, {names} names"
        );
        eprintln!("{}: {dirs} directories, {names} names", path.display());
    }
}

/// Adds names to the kernel's directories and takes some away; where `OCELOT_KERNEL_RESULTS` names a
/// directory, the volume is left there for the kernel to judge.
#[test]
#[ignore = "needs OCELOT_KERNEL_IMAGES, volumes that the kernel made"]
fn the_kernels_directories_are_changed() {
    for path in images() {
        let volume = Volume::copy_of(&path);
        volume.fsck();
        let rng = &mut SmallRng::seed_from_u64(11);
        with_volume(&volume, 11, async |bench| {
            let file = bench.file().await;
            bench
                .link(&bench.root().await, b"ocelot", &file)
                .await
                .expect("a new name");
            for (path, dir) in directories(bench).await {
                // An index of names outside ASCII is one that fsck.ocfs2 hashes otherwise.
                if ["//", "/lost+found", "/many", "/names/"]
                    .iter()
                    .any(|own| path.starts_with(own))
                {
                    continue;
                }
                let mut mine = Model::new();
                churn(bench, &dir, &file, &mut mine, rng, (60, 7, true)).await;
                let names = self_check(&bench.core, &dir)
                    .await
                    .expect("a sound directory");
                assert!(mine.keys().all(|name| names.contains_key(name)));
            }
            for path in ["many", "many2"] {
                let hit = lookup(&bench.core, &*bench.root().await, path.as_bytes()).await;
                let Some(hit) = hit.expect("sound") else {
                    continue;
                };
                let dir = bench.inode(hit.ino).await;
                churn(bench, &dir, &file, &mut Model::new(), rng, (1500, 8, true)).await;
                self_check(&bench.core, &dir)
                    .await
                    .expect("a sound directory");
            }
        });
        volume.fsck();
        if let Some(results) = std::env::var_os("OCELOT_KERNEL_RESULTS") {
            let name = path.file_name().expect("a file");
            std::fs::copy(&volume.path, PathBuf::from(results).join(name)).expect("a copy");
        }
    }
}
