//! An exported device on the reactor of its disk: the queue of its requests, and the tasks that serve them.
//!
//! Workers are tasks that serve one request after the other. A request wakes an idle one, or makes one if there is none and
//! there may be more; so there are as many as requests were ever served at once. The last to become idle is the first to
//! be woken: its memory is in the caches.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Poll, Waker};

use futures_channel::oneshot;
use runtime::{Buffer, DeviceErrorKind};
use spdk_sys as sys;

use super::gate::{self, IoPtr};
use super::slot::Entry;
use super::{Disk, ExportCounters, ExportOptions, Status};
use crate::reactor::LocalSpawn;
use crate::{dma, limits, nvmf};

/// An exported device.
pub(super) struct Local {
    number: u64,
    counters: Arc<ExportCounters>,
    foreign_memory: bool,
    waiting: RefCell<VecDeque<Waiting>>,
    /// Slots nobody uses.
    pool: RefCell<Vec<Entry>>,
    workers: RefCell<Workers>,
    /// Makes a worker of the disk's own type.
    start_worker: Box<dyn Fn(Rc<Local>, usize)>,
    /// Requests that workers have.
    served: Cell<usize>,
    /// Resets that wait for the requests before them.
    resets: RefCell<Vec<(IoPtr, usize)>>,
    closed: Cell<bool>,
    told: Cell<Option<oneshot::Sender<()>>>,
}

struct Waiting {
    io: IoPtr,
    origin: usize,
    what: sys::shim_export_request,
}

#[derive(Default)]
struct Workers {
    all: Vec<Worker>,
    idle: Vec<usize>,
}

#[derive(Default)]
struct Worker {
    waker: Option<Waker>,
    idle: bool,
}

thread_local! {
    /// This reactor's devices. Few: looked through from the start.
    static DEVICES: RefCell<Vec<Rc<Local>>> = const { RefCell::new(Vec::new()) };
}

fn find(number: u64) -> Option<Rc<Local>> {
    DEVICES.with_borrow(|all| all.iter().find(|local| local.number == number).cloned())
}

/// SPDK has a request for a device of this reactor.
pub(super) fn serve(number: u64, io: IoPtr, origin: usize) {
    match find(number) {
        Some(local) => local.take(io, origin),
        // Its registration failed, or this reactor stops.
        None => gate::answer(io, origin, Status::ABORTED),
    }
}

/// SPDK has nothing of a device of this reactor any more.
pub(super) fn gone(number: u64) {
    if let Some(local) = find(number) {
        local.close();
    }
}

impl Local {
    /// Makes a device that takes requests on this reactor. What comes back is told once it is gone.
    pub fn open<D: Disk>(disk: D, options: &ExportOptions) -> (Rc<Self>, oneshot::Receiver<()>) {
        let disk = Rc::new(disk);
        let (told, gone) = oneshot::channel();
        let spawner = LocalSpawn::here();
        let local = Rc::new(Local {
            number: gate::next_number(),
            counters: Arc::default(),
            foreign_memory: options.foreign_memory,
            waiting: RefCell::default(),
            pool: RefCell::default(),
            workers: RefCell::default(),
            start_worker: Box::new(move |local, index| {
                spawner.spawn(work(disk.clone(), Employed(local), index));
            }),
            served: Cell::new(0),
            resets: RefCell::default(),
            closed: Cell::new(false),
            told: Cell::new(Some(told)),
        });
        DEVICES.with_borrow_mut(|all| all.push(local.clone()));
        (local, gone)
    }

    pub fn number(&self) -> u64 {
        self.number
    }

    pub fn counters(&self) -> &Arc<ExportCounters> {
        &self.counters
    }

    /// No request comes any more: workers end, and with the last one the disk.
    pub fn close(&self) {
        self.closed.set(true);
        let gone = DEVICES.with_borrow_mut(|all| {
            let place = all.iter().position(|local| local.number == self.number);
            place.map(|place| all.swap_remove(place))
        });
        for worker in &mut self.workers.borrow_mut().all {
            worker.idle = false;
            if let Some(waker) = worker.waker.take() {
                waker.wake();
            }
        }
        if let Some(told) = self.told.take() {
            let _ = told.send(());
        }
        drop(gone);
    }

    /// There are no workers any more, or will be none.
    fn abandon(&self) {
        self.closed.set(true);
        loop {
            let waiting = self.waiting.borrow_mut().pop_front();
            let Some(waiting) = waiting else { break };
            add(&self.counters.in_flight, u64::MAX);
            gate::answer(waiting.io, waiting.origin, Status::ABORTED);
        }
        self.answer_resets();
    }

