//! Sizes: cutting and extending files, and giving extents back.
//!
//! What is past the size in the last cluster is zeroed before the commit that makes it invisible,
//! and zeroed again before it becomes visible: neither a crash nor an older writer's leftovers ever
//! show old bytes.

use ondisk::Dinode;
use ondisk::feature::{DynFeatures, ExtentFlags};

use super::Volume;
use super::attr::without_set_id;
use super::names::touch;
use crate::alloc;
use crate::error::{Error, Result};
use crate::extent;
use crate::inode::InodeRef;
use crate::journal::Handle;
use crate::pages::pages_of;
use crate::refcount;

/// Extent records given back in one handle: few enough for the smallest journal (4 MiB), each may
/// empty a leaf and meet another group.
const FREE_RECORDS: u32 = 16;
/// Blocks that such a handle may change.
const FREE_BLOCKS: u32 = 8 * FREE_RECORDS;

impl Volume {
    /// Largest size a file can have, in bytes: 2^32 clusters, and what a signed offset holds.
    pub(super) fn max_file_bytes(&self) -> u64 {
        let clusters = u64::from(u32::MAX) << self.core().geometry.cluster_size_bits;
        clusters.min(i64::MAX as u64)
    }

    /// Sets the size. The caller holds the file's shape.
    pub(super) async fn truncate_locked(&self, inode: &InodeRef, size: u64) -> Result<()> {
        if size > self.max_file_bytes() {
            return Err(Error::TooBig(format!(
                "{size} bytes, at most {}",
                self.max_file_bytes()
            )));
        }
        self.cut_held(inode, size).await?;
        let old = inode.dinode().i_size.get();
        let result = self.truncate_settled(inode, old, size).await;
        // The last page of the shorter of the two ends otherwise now.
        self.drop_clean(inode, pages_of(old.min(size), u64::MAX));
        result
    }

    async fn truncate_settled(&self, inode: &InodeRef, old: u64, size: u64) -> Result<()> {
        if inode
            .dinode()
            .dyn_features()
            .contains(DynFeatures::INLINE_DATA)
        {
            let room = ondisk::inline_data(&inode.block().data()).len() as u64;
            if size <= room {
                return self.truncate_inline(inode, old, size).await;
            }
            alloc::with_space(self.core(), async || self.inline_to_extents(inode).await).await?;
        }
        if size >= old {
            self.zero_gap(inode, old, size).await?;
            self.fill_to(inode, size).await?;
            return self.set_size(inode, size).await;
        }
        self.shrink(inode, size).await
    }

    /// To a smaller size, of a file that is not inline.
    pub(super) async fn shrink(&self, inode: &InodeRef, size: u64) -> Result<()> {
        self.zero_tail(inode, size).await?;
        let keep = self.core().geometry.clusters_for_bytes(size);
        self.free_extents(inode, keep, Some(size)).await
    }

    async fn truncate_inline(&self, inode: &InodeRef, old: u64, size: u64) -> Result<()> {
        let mut h = self.core().journal.begin(1).await?;
        {
            let mut bytes = h.modify(inode.block());
            let (from, to) = (old.min(size) as usize, old.max(size) as usize);
            let data = ondisk::inline_data_mut(&mut bytes);
            let to = to.min(data.len());
            data[from.min(to)..to].fill(0);
            self.update_size(Dinode::of_mut(&mut bytes), size);
        }
        inode.changed_in(h.commit());
        Ok(())
    }

    pub(super) async fn set_size(&self, inode: &InodeRef, size: u64) -> Result<()> {
        let mut h = self.core().journal.begin(1).await?;
        self.update_size(Dinode::of_mut(&mut h.modify(inode.block())), size);
        inode.changed_in(h.commit());
        Ok(())
    }

    pub(super) fn update_size(&self, d: &mut Dinode, size: u64) {
        d.i_size.set(size);
        d.i_mode.set(without_set_id(d.i_mode.get()));
        touch(d, self.core().now());
    }

