//! One step of a write: as far as one extent, and one step's limit, goes. Planned afresh from what
//! the tree says now.
//!
//! ```text
//!  range          what happens                                          when it shows
//!  unwritten      to its place, rest of the clusters zeroed, then the   with the commit that
//!                 flag is cleared                                       clears the flag
//!  hole           clusters set aside, written, rest zeroed, then        with the commit of the
//!                 claimed and inserted in one handle                    extent
//!  shared         copied first (refcount::cow), then as written
//!  written        straight to its place; ragged edges read and merged   at once
//! ```
//! If we crash in between, the range reads as it did before: never as what the clusters held. No
//! journal handle is held while data is on its way, so others go on changing metadata.

use futures_util::future::join_all;
use ondisk::feature::ExtentFlags;
use ondisk::{BlockNr, ClusterNr, Dinode};
use runtime::{BlockDeviceExt, Buffer};

use super::iocb::Path;
use super::payload::{Payload, padded};
use crate::alloc;
use crate::error::{Error, Result};
use crate::extent;
use crate::inode::InodeRef;
use crate::journal::Handle;
use crate::limits;
use crate::lock::WriteGuard;
use crate::refcount;
use crate::volume::Volume;
use crate::volume::names::touch;

/// Blocks that one step of a write may change: dinode, a path of extent blocks with new ones and
/// their groups and allocators, group and local alloc of the data.
pub(super) const WRITE_BLOCKS: u32 = 64;

/// Times are kept to this grain when only data changes, as the kernel's coarse clock does: a
/// stream of small overwrites is not a stream of inode updates.
const TIME_GRAIN_NS: u32 = 4_000_000;

/// On whose behalf a step is made. In either case the inode's turn is held: nobody else changes
/// where the file's data lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::volume) enum By {
    /// A request, which has the inode to itself. Times change.
    Request,
    /// A write-back that has the inode to itself. Times changed when the data was written.
    WriteBackHolding,
    /// A write-back that takes the inode only while it changes the tree.
    WriteBack,
}

impl Volume {
    /// Writes what of `data` fits in one step at byte `at`. Tells how, and how much.
    pub(in crate::volume) async fn write_step(
        &self,
        inode: &InodeRef,
        at: u64,
        data: Payload<'_>,
        by: By,
    ) -> Result<(Path, u64)> {
        let core = self.core();
        let cluster = core.geometry.cluster_size() as u64;
        let root = extent::Root::dinode(inode.block());
        let cpos = cluster_at(at, cluster)?;
        let run = extent::lookup(core, &root, cpos).await?;
        let run_end = (u64::from(run.cpos) + u64::from(run.clusters)) * cluster;
        let limit = at - at % cluster + limits::WRITE_STEP.max(cluster);
        let end = run_end.min(at + data.len()).min(limit);
        let piece = data.first(end - at);
        let last = (end - 1) / cluster;
        let clusters = (last - u64::from(cpos) + 1) as u32;
        let Some(first) = run.physical else {
            let fill = async || {
                self.fill_hole(inode, &root, at, data, cpos, clusters, by)
                    .await
            };
            return Ok((Path::Hole, alloc::with_space(core, fill).await?));
        };
        if run.flags.contains(ExtentFlags::REFCOUNTED) {
            let _lock = self.lock_for(inode, by).await?;
            self.break_sharing(inode, &root, cpos, clusters).await?;
            return Ok((Path::CopyOnWrite, 0)); // planned again: the extent is ours now
        }
        if !run.flags.contains(ExtentFlags::UNWRITTEN) {
            self.overwrite(inode, first, at, at % cluster, piece)
                .await?;
            inode.data_written();
            match by {
                By::Request => self.finish_overwrite(inode, end).await?,
                By::WriteBack | By::WriteBackHolding => self.finish_cached(inode, end).await?,
            }
            return Ok((Path::InPlace, end - at));
        }
        self.write_padded(first, clusters, at % cluster, piece)
            .await?;
        let _lock = self.lock_for(inode, by).await?;
        alloc::with_space(core, async || {
            let mut h = core.journal.begin(WRITE_BLOCKS).await?;
            let (set, clear) = (ExtentFlags::empty(), ExtentFlags::UNWRITTEN);
            extent::set_flags(core, &mut h, &root, cpos, clusters, set, clear).await?;
            self.finish_step(h, inode, end, by == By::Request);
            Ok(())
        })
        .await?;
        Ok((Path::Unwritten, end - at))
    }

