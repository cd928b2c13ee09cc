//! Lock domains over a member's connections: the loop that feeds `dlm`'s state machines. Frames, deaths and timers become
//! its events; its actions become frames, answers, timers, and notices to whoever uses the locks.
//!
//! The promises that `dlm` asks for are kept thus: between two Ocelot nodes a session keeps all messages and answers in one
//! order whatever happens to connections (`net::session`), and ends only with a death; a message that was lost with the
//! connection to a *kernel* node makes this node stop, unless that node dies within the time of a quorum decision.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::{Rc, Weak};
use std::time::Duration;

use dlm::wire::{self, Message, MsgType, NodeAddress};
use dlm::{
    Action, Config, Dlm, DomainName, Event, LockError, LockId, LockName, Lvb, Mode, NodeNr,
    NodeSet, State,
};

use crate::conf::HeartbeatMode;
use crate::lease::Fence;
use crate::member::{Answer, Handler, Member, Observer};
use crate::net::SendError;
use crate::signal::Signal;

/// What the users of a domain's locks hear, in order. Calls made from inside are done after the notice has returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// See [`Action::Granted`].
    Granted {
        lock: LockId,
        mode: Mode,
        lvb: Option<Lvb>,
    },
    /// See [`Action::Refused`].
    Refused(LockId),
    /// See [`Action::Blocked`].
    Blocked {
        lock: LockId,
        wanted: Mode,
    },
    /// See [`Action::Unlocked`].
    Unlocked(LockId),
    /// See [`Action::Cancelled`].
    Cancelled(LockId),
    MemberJoined(NodeNr),
    /// In order.
    MemberLeft(NodeNr),
    /// Its journal wants to be replayed: said before any lock is granted that stood in conflict with its own.
    MemberDied(NodeNr),
    /// The dead node's locks are sorted out.
    Recovered(NodeNr),
}

/// Why there is no domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DomainError {
    #[error("this node is in the domain {0} already")]
    Present(DomainName),
    #[error(transparent)]
    Refused(#[from] dlm::JoinError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("this node's life in the cluster is over: {0}")]
    Ended(Fence),
}

type Listener = Rc<dyn Fn(Notice)>;

/// All domains of one member.
#[derive(Clone)]
pub struct Domains {
    inner: Rc<Hub>,
}

struct Hub {
    member: Member,
    domains: RefCell<BTreeMap<DomainName, Rc<Inner>>>,
    /// Nodes that beat and have been connected: those that state machines know as up.
    up: Cell<NodeSet>,
}

impl Domains {
    /// For a member that has just joined; once for each life.
    pub fn new(member: &Member) -> Self {
        let up = member.status().reachable.without(member.node());
        let hub = Rc::new(Hub {
            member: member.clone(),
            domains: RefCell::default(),
            up: Cell::new(up),
        });
        // The member must not keep the hub alive, which keeps the member alive.
        let joins = Rc::new(JoinHandler(Rc::downgrade(&hub)));
        member.handle(wire::JOIN_KEY, joins);
        member.observe(Rc::new(HubObserver(Rc::downgrade(&hub))));
        Domains { inner: hub }
    }

    /// Joins a domain; `listener` hears what happens in it. `kernel_peers`: see [`Config::kernel_peers`].
    ///
    /// # Errors
    /// The members do not let this node in, or its life is over.
    pub async fn join(
        &self,
        name: DomainName,
        kernel_peers: bool,
        listener: impl Fn(Notice) + 'static,
    ) -> Result<Domain, DomainError> {
        let hub = &self.inner;
        if let Some(fence) = hub.member.lease().fence() {
            return Err(DomainError::Ended(fence));
        }
        if hub.domains.borrow().contains_key(&name) {
            return Err(DomainError::Present(name));
        }
        let inner = Rc::new(Inner {
            name,
            member: hub.member.clone(),
            dlm: RefCell::new(Dlm::new(config(&hub.member, name, kernel_peers))),
            listener: Rc::new(listener),
            actions: RefCell::default(),
            running: Cell::new(false),
            answers: RefCell::default(),
            next_answer: Cell::new(0),
            lost: Cell::new(NodeSet::EMPTY),
            outcome: RefCell::new(None),
            changed: Signal::default(),
        });
        hub.domains.borrow_mut().insert(name, inner.clone());
        let handler = Rc::new(DomainHandler(Rc::downgrade(&inner)));
        hub.member.handle(name.key(), handler);
        for node in hub.up.get().iter() {
            inner.event(Event::NodeUp(node));
        }
        let domain = Domain {
            hub: hub.clone(),
            inner: inner.clone(),
        };
        inner.ask(Dlm::join)?;
        let outcome = inner
            .changed
            .wait_until(|| match inner.member.lease().fence() {
                Some(fence) => Some(Err(DomainError::Ended(fence))),
                None => inner.outcome.borrow().clone(),
            });
        match outcome.await {
            Ok(()) => Ok(domain),
            Err(error) => {
                domain.forget();
                Err(error)
            }
        }
    }
}