    /// Zeroes what lies allocated and written between `from` and `to`, both past or at the old
    /// size: it was invisible and becomes visible.
    pub(super) async fn zero_gap(&self, inode: &InodeRef, from: u64, to: u64) -> Result<()> {
        let core = self.core();
        let cluster = core.geometry.cluster_size() as u64;
        let clusters = u64::from(inode.dinode().i_clusters.get());
        let root = extent::Root::dinode(inode.block());
        let mut at = from;
        while at < to && clusters > 0 {
            let cpos =
                u32::try_from(at / cluster).map_err(|_| Error::TooBig(format!("byte {at}")))?;
            let run = extent::lookup(core, &root, cpos).await?;
            let run_end = (u64::from(run.cpos) + u64::from(run.clusters)) * cluster;
            let end = run_end.min(to);
            if run.physical.is_some() && !run.flags.contains(ExtentFlags::UNWRITTEN) {
                // A shared cluster is copied first: its other owners keep their bytes.
                if run.flags.contains(ExtentFlags::REFCOUNTED) {
                    let count = ((end - at).div_ceil(cluster) + 1)
                        .min(run_end.div_ceil(cluster) - u64::from(cpos));
                    refcount::cow(core, inode, cpos, count as u32).await?;
                    continue;
                }
                let end = end.min(at - at % cluster + (1 << 20).max(cluster));
                self.overwrite_zero(inode, at, end).await?;
                at = end;
                continue;
            }
            at = end;
        }
        Ok(())
    }

    /// Zeroes from `size` to the end of its cluster, if that is written.
    async fn zero_tail(&self, inode: &InodeRef, size: u64) -> Result<()> {
        let cluster = self.core().geometry.cluster_size() as u64;
        let old = inode.dinode().i_size.get();
        let end = size
            .next_multiple_of(cluster)
            .min(old.next_multiple_of(self.core().block_size() as u64));
        if size < end {
            self.zero_gap(inode, size, end).await
        } else {
            Ok(())
        }
    }

    /// Gives back every cluster of a file from `cpos` on, last first, in as many handles as it
    /// takes. After each the file is whole, only shorter.
    pub(super) async fn free_extents_from(&self, inode: &InodeRef, cpos: u64) -> Result<()> {
        self.free_extents(inode, cpos, None).await
    }

    /// As [`Volume::free_extents_from`]; the first handle sets the size as well, so that a file of
    /// few extents is cut in one.
    async fn free_extents(&self, inode: &InodeRef, cpos: u64, mut size: Option<u64>) -> Result<()> {
        let core = self.core();
        let cpos = u32::try_from(cpos).unwrap_or(u32::MAX);
        let root = extent::Root::dinode(inode.block());
        loop {
            if alloc::truncate_log_needs_flush(core).await? {
                alloc::flush_truncate_log(core).await?;
            }
            let mut h = core.journal.begin(FREE_BLOCKS + 1).await?;
            if let Some(size) = size.take() {
                self.update_size(Dinode::of_mut(&mut h.modify(inode.block())), size);
            }
            for _ in 0..FREE_RECORDS {
                let Some(run) = extent::last_runs(core, &root, cpos, 1).await?.pop() else {
                    break;
                };
                let start = run.cpos.max(cpos);
                let count = (run.end() - u64::from(start)) as u32;
                self.free_range(&mut h, inode, &root, start, count).await?;
            }
            let done = extent::last_runs(core, &root, cpos, 1).await?.is_empty();
            if !h.is_empty() {
                inode.changed_in(h.commit());
                self.plan_flush();
            }
            if done {
                return Ok(());
            }
        }
    }

    /// Removes a range from the tree and gives its clusters back, as shared or as our own.
    pub(super) async fn free_range(
        &self,
        h: &mut Handle<'_>,
        inode: &InodeRef,
        root: &extent::Root,
        start: u32,
        count: u32,
    ) -> Result<()> {
        let core = self.core();
        for run in extent::take(core, h, root, start, count).await? {
            let cluster = core.geometry.cluster_of(run.physical).ok_or_else(|| {
                Error::TooBig(format!("block {} is past 2^32 clusters", run.physical))
            })?;
            if run.flags.contains(ExtentFlags::REFCOUNTED) {
                refcount::decrease(core, h, inode, cluster, run.clusters).await?;
            } else {
                alloc::release_clusters(core, h, cluster, run.clusters).await?;
            }
        }
        Ok(())
    }
}
