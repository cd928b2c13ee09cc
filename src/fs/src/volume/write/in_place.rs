//! Attempts that change no shape: whole requests inside the file, over clusters that are allocated,
//! written and not shared. The inode is held shared, so many run at the same time; the range lock
//! orders those that meet at a ragged edge.

use futures_util::future::join_all;
use ondisk::BlockNr;
use ondisk::feature::{DynFeatures, ExtentFlags};
use runtime::{BlockDeviceExt, Buffer};

use super::iocb::{Iocb, LockLevel, Outcome, Path};
use crate::error::{Error, Result};
use crate::extent::Mapping;
use crate::inode::Inode;
use crate::lock::ReadGuard;
use crate::pages::pages_of;
use crate::range_lock::{Range, RangeGuard};
use crate::run_cache;
use crate::volume::attr::without_set_id;
use crate::volume::{Coherency, FileHandle, Volume};

/// A run of blocks of the request, contiguous on the device.
struct Piece {
    first: BlockNr,
    blocks: u64,
}

/// The way that a request's bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::volume) enum Way {
    /// Into the file.
    In,
    Out,
}

/// What a request holds while its bytes go straight between the device and its own memory.
pub(in crate::volume) struct Direct<'f> {
    /// Where they are, in bytes from the start of the device.
    pub at: u64,
    // Given back in this order.
    _range: Option<RangeGuard<'f>>,
    _shared: ReadGuard<'f>,
    _gate: ReadGuard<'f>,
}

impl Volume {
    /// Writes the request if all of it can be done in place; false, and nothing done, if not.
    pub(super) async fn write_in_place(&self, iocb: &mut Iocb<'_>) -> Result<bool> {
        let inode = iocb.file.inode();
        let len = iocb.rest().len() as u64;
        if !may_be_in_place(iocb.file, iocb.position(), len) {
            return Ok(false);
        }
        let (from, nowait) = (iocb.position(), iocb.file.flags().nowait);
        let _shared = self.shared_settled(inode, from, from + len, nowait).await?;
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
        self.drop_clean(inode, pages_of(iocb.position(), end));
        self.advance(iocb, self.in_place(iocb.file, bytes, range.has_edge()));
        error.map_or(Ok(true), Err)
    }

    /// What a request of whole blocks over one run needs to go straight between the device and its
    /// own memory: nothing is copied. `None` if that cannot be.
    ///
    /// The future is only made where [`Volume::direct_now`] had nothing to give.
    pub(in crate::volume) async fn direct<'f>(
        &'f self,
        file: &'f FileHandle,
        way: Way,
        position: u64,
        len: u64,
    ) -> Result<Option<Direct<'f>>> {
        if way == Way::In && file.flags().nowait {
            return Ok(None);
        }
        let gate = match way {
            Way::In => self.enter_writing().await?,
            Way::Out => self.enter().await?,
        };
        self.check_way(file, way)?;
        if !self.may_be_direct(file, way, position, len) {
            return Ok(None);
        }
        // With what is cached of it on the device; and once more, now that nobody can change it.
        let shared = self
            .shared_settled(file.inode(), position, position + len, false)
            .await?;
        if !self.may_be_direct(file, way, position, len) {
            return Ok(None);
        }
        let cpos = (position / self.core().geometry.cluster_size() as u64) as u32;
        let run = run_cache::lookup(self.core(), file.inode(), cpos).await?;
        let Some(at) = self.place_in(&run, way, position, len) else {
            return Ok(None);
        };
        let range = match way {
            Way::In => Some(self.lock_range(file, position, len).await?.1),
            Way::Out => None,
        };
        Ok(Some(Direct {
            at,
            _range: range,
            _shared: shared,
            _gate: gate,
        }))
    }

    /// As [`Volume::direct`], if everything it needs is at hand. `None` is no answer but to ask that
    /// one. This is what most requests of a busy file come by: nothing here waits or takes memory.
    pub(in crate::volume) fn direct_now<'f>(
        &'f self,
        file: &'f FileHandle,
        way: Way,
        position: u64,
        len: u64,
    ) -> Option<Direct<'f>> {
        let gate = self.try_enter()?;
        if way == Way::In && self.is_read_only() {
            return None;
        }
        let inode = file.inode();
        let shared = inode.try_shared()?;
        if inode.pages.is_unsettled()
            || self.check_way(file, way).is_err()
            || !self.may_be_direct(file, way, position, len)
        {
            return None;
        }
        let cpos = (position / self.core().geometry.cluster_size() as u64) as u32;
        let run = run_cache::peek(self.core(), inode, cpos)?;
        let at = self.place_in(&run, way, position, len)?;
        let range = match way {
            Way::In => Some(inode.ranges.try_lock(self.range_of(position, len))?),
            Way::Out => None,
        };
        Some(Direct {
            at,
            _range: range,
            _shared: shared,
            _gate: gate,
        })
    }

    /// Whole blocks inside a file whose bytes lie in clusters. For writing: in place.
    fn may_be_direct(&self, file: &FileHandle, way: Way, position: u64, len: u64) -> bool {
        let block = self.core().block_size() as u64;
        let aligned = (position | len) & (block - 1) == 0 && len > 0;
        aligned
            && match way {
                Way::In => may_be_in_place(file, position, len),
                Way::Out => is_inside(file.inode(), position, len),
            }
    }

    fn check_way(&self, file: &FileHandle, way: Way) -> Result<()> {
        match way {
            Way::In => self.check_write(file),
            Way::Out => self.check_read(file),
        }
    }

    /// The device's byte for a range that one written extent holds: for writing, one not shared.
    fn place_in(&self, run: &Mapping, way: Way, position: u64, len: u64) -> Option<u64> {
        let cluster = self.core().geometry.cluster_size() as u64;
        let end = (u64::from(run.cpos) + u64::from(run.clusters)) * cluster;
        let usable = match way {
            Way::In => run.flags.is_empty(),
            Way::Out => !run.flags.contains(ExtentFlags::UNWRITTEN),
        };
        let start = run.physical.filter(|_| usable && position + len <= end)?;
        let into = position - u64::from(run.cpos) * cluster;
        Some(start.0 * self.core().block_size() as u64 + into)
    }

    fn range_of(&self, position: u64, len: u64) -> Range {
        Range::of_bytes(position, len, self.core().block_size() as u64)
    }

    /// How a write in place has ended.
    pub(super) fn in_place(
        &self,
        file: &FileHandle,
        bytes: usize,
        edges_serialised: bool,
    ) -> Outcome {
        Outcome {
            path: Path::InPlace,
            bytes,
            direct: file.flags().direct,
            fallback: None,
            edges_serialised,
            exclusive: false,
            lock: match self.0.coherency {
                Coherency::Full => LockLevel::Exclusive,
                Coherency::Buffered => LockLevel::Shared,
            },
        }
    }

    async fn lock_range<'f>(
        &self,
        file: &'f FileHandle,
        position: u64,
        len: u64,
    ) -> Result<(Range, RangeGuard<'f>)> {
        let range = self.range_of(position, len);
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
    is_inside(inode, position, len) && without_set_id(d.i_mode.get()) == d.i_mode.get()
}

/// Bytes of a file that are there, and lie in clusters, or will once they are settled.
fn is_inside(inode: &Inode, position: u64, len: u64) -> bool {
    let d = inode.dinode();
    position
        .checked_add(len)
        .is_some_and(|end| end <= inode.size())
        && !d.dyn_features().contains(DynFeatures::INLINE_DATA)
}
