//! Attempts that change the file's shape: they hold the inode exclusively.
//!
//! ```text
//!  range          what happens                                          when it shows
//!  inline         copied into the dinode                                with the handle's commit
//!  unwritten      to its place, rest of the clusters zeroed, then the   with the commit that
//!                 flag is cleared                                       clears the flag
//!  hole           clusters claimed, written, rest zeroed, inserted      with the commit of the
//!                                                                       extent
//!  shared         copied first (refcount::cow), then as written
//!  written        straight to its place; ragged edges read and merged   at once
//! ```
//! If we crash in between, the range reads as it did before: never as what the clusters held.

use ondisk::feature::{DynFeatures, ExtentFlags, Incompat};
use ondisk::{BlockNr, ClusterNr, Dinode, RootKind};
use runtime::BlockDeviceExt;

use super::iocb::{Iocb, Path};
use crate::alloc;
use crate::error::{Error, Result};
use crate::extent;
use crate::inode::InodeRef;
use crate::journal::Handle;
use crate::limits;
use crate::refcount;
use crate::volume::Volume;
use crate::volume::attr::without_set_id;
use crate::volume::names::touch;

/// Blocks that one step of a write may change: dinode, a path of extent blocks with new ones and
/// their groups and allocators, group and local alloc of the data.
const WRITE_BLOCKS: u32 = 64;

/// Times are kept to this grain when only data changes, as the kernel's coarse clock does: a
/// stream of small overwrites is not a stream of inode updates.
const TIME_GRAIN_NS: u32 = 4_000_000;

