//! Buffered reads: from pages of the cache, which are read where they are missing, and ahead of a
//! sequential reader.
//!
//! Pages are read under the inode's lock, shared: no buffered write comes between. A direct write
//! may, so what was read enters the cache only if nothing has happened to the file's bytes since
//! ([`Pages::stamp`](crate::pages::Pages::stamp)).

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::future::join_all;
use runtime::{BlockDeviceExt, Buffer};

use super::read::read_inline;
use super::{FileHandle, Volume};
use crate::error::Result;
use crate::inode::InodeRef;
use crate::limits;
use crate::pages::{PAGE_BYTES, pages_of};

const PAGE: u64 = PAGE_BYTES as u64;

/// A page's bytes; `None` for zeroes that need no memory.
type Content = Option<Arc<Buffer>>;

impl Volume {
    pub(super) async fn read_cached(
        &self,
        file: &FileHandle,
        offset: u64,
        len: u64,
    ) -> Result<Bytes> {
        let inode = file.inode();
        let _shared = inode.shared().await?;
        let size = inode.size();
        if offset >= size {
            return Ok(Bytes::new());
        }
        let len = len.min(size - offset).min(limits::READ_MAX);
        if let Some(bytes) = read_inline(inode, offset, len) {
            return Ok(bytes);
        }
        let wanted = pages_of(offset, offset + len);
        self.read_ahead(file, wanted.clone(), size);
        let mut whole = BytesMut::with_capacity(len as usize);
        let (mut hits, mut misses) = (0, 0);
        let mut at = wanted.start;
        while at < wanted.end {
            if let Some(bytes) = inode.pages.get(at) {
                take(&mut whole, at, Some(&bytes), offset, offset + len);
                hits += 1;
                at += 1;
                continue;
            }
            if inode.pages.wait_filled(at).await {
                continue; // somebody was reading it
            }
            let end = (at..wanted.end)
                .find(|&page| inode.pages.contains(page) || inode.pages.is_filling(page))
                .unwrap_or(wanted.end);
            misses += end - at;
            for content in self.load_pages(inode, at..end).await? {
                take(&mut whole, at, content.as_ref(), offset, offset + len);
                at += 1;
            }
        }
        self.ledger().count_read(hits, misses);
        Ok(whole.freeze())
    }

    /// Reads pages that are not cached, and caches those that have a place on the device, as far as
    /// there is room. The caller holds the inode, shared at least.
    async fn load_pages(&self, inode: &InodeRef, range: Range<u64>) -> Result<Vec<Content>> {
        let _filling = inode.pages.start_filling(range.clone());
        let stamp = inode.pages.stamp();
        let contents = self.read_pages(inode, range.clone()).await?;
        let found = contents.iter().flatten().count();
        if inode.pages.stamp() == stamp
            && found > 0
            && let Some(mut room) = self.ledger().try_room(found)
        {
            for (index, content) in range.zip(&contents) {
                if let Some(bytes) = content {
                    inode.pages.fill(index, bytes.clone(), &mut room);
                }
            }
            self.ledger().keep(inode);
        }
        Ok(contents)
    }

    /// Pages as the device has them. Past the end of what the volume knows of the file they are
    /// zero, whatever the device has there.
    pub(super) async fn read_pages(
        &self,
        inode: &InodeRef,
        range: Range<u64>,
    ) -> Result<Vec<Content>> {
        let core = self.core();
        let block = core.block_size() as u64;
        let per_page = PAGE / block;
        let known = inode.dinode().i_size.get();
        let end = range.end.min(known.div_ceil(PAGE)).max(range.start);
        let blocks = (end - range.start) * per_page;
        let pieces = self.pieces(inode, range.start * per_page, blocks).await?;
        let reads = pieces.iter().map(|piece| async move {
            let pages = (piece.blocks / per_page) as usize;
            let Some(from) = piece.from else {
                return Ok((0..pages).map(|_| None).collect());
            };
            let most = limits::DATA_IO_BYTES / PAGE_BYTES;
            let reads = (0..pages).step_by(most).map(|first| {
                let buffers = (first..pages.min(first + most))
                    .map(|_| core.device.allocate(PAGE_BYTES))
                    .collect();
                core.device
                    .readv(from.0 * block + (first * PAGE_BYTES) as u64, buffers)
            });
            let mut contents = Vec::with_capacity(pages);
            for done in join_all(reads).await {
                done.result?;
                let buffers = done.buffers.into_vec();
                contents.extend(buffers.into_iter().map(Some));
            }
            Ok::<_, crate::Error>(contents)
        });
        let mut contents: Vec<Option<Buffer>> = Vec::new();
        for done in join_all(reads).await {
            contents.extend(done?);
        }
        // The last page's rest.
        let inside = (known % PAGE) as usize;
        if inside != 0
            && known / PAGE >= range.start
            && let Some(Some(last)) = contents.get_mut((known / PAGE - range.start) as usize)
        {
            last[inside..].fill(0);
        }
        let mut contents: Vec<Content> = contents
            .into_iter()
            .map(|page| page.map(Arc::new))
            .collect();
        contents.resize((range.end - range.start) as usize, None);
        Ok(contents)
    }

    /// Reads on behind a reader that goes through the file in order, before it asks.
    fn read_ahead(&self, file: &FileHandle, wanted: Range<u64>, size: u64) {
        let Some(range) = file.ahead().next(wanted, size.div_ceil(PAGE)) else {
            return;
        };
        let (volume, file) = (self.clone(), file.clone());
        self.core().host.spawn(Box::pin(async move {
            let Ok(_gate) = volume.enter().await else {
                return;
            };
            let inode = file.inode();
            let Ok(_shared) = inode.shared().await else {
                return;
            };
            let mut at = range.start;
            while at < range.end {
                if inode.pages.contains(at) || inode.pages.is_filling(at) {
                    at += 1;
                    continue;
                }
                let end = (at..range.end)
                    .find(|&page| inode.pages.contains(page) || inode.pages.is_filling(page))
                    .unwrap_or(range.end);
                // An error is for the reader to meet, if it comes so far.
                if volume.load_pages(inode, at..end).await.is_err() {
                    return;
                }
                volume.ledger().count_read_ahead(end - at);
                at = end;
            }
        }));
    }
}

/// Adds what lies in `from..to` of a page to the bytes read.
fn take(whole: &mut BytesMut, index: u64, content: Option<&Arc<Buffer>>, from: u64, to: u64) {
    let start = index * PAGE;
    let inside = (from.max(start) - start) as usize..(to.min(start + PAGE) - start) as usize;
    match content {
        Some(bytes) => whole.extend_from_slice(&bytes[inside]),
        None => whole.resize(whole.len() + inside.len(), 0),
    }
}
