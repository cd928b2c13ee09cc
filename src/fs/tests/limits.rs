//! The ends of what a volume can hold, through the door: many files in one directory, far offsets,
//! deep paths, long names, no space.

#![allow(clippy::unwrap_used, reason = "a test fails where it panics")]

mod support;

use bytes::Bytes;
use fs::Errno;
use fs::volume::{IfExists, Ino, RenameMode, SetAttr, Volume};
use fs::xattr::XattrMode;
use support::*;

const FILES: usize = 10_000;

#[test]
fn ten_thousand_files_in_one_directory() {
    let rig = Rig::new(4096, 4096, 96, ALL);
    rig.run(async {
        let volume = rig.mount().await.unwrap();
        let dir = volume
            .mkdir(volume.root(), b"many", new_inode())
            .await
            .unwrap()
            .ino;
        for n in 0..FILES {
            let name = format!("file number {n}");
            volume
                .create(dir, name.as_bytes(), new_inode(), IfExists::Fail)
                .await
                .unwrap();
        }
        volume.unmount().await.unwrap();
        let volume = rig.mount().await.unwrap();
        let shown = names(&volume, dir).await.unwrap();
        assert_eq!(shown.len(), FILES);
        for n in (0..FILES).step_by(7) {
            let name = format!("file number {n}");
            volume.lookup(dir, name.as_bytes()).await.unwrap();
        }
        assert_eq!(
            volume
                .lookup(dir, b"file number")
                .await
                .unwrap_err()
                .errno(),
            Errno::ENOENT
        );
        volume.unmount().await.unwrap();
    });
    rig.fsck();
    rig.run(async {
        let volume = rig.mount().await.unwrap();
        let dir = volume.lookup(volume.root(), b"many").await.unwrap().ino;
        for n in 0..FILES {
            volume
                .unlink(dir, format!("file number {n}").as_bytes())
                .await
                .unwrap();
        }
        volume.rmdir(volume.root(), b"many").await.unwrap();
        volume.unmount().await.unwrap();
    });
    rig.fsck();
}

#[test]
fn a_sparse_file_of_four_gibibytes() {
    for (block, cluster) in [(4096, 4096), (512, 4096), (4096, 1 << 20)] {
        let rig = Rig::new(block, cluster, if cluster > 4096 { 160 } else { 32 }, ALL);
        rig.run(async {
            let volume = rig.mount().await.unwrap();
            let ino = put(&volume, volume.root(), b"sparse", b"first")
                .await
                .unwrap()
                .ino;
            let file = volume.open(ino, READ_WRITE).await.unwrap();
            let offsets = [
                (4 << 30) - 5,
                1 << 31,
                (1 << 32) + 1,
                3 << 30,
                (1 << 31) - 30,
            ];
            for at in offsets {
                write_all(&volume, &file, at, format!("at {at}").as_bytes())
                    .await
                    .unwrap();
            }
            let far = 1 << 40;
            let set = SetAttr {
                size_bytes: Some(far),
                ..SetAttr::default()
            };
            volume.setattr(ino, set).await.unwrap();
            assert!(volume.getattr(ino).await.unwrap().blocks * 512 <= 8 * u64::from(cluster));
            for at in offsets.into_iter().filter(|at| *at != (4 << 30) - 5) {
                let text = format!("at {at}");
                let shown = volume.read(&file, at, text.len() as u64).await.unwrap();
                assert_eq!(shown, text.as_bytes());
            }
            assert!(
                volume
                    .read(&file, 1 << 33, 9000)
                    .await
                    .unwrap()
                    .iter()
                    .all(|b| *b == 0)
            );
            assert_eq!(volume.read(&file, far - 10, 100).await.unwrap().len(), 10);
            let written = volume
                .write(&file, u64::MAX - 2, Bytes::from_static(b"beyond"))
                .await;
            assert_eq!(written.error.unwrap().errno(), Errno::EFBIG);
            let written = volume
                .write(&file, i64::MAX as u64, Bytes::from_static(b"b"))
                .await;
            assert_eq!(written.error.unwrap().errno(), Errno::EFBIG);
            volume.close(file).await.unwrap();
            volume.unmount().await.unwrap();
        });
        rig.fsck();
    }
}

#[test]
fn paths_of_three_hundred_levels() {
    let rig = Rig::new(4096, 4096, 32, ALL);
    rig.run(async {
        let volume = rig.mount().await.unwrap();
        let mut dir = volume.root();
        let mut path = Vec::new();
        for level in 0..300 {
            let name = format!("level {level}");
            dir = volume
                .mkdir(dir, name.as_bytes(), new_inode())
                .await
                .unwrap()
                .ino;
            path.extend_from_slice(b"/");
            path.extend_from_slice(name.as_bytes());
        }
        put(&volume, dir, b"f", b"deep").await.unwrap();
        path.extend_from_slice(b"/f");
        let attr = volume.resolve(volume.root(), &path, true).await.unwrap();
        assert_eq!(get(&volume, attr.ino).await.unwrap(), b"deep");
        let mut up = b"level 0".to_vec();
        up.extend(b"/level 1/..");
        assert_eq!(
            volume.resolve(volume.root(), &up, true).await.unwrap().ino,
            volume.lookup(volume.root(), b"level 0").await.unwrap().ino
        );
        // Not into itself, however deep.
        let moved = volume.rename(volume.root(), b"level 0", dir, b"x", RenameMode::Replace);
        assert_eq!(moved.await.unwrap_err().errno(), Errno::EINVAL);
        volume.unmount().await.unwrap();
    });
    rig.fsck();
}

