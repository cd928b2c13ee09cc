//! The seeded executor: tasks on one thread, a virtual clock, and an order that the seed decides.
//!
//! The rule this file owns: **what runs next depends on the seed and on nothing else.** A runnable
//! task is picked at random from those that are; when none is, the clock jumps to the next timer.
//! When there is no timer either and the main future still waits, that is a deadlock, reported as
//! an error. Real time never passes here.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use rand::RngCore;

use super::rng::SimRng;
use crate::host::{Host, LocalFuture, WallTime};

/// Polls and timers one run may take before it counts as a livelock.
const DEFAULT_STEP_BUDGET: u64 = 50_000_000;

/// Wall time at virtual time zero: 2026-01-01 00:00:00 UTC.
const WALL_START_SECONDS: i64 = 1_767_225_600;

/// Names listed in a deadlock's message.
const NAMES_IN_MESSAGE: usize = 16;

/// Why a run ended without its result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SimError {
    #[error(
        "deadlock at {now:?}: nothing is runnable and no timer is set; {pending} tasks wait: {names}"
    )]
    Deadlock {
        now: Duration,
        pending: usize,
        names: String,
    },
    #[error("still busy after {steps} steps, at {now:?}")]
    StepBudget { steps: u64, now: Duration },
}

/// A digest of every scheduling decision so far. Equal after two runs that took the same steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(u64);

impl Fingerprint {
    fn add(&mut self, value: u64) {
        self.0 = (self.0 ^ value)
            .wrapping_mul(0x0000_0100_0000_01b3)
            .rotate_left(23);
    }
}

type TaskId = u64;

/// The future that `block_on` was given.
const MAIN: TaskId = 0;

/// Tasks that were woken. Behind a mutex because a waker must be `Send`; never contended.
type ReadyList = Arc<Mutex<Vec<TaskId>>>;

struct TaskWaker {
    id: TaskId,
    queued: AtomicBool,
    ready: ReadyList,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.ready
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(self.id);
        }
    }
}

struct Task {
    name: Rc<str>,
    waker: Arc<TaskWaker>,
    /// Absent while it is being polled.
    future: Option<LocalFuture<()>>,
}

/// Due time, a random tie-break, and a number that makes it unique.
type TimerKey = (Duration, u64, u64);

enum Fire {
    Wake(Rc<RefCell<Option<Waker>>>),
    Call(Box<dyn FnOnce()>),
}

struct Inner {
    ready: ReadyList,
    tasks: RefCell<BTreeMap<TaskId, Task>>,
    timers: RefCell<BTreeMap<TimerKey, Fire>>,
    now: Cell<Duration>,
    wall_start: Cell<WallTime>,
    /// Task ids, timer numbers.
    serial: Cell<u64>,
    steps: Cell<u64>,
    fingerprint: Cell<Fingerprint>,
    /// Decides the order. Apart from `random`, so that code which draws a number more does not
    /// change the schedule of all that follows for that reason alone.
    schedule: RefCell<SimRng>,
    random: RefCell<SimRng>,
    /// The simulation is gone: what is spawned now never runs.
    closed: Cell<bool>,
}

/// Owns a simulated world and runs it. Dropping it drops all tasks.
pub struct Simulation {
    world: World,
    step_budget: Cell<u64>,
    running: Cell<bool>,
}

/// A handle to a simulated world: its clock, its randomness, its tasks.
#[derive(Clone)]
pub struct World {
    inner: Rc<Inner>,
}

impl Simulation {
    pub fn new(seed: u64) -> Self {
        let mut root = SimRng::new(seed);
        let inner = Inner {
            ready: ReadyList::default(),
            tasks: RefCell::default(),
            timers: RefCell::default(),
            now: Cell::default(),
            wall_start: Cell::new(WallTime {
                seconds: WALL_START_SECONDS,
                nanoseconds: 0,
            }),
            serial: Cell::new(MAIN + 1),
            steps: Cell::new(0),
            fingerprint: Cell::new(Fingerprint(seed)),
            schedule: RefCell::new(root.fork()),
            random: RefCell::new(root.fork()),
            closed: Cell::new(false),
        };
        Simulation {
            world: World {
                inner: Rc::new(inner),
            },
            step_budget: Cell::new(DEFAULT_STEP_BUDGET),
            running: Cell::new(false),
        }
    }

    pub fn world(&self) -> World {
        self.world.clone()
    }

    /// The world as the upper rooms take it.
    pub fn host(&self) -> Rc<dyn Host> {
        Rc::new(self.world.clone())
    }

    /// How many steps each run may take from now on.
    pub fn set_step_budget(&self, steps: u64) {
        self.step_budget.set(steps);
    }

    /// Steps taken so far, by all runs.
    pub fn steps(&self) -> u64 {
        self.world.inner.steps.get()
    }

    pub fn fingerprint(&self) -> Fingerprint {
        self.world.inner.fingerprint.get()
    }

