//! A simulated block device: memory behind a volatile write cache, with latency, faults, removal,
//! and power loss. Used by the tests of every room above.
//!
//! A disk attached to a [`World`] completes each request after a latency of its own, so requests in
//! flight together are executed in an order that the seed decides. One without a world executes
//! each request as it is submitted, and its futures are ready at the first poll of any executor.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use super::cache::{Cache, Change, Choice, CrashModel, Data, VolatileChange};
use super::fault::{Effect, Fault, FaultId, Faults};
use super::image::Image;
use super::rng::SimRng;
use super::trace::{Event, Trace};
use super::world::World;
use crate::buffer::Buffer;
use crate::device::{
    BlockDevice, DeviceError, DeviceErrorKind, DeviceEvent, DeviceInfo, Subscription,
};
use crate::io::{Op, Request};

/// A disk that nobody flushes destages its oldest changes past this many, as a real cache would.
const MAX_CACHED_CHANGES: u64 = 65_536;

/// What unmapped blocks read as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnmapContent {
    Zeroes,
    /// Bytes that nobody wrote.
    Garbage,
    /// What was there before.
    Unchanged,
}

/// What unmapped blocks hold under [`UnmapContent::Garbage`].
const GARBAGE: u8 = 0xdb;

/// What a new disk is like.
#[derive(Debug, Clone)]
pub struct DiskOptions {
    pub name: String,
    /// Logical block size, and the piece that is never torn. A power of two, 512 or more.
    pub block_size: u32,
    pub volatile_cache: bool,
    pub supports_unmap: bool,
    pub unmap: UnmapContent,
    pub read_only: bool,
    /// How long a request takes; needs a world.
    pub latency: Range<Duration>,
}

impl Default for DiskOptions {
    fn default() -> Self {
        DiskOptions {
            name: "sim".into(),
            block_size: 512,
            volatile_cache: true,
            supports_unmap: true,
            unmap: UnmapContent::Zeroes,
            read_only: false,
            latency: Duration::from_micros(5)..Duration::from_micros(100),
        }
    }
}

/// Counts of what a disk was asked to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskStats {
    pub reads: u64,
    /// Writes, unmaps and write-zeroes.
    pub writes: u64,
    pub flushes: u64,
    pub errors: u64,
    pub max_in_flight: u64,
    /// Changes submitted while another one to the same bytes was in flight. Their order is the
    /// device's choice, so for a filesystem each of these is a bug.
    pub overlapping_writes: u64,
}

/// Why a disk does not work any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gone {
    PowerLost,
    Removed,
}

struct Pending {
    request: Request,
    effect: Option<Effect>,
    /// For a flush: the cache's position when it was submitted.
    covers: u64,
}

struct State {
    options: DiskOptions,
    /// What reads see.
    visible: Image,
    cache: Cache,
    recording: Option<(Cache, Vec<Event>)>,
    pending: BTreeMap<u64, Pending>,
    next_id: u64,
    faults: Faults,
    gone: Option<Gone>,
    power_fails_after: Option<u64>,
    stats: DiskStats,
    rng: SimRng,
}

type Callback = Rc<dyn Fn(DeviceEvent)>;

struct Inner {
    state: RefCell<State>,
    world: Option<World>,
    subscribers: RefCell<BTreeMap<u64, Callback>>,
    next_subscriber: Cell<u64>,
}

/// A simulated disk; clones are the same disk.
#[derive(Clone)]
pub struct SimDisk {
    inner: Rc<Inner>,
}

impl SimDisk {
    /// An empty disk of the default kind, without a world.
    pub fn new(size_bytes: u64) -> Self {
        SimDisk::with(Image::empty(size_bytes), DiskOptions::default(), None)
    }

