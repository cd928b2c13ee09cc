//! Allocators against a bit set, against fsck.ocfs2, and against themselves after a crash.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ondisk::{Dinode, GroupDesc, Kind, chain_list, group_extents, local_alloc, truncate_log};
use runtime::sim::{SimRng, Simulation};

use super::*;
use crate::system::SystemFile;
use crate::testing::{self, Volume};

const PLAIN: &str = "--fs-features=sparse,unwritten,noinline-data,extended-slotmap,noxattr,\
                     noindexed-dirs,norefcount,discontig-bg,nometaecc";

/// Every bit of the global bitmap: true if set.
async fn bitmap_bits(core: &Core) -> Vec<bool> {
    let allocator = bitmap::open(core).await.unwrap();
    let mut found = vec![true; core.geometry.total_clusters as usize];
    for chain in allocator.chains() {
        let mut next = chain.first_group();
        while next.is_some() {
            let group = allocator.group(core, next).await.unwrap();
            let data = group.data();
            let desc = GroupDesc::of(&data);
            let first = ondisk::group_first_cluster(next, &core.geometry).unwrap();
            for bit in 0..u32::from(desc.bg_bits.get()) {
                let set = bits::is_set(ondisk::group_bitmap(&data), bit);
                found[(first.0 + bit) as usize] = set;
            }
            next = desc.next_group();
        }
    }
    found
}

/// All counts of an allocator follow from its bits.
async fn self_check(core: &Core, nr: BlockNr, is_global: bool) {
    let allocator = chain::Allocator::open(core, nr, is_global).await.unwrap();
    let (mut used, mut total) = (0u32, 0u32);
    for (index, rec) in allocator.chains().iter().enumerate() {
        let (mut free, mut bits_here) = (0u32, 0u32);
        let mut next = rec.first_group();
        while next.is_some() {
            let group = allocator.group(core, next).await.unwrap();
            let data = group.data();
            let desc = GroupDesc::of(&data);
            let count = u32::from(desc.bg_bits.get());
            let clear = bits::clear_runs(ondisk::group_bitmap(&data), count)
                .map(|run| run.1)
                .sum();
            assert_eq!(
                u32::from(desc.bg_free_bits_count.get()),
                clear,
                "group {next}"
            );
            assert_eq!(usize::from(desc.bg_chain.get()), index);
            let noted = u32::from(desc.bg_contig_free_bits.get());
            if noted != 0 {
                assert_eq!(
                    noted,
                    bits::longest_clear(ondisk::group_bitmap(&data), count)
                );
            }
            free += clear;
            bits_here += count;
            next = desc.next_group();
        }
        assert_eq!(
            (rec.c_free.get(), rec.c_total.get()),
            (free, bits_here),
            "chain {index}"
        );
        used += bits_here - free;
        total += bits_here;
    }
    assert_eq!((allocator.used(), allocator.total()), (used, total));
    if !is_global {
        let data = allocator.block.data();
        let inode = Dinode::of(&data);
        let bytes = u64::from(inode.i_clusters.get()) << core.geometry.cluster_size_bits;
        assert_eq!(inode.i_size.get(), bytes);
    }
}

async fn check_all(core: &Core) {
    self_check(core, core.system_file(SystemFile::GlobalBitmap), true).await;
    for slot in 0..core.system.slot_count() {
        for file in [SystemFile::InodeAlloc, SystemFile::ExtentAlloc] {
            self_check(core, core.system.of(file, SlotNr(slot)), false).await;
        }
    }
}

