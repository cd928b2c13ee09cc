//! A member dies: what every node does at once, and how it follows the one who leads the recovery.
//!
//! Every survivor marks the resources whose master is dead, takes the dead node's locks off its own resources, and freezes
//! those until the recovery is over: another node may not have heard of the death yet, and would use what the dead one left
//! half written. Then they race for the exclusive lock on `$RECOVERY`; who gets it leads (`lead.rs`).
//!
//! The value block of a resource survives its master only through a living holder of PR or EX, whose copy cannot be old. A
//! dead exclusive holder may have changed anything: then it is empty, which says that nothing is known.

use crate::dlm::{Call, Dlm, State, Todo};
use crate::event::{Action, TimerKind};
use crate::lead::Lead;
use crate::limits::ELECT_MS;
use crate::migrate::lockres_parts;
use crate::resource::{List, OpKind, Resource, Sent};
use crate::table::{AfterDeath, Leader, OnBegin, Reached, Request, after_death, on_begin};
use crate::wire::reply::{DlmStatus, ENOMEM};
use crate::wire::{FinalizeFlags, LockFlags, Message, MigFlags};
use crate::{LockName, Lvb, Mode, NodeNr};
use std::collections::BTreeMap;

/// `EAGAIN`, negative, as the kernel says it since it was corrected.
const NOT_NOW: i32 = -11;

/// How far this node is on its way to lead.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Elect {
    #[default]
    Idle,
    /// Asked for the lock.
    Locking(u64),
    /// Another has it; look again when the timer with this number is over.
    Waiting(u64),
}

/// What a node knows of the recovery that is going on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reco {
    /// The other node that leads.
    pub master: Option<NodeNr>,
    /// Who has told us the first stage of the end, and not the second.
    pub finishing: Option<NodeNr>,
    pub elect: Elect,
    pub lead: Option<Box<Lead>>,
    /// Dead nodes, and to whom we owe what we know of their resources.
    pub owed: BTreeMap<NodeNr, NodeNr>,
}

impl Reco {
    pub fn is_quiet(&self) -> bool {
        self.lead.is_none() && !matches!(self.elect, Elect::Locking(_))
    }
}

impl Dlm {
    pub(crate) fn node_up(&mut self, node: NodeNr) {
        if self.live.insert(node) {
            self.join_disturbed();
        }
    }

    pub(crate) fn node_down(&mut self, node: NodeNr) {
        if node == self.me() || matches!(self.state, State::Left) {
            return;
        }
        if self.joiner == Some(node) {
            self.joiner = None;
        }
        self.live.remove(node);
        self.join_node_down(node);
        if !self.members.contains(node) {
            self.drop_calls(node);
            return;
        }
        self.members.remove(node);
        self.dead.insert(node);
        self.tell_death(node);
        self.forget_node(node);
        let names: Vec<LockName> = self.resources.keys().copied().collect();
        for name in names {
            if name.is_recovery() {
                self.recovery_lock_bereft(node);
            } else {
                self.bereft(name, node);
            }
        }
        self.touch_all();
        self.todo.push_back(Todo::Gathered);
    }

    /// Takes a node that died or left out of everything that waits for it.
    pub(crate) fn forget_node(&mut self, node: NodeNr) {
        self.drop_calls(node);
        self.parting.remove(node);
        self.exiting.remove(node);
        let gone = |moving: &crate::dlm::Moving| moving.from == node || moving.to == node;
        self.moving.retain(|_, moving| !gone(moving));
        if self.reco.master == Some(node) {
            self.reco.master = None;
        }
        if self.reco.finishing == Some(node) {
            self.reco.finishing = None;
        }
        if let Some(lead) = &mut self.reco.lead {
            lead.forget(node);
        }
        self.reco.owed.retain(|_, asker| *asker != node);
        let mut lost = Vec::new();
        for res in self.resources.values_mut() {
            res.late.remove(node);
            res.asserting.remove(node);
            res.refs.remove(node);
            if let Some(inbound) = &mut res.inbound {
                inbound.waiting.remove(node);
            }
            if let Some(vote) = &mut res.vote {
                vote.waiting.remove(node);
                vote.maybe.remove(node);
                lost.push(res.name);
            }
        }
        for name in lost {
            self.restart_vote(name);
        }
    }

    /// A resource after a death.
    fn bereft(&mut self, name: LockName, dead: NodeNr) {
        let me = self.me();
        let forgotten = self.resources.get(&name).is_some_and(|res| res.dropping);
        if forgotten {
            if self.resources[&name].owner == Some(dead) {
                self.dropped(name);
            }
            return;
        }
        self.with(name, |dlm, res| {
            let mut held = Vec::new();
            for list in [List::Granted, List::Converting, List::Blocked] {
                let locks = res.list(list);
                held.extend(locks.iter().filter(|l| l.node == dead).map(|l| l.mode));
                locks.retain(|lock| lock.node != dead);
            }
            if !held.is_empty() {
                res.frozen.insert(dead);
                res.dirty = true;
            }
            if held.contains(&Mode::Ex) {
                res.lvb = Lvb::EMPTY;
                if let Some(lead) = &mut dlm.reco.lead {
                    lead.lvbs.insert(res.name, None);
                }
            }
            dlm.move_broken(res, dead);
            if res.owner == Some(dead) {
                res.recovering = true;
                res.lvb = Lvb::EMPTY;
                res.idle = 0;
                dlm.lose_requests(res);
            } else if res.owner == Some(me) {
                res.dirty = true;
            }
        });
    }

