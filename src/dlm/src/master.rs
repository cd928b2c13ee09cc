//! The master's side of locks: what it does with requests, its own node's and others', and whom it tells.

use crate::dlm::{Call, Dlm};
use crate::event::Action;
use crate::locker::res_lock;
use crate::resource::{List, Lock, Resource};
use crate::wire::reply::DlmStatus;
use crate::wire::{AstKind, LockFlags, Message};
use crate::{LockName, Lvb, Mode, NodeNr};

impl Dlm {
    /// Why a master cannot serve the resource now.
    fn closed(&self, res: &Resource) -> Option<DlmStatus> {
        if res.recovering {
            Some(DlmStatus::Recovering)
        } else if res.inbound.is_some() || res.outbound.is_some() {
            Some(DlmStatus::Migrating)
        } else if res.owner != Some(self.me()) || res.dropping {
            Some(DlmStatus::Forward)
        } else {
            None
        }
    }

    /// Runs `act` on the resource while it is out of the table.
    pub(crate) fn with<T: Default>(
        &mut self,
        name: LockName,
        act: impl FnOnce(&mut Self, &mut Resource) -> T,
    ) -> T {
        let Some(mut res) = self.resources.remove(&name) else {
            return T::default();
        };
        let result = act(self, &mut res);
        self.resources.insert(name, res);
        result
    }

    /// Serves a request if the resource is here and can be served.
    fn serve(
        &mut self,
        name: LockName,
        even_frozen: bool,
        act: impl FnOnce(&mut Self, &mut Resource) -> DlmStatus,
    ) -> DlmStatus {
        let Some(res) = self.resources.get(&name) else {
            return DlmStatus::Forward;
        };
        if let Some(status) = self.closed(res) {
            return status;
        }
        if !even_frozen && !res.frozen.is_empty() {
            return DlmStatus::Recovering;
        }
        let status = self.with(name, |dlm, res| Some(act(dlm, res)));
        self.touch(name);
        status.unwrap_or(DlmStatus::SysErr)
    }

    pub(crate) fn on_create(
        &mut self,
        from: NodeNr,
        name: LockName,
        cookie: u64,
        mode: Mode,
        flags: LockFlags,
    ) -> DlmStatus {
        self.serve(name, false, |dlm, res| {
            res.refs.insert(from);
            if let Some(known) = res.lock(cookie) {
                // It was asked for before, and the master who heard it is dead.
                let same = known.node == from;
                return if same {
                    DlmStatus::Normal
                } else {
                    DlmStatus::BadArgs
                };
            }
            let mut lock = Lock::new(cookie, from, mode);
            lock.get = flags.contains(LockFlags::GET_LVB);
            dlm.master_create(res, lock, flags.contains(LockFlags::NOQUEUE))
        })
    }

    pub(crate) fn on_convert(
        &mut self,
        from: NodeNr,
        name: LockName,
        cookie: u64,
        mode: Mode,
        flags: LockFlags,
        lvb: Option<Lvb>,
    ) -> DlmStatus {
        if flags.contains(LockFlags::GET_LVB | LockFlags::PUT_LVB) {
            return DlmStatus::BadArgs;
        }
        self.serve(name, false, |dlm, res| {
            if res.lock(cookie).is_none_or(|lock| lock.node != from) {
                return DlmStatus::IvLockId;
            }
            let no_queue = flags.contains(LockFlags::NOQUEUE);
            let get = flags.contains(LockFlags::GET_LVB);
            dlm.master_convert(res, cookie, mode, no_queue, get, lvb)
        })
    }

    pub(crate) fn on_unlock(
        &mut self,
        from: NodeNr,
        name: LockName,
        cookie: u64,
        flags: LockFlags,
        lvb: Option<Lvb>,
    ) -> DlmStatus {
        let cancel = flags.contains(LockFlags::CANCEL);
        if flags.contains(LockFlags::GET_LVB) || cancel && lvb.is_some() {
            return DlmStatus::BadArgs;
        }
        self.serve(name, true, |dlm, res| {
            if res.lock(cookie).is_none_or(|lock| lock.node != from) {
                DlmStatus::IvLockId
            } else if cancel {
                dlm.master_cancel(res, cookie)
            } else {
                dlm.master_unlock(res, cookie, lvb)
            }
        })
    }

    /// A new lock.
    pub(crate) fn master_create(
        &mut self,
        res: &mut Resource,
        lock: Lock,
        no_queue: bool,
    ) -> DlmStatus {
        let cookie = lock.cookie;
        if res.can_grant_new(lock.mode) {
            res.granted.push(lock);
            self.grant(res, cookie);
        } else if no_queue {
            return DlmStatus::NotQueued;
        } else {
            res.blocked.push(lock);
            res.dirty = true;
        }
        DlmStatus::Normal
    }

