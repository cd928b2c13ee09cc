//! Times, in milliseconds, and counts.

/// Between two looks for unused resources.
pub(crate) const SWEEP_MS: u32 = 4000;
/// Looks that have to find a resource unused before it is forgotten. (The kernel forgets after 8 s.)
pub(crate) const SWEEPS: u8 = 2;
/// Until a request is made again that met a resource on the move.
pub(crate) const RETRY_MS: u32 = 20;
/// Until a node is asked again who the master is.
pub(crate) const VOTE_RETRY_MS: u32 = 50;
/// Until a vote is taken again whose winner keeps silent. It has no business to.
pub(crate) const VOTE_STALLED_MS: u32 = 2000;
/// Until others are asked again whether they know that `$RECOVERY`'s master is dead.
pub(crate) const REQUERY_MS: u32 = 100;
/// Until a join that was refused is tried again; times 1 to 4.
pub(crate) const JOIN_RETRY_MS: u32 = 200;
/// Until joining is given up.
pub(crate) const JOIN_TIMEOUT_MS: u32 = 90_000;
/// Until this node tries again to lead a recovery that nobody leads.
pub(crate) const ELECT_MS: u32 = 300;
/// Until a step of a recovery is sent again to a node that was not ready.
pub(crate) const LEAD_RETRY_MS: u32 = 50;
/// Until a resource is offered to another node when nobody would have it.
pub(crate) const LEAVE_RETRY_MS: u32 = 100;
/// Resources that move away at once.
pub(crate) const MOVES_AT_ONCE: usize = 32;
