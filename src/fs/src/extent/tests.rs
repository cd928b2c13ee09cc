//! Trees against a map of clusters, against their own rules, and against the tools.

use std::collections::BTreeMap;
use std::path::Path as FilePath;

use ondisk::feature::ExtentFlags;
use ondisk::{BlockNr, ClusterNr, Dinode, Kind, RootKind, extent_list, init_extent_list};
use runtime::sim::{DiskOptions, Image, SimDisk, SimRng, Simulation};

use super::*;
use crate::alloc;
use crate::core::Core;
use crate::error::Error;
use crate::testing::{self, Volume};

const UNWRITTEN: ExtentFlags = ExtentFlags::UNWRITTEN;

/// What a tree should hold: cluster by cluster.
#[derive(Clone, Default)]
struct Model {
    clusters: BTreeMap<u32, (u64, u8)>,
}

impl Model {
    fn runs(&self, per_cluster: u64) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for (&cpos, &(block, flags)) in &self.clusters {
            let flags = ExtentFlags::from_bits_retain(flags);
            if let Some(last) = runs.last_mut()
                && last.end() == u64::from(cpos)
                && last.physical.0 + u64::from(last.clusters) * per_cluster == block
                && last.flags == flags
                && last.clusters < 65535
            {
                last.clusters += 1;
                continue;
            }
            runs.push(Run {
                cpos,
                clusters: 1,
                physical: BlockNr(block),
                flags,
            });
        }
        runs
    }

    fn is_hole(&self, cpos: u32, count: u32) -> bool {
        self.clusters.range(cpos..cpos + count).next().is_none()
    }
}

async fn all_runs(core: &Core, root: &Root, step: usize) -> Vec<Run> {
    let mut found: Vec<Run> = Vec::new();
    loop {
        let from = found.last().map_or(0, |run| run.end() as u32);
        let part = runs(core, root, from, step).await.unwrap();
        if part.is_empty() {
            return found;
        }
        found.extend(part);
    }
}

/// A root of `count` records at some offset of a block of its own.
async fn small_root(core: &Core, count: u16) -> Root {
    let mut h = core.journal.begin(16).await.unwrap();
    let place = alloc::claim_metadata(core, &mut h).await.unwrap();
    let block = h.fresh(place.block, Kind::Raw);
    let kind = RootKind::XattrValue { offset: 96 };
    init_extent_list(&mut h.modify(&block), kind, 0, count);
    h.commit();
    Root::new(block, kind)
}

async fn check(core: &Core, root: &Root, model: &Model, rng: &mut SimRng, space: u32) {
    self_check(core, root).await.unwrap();
    let per_cluster = u64::from(core.geometry.blocks_per_cluster());
    let expected = model.runs(per_cluster);
    let step = 1 + rng.below(70) as usize;
    assert_eq!(all_runs(core, root, step).await, expected);
    for _ in 0..4 {
        let cpos = rng.below(space.into()) as u32;
        let mapping = lookup(core, root, cpos).await.unwrap();
        match model.clusters.get(&cpos) {
            Some(&(block, flags)) => {
                assert_eq!(mapping.physical, Some(BlockNr(block)));
                assert_eq!(mapping.flags.bits(), flags);
                let run = expected.iter().find(|run| run.end() > cpos.into()).unwrap();
                assert_eq!(u64::from(mapping.clusters), run.end() - u64::from(cpos));
            }
            None => {
                let next = model
                    .clusters
                    .range(cpos..)
                    .next()
                    .map_or(u32::MAX, |(&next, _)| next);
                assert_eq!((mapping.physical, mapping.clusters), (None, next - cpos));
            }
        }
    }
    let from = rng.below(space.into()) as u32;
    let tail = last_runs(core, root, from, step).await.unwrap();
    let expected: Vec<Run> = expected
        .iter()
        .copied()
        .filter(|run| run.end() > from.into())
        .collect();
    assert_eq!(tail, expected[expected.len().saturating_sub(step)..]);
}

