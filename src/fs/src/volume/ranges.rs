//! Ranges of a file: preallocating, punching, zeroing them, and telling what they are.
//!
//! ```text
//!             edges (parts of clusters)          whole clusters
//!  allocate   -                                  holes become unwritten
//!  zero       zeroed on the device if written    written become unwritten, shared are given back;
//!                                                then as allocate
//!  punch      zeroed on the device if written    given back: holes
//! ```
//! Front ends call it with an open file. It has the inode exclusively: no write is under way into
//! clusters that are given back here. From the range's start to its end, in as many handles as it
//! takes, each leaving a sound file: if we crash, or space runs out, in between, a prefix is done.
//! A new size comes last, after all that it makes visible reads as zero.

use ondisk::feature::{DynFeatures, ExtentFlags};
use ondisk::{BlockNr, Dinode};

use super::attr::without_set_id;
use super::names::touch;
use super::{FileHandle, FileKind, Ino, Volume, kind_of};
use crate::alloc;
use crate::error::{Error, Result};
use crate::extent::{self, Root};
use crate::inode::InodeRef;
use crate::limits;
use crate::pages::pages_of;

/// Blocks that one step may change: dinode, a path of extent blocks with new ones, their groups and
/// allocators, and what the clusters themselves need.
const STEP_BLOCKS: u32 = 64;
/// Extent records given back in one handle, and blocks that each may add to it.
const FREE_RECORDS: usize = 16;
const FREE_RECORD_BLOCKS: u32 = 8;
/// Shared clusters given back in one handle: each may have a refcount record of its own.
const SHARED_CLUSTERS: u32 = 2048;

/// What [`Volume::fallocate`] does with a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RangeMode {
    /// Space for all of it; what was there stays. `keep_size`: also past the end of the file, which
    /// does not move.
    Allocate { keep_size: bool },
    /// Its space is given back; it reads as zero. The size stays.
    PunchHole,
    /// Space for all of it, and it reads as zero.
    Zero { keep_size: bool },
}

impl RangeMode {
    fn extends(self) -> bool {
        match self {
            RangeMode::Allocate { keep_size } | RangeMode::Zero { keep_size } => !keep_size,
            RangeMode::PunchHole => false,
        }
    }
}

/// What [`Volume::seek`] looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeekFor {
    Data,
    /// The end of the file is one.
    Hole,
}

/// A piece of a file that has space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExtentInfo {
    /// Byte in the file.
    pub logical: u64,
    /// Byte on the device. For inline data: where that is in the inode's block.
    pub physical: u64,
    /// Bytes.
    pub length: u64,
    /// It has space and reads as zero.
    pub unwritten: bool,
    /// Other files may refer to the same space.
    pub shared: bool,
    /// In the inode itself.
    pub inline: bool,
}

/// A range in bytes that is not empty.
#[derive(Debug, Clone, Copy)]
struct Range {
    start: u64,
    end: u64,
}

impl Volume {
    /// Allocates, punches or zeroes a range, as fallocate(2) does.
    ///
    /// # Errors
    /// `NotSupported` on a volume without unwritten extents; `TooBig`, before anything happens, past
    /// the largest size; `NoSpace`: the size is what it was, and either nothing has happened or a
    /// prefix of the range is done.
    pub async fn fallocate(
        &self,
        file: &FileHandle,
        mode: RangeMode,
        offset: u64,
        len: u64,
    ) -> Result<()> {
        let _gate = self.enter_writing().await?;
        let result = async {
            let range = self.check_range(file, offset, len)?;
            let inode = file.inode();
            let _hold = self.hold_shape(inode, file.flags().nowait).await?;
            self.settle_all_held(inode).await?;
            let changed = self.change_range(inode, mode, range).await;
            self.drop_clean(inode, pages_of(range.start, range.end));
            changed
        }
        .await;
        if file.flags().dsync && result.is_ok() {
            let synced = self.fsync_inode(file.inode(), true).await;
            return self.watch(synced).map(drop);
        }
        self.watch(result)
    }

    fn check_range(&self, file: &FileHandle, offset: u64, len: u64) -> Result<Range> {
        if !file.flags().write {
            return Err(Error::Invalid("the handle is not open for writing".into()));
        }
        if kind_of(file.inode()) != FileKind::Regular {
            return Err(Error::IsDirectory(file.inode().nr()));
        }
        if len == 0 {
            return Err(Error::Invalid("a range of 0 bytes".into()));
        }
        // Before anything is allocated for it.
        let end = offset
            .checked_add(len)
            .filter(|&end| end <= self.max_file_bytes())
            .ok_or_else(|| {
                Error::TooBig(format!(
                    "{len} bytes at {offset}, at most {}",
                    self.max_file_bytes()
                ))
            })?;
        if !self.core().geometry.has_unwritten() {
            return Err(Error::NotSupported(
                "the volume has no unwritten extents".into(),
            ));
        }
        Ok(Range { start: offset, end })
    }

