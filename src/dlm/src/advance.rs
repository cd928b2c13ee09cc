//! Brings a resource forward as far as it goes, and what changes its master.

use crate::dlm::{Call, Dlm, State, Todo};
use crate::resource::{List, OpKind, Resource, Sent};
use crate::{CallId, LockName, NodeNr};

impl Dlm {
    /// Does whatever can be done for a resource now. Called for everything that was touched, at the end of each step.
    pub(crate) fn advance(&mut self, name: LockName) {
        let Some(mut res) = self.resources.remove(&name) else {
            return;
        };
        if !res.dropping {
            self.advance_resource(&mut res);
        }
        let unused = res.is_unused();
        self.resources.insert(name, res);
        if unused && self.state == State::Leaving && self.may_part() {
            self.forget(name);
        } else if unused {
            self.sweep_later();
        }
    }

    fn advance_resource(&mut self, res: &mut Resource) {
        self.vote_forward(res);
        self.tidy_forward(res);
        if res.asserting.is_empty() && std::mem::take(&mut res.again) {
            if res.owner == Some(self.me()) && res.outbound.is_none() && res.inbound.is_none() {
                self.announce(res);
            } else if res.claiming.is_some() {
                res.claiming = None;
                self.todo.push_back(Todo::Gathered);
            }
        }
        if res.asserting.is_empty() && !res.again && res.claiming.take().is_some() {
            self.todo.push_back(Todo::Gathered);
        }
        self.inbound_forward(res);
        self.outbound_forward(res);
        self.issue_all(res);
        if res.is_open(self.me()) && res.frozen.is_empty() && res.dirty {
            self.shuffle(res);
        }
    }

    /// Everybody who was asked has answered, and another is the master: those who were asked after it had spoken wait for
    /// it to speak again.
    fn tidy_forward(&mut self, res: &mut Resource) {
        if !res.tidy || !res.late.is_empty() || !self.is_usable(res) {
            return;
        }
        res.tidy = false;
        match res.owner {
            Some(owner) if owner == self.me() => res.again = true,
            Some(owner) => {
                let (node, name) = (self.me(), res.name);
                let flags = crate::wire::LockFlags::empty();
                let message = crate::wire::Message::MasterRequest { node, flags, name };
                self.send(owner, Call::Tidy { name }, message);
            }
            None => {}
        }
    }

    /// The resource has another master. After a recovery (`recovered`) the new master has heard from us what we believed;
    /// if it has taken over what the old master knew, requests whose answer was lost are made again: it recognises those
    /// that had come through.
    pub(crate) fn change_master(&mut self, name: LockName, master: NodeNr, recovered: bool) {
        let me = self.me();
        self.with(name, |dlm, res| {
            res.owner = Some(master);
            res.recovering = false;
            res.inbound = None;
            res.outbound = None;
            if master != me {
                res.drop_foreign(me);
            }
            dlm.settle_lost(res, recovered);
            res.forget_told();
            if master == me {
                dlm.own_queues(res);
            }
        });
        self.touch(name);
    }

    /// Our own locks are on the master's queues now.
    pub(crate) fn own_queues(&mut self, res: &mut Resource) {
        let me = self.me();
        for list in [List::Granted, List::Converting, List::Blocked] {
            for lock in res.list(list).iter_mut().filter(|lock| lock.node == me) {
                let valblk = crate::wire::LockFlags::VALBLK;
                lock.get = lock.op.is_some_and(|op| op.flags.contains(valblk));
                let Some(op) = &mut lock.op else { continue };
                if list != List::Granted {
                    op.sent = Sent::Acked;
                } else if op.sent == Sent::Lost {
                    op.sent = Sent::No;
                }
            }
        }
        res.dirty = true;
    }