/// Random changes; every third is rolled back.
fn random_changes(seed: u64, root_records: u16, space: u32, steps: u32, fill: bool) -> usize {
    let volume = Volume::make(512, 4096, 40);
    let sim = Simulation::new(seed);
    let disk = testing::disk(&sim, &volume);
    let mut rng = SimRng::new(seed);
    sim.set_step_budget(200_000_000);
    sim.block_on(async {
        let core = testing::open(&sim, &disk).await;
        let root = small_root(&core, root_records).await;
        let mut model = Model::default();
        let mut deepest = 0;
        if fill {
            for cpos in (0..space).step_by(2) {
                let mut h = core.journal.begin(64).await.unwrap();
                let physical = core.geometry.first_block(ClusterNr(100 + cpos));
                insert(
                    &core,
                    &mut h,
                    &root,
                    cpos,
                    physical,
                    1,
                    ExtentFlags::empty(),
                )
                .await
                .unwrap();
                model.clusters.insert(cpos, (physical.0, 0));
                h.commit();
            }
        }
        for step in 0..steps {
            let kept = model.clone();
            let mut h = core.journal.begin(64).await.unwrap();
            change(&core, &mut h, &root, &mut model, &mut rng, space).await;
            if step % 3 == 2 {
                drop(h);
                model = kept;
            } else {
                h.commit();
            }
            check(&core, &root, &model, &mut rng, space).await;
            deepest = deepest.max(extent_list(&root.block.data(), root.kind).depth());
        }
        let mut h = core.journal.begin(64).await.unwrap();
        remove(&core, &mut h, &root, 0, u32::MAX).await.unwrap();
        h.commit();
        check(&core, &root, &Model::default(), &mut rng, space).await;
        assert_eq!(extent_list(&root.block.data(), root.kind).depth(), 0);
        usize::from(deepest)
    })
    .unwrap()
}

async fn change(
    core: &Core,
    h: &mut crate::journal::Handle<'_>,
    root: &Root,
    model: &mut Model,
    rng: &mut SimRng,
    space: u32,
) {
    let per_cluster = u64::from(core.geometry.blocks_per_cluster());
    let cpos = rng.below(space.into()) as u32;
    let most = if rng.below(8) == 0 { 60 } else { 4 };
    let count = 1 + rng.below(most) as u32;
    match rng.below(8) {
        0..4 => {
            let start = ClusterNr(100 + cpos + 3 * rng.below(2) as u32);
            let physical = core.geometry.first_block(start);
            let flags = if rng.below(3) == 0 {
                UNWRITTEN
            } else {
                ExtentFlags::empty()
            };
            let result = insert(core, h, root, cpos, physical, count, flags).await;
            if !model.is_hole(cpos, count) {
                assert!(matches!(result, Err(Error::Corrupt(_))));
                return;
            }
            result.unwrap();
            for i in 0..count {
                let block = physical.0 + u64::from(i) * per_cluster;
                model.clusters.insert(cpos + i, (block, flags.bits()));
            }
        }
        4..6 => {
            let removed = remove(core, h, root, cpos, count).await.unwrap();
            let mut taken = Model::default();
            for at in cpos..cpos + count {
                if let Some(cluster) = model.clusters.remove(&at) {
                    taken.clusters.insert(at, cluster);
                }
            }
            assert_eq!(removed, taken.runs(per_cluster));
        }
        _ => {
            let clear = rng.coin();
            let (set, clear) = if clear {
                (ExtentFlags::empty(), UNWRITTEN)
            } else {
                (UNWRITTEN, ExtentFlags::empty())
            };
            let result = set_flags(core, h, root, cpos, count, set, clear).await;
            if model.clusters.range(cpos..cpos + count).count() < count as usize {
                assert!(matches!(result, Err(Error::Invalid(_))));
                return;
            }
            result.unwrap();
            for (_, cluster) in model.clusters.range_mut(cpos..cpos + count) {
                cluster.1 = (cluster.1 | set.bits()) & !clear.bits();
            }
        }
    }
}

#[test]
fn random_changes_of_a_small_tree() {
    for seed in 1..=4 {
        random_changes(seed, 3, 300, 250, false);
    }
}

#[test]
fn random_changes_of_a_deep_tree() {
    for seed in 11..=12 {
        assert!(random_changes(seed, 1, 3400, 120, true) >= 3);
    }
}

