//! Growing: a block more at a directory's end, and from inline data to blocks (with an index, if the
//! volume has that).
//!
//! A directory grows by blocks; its clusters beyond its size are unformatted, and nobody reads them.

use ondisk::feature::{DynFeatures, ExtentFlags, Incompat};
use ondisk::{
    BlockNr, Dinode, DirBlock, DirTrailer, DxEntry, DxRoot, Kind, RootKind, Structure, Suballoc,
    capacity, entries_end, init_extent_list, init_free_area, inline_data_span, set_rec_len,
};

use super::area::Area;
use super::blocks::{self, Blocks};
use super::{Form, corrupt, free_list, index};
use crate::alloc;
use crate::cache::BlockRef;
use crate::core::Core;
use crate::error::Result;
use crate::extent::{self, Root};
use crate::journal::Handle;

/// A new last block, all of it one hole. In an indexed directory it is the first of the list of
/// blocks with holes.
pub(super) async fn append_block(core: &Core, h: &mut Handle<'_>, dir: &BlockRef) -> Result<Area> {
    let count = Blocks::of(core, dir)?.count();
    let clusters = Dinode::of(&dir.data()).i_clusters.get();
    if count == u64::from(clusters) * u64::from(core.geometry.blocks_per_cluster()) {
        append_cluster(core, h, dir, clusters).await?;
    }
    let size = (count + 1) * core.block_size() as u64;
    Dinode::of_mut(&mut h.modify(dir)).i_size.set(size);
    let nr = Blocks::of(core, dir)?.locate(core, count).await?;
    blocks::check_place(core, dir, nr)?;

    let trailer = blocks::has_trailer(core, dir);
    let block = h.fresh(nr, Kind::DirBlock { trailer });
    let end = entries_end(core.block_size(), trailer);
    init_free_area(&mut h.modify(&block)[..end]);
    if trailer {
        DirTrailer::init(&mut h.modify(&block), nr, dir.nr(), end as u16);
    }
    let area = blocks::in_block(core, block, trailer);
    if Form::of(dir) == Form::Indexed {
        free_list::link(h, &index::root(core, dir).await?, &area);
    }
    Ok(area)
}

async fn append_cluster(
    core: &Core,
    h: &mut Handle<'_>,
    dir: &BlockRef,
    clusters: u32,
) -> Result<()> {
    let tree = Root::dinode(dir);
    let goal = match clusters.checked_sub(1) {
        Some(last) => extent::lookup(core, &tree, last).await?.physical,
        None => None,
    };
    let goal = goal
        .and_then(|nr| core.geometry.cluster_of(nr))
        .and_then(|cluster| cluster.0.checked_add(1).map(Into::into));
    let (cluster, _) = alloc::claim_clusters(core, h, goal, 1, 1).await?;
    let first = core.geometry.first_block(cluster);
    extent::insert(core, h, &tree, clusters, first, 1, ExtentFlags::empty()).await
}

/// The entries move from the inode to a first block, at the same offsets.
pub(super) async fn inline_to_blocks(
    core: &Core,
    h: &mut Handle<'_>,
    dir: &BlockRef,
) -> Result<()> {
    let indexed = core.geometry.has(Incompat::INDEXED_DIRS);
    let trailer = core.geometry.has_dir_trailer(indexed);
    let end = entries_end(core.block_size(), trailer);
    let entries = inline_entries(dir);
    if entries.len() > end {
        let rule = "inline entries are more than a block holds";
        let len = entries.len() as u64;
        return Err(corrupt(Structure::Dinode, dir.nr(), "i_size", len, rule));
    }
    let last = last_record(&entries, dir.nr())?;

    let (cluster, _) = alloc::claim_clusters(core, h, None, 1, 1).await?;
    let nr = core.geometry.first_block(cluster);
    let block = h.fresh(nr, Kind::DirBlock { trailer });
    {
        let mut data = h.modify(&block);
        data[..entries.len()].copy_from_slice(&entries);
        // The last record takes in what the block has more.
        set_rec_len(&mut data, last, end - last);
    }
    let area = blocks::in_block(core, block.clone(), trailer);
    if trailer {
        let hole = area.largest_hole()?;
        DirTrailer::init(&mut h.modify(&block), nr, dir.nr(), hole as u16);
    }
    {
        let mut data = h.modify(dir);
        let size = data.len();
        let dinode = Dinode::of_mut(&mut data);
        dinode.set_dyn_features(dinode.dyn_features() - DynFeatures::INLINE_DATA);
        dinode.i_size.set(size as u64);
        let xattr = dinode.inline_xattr_bytes(size);
        // What the entries leave behind the list would be garbage.
        data[inline_start()..size - xattr].fill(0);
        let count = capacity::extents_in_inode(size, xattr);
        init_extent_list(&mut data, RootKind::Dinode, 0, count as u16);
    }
    extent::insert(core, h, &Root::dinode(dir), 0, nr, 1, ExtentFlags::empty()).await?;
    if indexed {
        attach_index(core, h, dir, &area).await?;
    }
    Ok(())
}

/// Most leaves that the next name makes out of inline entries: none, unless there are as many as an
/// index root has entries for.
pub(super) async fn leaves_made(core: &Core, dir: &BlockRef) -> Result<u32> {
    if !core.geometry.has(Incompat::INDEXED_DIRS) {
        return Ok(0);
    }
    let used = Blocks::of(core, dir)?.area(core, 0).await?.used()?;
    let room = capacity::entries_in_dx_root(core.block_size());
    Ok(if used < room {
        0
    } else {
        core.geometry.blocks_per_cluster()
    })
}

fn inline_start() -> usize {
    ondisk::INLINE_DATA_OFFSET
}

fn inline_entries(dir: &BlockRef) -> Vec<u8> {
    let data = dir.data();
    let entries = &data[inline_data_span(&data)];
    let size = Dinode::of(&data).i_size.get() as usize;
    entries[..size.min(entries.len())].to_vec()
}

/// Where the last record starts. All before it are sound then.
fn last_record(entries: &[u8], nr: BlockNr) -> Result<usize> {
    let mut last = 0;
    for entry in DirBlock::inline(entries, nr).entries() {
        last = entry?.offset;
    }
    Ok(last)
}

/// Gives a directory of one block an index of its names.
pub(super) async fn attach_index(
    core: &Core,
    h: &mut Handle<'_>,
    dir: &BlockRef,
    area: &Area,
) -> Result<()> {
    let names = area.names()?;
    let place = alloc::claim_metadata(core, h).await?;
    let suballoc = Suballoc {
        slot: place.slot,
        bit: place.bit,
        group: place.group,
    };
    let root = h.fresh(place.block, Kind::DxRoot);
    {
        let mut data = h.modify(&root);
        DxRoot::init(
            &mut data,
            place.block,
            &core.geometry,
            suballoc,
            dir.nr(),
            true,
        );
        let record = DxRoot::of_mut(&mut data);
        record.dr_num_entries.set(names.len() as u32);
        if area.trailer().db_free_rec_len.get() > 0 {
            record.dr_free_blk.set(area.block().nr().0);
        }
    }
    // As many of the shortest names as inline data holds are as many as the root has entries for.
    for name in &names {
        index::push(
            h,
            &root,
            DxEntry::new(index::hash_of(core, name), area.into()),
        )?;
    }
    let mut data = h.modify(dir);
    let dinode = Dinode::of_mut(&mut data);
    dinode.i_dx_root.set(place.block.0);
    dinode.set_dyn_features(dinode.dyn_features() | DynFeatures::INDEXED_DIR);
    Ok(())
}