    /// A disk that holds `image`, without its last part of a block if there is one (as a bdev over
    /// a file does it). With a world, requests take time and overtake each other.
    ///
    /// # Panics
    /// When the block size is no power of two, or below 512: a program error.
    pub fn with(mut image: Image, options: DiskOptions, world: Option<&World>) -> Self {
        assert!(
            options.block_size.is_power_of_two() && options.block_size >= 512,
            "a block size of {} bytes",
            options.block_size
        );
        let size_bytes = image.size_bytes();
        image.resize(size_bytes - size_bytes % u64::from(options.block_size));
        let state = State {
            cache: Cache::new(image.clone(), options.block_size),
            visible: image,
            recording: None,
            pending: BTreeMap::new(),
            next_id: 0,
            faults: Faults::default(),
            gone: None,
            power_fails_after: None,
            stats: DiskStats::default(),
            rng: world.map_or_else(|| SimRng::new(0), World::fork_rng),
            options,
        };
        SimDisk {
            inner: Rc::new(Inner {
                state: RefCell::new(state),
                world: world.cloned(),
                subscribers: RefCell::default(),
                next_subscriber: Cell::new(0),
            }),
        }
    }

    /// The disk as the upper rooms take it.
    pub fn device(&self) -> Rc<dyn BlockDevice> {
        Rc::new(self.clone())
    }

    /// What a read of the whole disk would give now.
    pub fn image(&self) -> Image {
        self.inner.state.borrow().visible.clone()
    }

    pub fn options(&self) -> DiskOptions {
        self.inner.state.borrow().options.clone()
    }

    pub fn stats(&self) -> DiskStats {
        self.inner.state.borrow().stats
    }

    /// Requests that are not completed.
    pub fn in_flight(&self) -> usize {
        self.inner.state.borrow().pending.len()
    }

    /// Changes the medium behind everyone's back, durably: bit rot, or another host.
    ///
    /// # Panics
    /// When the range is outside the disk: a program error.
    pub fn poke(&self, offset: u64, bytes: &[u8]) {
        let state = &mut *self.inner.state.borrow_mut();
        let change = Change {
            offset,
            len: bytes.len() as u64,
            data: Data::Bytes(bytes.into()),
        };
        let id = state.take_id();
        state.submit_change(id, change);
        state.execute_change(id, bytes.len() as u64);
        state.play(Event::Destaged {
            position: state.cache.position(),
        });
    }

    // ── Power loss ───────────────────────────────────────────────────────────────────────────────

    /// What a power loss now may keep or lose.
    pub fn volatile(&self) -> Vec<VolatileChange> {
        self.inner.state.borrow().cache.volatile()
    }

    /// The medium if the power were lost now, with this outcome. The disk goes on.
    pub fn crash_image(&self, choice: &Choice) -> Image {
        self.inner.state.borrow().cache.image(choice)
    }

    /// Loses the power: the disk as it is found when the power is back, with no faults. This one
    /// is dead from now on.
    pub fn crash(&self, model: CrashModel, rng: &mut SimRng) -> SimDisk {
        let (image, options) = {
            let state = self.inner.state.borrow();
            let sector = state.options.block_size;
            let choice = model.choose(&state.cache.volatile(), sector, rng);
            (state.cache.image(&choice), state.options.clone())
        };
        self.power_off();
        SimDisk::with(image, options, self.inner.world.as_ref())
    }

    /// Every request, also those in flight, fails from now on. What was in the cache stays there
    /// for [`SimDisk::crash`] and [`SimDisk::crash_image`].
    pub fn power_off(&self) {
        self.inner.state.borrow_mut().gone = Some(Gone::PowerLost);
        self.abort_pending();
    }

    /// `count` more changes are accepted; the power is lost when the next one comes, which is then
    /// in flight.
    pub fn crash_after(&self, count: u64) {
        self.inner.state.borrow_mut().power_fails_after = Some(count);
    }

    pub fn has_power(&self) -> bool {
        self.inner.state.borrow().gone != Some(Gone::PowerLost)
    }

    /// Starts to record, from the present state.
    pub fn record(&self) {
        let state = &mut *self.inner.state.borrow_mut();
        state.recording = Some((state.cache.clone(), Vec::new()));
    }

    /// The present point of the recording; 0 without one.
    pub fn point(&self) -> usize {
        let state = self.inner.state.borrow();
        state
            .recording
            .as_ref()
            .map_or(0, |(_, events)| events.len())
    }

    /// Ends the recording and gives it, if there was one.
    pub fn take_trace(&self) -> Option<Trace> {
        let (start, events) = self.inner.state.borrow_mut().recording.take()?;
        Some(Trace::new(start, events))
    }

