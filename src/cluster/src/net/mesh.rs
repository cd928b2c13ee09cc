//! The connections of one node to all others: who connects to whom, when one counts as lost, and what happens to the
//! messages. A machine: it is told what sockets, clock and heartbeat did, and says what to do.
//!
//! The higher number connects, and only to nodes that beat. A connection is *valid* once both have greeted each other and
//! agree on their time-outs; quorum is told when it becomes so and when it is lost, by an error or by silence. A silent
//! connection is kept: if it comes back before quorum decides, nothing has happened.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use dlm::NodeNr;

use super::frame::{
    Decoder, Frame, FrameError, Handshake, Item, KERNEL_CONNECTOR, Kind, MAX_PAYLOAD, Mismatch,
    OCELOT_MARK, SystemStatus,
};
use super::session::{Peer, Session};
use crate::timing::Timing;

/// Names a connection; the driver chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// Who a node is, and who the others are.
#[derive(Debug, Clone)]
pub struct MeshConfig {
    pub node: NodeNr,
    pub timing: Timing,
    /// All nodes of the cluster and where they are.
    pub peers: BTreeMap<NodeNr, Ipv4Addr>,
    /// Drawn at every start. `None`: behave as a kernel node, without sessions.
    pub incarnation: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Heartbeat says that the node lives.
    Up(NodeNr),
    Down(NodeNr),
    /// A connection came in.
    Accepted {
        conn: ConnId,
        from: Ipv4Addr,
    },
    /// What [`Action::Connect`] asked for.
    Connected {
        peer: NodeNr,
        attempt: u64,
        conn: ConnId,
    },
    ConnectFailed {
        peer: NodeNr,
        attempt: u64,
    },
    Received {
        conn: ConnId,
        bytes: Vec<u8>,
    },
    /// The connection ended or broke.
    Broken(ConnId),
    /// Say this to the peer; the answer comes as [`Action::Answered`] with the tag.
    Send {
        to: NodeNr,
        tag: u64,
        msg_type: u16,
        key: u32,
        payload: Vec<u8>,
    },
    /// The answer to an [`Action::Deliver`].
    Reply {
        to: ReplyTo,
        system: SystemStatus,
        status: i32,
    },
    /// Look at the clock.
    Timer,
    /// This node stops: end everything, and answer every message that waits with an error.
    Stop,
}

/// Which message an answer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplyTo {
    pub peer: NodeNr,
    msg_type: u16,
    key: u32,
    number: u32,
    session: u64,
    conn: ConnId,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Connect {
        peer: NodeNr,
        attempt: u64,
    },
    Write(ConnId, Vec<u8>),
    /// End it; nothing that still comes from it counts.
    Close(ConnId),
    /// For quorum.
    Connected(NodeNr),
    Disconnected(NodeNr),
    StillUp(NodeNr),
    /// A message for its handler, which must answer it once.
    Deliver {
        from: NodeNr,
        msg_type: u16,
        key: u32,
        payload: Vec<u8>,
        reply: ReplyTo,
    },
    /// The peer took this node for dead, and forgot what they had to say to each other: this node must stop.
    Evicted(NodeNr),
    /// What became of a message.
    Answered {
        to: NodeNr,
        tag: u64,
        result: Result<i32, SendError>,
    },
    /// For the log.
    Refused(Refusal),
}

/// Why a message has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Never sent: the node does not beat, is no node, or is this one.
    #[error("the node is down")]
    Down,
    /// It may have been handled or not.
    #[error("the node died, or (a kernel node) its connection broke")]
    Died,
    #[error("too many messages wait for the node")]
    Backlog,
    #[error("the message is longer than {MAX_PAYLOAD} bytes")]
    TooLong,
    #[error("the node has no handler for it")]
    NoHandler,
    #[error("the node's handler takes no message that long")]
    Overflow,
    #[error("this node has stopped")]
    Stopped,
}