/// Random claims and releases, every third handle rolled back; no cluster twice, none that is pinned.
fn random_claims(block: usize, cluster: usize, size_mb: u64, seed: u64) {
    let volume = Volume::make(block, cluster, size_mb);
    let sim = Simulation::new(seed);
    sim.set_step_budget(100_000_000);
    let disk = testing::disk(&sim, &volume);
    let mut rng = SimRng::new(seed);
    sim.block_on(async {
        let core = testing::open(&sim, &disk).await;
        let free_at_first = free_clusters_total(&core).await.unwrap();
        let mut owned: BTreeMap<u32, u32> = BTreeMap::new();
        let mut taken: BTreeSet<u32> = BTreeSet::new();
        for step in 0..160 {
            let (kept_owned, kept_taken) = (owned.clone(), taken.clone());
            let mut h = core.journal.begin(60).await.unwrap();
            for _ in 0..1 + rng.below(4) {
                if rng.below(3) > 0 || owned.is_empty() {
                    let most = if rng.below(10) == 0 { 3000 } else { 12 };
                    let max = 1 + rng.below(most) as u32;
                    let min = if rng.coin() { 1 } else { max };
                    let goal = rng.coin().then(|| owned.iter().next_back()).flatten();
                    let goal = goal.map(|(&start, &count)| ClusterNr(start + count));
                    match claim_clusters(&core, &mut h, goal, min, max).await {
                        Ok((start, count)) => {
                            assert!((min..=max).contains(&count));
                            assert!(core.journal.pins().within(start, count).is_empty());
                            for cluster in start.0..start.0 + count {
                                assert!(taken.insert(cluster), "cluster {cluster} is given twice");
                            }
                            owned.insert(start.0, count);
                        }
                        Err(error) => assert!(matches!(error, Error::NoSpace(_)), "{error}"),
                    }
                } else {
                    let at = rng.below(owned.len() as u64) as usize;
                    let (&start, &count) = owned.iter().nth(at).unwrap();
                    owned.remove(&start);
                    // Its clusters stay out of reach until the log is flushed: `taken` keeps them.
                    let release = release_clusters(&core, &mut h, ClusterNr(start), count);
                    release.await.unwrap();
                }
            }
            if step % 3 == 2 {
                drop(h);
                (owned, taken) = (kept_owned, kept_taken);
            } else {
                h.commit();
            }
            if step % 16 == 15 {
                flush_truncate_log(&core).await.unwrap();
                if rng.coin() {
                    core.journal.force_commit().await.unwrap();
                }
                let mine: BTreeSet<u32> = owned
                    .iter()
                    .flat_map(|(&start, &count)| start..start + count)
                    .collect();
                taken = mine;
                check_all(&core).await;
                let bits = bitmap_bits(&core).await;
                assert!(taken.iter().all(|&cluster| bits[cluster as usize]));
            }
        }
        let mut h = core.journal.begin(60).await.unwrap();
        for (start, count) in owned {
            release_clusters(&core, &mut h, ClusterNr(start), count)
                .await
                .unwrap();
        }
        h.commit();
        testing::close(&core).await;
        check_all(&core).await;
        assert_eq!(free_clusters_total(&core).await.unwrap(), free_at_first);
        volume.fsck(&disk);
    })
    .unwrap();
}

#[test]
fn random_claims_on_all_sizes() {
    for (seed, (block, cluster, size_mb)) in [
        (512, 4096, 40),
        (512, 1 << 20, 300),
        (1024, 4096, 64),
        (2048, 16384, 100),
        (4096, 4096, 200),
        (4096, 65536, 300),
        (4096, 1 << 20, 600),
    ]
    .into_iter()
    .enumerate()
    {
        random_claims(block, cluster, size_mb, seed as u64);
    }
}

/// Free clusters of the bitmap are all taken but for runs of 32, so that no group of blocks fits
/// in one run.
async fn fragment(core: &Core) -> Vec<u32> {
    let mut taken = Vec::new();
    core.alloc
        .no_window_until
        .set(Some(Duration::from_secs(1 << 30)));
    loop {
        let mut h = core.journal.begin(60).await.unwrap();
        match bitmap::claim(core, &mut h, None, 1, 500).await.unwrap() {
            Some((start, count)) => taken.extend(start.0..start.0 + count),
            None => break,
        }
        h.commit();
    }
    let freed: Vec<u32> = taken
        .iter()
        .copied()
        .filter(|cluster| cluster / 32 % 3 == 0)
        .collect();
    for part in freed.chunks(200) {
        let mut h = core.journal.begin(60).await.unwrap();
        for &cluster in part {
            bitmap::free(core, &mut h, ClusterNr(cluster), 1)
                .await
                .unwrap();
        }
        h.commit();
    }
    taken.retain(|cluster| cluster / 32 % 3 != 0);
    taken
}

