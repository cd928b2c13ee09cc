//! Reading file data: inline, extents, holes and unwritten extents (zeroes), shared extents (as
//! any).

use bytes::{Bytes, BytesMut};
use futures_util::future::join_all;
use ondisk::BlockNr;
use ondisk::feature::{DynFeatures, ExtentFlags};
use runtime::{BlockDeviceExt, Buffer};

use super::write::Way;
use super::{FileHandle, FileKind, Ino, Volume, kind_of};
use crate::error::{Error, Result};
use crate::inode::InodeRef;
use crate::limits;
use crate::run_cache;

/// A buffer whose window becomes shared bytes without a copy.
struct Owned(Buffer);

impl AsRef<[u8]> for Owned {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// A piece of a file: so many blocks from one place on the device, or zeroes.
pub(super) struct Piece {
    pub from: Option<BlockNr>,
    pub blocks: u64,
}

impl Volume {
    /// Up to `len` bytes from `offset`; fewer only at the end of the file, or when `len` is more
    /// than [`limits::READ_MAX`].
    pub async fn read(&self, file: &FileHandle, offset: u64, len: u64) -> Result<Bytes> {
        self.check_read(file)?;
        let _gate = self.enter().await?;
        let result = async {
            if !file.flags().direct {
                return self.read_cached(file, offset, len).await;
            }
            self.read_direct(file, offset, len).await
        }
        .await;
        self.watch(result)
    }

    async fn read_direct(&self, file: &FileHandle, offset: u64, len: u64) -> Result<Bytes> {
        let inode = file.inode();
        let end = offset.saturating_add(len);
        let _shared = self.shared_settled(inode, offset, end, false).await?;
        self.read_range(inode, offset, len).await
    }

    /// As [`Volume::read`], whatever the handle says of the cache.
    async fn read_past_cache(&self, file: &FileHandle, offset: u64, len: u64) -> Result<Bytes> {
        self.check_read(file)?;
        let _gate = self.enter().await?;
        let result = self.read_direct(file, offset, len).await;
        self.watch(result)
    }

    pub(super) fn check_read(&self, file: &FileHandle) -> Result<()> {
        if !file.flags().read {
            return Err(Error::Invalid("the handle is not open for reading".into()));
        }
        match kind_of(file.inode()) {
            FileKind::Regular => Ok(()),
            _ => Err(Error::IsDirectory(file.inode().nr())),
        }
    }

    /// As [`Volume::read`], into memory of the device, which comes back with how many bytes of it
    /// were read: whole blocks of one extent come without a copy.
    pub async fn read_buffer(
        &self,
        file: &FileHandle,
        offset: u64,
        buffer: Buffer,
    ) -> (Buffer, Result<u64>) {
        let len = buffer.len() as u64;
        let held = match self.direct_now(file, Way::Out, offset, len) {
            Some(held) => Ok(Some(held)),
            // In a box, as all that most requests do not come by: their own future stays small.
            None => Box::pin(self.direct(file, Way::Out, offset, len)).await,
        };
        match self.watch(held) {
            Ok(Some(held)) => {
                let (buffer, result) = self.core().device.read(held.at, buffer).await;
                (buffer, result.map(|()| len).map_err(Error::from))
            }
            Ok(None) => {
                let mut buffer = buffer;
                let result = Box::pin(self.read_past_cache(file, offset, len))
                    .await
                    .map(|bytes| {
                        buffer[..bytes.len()].copy_from_slice(&bytes);
                        bytes.len() as u64
                    });
                (buffer, result)
            }
            Err(error) => (buffer, Err(error)),
        }
    }

    /// As [`Volume::read`], by number, without a handle.
    pub async fn read_ino(&self, ino: Ino, offset: u64, len: u64) -> Result<Bytes> {
        let file = self
            .open(
                ino,
                super::OpenFlags {
                    read: true,
                    ..Default::default()
                },
            )
            .await?;
        let result = self.read(&file, offset, len).await;
        self.close(file).await?;
        result
    }

