//! Resources that move to another master, because theirs leaves; and leaving.
//!
//! ```text
//!   old master          new master              every other member
//!       │  509 (all locks) ► │                        │
//!       │                    │ 508 it moves ────────► │   requests wait
//!       │                    │ 502 it has moved ────► │   requests go to the new master
//!       │ ◄──── 502 it has moved (last)               │
//!  forgets                 serves
//! ```
//! The old master keeps everything until the last message has come, and the new one serves nobody before it was answered:
//! whichever of the two dies in between, the other has the whole truth. It *claims* the resource: announces itself to all,
//! and lets the recovery of the dead one wait for the answers. If both die, recovery asks for the resources of both.

use crate::dlm::{Call, Dlm, Moving, State};
use crate::event::{Action, TimerKind};
use crate::limits::{LEAVE_RETRY_MS, MOVES_AT_ONCE};
use crate::resource::{Inbound, InboundStage, List, Lock, Outbound, Resource};
use crate::wire::reply::{EINVAL, MIGRATE_MASTERY_REF};
use crate::wire::{
    AssertFlags, LockFlags, MAX_RECORDS, Message, MigFlags, MigLock, MigLockres, Queue, RecordFlags,
};
use crate::{LockError, LockName, Lvb, Mode, NodeNr, NodeSet};

impl Dlm {
    /// Leaves the domain: gives all resources away, then says good-bye. [`Action::Left`] is the end. Every lock has to be
    /// given up before.
    ///
    /// # Errors
    /// The node is not a member, or has a lock.
    pub fn leave(&mut self) -> Result<(), LockError> {
        if self.state != State::Joined {
            return Err(LockError::NotJoined(self.state));
        }
        let recovery = LockName::recovery();
        let held = self.locks.iter().find(|(_, name)| **name != recovery);
        if let Some((cookie, _)) = held {
            return Err(LockError::Busy(crate::LockId(*cookie)));
        }
        self.state = State::Leaving;
        self.parting = self.others();
        let message = Message::BeginExitDomain { node: self.me() };
        self.send_all(self.parting, Call::BeginExit, &message);
        self.settle();
        Ok(())
    }

    /// Whether all others have heard that we shall leave, so that resources can be given away.
    pub(crate) fn may_part(&self) -> bool {
        self.state == State::Leaving && self.parting.is_empty()
    }

    /// Brings leaving forward.
    pub(crate) fn leave_forward(&mut self) {
        match self.state {
            State::Leaving if self.parting.is_empty() => {
                if !self.parted {
                    self.parted = true;
                    self.touch_all();
                    self.settle();
                } else if self.resources.is_empty()
                    && self.dead.is_empty()
                    && self.joiner.is_none()
                    && self.reco.is_quiet()
                {
                    self.state = State::Exiting;
                    self.parting = self.others();
                    let message = Message::ExitDomain { node: self.me() };
                    self.send_all(self.parting, Call::Exit, &message);
                    self.leave_forward();
                }
            }
            State::Exiting if self.parting.is_empty() => {
                self.state = State::Left;
                self.calls.clear();
                self.act(Action::Left);
            }
            _ => {}
        }
    }

    /// A member has left.
    pub(crate) fn on_exit(&mut self, node: NodeNr) -> i32 {
        self.gone(node);
        0
    }

    /// The node is a member no more, and nothing of it has to be recovered.
    pub(crate) fn gone(&mut self, node: NodeNr) {
        if !self.members.remove(node) {
            return;
        }
        self.act(Action::MemberLeft(node));
        self.forget_node(node);
        let orphans: Vec<LockName> = self
            .resources
            .values()
            .filter(|res| res.owner == Some(node))
            .map(|res| res.name)
            .collect();
        for name in orphans {
            // It has left resources behind that we know: a fault of its, and nobody's resources now.
            let vote = self.new_vote();
            if let Some(res) = self.resources.get_mut(&name) {
                res.owner = None;
                res.vote = Some(vote);
                let asked: Vec<_> = res
                    .locks()
                    .filter_map(|lock| Some((lock.cookie, lock.op?.kind)))
                    .collect();
                for (cookie, kind) in asked {
                    crate::advance::remake(res, cookie, kind);
                }
            }
        }
        self.touch_all();
    }