    // ── Faults and events ────────────────────────────────────────────────────────────────────────

    pub fn inject(&self, fault: Fault) -> FaultId {
        self.inner.state.borrow_mut().faults.plant(fault)
    }

    /// How many requests the fault has hit; 0 for one that was removed.
    pub fn fault_hits(&self, id: FaultId) -> u64 {
        self.inner.state.borrow().faults.hits(id)
    }

    pub fn remove_fault(&self, id: FaultId) {
        self.inner.state.borrow_mut().faults.remove(id);
    }

    pub fn clear_faults(&self) {
        self.inner.state.borrow_mut().faults.clear();
    }

    /// Executes all requests that [`Fault::hold`] held back.
    pub fn release_held(&self) {
        let mut held = Vec::new();
        for (id, pending) in &mut self.inner.state.borrow_mut().pending {
            if pending.effect == Some(Effect::Hold) {
                pending.effect = None;
                held.push(*id);
            }
        }
        for id in held {
            self.inner.execute(id);
        }
    }

    pub fn set_read_only(&self, read_only: bool) {
        self.inner.state.borrow_mut().options.read_only = read_only;
    }

    /// Changes the capacity and tells the subscribers.
    ///
    /// # Panics
    /// When the size overflows: a program error.
    pub fn resize(&self, block_count: u64) {
        {
            let state = &mut *self.inner.state.borrow_mut();
            let block_size = u64::from(state.options.block_size);
            let size_bytes = block_count
                .checked_mul(block_size)
                .expect("a disk's size fits in 64 bits");
            state.visible.resize(size_bytes);
            state.play(Event::Resized { size_bytes });
        }
        self.inner.notify(DeviceEvent::Resized { block_count });
    }

    /// Pulls the disk out: requests fail as removed, and the subscribers are told.
    pub fn remove(&self) {
        self.inner.state.borrow_mut().gone = Some(Gone::Removed);
        self.abort_pending();
        self.inner.notify(DeviceEvent::Removed);
    }

    fn abort_pending(&self) {
        let ids: Vec<u64> = {
            let state = self.inner.state.borrow();
            state.pending.keys().copied().collect()
        };
        for id in ids {
            // Changes stay in the cache's list of those in flight: the medium may have them.
            let taken = self.inner.state.borrow_mut().pending.remove(&id);
            if let Some(pending) = taken {
                self.inner.fail_gone(pending.request);
            }
        }
    }
}

impl BlockDevice for SimDisk {
    fn info(&self) -> DeviceInfo {
        let state = self.inner.state.borrow();
        let options = &state.options;
        DeviceInfo {
            name: options.name.clone(),
            block_size: options.block_size,
            block_count: state.visible.size_bytes() / u64::from(options.block_size),
            buffer_align: 1,
            volatile_cache: options.volatile_cache,
            supports_unmap: options.supports_unmap,
            read_only: options.read_only,
        }
    }

    fn allocate(&self, len: usize) -> Buffer {
        Buffer::zeroed(len)
    }

    fn submit(&self, request: Request) {
        self.inner.submit(request);
    }

    fn subscribe(&self, callback: Rc<dyn Fn(DeviceEvent)>) -> Subscription {
        struct Registered(Weak<Inner>, u64);
        impl Drop for Registered {
            fn drop(&mut self) {
                if let Some(inner) = self.0.upgrade() {
                    let callback = inner.subscribers.borrow_mut().remove(&self.1);
                    drop(callback);
                }
            }
        }
        let inner = &self.inner;
        let number = inner.next_subscriber.get();
        inner.next_subscriber.set(number + 1);
        inner.subscribers.borrow_mut().insert(number, callback);
        Subscription::new(Registered(Rc::downgrade(inner), number))
    }
}

impl Inner {
    fn notify(&self, event: DeviceEvent) {
        // A callback may subscribe or end its subscription.
        let callbacks: Vec<_> = self.subscribers.borrow().values().cloned().collect();
        for callback in callbacks {
            callback(event);
        }
    }

    fn complete(&self, request: Request, result: Result<(), DeviceError>) {
        if result.is_err() {
            self.state.borrow_mut().stats.errors += 1;
        }
        request.complete(result);
    }

