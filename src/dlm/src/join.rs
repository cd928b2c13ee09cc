//! Getting into a domain, and letting others in.
//!
//! The joiner asks every node that heartbeat sees (510). Members say yes only if the joiner sees all of them, nobody else
//! is joining and nothing is being recovered; nodes that are not in the domain do not mind. If anybody says no, or the set
//! of living nodes changes, it takes everything back (512) and tries again. With every yes it compares configurations
//! (520, 519), and then tells all members that it is one of them (511). Only after the last has heard it does it ask for
//! locks.

use crate::dlm::{Call, Dlm, State};
use crate::event::{Action, JoinError, TimerKind};
use crate::limits::{JOIN_RETRY_MS, JOIN_TIMEOUT_MS};
use crate::wire::reply::{EINVAL, JoinReply, MasterReply, negotiate};
use crate::wire::{Message, NodeAddress, RegionName};
use crate::{LockError, NodeNr, NodeSet};

/// `EAGAIN`, negative.
const NOT_NOW: i32 = -11;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum JoinPhase {
    #[default]
    Idle,
    Query,
    Nodes,
    Regions,
    Assert,
}

/// An attempt to join.
#[derive(Clone, Debug, Default)]
pub(crate) struct Join {
    attempt: u32,
    phase: JoinPhase,
    /// Who has not answered.
    waiting: NodeSet,
    /// Members that have said yes.
    yes: NodeSet,
    waited_ms: u32,
}

impl Dlm {
    /// Asks to get into the domain: [`Action::Joined`] or [`Action::JoinFailed`] is the end. The living nodes have to be
    /// known ([`crate::Event::NodeUp`]) before.
    ///
    /// # Errors
    /// It is in already, or has left.
    pub fn join(&mut self) -> Result<(), LockError> {
        if self.state != State::New {
            return Err(LockError::NotJoined(self.state));
        }
        self.state = State::Joining;
        self.query();
        self.settle();
        Ok(())
    }

    fn query(&mut self) {
        self.join.attempt += 1;
        self.join.phase = JoinPhase::Query;
        self.join.yes = NodeSet::EMPTY;
        self.join.waiting = self.live.without(self.me());
        let attempt = self.join.attempt;
        let message = Message::QueryJoin {
            node: self.me(),
            dlm: self.config.dlm,
            fs: self.config.fs,
            domain: self.config.domain,
            live: self.live,
        };
        self.send_all(self.join.waiting, Call::QueryJoin { attempt }, &message);
        self.join_forward();
    }

    /// Everything from the start, in a while.
    pub(crate) fn restart_join(&mut self) {
        if self.state != State::Joining || self.join.phase == JoinPhase::Idle {
            return;
        }
        let (node, domain) = (self.me(), self.config.domain);
        let message = Message::CancelJoin { node, domain };
        self.send_all(self.join.yes, Call::Mute, &message);
        self.join.phase = JoinPhase::Idle;
        self.join.attempt += 1;
        self.members = NodeSet::EMPTY;
        self.dead = NodeSet::EMPTY;
        // Two who try at once have to get out of step.
        let attempt = self.join.attempt;
        let mixed = u32::from(node.get() + 1)
            .wrapping_mul(0x9e37_79b1)
            .wrapping_add(attempt.wrapping_mul(0x85eb_ca6b));
        let back_off = JOIN_RETRY_MS * (1 + (mixed >> 13) % 4);
        self.join.waited_ms += back_off;
        if self.join.waited_ms > JOIN_TIMEOUT_MS {
            self.join_failed(JoinError::TimedOut(JOIN_TIMEOUT_MS));
        } else {
            self.after(back_off, TimerKind::Join { attempt });
        }
    }

    fn join_failed(&mut self, error: JoinError) {
        let (node, domain) = (self.me(), self.config.domain);
        let message = Message::CancelJoin { node, domain };
        self.send_all(self.join.yes, Call::Mute, &message);
        self.join = Join::default();
        self.members = NodeSet::EMPTY;
        self.state = State::New;
        self.act(Action::JoinFailed(error));
    }

    pub(crate) fn join_again(&mut self, attempt: u32) {
        if self.state == State::Joining && self.join.attempt == attempt {
            self.query();
        }
    }

    /// The living nodes are not those that we have asked.
    pub(crate) fn join_disturbed(&mut self) {
        if matches!(
            self.join.phase,
            JoinPhase::Query | JoinPhase::Nodes | JoinPhase::Regions
        ) {
            self.restart_join();
        }
    }

    pub(crate) fn join_node_down(&mut self, node: NodeNr) {
        self.join.yes.remove(node);
        self.join_disturbed();
        if self.join.phase == JoinPhase::Assert {
            self.join.waiting.remove(node);
            self.join_forward();
        }
    }

