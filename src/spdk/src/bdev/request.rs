//! Requests that SPDK has: numbered slots of one reactor, and the one function that every completion enters by.
//!
//! The rule this file owns: **SPDK holds numbers, never pointers to us.** What is passed as a callback's context is a slot
//! and its generation; a completion whose generation does not fit is stale or a second one, and is an assertion before it
//! can touch anything. Buffers, vectors and wait entries live in the slot until the completion.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ffi::c_void;
use std::ptr::{self, NonNull};
use std::rc::Rc;
use std::sync::atomic::Ordering;

use runtime::{Buffer, Buffers, DeviceErrorKind, Op, Request};
use spdk_sys as sys;

use super::device::{Inner, OpenParts};
use super::status::{Failure, failure_of};
use crate::{dma, limits, reactor};

/// A slot in use, as SPDK sees it: the slot's place and generation in the bits of a pointer.
#[derive(Debug, Clone, Copy)]
struct Token {
    place: u32,
    generation: u32,
}

impl Token {
    fn to_context(self) -> *mut c_void {
        let bits = (u64::from(self.generation) << 32) | u64::from(self.place);
        ptr::without_provenance_mut(bits as usize)
    }

    fn from_context(context: *mut c_void) -> Self {
        let bits = context.addr() as u64;
        Token {
            place: bits as u32,
            generation: (bits >> 32) as u32,
        }
    }
}

const _: () = assert!(
    size_of::<usize>() == 8,
    "tokens are packed into pointers of 64 bits"
);

/// What a slot waits for.
enum Work {
    /// A request of the device's users.
    Request(Request),
    /// A device reset.
    Reset(futures_channel::oneshot::Sender<Result<(), Failure>>),
}

struct Active {
    work: Work,
    device: Rc<Inner>,
    /// Where the device writes or reads instead, when it cannot reach the request's own buffers.
    bounce: Option<Buffer>,
}

/// What SPDK points to (vectors, the wait entry) lives here, at an address that never changes.
struct Slot {
    generation: u32,
    active: Option<Active>,
    vectors: Vec<sys::iovec>,
    wait: sys::spdk_bdev_io_wait_entry,
}

/// Slots are made as they are needed and never freed: there are as many as requests were ever in flight at once.
struct Slots {
    all: Vec<NonNull<Slot>>,
    free: Vec<u32>,
    /// Occupied, and not yet with SPDK.
    queued: VecDeque<Token>,
}

impl Slots {
    fn add(&mut self) -> u32 {
        self.all.push(NonNull::from(Box::leak(Box::new(Slot {
            generation: 0,
            active: None,
            vectors: Vec::new(),
            wait: sys::spdk_bdev_io_wait_entry::default(),
        }))));
        u32::try_from(self.all.len() - 1).expect("slots are bounded")
    }

    fn with_spdk(&self) -> usize {
        self.all.len() - self.free.len() - self.queued.len()
    }

    /// The slot, for as long as the list of slots is borrowed; SPDK is never called meanwhile.
    fn at(&mut self, place: u32) -> &mut Slot {
        // SAFETY: slots are never freed, and only reached through the list, which is borrowed mutably. SPDK's own
        // pointers are to a wait entry in its queue, which it touches only while it is called.
        unsafe { self.all[place as usize].as_mut() }
    }
}

thread_local! {
    static SLOTS: RefCell<Slots> = const {
        RefCell::new(Slots {
            all: Vec::new(),
            free: Vec::new(),
            queued: VecDeque::new(),
        })
    };
}

impl Slots {
    fn occupy(&mut self, active: Active) -> Token {
        let place = self.free.pop().unwrap_or_else(|| self.add());
        let slot = self.at(place);
        slot.active = Some(active);
        Token {
            place,
            generation: slot.generation,
        }
    }
}

fn occupy(active: Active) -> Token {
    count(1);
    SLOTS.with_borrow_mut(|slots| slots.occupy(active))
}