    /// Runs `future`, and all tasks beside it, until `future` ends. Other tasks stay and go on in
    /// the next run.
    ///
    /// # Errors
    /// When nothing can run and `future` still waits, or when the step budget is used up.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> Result<T, SimError> {
        let _running = self.enter();
        let inner = &self.world.inner;
        let main = Arc::new(TaskWaker {
            id: MAIN,
            queued: AtomicBool::new(false),
            ready: inner.ready.clone(),
        });
        let waker = Waker::from(main.clone());
        let mut context = Context::from_waker(&waker);
        let mut future = pin!(future);
        waker.wake_by_ref();
        let limit = inner.steps.get().saturating_add(self.step_budget.get());
        loop {
            self.check_budget(limit)?;
            match inner.pick() {
                Some(MAIN) => {
                    inner.step(MAIN);
                    main.queued.store(false, Ordering::Release);
                    if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
                        inner.forget_main();
                        return Ok(value);
                    }
                }
                Some(id) => inner.run_task(id),
                None if inner.fire_next(None) => {}
                None => return Err(inner.deadlock()),
            }
        }
    }

    /// Runs until nothing is runnable and no timer is set. Tasks may still wait, for something that
    /// only the caller can do; their number is returned.
    ///
    /// # Errors
    /// When the step budget is used up.
    pub fn run_until_idle(&self) -> Result<usize, SimError> {
        self.run(None)
    }

    /// Runs for `duration` of virtual time; the clock ends exactly there.
    ///
    /// # Errors
    /// When the step budget is used up.
    pub fn run_for(&self, duration: Duration) -> Result<usize, SimError> {
        self.run(Some(self.world.inner.now.get().saturating_add(duration)))
    }

    fn run(&self, until: Option<Duration>) -> Result<usize, SimError> {
        let _running = self.enter();
        let inner = &self.world.inner;
        let limit = inner.steps.get().saturating_add(self.step_budget.get());
        loop {
            self.check_budget(limit)?;
            if let Some(id) = inner.pick() {
                inner.run_task(id);
            } else if !inner.fire_next(until) {
                if let Some(until) = until {
                    inner.now.set(until);
                }
                return Ok(inner.tasks.borrow().len());
            }
        }
    }

    fn check_budget(&self, limit: u64) -> Result<(), SimError> {
        let inner = &self.world.inner;
        if inner.steps.get() < limit {
            return Ok(());
        }
        inner.forget_main();
        Err(SimError::StepBudget {
            steps: self.step_budget.get(),
            now: inner.now.get(),
        })
    }

    /// # Panics
    /// When called from inside a run: a program error.
    fn enter(&self) -> Running<'_> {
        assert!(
            !self.running.replace(true),
            "a simulation is run from outside its own tasks"
        );
        Running(&self.running)
    }
}

/// A run is going on; ends with its drop, also in a panic.
struct Running<'a>(&'a Cell<bool>);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

impl Drop for Simulation {
    /// Tasks hold handles to the world, and the world holds the tasks: the cycle is cut here.
    fn drop(&mut self) {
        let inner = &self.world.inner;
        inner.closed.set(true);
        let tasks = inner.tasks.take();
        drop(tasks);
        let timers = inner.timers.take();
        drop(timers);
    }
}

impl Inner {
    fn next_serial(&self) -> u64 {
        let serial = self.serial.get();
        self.serial.set(serial + 1);
        serial
    }

    fn lock_ready(&self) -> std::sync::MutexGuard<'_, Vec<TaskId>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A runnable task, at random.
    fn pick(&self) -> Option<TaskId> {
        let mut ready = self.lock_ready();
        if ready.is_empty() {
            return None;
        }
        let index = self.schedule.borrow_mut().below(ready.len() as u64) as usize;
        Some(ready.swap_remove(index))
    }

    /// The main future ended or was given up: a wake meant for it is not for the next one.
    fn forget_main(&self) {
        self.lock_ready().retain(|id| *id != MAIN);
    }

    fn step(&self, what: u64) {
        self.steps.set(self.steps.get() + 1);
        let mut fingerprint = self.fingerprint.get();
        fingerprint.add(what);
        fingerprint.add(self.now.get().as_nanos() as u64);
        self.fingerprint.set(fingerprint);
    }

    fn run_task(&self, id: TaskId) {
        self.step(id);
        let taken = self.tasks.borrow_mut().get_mut(&id).and_then(|task| {
            task.waker.queued.store(false, Ordering::Release);
            Some((task.future.take()?, task.waker.clone()))
        });
        // A waker may outlive its task.
        let Some((mut future, waker)) = taken else {
            return;
        };
        let waker = Waker::from(waker);
        let done = future
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_ready();
        if done {
            let task = self.tasks.borrow_mut().remove(&id);
            drop(task);
        } else if let Some(task) = self.tasks.borrow_mut().get_mut(&id) {
            task.future = Some(future);
        }
    }

