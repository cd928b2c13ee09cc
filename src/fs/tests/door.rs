//! The public door, operation by operation, on volumes of several geometries; fsck.ocfs2 judges
//! what each leaves.

#![allow(clippy::print_stdout, reason = "says which geometry failed")]

mod support;

use fs::Errno;
use fs::volume::{FileKind, IfExists, RenameMode, SetAttr};
use support::*;

/// Block size, cluster size, megabytes, features.
const GEOMETRIES: [(u32, u32, u64, &str); 6] = [
    (4096, 4096, 64, ALL),
    (512, 4096, 64, ALL),
    (1024, 32768, 128, ALL),
    (2048, 4096, 64, ALL),
    (4096, 1 << 20, 320, ALL),
    (4096, 4096, 64, PLAIN),
];

fn everywhere(test: impl AsyncFn(&Rig)) {
    for (block, cluster, size_mb, features) in GEOMETRIES {
        println!("-- block {block} cluster {cluster} {features}");
        let rig = Rig::new(block, cluster, size_mb, features);
        rig.run(test(&rig));
        rig.fsck();
    }
}

#[test]
fn mount_and_unmount_leave_a_clean_volume() {
    everywhere(async |rig| {
        let volume = rig.mount().await.unwrap();
        assert!(!volume.info().recovered);
        assert_eq!(
            names(&volume, volume.root()).await.unwrap(),
            [b"lost+found"]
        );
        volume.unmount().await.unwrap();
        assert_eq!(
            volume.getattr(volume.root()).await.unwrap_err().errno(),
            Errno::EBUSY
        );
    });
}

#[test]
fn files_of_all_sizes_read_back() {
    everywhere(async |rig| {
        let volume = rig.mount().await.unwrap();
        let root = volume.root();
        let sizes = [
            0, 1, 60, 300, 511, 512, 513, 3800, 3900, 4095, 4096, 4097, 65537, 1_000_003, 3_000_001,
        ];
        let mut made = Vec::new();
        for (i, size) in sizes.into_iter().enumerate() {
            let content = pattern(i as u64, size);
            let attr = put(&volume, root, format!("s{size}").as_bytes(), &content)
                .await
                .unwrap();
            assert_eq!(attr.size_bytes, size as u64);
            made.push((attr.ino, content));
        }
        for (ino, content) in &made {
            assert!(get(&volume, *ino).await.unwrap() == *content);
        }
        volume.unmount().await.unwrap();
        let volume = rig.mount().await.unwrap();
        for (ino, content) in &made {
            assert!(get(&volume, *ino).await.unwrap() == *content);
        }
        volume.unmount().await.unwrap();
    });
}