    /// What becomes of requests whose answer was lost, now that there is a master again.
    fn settle_lost(&mut self, res: &mut Resource, recovered: bool) {
        let lost: Vec<u64> = res
            .locks()
            .filter(|lock| lock.op.is_some_and(|op| op.sent == Sent::Lost))
            .map(|lock| lock.cookie)
            .collect();
        for cookie in lost {
            let Some(op) = res.lock(cookie).and_then(|lock| lock.op) else {
                continue;
            };
            match (recovered, op.kind) {
                (true, OpKind::Unlock) => {
                    res.take(cookie);
                    self.unlocked(cookie);
                }
                (true, _) => set_sent(res, cookie, Sent::Acked),
                (false, kind) => remake(res, cookie, kind),
            }
        }
    }

    /// Forgets the messages to a node that will not answer. Requests of ours among them are lost.
    pub(crate) fn drop_calls(&mut self, node: NodeNr) {
        let calls: Vec<(CallId, Call)> = self
            .calls
            .iter()
            .filter(|(_, (to, _))| *to == node)
            .map(|(id, (_, call))| (*id, *call))
            .collect();
        for (id, call) in calls {
            self.calls.remove(&id);
            self.drop_call(id, call, node);
        }
    }

    /// Forgets one message that will not be answered.
    pub(crate) fn drop_call(&mut self, id: CallId, call: Call, node: NodeNr) {
        match call {
            Call::Notice { name } => self.notice_answered(name),
            Call::Tidy { name } => {
                if let Some(res) = self.resources.get_mut(&name) {
                    res.tidy = true;
                }
            }
            Call::Create { name, cookie }
            | Call::Convert { name, cookie }
            | Call::Unlock { name, cookie } => self.lose(id, name, cookie, node, call),
            Call::Cancel { name, cookie } => {
                if let Some(res) = self.resources.get_mut(&name)
                    && let Some(lock) = res.lock(cookie)
                    && lock.cancel == Some(Sent::Call(id))
                {
                    lock.cancel = lock.op.map(|_| Sent::No);
                    self.touch(name);
                }
            }
            Call::Deref { name } => self.dropped(name),
            _ => {}
        }
    }

    fn lose(&mut self, id: CallId, name: LockName, cookie: u64, node: NodeNr, call: Call) {
        let Some(res) = self.resources.get_mut(&name) else {
            return;
        };
        let ours =
            |lock: &&mut crate::resource::Lock| lock.op.is_some_and(|op| op.sent == Sent::Call(id));
        if res.lock(cookie).filter(ours).is_none() {
            return;
        }
        let kind = match call {
            Call::Create { .. } => OpKind::Create,
            Call::Convert { .. } => OpKind::Convert,
            _ => OpKind::Unlock,
        };
        if res.owner == Some(node) {
            set_sent(res, cookie, Sent::Lost);
        } else if res.owner == Some(self.config.me) {
            // It has come here with everything else; our own queues say how it stands.
            match kind {
                OpKind::Unlock => remake(res, cookie, kind),
                _ => set_sent(res, cookie, Sent::Acked),
            }
        } else {
            // The one who was asked has been master no more for a while.
            remake(res, cookie, kind);
        }
        self.touch(name);
    }
}

fn set_sent(res: &mut Resource, cookie: u64, sent: Sent) {
    if let Some(op) = res.lock(cookie).and_then(|lock| lock.op.as_mut()) {
        op.sent = sent;
    }
}

/// Puts a request back to where it was before it was sent.
pub(crate) fn remake(res: &mut Resource, cookie: u64, kind: OpKind) {
    if let Some(mut lock) = res.take(cookie) {
        lock.convert = None;
        if let Some(op) = &mut lock.op {
            op.sent = Sent::No;
        }
        // The master has nothing that could be withdrawn: that is decided here.
        lock.cancel = lock.cancel.map(|_| Sent::No);
        let list = match kind {
            OpKind::Create => List::Waiting,
            OpKind::Convert | OpKind::Unlock => List::Granted,
        };
        res.list(list).push(lock);
    }
}
