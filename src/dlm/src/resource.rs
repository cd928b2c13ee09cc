//! A lock resource: its locks on their queues, and which of them can be granted.
//!
//! ```text
//!            new lock                    convert up              convert down, cancel
//!   waiting ─────────► blocked ──► granted ─────────► converting ─────────► granted
//!   (not with the            AST                          │ AST
//!    master yet)                                          ▼
//!                                                      granted
//! ```
//! The master's queues hold every node's locks. Any other node's hold only its own: what it believes the master to have.
//! That belief is what recovery rebuilds the master's queues from.

use crate::wire::LockFlags;
use crate::{CallId, LockName, Lvb, Mode, NodeNr, NodeSet};

/// Where the message of a request is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sent {
    /// Not sent, or to be sent again.
    No,
    /// Sent, not answered.
    Call(CallId),
    /// Sent to a master that died before it answered: done or not, nobody knows.
    Lost,
    /// The master has it.
    Acked,
}

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum OpKind {
    Create,
    Convert,
    Unlock,
}

/// A request of this node that is not done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Op {
    pub kind: OpKind,
    pub mode: Mode,
    pub flags: LockFlags,
    pub lvb: Option<Lvb>,
    pub sent: Sent,
}

impl Op {
    pub fn no_queue(&self) -> bool {
        self.flags.contains(LockFlags::NOQUEUE)
    }
}

/// One lock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Lock {
    pub cookie: u64,
    pub node: NodeNr,
    /// The mode held; on `blocked` and `waiting` the mode asked for.
    pub mode: Mode,
    pub convert: Option<Mode>,
    /// The highest mode that it was told to stand in the way of. Only the master's.
    pub told: Option<Mode>,
    /// What its holder knows of the value block. Good for recovery while it holds PR or EX.
    pub lvb: Lvb,
    /// Its grant has to bring the value block.
    pub get: bool,
    /// This node's own request.
    pub op: Option<Op>,
    /// This node wants to withdraw its request.
    pub cancel: Option<Sent>,
}

impl Lock {
    pub fn new(cookie: u64, node: NodeNr, mode: Mode) -> Self {
        Self {
            cookie,
            node,
            mode,
            convert: None,
            told: None,
            lvb: Lvb::EMPTY,
            get: false,
            op: None,
            cancel: None,
        }
    }

    /// What its holder relies on: once it has asked for less, only for that.
    pub fn least(&self) -> Mode {
        let asked = self.op.map(|op| match op.kind {
            OpKind::Create => self.mode,
            OpKind::Convert => op.mode,
            OpKind::Unlock => Mode::Nl,
        });
        let least = self.convert.map_or(self.mode, |to| to.min(self.mode));
        asked.map_or(least, |asked| asked.min(least))
    }
}

/// The queues of a resource.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum List {
    Granted,
    Converting,
    Blocked,
    Waiting,
}

/// This node asks the others who the master is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Vote {
    pub round: u64,
    pub phase: VotePhase,
    /// Who has not answered.
    pub waiting: NodeSet,
    /// Who wants to be master too; this node among them.
    pub maybe: NodeSet,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum VotePhase {
    /// Not begun: a recovery or a migration has to be over first.
    Hold,
    /// For `$RECOVERY`: does anybody believe in a dead master?
    Requery,
    /// Asked; answers are missing.
    Ask,
    /// A lower node wants to be master and will announce itself.
    Lost,
}

/// The resource goes from here to another node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Outbound {
    pub target: NodeNr,
    /// All of it was sent: the target may have told others.
    pub sent: bool,
    /// Messages of it that are not answered.
    pub unanswered: u32,
}

/// The resource comes here from another node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Inbound {
    pub from: NodeNr,
    pub stage: InboundStage,
    pub waiting: NodeSet,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum InboundStage {
    /// Locks arrive.
    Receiving,
    /// All others learn that it moves.
    Announce,
    /// All others learn that it has moved.
    Tell,
    /// The old master learns it, as the last.
    Last,
}

/// One resource as this node knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Resource {
    pub name: LockName,
    pub owner: Option<NodeNr>,
    pub lvb: Lvb,
    /// The master's: nodes that know the resource.
    pub refs: NodeSet,
    pub granted: Vec<Lock>,
    pub converting: Vec<Lock>,
    pub blocked: Vec<Lock>,
    /// This node's locks that no master knows of, or that one who died may or may not have forgotten.
    pub waiting: Vec<Lock>,
    pub vote: Option<Vote>,
    /// Nodes whose answers to a vote are not needed any more and not here yet.
    pub late: NodeSet,
    /// The master has to announce itself once more, to those who were asked after it had.
    pub tidy: bool,
    /// Nodes that have not answered our announcement.
    pub asserting: NodeSet,
    /// Announce once more.
    pub again: bool,
    /// The announcement takes the resource back from this dead node, to which it was moving.
    pub claiming: Option<NodeNr>,
    /// Notices (ASTs and BASTs) that are not answered.
    pub notices: u32,
    /// The owner is dead and nobody has taken over.
    pub recovering: bool,
    /// Dead nodes whose locks were taken off and whose recovery has to be over before anything is granted.
    pub frozen: NodeSet,
    pub outbound: Option<Outbound>,
    pub inbound: Option<Inbound>,
    /// We are telling the master that we forget it.
    pub dropping: bool,
    /// Sweeps that found it unused.
    pub idle: u8,
    /// Queues have changed since they were last looked through.
    pub dirty: bool,
}

