//! What other threads hold of a reactor.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_channel::oneshot;

use super::mailbox::{ReactorError, Shared};

/// A reactor, from any thread. Cheap to clone; keeps nothing alive but the mailbox.
#[derive(Clone)]
pub struct ReactorHandle {
    pub(crate) shared: Arc<Shared>,
}

/// What a reactor has done since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Turns of the loop.
    pub polls: u64,
    pub sleeps: u64,
    /// Time in turns that found something to do.
    pub busy: Duration,
    /// Time asleep.
    pub slept: Duration,
    /// Tasks polled.
    pub tasks: u64,
    /// Requests completed by block devices.
    pub requests: u64,
}

impl ReactorHandle {
    /// Its number, from 0. Number 0 is also where SPDK's own management runs.
    pub fn index(&self) -> usize {
        self.shared.index
    }

    /// Runs a future on the reactor, made there by `make`. The future needs not be `Send`; `make` does.
    pub fn spawn<F, Fut>(&self, make: F) -> Result<(), ReactorError>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = ()> + 'static,
    {
        self.shared
            .run(Box::new(move || super::spawn(async move { make().await })))
    }

    /// Runs a future on the reactor and gives its result to any thread, under any executor. Dropping what this returns
    /// does not stop the future: what was begun is finished.
    pub fn call<F, Fut, T>(
        &self,
        make: F,
    ) -> impl Future<Output = Result<T, ReactorError>> + Send + use<F, Fut, T>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        let posted = self.spawn(move || async move {
            // The caller may have lost interest.
            let _ = sender.send(make().await);
        });
        async move {
            posted?;
            receiver.await.map_err(|_| ReactorError::Gone)
        }
    }

    /// [`Self::call`] for a plain thread, which waits. Never from a reactor's own thread: it would wait for itself.
    ///
    /// # Panics
    /// On a reactor's thread.
    pub fn call_and_wait<F, Fut, T>(&self, make: F) -> Result<T, ReactorError>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        assert!(!super::on_reactor(), "a reactor must not wait for a call");
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        self.spawn(move || async move {
            let _ = sender.send(make().await);
        })?;
        receiver.recv().map_err(|_| ReactorError::Gone)
    }

    pub fn counters(&self) -> Counters {
        let counters = &self.shared.counters;
        Counters {
            polls: counters.polls.load(Ordering::Relaxed),
            sleeps: counters.sleeps.load(Ordering::Relaxed),
            busy: Duration::from_micros(counters.busy_us.load(Ordering::Relaxed)),
            slept: Duration::from_micros(counters.slept_us.load(Ordering::Relaxed)),
            tasks: counters.tasks.load(Ordering::Relaxed),
            requests: counters.requests.load(Ordering::Relaxed),
        }
    }
}

impl std::fmt::Debug for ReactorHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "reactor {}", self.shared.index)
    }
}
