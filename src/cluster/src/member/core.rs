//! The loop: inputs are queued and taken one by one, each goes through its machine, and what the machine wants is done or
//! becomes another input. Nothing here awaits; tasks around it do, and end with the life.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use dlm::{NodeNr, NodeSet};
use futures_util::future::select;
use runtime::{Host, Listener, Network, Stream};

use super::conn::Conn;
use super::{Answer, Handler, JoinError, MemberConfig, Observer, RegionPlace, Status, ipv4};
use crate::conf::HeartbeatMode;
use crate::heartbeat::negotiate::{self, APPROVE_MSG, Negotiation, TIMEOUT_MSG};
use crate::heartbeat::{self, Beat, Heartbeat, Reading, RegionId, region};
use crate::lease::{Fence, Lease};
use crate::net::mesh::ConnId;
use crate::net::{Action, Event, Mesh, ReplyTo, SendError, SystemStatus};
use crate::quorum::{self, Quorum};
use crate::signal::Signal;

/// The timer's resolution.
const TIMER_GRAIN: Duration = Duration::from_millis(1);

type Done = Box<dyn FnOnce(Result<i32, SendError>)>;

pub(super) enum Input {
    Mesh(Event),
    Reply {
        to: ReplyTo,
        system: SystemStatus,
        status: i32,
    },
    Read {
        region: RegionId,
        started: Duration,
        blocks: Option<BTreeMap<NodeNr, Reading>>,
    },
    Written {
        region: RegionId,
        started: Duration,
        good: bool,
    },
    Negotiate(RegionId, negotiate::Event),
    Timer,
    Fence(Fence),
}

/// How a region's start went.
#[derive(Clone)]
enum Start {
    Beating,
    Steady,
    Failed { slot_taken: bool },
}

struct RegionState {
    place: RegionPlace,
    start: Start,
    /// What the machine wants written in the beat that is under way.
    beat: Option<Beat>,
    negotiation: Negotiation,
    /// When to look again whether all have spoken.
    look_at: Option<Duration>,
    /// The write that hangs has been told of.
    told: bool,
    key: u32,
    leaving: bool,
    /// Its task has ended: no I/O of it is under way.
    ended: bool,
}

pub(super) struct Core {
    pub config: MemberConfig,
    pub host: Rc<dyn Host>,
    pub network: Rc<dyn Network>,
    pub lease: Lease,
    /// Set whenever something changed that anybody may wait for.
    pub changed: Signal,
    pub handlers: RefCell<BTreeMap<u32, Rc<dyn Handler>>>,
    pub observers: RefCell<Vec<Rc<dyn Observer>>>,
    heartbeat: RefCell<Heartbeat>,
    quorum: RefCell<Quorum>,
    mesh: RefCell<Mesh>,
    regions: RefCell<BTreeMap<RegionId, RegionState>>,
    conns: RefCell<BTreeMap<ConnId, Rc<Conn>>>,
    calls: RefCell<BTreeMap<u64, Done>>,
    inputs: RefCell<VecDeque<Input>>,
    running: Cell<bool>,
    over: Cell<bool>,
    next: Cell<u64>,
    timer_set: Signal,
    timer_at: Cell<Option<Duration>>,
}

impl Core {
    pub fn new(
        config: MemberConfig,
        host: Rc<dyn Host>,
        network: Rc<dyn Network>,
        mesh: Mesh,
        observers: Vec<Rc<dyn Observer>>,
    ) -> Rc<Self> {
        let nodes = config.cluster.nodes.iter().map(|node| node.number);
        let (node, timing, mode) = (config.node, config.timing, config.cluster.mode);
        let heartbeat = Heartbeat::new(node, nodes.collect(), timing, mode);
        Rc::new(Core {
            lease: Lease::new(host.clone()),
            quorum: RefCell::new(Quorum::new(node)),
            heartbeat: RefCell::new(heartbeat),
            mesh: RefCell::new(mesh),
            config,
            host,
            network,
            changed: Signal::default(),
            handlers: RefCell::default(),
            observers: RefCell::new(observers),
            regions: RefCell::default(),
            conns: RefCell::default(),
            calls: RefCell::default(),
            inputs: RefCell::default(),
            running: Cell::new(false),
            over: Cell::new(false),
            next: Cell::new(0),
            timer_set: Signal::default(),
            timer_at: Cell::new(None),
        })
    }