/// Makes a regular file in the root directory of a volume without trailers and indexes.
async fn make_file(core: &Core, name: &str) -> Root {
    let mut h = core.journal.begin(32).await.unwrap();
    let root = testing::make_file(core, &mut h, name).await;
    h.commit();
    Root::dinode(&root)
}

#[test]
fn a_file_of_many_pieces_pleases_fsck() {
    for (block, cluster, pieces) in [
        (512, 4096, 16_000u32),
        (1024, 4096, 4000),
        (4096, 8192, 2000),
    ] {
        let features = "--fs-features=sparse,unwritten,noinline-data,extended-slotmap,noxattr,\
                        noindexed-dirs,norefcount,discontig-bg,nometaecc";
        let volume = Volume::with(block, cluster, 128, features);
        let sim = Simulation::new(block as u64);
        sim.set_step_budget(200_000_000);
        let disk = testing::disk(&sim, &volume);
        sim.block_on(async {
            let core = testing::open(&sim, &disk).await;
            let free_before = alloc::free_clusters_total(&core).await.unwrap();
            let root = make_file(&core, "pieces").await;
            let mut at = 0;
            while at < pieces {
                let mut h = core.journal.begin(100).await.unwrap();
                for _ in 0..50 {
                    let (start, count) = alloc::claim_clusters(&core, &mut h, None, 1, 1)
                        .await
                        .unwrap();
                    let physical = core.geometry.first_block(start);
                    // From both ends to the middle: appends and insertions.
                    let cpos = if at % 40 == 0 {
                        2 * (pieces - at / 40)
                    } else {
                        2 * (at - at / 40)
                    };
                    insert(&core, &mut h, &root, cpos, physical, count, UNWRITTEN)
                        .await
                        .unwrap();
                    at += 1;
                }
                set_size(
                    &mut h,
                    &root,
                    u64::from(2 * pieces + 1) << core.geometry.cluster_size_bits,
                );
                h.commit();
            }
            self_check(&core, &root).await.unwrap();
            assert_eq!(root.clusters(), pieces);
            if block == 512 {
                assert_eq!(extent_list(&root.block.data(), RootKind::Dinode).depth(), 3);
            }
            testing::close(&core).await;
            volume.fsck(&disk);

            let core = testing::open(&sim, &disk).await;
            let block = core
                .cache
                .read(root.block.nr(), Kind::Dinode)
                .await
                .unwrap();
            let root = Root::dinode(&block);
            let mut rng = SimRng::new(7);
            for _ in 0..60 {
                if alloc::truncate_log_needs_flush(&core).await.unwrap() {
                    alloc::flush_truncate_log(&core).await.unwrap();
                }
                let mut h = core
                    .journal
                    .begin(core.journal.max_handle().min(400))
                    .await
                    .unwrap();
                let from = rng.below(u64::from(2 * pieces)) as u32;
                for run in remove(&core, &mut h, &root, from, 30).await.unwrap() {
                    let start = core.geometry.cluster_of(run.physical).unwrap();
                    alloc::release_clusters(&core, &mut h, start, run.clusters)
                        .await
                        .unwrap();
                }
                h.commit();
            }
            self_check(&core, &root).await.unwrap();
            testing::close(&core).await;
            volume.fsck(&disk);

            let core = testing::open(&sim, &disk).await;
            let block = core
                .cache
                .read(root.block.nr(), Kind::Dinode)
                .await
                .unwrap();
            let root = Root::dinode(&block);
            loop {
                let tail = last_runs(&core, &root, 0, 200).await.unwrap();
                let (Some(first), Some(last)) = (tail.first(), tail.last()) else {
                    break;
                };
                let mut h = core
                    .journal
                    .begin(core.journal.max_handle().min(400))
                    .await
                    .unwrap();
                let count = (last.end() - u64::from(first.cpos)) as u32;
                for run in remove(&core, &mut h, &root, first.cpos, count)
                    .await
                    .unwrap()
                {
                    let start = core.geometry.cluster_of(run.physical).unwrap();
                    alloc::release_clusters(&core, &mut h, start, run.clusters)
                        .await
                        .unwrap();
                }
                h.commit();
                alloc::flush_truncate_log(&core).await.unwrap();
            }
            let mut h = core.journal.begin(4).await.unwrap();
            set_size(&mut h, &root, 0);
            h.commit();
            assert_eq!((root.clusters(), root.last_leaf()), (0, BlockNr::NONE));
            testing::close(&core).await;
            volume.fsck(&disk);
            let free = alloc::free_clusters_total(&core).await.unwrap();
            let groups = free_before - free;
            assert!(
                groups % 8 == 0 || groups < 4096,
                "only allocators' groups stay: {groups}"
            );
        })
        .unwrap();
    }
}

