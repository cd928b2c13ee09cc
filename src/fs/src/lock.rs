//! A lock that many share or one has, on one thread: of an inode, and of the volume's gate.
//!
//! Granted in the order of asking: who asks to share behind one who waits to have it alone waits as
//! well, so that neither starves. Whoever lets go hands the lock over; nobody can come in between.
//!
//! It is not `async_lock::RwLock` for the reason that [`crate::journal::wait`] gives (that one's
//! fairness looks at the wall clock), and because every request takes two of these: on one thread
//! that needs no atomic operation, and no memory unless somebody waits.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// How a lock is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Shared,
    Exclusive,
}

/// The lock. It guards no value: what it protects is said where it lives.
#[derive(Default)]
pub struct RwLock {
    held: Cell<Held>,
    /// First come, first served. Never empty while `crowded`.
    queue: RefCell<VecDeque<Waiting>>,
    crowded: Cell<bool>,
    next_ticket: Cell<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Held {
    /// By so many; by nobody with 0.
    Shared(usize),
    Exclusive,
}

impl Default for Held {
    fn default() -> Self {
        Held::Shared(0)
    }
}

struct Waiting {
    ticket: u64,
    mode: Mode,
    waker: Waker,
}

/// A share of the lock, until dropped.
#[must_use = "the lock is held as long as its guard lives"]
pub struct ReadGuard<'a>(&'a RwLock);

/// The whole lock, until dropped.
#[must_use = "the lock is held as long as its guard lives"]
pub struct WriteGuard<'a>(&'a RwLock);

impl RwLock {
    /// Waits for a share.
    pub async fn read(&self) -> ReadGuard<'_> {
        if !self.take(Mode::Shared) {
            Ask::of(self, Mode::Shared).await;
        }
        ReadGuard(self)
    }

    /// Waits to have it alone.
    pub async fn write(&self) -> WriteGuard<'_> {
        if !self.take(Mode::Exclusive) {
            Ask::of(self, Mode::Exclusive).await;
        }
        WriteGuard(self)
    }

    /// A share, if nobody has it alone or waits to.
    pub fn try_read(&self) -> Option<ReadGuard<'_>> {
        self.take(Mode::Shared).then(|| ReadGuard(self))
    }

    /// All of it, if nobody has any.
    pub fn try_write(&self) -> Option<WriteGuard<'_>> {
        self.take(Mode::Exclusive).then(|| WriteGuard(self))
    }

    /// Takes it at once, unless somebody is in the way or was first.
    fn take(&self, mode: Mode) -> bool {
        !self.crowded.get() && self.grant(mode)
    }

    fn grant(&self, mode: Mode) -> bool {
        let held = match (mode, self.held.get()) {
            (Mode::Shared, Held::Shared(count)) => Held::Shared(count + 1),
            (Mode::Exclusive, Held::Shared(0)) => Held::Exclusive,
            _ => return false,
        };
        self.held.set(held);
        true
    }

    fn release(&self) {
        let held = match self.held.get() {
            Held::Shared(count) => Held::Shared(count - 1),
            Held::Exclusive => Held::Shared(0),
        };
        self.held.set(held);
        if self.crowded.get() {
            self.hand_over();
        }
    }

    /// Grants the lock to those at the head of the queue, as far as it goes.
    fn hand_over(&self) {
        loop {
            let mut queue = self.queue.borrow_mut();
            let next = match queue.front() {
                Some(first) if self.grant(first.mode) => queue.pop_front(),
                _ => None,
            };
            self.crowded.set(!queue.is_empty());
            drop(queue);
            let Some(next) = next else { return };
            next.waker.wake();
        }
    }
}

impl Drop for ReadGuard<'_> {
    fn drop(&mut self) {
        self.0.release();
    }
}

impl Drop for WriteGuard<'_> {
    fn drop(&mut self) {
        self.0.release();
    }
}

/// One who waits. A ticket that is no longer in the queue was granted: then the lock is this one's,
/// also if it never looks again.
struct Ask<'a> {
    lock: &'a RwLock,
    mode: Mode,
    ticket: Option<u64>,
}

impl<'a> Ask<'a> {
    fn of(lock: &'a RwLock, mode: Mode) -> Self {
        Ask {
            lock,
            mode,
            ticket: None,
        }
    }
}

impl Future for Ask<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let lock = self.lock;
        let Some(ticket) = self.ticket else {
            if lock.take(self.mode) {
                return Poll::Ready(());
            }
            let ticket = lock.next_ticket.get();
            lock.next_ticket.set(ticket + 1);
            lock.queue.borrow_mut().push_back(Waiting {
                ticket,
                mode: self.mode,
                waker: cx.waker().clone(),
            });
            lock.crowded.set(true);
            self.ticket = Some(ticket);
            return Poll::Pending;
        };
        let mut queue = lock.queue.borrow_mut();
        match place(&queue, ticket) {
            Some(at) => {
                queue[at].waker.clone_from(cx.waker());
                Poll::Pending
            }
            None => {
                drop(queue);
                self.ticket = None;
                Poll::Ready(())
            }
        }
    }
}

impl Drop for Ask<'_> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let mut queue = self.lock.queue.borrow_mut();
        let Some(at) = place(&queue, ticket) else {
            drop(queue);
            self.lock.release();
            return;
        };
        let gone = queue.remove(at);
        drop(queue);
        drop(gone);
        // It may have been the one that the others waited behind.
        self.lock.hand_over();
    }
}

/// Where a ticket waits: the queue is in the order of tickets.
fn place(queue: &VecDeque<Waiting>, ticket: u64) -> Option<usize> {
    queue
        .binary_search_by_key(&ticket, |waiting| waiting.ticket)
        .ok()
}

#[cfg(test)]
mod tests;