/// Why a connection was not taken, or ended by this node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("{0} is no node's address")]
    Stranger(Ipv4Addr),
    #[error("node {0} connects, but it is this node that connects to it")]
    Direction(NodeNr),
    #[error("node {0} connects, but is not known to beat yet")]
    NotUp(NodeNr),
    #[error("node {0}: {1}")]
    Mismatch(NodeNr, Mismatch),
    #[error("node {0} has started anew, and its old life is not over yet")]
    OldLife(NodeNr),
    #[error("node {0} sends what is no message: {1}")]
    Frame(NodeNr, FrameError),
    #[error("node {0} resumes another session")]
    Session(NodeNr),
    #[error("node {0} does not greet")]
    Mute(NodeNr),
}

#[derive(Debug)]
enum Link {
    None,
    Connecting,
    Open(Open),
}

#[derive(Debug)]
struct Open {
    conn: ConnId,
    decoder: Decoder,
    /// Both have greeted each other, and an Ocelot node has said what it had of the session.
    valid: bool,
    last_heard: Duration,
    /// When to ask for a sign.
    keepalive_at: Duration,
    /// It has been silent too long, and quorum knows.
    silent: bool,
}

#[derive(Debug)]
struct PeerState {
    up: bool,
    link: Link,
    attempt: u64,
    connect_at: Option<Duration>,
    /// It said something that cannot work with this node: not before it has started anew.
    refused: bool,
    /// Quorum has been told of a connection.
    connected: bool,
    still_up_at: Option<Duration>,
    session: Session,
    session_number: u64,
}

/// The state of a node's connections.
#[derive(Debug)]
pub struct Mesh {
    config: MeshConfig,
    handshake: Handshake,
    peers: BTreeMap<NodeNr, PeerState>,
    owners: BTreeMap<ConnId, NodeNr>,
    next_session: u64,
    stopped: bool,
}

impl Mesh {
    pub fn new(config: MeshConfig) -> Self {
        let connector = match config.incarnation {
            Some(incarnation) => u64::from(OCELOT_MARK) << 32 | u64::from(incarnation),
            None => KERNEL_CONNECTOR,
        };
        let handshake = Handshake::new(&config.timing, connector);
        let others = config.peers.keys().filter(|node| **node != config.node);
        let peers = others.enumerate().map(|(index, node)| {
            let state = PeerState {
                up: false,
                link: Link::None,
                attempt: 0,
                connect_at: None,
                refused: false,
                connected: false,
                still_up_at: None,
                session: Session::new(),
                session_number: index as u64,
            };
            (*node, state)
        });
        let peers: BTreeMap<_, _> = peers.collect();
        Mesh {
            handshake,
            next_session: peers.len() as u64,
            peers,
            config,
            owners: BTreeMap::new(),
            stopped: false,
        }
    }

    /// Whether messages pass between this node and the peer.
    pub fn is_connected(&self, peer: NodeNr) -> bool {
        self.peers.get(&peer).is_some_and(|peer| peer.connected)
    }

    /// Messages to the peer that have no answer yet.
    pub fn waiting(&self, peer: NodeNr) -> usize {
        self.peers
            .get(&peer)
            .map_or(0, |peer| peer.session.waiting())
    }

    /// When [`Event::Timer`] is due.
    pub fn next_timer(&self) -> Option<Duration> {
        let timing = &self.config.timing;
        let due = self.peers.values().flat_map(|peer| {
            let open = match &peer.link {
                Link::Open(open) if open.valid && !open.silent => {
                    Some(open.keepalive_at.min(open.last_heard + timing.idle))
                }
                Link::Open(open) if open.valid => Some(open.keepalive_at),
                Link::Open(open) => Some(open.last_heard + timing.idle),
                Link::None | Link::Connecting => None,
            };
            [peer.connect_at, peer.still_up_at, open]
        });
        due.flatten().min()
    }