fn set_size(h: &mut crate::journal::Handle<'_>, root: &Root, size: u64) {
    Dinode::of_mut(&mut h.modify(&root.block)).i_size.set(size);
}

#[test]
fn a_tree_with_a_loop_or_wild_pointers_is_an_error() {
    let volume = Volume::make(512, 4096, 40);
    let sim = Simulation::new(5);
    let disk = testing::disk(&sim, &volume);
    sim.set_step_budget(50_000_000);
    sim.block_on(async {
        let core = testing::open(&sim, &disk).await;
        let root = small_root(&core, 1).await;
        for cpos in 0..900 {
            let mut h = core.journal.begin(64).await.unwrap();
            let physical = core.geometry.first_block(ClusterNr(100 + cpos));
            insert(
                &core,
                &mut h,
                &root,
                2 * cpos,
                physical,
                1,
                ExtentFlags::empty(),
            )
            .await
            .unwrap();
            h.commit();
        }
        let path = path::Path::find(&core, &root, 700).await.unwrap();
        assert_eq!(path.depth(), 3);
        let victims: Vec<_> = path
            .steps
            .iter()
            .map(|step| (step.block.clone(), step.kind))
            .collect();
        let own: Vec<u64> = victims.iter().map(|(block, _)| block.nr().0).collect();
        let mut wild = own.clone();
        wild.extend([0, 1, 1 << 40, u64::MAX, 1234]);
        for (level, (block, kind)) in victims.iter().enumerate() {
            let is_leaf = extent_list(&block.data(), *kind).is_leaf();
            for &pointer in &wild {
                if own.get(level + 1) == Some(&pointer) {
                    continue; // where the walk goes anyway
                }
                let mut h = core.journal.begin(8).await.unwrap();
                {
                    let mut data = h.modify(block);
                    let mut list = ondisk::extent_list_mut(&mut data, *kind);
                    for rec in list.used_mut() {
                        rec.e_blkno.set(pointer);
                    }
                }
                let looked = lookup(&core, &root, 700).await;
                let listed = runs(&core, &root, 0, 10_000).await;
                assert!(
                    is_leaf || (looked.is_err() && listed.is_err()),
                    "{block:?} {pointer}"
                );
                if !is_leaf {
                    assert!(remove(&core, &mut h, &root, 700, 1).await.is_err());
                }
            }
        }
        self_check(&core, &root).await.unwrap();
    })
    .unwrap();
}

/// Every file's extents of a volume that the Linux driver made, as debugfs.ocfs2 prints them.
/// `OCELOT_KERNEL_IMAGE` names the volume.
#[test]
#[ignore = "needs OCELOT_KERNEL_IMAGE, a volume that the kernel made"]
fn extents_of_a_kernel_volume_are_those_debugfs_prints() {
    let image = std::env::var("OCELOT_KERNEL_IMAGE").unwrap();
    let image = FilePath::new(&image);
    let sim = Simulation::new(1);
    let disk = SimDisk::with(
        Image::load(image).unwrap(),
        DiskOptions::default(),
        Some(&sim.world()),
    );
    sim.set_step_budget(200_000_000);
    sim.block_on(async {
        let core = testing::open(&sim, &disk).await;
        let mut pending = vec![core.geometry.root_dir, core.geometry.system_dir];
        let (mut files, mut deep) = (0, 0);
        while let Some(dir) = pending.pop() {
            for (name, ino, file_type) in testing::entries(&core, dir).await {
                if name == b"." || name == b".." {
                    continue;
                }
                if file_type == 2 {
                    pending.push(ino);
                }
                let Ok(block) = core.cache.read(ino, Kind::Dinode).await else {
                    continue;
                };
                if Dinode::of(&block.data()).body() != ondisk::Body::Extents {
                    continue;
                }
                let root = Root::dinode(&block);
                let found = all_runs(&core, &root, 100).await;
                self_check(&core, &root).await.unwrap();
                let text = testing::debugfs(image, &format!("stat <{}>", ino.0));
                assert_eq!(
                    found,
                    printed(&text),
                    "{}\n{text}",
                    String::from_utf8_lossy(&name)
                );
                for run in &found {
                    let mapping = lookup(&core, &root, run.cpos + run.clusters / 2)
                        .await
                        .unwrap();
                    assert_eq!(mapping.flags, run.flags);
                    assert_eq!(u64::from(mapping.cpos + mapping.clusters), run.end());
                }
                files += 1;
                deep += usize::from(extent_list(&root.block.data(), root.kind).depth() > 0);
            }
        }
        assert!(
            files > 100 && deep > 0,
            "{files} files, {deep} of them with extent blocks"
        );
    })
    .unwrap();
}

