//! The executor: tasks are `!Send` futures in numbered places of one reactor; wakers are numbers that any thread may
//! hold.
//!
//! A waker never reaches a future: it names the task's place, with the reactor's mailbox. So it may outlive the task, and
//! be dropped or woken on any thread; the future itself is polled and dropped only here. A waker that has outlived its task
//! wakes whoever has the place now, for nothing, which any future must bear.
//!
//! A place's bell is made once and never freed (there are as many as tasks ever lived at once): wakers are copied and
//! dropped without counting.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, RawWaker, RawWakerVTable, Waker};

use runtime::LocalFuture;

use super::mailbox::{Message, Shared};
use crate::limits;

/// A task's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TaskId(u32);

/// What the wakers of a place ring.
struct Bell {
    id: TaskId,
    /// The place is in a ready queue or on its way there: further wakes add nothing.
    queued: AtomicBool,
    reactor: Arc<Shared>,
}

impl Bell {
    fn ring(&self) {
        // On the reactor's own thread there is no need for one atomic step: if another thread rings at the same time, the
        // place is queued twice, and the second poll is for nothing.
        let here = super::with_current(|reactor| {
            let here = Arc::ptr_eq(&reactor.shared, &self.reactor);
            if here && !self.queued.load(Ordering::Relaxed) {
                self.queued.store(true, Ordering::Relaxed);
                reactor.executor.wake(self.id);
            }
            here
        });
        if here != Some(true) && !self.queued.swap(true, Ordering::AcqRel) {
            self.reactor.post(Message::Wake(self.id));
        }
    }

    fn waker(&'static self) -> Waker {
        // SAFETY: the functions of the table keep the waker's contract: the pointer is to a bell that lives for ever and
        // may be rung from any thread.
        unsafe { Waker::from_raw(raw(self)) }
    }
}

static TABLE: RawWakerVTable = RawWakerVTable::new(copy, ring, ring, forget);

fn raw(bell: &'static Bell) -> RawWaker {
    RawWaker::new(std::ptr::from_ref(bell).cast(), &TABLE)
}

unsafe fn copy(bell: *const ()) -> RawWaker {
    RawWaker::new(bell, &TABLE)
}

unsafe fn ring(bell: *const ()) {
    // SAFETY: every waker of this table was made with a pointer to a bell, which is never freed.
    unsafe { &*bell.cast::<Bell>() }.ring();
}

unsafe fn forget(_: *const ()) {}

struct Place {
    bell: &'static Bell,
    /// None while free, and while its task is being polled.
    task: Option<LocalFuture<()>>,
}

pub(crate) struct Executor {
    reactor: Arc<Shared>,
    places: RefCell<Vec<Place>>,
    free: RefCell<Vec<u32>>,
    ready: RefCell<VecDeque<TaskId>>,
    live: Cell<usize>,
    /// Set once, at the end: tasks spawned from then on are dropped unpolled.
    closed: Cell<bool>,
}

impl Executor {
    pub fn new(reactor: Arc<Shared>) -> Self {
        Executor {
            reactor,
            places: RefCell::default(),
            free: RefCell::default(),
            ready: RefCell::default(),
            live: Cell::new(0),
            closed: Cell::new(false),
        }
    }

    pub fn spawn(&self, future: LocalFuture<()>) {
        if self.closed.get() {
            return;
        }
        let place = self.free.borrow_mut().pop();
        let mut places = self.places.borrow_mut();
        let place = match place {
            Some(place) => &mut places[place as usize],
            None => {
                let id = TaskId(u32::try_from(places.len()).expect("fewer than 2^32 tasks"));
                let bell = Box::leak(Box::new(Bell {
                    id,
                    queued: AtomicBool::new(false),
                    reactor: self.reactor.clone(),
                }));
                places.push(Place { bell, task: None });
                places.last_mut().expect("it was just put there")
            }
        };
        place.task = Some(future);
        self.live.set(self.live.get() + 1);
        // It may be on its way already: a waker of the place's last task.
        if !place.bell.queued.swap(true, Ordering::AcqRel) {
            self.wake(place.bell.id);
        }
    }

    /// Puts a place in the ready queue. Of one that is free nothing comes.
    pub fn wake(&self, id: TaskId) {
        self.ready.borrow_mut().push_back(id);
    }

    pub fn live(&self) -> usize {
        self.live.get()
    }

    /// Polls tasks that are ready now, up to the bound of a turn; what they make ready waits for the next turn, so that
    /// tasks which wake each other cannot starve the devices. Returns how many were polled.
    pub fn run_ready(&self) -> usize {
        let turn = self.ready.borrow().len().min(limits::TASKS_PER_TURN);
        for _ in 0..turn {
            let Some(id) = self.ready.borrow_mut().pop_front() else {
                break;
            };
            self.poll(id);
        }
        turn
    }

    fn poll(&self, id: TaskId) {
        let (bell, task) = {
            let mut places = self.places.borrow_mut();
            let Some(place) = places.get_mut(id.0 as usize) else {
                return;
            };
            (place.bell, place.task.take())
        };
        // Before the poll: a wake during it must queue the task again. And in one step with the look at what another thread
        // did before it rang and found the place queued: this poll is the one that it counts on.
        bell.queued.swap(false, Ordering::AcqRel);
        let Some(mut task) = task else { return };
        let waker = bell.waker();
        match task.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Pending if !self.closed.get() => {
                self.places.borrow_mut()[id.0 as usize].task = Some(task);
            }
            _ => {
                self.retire(id);
                // Only now: the future's own drops may spawn and wake.
                drop(task);
            }
        }
    }

    fn retire(&self, id: TaskId) {
        self.free.borrow_mut().push(id.0);
        self.live.set(self.live.get() - 1);
    }

    /// Drops all tasks, and from now on whatever is spawned.
    pub fn close(&self) {
        self.closed.set(true);
        let count = self.places.borrow().len();
        for place in 0..count {
            let (id, task) = {
                let mut places = self.places.borrow_mut();
                (places[place].bell.id, places[place].task.take())
            };
            if let Some(task) = task {
                self.retire(id);
                drop(task);
            }
        }
        self.ready.borrow_mut().clear();
    }
}
