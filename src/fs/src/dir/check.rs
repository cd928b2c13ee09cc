//! Whether a directory agrees with itself, for tests: records, trailers, the list of blocks with holes,
//! and that the index and the entries say the same.

use std::collections::{BTreeMap, BTreeSet};

use ondisk::hash::{Bytes, DirHash, dir_hash};
use ondisk::{BlockNr, Dinode, Kind, RootKind};

use super::area::Area;
use super::blocks::{self, Blocks};
use super::{Form, free_list, index};
use crate::cache::BlockRef;
use crate::core::Core;
use crate::error::Result;
use crate::extent::{self, Root};
use crate::inode::Inode;

/// All names with their inodes, after everything was compared.
///
/// # Panics
/// With what disagrees. An error is what a reader of the directory would get.
pub(crate) async fn self_check(
    core: &Core,
    dir: &Inode,
) -> Result<BTreeMap<Vec<u8>, (BlockNr, u8)>> {
    let block = dir.block();
    let mut all = Blocks::of(core, block)?;
    let mut names = BTreeMap::new();
    let mut areas = BTreeMap::new();
    let mut of_block = Vec::new();
    for nr in 0..all.count() {
        let area = all.area(core, nr).await?;
        let mut entries = Vec::new();
        assert!(area.list(0, 0, usize::MAX, &mut entries)?);
        if nr == 0 {
            area.check_dots(block.nr())?;
        }
        for entry in entries {
            assert!(ondisk::is_legal_name(&entry.name), "{:?}", entry.name);
            of_block.push((entry.name.clone(), area.block().nr()));
            let before = names.insert(entry.name.clone(), (entry.ino, entry.file_type));
            assert!(
                before.is_none(),
                "{} is there twice",
                entry.name.escape_ascii()
            );
        }
        areas.insert(area.block().nr(), area);
    }
    if Form::of(block) != Form::Inline {
        extent::self_check(core, &Root::dinode(block)).await?;
        assert!(blocks::has_trailer(core, block) || Form::of(block) == Form::Linear);
    }
    if Form::of(block) == Form::Indexed {
        let root = index::root(core, block).await?;
        check_list(core, block, &root, &areas).await?;
        check_index(core, &root, of_block).await?;
    } else {
        assert_eq!(Dinode::of(&block.data()).i_dx_root.get(), 0);
    }
    Ok(names)
}

/// Each block with a hole is on the list once, the others are not.
async fn check_list(
    core: &Core,
    dir: &BlockRef,
    root: &BlockRef,
    areas: &BTreeMap<BlockNr, Area>,
) -> Result<()> {
    let mut listed = BTreeSet::new();
    let mut next = free_list::head(root);
    while next.is_some() {
        assert!(
            areas.contains_key(&next),
            "block {next} on the list is not the directory's"
        );
        assert!(listed.insert(next), "block {next} is on the list twice");
        let trailer = blocks::at(core, dir, next).await?.trailer();
        next = BlockNr(trailer.db_free_next.get());
    }
    for (nr, area) in areas {
        let said = usize::from(area.trailer().db_free_rec_len.get());
        let hole = area.largest_hole()?;
        assert_eq!(
            said > 0,
            hole > 0,
            "block {nr} says a hole of {said}, has {hole}"
        );
        assert!(
            said <= hole && hole <= said + 64,
            "block {nr} says {said}, has {hole}"
        );
        assert_eq!(
            said > 0,
            listed.contains(nr),
            "block {nr} with a hole of {said}: listed?"
        );
    }
    Ok(())
}

/// Every name has its index entry, and there is no other.
async fn check_index(core: &Core, root: &BlockRef, names: Vec<(Vec<u8>, BlockNr)>) -> Result<()> {
    assert_eq!(index::entry_count(root) as usize, names.len());
    let mut found = BTreeMap::<(DirHash, BlockNr), usize>::new();
    for (hash, nr) in all_entries(core, root).await? {
        *found.entry((hash, nr)).or_default() += 1;
    }
    for (name, nr) in names {
        let hash = |bytes| dir_hash(&core.geometry.dx_seed, &name, bytes);
        let keys = [Bytes::WRITTEN, Bytes::OTHER].map(|bytes| (hash(bytes), nr));
        let key = keys.into_iter().find(|key| found.contains_key(key));
        let key = key.unwrap_or_else(|| panic!("{} is not indexed", name.escape_ascii()));
        let left = found.get_mut(&key).expect("it was found");
        *left -= 1;
        if *left == 0 {
            found.remove(&key);
        }
    }
    assert!(found.is_empty(), "index entries without a name: {found:?}");
    Ok(())
}

async fn all_entries(core: &Core, root: &BlockRef) -> Result<Vec<(DirHash, BlockNr)>> {
    let of = |block: &BlockRef| -> Vec<_> {
        let data = block.data();
        let used = index::entries(block.kind(), &data).used().iter();
        used.map(|entry| (entry.hash(), entry.dirent_block()))
            .collect()
    };
    if index::is_inline(root) {
        return Ok(of(root));
    }
    let tree = Root::new(root.clone(), RootKind::DxRoot);
    extent::self_check(core, &tree).await?;
    let runs = extent::runs(core, &tree, 0, usize::MAX).await?;
    assert_eq!(runs.first().map(|run| run.cpos), Some(0));
    let mut all = Vec::new();
    let per_cluster = u64::from(core.geometry.blocks_per_cluster());
    for (at, run) in runs.iter().enumerate() {
        let end = runs
            .get(at + 1)
            .map_or(1 << 32, |next| u64::from(next.cpos));
        for cluster in 0..run.clusters {
            let lowest = u64::from(run.cpos) + u64::from(cluster);
            let highest = if cluster + 1 == run.clusters {
                end
            } else {
                lowest + 1
            };
            for leaf in 0..per_cluster {
                let nr = run.physical.0 + u64::from(cluster) * per_cluster + leaf;
                let block = core.cache.read(BlockNr(nr), Kind::DxLeaf).await?;
                for (hash, nr) in of(&block) {
                    assert!((lowest..highest).contains(&u64::from(hash.major)));
                    assert_eq!(u64::from(index::leaf_in_cluster(core, hash.minor)), leaf);
                    all.push((hash, nr));
                }
            }
        }
    }
    Ok(all)
}