    /// Starts moving a resource away, or sends it.
    pub(crate) fn outbound_forward(&mut self, res: &mut Resource) {
        let me = self.me();
        if res.outbound.is_none() && self.may_part() && self.is_movable(res) {
            let Some(target) = self.pick_target(res) else {
                return self.move_later();
            };
            if self.moves >= MOVES_AT_ONCE {
                return self.move_later();
            }
            self.moves += 1;
            res.outbound = Some(Outbound {
                target,
                sent: false,
                unanswered: 0,
            });
        }
        let Some(outbound) = &mut res.outbound else {
            return;
        };
        let busy = !res.asserting.is_empty() || res.notices > 0 || res.again;
        if outbound.sent || busy || !res.frozen.is_empty() {
            return;
        }
        outbound.sent = true;
        let target = outbound.target;
        let parts = lockres_parts(res, me, MigFlags::MIGRATION, res.lvb, || self.fresh());
        if let Some(outbound) = &mut res.outbound {
            outbound.unanswered = parts.len() as u32;
        }
        let name = res.name;
        for part in parts {
            self.send(target, Call::Move { name }, Message::MigLockres(part));
        }
    }

    fn is_movable(&self, res: &Resource) -> bool {
        let me = self.me();
        res.is_open(me)
            && res.frozen.is_empty()
            && res.claiming.is_none()
            && res.late.is_empty()
            && res.locks().all(|lock| lock.node != me)
            && (res.locks().next().is_some() || !res.refs.is_empty())
    }

    fn pick_target(&self, res: &Resource) -> Option<NodeNr> {
        let open = self.others().difference(self.exiting);
        let mut locks = res.queued().map(|lock| lock.node);
        let holder = locks.find(|node| open.contains(*node));
        holder.or_else(|| res.refs.intersection(open).first())
    }

    fn move_later(&mut self) {
        if !self.moving_later {
            self.moving_later = true;
            self.after(LEAVE_RETRY_MS, TimerKind::Leave);
        }
    }

    pub(crate) fn move_answered(&mut self, from: NodeNr, name: LockName, status: i32) {
        let Some(res) = self.resources.get_mut(&name) else {
            return;
        };
        let Some(outbound) = &mut res.outbound else {
            return;
        };
        if outbound.target != from {
            return;
        }
        outbound.unanswered = outbound.unanswered.saturating_sub(1);
        if status < 0 {
            // It would not have it, and has told nobody.
            res.outbound = None;
            res.dirty = true;
            self.moves -= 1;
            self.move_later();
        }
    }

    /// The new master says that it has everything. Whether this is about a resource that moved from here.
    pub(crate) fn move_finished(&mut self, from: NodeNr, name: LockName) -> bool {
        let Some(res) = self.resources.get_mut(&name) else {
            return false;
        };
        if res.outbound.is_none_or(|outbound| outbound.target != from) {
            return false;
        }
        self.moves -= 1;
        self.change_master(name, from, false);
        true
    }

    /// The new master says that a resource moves to it (508).
    pub(crate) fn on_migrate_request(
        &mut self,
        name: LockName,
        master: NodeNr,
        new_master: NodeNr,
    ) -> i32 {
        if self.dead.contains(master) {
            // It was dead when the resource moved, for all we know; recovery has it.
            return 0;
        }
        let (from, to) = (master, new_master);
        self.moving.insert(name, Moving { from, to });
        let res = self.resources.get(&name).filter(|res| !res.dropping);
        if res.is_some_and(|res| res.vote.is_some()) {
            MIGRATE_MASTERY_REF
        } else {
            0
        }
    }

