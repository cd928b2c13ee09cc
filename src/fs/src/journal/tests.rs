//! The journal on simulated disks that hold real volumes, with the tools as judges.

mod oracle;
mod volume;
