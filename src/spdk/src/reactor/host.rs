//! The reactor as [`runtime::Host`].

use std::cell::{Cell, RefCell};
use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use runtime::{Host, LocalFuture, WallTime};

use super::Reactor;

/// This thread's reactor, as the upper rooms see it.
pub struct ReactorHost {
    reactor: Rc<Reactor>,
    random: RefCell<SmallRng>,
    started: Instant,
    /// The turn in which the clock was last read, and what it said.
    wall: Cell<Option<(u64, WallTime)>>,
}

/// The host of this thread, if it is a reactor's.
pub fn host() -> Option<Rc<ReactorHost>> {
    let reactor = super::current()?;
    // The standard library seeds this from the operating system.
    let seed = RandomState::new().hash_one(reactor.shared.index);
    Some(Rc::new(ReactorHost {
        reactor,
        random: RefCell::new(SmallRng::seed_from_u64(seed)),
        started: Instant::now(),
        wall: Cell::new(None),
    }))
}

impl Host for ReactorHost {
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn wall(&self) -> WallTime {
        let turn = self.reactor.turns.get();
        match self.wall.get() {
            Some((read_in, time)) if read_in == turn => time,
            _ => {
                let time = read_clock();
                self.wall.set(Some((turn, time)));
                time
            }
        }
    }

    fn random(&self) -> u64 {
        self.random.borrow_mut().next_u64()
    }

    fn spawn(&self, future: LocalFuture<()>) {
        self.reactor.executor.spawn(future);
    }

    fn sleep(&self, duration: Duration) -> LocalFuture<()> {
        Box::pin(self.reactor.timers.sleep(duration))
    }
}

fn read_clock() -> WallTime {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => WallTime {
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanoseconds: since.subsec_nanos(),
        },
        // A clock before 1970 is a clock that was never set.
        Err(_) => WallTime::default(),
    }
}
