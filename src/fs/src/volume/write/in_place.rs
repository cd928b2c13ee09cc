//! Attempts that change no shape: whole requests inside the file, over clusters that are allocated,
//! written and not shared. The inode is held shared, so many run at the same time; the range lock
//! orders those that meet at a ragged edge.

use async_lock::RwLockReadGuard;
use futures_util::future::join_all;
use ondisk::BlockNr;
use ondisk::feature::{DynFeatures, ExtentFlags};
use runtime::{BlockDeviceExt, Buffer};

use super::iocb::{Iocb, Path};
use crate::error::{Error, Result};
use crate::inode::Inode;
use crate::range_lock::{Range, RangeGuard};
use crate::run_cache;
use crate::volume::attr::without_set_id;
use crate::volume::{FileHandle, Volume};

/// A run of blocks of the request, contiguous on the device.
struct Piece {
    first: BlockNr,
    blocks: u64,
}

impl Volume {
    /// Writes the request if all of it can be done in place; false, and nothing done, if not.
    pub(super) async fn write_in_place(&self, iocb: &mut Iocb<'_>) -> Result<bool> {
        let inode = iocb.file.inode();
        let len = iocb.rest().len() as u64;
        if !may_be_in_place(iocb.file, iocb.position(), len) {
            return Ok(false);
        }
        let _shared = if iocb.file.flags().nowait {
            let guard = inode.lock.try_read();
            guard.ok_or_else(|| Error::WouldBlock("the file is in use".into()))?
        } else {
            inode.shared().await?
        };
        let Some(pieces) = self.plan_in_place(inode, iocb.position(), len).await? else {
            return Ok(false);
        };
        let (range, _guard) = self.lock_range(iocb.file, iocb.position(), len).await?;
        let end = iocb.position() + len;
        let (bytes, error) = self
            .write_pieces(&pieces, range, iocb.position(), iocb.rest())
            .await;
        if bytes > 0 {
            inode.data_written();
            self.finish_overwrite(inode, end.min(iocb.position() + bytes as u64))
                .await?;
        }
        iocb.advance(Path::InPlace, bytes, range.has_edge(), false);
        error.map_or(Ok(true), Err)
    }

    /// As [`Volume::write_in_place`], from the device's own memory and only where it needs no copy:
    /// whole blocks, one run. `None`, and nothing done, if not. The buffer comes back.
    pub(super) async fn write_in_place_from(
        &self,
        file: &FileHandle,
        position: u64,
        buffer: Buffer,
    ) -> (Buffer, Result<Option<u64>>) {
        let len = buffer.len() as u64;
        let (first, _shared, _guard) = match self.hold_one_run(file, position, len).await {
            Ok(Some(held)) => held,
            Ok(None) => return (buffer, Ok(None)),
            Err(error) => return (buffer, Err(error)),
        };
        let core = self.core();
        let (buffer, result) = core
            .device
            .write(first.0 * core.block_size() as u64, buffer)
            .await;
        if let Err(error) = result {
            return (buffer, Err(error.into()));
        }
        file.inode().data_written();
        let finished = self.finish_overwrite(file.inode(), position + len).await;
        (buffer, finished.map(|()| Some(len)))
    }

