//! Changing the tree of buckets: the block that becomes one, attributes put into their bucket, buckets split and moved.
//! Called by [`super::set`].
//!
//! ```text
//!  extent, full:   [b0][b1][b2][b3]      b1 has to be split into b1 and b1'
//!
//!  with room:      [b0][b1][b1'][b2][b3]                      everything behind moves up by one
//!  grown in place: the same, one cluster longer               (at most 64 KiB an extent)
//!  elsewhere:      [b0][b1][b1']   [b2][b3]                   half a cluster's buckets move to a new extent, whose
//!                                                             position is the first hash in it
//! ```
//!
//! The rules that make look-ups right: all attributes of one hash are in one bucket, hashes grow from bucket to bucket,
//! and the first bucket of an extent counts them.

use ondisk::feature::ExtentFlags;
use ondisk::{BlockNr, ClusterNr, Kind, RootKind, XATTR_BUCKET_BYTES, XattrBlock, XattrHeader};
use zerocopy::FromBytes;

use super::area::{self, Item, Shape};
use super::bucket::{self, Extent, Spot};
use super::set::with;
use super::{Place, is_indexed, tree};
use crate::alloc;
use crate::cache::BlockRef;
use crate::core::Core;
use crate::error::{Error, Result};
use crate::extent::{self, Root};
use crate::journal::Handle;

/// An extent of buckets grows up to this; beyond, looking up a hash would take too long.
const EXTENT_BYTES_MAX: usize = 64 << 10;

fn bucket_shape(core: &Core) -> Shape {
    Shape::Bucket {
        block_size: core.block_size(),
    }
}

fn root_of(block: &BlockRef) -> Root {
    Root {
        block: block.clone(),
        kind: RootKind::XattrTree,
    }
}

/// The bucket's attributes with one more (or another), sorted by hash, and its index.
fn sorted_with(spot: &Spot, item: &Item) -> Result<(Vec<Item>, usize)> {
    let (mut items, _) = with(Place::bucket(&spot.bucket).items()?, item);
    items.sort_by_key(|item| item.hash);
    let index = items
        .iter()
        .position(|other| other.name == item.name)
        .expect("it was just put there");
    Ok((items, index))
}

/// Blocks that [`put`] may touch beyond the usual ones.
pub(super) async fn blocks_to_put(core: &Core, block: &BlockRef, item: &Item) -> Result<u32> {
    let per_bucket = core.geometry.blocks_per_bucket() as u32;
    if !is_indexed(block) {
        return Ok(3 * per_bucket);
    }
    let Some(spot) = bucket::locate(core, block, item.hash).await? else {
        return Ok(per_bucket);
    };
    let (items, _) = sorted_with(&spot, item)?;
    if area::fits(&items, XATTR_BUCKET_BYTES, bucket_shape(core)) {
        return Ok(per_bucket);
    }
    // All buckets from the split one on, or half a cluster of them, and the extent's first.
    let half = core.geometry.buckets_per_cluster() / 2;
    let moved = (spot.extent.count - spot.index).max(half) as u32;
    Ok((moved + 3) * per_bucket + 16)
}

/// Turns a full xattr block into the root of a tree with one bucket, which gets the block's attributes.
pub(super) async fn convert(
    core: &Core,
    h: &mut Handle<'_>,
    block: &BlockRef,
    mut items: Vec<Item>,
) -> Result<()> {
    items.sort_by_key(|item| item.hash);
    let (cluster, _) = alloc::claim_clusters(core, h, None, 1, 1).await?;
    let start = core.geometry.first_block(cluster);
    write_items(core, h, start, &items);
    set_count(h, core, start, 1).await?;
    XattrBlock::set_indexed(&mut h.modify(block));
    extent::insert(core, h, &root_of(block), 0, start, 1, ExtentFlags::empty()).await?;
    Ok(())
}

