//! Where the checker's bytes come from: the medium, and of a mounted volume what at the
//! [`Moment`](crate::moment::Moment) of the check had not reached it, or has changed since.
//!
//! Every byte is read from the device if its home place is up to date, also where the cache has it:
//! what is checked is what is stored. Checksums are verified on those; bytes from memory carry none yet.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use ondisk::metaecc::Verdict;
use ondisk::{BlockNr, Corrupt, Geometry, Kind};
use runtime::{BlockDevice, BlockDeviceExt, DeviceError};

use crate::cache::{Bytes, Cache};
use crate::error::Error;
use crate::journal::MomentGuard;
use crate::moment::Kept;

/// Blocks that may be looked at without giving others a turn.
const BLOCKS_BETWEEN_TURNS: u32 = 64;

/// Why a check ends before its end.
#[derive(Debug)]
pub(super) enum Stop {
    /// The moment has ended: everything that was found is void, the check may begin again.
    Ended(String),
    /// The caller does not want more.
    Cancelled,
    /// There is nothing that could be checked.
    Failed(Error),
}

pub(super) type Step<T> = Result<T, Stop>;

/// How a block's bytes stand to its checksum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Sum {
    /// It carries none, or it is not at its home place yet.
    None,
    Right,
    /// One bit of the stored block is wrong; the bytes here are right.
    Corrected {
        bit: usize,
    },
    Wrong(Corrupt),
}

/// A mounted volume, as the check sees it.
pub(super) struct Live {
    pub cache: Rc<Cache>,
    /// None if nothing changes: mounted read-only.
    pub moment: Option<MomentGuard>,
}

pub(super) struct View {
    device: Rc<dyn BlockDevice>,
    geometry: Rc<Geometry>,
    live: Option<Live>,
    since_turn: Cell<u32>,
}

/// Blocks in a row, as one read brought them.
pub(super) struct Run {
    first: BlockNr,
    block_size: usize,
    bytes: Vec<u8>,
    /// Blocks whose bytes are from memory.
    memory: Vec<(usize, Option<Bytes>)>,
}

impl Run {
    pub fn len(&self) -> usize {
        self.bytes.len() / self.block_size
    }

    pub fn nr(&self, index: usize) -> BlockNr {
        BlockNr(self.first.0 + index as u64)
    }

    /// A block of the run, and whether it is from the device. `None` if nobody has it any more.
    pub fn block(&self, index: usize) -> Option<(Vec<u8>, bool)> {
        match self.memory.iter().find(|(at, _)| *at == index) {
            Some((_, bytes)) => bytes.as_ref().map(|bytes| (bytes.to_vec(), false)),
            None => {
                let start = index * self.block_size;
                Some((self.bytes[start..start + self.block_size].to_vec(), true))
            }
        }
    }
}

impl View {
    pub fn new(device: Rc<dyn BlockDevice>, geometry: Rc<Geometry>, live: Option<Live>) -> Self {
        View {
            device,
            geometry,
            live,
            since_turn: Cell::new(0),
        }
    }

    fn moment(&self) -> Option<&MomentGuard> {
        self.live.as_ref()?.moment.as_ref()
    }

    /// Ends the check if its moment has ended.
    pub fn holds(&self) -> Step<()> {
        match self.moment().and_then(|moment| moment.ended()) {
            Some(cause) => Err(Stop::Ended(cause)),
            None => Ok(()),
        }
    }

    /// Whether the block has changed since the moment: what it pointed to may be somebody else's.
    pub fn has_changed(&self, nr: BlockNr) -> bool {
        self.moment()
            .is_some_and(|moment| moment.kept(nr).is_some())
    }

    /// Lets others run once enough was done.
    pub async fn breathe(&self, blocks: u32) -> Step<()> {
        let done = self.since_turn.get() + blocks;
        if done >= BLOCKS_BETWEEN_TURNS {
            self.since_turn.set(0);
            give_turn().await;
        } else {
            self.since_turn.set(done);
        }
        self.holds()
    }

    /// A structure's bytes and how they stand to their checksum. The place must be on the volume.
    pub async fn read(&self, nr: BlockNr, kind: Kind) -> Step<Result<(Vec<u8>, Sum), DeviceError>> {
        let block = self.geometry.block_size();
        let len = match kind {
            Kind::XattrBucket => ondisk::XATTR_BUCKET_BYTES.max(block),
            _ => block,
        };
        self.breathe(1).await?;
        if let Some(bytes) = self.in_memory(nr, len)? {
            return Ok(Ok((bytes.to_vec(), Sum::None)));
        }
        let bytes = match self.on_device(nr, len).await {
            Ok(bytes) => bytes,
            Err(error) => return Ok(Err(error)),
        };
        // It may have changed while it was read.
        if let Some(bytes) = self.kept(nr, len)? {
            return Ok(Ok((bytes.to_vec(), Sum::None)));
        }
        let (bytes, sum) = self.verify(bytes, nr, kind);
        Ok(Ok((bytes, sum)))
    }

