//! Timers of one reactor: a tree of deadlines. A dropped sleep leaves nothing behind, so a timeout around every request
//! costs no memory for the timeouts that never fired.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

#[derive(Default)]
pub(crate) struct Timers {
    /// By deadline; the number tells apart what is due at the same instant.
    waiting: RefCell<BTreeMap<(Instant, u64), Waker>>,
    next_number: Cell<u64>,
}

impl Timers {
    pub fn sleep(self: &Rc<Self>, duration: Duration) -> Sleep {
        let number = self.next_number.get();
        self.next_number.set(number + 1);
        // Further than a century away is never.
        let forever = Duration::from_secs(100 * 365 * 86_400);
        Sleep {
            timers: self.clone(),
            key: (Instant::now() + duration.min(forever), number),
            waiting: false,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.borrow().is_empty()
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        self.waiting.borrow().keys().next().map(|key| key.0)
    }

    /// Wakes all that is due.
    pub fn fire(&self, now: Instant) {
        loop {
            let waker = {
                let mut waiting = self.waiting.borrow_mut();
                match waiting.first_entry() {
                    Some(entry) if entry.key().0 <= now => entry.remove(),
                    _ => return,
                }
            };
            waker.wake();
        }
    }
}

/// Ready once its time has come. Made by [`super::sleep`].
pub struct Sleep {
    timers: Rc<Timers>,
    key: (Instant, u64),
    waiting: bool,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if Instant::now() >= self.key.0 {
            return Poll::Ready(());
        }
        let mut waiting = self.timers.waiting.borrow_mut();
        waiting
            .entry(self.key)
            .and_modify(|waker| waker.clone_from(cx.waker()))
            .or_insert_with(|| cx.waker().clone());
        drop(waiting);
        self.waiting = true;
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if self.waiting {
            let waker = self.timers.waiting.borrow_mut().remove(&self.key);
            drop(waker);
        }
    }
}