    fn fail_gone(&self, request: Request) {
        let gone = self.state.borrow().gone;
        let (kind, detail) = match gone {
            Some(Gone::Removed) => (DeviceErrorKind::Removed, "the disk was removed"),
            _ => (DeviceErrorKind::Aborted, "the disk has no power"),
        };
        let error = request.error(kind, detail);
        self.complete(request, Err(error));
    }

    fn submit(self: &Rc<Self>, request: Request) {
        if self.state.borrow().gone.is_some() {
            self.fail_gone(request);
            return;
        }
        let verdict = self.state.borrow().judge(&request);
        if let Err((kind, detail)) = verdict {
            let error = request.error(kind, detail);
            self.complete(request, Err(error));
            return;
        }
        let (id, latency, effect) = self.state.borrow_mut().accept(request);
        if self.state.borrow().gone.is_some() {
            // This was the change that `crash_after` waited for.
            let disk = SimDisk {
                inner: self.clone(),
            };
            disk.abort_pending();
            return;
        }
        match (&self.world, effect) {
            (_, Some(Effect::Hold)) => {}
            (Some(world), effect) => {
                let delay = match effect {
                    Some(Effect::Delay(by)) => by,
                    _ => Duration::ZERO,
                };
                // The world must not keep the disk alive.
                let disk = Rc::downgrade(self);
                world.call_after(latency.saturating_add(delay), move || {
                    if let Some(disk) = disk.upgrade() {
                        disk.execute(id);
                    }
                });
            }
            (None, _) => self.execute(id),
        }
    }

    /// Does what the request asks, unless it was aborted meanwhile, and completes it.
    fn execute(&self, id: u64) {
        let Some(Pending {
            mut request,
            effect,
            covers,
        }) = self.state.borrow_mut().pending.remove(&id)
        else {
            return;
        };
        // The disk may have shrunk since the request was accepted.
        let late = self.state.borrow().judge_range(&request).err();
        let error = match (&effect, late) {
            (_, Some((kind, detail))) => Some(request.error(kind, detail)),
            (Some(Effect::Fail { kind, .. }), None) => {
                Some(request.error(*kind, "an injected fault"))
            }
            _ => None,
        };
        {
            let state = &mut *self.state.borrow_mut();
            let reached = match effect {
                // No sector is torn, not even by a failure.
                Some(Effect::Fail { reached, .. }) if reached < request.len => {
                    reached - reached % u64::from(state.options.block_size)
                }
                Some(Effect::Lose | Effect::Drop) => 0,
                _ => request.len,
            };
            match request.op {
                Op::Read => state.fill_buffers(&mut request, reached),
                Op::Write | Op::WriteZeroes | Op::Unmap => state.execute_change(id, reached),
                Op::Flush if effect.is_none() || matches!(effect, Some(Effect::Delay(_))) => {
                    state.play(Event::Destaged { position: covers });
                }
                Op::Flush => {}
            }
        }
        if effect == Some(Effect::Drop) {
            drop(request);
            return;
        }
        self.complete(request, error.map_or(Ok(()), Err));
    }
}

impl State {
    fn take_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Is this a request the disk can try?
    fn judge(&self, request: &Request) -> Result<(), (DeviceErrorKind, String)> {
        let block_size = u64::from(self.options.block_size);
        let Request {
            op, offset, len, ..
        } = *request;
        let carries = matches!(op, Op::Read | Op::Write);
        if op == Op::Flush {
            return Ok(());
        }
        if op != Op::Read && self.options.read_only {
            return Err((DeviceErrorKind::ReadOnly, "the disk is read-only".into()));
        }
        if op == Op::Unmap && !self.options.supports_unmap {
            return Err((DeviceErrorKind::Unsupported, "the disk has no unmap".into()));
        }
        if !offset.is_multiple_of(block_size) || !len.is_multiple_of(block_size) {
            let detail = format!("the disk has blocks of {block_size} bytes");
            return Err((DeviceErrorKind::Unaligned, detail));
        }
        if carries && request.buffers.len() != len {
            let detail = format!("the buffers hold {} bytes", request.buffers.len());
            return Err((DeviceErrorKind::Unaligned, detail));
        }
        self.judge_range(request)
    }