    fn take(self: &Rc<Self>, io: IoPtr, origin: usize) {
        if self.closed.get() {
            return gate::answer(io, origin, Status::ABORTED);
        }
        let mut what = sys::shim_export_request::default();
        // SAFETY: the request is ours, and nobody else looks at it.
        unsafe { sys::shim_export_look_at(io.as_ptr(), &mut what) };
        match what.kind {
            sys::shim_export_kind::SHIM_EXPORT_RESET => {
                self.resets.borrow_mut().push((io, origin));
                return self.answer_resets();
            }
            sys::shim_export_kind::SHIM_EXPORT_OTHER => {
                return gate::answer(io, origin, Status::UNSUPPORTED);
            }
            _ => {}
        }
        add(&self.counters.in_flight, 1);
        self.waiting
            .borrow_mut()
            .push_back(Waiting { io, origin, what });
        let mut workers = self.workers.borrow_mut();
        if let Some(index) = workers.idle.pop() {
            let worker = &mut workers.all[index];
            worker.idle = false;
            if let Some(waker) = &worker.waker {
                waker.wake_by_ref();
            }
        } else if workers.all.len() < limits::EXPORT_WORKERS {
            let index = workers.all.len();
            workers.all.push(Worker::default());
            drop(workers);
            (self.start_worker)(self.clone(), index);
        }
    }

    /// The next request, for the worker of this number. None: there will be no more.
    async fn next(&self, index: usize) -> Option<Waiting> {
        std::future::poll_fn(|context| {
            if self.closed.get() {
                return Poll::Ready(None);
            }
            let mut workers = self.workers.borrow_mut();
            // Woken by something else: whoever makes it busy says so first.
            if workers.all[index].idle {
                return Poll::Pending;
            }
            if let Some(next) = self.waiting.borrow_mut().pop_front() {
                return Poll::Ready(Some(next));
            }
            let worker = &mut workers.all[index];
            worker.idle = true;
            match &mut worker.waker {
                Some(waker) => waker.clone_from(context.waker()),
                none => *none = Some(context.waker().clone()),
            }
            workers.idle.push(index);
            Poll::Pending
        })
        .await
    }

    fn answer_resets(&self) {
        if self.served.get() > 0 || !self.waiting.borrow().is_empty() {
            return;
        }
        for (io, origin) in std::mem::take(&mut *self.resets.borrow_mut()) {
            add(&self.counters.resets, 1);
            gate::answer(io, origin, Status::SUCCESS);
        }
    }
}

/// A worker's hold on its device. A reactor that stops drops its tasks where they are, and takes no new ones: what waits is
/// answered then.
struct Employed(Rc<Local>);

impl Drop for Employed {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

/// Serves one request after the other.
async fn work<D: Disk>(disk: Rc<D>, employed: Employed, index: usize) {
    let local = &*employed.0;
    while let Some(waiting) = local.next(index).await {
        let mut job = Job::begin(local, waiting);
        let status = job.run(&*disk).await;
        job.end(status);
    }
}

/// A request that a worker has. Dropped before its end, it is answered as aborted once its memory is free.
struct Job<'l> {
    local: &'l Local,
    /// None once it has ended.
    entry: Option<Entry>,
    io: IoPtr,
    what: sys::shim_export_request,
}

impl<'l> Job<'l> {
    fn begin(local: &'l Local, waiting: Waiting) -> Self {
        let Waiting { io, origin, what } = waiting;
        local.served.set(local.served.get() + 1);
        let pooled = local.pool.borrow_mut().pop();
        let mut entry = pooled.unwrap_or_else(Entry::new);
        entry.begin(io, origin);
        Job {
            local,
            entry: Some(entry),
            io,
            what,
        }
    }

    async fn run<D: Disk>(&mut self, disk: &D) -> Status {
        use sys::shim_export_kind as kind;
        let counters = &self.local.counters;
        let (offset, len) = (self.what.offset, self.what.len);
        match self.what.kind {
            kind::SHIM_EXPORT_READ => {
                add(&counters.reads, 1);
                add(&counters.read_bytes, len);
                let status = if self.what.memory.is_null() {
                    self.read_copied(disk).await
                } else {
                    self.read(disk).await
                };
                status_of(status, true)
            }
            kind::SHIM_EXPORT_WRITE => {
                add(&counters.writes, 1);
                add(&counters.written_bytes, len);
                let status = if self.what.memory.is_null() {
                    self.write_copied(disk).await
                } else {
                    self.write(disk).await
                };
                let status = match status {
                    Ok(()) if self.what.durable => {
                        add(&counters.durable_writes, 1);
                        disk.flush().await
                    }
                    status => status,
                };
                status_of(status, false)
            }
            kind::SHIM_EXPORT_FLUSH => {
                add(&counters.flushes, 1);
                status_of(disk.flush().await, false)
            }
            kind::SHIM_EXPORT_UNMAP => {
                add(&counters.unmaps, 1);
                status_of(disk.unmap(offset, len).await, false)
            }
            kind::SHIM_EXPORT_WRITE_ZEROES => {
                add(&counters.write_zeroes, 1);
                status_of(disk.write_zeroes(offset, len).await, false)
            }
            _ => Status::UNSUPPORTED,
        }
    }

