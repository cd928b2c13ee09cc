//! The messages of o2dlm: payloads as typed values and back, and what their replies mean.
//!
//! A message is a frame of o2net: 24 bytes of header (crate `cluster`'s) and a payload (ours), whose kind is told by the
//! header's message type ([`MsgType`]) and whose domain by its key ([`Message::key`]). Every message is answered by one
//! status word ([`reply`]).
//!
//! [`decode`] believes nothing: a payload whose lengths, names, counts, modes or node numbers cannot be is an
//! [`WireError`], whoever sent it. Padding is not looked at and is sent as zero.

mod codec;
mod error;
mod message;
mod raw;
pub mod reply;

pub use codec::decode;
pub use error::WireError;
pub use message::{
    AssertFlags, AstKind, FinalizeFlags, LockFlags, Message, MigFlags, MigLock, MigLockres,
    MsgType, NodeAddress, Queue, RecordFlags, RegionName, Version,
};

/// The key of the messages about joining, which reach nodes that may not know the domain: 510, 511, 512, 519, 520.
pub const JOIN_KEY: u32 = 0x666c_6172;
/// Lock records in one [`Message::MigLockres`] at most.
pub const MAX_RECORDS: usize = 240;
/// Heartbeat regions in one [`Message::QueryRegion`] at most.
pub const MAX_REGIONS: usize = 32;
/// The version of the protocol between lock managers that is spoken here. 1.1 brought 519 and 520, 1.2 brought 521, 1.3
/// brought 522.
pub const DLM_VERSION: Version = Version { major: 1, minor: 3 };
/// The version of the locking protocol of the file system above.
pub const FS_VERSION: Version = Version { major: 1, minor: 0 };