    /// The one run that the range is, the inode held shared and the range locked.
    async fn hold_one_run<'f>(
        &self,
        file: &'f FileHandle,
        position: u64,
        len: u64,
    ) -> Result<Option<(BlockNr, RwLockReadGuard<'f, ()>, RangeGuard<'f>)>> {
        let block = self.core().block_size() as u64;
        let aligned = position.is_multiple_of(block) && len.is_multiple_of(block) && len > 0;
        if !aligned || file.flags().nowait || !may_be_in_place(file, position, len) {
            return Ok(None);
        }
        let shared = file.inode().shared().await?;
        if !fits_in_place(file.inode(), position, len) {
            return Ok(None);
        }
        let Some(first) = self.one_run(file.inode(), position, len, false).await? else {
            return Ok(None);
        };
        let (_, guard) = self.lock_range(file, position, len).await?;
        Ok(Some((first, shared, guard)))
    }

    async fn lock_range<'f>(
        &self,
        file: &'f FileHandle,
        position: u64,
        len: u64,
    ) -> Result<(Range, RangeGuard<'f>)> {
        let range = Range::of_bytes(position, len, self.core().block_size() as u64);
        let locks = &file.inode().ranges;
        if file.flags().nowait {
            let guard = locks.try_lock(range);
            return Ok((
                range,
                guard.ok_or_else(|| Error::WouldBlock("another write is there".into()))?,
            ));
        }
        Ok((range, locks.lock(range).await.0))
    }

    /// The device's block for a range that one written extent holds: for writing, one not shared.
    pub(in crate::volume) async fn one_run(
        &self,
        inode: &Inode,
        position: u64,
        len: u64,
        shared_too: bool,
    ) -> Result<Option<BlockNr>> {
        let core = self.core();
        let cluster = core.geometry.cluster_size() as u64;
        let cpos = (position / cluster) as u32;
        let run = run_cache::lookup(core, inode, cpos).await?;
        let end = (u64::from(run.cpos) + u64::from(run.clusters)) * cluster;
        let usable = match shared_too {
            true => !run.flags.contains(ExtentFlags::UNWRITTEN),
            false => run.flags.is_empty(),
        };
        let whole = usable && position + len <= end;
        let into = (position % cluster) / core.block_size() as u64;
        Ok(run
            .physical
            .filter(|_| whole)
            .map(|start| BlockNr(start.0 + into)))
    }

    async fn plan_in_place(
        &self,
        inode: &Inode,
        position: u64,
        len: u64,
    ) -> Result<Option<Vec<Piece>>> {
        // Once more, now that nobody can change it.
        if !fits_in_place(inode, position, len) {
            return Ok(None);
        }
        let core = self.core();
        let block = core.block_size() as u64;
        let per_cluster = u64::from(core.geometry.blocks_per_cluster());
        let (mut at, end) = (position / block, (position + len).div_ceil(block));
        let mut pieces = Vec::new();
        while at < end {
            let run = run_cache::lookup(core, inode, (at / per_cluster) as u32).await?;
            let Some(start) = run.physical.filter(|_| run.flags == ExtentFlags::empty()) else {
                return Ok(None);
            };
            let into = at % per_cluster;
            let blocks = (u64::from(run.clusters) * per_cluster - into).min(end - at);
            pieces.push(Piece {
                first: BlockNr(start.0 + into),
                blocks,
            });
            at += blocks;
        }
        Ok(Some(pieces))
    }

    /// Writes all pieces at once. What counts as in is the prefix before the first that failed.
    async fn write_pieces(
        &self,
        pieces: &[Piece],
        range: Range,
        position: u64,
        data: &[u8],
    ) -> (usize, Option<Error>) {
        let core = self.core();
        let block = core.block_size();
        let head = (position % block as u64) as usize;
        let edges = match self.read_edges(pieces, range).await {
            Ok(edges) => edges,
            Err(error) => return (0, Some(error)),
        };
        let mut from = 0; // in bytes from the start of the first block
        let writes: Vec<_> = pieces
            .iter()
            .map(|piece| {
                let len = piece.blocks as usize * block;
                let mut buffer = core.device.allocate(len);
                // The request's bytes in this piece, and what the edges' blocks held beside them.
                let (start, end) = (from.max(head), (from + len).min(head + data.len()));
                if let Some(edge) = edges.0.as_ref().filter(|_| start > from) {
                    buffer[..start - from].copy_from_slice(&edge[..start - from]);
                }
                if let Some(edge) = edges.1.as_ref().filter(|_| end < from + len) {
                    let keep = from + len - end;
                    buffer[len - keep..].copy_from_slice(&edge[block - keep..]);
                }
                buffer[start - from..end - from].copy_from_slice(&data[start - head..end - head]);
                from += len;
                let ends_at = end - head;
                let write = core.device.write(piece.first.0 * block as u64, buffer);
                async move { (ends_at, write.await.1) }
            })
            .collect();
        let mut done = 0;
        for (ends_at, result) in join_all(writes).await {
            match result {
                Ok(()) => done = ends_at,
                Err(error) => return (done, Some(error.into())),
            }
        }
        (done, None)
    }

    /// What the first and the last block hold, where the request writes only a part of them.
    async fn read_edges(
        &self,
        pieces: &[Piece],
        range: Range,
    ) -> Result<(Option<Buffer>, Option<Buffer>)> {
        let (Some(first), Some(last)) = (pieces.first(), pieces.last()) else {
            return Ok((None, None));
        };
        let head = if range.head_edge {
            Some(self.read_blocks(first.first, 1).await?)
        } else {
            None
        };
        let tail = if range.tail_edge {
            Some(
                self.read_blocks(BlockNr(last.first.0 + last.blocks - 1), 1)
                    .await?,
            )
        } else {
            None
        };
        Ok((head, tail))
    }
}

/// Worth a look under the shared lock: an append never is.
fn may_be_in_place(file: &FileHandle, position: u64, len: u64) -> bool {
    !file.flags().append && fits_in_place(file.inode(), position, len)
}

/// Inside the file, not inline, and no set-id bits to drop.
fn fits_in_place(inode: &Inode, position: u64, len: u64) -> bool {
    let d = inode.dinode();
    position
        .checked_add(len)
        .is_some_and(|end| end <= d.i_size.get())
        && !d.dyn_features().contains(DynFeatures::INLINE_DATA)
        && without_set_id(d.i_mode.get()) == d.i_mode.get()
}