impl Volume {
    /// The whole rest of a request, attempt by attempt. The caller has the inode exclusively.
    pub(super) async fn write_exclusive(&self, iocb: &mut Iocb<'_>) -> Result<()> {
        let inode = iocb.file.inode().clone();
        if iocb.file.flags().append {
            // Decided here, under the lock: a size read before it may be another writer's past.
            iocb.move_to_end(inode.dinode().i_size.get());
        }
        let end = iocb
            .end()
            .filter(|&end| end <= self.max_file_bytes())
            .ok_or_else(|| {
                let (len, at) = (iocb.rest().len(), iocb.position());
                Error::TooBig(format!(
                    "{len} bytes at {at}, at most {}",
                    self.max_file_bytes()
                ))
            })?;
        self.drop_set_id(&inode).await?;
        if self
            .write_inline(&inode, iocb.position(), iocb.rest(), end)
            .await?
        {
            iocb.advance(Path::Inline, iocb.rest().len(), false, true);
            return Ok(());
        }
        let size = inode.dinode().i_size.get();
        if iocb.position() > size {
            self.zero_gap(&inode, size, iocb.position()).await?;
            self.fill_to(&inode, iocb.position()).await?;
        }
        let begun_at = iocb.position();
        while !iocb.rest().is_empty() {
            let step = self.write_step(&inode, iocb.position(), iocb.rest());
            match step.await {
                Ok((path, bytes)) => iocb.advance(path, bytes, false, true),
                Err(error) => {
                    if iocb.position() == begun_at {
                        self.take_back(&inode, size).await?;
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// The next piece: as far as one extent, and one step's limit, goes. Planned afresh from what
    /// the tree says now.
    pub(in crate::volume) async fn write_step(
        &self,
        inode: &InodeRef,
        at: u64,
        data: &[u8],
    ) -> Result<(Path, usize)> {
        let core = self.core();
        let cluster = core.geometry.cluster_size() as u64;
        let root = extent::Root::dinode(inode.block());
        let cpos = (at / cluster) as u32;
        let run = extent::lookup(core, &root, cpos).await?;
        let run_end = (u64::from(run.cpos) + u64::from(run.clusters)) * cluster;
        let limit = at - at % cluster + limits::WRITE_STEP.max(cluster);
        let end = run_end.min(at + data.len() as u64).min(limit);
        let piece = &data[..(end - at) as usize];
        let last = (end - 1) / cluster;
        let clusters = (last - u64::from(cpos) + 1) as u32;
        let Some(first) = run.physical else {
            let fill = async || self.fill_hole(inode, &root, at, data, cpos, clusters).await;
            return Ok((Path::Hole, alloc::with_space(core, fill).await?));
        };
        if run.flags.contains(ExtentFlags::REFCOUNTED) {
            refcount::cow(core, inode, cpos, clusters).await?;
            return Ok((Path::CopyOnWrite, 0)); // planned again: the extent is ours now
        }
        if !run.flags.contains(ExtentFlags::UNWRITTEN) {
            self.overwrite(inode, first, at, at % cluster, piece)
                .await?;
            inode.data_written();
            self.finish_overwrite(inode, end).await?;
            return Ok((Path::InPlace, piece.len()));
        }
        self.write_padded(first, clusters, at % cluster, piece)
            .await?;
        let mut h = core.journal.begin(WRITE_BLOCKS).await?;
        let (set, clear) = (ExtentFlags::empty(), ExtentFlags::UNWRITTEN);
        extent::set_flags(core, &mut h, &root, cpos, clusters, set, clear).await?;
        self.finish_step(h, inode, end);
        Ok((Path::Unwritten, piece.len()))
    }

    /// Claims clusters for a hole, writes them, and inserts them, in one handle: no commit can
    /// come between the claim and the data. Takes what contiguous run there is; returns how many
    /// bytes of `data` are in.
    async fn fill_hole(
        &self,
        inode: &InodeRef,
        root: &extent::Root,
        at: u64,
        data: &[u8],
        cpos: u32,
        clusters: u32,
    ) -> Result<usize> {
        let core = self.core();
        let cluster = core.geometry.cluster_size() as u64;
        let goal = self.goal(root, cpos).await?;
        let mut h = core.journal.begin(WRITE_BLOCKS).await?;
        let (start, got) = alloc::claim_clusters(core, &mut h, goal, 1, clusters).await?;
        let end = (at + data.len() as u64).min((u64::from(cpos) + u64::from(got)) * cluster);
        let piece = &data[..(end - at) as usize];
        let first = core.geometry.first_block(start);
        self.write_padded(first, got, at % cluster, piece).await?;
        extent::insert(core, &mut h, root, cpos, first, got, ExtentFlags::empty()).await?;
        self.finish_step(h, inode, end);
        Ok(piece.len())
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
    async fn write_padded(
        &self,
        first: BlockNr,
        clusters: u32,
        into: u64,
        piece: &[u8],
    ) -> Result<()> {
        let core = self.core();
        let len = core.geometry.cluster_size() * clusters as usize;
        let mut buffer = core.device.allocate(len);
        let (head, tail) = (into as usize, into as usize + piece.len());
        buffer[..head].fill(0);
        buffer[head..tail].copy_from_slice(piece);
        buffer[tail..].fill(0);
        let (_, result) = core
            .device
            .write(first.0 * core.block_size() as u64, buffer)
            .await;
        Ok(result?)
    }

    /// Writes into written clusters. Whole blocks go as they are; the ragged ones at the edges are
    /// read, merged and written. Past the end of the file an edge block's rest becomes zero.
    async fn overwrite(
        &self,
        inode: &InodeRef,
        first: BlockNr,
        at: u64,
        into: u64,
        piece: &[u8],
    ) -> Result<()> {
        let core = self.core();
        let block = core.block_size() as u64;
        let (from, to) = (into, into + piece.len() as u64);
        let (first_block, end_block) = (from / block, to.div_ceil(block));
        let size = inode.dinode().i_size.get();
        let mut buffer = core
            .device
            .allocate(((end_block - first_block) * block) as usize);
        let head = (from - first_block * block) as usize;
        let tail = head + piece.len();
        let whole = buffer.len();
        if head > 0 {
            let edge = self.read_blocks(BlockNr(first.0 + first_block), 1).await?;
            buffer[..head].copy_from_slice(&edge[..head]);
        }
        if tail < whole {
            if at + piece.len() as u64 >= size {
                buffer[tail..].fill(0);
            } else {
                let edge = self
                    .read_blocks(BlockNr(first.0 + end_block - 1), 1)
                    .await?;
                let rest = whole - tail;
                buffer[tail..].copy_from_slice(&edge[edge.len() - rest..]);
            }
        }
        buffer[head..tail].copy_from_slice(piece);
        let (_, result) = core
            .device
            .write((first.0 + first_block) * block, buffer)
            .await;
        Ok(result?)
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
        let cpos = (from / cluster) as u32;
        let run = extent::lookup(core, &root, cpos).await?;
        let start = run
            .physical
            .ok_or_else(|| Error::Invalid(format!("zeroing a hole at {from}")))?;
        let first = BlockNr(
            start.0 + u64::from(core.geometry.blocks_per_cluster()) * u64::from(cpos - run.cpos),
        );
        let zeroes = vec![0u8; (to - from) as usize];
        self.overwrite(inode, first, from, from % cluster, &zeroes)
            .await?;
        inode.data_written();
        Ok(())
    }

    /// Size and times of a step that changed metadata anyway.
    fn finish_step(&self, mut h: Handle<'_>, inode: &InodeRef, end: u64) {
        {
            let mut bytes = h.modify_attributes(inode.block());
            let d = Dinode::of_mut(&mut bytes);
            if end > d.i_size.get() {
                d.i_size.set(end);
            }
            touch(d, self.core().now());
        }
        inode.changed_in(h.commit());
    }

    /// Size and times of a step that changed data only: a handle only where they change.
    pub(super) async fn finish_overwrite(&self, inode: &InodeRef, end: u64) -> Result<()> {
        if self.attributes_hold(inode, end) {
            return Ok(());
        }
        let h = self.core().journal.begin(1).await?;
        self.finish_step(h, inode, end);
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

    async fn drop_set_id(&self, inode: &InodeRef) -> Result<()> {
        let mode = inode.dinode().i_mode.get();
        if without_set_id(mode) == mode {
            return Ok(());
        }
        let mut h = self.core().journal.begin(1).await?;
        Dinode::of_mut(&mut h.modify(inode.block()))
            .i_mode
            .set(without_set_id(mode));
        inode.changed_in(h.commit());
        Ok(())
    }

    /// Writes into the dinode, if the file is inline (or empty and may become it) and the write
    /// fits; true if it did. A file that is inline and no longer fits is moved out first.
    async fn write_inline(
        &self,
        inode: &InodeRef,
        position: u64,
        data: &[u8],
        end: u64,
    ) -> Result<bool> {
        let core = self.core();
        let (inline, room, may_become) = {
            let block = inode.block().data();
            let d = Dinode::of(&block);
            let inline = d.dyn_features().contains(DynFeatures::INLINE_DATA);
            let room = inline_room(&block) as u64;
            let empty = d.i_clusters.get() == 0 && d.i_size.get() == 0;
            (
                inline,
                room,
                empty && core.geometry.has(Incompat::INLINE_DATA),
            )
        };
        if end > room || !(inline || may_become) {
            if inline {
                alloc::with_space(core, async || self.inline_to_extents(inode).await).await?;
            }
            return Ok(false);
        }
        let mut h = core.journal.begin(1).await?;
        {
            let mut bytes = h.modify(inode.block());
            if !inline {
                become_inline(&mut bytes);
            }
            let size = Dinode::of(&bytes).i_size.get();
            let area = ondisk::inline_data_mut(&mut bytes);
            if position > size {
                area[size as usize..position as usize].fill(0);
            }
            area[position as usize..end as usize].copy_from_slice(data);
        }
        self.finish_step(h, inode, end);
        Ok(true)
    }

    /// Moves inline data into a cluster of its own. The size stays. If the file is empty there is
    /// nothing to write, and no cluster.
    pub(in crate::volume) async fn inline_to_extents(&self, inode: &InodeRef) -> Result<()> {
        let core = self.core();
        let size = inode.dinode().i_size.get() as usize;
        let data = ondisk::inline_data(&inode.block().data())[..size].to_vec();
        let mut h = core.journal.begin(WRITE_BLOCKS).await?;
        {
            let mut bytes = h.modify(inode.block());
            become_extents(&mut bytes);
        }
        if size > 0 {
            let (start, _) = alloc::claim_clusters(core, &mut h, None, 1, 1).await?;
            let first = core.geometry.first_block(start);
            self.write_padded(first, 1, 0, &data).await?;
            let root = extent::Root::dinode(inode.block());
            extent::insert(core, &mut h, &root, 0, first, 1, ExtentFlags::empty()).await?;
        }
        inode.changed_in(h.commit());
        Ok(())
    }
}

/// The variable part of an empty dinode becomes inline data, all zero.
fn become_inline(block: &mut [u8]) {
    let room = inline_room(block);
    let d = Dinode::of_mut(block);
    d.set_dyn_features(d.dyn_features() | DynFeatures::INLINE_DATA);
    ondisk::set_inline_data_count(block, room as u16);
    ondisk::inline_data_mut(block).fill(0);
}

/// The variable part of an inline dinode becomes an empty extent list.
fn become_extents(block: &mut [u8]) {
    ondisk::inline_data_mut(block).fill(0);
    let xattrs = Dinode::of(block).inline_xattr_bytes(block.len());
    let count = ondisk::capacity::extents_in_inode(block.len(), xattrs);
    let d = Dinode::of_mut(block);
    d.set_dyn_features(d.dyn_features() - DynFeatures::INLINE_DATA);
    ondisk::init_extent_list(block, RootKind::Dinode, 0, count as u16);
}

/// Bytes of inline data that a dinode has room for, before its inline xattrs.
fn inline_room(block: &[u8]) -> usize {
    let xattrs = Dinode::of(block).inline_xattr_bytes(block.len());
    ondisk::capacity::inline_data_bytes(block.len(), xattrs)
}
