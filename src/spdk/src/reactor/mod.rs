//! Reactors: one OS thread each, which polls its SPDK threads and runs an executor of `!Send` futures.
//!
//! One turn of the loop: messages from other threads, SPDK's pollers (where requests complete), tasks that are ready,
//! timers. A reactor that is adaptive goes to sleep when a turn found nothing, no request is in flight and nobody asked
//! for attention; the mailbox wakes it, or the next timer, or SPDK's housekeeping interval.

mod executor;
mod handle;
mod host;
mod mailbox;
mod thread;
mod timer;
mod turn;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

pub use handle::{Counters, ReactorHandle};
pub use host::{ReactorHost, host};
pub use mailbox::ReactorError;
pub(crate) use mailbox::{Message, Shared};
pub(crate) use thread::{ThreadPtr, on_thread_op, supports_thread_op};
pub use timer::Sleep;
pub(crate) use turn::Phase;

use crate::options::Polling;
use executor::Executor;
use timer::Timers;

/// A reactor, on its own thread.
pub(crate) struct Reactor {
    pub shared: Arc<Shared>,
    pub executor: Executor,
    pub timers: Rc<Timers>,
    /// All SPDK threads polled here. The first is ours, which block devices opened here belong to.
    threads: RefCell<Vec<ThreadPtr>>,
    polling: Polling,
    /// Requests that SPDK has and has not completed.
    pub in_flight: Cell<usize>,
    /// Block devices open here.
    pub open_devices: Cell<usize>,
    phase: Cell<Phase>,
    /// Turns of the loop.
    turns: Cell<u64>,
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<Reactor>>> = const { RefCell::new(None) };
}

/// The reactor of this thread.
pub(crate) fn current() -> Option<Rc<Reactor>> {
    CURRENT
        .try_with(|current| current.borrow().clone())
        .ok()
        .flatten()
}

/// Calls `f` with the reactor of this thread, without counting references: for the paths of every request.
pub(crate) fn with_current<T>(f: impl FnOnce(&Rc<Reactor>) -> T) -> Option<T> {
    CURRENT
        .try_with(|current| current.borrow().as_ref().map(f))
        .ok()
        .flatten()
}

/// Is this a reactor's thread?
pub fn on_reactor() -> bool {
    with_current(|_| ()).is_some()
}

/// Runs a future on this reactor until it ends. A reactor that is stopping drops it unpolled.
///
/// # Panics
/// On a thread that is no reactor.
pub fn spawn(future: impl Future<Output = ()> + 'static) {
    current()
        .expect("spawn is called on a reactor")
        .executor
        .spawn(Box::pin(future));
}

/// Spawns on the reactor it was made on, for code that runs deep inside SPDK's calls.
#[derive(Clone)]
pub(crate) struct LocalSpawn(std::rc::Weak<Reactor>);

impl LocalSpawn {
    /// # Panics
    /// On a thread that is no reactor.
    pub fn here() -> Self {
        LocalSpawn(Rc::downgrade(&current().expect("on a reactor")))
    }

    /// A reactor that stops drops the future unpolled.
    pub fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        if let Some(reactor) = self.0.upgrade() {
            reactor.executor.spawn(Box::pin(future));
        }
    }
}

/// Waits on this reactor.
///
/// # Panics
/// On a thread that is no reactor.
pub fn sleep(duration: Duration) -> Sleep {
    current()
        .expect("sleep is called on a reactor")
        .timers
        .sleep(duration)
}

/// Lets the devices and the other tasks have a turn.
pub fn yield_now() -> impl Future<Output = ()> {
    let mut yielded = false;
    std::future::poll_fn(move |cx| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
}

/// The handle of this thread's reactor.
pub fn current_handle() -> Option<ReactorHandle> {
    with_current(|reactor| ReactorHandle {
        shared: reactor.shared.clone(),
    })
}

/// How many want all reactors to poll without sleeping.
static ATTENTION: AtomicUsize = AtomicUsize::new(0);

/// While one lives, no reactor sleeps: SPDK's management passes messages between threads whose mailboxes cannot wake a
/// reactor, and each would otherwise wait for the housekeeping interval.
pub(crate) struct Attention(());

impl Attention {
    pub fn new() -> Self {
        ATTENTION.fetch_add(1, Ordering::SeqCst);
        for shared in crate::system::reactors().into_iter().flatten() {
            shared.ring();
        }
        Attention(())
    }

    pub fn wanted() -> bool {
        ATTENTION.load(Ordering::Relaxed) > 0
    }
}

impl Drop for Attention {
    fn drop(&mut self) {
        ATTENTION.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Reactor {
    /// Makes this thread a reactor. It polls once [`Reactor::run_until`] is called.
    pub fn install(shared: Arc<Shared>, thread: ThreadPtr, polling: Polling) -> Rc<Self> {
        let reactor = Rc::new(Reactor {
            executor: Executor::new(shared.clone()),
            shared,
            timers: Rc::default(),
            threads: RefCell::default(),
            polling,
            in_flight: Cell::new(0),
            open_devices: Cell::new(0),
            phase: Cell::new(Phase::Running),
            turns: Cell::new(0),
        });
        let previous = CURRENT.with(|current| current.borrow_mut().replace(reactor.clone()));
        assert!(previous.is_none(), "a thread is one reactor");
        thread.enter();
        reactor
    }

    /// The thread is no reactor any more.
    pub fn uninstall(&self) {
        ThreadPtr::leave();
        let reactor = CURRENT.with(|current| current.borrow_mut().take());
        drop(reactor);
    }
}
