//! A block device, open on one reactor.
//!
//! It closes when its last user is gone, or when it was removed and its last request has come back: SPDK waits with the
//! removal until then. Closing is put off to a message of its own, so that it never runs inside a completion.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr::{self, NonNull};
use std::rc::{Rc, Weak};

use futures_channel::oneshot;
use runtime::{
    BlockDevice, Buffer, DeviceErrorKind, DeviceEvent, DeviceInfo, Op, Request, Subscription,
};
use spdk_sys as sys;

use super::request;
use crate::dma;
use crate::error::{OpenError, ResetError};
use crate::reactor;

/// An open block device. It belongs to the reactor that opened it.
pub struct Bdev {
    inner: Rc<Inner>,
}

/// How to open a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    ReadOnly,
    ReadWrite,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct OpenParts {
    pub desc: NonNull<sys::spdk_bdev_desc>,
    pub channel: NonNull<sys::spdk_io_channel>,
}

type Callback = Rc<dyn Fn(DeviceEvent)>;

pub(super) struct Inner {
    /// Its number among the devices open here; what SPDK has for its events.
    number: usize,
    name: String,
    pub block_size: u32,
    pub block_count: Cell<u64>,
    pub buffer_align: usize,
    volatile_cache: bool,
    supports_unmap: bool,
    supports_flush: bool,
    read_only: bool,
    removed: Cell<bool>,
    /// None once it is closed.
    open: Cell<Option<OpenParts>>,
    in_flight: Cell<usize>,
    subscribers: RefCell<Vec<(u64, Callback)>>,
    next_subscriber: Cell<u64>,
}

thread_local! {
    static OPEN: RefCell<HashMap<usize, Weak<Inner>>> = RefCell::default();
    static NEXT_NUMBER: Cell<usize> = const { Cell::new(1) };
}

impl Bdev {
    /// Opens a device on this reactor. Several may open the same device.
    pub fn open(name: &str, access: Access) -> Result<Rc<Bdev>, OpenError> {
        if !reactor::on_reactor() {
            return Err(OpenError::NotOnReactor);
        }
        let failed = |errno: i32| match errno {
            19 => OpenError::NotFound {
                name: name.to_owned(),
                present: super::list().into_iter().map(|one| one.name).collect(),
            },
            1 => OpenError::Busy {
                name: name.to_owned(),
            },
            errno => OpenError::Failed {
                name: name.to_owned(),
                errno,
            },
        };
        let c_name = CString::new(name).map_err(|_| failed(19))?;
        let number = NEXT_NUMBER.get();
        NEXT_NUMBER.set(number + 1);
        let mut desc = ptr::null_mut();
        // SAFETY: on an SPDK thread; SPDK copies the name; events carry a number, not a pointer.
        let rc = unsafe {
            sys::spdk_bdev_open_ext(
                c_name.as_ptr(),
                access == Access::ReadWrite,
                Some(on_event),
                ptr::without_provenance_mut(number),
                &mut desc,
            )
        };
        let desc = match NonNull::new(desc) {
            Some(desc) if rc == 0 => desc,
            _ => return Err(failed(rc.abs())),
        };
        let inner = Inner::look_at(number, name, access, desc).inspect_err(|_| {
            // SAFETY: opened above, on this thread, and used by nobody.
            unsafe { sys::spdk_bdev_close(desc.as_ptr()) };
        })?;
        let inner = Rc::new(inner);
        OPEN.with_borrow_mut(|open| open.insert(number, Rc::downgrade(&inner)));
        reactor::with_current(|reactor| {
            reactor.open_devices.set(reactor.open_devices.get() + 1);
        });
        Ok(Rc::new(Bdev { inner }))
    }

    /// Resets the device: what is in flight is aborted. For a controller this takes a while.
    pub async fn reset(&self) -> Result<(), ResetError> {
        let error = |kind, detail: String| ResetError {
            name: self.inner.name.clone(),
            kind,
            detail,
        };
        if self.inner.removed.get() {
            return Err(error(DeviceErrorKind::Removed, "the device is gone".into()));
        }
        let (sender, receiver) = oneshot::channel();
        self.inner.one_more();
        request::start_reset(self.inner.clone(), sender);
        match receiver.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(failure)) => {
                let (kind, detail) = failure.explain(self.inner.removed.get());
                Err(error(kind, detail))
            }
            Err(_) => Err(error(DeviceErrorKind::Aborted, "no answer".into())),
        }
    }
}

