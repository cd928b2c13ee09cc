//! One wrong bit in a block of each kind of metadata: it is corrected when it is read, counted, and
//! right on the medium afterwards.

#![allow(clippy::unwrap_used, reason = "a test fails where it panics")]

mod support;

use std::rc::Rc;

use fs::volume::{IfExists, MountOptions, Volume};
use fs::xattr::XattrMode;
use ondisk::{Dinode, Kind, RootKind, XattrBlock};
use runtime::sim::{DiskOptions, Image, SimDisk, Simulation};
use support::bench::{Bench, furnish};
use support::checker::check_image;
use support::*;

/// Reads everything that the bench has, and changes a little of it.
async fn use_all(volume: &Volume) {
    let root = volume.root();
    for dir in ["few", "some", "many"] {
        let dir = volume.lookup(root, dir.as_bytes()).await.unwrap().ino;
        let all = names(volume, dir).await.unwrap();
        assert!(all.len() >= 4);
        // By the index, every leaf of it.
        for name in all {
            volume.lookup(dir, &name).await.unwrap();
        }
    }
    for name in ["data", "sparse", "sparse-clone", "xlarge"] {
        let ino = volume.lookup(root, name.as_bytes()).await.unwrap().ino;
        let bytes = get(volume, ino).await.unwrap();
        assert!(!bytes.is_empty());
    }
    for (name, count) in [
        ("xinline", 2),
        ("xblock", 12),
        ("xtree", 300),
        ("xlarge", 3),
    ] {
        let ino = volume.lookup(root, name.as_bytes()).await.unwrap().ino;
        assert_eq!(volume.listxattr(ino).await.unwrap().len(), count, "{name}");
    }
    // What shares clusters is told apart, space is taken and given back.
    let clone = volume.lookup(root, b"data-clone").await.unwrap().ino;
    let file = volume.open(clone, READ_WRITE).await.unwrap();
    write_all(volume, &file, 0, b"other").await.unwrap();
    volume.close(file).await.unwrap();
    let many = volume.lookup(root, b"many").await.unwrap().ino;
    volume
        .create(many, b"new", new_inode(), IfExists::Fail)
        .await
        .unwrap();
    let fresh = put(volume, root, b"fresh", &pattern(9, 3_000_000))
        .await
        .unwrap()
        .ino;
    volume
        .setxattr(fresh, b"user.k", &[7; 3000], XattrMode::Any)
        .await
        .unwrap();
    volume.unlink(root, b"fresh").await.unwrap();
    // What is cached gets its place.
    volume.sync().await.unwrap();
}

/// Flips a bit, uses the volume, and looks at what is left of it.
fn round(image: &Image, nr: u64, kind: Kind, bench: &Bench, what: &str) {
    let len = match kind {
        Kind::XattrBucket => 4096.max(bench.geometry.block_size()),
        _ => bench.geometry.block_size(),
    };
    let offset = nr << bench.geometry.block_size_bits;
    let mut damaged = image.clone();
    let mut bytes = damaged.read_vec(offset, len);
    let good = bytes.clone();
    // Somewhere in what the kind's own fields are.
    bytes[len / 3] ^= 0x10;
    damaged.write(offset, &bytes);
    let told = check_image(&damaged).unwrap();
    assert!(told.summary.is_clean(), "{what}: {:#?}", told.findings);
    assert_eq!(told.summary.correctable, 1, "{what}");
    assert!(told.codes().contains("SINGLE_BIT_ERROR"), "{what}");

    let sim = Simulation::new(1);
    sim.set_step_budget(u64::MAX);
    let disk = SimDisk::with(damaged, DiskOptions::default(), None);
    sim.block_on(async {
        let host: Rc<dyn runtime::Host> = sim.host();
        let volume = Volume::mount(disk.device(), host, MountOptions::default())
            .await
            .unwrap();
        use_all(&volume).await;
        assert_eq!(volume.read_only(), None, "{what}");
        assert_eq!(
            volume.info().corrected_errors,
            1,
            "{what}: corrected and counted"
        );
        volume.unmount().await.unwrap();
    })
    .unwrap();
    let mut after = disk.image().read_vec(offset, len);
    let verdict = kind.verify(&mut after, ondisk::BlockNr(nr));
    assert_eq!(
        verdict,
        Ok(ondisk::metaecc::Verdict::Clean),
        "{what}: written again"
    );
    assert_eq!(after.len(), good.len());
    let told = check_image(&disk.image()).unwrap();
    assert!(told.summary.is_clean(), "{what}: {:#?}", told.findings);
    assert_eq!(told.summary.correctable, 0, "{what}");
}