/// What a look through the queues came to.
#[derive(Default, PartialEq, Eq, Debug)]
pub(crate) struct Shuffled {
    /// Locks that are granted now (cookies).
    pub granted: Vec<u64>,
    /// Locks in the way, and of which mode.
    pub blocking: Vec<(u64, Mode)>,
}

impl Resource {
    pub fn new(name: LockName) -> Self {
        Self {
            name,
            owner: None,
            lvb: Lvb::EMPTY,
            refs: NodeSet::EMPTY,
            granted: Vec::new(),
            converting: Vec::new(),
            blocked: Vec::new(),
            waiting: Vec::new(),
            vote: None,
            late: NodeSet::EMPTY,
            tidy: false,
            asserting: NodeSet::EMPTY,
            again: false,
            claiming: None,
            notices: 0,
            recovering: false,
            frozen: NodeSet::EMPTY,
            outbound: None,
            inbound: None,
            dropping: false,
            idle: 0,
            dirty: false,
        }
    }

    pub fn list(&mut self, list: List) -> &mut Vec<Lock> {
        match list {
            List::Granted => &mut self.granted,
            List::Converting => &mut self.converting,
            List::Blocked => &mut self.blocked,
            List::Waiting => &mut self.waiting,
        }
    }

    /// All locks.
    pub fn locks(&self) -> impl Iterator<Item = &Lock> {
        let known = self
            .granted
            .iter()
            .chain(&self.converting)
            .chain(&self.blocked);
        known.chain(&self.waiting)
    }

    /// The locks that a master has.
    pub fn queued(&self) -> impl Iterator<Item = &Lock> {
        let held = self.granted.iter().chain(&self.converting);
        held.chain(&self.blocked)
    }

    /// Applies `change` to all locks.
    pub fn each_lock(&mut self, mut change: impl FnMut(&mut Lock)) {
        let known = self.granted.iter_mut().chain(&mut self.converting);
        let all = known.chain(&mut self.blocked).chain(&mut self.waiting);
        all.for_each(&mut change);
    }

    /// Where a lock is.
    pub fn find(&self, cookie: u64) -> Option<(List, usize)> {
        let at = |locks: &[Lock]| locks.iter().position(|lock| lock.cookie == cookie);
        None.or_else(|| at(&self.granted).map(|i| (List::Granted, i)))
            .or_else(|| at(&self.converting).map(|i| (List::Converting, i)))
            .or_else(|| at(&self.blocked).map(|i| (List::Blocked, i)))
            .or_else(|| at(&self.waiting).map(|i| (List::Waiting, i)))
    }

    pub fn lock(&mut self, cookie: u64) -> Option<&mut Lock> {
        let (list, index) = self.find(cookie)?;
        self.list(list).get_mut(index)
    }

    /// Takes a lock off its queue.
    pub fn take(&mut self, cookie: u64) -> Option<Lock> {
        let (list, index) = self.find(cookie)?;
        Some(self.list(list).remove(index))
    }

    /// Moves a lock to the end of a queue.
    pub fn move_to(&mut self, cookie: u64, list: List) {
        if let Some(lock) = self.take(cookie) {
            self.list(list).push(lock);
        }
    }

    /// Takes off every lock of another node.
    pub fn drop_foreign(&mut self, me: NodeNr) {
        for list in [List::Granted, List::Converting, List::Blocked] {
            self.list(list).retain(|lock| lock.node == me);
        }
        self.refs = NodeSet::EMPTY;
    }

    /// Whether a new master would have to look at its queues afresh: nobody was told of anything by it.
    pub fn forget_told(&mut self) {
        self.each_lock(|lock| lock.told = None);
        self.dirty = true;
    }

    /// Whether the master may use the queues.
    pub fn is_open(&self, me: NodeNr) -> bool {
        self.owner == Some(me)
            && !self.recovering
            && self.outbound.is_none()
            && self.inbound.is_none()
    }

    /// Whether nothing keeps the resource here.
    pub fn is_unused(&self) -> bool {
        self.locks().next().is_none()
            && self.refs.is_empty()
            && self.vote.is_none()
            && self.late.is_empty()
            && !self.tidy
            && self.asserting.is_empty()
            && self.notices == 0
            && !self.recovering
            && self.frozen.is_empty()
            && self.outbound.is_none()
            && self.inbound.is_none()
            && !self.dropping
    }