/// Puts an attribute into the bucket of its hash, splitting that if it is full. Returns where its value root is.
pub(super) async fn put(
    core: &Core,
    h: &mut Handle<'_>,
    block: &BlockRef,
    item: &Item,
) -> Result<(BlockRef, usize)> {
    let Some(spot) = bucket::locate(core, block, item.hash).await? else {
        // Nothing makes a tree without buckets, but one would be valid.
        convert(core, h, block, vec![item.clone()]).await?;
        let spot = bucket::locate(core, block, item.hash).await?;
        let spot = spot.ok_or_else(|| {
            tree::corrupt(block.nr(), "l_next_free_rec", 0, "the tree stays empty")
        })?;
        let (items, index) = sorted_with(&spot, item)?;
        return Ok(found_at(core, spot.bucket, &items, index));
    };
    let (items, index) = sorted_with(&spot, item)?;
    if area::fits(&items, XATTR_BUCKET_BYTES, bucket_shape(core)) {
        area::write(&items, &mut h.modify(&spot.bucket), bucket_shape(core));
        return Ok(found_at(core, spot.bucket, &items, index));
    }
    let Some(cut) = cut_of(core, &items) else {
        return Err(Error::NoSpace(format!(
            "too many xattrs with the name hash {:#010x}",
            item.hash
        )));
    };
    let (left, right) = items.split_at(cut);
    let target = split(core, h, block, &spot, left, right).await?;
    let (bucket, items, index) = if index < cut {
        (target.0, left, index)
    } else {
        (target.1, right, index - cut)
    };
    Ok(found_at(core, bucket, items, index))
}

fn found_at(core: &Core, bucket: BlockRef, items: &[Item], index: usize) -> (BlockRef, usize) {
    let offset = area::value_offset(items, index, XATTR_BUCKET_BYTES, bucket_shape(core));
    (bucket, offset.expect("the items were laid out"))
}

/// Where to cut a list of attributes that does not fit into one bucket: between two hashes, so that both parts fit, as
/// even as possible.
fn cut_of(core: &Core, items: &[Item]) -> Option<usize> {
    let total: usize = items.iter().map(Item::bytes).sum();
    let fits = |items| area::fits(items, XATTR_BUCKET_BYTES, bucket_shape(core));
    let mut best = None;
    let mut before = 0;
    for (cut, pair) in items
        .windows(2)
        .enumerate()
        .map(|(index, pair)| (index + 1, pair))
    {
        before += pair[0].bytes();
        if pair[0].hash == pair[1].hash {
            continue;
        }
        let uneven = before.abs_diff(total - before);
        if best.is_none_or(|(_, least)| uneven < least)
            && fits(&items[..cut])
            && fits(&items[cut..])
        {
            best = Some((cut, uneven));
        }
    }
    best.map(|(cut, _)| cut)
}

/// Replaces a bucket by two. Returns the buckets that hold the left and the right part.
async fn split(
    core: &Core,
    h: &mut Handle<'_>,
    block: &BlockRef,
    spot: &Spot,
    left: &[Item],
    right: &[Item],
) -> Result<(BlockRef, BlockRef)> {
    let (extent, at) = (&spot.extent, spot.index);
    let total = extent.count + 1;
    let (moved, new_start) = match make_room(core, h, block, extent).await? {
        Room::Here => (0, BlockNr::NONE),
        Room::Elsewhere(start) => ((core.geometry.buckets_per_cluster() / 2).max(1), start),
    };
    let keep = total - moved;
    let per_bucket = core.geometry.blocks_per_bucket() as u64;
    let place = |index: usize| match index.checked_sub(keep) {
        None => extent.nr(core, index),
        Some(index) => BlockNr(new_start.0 + index as u64 * per_bucket),
    };
    // From the end downwards, so that nothing is overwritten before it has moved.
    for index in (at.min(keep)..total).rev() {
        let from = match index {
            _ if index == at => {
                write_items(core, h, place(index), left);
                continue;
            }
            _ if index == at + 1 => {
                write_items(core, h, place(index), right);
                continue;
            }
            _ if index > at => index - 1,
            _ if index < keep => continue,
            _ => index,
        };
        let bytes = extent.read(core, from).await?.snapshot();
        let bucket = h.fresh(place(index), Kind::XattrBucket);
        h.modify(&bucket).copy_from_slice(&bytes);
        header(&mut h.modify(&bucket)).xh_num_buckets.set(0);
    }
    set_count(h, core, extent.start, keep).await?;
    if moved > 0 {
        let first = set_count(h, core, new_start, moved).await?;
        let cpos = bucket::first_hash(&first)?;
        add_extent(core, h, block, extent, cpos, new_start).await?;
    }
    let left = core.cache.read(place(at), Kind::XattrBucket).await?;
    let right = core.cache.read(place(at + 1), Kind::XattrBucket).await?;
    Ok((left, right))
}

