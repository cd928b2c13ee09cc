//! The state machine of one node in one domain: what it knows, and how events find the code that handles them.
//!
//! Handlers change what they have to and note which resources are touched; at the end of a step each of those is brought
//! forward as far as it goes ([`Dlm::advance`] in `advance.rs`). Nothing else waits: every wait is a set of nodes in the
//! state, so that the death of a node is one removal from each set and another look.

use crate::event::{Action, CallId, Config, Event, Timer, TimerKind};
use crate::join::Join;
use crate::recovery::Reco;
use crate::resource::Resource;
use crate::wire::Message;
use crate::{LockName, NodeNr, NodeSet};
use std::collections::{BTreeMap, HashMap, VecDeque};

/// Where a node is on its way through a domain's life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Not asked to join yet.
    New,
    /// Asking the others.
    Joining,
    /// A member.
    Joined,
    /// A member that gives its resources away.
    Leaving,
    /// Telling the others that it has left.
    Exiting,
    /// Out.
    Left,
}

/// What a message was sent for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Call {
    QueryJoin {
        attempt: u32,
    },
    NodeInfo {
        attempt: u32,
    },
    Region {
        attempt: u32,
    },
    AssertJoined {
        attempt: u32,
    },
    Vote {
        name: LockName,
        round: u64,
    },
    Requery {
        name: LockName,
        round: u64,
    },
    Tidy {
        name: LockName,
    },
    Assert {
        name: LockName,
    },
    Announce {
        name: LockName,
    },
    Tell {
        name: LockName,
    },
    Create {
        name: LockName,
        cookie: u64,
    },
    Convert {
        name: LockName,
        cookie: u64,
    },
    Unlock {
        name: LockName,
        cookie: u64,
    },
    Cancel {
        name: LockName,
        cookie: u64,
    },
    Notice {
        name: LockName,
    },
    Deref {
        name: LockName,
    },
    Move {
        name: LockName,
    },
    Orphan {
        name: LockName,
    },
    Lead {
        step: u64,
    },
    BeginExit,
    Exit,
    /// The answer does not matter.
    Mute,
}

/// Something to be done before the step ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Todo {
    Advance(LockName),
    /// The lock on `$RECOVERY` was granted, or refused.
    Elected(bool),
    /// Look whether somebody waits to hear that we have sent all we know.
    Gathered,
}

/// A resource that moves between two other nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Moving {
    pub from: NodeNr,
    pub to: NodeNr,
}

/// One node's part in one domain. See the crate's page for how it is driven.
#[derive(Clone, Debug)]
pub struct Dlm {
    pub(crate) config: Config,
    pub(crate) state: State,
    /// Nodes that heartbeat sees.
    pub(crate) live: NodeSet,
    /// Nodes in the domain.
    pub(crate) members: NodeSet,
    /// Members that have said that they will leave.
    pub(crate) exiting: NodeSet,
    /// Members that died and are not recovered.
    pub(crate) dead: NodeSet,
    /// The node that we have allowed to join and that has not said that it has.
    pub(crate) joiner: Option<NodeNr>,
    pub(crate) join: Join,
    pub(crate) resources: BTreeMap<LockName, Box<Resource>>,
    /// Where this node's locks are.
    pub(crate) locks: HashMap<u64, LockName>,
    pub(crate) moving: BTreeMap<LockName, Moving>,
    pub(crate) calls: BTreeMap<CallId, (NodeNr, Call)>,
    pub(crate) reco: Reco,
    /// Members that have not answered the message that we (shall) leave.
    pub(crate) parting: NodeSet,
    /// All have heard that we shall leave.
    pub(crate) parted: bool,
    /// Resources that are moving away.
    pub(crate) moves: usize,
    pub(crate) moving_later: bool,
    next: u64,
    next_cookie: u64,
    sweeping: bool,
    pub(crate) todo: VecDeque<Todo>,
    out: Vec<Action>,
}

impl Dlm {
    /// A node that is in no domain yet: [`Self::join`] is the next thing to call.
    pub fn new(config: Config) -> Self {
        Self {
            state: State::New,
            live: NodeSet::EMPTY.with(config.me),
            config,
            members: NodeSet::EMPTY,
            exiting: NodeSet::EMPTY,
            dead: NodeSet::EMPTY,
            joiner: None,
            join: Join::default(),
            resources: BTreeMap::new(),
            locks: HashMap::new(),
            moving: BTreeMap::new(),
            calls: BTreeMap::new(),
            reco: Reco::default(),
            parting: NodeSet::EMPTY,
            parted: false,
            moves: 0,
            moving_later: false,
            next: 0,
            next_cookie: 1,
            sweeping: false,
            todo: VecDeque::new(),
            out: Vec::new(),
        }
    }