    pub fn step(&mut self, now: Duration, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.stopped {
            return self.refuse_all(event);
        }
        match event {
            Event::Up(node) => self.up(now, node),
            Event::Down(node) => self.down(node, &mut actions),
            Event::Accepted { conn, from } => self.accepted(now, conn, from, &mut actions),
            Event::Connected {
                peer,
                attempt,
                conn,
            } => self.connected(now, peer, attempt, conn, &mut actions),
            Event::ConnectFailed { peer, attempt } => {
                if let Some(state) = self.peers.get_mut(&peer)
                    && matches!(state.link, Link::Connecting)
                    && state.attempt == attempt
                {
                    state.link = Link::None;
                    state.connect_at = Some(now + self.config.timing.reconnect);
                }
            }
            Event::Received { conn, bytes } => self.received(now, conn, &bytes, &mut actions),
            Event::Broken(conn) => {
                if let Some(peer) = self.owners.get(&conn).copied() {
                    self.lose_link(now, peer, &mut actions);
                }
            }
            Event::Send {
                to,
                tag,
                msg_type,
                key,
                payload,
            } => self.send(to, tag, (msg_type, key, payload), &mut actions),
            Event::Reply { to, system, status } => self.reply(to, system, status, &mut actions),
            Event::Timer => {}
            Event::Stop => self.stop(&mut actions),
        }
        self.timers(now, &mut actions);
        actions
    }

    fn refuse_all(&self, event: Event) -> Vec<Action> {
        match event {
            Event::Accepted { conn, .. } | Event::Connected { conn, .. } => {
                vec![Action::Close(conn)]
            }
            Event::Send { to, tag, .. } => {
                let result = Err(SendError::Stopped);
                vec![Action::Answered { to, tag, result }]
            }
            _ => Vec::new(),
        }
    }

    /// Whether this node is the one that connects.
    fn connects(&self, peer: NodeNr) -> bool {
        self.config.node > peer
    }

