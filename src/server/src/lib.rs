//! The daemon `ocelotd`: configuration, gRPC, and the rooms put together.
//!
//! ```text
//!  tokio threads                            │ home thread (an SPDK reactor), one per volume
//!  grpc  ─► node: names, handles, sessions  │
//!           └► volume::VolumeHandle ─ queue ┼─► actor ─► door::Door (the fs crate's volume)
//!                                  ◄─ answer┼──
//! ```
//!
//! * [`door`]: the file system's public door as traits, on its own thread.
//! * [`volume`]: the way there and back.
//! * [`device`]: devices and the world that has them, as a trait.
//! * [`spdk_world`]: the real one.
//! * [`node`]: the tables: volumes by name, handles, sessions; mount, unmount, the end.
//! * [`export`]: files as block devices and NVMe namespaces.
//! * [`grpc`]: the services. They translate, and no more.
//! * [`serve`]: sockets, health, reflection, and the graceful end.
//! * [`config`]: the configuration file and the command line.
#![forbid(unsafe_code)]

pub mod config;
pub mod device;
pub mod door;
pub mod export;
pub mod failure;
pub mod grpc;
pub mod handles;
pub mod limits;
mod mount_options;
pub mod node;
pub mod serve;
pub mod spdk_world;
pub mod volume;

pub use failure::{Failure, Result};
