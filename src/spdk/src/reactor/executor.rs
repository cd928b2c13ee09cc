//! The executor: tasks are `!Send` futures in numbered places of one reactor; wakers are numbers that any thread may
//! hold.
//!
//! A waker never reaches a future: it holds the task's number, with a generation, and the reactor's mailbox. So it may
//! outlive the task, and be dropped or woken on any thread; the future itself is polled and dropped only here.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use runtime::LocalFuture;

use super::mailbox::{Message, Shared};
use crate::limits;

/// A task's place, and how often the place had been used before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TaskId {
    place: u32,
    generation: u32,
}

/// What a task's wakers share.
struct Bell {
    id: TaskId,
    /// The task is in a ready queue or on its way there: further wakes add nothing.
    queued: AtomicBool,
    reactor: Arc<Shared>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        if !super::wake_here(&self.reactor, self.id) {
            self.reactor.post(Message::Wake(self.id));
        }
    }
}

struct Task {
    future: LocalFuture<()>,
    bell: Arc<Bell>,
    waker: Waker,
}

#[derive(Default)]
struct Place {
    generation: u32,
    /// None while free, and while its task is being polled.
    task: Option<Task>,
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
        let place = match self.free.borrow_mut().pop() {
            Some(place) => place,
            None => {
                let mut places = self.places.borrow_mut();
                places.push(Place::default());
                u32::try_from(places.len() - 1).expect("fewer than 2^32 tasks")
            }
        };
        let mut places = self.places.borrow_mut();
        let slot = &mut places[place as usize];
        let id = TaskId {
            place,
            generation: slot.generation,
        };
        let bell = Arc::new(Bell {
            id,
            queued: AtomicBool::new(true),
            reactor: self.reactor.clone(),
        });
        let waker = Waker::from(bell.clone());
        slot.task = Some(Task {
            future,
            bell,
            waker,
        });
        self.live.set(self.live.get() + 1);
        self.ready.borrow_mut().push_back(id);
    }

    /// Puts a task in the ready queue. Of a task that is gone, nothing comes: its number no longer fits.
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
        let taken = {
            let mut places = self.places.borrow_mut();
            match places.get_mut(id.place as usize) {
                Some(place) if place.generation == id.generation => place.task.take(),
                _ => None,
            }
        };
        let Some(mut task) = taken else { return };
        // Before the poll: a wake during it must queue the task again.
        task.bell.queued.store(false, Ordering::Release);
        let outcome = task
            .future
            .as_mut()
            .poll(&mut Context::from_waker(&task.waker));
        match outcome {
            Poll::Pending if !self.closed.get() => {
                self.places.borrow_mut()[id.place as usize].task = Some(task);
            }
            _ => {
                self.retire(id);
                // Only now: the future's own drops may spawn and wake.
                drop(task);
            }
        }
    }

    fn retire(&self, id: TaskId) {
        let mut places = self.places.borrow_mut();
        let place = &mut places[id.place as usize];
        place.generation = place.generation.wrapping_add(1);
        self.free.borrow_mut().push(id.place);
        self.live.set(self.live.get() - 1);
    }

    /// Drops all tasks, and from now on whatever is spawned.
    pub fn close(&self) {
        self.closed.set(true);
        let count = self.places.borrow().len();
        for place in 0..count {
            let (task, generation) = {
                let mut places = self.places.borrow_mut();
                (places[place].task.take(), places[place].generation)
            };
            if let Some(task) = task {
                self.retire(TaskId {
                    place: u32::try_from(place).expect("fewer than 2^32 tasks"),
                    generation,
                });
                drop(task);
            }
        }
        self.ready.borrow_mut().clear();
    }
}