#[test]
fn a_wrong_bit_is_corrected_counted_and_written_again_in_each_kind_of_block() {
    for block_size in [4096, 1024] {
        let bench = furnish(block_size, 4096, 64, ALL);
        let inode = |name: &str| bench.block(bench.ino(name));
        let index = Dinode::of(&inode("many")).i_dx_root.get();
        let attributes = Dinode::of(&inode("xtree")).i_xattr_loc.get();
        let buckets = bench.leaves(&bench.block(attributes), RootKind::XattrTree);
        assert!(XattrBlock::of(&bench.block(attributes)).is_indexed());
        let leaves = bench.leaves(&bench.block(index), RootKind::DxRoot);
        let places = [
            ("superblock", 2, Kind::SuperBlock),
            ("root directory", bench.geometry.root_dir.0, Kind::Dinode),
            ("inode", bench.ino("data"), Kind::Dinode),
            ("global bitmap", bench.ino("global_bitmap"), Kind::Dinode),
            ("truncate log", bench.ino("truncate_log:0000"), Kind::Dinode),
            (
                "group of clusters",
                bench.first_group("global_bitmap"),
                Kind::GroupDesc,
            ),
            (
                "group of inodes",
                bench.first_group("inode_alloc:0000"),
                Kind::GroupDesc,
            ),
            (
                "extent block",
                bench.first_leaf("sparse"),
                Kind::ExtentBlock,
            ),
            (
                "directory",
                bench.dir_blocks(bench.ino("many"))[0],
                Kind::DirBlock { trailer: true },
            ),
            ("index root", index, Kind::DxRoot),
            ("index leaf", leaves[0].block().0, Kind::DxLeaf),
            (
                "attributes",
                Dinode::of(&inode("xblock")).i_xattr_loc.get(),
                Kind::XattrBlock,
            ),
            ("tree of attributes", attributes, Kind::XattrBlock),
            ("bucket", buckets[0].block().0, Kind::XattrBucket),
            (
                "refcounts",
                Dinode::of(&inode("data")).i_refcount_loc.get(),
                Kind::RefcountBlock,
            ),
        ];
        // With small blocks there are several, and one that nobody needs is not read.
        let several = block_size < 4096;
        for (what, nr, kind) in places {
            if several && what == "group of clusters" {
                continue;
            }
            round(
                &bench.image,
                nr,
                kind,
                &bench,
                &format!("{what}, {block_size}"),
            );
        }
    }
}

#[test]
fn two_wrong_bits_are_corruption_that_names_the_block() {
    let bench = furnish(4096, 4096, 64, ALL);
    let mut image = bench.image.clone();
    let nr = bench.ino("data");
    let mut bytes = bench.block(nr);
    bytes[0x30] ^= 3;
    image.write(nr << 12, &bytes);
    let sim = Simulation::new(1);
    sim.set_step_budget(u64::MAX);
    let disk = SimDisk::with(image, DiskOptions::default(), None);
    sim.block_on(async {
        let host: Rc<dyn runtime::Host> = sim.host();
        let volume = Volume::mount(disk.device(), host, MountOptions::default())
            .await
            .unwrap();
        let error = volume.lookup(volume.root(), b"data").await.unwrap_err();
        assert_eq!(error.errno(), fs::Errno::EUCLEAN);
        assert!(
            error.to_string().contains(&format!("block {nr}")),
            "{error}"
        );
        assert_eq!(volume.info().corrected_errors, 0);
    })
    .unwrap();
}
