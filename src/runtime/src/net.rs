//! The network, as the cluster sees it: listen, connect, and streams of owned bytes in order. A real
//! stack implements it in production, the simulated network in tests; `net_contract` tells whether
//! one may be used.
//!
//! Futures here borrow nothing, so they can be spawned, raced and dropped. **A receive that is
//! dropped before it was ready has taken nothing**; a send that is dropped may have sent all, a
//! part, or nothing, so whoever drops one must give up the stream.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use crate::host::LocalFuture;

/// What was attempted when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NetOp {
    Listen,
    Accept,
    Connect,
    Send,
    Receive,
}

impl NetOp {
    pub fn name(self) -> &'static str {
        match self {
            NetOp::Listen => "listen at",
            NetOp::Accept => "accept at",
            NetOp::Connect => "connect to",
            NetOp::Send => "send to",
            NetOp::Receive => "receive from",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NetErrorKind {
    /// Nobody listens there.
    Refused,
    /// No answer in time, or no way to get there.
    Unreachable,
    /// The connection broke: what was sent last may or may not have arrived.
    Reset,
    /// This side has closed it.
    Closed,
    /// Somebody listens there already.
    AddressInUse,
    /// The local address is not one of this node's.
    AddressNotAvailable,
    /// Whatever else the stack says.
    Failed,
}

/// A failed operation: what was attempted, with whom, and why it failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} {address}: {kind:?}: {detail}", op.name())]
pub struct NetError {
    pub op: NetOp,
    /// The peer's; for a listener its own.
    pub address: SocketAddr,
    pub kind: NetErrorKind,
    pub detail: String,
}

/// A node's way into the network.
pub trait Network {
    /// Starts to listen at `local`. Connections that come in wait until they are accepted, up to a
    /// bound of the stack's.
    fn listen(&self, local: SocketAddr) -> LocalFuture<Result<Rc<dyn Listener>, NetError>>;

    /// Opens a connection from `local` (any port of it) to `remote`.
    fn connect(
        &self,
        local: IpAddr,
        remote: SocketAddr,
    ) -> LocalFuture<Result<Rc<dyn Stream>, NetError>>;
}

/// Accepts connections; dropping it ends that.
pub trait Listener {
    fn local(&self) -> SocketAddr;

    /// The next connection. Dropping the future loses none.
    fn accept(&self) -> LocalFuture<Result<Rc<dyn Stream>, NetError>>;
}

/// A connection: bytes in order in both directions. Dropping the last handle closes it.
pub trait Stream {
    fn local(&self) -> SocketAddr;
    fn peer(&self) -> SocketAddr;

    /// The next bytes, 1 to `max` of them; none when the peer has closed its side and all it sent
    /// has been received. `max` is not zero.
    fn receive(&self, max: usize) -> LocalFuture<Result<Vec<u8>, NetError>>;

    /// Ready when the stack has taken all of `bytes`, which says nothing of their arrival. Sends
    /// are in the order of the calls. The stack takes a bounded number of bytes that the peer has not
    /// received; beyond it the future waits.
    fn send(&self, bytes: Vec<u8>) -> LocalFuture<Result<(), NetError>>;

    /// Ends the connection in order: the peer still receives what the stack has taken, then the
    /// end. Operations of this side fail with [`NetErrorKind::Closed`] from now on, also those that
    /// wait.
    fn close(&self);
}