/// Leaf records of debugfs' `stat`: number, offset, clusters, block, flags.
fn printed(text: &str) -> Vec<Run> {
    let leaf = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, cpos, clusters, block, flags, ..] = words[..] else {
            return None;
        };
        let bits = u8::from_str_radix(flags.strip_prefix("0x")?, 16).ok()?;
        Some(Run {
            cpos: cpos.parse().ok()?,
            clusters: clusters.parse().ok()?,
            physical: BlockNr(block.parse().ok()?),
            flags: ExtentFlags::from_bits_retain(bits),
        })
    };
    text.lines()
        .filter_map(leaf)
        .filter(|run| run.clusters > 0)
        .collect()
}

/// Trees keyed by hashes: found by the last key not behind, merged where clusters and keys continue
/// each other, no two records taken for one.
#[test]
fn trees_keyed_by_hashes() {
    for (seed, kind) in [RootKind::DxRoot, RootKind::XattrTree, RootKind::Refcount]
        .into_iter()
        .enumerate()
    {
        let volume = Volume::make(512, 4096, 40);
        let sim = Simulation::new(seed as u64);
        sim.set_step_budget(100_000_000);
        let disk = testing::disk(&sim, &volume);
        let mut rng = SimRng::new(seed as u64);
        sim.block_on(async {
            let core = testing::open(&sim, &disk).await;
            let mut h = core.journal.begin(16).await.unwrap();
            let place = alloc::claim_metadata(&core, &mut h).await.unwrap();
            let block = h.fresh(place.block, Kind::Raw);
            init_extent_list(&mut h.modify(&block), kind, 0, 3);
            h.commit();
            let root = Root::new(block, kind);
            let mut model: BTreeMap<u32, u64> = BTreeMap::new();
            for step in 0..700u32 {
                let mut h = core.journal.begin(64).await.unwrap();
                let key = rng.below(1 << 32) as u32 & !1;
                if step % 4 < 3 {
                    let physical = core.geometry.first_block(ClusterNr(100 + step));
                    insert(&core, &mut h, &root, key, physical, 1, ExtentFlags::empty())
                        .await
                        .unwrap();
                    model.insert(key, physical.0);
                    let again =
                        insert(&core, &mut h, &root, key, physical, 1, ExtentFlags::empty());
                    assert!(matches!(again.await, Err(Error::Corrupt(_))));
                } else if let Some((&key, &physical)) = model.range(key..).next() {
                    let removed = remove(&core, &mut h, &root, key, 1).await.unwrap();
                    assert_eq!(removed.len(), 1);
                    assert_eq!((removed[0].cpos, removed[0].physical.0), (key, physical));
                    model.remove(&key);
                }
                h.commit();
                self_check(&core, &root).await.unwrap();
                let found = floor(&core, &root, key).await.unwrap();
                let expected = model.range(..=key).next_back();
                assert_eq!(
                    found.map(|run| (run.cpos, run.physical.0)),
                    expected.map(|(&k, &v)| (k, v))
                );
            }
            let listed = all_runs(&core, &root, 50).await;
            assert_eq!(listed.len(), model.len());
            // One more cluster for a record, as xattr buckets grow: but only to 64 KiB, and never in
            // a refcount tree.
            let (key, at) = (listed[0].cpos, listed[0].physical.0);
            for more in 1..20u32 {
                let mut h = core.journal.begin(64).await.unwrap();
                let physical =
                    BlockNr(at + u64::from(more) * u64::from(core.geometry.blocks_per_cluster()));
                insert(
                    &core,
                    &mut h,
                    &root,
                    key + more,
                    physical,
                    1,
                    ExtentFlags::empty(),
                )
                .await
                .unwrap();
                h.commit();
            }
            let merged = floor(&core, &root, key).await.unwrap().unwrap().clusters;
            let expected = match kind {
                RootKind::Refcount => 1,
                RootKind::XattrTree => 16,
                _ => 20,
            };
            assert_eq!(merged, expected);
            self_check(&core, &root).await.unwrap();
        })
        .unwrap();
    }
}

