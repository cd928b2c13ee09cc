//! Damaged directories: an error that says what, never a panic, never an endless walk.

use ondisk::{Dinode, DirTrailer, DxRoot};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::bench::{Bench, Volume, with_volume};
use super::*;
use crate::dir::blocks::Blocks;

/// A directory with some names, in the form that `names` of them have.
async fn filled(bench: &Bench, names: usize) -> (InodeRef, InodeRef) {
    let (dir, file) = (bench.mkdir(b"directory").await, bench.file().await);
    for number in 0..names {
        let name = format!("name {number}");
        bench
            .link(&dir, name.as_bytes(), &file)
            .await
            .expect("a new name");
    }
    (dir, file)
}

async fn try_everything(bench: &Bench, dir: &InodeRef, file: &InodeRef) -> usize {
    let core = &bench.core;
    let mut errors = 0;
    let mut count = |failed: bool| errors += usize::from(failed);
    for number in 0..30 {
        count(
            lookup(core, dir, format!("name {number}").as_bytes())
                .await
                .is_err(),
        );
    }
    let mut cookie = 0;
    while let Ok((part, false)) = read(core, dir, cookie, 10).await {
        cookie = part.last().expect("progress").cookie_next;
    }
    count(read(core, dir, cookie, 10).await.is_err());
    count(is_empty(core, dir).await.is_err());
    for number in 0..10 {
        let name = format!("new {number} {}", "x".repeat(number * 20));
        count(bench.link(dir, name.as_bytes(), file).await.is_err());
        let name = format!("name {number}");
        count(bench.unlink(dir, name.as_bytes(), file).await.is_err());
    }
    errors
}

#[test]
fn garbage_in_the_entries_is_survived() {
    for (block, features, names) in [
        (512, PLAIN, 60),
        (4096, ALL, 20),
        (512, ALL, 12),
        (512, ALL, 15),
        (1024, ALL, 300),
    ] {
        let Some(volume) = Volume::mkfs(48, block, 4096, features) else {
            return;
        };
        with_volume(&volume, 4, async |bench| {
            let (dir, file) = filled(bench, names).await;
            let rng = &mut SmallRng::seed_from_u64(names as u64);
            let mut errors = 0;
            for _ in 0..300 {
                let mut blocks = Blocks::of(&bench.core, dir.block()).expect("sound");
                let area = blocks
                    .area(&bench.core, rng.random_range(0..blocks.count()))
                    .await;
                let mut spots = vec![area.expect("sound").block().clone()];
                if Form::of(dir.block()) == Form::Indexed {
                    let root = index::root(&bench.core, dir.block()).await.expect("sound");
                    let hash = index::hash_of(&bench.core, b"name 1");
                    spots.push(index::list(&bench.core, &root, hash).await.expect("sound"));
                    spots.push(root);
                }
                let spot = &spots[rng.random_range(0..spots.len())];
                let before = spot.snapshot();
                let inline = spot.nr() == dir.nr();
                {
                    let mut h = bench.begin(5).await;
                    let mut data = h.modify(spot);
                    let from = if inline {
                        ondisk::INLINE_DATA_OFFSET
                    } else {
                        0
                    };
                    for _ in 0..rng.random_range(1..4) {
                        let at = rng.random_range(from..data.len());
                        data[at] = rng.random();
                    }
                    drop(data);
                    h.commit();
                }
                errors += try_damaged(bench, &dir, &file).await;
                let mut h = bench.begin(5).await;
                h.modify(spot).copy_from_slice(&before);
                h.commit();
            }
            assert!(errors > 0, "the damage was never noticed");
        });
    }
}