    /// Another mode for a lock that is known to be on a queue.
    pub(crate) fn master_convert(
        &mut self,
        res: &mut Resource,
        cookie: u64,
        mode: Mode,
        no_queue: bool,
        get: bool,
        lvb: Option<Lvb>,
    ) -> DlmStatus {
        let Some((list, _)) = res.find(cookie) else {
            return DlmStatus::IvLockId;
        };
        let Some(from) = res.lock(cookie).map(|lock| lock.mode) else {
            return DlmStatus::IvLockId;
        };
        match list {
            List::Granted => {}
            // Asked before, of a master who is dead.
            List::Converting => {
                let same = res.lock(cookie).and_then(|lock| lock.convert) == Some(mode);
                return if same {
                    DlmStatus::Normal
                } else {
                    DlmStatus::Denied
                };
            }
            List::Blocked | List::Waiting => return DlmStatus::Denied,
        }
        if let Some(lvb) = lvb.filter(|_| from == Mode::Ex) {
            res.lvb = lvb;
        }
        let can = res.can_convert(cookie, from, mode);
        if !can && no_queue {
            return DlmStatus::NotQueued;
        }
        let Some(mut lock) = res.take(cookie) else {
            return DlmStatus::IvLockId;
        };
        lock.get = get;
        res.dirty = true;
        if can {
            lock.mode = mode;
            lock.told = None;
            res.granted.push(lock);
            self.grant(res, cookie);
        } else {
            lock.convert = Some(mode);
            res.converting.push(lock);
        }
        DlmStatus::Normal
    }

    pub(crate) fn master_unlock(
        &mut self,
        res: &mut Resource,
        cookie: u64,
        lvb: Option<Lvb>,
    ) -> DlmStatus {
        let Some((List::Granted, index)) = res.find(cookie) else {
            return DlmStatus::Denied;
        };
        let lock = res.granted.remove(index);
        if let Some(lvb) = lvb.filter(|_| lock.mode == Mode::Ex) {
            res.lvb = lvb;
        }
        res.dirty = true;
        DlmStatus::Normal
    }

    pub(crate) fn master_cancel(&mut self, res: &mut Resource, cookie: u64) -> DlmStatus {
        let me = self.me();
        match res.find(cookie) {
            Some((List::Blocked, index)) => {
                // This node's own lock is taken off by the one who asked.
                if res.blocked[index].node != me {
                    res.blocked.remove(index);
                }
            }
            Some((List::Converting, index)) => {
                if res.converting[index].node != me {
                    let mut lock = res.converting.remove(index);
                    lock.convert = None;
                    lock.get = false;
                    res.granted.push(lock);
                }
            }
            Some((List::Granted, _)) => return DlmStatus::CancelGrant,
            _ => return DlmStatus::IvLockId,
        }
        res.dirty = true;
        DlmStatus::Normal
    }

    /// Tells the holder of a lock on the granted queue that it has it.
    fn grant(&mut self, res: &mut Resource, cookie: u64) {
        let me = self.me();
        let (name, value) = (res.name, res.lvb);
        let Some(lock) = res.lock(cookie) else { return };
        let lvb = std::mem::take(&mut lock.get).then_some(value);
        let to = lock.node;
        if let Some(lvb) = lvb {
            lock.lvb = lvb;
        }
        if to == me {
            self.granted(res, cookie, lvb);
        } else if !name.is_recovery() {
            self.notice(res, to, cookie, AstKind::Ast, lvb);
        }
    }

    fn notice(
        &mut self,
        res: &mut Resource,
        to: NodeNr,
        cookie: u64,
        kind: AstKind,
        lvb: Option<Lvb>,
    ) {
        let (node, name) = (self.me(), res.name);
        let flags = if lvb.is_some() {
            LockFlags::GET_LVB
        } else {
            LockFlags::empty()
        };
        let message = Message::ProxyAst {
            node,
            cookie,
            flags,
            kind,
            name,
            lvb,
        };
        res.notices += 1;
        self.send(to, Call::Notice { name }, message);
    }

    pub(crate) fn notice_answered(&mut self, name: LockName) {
        if let Some(res) = self.resources.get_mut(&name) {
            res.notices = res.notices.saturating_sub(1);
            self.touch(name);
        }
    }

    /// Grants what can be granted, and tells those who are in the way of the rest.
    pub(crate) fn shuffle(&mut self, res: &mut Resource) {
        let me = self.me();
        let done = res.shuffle();
        for cookie in done.granted {
            self.grant(res, cookie);
        }
        for (cookie, wanted) in done.blocking {
            let Some(lock) = res.lock(cookie) else {
                continue;
            };
            let to = lock.node;
            if to == me {
                self.blocking(res_lock(res, cookie), wanted);
            } else if !res.name.is_recovery() {
                self.notice(res, to, cookie, AstKind::Bast(wanted), None);
            }
        }
    }

    /// The lock manager's own view of one of this node's deaths, said once to the file system.
    pub(crate) fn tell_death(&mut self, node: NodeNr) {
        self.act(Action::MemberDied(node));
    }
}
