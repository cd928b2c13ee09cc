//! This node's own locks: the requests of the file system, their way to the master, and what comes back.
//!
//! A lock has one request at a time, and may have a withdrawal of it under way. A request that cannot be sent (no master
//! yet, a recovery, a move) waits in the lock; whatever ends that wait brings the resource forward, and the request with it.

use crate::advance::remake;
use crate::dlm::{Call, Dlm, State};
use crate::event::{Action, CallId, TimerKind};
use crate::limits::RETRY_MS;
use crate::resource::{List, Lock, Op, OpKind, Resource, Sent};
use crate::wire::reply::DlmStatus;
use crate::wire::{AstKind, LockFlags, Message};
use crate::{LockName, Lvb, Mode, NodeNr};

/// One of this node's locks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LockId(pub(crate) u64);

impl LockId {
    /// The number that the lock has on the wire and in the kernel's debugging output.
    pub const fn cookie(self) -> u64 {
        self.0
    }
}

/// Why a request is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LockError {
    /// The node is not a member (any more).
    #[error("this node is not in the lock domain: it is {0:?}")]
    NotJoined(State),
    /// There is no such lock.
    #[error("no lock {0:?}")]
    NoLock(LockId),
    /// Another request of the lock is not done.
    #[error("lock {0:?} has a request that is not done")]
    Busy(LockId),
    /// `$RECOVERY` is the lock managers' own.
    #[error("this name belongs to the lock managers")]
    Reserved,
}

impl Dlm {
    /// Asks for a new lock. [`Action::Granted`] or, with [`LockFlags::NOQUEUE`], [`Action::Refused`] will say what came of
    /// it; nothing is said before this returns.
    ///
    /// `flags` may have `NOQUEUE` (do not wait), `VALBLK` (bring the value block) and `LOCAL` (nobody else can know the
    /// name: be its master without asking).
    ///
    /// # Errors
    /// The node is not a member, or the name is reserved.
    pub fn lock(
        &mut self,
        name: LockName,
        mode: Mode,
        flags: LockFlags,
    ) -> Result<LockId, LockError> {
        if name.is_recovery() {
            return Err(LockError::Reserved);
        }
        if self.state != State::Joined {
            return Err(LockError::NotJoined(self.state));
        }
        let id = self.new_lock(name, mode, flags);
        self.settle();
        Ok(id)
    }

    pub(crate) fn new_lock(&mut self, name: LockName, mode: Mode, mut flags: LockFlags) -> LockId {
        let me = self.me();
        let cookie = self.fresh_cookie();
        let local = flags.contains(LockFlags::LOCAL);
        flags.remove(LockFlags::LOCAL);
        if mode == Mode::Nl {
            flags.remove(LockFlags::VALBLK);
        }
        let mut lock = Lock::new(cookie, me, mode);
        lock.op = Some(Op {
            kind: OpKind::Create,
            mode,
            flags,
            lvb: None,
            sent: Sent::No,
        });
        if !self.resources.contains_key(&name) {
            let vote = self.new_vote();
            let res = self.resource(name);
            if local {
                res.owner = Some(me);
            } else {
                res.vote = Some(vote);
            }
        }
        let res = self.resource(name);
        res.idle = 0;
        res.waiting.push(lock);
        self.locks.insert(cookie, name);
        self.touch(name);
        LockId(cookie)
    }

    /// Asks for another mode of a granted lock; [`Action::Granted`] or [`Action::Refused`] will say what came of it. After
    /// asking for a lower mode the caller must act as if it had that already.
    ///
    /// With `VALBLK`, going up from NL or PR brings the value block. `lvb` is stored as the resource's value block if the
    /// lock is EX now.
    ///
    /// # Errors
    /// There is no such lock, or it has a request that is not done.
    pub fn convert(
        &mut self,
        lock: LockId,
        mode: Mode,
        flags: LockFlags,
        lvb: Option<Lvb>,
    ) -> Result<(), LockError> {
        let res = self.idle_lock(lock)?;
        let name = res.name;
        if let Some(held) = res.lock(lock.0) {
            let mut flags = flags & (LockFlags::NOQUEUE | LockFlags::VALBLK);
            if mode <= Mode::Nl || held.mode == Mode::Ex {
                flags.remove(LockFlags::VALBLK);
            }
            held.op = Some(Op {
                kind: OpKind::Convert,
                mode,
                flags,
                lvb: lvb.filter(|_| held.mode == Mode::Ex),
                sent: Sent::No,
            });
        }
        self.touch(name);
        self.settle();
        Ok(())
    }

