//! o2dlm, the lock manager of OCFS2's own cluster stack, as a state machine.
//!
//! One [`Dlm`] is one node's part in one domain, which is one volume. It has no sockets, no clock and no threads: whoever
//! drives it tells it what happens ([`Event`], by [`Dlm::step`]) and does what it asks for ([`Action`], from
//! [`Dlm::actions`]).
//!
//! ```text
//!        file system                              cluster
//!   lock convert unlock cancel          frames, deaths, timers
//!            │    ▲                              │    ▲
//!            ▼    │ Granted Blocked …     Event  ▼    │ Action
//!         ┌──────────────────────── Dlm ──────────────────────┐
//!         │  join      mastery    locker    master            │
//!         │  migrate   recovery   lead      advance           │
//!         └───────────────────────────────────────────────────┘
//! ```
//!
//! For the driver (crate `cluster`):
//! - [`Dlm::new`], an [`Event::NodeUp`] for every node that heartbeat sees and that is connected, then [`Dlm::join`].
//! - After **every** call of a method that changes something, all of [`Dlm::actions`] are carried out, in their order.
//! - Messages whose domain is unknown are answered with [`answer_without_domain`].
//! - What the network has to promise is said at [`Event`].
//!
//! For the file system: [`Dlm::lock`], [`Dlm::convert`], [`Dlm::unlock`], [`Dlm::cancel`]. A lock that is held and not
//! [`Action::Blocked`] can be used again and again without a word to the state machine. Names are the kernel's
//! ([`LockName`]), value blocks are [`Lvb`]s.
//!
//! To see what it does: [`Dlm::resources`].
#![forbid(unsafe_code)]

mod advance;
mod dlm;
mod event;
mod inspect;
mod join;
mod lead;
mod limits;
mod locker;
mod lvb;
mod master;
mod mastery;
mod migrate;
mod mode;
mod name;
mod node;
mod recovery;
mod resource;
mod table;
pub mod wire;

pub use dlm::{Dlm, State};
pub use event::{Action, CallId, Config, Event, JoinError, Timer};
pub use inspect::{Activity, LockView, ResourceView};
pub use join::answer_without_domain;
pub use locker::{LockError, LockId};
pub use lvb::Lvb;
pub use mode::Mode;
pub use name::{BadName, DomainName, LockName};
pub use node::{NodeNr, NodeSet};
