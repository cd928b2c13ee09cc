//! Every bound of this crate.

/// Messages to one peer that wait for their answers.
pub const WINDOW: usize = 256;
/// Messages to one peer that wait to be sent, beyond the window.
pub const QUEUED_MESSAGES: usize = 65_536;
/// Bytes on their way out on one connection above which nothing more is read from it: a peer that takes no answers may
/// not ask.
pub const OUTGOING_BYTES: usize = 1 << 20;
/// Bytes read from a connection at once.
pub const RECEIVE_BYTES: usize = 64 << 10;