    /// Gives a granted lock up; [`Action::Unlocked`] says when it is forgotten. `lvb` is stored as the resource's value
    /// block if the lock is EX.
    ///
    /// # Errors
    /// There is no such lock, or it has a request that is not done.
    pub fn unlock(&mut self, lock: LockId, lvb: Option<Lvb>) -> Result<(), LockError> {
        let res = self.idle_lock(lock)?;
        let name = res.name;
        if let Some(held) = res.lock(lock.0) {
            held.op = Some(Op {
                kind: OpKind::Unlock,
                mode: Mode::Nl,
                flags: LockFlags::empty(),
                lvb: lvb.filter(|_| held.mode == Mode::Ex),
                sent: Sent::No,
            });
        }
        self.touch(name);
        self.settle();
        Ok(())
    }

    /// Withdraws the request of a lock that waits. Its end is [`Action::Cancelled`], or [`Action::Granted`] if that was
    /// quicker (or [`Action::Refused`] for one that must not wait). Conversions to a lower mode and unlocks are not
    /// withdrawn; a lock without a request is left alone.
    ///
    /// # Errors
    /// There is no such lock.
    pub fn cancel(&mut self, lock: LockId) -> Result<(), LockError> {
        let name = *self.locks.get(&lock.0).ok_or(LockError::NoLock(lock))?;
        let res = self.resource(name);
        let Some(asked) = res.lock(lock.0) else {
            return Err(LockError::NoLock(lock));
        };
        let Some(op) = asked.op else { return Ok(()) };
        let lowers =
            op.kind == OpKind::Unlock || op.kind == OpKind::Convert && op.mode <= asked.mode;
        if lowers || asked.cancel.is_some() {
            return Ok(());
        }
        asked.cancel = Some(Sent::No);
        self.touch(name);
        self.settle();
        Ok(())
    }

    fn idle_lock(&mut self, lock: LockId) -> Result<&mut Resource, LockError> {
        if !matches!(self.state, State::Joined | State::Leaving) {
            return Err(LockError::NotJoined(self.state));
        }
        let name = *self.locks.get(&lock.0).ok_or(LockError::NoLock(lock))?;
        let res = self.resource(name);
        match res.lock(lock.0) {
            None => Err(LockError::NoLock(lock)),
            Some(held) if held.op.is_some() => Err(LockError::Busy(lock)),
            Some(_) => Ok(res),
        }
    }

    /// Whether requests can go to the master now.
    pub(crate) fn is_usable(&self, res: &Resource) -> bool {
        res.owner.is_some()
            && !res.recovering
            && !res.dropping
            && res.outbound.is_none()
            && res.inbound.is_none()
            && !self.moving.contains_key(&res.name)
    }

    /// Sends, or does, every request of this node that has not been sent.
    pub(crate) fn issue_all(&mut self, res: &mut Resource) {
        self.cancel_unsent(res);
        if !self.is_usable(res) {
            return;
        }
        let open = |lock: &&Lock| {
            lock.op.is_some_and(|op| op.sent == Sent::No) || lock.cancel == Some(Sent::No)
        };
        let cookies: Vec<u64> = res.locks().filter(open).map(|lock| lock.cookie).collect();
        for cookie in cookies {
            let Some(lock) = res.lock(cookie) else {
                continue;
            };
            let (op, cancel) = (lock.op, lock.cancel);
            if let Some(op) = op.filter(|op| op.sent == Sent::No) {
                self.issue(res, cookie, op);
            } else if cancel == Some(Sent::No) {
                self.issue_cancel(res, cookie);
            }
        }
    }

    /// Requests that are withdrawn before they were sent.
    fn cancel_unsent(&mut self, res: &mut Resource) {
        let unsent = |lock: &&Lock| {
            lock.cancel == Some(Sent::No) && lock.op.is_none_or(|op| op.sent == Sent::No)
        };
        let cookies: Vec<u64> = res.locks().filter(unsent).map(|lock| lock.cookie).collect();
        for cookie in cookies {
            self.cancelled(res, cookie);
        }
    }

