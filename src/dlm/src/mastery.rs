//! Who is the master of a resource: asking, answering, announcing, forgetting.
//!
//! Whoever wants a resource that it does not know asks all members (500). Nobody keeps a list of masters: the first who
//! asks, and gets no other answer than "not I", is it, and announces itself to all (502). Two who ask at once hear *maybe*
//! from each other, and the lower number wins: at least one of the two messages finds the other node asking already.
//!
//! The vote counts only if no dead member can be the master: it is held until all recoveries are over, and taken afresh
//! when a member dies. A node that joins while it runs is asked too.

use crate::dlm::{Call, Dlm, State};
use crate::event::TimerKind;
use crate::limits::{REQUERY_MS, SWEEPS, VOTE_RETRY_MS, VOTE_STALLED_MS};
use crate::resource::{Resource, Vote, VotePhase};
use crate::table::{Master, Standing, mastery};
use crate::wire::reply::{self, AssertReply, DerefReply, EINVAL, MasterReply};
use crate::wire::{AssertFlags, LockFlags, Message};
use crate::{LockName, NodeNr, NodeSet};

impl Dlm {
    /// A vote that has not begun.
    pub(crate) fn new_vote(&mut self) -> Vote {
        Vote {
            round: self.fresh(),
            phase: VotePhase::Hold,
            waiting: NodeSet::EMPTY,
            maybe: NodeSet::EMPTY.with(self.me()),
        }
    }

    /// Begins the vote, or counts it.
    pub(crate) fn vote_forward(&mut self, res: &mut Resource) {
        let Some(vote) = &mut res.vote else { return };
        match vote.phase {
            VotePhase::Hold => {
                if !matches!(self.state, State::Joined | State::Leaving)
                    || self.moving.contains_key(&res.name)
                {
                    return;
                }
                if res.name.is_recovery() {
                    let others = self.others();
                    vote.phase = VotePhase::Requery;
                    vote.waiting = others;
                    let (name, round) = (res.name, vote.round);
                    let node = self.me();
                    let message = Message::MasterRequery { node, name };
                    self.send_all(others, Call::Requery { name, round }, &message);
                    if others.is_empty() {
                        self.ask(res);
                    }
                } else if self.dead.is_empty() {
                    self.ask(res);
                }
            }
            VotePhase::Requery if vote.waiting.is_empty() => self.ask(res),
            VotePhase::Ask if vote.waiting.is_empty() => self.count(res),
            VotePhase::Requery | VotePhase::Ask | VotePhase::Lost => {}
        }
    }

    fn ask(&mut self, res: &mut Resource) {
        let Some(vote) = &mut res.vote else { return };
        let others = self.others();
        vote.phase = VotePhase::Ask;
        vote.waiting = others;
        let (name, round) = (res.name, vote.round);
        let message = self.master_request(name);
        self.send_all(others, Call::Vote { name, round }, &message);
        if others.is_empty() {
            self.count(res);
        }
    }

    fn master_request(&self, name: LockName) -> Message {
        let (node, flags) = (self.me(), LockFlags::empty());
        Message::MasterRequest { node, flags, name }
    }

    fn count(&mut self, res: &mut Resource) {
        let Some(vote) = &mut res.vote else { return };
        if vote.maybe.first() == Some(self.config.me) {
            res.vote = None;
            res.owner = Some(self.me());
            res.dirty = true;
            self.announce(res);
        } else {
            vote.phase = VotePhase::Lost;
            let (name, round) = (res.name, vote.round);
            self.after(VOTE_STALLED_MS, TimerKind::VoteStalled { name, round });
        }
    }

    /// Tells all members that this node is the master.
    pub(crate) fn announce(&mut self, res: &mut Resource) {
        if !res.asserting.is_empty() {
            res.again = true;
            return;
        }
        let (node, name) = (self.me(), res.name);
        let others = self.others();
        res.asserting = others;
        let flags = if res.claiming.is_some() {
            AssertFlags::REQUERY
        } else {
            AssertFlags::empty()
        };
        let message = Message::AssertMaster { node, flags, name };
        self.send_all(others, Call::Assert { name }, &message);
    }

    /// Somebody asks who the master is.
    pub(crate) fn on_master_request(&mut self, from: NodeNr, name: LockName) -> i32 {
        let me = self.me();
        let res = self.resources.get_mut(&name).filter(|res| !res.dropping);
        let reply = mastery(Standing {
            joined: matches!(self.state, State::Joined | State::Leaving),
            known: res.is_some(),
            in_motion: res.as_ref().is_some_and(|res| {
                res.recovering || res.inbound.is_some() || res.outbound.is_some()
            }),
            master: match res.as_ref().and_then(|res| res.owner) {
                None => Master::Unknown,
                Some(owner) if owner == me => Master::Me,
                Some(_) => Master::Other,
            },
        });
        if let Some(res) = res {
            if reply == MasterReply::Yes {
                res.refs.insert(from);
                res.idle = 0;
                // Others may remember that the sender asked them, and wait for us to speak.
                if self.config.kernel_peers {
                    res.again = true;
                    self.touch(name);
                }
            } else if reply == MasterReply::Maybe
                && let Some(vote) = &mut res.vote
            {
                vote.maybe.insert(from);
            }
        }
        reply as i32
    }

