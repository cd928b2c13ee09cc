//! Directories against a map, on every form and geometry, and then before fsck.ocfs2.

mod bench;
mod corrupt;
mod kernel;

use std::collections::BTreeMap;

use ondisk::{BlockNr, DxEntry, DxRoot};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::*;
use crate::inode::InodeRef;
use bench::{Bench, Volume, with_volume};

type Model = BTreeMap<Vec<u8>, (BlockNr, u8)>;

const PLAIN: &str = "sparse,unwritten,noinline-data,nometaecc,noindexed-dirs,norefcount,xattr";
const ALL: &str = "sparse,unwritten,inline-data,metaecc,indexed-dirs,discontig-bg,xattr";
const INDEX: &str = "sparse,unwritten,noinline-data,nometaecc,indexed-dirs,xattr";
const INLINE_INDEX: &str = "sparse,unwritten,inline-data,nometaecc,indexed-dirs,xattr";
const ECC: &str = "sparse,unwritten,noinline-data,metaecc,noindexed-dirs,xattr";
const INLINE: &str = "sparse,unwritten,inline-data,nometaecc,noindexed-dirs,xattr";
const INLINE_ECC: &str = "sparse,unwritten,inline-data,metaecc,noindexed-dirs,xattr";
const INDEX_ECC: &str = "sparse,unwritten,noinline-data,metaecc,indexed-dirs,xattr";

/// A name of up to 255 bytes. ASCII only where fsck.ocfs2 has to find it in an index: it hashes as old
/// kernels on x86 do.
fn random_name(rng: &mut SmallRng, ascii: bool) -> Vec<u8> {
    let length = match rng.random_range(0..20) {
        0 => 255,
        1..4 => rng.random_range(100..=255),
        4..8 => rng.random_range(1..4),
        _ => rng.random_range(4..40),
    };
    let letters: &[&str] = if ascii {
        &["a", "b", "Z", "0", "_", " ", "-", "."]
    } else {
        &["a", "ü", "日", "z", "é", "🦊", "0"]
    };
    let mut name = String::new();
    while name.len() < length {
        name.push_str(letters.choose(rng).expect("letters"));
    }
    while name.len() > 255 {
        name.pop();
    }
    if name.trim_matches('.').is_empty() {
        name = "dots".to_owned();
    }
    name.into_bytes()
}

/// Adds and removes at random, `grow` of ten steps adding, and compares with the map.
async fn churn(
    bench: &Bench,
    dir: &InodeRef,
    file: &InodeRef,
    model: &mut Model,
    rng: &mut SmallRng,
    (steps, grow, ascii): (usize, u32, bool),
) {
    for _ in 0..steps {
        if rng.random_ratio(grow, 10) || model.is_empty() {
            let name = random_name(rng, ascii);
            let result = bench.link(dir, &name, file).await;
            match model.insert(name.clone(), (file.nr(), 1)) {
                None => result.expect("a new name"),
                Some(_) => assert!(matches!(result, Err(Error::Exists(_))), "{result:?}"),
            }
            let found = lookup(&bench.core, dir, &name)
                .await
                .expect("a sound directory");
            assert_eq!(
                found,
                Some(Hit {
                    ino: file.nr(),
                    file_type: 1
                })
            );
        } else {
            let name = model
                .keys()
                .nth(rng.random_range(0..model.len()))
                .expect("one")
                .clone();
            bench.unlink(dir, &name, file).await.expect("it was there");
            model.remove(&name);
            assert_eq!(lookup(&bench.core, dir, &name).await.expect("sound"), None);
            let again = bench.unlink(dir, &name, file).await;
            assert!(matches!(again, Err(Error::NotFound(_))), "{again:?}");
        }
    }
}

/// The directory and its listing are the map, with the dots.
async fn compare(bench: &Bench, dir: &InodeRef, parent: BlockNr, model: &Model) {
    let mut expected = model.clone();
    expected.insert(b".".to_vec(), (dir.nr(), 2));
    expected.insert(b"..".to_vec(), (parent, 2));
    let checked = self_check(&bench.core, dir)
        .await
        .expect("a sound directory");
    assert_eq!(checked, expected);
    for max in [1, 7, 100_000] {
        if max == 1 && expected.len() > 300 {
            continue;
        }
        let listed = bench.list(dir, max).await;
        assert_eq!(listed.len(), expected.len());
        let listed: Model = listed
            .into_iter()
            .map(|e| (e.name, (e.ino, e.file_type)))
            .collect();
        assert_eq!(listed, expected);
    }
    let empty = is_empty(&bench.core, dir).await.expect("a sound directory");
    assert_eq!(empty, model.is_empty());
}