/// Empties the slot of a completion. The second answer tells whether others wait for their turn.
///
/// # Panics
/// When it is empty, or used by another request: the completion came twice, and memory may be damaged.
fn vacate(token: Token) -> (Active, bool) {
    SLOTS.with_borrow_mut(|slots| {
        let slot = slots.at(token.place);
        assert!(
            slot.generation == token.generation,
            "a block device completed a request that it had completed before"
        );
        slot.generation = slot.generation.wrapping_add(1);
        slot.vectors.clear();
        let active = slot.active.take();
        slots.free.push(token.place);
        let active = active.expect("an occupied slot has its request");
        (active, !slots.queued.is_empty())
    })
}

fn count(change: isize) {
    reactor::with_current(|reactor| {
        let in_flight = reactor.in_flight.get();
        reactor.in_flight.set(
            in_flight
                .checked_add_signed(change)
                .expect("counted in pairs"),
        );
    });
}

/// A request has come back.
fn count_done() {
    reactor::with_current(|reactor| {
        let in_flight = reactor.in_flight.get();
        reactor
            .in_flight
            .set(in_flight.checked_sub(1).expect("counted in pairs"));
        let requests = &reactor.shared.counters.requests;
        requests.store(requests.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    });
}

/// Starts a request that is in range and aligned: submits it, or queues it if SPDK has enough.
pub(super) fn start(device: &Rc<Inner>, request: Request) {
    let bounce = match bounce_for(device, &request) {
        Ok(bounce) => bounce,
        Err(detail) => {
            let error = request.error(DeviceErrorKind::Failed, detail);
            request.complete(Err(error));
            device.one_done();
            return;
        }
    };
    count(1);
    let active = Active {
        work: Work::Request(request),
        device: device.clone(),
        bounce,
    };
    let call = SLOTS.with_borrow_mut(|slots| {
        let token = slots.occupy(active);
        // The slot is occupied already: this request counts itself.
        if slots.queued.is_empty() && slots.with_spdk() <= limits::WITH_SPDK {
            Some((token, describe(slots.at(token.place))))
        } else {
            slots.queued.push_back(token);
            None
        }
    });
    if let Some((token, call)) = call {
        hand_over(token, call);
    }
}

/// Resets the device; the answer comes by `sender`. Not in turn: it is to end what the requests before it wait for.
pub(super) fn start_reset(
    device: Rc<Inner>,
    sender: futures_channel::oneshot::Sender<Result<(), Failure>>,
) {
    submit(occupy(Active {
        work: Work::Reset(sender),
        device,
        bounce: None,
    }));
}

/// Submits what waits for its turn, as far as there is room now. A request that fails at once ends in here again; then
/// the outer call goes on, so that a long queue of such does not recurse.
fn submit_queued() {
    thread_local! {
        static AT_WORK: Cell<bool> = const { Cell::new(false) };
    }
    if AT_WORK.replace(true) {
        return;
    }
    let next = || {
        SLOTS.with_borrow_mut(|slots| {
            let room = slots.with_spdk() < limits::WITH_SPDK;
            room.then(|| slots.queued.pop_front()).flatten()
        })
    };
    while let Some(token) = next() {
        submit(token);
    }
    AT_WORK.set(false);
}

/// A buffer for a request whose own buffers the device cannot reach: ordinary memory, an unaligned address, or pieces
/// that are not whole blocks.
fn bounce_for(device: &Inner, request: &Request) -> Result<Option<Buffer>, &'static str> {
    if !matches!(request.op, Op::Read | Op::Write) {
        return Ok(None);
    }
    let pieces = request.buffers.as_slice();
    let reachable = |piece: &Buffer| {
        piece.is_device_memory()
            && piece.as_ptr().addr().is_multiple_of(device.buffer_align)
            && piece.len().is_multiple_of(device.block_size as usize)
    };
    if pieces.iter().all(reachable) {
        return Ok(None);
    }
    let len = usize::try_from(request.len).map_err(|_| "too long")?;
    let mut bounce = dma::allocate(len).ok_or("no DMA memory is left")?;
    if request.op == Op::Write {
        let mut done = 0;
        for piece in pieces {
            bounce[done..done + piece.len()].copy_from_slice(piece);
            done += piece.len();
        }
    }
    Ok(Some(bounce))
}

