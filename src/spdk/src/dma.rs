//! DMA memory: memory that devices can reach, owned, aligned, and pooled by size on each reactor.
//!
//! The rule this file owns: **SPDK's memory is not unmapped while a buffer lives.** A buffer may end on any thread, also
//! after SPDK was told to stop; so each is counted, and [`close`] says whether any is left.

use std::cell::RefCell;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use runtime::{Buffer, Memory};
use spdk_sys as sys;

use crate::limits;

/// The smallest size class, as a power of two. Classes go up to `limits::POOLED_BUFFER_MAX`.
const SMALLEST_CLASS: u32 = 9;
/// Alignment of everything from a page up; smaller buffers are aligned to their class.
const PAGE: usize = 4096;
const CLASSES: usize = (limits::POOLED_BUFFER_MAX.trailing_zeros() - SMALLEST_CLASS + 1) as usize;

/// Pieces of SPDK's memory that we hold, pooled ones among them.
static HELD: AtomicUsize = AtomicUsize::new(0);
/// SPDK's memory is there.
static OPEN: AtomicBool = AtomicBool::new(false);
/// The range all of it lies in, as far as it was seen.
static LOWEST: AtomicUsize = AtomicUsize::new(usize::MAX);
static HIGHEST: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static POOL: RefCell<Option<Pool>> = const { RefCell::new(None) };
}

type Pool = [Vec<Piece>; CLASSES];

/// A piece of SPDK's memory, all of it initialised. Freed when dropped.
struct Piece {
    start: NonNull<u8>,
    size: usize,
}

// SAFETY: a piece is exclusively owned memory with no tie to the thread that took it; SPDK frees it from any thread.
unsafe impl Send for Piece {}

impl Piece {
    fn take(size: usize) -> Option<Piece> {
        let align = size.next_power_of_two().min(PAGE);
        // Counted before the look at OPEN: `close` first sets OPEN, then reads the count, so one of us sees the other.
        HELD.fetch_add(1, Ordering::SeqCst);
        let start = if OPEN.load(Ordering::SeqCst) {
            // SAFETY: the environment is up, and `close` will not let it go while this piece is counted.
            NonNull::new(unsafe { sys::spdk_dma_zmalloc(size, align, std::ptr::null_mut()) })
        } else {
            None
        };
        let Some(start) = start else {
            HELD.fetch_sub(1, Ordering::SeqCst);
            return None;
        };
        let start = start.cast::<u8>();
        let address = start.as_ptr() as usize;
        LOWEST.fetch_min(address, Ordering::Relaxed);
        HIGHEST.fetch_max(address + size, Ordering::Relaxed);
        Some(Piece { start, size })
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        // SAFETY: `start` came from SPDK's allocator, is freed once, and SPDK's memory is there while pieces are counted.
        unsafe { sys::spdk_dma_free(self.start.as_ptr().cast()) };
        HELD.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A buffer's memory: a piece, of which `len` bytes were asked for.
struct DmaMemory {
    /// None only while it is dropped.
    piece: Option<Piece>,
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory is exclusively owned through `piece`; `start` only repeats its address.
unsafe impl Send for DmaMemory {}

impl Memory for DmaMemory {
    fn bytes(&self) -> &[u8] {
        // SAFETY: `start..start + len` is initialised memory that this value owns.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for DmaMemory {
    fn drop(&mut self) {
        let Some(piece) = self.piece.take() else {
            return;
        };
        let Some(class) = class_of(piece.size) else {
            return;
        };
        // To the pool of this thread if it is a reactor's with room; else the piece is freed as it goes out of scope.
        let _ = POOL.try_with(|pool| {
            if let Some(pool) = pool.borrow_mut().as_mut() {
                let list = &mut pool[class];
                if (list.len() + 1) * piece.size <= limits::POOLED_BYTES_PER_CLASS {
                    list.push(piece);
                }
            }
        });
    }
}

/// The class whose pieces have this size or the next larger.
fn class_of(len: usize) -> Option<usize> {
    let bits = len.max(1).checked_next_power_of_two()?.trailing_zeros();
    let class = bits.saturating_sub(SMALLEST_CLASS) as usize;
    (class < CLASSES).then_some(class)
}

/// A DMA buffer of exactly `len` bytes, from any thread. Its content is whatever it was used for last. None when SPDK has
/// no memory, or is not running.
pub fn allocate(len: usize) -> Option<Buffer> {
    let piece = match class_of(len) {
        Some(class) => {
            let pooled = POOL
                .try_with(|pool| {
                    pool.borrow_mut()
                        .as_mut()
                        .and_then(|pool| pool[class].pop())
                })
                .ok()
                .flatten();
            match pooled {
                Some(piece) => Some(piece),
                None => Piece::take(1 << (class as u32 + SMALLEST_CLASS)),
            }
        }
        None => Piece::take(len),
    }?;
    Some(Buffer::new(Box::new(DmaMemory {
        start: piece.start,
        len,
        piece: Some(piece),
    })))
}

/// Does this memory look like SPDK's? An ordinary buffer given to a device is a program error that must not reach it.
pub(crate) fn contains(bytes: &[u8]) -> bool {
    let address = bytes.as_ptr() as usize;
    address >= LOWEST.load(Ordering::Relaxed)
        && address + bytes.len() <= HIGHEST.load(Ordering::Relaxed)
}

/// SPDK's memory is there from now on.
pub(crate) fn open() {
    OPEN.store(true, Ordering::SeqCst);
}

/// No more memory is given out. True when none is held, so that SPDK's may go.
pub(crate) fn close() -> bool {
    OPEN.store(false, Ordering::SeqCst);
    HELD.load(Ordering::SeqCst) == 0
}

/// This thread keeps freed buffers from now on.
pub(crate) fn open_pool() {
    POOL.with(|pool| *pool.borrow_mut() = Some(std::array::from_fn(|_| Vec::new())));
}

/// This thread frees what it kept, and keeps no more.
pub(crate) fn close_pool() {
    let pool = POOL.with(|pool| pool.borrow_mut().take());
    drop(pool);
}
