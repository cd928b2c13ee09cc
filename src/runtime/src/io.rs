//! One I/O: a [`Request`] travels to the device and is completed exactly once; an [`Io`] is the
//! future on the other side. The two share a slot that is pooled per thread, so that a steady
//! stream of requests allocates nothing.
//!
//! The rule this file owns: **an I/O owns its buffers until the device has completed it, whoever
//! dropped the future.** The buffers live in the request; the request lives with the device.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::buffer::Buffer;
use crate::device::{DeviceError, DeviceErrorKind};

/// What a request asks of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    Read,
    Write,
    /// Everything completed before this request was submitted is on stable storage after it.
    Flush,
    /// The range's content becomes undefined (zero on most devices).
    Unmap,
    /// The range reads as zeroes afterwards.
    WriteZeroes,
}

impl Op {
    pub fn name(self) -> &'static str {
        match self {
            Op::Read => "read",
            Op::Write => "write",
            Op::Flush => "flush",
            Op::Unmap => "unmap",
            Op::WriteZeroes => "write-zeroes",
        }
    }
}

/// The buffers of a request, in order. One buffer is the common case and needs no list.
#[derive(Debug, Default)]
pub enum Buffers {
    #[default]
    None,
    One(Buffer),
    Many(Vec<Buffer>),
}

impl Buffers {
    pub fn as_slice(&self) -> &[Buffer] {
        match self {
            Buffers::None => &[],
            Buffers::One(buffer) => std::slice::from_ref(buffer),
            Buffers::Many(list) => list,
        }
    }

    pub fn as_mut_slice(&mut self) -> &mut [Buffer] {
        match self {
            Buffers::None => &mut [],
            Buffers::One(buffer) => std::slice::from_mut(buffer),
            Buffers::Many(list) => list,
        }
    }

    /// Bytes in all windows together.
    pub fn len(&self) -> u64 {
        self.as_slice().iter().map(|b| b.len() as u64).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The single buffer of a request that was made with one.
    ///
    /// # Panics
    /// When the request had none or several: a program error.
    pub fn into_one(self) -> Buffer {
        match self {
            Buffers::One(buffer) => buffer,
            other => panic!("expected one buffer, have {}", other.as_slice().len()),
        }
    }

    pub fn into_vec(self) -> Vec<Buffer> {
        match self {
            Buffers::None => Vec::new(),
            Buffers::One(buffer) => vec![buffer],
            Buffers::Many(list) => list,
        }
    }
}

/// How a request ended: its buffers come back in either case.
#[derive(Debug)]
pub struct Completion {
    pub buffers: Buffers,
    pub result: Result<(), DeviceError>,
}

/// Cells, not reference cells: values are put in and taken out, and nobody looks at them in place.
#[derive(Default)]
struct Slot {
    completion: Cell<Option<Completion>>,
    waker: Cell<Option<Waker>>,
    /// The future was dropped: the completion is for nobody.
    abandoned: Cell<bool>,
}

/// Slots kept for reuse on each thread; beyond this they are freed.
const POOLED_SLOTS: usize = 4096;

thread_local! {
    static POOL: RefCell<Vec<Rc<Slot>>> = const { RefCell::new(Vec::new()) };
}

fn take_slot() -> Rc<Slot> {
    POOL.with(|pool| pool.borrow_mut().pop())
        .unwrap_or_default()
}

/// Puts a slot back if this was its last user but the caller.
fn give_back(slot: Rc<Slot>) {
    if Rc::strong_count(&slot) != 1 {
        return;
    }
    drop(slot.completion.take());
    drop(slot.waker.take());
    slot.abandoned.set(false);
    // A thread that is ending has no pool any more; then the slot is simply freed.
    let _ = POOL.try_with(|pool| {
        let mut pool = pool.borrow_mut();
        if pool.len() < POOLED_SLOTS {
            pool.push(slot);
        }
    });
}

/// A request on its way to a device. The device must call [`Request::complete`] exactly once; a
/// request dropped without it completes as [`DeviceErrorKind::Aborted`], so no waiter hangs.
pub struct Request {
    pub op: Op,
    /// Bytes from the start of the device.
    pub offset: u64,
    /// Bytes: for reads and writes the sum of the buffers, for unmap and write-zeroes the range.
    pub len: u64,
    pub buffers: Buffers,
    slot: Option<Rc<Slot>>,
}

impl Request {
    /// A request and the future that waits for it.
    pub fn new(op: Op, offset: u64, len: u64, buffers: Buffers) -> (Request, Io) {
        let slot = take_slot();
        let request = Request {
            op,
            offset,
            len,
            buffers,
            slot: Some(slot.clone()),
        };
        (request, Io { slot: Some(slot) })
    }

    /// Ends the request and wakes its waiter.
    pub fn complete(mut self, result: Result<(), DeviceError>) {
        self.finish(result);
    }

    /// An error that names this request.
    pub fn error(&self, kind: DeviceErrorKind, detail: impl Into<String>) -> DeviceError {
        DeviceError {
            op: self.op,
            offset: self.offset,
            len: self.len,
            kind,
            detail: detail.into(),
        }
    }

    fn finish(&mut self, result: Result<(), DeviceError>) {
        let Some(slot) = self.slot.take() else { return };
        let buffers = mem::take(&mut self.buffers);
        if slot.abandoned.get() {
            drop(buffers);
            give_back(slot);
            return;
        }
        let previous = slot
            .completion
            .replace(Some(Completion { buffers, result }));
        assert!(previous.is_none(), "an I/O was completed twice");
        let waker = slot.waker.take();
        drop(slot);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if self.slot.is_some() {
            let error = self.error(DeviceErrorKind::Aborted, "the device dropped the request");
            self.finish(Err(error));
        }
    }
}

/// Waits for one request. Dropping it does not cancel the I/O; the device keeps the buffers until
/// it is done.
pub struct Io {
    slot: Option<Rc<Slot>>,
}

impl Future for Io {
    type Output = Completion;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Completion> {
        let slot = self
            .slot
            .as_ref()
            .expect("an Io is not polled after it is ready");
        match slot.completion.take() {
            Some(completion) => {
                if let Some(slot) = self.slot.take() {
                    give_back(slot);
                }
                Poll::Ready(completion)
            }
            None => {
                let waker = match slot.waker.take() {
                    Some(old) if old.will_wake(cx.waker()) => old,
                    _ => cx.waker().clone(),
                };
                slot.waker.set(Some(waker));
                Poll::Pending
            }
        }
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            slot.abandoned.set(true);
            give_back(slot);
        }
    }
}

#[cfg(test)]
#[path = "io_tests.rs"]
mod tests;