    /// The request's own memory.
    fn lend(&mut self) -> Option<Buffer> {
        let len = usize::try_from(self.what.len).ok()?;
        let reachable = !(self.local.foreign_memory && nvmf::devices_need_own_memory());
        let entry = self.entry.as_mut()?;
        // SAFETY: `look_at` found the memory of this request to be one piece of `len` bytes.
        unsafe { entry.lend(self.what.memory.cast(), len, reachable) }
    }

    fn take_back(&mut self, buffer: Buffer) -> Result<(), DeviceErrorKind> {
        let back = self.entry.as_mut().map(|entry| entry.take_back(buffer));
        if back == Some(true) {
            return Ok(());
        }
        tracing::error!("a disk gave back another buffer than it was given");
        Err(DeviceErrorKind::Failed)
    }

    async fn read<D: Disk>(&mut self, disk: &D) -> Result<(), DeviceErrorKind> {
        let buffer = self.lend().ok_or(DeviceErrorKind::Failed)?;
        let (buffer, result) = disk.read(self.what.offset, buffer).await;
        self.take_back(buffer)?;
        result
    }

    async fn write<D: Disk>(&mut self, disk: &D) -> Result<(), DeviceErrorKind> {
        let buffer = self.lend().ok_or(DeviceErrorKind::Failed)?;
        let (buffer, result) = disk.write(self.what.offset, buffer).await;
        self.take_back(buffer)?;
        result
    }

    /// Memory for a request whose own is in pieces.
    fn copy_buffer(&self) -> Result<Buffer, DeviceErrorKind> {
        add(&self.local.counters.copied, 1);
        let len = usize::try_from(self.what.len).map_err(|_| DeviceErrorKind::Failed)?;
        dma::allocate(len).ok_or_else(|| {
            tracing::error!(len, "no memory is left to copy a request to");
            DeviceErrorKind::Failed
        })
    }

    async fn read_copied<D: Disk>(&mut self, disk: &D) -> Result<(), DeviceErrorKind> {
        let (mut buffer, result) = disk.read(self.what.offset, self.copy_buffer()?).await;
        buffer.reset_window();
        result?;
        // SAFETY: the request is ours until it is answered; its pieces hold as many bytes as the buffer.
        unsafe {
            sys::shim_export_scatter(self.io.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len());
        }
        Ok(())
    }

    async fn write_copied<D: Disk>(&mut self, disk: &D) -> Result<(), DeviceErrorKind> {
        let mut buffer = self.copy_buffer()?;
        // SAFETY: as above.
        unsafe {
            sys::shim_export_gather(self.io.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len());
        }
        disk.write(self.what.offset, buffer).await.1
    }

    fn end(mut self, status: Status) {
        if status != Status::SUCCESS {
            add(&self.local.counters.errors, 1);
        }
        let Some(mut entry) = self.entry.take() else {
            return;
        };
        let answer = entry.end(status);
        // Before the answer, which may bring the next request at once.
        if entry.is_whole() {
            self.local.pool.borrow_mut().push(entry);
        }
        drop(self);
        if let Some(answer) = answer {
            answer.send();
        }
    }
}

impl Drop for Job<'_> {
    fn drop(&mut self) {
        if let Some(mut entry) = self.entry.take()
            && let Some(answer) = entry.end(Status::ABORTED)
        {
            answer.send();
        }
        self.local.served.set(self.local.served.get() - 1);
        add(&self.local.counters.in_flight, u64::MAX);
        self.local.answer_resets();
    }
}

fn status_of(result: Result<(), DeviceErrorKind>, reading: bool) -> Status {
    match result {
        Ok(()) => Status::SUCCESS,
        Err(error) => Status::of(error, reading),
    }
}

/// Only the disk's reactor counts.
fn add(counter: &AtomicU64, amount: u64) {
    let now = counter.load(Ordering::Relaxed);
    counter.store(now.wrapping_add(amount), Ordering::Relaxed);
}
