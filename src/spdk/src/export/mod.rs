//! Exported block devices: what this process offers to SPDK, served by a [`Disk`] on one reactor.
//!
//! ```text
//!   any SPDK thread                          │ the disk's reactor
//!   bdev layer ─► shim ─► trampoline ────────┼─► Local: queue ─► worker ─► Disk::read, write, …
//!                            (mailbox, when  │                      │
//!   bdev layer ◄─ complete ◄─ it is another) ◄──────────────────────┘
//! ```
//!
//! The rules this room owns:
//! * **A request is answered once, and only when nobody touches its memory any more**: see [`slot`].
//! * **Nothing is allocated for a request in steady state**: slots, their buffers and workers are kept.
//! * **A device goes when its last request has**: SPDK waits for whoever has it open, and says so with one event.

mod gate;
mod local;
mod slot;

use std::ffi::CString;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_channel::oneshot;
use runtime::{Buffer, DeviceErrorKind};

use crate::reactor::{self, ReactorError, ReactorHandle};
use gate::Device;
pub(crate) use gate::{Crossing, receive};
use local::Local;

/// What serves an exported device. All calls are made on the reactor that [`Export::register`] was called on, in any
/// number at the same time; offsets and lengths are whole blocks inside the device.
///
/// A buffer that a call is given is the transport's own memory. It is to come back as it was given: one that does not
/// (a dropped future) ends its request once it is dropped.
pub trait Disk: 'static {
    /// Fills the buffer from `offset`.
    fn read(
        &self,
        offset: u64,
        buffer: Buffer,
    ) -> impl Future<Output = (Buffer, Result<(), DeviceErrorKind>)>;

    /// Writes the buffer at `offset`.
    fn write(
        &self,
        offset: u64,
        buffer: Buffer,
    ) -> impl Future<Output = (Buffer, Result<(), DeviceErrorKind>)>;

    /// What was written before the call is on stable storage after it.
    fn flush(&self) -> impl Future<Output = Result<(), DeviceErrorKind>>;

    /// The range's content is no longer needed; it reads as zero or as it was.
    fn unmap(&self, offset: u64, len: u64) -> impl Future<Output = Result<(), DeviceErrorKind>>;

    /// The range reads as zero.
    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
    ) -> impl Future<Output = Result<(), DeviceErrorKind>>;
}

/// What an exported device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportOptions {
    /// Its name among all block devices of the process.
    pub name: String,
    /// In bytes; a power of two from 512 on.
    pub block_size: u32,
    pub block_count: u64,
    pub read_only: bool,
    /// Writes need a flush before they are safe.
    pub volatile_cache: bool,
    pub supports_unmap: bool,
    /// Without it, SPDK writes the zeroes.
    pub supports_write_zeroes: bool,
    /// Requests may come with memory of another process (vfio-user), rather than with SPDK's own.
    pub foreign_memory: bool,
}

/// A device could not be exported, or not be changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    #[error("there is a block device {0:?} already")]
    Exists(String),
    #[error("exporting {name:?}: {why}")]
    Invalid { name: String, why: String },
    #[error("{name:?} is in use, and cannot become smaller")]
    InUse { name: String },
    #[error("exporting {name:?} failed with errno {errno}")]
    Failed { name: String, errno: i32 },
    #[error("devices are exported on a reactor, not on a thread of another kind")]
    NotOnReactor,
    #[error(transparent)]
    Reactor(#[from] ReactorError),
}

/// What an exported device has done; from any thread.
#[derive(Debug, Default)]
pub struct ExportCounters {
    pub(crate) reads: AtomicU64,
    pub(crate) read_bytes: AtomicU64,
    pub(crate) writes: AtomicU64,
    pub(crate) written_bytes: AtomicU64,
    /// Writes that had to be flushed at once.
    pub(crate) durable_writes: AtomicU64,
    pub(crate) flushes: AtomicU64,
    pub(crate) unmaps: AtomicU64,
    pub(crate) write_zeroes: AtomicU64,
    pub(crate) resets: AtomicU64,
    /// Requests that failed.
    pub(crate) errors: AtomicU64,
    /// Reads and writes whose memory was in pieces, and that were copied for that.
    pub(crate) copied: AtomicU64,
    pub(crate) in_flight: AtomicU64,
}

/// [`ExportCounters`], at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExportFigures {
    pub reads: u64,
    pub read_bytes: u64,
    pub writes: u64,
    pub written_bytes: u64,
    pub durable_writes: u64,
    pub flushes: u64,
    pub unmaps: u64,
    pub write_zeroes: u64,
    pub resets: u64,
    pub errors: u64,
    pub copied: u64,
    pub in_flight: u64,
}

impl ExportCounters {
    pub fn figures(&self) -> ExportFigures {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ExportFigures {
            reads: get(&self.reads),
            read_bytes: get(&self.read_bytes),
            writes: get(&self.writes),
            written_bytes: get(&self.written_bytes),
            durable_writes: get(&self.durable_writes),
            flushes: get(&self.flushes),
            unmaps: get(&self.unmaps),
            write_zeroes: get(&self.write_zeroes),
            resets: get(&self.resets),
            errors: get(&self.errors),
            copied: get(&self.copied),
            in_flight: get(&self.in_flight),
        }
    }
}