/// Hands a slot's request to SPDK, now or when SPDK has room for it.
fn submit(token: Token) {
    let call = SLOTS.with_borrow_mut(|slots| describe(slots.at(token.place)));
    hand_over(token, call);
}

/// Described first and called then: nothing is borrowed while SPDK runs, which may complete requests.
fn hand_over(token: Token, call: Option<Call>) {
    let rc = match call {
        // SAFETY: described from this slot, which stays as it is until its completion.
        Some(call) => unsafe { call.make(token.to_context()) },
        None => NO_DEVICE,
    };
    match rc {
        0 => {}
        NO_MEMORY => wait_for_room(token),
        errno => finish(token, Some(Failure::Errno(-errno))),
    }
}

const NO_MEMORY: i32 = -12;
const NO_DEVICE: i32 = -19;
const INVALID: i32 = -22;

/// One call of SPDK's block layer, with all it needs.
struct Call {
    open: OpenParts,
    what: What,
    /// In blocks.
    offset: u64,
    count: u64,
}

enum What {
    Read(*mut c_void),
    Write(*mut c_void),
    ReadPieces(*mut sys::iovec, i32),
    WritePieces(*mut sys::iovec, i32),
    Flush,
    Unmap,
    WriteZeroes,
    Reset,
}

/// None when the device was closed meanwhile.
fn describe(slot: &mut Slot) -> Option<Call> {
    let active = slot
        .active
        .as_mut()
        .expect("an occupied slot has its request");
    let open = active.device.open_parts()?;
    let mut call = Call {
        open,
        what: What::Reset,
        offset: 0,
        count: 0,
    };
    let Work::Request(request) = &mut active.work else {
        return Some(call);
    };
    let block_size = u64::from(active.device.block_size);
    call.offset = request.offset / block_size;
    call.count = request.len / block_size;
    call.what = match request.op {
        Op::Flush => {
            call.count = active.device.block_count.get();
            What::Flush
        }
        Op::Unmap => What::Unmap,
        Op::WriteZeroes => What::WriteZeroes,
        Op::Read | Op::Write => {
            let pieces: &mut [Buffer] = match &mut active.bounce {
                Some(bounce) => std::slice::from_mut(bounce),
                None => request.buffers.as_mut_slice(),
            };
            // What is written may be shared with readers: no `&mut` to it is made.
            let writes = request.op == Op::Write;
            let place = |piece: &mut Buffer| match writes {
                true => piece.as_ptr().cast_mut().cast::<c_void>(),
                false => piece.as_mut_ptr().cast(),
            };
            match pieces {
                [single] => {
                    let memory = place(single);
                    match request.op {
                        Op::Write => What::Write(memory),
                        _ => What::Read(memory),
                    }
                }
                pieces => {
                    slot.vectors.clear();
                    for piece in pieces.iter_mut().filter(|piece| !piece.is_empty()) {
                        slot.vectors.push(sys::iovec {
                            iov_base: place(piece),
                            iov_len: piece.len(),
                        });
                    }
                    let first = slot.vectors.as_mut_ptr();
                    let count = i32::try_from(slot.vectors.len()).ok()?;
                    match request.op {
                        Op::Write => What::WritePieces(first, count),
                        _ => What::ReadPieces(first, count),
                    }
                }
            }
        }
    };
    Some(call)
}

impl Call {
    /// # Safety
    /// On the thread that the device is open on. Memory and vectors are `count` blocks long, can be reached by the device,
    /// and stay until [`on_complete`] is called with `context`. The range is inside the device.
    unsafe fn make(&self, context: *mut c_void) -> i32 {
        let desc = self.open.desc.as_ptr();
        let channel = self.open.channel.as_ptr();
        let (offset, count) = (self.offset, self.count);
        let done: sys::spdk_bdev_io_completion_cb = Some(on_complete);
        // SAFETY: the caller's promise.
        unsafe {
            match self.what {
                What::Read(memory) => {
                    sys::spdk_bdev_read_blocks(desc, channel, memory, offset, count, done, context)
                }
                What::Write(memory) => {
                    sys::spdk_bdev_write_blocks(desc, channel, memory, offset, count, done, context)
                }
                What::ReadPieces(first, pieces) => sys::spdk_bdev_readv_blocks(
                    desc, channel, first, pieces, offset, count, done, context,
                ),
                What::WritePieces(first, pieces) => sys::spdk_bdev_writev_blocks(
                    desc, channel, first, pieces, offset, count, done, context,
                ),
                What::Flush => sys::spdk_bdev_flush_blocks(desc, channel, 0, count, done, context),
                What::Unmap => {
                    sys::spdk_bdev_unmap_blocks(desc, channel, offset, count, done, context)
                }
                What::WriteZeroes => {
                    sys::spdk_bdev_write_zeroes_blocks(desc, channel, offset, count, done, context)
                }
                What::Reset => sys::spdk_bdev_reset(desc, channel, done, context),
            }
        }
    }
}