#[test]
fn names_of_255_bytes() {
    let utf8 = |text: &str| text.repeat(255 / text.len()).into_bytes();
    let kinds: [Vec<u8>; 5] = [
        vec![b'n'; 255],
        utf8("ß"),
        utf8("日本語"),
        utf8("🦀"),
        vec![0xff; 255],
    ];
    for (block, features) in [(512, ALL), (4096, ALL), (1024, PLAIN)] {
        let rig = Rig::new(block, 4096, 32, features);
        rig.run(async {
            let volume = rig.mount().await.unwrap();
            let root = volume.root();
            for name in &kinds {
                for n in 0..30u8 {
                    // Alike but for one byte at the end.
                    let mut name = name.clone();
                    name.truncate(254);
                    name.push(b'A' + n);
                    volume
                        .create(root, &name, new_inode(), IfExists::Fail)
                        .await
                        .unwrap();
                    assert!(volume.lookup(root, &name).await.is_ok());
                }
            }
            assert_eq!(
                names(&volume, root).await.unwrap().len(),
                30 * kinds.len() + 1
            );
            let long = vec![b'n'; 256];
            let made = volume
                .create(root, &long, new_inode(), IfExists::Fail)
                .await;
            assert_eq!(made.unwrap_err().errno(), Errno::ENAMETOOLONG);
            assert!(matches!(
                volume.lookup(root, &long).await.unwrap_err().errno(),
                Errno::ENAMETOOLONG | Errno::ENOENT
            ));
            volume.unmount().await.unwrap();
        });
        rig.fsck();
    }
}

/// Fills a volume with files of all kinds until nothing goes any more.
async fn fill(volume: &Volume, dir: Ino) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut made = Vec::new();
    for (n, size) in (0..).zip([1_000_000, 100_000, 5000, 1].into_iter().cycle()) {
        let name = format!("f{n}").into_bytes();
        let content = pattern(n, size);
        let attr = match volume.create(dir, &name, new_inode(), IfExists::Fail).await {
            Ok(attr) => attr,
            Err(error) => {
                assert_eq!(error.errno(), Errno::ENOSPC, "{error}");
                break;
            }
        };
        let file = volume.open(attr.ino, READ_WRITE).await.unwrap();
        let written = volume.write(&file, 0, Bytes::from(content.clone())).await;
        volume.close(file).await.unwrap();
        if let Some(error) = &written.error {
            assert_eq!(error.errno(), Errno::ENOSPC, "{error}");
        }
        made.push((name, content[..written.bytes as usize].to_vec()));
        assert!(n < 100_000, "a volume that is never full");
    }
    made
}

#[test]
fn a_full_volume_loses_nothing_and_is_usable_again() {
    for (block, cluster, size_mb, features) in [
        (4096, 4096, 24, ALL),
        (512, 4096, 20, ALL),
        (4096, 1 << 20, 96, ALL),
        (2048, 4096, 24, PLAIN),
    ] {
        let rig = Rig::new(block, cluster, size_mb, features);
        rig.run(async {
            let volume = rig.mount().await.unwrap();
            let dir = volume
                .mkdir(volume.root(), b"d", new_inode())
                .await
                .unwrap()
                .ino;
            let before = volume.statfs().await.unwrap();
            let made = fill(&volume, dir).await;
            assert!(made.len() > 5);
            let full = volume.statfs().await.unwrap();
            assert!(
                full.free_bytes < 4 * u64::from(cluster).max(64 << 10),
                "{full:?}"
            );
            let mkdir = volume.mkdir(volume.root(), b"no", new_inode()).await;
            assert_eq!(mkdir.unwrap_err().errno(), Errno::ENOSPC);
            // What needs no space works: sizes, names that fit, attributes that fit.
            let first = volume.lookup(dir, b"f0").await.unwrap().ino;
            volume
                .rename(dir, b"f0", dir, b"f0", RenameMode::Replace)
                .await
                .unwrap();
            if features == ALL {
                let big = volume
                    .setxattr(first, b"user.big", &[1; 60_000], XattrMode::Any)
                    .await;
                if let Err(error) = big {
                    assert_eq!(error.errno(), Errno::ENOSPC);
                    assert!(volume.listxattr(first).await.unwrap().is_empty());
                }
            }
            volume.unmount().await.unwrap();
            let volume = rig.mount().await.unwrap();
            for (name, content) in &made {
                let ino = volume.lookup(dir, name).await.unwrap().ino;
                assert!(get(&volume, ino).await.unwrap() == *content);
            }
            rig.fsck();
            for (name, _) in &made {
                volume.unlink(dir, name).await.unwrap();
            }
            volume.sync().await.unwrap();
            volume.unmount().await.unwrap();
            let volume = rig.mount().await.unwrap();
            let after = volume.statfs().await.unwrap();
            // Groups of inodes and of extent blocks stay.
            assert!(
                after.free_bytes * 10 > before.free_bytes * 7,
                "{before:?} {after:?}"
            );
            assert!(fill(&volume, dir).await.len() + 3 > made.len());
            volume.unmount().await.unwrap();
        });
        rig.fsck();
    }
}
