//! Leading a recovery.
//!
//! ```text
//!  for each dead node:   517 begin ─► all   515 send what you know ─► all   ◄─ 509 … 516 that was all
//!  if nobody died meanwhile, for each dead node again:   518 mine now ─► all   518 done ─► all
//!  then the leader opens the resources
//! ```
//! All dead nodes are recovered together: what they had is collected for every one of them before anybody is told that the
//! resources have a new master. So it does not matter that two survivors can take two different dead nodes for the master
//! of one resource (the leader before died between two messages of the first stage; a resource was moving between two that
//! died): the leader's set of dead nodes has both. A node that knows of a death that the leader has not heard of keeps its
//! resources back, but then the leader waits for the dead node's own answer and hears of the death in time.
//!
//! If somebody dies while it collects, the leader finishes that round, forgets what it has collected and begins again.
//! Two stages at the end, each answered by all before the next: after a leader's death, a survivor that has seen the
//! second knows that all have seen the first.

use crate::dlm::{Call, Dlm};
use crate::event::{Action, TimerKind};
use crate::limits::LEAD_RETRY_MS;
use crate::migrate::add_record;
use crate::recovery::trusted_lvb;
use crate::wire::{FinalizeFlags, Message, MigLockres, Queue};
use crate::{LockName, Lvb, Mode, NodeNr, NodeSet};
use std::collections::BTreeMap;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    Begin,
    Request,
    Collect,
    BeginEnd,
    Stage1,
    Stage2,
}

/// A resource whose sender does not know a master: all are asked whether somebody does (514).
#[derive(Clone, Debug)]
pub(crate) struct Orphan {
    waiting: NodeSet,
    data: Vec<(NodeNr, MigLockres)>,
}

/// What the leader has to remember.
#[derive(Clone, Debug)]
pub(crate) struct Lead {
    /// Our lock on `$RECOVERY`, unless its master died.
    pub lock: Option<u64>,
    /// Who is recovered.
    pub dead: Vec<NodeNr>,
    index: usize,
    phase: Phase,
    /// Names the messages of this phase.
    step: u64,
    /// Who has not answered.
    waiting: NodeSet,
    /// Who has not sent everything.
    collecting: NodeSet,
    /// Another who says that it leads, and to whom we have said "not now".
    pub rival: Option<NodeNr>,
    /// Resources that a living node has the whole truth of: what others send of them is out of date.
    pub claimed: BTreeMap<LockName, NodeNr>,
    /// Value blocks that others vouch for; none if they contradict each other.
    pub lvbs: BTreeMap<LockName, Option<Lvb>>,
    orphans: BTreeMap<LockName, Orphan>,
}

impl Lead {
    /// Whether others may take us for the master of what we have collected.
    pub fn is_finishing(&self) -> bool {
        matches!(self.phase, Phase::BeginEnd | Phase::Stage1 | Phase::Stage2)
    }

    pub fn forget(&mut self, node: NodeNr) {
        self.waiting.remove(node);
        self.collecting.remove(node);
        self.claimed.retain(|_, claimant| *claimant != node);
        for orphan in self.orphans.values_mut() {
            orphan.waiting.remove(node);
        }
        if self.rival == Some(node) {
            self.rival = None;
        }
    }
}

impl Dlm {
    /// Takes the lead; `lock` is ours on `$RECOVERY`.
    pub(crate) fn lead(&mut self, lock: u64) {
        self.reco.lead = Some(Box::new(Lead {
            lock: Some(lock),
            dead: self.dead.iter().collect(),
            index: 0,
            phase: Phase::Begin,
            step: 0,
            waiting: NodeSet::EMPTY,
            collecting: NodeSet::EMPTY,
            rival: None,
            claimed: BTreeMap::new(),
            lvbs: BTreeMap::new(),
            orphans: BTreeMap::new(),
        }));
        self.enter(Phase::Begin, 0);
    }

    fn enter(&mut self, phase: Phase, index: usize) {
        let step = self.fresh();
        let others = self.others();
        let Some(lead) = &mut self.reco.lead else {
            return;
        };
        lead.phase = phase;
        lead.index = index;
        lead.step = step;
        lead.waiting = others;
        if phase == Phase::Request {
            lead.collecting = others;
        }
        if phase == Phase::Collect {
            lead.waiting = NodeSet::EMPTY;
        } else if let Some(message) = self.lead_message() {
            self.send_all(others, Call::Lead { step }, &message);
        }
    }

