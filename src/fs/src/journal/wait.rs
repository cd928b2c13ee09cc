//! Waiting, on one thread: a signal that wakes everybody, and a lock that is granted in the order
//! of asking. Used by the journal (whose lock every change of the volume takes) and by the cache.
//!
//! The lock is not `async_lock::Mutex` because that one is fair by the wall clock: a long queue
//! would depend on real time, and a simulated run must depend on its seed alone.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// Wakes all who wait for a condition to be looked at again.
#[derive(Default)]
pub struct Signal {
    waiting: RefCell<Vec<Waker>>,
}

impl Signal {
    pub fn notify(&self) {
        let waiting = self.waiting.take();
        for waker in waiting {
            waker.wake();
        }
    }

    /// Ready with the first `Some` that `check` gives; it is called after every [`Signal::notify`].
    pub async fn until<T>(&self, mut check: impl FnMut() -> Option<T>) -> T {
        poll_fn(|cx| {
            if let Some(value) = check() {
                return Poll::Ready(value);
            }
            let mut waiting = self.waiting.borrow_mut();
            if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                waiting.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}

/// A lock whose holders take turns in the order in which they asked.
#[derive(Default)]
pub struct Turns {
    held: Cell<bool>,
    queue: RefCell<VecDeque<Rc<Ticket>>>,
}

#[derive(Default)]
struct Ticket {
    waker: RefCell<Option<Waker>>,
    /// The lock was handed over to this ticket.
    granted: Cell<bool>,
}

impl Turns {
    pub async fn take(&self) -> Turn<'_> {
        if !self.held.replace(true) {
            return Turn { turns: self };
        }
        let ticket = Rc::<Ticket>::default();
        self.queue.borrow_mut().push_back(ticket.clone());
        let mut queued = Queued {
            turns: self,
            ticket: Some(ticket.clone()),
        };
        poll_fn(|cx| {
            if ticket.granted.get() {
                return Poll::Ready(());
            }
            *ticket.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
        queued.ticket = None;
        Turn { turns: self }
    }

    /// The lock, if nobody has it.
    pub fn try_take(&self) -> Option<Turn<'_>> {
        (!self.held.replace(true)).then_some(Turn { turns: self })
    }

    /// Hands the lock to the next in the queue.
    fn pass(&self) {
        let next = self.queue.borrow_mut().pop_front();
        match next {
            Some(ticket) => {
                ticket.granted.set(true);
                if let Some(waker) = ticket.waker.take() {
                    waker.wake();
                }
            }
            None => self.held.set(false),
        }
    }
}

/// A place in the queue. Whoever gives up waiting leaves it, or passes on the lock if it was
/// granted meanwhile.
struct Queued<'a> {
    turns: &'a Turns,
    ticket: Option<Rc<Ticket>>,
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket.take() else {
            return;
        };
        if ticket.granted.get() {
            self.turns.pass();
        } else {
            self.turns
                .queue
                .borrow_mut()
                .retain(|other| !Rc::ptr_eq(other, &ticket));
        }
    }
}

/// The lock, until dropped.
pub struct Turn<'a> {
    turns: &'a Turns,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.pass();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtime::Host as _;
    use runtime::sim::{Simulation, yield_now};

    #[test]
    fn turns_are_taken_in_the_order_of_asking() {
        let sim = Simulation::new(3);
        let turns = Rc::new(Turns::default());
        let order = Rc::new(RefCell::new(Vec::new()));
        let (asked, log) = (Rc::new(RefCell::new(Vec::new())), order.clone());
        for number in 0..20 {
            let (turns, order, asked) = (turns.clone(), order.clone(), asked.clone());
            sim.world().spawn(Box::pin(async move {
                asked.borrow_mut().push(number);
                let turn = turns.take().await;
                yield_now().await;
                order.borrow_mut().push(number);
                drop(turn);
            }));
        }
        assert_eq!(sim.run_until_idle(), Ok(0));
        assert_eq!(*log.borrow(), *asked.borrow());
    }

    #[test]
    fn giving_up_neither_loses_nor_keeps_the_lock() {
        let sim = Simulation::new(4);
        let turns = Turns::default();
        sim.block_on(async {
            use futures_util::FutureExt;
            let first = turns.take().await;
            let mut second = Box::pin(turns.take());
            let mut third = Box::pin(turns.take());
            assert!((&mut second).now_or_never().is_none());
            assert!((&mut third).now_or_never().is_none());
            drop(first); // grants the second, which never looks
            drop(second);
            let held = (&mut third).now_or_never();
            assert!(held.is_some());
            drop(held);
            assert!(turns.take().now_or_never().is_some());
        })
        .unwrap();
    }
}
