//! What goes into the state machine and what comes out of it.
//!
//! The loop that drives it belongs to the crate `cluster`: frames and the news of heartbeat become [`Event`]s, [`Action`]s
//! become frames, timers, and calls into the file system.

use crate::wire::{Message, Version};
use crate::{DomainName, LockId, LockName, Lvb, Mode, NodeNr, NodeSet};

/// Names one message that was sent, so that its reply finds back. Never reused while its reply can still come.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CallId(pub u64);

/// A timer that was asked for. Its owner only hands it back; one that comes too late, or twice, does no harm.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Timer(pub(crate) TimerKind);

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum TimerKind {
    /// Makes a request again that was answered "not now".
    Op { cookie: u64 },
    /// Asks a node again that could not say who the master is.
    Vote {
        name: LockName,
        round: u64,
        node: NodeNr,
    },
    /// Nobody announced itself after a vote.
    VoteStalled { name: LockName, round: u64 },
    /// Asks again whether the old master of `$RECOVERY` is known to be dead.
    Requery { name: LockName, round: u64 },
    /// Looks for resources that nobody uses.
    Sweep,
    /// Tries to join once more.
    Join { attempt: u32 },
    /// Tells a member once more that we have joined.
    AssertJoined { attempt: u32, node: NodeNr },
    /// Tries once more to become recovery master.
    Elect { attempt: u64 },
    /// Sends a step of the recovery to a node once more.
    Lead { step: u64, node: NodeNr },
    /// Tries once more to give resources away.
    Leave,
}

/// What happens to a node of the domain.
///
/// The driver keeps these promises, on which everything rests:
/// - Between two nodes messages and replies arrive in the order in which they were sent, or not at all.
/// - A message gets its [`Event::Reply`] or [`Event::NoHandler`], or the [`Event::NodeDown`] of the node that it went to. A
///   connection that is lost with messages under way must therefore end in the death of one of the two nodes (the quorum
///   rule decides whose): it is not mended in silence.
/// - After the [`Event::NodeDown`] of a node nothing of its old life arrives any more. Its new life begins with an
///   [`Event::NodeUp`].
/// - Heartbeat tells of every death, to every node that lives; when, is its business.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// Heartbeat sees the node, and it is connected.
    NodeUp(NodeNr),
    /// Heartbeat says that the node is dead. Its disk writes have to be over: it has fenced itself, or was fenced.
    NodeDown(NodeNr),
    /// A message arrived. It is answered by an [`Action::Answer`] with the same `msg_num` in the same step.
    Request {
        /// Whose it is, as the connection says.
        from: NodeNr,
        /// The number in its frame.
        msg_num: u32,
        /// What it says.
        message: Message,
    },
    /// The answer to an [`Action::Send`].
    Reply {
        /// Who answers.
        from: NodeNr,
        /// What is answered.
        call: CallId,
        /// The status word of the frame.
        status: i32,
    },
    /// The node has no such domain (o2net's system status 1): it is not in it, or not any more.
    NoHandler {
        /// Who says so.
        from: NodeNr,
        /// What was asked.
        call: CallId,
    },
    /// A timer of [`Action::Timer`] is over.
    Timer(Timer),
}

/// What is to be done, in this order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Send a message, under the key [`Message::key`].
    Send {
        /// To whom.
        to: NodeNr,
        /// For the reply.
        call: CallId,
        /// What.
        message: Message,
    },
    /// Answer a message.
    Answer {
        /// To whom.
        to: NodeNr,
        /// The number in the frame that is answered.
        msg_num: u32,
        /// The status word.
        status: i32,
    },
    /// Hand `timer` back after about `after_ms` milliseconds.
    Timer {
        /// How long.
        after_ms: u32,
        /// What.
        timer: Timer,
    },
    /// A lock has the mode that was asked for (the AST of [`crate::Dlm::lock`] and [`crate::Dlm::convert`]).
    Granted {
        /// Which lock.
        lock: LockId,
        /// The mode that it has now.
        mode: Mode,
        /// The value block, if it was wanted. [`Lvb::EMPTY`] says nothing: it was never written, or is not known any more
        /// because a node died.
        lvb: Option<Lvb>,
    },
    /// A request is refused: it was not to wait. A new lock is gone, a converted one keeps its mode.
    Refused {
        /// Which lock.
        lock: LockId,
    },
    /// A lock keeps others waiting (its BAST). Said again only if a higher mode waits, or after the master has changed. The
    /// lock may have been lowered while this was on its way.
    Blocked {
        /// Which lock.
        lock: LockId,
        /// The mode that somebody wants.
        wanted: Mode,
    },
    /// A lock is given up, and forgotten.
    Unlocked {
        /// Which lock.
        lock: LockId,
    },
    /// A request that waited is withdrawn. A new lock is gone, a converted one keeps its mode. (A request that could not be
    /// withdrawn any more was [`Action::Granted`].)
    Cancelled {
        /// Which lock.
        lock: LockId,
    },
    /// We are in the domain, with these others; locks are served.
    Joined {
        /// All members, this node among them.
        members: NodeSet,
    },
    /// Joining is given up.
    JoinFailed(JoinError),
    /// We have left the domain. The state machine is of no use any more.
    Left,
    /// A node has joined the domain.
    MemberJoined(NodeNr),
    /// A node has left the domain in an orderly way.
    MemberLeft(NodeNr),
    /// A member died. The file system recovers its journal; it hears of the death before any lock is granted that stood
    /// in conflict with the dead node's.
    MemberDied(NodeNr),
    /// The dead node's locks are sorted out.
    Recovered(NodeNr),
    /// The other members hold this node for dead: it has to stop writing at once.
    Evicted {
        /// Who says so.
        by: NodeNr,
    },
}

/// Why a node did not get into a domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum JoinError {
    /// A member speaks another major version.
    #[error("node {0} speaks another version of the locking protocols")]
    Protocol(NodeNr),
    /// A member has other nodes in its configuration.
    #[error("node {0} has other nodes, addresses or ports in its cluster configuration")]
    Nodes(NodeNr),
    /// A member beats in other regions.
    #[error("node {0} beats in other heartbeat regions")]
    Regions(NodeNr),
    /// A reply that means nothing.
    #[error("node {node} answered {status} when it was asked to let us join")]
    Reply {
        /// Whose.
        node: NodeNr,
        /// What it said.
        status: i32,
    },
    /// It took too long.
    #[error("the members did not let us join in {0} ms")]
    TimedOut(u32),
}

/// What a node has to know to take part in a domain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// This node.
    pub me: NodeNr,
    /// Which domain: the volume's UUID.
    pub domain: DomainName,
    /// The version between lock managers; [`crate::wire::DLM_VERSION`].
    pub dlm: Version,
    /// The version of the locking protocol above; [`crate::wire::FS_VERSION`].
    pub fs: Version,
    /// Every node of the configuration. Members compare it.
    pub nodes: Vec<crate::wire::NodeAddress>,
    /// The heartbeat regions in global mode, none in local mode. Members compare them.
    pub regions: Vec<crate::wire::RegionName>,
    /// Whether nodes with the kernel's driver may be in the domain. They remember whom they have seen asking for a resource
    /// and wait until its master announces itself to them; that takes messages which Ocelot's nodes can do without.
    pub kernel_peers: bool,
}
