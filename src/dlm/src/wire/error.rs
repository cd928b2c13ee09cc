//! Why a payload is none.

use super::MsgType;
use crate::BadName;

/// What is wrong with a payload. It is dropped; nothing of it was believed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WireError {
    /// No message of o2dlm has this number.
    #[error("no o2dlm message has the number {0}")]
    UnknownType(u16),
    /// The payload's length is not the one that its type and its own counts ask for.
    #[error("{msg}: payload of {length} bytes where {expected} belong")]
    Length {
        /// Which message.
        msg: MsgType,
        /// Bytes there are.
        length: usize,
        /// Bytes there have to be.
        expected: usize,
    },
    /// A name that is empty or longer than its field allows.
    #[error("{msg}: {source}")]
    Name {
        /// Which message.
        msg: MsgType,
        /// What is wrong.
        source: BadName,
    },
    /// A field holds what it cannot hold.
    #[error("{msg}: {field} is {value}")]
    Value {
        /// Which message.
        msg: MsgType,
        /// Which field.
        field: &'static str,
        /// What is in it.
        value: i64,
    },
}