    fn issue(&mut self, res: &mut Resource, cookie: u64, op: Op) {
        let Some(owner) = res.owner else { return };
        let Some(lock) = res.lock(cookie) else { return };
        if let (OpKind::Convert, Some(lvb)) = (op.kind, op.lvb) {
            lock.lvb = lvb;
        }
        if owner == self.me() {
            self.issue_here(res, cookie, op);
            return;
        }
        let (node, name, mut flags) = (self.me(), res.name, op.flags);
        let (purpose, message) = match op.kind {
            OpKind::Create => {
                res.move_to(cookie, List::Blocked);
                if flags.contains(LockFlags::VALBLK) {
                    flags.insert(LockFlags::GET_LVB);
                }
                let message = Message::CreateLock {
                    node,
                    cookie,
                    flags,
                    mode: op.mode,
                    name,
                };
                (Call::Create { name, cookie }, message)
            }
            OpKind::Convert => {
                let Some(mut lock) = res.take(cookie) else {
                    return;
                };
                lock.convert = Some(op.mode);
                res.converting.push(lock);
                flags.insert(LockFlags::CONVERT);
                if op.lvb.is_some() {
                    flags.insert(LockFlags::VALBLK | LockFlags::PUT_LVB);
                } else if flags.contains(LockFlags::VALBLK) {
                    flags.insert(LockFlags::GET_LVB);
                }
                let message = Message::ConvertLock {
                    node,
                    cookie,
                    flags,
                    mode: op.mode,
                    name,
                    lvb: op.lvb,
                };
                (Call::Convert { name, cookie }, message)
            }
            OpKind::Unlock => {
                flags.insert(LockFlags::UNLOCK);
                if op.lvb.is_some() {
                    flags.insert(LockFlags::VALBLK | LockFlags::PUT_LVB);
                }
                let message = Message::UnlockLock {
                    node,
                    cookie,
                    flags,
                    name,
                    lvb: op.lvb,
                };
                (Call::Unlock { name, cookie }, message)
            }
        };
        let call = self.send(owner, purpose, message);
        if let Some(op) = res.lock(cookie).and_then(|lock| lock.op.as_mut()) {
            op.sent = Sent::Call(call);
        }
    }

    /// A request to a master that is this node.
    fn issue_here(&mut self, res: &mut Resource, cookie: u64, op: Op) {
        let name = res.name;
        if op.kind != OpKind::Unlock && !res.frozen.is_empty() {
            return; // until the dead node's recovery is over
        }
        if let Some(op) = res.lock(cookie).and_then(|lock| lock.op.as_mut()) {
            op.sent = Sent::Acked;
        }
        let get = op.flags.contains(LockFlags::VALBLK);
        let status = match op.kind {
            OpKind::Create => match res.take(cookie) {
                Some(mut lock) => {
                    lock.get = get;
                    self.master_create(res, lock, op.no_queue())
                }
                None => DlmStatus::IvLockId,
            },
            OpKind::Convert => {
                self.master_convert(res, cookie, op.mode, op.no_queue(), get, op.lvb)
            }
            OpKind::Unlock => self.master_unlock(res, cookie, op.lvb),
        };
        match (op.kind, status) {
            (OpKind::Create, DlmStatus::NotQueued) => self.lock_gone(name, cookie, false),
            (OpKind::Convert, DlmStatus::NotQueued) => self.refuse(res, cookie),
            (OpKind::Unlock, _) => self.unlocked(cookie),
            _ => {}
        }
    }

    fn issue_cancel(&mut self, res: &mut Resource, cookie: u64) {
        let Some(owner) = res.owner else { return };
        let (me, name) = (self.me(), res.name);
        if owner == me {
            match self.master_cancel(res, cookie) {
                DlmStatus::Normal => self.cancelled(res, cookie),
                _ => {
                    // Granted already, and said so.
                    if let Some(lock) = res.lock(cookie) {
                        lock.cancel = None;
                    }
                }
            }
            return;
        }
        let message = Message::UnlockLock {
            node: me,
            cookie,
            flags: LockFlags::CANCEL,
            name,
            lvb: None,
        };
        let call = self.send(owner, Call::Cancel { name, cookie }, message);
        if let Some(lock) = res.lock(cookie) {
            lock.cancel = Some(Sent::Call(call));
        }
    }