    pub(crate) fn vote_answered(&mut self, from: NodeNr, name: LockName, round: u64, status: i32) {
        let kernel_peers = self.config.kernel_peers;
        let Some(res) = self.resources.get_mut(&name) else {
            return;
        };
        let reply = MasterReply::from_wire(status).unwrap_or(MasterReply::Error);
        match &mut res.vote {
            Some(vote) if vote.round == round => match reply {
                MasterReply::No => {
                    vote.waiting.remove(from);
                }
                MasterReply::Maybe => {
                    vote.waiting.remove(from);
                    vote.maybe.insert(from);
                }
                MasterReply::Error => {
                    self.after(
                        VOTE_RETRY_MS,
                        TimerKind::Vote {
                            name,
                            round,
                            node: from,
                        },
                    );
                }
                MasterReply::Yes => {
                    vote.waiting.remove(from);
                    Self::master_found(res, from, kernel_peers);
                }
            },
            _ => {
                res.late.remove(from);
            }
        }
        self.touch(name);
    }

    /// The vote is over: another is the master.
    pub(crate) fn master_found(res: &mut Resource, master: NodeNr, kernel_peers: bool) {
        if let Some(vote) = res.vote.take()
            && matches!(vote.phase, VotePhase::Ask | VotePhase::Lost)
        {
            res.late = vote.waiting.without(master);
            res.tidy = kernel_peers;
        }
        res.owner = Some(master);
        res.idle = 0;
    }

    pub(crate) fn vote_again(&mut self, name: LockName, round: u64, node: NodeNr) {
        let Some(res) = self.resources.get(&name) else {
            return;
        };
        let open = res.vote.as_ref().is_some_and(|vote| {
            vote.round == round && vote.phase == VotePhase::Ask && vote.waiting.contains(node)
        });
        if open {
            let message = self.master_request(name);
            self.send(node, Call::Vote { name, round }, message);
        } else if let Some(res) = self.resources.get_mut(&name) {
            res.late.remove(node);
            self.touch(name);
        }
    }

    pub(crate) fn vote_stalled(&mut self, name: LockName, round: u64) {
        let stalled = self.resources.get(&name).is_some_and(|res| {
            let vote = res.vote.as_ref();
            vote.is_some_and(|vote| vote.round == round && vote.phase == VotePhase::Lost)
        });
        if stalled {
            self.restart_vote(name);
        }
    }

    /// Forgets all votes and asks again, as soon as that makes sense.
    pub(crate) fn restart_vote(&mut self, name: LockName) {
        let vote = self.new_vote();
        if let Some(res) = self.resources.get_mut(&name)
            && res.vote.is_some()
        {
            res.vote = Some(vote);
            self.touch(name);
        }
    }

    /// A node has joined: votes that are open are not complete without it.
    pub(crate) fn ask_newcomer(&mut self, node: NodeNr) {
        let mut open = Vec::new();
        for res in self.resources.values_mut() {
            if let Some(vote) = &mut res.vote
                && matches!(vote.phase, VotePhase::Ask | VotePhase::Lost)
            {
                vote.phase = VotePhase::Ask;
                vote.waiting.insert(node);
                open.push((res.name, vote.round));
            }
        }
        for (name, round) in open {
            let message = self.master_request(name);
            self.send(node, Call::Vote { name, round }, message);
        }
    }

    /// The master of the moment, asked for in a recovery (514).
    pub(crate) fn on_requery(&mut self, name: LockName) -> i32 {
        let me = self.me();
        let owner = self.resources.get(&name).filter(|res| !res.dropping);
        let owner = owner.and_then(|res| res.owner);
        if owner == Some(me)
            && self.config.kernel_peers
            && let Some(res) = self.resources.get_mut(&name)
        {
            res.again = true;
            self.touch(name);
        }
        reply::owner(owner)
    }

    pub(crate) fn requery_answered(
        &mut self,
        from: NodeNr,
        name: LockName,
        round: u64,
        status: i32,
    ) {
        let dead = self.dead;
        let Some(vote) = self.vote_of(name, round) else {
            return;
        };
        if vote.phase != VotePhase::Requery {
            return;
        }
        let owner = u8::try_from(status).ok().and_then(NodeNr::new);
        if owner.is_some_and(|owner| dead.contains(owner)) {
            // It has not heard of the death. Once it has, it forgets the resource.
            vote.waiting = NodeSet::EMPTY.with(from);
            vote.maybe = NodeSet::EMPTY;
            self.after(REQUERY_MS, TimerKind::Requery { name, round });
        } else {
            vote.waiting.remove(from);
            self.touch(name);
        }
    }