#[test]
fn names_come_move_and_go() {
    everywhere(async |rig| {
        let volume = rig.mount().await.unwrap();
        let root = volume.root();
        let a = volume.mkdir(root, b"a", new_inode()).await.unwrap().ino;
        let b = volume.mkdir(root, b"b", new_inode()).await.unwrap().ino;
        let deep = volume.mkdir(a, b"deep", new_inode()).await.unwrap().ino;
        let file = put(&volume, a, b"file", b"hello").await.unwrap().ino;
        assert_eq!(
            volume
                .create(a, b"file", new_inode(), IfExists::Fail)
                .await
                .unwrap_err()
                .errno(),
            Errno::EEXIST
        );
        assert_eq!(
            volume
                .create(a, b"file", new_inode(), IfExists::Use)
                .await
                .unwrap()
                .ino,
            file
        );
        volume.link(file, b, b"second").await.unwrap();
        assert_eq!(volume.getattr(file).await.unwrap().links, 2);
        volume
            .rename(a, b"file", b, b"third", RenameMode::Replace)
            .await
            .unwrap();
        assert_eq!(
            volume.lookup(a, b"file").await.unwrap_err().errno(),
            Errno::ENOENT
        );
        // Two names of one inode: nothing happens.
        volume
            .rename(b, b"third", b, b"second", RenameMode::Replace)
            .await
            .unwrap();
        assert_eq!(
            names(&volume, b).await.unwrap(),
            [b"second".to_vec(), b"third".to_vec()]
        );
        // A directory moves with its "..", and not into itself.
        assert_eq!(
            volume
                .rename(root, b"a", deep, b"x", RenameMode::Replace)
                .await
                .unwrap_err()
                .errno(),
            Errno::EINVAL
        );
        volume
            .rename(a, b"deep", b, b"deep", RenameMode::Replace)
            .await
            .unwrap();
        assert_eq!(volume.lookup(deep, b"..").await.unwrap().ino, b);
        assert_eq!(volume.getattr(a).await.unwrap().links, 2);
        assert_eq!(volume.getattr(b).await.unwrap().links, 3);
        assert_eq!(
            volume.rmdir(root, b"b").await.unwrap_err().errno(),
            Errno::ENOTEMPTY
        );
        assert_eq!(
            volume.unlink(root, b"b").await.unwrap_err().errno(),
            Errno::EISDIR
        );
        assert_eq!(
            volume.rmdir(b, b"third").await.unwrap_err().errno(),
            Errno::ENOTDIR
        );
        // Exchange across directories, a file and a directory.
        put(&volume, root, b"plain", b"plain").await.unwrap();
        volume
            .rename(root, b"plain", b, b"deep", RenameMode::Exchange)
            .await
            .unwrap();
        assert_eq!(volume.lookup(root, b"plain").await.unwrap().ino, deep);
        assert_eq!(volume.lookup(deep, b"..").await.unwrap().ino, root);
        assert_eq!(
            volume
                .rename(root, b"plain", root, b"a", RenameMode::NoReplace)
                .await
                .unwrap_err()
                .errno(),
            Errno::EEXIST
        );
        // Replace an empty directory, then a file.
        volume
            .rename(root, b"plain", root, b"a", RenameMode::Replace)
            .await
            .unwrap();
        assert_eq!(volume.getattr(a).await.unwrap_err().errno(), Errno::ESTALE);
        volume
            .rename(b, b"deep", b, b"second", RenameMode::Replace)
            .await
            .unwrap();
        assert_eq!(volume.getattr(file).await.unwrap().links, 1);
        volume.unlink(b, b"third").await.unwrap();
        volume.unlink(b, b"second").await.unwrap();
        volume.rmdir(root, b"b").await.unwrap();
        volume.rmdir(root, b"a").await.unwrap();
        assert_eq!(names(&volume, root).await.unwrap(), [b"lost+found"]);
        assert_eq!(volume.getattr(root).await.unwrap().links, 3);
        volume.unmount().await.unwrap();
    });
}

#[test]
fn an_unlinked_open_file_lives_until_its_last_close() {
    everywhere(async |rig| {
        let volume = rig.mount().await.unwrap();
        let root = volume.root();
        let content = pattern(7, 200_000);
        let attr = put(&volume, root, b"f", &content).await.unwrap();
        let free = volume.statfs().await.unwrap().free_bytes;
        let file = volume.open(attr.ino, READ_WRITE).await.unwrap();
        volume.unlink(root, b"f").await.unwrap();
        assert_eq!(
            volume.lookup(root, b"f").await.unwrap_err().errno(),
            Errno::ENOENT
        );
        assert!(volume.read(&file, 0, 1 << 20).await.unwrap() == content);
        write_all(&volume, &file, 200_000, b"more").await.unwrap();
        assert_eq!(volume.fstat(&file).await.unwrap().links, 0);
        assert_eq!(volume.unmount().await.unwrap_err().errno(), Errno::EBUSY);
        volume.close(file).await.unwrap();
        assert_eq!(
            volume.getattr(attr.ino).await.unwrap_err().errno(),
            Errno::ESTALE
        );
        volume.sync().await.unwrap();
        volume.unmount().await.unwrap();
        let volume = rig.mount().await.unwrap();
        assert!(volume.statfs().await.unwrap().free_bytes >= free + 200_000);
        volume.unmount().await.unwrap();
    });
}