/// One directory's life on one geometry: small, large, small again, and what fsck says of it.
fn life(block: u32, cluster: u32, features: &str, names: usize, seed: u64) {
    let Some(volume) = Volume::mkfs(
        if cluster > 65536 { 500 } else { 48 },
        block,
        cluster,
        features,
    ) else {
        return;
    };
    let rng = &mut SmallRng::seed_from_u64(seed);
    with_volume(&volume, seed, async |bench| {
        let dir = bench.mkdir(b"directory").await;
        let other = bench.mkdir(b"other").await;
        let file = bench.file().await;
        let (mut model, root) = (Model::new(), bench.root().await.nr());
        compare(bench, &dir, root, &model).await;
        for step in [3, 10, 40] {
            churn(bench, &dir, &file, &mut model, rng, (step, 8, true)).await;
            compare(bench, &dir, root, &model).await;
        }
        churn(bench, &dir, &file, &mut model, rng, (names, 9, true)).await;
        compare(bench, &dir, root, &model).await;
        churn(bench, &dir, &file, &mut model, rng, (names / 2, 2, true)).await;
        compare(bench, &dir, root, &model).await;
        // What has moved to another directory and back.
        let mut h = bench.begin(20).await;
        replace(&bench.core, &mut h, &dir, b"..", other.nr(), 2)
            .await
            .expect("..");
        drop(h);
        compare(bench, &dir, root, &model).await;
        bench
            .link(&other, b"one name", &file)
            .await
            .expect("a new name");
    });
    volume.fsck();
    let listed = volume.debugfs("ls -l /directory").lines().count();
    with_volume(&volume, seed, async |bench| {
        let hit = lookup(&bench.core, &*bench.root().await, b"directory").await;
        let dir = bench.inode(hit.expect("sound").expect("there").ino).await;
        assert_eq!(bench.list(&dir, 1000).await.len(), listed);
    });
}

macro_rules! lives {
    ($($name:ident: $block:literal, $cluster:literal, $features:ident, $names:literal;)*) => {
        $(#[test]
        fn $name() {
            life($block, $cluster, $features, $names, $block + $names);
        })*
    };
}

lives! {
    plain_512: 512, 4096, PLAIN, 300;
    plain_4k: 4096, 4096, PLAIN, 600;
    ecc_1k: 1024, 8192, ECC, 400;
    inline_2k: 2048, 4096, INLINE, 400;
    inline_ecc_512: 512, 4096, INLINE_ECC, 300;
    index_512: 512, 4096, INDEX, 3000;
    index_ecc_1k: 1024, 32768, INDEX_ECC, 1500;
    inline_index_2k: 2048, 65536, INLINE_INDEX, 1500;
    all_512: 512, 4096, ALL, 2500;
    all_1k: 1024, 4096, ALL, 2500;
    all_4k: 4096, 4096, ALL, 3000;
    all_4k_1m: 4096, 1_048_576, ALL, 600;
}

#[test]
fn an_index_gets_a_tree_of_extents() {
    // A root of 512 bytes has 19 extents: with more clusters of 8 leaves than that, the tree is deep.
    let Some(volume) = Volume::mkfs(64, 512, 4096, ALL) else {
        return;
    };
    with_volume(&volume, 1, async |bench| {
        let dir = bench.mkdir(b"many").await;
        let file = bench.file().await;
        for number in 0..9000 {
            let name = format!("{number:05}");
            bench
                .link(&dir, name.as_bytes(), &file)
                .await
                .expect("a new name");
        }
        let root = index::root(&bench.core, dir.block())
            .await
            .expect("an index");
        assert!(ondisk::extent_list(&root.data(), ondisk::RootKind::DxRoot).depth() > 0);
        assert!(DxRoot::of(&root.data()).dr_clusters.get() > 19);
        assert_eq!(
            self_check(&bench.core, &dir).await.expect("sound").len(),
            9002
        );
        for number in (0..9000).filter(|number| number % 100 > 0) {
            let name = format!("{number:05}");
            bench
                .unlink(&dir, name.as_bytes(), &file)
                .await
                .expect("it is there");
        }
        assert_eq!(
            self_check(&bench.core, &dir).await.expect("sound").len(),
            92
        );
    });
    volume.fsck();
    assert_eq!(volume.debugfs("ls /many").lines().count(), 92);
    // The index has no other names than the directory.
    let dump = volume.debugfs("dx_dump /many");
    assert!(
        dump.contains("Num Entries: 92") || dump.contains("92"),
        "{dump}"
    );
}

