//! The o2cb stack in user space: `cluster.conf`, disk heartbeat, o2net, quorum, and fencing of the process.
//!
//! * [`conf`]: `/etc/ocfs2/cluster.conf`; [`timing`]: how often a node beats and how long silence is borne.
//! * [`heartbeat`], [`quorum`], [`net`]: the protocol, as machines without disks, sockets or clocks.
//! * [`member`]: the loop that feeds them, from `runtime`'s devices, network and host: a node's life in its cluster.
//! * [`domain`]: lock domains over a member's connections, driven by `dlm`'s state machine.
//! * [`lease`]: the right to touch shared disks. A node that loses its disk or its quorum loses that, and nothing else of
//!   the machine it runs on is harmed.
#![forbid(unsafe_code)]

pub mod conf;
pub mod domain;
pub mod heartbeat;
pub mod lease;
pub mod limits;
pub mod member;
pub mod net;
pub mod quorum;
mod signal;
pub mod timing;

pub use conf::{ClusterConf, ClusterDef, ConfError, HeartbeatMode, NodeDef, RegionName};
pub use dlm::{NodeNr, NodeSet};
pub use domain::{Domain, DomainError, Domains, Notice};
pub use lease::{Fence, Lease};
pub use member::{JoinError, Member, MemberConfig, RegionPlace};
pub use net::SendError;
pub use timing::{Timing, TimingError};