    async fn change_range(&self, inode: &InodeRef, mode: RangeMode, range: Range) -> Result<()> {
        if is_inline(inode) {
            let room = ondisk::inline_data(&inode.block().data()).len() as u64;
            // A punch has nothing to do past the end, so it always fits.
            if range.end <= room || mode == RangeMode::PunchHole {
                return self.change_inline(inode, mode, range).await;
            }
            alloc::with_space(self.core(), async || self.inline_to_extents(inode).await).await?;
        }
        if mode != RangeMode::PunchHole {
            self.check_space(inode, range).await?;
        }
        self.range_changes(inode).await?;
        let old = inode.dinode().i_size.get();
        match mode {
            RangeMode::Allocate { .. } => self.fill_holes(inode, range).await?,
            RangeMode::PunchHole => self.punch(inode, range, old).await?,
            RangeMode::Zero { .. } => self.zero_range(inode, range).await?,
        }
        if mode.extends() && range.end > old {
            self.zero_gap(inode, old, range.end).await?;
            return self.set_size(inode, range.end).await;
        }
        Ok(())
    }

    /// A range of inline data: it has its space.
    async fn change_inline(&self, inode: &InodeRef, mode: RangeMode, range: Range) -> Result<()> {
        let mut h = self.core().journal.begin(1).await?;
        {
            let mut bytes = h.modify(inode.block());
            let size = Dinode::of(&bytes).i_size.get();
            let data = ondisk::inline_data_mut(&mut bytes);
            let room = data.len() as u64;
            let mut clear = |from: u64, to: u64| {
                let (from, to) = (from.min(room) as usize, to.min(room) as usize);
                data[from.min(to)..to].fill(0);
            };
            if !matches!(mode, RangeMode::Allocate { .. }) {
                clear(range.start, range.end);
            }
            let size = if mode.extends() && range.end > size {
                clear(size, range.end);
                range.end
            } else {
                size
            };
            self.update_size(Dinode::of_mut(&mut bytes), size);
        }
        inode.changed_in(h.commit());
        Ok(())
    }

    /// Times and set-id bits, before the first byte changes: so they are right however far it comes.
    async fn range_changes(&self, inode: &InodeRef) -> Result<()> {
        let mut h = self.core().journal.begin(1).await?;
        {
            let mut bytes = h.modify(inode.block());
            let d = Dinode::of_mut(&mut bytes);
            d.i_mode.set(without_set_id(d.i_mode.get()));
            touch(d, self.core().now());
        }
        inode.changed_in(h.commit());
        Ok(())
    }

    /// Refuses what cannot come to an end, before it begins.
    async fn check_space(&self, inode: &InodeRef, range: Range) -> Result<()> {
        let core = self.core();
        let root = Root::dinode(inode.block());
        let (first, end) = self.touched_clusters(range);
        let mut wanted = 0;
        let mut at = first;
        while at < end {
            let run = extent::lookup(core, &root, at as u32).await?;
            let count = u64::from(run.clusters).min(end - at);
            if count == 0 {
                break;
            }
            if run.physical.is_none() {
                wanted += count;
            }
            at += count;
        }
        if wanted <= u64::from(alloc::available_clusters(core).await?) {
            return Ok(());
        }
        alloc::flush_truncate_log(core).await?;
        let free = alloc::available_clusters(core).await?;
        if wanted <= u64::from(free) {
            return Ok(());
        }
        Err(Error::NoSpace(format!(
            "{wanted} clusters are wanted, {free} are free"
        )))
    }

    /// Every hole of the clusters that the range touches becomes unwritten. Each handle takes one
    /// contiguous run of what is free.
    async fn fill_holes(&self, inode: &InodeRef, range: Range) -> Result<()> {
        let core = self.core();
        let root = Root::dinode(inode.block());
        let (mut at, end) = self.touched_clusters(range);
        while at < end {
            let cpos = at as u32;
            let run = extent::lookup(core, &root, cpos).await?;
            let count = u64::from(run.clusters).min(end - at) as u32;
            if count == 0 {
                break;
            }
            let done = match run.physical {
                Some(_) => count,
                None => {
                    let fill = async || self.claim_unwritten(inode, &root, cpos, count).await;
                    alloc::with_space(core, fill).await?
                }
            };
            at += u64::from(done);
        }
        Ok(())
    }

