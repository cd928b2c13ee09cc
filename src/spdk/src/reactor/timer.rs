//! Timers of one reactor: a tree of deadlines. A dropped sleep leaves nothing behind, so a timeout around every request
//! costs no memory for the timeouts that never fired.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::turn::{in_ticks, ticks};

pub(crate) struct Timers {
    /// By deadline, in ticks of the processor's counter; the number tells apart what is due at the same tick.
    waiting: RefCell<BTreeMap<(u64, u64), Waker>>,
    /// The first deadline, or never: looked at in every turn.
    first: Cell<u64>,
    next_number: Cell<u64>,
}

impl Default for Timers {
    fn default() -> Self {
        Timers {
            waiting: RefCell::default(),
            first: Cell::new(NEVER),
            next_number: Cell::new(0),
        }
    }
}

const NEVER: u64 = u64::MAX;

impl Timers {
    pub fn sleep(self: &Rc<Self>, duration: Duration) -> Sleep {
        let number = self.next_number.get();
        self.next_number.set(number + 1);
        Sleep {
            timers: self.clone(),
            key: (ticks().saturating_add(in_ticks(duration)), number),
            waiting: false,
        }
    }

    /// In ticks.
    pub fn next_deadline(&self) -> Option<u64> {
        let first = self.first.get();
        (first != NEVER).then_some(first)
    }

    fn look(&self, waiting: &BTreeMap<(u64, u64), Waker>) {
        let first = waiting.first_key_value();
        self.first.set(first.map_or(NEVER, |(key, _)| key.0));
    }

    /// Wakes all that is due.
    pub fn fire(&self, now: u64) {
        while self.first.get() <= now {
            let mut waiting = self.waiting.borrow_mut();
            let due = waiting.pop_first();
            self.look(&waiting);
            drop(waiting);
            match due {
                Some((_, waker)) => waker.wake(),
                None => return,
            }
        }
    }
}

/// Ready once its time has come. Made by [`super::sleep`].
pub struct Sleep {
    timers: Rc<Timers>,
    key: (u64, u64),
    waiting: bool,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if ticks() >= self.key.0 {
            return Poll::Ready(());
        }
        let mut waiting = self.timers.waiting.borrow_mut();
        waiting
            .entry(self.key)
            .and_modify(|waker| waker.clone_from(cx.waker()))
            .or_insert_with(|| cx.waker().clone());
        self.timers.look(&waiting);
        drop(waiting);
        self.waiting = true;
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if self.waiting {
            let mut waiting = self.timers.waiting.borrow_mut();
            let waker = waiting.remove(&self.key);
            self.timers.look(&waiting);
            drop(waiting);
            drop(waker);
        }
    }
}