    pub fn start(self: &Rc<Self>, listener: Rc<dyn Listener>) {
        for place in self.config.regions.clone() {
            self.add_region(place);
        }
        self.host
            .spawn(Box::pin(self.clone().accept_loop(listener)));
        self.host.spawn(Box::pin(self.clone().timer_loop()));
    }

    pub fn nodes(&self) -> NodeSet {
        let nodes = self.config.cluster.nodes.iter();
        nodes.map(|node| node.number).collect()
    }

    fn number(&self) -> u64 {
        self.next.replace(self.next.get() + 1)
    }

    // What others ask.

    pub fn status(&self) -> Status {
        let (heartbeat, mesh) = (self.heartbeat.borrow(), self.mesh.borrow());
        let waiting = self.nodes().iter().map(|node| (node, mesh.waiting(node)));
        Status {
            up: heartbeat.up(),
            reachable: self.quorum.borrow().reachable(),
            lease_until: self.lease.until(),
            fence: self.lease.fence(),
            waiting: waiting.filter(|(_, count)| *count > 0).collect(),
        }
    }

    /// Nodes that beat and that messages do not reach.
    pub fn missing(&self) -> NodeSet {
        let up = self.heartbeat.borrow().up();
        up.difference(self.quorum.borrow().reachable())
    }

    /// Whether all regions are steady; an error when one cannot become so.
    pub fn all_steady(&self) -> Option<Result<(), JoinError>> {
        let ids: Vec<RegionId> = self.regions.borrow().keys().copied().collect();
        let starts: Vec<_> = ids.into_iter().map(|id| self.region_start(id)).collect();
        let failed = starts.iter().flatten().find(|start| start.is_err());
        match failed {
            Some(failed) => Some(failed.clone()),
            None => starts.iter().all(Option::is_some).then_some(Ok(())),
        }
    }

    pub fn region_start(&self, id: RegionId) -> Option<Result<(), JoinError>> {
        if let Some(fence) = self.lease.fence() {
            return Some(Err(JoinError::Fenced(fence)));
        }
        let regions = self.regions.borrow();
        let state = regions.get(&id)?;
        match state.start {
            Start::Beating => None,
            Start::Steady => Some(Ok(())),
            Start::Failed { slot_taken } => {
                let name = state.place.name;
                Some(Err(JoinError::Unsteady { name, slot_taken }))
            }
        }
    }

    pub fn send(
        self: &Rc<Self>,
        to: NodeNr,
        msg_type: u16,
        key: u32,
        payload: Vec<u8>,
        done: Done,
    ) {
        let tag = self.number();
        self.calls.borrow_mut().insert(tag, done);
        self.input(Input::Mesh(Event::Send {
            to,
            tag,
            msg_type,
            key,
            payload,
        }));
    }

    // Regions.

    pub fn add_region(self: &Rc<Self>, place: RegionPlace) -> RegionId {
        let mut generation = self.host.random();
        while generation == 0 {
            generation = self.host.random();
        }
        let over = self.config.old_life_is_over;
        let id = self.heartbeat.borrow_mut().add(generation, over);
        let index = match self.config.cluster.mode {
            HeartbeatMode::Local => 0,
            HeartbeatMode::Global => id.0,
        };
        let state = RegionState {
            key: negotiate::key(index, &place.name),
            place,
            start: Start::Beating,
            beat: None,
            negotiation: Negotiation::new(self.config.node),
            look_at: None,
            told: false,
            leaving: false,
            ended: false,
        };
        self.regions.borrow_mut().insert(id, state);
        self.host.spawn(Box::pin(self.clone().beat_loop(id)));
        id
    }

    fn is_leaving(&self, id: RegionId) -> bool {
        let regions = self.regions.borrow();
        self.over.get() || regions.get(&id).is_none_or(|state| state.leaving)
    }