    /// Whether a new lock can be granted at once: nobody holds, or has asked before for, what does not go with it.
    pub fn can_grant_new(&self, mode: Mode) -> bool {
        self.queued().all(|lock| {
            lock.mode.compatible(mode) && lock.convert.is_none_or(|to| to.compatible(mode))
        })
    }

    /// Whether a conversion can be granted at once.
    pub fn can_convert(&self, cookie: u64, from: Mode, to: Mode) -> bool {
        let held = self.granted.iter().chain(&self.converting);
        let mut others = held.filter(|lock| lock.cookie != cookie);
        to <= from
            || others.all(|lock| {
                lock.mode.compatible(to) && lock.convert.is_none_or(|other| other.compatible(to))
            })
    }

    /// The master looks which waiting requests can be granted, and which locks stand in the way of the first that cannot.
    /// Conversions go before new locks; conversions to less never wait.
    pub fn shuffle(&mut self) -> Shuffled {
        let mut done = Shuffled::default();
        self.dirty = false;
        while let Some(cookie) = self.next_grant() {
            let lock = self.take(cookie).map(|mut lock| {
                lock.mode = lock.convert.take().unwrap_or(lock.mode);
                lock.told = None;
                lock
            });
            self.granted.extend(lock);
            done.granted.push(cookie);
        }
        let head = |locks: &[Lock]| {
            let first = locks.first();
            first.map(|lock| (lock.cookie, lock.convert.unwrap_or(lock.mode)))
        };
        let heads = [head(&self.converting), head(&self.blocked)];
        for (cookie, wanted) in heads.into_iter().flatten() {
            for lock in self.granted.iter_mut().chain(&mut self.converting) {
                let in_the_way = lock.cookie != cookie && !lock.mode.compatible(wanted);
                if in_the_way && lock.told < Some(wanted) {
                    lock.told = Some(wanted);
                    done.blocking.push((lock.cookie, wanted));
                }
            }
        }
        done
    }

    fn next_grant(&self) -> Option<u64> {
        let lower = |lock: &&Lock| lock.convert.is_some_and(|to| to <= lock.mode);
        if let Some(lock) = self.converting.iter().find(lower) {
            return Some(lock.cookie);
        }
        let others = |cookie| {
            let held = self.granted.iter().chain(&self.converting);
            held.filter(move |lock| lock.cookie != cookie)
        };
        if let Some(lock) = self.converting.first() {
            let to = lock.convert.unwrap_or(lock.mode);
            let free = others(lock.cookie).all(|other| other.mode.compatible(to));
            return free.then_some(lock.cookie);
        }
        let lock = self.blocked.first()?;
        let free = others(lock.cookie).all(|other| other.mode.compatible(lock.mode));
        free.then_some(lock.cookie)
    }

    /// What the queues of a resource can never hold, as a sentence.
    pub fn self_check(&self, me: NodeNr) -> Result<(), String> {
        let fail = |what: &str| Err(format!("{}: {what}: {self:?}", self.name));
        for (index, lock) in self.locks().enumerate() {
            if self
                .locks()
                .take(index)
                .any(|other| other.cookie == lock.cookie)
            {
                return fail("the same lock twice");
            }
            if lock.node != me && (lock.op.is_some() || lock.cancel.is_some()) {
                return fail("a request of ours on another node's lock");
            }
            if lock.node != me
                && self.owner != Some(me)
                && !self.recovering
                && self.inbound.is_none()
            {
                return fail("another node's lock though not its master");
            }
        }
        if self.converting.iter().any(|lock| lock.convert.is_none())
            || [&self.granted, &self.blocked, &self.waiting]
                .iter()
                .any(|list| list.iter().any(|lock| lock.convert.is_some()))
        {
            return fail("a conversion on the wrong queue");
        }
        if self.waiting.iter().any(|lock| lock.node != me) {
            return fail("another node's lock waits");
        }
        if self.owner.is_some() && self.vote.is_some() {
            return fail("a vote though the master is known");
        }
        if self.owner.is_none() && self.vote.is_none() {
            return fail("no master and no vote");
        }
        if self.outbound.is_some() && self.owner != Some(me) {
            return fail("moves away though it is not here");
        }
        let held = || self.granted.iter().chain(&self.converting);
        for (index, a) in held().enumerate() {
            let mut others = held().take(index);
            if others.any(|b| !a.least().compatible(b.least())) {
                return fail("two locks that do not go together");
            }
        }
        if self.is_open(me) && self.frozen.is_empty() && !self.dirty && self.next_grant().is_some()
        {
            return fail("a request waits that could be granted");
        }
        Ok(())
    }
}