/// What `dlm` must know of this node.
fn config(member: &Member, domain: DomainName, kernel_peers: bool) -> Config {
    let cluster = &member.config().cluster;
    let address = |node: &crate::NodeDef| NodeAddress {
        node: node.number,
        address: node.address.ip().octets(),
        port: node.address.port(),
    };
    let regions = match cluster.mode {
        HeartbeatMode::Local => Vec::new(),
        HeartbeatMode::Global => {
            let places = member.config().regions.iter();
            places.map(|place| *place.name.as_bytes()).collect()
        }
    };
    Config {
        me: member.node(),
        domain,
        dlm: wire::DLM_VERSION,
        fs: wire::FS_VERSION,
        nodes: cluster.nodes.iter().map(address).collect(),
        regions,
        kernel_peers,
    }
}

/// This node's part in a domain; clones are the same one.
#[derive(Clone)]
pub struct Domain {
    hub: Rc<Hub>,
    inner: Rc<Inner>,
}

struct Inner {
    name: DomainName,
    member: Member,
    dlm: RefCell<Dlm>,
    listener: Listener,
    /// What is to be done, oldest first.
    actions: RefCell<VecDeque<Action>>,
    running: Cell<bool>,
    answers: RefCell<BTreeMap<u32, Answer>>,
    next_answer: Cell<u32>,
    /// Kernel nodes that a message to was lost.
    lost: Cell<NodeSet>,
    outcome: RefCell<Option<Result<(), DomainError>>>,
    changed: Signal,
}

impl Domain {
    pub fn name(&self) -> DomainName {
        self.inner.name
    }

    /// Asks for a new lock: see [`Dlm::lock`]. The notice may come before this returns only if another call of this
    /// domain is under way on the stack, never otherwise.
    ///
    /// # Errors
    /// This node is no member of the domain (any more), or the name is reserved.
    pub fn lock(
        &self,
        name: LockName,
        mode: Mode,
        flags: wire::LockFlags,
    ) -> Result<LockId, DomainError> {
        self.inner.ask(|dlm| dlm.lock(name, mode, flags))
    }

    /// Asks for another mode: see [`Dlm::convert`].
    ///
    /// # Errors
    /// There is no such lock, or it is busy.
    pub fn convert(
        &self,
        lock: LockId,
        mode: Mode,
        flags: wire::LockFlags,
        lvb: Option<Lvb>,
    ) -> Result<(), DomainError> {
        self.inner.ask(|dlm| dlm.convert(lock, mode, flags, lvb))
    }

    /// Gives a lock up: see [`Dlm::unlock`].
    ///
    /// # Errors
    /// There is no such lock, or it is busy.
    pub fn unlock(&self, lock: LockId, lvb: Option<Lvb>) -> Result<(), DomainError> {
        self.inner.ask(|dlm| dlm.unlock(lock, lvb))
    }

    /// Withdraws what was asked for: see [`Dlm::cancel`].
    ///
    /// # Errors
    /// There is no such lock.
    pub fn cancel(&self, lock: LockId) -> Result<(), DomainError> {
        self.inner.ask(|dlm| dlm.cancel(lock))
    }

    /// Looks at what the lock manager knows.
    pub fn inspect<T>(&self, look: impl FnOnce(&Dlm) -> T) -> T {
        look(&self.inner.dlm.borrow())
    }

    /// Leaves in order. All locks must have been given up.
    ///
    /// # Errors
    /// There are locks, or this node's life ended on the way.
    pub async fn leave(&self) -> Result<(), DomainError> {
        let inner = &self.inner;
        inner.ask(Dlm::leave)?;
        let left = inner
            .changed
            .wait_until(|| match inner.member.lease().fence() {
                Some(fence) => Some(Err(DomainError::Ended(fence))),
                None => (inner.dlm.borrow().state() == State::Left).then_some(Ok(())),
            });
        let result = left.await;
        self.forget();
        result
    }