    fn up(&mut self, now: Duration, node: NodeNr) {
        let connects = self.connects(node);
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.up = true;
            peer.refused = false;
            if connects && matches!(peer.link, Link::None) {
                peer.connect_at = Some(now);
            }
        }
    }

    fn down(&mut self, node: NodeNr, actions: &mut Vec<Action>) {
        let number = self.next_session;
        let Some(peer) = self.peers.get_mut(&node) else {
            return;
        };
        self.next_session += 1;
        peer.up = false;
        peer.connect_at = None;
        peer.still_up_at = None;
        peer.attempt += 1;
        peer.session_number = number;
        if let Link::Open(open) = std::mem::replace(&mut peer.link, Link::None) {
            self.owners.remove(&open.conn);
            actions.push(Action::Close(open.conn));
        }
        if std::mem::take(&mut peer.connected) {
            actions.push(Action::Disconnected(node));
        }
        let session = std::mem::replace(&mut peer.session, Session::new());
        let died = |tag| Action::Answered {
            to: node,
            tag,
            result: Err(SendError::Died),
        };
        actions.extend(session.end().into_iter().map(died));
    }

    fn accepted(&mut self, now: Duration, conn: ConnId, from: Ipv4Addr, actions: &mut Vec<Action>) {
        let known = self
            .config
            .peers
            .iter()
            .find(|(_, address)| **address == from);
        let refusal = match known.map(|(node, _)| *node) {
            None => Some(Refusal::Stranger(from)),
            Some(node) if node <= self.config.node => Some(Refusal::Direction(node)),
            Some(node) if !self.peers.get(&node).is_some_and(|peer| peer.up) => {
                Some(Refusal::NotUp(node))
            }
            Some(node) => {
                // Whoever connects again has given up the connection that is there, whatever this side knows of it.
                if matches!(self.peers[&node].link, Link::Open(_)) {
                    self.lose_link(now, node, actions);
                }
                self.open(now, node, conn, actions);
                None
            }
        };
        if let Some(refusal) = refusal {
            actions.push(Action::Refused(refusal));
            actions.push(Action::Close(conn));
        }
    }

    fn connected(
        &mut self,
        now: Duration,
        node: NodeNr,
        attempt: u64,
        conn: ConnId,
        actions: &mut Vec<Action>,
    ) {
        let current = self.peers.get(&node).is_some_and(|peer| {
            matches!(peer.link, Link::Connecting) && peer.attempt == attempt && peer.up
        });
        match current {
            true => self.open(now, node, conn, actions),
            false => actions.push(Action::Close(conn)),
        }
    }

    /// A connection is there: greet.
    fn open(&mut self, now: Duration, node: NodeNr, conn: ConnId, actions: &mut Vec<Action>) {
        let keepalive = self.config.timing.keepalive;
        let Some(peer) = self.peers.get_mut(&node) else {
            return;
        };
        peer.connect_at = None;
        peer.link = Link::Open(Open {
            conn,
            decoder: Decoder::default(),
            valid: false,
            last_heard: now,
            keepalive_at: now + keepalive,
            silent: false,
        });
        self.owners.insert(conn, node);
        let greeting = self.handshake.encode().to_vec();
        actions.push(Action::Write(conn, greeting));
    }

    /// The connection is of no use any more.
    fn lose_link(&mut self, now: Duration, node: NodeNr, actions: &mut Vec<Action>) {
        let connects = self.connects(node);
        let timing = self.config.timing;
        let Some(peer) = self.peers.get_mut(&node) else {
            return;
        };
        let Link::Open(open) = std::mem::replace(&mut peer.link, Link::None) else {
            return;
        };
        self.owners.remove(&open.conn);
        actions.push(Action::Close(open.conn));
        if connects && peer.up && !peer.refused {
            peer.connect_at = Some(now + timing.reconnect);
        }
        if open.valid {
            peer.lost(node, now, &timing, actions);
            if peer.session.peer == Peer::Kernel {
                let lost = peer.session.take_unanswered();
                let died = |tag| Action::Answered {
                    to: node,
                    tag,
                    result: Err(SendError::Died),
                };
                actions.extend(lost.into_iter().map(died));
            }
        }
    }

    fn received(&mut self, now: Duration, conn: ConnId, bytes: &[u8], actions: &mut Vec<Action>) {
        let Some(node) = self.owners.get(&conn).copied() else {
            return;
        };
        let keepalive = self.config.timing.keepalive;
        let Some(PeerState {
            link: Link::Open(open),
            ..
        }) = self.peers.get_mut(&node)
        else {
            return;
        };
        open.last_heard = now;
        open.keepalive_at = now + keepalive;
        open.decoder.push(bytes);
        if open.valid && std::mem::take(&mut open.silent) {
            self.found(node, actions);
        }
        loop {
            // An item may end the connection.
            let Some(PeerState {
                link: Link::Open(open),
                ..
            }) = self.peers.get_mut(&node)
            else {
                return;
            };
            if open.conn != conn {
                return;
            }
            let refusal = match open.decoder.next_item() {
                Ok(None) => return,
                Ok(Some(Item::Handshake(theirs))) => self.greeted(node, conn, &theirs, actions),
                Ok(Some(Item::Frame(frame))) => self.frame(node, conn, frame, actions),
                Err(error) => Err(Refusal::Frame(node, error)),
            };
            if let Err(refusal) = refusal {
                if matches!(refusal, Refusal::Mismatch(..))
                    && let Some(peer) = self.peers.get_mut(&node)
                {
                    peer.refused = true;
                }
                actions.push(Action::Refused(refusal));
                self.lose_link(now, node, actions);
                return;
            }
        }
    }

    /// The peer's greeting.
    fn greeted(
        &mut self,
        node: NodeNr,
        conn: ConnId,
        theirs: &Handshake,
        actions: &mut Vec<Action>,
    ) -> Result<(), Refusal> {
        let agreed = self.handshake.accepts(theirs);
        agreed.map_err(|mismatch| Refusal::Mismatch(node, mismatch))?;
        // Without an incarnation of its own, this node behaves as the kernel does.
        let who = match theirs
            .incarnation()
            .filter(|_| self.config.incarnation.is_some())
        {
            Some(incarnation) => Peer::Ocelot(incarnation),
            None => Peer::Kernel,
        };
        let Some(peer) = self.peers.get_mut(&node) else {
            return Ok(());
        };
        if peer.session.peer != Peer::Unknown && peer.session.peer != who {
            return Err(Refusal::OldLife(node));
        }
        peer.session.peer = who;
        if who == Peer::Kernel {
            if let Link::Open(open) = &mut peer.link {
                open.valid = true;
            }
            self.found(node, actions);
        } else {
            let resume = peer.session.resume_frame().encode();
            actions.push(Action::Write(conn, resume));
        }
        Ok(())
    }

    /// An Ocelot node's first word after its greeting.
    fn resumed(
        &mut self,
        node: NodeNr,
        conn: ConnId,
        frame: &Frame,
        actions: &mut Vec<Action>,
    ) -> Result<(), Refusal> {
        let Some(peer) = self.peers.get_mut(&node) else {
            return Ok(());
        };
        let Some(again) = peer.session.resume(frame) else {
            // The peer knows nothing of a session that this node remembers: it took this node for dead.
            if !peer.session.is_fresh() && frame.key == OCELOT_MARK && frame.status == 0 {
                actions.push(Action::Evicted(node));
            }
            return Err(Refusal::Session(node));
        };
        if let Link::Open(open) = &mut peer.link {
            open.valid = true;
        }
        actions.extend(again.into_iter().map(|bytes| Action::Write(conn, bytes)));
        self.found(node, actions);
        Ok(())
    }

    /// The peer can be talked to (again).
    fn found(&mut self, node: NodeNr, actions: &mut Vec<Action>) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.still_up_at = None;
            if !std::mem::replace(&mut peer.connected, true) {
                actions.push(Action::Connected(node));
            }
            peer.pump(actions);
        }
    }

    fn frame(
        &mut self,
        node: NodeNr,
        conn: ConnId,
        frame: Frame,
        actions: &mut Vec<Action>,
    ) -> Result<(), Refusal> {
        let Some(peer) = self.peers.get_mut(&node) else {
            return Ok(());
        };
        if matches!(&peer.link, Link::Open(open) if !open.valid) {
            return self.resumed(node, conn, &frame, actions);
        }
        let counts = matches!(frame.kind, Kind::Message | Kind::Status);
        if counts && !peer.session.received(&frame) {
            return Err(Refusal::Session(node));
        }
        match frame.kind {
            Kind::KeepaliveRequest => {
                let response = Frame::keepalive(Kind::KeepaliveResponse).encode();
                actions.push(Action::Write(conn, response));
            }
            Kind::KeepaliveResponse => {}
            Kind::Status => {
                if let Some(tag) = peer.session.answered(frame.number) {
                    let result = match SystemStatus::from_wire(frame.system_status) {
                        SystemStatus::None => Ok(frame.status),
                        SystemStatus::NoHandler => Err(SendError::NoHandler),
                        SystemStatus::Overflow => Err(SendError::Overflow),
                    };
                    let to = node;
                    actions.push(Action::Answered { to, tag, result });
                    peer.pump(actions);
                }
            }
            Kind::Message => {
                let reply = ReplyTo {
                    peer: node,
                    msg_type: frame.msg_type,
                    key: frame.key,
                    number: frame.number,
                    session: peer.session_number,
                    conn,
                };
                actions.push(Action::Deliver {
                    from: node,
                    msg_type: frame.msg_type,
                    key: frame.key,
                    payload: frame.payload,
                    reply,
                });
            }
        }
        Ok(())
    }

    fn send(
        &mut self,
        to: NodeNr,
        tag: u64,
        (msg_type, key, payload): (u16, u32, Vec<u8>),
        actions: &mut Vec<Action>,
    ) {
        let refused = match self.peers.get_mut(&to).filter(|peer| peer.up) {
            None => Some(SendError::Down),
            Some(_) if payload.len() > MAX_PAYLOAD => Some(SendError::TooLong),
            Some(peer) => match peer.session.enqueue(tag, msg_type, key, payload) {
                false => Some(SendError::Backlog),
                true => {
                    peer.pump(actions);
                    None
                }
            },
        };
        if let Some(error) = refused {
            let result = Err(error);
            actions.push(Action::Answered { to, tag, result });
        }
    }

    fn reply(&mut self, to: ReplyTo, system: SystemStatus, status: i32, actions: &mut Vec<Action>) {
        let Some(peer) = self.peers.get_mut(&to.peer) else {
            return;
        };
        if peer.session_number != to.session {
            return; // the asker is dead
        }
        let message = (to.msg_type, to.key, to.number);
        let answer = Frame::status(message, system, status);
        match &peer.link {
            // A kernel node that connected anew has forgotten what it asked.
            Link::Open(open)
                if open.valid && (peer.session.peer != Peer::Kernel || open.conn == to.conn) =>
            {
                let bytes = peer.session.send(answer);
                actions.push(Action::Write(open.conn, bytes));
            }
            _ => peer.session.keep(answer),
        }
    }

    fn stop(&mut self, actions: &mut Vec<Action>) {
        self.stopped = true;
        self.owners.clear();
        for (node, peer) in &mut self.peers {
            if let Link::Open(open) = std::mem::replace(&mut peer.link, Link::None) {
                actions.push(Action::Close(open.conn));
            }
            peer.connected = false;
            peer.connect_at = None;
            peer.still_up_at = None;
            let session = std::mem::replace(&mut peer.session, Session::new());
            let stopped = |tag| Action::Answered {
                to: *node,
                tag,
                result: Err(SendError::Stopped),
            };
            actions.extend(session.end().into_iter().map(stopped));
        }
    }

    fn timers(&mut self, now: Duration, actions: &mut Vec<Action>) {
        let timing = self.config.timing;
        let due = |at: Option<Duration>| at.is_some_and(|at| at <= now);
        let mut mute = Vec::new();
        for (node, peer) in &mut self.peers {
            if due(peer.connect_at) {
                peer.connect_at = None;
                if peer.up && !peer.refused && matches!(peer.link, Link::None) {
                    peer.attempt += 1;
                    peer.link = Link::Connecting;
                    let (peer, attempt) = (*node, peer.attempt);
                    actions.push(Action::Connect { peer, attempt });
                }
            }
            if due(peer.still_up_at) {
                // Asked again as long as it lasts: others may have died meanwhile.
                peer.still_up_at = Some(now + timing.quorum_delay());
                actions.push(Action::StillUp(*node));
            }
            let mut silent = false;
            if let Link::Open(open) = &mut peer.link {
                let idle = now >= open.last_heard + timing.idle;
                if !open.valid {
                    if idle {
                        mute.push(*node);
                    }
                    continue;
                }
                if open.keepalive_at <= now {
                    open.keepalive_at = now + timing.keepalive;
                    let request = Frame::keepalive(Kind::KeepaliveRequest).encode();
                    actions.push(Action::Write(open.conn, request));
                }
                silent = idle && !std::mem::replace(&mut open.silent, idle);
            }
            if silent {
                peer.lost(*node, now, &timing, actions);
            }
        }
        for node in mute {
            actions.push(Action::Refused(Refusal::Mute(node)));
            self.lose_link(now, node, actions);
        }
    }
}

impl PeerState {
    /// Quorum hears that the peer cannot be talked to.
    fn lost(&mut self, node: NodeNr, now: Duration, timing: &Timing, actions: &mut Vec<Action>) {
        if std::mem::take(&mut self.connected) {
            actions.push(Action::Disconnected(node));
            self.still_up_at = Some(now + timing.quorum_delay());
        }
    }

    /// Sends what the window lets through.
    fn pump(&mut self, actions: &mut Vec<Action>) {
        let Link::Open(open) = &self.link else {
            return;
        };
        if !open.valid {
            return;
        }
        let conn = open.conn;
        while let Some(bytes) = self.session.next_to_send() {
            actions.push(Action::Write(conn, bytes));
        }
    }
}

#[cfg(test)]
#[path = "mesh_tests.rs"]
mod tests;