    /// A resource with its locks (509), by migration; recovery's are `recovery_data`'s.
    pub(crate) fn on_mig_lockres(&mut self, from: NodeNr, data: MigLockres) -> i32 {
        if !data.flags.contains(MigFlags::MIGRATION) {
            return self.on_recovery_data(from, data);
        }
        let (me, name) = (self.me(), data.name);
        let (members, dead) = (self.members, self.dead);
        let kernel_peers = self.config.kernel_peers;
        if self.state != State::Joined || data.master != Some(from) {
            return EINVAL;
        }
        let res = self.resource(name);
        let more = res.inbound.is_some_and(|inbound| {
            inbound.from == from && inbound.stage == InboundStage::Receiving
        });
        let refuse =
            res.dropping || res.recovering || res.inbound.is_some() || res.outbound.is_some();
        if !more {
            let stranger = res.owner.is_some_and(|owner| owner != from);
            if refuse || stranger {
                return EINVAL;
            }
            if res.vote.is_some() {
                Self::master_found(res, from, kernel_peers);
            }
            res.owner = Some(from);
            res.lvb = Lvb(data.lvb);
            res.inbound = Some(Inbound {
                from,
                stage: InboundStage::Receiving,
                waiting: NodeSet::EMPTY,
            });
        }
        for record in &data.locks {
            if record.node == me {
                let list = list_of(record.queue);
                if res.find(record.cookie).is_some_and(|(at, _)| at == list) {
                    res.move_to(record.cookie, list);
                }
            } else if members.contains(record.node) {
                add_record(res, record);
            } else {
                // The sender had not heard of a death when it sent this.
                if dead.contains(record.node) {
                    res.frozen.insert(record.node);
                }
                if record.queue != Queue::Blocked && record.mode == Some(Mode::Ex) {
                    res.lvb = Lvb::EMPTY;
                }
            }
        }
        if data.flags.contains(MigFlags::ALL_DONE) {
            res.refs.insert(from);
            let others = self.others().without(from);
            let message = Message::MigrateRequest {
                master: from,
                new_master: me,
                name,
            };
            self.send_all(others, Call::Announce { name }, &message);
            let res = self.resource(name);
            if let Some(inbound) = &mut res.inbound {
                inbound.stage = InboundStage::Announce;
                inbound.waiting = others;
            }
        }
        self.touch(name);
        0
    }

    pub(crate) fn announce_answered(&mut self, from: NodeNr, name: LockName, status: i32) {
        let Some(res) = self.resources.get_mut(&name) else {
            return;
        };
        if status == MIGRATE_MASTERY_REF && res.inbound.is_some() {
            res.refs.insert(from);
        }
        if let Some(inbound) = &mut res.inbound
            && inbound.stage == InboundStage::Announce
        {
            inbound.waiting.remove(from);
        }
        self.touch(name);
    }

    pub(crate) fn tell_answered(&mut self, from: NodeNr, name: LockName, status: i32) {
        let Some(res) = self.resources.get_mut(&name) else {
            return;
        };
        let reference = crate::wire::reply::AssertReply::MASTERY_REF.bits();
        if status > 0 && status & reference != 0 {
            res.refs.insert(from);
        }
        if let Some(inbound) = &mut res.inbound
            && matches!(inbound.stage, InboundStage::Tell | InboundStage::Last)
        {
            inbound.waiting.remove(from);
        }
        self.touch(name);
    }

    /// Brings a resource that comes here forward.
    pub(crate) fn inbound_forward(&mut self, res: &mut Resource) {
        let (node, name) = (self.me(), res.name);
        while let Some(inbound) = &mut res.inbound {
            if inbound.stage == InboundStage::Receiving || !inbound.waiting.is_empty() {
                return;
            }
            let old = NodeSet::EMPTY.with(inbound.from).intersection(self.members);
            let (stage, to) = match inbound.stage {
                InboundStage::Announce => (InboundStage::Tell, self.others().difference(old)),
                InboundStage::Tell => (InboundStage::Last, old),
                _ => {
                    res.inbound = None;
                    res.owner = Some(node);
                    res.forget_told();
                    self.own_queues(res);
                    return;
                }
            };
            inbound.stage = stage;
            inbound.waiting = to;
            let flags = AssertFlags::FINISH_MIGRATION;
            let message = Message::AssertMaster { node, flags, name };
            self.send_all(to, Call::Tell { name }, &message);
        }
    }

