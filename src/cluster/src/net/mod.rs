//! o2net: messages between the nodes of a cluster over TCP.
//!
//! * [`frame`]: bytes and their meaning: the handshake, the 24-byte header, taking a stream apart.
//! * `session`: what two nodes have to say to each other; between Ocelot nodes it outlives a connection.
//! * [`mesh`]: who connects to whom, when a connection counts as lost, what is sent again; a machine without sockets.

pub mod frame;
pub mod mesh;
mod session;

pub use frame::{Decoder, Frame, FrameError, Handshake, Item, Kind, Mismatch, SystemStatus};
pub use mesh::{Action, ConnId, Event, Mesh, MeshConfig, Refusal, ReplyTo, SendError};