    /// Beats until the life or the region ends.
    async fn beat_loop(self: Rc<Self>, id: RegionId) {
        let place = {
            let regions = self.regions.borrow();
            regions.get(&id).map(|state| state.place.clone())
        };
        let Some(place) = place else {
            return;
        };
        let (nodes, beat) = (self.nodes(), self.config.timing.beat);
        while !self.is_leaving(id) {
            let started = self.host.now();
            let blocks = place.read(nodes).await.ok();
            self.input(Input::Read {
                region: id,
                started,
                blocks,
            });
            let wanted = {
                let mut regions = self.regions.borrow_mut();
                regions.get_mut(&id).and_then(|state| state.beat.take())
            };
            if let Some(wanted) = wanted.filter(|_| !self.is_leaving(id)) {
                let started = self.host.now();
                let good = place.write(self.config.node, wanted).await.is_ok();
                self.input(Input::Written {
                    region: id,
                    started,
                    good,
                });
            }
            let left = (started + beat).saturating_sub(self.host.now());
            if !self.is_leaving(id) {
                let ended = self
                    .changed
                    .wait_until(|| self.is_leaving(id).then_some(()));
                select(std::pin::pin!(ended), self.host.sleep(left)).await;
            }
        }
        if let Some(state) = self.regions.borrow_mut().get_mut(&id) {
            state.ended = true;
        }
        self.changed.set();
    }

    pub async fn remove_region(self: &Rc<Self>, id: RegionId) {
        if let Some(state) = self.regions.borrow_mut().get_mut(&id) {
            state.leaving = true;
        }
        self.changed.set();
        self.say_farewell(id).await;
        self.regions.borrow_mut().remove(&id);
        let actions = self.heartbeat.borrow_mut().remove(id);
        self.heartbeat_actions(actions);
        self.run();
    }

    /// The last block of a region, once no I/O of its task is under way.
    async fn say_farewell(&self, id: RegionId) {
        let over = || {
            let regions = self.regions.borrow();
            regions
                .get(&id)
                .is_none_or(|state| state.ended)
                .then_some(())
        };
        self.changed.wait_until(over).await;
        let place = {
            let regions = self.regions.borrow();
            regions.get(&id).map(|state| state.place.clone())
        };
        let farewell = {
            let heartbeat = self.heartbeat.borrow();
            heartbeat.region(id).and_then(|region| region.farewell())
        };
        if let (Some(place), Some(farewell)) = (place, farewell)
            && let Err(error) = place.write(self.config.node, farewell).await
        {
            tracing::warn!(region = %place.name, %error, "the last heartbeat was not written");
        }
    }

    /// The last block of every region.
    pub async fn farewell(&self) {
        let ids: Vec<RegionId> = self.regions.borrow().keys().copied().collect();
        for id in ids {
            self.say_farewell(id).await;
        }
        self.regions.borrow_mut().clear();
    }

    // Connections.

    async fn accept_loop(self: Rc<Self>, listener: Rc<dyn Listener>) {
        while !self.over.get() {
            let over = self.changed.wait_until(|| self.over.get().then_some(()));
            let over = std::pin::pin!(over);
            let futures_util::future::Either::Right((accepted, _)) =
                select(over, listener.accept()).await
            else {
                return;
            };
            match accepted {
                Ok(stream) => {
                    let from = ipv4(stream.peer());
                    let conn = self.attach(stream);
                    self.input(Input::Mesh(Event::Accepted { conn, from }));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept");
                    self.host.sleep(self.config.timing.reconnect).await;
                }
            }
        }
    }

    fn attach(self: &Rc<Self>, stream: Rc<dyn Stream>) -> ConnId {
        let id = ConnId(self.number());
        let conn = Conn::new(stream);
        self.conns.borrow_mut().insert(id, conn.clone());
        let (core, reader) = (self.clone(), conn.clone());
        self.host.spawn(Box::pin(async move {
            let take = |bytes| core.input(Input::Mesh(Event::Received { conn: id, bytes }));
            reader.read_loop(take).await;
            core.input(Input::Mesh(Event::Broken(id)));
        }));
        let core = self.clone();
        self.host.spawn(Box::pin(async move {
            conn.write_loop().await;
            core.input(Input::Mesh(Event::Broken(id)));
        }));
        id
    }

