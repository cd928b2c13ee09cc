//! The host: clock, randomness, spawning and sleeping, on one thread.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

/// A future that stays on the thread that made it.
pub type LocalFuture<T> = Pin<Box<dyn Future<Output = T> + 'static>>;

/// Seconds and nanoseconds since the epoch, as inodes store them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct WallTime {
    pub seconds: i64,
    pub nanoseconds: u32,
}

/// What a reactor offers to the code that runs on it.
pub trait Host {
    /// Monotonic time since some fixed start.
    fn now(&self) -> Duration;
    /// The time of day, for timestamps: it may be as old as the current turn of the thread's loop.
    fn wall(&self) -> WallTime;
    /// Not for secrets.
    fn random(&self) -> u64;
    /// Runs the future on this thread until it ends. It may outlive the caller.
    fn spawn(&self, future: LocalFuture<()>);
    /// Ready once `duration` has passed.
    fn sleep(&self, duration: Duration) -> LocalFuture<()>;
}