    fn judge_range(&self, request: &Request) -> Result<(), (DeviceErrorKind, String)> {
        let size = self.visible.size_bytes();
        let end = request.offset.checked_add(request.len);
        if request.op != Op::Flush && end.is_none_or(|end| end > size) {
            let detail = format!("the disk has {size} bytes");
            return Err((DeviceErrorKind::OutOfRange, detail));
        }
        Ok(())
    }

    /// Takes a good request in: its number, its latency, and its bad luck.
    fn accept(&mut self, request: Request) -> (u64, Duration, Option<Effect>) {
        let id = self.take_id();
        let effect = self.faults.strike(request.op, request.offset, request.len);
        match request.op {
            Op::Read => self.stats.reads += 1,
            Op::Flush => self.stats.flushes += 1,
            Op::Write | Op::WriteZeroes | Op::Unmap => {
                self.stats.writes += 1;
                self.count_down();
                if let Some(change) = self.change(&request) {
                    self.submit_change(id, change);
                }
            }
        }
        let pending = Pending {
            request,
            effect: effect.clone(),
            covers: self.cache.position(),
        };
        self.pending.insert(id, pending);
        self.stats.max_in_flight = self.stats.max_in_flight.max(self.pending.len() as u64);
        (id, self.draw_latency(), effect)
    }

    fn count_down(&mut self) {
        match self.power_fails_after {
            Some(0) => self.gone = Some(Gone::PowerLost),
            Some(left) => self.power_fails_after = Some(left - 1),
            None => {}
        }
    }

    fn draw_latency(&mut self) -> Duration {
        let Range { start, end } = self.options.latency;
        let width = end.saturating_sub(start).as_nanos() as u64;
        start + Duration::from_nanos(self.rng.below(width))
    }

    /// What the request will do to the content.
    fn change(&self, request: &Request) -> Option<Change> {
        let data = match request.op {
            Op::Write => {
                let mut bytes = Vec::with_capacity(request.len as usize);
                for buffer in request.buffers.as_slice() {
                    bytes.extend_from_slice(buffer);
                }
                Data::Bytes(Arc::from(bytes))
            }
            Op::WriteZeroes => Data::Fill(0),
            Op::Unmap => match self.options.unmap {
                UnmapContent::Zeroes => Data::Fill(0),
                UnmapContent::Garbage => Data::Fill(GARBAGE),
                UnmapContent::Unchanged => return None,
            },
            Op::Read | Op::Flush => return None,
        };
        Some(Change {
            offset: request.offset,
            len: request.len,
            data,
        })
    }

    fn fill_buffers(&self, request: &mut Request, reached: u64) {
        let (mut offset, end) = (request.offset, request.offset + reached);
        let end = end.min(self.visible.size_bytes());
        for buffer in request.buffers.as_mut_slice() {
            let count = end.saturating_sub(offset).min(buffer.len() as u64);
            if count > 0 {
                self.visible.read(offset, &mut buffer[..count as usize]);
            }
            offset += buffer.len() as u64;
        }
    }

    fn submit_change(&mut self, id: u64, change: Change) {
        if self.cache.overlaps(&(change.offset..change.end())) {
            self.stats.overlapping_writes += 1;
        }
        self.play(Event::Submitted { id, change });
    }

    fn execute_change(&mut self, id: u64, reached: u64) {
        self.note(Event::Executed { id, reached });
        let Some(change) = self.cache.execute(id, reached) else {
            return;
        };
        change.apply(&mut self.visible);
        let position = self.cache.position();
        if !self.options.volatile_cache {
            self.play(Event::Destaged { position });
        } else if self.cache.executed_len() > MAX_CACHED_CHANGES {
            let position = position - MAX_CACHED_CHANGES / 2;
            self.play(Event::Destaged { position });
        }
    }

    fn play(&mut self, event: Event) {
        event.play(&mut self.cache);
        self.note(event);
    }

    fn note(&mut self, event: Event) {
        if let Some((_, events)) = &mut self.recording {
            events.push(event);
        }
    }
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
