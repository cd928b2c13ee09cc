//! The log as a place: where its blocks are, how much of it is free, and the superblock that says
//! where a replay has to start.
//!
//! ```text
//!   first                tail            head                     end
//!    │      free          │ t │ t+1 │ … │          free            │   wraps: head may be below tail
//! ```
//!
//! Rules this file owns:
//! * Before a transaction is written into an empty log, the superblock says where it will be
//!   (without a flush: the one before the commit block covers it). If we crash before that flush,
//!   there is no commit block, so that it does not matter which of the two reached the medium.
//! * Space is reused only after the superblock that no longer counts on it is on the medium.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use ondisk::jbd2::{self, CommitBlock, DescriptorWriter};
use ondisk::{BlockNr, Geometry};
use runtime::{BlockDevice, BlockDeviceExt, WallTime};

use super::Tid;
use super::wait::Turns;
use super::write::{byte_offset, write_blocks};
use crate::cache::Bytes;
use crate::error::{Errno, Result};
use crate::file_map::FileMap;

/// A block as it goes into the log, with its home.
pub(super) type Frozen = (BlockNr, Bytes);

pub(super) struct Log {
    device: Rc<dyn BlockDevice>,
    geometry: Rc<Geometry>,
    map: FileMap,
    /// Block numbers of tags have 64 bits.
    wide: bool,
    first: u32,
    capacity: u32,
    head: Cell<u32>,
    free: Cell<u32>,
    /// In the log and not checkpointed, oldest first. The last one may still be on its way.
    transactions: RefCell<VecDeque<Logged>>,
    superblock: RefCell<LogSuper>,
    /// Held while the superblock is decided upon and written.
    superblock_turn: Turns,
    volatile_cache: bool,
}

#[derive(Clone, Copy)]
struct Logged {
    tid: Tid,
    start: u32,
    blocks: u32,
}

impl Log {
    /// A log that is empty: its superblock says so, or will before it is used.
    pub fn new(
        device: Rc<dyn BlockDevice>,
        geometry: Rc<Geometry>,
        map: FileMap,
        superblock: LogSuper,
    ) -> Self {
        let raw = superblock.raw();
        let (first, end) = (raw.s_first.get(), raw.s_maxlen.get());
        Log {
            wide: raw.is_wide(),
            volatile_cache: device.info().volatile_cache,
            device,
            geometry,
            map,
            first,
            capacity: end - first,
            head: Cell::new(first),
            free: Cell::new(end - first),
            transactions: RefCell::default(),
            superblock: RefCell::new(superblock),
            superblock_turn: Turns::default(),
        }
    }