    /// The request of a lock is granted: tells whoever made it.
    pub(crate) fn granted(&mut self, res: &mut Resource, cookie: u64, lvb: Option<Lvb>) {
        let Some(lock) = res.lock(cookie) else { return };
        let Some(op) = lock.op.take() else { return };
        lock.get = false;
        if op.flags.contains(LockFlags::VALBLK) {
            lock.lvb = lvb.unwrap_or_default();
        } else if op.kind == OpKind::Create || lock.mode == Mode::Nl {
            // Who holds nothing knows nothing: it may come back to PR without asking for the value.
            lock.lvb = Lvb::EMPTY;
        }
        // A withdrawal under way came too late. It must not be taken for one of the next request.
        lock.cancel = None;
        let mode = lock.mode;
        if res.name.is_recovery() {
            self.todo.push_back(crate::dlm::Todo::Elected(true));
            return;
        }
        let wanted = op.flags.contains(LockFlags::VALBLK);
        self.act(Action::Granted {
            lock: LockId(cookie),
            mode,
            lvb: lvb.filter(|_| wanted).or(wanted.then_some(Lvb::EMPTY)),
        });
    }

    /// A conversion is refused: the lock is what it was.
    fn refuse(&mut self, res: &mut Resource, cookie: u64) {
        if let Some(mut lock) = res.take(cookie) {
            lock.convert = None;
            lock.op = None;
            lock.cancel = None;
            lock.get = false;
            res.granted.push(lock);
            self.act(Action::Refused {
                lock: LockId(cookie),
            });
        }
    }

    /// A new lock is refused, and was taken off its queue.
    fn lock_gone(&mut self, name: LockName, cookie: u64, cancelled: bool) {
        let lock = LockId(cookie);
        self.locks.remove(&cookie);
        if name.is_recovery() {
            self.todo.push_back(crate::dlm::Todo::Elected(false));
        } else if cancelled {
            self.act(Action::Cancelled { lock });
        } else {
            self.act(Action::Refused { lock });
        }
    }

    pub(crate) fn unlocked(&mut self, cookie: u64) {
        let name = self.locks.remove(&cookie);
        if name.is_some_and(|name| !name.is_recovery()) {
            self.act(Action::Unlocked {
                lock: LockId(cookie),
            });
        }
    }

    /// A request is withdrawn.
    fn cancelled(&mut self, res: &mut Resource, cookie: u64) {
        let Some(mut lock) = res.take(cookie) else {
            return;
        };
        lock.cancel = None;
        let Some(op) = lock.op.take() else {
            res.granted.push(lock);
            return;
        };
        if op.kind == OpKind::Create {
            self.lock_gone(res.name, cookie, true);
        } else {
            lock.convert = None;
            lock.get = false;
            res.granted.push(lock);
            self.act(Action::Cancelled {
                lock: LockId(cookie),
            });
        }
        res.dirty = true;
    }

    /// The lock's request of this kind, if the answer is to it.
    fn answered_op(res: &mut Resource, cookie: u64, call: CallId) -> Option<Op> {
        let op = res.lock(cookie)?.op?;
        (op.sent == Sent::Call(call)).then_some(op)
    }

    /// The request has to be made again, in a moment: the master cannot serve it now, or is not the master.
    fn make_again(&mut self, name: LockName, cookie: u64) {
        let Some(res) = self.resources.get_mut(&name) else {
            return;
        };
        let Some(kind) = res.lock(cookie).and_then(|lock| lock.op).map(|op| op.kind) else {
            return;
        };
        remake(res, cookie, kind);
        if res.lock(cookie).is_some_and(|lock| lock.cancel.is_some()) {
            self.touch(name);
        }
        self.after(RETRY_MS, TimerKind::Op { cookie });
    }

    pub(crate) fn create_answered(
        &mut self,
        call: CallId,
        name: LockName,
        cookie: u64,
        status: i32,
    ) {
        let me = self.me();
        let Some(res) = self.resources.get_mut(&name) else {
            return;
        };
        if Self::answered_op(res, cookie, call).is_none() || res.owner == Some(me) {
            // Granted already, or this node has become the master and has it on its own queue.
            return;
        }
        match DlmStatus::from_wire(status) {
            Some(DlmStatus::Normal | DlmStatus::Granted) => {
                if let Some(op) = res.lock(cookie).and_then(|lock| lock.op.as_mut()) {
                    op.sent = Sent::Acked;
                }
                if name.is_recovery() {
                    // Its grant is the answer: there is no AST.
                    res.move_to(cookie, List::Granted);
                    self.with(name, |dlm, res| dlm.granted(res, cookie, None));
                }
            }
            Some(DlmStatus::NotQueued) => {
                res.take(cookie);
                self.lock_gone(name, cookie, false);
            }
            _ if name.is_recovery() => self.recovery_lock_astray(cookie, status),
            _ => return self.make_again(name, cookie),
        }
        self.touch(name);
    }