    /// The table's word on every request whose master is dead.
    fn lose_requests(&mut self, res: &mut Resource) {
        let open: Vec<u64> = res
            .locks()
            .filter(|lock| lock.op.is_some())
            .map(|lock| lock.cookie)
            .collect();
        for cookie in open {
            let Some(lock) = res.lock(cookie) else {
                continue;
            };
            let Some(op) = lock.op else { continue };
            let lowers = op.kind == OpKind::Convert && op.mode <= lock.mode;
            let request = match op.kind {
                OpKind::Create => Request::Create,
                OpKind::Convert => Request::Convert,
                OpKind::Unlock => Request::Unlock,
            };
            let reached = match op.sent {
                Sent::No => Reached::No,
                Sent::Call(_) | Sent::Lost => Reached::Perhaps,
                Sent::Acked => Reached::Yes,
            };
            match after_death(request, reached, op.no_queue() && !lowers) {
                AfterDeath::Anew if op.sent == Sent::No => {}
                AfterDeath::Anew => crate::advance::remake(res, cookie, op.kind),
                AfterDeath::Stays => {}
                // Off the queues, for whoever asks us; said when the recovery is over.
                AfterDeath::Done => res.move_to(cookie, List::Waiting),
            }
        }
    }

    /// `$RECOVERY` is never recovered: if its master dies it is forgotten by all.
    fn recovery_lock_bereft(&mut self, dead: NodeNr) {
        let name = LockName::recovery();
        let Some(res) = self.resources.get_mut(&name) else {
            return;
        };
        for list in [List::Granted, List::Converting, List::Blocked] {
            res.list(list).retain(|lock| lock.node != dead);
        }
        res.dirty = true;
        let inbound = res.inbound.is_some_and(|inbound| inbound.from == dead);
        if res.owner != Some(dead) && !inbound {
            self.with(name, |dlm, res| dlm.move_broken(res, dead));
            return;
        }
        self.forget_recovery_lock();
    }

    /// Our request for `$RECOVERY` met a node that cannot serve it. If that is not its master, nobody may be.
    pub(crate) fn recovery_lock_astray(&mut self, cookie: u64, status: i32) {
        if status == DlmStatus::Forward.to_wire() {
            return self.forget_recovery_lock();
        }
        if let Some(res) = self.resources.get_mut(&LockName::recovery()) {
            res.take(cookie);
        }
        self.locks.remove(&cookie);
        self.todo.push_back(Todo::Elected(false));
    }

    /// Forgets `$RECOVERY` with whatever this node had of it.
    pub(crate) fn forget_recovery_lock(&mut self) {
        let Some(res) = self.resources.remove(&LockName::recovery()) else {
            return;
        };
        for lock in res.locks() {
            if self.locks.remove(&lock.cookie).is_some() {
                if self.reco.elect == Elect::Locking(lock.cookie) {
                    self.todo.push_back(Todo::Elected(false));
                }
                if let Some(lead) = &mut self.reco.lead
                    && lead.lock == Some(lock.cookie)
                {
                    lead.lock = None;
                }
            }
        }
    }

    /// Sees to it that somebody leads, and brings our own lead forward.
    pub(crate) fn recovery_forward(&mut self) {
        if self.reco.lead.is_some() {
            self.lead_forward();
        } else if !self.dead.is_empty()
            && matches!(self.state, State::Joined | State::Leaving)
            && self.reco.master.is_none()
            && self.reco.elect == Elect::Idle
        {
            let flags = LockFlags::NOQUEUE | LockFlags::RECOVERY;
            let lock = self.new_lock(LockName::recovery(), Mode::Ex, flags);
            self.reco.elect = Elect::Locking(lock.0);
        }
    }

    /// What came of our request for `$RECOVERY`.
    pub(crate) fn elected(&mut self, won: bool) {
        let Elect::Locking(cookie) = self.reco.elect else {
            return;
        };
        if !won {
            self.elect_later();
            return;
        }
        let needed = !self.dead.is_empty() && self.reco.master.is_none();
        if needed && self.reco.lead.is_none() {
            self.reco.elect = Elect::Idle;
            self.lead(cookie);
        } else {
            self.release_recovery_lock(cookie);
            self.elect_later();
        }
    }

    pub(crate) fn release_recovery_lock(&mut self, cookie: u64) {
        let name = LockName::recovery();
        let Some(res) = self.resources.get_mut(&name) else {
            return;
        };
        if let Some(lock) = res.lock(cookie) {
            lock.op = Some(crate::resource::Op {
                kind: OpKind::Unlock,
                mode: Mode::Nl,
                flags: LockFlags::empty(),
                lvb: None,
                sent: Sent::No,
            });
            self.touch(name);
        }
    }