impl Inner {
    fn look_at(
        number: usize,
        name: &str,
        access: Access,
        desc: NonNull<sys::spdk_bdev_desc>,
    ) -> Result<Inner, OpenError> {
        let unsuitable = |why: String| OpenError::Unsuitable {
            name: name.to_owned(),
            why,
        };
        // SAFETY: the descriptor is open, so the device is there, and these read its fields.
        let (block_size, block_count, align, write_cache, metadata, zoned) = unsafe {
            let bdev = sys::spdk_bdev_desc_get_bdev(desc.as_ptr());
            (
                sys::spdk_bdev_get_block_size(bdev),
                sys::spdk_bdev_get_num_blocks(bdev),
                sys::spdk_bdev_get_buf_align(bdev),
                sys::spdk_bdev_has_write_cache(bdev),
                sys::spdk_bdev_get_md_size(bdev),
                sys::spdk_bdev_is_zoned(bdev),
            )
        };
        if !block_size.is_power_of_two() || block_size < 512 {
            return Err(unsuitable(format!("blocks of {block_size} bytes")));
        }
        if metadata != 0 {
            return Err(unsuitable(format!("{metadata} bytes of metadata a block")));
        }
        if zoned {
            return Err(unsuitable("it is zoned".to_owned()));
        }
        let supports = |kind| {
            // SAFETY: as above.
            unsafe {
                let bdev = sys::spdk_bdev_desc_get_bdev(desc.as_ptr());
                sys::spdk_bdev_io_type_supported(bdev, kind)
            }
        };
        use sys::spdk_bdev_io_type as kind;
        if !supports(kind::SPDK_BDEV_IO_TYPE_READ) {
            return Err(unsuitable("it cannot be read".to_owned()));
        }
        let writable = supports(kind::SPDK_BDEV_IO_TYPE_WRITE);
        if access == Access::ReadWrite && !writable {
            return Err(unsuitable("it cannot be written".to_owned()));
        }
        // SAFETY: the descriptor is open, and this is the SPDK thread that opened it.
        let channel = unsafe { sys::spdk_bdev_get_io_channel(desc.as_ptr()) };
        let channel = NonNull::new(channel).ok_or_else(|| OpenError::Failed {
            name: name.to_owned(),
            errno: 12,
        })?;
        Ok(Inner {
            number,
            name: name.to_owned(),
            block_size,
            block_count: Cell::new(block_count),
            buffer_align: align.max(1),
            volatile_cache: write_cache,
            supports_unmap: supports(kind::SPDK_BDEV_IO_TYPE_UNMAP),
            supports_flush: supports(kind::SPDK_BDEV_IO_TYPE_FLUSH),
            read_only: access == Access::ReadOnly,
            removed: Cell::new(false),
            open: Cell::new(Some(OpenParts { desc, channel })),
            in_flight: Cell::new(0),
            subscribers: RefCell::default(),
            next_subscriber: Cell::new(0),
        })
    }

    pub fn open_parts(&self) -> Option<OpenParts> {
        self.open.get()
    }

    pub fn is_removed(&self) -> bool {
        self.removed.get()
    }

    fn one_more(&self) {
        self.in_flight.set(self.in_flight.get() + 1);
    }

    /// A request has come back.
    pub fn one_done(&self) {
        self.in_flight.set(self.in_flight.get() - 1);
        if self.removed.get() && self.in_flight.get() == 0 {
            self.close();
        }
    }

    fn close(&self) {
        if let Some(parts) = self.open.take() {
            close_soon(parts);
        }
    }

    fn tell(&self, event: DeviceEvent) {
        // Copied: a callback may subscribe or unsubscribe.
        let callbacks: Vec<Callback> = self
            .subscribers
            .borrow()
            .iter()
            .map(|(_, callback)| callback.clone())
            .collect();
        for callback in callbacks {
            callback(event);
        }
    }

    /// Is this a request the device can try? `Ok(true)`: and it has nothing to do for it.
    fn judge(&self, request: &Request) -> Result<bool, (DeviceErrorKind, String)> {
        let Request {
            op, offset, len, ..
        } = *request;
        if self.removed.get() {
            return Err((DeviceErrorKind::Removed, "the device is gone".into()));
        }
        if op == Op::Flush {
            // Without a flush there is no volatile cache that SPDK knows of: what completed is where it will be.
            return Ok(!self.supports_flush || self.read_only);
        }
        if op != Op::Read && self.read_only {
            return Err((DeviceErrorKind::ReadOnly, "opened read-only".into()));
        }
        if op == Op::Unmap && !self.supports_unmap {
            return Err((DeviceErrorKind::Unsupported, "no unmap".into()));
        }
        let block = u64::from(self.block_size);
        if !offset.is_multiple_of(block) || !len.is_multiple_of(block) {
            let detail = format!("the device has blocks of {block} bytes");
            return Err((DeviceErrorKind::Unaligned, detail));
        }
        if matches!(op, Op::Read | Op::Write) && request.buffers.len() != len {
            let detail = format!("the buffers hold {} bytes", request.buffers.len());
            return Err((DeviceErrorKind::Unaligned, detail));
        }
        let size = self.block_count.get().saturating_mul(block);
        if offset.checked_add(len).is_none_or(|end| end > size) {
            let detail = format!("the device has {size} bytes");
            return Err((DeviceErrorKind::OutOfRange, detail));
        }
        Ok(len == 0)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        OPEN.try_with(|open| {
            if let Ok(mut open) = open.try_borrow_mut() {
                open.remove(&self.number);
            }
        })
        .ok();
        self.close();
    }
}