    /// Blocks in a row, without their checksums verified.
    pub async fn read_run(&self, first: BlockNr, blocks: usize) -> Step<Result<Run, DeviceError>> {
        self.breathe(blocks as u32).await?;
        let size = self.geometry.block_size();
        let nr = |index: usize| BlockNr(first.0 + index as u64);
        // Before the read: a block that goes home meanwhile is old in what is read.
        let mut memory: Vec<(usize, Option<Bytes>)> = Vec::new();
        if let Some(live) = &self.live {
            let pinned = |index| {
                let bytes = live.cache.pinned(nr(index))?;
                Some((index, Some(bytes).filter(|bytes| bytes.len() == size)))
            };
            memory.extend((0..blocks).filter_map(pinned));
        }
        let bytes = match self.on_device(first, blocks * size).await {
            Ok(bytes) => bytes,
            Err(error) => return Ok(Err(error)),
        };
        self.holds()?;
        if let Some(moment) = self.moment() {
            for index in 0..blocks {
                let bytes = match moment.kept(nr(index)) {
                    None => continue,
                    Some(Kept::Bytes(bytes)) => Some(bytes).filter(|bytes| bytes.len() == size),
                    Some(Kept::Lost) => None,
                };
                memory.retain(|(at, _)| *at != index);
                memory.push((index, bytes));
            }
        }
        Ok(Ok(Run {
            first,
            block_size: size,
            bytes,
            memory,
        }))
    }

    /// Checks, and repairs in place, bytes from the device.
    pub fn verify(&self, mut bytes: Vec<u8>, nr: BlockNr, kind: Kind) -> (Vec<u8>, Sum) {
        if !self.geometry.has_metaecc() || kind.check_offset(bytes.len()).is_none() {
            return (bytes, Sum::None);
        }
        let sum = match kind.verify(&mut bytes, nr) {
            Ok(Verdict::Clean) => Sum::Right,
            Ok(Verdict::Corrected { bit }) => Sum::Corrected { bit },
            Err(corrupt) => Sum::Wrong(corrupt),
        };
        (bytes, sum)
    }

    fn in_memory(&self, nr: BlockNr, len: usize) -> Step<Option<Bytes>> {
        if let Some(bytes) = self.kept(nr, len)? {
            return Ok(Some(bytes));
        }
        match self.live.as_ref().and_then(|live| live.cache.pinned(nr)) {
            Some(bytes) if bytes.len() != len => Err(Stop::Ended(format!(
                "block {nr} is in memory as another structure"
            ))),
            pinned => Ok(pinned),
        }
    }

    fn kept(&self, nr: BlockNr, len: usize) -> Step<Option<Bytes>> {
        self.holds()?;
        let Some(moment) = self.moment() else {
            return Ok(None);
        };
        let gone = || Stop::Ended(format!("block {nr} was made anew before it was looked at"));
        match moment.kept(nr) {
            None => Ok(None),
            Some(Kept::Bytes(bytes)) if bytes.len() == len => Ok(Some(bytes)),
            // Several blocks that were kept one by one, when they were freed.
            Some(Kept::Bytes(bytes)) if bytes.len() == self.geometry.block_size() => {
                let mut all = bytes.to_vec();
                while all.len() < len {
                    let next = nr.0 + (all.len() >> self.geometry.block_size_bits) as u64;
                    match moment.kept(BlockNr(next)) {
                        Some(Kept::Bytes(bytes)) if bytes.len() == self.geometry.block_size() => {
                            all.extend_from_slice(&bytes);
                        }
                        _ => return Err(gone()),
                    }
                }
                (all.len() == len)
                    .then_some(Some(Rc::new(all)))
                    .ok_or_else(gone)
            }
            // In memory as another structure, or not at all: what it was at the moment is gone.
            Some(_) => Err(gone()),
        }
    }

    async fn on_device(&self, nr: BlockNr, len: usize) -> Result<Vec<u8>, DeviceError> {
        let buffer = self.device.allocate(len);
        let offset = nr.0 << self.geometry.block_size_bits;
        let (buffer, result) = self.device.read(offset, buffer).await;
        result.map(|()| buffer.to_vec())
    }
}

/// Lets everybody else on the thread run once.
async fn give_turn() {
    let mut given = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut given, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