    fn connect(self: &Rc<Self>, peer: NodeNr, attempt: u64) {
        let cluster = &self.config.cluster;
        let (Some(own), Some(other)) = (cluster.node(self.config.node), cluster.node(peer)) else {
            return;
        };
        let (from, to) = ((*own.address.ip()).into(), SocketAddr::V4(other.address));
        let connect = self.network.connect(from, to);
        let core = self.clone();
        self.host.spawn(Box::pin(async move {
            match connect.await {
                Ok(stream) => {
                    let conn = core.attach(stream);
                    core.input(Input::Mesh(Event::Connected {
                        peer,
                        attempt,
                        conn,
                    }));
                }
                Err(error) => {
                    tracing::debug!(%peer, %error, "cannot connect");
                    core.input(Input::Mesh(Event::ConnectFailed { peer, attempt }));
                }
            }
        }));
    }

    // Time.

    fn next_timer(&self) -> Option<Duration> {
        if self.over.get() {
            return None;
        }
        let heartbeat = self.heartbeat.borrow();
        let regions = self.regions.borrow();
        let talks = regions.iter().flat_map(|(id, state)| {
            let region = heartbeat.region(*id);
            let hangs = region
                .filter(|_| self.config.outlast_outages && !state.told)
                .and_then(|r| r.negotiate_at());
            [
                hangs,
                state.look_at,
                region.and_then(|region| region.lease_end()),
            ]
        });
        let mesh = self.mesh.borrow().next_timer();
        talks.chain([mesh]).flatten().min()
    }

    async fn timer_loop(self: Rc<Self>) {
        while !self.over.get() {
            let due = self.next_timer();
            self.timer_at.set(due);
            let set = std::pin::pin!(self.timer_set.wait());
            match due {
                None => set.await,
                Some(due) => {
                    // At least a moment, so that no mistake in a machine's timer can make this loop spin.
                    let left = due.saturating_sub(self.host.now()).max(TIMER_GRAIN);
                    select(set, self.host.sleep(left)).await;
                    if self.host.now() >= due {
                        self.input(Input::Timer);
                    }
                }
            }
        }
    }

    // The loop.

    pub fn input(self: &Rc<Self>, input: Input) {
        self.inputs.borrow_mut().push_back(input);
        self.run();
    }

    fn run(self: &Rc<Self>) {
        if self.running.replace(true) {
            return;
        }
        loop {
            let input = self.inputs.borrow_mut().pop_front();
            let Some(input) = input else {
                break;
            };
            self.take(input);
        }
        self.running.set(false);
        self.changed.set();
        let (due, set) = (self.next_timer(), self.timer_at.get());
        if self.over.get() || due.is_some_and(|due| set.is_none_or(|set| due < set)) {
            self.timer_set.set();
        }
    }

    fn take(self: &Rc<Self>, input: Input) {
        let now = self.host.now();
        if self.over.get() {
            return self.take_late(input);
        }
        match input {
            Input::Mesh(event) => self.mesh_event(event),
            Input::Reply { to, system, status } => {
                self.mesh_event(Event::Reply { to, system, status });
            }
            Input::Read {
                region,
                started,
                blocks,
            } => {
                let event = match &blocks {
                    None => region::Event::ReadFailed { now },
                    Some(blocks) => region::Event::Read {
                        started,
                        now,
                        wall_seconds: self.host.wall().seconds.max(0) as u64,
                        blocks,
                    },
                };
                self.region_event(region, event);
            }
            Input::Written {
                region,
                started,
                good: true,
            } => {
                self.negotiated(region, negotiate::Event::Written);
                self.region_event(region, region::Event::Written { started, now });
            }
            Input::Written { region, .. } => {
                self.region_event(region, region::Event::WriteFailed { now });
            }
            Input::Negotiate(region, event) => self.negotiated(region, event),
            Input::Timer => self.timer(now),
            Input::Fence(fence) => self.fence(fence),
        }
    }

    /// After the end, everything is refused and nothing forgotten.
    fn take_late(self: &Rc<Self>, input: Input) {
        match input {
            Input::Mesh(event) => self.mesh_event(event),
            Input::Fence(fence) => self.lease.end(fence),
            _ => {}
        }
    }