    async fn claim_unwritten(
        &self,
        inode: &InodeRef,
        root: &Root,
        cpos: u32,
        count: u32,
    ) -> Result<u32> {
        let core = self.core();
        let goal = self.goal(root, cpos).await?;
        let mut h = core.journal.begin(STEP_BLOCKS).await?;
        let most = count.min(limits::EXTENT_CLUSTERS_MAX);
        let (start, got) = alloc::claim_clusters(core, &mut h, goal, 1, most).await?;
        let first = core.geometry.first_block(start);
        let flags = ExtentFlags::UNWRITTEN;
        extent::insert(core, &mut h, root, cpos, first, got, flags).await?;
        inode.changed_in(h.commit());
        Ok(got)
    }

    async fn punch(&self, inode: &InodeRef, range: Range, size: u64) -> Result<()> {
        let cluster = self.core().geometry.cluster_size() as u64;
        let last = size.next_multiple_of(cluster);
        // Nothing behind the end of the file keeps its last cluster.
        let end = if range.end >= size && range.end < last {
            last
        } else {
            range.end
        };
        let range = Range { end, ..range };
        let (head, whole, tail) = self.split(range);
        self.zero_gap(inode, head.0, head.1).await?;
        self.free_clusters(inode, whole.0, whole.1).await?;
        self.zero_gap(inode, tail.0, tail.1).await
    }

    async fn zero_range(&self, inode: &InodeRef, range: Range) -> Result<()> {
        let (head, whole, tail) = self.split(range);
        self.zero_gap(inode, head.0, head.1).await?;
        self.unwrite(inode, whole.0, whole.1).await?;
        self.zero_gap(inode, tail.0, tail.1).await?;
        self.fill_holes(inode, range).await
    }

