//! The reactor's loop: one turn, when to sleep and for how long, and the phases of its end.
//!
//! ```text
//!   Running ── Stop ──► Quieting ── no task, request or device left ──► Quiet ── Exit ──► threads gone, loop ends
//! ```
//! In each phase SPDK's pollers keep running, on every reactor: closing a device on one passes messages through others.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use spdk_sys as sys;

use super::{Attention, Message, Reactor};
use crate::options::Polling;
use crate::{limits, nvmf};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Running,
    /// Tasks are dropped; requests under way complete, devices close.
    Quieting,
}

/// How long fruitless polling goes on, with requests in flight, before each further poll offers the processor to
/// others: where reactors and clients outnumber the processors, the one that is waited for gets it.
const GENEROUS_AFTER: Duration = Duration::from_micros(50);

/// The shortest sleep for SPDK's timed pollers: one that asks for every 100 µs must not keep an idle daemon busy.
const SHORTEST_SLEEP: Duration = Duration::from_micros(500);

/// A deadline is looked at once in so many turns.
const DEADLINE_EVERY: u64 = 256;

/// What reactors did is told to others once in so many turns, and when there is nothing to do.
const TELL_EVERY: u64 = 256;

pub(super) fn ticks() -> u64 {
    // SAFETY: reads the processor's counter.
    unsafe { sys::spdk_get_ticks() }
}

fn ticks_per_second() -> u64 {
    // SAFETY: a constant once the environment is up, which it is while reactors run.
    unsafe { sys::spdk_get_ticks_hz() }.max(1)
}

pub(super) fn in_ticks(duration: Duration) -> u64 {
    let ticks = duration
        .as_nanos()
        .saturating_mul(u128::from(ticks_per_second()))
        / 1_000_000_000;
    u64::try_from(ticks).unwrap_or(u64::MAX)
}

fn from_ticks(ticks: u64) -> Duration {
    let nanoseconds = u128::from(ticks) * 1_000_000_000 / u128::from(ticks_per_second());
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
}

impl Reactor {
    pub fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// Nothing is left that a stop has to wait for.
    pub fn is_quiet(&self) -> bool {
        self.executor.live() == 0 && self.in_flight.get() == 0 && self.open_devices.get() == 0
    }

    /// Runs until `done`. Returns whether it was done before the deadline.
    pub fn run_until(&self, deadline: Option<Instant>, mut done: impl FnMut() -> bool) -> bool {
        let (spin, max_sleep) = match self.polling {
            Polling::Busy => (u64::MAX, Duration::ZERO),
            Polling::Adaptive { spin, max_sleep } => (in_ticks(spin), max_sleep),
        };
        let generous_after = in_ticks(GENEROUS_AFTER);
        let transport_spin = in_ticks(limits::TRANSPORT_SPIN);
        let counters = &self.shared.counters;
        let busy_before = counters.busy_us.load(Ordering::Relaxed);
        let mut busy_ticks = 0u64;
        let tell = |busy_ticks| {
            let busy_us = from_ticks(busy_ticks).as_micros() as u64;
            counters
                .busy_us
                .store(busy_before + busy_us, Ordering::Relaxed);
        };
        let mut start = ticks();
        let mut last_event = start;
        loop {
            let active = self.turn(start);
            let turns = self.turns.get() + 1;
            self.turns.set(turns);
            counters.polls.store(turns, Ordering::Relaxed);
            if done() {
                tell(busy_ticks);
                return true;
            }
            // Whether or not there was something to do: a poller that always has must not outrun the deadline.
            if turns.is_multiple_of(DEADLINE_EVERY)
                && deadline.is_some_and(|at| Instant::now() >= at)
            {
                tell(busy_ticks);
                return false;
            }
            let began = start;
            start = ticks();
            if active {
                last_event = start;
                busy_ticks += start - began;
                if turns.is_multiple_of(TELL_EVERY) {
                    tell(busy_ticks);
                }
                continue;
            }
            let fruitless = start.saturating_sub(last_event);
            if fruitless < spin {
                std::hint::spin_loop();
                continue;
            }
            if self.in_flight.get() > 0 || Attention::wanted() || deadline.is_some() {
                if fruitless > generous_after && self.polling != Polling::Busy {
                    std::thread::yield_now();
                }
                continue;
            }
            let mut most = max_sleep;
            if nvmf::serves() {
                // Hosts do not wake us.
                if fruitless < transport_spin {
                    if fruitless > generous_after {
                        std::thread::yield_now();
                    }
                    continue;
                }
                most = most.min(limits::TRANSPORT_SLEEP);
            }
            tell(busy_ticks);
            self.sleep(most);
            start = ticks();
        }
    }