    fn lead_message(&self) -> Option<Message> {
        let lead = self.reco.lead.as_ref()?;
        let (node, dead) = (self.me(), lead.dead[lead.index]);
        Some(match lead.phase {
            Phase::Begin | Phase::BeginEnd => Message::BeginReco { node, dead },
            Phase::Request | Phase::Collect => Message::LockRequest { node, dead },
            Phase::Stage1 => Message::FinalizeReco {
                node,
                dead,
                flags: FinalizeFlags::empty(),
            },
            Phase::Stage2 => Message::FinalizeReco {
                node,
                dead,
                flags: FinalizeFlags::STAGE2,
            },
        })
    }

    /// Goes on as far as the answers allow.
    pub(crate) fn lead_forward(&mut self) {
        loop {
            self.resolve_orphans();
            let Some(lead) = &self.reco.lead else { return };
            if !lead.waiting.is_empty() {
                return;
            }
            let (index, count) = (lead.index, lead.dead.len());
            match lead.phase {
                Phase::Begin => self.enter(Phase::Request, index),
                Phase::Request => self.enter(Phase::Collect, index),
                Phase::Collect => {
                    let taking = lead.dead.iter().any(|dead| self.is_claiming(*dead));
                    if !lead.collecting.is_empty() || !lead.orphans.is_empty() || taking {
                        return;
                    }
                    if !self.dead.iter().eq(lead.dead.iter().copied()) {
                        self.begin_again();
                    } else if index + 1 < count {
                        self.enter(Phase::Begin, index + 1);
                    } else if count > 1 {
                        self.enter(Phase::BeginEnd, 0);
                    } else {
                        self.enter(Phase::Stage1, 0);
                    }
                }
                Phase::BeginEnd => self.enter(Phase::Stage1, index),
                Phase::Stage1 => self.enter(Phase::Stage2, index),
                Phase::Stage2 if index + 1 < count => self.enter(Phase::BeginEnd, index + 1),
                Phase::Stage2 => return self.lead_over(),
            }
        }
    }

    /// Somebody died while we collected.
    fn begin_again(&mut self) {
        self.drop_collected();
        let dead = self.dead.iter().collect();
        if let Some(lead) = &mut self.reco.lead {
            lead.dead = dead;
            lead.lvbs.clear();
        }
        self.enter(Phase::Begin, 0);
    }

    fn drop_collected(&mut self) {
        let me = self.me();
        for res in self.resources.values_mut() {
            if res.recovering {
                res.drop_foreign(me);
            }
        }
    }

    /// Another leads, with better right.
    pub(crate) fn give_up_lead(&mut self) {
        self.drop_collected();
        if let Some(lead) = self.reco.lead.take()
            && let Some(lock) = lead.lock
        {
            self.release_recovery_lock(lock);
        }
        self.elect_later();
    }

    /// All others know that the resources are ours: we serve them.
    fn lead_over(&mut self) {
        let Some(lead) = self.reco.lead.take() else {
            return;
        };
        let me = self.me();
        let ours = |res: &crate::resource::Resource| {
            res.recovering && res.owner.is_some_and(|owner| lead.dead.contains(&owner))
        };
        let names: Vec<LockName> = self
            .resources
            .values()
            .filter(|res| ours(res))
            .map(|res| res.name)
            .collect();
        for name in names {
            if let Some(res) = self.resources.get_mut(&name) {
                let own = trusted_lvb(res);
                let theirs = lead.lvbs.get(&name).copied();
                res.lvb = agree(theirs, own).unwrap_or_default();
            }
            self.change_master(name, me, true);
        }
        for node in &lead.dead {
            self.recovered(*node, me);
            if self.dead.remove(*node) {
                self.act(Action::Recovered(*node));
            }
        }
        if let Some(lock) = lead.lock {
            self.release_recovery_lock(lock);
        }
        if !self.dead.is_empty() {
            self.elect_later();
        }
        self.touch_all();
    }

    pub(crate) fn lead_answered(&mut self, from: NodeNr, step: u64, status: i32) {
        let Some(lead) = &mut self.reco.lead else {
            return;
        };
        if lead.step != step {
            return;
        }
        if status == 0 {
            lead.waiting.remove(from);
            return;
        }
        if lead.rival == Some(from) && !lead.is_finishing() {
            self.give_up_lead();
            return;
        }
        self.after(LEAD_RETRY_MS, TimerKind::Lead { step, node: from });
    }

