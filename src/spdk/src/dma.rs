//! DMA memory: memory that devices can reach, owned, aligned, and pooled by size.
//!
//! SPDK's allocator searches long lists once many small pieces have come and gone, so small buffers are cut from large
//! chunks that are kept. A freed buffer goes to the pool of the reactor that freed it, from there in batches to a pool that
//! all threads share.
//!
//! The rule this file owns: **SPDK's memory is not unmapped while a buffer lives.** A buffer may end on any thread, also
//! after SPDK was told to stop; so each is counted, and [`close`] says whether any is left.

use std::cell::RefCell;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use runtime::{Buffer, Memory};
use spdk_sys as sys;

use crate::limits;

/// The smallest size class, as a power of two. Classes go up to `limits::POOLED_BUFFER_MAX`.
const SMALLEST_CLASS: u32 = 9;
const CLASSES: usize = (limits::POOLED_BUFFER_MAX.trailing_zeros() - SMALLEST_CLASS + 1) as usize;
/// Classes up to this size are cut from chunks, which are taken whole.
const CUT_MAX: usize = 64 << 10;
const CHUNK: usize = 1 << 20;
/// Alignment of everything from a page up; smaller buffers are aligned to their class.
const PAGE: usize = 4096;

/// Buffers that live.
static HELD: AtomicUsize = AtomicUsize::new(0);
/// SPDK's memory is there.
static OPEN: AtomicBool = AtomicBool::new(false);

type List = Vec<Piece>;

/// What all threads share, by class.
static SHARED: [Mutex<List>; CLASSES] = [const { Mutex::new(Vec::new()) }; CLASSES];

thread_local! {
    /// What this reactor keeps; None on other threads.
    static POOL: RefCell<Option<[List; CLASSES]>> = const { RefCell::new(None) };
}

/// A piece of SPDK's memory, all of it initialised.
struct Piece {
    start: NonNull<u8>,
    /// Cut from a chunk: it stays with us until SPDK ends. Otherwise SPDK gets it back.
    cut: bool,
}

// SAFETY: a piece is exclusively owned memory with no tie to the thread that took it; SPDK frees it from any thread.
unsafe impl Send for Piece {}

impl Piece {
    /// Takes memory from SPDK. The caller's buffer is counted already, and SPDK is open.
    fn take(size: usize) -> Option<Piece> {
        let align = size.next_power_of_two().min(PAGE);
        // SAFETY: the environment is up, and `close` does not let it go while the caller's buffer is counted.
        let start = unsafe { sys::spdk_dma_zmalloc(size, align, std::ptr::null_mut()) };
        let start = NonNull::new(start)?.cast::<u8>();
        Some(Piece { start, cut: false })
    }

    /// One piece of a class; what else a new chunk gives goes to `rest`.
    fn take_class(class: usize, rest: &mut List) -> Option<Piece> {
        let size = size_of_class(class);
        if size > CUT_MAX {
            return Piece::take(size);
        }
        let chunk = Piece::take(CHUNK)?;
        rest.extend((1..CHUNK / size).map(|index| Piece {
            // SAFETY: inside the chunk, of which each piece gets its own part.
            start: unsafe { chunk.start.add(index * size) },
            cut: true,
        }));
        let start = chunk.start;
        // The chunk lives on in its pieces.
        std::mem::forget(chunk);
        Some(Piece { start, cut: true })
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        if !self.cut {
            // SAFETY: `start` came from SPDK's allocator, is freed once, and SPDK's memory is still there: a live buffer
            // is counted, and the pools are emptied before it goes.
            unsafe { sys::spdk_dma_free(self.start.as_ptr().cast()) };
        }
    }
}

/// The class whose pieces have this size or the next larger.
fn class_of(len: usize) -> Option<usize> {
    let bits = len.max(1).checked_next_power_of_two()?.trailing_zeros();
    let class = bits.saturating_sub(SMALLEST_CLASS) as usize;
    (class < CLASSES).then_some(class)
}

fn size_of_class(class: usize) -> usize {
    1 << (class as u32 + SMALLEST_CLASS)
}

/// How many pieces of a class a reactor keeps.
fn kept_of_class(class: usize) -> usize {
    (limits::POOLED_BYTES_PER_CLASS / size_of_class(class)).max(2)
}

fn shared(class: usize) -> MutexGuard<'static, List> {
    // A panic while holding it leaves a list of pieces, which is still one.
    SHARED[class].lock().unwrap_or_else(PoisonError::into_inner)
}

/// A piece of a class, from wherever there is one: this reactor's pool, the shared one, or SPDK.
fn get(class: usize) -> Option<Piece> {
    let own = with_pool(|pool| pool[class].pop()).flatten();
    if own.is_some() {
        return own;
    }
    let mut list = shared(class);
    let piece = match list.pop() {
        Some(piece) => piece,
        None => Piece::take_class(class, &mut list)?,
    };
    // A few more while we have the lock.
    with_pool(|pool| {
        let more = (kept_of_class(class) / 4).min(list.len()).min(64);
        let at = list.len() - more;
        pool[class].extend(list.drain(at..));
    });
    Some(piece)
}

