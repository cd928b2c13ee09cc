//! How other threads reach a reactor: a lock-free queue, and an eventfd for when the reactor sleeps.
//!
//! The rule this file owns: **no message is lost between a reactor falling asleep (or ending) and a thread posting.**
//! Both sides write, then read what the other wrote, with sequentially consistent order:
//!
//! ```text
//!   poster                         reactor
//!   push message                   sleeping = true
//!   read sleeping ── true: ring    read queue ── not empty: do not sleep
//! ```
//! One of the two sees the other. The same holds for `closed` in place of `sleeping`.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_queue::SegQueue;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::fd::OwnedFd;

use super::executor::TaskId;
use super::thread::ThreadPtr;
use crate::export::Crossing;
use crate::limits;

/// What another thread wants of a reactor.
pub(crate) enum Message {
    /// Poll this task again.
    Wake(TaskId),
    /// Run this on the reactor's thread.
    Run(Box<dyn FnOnce() + Send>),
    /// A request of an exported device, or its answer.
    Export(Crossing),
    /// Poll this SPDK thread from now on.
    Adopt(ThreadPtr),
    /// End the loop once all is quiet.
    Stop,
}

/// The part of a reactor that all threads share.
pub(crate) struct Shared {
    pub index: usize,
    queue: SegQueue<Message>,
    /// `Run` messages in the queue.
    waiting: AtomicUsize,
    sleeping: AtomicBool,
    closed: AtomicBool,
    bell: OwnedFd,
    pub counters: Counters,
}

/// What a reactor has done; written by it alone.
#[derive(Default)]
pub(crate) struct Counters {
    pub polls: AtomicU64,
    pub sleeps: AtomicU64,
    pub busy_us: AtomicU64,
    pub slept_us: AtomicU64,
    pub tasks: AtomicU64,
    pub requests: AtomicU64,
}

/// Why a message was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReactorError {
    #[error("reactor has ended")]
    Gone,
    #[error("reactor has {} messages waiting already", limits::MAILBOX_MESSAGES)]
    Full,
}

impl Shared {
    pub fn new(index: usize) -> std::io::Result<Self> {
        Ok(Shared {
            index,
            queue: SegQueue::new(),
            waiting: AtomicUsize::new(0),
            sleeping: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            bell: rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            counters: Counters::default(),
        })
    }

    /// Posts work that may be refused.
    pub fn run(&self, work: Box<dyn FnOnce() + Send>) -> Result<(), ReactorError> {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= limits::MAILBOX_MESSAGES {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(ReactorError::Full);
        }
        if self.post(Message::Run(work)) {
            Ok(())
        } else {
            Err(ReactorError::Gone)
        }
    }

    /// Posts a message. False when the reactor has ended: then the message was dropped.
    pub fn post(&self, message: Message) -> bool {
        if self.closed.load(Ordering::SeqCst) {
            return false;
        }
        self.queue.push(message);
        std::sync::atomic::fence(Ordering::SeqCst);
        if self.closed.load(Ordering::SeqCst) {
            // The reactor may have looked for the last time before the push: nobody else empties the queue now, and a
            // `Run` left in it would keep its caller waiting.
            self.discard();
            return false;
        }
        self.ring();
        true
    }

    /// Wakes the reactor if it sleeps.
    pub fn ring(&self) {
        if self.sleeping.load(Ordering::SeqCst) && self.sleeping.swap(false, Ordering::SeqCst) {
            // Fails only when the counter is full, and then the bell rings already.
            let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
        }
    }

    pub fn pop(&self) -> Option<Message> {
        // Looked at before: to take from an empty queue costs a memory fence, in every turn of the loop.
        if self.queue.is_empty() {
            return None;
        }
        let message = self.queue.pop();
        if matches!(message, Some(Message::Run(_))) {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        message
    }

    /// Sleeps until the bell or the timeout. Called by the reactor only.
    pub fn sleep(&self, timeout: Duration) {
        self.sleeping.store(true, Ordering::SeqCst);
        std::sync::atomic::fence(Ordering::SeqCst);
        if self.queue.is_empty() {
            let timeout = Timespec {
                tv_sec: timeout.as_secs().min(3600) as i64,
                tv_nsec: i64::from(timeout.subsec_nanos()),
            };
            let mut fds = [PollFd::new(&self.bell, PollFlags::IN)];
            // An interrupted sleep is a short sleep: the loop looks around and comes back.
            let _ = rustix::event::poll(&mut fds, Some(&timeout));
        }
        self.sleeping.store(false, Ordering::SeqCst);
        let mut count = [0u8; 8];
        let _ = rustix::io::read(&self.bell, &mut count);
    }

    /// From now on nothing is taken; what waits is dropped, which tells its senders.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        std::sync::atomic::fence(Ordering::SeqCst);
        self.discard();
    }

    fn discard(&self) {
        while self.queue.pop().is_some() {}
    }
}