    /// Makes shared clusters the file's own: those that are to be written, and so many around them in
    /// the same extent that copies stay together, if there is space for that.
    async fn break_sharing(
        &self,
        inode: &InodeRef,
        root: &extent::Root,
        cpos: u32,
        clusters: u32,
    ) -> Result<()> {
        let core = self.core();
        let piece = u64::from(self.0.copy_on_write_bytes >> core.geometry.cluster_size_bits);
        let around = extent::runs(core, root, cpos, 1).await?.pop();
        if let Some(run) = around.filter(|run| piece > 1 && run.cpos <= cpos) {
            let end = u64::from(cpos) + u64::from(clusters);
            let from = (u64::from(cpos) / piece * piece).max(u64::from(run.cpos));
            let to = end.next_multiple_of(piece).min(run.end());
            match refcount::cow(core, inode, from as u32, (to - from) as u32).await {
                Err(Error::NoSpace(_)) => {}
                other => return other,
            }
        }
        refcount::cow(core, inode, cpos, clusters).await
    }

    /// A write-back takes the inode for itself while it changes the tree.
    async fn lock_for<'i>(&self, inode: &'i InodeRef, by: By) -> Result<Option<WriteGuard<'i>>> {
        match by {
            By::Request | By::WriteBackHolding => Ok(None),
            By::WriteBack => Ok(Some(inode.exclusive().await?)),
        }
    }

    /// Writes a hole: to clusters that are set aside, and are claimed and inserted in one handle
    /// once the data is there. Takes what contiguous run there is; tells how many bytes are in.
    async fn fill_hole(
        &self,
        inode: &InodeRef,
        root: &extent::Root,
        at: u64,
        data: Payload<'_>,
        cpos: u32,
        clusters: u32,
        by: By,
    ) -> Result<u64> {
        let core = self.core();
        let cluster = core.geometry.cluster_size() as u64;
        let goal = self.goal(root, cpos).await?;
        let end_of = |got: u32| (at + data.len()).min((u64::from(cpos) + u64::from(got)) * cluster);
        let flags = ExtentFlags::empty();
        if let Some(reserved) = alloc::reserve(core, goal, clusters).await? {
            let (got, end) = (reserved.count, end_of(reserved.count));
            let first = core.geometry.first_block(reserved.start);
            self.write_padded(first, got, at % cluster, data.first(end - at))
                .await?;
            let _lock = self.lock_for(inode, by).await?;
            let mut h = core.journal.begin(WRITE_BLOCKS).await?;
            reserved.claim(core, &mut h).await?;
            extent::insert(core, &mut h, root, cpos, first, got, flags).await?;
            self.finish_step(h, inode, end, by == By::Request);
            return Ok(end - at);
        }
        // No window to set clusters aside in: under the handle, so that no commit comes between the
        // claim and the data.
        let _lock = self.lock_for(inode, by).await?;
        let mut h = core.journal.begin(WRITE_BLOCKS).await?;
        let (start, got) = alloc::claim_clusters(core, &mut h, goal, 1, clusters).await?;
        let end = end_of(got);
        let first = core.geometry.first_block(start);
        self.write_padded(first, got, at % cluster, data.first(end - at))
            .await?;
        extent::insert(core, &mut h, root, cpos, first, got, flags).await?;
        self.finish_step(h, inode, end, by == By::Request);
        Ok(end - at)
    }

    /// The cluster after the one that precedes `cpos` in the file.
    pub(in crate::volume) async fn goal(
        &self,
        root: &extent::Root,
        cpos: u32,
    ) -> Result<Option<ClusterNr>> {
        let Some(before) = cpos.checked_sub(1) else {
            return Ok(None);
        };
        let run = extent::lookup(self.core(), root, before).await?;
        let Some(start) = run.physical else {
            return Ok(None);
        };
        let start = self.core().geometry.cluster_of(start);
        Ok(start
            .and_then(|start| start.0.checked_add(before - run.cpos + 1))
            .map(ClusterNr))
    }

    /// Writes `piece` at `into` bytes of a run of clusters that nobody can read yet; all else of
    /// the run becomes zero.
    pub(super) async fn write_padded(
        &self,
        first: BlockNr,
        clusters: u32,
        into: u64,
        piece: Payload<'_>,
    ) -> Result<()> {
        let core = self.core();
        let total = core.geometry.cluster_size() * clusters as usize;
        self.write_all(first, padded(self, piece, into as usize, total))
            .await
    }

    /// Device writes from a block on, all in flight together.
    async fn write_all(&self, first: BlockNr, writes: Vec<(usize, Vec<Buffer>)>) -> Result<()> {
        let device = &self.core().device;
        let start = first.0 * self.core().block_size() as u64;
        let writes = writes
            .into_iter()
            .map(|(at, buffers)| device.writev(start + at as u64, buffers));
        for done in join_all(writes).await {
            done.result?;
        }
        Ok(())
    }

    /// Writes into written clusters. Whole blocks go as they are; the ragged ones at the edges are
    /// read, merged and written. Past the end of the file an edge block's rest becomes zero.
    pub(super) async fn overwrite(
        &self,
        inode: &InodeRef,
        first: BlockNr,
        at: u64,
        into: u64,
        piece: Payload<'_>,
    ) -> Result<()> {
        let core = self.core();
        let block = core.block_size() as u64;
        let (from, to) = (into, into + piece.len());
        let (first_block, end_block) = (from / block, to.div_ceil(block));
        let place = BlockNr(first.0 + first_block);
        let Payload::Bytes(bytes) = piece else {
            // Pages begin with a block, and bring the rest of their last one.
            let blocks = padded(self, piece, 0, piece.whole());
            return self.write_all(place, blocks).await;
        };
        let head = (from - first_block * block) as usize;
        if head == 0 && to.is_multiple_of(block) {
            return self
                .write_all(place, padded(self, piece, 0, bytes.len()))
                .await;
        }
        let size = inode.dinode().i_size.get();
        let mut buffer = core
            .device
            .allocate(((end_block - first_block) * block) as usize);
        let tail = head + bytes.len();
        let whole = buffer.len();
        if head > 0 {
            let edge = self.read_blocks(place, 1).await?;
            buffer[..head].copy_from_slice(&edge[..head]);
        }
        if tail < whole {
            if at + piece.len() >= size {
                buffer[tail..].fill(0);
            } else {
                let edge = self
                    .read_blocks(BlockNr(first.0 + end_block - 1), 1)
                    .await?;
                let rest = whole - tail;
                buffer[tail..].copy_from_slice(&edge[edge.len() - rest..]);
            }
        }
        buffer[head..tail].copy_from_slice(bytes);
        self.write_all(place, vec![(0, vec![buffer])]).await
    }

    /// Zeroes a range inside one written, unshared extent.
    pub(in crate::volume) async fn overwrite_zero(
        &self,
        inode: &InodeRef,
        from: u64,
        to: u64,
    ) -> Result<()> {
        let core = self.core();
        let cluster = core.geometry.cluster_size() as u64;
        let root = extent::Root::dinode(inode.block());
        let cpos = cluster_at(from, cluster)?;
        let run = extent::lookup(core, &root, cpos).await?;
        let start = run
            .physical
            .ok_or_else(|| Error::Invalid(format!("zeroing a hole at {from}")))?;
        let first = BlockNr(
            start.0 + u64::from(core.geometry.blocks_per_cluster()) * u64::from(cpos - run.cpos),
        );
        let zeroes = vec![0u8; (to - from) as usize];
        self.overwrite(inode, first, from, from % cluster, Payload::Bytes(&zeroes))
            .await?;
        inode.data_written();
        Ok(())
    }

    /// Size, and times if they are to change, of a step that changed metadata anyway.
    pub(super) fn finish_step(&self, mut h: Handle<'_>, inode: &InodeRef, end: u64, times: bool) {
        {
            let mut bytes = h.modify_attributes(inode.block());
            let d = Dinode::of_mut(&mut bytes);
            if end > d.i_size.get() {
                d.i_size.set(end);
            }
            if times {
                touch(d, self.core().now());
            }
        }
        inode.changed_in(h.commit());
    }

    /// Size and times of a step that changed data only: a handle only where they change.
    pub(super) async fn finish_overwrite(&self, inode: &InodeRef, end: u64) -> Result<()> {
        if self.attributes_hold(inode, end) {
            return Ok(());
        }
        let h = self.core().journal.begin(1).await?;
        self.finish_step(h, inode, end, true);
        Ok(())
    }

    /// Size and times are right already after a write up to `end` that ends now.
    pub(super) fn attributes_hold(&self, inode: &InodeRef, end: u64) -> bool {
        let now = self.core().now();
        let d = inode.dinode();
        let (seconds, nanoseconds) = (d.i_mtime.get(), d.i_mtime_nsec.get());
        let fresh = if now.seconds as u64 == seconds {
            now.nanoseconds.abs_diff(nanoseconds) < TIME_GRAIN_NS
        } else {
            let mtime = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
            let now = i128::from(now.seconds) * 1_000_000_000 + i128::from(now.nanoseconds);
            (now - mtime).abs() < i128::from(TIME_GRAIN_NS)
        };
        fresh && end <= d.i_size.get()
    }

    /// As [`Volume::finish_overwrite`], for data whose times changed when it was cached.
    async fn finish_cached(&self, inode: &InodeRef, end: u64) -> Result<()> {
        if end <= inode.dinode().i_size.get() {
            return Ok(());
        }
        let h = self.core().journal.begin(1).await?;
        self.finish_step(h, inode, end, false);
        Ok(())
    }
}

/// The cluster of a file that holds a byte.
pub(in crate::volume) fn cluster_at(byte: u64, cluster_size: u64) -> Result<u32> {
    u32::try_from(byte / cluster_size)
        .map_err(|_| Error::TooBig(format!("byte {byte} is past 2^32 clusters")))
}