#[test]
fn inodes_and_metadata_come_from_groups_that_grow() {
    for (block, cluster, size_mb, fragmented) in [
        (512, 4096, 60, false),
        (4096, 4096, 200, false),
        (4096, 65536, 300, false),
        (1024, 1 << 20, 400, false),
        (4096, 4096, 60, true),
        (512, 4096, 60, true),
        (1024, 8192, 100, true),
    ] {
        let volume = Volume::with(block, cluster, size_mb, PLAIN);
        let sim = Simulation::new(9);
        sim.set_step_budget(100_000_000);
        let disk = testing::disk(&sim, &volume);
        sim.block_on(async {
            let core = testing::open(&sim, &disk).await;
            let filler = if fragmented {
                fragment(&core).await
            } else {
                Vec::new()
            };
            let mut places = Vec::new();
            let mut blocks = BTreeSet::new();
            let mut discontiguous = 0;
            // With one block a cluster a group has 1024 blocks, else 2048.
            let rounds = if fragmented && cluster > block {
                5500
            } else {
                1500
            };
            for round in 0..rounds {
                let mut h = core.journal.begin(120).await.unwrap();
                let inode = round % 2 == 0;
                let place = if inode {
                    claim_inode(&core, &mut h, Some(core.geometry.root_dir))
                        .await
                        .unwrap()
                } else {
                    claim_metadata(&core, &mut h).await.unwrap()
                };
                if round % 5 == 4 {
                    continue; // rolled back
                }
                h.commit();
                assert!(blocks.insert(place.block), "{place:?} is given twice");
                discontiguous += usize::from(place.group.is_some());
                places.push((inode, place));
            }
            check_all(&core).await;
            assert_eq!(discontiguous > 0, fragmented);
            for (inode, place) in places {
                let file = if inode {
                    SystemFile::InodeAlloc
                } else {
                    SystemFile::ExtentAlloc
                };
                let Place {
                    slot,
                    bit,
                    group,
                    block,
                } = place;
                let mut h = core.journal.begin(20).await.unwrap();
                release_place(&core, &mut h, file, slot, bit, group, block)
                    .await
                    .unwrap();
                h.commit();
                // Once more is an error that says which, and changes nothing.
                let mut h = core.journal.begin(20).await.unwrap();
                let again = release_place(&core, &mut h, file, slot, bit, group, block).await;
                let Err(Error::Corrupt(corrupt)) = again else {
                    panic!("{again:?}")
                };
                assert!(
                    corrupt.to_string().contains(&format!("bit is {bit}")),
                    "{corrupt}"
                );
            }
            check_all(&core).await;
            for part in filler.chunks(200) {
                let mut h = core.journal.begin(60).await.unwrap();
                for &cluster in part {
                    bitmap::free(&core, &mut h, ClusterNr(cluster), 1)
                        .await
                        .unwrap();
                }
                h.commit();
            }
            testing::close(&core).await;
            volume.fsck(&disk);
        })
        .unwrap();
    }
}

#[test]
fn a_dead_slot_leaves_nothing_behind() {
    let volume = Volume::make(4096, 4096, 200);
    let sim = Simulation::new(4);
    let disk = testing::disk(&sim, &volume);
    sim.block_on(async {
        let core = testing::open(&sim, &disk).await;
        let free_at_first = free_clusters_total(&core).await.unwrap();
        let mut h = core.journal.begin(60).await.unwrap();
        let mut runs = Vec::new();
        for max in [1, 5, 9] {
            runs.push(claim_clusters(&core, &mut h, None, max, max).await.unwrap());
        }
        for &(start, count) in &runs {
            release_clusters(&core, &mut h, start, count).await.unwrap();
        }
        h.commit();
        core.journal.force_commit().await.unwrap();
        let log = core
            .cache
            .read(core.system_file(SystemFile::TruncateLog), Kind::Dinode);
        // All three runs are neighbours, hence one record.
        assert_eq!(truncate_log(&log.await.unwrap().data()).used().len(), 1);
        let window = core
            .cache
            .read(core.system_file(SystemFile::LocalAlloc), Kind::Dinode);
        assert!(!local_alloc(&window.await.unwrap().data()).is_empty());
        // Nothing is closed: the disk is found as a crash leaves it.
        disk.power_off();
        let after = disk.crash(runtime::sim::CrashModel::LoseAll, &mut SimRng::new(4));
        let core = testing::open(&sim, &after).await;
        for _ in 0..2 {
            recover_slot(&core, core.slot).await.unwrap();
            check_all(&core).await;
            assert_eq!(free_clusters_total(&core).await.unwrap(), free_at_first);
        }
        load_local(&core).await.unwrap();
        testing::close(&core).await;
        volume.fsck(&after);
    })
    .unwrap();
}