    /// Moves the clock to the next timer (not beyond `until`) and fires it.
    fn fire_next(&self, until: Option<Duration>) -> bool {
        let (key, fire) = {
            let mut timers = self.timers.borrow_mut();
            let Some(entry) = timers.first_entry() else {
                return false;
            };
            if until.is_some_and(|until| entry.key().0 > until) {
                return false;
            }
            entry.remove_entry()
        };
        // A timer set for the past fires now.
        self.now.set(self.now.get().max(key.0));
        self.step(key.2);
        match fire {
            Fire::Wake(waker) => {
                if let Some(waker) = waker.take() {
                    waker.wake();
                }
            }
            Fire::Call(call) => call(),
        }
        true
    }

    fn set_timer(&self, due: Duration, fire: Fire) -> TimerKey {
        let tie = self.schedule.borrow_mut().next_u64();
        let key = (due, tie, self.next_serial());
        self.timers.borrow_mut().insert(key, fire);
        key
    }

    fn deadlock(&self) -> SimError {
        let tasks = self.tasks.borrow();
        let mut names: Vec<&str> = tasks
            .values()
            .take(NAMES_IN_MESSAGE)
            .map(|task| &*task.name)
            .collect();
        names.insert(0, "main");
        if tasks.len() > NAMES_IN_MESSAGE {
            names.push("…");
        }
        SimError::Deadlock {
            now: self.now.get(),
            pending: tasks.len() + 1,
            names: names.join(", "),
        }
    }
}

impl World {
    /// Like [`Host::spawn`], with a name for the message of a deadlock.
    pub fn spawn_named(&self, name: &str, future: impl Future<Output = ()> + 'static) {
        let inner = &self.inner;
        if inner.closed.get() {
            return;
        }
        let id = inner.next_serial();
        let waker = Arc::new(TaskWaker {
            id,
            queued: AtomicBool::new(false),
            ready: inner.ready.clone(),
        });
        let task = Task {
            name: name.into(),
            waker: waker.clone(),
            future: Some(Box::pin(future)),
        };
        inner.tasks.borrow_mut().insert(id, task);
        waker.wake();
    }

    /// Calls `call` once `delay` has passed: how simulated hardware does its work.
    pub fn call_after(&self, delay: Duration, call: impl FnOnce() + 'static) {
        let inner = &self.inner;
        if inner.closed.get() {
            return;
        }
        let due = inner.now.get().saturating_add(delay);
        inner.set_timer(due, Fire::Call(Box::new(call)));
    }

    /// Sets the wall clock; it runs on from there with the virtual one.
    pub fn set_wall(&self, wall: WallTime) {
        let start = wall_nanos(wall) - self.inner.now.get().as_nanos() as i128;
        self.inner.wall_start.set(wall_time(start));
    }

    /// A generator of its own for one part of the world.
    pub fn fork_rng(&self) -> SimRng {
        self.inner.random.borrow_mut().fork()
    }
}

impl Host for World {
    fn now(&self) -> Duration {
        self.inner.now.get()
    }

    fn wall(&self) -> WallTime {
        let start = wall_nanos(self.inner.wall_start.get());
        wall_time(start + self.inner.now.get().as_nanos() as i128)
    }

    fn random(&self) -> u64 {
        self.inner.random.borrow_mut().next_u64()
    }

    fn spawn(&self, future: LocalFuture<()>) {
        self.spawn_named("task", future);
    }

    fn sleep(&self, duration: Duration) -> LocalFuture<()> {
        Box::pin(Sleep {
            world: self.clone(),
            due: self.now().saturating_add(duration),
            timer: None,
            waker: Rc::default(),
        })
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "World at {:?}", self.inner.now.get())
    }
}

fn wall_nanos(wall: WallTime) -> i128 {
    i128::from(wall.seconds) * 1_000_000_000 + i128::from(wall.nanoseconds)
}

fn wall_time(nanos: i128) -> WallTime {
    WallTime {
        seconds: nanos.div_euclid(1_000_000_000) as i64,
        nanoseconds: nanos.rem_euclid(1_000_000_000) as u32,
    }
}

struct Sleep {
    world: World,
    due: Duration,
    timer: Option<TimerKey>,
    waker: Rc<RefCell<Option<Waker>>>,
}

impl Future for Sleep {
    type Output = ();

    /// Even a sleep of nothing waits for its timer once, so that a loop of them lets others run.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let inner = self.world.inner.clone();
        match self.timer {
            Some(key) if !inner.timers.borrow().contains_key(&key) => return Poll::Ready(()),
            Some(_) => {}
            None => {
                let fire = Fire::Wake(self.waker.clone());
                self.timer = Some(inner.set_timer(self.due, fire));
            }
        }
        *self.waker.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    /// A timeout nobody waits for any more must not move the clock.
    fn drop(&mut self) {
        if let Some(key) = self.timer {
            let fire = self.world.inner.timers.borrow_mut().remove(&key);
            drop(fire);
        }
    }
}

/// Lets other runnable tasks have a turn, on any executor.
pub async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
#[path = "world_tests.rs"]
mod tests;