    /// One turn. True when it found something to do.
    fn turn(&self, now_ticks: u64) -> bool {
        let mut active = false;
        while let Some(message) = self.shared.pop() {
            active = true;
            self.receive(message);
        }
        active |= self.poll_threads(now_ticks);
        self.timers.fire(now_ticks);
        let polled = self.executor.run_ready();
        if polled > 0 {
            active = true;
            let tasks = &self.shared.counters.tasks;
            tasks.store(
                tasks.load(Ordering::Relaxed) + polled as u64,
                Ordering::Relaxed,
            );
        }
        active
    }

    fn receive(&self, message: Message) {
        match message {
            Message::Wake(id) => self.executor.wake(id),
            Message::Run(work) => {
                if self.phase.get() == Phase::Running {
                    work();
                }
            }
            Message::Export(crossing) => crate::export::receive(crossing),
            Message::Adopt(thread) => self.threads.borrow_mut().push(thread),
            Message::Stop => {
                if self.phase.get() == Phase::Running {
                    self.phase.set(Phase::Quieting);
                    self.executor.close();
                }
            }
        }
    }

    fn poll_threads(&self, now_ticks: u64) -> bool {
        let mut active = false;
        let mut index = 0;
        // By index: a poller may make a thread, which is adopted at the next turn; none leaves but here.
        loop {
            let thread = self.threads.borrow().get(index).copied();
            let Some(thread) = thread else { break };
            let had_work = thread.poll(now_ticks);
            active |= had_work;
            // One that has just had a message may have another.
            if !had_work && thread.has_exited() {
                self.threads.borrow_mut().swap_remove(index);
                thread.destroy();
            } else {
                index += 1;
            }
        }
        active
    }

    fn sleep(&self, max_sleep: Duration) {
        let mut timeout = max_sleep;
        for thread in self.threads.borrow().iter() {
            let left = thread.next_timed_poller_ticks();
            if left > 0 {
                timeout = timeout.min(from_ticks(left).max(SHORTEST_SLEEP));
            }
        }
        let before = Instant::now();
        if let Some(deadline) = self.timers.next_deadline() {
            timeout = timeout.min(from_ticks(deadline.saturating_sub(ticks())));
        }
        if timeout.is_zero() {
            return;
        }
        self.shared.sleep(timeout);
        let counters = &self.shared.counters;
        let slept_us = before.elapsed().as_micros() as u64;
        counters.sleeps.fetch_add(1, Ordering::Relaxed);
        counters.slept_us.fetch_add(slept_us, Ordering::Relaxed);
    }

    /// Ends all SPDK threads of this reactor. True when that was done before the deadline.
    pub fn exit_threads(&self, deadline: Instant) -> bool {
        for thread in self.threads.borrow().iter() {
            thread.exit();
        }
        // The current thread must not be one that is being freed.
        super::ThreadPtr::leave();
        let gone = self.run_until(Some(deadline), || self.threads.borrow().is_empty());
        if !gone {
            for thread in self.threads.borrow().iter() {
                tracing::error!(thread = thread.name(), "SPDK thread does not end");
            }
        }
        gone
    }
}
