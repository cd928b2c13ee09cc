//! Owned memory for I/O. A device hands out buffers its hardware can reach ([`Buffer`] over DMA
//! memory in production, over a plain vector in simulation); whoever has the buffer owns the bytes,
//! and while an I/O runs the I/O has it.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// A piece of memory with a fixed address and length. Implemented over DMA memory by the `spdk`
/// crate. Dropping it gives the memory back (to a pool, if the maker keeps one).
pub trait Memory: Send + Sync {
    fn bytes(&self) -> &[u8];
    fn bytes_mut(&mut self) -> &mut [u8];
    /// Devices transfer to and from it as it is. What says false is copied on the way.
    fn is_device_memory(&self) -> bool {
        false
    }
}

impl Memory for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }
    fn bytes_mut(&mut self) -> &mut [u8] {
        self
    }
}

/// Bytes that others have as well. They are only read.
struct Shared(Arc<Buffer>);

impl Memory for Shared {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        panic!("a buffer over shared bytes is only read from")
    }
}

/// An owned buffer: a window of a [`Memory`]. The window is what an I/O transfers; it starts as the
/// whole memory and can be narrowed and widened without touching the bytes.
pub struct Buffer {
    memory: Box<dyn Memory>,
    start: usize,
    len: usize,
}

impl Buffer {
    /// A buffer over all of `memory`.
    pub fn new(memory: Box<dyn Memory>) -> Self {
        let len = memory.bytes().len();
        Buffer {
            memory,
            start: 0,
            len,
        }
    }

    /// A buffer of ordinary memory, all zero. Devices that need DMA memory do not accept it; use
    /// [`crate::BlockDevice::allocate`].
    pub fn zeroed(len: usize) -> Self {
        Buffer::new(Box::new(vec![0u8; len]))
    }

    /// A buffer over bytes that others may have as well (a page of a cache, say), for writing them to
    /// a device. Nobody can change them while it lives.
    ///
    /// # Panics
    /// When it is written to: a program error.
    pub fn shared(bytes: Arc<Buffer>) -> Self {
        Buffer::new(Box::new(Shared(bytes)))
    }

    /// Bytes in the window.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes in the whole memory.
    pub fn capacity(&self) -> usize {
        self.memory.bytes().len()
    }

    /// Devices reach it without a copy.
    pub fn is_device_memory(&self) -> bool {
        self.memory.is_device_memory()
    }

    /// Narrows or moves the window to `start..start + len` of the whole memory.
    ///
    /// # Panics
    /// When that is outside the memory: a program error.
    pub fn set_window(&mut self, start: usize, len: usize) {
        let end = start
            .checked_add(len)
            .expect("a window's end fits in usize");
        assert!(
            end <= self.capacity(),
            "window {start}+{len} outside {} bytes",
            self.capacity()
        );
        self.start = start;
        self.len = len;
    }

    /// The window becomes the whole memory again.
    pub fn reset_window(&mut self) {
        self.set_window(0, self.capacity());
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.memory.bytes()[self.start..self.start + self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        let (start, end) = (self.start, self.start + self.len);
        &mut self.memory.bytes_mut()[start..end]
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} of {} bytes)", self.len, self.capacity())
    }
}
