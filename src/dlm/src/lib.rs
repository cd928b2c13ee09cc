//! o2dlm, the lock manager of OCFS2's own cluster stack.
//!
//! No sockets, no clocks, no async, no `unsafe`.
#![forbid(unsafe_code)]

mod lvb;
mod mode;
mod name;
mod node;
pub mod wire;

pub use lvb::Lvb;
pub use mode::Mode;
pub use name::{BadName, DomainName, LockName};
pub use node::{NodeNr, NodeSet};
