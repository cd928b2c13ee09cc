//! The index of a directory: from a name's hash to the block that has its entry.
//!
//! The index root holds the entries themselves while they are few. After that its extent tree, whose
//! keys are major hashes, leads to clusters of leaves: a record's clusters are for the hashes `cpos`,
//! `cpos + 1`, …, and its last one for all hashes up to the next record. In the cluster the minor hash
//! chooses the leaf. An index entry says only the block, where the name is then searched.

use ondisk::hash::{Bytes, DirHash, dir_hash};
use ondisk::{
    BlockNr, Dinode, DxEntriesMut, DxEntriesRef, DxEntry, DxLeaf, DxRoot, Kind, RootKind, Structure,
};

use super::area::{Area, Found, New, Slot, no_such_hole};
use super::{blocks, corrupt, free_list, grow, split};
use crate::cache::BlockRef;
use crate::core::Core;
use crate::error::{Error, Result};
use crate::extent::{self, Root};
use crate::journal::Handle;

/// The index root of a directory.
pub(super) async fn root(core: &Core, dir: &BlockRef) -> Result<BlockRef> {
    let nr = BlockNr(Dinode::of(&dir.data()).i_dx_root.get());
    blocks::check_place(core, dir, nr)?;
    let root = core.cache.read(nr, Kind::DxRoot).await?;
    let owner = DxRoot::of(&root.data()).dr_dir_blkno.get();
    if owner != dir.nr().0 {
        let rule = "the index is another directory's";
        return Err(corrupt(Structure::DxRoot, nr, "dr_dir_blkno", owner, rule));
    }
    Ok(root)
}

pub(super) fn is_inline(root: &BlockRef) -> bool {
    DxRoot::of(&root.data()).is_inline()
}

/// Names in the directory, `.` and `..` included.
pub(super) fn entry_count(root: &BlockRef) -> u32 {
    DxRoot::of(&root.data()).dr_num_entries.get()
}

/// The hash under which a name is added.
pub(super) fn hash_of(core: &Core, name: &[u8]) -> DirHash {
    dir_hash(&core.geometry.dx_seed, name, Bytes::WRITTEN)
}

/// The leaf of its cluster that a hash belongs to.
pub(super) fn leaf_in_cluster(core: &Core, minor: u32) -> u32 {
    minor & (core.geometry.blocks_per_cluster() - 1)
}

/// A leaf cluster: the smallest major hash that it is for, and its first block.
#[derive(Debug, Clone, Copy)]
pub(super) struct LeafCluster {
    pub cpos: u32,
    pub first: BlockNr,
}

/// The cluster of a major hash. The root is not inline.
pub(super) async fn cluster(core: &Core, root: &BlockRef, major: u32) -> Result<LeafCluster> {
    let tree = Root::new(root.clone(), RootKind::DxRoot);
    let run = extent::floor(core, &tree, major)
        .await?
        .filter(|run| run.clusters > 0);
    let Some(run) = run else {
        let rule = "no record of the index is for this hash";
        return Err(corrupt(
            Structure::DxRoot,
            root.nr(),
            "hash",
            major.into(),
            rule,
        ));
    };
    let into = (major - run.cpos).min(run.clusters - 1);
    let per_cluster = u64::from(core.geometry.blocks_per_cluster());
    let first = BlockNr(run.physical.0.saturating_add(u64::from(into) * per_cluster));
    blocks::check_place(core, root, first)?;
    Ok(LeafCluster {
        cpos: run.cpos + into,
        first,
    })
}

/// The leaf of a hash in a cluster.
pub(super) async fn leaf(core: &Core, cluster: LeafCluster, minor: u32) -> Result<BlockRef> {
    let nr = BlockNr(cluster.first.0 + u64::from(leaf_in_cluster(core, minor)));
    core.cache.read(nr, Kind::DxLeaf).await
}

/// The block with the index entries of a hash: the root, or a leaf.
pub(super) async fn list(core: &Core, root: &BlockRef, hash: DirHash) -> Result<BlockRef> {
    if is_inline(root) {
        return Ok(root.clone());
    }
    leaf(core, cluster(core, root, hash.major).await?, hash.minor).await
}

/// The index entries in the bytes of a root or a leaf.
pub(super) fn entries(kind: Kind, data: &[u8]) -> DxEntriesRef<'_> {
    if kind == Kind::DxRoot {
        DxRoot::entries(data)
    } else {
        DxLeaf::entries(data)
    }
}

fn entries_mut(kind: Kind, data: &mut [u8]) -> DxEntriesMut<'_> {
    if kind == Kind::DxRoot {
        DxRoot::entries_mut(data)
    } else {
        DxLeaf::entries_mut(data)
    }
}