    pub(crate) fn elect_later(&mut self) {
        let attempt = self.fresh();
        self.reco.elect = Elect::Waiting(attempt);
        self.after(ELECT_MS, TimerKind::Elect { attempt });
    }

    pub(crate) fn elect_again(&mut self, attempt: u64) {
        if self.reco.elect == Elect::Waiting(attempt) {
            self.reco.elect = Elect::Idle;
        }
    }

    /// Another node says that it leads (517).
    pub(crate) fn on_begin(&mut self, from: NodeNr, dead: NodeNr) -> i32 {
        let me = self.me();
        if dead == me {
            self.act(Action::Evicted { by: from });
            return 0;
        }
        let other = self.reco.master.filter(|master| *master != from);
        let leader = match (&self.reco.lead, other) {
            (Some(lead), _) if lead.is_finishing() => Leader::MeFinishing,
            (Some(_), _) if me < from => Leader::MeLower,
            (Some(_), _) => Leader::MeHigher,
            (None, None) => Leader::None,
            (None, Some(other)) if other < from => Leader::Lower,
            (None, Some(_)) => Leader::Higher,
        };
        let finishing = self.reco.finishing.is_some_and(|other| other != from);
        match on_begin(leader, finishing) {
            OnBegin::Refuse => {
                if let Some(lead) = &mut self.reco.lead {
                    lead.rival = Some(from);
                }
                return NOT_NOW;
            }
            OnBegin::Yield => self.give_up_lead(),
            OnBegin::Follow => {}
        }
        self.reco.master = Some(from);
        if self.members.contains(dead) {
            self.node_down(dead);
        } else {
            self.dead.insert(dead);
        }
        0
    }

    /// The leader asks what we know of a dead node's resources (515).
    pub(crate) fn on_lock_request(&mut self, from: NodeNr, dead: NodeNr) -> i32 {
        if !self.dead.contains(dead) {
            return ENOMEM; // "ask again", as the kernel has it
        }
        self.reco.owed.insert(dead, from);
        self.todo.push_back(Todo::Gathered);
        0
    }

    /// Sends what we owe, unless we still take resources back from that dead node.
    pub(crate) fn gathered(&mut self) {
        let owed: Vec<(NodeNr, NodeNr)> = self.reco.owed.iter().map(|(d, a)| (*d, *a)).collect();
        for (dead, asker) in owed {
            if self.is_claiming(dead) {
                continue;
            }
            self.reco.owed.remove(&dead);
            self.send_all_known(dead, asker);
        }
    }

    pub(crate) fn is_claiming(&self, dead: NodeNr) -> bool {
        self.resources
            .values()
            .any(|res| res.claiming == Some(dead))
    }

    fn send_all_known(&mut self, dead: NodeNr, asker: NodeNr) {
        let me = self.me();
        let mut parts = Vec::new();
        let mut next_cookie = 0;
        for res in self.resources.values() {
            if res.recovering && res.owner == Some(dead) && !res.name.is_recovery() {
                let flags = MigFlags::RECOVERY;
                parts.extend(lockres_parts(res, me, flags, trusted_lvb(res), || {
                    next_cookie += 1;
                    next_cookie
                }));
            }
        }
        for part in parts {
            self.send(asker, Call::Mute, Message::MigLockres(part));
        }
        let message = Message::RecoDataDone { node: me, dead };
        self.send(asker, Call::Mute, message);
    }

    /// The leader has everything (518): its resources first, then the end.
    pub(crate) fn on_finalize(&mut self, from: NodeNr, dead: NodeNr, flags: FinalizeFlags) -> i32 {
        if !flags.contains(FinalizeFlags::STAGE2) {
            self.recovered(dead, from);
            self.reco.finishing = Some(from);
            self.reco.master = Some(from);
            return 0;
        }
        self.reco.finishing = None;
        self.reco.master = None;
        if self.dead.remove(dead) {
            self.act(Action::Recovered(dead));
        }
        if !self.dead.is_empty() {
            // The leader knows of those too, most likely, and goes on.
            self.elect_later();
        }
        self.touch_all();
        0
    }

    /// The dead node's resources have a new master.
    pub(crate) fn recovered(&mut self, dead: NodeNr, master: NodeNr) {
        let mut moved = Vec::new();
        for res in self.resources.values_mut() {
            if res.frozen.remove(dead) {
                res.dirty = true;
            }
            if res.recovering && res.owner == Some(dead) {
                moved.push(res.name);
            }
        }
        for name in moved {
            self.change_master(name, master, true);
        }
        self.touch_all();
    }
}

/// The value block that a holder of PR or EX can vouch for.
pub(crate) fn trusted_lvb(res: &Resource) -> Lvb {
    let held = res.granted.iter().chain(&res.converting);
    let mut trusted = held.filter(|lock| lock.least() >= Mode::Pr && !lock.lvb.is_empty());
    trusted.next().map_or(Lvb::EMPTY, |lock| lock.lvb)
}