    /// Written clusters become unwritten where they are; shared ones go, and leave holes.
    async fn unwrite(&self, inode: &InodeRef, from: u64, to: u64) -> Result<()> {
        let core = self.core();
        let root = Root::dinode(inode.block());
        let mut at = from;
        while at < to {
            let cpos = at as u32;
            let run = extent::lookup(core, &root, cpos).await?;
            let count = u64::from(run.clusters).min(to - at) as u32;
            if count == 0 {
                break;
            }
            at += u64::from(count);
            if run.physical.is_none() || run.flags.contains(ExtentFlags::UNWRITTEN) {
                continue;
            }
            if run.flags.contains(ExtentFlags::REFCOUNTED) {
                let (from, to) = (u64::from(cpos), at);
                self.free_clusters(inode, from, to).await?;
                continue;
            }
            alloc::with_space(core, async || {
                let mut h = core.journal.begin(STEP_BLOCKS).await?;
                let (set, clear) = (ExtentFlags::UNWRITTEN, ExtentFlags::empty());
                extent::set_flags(core, &mut h, &root, cpos, count, set, clear).await?;
                inode.changed_in(h.commit());
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    /// Gives back the clusters `from..to`, first first.
    async fn free_clusters(&self, inode: &InodeRef, from: u64, to: u64) -> Result<()> {
        let core = self.core();
        let root = Root::dinode(inode.block());
        let mut at = from;
        while at < to {
            let runs = extent::runs(core, &root, at as u32, FREE_RECORDS).await?;
            let Some(end) = batch_end(&runs, at, to) else {
                return Ok(());
            };
            if alloc::truncate_log_needs_flush(core).await? {
                alloc::flush_truncate_log(core).await?;
            }
            // Taking the middle out of a record makes two: that may need a new extent block.
            alloc::with_space(core, async || {
                let blocks = STEP_BLOCKS + FREE_RECORD_BLOCKS * FREE_RECORDS as u32;
                let mut h = core.journal.begin(blocks).await?;
                let count = (end - at) as u32;
                self.free_range(&mut h, inode, &root, at as u32, count)
                    .await?;
                inode.changed_in(h.commit());
                Ok(())
            })
            .await?;
            self.plan_flush();
            at = end;
        }
        Ok(())
    }

    /// The range in bytes before its first whole cluster, its whole clusters, the bytes behind them.
    fn split(&self, range: Range) -> ((u64, u64), (u64, u64), (u64, u64)) {
        let cluster = self.core().geometry.cluster_size() as u64;
        let first = range.start.div_ceil(cluster);
        let last = range.end / cluster;
        if first > last {
            // Inside one cluster.
            return ((range.start, range.end), (0, 0), (0, 0));
        }
        let head = (range.start, first * cluster);
        (head, (first, last), (last * cluster, range.end))
    }

    fn touched_clusters(&self, range: Range) -> (u64, u64) {
        let cluster = self.core().geometry.cluster_size() as u64;
        (range.start / cluster, range.end.div_ceil(cluster))
    }

    /// The first byte from `offset` on that is data, or that is in a hole (or unwritten); `None` if
    /// there is none, or `offset` is not inside the file: lseek's ENXIO.
    pub async fn seek(&self, file: &FileHandle, what: SeekFor, offset: u64) -> Result<Option<u64>> {
        let _gate = self.enter().await?;
        let result = async {
            let inode = file.inode();
            if kind_of(inode) != FileKind::Regular {
                return Err(Error::IsDirectory(inode.nr()));
            }
            // Cached data has its place only on the device.
            let _shared = self.shared_settled(inode, 0, u64::MAX, false).await?;
            self.seek_in(inode, what, offset).await
        }
        .await;
        self.watch(result)
    }

    async fn seek_in(&self, inode: &InodeRef, what: SeekFor, offset: u64) -> Result<Option<u64>> {
        let core = self.core();
        let size = inode.dinode().i_size.get();
        if offset >= size {
            return Ok(None);
        }
        if is_inline(inode) {
            return Ok(Some(if what == SeekFor::Data { offset } else { size }));
        }
        let cluster = core.geometry.cluster_size() as u64;
        let root = Root::dinode(inode.block());
        let mut at = offset;
        while at < size {
            let cpos = u32::try_from(at / cluster)
                .map_err(|_| Error::TooBig(format!("byte {at} is past 2^32 clusters")))?;
            let run = extent::lookup(core, &root, cpos).await?;
            let data = run.physical.is_some() && !run.flags.contains(ExtentFlags::UNWRITTEN);
            if data == (what == SeekFor::Data) {
                return Ok(Some(at));
            }
            if run.clusters == 0 {
                break;
            }
            at = (u64::from(cpos) + u64::from(run.clusters)) * cluster;
        }
        Ok((what == SeekFor::Hole).then_some(size))
    }

    /// The pieces of a regular file or directory that have space, from the one that holds byte
    /// `offset` on, at most `max` (and [`limits::EXTENTS_MAX`]); also those past the end. To go on,
    /// ask from the end of the last; none is the end.
    pub async fn extents(&self, ino: Ino, offset: u64, max: usize) -> Result<Vec<ExtentInfo>> {
        let _gate = self.enter().await?;
        let result = async {
            let inode = self.client_inode(ino).await?;
            let _shared = self.shared_settled(&inode, 0, u64::MAX, false).await?;
            self.extents_of(&inode, offset, max.min(limits::EXTENTS_MAX))
                .await
        }
        .await;
        self.watch(result)
    }

    async fn extents_of(
        &self,
        inode: &InodeRef,
        offset: u64,
        max: usize,
    ) -> Result<Vec<ExtentInfo>> {
        let core = self.core();
        let block = core.block_size() as u64;
        let cluster = core.geometry.cluster_size() as u64;
        let body = inode.dinode().body();
        if body == ondisk::Body::Inline {
            let size = inode.dinode().i_size.get();
            let at = ondisk::inline_data_span(&inode.block().data()).start as u64;
            let info = ExtentInfo {
                logical: 0,
                physical: inode.nr().0 * block + at,
                length: size,
                unwritten: false,
                shared: false,
                inline: true,
            };
            return Ok(if offset < size && max > 0 {
                vec![info]
            } else {
                vec![]
            });
        }
        let (Ok(cpos), true) = (u32::try_from(offset / cluster), max > 0) else {
            return Ok(vec![]);
        };
        if body != ondisk::Body::Extents {
            return Ok(vec![]);
        }
        let runs = extent::runs(core, &Root::dinode(inode.block()), cpos, max).await?;
        let info = |run: extent::Run| ExtentInfo {
            logical: u64::from(run.cpos) * cluster,
            physical: byte_of(run.physical, block),
            length: u64::from(run.clusters) * cluster,
            unwritten: run.flags.contains(ExtentFlags::UNWRITTEN),
            shared: run.flags.contains(ExtentFlags::REFCOUNTED),
            inline: false,
        };
        Ok(runs.into_iter().map(info).collect())
    }
}

/// How far one handle goes from cluster `at`: over all of these records, or to the first that is
/// shared, or over a bounded piece of it; `None` if none of them is before `to`.
fn batch_end(runs: &[extent::Run], at: u64, to: u64) -> Option<u64> {
    let mut end = None;
    for run in runs {
        let start = u64::from(run.cpos).max(at);
        if start >= to {
            break;
        }
        let stop = run.end().min(to);
        if !run.flags.contains(ExtentFlags::REFCOUNTED) {
            end = Some(stop);
            continue;
        }
        if end.is_none() {
            end = Some(stop.min(start + u64::from(SHARED_CLUSTERS)));
        }
        break;
    }
    end
}

fn byte_of(block: BlockNr, block_size: u64) -> u64 {
    block.0.saturating_mul(block_size)
}

fn is_inline(inode: &InodeRef) -> bool {
    inode
        .dinode()
        .dyn_features()
        .contains(DynFeatures::INLINE_DATA)
}
