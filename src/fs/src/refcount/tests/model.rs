//! Files that share clusters, against a map of what is in each of their clusters. On volumes with small blocks, so
//! that the records outgrow their root; judged by fsck.ocfs2.

use std::collections::BTreeMap;
use std::rc::Rc;

use ondisk::feature::ExtentFlags;
use ondisk::{Dinode, RefcountBlock};
use runtime::BlockDeviceExt;
use runtime::sim::{SimRng, Simulation};

use crate::alloc;
use crate::core::Core;
use crate::extent::{self, Root};
use crate::inode::{Inode, InodeRef};
use crate::refcount::{cow, decrease, detach, reflink};
use crate::testing::{self, Volume};

/// A file: its inode, and the byte that each of its clusters is full of.
struct File {
    inode: InodeRef,
    clusters: BTreeMap<u32, u8>,
}

struct Bench<'a> {
    core: &'a Core,
    rng: SimRng,
    files: Vec<File>,
    made: u32,
}

/// Clusters of a file, at most.
const LEN: u64 = 400;

impl Bench<'_> {
    async fn make(&mut self) -> InodeRef {
        let mut h = self.core.journal.begin(64).await.unwrap();
        self.made += 1;
        let block = testing::make_file(self.core, &mut h, &format!("file{}", self.made)).await;
        h.commit();
        let inode = self.core.inodes.get(self.core, block.nr()).await.unwrap();
        assert!(Rc::ptr_eq(inode.block(), &block));
        inode
    }

    async fn write(&self, inode: &Inode, cpos: u32, byte: u8) {
        let mapping = extent::lookup(self.core, &Root::dinode(inode.block()), cpos)
            .await
            .unwrap();
        assert!(
            !mapping.flags.contains(ExtentFlags::REFCOUNTED),
            "a shared cluster is written"
        );
        let mut buffer = self.core.device.allocate(self.core.geometry.cluster_size());
        buffer.fill(byte);
        let offset = mapping.physical.unwrap().0 << self.core.geometry.block_size_bits;
        self.core.device.write(offset, buffer).await.1.unwrap();
    }

    async fn set_size(&self, file: &File) {
        let end = file
            .clusters
            .keys()
            .last()
            .map_or(0, |&last| u64::from(last) + 1);
        let mut h = self.core.journal.begin(2).await.unwrap();
        let size = end * self.core.geometry.cluster_size() as u64;
        Dinode::of_mut(&mut h.modify(file.inode.block()))
            .i_size
            .set(size);
        h.commit();
    }

    /// Writes a range of a file: what is shared is copied first, holes get clusters, one by one to fragment.
    async fn fill(&mut self, index: usize, from: u32, len: u32, byte: u8) {
        let inode = self.files[index].inode.clone();
        cow(self.core, &inode, from, len).await.unwrap();
        let root = Root::dinode(inode.block());
        for cpos in from..from + len {
            if extent::lookup(self.core, &root, cpos)
                .await
                .unwrap()
                .physical
                .is_none()
            {
                let mut h = self.core.journal.begin(64).await.unwrap();
                let (start, _) = alloc::claim_clusters(self.core, &mut h, None, 1, 1)
                    .await
                    .unwrap();
                let first = self.core.geometry.first_block(start);
                extent::insert(
                    self.core,
                    &mut h,
                    &root,
                    cpos,
                    first,
                    1,
                    ExtentFlags::empty(),
                )
                .await
                .unwrap();
                h.commit();
            }
            self.write(&inode, cpos, byte).await;
            self.files[index].clusters.insert(cpos, byte);
        }
        self.set_size(&self.files[index]).await;
    }

    /// Takes a range out of a file.
    async fn punch(&mut self, index: usize, from: u32, len: u32) {
        let core = self.core;
        let inode = self.files[index].inode.clone();
        let root = Root::dinode(inode.block());
        let mut at = from;
        while at < from + len {
            let mapping = extent::lookup(core, &root, at).await.unwrap();
            let piece = mapping.clusters.min(from + len - at);
            if mapping.physical.is_some() {
                let mut h = core.journal.begin(200).await.unwrap();
                for run in extent::remove(core, &mut h, &root, at, piece)
                    .await
                    .unwrap()
                {
                    let start = core.geometry.cluster_of(run.physical).unwrap();
                    if run.flags.contains(ExtentFlags::REFCOUNTED) {
                        decrease(core, &mut h, &inode, start, run.clusters)
                            .await
                            .unwrap();
                    } else {
                        alloc::release_clusters(core, &mut h, start, run.clusters)
                            .await
                            .unwrap();
                    }
                }
                h.commit();
            }
            at += piece;
        }
        self.files[index]
            .clusters
            .retain(|&cpos, _| cpos < from || cpos >= from + len);
        self.set_size(&self.files[index]).await;
    }

    async fn clone(&mut self, index: usize) {
        let inode = self.make().await;
        reflink(self.core, &self.files[index].inode, &inode)
            .await
            .unwrap();
        let clusters = self.files[index].clusters.clone();
        self.files.push(File { inode, clusters });
    }

    async fn delete(&mut self, index: usize) {
        self.punch(index, 0, LEN as u32 + 100).await;
        let file = self.files.swap_remove(index);
        let mut h = self.core.journal.begin(64).await.unwrap();
        detach(self.core, &mut h, &file.inode).await.unwrap();
        h.commit();
    }

    async fn compare(&self) {
        let core = self.core;
        let mut buffer = core.device.allocate(core.geometry.cluster_size());
        for file in &self.files {
            let root = Root::dinode(file.inode.block());
            let runs = extent::runs(core, &root, 0, usize::MAX).await.unwrap();
            let mut found = BTreeMap::new();
            for run in runs {
                for at in 0..run.clusters {
                    let block = run.physical.0 + u64::from(at * core.geometry.blocks_per_cluster());
                    let result;
                    (buffer, result) = core
                        .device
                        .read(block << core.geometry.block_size_bits, buffer)
                        .await;
                    result.unwrap();
                    assert!(
                        buffer.iter().all(|&byte| byte == buffer[0]),
                        "a cluster is torn"
                    );
                    found.insert(run.cpos + at, buffer[0]);
                }
            }
            assert_eq!(found, file.clusters);
        }
    }

    async fn step(&mut self, step: u32) {
        let index = self.rng.below(self.files.len() as u64) as usize;
        let from = self.rng.below(LEN) as u32;
        let longest = if self.rng.coin() { 4 } else { 60 };
        let len = 1 + self.rng.below(longest) as u32;
        match self.rng.below(20) {
            0 | 1 if self.files.len() < 6 => self.clone(index).await,
            2 if self.files.len() > 2 => self.delete(index).await,
            3..=6 => self.punch(index, from, len).await,
            _ => self.fill(index, from, len, step as u8).await,
        }
    }
}