    fn timer(self: &Rc<Self>, now: Duration) {
        let due: Vec<(RegionId, bool)> = {
            let heartbeat = self.heartbeat.borrow();
            let mut regions = self.regions.borrow_mut();
            let hangs = regions.iter_mut().map(|(id, state)| {
                let at = heartbeat
                    .region(*id)
                    .and_then(|region| region.negotiate_at());
                let talks = self.config.outlast_outages && !state.told;
                let first = talks && at.is_some_and(|at| at <= now);
                let again = state.look_at.is_some_and(|at| at <= now);
                state.told |= first;
                if again {
                    state.look_at = None;
                }
                (*id, first || again)
            });
            hangs.collect()
        };
        for (id, hangs) in due {
            if hangs {
                let up = self.heartbeat.borrow().up();
                self.negotiated(id, negotiate::Event::Hangs { up });
            }
            self.region_event(id, region::Event::Timer { now });
        }
        self.mesh_event(Event::Timer);
    }

    fn region_event(self: &Rc<Self>, id: RegionId, event: region::Event<'_>) {
        if self.over.get() {
            return;
        }
        let actions = self.heartbeat.borrow_mut().step(id, event);
        self.heartbeat_actions(actions);
    }

    fn heartbeat_actions(self: &Rc<Self>, actions: Vec<heartbeat::Action>) {
        for action in actions {
            match action {
                heartbeat::Action::Write(id, beat) => {
                    if let Some(state) = self.regions.borrow_mut().get_mut(&id) {
                        state.beat = Some(beat);
                    }
                }
                heartbeat::Action::NodeUp(node) => {
                    tracing::info!(%node, "beats");
                    self.quorum_event(quorum::Event::HeartbeatUp(node));
                    self.tell(|observer| observer.node_up(node));
                    self.mesh_event(Event::Up(node));
                }
                heartbeat::Action::NodeDown(node) => {
                    tracing::warn!(%node, "does not beat any more");
                    self.quorum_event(quorum::Event::HeartbeatDown(node));
                    // Its messages end before its death is known: what it said is said.
                    self.mesh_event(Event::Down(node));
                    self.tell(|observer| observer.node_down(node));
                }
                heartbeat::Action::Steady(id) => self.set_start(id, Start::Steady),
                heartbeat::Action::Unsteady { region, slot_taken } => {
                    self.set_start(region, Start::Failed { slot_taken });
                }
                heartbeat::Action::Lease(until) => self.lease.renew(until),
                heartbeat::Action::Fence { region, since } => {
                    self.fence(Fence::Disk { region, since });
                }
                heartbeat::Action::Remark(region, remark) => {
                    tracing::warn!(region = region.0, %remark, "heartbeat");
                }
            }
        }
    }

    fn set_start(&self, id: RegionId, start: Start) {
        if let Some(state) = self.regions.borrow_mut().get_mut(&id) {
            state.start = start;
        }
    }

    fn negotiated(self: &Rc<Self>, id: RegionId, event: negotiate::Event) {
        let (actions, key) = {
            let mut regions = self.regions.borrow_mut();
            let Some(state) = regions.get_mut(&id) else {
                return;
            };
            if matches!(
                event,
                negotiate::Event::Written | negotiate::Event::Approved
            ) {
                state.told = false;
                state.look_at = None;
            }
            (state.negotiation.step(event), state.key)
        };
        let now = self.host.now();
        let payload = vec![self.config.node.get()];
        for action in actions {
            match action {
                negotiate::Action::Tell(node) => {
                    tracing::warn!(region = id.0, %node, "a heartbeat hangs; telling the lowest node");
                    self.send(node, TIMEOUT_MSG, key, payload.clone(), Box::new(|_| {}));
                }
                negotiate::Action::Approve(nodes) => {
                    tracing::warn!(region = id.0, "all heartbeats hang; everybody waits anew");
                    for node in nodes.iter() {
                        self.send(node, APPROVE_MSG, key, payload.clone(), Box::new(|_| {}));
                    }
                }
                negotiate::Action::Renew => {
                    if let Some(state) = self.regions.borrow_mut().get_mut(&id) {
                        state.told = false;
                    }
                    self.region_event(id, region::Event::Approved { now });
                }
                negotiate::Action::LookAgain => {
                    if let Some(state) = self.regions.borrow_mut().get_mut(&id) {
                        state.look_at = Some(now + self.config.timing.negotiate_again());
                    }
                }
            }
        }
    }

