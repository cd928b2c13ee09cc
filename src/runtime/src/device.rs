//! The block device, as the filesystem sees it: a flat range of bytes in logical blocks, with owned
//! buffers in and owned buffers back. Media assumptions are in `docs/media.md`.

use std::rc::Rc;

use crate::buffer::Buffer;
use crate::io::{Buffers, Completion, Io, Op, Request};

/// What a device is. Fixed while it is open, but for `block_count`, which a resize event changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// For messages: the bdev's or the image's name.
    pub name: String,
    /// Logical block size in bytes; offsets and lengths are multiples of it. A power of two.
    pub block_size: u32,
    /// Capacity in logical blocks.
    pub block_count: u64,
    /// Address alignment that a buffer needs, in bytes.
    pub buffer_align: usize,
    /// Writes may sit in a volatile cache until a flush.
    pub volatile_cache: bool,
    pub supports_unmap: bool,
    pub read_only: bool,
}

impl DeviceInfo {
    pub fn size_bytes(&self) -> u64 {
        self.block_count.saturating_mul(u64::from(self.block_size))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceErrorKind {
    /// The medium or the transport failed the request.
    Failed,
    /// The device is gone (hot-removed or closed).
    Removed,
    OutOfRange,
    Unaligned,
    ReadOnly,
    /// Thin-provisioned storage has no room.
    NoSpace,
    Unsupported,
    /// A reservation held by another host refused it.
    Reserved,
    /// This node has lost its right to the shared device: it was fenced from its cluster.
    Fenced,
    /// Never ran, or its fate is unknown.
    Aborted,
}

/// A failed request: what was attempted, where, and why it failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} of {len} bytes at byte {offset}: {kind:?}: {detail}", op.name())]
pub struct DeviceError {
    pub op: Op,
    pub offset: u64,
    pub len: u64,
    pub kind: DeviceErrorKind,
    pub detail: String,
}

/// Something happened to the device itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceEvent {
    /// Hot-removed: every request from now on fails with [`DeviceErrorKind::Removed`].
    Removed,
    Resized {
        block_count: u64,
    },
}

/// Keeps an event callback registered; dropping it ends the subscription.
pub struct Subscription(
    #[expect(dead_code, reason = "held for its drop")] Option<Box<dyn DropGuard>>,
);

/// Anything whose drop ends a subscription.
pub trait DropGuard {}
impl<T> DropGuard for T {}

impl Subscription {
    pub fn new<T: 'static>(guard: T) -> Self {
        Subscription(Some(Box::new(guard)))
    }

    /// For devices that never have events.
    pub fn none() -> Self {
        Subscription(None)
    }
}

/// A block device. Used as `Rc<dyn BlockDevice>` from the one thread that opened it.
///
/// Ordering: requests in flight together complete, and reach the medium, in any order. A write is
/// durable after a [`Op::Flush`] that was submitted once the write had completed.
pub trait BlockDevice {
    fn info(&self) -> DeviceInfo;

    /// Memory this device can transfer to and from. Content is unspecified; length exactly `len`.
    fn allocate(&self, len: usize) -> Buffer;

    /// Starts a request. Bad requests (range, alignment) are completed with an error, not refused.
    fn submit(&self, request: Request);

    /// Calls `callback` for each event until the subscription is dropped.
    fn subscribe(&self, callback: Rc<dyn Fn(DeviceEvent)>) -> Subscription;
}

/// The calls everyone makes, over [`BlockDevice::submit`]. The request is on its way when the call
/// returns; the future borrows nothing and can be spawned.
pub trait BlockDeviceExt: BlockDevice {
    fn start(&self, op: Op, offset: u64, len: u64, buffers: Buffers) -> Io {
        let (request, io) = Request::new(op, offset, len, buffers);
        self.submit(request);
        io
    }

    /// Reads the buffer's window from `offset`.
    fn read(
        &self,
        offset: u64,
        buffer: Buffer,
    ) -> impl Future<Output = (Buffer, Result<(), DeviceError>)> + use<Self> {
        let len = buffer.len() as u64;
        one(self.start(Op::Read, offset, len, Buffers::One(buffer)))
    }

    /// Writes the buffer's window at `offset`.
    fn write(
        &self,
        offset: u64,
        buffer: Buffer,
    ) -> impl Future<Output = (Buffer, Result<(), DeviceError>)> + use<Self> {
        let len = buffer.len() as u64;
        one(self.start(Op::Write, offset, len, Buffers::One(buffer)))
    }

    fn readv(&self, offset: u64, buffers: Vec<Buffer>) -> Io {
        let buffers = Buffers::Many(buffers);
        self.start(Op::Read, offset, buffers.len(), buffers)
    }

    fn writev(&self, offset: u64, buffers: Vec<Buffer>) -> Io {
        let buffers = Buffers::Many(buffers);
        self.start(Op::Write, offset, buffers.len(), buffers)
    }

    fn flush(&self) -> impl Future<Output = Result<(), DeviceError>> + use<Self> {
        done(self.start(Op::Flush, 0, 0, Buffers::None))
    }

    fn unmap(
        &self,
        offset: u64,
        len: u64,
    ) -> impl Future<Output = Result<(), DeviceError>> + use<Self> {
        done(self.start(Op::Unmap, offset, len, Buffers::None))
    }

    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
    ) -> impl Future<Output = Result<(), DeviceError>> + use<Self> {
        done(self.start(Op::WriteZeroes, offset, len, Buffers::None))
    }
}

impl<T: BlockDevice + ?Sized> BlockDeviceExt for T {}

async fn one(io: Io) -> (Buffer, Result<(), DeviceError>) {
    let Completion { buffers, result } = io.await;
    (buffers.into_one(), result)
}

async fn done(io: Io) -> Result<(), DeviceError> {
    io.await.result
}