    fn is_attempt(&self, attempt: u32, phase: JoinPhase) -> bool {
        self.state == State::Joining && self.join.attempt == attempt && self.join.phase == phase
    }

    pub(crate) fn join_answered(&mut self, from: NodeNr, attempt: u32, status: i32) {
        if !self.is_attempt(attempt, JoinPhase::Query) {
            // Too late; but a yes has to be taken back.
            if matches!(JoinReply::from_wire(status), Some(JoinReply::Ok { .. }))
                && self.state == State::Joining
            {
                let (node, domain) = (self.me(), self.config.domain);
                let message = Message::CancelJoin { node, domain };
                self.send(from, Call::Mute, message);
            }
            return;
        }
        match JoinReply::from_wire(status) {
            Some(JoinReply::Ok {
                dlm_minor,
                fs_minor,
            }) => {
                self.join.yes.insert(from);
                self.config.dlm.minor = self.config.dlm.minor.min(dlm_minor);
                self.config.fs.minor = self.config.fs.minor.min(fs_minor);
            }
            Some(JoinReply::OkNoMap) => {}
            Some(JoinReply::Disallow) => return self.restart_join(),
            Some(JoinReply::ProtocolMismatch) => {
                return self.join_failed(JoinError::Protocol(from));
            }
            None => return self.join_failed(JoinError::Reply { node: from, status }),
        }
        self.join.waiting.remove(from);
        self.join_forward();
    }

    pub(crate) fn node_info_answered(&mut self, from: NodeNr, attempt: u32, status: i32) {
        if self.is_attempt(attempt, JoinPhase::Nodes) {
            if status != 0 {
                return self.join_failed(JoinError::Nodes(from));
            }
            self.join.waiting.remove(from);
            self.join_forward();
        }
    }

    pub(crate) fn region_answered(&mut self, from: NodeNr, attempt: u32, status: i32) {
        if self.is_attempt(attempt, JoinPhase::Regions) {
            if status != 0 {
                return self.join_failed(JoinError::Regions(from));
            }
            self.join.waiting.remove(from);
            self.join_forward();
        }
    }

    pub(crate) fn assert_joined_answered(&mut self, from: NodeNr, attempt: u32, status: i32) {
        if !self.is_attempt(attempt, JoinPhase::Assert) {
            return;
        }
        if status == 0 {
            self.join.waiting.remove(from);
            self.join_forward();
        } else {
            let timer = TimerKind::AssertJoined {
                attempt,
                node: from,
            };
            self.after(JOIN_RETRY_MS, timer);
        }
    }

    pub(crate) fn assert_joined_again(&mut self, attempt: u32, node: NodeNr) {
        if self.is_attempt(attempt, JoinPhase::Assert) && self.join.waiting.contains(node) {
            let (me, domain) = (self.me(), self.config.domain);
            let message = Message::AssertJoined { node: me, domain };
            self.send(node, Call::AssertJoined { attempt }, message);
        }
    }

    fn join_forward(&mut self) {
        let (node, domain) = (self.me(), self.config.domain);
        let attempt = self.join.attempt;
        while self.state == State::Joining && self.join.waiting.is_empty() {
            self.join.waiting = self.join.yes;
            let to = self.join.yes;
            let compares = self.config.dlm.minor > 0;
            match self.join.phase {
                JoinPhase::Query => {
                    self.members = to.with(node);
                    self.join.phase = JoinPhase::Nodes;
                    if compares {
                        let nodes = self.config.nodes.clone();
                        let message = Message::QueryNodeInfo {
                            node,
                            domain,
                            nodes,
                        };
                        self.send_all(to, Call::NodeInfo { attempt }, &message);
                    } else {
                        self.join.waiting = NodeSet::EMPTY;
                    }
                }
                JoinPhase::Nodes => {
                    self.join.phase = JoinPhase::Regions;
                    if compares {
                        let regions = self.config.regions.clone();
                        let message = Message::QueryRegion {
                            node,
                            domain,
                            regions,
                        };
                        self.send_all(to, Call::Region { attempt }, &message);
                    } else {
                        self.join.waiting = NodeSet::EMPTY;
                    }
                }
                JoinPhase::Regions => {
                    self.join.phase = JoinPhase::Assert;
                    let message = Message::AssertJoined { node, domain };
                    self.send_all(to, Call::AssertJoined { attempt }, &message);
                }
                JoinPhase::Assert | JoinPhase::Idle => {
                    if self.join.phase == JoinPhase::Idle {
                        return;
                    }
                    self.join = Join::default();
                    self.state = State::Joined;
                    let members = self.members;
                    self.act(Action::Joined { members });
                    return;
                }
            }
        }
    }