    pub(crate) fn lead_again(&mut self, step: u64, node: NodeNr) {
        let open = self
            .reco
            .lead
            .as_ref()
            .is_some_and(|lead| lead.step == step && lead.waiting.contains(node));
        if open && let Some(message) = self.lead_message() {
            self.send(node, Call::Lead { step }, message);
        }
    }

    pub(crate) fn on_data_done(&mut self, from: NodeNr, dead: NodeNr) -> i32 {
        if let Some(lead) = &mut self.reco.lead
            && lead.dead.get(lead.index) == Some(&dead)
        {
            lead.collecting.remove(from);
        }
        0
    }

    /// A node says that it has all that a dead master had of a resource.
    pub(crate) fn claimed(&mut self, from: NodeNr, name: LockName) {
        if let Some(lead) = &mut self.reco.lead {
            lead.claimed.insert(name, from);
            lead.orphans.remove(&name);
        }
    }

    /// What a survivor knows of a resource (509).
    pub(crate) fn on_recovery_data(&mut self, from: NodeNr, data: MigLockres) -> i32 {
        let (name, others) = (data.name, self.others());
        let Some(lead) = &mut self.reco.lead else {
            return 0;
        };
        if lead.claimed.contains_key(&name) || lead.is_finishing() {
            return 0;
        }
        let lives = |res: &crate::resource::Resource| res.owner.is_some() && !res.recovering;
        if self.resources.get(&name).is_some_and(|res| lives(res)) {
            return 0;
        }
        if data.master.is_some() {
            self.take_in(from, data);
            return 0;
        }
        let asked = others.without(from);
        let new = !lead.orphans.contains_key(&name);
        let orphan = lead.orphans.entry(name).or_insert_with(|| Orphan {
            waiting: asked,
            data: Vec::new(),
        });
        orphan.data.push((from, data));
        if new {
            let node = self.me();
            let message = Message::MasterRequery { node, name };
            self.send_all(asked, Call::Orphan { name }, &message);
        }
        0
    }

    pub(crate) fn orphan_answered(&mut self, from: NodeNr, name: LockName, status: i32) {
        let owner = u8::try_from(status).ok().and_then(NodeNr::new);
        let alive = owner.is_some_and(|owner| self.members.contains(owner));
        let Some(lead) = &mut self.reco.lead else {
            return;
        };
        if alive {
            // That node tells the others itself.
            lead.orphans.remove(&name);
        } else if let Some(orphan) = lead.orphans.get_mut(&name) {
            orphan.waiting.remove(from);
        }
    }

    /// Resources that nobody knows a living master of are ours, like the dead nodes' own.
    fn resolve_orphans(&mut self) {
        let Some(lead) = &mut self.reco.lead else {
            return;
        };
        let resolved: Vec<LockName> = lead
            .orphans
            .iter()
            .filter(|(_, orphan)| orphan.waiting.is_empty())
            .map(|(name, _)| *name)
            .collect();
        for name in resolved {
            let orphan = self
                .reco
                .lead
                .as_mut()
                .and_then(|l| l.orphans.remove(&name));
            for (from, data) in orphan.into_iter().flat_map(|orphan| orphan.data) {
                self.take_in(from, data);
            }
        }
    }

    /// Adds a survivor's locks to the resource that we shall be master of.
    fn take_in(&mut self, from: NodeNr, data: MigLockres) {
        let Some(lead) = &self.reco.lead else { return };
        let dead = lead.dead[lead.index];
        let res = self.resource(data.name);
        if !res.recovering {
            // We did not know it, or were asking whose it is.
            if res.vote.take().is_some() {
                res.late = NodeSet::EMPTY;
            }
            res.owner = Some(dead);
            res.recovering = true;
        }
        let mut trusted = false;
        for record in data.locks.iter().filter(|record| record.node == from) {
            add_record(res, record);
            let least = record.convert.into_iter().chain(record.mode).min();
            trusted |= record.queue != Queue::Blocked && least >= Some(Mode::Pr);
        }
        let lvb = Lvb(data.lvb);
        if trusted && !lvb.is_empty() {
            let name = data.name;
            if let Some(lead) = &mut self.reco.lead {
                let known = lead.lvbs.get(&name).copied();
                lead.lvbs.insert(name, agree(known, lvb));
            }
        }
        self.touch(data.name);
    }
}

/// What is believed of a value block when one more holder vouches for one: nothing, once two have said different things.
fn agree(known: Option<Option<Lvb>>, lvb: Lvb) -> Option<Lvb> {
    match known {
        None => Some(lvb),
        Some(Some(known)) if lvb.is_empty() || known == lvb => Some(known),
        Some(_) => None,
    }
}
