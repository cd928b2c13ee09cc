//! What the upper rooms need of the world, as small traits, and a simulated world.
//!
//! * [`BlockDevice`]: owned buffers in, owned buffers back. SPDK's bdevs implement it in production,
//!   the simulated disk in tests.
//! * [`Host`]: clock, randomness, spawning and sleeping.
//! * [`Network`]: listeners, and streams of owned bytes in order.
//!
//! Everything here is `!Send` by design: one reactor, one thread. What crosses threads does so in
//! the `spdk` and `server` crates, as messages.
#![forbid(unsafe_code)]

pub mod buffer;
pub mod contract;
pub mod device;
pub mod host;
pub mod io;
pub mod net;
pub mod net_contract;
pub mod sim;

pub use buffer::{Buffer, Memory};
pub use device::{
    BlockDevice, BlockDeviceExt, DeviceError, DeviceErrorKind, DeviceEvent, DeviceInfo,
    Subscription,
};
pub use host::{Host, LocalFuture, WallTime};
pub use io::{Buffers, Completion, Io, Op, Request};
pub use net::{Listener, NetError, NetErrorKind, NetOp, Network, Stream};