    /// The messages that may come from nodes outside of the domain.
    pub(crate) fn join_request(&mut self, from: NodeNr, message: &Message) -> Option<i32> {
        let domain = match message {
            Message::QueryJoin { domain, .. }
            | Message::AssertJoined { domain, .. }
            | Message::CancelJoin { domain, .. }
            | Message::QueryRegion { domain, .. }
            | Message::QueryNodeInfo { domain, .. } => domain,
            _ => return None,
        };
        if *domain != self.config.domain {
            return Some(answer_without_domain(message));
        }
        Some(match message {
            Message::QueryJoin { dlm, fs, live, .. } => {
                let reply = match self.may_join(from, *live) {
                    Some(reply) => reply,
                    None => match (
                        negotiate(*dlm, self.config.dlm),
                        negotiate(*fs, self.config.fs),
                    ) {
                        (Some(dlm), Some(fs)) => {
                            self.joiner = Some(from);
                            JoinReply::Ok {
                                dlm_minor: dlm.minor,
                                fs_minor: fs.minor,
                            }
                        }
                        _ => JoinReply::ProtocolMismatch,
                    },
                };
                reply.to_wire()
            }
            Message::AssertJoined { .. } => self.on_assert_joined(from),
            Message::CancelJoin { .. } => {
                if self.joiner == Some(from) {
                    self.joiner = None;
                }
                0
            }
            Message::QueryRegion { regions, .. } => {
                self.compare(from, |config| same_regions(&config.regions, regions))
            }
            Message::QueryNodeInfo { nodes, .. } => {
                self.compare(from, |config| same_nodes(&config.nodes, nodes))
            }
            _ => EINVAL,
        })
    }

    /// The answer to a node that wants to join, unless that is yes.
    fn may_join(&self, from: NodeNr, sees: NodeSet) -> Option<JoinReply> {
        let quiet = self.dead.is_empty() && self.reco.lead.is_none() && self.reco.master.is_none();
        let known = self.members.contains(from) || self.dead.contains(from);
        let other_joins = self.joiner.is_some_and(|joiner| joiner != from);
        match self.state {
            _ if !self.live.contains(from) => Some(JoinReply::Disallow),
            State::New | State::Exiting | State::Left => Some(JoinReply::OkNoMap),
            // Between two attempts we are in nobody's way.
            State::Joining if self.join.phase == JoinPhase::Idle => Some(JoinReply::OkNoMap),
            State::Joining => Some(JoinReply::Disallow),
            _ if !self.members.difference(sees).is_empty() => Some(JoinReply::Disallow),
            _ if !quiet || known || other_joins => Some(JoinReply::Disallow),
            State::Joined | State::Leaving => None,
        }
    }

    fn on_assert_joined(&mut self, from: NodeNr) -> i32 {
        if self.members.contains(from) {
            return 0;
        }
        if self.joiner != Some(from) {
            return EINVAL;
        }
        if !self.dead.is_empty() {
            return NOT_NOW;
        }
        self.joiner = None;
        self.exiting.remove(from);
        self.members.insert(from);
        self.act(Action::MemberJoined(from));
        self.ask_newcomer(from);
        0
    }

    fn compare(&self, from: NodeNr, same: impl FnOnce(&crate::Config) -> bool) -> i32 {
        let agreed = self.joiner == Some(from) && self.config.dlm.minor > 0;
        if agreed && same(&self.config) {
            0
        } else {
            EINVAL
        }
    }

    /// The answer to a node that is no member, or not any more.
    pub(crate) fn stranger(&self, message: &Message) -> i32 {
        use crate::wire::reply::DlmStatus;
        match message {
            Message::MasterRequest { .. } if self.state == State::Joined => {
                MasterReply::Error as i32
            }
            Message::MasterRequest { .. } => MasterReply::No as i32,
            Message::MasterRequery { .. } => crate::wire::reply::owner(None),
            Message::CreateLock { .. }
            | Message::ConvertLock { .. }
            | Message::UnlockLock { .. } => DlmStatus::Recovering.to_wire(),
            Message::MigLockres(_) | Message::LockRequest { .. } | Message::BeginReco { .. } => {
                EINVAL
            }
            _ => 0,
        }
    }
}

fn same_nodes(ours: &[NodeAddress], theirs: &[NodeAddress]) -> bool {
    let sorted = |nodes: &[NodeAddress]| {
        let mut nodes = nodes.to_vec();
        nodes.sort_unstable();
        nodes
    };
    sorted(ours) == sorted(theirs)
}

fn same_regions(ours: &[RegionName], theirs: &[RegionName]) -> bool {
    let has_all = |a: &[RegionName], b: &[RegionName]| a.iter().all(|region| b.contains(region));
    has_all(ours, theirs) && has_all(theirs, ours)
}

/// What a node answers for a domain that it is not in.
pub fn answer_without_domain(message: &Message) -> i32 {
    match message {
        Message::QueryJoin { .. } => JoinReply::OkNoMap.to_wire(),
        Message::QueryRegion { .. } | Message::QueryNodeInfo { .. } => EINVAL,
        _ => 0,
    }
}