/// Like [`try_everything`], but every change is undone.
async fn try_damaged(bench: &Bench, dir: &InodeRef, file: &InodeRef) -> usize {
    let core = &bench.core;
    let mut errors = 0;
    for number in 0..8 {
        let name = format!("name {number}");
        errors += usize::from(lookup(core, dir, name.as_bytes()).await.is_err());
        let mut h = bench.begin(100).await;
        errors += usize::from(remove(core, &mut h, dir, name.as_bytes()).await.is_err());
        drop(h);
        let new = format!("new {number} {}", "x".repeat(number * 30));
        let mut h = bench.begin(100).await;
        let added = insert(core, &mut h, dir, new.as_bytes(), file.nr(), 1).await;
        errors += usize::from(added.is_err());
        drop(h);
        let blocks = insert_blocks(core, dir, new.as_bytes()).await;
        errors += usize::from(blocks.is_err());
    }
    let mut cookie = 0;
    while let Ok((part, false)) = read(core, dir, cookie, 10).await {
        cookie = part.last().expect("progress").cookie_next;
    }
    errors += usize::from(read(core, dir, cookie, 10).await.is_err());
    errors += usize::from(is_empty(core, dir).await.is_err());
    // Anywhere is a place to go on from.
    for cookie in [1, 13, 511, 100_000, u64::MAX] {
        let _ = read(core, dir, cookie, 10).await;
    }
    errors
}

#[test]
fn a_circle_of_free_blocks_ends() {
    let Some(volume) = Volume::mkfs(48, 512, 4096, ALL) else {
        return;
    };
    with_volume(&volume, 4, async |bench| {
        let (dir, file) = filled(bench, 100).await;
        let root = index::root(&bench.core, dir.block()).await.expect("sound");
        let head = free_list::head(&root);
        assert!(head.is_some());
        let area = blocks::at(&bench.core, dir.block(), head)
            .await
            .expect("sound");
        let mut h = bench.begin(5).await;
        area.change_trailer(&mut h, |trailer| {
            trailer.db_free_next.set(head.0);
            trailer.db_free_rec_len.set(16);
        });
        h.commit();
        let result = bench.link(&dir, &[b'x'; 200], &file).await;
        assert!(matches!(result, Err(Error::Corrupt(_))), "{result:?}");
        // A hole that is not there.
        let mut h = bench.begin(5).await;
        area.change_trailer(&mut h, |trailer| trailer.db_free_rec_len.set(400));
        h.commit();
        let result = bench.link(&dir, &[b'x'; 255], &file).await;
        assert!(matches!(result, Err(Error::Corrupt(_))), "{result:?}");
    });
}

#[test]
fn sizes_and_owners_that_lie_are_noticed() {
    let Some(volume) = Volume::mkfs(48, 1024, 4096, ALL) else {
        return;
    };
    with_volume(&volume, 4, async |bench| {
        let (dir, file) = filled(bench, 100).await;
        let root = index::root(&bench.core, dir.block()).await.expect("sound");
        let size = Dinode::of(&dir.block().data()).i_size.get();
        for lie in [0, 1 << 40] {
            let mut h = bench.begin(5).await;
            Dinode::of_mut(&mut h.modify(dir.block())).i_size.set(lie);
            h.commit();
            assert!(matches!(
                read(&bench.core, &dir, 0, 10).await,
                Err(Error::Corrupt(_))
            ));
            assert!(matches!(
                is_empty(&bench.core, &dir).await,
                Err(Error::Corrupt(_)) | Ok(false)
            ));
        }
        let mut h = bench.begin(5).await;
        Dinode::of_mut(&mut h.modify(dir.block())).i_size.set(size);
        DxRoot::of_mut(&mut h.modify(&root))
            .dr_dir_blkno
            .set(file.nr().0);
        h.commit();
        let found = lookup(&bench.core, &dir, b"name 1").await;
        assert!(matches!(found, Err(Error::Corrupt(_))), "{found:?}");
        let mut h = bench.begin(5).await;
        DxRoot::of_mut(&mut h.modify(&root))
            .dr_dir_blkno
            .set(dir.nr().0);
        let area = Blocks::of(&bench.core, dir.block())
            .expect("sound")
            .area(&bench.core, 0)
            .await;
        let area = area.expect("sound");
        area.change_trailer(&mut h, |trailer: &mut DirTrailer| trailer.db_blkno.set(3));
        h.commit();
        assert!(try_everything(bench, &dir, &file).await > 0);
    });
}