    /// A node died: what that means for a resource on the move, at either end.
    pub(crate) fn move_broken(&mut self, res: &mut Resource, dead: NodeNr) {
        let me = self.me();
        if let Some(outbound) = res.outbound.filter(|outbound| outbound.target == dead) {
            res.outbound = None;
            res.dirty = true;
            self.moves -= 1;
            if outbound.sent && !res.name.is_recovery() {
                // Others may take the dead node for its master already.
                res.claiming = Some(dead);
                res.again = true;
            }
        }
        let Some(inbound) = &mut res.inbound else {
            return;
        };
        inbound.waiting.remove(dead);
        if inbound.from != dead {
            return;
        }
        let complete = inbound.stage != InboundStage::Receiving;
        res.inbound = None;
        if complete {
            res.owner = Some(me);
            res.claiming = Some(dead);
            res.again = true;
            res.forget_told();
            self.own_queues(res);
        } else {
            res.drop_foreign(me);
        }
    }
}

fn list_of(queue: Queue) -> List {
    match queue {
        Queue::Granted => List::Granted,
        Queue::Converting => List::Converting,
        Queue::Blocked => List::Blocked,
    }
}

/// Puts another node's lock on the queue that its record names, or the reference that it stands for into the set.
pub(crate) fn add_record(res: &mut Resource, record: &MigLock) {
    res.refs.insert(record.node);
    let Some(mode) = record.mode.filter(|_| !record.is_reference()) else {
        return;
    };
    res.take(record.cookie);
    let mut lock = Lock::new(record.cookie, record.node, mode);
    lock.convert = record.convert.filter(|_| record.queue == Queue::Converting);
    lock.get = record.flags.contains(RecordFlags::GET_LVB);
    res.list(list_of(record.queue)).push(lock);
}

/// A resource as the messages that carry it. One that has no locks is a message with a reference.
pub(crate) fn lockres_parts(
    res: &Resource,
    me: NodeNr,
    flags: MigFlags,
    lvb: Lvb,
    mig_cookie: impl FnOnce() -> u64,
) -> Vec<MigLockres> {
    let mut records = Vec::new();
    let queues = [
        (Queue::Granted, &res.granted),
        (Queue::Converting, &res.converting),
        (Queue::Blocked, &res.blocked),
    ];
    for (queue, locks) in queues {
        records.extend(locks.iter().map(|lock| record(lock, queue)));
    }
    let total_locks = records.len() as u32;
    if records.is_empty() {
        records.push(MigLock::reference(me));
    }
    let mig_cookie = if records.len() > MAX_RECORDS {
        mig_cookie()
    } else {
        0
    };
    let count = records.len().div_ceil(MAX_RECORDS);
    let parts = records.chunks(MAX_RECORDS).enumerate();
    let part = |(index, locks): (usize, &[MigLock])| MigLockres {
        master: res.owner,
        flags: if index + 1 == count {
            flags | MigFlags::ALL_DONE
        } else {
            flags
        },
        total_locks,
        mig_cookie,
        name: res.name,
        lvb: lvb.0,
        locks: locks.to_vec(),
    };
    parts.map(part).collect()
}

fn record(lock: &Lock, queue: Queue) -> MigLock {
    let wants = lock.op.is_some_and(|op| {
        op.flags.contains(LockFlags::VALBLK) && op.lvb.is_none() && op.mode > Mode::Nl
    });
    let waits = queue != Queue::Granted;
    MigLock {
        cookie: lock.cookie,
        queue,
        flags: if waits && (wants || lock.get) {
            RecordFlags::GET_LVB
        } else {
            RecordFlags::empty()
        },
        mode: Some(lock.mode),
        convert: lock.convert,
        highest_blocked: None,
        node: lock.node,
    }
}