    /// Takes in one event. What is to be done then is in [`Self::actions`].
    pub fn step(&mut self, event: Event) {
        match event {
            Event::NodeUp(node) => self.node_up(node),
            Event::NodeDown(node) => self.node_down(node),
            Event::Request {
                from,
                msg_num,
                message,
            } => {
                let status = self.request(from, message);
                // The answer goes before everything that the message has set off.
                self.out.push(Action::Answer {
                    to: from,
                    msg_num,
                    status,
                });
            }
            Event::Reply { from, call, status } => {
                if let Some(call) = self.answered(from, call) {
                    self.reply(from, call, status);
                }
            }
            Event::NoHandler { from, call } => {
                if let Some(call) = self.answered(from, call) {
                    self.no_handler(from, call);
                }
            }
            Event::Timer(Timer(kind)) => self.timer(kind),
        }
        self.settle();
    }

    /// What is to be done, oldest first. Each action is given out once.
    pub fn actions(&mut self) -> std::vec::Drain<'_, Action> {
        self.out.drain(..)
    }

    /// Brings forward everything that was touched.
    pub(crate) fn settle(&mut self) {
        self.run_todo();
        self.recovery_forward();
        self.run_todo();
        self.leave_forward();
    }

    fn run_todo(&mut self) {
        while let Some(todo) = self.todo.pop_front() {
            match todo {
                Todo::Advance(name) => self.advance(name),
                Todo::Elected(won) => self.elected(won),
                Todo::Gathered => self.gathered(),
            }
        }
    }

    /// Something is unused: it shall be forgotten if it stays so.
    pub(crate) fn sweep_later(&mut self) {
        if !self.sweeping {
            self.sweeping = true;
            self.after(crate::limits::SWEEP_MS, TimerKind::Sweep);
        }
    }

    pub(crate) fn me(&self) -> NodeNr {
        self.config.me
    }

    /// All members but this node.
    pub(crate) fn others(&self) -> NodeSet {
        self.members.without(self.config.me)
    }

    pub(crate) fn act(&mut self, action: Action) {
        self.out.push(action);
    }

    pub(crate) fn after(&mut self, after_ms: u32, kind: TimerKind) {
        self.out.push(Action::Timer {
            after_ms,
            timer: Timer(kind),
        });
    }

    /// A number never given before.
    pub(crate) fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// A new lock's identity: the node in the highest byte.
    pub(crate) fn fresh_cookie(&mut self) -> u64 {
        let cookie = u64::from(self.config.me.get()) << 56 | self.next_cookie;
        self.next_cookie += 1;
        cookie
    }

    pub(crate) fn send(&mut self, to: NodeNr, purpose: Call, message: Message) -> CallId {
        let call = CallId(self.fresh());
        self.calls.insert(call, (to, purpose));
        self.out.push(Action::Send { to, call, message });
        call
    }

    pub(crate) fn send_all(&mut self, to: NodeSet, purpose: Call, message: &Message) {
        for node in to.iter() {
            self.send(node, purpose, message.clone());
        }
    }

    pub(crate) fn touch(&mut self, name: LockName) {
        self.todo.push_back(Todo::Advance(name));
    }

    /// Has every resource looked at again.
    pub(crate) fn touch_all(&mut self) {
        self.todo
            .extend(self.resources.keys().map(|name| Todo::Advance(*name)));
    }

    /// The resource, made if it is not there.
    pub(crate) fn resource(&mut self, name: LockName) -> &mut Resource {
        self.resources
            .entry(name)
            .or_insert_with(|| Box::new(Resource::new(name)))
    }

    /// Why the call was made, if its answer is still wanted and comes from the right node.
    fn answered(&mut self, from: NodeNr, call: CallId) -> Option<(CallId, Call)> {
        let (to, purpose) = *self.calls.get(&call)?;
        if to != from {
            return None;
        }
        self.calls.remove(&call);
        Some((call, purpose))
    }

    fn request(&mut self, from: NodeNr, message: Message) -> i32 {
        use crate::wire::reply::EINVAL;
        let claims_to_be = message.sender();
        if claims_to_be.is_some_and(|node| node != from) || from == self.me() {
            return EINVAL;
        }
        if let Some(status) = self.join_request(from, &message) {
            return status;
        }
        if !self.members.contains(from) || matches!(self.state, State::New | State::Left) {
            // Out of the domain, dead, or not in it yet: its word does not count.
            return self.stranger(&message);
        }
        match message {
            Message::MasterRequest { name, .. } => self.on_master_request(from, name),
            Message::AssertMaster { name, flags, .. } => self.on_assert(from, name, flags),
            Message::DerefLockres { name, .. } => self.on_deref(from, name),
            Message::DerefLockresDone { name, .. } => self.on_deref_done(from, name),
            Message::CreateLock {
                cookie,
                flags,
                mode,
                name,
                ..
            } => self.on_create(from, name, cookie, mode, flags).to_wire(),
            Message::ConvertLock {
                cookie,
                flags,
                mode,
                name,
                lvb,
                ..
            } => self
                .on_convert(from, name, cookie, mode, flags, lvb)
                .to_wire(),
            Message::UnlockLock {
                cookie,
                flags,
                name,
                lvb,
                ..
            } => self.on_unlock(from, name, cookie, flags, lvb).to_wire(),
            Message::ProxyAst {
                cookie,
                kind,
                name,
                lvb,
                ..
            } => self.on_notice(from, name, cookie, kind, lvb).to_wire(),
            Message::MigrateRequest {
                master,
                new_master,
                name,
            } => self.on_migrate_request(name, master, new_master),
            Message::MigLockres(data) => self.on_mig_lockres(from, data),
            Message::ExitDomain { .. } => self.on_exit(from),
            Message::BeginExitDomain { .. } => {
                self.exiting.insert(from);
                0
            }
            Message::MasterRequery { name, .. } => self.on_requery(name),
            Message::LockRequest { dead, .. } => self.on_lock_request(from, dead),
            Message::RecoDataDone { dead, .. } => self.on_data_done(from, dead),
            Message::BeginReco { dead, .. } => self.on_begin(from, dead),
            Message::FinalizeReco { dead, flags, .. } => self.on_finalize(from, dead, flags),
            Message::QueryJoin { .. }
            | Message::AssertJoined { .. }
            | Message::CancelJoin { .. }
            | Message::QueryRegion { .. }
            | Message::QueryNodeInfo { .. } => EINVAL,
        }
    }

    fn reply(&mut self, from: NodeNr, (id, call): (CallId, Call), status: i32) {
        match call {
            Call::QueryJoin { attempt } => self.join_answered(from, attempt, status),
            Call::NodeInfo { attempt } => self.node_info_answered(from, attempt, status),
            Call::Region { attempt } => self.region_answered(from, attempt, status),
            Call::AssertJoined { attempt } => self.assert_joined_answered(from, attempt, status),
            Call::Vote { name, round } => self.vote_answered(from, name, round, status),
            Call::Requery { name, round } => self.requery_answered(from, name, round, status),
            Call::Tidy { name } => self.tidy_answered(name, status),
            Call::Assert { name } => self.assert_answered(from, name, status),
            Call::Announce { name } => self.announce_answered(from, name, status),
            Call::Tell { name } => self.tell_answered(from, name, status),
            Call::Create { name, cookie } => self.create_answered(id, name, cookie, status),
            Call::Convert { name, cookie } => self.convert_answered(id, name, cookie, status),
            Call::Unlock { name, cookie } => self.unlock_answered(id, name, cookie, status),
            Call::Cancel { name, cookie } => self.cancel_answered(id, name, cookie, status),
            Call::Notice { name } => self.notice_answered(name),
            Call::Deref { name } => self.deref_answered(name, status),
            Call::Move { name } => self.move_answered(from, name, status),
            Call::Orphan { name } => self.orphan_answered(from, name, status),
            Call::Lead { step } => self.lead_answered(from, step, status),
            Call::BeginExit | Call::Exit => {
                self.parting.remove(from);
            }
            Call::Mute => {}
        }
    }

    /// The node is not in the domain (any more): it has left, and nothing that it said or has matters.
    fn no_handler(&mut self, from: NodeNr, (id, call): (CallId, Call)) {
        use crate::wire::reply::JoinReply;
        match call {
            Call::QueryJoin { attempt } => {
                self.join_answered(from, attempt, JoinReply::OkNoMap.to_wire());
            }
            Call::AssertJoined { .. } | Call::NodeInfo { .. } | Call::Region { .. } => {
                self.restart_join();
            }
            Call::Mute => {}
            _ => {
                self.drop_call(id, call, from);
                self.gone(from);
            }
        }
    }

    fn timer(&mut self, kind: TimerKind) {
        match kind {
            TimerKind::Op { cookie } => {
                if let Some(name) = self.locks.get(&cookie) {
                    self.touch(*name);
                }
            }
            TimerKind::Vote { name, round, node } => self.vote_again(name, round, node),
            TimerKind::VoteStalled { name, round } => self.vote_stalled(name, round),
            TimerKind::Requery { name, round } => self.requery_over(name, round),
            TimerKind::Sweep => {
                self.sweeping = false;
                self.sweep();
            }
            TimerKind::Join { attempt } => self.join_again(attempt),
            TimerKind::AssertJoined { attempt, node } => self.assert_joined_again(attempt, node),
            TimerKind::Elect { attempt } => self.elect_again(attempt),
            TimerKind::Lead { step, node } => self.lead_again(step, node),
            TimerKind::Leave => {
                self.moving_later = false;
                self.touch_all();
            }
        }
    }
}
