//! What can be seen of the state from outside: for `ocelot locks`, and for tests.

use crate::dlm::{Dlm, State};
use crate::resource::{List, Lock, Resource, VotePhase};
use crate::{DomainName, LockId, LockName, Lvb, Mode, NodeNr, NodeSet};

/// What a resource is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Activity {
    /// It is served.
    Ready,
    /// The nodes are being asked who its master is.
    Mastering,
    /// Its master is dead.
    Recovering,
    /// A dead node's locks were taken off, and nothing is granted before its recovery is over.
    Frozen,
    /// It moves to another master.
    Migrating,
    /// This node is forgetting it.
    Dropping,
}

/// A lock as this node knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LockView {
    /// Its number on the wire.
    pub cookie: u64,
    /// Whose it is.
    pub node: NodeNr,
    /// The mode that it holds, if it holds one.
    pub held: Option<Mode>,
    /// The mode that it waits for, if it waits.
    pub wanted: Option<Mode>,
    /// The mode that it was told to make room for.
    pub told: Option<Mode>,
}

impl LockView {
    /// The lock, if it is this node's: what its requests are made with.
    pub fn id(&self, me: NodeNr) -> Option<LockId> {
        (self.node == me).then_some(LockId(self.cookie))
    }
}

/// A resource as this node knows it. All nodes' locks are seen on the master only.
#[derive(Clone, Debug)]
pub struct ResourceView<'a>(&'a Resource, NodeNr);

impl<'a> ResourceView<'a> {
    /// Its name.
    pub fn name(&self) -> LockName {
        self.0.name
    }

    /// Its master, if that is known. In a recovery, the dead one.
    pub fn master(&self) -> Option<NodeNr> {
        self.0.owner
    }

    /// Whether this node is its master.
    pub fn is_mastered_here(&self) -> bool {
        self.0.owner == Some(self.1)
    }

    /// What it is doing.
    pub fn activity(&self) -> Activity {
        let res = self.0;
        if res.dropping {
            Activity::Dropping
        } else if res.recovering {
            Activity::Recovering
        } else if res.inbound.is_some() || res.outbound.is_some() {
            Activity::Migrating
        } else if res.vote.is_some() {
            Activity::Mastering
        } else if !res.frozen.is_empty() {
            Activity::Frozen
        } else {
            Activity::Ready
        }
    }

    /// The nodes that know it. Only the master knows them.
    pub fn references(&self) -> NodeSet {
        self.0.refs
    }

    /// The value block; only the master's counts. [`Lvb::EMPTY`] says nothing.
    pub fn lvb(&self) -> Lvb {
        self.0.lvb
    }

    /// Locks that are held and want nothing else.
    pub fn granted(&self) -> impl Iterator<Item = LockView> + 'a {
        views(&self.0.granted, List::Granted)
    }

    /// Locks that are held and wait for another mode.
    pub fn converting(&self) -> impl Iterator<Item = LockView> + 'a {
        views(&self.0.converting, List::Converting)
    }

    /// Locks that wait, first those that the master knows of.
    pub fn waiting(&self) -> impl Iterator<Item = LockView> + 'a {
        views(&self.0.blocked, List::Blocked).chain(views(&self.0.waiting, List::Waiting))
    }
}

fn views(locks: &[Lock], list: List) -> impl Iterator<Item = LockView> + '_ {
    let holds = matches!(list, List::Granted | List::Converting);
    locks.iter().map(move |lock| LockView {
        cookie: lock.cookie,
        node: lock.node,
        held: holds.then_some(lock.mode),
        wanted: if holds {
            lock.convert.or(lock.op.map(|op| op.mode))
        } else {
            Some(lock.mode)
        },
        told: lock.told,
    })
}

impl Dlm {
    /// This node.
    pub fn node(&self) -> NodeNr {
        self.config.me
    }

    /// The domain.
    pub fn domain(&self) -> DomainName {
        self.config.domain
    }

    /// Where the node is on its way.
    pub fn state(&self) -> State {
        self.state
    }

    /// The members of the domain, as far as this node knows; itself among them once it has joined.
    pub fn members(&self) -> NodeSet {
        self.members
    }

    /// Members that died and whose locks are not sorted out yet.
    pub fn recovering(&self) -> NodeSet {
        self.dead
    }

    /// Every resource that this node knows, by name.
    pub fn resources(&self) -> impl Iterator<Item = ResourceView<'_>> {
        let me = self.config.me;
        self.resources
            .values()
            .map(move |res| ResourceView(res, me))
    }

    /// The resource of this name.
    pub fn find(&self, name: LockName) -> Option<ResourceView<'_>> {
        let res = self.resources.get(&name)?;
        Some(ResourceView(res, self.config.me))
    }

    /// Whether no message and no request of this node is under way, and no vote or recovery is open.
    pub fn is_quiet(&self) -> bool {
        self.calls.is_empty()
            && self.dead.is_empty()
            && self.resources.values().all(|res| {
                res.waiting.is_empty()
                    && res
                        .vote
                        .as_ref()
                        .is_none_or(|vote| vote.phase == VotePhase::Hold)
                    && res.locks().all(|lock| lock.op.is_none())
            })
    }

    /// Looks for what can never be.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn self_check(&self) -> Result<(), String> {
        for (name, res) in &self.resources {
            if *name != res.name {
                return Err(format!("{name} is filed as another resource"));
            }
            res.self_check(self.config.me)?;
            for lock in res.locks().filter(|lock| lock.node == self.config.me) {
                if self.locks.get(&lock.cookie) != Some(name) {
                    return Err(format!("{name}: a lock of ours is not known: {lock:?}"));
                }
            }
            if res.recovering && res.owner.is_none_or(|owner| self.members.contains(owner)) {
                return Err(format!("{name} is recovered though its master lives"));
            }
            let lost = res.owner.filter(|owner| !self.members.contains(*owner));
            if !res.recovering && lost.is_some() && res.inbound.is_none() {
                return Err(format!("{name}: its master is no member: {res:?}"));
            }
        }
        for (cookie, name) in &self.locks {
            let res = self.resources.get(name);
            if res.is_none_or(|res| res.find(*cookie).is_none()) {
                return Err(format!("{name}: lock {cookie:x} is known and not there"));
            }
        }
        if self.members.contains(self.config.me) && self.dead.contains(self.config.me) {
            return Err("this node is dead".to_owned());
        }
        if !self.members.intersection(self.dead).is_empty() {
            return Err("a member is dead".to_owned());
        }
        Ok(())
    }
}