    fn quorum_event(self: &Rc<Self>, event: quorum::Event) {
        let loss = self.quorum.borrow_mut().step(event);
        if let Some(loss) = loss {
            self.fence(Fence::Quorum(loss));
        }
    }

    fn mesh_event(self: &Rc<Self>, event: Event) {
        let now = self.host.now();
        let actions = self.mesh.borrow_mut().step(now, event);
        for action in actions {
            let ends = matches!(action, Action::Close(_) | Action::Answered { .. });
            if self.over.get() && !ends {
                continue; // an action before it ended the life
            }
            match action {
                Action::Connect { peer, attempt } => self.connect(peer, attempt),
                Action::Write(id, bytes) => {
                    if let Some(conn) = self.conns.borrow().get(&id) {
                        conn.write(&bytes);
                    }
                }
                Action::Close(id) => {
                    let conn = self.conns.borrow_mut().remove(&id);
                    if let Some(conn) = conn {
                        conn.close();
                    }
                }
                Action::Connected(node) => {
                    tracing::info!(%node, "connected");
                    self.quorum_event(quorum::Event::Connected(node));
                    self.tell(|observer| observer.connected(node));
                }
                Action::Disconnected(node) => {
                    tracing::warn!(%node, "the connection is lost");
                    self.quorum_event(quorum::Event::Disconnected(node));
                    self.tell(|observer| observer.disconnected(node));
                }
                Action::Evicted(node) => {
                    self.fence(Fence::Fault(format!("node {node} took this node for dead")));
                }
                Action::StillUp(node) => self.quorum_event(quorum::Event::StillUp(node)),
                Action::Deliver {
                    from,
                    msg_type,
                    key,
                    payload,
                    reply,
                } => self.deliver(from, msg_type, key, payload, reply),
                Action::Answered { tag, result, .. } => {
                    let done = self.calls.borrow_mut().remove(&tag);
                    if let Some(done) = done {
                        done(result);
                    }
                }
                Action::Refused(refusal) => tracing::warn!(%refusal, "a connection is refused"),
            }
        }
    }

    fn deliver(
        self: &Rc<Self>,
        from: NodeNr,
        msg_type: u16,
        key: u32,
        payload: Vec<u8>,
        to: ReplyTo,
    ) {
        let answer = Answer {
            core: self.clone(),
            to,
            used: Cell::new(false),
        };
        let region = {
            let regions = self.regions.borrow();
            let known = regions.iter().find(|(_, state)| state.key == key);
            known.map(|(id, _)| *id)
        };
        if let Some(id) = region {
            let event = match (msg_type, payload.first().copied().and_then(NodeNr::new)) {
                (TIMEOUT_MSG, Some(node)) => negotiate::Event::Heard(node),
                (APPROVE_MSG, _) => negotiate::Event::Approved,
                _ => return drop(answer),
            };
            answer.status(0);
            if self.config.outlast_outages {
                self.input(Input::Negotiate(id, event));
            }
            return;
        }
        let handler = self.handlers.borrow().get(&key).cloned();
        if let Some(handler) = handler {
            handler.message(from, msg_type, payload, answer);
        }
    }

    fn tell(&self, tell: impl Fn(&dyn Observer)) {
        let observers = self.observers.borrow().clone();
        observers.iter().for_each(|observer| tell(&**observer));
    }

    /// The end: no shared disk is touched from here on, and nobody is talked to.
    fn fence(self: &Rc<Self>, fence: Fence) {
        self.lease.end(fence);
        if self.over.replace(true) {
            return;
        }
        let fence = self.lease.fence().unwrap_or(Fence::Left);
        match &fence {
            Fence::Left => tracing::info!("left the cluster"),
            fence => tracing::error!(%fence, "fenced: no shared disk is touched any more"),
        }
        self.tell(|observer| observer.fenced(&fence));
        self.mesh_event(Event::Stop);
        let conns = self.conns.take();
        conns.into_values().for_each(|conn| conn.close());
    }
}