/// SPDK has no memory for the request: it calls back when some is free again.
fn wait_for_room(token: Token) {
    let queued = SLOTS.with_borrow_mut(|slots| {
        let slot = slots.at(token.place);
        let open = slot.active.as_ref()?.device.open_parts()?;
        // SAFETY: the descriptor is open.
        let bdev = unsafe { sys::spdk_bdev_desc_get_bdev(open.desc.as_ptr()) };
        slot.wait = sys::spdk_bdev_io_wait_entry {
            bdev,
            cb_fn: Some(on_room),
            cb_arg: token.to_context(),
            ..Default::default()
        };
        Some((open, bdev, &raw mut slot.wait))
    });
    let rc = queued.map(|(open, bdev, wait)| {
        // SAFETY: the entry stays in the slot until the callback, which comes on this thread, once.
        unsafe { sys::spdk_bdev_queue_io_wait(bdev, open.channel.as_ptr(), wait) }
    });
    match rc {
        Some(0) => {}
        // There is room again already, or it was the device itself that had none. At the next turn, not at once: one
        // that only ever says so must not recurse.
        Some(INVALID) => {
            let retry = Retry(Some(token));
            reactor::spawn(async move {
                reactor::yield_now().await;
                retry.now();
            });
        }
        _ => finish(token, Some(Failure::Errno(-NO_DEVICE))),
    }
}

/// A request to be handed over again. A reactor that stops drops its tasks, and then the request fails instead.
struct Retry(Option<Token>);

impl Retry {
    fn now(mut self) {
        if let Some(token) = self.0.take() {
            submit(token);
        }
    }
}

impl Drop for Retry {
    fn drop(&mut self) {
        if let Some(token) = self.0.take() {
            finish(token, Some(Failure::Errno(-NO_MEMORY)));
        }
    }
}

unsafe extern "C" fn on_room(context: *mut c_void) {
    submit(Token::from_context(context));
}

/// Every completion enters here.
unsafe extern "C" fn on_complete(io: *mut sys::spdk_bdev_io, success: bool, context: *mut c_void) {
    // SAFETY: SPDK passes its request, completed, which is read and then given back, once.
    let failure = unsafe {
        let failure = (!success).then(|| failure_of(io));
        sys::spdk_bdev_free_io(io);
        failure
    };
    finish(Token::from_context(context), failure);
}

/// Ends a slot's request, exactly once.
fn finish(token: Token, failure: Option<Failure>) {
    let (
        Active {
            work,
            device,
            bounce,
        },
        others_wait,
    ) = vacate(token);
    count_done();
    match work {
        Work::Request(mut request) => {
            if let (Some(bounce), Op::Read, None) = (&bounce, request.op, &failure) {
                scatter(bounce, &mut request.buffers);
            }
            let result = match failure {
                None => Ok(()),
                Some(failure) => {
                    let (kind, detail) = failure.explain(device.is_removed());
                    Err(request.error(kind, detail))
                }
            };
            request.complete(result);
        }
        Work::Reset(sender) => {
            let _ = sender.send(failure.map_or(Ok(()), Err));
        }
    }
    device.one_done();
    if others_wait {
        submit_queued();
    }
}

fn scatter(from: &Buffer, to: &mut Buffers) {
    let mut done = 0;
    for piece in to.as_mut_slice() {
        let len = piece.len();
        piece.copy_from_slice(&from[done..done + len]);
        done += len;
    }
}
