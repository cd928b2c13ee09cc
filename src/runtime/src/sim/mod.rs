//! The simulated world: one thread, one seed, one order.
//!
//! * [`Simulation`] owns the tasks and the virtual clock and drives them; [`World`] is the handle
//!   to it that implements [`crate::Host`].
//! * [`SimDisk`] is a block device in memory, with a volatile write cache, latency and faults.
//! * [`SimNode`] is one of several nodes in it: its tasks can be paused and killed. [`SimPort`] is its
//!   way to a disk it shares with others, [`SimNet`] the network between them.
//! * [`Image`] is the content of a disk: sparse, shared until written, so a copy costs nothing.
//! * [`Fault`] is bad luck planted in a disk. [`CrashModel`] draws what a power loss leaves, a
//!   [`Choice`] spells it out, and a [`Trace`] gives every crash of a recorded run.
//!
//! Two runs with one seed take the same steps, as long as the code under test draws nothing from
//! outside: no `std::time`, no iteration over a `HashMap` with the standard hasher, and
//! `select_biased!` instead of `select!` (whose fairness comes from a counter of the process).

mod cache;
mod disk;
mod fault;
mod image;
mod net;
mod node;
mod port;
mod rng;
mod trace;
mod world;

pub use cache::{Choice, CrashModel, Keep, VolatileChange};
pub use disk::{DiskOptions, DiskStats, SimDisk, UnmapContent};
pub use fault::{Fault, FaultId};
pub use image::Image;
pub use net::{NetOptions, NetStats, SimNet};
pub use node::SimNode;
pub use port::{PortState, SimPort};
pub use rng::SimRng;
pub use trace::Trace;
pub use world::{Fingerprint, SimError, Simulation, World, yield_now};
