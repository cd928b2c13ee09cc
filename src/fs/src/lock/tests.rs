//! The lock against a model that is a list: who holds, and who waits, in the order of asking.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use proptest::prelude::*;

use super::*;

#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

enum Guard {
    Read(#[expect(dead_code, reason = "held for its drop")] ReadGuard<'static>),
    Write(#[expect(dead_code, reason = "held for its drop")] WriteGuard<'static>),
}

/// One who asked: waiting, or holding what it asked for.
struct Asker {
    mode: Mode,
    woken: Arc<Count>,
    future: Option<Pin<Box<dyn Future<Output = Guard>>>>,
    guard: Option<Guard>,
}

impl Asker {
    fn new(lock: &'static RwLock, mode: Mode) -> Self {
        let future: Pin<Box<dyn Future<Output = Guard>>> = match mode {
            Mode::Shared => Box::pin(async { Guard::Read(lock.read().await) }),
            Mode::Exclusive => Box::pin(async { Guard::Write(lock.write().await) }),
        };
        let mut asker = Asker {
            mode,
            woken: Arc::default(),
            future: Some(future),
            guard: None,
        };
        asker.look();
        asker
    }

    fn look(&mut self) {
        let Some(future) = &mut self.future else {
            return;
        };
        let waker = Waker::from(self.woken.clone());
        if let Poll::Ready(guard) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            self.guard = Some(guard);
            self.future = None;
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Ask(bool),
    Try(bool),
    /// The asker of that number looks whether it is its turn.
    Look(prop::sample::Index),
    /// It gives up waiting, or lets go.
    Leave(prop::sample::Index),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => any::<bool>().prop_map(Step::Ask),
        1 => any::<bool>().prop_map(Step::Try),
        3 => any::<prop::sample::Index>().prop_map(Step::Look),
        3 => any::<prop::sample::Index>().prop_map(Step::Leave),
    ];
    prop::collection::vec(step, 1..80)
}

/// Of the askers in the order of asking, how many from the first on the lock is for. Those that left
/// are not among them; nobody overtakes, so the ones it is for are a prefix.
fn granted(modes: &[Mode]) -> usize {
    match modes.first() {
        None => 0,
        Some(Mode::Exclusive) => 1,
        Some(Mode::Shared) => modes
            .iter()
            .take_while(|mode| **mode == Mode::Shared)
            .count(),
    }
}

fn mode_of(exclusive: bool) -> Mode {
    match exclusive {
        true => Mode::Exclusive,
        false => Mode::Shared,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn is_granted_in_the_order_of_asking(steps in steps()) {
        let lock: &'static RwLock = Box::leak(Box::default());
        let mut askers: Vec<Asker> = Vec::new();
        for step in steps {
            match step {
                Step::Ask(exclusive) => askers.push(Asker::new(lock, mode_of(exclusive))),
                Step::Try(exclusive) => {
                    let mode = mode_of(exclusive);
                    let free = match mode {
                        Mode::Exclusive => askers.is_empty(),
                        Mode::Shared => askers.iter().all(|asker| asker.mode == Mode::Shared),
                    };
                    let got = match mode {
                        Mode::Shared => lock.try_read().map(drop),
                        Mode::Exclusive => lock.try_write().map(drop),
                    };
                    prop_assert_eq!(got.is_some(), free);
                }
                Step::Look(index) if !askers.is_empty() => index.get_mut(&mut askers).look(),
                Step::Leave(index) if !askers.is_empty() => {
                    let at = index.index(askers.len());
                    drop(askers.remove(at));
                }
                _ => {}
            }
            let modes: Vec<Mode> = askers.iter().map(|asker| asker.mode).collect();
            let now = granted(&modes);
            for (at, asker) in askers.iter().enumerate() {
                if at >= now {
                    prop_assert!(asker.guard.is_none(), "{at} of {modes:?} came in too early");
                    prop_assert_eq!(asker.woken.0.load(Ordering::Relaxed), 0);
                } else if asker.guard.is_none() {
                    prop_assert_eq!(asker.woken.0.load(Ordering::Relaxed), 1, "{} of {:?} sleeps on", at, modes);
                }
            }
        }
        // Whoever is left gets its turn.
        while !askers.is_empty() {
            askers[0].look();
            prop_assert!(askers[0].guard.is_some());
            drop(askers.remove(0));
        }
        prop_assert!(lock.try_write().is_some());
        prop_assert!(lock.queue.borrow().is_empty() && !lock.crowded.get());
    }
}

/// What every request does takes no memory.
#[test]
fn an_idle_lock_has_no_queue() {
    let lock = Rc::new(RwLock::default());
    for _ in 0..10 {
        let first = lock.try_read().unwrap();
        let second = lock.try_read().unwrap();
        assert!(lock.try_write().is_none());
        drop((first, second));
        drop(lock.try_write().unwrap());
    }
    assert_eq!(lock.queue.borrow().capacity(), 0);
}