fn run(seed: u64, block: usize, cluster: usize) {
    let features = "--fs-features=sparse,unwritten,extended-slotmap,xattr,refcount,discontig-bg,noindexed-dirs,\
                    noinline-data,nometaecc";
    let volume = Volume::with(block, cluster, 200, features);
    let simulation = Simulation::new(seed);
    let disk = testing::disk(&simulation, &volume);
    let trees = simulation
        .block_on(async {
            let core = testing::open(&simulation, &disk).await;
            let mut bench = Bench {
                core: &core,
                rng: SimRng::new(seed),
                files: Vec::new(),
                made: 0,
            };
            let inode = bench.make().await;
            bench.files.push(File {
                inode,
                clusters: BTreeMap::new(),
            });
            bench.fill(0, 0, 100, 1).await;
            let mut trees = 0;
            for step in 0..300 {
                bench.step(step).await;
                if step % 50 == 49 {
                    bench.compare().await;
                    for file in &bench.files {
                        if let Ok(root) = crate::refcount::root(&core, &file.inode).await {
                            trees += u32::from(RefcountBlock::of(&root.data()).is_tree());
                        }
                    }
                }
            }
            testing::close(&core).await;
            trees
        })
        .unwrap();
    assert!(
        block > 1024 || trees > 0,
        "no list of records became a tree"
    );
    volume.fsck(&disk);
    // Everything goes: the trees must go with the last of their files.
    simulation
        .block_on(async {
            let core = testing::open(&simulation, &disk).await;
            let mut bench = Bench {
                core: &core,
                rng: SimRng::new(seed),
                files: Vec::new(),
                made: 0,
            };
            for (name, nr, _) in testing::entries(&core, core.geometry.root_dir).await {
                if name.starts_with(b"file") {
                    let inode = core.inodes.get(&core, nr).await.unwrap();
                    bench.files.push(File {
                        inode,
                        clusters: BTreeMap::new(),
                    });
                }
            }
            while !bench.files.is_empty() {
                bench.delete(0).await;
            }
            testing::close(&core).await;
        })
        .unwrap();
    volume.fsck(&disk);
}

#[test]
fn blocks_of_512() {
    run(1, 512, 4096);
}

#[test]
fn blocks_of_1024() {
    run(2, 1024, 8192);
}

#[test]
fn blocks_of_4096() {
    run(3, 4096, 4096);
}