/// The power fails at some write while a file grows, loses pieces and changes flags. What is found
/// afterwards, once the log is replayed and the slot recovered, is a volume without faults.
#[test]
fn power_loss_at_any_time_leaves_whole_trees_and_bitmaps() {
    let features = "--fs-features=sparse,unwritten,noinline-data,extended-slotmap,noxattr,\
                    noindexed-dirs,norefcount,discontig-bg,nometaecc";
    let volume = Volume::with(512, 4096, 40, features);
    let mut found = 0;
    for seed in 1..=10 {
        let sim = Simulation::new(seed);
        let disk = testing::disk(&sim, &volume);
        let mut rng = SimRng::new(seed);
        let file = sim
            .block_on(async {
                let core = testing::open(&sim, &disk).await;
                let root = make_file(&core, "file").await;
                set_size_to(&core, &root, 1000).await;
                core.journal.force_commit().await.unwrap();
                disk.crash_after(rng.below(1500));
                // Ends with the first error that the dead disk causes.
                let _ = keep_changing(&core, &root, &mut rng).await;
                root.block.nr()
            })
            .unwrap();
        let after = disk.crash(runtime::sim::CrashModel::Any, &mut rng);
        let sim = Simulation::new(seed);
        let after = SimDisk::with(after.image(), DiskOptions::default(), Some(&sim.world()));
        sim.block_on(async {
            let core = testing::open(&sim, &after).await;
            alloc::recover_slot(&core, core.slot).await.unwrap();
            let block = core.cache.read(file, Kind::Dinode).await.unwrap();
            let root = Root::dinode(&block);
            self_check(&core, &root).await.unwrap();
            found += root.clusters();
            testing::close(&core).await;
            let checked = Volume::with(512, 4096, 40, features);
            checked.fsck(&after);
        })
        .unwrap();
    }
    assert!(found > 100, "the power failed before anything was written");
}

async fn set_size_to(core: &Core, root: &Root, clusters: u64) {
    let mut h = core.journal.begin(4).await.unwrap();
    set_size(&mut h, root, clusters << core.geometry.cluster_size_bits);
    h.commit();
}

async fn keep_changing(core: &Core, root: &Root, rng: &mut SimRng) -> crate::Result<()> {
    loop {
        let mut h = core.journal.begin(100).await?;
        let cpos = rng.below(900) as u32;
        let mapping = lookup(core, root, cpos).await?;
        let count = mapping
            .clusters
            .min(1 + rng.below(4) as u32)
            .min(1000 - cpos);
        if mapping.physical.is_none() {
            let (start, count) = alloc::claim_clusters(core, &mut h, None, 1, count).await?;
            let physical = core.geometry.first_block(start);
            insert(core, &mut h, root, cpos, physical, count, UNWRITTEN).await?;
        } else if rng.coin() {
            set_flags(
                core,
                &mut h,
                root,
                cpos,
                count,
                ExtentFlags::empty(),
                UNWRITTEN,
            )
            .await?;
        } else {
            for run in remove(core, &mut h, root, cpos, count).await? {
                let start = core.geometry.cluster_of(run.physical).unwrap();
                alloc::release_clusters(core, &mut h, start, run.clusters).await?;
            }
        }
        h.commit();
        match rng.below(12) {
            0 => core.journal.force_commit().await?,
            1 => alloc::flush_truncate_log(core).await?,
            2 if rng.coin() => alloc::shutdown_local(core).await?,
            3 if rng.coin() => core.journal.checkpoint().await?,
            _ => {}
        }
    }
}