    fn forget(&self) {
        self.hub.domains.borrow_mut().remove(&self.inner.name);
        self.hub.member.stop_handling(self.inner.name.key());
    }
}

impl Inner {
    /// Has the state machine do something, and does what follows.
    fn ask<T>(
        self: &Rc<Self>,
        ask: impl FnOnce(&mut Dlm) -> Result<T, LockError>,
    ) -> Result<T, DomainError> {
        if let Some(fence) = self.member.lease().fence() {
            return Err(DomainError::Ended(fence));
        }
        let result = ask(&mut self.dlm.borrow_mut());
        self.collect();
        Ok(result?)
    }

    fn event(self: &Rc<Self>, event: Event) {
        if self.member.lease().fence().is_none() {
            self.dlm.borrow_mut().step(event);
            self.collect();
        }
    }

    fn collect(self: &Rc<Self>) {
        let mut dlm = self.dlm.borrow_mut();
        self.actions.borrow_mut().extend(dlm.actions());
        drop(dlm);
        if self.running.replace(true) {
            return;
        }
        loop {
            let action = self.actions.borrow_mut().pop_front();
            let Some(action) = action else {
                break;
            };
            self.act(action);
        }
        self.running.set(false);
        self.changed.set();
    }

    fn act(self: &Rc<Self>, action: Action) {
        let notice = match action {
            Action::Send { to, call, message } => {
                let (domain, key) = (Rc::downgrade(self), message.key(&self.name));
                let (msg_type, payload) = (message.msg_type() as u16, message.encode());
                let done = move |result| {
                    if let Some(domain) = domain.upgrade() {
                        domain.answered(to, call, result);
                    }
                };
                return self.member.send(to, msg_type, key, payload, done);
            }
            Action::Answer {
                msg_num, status, ..
            } => {
                let answer = self.answers.borrow_mut().remove(&msg_num);
                if let Some(answer) = answer {
                    answer.status(status);
                }
                return;
            }
            Action::Timer { after_ms, timer } => {
                let (domain, host) = (Rc::downgrade(self), self.member.host());
                let sleep = host.sleep(Duration::from_millis(after_ms.into()));
                return host.spawn(Box::pin(async move {
                    sleep.await;
                    if let Some(domain) = domain.upgrade() {
                        domain.event(Event::Timer(timer));
                    }
                }));
            }
            Action::Joined { members } => {
                tracing::info!(domain = %self.name, ?members, "joined");
                *self.outcome.borrow_mut() = Some(Ok(()));
                return;
            }
            Action::JoinFailed(error) => {
                *self.outcome.borrow_mut() = Some(Err(error.into()));
                return;
            }
            Action::Left => return,
            Action::Evicted { by } => {
                let why = format!("node {by} holds this node for dead in domain {}", self.name);
                return self.member.fault(why);
            }
            Action::Granted { lock, mode, lvb } => Notice::Granted { lock, mode, lvb },
            Action::Refused { lock } => Notice::Refused(lock),
            Action::Blocked { lock, wanted } => Notice::Blocked { lock, wanted },
            Action::Unlocked { lock } => Notice::Unlocked(lock),
            Action::Cancelled { lock } => Notice::Cancelled(lock),
            Action::MemberJoined(node) => Notice::MemberJoined(node),
            Action::MemberLeft(node) => Notice::MemberLeft(node),
            Action::MemberDied(node) => Notice::MemberDied(node),
            Action::Recovered(node) => Notice::Recovered(node),
        };
        (self.listener)(notice);
    }

    fn answered(self: &Rc<Self>, from: NodeNr, call: dlm::CallId, result: Result<i32, SendError>) {
        match result {
            Ok(status) => self.event(Event::Reply { from, call, status }),
            Err(SendError::NoHandler) => self.event(Event::NoHandler { from, call }),
            // Its death says it all, or this node's own end.
            Err(SendError::Down | SendError::Stopped) => {}
            Err(SendError::Died) => self.lost(from),
            Err(error @ (SendError::Overflow | SendError::TooLong | SendError::Backlog)) => {
                self.member
                    .fault(format!("a message to node {from} is lost: {error}"));
            }
        }
    }

