//! Bytes of attributes changed at random, on a volume without checksums: every operation ends, with or without an
//! error. What it says does not matter; that it does not panic, and does not run forever, does.

use ondisk::BlockNr;
use runtime::sim::{DiskOptions, SimDisk, SimRng, Simulation};

use super::super::{XattrMode, areas, destroy, external, get, is_indexed, list, remove, set, tree};
use crate::core::Core;
use crate::inode::Inode;
use crate::testing::{self, Volume};

/// Every block that holds attributes, with its length in bytes.
async fn blocks(core: &Core, inode: &Inode) -> Vec<(BlockNr, usize)> {
    let mut blocks = vec![(inode.nr(), core.block_size())];
    for place in areas(core, inode).await.unwrap() {
        blocks.push((place.block.nr(), place.block.data().len()));
    }
    if let Some(block) = external(core, inode).await.unwrap() {
        blocks.push((block.nr(), core.block_size()));
        if is_indexed(&block) {
            let tree = tree::read(core, &block, ondisk::RootKind::XattrTree)
                .await
                .unwrap();
            blocks.extend(tree.nodes.iter().map(|node| (node.nr(), core.block_size())));
        }
    }
    blocks
}

async fn use_all(core: &Core, inode: &Inode, rng: &mut SimRng) {
    let names = list(core, inode).await.unwrap_or_default();
    for (name, _) in names.iter().take(40) {
        let _ = get(core, inode, name).await;
    }
    for _ in 0..8 {
        let name = format!("user.{}", rng.below(400)).into_bytes();
        let _ = get(core, inode, &name).await;
        let value = vec![1; rng.below(300) as usize];
        let _ = set(core, inode, &name, &value, XattrMode::Any).await;
        let name = format!("user.{}", rng.below(400)).into_bytes();
        let _ = remove(core, inode, &name).await;
    }
    let _ = destroy(core, inode).await;
}

fn run(seed: u64, block: usize, cluster: usize, count: u64, trials: u32) {
    let features = "--fs-features=sparse,extended-slotmap,xattr,refcount,discontig-bg,noindexed-dirs,nometaecc";
    let volume = Volume::with(block, cluster, 48, features);
    let simulation = Simulation::new(seed);
    let disk = testing::disk(&simulation, &volume);
    let mut rng = SimRng::new(seed);
    let (root, blocks) = simulation
        .block_on(async {
            let core = testing::open(&simulation, &disk).await;
            let inode = core
                .inodes
                .get(&core, core.geometry.root_dir)
                .await
                .unwrap();
            for number in 0..count {
                let name = format!("user.{number}").into_bytes();
                let value = vec![number as u8; if number % 9 == 0 { 5000 } else { 60 }];
                set(&core, &inode, &name, &value, XattrMode::Create)
                    .await
                    .unwrap();
            }
            let blocks = blocks(&core, &inode).await;
            testing::close(&core).await;
            (inode.nr(), blocks)
        })
        .unwrap();
    let image = disk.image();
    let mut refused = 0;
    for trial in 0..trials {
        let simulation = Simulation::new(u64::from(trial));
        let mut image = image.clone();
        for _ in 0..1 + rng.below(4) {
            let (nr, len) = blocks[rng.below(blocks.len() as u64) as usize];
            let at = nr.0 * block as u64 + rng.below(len as u64);
            let byte = [0, 1, 0x7f, 0x80, 0xff, rng.below(256) as u8][rng.below(6) as usize];
            image.write(at, &[byte]);
        }
        let disk = SimDisk::with(image, DiskOptions::default(), Some(&simulation.world()));
        simulation
            .block_on(async {
                let core = testing::open(&simulation, &disk).await;
                match core.inodes.get(&core, root).await {
                    Ok(inode) => {
                        refused += u32::from(list(&core, &inode).await.is_err());
                        use_all(&core, &inode, &mut rng).await;
                    }
                    Err(_) => refused += 1,
                }
            })
            .unwrap_or_else(|error| panic!("trial {trial}: {error}"));
    }
    assert!(refused > 0, "no damage was noticed in {trials} trials");
}

#[test]
fn damaged_inline_areas_and_blocks() {
    run(1, 1024, 4096, 12, 300);
}

#[test]
fn damaged_buckets() {
    run(2, 512, 4096, 400, 300);
}

#[test]
fn damaged_buckets_of_one_block() {
    run(3, 4096, 4096, 400, 200);
}
