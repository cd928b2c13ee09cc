//! A node's life in its cluster, from joining to leaving or being fenced: the loop that feeds the machines (`heartbeat`,
//! `quorum`, `net::mesh`) from disks, network and clock, and does what they say.
//!
//! ```text
//! join ── beat until steady, connect to all that live ──► member ── leave ──────────────► gone
//!                                                           │                              ▲
//!                                                           └─ disk or quorum lost: fenced ┘
//! ```
//! A life that is over is over: its lease never comes back, its connections are closed, its calls answered with
//! [`SendError::Stopped`]. Whoever wants to be a member again joins again, see [`supervise`].

mod conn;
mod core;
mod place;
mod supervise;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use dlm::{NodeNr, NodeSet};
use futures_util::future::{Either, select};
use runtime::{Host, LocalFuture, NetError, Network};

use crate::conf::ClusterDef;
use crate::heartbeat::RegionId;
use crate::lease::{Fence, Lease};
use crate::net::{Mesh, MeshConfig, ReplyTo, SendError, SystemStatus};
use crate::timing::{Timing, TimingError};
use core::{Core, Input};
pub use place::RegionPlace;
pub use supervise::{After, Owner, supervise};

/// What a node needs to know to join.
#[derive(Clone)]
pub struct MemberConfig {
    pub cluster: ClusterDef,
    /// This node's number.
    pub node: NodeNr,
    pub timing: Timing,
    /// Where to beat: the volume's region in local mode, those of the file in global mode.
    pub regions: Vec<RegionPlace>,
    /// No earlier process of this node can still write (its lock file is ours, its machine was restarted): a start after a
    /// crash need not wait for the end of its lease.
    pub old_life_is_over: bool,
    /// The kernel's rule for a device that nobody can reach: once all nodes that live have said so, everybody waits anew
    /// (see `heartbeat::negotiate`). It keeps kernel nodes from resetting themselves, so it is for clusters that have some.
    /// It cannot know of a node that starts meanwhile and *can* reach the device; without it a node whose heartbeat hangs
    /// stops in time whatever the others say, and joins again when the device is back.
    pub outlast_outages: bool,
    /// Behave as a kernel node on the network: no sessions that outlive a connection.
    pub like_the_kernel: bool,
}

/// Why a node is no member.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    #[error("node {0} is not in the cluster's configuration")]
    NotConfigured(NodeNr),
    #[error(transparent)]
    Timing(#[from] TimingError),
    #[error("no heartbeat region")]
    NoRegion,
    #[error("region {0} has no block for every node, or reaches beyond its device")]
    Region(crate::RegionName),
    #[error("cannot listen: {0}")]
    Listen(#[from] NetError),
    #[error("region {name} does not become steady{}", if *.slot_taken { ": another node beats under this one's number" } else { "" })]
    Unsteady {
        name: crate::RegionName,
        slot_taken: bool,
    },
    #[error("nodes {missing:?} beat, but cannot be talked to")]
    NotConnected { missing: NodeSet },
    #[error("fenced while joining: {0}")]
    Fenced(Fence),
}

/// What a life tells, in the order in which it happened, from inside its loop: calls made from here are done after the
/// call returns.
pub trait Observer {
    /// A node beats.
    fn node_up(&self, _node: NodeNr) {}
    /// A node is dead, or has left; nothing that it said before counts any more.
    fn node_down(&self, _node: NodeNr) {}
    /// Messages pass.
    fn connected(&self, _node: NodeNr) {}
    /// Messages wait: the connection broke, or is silent.
    fn disconnected(&self, _node: NodeNr) {}
    /// This node touches no shared disk any more.
    fn fenced(&self, _fence: &Fence) {}
}

/// Takes the messages of one key. It must answer each once, now or later.
pub trait Handler {
    fn message(&self, from: NodeNr, msg_type: u16, payload: Vec<u8>, answer: Answer);
}

/// The right to answer a message. Dropped unused, it answers that there is no handler.
pub struct Answer {
    core: Rc<Core>,
    to: ReplyTo,
    used: Cell<bool>,
}

impl Answer {
    pub fn status(self, status: i32) {
        self.give(SystemStatus::None, status);
    }

    /// The payload is longer than such a message's can be.
    pub fn overflow(self) {
        self.give(SystemStatus::Overflow, 0);
    }

    fn give(&self, system: SystemStatus, status: i32) {
        self.used.set(true);
        let to = self.to;
        self.core.input(Input::Reply { to, system, status });
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if !self.used.get() {
            self.give(SystemStatus::NoHandler, 0);
        }
    }
}

/// A node as others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Nodes that beat, this one among them.
    pub up: NodeSet,
    /// Those of them that messages pass to and from, this one among them.
    pub reachable: NodeSet,
    pub lease_until: Duration,
    pub fence: Option<Fence>,
    /// Messages without an answer, for each node that has any.
    pub waiting: BTreeMap<NodeNr, usize>,
}

/// A member's handle to its life; clones are the same one.
#[derive(Clone)]
pub struct Member {
    core: Rc<Core>,
}

