//! Where SPDK and an exported device meet: the one trampoline of all callbacks, the way to the disk's reactor and back.
//!
//! SPDK holds numbers: a device's number comes with each event, and is looked up on the disk's reactor. A device of the C
//! side is a pointer that only SPDK's main thread uses, and forgets when it is told that the device is gone.

use std::collections::HashMap;
use std::ffi::CStr;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use spdk_sys as sys;

use super::{ExportError, ExportOptions, Status, local};
use crate::reactor::{self, Message};

/// A request of the bdev layer that is ours until it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IoPtr(NonNull<sys::spdk_bdev_io>);

// SAFETY: the pointer travels as a name; the request behind it is read and answered by one reactor at a time.
unsafe impl Send for IoPtr {}

impl IoPtr {
    pub fn new(io: *mut sys::spdk_bdev_io) -> Option<Self> {
        NonNull::new(io).map(IoPtr)
    }

    pub fn as_ptr(self) -> *mut sys::spdk_bdev_io {
        self.0.as_ptr()
    }
}

/// What one reactor tells another about an exported device.
pub(crate) enum Crossing {
    /// To the disk's reactor.
    Request {
        number: u64,
        io: IoPtr,
        origin: usize,
    },
    /// To the reactor the request came from.
    Answer { io: IoPtr, status: Status },
    /// To the disk's reactor: SPDK has nothing of the device any more.
    Gone { number: u64 },
}

/// A message of another reactor, on this one.
pub(crate) fn receive(crossing: Crossing) {
    match crossing {
        Crossing::Request { number, io, origin } => local::serve(number, io, origin),
        Crossing::Answer { io, status } => complete(io, status),
        Crossing::Gone { number } => local::gone(number),
    }
}

/// Answers a request on the reactor it came from.
pub(super) fn answer(io: IoPtr, origin: usize, status: Status) {
    if here() == Some(origin) {
        complete(io, status);
    } else {
        post(origin, Crossing::Answer { io, status });
    }
}

fn complete(io: IoPtr, status: Status) {
    // SAFETY: the request is ours and was not answered: it is taken out of its slot for this, once. This is the reactor that
    // polls its thread.
    unsafe { sys::shim_export_complete(io.as_ptr(), status.kind, status.code) };
}

fn here() -> Option<usize> {
    reactor::with_current(|reactor| reactor.shared.index)
}

fn post(reactor: usize, crossing: Crossing) {
    // A reactor that has ended has no SPDK thread any more, and so nothing that waits.
    if let Some(shared) = crate::system::reactors().and_then(|all| all.get(reactor)) {
        shared.post(Message::Export(crossing));
    }
}

/// Every callback of the C side enters here.
unsafe extern "C" fn on_event(
    event: sys::shim_export_event::Type,
    number: u64,
    home: u32,
    io: *mut sys::spdk_bdev_io,
) {
    let home = home as usize;
    let Some(here) = here() else {
        // SPDK's threads are polled by reactors only.
        return;
    };
    let crossing = if event == sys::shim_export_event::SHIM_EXPORT_GONE {
        Device::forget(number);
        Crossing::Gone { number }
    } else {
        let Some(io) = IoPtr::new(io) else { return };
        Crossing::Request {
            number,
            io,
            origin: here,
        }
    };
    if here == home {
        receive(crossing);
    } else {
        post(home, crossing);
    }
}

/// A device on the C side.
pub(super) struct Device {
    /// Null once it is gone. Used on SPDK's main thread only.
    raw: AtomicPtr<sys::shim_export>,
}

/// All of them, by number.
static DEVICES: Mutex<Option<HashMap<u64, Arc<Device>>>> = Mutex::new(None);

fn devices() -> MutexGuard<'static, Option<HashMap<u64, Arc<Device>>>> {
    // A panic while it is held leaves a map, which is still one.
    DEVICES.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Device {
    /// On SPDK's main thread.
    pub fn register(
        number: u64,
        home: usize,
        name: &CStr,
        options: &ExportOptions,
    ) -> Result<Arc<Device>, ExportError> {
        let what = sys::shim_export_options {
            name: name.as_ptr(),
            number,
            home: u32::try_from(home).expect("few reactors"),
            block_size: options.block_size,
            block_count: options.block_count,
            read_only: options.read_only,
            volatile_cache: options.volatile_cache,
            supports_unmap: options.supports_unmap,
            supports_write_zeroes: options.supports_write_zeroes,
            foreign_memory: options.foreign_memory,
        };
        let mut rc = 0;
        // SAFETY: on SPDK's main thread; the strings live during the call, and the function as long as the program.
        let raw = unsafe { sys::shim_export_register(&what, Some(on_event), &mut rc) };
        if raw.is_null() {
            let name = options.name.clone();
            return Err(match -rc {
                17 => ExportError::Exists(name),
                errno => ExportError::Failed { name, errno },
            });
        }
        let device = Arc::new(Device {
            raw: AtomicPtr::new(raw),
        });
        devices()
            .get_or_insert_default()
            .insert(number, device.clone());
        Ok(device)
    }

    fn raw(&self) -> Option<NonNull<sys::shim_export>> {
        NonNull::new(self.raw.load(Ordering::Relaxed))
    }

    /// 0 or a negative errno; on SPDK's main thread.
    pub fn resize(&self, block_count: u64) -> i32 {
        const NO_DEVICE: i32 = -19;
        match self.raw() {
            // SAFETY: on the main thread, which would have been told if the device were gone.
            Some(raw) => unsafe { sys::shim_export_resize(raw.as_ptr(), block_count) },
            None => NO_DEVICE,
        }
    }

    /// On SPDK's main thread, once.
    pub fn unregister(&self) {
        if let Some(raw) = self.raw() {
            // SAFETY: as for `resize`.
            unsafe { sys::shim_export_unregister(raw.as_ptr()) };
        }
    }

    /// It is gone: told on SPDK's main thread, after which the pointer is used no more.
    fn forget(number: u64) {
        let gone = devices().as_mut().and_then(|all| all.remove(&number));
        if let Some(device) = gone {
            device.raw.store(std::ptr::null_mut(), Ordering::Relaxed);
        }
    }
}

/// A new device's number.
pub(super) fn next_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