    /// From the device. The caller holds the inode at least shared, and the range is settled.
    pub(super) async fn read_range(
        &self,
        inode: &InodeRef,
        offset: u64,
        len: u64,
    ) -> Result<Bytes> {
        let size = inode.dinode().i_size.get();
        if offset >= size {
            return Ok(Bytes::new());
        }
        let len = len.min(size - offset).min(limits::READ_MAX);
        if let Some(bytes) = read_inline(inode, offset, len) {
            return Ok(bytes);
        }
        let block_size = self.core().block_size() as u64;
        let first = offset / block_size;
        let last = (offset + len).div_ceil(block_size);
        let pieces = self.pieces(inode, first, last - first).await?;
        let skip = (offset - first * block_size) as usize;
        let whole = self.read_pieces(&pieces).await?;
        Ok(whole.slice(skip..skip + len as usize))
    }

    /// Where `blocks` blocks of a file from block `first` on lie.
    pub(super) async fn pieces(
        &self,
        inode: &InodeRef,
        first: u64,
        blocks: u64,
    ) -> Result<Vec<Piece>> {
        let core = self.core();
        let per_cluster = u64::from(core.geometry.blocks_per_cluster());
        let mut pieces = Vec::new();
        let (mut at, end) = (first, first + blocks);
        while at < end {
            let cpos = u32::try_from(at / per_cluster).map_err(|_| {
                Error::TooBig(format!("block {at} of a file is past 2^32 clusters"))
            })?;
            let run = run_cache::lookup(core, inode, cpos).await?;
            let into = at - u64::from(run.cpos) * per_cluster;
            let run_blocks = u64::from(run.clusters) * per_cluster;
            let count = (run_blocks - into).min(end - at);
            let from = match run.physical {
                Some(start) if !run.flags.contains(ExtentFlags::UNWRITTEN) => {
                    Some(BlockNr(start.0 + into))
                }
                _ => None,
            };
            pieces.push(Piece {
                from,
                blocks: count,
            });
            at += count;
        }
        Ok(pieces)
    }

    /// All pieces, in order, as one run of bytes: read together; without a copy if there is one.
    async fn read_pieces(&self, pieces: &[Piece]) -> Result<Bytes> {
        let core = self.core();
        let block_size = core.block_size() as u64;
        let reads = pieces.iter().map(|piece| async move {
            let len = (piece.blocks * block_size) as usize;
            let Some(from) = piece.from else {
                return Ok(None);
            };
            let buffer = core.device.allocate(len);
            let (buffer, result) = core.device.read(from.0 * block_size, buffer).await;
            result.map(|()| Some(buffer))
        });
        let mut results = join_all(reads).await;
        if pieces.len() == 1
            && let Some(Ok(Some(buffer))) = results.pop_if(|r| matches!(r, Ok(Some(_))))
        {
            return Ok(Bytes::from_owner(Owned(buffer)));
        }
        let total: u64 = pieces.iter().map(|piece| piece.blocks * block_size).sum();
        let mut whole = BytesMut::with_capacity(total as usize);
        for (piece, result) in pieces.iter().zip(results) {
            match result? {
                Some(buffer) => whole.extend_from_slice(&buffer),
                None => whole.resize(whole.len() + (piece.blocks * block_size) as usize, 0),
            }
        }
        Ok(whole.freeze())
    }

    /// Writes whole blocks straight to their place.
    pub(super) async fn write_blocks(&self, first: BlockNr, bytes: &[u8]) -> Result<()> {
        let core = self.core();
        let mut buffer = core.device.allocate(bytes.len());
        buffer.copy_from_slice(bytes);
        let (_, result) = core
            .device
            .write(first.0 * core.block_size() as u64, buffer)
            .await;
        Ok(result?)
    }

    /// Reads whole blocks from their place.
    pub(super) async fn read_blocks(&self, first: BlockNr, blocks: u64) -> Result<Buffer> {
        let core = self.core();
        let block_size = core.block_size() as u64;
        let buffer = core.device.allocate((blocks * block_size) as usize);
        let (buffer, result) = core.device.read(first.0 * block_size, buffer).await;
        result?;
        Ok(buffer)
    }
}

/// The bytes of a file whose data is in its inode; `None` if that is not so.
pub(super) fn read_inline(inode: &InodeRef, offset: u64, len: u64) -> Option<Bytes> {
    let inline = inode
        .dinode()
        .dyn_features()
        .contains(DynFeatures::INLINE_DATA);
    inline.then(|| {
        let block = inode.block().data();
        let data = ondisk::inline_data(&block);
        let start = (offset as usize).min(data.len());
        let end = ((offset + len) as usize).min(data.len());
        Bytes::copy_from_slice(&data[start..end])
    })
}