    /// Blocks that the log has for transactions.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    pub fn free(&self) -> u32 {
        self.free.get()
    }

    /// Blocks of the log that a transaction of `blocks` takes.
    pub fn log_blocks(&self, blocks: usize) -> usize {
        blocks + blocks.div_ceil(self.tags_per_descriptor()) + 1
    }

    fn tags_per_descriptor(&self) -> usize {
        jbd2::tags_per_descriptor(self.geometry.block_size(), self.wide)
    }

    /// Most blocks of a transaction: as many as fit in a quarter of the log, the kernel's limit.
    pub fn max_transaction(&self) -> u32 {
        let quarter = (self.capacity / 4) as usize;
        let mut blocks = quarter.saturating_sub(2);
        while blocks > 0 && self.log_blocks(blocks) > quarter {
            blocks -= 1;
        }
        blocks as u32
    }

    /// Sets room for a transaction aside; false if there is not enough of it.
    pub async fn reserve(&self, tid: Tid, blocks: usize) -> Result<bool> {
        let needed = self.log_blocks(blocks);
        let _turn = self.superblock_turn.take().await;
        if needed > self.free.get() as usize {
            return Ok(false);
        }
        let start = self.head.get();
        let needed = needed as u32;
        self.head.set(self.place(start, needed));
        self.free.set(self.free.get() - needed);
        self.transactions.borrow_mut().push_back(Logged {
            tid,
            start,
            blocks: needed,
        });
        if self.superblock.borrow().raw().is_clean() {
            self.write_superblock(start, tid).await?;
        }
        Ok(true)
    }

    /// Writes a transaction for which room was reserved. It is durable when this returns.
    pub async fn write(&self, tid: Tid, blocks: &[Frozen], now: WallTime) -> Result<()> {
        let start = self
            .transactions
            .borrow()
            .iter()
            .find(|logged| logged.tid == tid)
            .expect("room was reserved for the transaction")
            .start;
        let content = self.content(tid, blocks);
        let pieces = content
            .iter()
            .enumerate()
            .map(|(index, bytes)| (self.block(start, index as u32), bytes.as_ref()));
        write_blocks(&*self.device, &self.geometry, pieces).await?;
        self.flush().await?;
        // Everything the commit block vouches for is on the medium, the data that the transaction
        // makes visible too. If we crash before the next line is done, none of it happened.
        let mut commit = vec![0; self.geometry.block_size()];
        let time = (now.seconds as u64, now.nanoseconds);
        CommitBlock::init(&mut commit, tid.logged(), time, None);
        let place = self.block(start, content.len() as u32);
        write_blocks(&*self.device, &self.geometry, [(place, commit.as_slice())]).await?;
        self.flush().await
    }

    /// Descriptors and data, in the order of the log.
    fn content<'a>(&self, tid: Tid, blocks: &'a [Frozen]) -> Vec<Cow<'a, [u8]>> {
        let block_size = self.geometry.block_size();
        // A structure of several blocks is logged block by block.
        let singles: Vec<(BlockNr, &[u8])> = blocks
            .iter()
            .flat_map(|(nr, bytes)| {
                let parts = bytes.chunks_exact(block_size).enumerate();
                parts.map(|(index, part)| (BlockNr(nr.0 + index as u64), part))
            })
            .collect();
        let mut content = Vec::with_capacity(self.log_blocks(singles.len()));
        for group in singles.chunks(self.tags_per_descriptor()) {
            let mut descriptor = vec![0; block_size];
            // Nobody shares a journal; the kernel leaves the UUID zero too.
            let mut tags = DescriptorWriter::new(&mut descriptor, tid.logged(), [0; 16], self.wide);
            for (home, bytes) in group {
                let pushed = tags.push(*home, jbd2::needs_escape(bytes));
                assert!(
                    pushed,
                    "a group has as many blocks as a descriptor has tags"
                );
            }
            tags.finish();
            content.push(Cow::Owned(descriptor));
            content.extend(group.iter().map(|(_, bytes)| escaped(bytes)));
        }
        content
    }

    /// Gives back the room of all transactions up to `tid`, whose blocks are durably at home.
    pub async fn release(&self, tid: Tid) -> Result<()> {
        let _turn = self.superblock_turn.take().await;
        let next = self
            .transactions
            .borrow()
            .iter()
            .find(|logged| logged.tid > tid)
            .copied();
        match next {
            Some(next) => self.write_superblock(next.start, next.tid).await?,
            None => self.write_superblock(0, tid.next()).await?,
        }
        self.flush().await?;
        let mut transactions = self.transactions.borrow_mut();
        while let Some(logged) = transactions.front().copied()
            && logged.tid <= tid
        {
            self.free.set(self.free.get() + logged.blocks);
            transactions.pop_front();
        }
        Ok(())
    }

    /// Marks the log as empty, with `next` as the next transaction, durably.
    pub async fn mark_empty(&self, next: Tid) -> Result<()> {
        let _turn = self.superblock_turn.take().await;
        assert!(
            self.transactions.borrow().is_empty(),
            "an empty log holds no transaction"
        );
        self.write_superblock(0, next).await?;
        self.flush().await
    }

    /// Leaves an error number, for whoever opens the journal next. Where the log starts stays as
    /// it is: nothing in it is given up.
    pub async fn note_error(&self, errno: Errno) -> Result<()> {
        let _turn = self.superblock_turn.take().await;
        let mut superblock = self.superblock.borrow().clone();
        // Negative, as the kernel has them.
        superblock.raw_mut().s_errno.set(-errno.0);
        let place = self.map.block(0);
        write_blocks(&*self.device, &self.geometry, [(place, superblock.bytes())]).await?;
        self.flush().await
    }

    async fn write_superblock(&self, start: u32, tid: Tid) -> Result<()> {
        let mut superblock = self.superblock.borrow().clone();
        superblock.set_tail(start, tid);
        let place = self.map.block(0);
        write_blocks(&*self.device, &self.geometry, [(place, superblock.bytes())]).await?;
        *self.superblock.borrow_mut() = superblock;
        Ok(())
    }

    pub async fn flush(&self) -> Result<()> {
        flush(&*self.device, self.volatile_cache).await
    }

    /// The position `count` blocks after `start`.
    fn place(&self, start: u32, count: u32) -> u32 {
        self.first + (start - self.first + count) % self.capacity
    }

    /// Where on the device the block `index` of a transaction that starts at `start` is.
    fn block(&self, start: u32, index: u32) -> BlockNr {
        self.map.block(u64::from(self.place(start, index)))
    }
}

/// A data block as the log holds it: without the magic number that would make it look like one of
/// the journal's own.
fn escaped(bytes: &[u8]) -> Cow<'_, [u8]> {
    if jbd2::needs_escape(bytes) {
        let mut copy = bytes.to_vec();
        jbd2::escape(&mut copy);
        Cow::Owned(copy)
    } else {
        Cow::Borrowed(bytes)
    }
}

/// The journal's superblock, checked.
#[derive(Debug, Clone)]
pub(super) struct LogSuper(Vec<u8>);

impl LogSuper {
    /// From the first block of a journal of `file_blocks` blocks, which lies at `nr`.
    pub fn new(block: Vec<u8>, nr: BlockNr, file_blocks: u64) -> Result<Self> {
        jbd2::SuperBlock::validate(&block, nr, file_blocks)?;
        Ok(LogSuper(block))
    }

    pub fn raw(&self) -> &jbd2::SuperBlock {
        jbd2::SuperBlock::of(&self.0)
    }

    pub fn raw_mut(&mut self) -> &mut jbd2::SuperBlock {
        jbd2::SuperBlock::of_mut(&mut self.0)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The log starts at `start` with transaction `tid`; 0: it is empty, and `tid` is yet to come.
    pub fn set_tail(&mut self, start: u32, tid: Tid) {
        self.raw_mut().s_sequence.set(tid.logged().0);
        self.raw_mut().s_start.set(start);
    }
}

/// Flushes a device that needs it.
pub(super) async fn flush(device: &dyn BlockDevice, volatile_cache: bool) -> Result<()> {
    if volatile_cache {
        device.flush().await?;
    }
    Ok(())
}

/// One block of the device.
pub(super) async fn read_block(
    device: &dyn BlockDevice,
    geometry: &Geometry,
    nr: BlockNr,
) -> Result<Vec<u8>> {
    let buffer = device.allocate(geometry.block_size());
    let (buffer, result) = device.read(byte_offset(geometry, nr), buffer).await;
    result?;
    Ok(buffer.to_vec())
}