    /// A message is lost. If its receiver is dead, heartbeat says so before long; if it lives, the two lock managers do not
    /// fit together any more, and this node must stop.
    fn lost(self: &Rc<Self>, node: NodeNr) {
        if self.lost.get().contains(node) {
            return;
        }
        self.lost.set(self.lost.get().with(node));
        let (domain, host) = (Rc::downgrade(self), self.member.host());
        let sleep = host.sleep(self.member.config().timing.quorum_delay());
        host.spawn(Box::pin(async move {
            sleep.await;
            if let Some(domain) = domain.upgrade()
                && domain.lost.get().contains(node)
            {
                let why =
                    format!("messages to node {node} were lost with its connection, and it lives");
                domain.member.fault(why);
            }
        }));
    }

    fn request(self: &Rc<Self>, from: NodeNr, message: Message, answer: Answer) {
        let msg_num = self.next_answer.get();
        self.next_answer.set(msg_num.wrapping_add(1));
        self.answers.borrow_mut().insert(msg_num, answer);
        self.event(Event::Request {
            from,
            msg_num,
            message,
        });
    }
}

/// A message's payload as a value; otherwise it is answered here.
fn decode(msg_type: u16, payload: &[u8], answer: Answer) -> Option<(Message, Answer)> {
    // Unknown kinds are answered by the drop: no handler.
    let kind = MsgType::from_wire(msg_type)?;
    if payload.len() > kind.max_len() {
        answer.overflow();
        return None;
    }
    match wire::decode(msg_type, payload) {
        Ok(message) => Some((message, answer)),
        Err(error) => {
            tracing::warn!(%kind, %error, "a message makes no sense");
            answer.status(wire::reply::EINVAL);
            None
        }
    }
}

/// Messages of one domain.
struct DomainHandler(Weak<Inner>);

impl Handler for DomainHandler {
    fn message(&self, from: NodeNr, msg_type: u16, payload: Vec<u8>, answer: Answer) {
        if let Some(domain) = self.0.upgrade()
            && let Some((message, answer)) = decode(msg_type, &payload, answer)
        {
            domain.request(from, message, answer);
        }
    }
}

/// Messages about joining, for domains that this node may not be in.
struct JoinHandler(Weak<Hub>);

impl Handler for JoinHandler {
    fn message(&self, from: NodeNr, msg_type: u16, payload: Vec<u8>, answer: Answer) {
        let Some(hub) = self.0.upgrade() else {
            return;
        };
        let Some((message, answer)) = decode(msg_type, &payload, answer) else {
            return;
        };
        let name = match &message {
            Message::QueryJoin { domain, .. }
            | Message::AssertJoined { domain, .. }
            | Message::CancelJoin { domain, .. }
            | Message::QueryRegion { domain, .. }
            | Message::QueryNodeInfo { domain, .. } => *domain,
            _ => return answer.status(wire::reply::EINVAL),
        };
        let domain = hub.domains.borrow().get(&name).cloned();
        match domain {
            Some(domain) => domain.request(from, message, answer),
            None => answer.status(dlm::answer_without_domain(&message)),
        }
    }
}

struct HubObserver(Weak<Hub>);

impl HubObserver {
    fn each(&self, change: impl Fn(&Hub) -> bool, tell: impl Fn(&Rc<Inner>)) {
        let Some(hub) = self.0.upgrade() else {
            return;
        };
        if change(&hub) {
            let domains: Vec<_> = hub.domains.borrow().values().cloned().collect();
            domains.iter().for_each(tell);
        }
    }
}

impl Observer for HubObserver {
    fn connected(&self, node: NodeNr) {
        let change = |hub: &Hub| {
            let new = !hub.up.get().contains(node);
            hub.up.set(hub.up.get().with(node));
            new
        };
        self.each(change, |domain| domain.event(Event::NodeUp(node)));
    }

    fn node_down(&self, node: NodeNr) {
        let change = |hub: &Hub| {
            let known = hub.up.get().contains(node);
            hub.up.set(hub.up.get().without(node));
            known
        };
        self.each(change, |domain| {
            domain.lost.set(domain.lost.get().without(node));
            domain.event(Event::NodeDown(node));
        });
    }

    fn fenced(&self, _fence: &Fence) {
        self.each(
            |_| true,
            |domain| {
                let answers = domain.answers.take();
                drop(answers);
                domain.changed.set();
            },
        );
    }
}
