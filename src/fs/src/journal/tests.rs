//! The journal on simulated disks that hold real volumes, with the tools as judges.

mod behaviour;
mod crash;
mod oracle;
mod volume;
