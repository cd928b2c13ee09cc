//! Extended attributes in all their places: in the inode, in a block, in a tree of buckets; and the
//! trees of values that have clusters of their own.

use ondisk::feature::DynFeatures;
use ondisk::hash::{Bytes, xattr_name_hash};
use ondisk::{
    BlockNr, Dinode, Kind, RootKind, XATTR_BUCKET_BYTES, XATTR_LOCAL_MAX, XATTR_VALUE_ROOT_BYTES,
    XattrArea, XattrBlock, XattrEntry, XattrHeader, XattrTreeRoot, XattrValueRoot, extent_list,
    xattr_padded,
};

use super::extents::{Extent, Tree, TreeKind};
use super::view::Step;
use super::{Checker, Code, Spot};

/// What an entry and the least that belongs to it take.
const ENTRY_AND_NAME: usize = size_of::<XattrEntry>() + 4;

/// An area of attributes, and whose it is.
struct Area<'a> {
    bytes: &'a [u8],
    spot: Spot,
    in_bucket: bool,
}

/// What a look at an area gives: values with clusters of their own, by the offset of their root.
struct Values {
    roots: Vec<(usize, u64)>,
}

impl Checker<'_> {
    pub(super) async fn check_xattrs(&mut self, nr: BlockNr, bytes: &[u8]) -> Step<()> {
        let inode = *Dinode::of(bytes);
        let sharing = inode
            .dyn_features()
            .contains(DynFeatures::HAS_REFCOUNT)
            .then(|| BlockNr(inode.i_refcount_loc.get()));
        if inode.dyn_features().contains(DynFeatures::INLINE_XATTR) {
            let said = usize::from(inode.i_xattr_inline_size.get());
            let length = inode.inline_xattr_bytes(bytes.len());
            if length != said || length < size_of::<XattrHeader>() || !length.is_multiple_of(4) {
                let message = format!("an area of {said} bytes for attributes in the inode");
                self.find(Code::InodeField, Spot::ino(nr), message);
            } else {
                let area = Area {
                    bytes: &bytes[bytes.len() - length..],
                    spot: Spot::ino(nr),
                    in_bucket: false,
                };
                self.check_area_and_values(nr, sharing, &area).await?;
            }
        }
        let block = BlockNr(inode.i_xattr_loc.get());
        if block.is_some() {
            self.check_xattr_block(nr, sharing, block).await?;
        }
        Ok(())
    }

    async fn check_xattr_block(
        &mut self,
        nr: BlockNr,
        sharing: Option<BlockNr>,
        block: BlockNr,
    ) -> Step<()> {
        let spot = Spot::of(nr, block);
        if !self.holds(block) {
            let message = format!("attributes are in block {block}, outside the volume");
            self.find(Code::XattrBlockInvalid, spot, message);
            return Ok(());
        }
        let Some(bytes) = self.read(block, Kind::XattrBlock, Some(nr)).await? else {
            return Ok(());
        };
        let head = *XattrBlock::of(&bytes);
        let wrong = if head.xb_signature != XattrBlock::SIGNATURE {
            Some("the block of attributes has no signature of one".to_owned())
        } else if head.xb_blkno.get() != block.0 {
            Some(format!(
                "the block of attributes calls itself {}",
                head.xb_blkno.get()
            ))
        } else if head.xb_fs_generation.get() != self.geometry.fs_generation.0 {
            let found = head.xb_fs_generation.get();
            Some(format!(
                "the block of attributes is of generation {found:#x}"
            ))
        } else {
            None
        };
        if let Some(why) = wrong {
            self.find(Code::XattrBlockInvalid, spot, why);
            return Ok(());
        }
        if !self.use_metadata(block, "a block of attributes", head.suballoc(), spot) {
            return Ok(());
        }
        if head.is_indexed() {
            return self.check_xattr_tree(nr, sharing, block, &bytes).await;
        }
        let area = Area {
            bytes: &bytes[XattrBlock::area_span(bytes.len())],
            spot,
            in_bucket: false,
        };
        self.check_area_and_values(nr, sharing, &area).await
    }

    async fn check_xattr_tree(
        &mut self,
        nr: BlockNr,
        sharing: Option<BlockNr>,
        block: BlockNr,
        bytes: &[u8],
    ) -> Step<()> {
        let root = *XattrTreeRoot::of(bytes);
        let spot = Spot::of(nr, block);
        let tree = Tree {
            kind: TreeKind::Keyed,
            spot,
            capacity: RootKind::XattrTree.capacity(bytes),
            may_share: false,
            quiet: false,
        };
        let mut walk = self.walk(tree, extent_list(bytes, RootKind::XattrTree));
        let mut last_hash = None;
        while let Some(leaf) = self.next_leaf(&mut walk).await? {
            self.take_extents(nr, None, "of buckets of attributes", &leaf);
            for extent in leaf {
                self.check_buckets(nr, sharing, &extent, &mut last_hash)
                    .await?;
            }
        }
        self.finish_walk(&mut walk, root.xt_last_eb_blk.get(), "the attributes");
        if walk.whole && u64::from(root.xt_clusters.get()) != walk.clusters {
            let message = format!(
                "the tree of attributes counts {} clusters, its extents have {}",
                root.xt_clusters.get(),
                walk.clusters
            );
            self.find(Code::TreeClusters, spot, message);
        }
        Ok(())
    }

    async fn check_buckets(
        &mut self,
        nr: BlockNr,
        sharing: Option<BlockNr>,
        extent: &Extent,
        last_hash: &mut Option<u32>,
    ) -> Step<()> {
        let capacity = extent.clusters as usize * self.geometry.buckets_per_cluster();
        let per_bucket = self.geometry.blocks_per_bucket().max(1) as u64;
        let mut count = 1;
        let mut index = 0;
        while index < count {
            let bucket = BlockNr(extent.start.0 + index as u64 * per_bucket);
            let spot = Spot::of(nr, bucket);
            let Some(bytes) = self.read(bucket, Kind::XattrBucket, Some(nr)).await? else {
                return Ok(());
            };
            let header = *XattrArea::new(&bytes).header();
            if index == 0 {
                count = usize::from(header.xh_num_buckets.get());
                if count == 0 || count > capacity {
                    let message = format!("{count} buckets in an extent of {capacity}");
                    self.find(Code::XattrBucketCountInvalid, spot, message);
                    return Ok(());
                }
            }
            let area = Area {
                bytes: &bytes[..XATTR_BUCKET_BYTES.min(bytes.len())],
                spot,
                in_bucket: true,
            };
            self.check_area_and_values(nr, sharing, &area).await?;
            self.check_order(&area, extent, index, last_hash);
            index += 1;
        }
        Ok(())
    }

    /// Hashes grow from entry to entry and from bucket to bucket, and lie where a look-up goes.
    fn check_order(
        &mut self,
        area: &Area<'_>,
        extent: &Extent,
        index: usize,
        last_hash: &mut Option<u32>,
    ) {
        for entry in XattrArea::new(area.bytes).entries() {
            let hash = entry.xe_name_hash.get();
            let in_order = last_hash.is_none_or(|last| last <= hash);
            if !in_order || (hash < extent.cpos && extent.cpos != 0) {
                let message = format!(
                    "an attribute of hash {hash:#010x} in bucket {index} of the extent from {:#010x}, after {:#010x}",
                    extent.cpos,
                    last_hash.unwrap_or(0)
                );
                self.find(Code::XattrOrder, area.spot, message);
                return;
            }
            *last_hash = Some(hash);
        }
    }

    async fn check_area_and_values(
        &mut self,
        nr: BlockNr,
        sharing: Option<BlockNr>,
        area: &Area<'_>,
    ) -> Step<()> {
        let values = self.check_area(area);
        for (offset, size) in values.roots {
            self.check_value(nr, sharing, area, offset, size).await?;
        }
        Ok(())
    }

    /// Entries, names and values of an area: none over another, hashes right.
    fn check_area(&mut self, area: &Area<'_>) -> Values {
        let (bytes, spot) = (area.bytes, area.spot);
        let mut values = Values { roots: Vec::new() };
        let view = XattrArea::new(bytes);
        let header = view.header();
        let count = usize::from(header.xh_count.get());
        let most = (bytes.len() - size_of::<XattrHeader>()) / ENTRY_AND_NAME;
        let there = view
            .entries()
            .iter()
            .take(most)
            .take_while(|entry| entry.xe_name_hash.get() != 0)
            .count();
        if count > there {
            let message = format!("{count} attributes are counted, {there} are there");
            self.find(Code::XattrCountInvalid, spot, message);
            return values;
        }
        // Spans that are taken.
        let entries_end = size_of::<XattrHeader>() + count * size_of::<XattrEntry>();
        let mut taken = vec![(0, entries_end)];
        let (mut lowest, mut total) = (bytes.len(), 0);
        for (index, entry) in view.entries().iter().enumerate() {
            let start = usize::from(entry.xe_name_offset.get());
            if start >= bytes.len() {
                let message = format!("the name of attribute {index} is at {start}");
                self.find(Code::XattrNameOffsetInvalid, spot, message);
                return values;
            }
            let size = entry.xe_value_size.get();
            if entry.is_local() != (size <= XATTR_LOCAL_MAX) {
                let place = if entry.is_local() { "in" } else { "outside" };
                let message = format!(
                    "the value of attribute {index} has {size} bytes and is {place} the area"
                );
                self.find(Code::XattrLocationInvalid, spot, message);
                return values;
            }
            let length = xattr_padded(entry.xe_name_len.into())
                + if entry.is_local() {
                    xattr_padded(size as usize)
                } else {
                    XATTR_VALUE_ROOT_BYTES
                };
            let end = start + length;
            let free =
                end <= bytes.len() && taken.iter().all(|&(from, to)| end <= from || to <= start);
            if !free {
                let code = if start < entries_end {
                    Code::XattrEntryInvalid
                } else {
                    Code::XattrValueInvalid
                };
                let message = format!(
                    "attribute {index} takes {start} to {end}, where others are or the area ends"
                );
                self.find(code, spot, message);
                return values;
            }
            taken.push((start, end));
            lowest = lowest.min(start);
            total += length;
            let name = view.name(entry).unwrap_or_default();
            let hash = entry.xe_name_hash.get();
            let right = [Bytes::Unsigned, Bytes::Signed]
                .into_iter()
                .any(|way| xattr_name_hash(self.geometry.uuid_hash, name, way) == hash);
            if !right {
                let message = format!("attribute {index} does not hash to {hash:#010x}");
                self.find(Code::XattrHashInvalid, spot, message);
            }
            if entry.namespace().is_none() {
                let message = format!("attribute {index} is of namespace {}", entry.type_number());
                self.find(Code::XattrEntryInvalid, spot, message);
            }
            if !entry.is_local() {
                values.roots.push((entry.value_offset(), size));
            }
        }
        if area.in_bucket {
            self.check_bucket_sums(area, lowest, total);
        }
        values
    }

    fn check_bucket_sums(&mut self, area: &Area<'_>, lowest: usize, total: usize) {
        let header = *XattrArea::new(area.bytes).header();
        let free_start = usize::from(header.xh_free_start.get());
        if free_start != lowest {
            let message = format!("free space is said to end at {free_start}, it does at {lowest}");
            // Space that is lost until the bucket is packed: the Linux driver leaves it.
            if free_start < lowest {
                self.note(Code::XattrFreeStartInvalid, area.spot, message);
            } else {
                self.find(Code::XattrFreeStartInvalid, area.spot, message);
            }
        }
        let said = usize::from(header.xh_name_value_len.get());
        if said != total {
            let message =
                format!("names and values are said to have {said} bytes, they have {total}");
            self.find(Code::XattrValueLenInvalid, area.spot, message);
        }
    }

    /// The tree of a value.
    async fn check_value(
        &mut self,
        nr: BlockNr,
        sharing: Option<BlockNr>,
        area: &Area<'_>,
        offset: usize,
        size: u64,
    ) -> Step<()> {
        let root = *XattrValueRoot::at(area.bytes, offset);
        let tree = Tree {
            kind: TreeKind::Data,
            spot: area.spot,
            capacity: 1,
            may_share: sharing.is_some(),
            quiet: false,
        };
        let list = extent_list(area.bytes, RootKind::XattrValue { offset });
        let mut walk = self.walk(tree, list);
        while let Some(leaf) = self.next_leaf(&mut walk).await? {
            self.take_extents(nr, sharing, "of an attribute's value", &leaf);
        }
        self.finish_walk(&mut walk, root.xr_last_eb_blk.get(), "an attribute's value");
        if !walk.whole {
            return Ok(());
        }
        if u64::from(root.xr_clusters.get()) != walk.clusters {
            let message = format!(
                "an attribute's value counts {} clusters, its extents have {}",
                root.xr_clusters.get(),
                walk.clusters
            );
            self.find(Code::TreeClusters, area.spot, message);
        }
        if size > walk.clusters << self.geometry.cluster_size_bits {
            let message = format!(
                "an attribute's value of {size} bytes in {} clusters",
                walk.clusters
            );
            self.find(Code::XattrValueInvalid, area.spot, message);
        }
        Ok(())
    }
}
