//! The journal on simulated disks that hold real volumes, with the tools as judges.

mod behaviour;
mod crash;
mod foreign;
mod oracle;
mod small;
pub(crate) mod volume;
