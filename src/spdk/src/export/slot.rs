//! The memory of a request, as a buffer that a disk owns for a while.
//!
//! The rule this file owns: **a request is answered only when its memory is out of our hands.** A slot has two holders:
//! the request's [`Entry`], and the [`Window`] inside the buffer that the disk is given. As a rule the disk gives the
//! buffer back, the entry answers, and both are used again for the next request. A disk whose future was dropped gives
//! nothing back: the device below may still be writing into the memory. Then the entry lets go of the slot, and so does the
//! window when its buffer is dropped, which the device does when it is done; the last of the two answers.

use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};

use runtime::{Buffer, Memory};
use spdk_sys as sys;

use super::Status;
use super::gate::{self, IoPtr};

/// Changed on the disk's reactor only, and only while no buffer of it is out; read wherever the buffer is.
struct Slot {
    start: AtomicPtr<u8>,
    len: AtomicUsize,
    /// Devices of any kind reach the memory.
    reachable: AtomicU32,
    /// The request under way, or null.
    io: AtomicPtr<sys::spdk_bdev_io>,
    /// The reactor it came from.
    origin: AtomicUsize,
    holders: AtomicU32,
}

impl Slot {
    /// The entry, or the window, is gone.
    fn let_go(&self) {
        if self.holders.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        let io = self.io.swap(ptr::null_mut(), Ordering::Relaxed);
        if let Some(io) = IoPtr::new(io) {
            gate::answer(io, self.origin.load(Ordering::Relaxed), Status::ABORTED);
        }
    }
}

/// A request's memory, inside a buffer.
struct Window(Arc<Slot>);

impl Memory for Window {
    fn bytes(&self) -> &[u8] {
        let start = self.0.start.load(Ordering::Relaxed);
        if start.is_null() {
            return &[];
        }
        // SAFETY: the request's memory, `len` bytes of it, stays until the request is answered, which the slot's rule puts
        // after this value's end or the buffer's return; it is SPDK's or mapped memory and so initialised. Its user owes us
        // to leave it alone meanwhile; one in another process that does not sees its own bytes mixed up, as with any disk.
        unsafe { std::slice::from_raw_parts(start, self.0.len.load(Ordering::Relaxed)) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        let start = self.0.start.load(Ordering::Relaxed);
        if start.is_null() {
            return &mut [];
        }
        // SAFETY: as above; and there is one window a slot, borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(start, self.0.len.load(Ordering::Relaxed)) }
    }

    fn is_device_memory(&self) -> bool {
        self.0.reachable.load(Ordering::Relaxed) != 0
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.0.let_go();
    }
}

/// A slot, for one request after the other.
pub(super) struct Entry {
    slot: Arc<Slot>,
    /// None while a disk has it.
    buffer: Option<Buffer>,
}

impl Entry {
    pub fn new() -> Self {
        let slot = Arc::new(Slot {
            start: AtomicPtr::new(ptr::null_mut()),
            len: AtomicUsize::new(0),
            reachable: AtomicU32::new(0),
            io: AtomicPtr::new(ptr::null_mut()),
            origin: AtomicUsize::new(0),
            holders: AtomicU32::new(2),
        });
        Entry {
            buffer: Some(Buffer::new(Box::new(Window(slot.clone())))),
            slot,
        }
    }

    /// Takes a request.
    pub fn begin(&mut self, io: IoPtr, origin: usize) {
        self.slot.io.store(io.as_ptr(), Ordering::Relaxed);
        self.slot.origin.store(origin, Ordering::Relaxed);
    }

    /// The request's memory as a buffer. None while it is out.
    ///
    /// # Safety
    /// `start..start + len` is the memory of the request that was begun: exclusively its own until it is answered.
    pub unsafe fn lend(&mut self, start: *mut u8, len: usize, reachable: bool) -> Option<Buffer> {
        let mut buffer = self.buffer.take()?;
        self.slot.start.store(start, Ordering::Relaxed);
        self.slot.len.store(len, Ordering::Relaxed);
        self.slot
            .reachable
            .store(u32::from(reachable), Ordering::Relaxed);
        buffer.reset_window();
        Some(buffer)
    }

    /// The disk gives a buffer back. False when it is another one: then this one is dropped, and the request's own is
    /// still out.
    pub fn take_back(&mut self, mut buffer: Buffer) -> bool {
        buffer.reset_window();
        let start = self.slot.start.load(Ordering::Relaxed);
        if !ptr::eq(buffer.as_ptr(), start) {
            return false;
        }
        self.buffer = Some(buffer);
        true
    }

    /// The slot can be used again: its buffer is here.
    pub fn is_whole(&self) -> bool {
        self.buffer.is_some()
    }

    /// Ends the request, if its memory is here; else the last holder will.
    pub fn end(&mut self, status: Status) -> Option<Answer> {
        self.buffer.as_ref()?;
        self.slot.start.store(ptr::null_mut(), Ordering::Relaxed);
        let io = IoPtr::new(self.slot.io.swap(ptr::null_mut(), Ordering::Relaxed))?;
        Some(Answer {
            io,
            origin: self.slot.origin.load(Ordering::Relaxed),
            status,
        })
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.slot.let_go();
    }
}

/// What is to be told to SPDK. Whoever has it sends it.
#[must_use]
pub(super) struct Answer {
    io: IoPtr,
    origin: usize,
    status: Status,
}

impl Answer {
    pub fn send(self) {
        gate::answer(self.io, self.origin, self.status);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_or_stays_out() {
        let mut entry = Entry::new();
        let mut memory = vec![1u8; 64];
        // SAFETY: the vector outlives the buffer.
        let mut buffer = unsafe { entry.lend(memory.as_mut_ptr(), 64, true) }.expect("the first");
        assert_eq!(buffer.len(), 64);
        assert!(buffer.is_device_memory());
        buffer[3] = 9;
        buffer.set_window(8, 8);
        // SAFETY: as above.
        assert!(unsafe { entry.lend(memory.as_mut_ptr(), 64, true) }.is_none());
        assert!(!entry.take_back(Buffer::zeroed(64)), "another buffer");
        assert!(!entry.is_whole());
        assert!(entry.take_back(buffer));
        assert!(entry.is_whole());
        assert!(entry.end(Status::SUCCESS).is_none(), "no request was begun");
        assert_eq!(memory[3], 9);
    }
}
