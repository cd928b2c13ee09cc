//! The file system's part: random requests, and the decency to give way.

use super::world::{Plan, World};
use dlm::wire::LockFlags;
use dlm::{LockId, Lvb, Mode, NodeNr};
use rand::Rng;
use rand::seq::IteratorRandom;
use std::collections::BTreeMap;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Doing {
    Creating(Mode),
    Nothing,
    Converting(Mode),
    Unlocking,
}

#[derive(Clone, Debug)]
pub struct Held {
    pub name: usize,
    pub mode: Mode,
    pub doing: Doing,
    /// The mode that somebody else wants.
    pub wanted: Option<Mode>,
    pub cancelled: bool,
}

impl Held {
    /// What its holder relies on.
    pub fn least(&self) -> Mode {
        match self.doing {
            Doing::Creating(_) | Doing::Unlocking => Mode::Nl,
            Doing::Converting(to) => to.min(self.mode),
            Doing::Nothing => self.mode,
        }
    }
}

#[derive(Default, Debug)]
pub struct User {
    pub locks: BTreeMap<LockId, Held>,
    /// It gives everything up and goes.
    pub leaving: bool,
}

impl World {
    /// One thing that the user of a node does; only giving way if `giving_way`.
    pub fn user_acts(&mut self, node: NodeNr, giving_way: bool) {
        let Some(user) = self.user(node) else { return };
        let in_the_way: Vec<LockId> = user
            .locks
            .iter()
            .filter(|(_, held)| held.wanted.is_some())
            .map(|(id, _)| *id)
            .collect();
        for id in in_the_way {
            self.give_way(node, id);
        }
        if giving_way || self.user(node).is_some_and(|user| user.leaving) {
            return;
        }
        let Plan { names, .. } = self.plan;
        let count = self.user(node).map_or(0, |user| user.locks.len());
        if count == 0 || count < names + 2 && self.rng.random_ratio(1, 4) {
            self.create(node);
            return;
        }
        let Some(user) = self.user(node) else { return };
        let locks: Vec<(LockId, Held)> =
            user.locks.iter().map(|(id, h)| (*id, h.clone())).collect();
        let Some((id, held)) = locks.into_iter().choose(&mut self.rng) else {
            return;
        };
        match held.doing {
            Doing::Nothing if self.rng.random_ratio(1, 3) => self.unlock(node, id),
            Doing::Nothing => {
                let to = self.mode();
                self.convert(node, id, to);
            }
            _ if self.rng.random_ratio(1, 6) => self.cancel(node, id),
            _ => {}
        }
    }

    fn mode(&mut self) -> Mode {
        *Mode::ALL.iter().choose(&mut self.rng).expect("three")
    }

    fn create(&mut self, node: NodeNr) {
        let name = self.rng.random_range(0..self.plan.names);
        let mode = self.mode();
        let mut flags = LockFlags::empty();
        if self.rng.random_ratio(1, 4) {
            flags.insert(LockFlags::NOQUEUE);
        }
        if self.rng.random_ratio(3, 4) {
            flags.insert(LockFlags::VALBLK);
        }
        let full = World::name(name);
        let Some(dlm) = self.dlm(node) else { return };
        let Ok(id) = dlm.lock(full, mode, flags) else {
            return;
        };
        self.say(|| format!("{node:?} creates {id:?} on {name} {mode:?} {flags:?}"));
        let held = Held {
            name,
            mode: Mode::Nl,
            doing: Doing::Creating(mode),
            wanted: None,
            cancelled: false,
        };
        self.user(node)
            .expect("it has a lock manager")
            .locks
            .insert(id, held);
        self.carry_out(node);
    }

    fn give_way(&mut self, node: NodeNr, id: LockId) {
        let Some(held) = self.user(node).and_then(|user| user.locks.get_mut(&id)) else {
            return;
        };
        let Some(wanted) = held.wanted else { return };
        match held.doing {
            Doing::Nothing => {
                held.wanted = None;
                if held.mode.compatible(wanted) {
                    return;
                }
                let lower = match (held.mode, wanted) {
                    (Mode::Ex, Mode::Pr) if self.rng.random_ratio(1, 2) => Mode::Pr,
                    _ => Mode::Nl,
                };
                if self.rng.random_ratio(1, 3) {
                    self.unlock(node, id);
                } else {
                    self.convert(node, id, lower);
                }
            }
            // Up, against somebody who does the same: one has to step back.
            Doing::Converting(to) if to > held.mode && !held.mode.compatible(wanted) => {
                if !held.cancelled {
                    self.cancel(node, id);
                }
            }
            Doing::Converting(_) => {}
            Doing::Creating(_) | Doing::Unlocking => {}
        }
    }

    fn value(&mut self) -> Lvb {
        self.values += 1;
        let mut lvb = Lvb::EMPTY;
        lvb.0[..8].copy_from_slice(&self.values.to_be_bytes());
        lvb
    }

    fn convert(&mut self, node: NodeNr, id: LockId, to: Mode) {
        let life = self.life(node);
        let mut flags = LockFlags::empty();
        if self.rng.random_ratio(1, 4) {
            flags.insert(LockFlags::NOQUEUE);
        }
        if self.rng.random_ratio(3, 4) {
            flags.insert(LockFlags::VALBLK);
        }
        let put = self.rng.random_ratio(3, 4).then(|| self.value());
        let Some(held) = self.user(node).and_then(|user| user.locks.get_mut(&id)) else {
            return;
        };
        let put = put.filter(|_| held.mode == Mode::Ex);
        held.doing = Doing::Converting(to);
        held.cancelled = false;
        let (name, least) = (held.name, held.least());
        self.judge.lowered(name, life, id.cookie(), least, put);
        self.say(|| format!("{node:?} converts {id:?} on {name} to {to:?} {flags:?} {put:?}"));
        let dlm = self.dlm(node).expect("it has a lock");
        dlm.convert(id, to, flags, put).expect("the lock is idle");
        self.carry_out(node);
    }

    pub fn unlock(&mut self, node: NodeNr, id: LockId) {
        let life = self.life(node);
        let put = self.rng.random_ratio(3, 4).then(|| self.value());
        let Some(held) = self.user(node).and_then(|user| user.locks.get_mut(&id)) else {
            return;
        };
        let put = put.filter(|_| held.mode == Mode::Ex);
        held.doing = Doing::Unlocking;
        let name = held.name;
        self.judge.lowered(name, life, id.cookie(), Mode::Nl, put);
        self.say(|| format!("{node:?} unlocks {id:?} on {name} {put:?}"));
        let dlm = self.dlm(node).expect("it has a lock");
        dlm.unlock(id, put).expect("the lock is idle");
        self.carry_out(node);
    }

    fn cancel(&mut self, node: NodeNr, id: LockId) {
        if let Some(held) = self.user(node).and_then(|user| user.locks.get_mut(&id)) {
            held.cancelled = true;
        }
        self.say(|| format!("{node:?} cancels {id:?}"));
        let dlm = self.dlm(node).expect("it has a lock");
        dlm.cancel(id).expect("the lock is there");
        self.carry_out(node);
    }
}
