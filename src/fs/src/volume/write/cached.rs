//! Buffered writes: into pages of the cache, to be written back later.
//!
//! Nothing on the volume knows of the data yet but the times. What is decided here, under the
//! inode's lock, is that it will get its place: room in memory, and clusters for its holes, are
//! promised before a byte is taken. Where that cannot be promised the request writes through, and
//! so tells exactly how far it came.

use std::ops::Range;
use std::sync::Arc;

use ondisk::feature::{ExtentFlags, Incompat};
use runtime::Buffer;

use super::iocb::{Iocb, LockLevel, Outcome, Path};
use super::step::cluster_at;
use crate::alloc;
use crate::error::{Error, Result};
use crate::inode::InodeRef;
use crate::lock::WriteGuard;
use crate::pages::{PAGE_BYTES, Room, pages_of};
use crate::run_cache;
use crate::volume::Volume;

/// How a buffered request can be done, as the inode is now.
enum Plan {
    Inline,
    /// Into pages: these clusters were promised to them.
    Cache(Vec<Range<u32>>),
    /// Where the file's data lies has to change first.
    NeedsTurn,
    Through,
}

impl Volume {
    /// The whole rest of a buffered request.
    pub(super) async fn write_buffered(&self, iocb: &mut Iocb<'_>) -> Result<()> {
        let inode = iocb.file.inode().clone();
        let nowait = iocb.file.flags().nowait;
        let pages = iocb.rest().len() / PAGE_BYTES + 2;
        if pages > self.ledger().write_max() {
            return self.write_exclusive(iocb).await;
        }
        // Before any lock: what is written back to make room may be this file's.
        let mut room = self.room(pages, nowait).await?;
        let mut turn = None;
        loop {
            let lock = self.exclusive(&inode, nowait).await?;
            if iocb.file.flags().append {
                iocb.move_to_end(inode.size());
            }
            let end = self.end_of(iocb)?;
            match self
                .plan_buffered(&inode, iocb.position(), end, turn.is_some())
                .await?
            {
                Plan::NeedsTurn => {
                    drop(lock);
                    turn = Some(self.turn(&inode, nowait).await?);
                }
                Plan::Through => {
                    drop((lock, turn, room));
                    self.settle_for_space().await;
                    return self.write_exclusive(iocb).await;
                }
                Plan::Inline => {
                    self.drop_set_id(&inode).await?;
                    let (at, data) = (iocb.position(), iocb.rest());
                    let done = self.write_inline(&inode, at, data, end).await?;
                    assert!(done, "it was planned under the same lock");
                    self.advance(iocb, buffered(Path::Inline, data.len()));
                    return Ok(());
                }
                Plan::Cache(promised) => {
                    let put = self.put_pages(&inode, iocb.position(), iocb.rest(), &mut room);
                    if let Err(error) = put.await {
                        for clusters in promised {
                            self.undelay(&inode, clusters);
                        }
                        return Err(error);
                    }
                    self.advance(iocb, buffered(Path::Cached, iocb.rest().len()));
                    return Ok(());
                }
            }
        }
    }

    async fn plan_buffered(
        &self,
        inode: &InodeRef,
        position: u64,
        end: u64,
        has_turn: bool,
    ) -> Result<Plan> {
        let core = self.core();
        let inline = self.inline_of(inode);
        if end <= inline.room && (inline.inline || inline.may_become) {
            return Ok(Plan::Inline);
        }
        let size = inode.size();
        if !core.geometry.has(Incompat::SPARSE_ALLOC) && end > size {
            return Ok(Plan::Through); // the volume wants its clusters in step with the size
        }
        if inline.inline || position > size {
            if !has_turn {
                return Ok(Plan::NeedsTurn);
            }
            if inline.inline {
                alloc::with_space(core, async || self.inline_to_extents(inode).await).await?;
            }
            if position > size {
                self.zero_gap(inode, size, position).await?;
            }
        }
        let promised = self.promise(inode, position, end).await?;
        Ok(promised.map_or(Plan::Through, Plan::Cache))
    }