#[test]
fn a_leaf_full_of_one_hash_takes_no_more() {
    let Some(volume) = Volume::mkfs(48, 512, 4096, ALL) else {
        return;
    };
    with_volume(&volume, 6, async |bench| {
        let (dir, file) = (bench.mkdir(b"directory").await, bench.file().await);
        for number in 0..300 {
            bench
                .link(&dir, format!("{number}").as_bytes(), &file)
                .await
                .expect("new");
        }
        let core = &bench.core;
        let root = index::root(core, dir.block()).await.expect("sound");
        // Names of one hash are hard to find: entries of the index do as well.
        let hash = index::hash_of(core, b"the one");
        let (mut h, mut added) = (bench.begin(400).await, 0);
        let error = loop {
            match split::list_with_room(core, &mut h, &root, hash).await {
                Ok(list) => index::push(&mut h, &list, DxEntry::new(hash, dir.nr())).expect("room"),
                Err(error) => break error,
            }
            added += 1;
        };
        assert!(matches!(error, Error::NoSpace(_)), "{error:?}");
        assert_eq!(added, ondisk::capacity::entries_in_dx_leaf(512));
        drop(h);
        assert_eq!(self_check(core, &dir).await.expect("sound").len(), 302);
    });
}

#[test]
fn an_inline_directory_of_short_names_gets_leaves_at_once() {
    // 19 records of 16 bytes fill the inline data of 512-byte blocks, and an index root.
    let Some(volume) = Volume::mkfs(48, 512, 4096, ALL) else {
        return;
    };
    with_volume(&volume, 6, async |bench| {
        let (dir, file) = (bench.mkdir(b"directory").await, bench.file().await);
        for number in 0..17 {
            bench
                .link(&dir, format!("{number:04}").as_bytes(), &file)
                .await
                .expect("new");
            assert_eq!(Form::of(dir.block()), Form::Inline);
        }
        bench.link(&dir, b"more", &file).await.expect("new");
        let root = index::root(&bench.core, dir.block())
            .await
            .expect("an index");
        assert!(!index::is_inline(&root));
        assert_eq!(
            self_check(&bench.core, &dir).await.expect("sound").len(),
            20
        );
    });
    volume.fsck();
}

#[test]
fn names_outside_ascii_are_found_under_either_hash() {
    let Some(volume) = Volume::mkfs(48, 1024, 4096, ALL) else {
        return;
    };
    let rng = &mut SmallRng::seed_from_u64(5);
    with_volume(&volume, 5, async |bench| {
        let dir = bench.mkdir(b"directory").await;
        let (file, mut model) = (bench.file().await, Model::new());
        churn(bench, &dir, &file, &mut model, rng, (1500, 8, false)).await;
        compare(bench, &dir, bench.root().await.nr(), &model).await;
        // As Linux before 6.2 on x86 would have indexed one.
        let name = "ünïcödé".as_bytes();
        bench.link(&dir, name, &file).await.expect("a new name");
        index::rehash_otherwise(&bench.core, &dir, name).await;
        assert!(
            lookup(&bench.core, &dir, name)
                .await
                .expect("sound")
                .is_some()
        );
        let again = bench.link(&dir, name, &file).await;
        assert!(matches!(again, Err(Error::Exists(_))), "{again:?}");
        self_check(&bench.core, &dir).await.expect("sound");
        bench.unlink(&dir, name, &file).await.expect("it is there");
        compare(bench, &dir, bench.root().await.nr(), &model).await;
    });
}

#[test]
fn a_listing_goes_on_while_names_come_and_go() {
    for (block, features) in [(4096, ALL), (512, ALL), (1024, PLAIN)] {
        let Some(volume) = Volume::mkfs(48, block, 4096, features) else {
            return;
        };
        let rng = &mut SmallRng::seed_from_u64(9);
        with_volume(&volume, 9, async |bench| {
            let dir = bench.mkdir(b"directory").await;
            let (file, mut model) = (bench.file().await, Model::new());
            let stays = |number: usize| format!("stays {number}").into_bytes();
            for number in 0..30 {
                bench
                    .link(&dir, &stays(number), &file)
                    .await
                    .expect("a new name");
                churn(bench, &dir, &file, &mut model, rng, (3, 8, true)).await;
            }
            let (mut cookie, mut seen) = (0, BTreeMap::<Vec<u8>, usize>::new());
            loop {
                let (part, done) = read(&bench.core, &dir, cookie, 2).await.expect("entries");
                for entry in part {
                    cookie = entry.cookie_next;
                    *seen.entry(entry.name).or_default() += 1;
                }
                if done {
                    break;
                }
                churn(bench, &dir, &file, &mut model, rng, (3, 4, true)).await;
            }
            // Whatever was there all the time is listed exactly once.
            for number in 0..30 {
                assert_eq!(seen.get(&stays(number)), Some(&1), "{number}");
            }
            assert_eq!(seen.get(b"..".as_slice()), Some(&1));
        });
    }
}