/// Puts a piece back. Large ones beyond what the pools keep go back to SPDK.
fn put(class: usize, piece: Piece) {
    let mut piece = Some(piece);
    let keep = kept_of_class(class);
    with_pool(|pool| {
        let own = &mut pool[class];
        own.extend(piece.take());
        if own.len() > keep {
            let at = own.len() / 2;
            share(class, own.drain(at..));
        }
    });
    if let Some(piece) = piece {
        share(class, [piece]);
    }
}

/// Gives pieces to the shared pool; of large ones, as many as it keeps.
fn share(class: usize, pieces: impl IntoIterator<Item = Piece>) {
    let mut list = shared(class);
    list.extend(pieces);
    if size_of_class(class) > CUT_MAX {
        let keep = kept_of_class(class).min(list.len());
        let excess = list.split_off(keep);
        drop(list);
        drop(excess);
    }
}

fn with_pool<T>(f: impl FnOnce(&mut [List; CLASSES]) -> T) -> Option<T> {
    POOL.try_with(|pool| pool.borrow_mut().as_mut().map(f))
        .ok()
        .flatten()
}

/// A buffer's memory: a piece, of which `len` bytes were asked for.
struct DmaMemory {
    /// None only while it is dropped.
    piece: Option<Piece>,
    /// None: larger than any class.
    class: Option<usize>,
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory is exclusively owned through `piece`; `start` only repeats its address.
unsafe impl Send for DmaMemory {}
// SAFETY: through a shared reference it is only read.
unsafe impl Sync for DmaMemory {}

impl Memory for DmaMemory {
    fn bytes(&self) -> &[u8] {
        // SAFETY: `start..start + len` is initialised memory that this value owns.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    fn is_device_memory(&self) -> bool {
        true
    }
}

impl Drop for DmaMemory {
    fn drop(&mut self) {
        if let (Some(piece), Some(class)) = (self.piece.take(), self.class) {
            put(class, piece);
        }
        // Last: until here SPDK's memory stays. (A piece of no class was freed by its own drop, above.)
        HELD.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A DMA buffer of exactly `len` bytes, from any thread. Its content is whatever it was used for last. None when SPDK has
/// no memory, or is not running.
pub fn allocate(len: usize) -> Option<Buffer> {
    // Counted before the look at OPEN: `close` first clears OPEN, then reads the count, so one of us sees the other.
    HELD.fetch_add(1, Ordering::SeqCst);
    let class = class_of(len);
    let piece = if OPEN.load(Ordering::SeqCst) {
        match class {
            Some(class) => get(class),
            None => Piece::take(len),
        }
    } else {
        None
    };
    let Some(piece) = piece else {
        HELD.fetch_sub(1, Ordering::SeqCst);
        return None;
    };
    Some(Buffer::new(Box::new(DmaMemory {
        start: piece.start,
        len,
        class,
        piece: Some(piece),
    })))
}

/// SPDK's memory is there from now on.
pub(crate) fn open() {
    OPEN.store(true, Ordering::SeqCst);
}

/// No more memory is given out. True when no buffer lives, so that SPDK's memory may go.
pub(crate) fn close() -> bool {
    OPEN.store(false, Ordering::SeqCst);
    let none_held = HELD.load(Ordering::SeqCst) == 0;
    for class in 0..CLASSES {
        let list = std::mem::take(&mut *shared(class));
        drop(list);
    }
    none_held
}

/// This thread keeps freed buffers from now on.
pub(crate) fn open_pool() {
    POOL.with(|pool| *pool.borrow_mut() = Some(std::array::from_fn(|_| Vec::new())));
}

/// This thread keeps no more, and gives what it kept to the others.
pub(crate) fn close_pool() {
    let pool = POOL.with(|pool| pool.borrow_mut().take());
    for (class, list) in pool.into_iter().flatten().enumerate() {
        share(class, list);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_hold_what_they_are_for() {
        for len in [0, 1, 511, 512, 513, 4096, 65_536, 65_537, 1 << 20, 4 << 20] {
            let class = class_of(len).unwrap();
            assert!(size_of_class(class) >= len);
            assert!(class == 0 || size_of_class(class - 1) < len, "{len}");
        }
        assert_eq!(class_of((4 << 20) + 1), None);
        assert_eq!(class_of(usize::MAX), None);
    }

    #[test]
    fn there_is_no_memory_without_spdk() {
        assert!(allocate(512).is_none());
        assert!(allocate(64 << 20).is_none());
        assert!(close(), "nothing is held");
    }
}