    /// Promises the range's data the clusters it will need; `None`, and nothing promised, if there
    /// may not be as many.
    async fn promise(
        &self,
        inode: &InodeRef,
        position: u64,
        end: u64,
    ) -> Result<Option<Vec<Range<u32>>>> {
        let core = self.core();
        let cluster = core.geometry.cluster_size() as u64;
        let range = cluster_at(position, cluster)?..cluster_at(end - 1, cluster)? + 1;
        let mut missing = Vec::new();
        let mut count = 0;
        for gap in inode.pages.not_delayed(range) {
            let mut at = gap.start;
            while at < gap.end {
                let run = run_cache::lookup(core, inode, at).await?;
                let stop = at.saturating_add(run.clusters.max(1)).min(gap.end);
                if run.physical.is_none() || run.flags.contains(ExtentFlags::REFCOUNTED) {
                    count += u64::from(stop - at);
                    missing.push(at..stop);
                }
                at = stop;
            }
        }
        if count > 0 && !alloc::has_room_for_delayed(core, count).await? {
            return Ok(None);
        }
        for range in &missing {
            self.delay(inode, range.clone());
        }
        Ok(Some(missing))
    }

    /// Puts data into pages. Their other bytes are read first; then nothing can fail any more.
    async fn put_pages(
        &self,
        inode: &InodeRef,
        position: u64,
        data: &[u8],
        room: &mut Room,
    ) -> Result<()> {
        let core = self.core();
        let page = PAGE_BYTES as u64;
        let end = position + data.len() as u64;
        let known = inode.dinode().i_size.get();
        self.drop_set_id(inode).await?;
        self.finish_overwrite(inode, 0).await?; // only the times
        let mut edges = Vec::new();
        for (edge, inside) in [(position, position % page), (end, end % page)] {
            let index = edge / page;
            // What follows the data in its last page is zero if that is past the end of the file.
            let only_zeroes = edge == end && position <= index * page && end >= known;
            if inside == 0 || only_zeroes {
                continue;
            }
            if let Some(bytes) = inode.pages.get(index) {
                edges.push((index, bytes)); // held, lest it is evicted before we come to it
            } else if index * page < known {
                edges.push((index, self.read_page(inode, index).await?));
            }
        }
        for (index, bytes) in edges {
            inode.pages.fill(index, bytes, room);
        }
        let now = core.host.now();
        for index in pages_of(position, end) {
            let (from, to) = ((index * page).max(position), ((index + 1) * page).min(end));
            let piece = &data[(from - position) as usize..(to - position) as usize];
            inode
                .pages
                .write(index, (from % page) as usize, piece, now, room, || {
                    core.device.allocate(PAGE_BYTES)
                });
        }
        if end > known {
            inode.pages.extend(end);
        }
        self.ledger().keep(inode);
        self.plan_write_back();
        Ok(())
    }

    /// A page of zeroes, of the device's memory.
    pub(in crate::volume) fn zero_page(&self) -> Arc<Buffer> {
        let make = || {
            let mut page = self.core().device.allocate(PAGE_BYTES);
            page.fill(0);
            Arc::new(page)
        };
        self.0.zero_page.get_or_init(make).clone()
    }

    /// One page as the device has it; zeroes past the end of the file, and in holes.
    async fn read_page(&self, inode: &InodeRef, index: u64) -> Result<Arc<Buffer>> {
        let mut pages = self.read_pages(inode, index..index + 1).await?;
        match pages.pop() {
            Some(Some(bytes)) => Ok(bytes),
            _ => Ok(self.zero_page()),
        }
    }

    /// The inode for ourselves, or at once.
    pub(super) async fn exclusive<'i>(
        &self,
        inode: &'i InodeRef,
        nowait: bool,
    ) -> Result<WriteGuard<'i>> {
        if nowait {
            let guard = inode.lock.try_write();
            return guard.ok_or_else(|| Error::WouldBlock("the file is in use".into()));
        }
        inode.exclusive().await
    }
}

fn buffered(path: Path, bytes: usize) -> Outcome {
    Outcome {
        path,
        bytes,
        direct: false,
        fallback: None,
        edges_serialised: false,
        exclusive: true,
        lock: LockLevel::Exclusive,
    }
}