impl Member {
    /// Joins: beats until everybody has been seen, connects to all of them, and becomes a member. `observers` hear of
    /// everything from the start.
    ///
    /// # Errors
    /// Why not. Nothing of the attempt is left behind then but a block that says that this node is gone.
    pub async fn join(
        config: MemberConfig,
        host: Rc<dyn Host>,
        network: Rc<dyn Network>,
        observers: Vec<Rc<dyn Observer>>,
    ) -> Result<Member, JoinError> {
        let local = check(&config)?;
        let listener = network.listen(local).await?;
        let peers = config.cluster.nodes.iter();
        let peers: BTreeMap<_, _> = peers
            .map(|node| (node.number, *node.address.ip()))
            .collect();
        let incarnation = (!config.like_the_kernel).then(|| host.random() as u32);
        let mesh = Mesh::new(MeshConfig {
            node: config.node,
            timing: config.timing,
            peers,
            incarnation,
        });
        let core = Core::new(config, host, network, mesh, observers);
        core.start(listener);
        let member = Member { core };
        match member.wait_to_join().await {
            Ok(()) => Ok(member),
            Err(error) => {
                member.end(Fence::Left).await;
                Err(error)
            }
        }
    }

    async fn wait_to_join(&self) -> Result<(), JoinError> {
        let core = &self.core;
        core.changed.wait_until(|| core.all_steady()).await?;
        let all =
            core.changed
                .wait_until(|| match (core.lease.fence(), core.missing().is_empty()) {
                    (Some(fence), _) => Some(Err(JoinError::Fenced(fence))),
                    (None, true) => Some(Ok(())),
                    (None, false) => None,
                });
        let patience = core.host.sleep(core.config.timing.join);
        match select(std::pin::pin!(all), patience).await {
            Either::Left((result, _)) => result,
            Either::Right(_) => {
                let missing = core.missing();
                Err(JoinError::NotConnected { missing })
            }
        }
    }

    pub fn node(&self) -> NodeNr {
        self.core.config.node
    }

    pub fn config(&self) -> &MemberConfig {
        &self.core.config
    }

    pub fn host(&self) -> Rc<dyn Host> {
        self.core.host.clone()
    }

    /// The right to touch shared disks.
    pub fn lease(&self) -> Lease {
        self.core.lease.clone()
    }

    pub fn status(&self) -> Status {
        self.core.status()
    }

    /// Gives the messages with this key to `handler`, from now on.
    pub fn handle(&self, key: u32, handler: Rc<dyn Handler>) {
        self.core.handlers.borrow_mut().insert(key, handler);
    }

    pub fn stop_handling(&self, key: u32) {
        let handler = self.core.handlers.borrow_mut().remove(&key);
        drop(handler);
    }

    pub fn observe(&self, observer: Rc<dyn Observer>) {
        self.core.observers.borrow_mut().push(observer);
    }

    /// Sends a message; `done` is called with the handler's word, or why there is none, from inside the loop.
    pub fn send(
        &self,
        to: NodeNr,
        msg_type: u16,
        key: u32,
        payload: Vec<u8>,
        done: impl FnOnce(Result<i32, SendError>) + 'static,
    ) {
        self.core.send(to, msg_type, key, payload, Box::new(done));
    }

    /// Sends a message and waits for the answer.
    pub fn call(
        &self,
        to: NodeNr,
        msg_type: u16,
        key: u32,
        payload: Vec<u8>,
    ) -> LocalFuture<Result<i32, SendError>> {
        let answer = Rc::new((Cell::new(None), crate::signal::Signal::default()));
        let put = answer.clone();
        self.send(to, msg_type, key, payload, move |result| {
            put.0.set(Some(result));
            put.1.set();
        });
        Box::pin(async move { answer.1.wait_until(|| answer.0.get()).await })
    }

    /// Stops this node: a part of it found that it must not go on.
    pub fn fault(&self, why: impl Into<String>) {
        self.core.input(Input::Fence(Fence::Fault(why.into())));
    }

    /// Ready when the life is over, with the reason.
    pub async fn ended(&self) -> Fence {
        let core = self.core.clone();
        core.changed.wait_until(|| core.lease.fence()).await
    }

    /// Leaves in order. Whatever used the disks must have ended before: the others take this node for gone at once.
    pub async fn leave(&self) {
        self.end(Fence::Left).await;
    }

    /// After a fence: nothing of this node uses shared disks any more, and every request has come back. Tells the others
    /// on disk, so that they need not wait until silence proves it.
    pub async fn resign(&self) {
        self.end(Fence::Left).await;
    }

    async fn end(&self, fence: Fence) {
        self.core.input(Input::Fence(fence));
        self.core.farewell().await;
    }

    /// Beats in one more region (the volume that is mounted next, in local mode); ready when that is steady.
    ///
    /// # Errors
    /// When it does not become steady, or the life ends.
    pub async fn add_region(&self, place: RegionPlace) -> Result<RegionId, JoinError> {
        let nodes = self.core.nodes();
        if !place.holds(nodes) {
            return Err(JoinError::Region(place.name));
        }
        let id = self.core.add_region(place);
        let core = &self.core;
        core.changed.wait_until(|| core.region_start(id)).await?;
        Ok(id)
    }

    /// Stops beating in a region, after a last block that says so.
    pub async fn remove_region(&self, id: RegionId) {
        self.core.remove_region(id).await;
    }
}

/// What can be wrong before anything starts; the address to listen at.
fn check(config: &MemberConfig) -> Result<SocketAddr, JoinError> {
    config.timing.check()?;
    let own = config.cluster.node(config.node);
    let own = own.ok_or(JoinError::NotConfigured(config.node))?;
    if config.regions.is_empty() {
        return Err(JoinError::NoRegion);
    }
    let nodes = config
        .cluster
        .nodes
        .iter()
        .map(|node| node.number)
        .collect();
    if let Some(place) = config.regions.iter().find(|place| !place.holds(nodes)) {
        return Err(JoinError::Region(place.name));
    }
    Ok(SocketAddr::V4(own.address))
}

fn ipv4(address: SocketAddr) -> Ipv4Addr {
    match address.ip() {
        IpAddr::V4(address) => address,
        // No node has such an address.
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    }
}