    pub(crate) fn requery_over(&mut self, name: LockName, round: u64) {
        let open = self
            .vote_of(name, round)
            .is_some_and(|vote| vote.phase == VotePhase::Requery);
        if open {
            self.restart_vote(name);
        }
    }

    fn vote_of(&mut self, name: LockName, round: u64) -> Option<&mut Vote> {
        let vote = self.resources.get_mut(&name)?.vote.as_mut()?;
        (vote.round == round).then_some(vote)
    }

    /// A master announces itself.
    pub(crate) fn on_assert(&mut self, from: NodeNr, name: LockName, flags: AssertFlags) -> i32 {
        let me = self.me();
        let kernel_peers = self.config.kernel_peers;
        let finished = flags.contains(AssertFlags::FINISH_MIGRATION);
        let moved = finished && self.moving.remove(&name).is_some();
        if finished && self.move_finished(from, name) {
            return AssertReply::MASTERY_REF.bits();
        }
        self.claimed(from, name);
        let Some(res) = self.resources.get_mut(&name) else {
            return 0;
        };
        if res.dropping {
            return 0;
        }
        let reference = AssertReply::MASTERY_REF.bits();
        if res.owner == Some(me) && !res.recovering {
            // Two masters. The one who hears it is not to believe.
            return EINVAL;
        }
        if res.owner == Some(from) && !res.recovering {
            self.touch(name);
            return if moved { reference } else { 0 };
        }
        if res.vote.is_some() {
            Self::master_found(res, from, kernel_peers);
            self.touch(name);
            return reference;
        }
        // The master has changed: by migration, or because a living node has all that a dead master had.
        self.change_master(name, from, false);
        reference
    }

    pub(crate) fn assert_answered(&mut self, from: NodeNr, name: LockName, status: i32) {
        let Some(res) = self.resources.get_mut(&name) else {
            return;
        };
        res.asserting.remove(from);
        if status > 0 {
            let reply = AssertReply::from_bits_truncate(status);
            if reply.contains(AssertReply::MASTERY_REF) {
                res.refs.insert(from);
            }
            res.again |= reply.contains(AssertReply::REASSERT);
        }
        self.touch(name);
    }

    /// Whoever was asked after the master had spoken, and so might wait for it to speak, has heard it now.
    pub(crate) fn tidy_answered(&mut self, name: LockName, status: i32) {
        if let Some(res) = self.resources.get_mut(&name) {
            let done = status == MasterReply::Yes as i32;
            if !done && res.owner != Some(self.config.me) {
                // It moves, or has moved; its new master will speak to all.
                res.tidy = false;
            }
            self.touch(name);
        }
    }

    /// Looks for what has not been used for a while.
    pub(crate) fn sweep(&mut self) {
        let mut unused = Vec::new();
        for res in self.resources.values_mut() {
            if res.is_unused() {
                res.idle += 1;
                if res.idle > SWEEPS {
                    unused.push(res.name);
                }
            }
        }
        for name in unused {
            self.forget(name);
        }
        if self.resources.values().any(|res| res.is_unused()) {
            self.sweep_later();
        }
    }

    /// Forgets an unused resource: at once if this node is its master, else with the master's knowledge.
    pub(crate) fn forget(&mut self, name: LockName) {
        let me = self.me();
        let Some(res) = self.resources.get_mut(&name) else {
            return;
        };
        if self.moving.contains_key(&name) {
            return;
        }
        match res.owner {
            Some(owner) if owner != me => {
                res.dropping = true;
                let message = Message::DerefLockres { node: me, name };
                self.send(owner, Call::Deref { name }, message);
            }
            _ => {
                self.resources.remove(&name);
            }
        }
    }

    pub(crate) fn deref_answered(&mut self, name: LockName, status: i32) {
        if status != DerefReply::InProgress as i32 {
            self.dropped(name);
        }
    }

    pub(crate) fn on_deref_done(&mut self, from: NodeNr, name: LockName) -> i32 {
        let res = self.resources.get(&name);
        if res.is_some_and(|res| res.dropping && res.owner == Some(from)) {
            self.dropped(name);
        }
        0
    }

    /// The master has forgotten that we knew it; so we do not. If somebody has asked for it meanwhile, it is new.
    pub(crate) fn dropped(&mut self, name: LockName) {
        let vote = self.new_vote();
        if let Some(mut old) = self.resources.remove(&name)
            && !old.waiting.is_empty()
        {
            let res = self.resource(name);
            res.waiting = std::mem::take(&mut old.waiting);
            res.vote = Some(vote);
            self.touch(name);
        }
    }

    /// Somebody forgets a resource of ours.
    pub(crate) fn on_deref(&mut self, from: NodeNr, name: LockName) -> i32 {
        let Some(res) = self.resources.get_mut(&name) else {
            return EINVAL;
        };
        res.refs.remove(from);
        self.touch(name);
        DerefReply::Done as i32
    }
}
