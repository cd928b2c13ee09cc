//! Extents of buckets and the search for the bucket of a hash. Called by [`super`] to look attributes up and by
//! [`super::index`] to change them.
//!
//! An extent's first bucket says how many of its buckets are in use. Hashes grow from bucket to bucket and all
//! attributes of one hash are in one bucket, so a hash belongs to the last bucket that does not start behind it. An
//! empty bucket keeps the hash it started with.

use ondisk::{
    BlockNr, Check, Corrupt, ExtentRec, Kind, RootKind, Structure, Why, XattrArea, XattrEntry,
    XattrHeader,
};
use zerocopy::FromBytes;

use super::tree;
use crate::cache::BlockRef;
use crate::core::Core;
use crate::error::Result;

/// One extent of buckets.
#[derive(Debug, Clone)]
pub(super) struct Extent {
    /// The lowest hash it is responsible for: its position in the tree.
    pub cpos: u32,
    pub start: BlockNr,
    pub clusters: u32,
    /// Buckets in use; never zero.
    pub count: usize,
}

/// Where a hash belongs.
pub(super) struct Spot {
    pub extent: Extent,
    pub index: usize,
    pub bucket: BlockRef,
}

impl Extent {
    /// The extent of a record of the tree.
    pub async fn open(core: &Core, root: &BlockRef, rec: &ExtentRec) -> Result<Extent> {
        let (start, clusters) = (rec.block(), rec.clusters(0));
        let mut extent = Extent {
            cpos: rec.e_cpos.get(),
            start,
            clusters,
            count: 1,
        };
        let first = extent.read(core, 0).await?;
        let count = usize::from(XattrArea::new(&first.data()).header().xh_num_buckets.get());
        if count == 0 || count > extent.capacity(core) {
            let why = Why::Exceeds {
                field: "xh_num_buckets",
                found: count as u64,
                limit: extent.capacity(core) as u64,
            };
            tracing::warn!(
                root = root.nr().0,
                bucket = start.0,
                count,
                "wrong number of buckets"
            );
            return Err(Check::new(Structure::XattrBucket, start).fail(why).into());
        }
        extent.count = count;
        Ok(extent)
    }

    /// Buckets there is room for.
    pub fn capacity(&self, core: &Core) -> usize {
        self.clusters as usize * core.geometry.buckets_per_cluster()
    }

    /// The block that a bucket starts at.
    pub fn nr(&self, core: &Core, index: usize) -> BlockNr {
        BlockNr(self.start.0 + (index * core.geometry.blocks_per_bucket()) as u64)
    }

    pub async fn read(&self, core: &Core, index: usize) -> Result<BlockRef> {
        core.cache
            .read(self.nr(core, index), Kind::XattrBucket)
            .await
    }
}

/// The hash that a bucket starts with, and whether it is empty now.
pub(super) fn first_hash(bucket: &BlockRef) -> Result<u32, Corrupt> {
    let data = bucket.data();
    let behind = data.get(size_of::<XattrHeader>()..).unwrap_or_default();
    match XattrEntry::ref_from_prefix(behind) {
        Ok((entry, _)) => Ok(entry.xe_name_hash.get()),
        Err(_) => {
            let why = Why::Differs {
                field: "length",
                found: data.len() as u64,
                expected: 4096,
            };
            Err(Check::new(Structure::XattrBucket, bucket.nr()).fail(why))
        }
    }
}

/// The bucket that attributes of a hash are in, or would be; `None` in an empty tree.
pub(super) async fn locate(core: &Core, root: &BlockRef, hash: u32) -> Result<Option<Spot>> {
    let Some((rec, _)) = tree::find(core, root, RootKind::XattrTree, hash).await? else {
        return Ok(None);
    };
    let extent = Extent::open(core, root, &rec).await?;
    // The last bucket that does not start behind the hash; the first one if there is none.
    let (mut low, mut high) = (0, extent.count - 1);
    while low < high {
        let middle = (low + high).div_ceil(2);
        let bucket = extent.read(core, middle).await?;
        if first_hash(&bucket)? <= hash {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    let bucket = extent.read(core, low).await?;
    Ok(Some(Spot {
        extent,
        index: low,
        bucket,
    }))
}