    pub(crate) fn convert_answered(
        &mut self,
        call: CallId,
        name: LockName,
        cookie: u64,
        status: i32,
    ) {
        let me = self.me();
        let Some(res) = self.resources.get_mut(&name) else {
            return;
        };
        if Self::answered_op(res, cookie, call).is_none() || res.owner == Some(me) {
            return;
        }
        match DlmStatus::from_wire(status) {
            Some(DlmStatus::Normal | DlmStatus::Granted) => {
                if let Some(op) = res.lock(cookie).and_then(|lock| lock.op.as_mut()) {
                    op.sent = Sent::Acked;
                }
            }
            Some(DlmStatus::NotQueued) => self.with(name, |dlm, res| dlm.refuse(res, cookie)),
            _ => return self.make_again(name, cookie),
        }
        self.touch(name);
    }

    pub(crate) fn unlock_answered(
        &mut self,
        call: CallId,
        name: LockName,
        cookie: u64,
        status: i32,
    ) {
        let Some(res) = self.resources.get_mut(&name) else {
            return;
        };
        if Self::answered_op(res, cookie, call).is_none() {
            return;
        }
        match DlmStatus::from_wire(status) {
            Some(status) if status.is_retry() => return self.make_again(name, cookie),
            _ => {
                // Done, or done before.
                res.take(cookie);
                self.unlocked(cookie);
            }
        }
        self.touch(name);
    }

    pub(crate) fn cancel_answered(
        &mut self,
        call: CallId,
        name: LockName,
        cookie: u64,
        status: i32,
    ) {
        let me = self.me();
        let Some(res) = self.resources.get_mut(&name) else {
            return;
        };
        let owner = res.owner;
        let Some(lock) = res.lock(cookie) else { return };
        if lock.cancel != Some(Sent::Call(call)) {
            return;
        }
        let open = lock.op.is_some();
        match DlmStatus::from_wire(status) {
            _ if !open => lock.cancel = None,
            // As the master of the moment, we decide ourselves.
            _ if owner == Some(me) => lock.cancel = Some(Sent::No),
            Some(status) if status.is_retry() => {
                lock.cancel = Some(Sent::No);
                self.after(RETRY_MS, TimerKind::Op { cookie });
                return;
            }
            // Granted: the notice is on its way.
            Some(DlmStatus::CancelGrant) => lock.cancel = None,
            // Withdrawn, or not known to the master any more.
            _ => self.with(name, |dlm, res| dlm.cancelled(res, cookie)),
        }
        self.touch(name);
    }

    /// The master's notice about one of our locks (505).
    pub(crate) fn on_notice(
        &mut self,
        from: NodeNr,
        name: LockName,
        cookie: u64,
        kind: AstKind,
        lvb: Option<Lvb>,
    ) -> DlmStatus {
        let Some(res) = self.resources.get_mut(&name) else {
            return DlmStatus::IvLockId;
        };
        if res.owner != Some(from) || res.recovering {
            return DlmStatus::Normal;
        }
        let Some((list, _)) = res.find(cookie) else {
            return DlmStatus::Normal;
        };
        match kind {
            AstKind::Ast if matches!(list, List::Converting | List::Blocked) => {
                if let Some(mut lock) = res.take(cookie) {
                    lock.mode = lock.convert.take().unwrap_or(lock.mode);
                    res.granted.push(lock);
                }
                self.with(name, |dlm, res| dlm.granted(res, cookie, lvb));
                self.touch(name);
            }
            AstKind::Bast(wanted) if matches!(list, List::Converting | List::Granted) => {
                let lock = res_lock(res, cookie);
                self.blocking(lock, wanted);
            }
            _ => {}
        }
        DlmStatus::Normal
    }

    /// Tells the holder of a lock that it is in the way, unless it is on its way out.
    pub(crate) fn blocking(&mut self, lock: Option<(u64, Option<Op>)>, wanted: Mode) {
        let Some((cookie, op)) = lock else { return };
        let leaving = op.is_some_and(|op| op.kind == OpKind::Unlock);
        let ours = self.locks.get(&cookie);
        if !leaving && ours.is_some_and(|name| !name.is_recovery()) {
            self.act(Action::Blocked {
                lock: LockId(cookie),
                wanted,
            });
        }
    }
}

pub(crate) fn res_lock(res: &mut Resource, cookie: u64) -> Option<(u64, Option<Op>)> {
    res.lock(cookie).map(|lock| (lock.cookie, lock.op))
}
