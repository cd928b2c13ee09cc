//! The filesystem: an OCFS2 volume on a block device.
//!
//! [`Volume`](volume::Volume) is the one public door: asynchronous operations on inodes, names and open files, with
//! owned buffers and typed errors. Front ends (gRPC, exported bdevs, a mount) only translate to it.
//!
//! Inside, from the bottom up:
//!
//! * `cache`: metadata blocks in memory, validated when read.
//! * `journal`: handles, transactions, commit, checkpoint, recovery. A handle is
//!   exclusive and can be rolled back, so that an operation is all or nothing in memory as well.
//! * `alloc`: clusters and metadata blocks. `extent`: trees of them.
//! * `dir`, `xattr`, `refcount`: what they hold.
//! * `pages`: file data in memory, above the write path.
//! * `volume`: mount, and the operations.
//! * [`check`]: whether all of that agrees, on the medium; reads only.
//!
//! Lock order: rename → directories by block number → inode → range → journal handle. Everything
//! runs on one thread; a `RefCell` borrow never lives across an await.
#![forbid(unsafe_code)]

mod alloc;
mod cache;
pub mod check;
mod core;
mod dir;
pub mod error;
mod extent;
mod file_map;
mod inode;
mod journal;
pub mod limits;
mod lock;
mod moment;
mod pages;
mod range_lock;
mod refcount;
mod run_cache;
mod slot_map;
mod system;
#[cfg(test)]
mod testing;
pub mod volume;
pub mod xattr;

pub use error::{Errno, Error, Result};