#[test]
fn symlinks_of_all_lengths() {
    everywhere(async |rig| {
        let volume = rig.mount().await.unwrap();
        let root = volume.root();
        for len in [1usize, 60, 311, 319, 320, 321, 1000, 3903, 3904, 3905, 4095] {
            let target = vec![b'x'; len];
            let name = format!("l{len}");
            let attr = volume
                .symlink(root, name.as_bytes(), &target, new_inode())
                .await
                .unwrap();
            assert_eq!(
                (attr.kind, attr.size_bytes),
                (FileKind::Symlink, len as u64)
            );
            assert!(volume.readlink(attr.ino).await.unwrap() == target);
        }
        volume.mkdir(root, b"d", new_inode()).await.unwrap();
        volume
            .symlink(root, b"to-d", b"d", new_inode())
            .await
            .unwrap();
        volume
            .symlink(root, b"loop", b"loop", new_inode())
            .await
            .unwrap();
        let d = volume.lookup(root, b"d").await.unwrap().ino;
        put(&volume, d, b"f", b"1").await.unwrap();
        assert_eq!(
            volume
                .resolve(root, b"to-d/../to-d/f", true)
                .await
                .unwrap()
                .size_bytes,
            1
        );
        assert_eq!(
            volume.resolve(root, b"/to-d", false).await.unwrap().kind,
            FileKind::Symlink
        );
        assert_eq!(volume.resolve(root, b"/to-d/", false).await.unwrap().ino, d);
        assert_eq!(
            volume
                .resolve(root, b"/../../d/f", true)
                .await
                .unwrap()
                .size_bytes,
            1
        );
        assert_eq!(
            volume
                .resolve(root, b"loop", true)
                .await
                .unwrap_err()
                .errno(),
            Errno::ELOOP
        );
        assert_eq!(
            volume
                .resolve(root, b"d/f/x", true)
                .await
                .unwrap_err()
                .errno(),
            Errno::ENOTDIR
        );
        volume.unlink(root, b"l4095").await.unwrap();
        volume.unmount().await.unwrap();
    });
}

#[test]
fn sizes_change_both_ways_and_show_zeroes() {
    everywhere(async |rig| {
        let volume = rig.mount().await.unwrap();
        let root = volume.root();
        let ino = put(&volume, root, b"f", &pattern(3, 150_000))
            .await
            .unwrap()
            .ino;
        let mut model = pattern(3, 150_000);
        for size in [
            149_999, 100_001, 4_097, 4_095, 100, 50, 70, 3_000, 9_000, 1_000_000, 5, 0, 12,
            300_000, 0,
        ] {
            let set = SetAttr {
                size_bytes: Some(size as u64),
                ..SetAttr::default()
            };
            assert_eq!(
                volume.setattr(ino, set).await.unwrap().size_bytes,
                size as u64
            );
            model.resize(size, 0);
            assert!(get(&volume, ino).await.unwrap() == model, "after {size}");
        }
        volume.unmount().await.unwrap();
    });
}

/// Regression 42: names outside ASCII, in directories large enough for an index. fsck.ocfs2 looks
/// each of them up by its own hash.
#[test]
fn r42_names_outside_ascii_are_indexed_as_fsck_hashes_them() {
    everywhere(async |rig| {
        let volume = rig.mount().await.unwrap();
        let dir = volume
            .mkdir(volume.root(), "größer".as_bytes(), new_inode())
            .await
            .unwrap()
            .ino;
        let long = "名".repeat(85);
        let names: Vec<String> = (0..150)
            .map(|i| format!("ünïcödé-{i}-{}", "é".repeat(i % 90)))
            .chain([long])
            .collect();
        for name in &names {
            put(&volume, dir, name.as_bytes(), name.as_bytes())
                .await
                .unwrap();
        }
        for name in &names {
            let ino = volume.lookup(dir, name.as_bytes()).await.unwrap().ino;
            assert_eq!(get(&volume, ino).await.unwrap(), name.as_bytes());
        }
        for name in names.iter().step_by(3) {
            volume.unlink(dir, name.as_bytes()).await.unwrap();
        }
        volume.unmount().await.unwrap();
    });
}

