//! The o2cb stack in user space: `cluster.conf`, disk heartbeat, o2net, quorum, and fencing of the process.
#![forbid(unsafe_code)]

pub mod conf;
pub mod limits;
pub mod net;
pub mod timing;

pub use conf::{ClusterConf, ClusterDef, ConfError, HeartbeatMode, NodeDef, RegionName};
pub use dlm::{NodeNr, NodeSet};
pub use timing::{Timing, TimingError};
