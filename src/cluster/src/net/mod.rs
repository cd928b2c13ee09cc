//! o2net: messages between the nodes of a cluster over TCP.
//!
//! * [`frame`]: bytes and their meaning: the handshake, the 24-byte header, taking a stream apart.

pub mod frame;

pub use frame::{Decoder, Frame, FrameError, Handshake, Item, Kind, Mismatch, SystemStatus};