impl BlockDevice for Bdev {
    fn info(&self) -> DeviceInfo {
        let inner = &self.inner;
        DeviceInfo {
            name: inner.name.clone(),
            block_size: inner.block_size,
            block_count: inner.block_count.get(),
            buffer_align: inner.buffer_align,
            volatile_cache: inner.volatile_cache,
            supports_unmap: inner.supports_unmap,
            read_only: inner.read_only,
        }
    }

    fn allocate(&self, len: usize) -> Buffer {
        dma::allocate(len).unwrap_or_else(|| {
            // Ordinary memory still works, by a copy, if there is DMA memory again by then; if not, the request fails.
            tracing::warn!(len, "no DMA memory is left; using ordinary memory");
            Buffer::zeroed(len)
        })
    }

    fn submit(&self, request: Request) {
        match self.inner.judge(&request) {
            Ok(true) => request.complete(Ok(())),
            Ok(false) => {
                self.inner.one_more();
                request::start(&self.inner, request);
            }
            Err((kind, detail)) => {
                let error = request.error(kind, detail);
                request.complete(Err(error));
            }
        }
    }

    fn subscribe(&self, callback: Rc<dyn Fn(DeviceEvent)>) -> Subscription {
        let number = self.inner.next_subscriber.get();
        self.inner.next_subscriber.set(number + 1);
        self.inner.subscribers.borrow_mut().push((number, callback));
        Subscription::new(Subscribed {
            device: Rc::downgrade(&self.inner),
            number,
        })
    }
}

impl std::fmt::Debug for Bdev {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bdev({})", self.inner.name)
    }
}

struct Subscribed {
    device: Weak<Inner>,
    number: u64,
}

impl Drop for Subscribed {
    fn drop(&mut self) {
        if let Some(device) = self.device.upgrade() {
            let mut list = device.subscribers.borrow_mut();
            let place = list.iter().position(|(number, _)| *number == self.number);
            let gone = place.map(|place| list.swap_remove(place));
            drop(list);
            drop(gone);
        }
    }
}

/// SPDK tells of the device, on the thread that opened it.
unsafe extern "C" fn on_event(
    kind: sys::spdk_bdev_event_type::Type,
    bdev: *mut sys::spdk_bdev,
    context: *mut c_void,
) {
    let device = OPEN.with_borrow(|open| open.get(&context.addr()).and_then(Weak::upgrade));
    // One that is just being closed hears no more.
    let Some(device) = device else { return };
    match kind {
        sys::spdk_bdev_event_type::SPDK_BDEV_EVENT_REMOVE => {
            if device.removed.replace(true) {
                return;
            }
            tracing::warn!(device = device.name, "block device was removed");
            device.tell(DeviceEvent::Removed);
            if device.in_flight.get() == 0 {
                device.close();
            }
        }
        sys::spdk_bdev_event_type::SPDK_BDEV_EVENT_RESIZE => {
            // SAFETY: SPDK passes the live device that the event is about.
            let block_count = unsafe { sys::spdk_bdev_get_num_blocks(bdev) };
            device.block_count.set(block_count);
            tracing::info!(
                device = device.name,
                block_count,
                "block device was resized"
            );
            device.tell(DeviceEvent::Resized { block_count });
        }
        _ => {}
    }
}

/// Closes a device from a message of this SPDK thread, where nothing of it is running.
fn close_soon(parts: OpenParts) {
    let context = Box::into_raw(Box::new(parts));
    // SAFETY: a live SPDK thread, the current one; `close_now` takes the box.
    let rc = unsafe {
        sys::spdk_thread_send_msg(sys::spdk_get_thread(), Some(close_now), context.cast())
    };
    if rc != 0 {
        // SPDK has no message left. Closing from here is what remains; it is only less tidy.
        // SAFETY: it was not sent, so the box is still ours.
        unsafe { close_now(context.cast()) };
    }
}

unsafe extern "C" fn close_now(context: *mut c_void) {
    // SAFETY: `close_soon` passes such a box, once; both were opened on this SPDK thread, and no request is in flight.
    unsafe {
        let parts = *Box::from_raw(context.cast::<OpenParts>());
        sys::spdk_put_io_channel(parts.channel.as_ptr());
        sys::spdk_bdev_close(parts.desc.as_ptr());
    }
    reactor::with_current(|reactor| {
        reactor.open_devices.set(reactor.open_devices.get() - 1);
    });
}

/// A C string of SPDK's, copied.
///
/// # Safety
/// `text` is null or a C string.
pub(super) unsafe fn copied(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(text) }
        .to_string_lossy()
        .into_owned()
}