#[test]
fn without_holes_a_gap_takes_clusters() {
    // The kernel's rule for volumes without sparse files, and fsck.ocfs2's: a cluster for each
    // part of the size. Both a write past the end and a longer size left holes there.
    let rig = Rig::new(4096, 4096, 64, PLAIN);
    rig.run(async {
        let volume = rig.mount().await.unwrap();
        let root = volume.root();
        let mut content = pattern(1, 100);
        let ino = put(&volume, root, b"f", &content).await.unwrap().ino;
        let file = volume.open(ino, READ_WRITE).await.unwrap();
        write_all(&volume, &file, 3_000_000, b"end").await.unwrap();
        volume.close(file).await.unwrap();
        content.resize(3_000_000, 0);
        content.extend_from_slice(b"end");
        let attr = volume.getattr(ino).await.unwrap();
        assert_eq!(attr.blocks, 3_000_003u64.div_ceil(4096) * 8);
        let resize = async |size| {
            let set = SetAttr {
                size_bytes: Some(size),
                ..SetAttr::default()
            };
            volume.setattr(ino, set).await
        };
        assert_eq!(resize(4_000_001).await.unwrap().blocks, 977 * 8);
        content.resize(4_000_001, 0);
        // More than there is: nothing of it stays.
        let free = volume.statfs().await.unwrap().free_bytes;
        let error = resize(1 << 30).await.unwrap_err();
        assert_eq!(error.errno(), Errno::ENOSPC);
        let attr = volume.getattr(ino).await.unwrap();
        assert_eq!((attr.size_bytes, attr.blocks), (4_000_001, 977 * 8));
        volume.sync().await.unwrap();
        assert!(get(&volume, ino).await.unwrap() == content);
        volume.unmount().await.unwrap();
        let volume = rig.mount().await.unwrap();
        assert!(volume.statfs().await.unwrap().free_bytes >= free);
        volume.unmount().await.unwrap();
    });
    rig.fsck();
}

#[test]
fn inline_data_shows_sectors() {
    // As the kernel: a file with its data in the inode is not all hole.
    let rig = Rig::new(4096, 4096, 64, ALL);
    rig.run(async {
        let volume = rig.mount().await.unwrap();
        for (name, size, blocks) in [("a", 0, 0), ("b", 1, 1), ("c", 600, 2), ("d", 4096, 8)] {
            let attr = put(&volume, volume.root(), name.as_bytes(), &pattern(1, size))
                .await
                .unwrap();
            assert_eq!(attr.blocks, blocks, "{size} bytes");
        }
        volume.unmount().await.unwrap();
    });
}

#[test]
fn acls_are_shown_with_a_version_and_stored_without() {
    // The kernel's value for u::rwx u:1000:rwx g::r-x m::rwx o::r-x, of which it keeps 40 bytes;
    // the door showed these 40.
    let rig = Rig::new(4096, 4096, 64, ALL);
    let name = b"system.posix_acl_access";
    let entry = |tag: u16, permissions: u16, id: u32| {
        let mut bytes = [tag.to_le_bytes(), permissions.to_le_bytes()].concat();
        bytes.extend_from_slice(&id.to_le_bytes());
        bytes
    };
    let acl = [
        2u32.to_le_bytes().to_vec(),
        entry(0x01, 7, !0),
        entry(0x02, 7, 1000),
        entry(0x04, 5, !0),
        entry(0x10, 7, !0),
        entry(0x20, 5, !0),
    ]
    .concat();
    rig.run(async {
        let volume = rig.mount().await.unwrap();
        let root = volume.root();
        let ino = volume.mkdir(root, b"d", new_inode()).await.unwrap().ino;
        let any = fs::xattr::XattrMode::Any;
        volume.setxattr(ino, name, &acl, any).await.unwrap();
        assert_eq!(volume.getxattr(ino, name).await.unwrap(), acl);
        assert_eq!(
            volume.listxattr(ino).await.unwrap(),
            [(name.to_vec(), acl.len() as u64)]
        );
        for (wrong, errno) in [
            (&acl[..43], Errno::EINVAL),
            (&acl[..3], Errno::EINVAL),
            (&acl[4..], Errno::EOPNOTSUPP),
        ] {
            let error = volume.setxattr(ino, name, wrong, any).await.unwrap_err();
            assert_eq!(error.errno(), errno, "{error}");
        }
        volume.unmount().await.unwrap();
    });
    rig.fsck();
    let path = rig.path();
    let (text, _) = tool(
        "debugfs.ocfs2",
        &["-R", "xattr -v /d", path.to_str().unwrap()],
    );
    assert!(
        text.lines().any(|line| line.trim_end().ends_with(" 40")),
        "{text}"
    );
}