/// Where the bucket that a split adds can go.
enum Room {
    /// The extent has room, or has been made longer.
    Here,
    /// Buckets have to move to this new cluster.
    Elsewhere(BlockNr),
}

async fn make_room(
    core: &Core,
    h: &mut Handle<'_>,
    block: &BlockRef,
    extent: &Extent,
) -> Result<Room> {
    if extent.count < extent.capacity(core) {
        return Ok(Room::Here);
    }
    let geometry = &core.geometry;
    let goal = geometry
        .cluster_of(extent.start)
        .and_then(|c| c.0.checked_add(extent.clusters))
        .map(ClusterNr);
    let (cluster, _) = alloc::claim_clusters(core, h, goal, 1, 1).await?;
    let start = geometry.first_block(cluster);
    let longer = extent.clusters + 1;
    let next = tree::find(core, block, RootKind::XattrTree, extent.cpos)
        .await?
        .map_or(0, |(_, next)| next);
    // Positions are hashes, lengths are clusters: an extent must not be so long that it reaches the next one's hash.
    let fits = u64::from(extent.cpos) + u64::from(longer) <= next;
    if goal != Some(cluster)
        || longer as usize * geometry.cluster_size() > EXTENT_BYTES_MAX
        || !fits
    {
        return Ok(Room::Elsewhere(start));
    }
    let position = extent.cpos + extent.clusters;
    extent::insert(
        core,
        h,
        &root_of(block),
        position,
        start,
        1,
        ExtentFlags::empty(),
    )
    .await?;
    Ok(Room::Here)
}

/// Enters a new extent of one cluster into the tree.
async fn add_extent(
    core: &Core,
    h: &mut Handle<'_>,
    block: &BlockRef,
    before: &Extent,
    cpos: u32,
    start: BlockNr,
) -> Result<()> {
    // The extent before covers as many positions as it has clusters. A hash among them cannot be a position, and one
    // right behind them would be merged if the clusters touch as well: a matter of 16 hashes in 2^32.
    if u64::from(cpos) <= u64::from(before.cpos) + u64::from(before.clusters) {
        return Err(Error::NoSpace(format!(
            "xattr name hashes are too close at {cpos:#010x}"
        )));
    }
    extent::insert(
        core,
        h,
        &root_of(block),
        cpos,
        start,
        1,
        ExtentFlags::empty(),
    )
    .await?;
    Ok(())
}

/// Makes a bucket of these attributes at a block, whatever was there.
fn write_items(core: &Core, h: &mut Handle<'_>, nr: BlockNr, items: &[Item]) {
    let bucket = h.fresh(nr, Kind::XattrBucket);
    area::write(items, &mut h.modify(&bucket), bucket_shape(core));
}

fn header(bucket: &mut [u8]) -> &mut XattrHeader {
    XattrHeader::mut_from_prefix(bucket)
        .expect("a bucket is longer than its header")
        .0
}

/// Sets the number of buckets in the first one of an extent, which is returned.
async fn set_count(
    h: &mut Handle<'_>,
    core: &Core,
    start: BlockNr,
    count: usize,
) -> Result<BlockRef> {
    let first = core.cache.read(start, Kind::XattrBucket).await?;
    header(&mut h.modify(&first))
        .xh_num_buckets
        .set(count as u16);
    Ok(first)
}
