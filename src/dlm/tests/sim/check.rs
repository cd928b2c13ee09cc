//! What must hold whatever happens, told by the users' view alone.

use dlm::{Lvb, Mode, NodeNr};
use std::collections::{BTreeMap, BTreeSet};

/// One life of one node.
pub type Life = (NodeNr, u32);

/// A lock that somebody relies on.
#[derive(Clone, Debug)]
pub struct Hold {
    pub life: Life,
    pub cookie: u64,
    pub mode: Mode,
}

/// What is known of one resource.
#[derive(Default, Debug)]
pub struct Resource {
    pub holds: Vec<Hold>,
    /// What a dead node held, until all who live have heard of its death.
    pub dead: Vec<Hold>,
    /// The value that the last writer left. None: nothing is known.
    pub value: Option<Lvb>,
    /// Locks that were granted, in any mode, so that we know when all may be forgotten.
    pub locks: BTreeSet<(Life, u64)>,
    /// Nothing known is an allowed answer.
    pub may_be_empty: bool,
}

/// The judge.
#[derive(Default, Debug)]
pub struct Judge {
    pub resources: BTreeMap<usize, Resource>,
    /// Deaths of which a life has heard, or that were before its time.
    pub heard: BTreeMap<Life, BTreeSet<Life>>,
    pub died: BTreeSet<Life>,
    pub grants: u64,
}

impl Judge {
    pub fn resource(&mut self, name: usize) -> &mut Resource {
        self.resources.entry(name).or_insert_with(|| Resource {
            may_be_empty: true,
            ..Resource::default()
        })
    }

    /// A lock was granted.
    pub fn granted(&mut self, name: usize, life: Life, cookie: u64, mode: Mode, lvb: Option<Lvb>) {
        self.grants += 1;
        let deaths = self.died.len();
        let heard = self.heard.entry(life).or_default().clone();
        let res = self.resource(name);
        res.holds
            .retain(|hold| (hold.life, hold.cookie) != (life, cookie));
        for hold in &res.holds {
            assert!(
                hold.mode.compatible(mode),
                "resource {name}: {life:?} gets {mode:?} while {hold:?}"
            );
        }
        for hold in &res.dead {
            assert!(
                hold.mode.compatible(mode) || heard.contains(&hold.life),
                "resource {name}: {life:?} gets {mode:?} and has not heard that {hold:?} died"
            );
        }
        res.holds.push(Hold { life, cookie, mode });
        res.locks.insert((life, cookie));
        if let Some(lvb) = lvb.filter(|_| mode >= Mode::Pr) {
            if lvb.is_empty() {
                assert!(
                    res.may_be_empty || deaths > 0,
                    "resource {name}: the value {:?} is forgotten",
                    res.value
                );
            } else {
                assert_eq!(Some(lvb), res.value, "resource {name}: an old value");
            }
        }
    }

    /// Its holder relies on less from now on; an exclusive holder may leave a value.
    pub fn lowered(&mut self, name: usize, life: Life, cookie: u64, mode: Mode, lvb: Option<Lvb>) {
        let res = self.resource(name);
        if let Some(lvb) = lvb {
            res.value = Some(lvb);
            res.may_be_empty = false;
        }
        res.holds
            .retain(|hold| (hold.life, hold.cookie) != (life, cookie));
        res.holds.push(Hold { life, cookie, mode });
    }

    pub fn forgotten(&mut self, name: usize, life: Life, cookie: u64) {
        let res = self.resource(name);
        res.locks.remove(&(life, cookie));
        res.holds
            .retain(|hold| (hold.life, hold.cookie) != (life, cookie));
        res.may_be_empty |= res.locks.is_empty();
    }

    pub fn died(&mut self, life: Life) {
        self.died.insert(life);
        for res in self.resources.values_mut() {
            let (dead, alive) = std::mem::take(&mut res.holds)
                .into_iter()
                .partition(|hold| hold.life == life);
            res.holds = alive;
            let dead: Vec<Hold> = dead;
            if dead.iter().any(|hold| hold.mode == Mode::Ex) {
                res.value = None;
            }
            res.dead.extend(dead);
            res.locks.retain(|(other, _)| *other != life);
        }
    }

    /// It is a member now. Those who died before and are not among the members were sorted out without it.
    pub fn joined(&mut self, life: Life, members: &[Life]) {
        let before = self.died.iter().filter(|dead| !members.contains(dead));
        let before: Vec<Life> = before.copied().collect();
        self.heard.entry(life).or_default().extend(before);
    }
}