#[test]
fn bad_names_are_refused() {
    let Some(volume) = Volume::mkfs(48, 4096, 4096, ALL) else {
        return;
    };
    with_volume(&volume, 1, async |bench| {
        let (dir, file) = (bench.mkdir(b"directory").await, bench.file().await);
        let try_to = async |name: &[u8]| bench.link(&dir, name, &file).await;
        assert!(matches!(try_to(b"").await, Err(Error::Invalid(_))));
        assert!(matches!(try_to(b"a/b").await, Err(Error::Invalid(_))));
        assert!(matches!(try_to(b"a\0").await, Err(Error::Invalid(_))));
        assert!(matches!(try_to(b".").await, Err(Error::Exists(_))));
        assert!(matches!(try_to(b"..").await, Err(Error::Exists(_))));
        assert!(matches!(
            try_to(&[b'x'; 256]).await,
            Err(Error::NameTooLong(256))
        ));
        for name in [b".".as_slice(), b".."] {
            let result = bench.unlink(&dir, name, &file).await;
            assert!(matches!(result, Err(Error::Invalid(_))));
        }
        assert!(is_empty(&bench.core, &dir).await.expect("sound"));
    });
}

#[test]
fn a_handle_that_is_dropped_leaves_the_directory() {
    let Some(volume) = Volume::mkfs(48, 512, 4096, ALL) else {
        return;
    };
    with_volume(&volume, 3, async |bench| {
        let (dir, file) = (bench.mkdir(b"directory").await, bench.file().await);
        let root = bench.root().await.nr();
        let mut model = Model::new();
        // Through all forms: inline, inline root, leaves, splits.
        for number in 0..400 {
            let name = format!("name {number}").into_bytes();
            let blocks = insert_blocks(&bench.core, &dir, &name)
                .await
                .expect("sound");
            let mut h = bench.begin(blocks).await;
            insert(&bench.core, &mut h, &dir, &name, file.nr(), 1)
                .await
                .expect("new");
            drop(h);
            if number % 10 == 0 {
                compare(bench, &dir, root, &model).await;
            }
            bench
                .link(&dir, &name, &file)
                .await
                .expect("it was not added");
            model.insert(name, (file.nr(), 1));
        }
        compare(bench, &dir, root, &model).await;
    });
    volume.fsck();
}

#[test]
fn a_destroyed_directory_leaves_nothing() {
    for (block, cluster, features) in [(512, 4096, ALL), (4096, 4096, PLAIN), (1024, 8192, INDEX)] {
        let Some(volume) = Volume::mkfs(48, block, cluster, features) else {
            return;
        };
        let mut free = Vec::new();
        for round in 0..3 {
            with_volume(&volume, round, async |bench| {
                let core = &bench.core;
                free.push(
                    crate::alloc::free_clusters_total(core)
                        .await
                        .expect("a count"),
                );
                fill_and_destroy(bench).await;
            });
            volume.fsck();
        }
        // Only the first round has let the allocators of inodes and index roots grow.
        assert!(free[0] > free[1] && free[1] == free[2], "{free:?}");
    }
}

/// The directory and its file are there afterwards, empty.
async fn fill_and_destroy(bench: &Bench) {
    let (core, root) = (&bench.core, bench.root().await);
    let (dir, file) = match lookup(core, &root, b"directory").await.expect("sound") {
        Some(hit) => {
            let file = lookup(core, &root, b"file")
                .await
                .expect("sound")
                .expect("there");
            (bench.inode(hit.ino).await, bench.inode(file.ino).await)
        }
        None => {
            let file = bench.file().await;
            bench.link(&root, b"file", &file).await.expect("new");
            (bench.mkdir(b"directory").await, file)
        }
    };
    for number in 0..2500 {
        let name = format!("a name of some length {number}");
        bench.link(&dir, name.as_bytes(), &file).await.expect("new");
    }
    destroy(core, &dir).await.expect("sound");
    destroy(core, &dir).await.expect("once more does nothing");
    let dinode = *dir.dinode();
    assert_eq!((dinode.i_size.get(), dinode.i_clusters.get()), (0, 0));
    assert_eq!(dinode.i_dx_root.get(), 0);
    let mut h = bench.begin(100).await;
    init_new(core, &mut h, dir.block(), root.nr())
        .await
        .expect("a directory again");
    bench::add_links(&mut h, &file, -2500);
    h.commit();
    assert!(is_empty(core, &dir).await.expect("sound"));
}