pub(super) fn is_full(list: &BlockRef) -> bool {
    entries(list.kind(), &list.data()).is_full()
}

/// The entry of a name, whichever way its bytes were hashed.
pub(super) async fn find(core: &Core, dir: &BlockRef, name: &[u8]) -> Result<Option<Found>> {
    let root = root(core, dir).await?;
    let seed = &core.geometry.dx_seed;
    let found = find_hash(core, dir, &root, dir_hash(seed, name, Bytes::WRITTEN), name).await?;
    if found.is_some() || !Bytes::matters_for(name) {
        return Ok(found);
    }
    find_hash(core, dir, &root, dir_hash(seed, name, Bytes::OTHER), name).await
}

async fn find_hash(
    core: &Core,
    dir: &BlockRef,
    root: &BlockRef,
    hash: DirHash,
    name: &[u8],
) -> Result<Option<Found>> {
    let list = list(core, root, hash).await?;
    let candidates: Vec<(usize, BlockNr)> = entries(list.kind(), &list.data())
        .of_hash(hash)
        .map(|(at, entry)| (at, entry.dirent_block()))
        .collect();
    for (at, nr) in candidates {
        // Several names may share a hash: the block need not have this one.
        if let Some(mut found) = blocks::at(core, dir, nr).await?.find(name)? {
            found.slot = Some(Slot { list, at });
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Adds an entry that is not there to the index and to a block with a hole for it.
pub(super) async fn insert(
    core: &Core,
    h: &mut Handle<'_>,
    dir: &BlockRef,
    new: &New<'_>,
) -> Result<()> {
    let root = root(core, dir).await?;
    if entry_count(&root) == u32::MAX {
        return Err(Error::NoSpace(
            "a directory holds 2^32 - 1 names".to_owned(),
        ));
    }
    let hash = hash_of(core, new.name);
    let list = split::list_with_room(core, h, &root, hash).await?;
    let place = match free_list::search(core, dir, &root, new.name.len()).await? {
        Some(place) => place,
        None => free_list::Place {
            // The new block is the first of the list.
            area: grow::append_block(core, h, dir).await?,
            before: None,
        },
    };
    let area = &place.area;
    let at = area
        .room_for(new.name.len())?
        .ok_or_else(|| no_such_hole(area))?;
    area.add(h, at, new)?;
    push(h, &list, DxEntry::new(hash, area.into()))?;
    change_count(h, &root, 1)?;
    free_list::shrunk(h, &root, &place)
}

/// Puts an entry into a root or leaf that has room.
pub(super) fn push(h: &mut Handle<'_>, list: &BlockRef, entry: DxEntry) -> Result<()> {
    let kind = list.kind();
    if entries_mut(kind, &mut h.modify(list)).push(entry) {
        return Ok(());
    }
    let rule = "more index entries than there were names";
    Err(corrupt(kind.structure(), list.nr(), "de_num_used", 0, rule))
}

/// After an entry was taken out of `area`: takes its index entry out, and notes the hole.
pub(super) async fn removed(
    core: &Core,
    h: &mut Handle<'_>,
    dir: &BlockRef,
    area: &Area,
    slot: &Slot,
) -> Result<()> {
    let root = root(core, dir).await?;
    let kind = slot.list.kind();
    entries_mut(kind, &mut h.modify(&slot.list)).remove(slot.at);
    change_count(h, &root, -1)?;
    free_list::grown(h, &root, area)
}

fn change_count(h: &mut Handle<'_>, root: &BlockRef, by: i32) -> Result<()> {
    let count = entry_count(root);
    let Some(changed) = count.checked_add_signed(by) else {
        let rule = "fewer names than the index has entries";
        return Err(corrupt(
            Structure::DxRoot,
            root.nr(),
            "dr_num_entries",
            count.into(),
            rule,
        ));
    };
    DxRoot::of_mut(&mut h.modify(root))
        .dr_num_entries
        .set(changed);
    Ok(())
}

/// Moves a name's index entry to where the other reading of its bytes puts it.
#[cfg(test)]
pub(super) async fn rehash_otherwise(core: &Core, dir: &crate::inode::Inode, name: &[u8]) {
    let found = find(core, dir.block(), name)
        .await
        .expect("sound")
        .expect("there");
    let slot = found.slot.expect("an index");
    let root = root(core, dir.block()).await.expect("sound");
    let hash = dir_hash(&core.geometry.dx_seed, name, Bytes::OTHER);
    let mut h = core.journal.begin(100).await.expect("a handle");
    entries_mut(slot.list.kind(), &mut h.modify(&slot.list)).remove(slot.at);
    let list = split::list_with_room(core, &mut h, &root, hash)
        .await
        .expect("room");
    push(&mut h, &list, DxEntry::new(hash, (&found.area).into())).expect("room");
    h.commit();
}