/// A device that is exported, on the reactor of its disk. Dropped, it is taken away as soon as nobody uses it;
/// [`Export::unregister`] waits for that.
pub struct Export {
    options: ExportOptions,
    local: Rc<Local>,
    device: Arc<Device>,
    /// SPDK's main thread, where devices come and go.
    main: ReactorHandle,
    gone: Option<oneshot::Receiver<()>>,
}

impl Export {
    /// Exports `disk` from this reactor.
    pub async fn register<D: Disk>(disk: D, options: ExportOptions) -> Result<Export, ExportError> {
        let home = reactor::current_handle().ok_or(ExportError::NotOnReactor)?;
        let main = crate::system::main_reactor().ok_or(ExportError::NotOnReactor)?;
        let invalid = |why: &str| ExportError::Invalid {
            name: options.name.clone(),
            why: why.to_owned(),
        };
        let name = CString::new(options.name.as_str()).map_err(|_| invalid("a null byte"))?;
        if name.is_empty() {
            return Err(invalid("it needs a name"));
        }
        if options.block_size < 512 || !options.block_size.is_power_of_two() {
            return Err(invalid("its blocks are not a power of two from 512 on"));
        }
        let size = options.block_count.checked_mul(options.block_size.into());
        if options.block_count == 0 || size.is_none() {
            return Err(invalid("it has no block, or too many"));
        }
        let (local, gone) = Local::open(disk, &options);
        let (number, what) = (local.number(), options.clone());
        let device = main
            .call(move || async move { Device::register(number, home.index(), &name, &what) })
            .await
            .map_err(ExportError::from)
            .and_then(|made| made)
            .inspect_err(|_| local.close())?;
        Ok(Export {
            options,
            local,
            device,
            main,
            gone: Some(gone),
        })
    }

    pub fn name(&self) -> &str {
        &self.options.name
    }

    pub fn options(&self) -> &ExportOptions {
        &self.options
    }

    pub fn counters(&self) -> &Arc<ExportCounters> {
        self.local.counters()
    }

    /// Tells all users that the device has another size. It cannot shrink while it has any: then it is as it was.
    pub async fn resize(&mut self, block_count: u64) -> Result<(), ExportError> {
        let device = self.device.clone();
        let rc = self
            .main
            .call(move || async move { device.resize(block_count) })
            .await?;
        match rc {
            0 => {
                self.options.block_count = block_count;
                Ok(())
            }
            -16 => Err(ExportError::InUse {
                name: self.options.name.clone(),
            }),
            errno => Err(ExportError::Failed {
                name: self.options.name.clone(),
                errno: -errno,
            }),
        }
    }

    /// Takes the device away. Who has it open is told that it is gone; requests under way are finished. Ready when all
    /// have let go of it.
    pub async fn unregister(mut self) {
        let gone = self.gone.take();
        drop(self);
        if let Some(gone) = gone {
            // An error is SPDK's end: then it is gone as well.
            let _ = gone.await;
        }
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        let device = self.device.clone();
        // A reactor that stops takes all devices away by itself.
        let _ = self.main.spawn(move || async move { device.unregister() });
    }
}

impl std::fmt::Debug for Export {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Export({})", self.options.name)
    }
}

/// An NVMe status: code type and code (NVM Express Base Specification, "Status Code").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Status {
    pub kind: i32,
    pub code: i32,
}

impl Status {
    pub const SUCCESS: Status = Status { kind: 0, code: 0 };
    /// Aborted by request: it was given up, and its fate is unknown.
    pub const ABORTED: Status = Status {
        kind: 0,
        code: 0x07,
    };
    pub const UNSUPPORTED: Status = Status {
        kind: 0,
        code: 0x01,
    };

    fn of(error: DeviceErrorKind, reading: bool) -> Status {
        let (kind, code) = match error {
            // Media errors: unrecovered read, write fault.
            DeviceErrorKind::Failed if reading => (2, 0x81),
            DeviceErrorKind::Failed => (2, 0x80),
            // Internal error: no fault of the medium.
            DeviceErrorKind::Removed => (0, 0x06),
            DeviceErrorKind::OutOfRange => (0, 0x80),
            DeviceErrorKind::Unaligned => (0, 0x02),
            // Namespace is write protected.
            DeviceErrorKind::ReadOnly => (0, 0x20),
            // Capacity exceeded.
            DeviceErrorKind::NoSpace => (0, 0x81),
            DeviceErrorKind::Unsupported => (0, 0x01),
            // Reservation conflict: another host's is in the way, or this one is shut out.
            DeviceErrorKind::Reserved | DeviceErrorKind::Fenced => (0, 0x83),
            DeviceErrorKind::Aborted => (0, 0x07),
        };
        Status { kind, code }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_has_its_status() {
        let kinds = [
            DeviceErrorKind::Failed,
            DeviceErrorKind::Removed,
            DeviceErrorKind::OutOfRange,
            DeviceErrorKind::Unaligned,
            DeviceErrorKind::ReadOnly,
            DeviceErrorKind::NoSpace,
            DeviceErrorKind::Unsupported,
            DeviceErrorKind::Reserved,
            DeviceErrorKind::Aborted,
        ];
        for (index, kind) in kinds.iter().enumerate() {
            let status = Status::of(*kind, false);
            assert_ne!(status, Status::SUCCESS);
            for other in &kinds[..index] {
                assert_ne!(status, Status::of(*other, false), "{kind:?} and {other:?}");
            }
        }
        assert_ne!(
            Status::of(DeviceErrorKind::Failed, true),
            Status::of(DeviceErrorKind::Failed, false)
        );
    }
}