#[test]
fn what_waits_to_be_free_is_found_before_no_space() {
    let volume = Volume::make(4096, 4096, 40);
    let sim = Simulation::new(6);
    let disk = testing::disk(&sim, &volume);
    sim.block_on(async {
        let core = testing::open(&sim, &disk).await;
        let mut runs = Vec::new();
        loop {
            let mut h = core.journal.begin(60).await.unwrap();
            match claim_clusters(&core, &mut h, None, 1, 300).await {
                Ok(run) => runs.push(run),
                Err(error) => {
                    assert!(matches!(error, Error::NoSpace(_)), "{error}");
                    break;
                }
            }
            h.commit();
        }
        assert_eq!(free_clusters_total(&core).await.unwrap(), 0);
        let (start, count) = runs.pop().unwrap();
        let mut h = core.journal.begin(60).await.unwrap();
        release_metadata_clusters(&core, &mut h, start, count)
            .await
            .unwrap();
        h.commit();
        let mut attempts = 0;
        let again = with_space(&core, async || {
            attempts += 1;
            let mut h = core.journal.begin(60).await?;
            let run = claim_clusters(&core, &mut h, None, count, count).await?;
            h.commit();
            Ok(run)
        });
        assert_eq!(again.await.unwrap(), (start, count));
        assert_eq!(attempts, 2);
        let full = with_space(&core, async || {
            let mut h = core.journal.begin(60).await?;
            claim_clusters(&core, &mut h, None, 1, 1).await
        });
        assert!(matches!(full.await, Err(Error::NoSpace(_))));
        let mut h = core.journal.begin(60).await.unwrap();
        runs.push((start, count));
        for (start, count) in runs {
            release_clusters(&core, &mut h, start, count).await.unwrap();
        }
        h.commit();
        testing::close(&core).await;
        volume.fsck(&disk);
    })
    .unwrap();
}

#[test]
fn allocators_that_lie_are_errors() {
    let volume = Volume::make(1024, 4096, 60);
    let sim = Simulation::new(8);
    let disk = testing::disk(&sim, &volume);
    sim.block_on(async {
        let core = testing::open(&sim, &disk).await;
        let bitmap = core.system_file(SystemFile::GlobalBitmap);
        let inode = core.cache.read(bitmap, Kind::Dinode).await.unwrap();
        let groups: Vec<BlockNr> = chain_list(&inode.data())
            .used()
            .iter()
            .map(|rec| rec.first_group())
            .collect();
        // A chain that leads back to itself.
        let first = core.cache.read(groups[0], Kind::GroupDesc).await.unwrap();
        let mut h = core.journal.begin(60).await.unwrap();
        GroupDesc::of_mut(&mut h.modify(&first))
            .bg_next_group
            .set(groups[0].0);
        let want = chain::Want {
            min: 60_000,
            max: 60_000,
        };
        let allocator = bitmap::open(&core).await.unwrap();
        ondisk::chain_list_mut(&mut h.modify(&inode)).records[0]
            .c_free
            .set(70_000);
        let result = allocator.claim(&core, &mut h, None, want).await;
        assert!(matches!(result, Err(Error::Corrupt(_))));
        drop(h);
        // Pointers to nowhere, counts of nothing.
        for next in [1, 1 << 40, u64::MAX] {
            let mut h = core.journal.begin(60).await.unwrap();
            for rec in ondisk::chain_list_mut(&mut h.modify(&inode))
                .records
                .iter_mut()
            {
                rec.c_blkno.set(next);
            }
            assert!(bitmap::claim(&core, &mut h, None, 1, 1).await.is_err());
        }
        let mut h = core.journal.begin(60).await.unwrap();
        Dinode::of_mut(&mut h.modify(&inode)).set_used(u32::MAX);
        assert!(bitmap::claim(&core, &mut h, None, 1, 1).await.is_err());
        drop(h);
        // Freed: what is free already, what is a descriptor, what does not exist.
        for cluster in [core.geometry.total_clusters - 1, 0, u32::MAX - 3] {
            let mut h = core.journal.begin(60).await.unwrap();
            let result = bitmap::free(&core, &mut h, ClusterNr(cluster), 2).await;
            assert!(matches!(result, Err(Error::Corrupt(_))), "{cluster}");
        }
        check_all(&core).await;
        let desc = core.cache.read(groups[0], Kind::GroupDesc).await.unwrap();
        assert!(group_extents(&desc.data(), &core.geometry).is_none());
    })
    .unwrap();
}
