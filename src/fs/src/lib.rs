//! The filesystem: an OCFS2 volume on a block device.
//!
//! [`Volume`] is the one public door: asynchronous operations on inodes, names and open files, with
//! owned buffers and typed errors. Front ends (gRPC, exported bdevs, a mount) only translate to it.
//!
//! Inside, from the bottom up:
//!
//! * [`cache`](crate::cache): metadata blocks in memory, validated when read.
//! * [`journal`](crate::journal): handles, transactions, commit, checkpoint, recovery. A handle is
//!   exclusive and can be rolled back, so that an operation is all or nothing in memory as well.
//! * [`alloc`](crate::alloc): clusters and metadata blocks. [`extent`](crate::extent): trees of them.
//! * [`dir`](crate::dir), [`xattr`](crate::xattr), [`refcount`](crate::refcount): what they hold.
//! * [`volume`](crate::volume): mount, and the operations.
//!
//! Lock order: rename → directories by block number → inode → range → journal handle. Everything
//! runs on one thread; a `RefCell` borrow never lives across an await.
#![forbid(unsafe_code)]

pub mod alloc;
pub mod cache;
pub mod core;
pub mod dir;
pub mod error;
pub mod extent;
mod file_map;
pub mod inode;
pub mod journal;
pub mod limits;
mod range_lock;
pub mod refcount;
mod run_cache;
pub mod slot_map;
pub mod system;
#[cfg(test)]
mod testing;
pub mod volume;
pub mod xattr;

pub use error::{Errno, Error, Result};
