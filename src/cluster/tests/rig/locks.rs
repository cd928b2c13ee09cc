//! What a member does with locks, and the judge of it: two incompatible holders never, value blocks never stale.
//!
//! Each node takes random locks of a few names in random modes, holds them for a while or until somebody wants them, and
//! gives them up, with a number in the value block that grows with every exclusive holder.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use cluster::{Domain, Domains, Member, Notice};
use dlm::wire::LockFlags;
use dlm::{DomainName, LockId, LockName, Lvb, Mode};
use futures_util::future::select;
use runtime::sim::SimRng;

use super::{Checker, MILLISECOND};

const DOMAIN: &[u8] = b"4BD61E13FD444856849E9B5CB1AEECB0";
const NAMES: u64 = 3;

/// A holder: node and life.
type Holder = (u8, u64);

#[derive(Default)]
struct Value {
    number: u64,
    writer: Option<Holder>,
}

pub struct Judge {
    checker: Rc<Checker>,
    holders: RefCell<BTreeMap<(u64, Holder), Mode>>,
    values: RefCell<BTreeMap<u64, Value>>,
    pub granted: Cell<u64>,
    pub waited: Cell<u64>,
    pub fresh: Cell<u64>,
}

impl Judge {
    pub fn new(checker: Rc<Checker>) -> Self {
        Judge {
            checker,
            holders: RefCell::default(),
            values: RefCell::default(),
            granted: Cell::new(0),
            waited: Cell::new(0),
            fresh: Cell::new(0),
        }
    }

    /// The holder has the lock in this mode from now on.
    fn holds(&self, name: u64, holder: Holder, mode: Mode) {
        self.granted.set(self.granted.get() + 1);
        if !self.checker.acts(holder) {
            return; // it slept, and will find out before it writes
        }
        self.checker
            .note(format!("{}.{}: holds {name} {mode:?}", holder.0, holder.1));
        let others = self.holders.borrow();
        for ((of, other), held) in others.iter() {
            let conflict = *of == name && *other != holder && !held.compatible(mode);
            if conflict && self.checker.acts(*other) {
                let what = format!("{holder:?} has {name} {mode:?}, and {other:?} has it {held:?}");
                drop(others);
                self.checker.fail(what);
            }
        }
        drop(others);
        self.holders.borrow_mut().insert((name, holder), mode);
    }

    /// The holder relies on less from now on.
    fn lowers(&self, name: u64, holder: Holder, mode: Option<Mode>) {
        let holders = &mut *self.holders.borrow_mut();
        match mode {
            None => holders.remove(&(name, holder)),
            Some(mode) => holders.insert((name, holder), mode),
        };
    }

    /// What an exclusive holder leaves behind.
    fn next_value(&self, name: u64, holder: Holder) -> Lvb {
        let values = &mut *self.values.borrow_mut();
        let value = values.entry(name).or_default();
        value.number += 1;
        value.writer = Some(holder);
        let mut lvb = Lvb::EMPTY;
        lvb.0[..8].copy_from_slice(&value.number.to_be_bytes());
        lvb
    }

    /// What a holder found.
    fn read(&self, name: u64, holder: Holder, lvb: Lvb) {
        if lvb.is_empty() || !self.checker.acts(holder) {
            return;
        }
        let number = u64::from_be_bytes(lvb.0[..8].try_into().unwrap());
        let values = self.values.borrow();
        let Some(value) = values.get(&name) else {
            self.checker.fail(format!(
                "{holder:?} reads {number} in {name}, never written"
            ));
        };
        // What a dead writer wrote last may be lost with it.
        let lost = value
            .writer
            .is_some_and(|writer| !self.checker.acts(writer));
        if number != value.number && !(lost && number < value.number) {
            let what = format!(
                "{holder:?} reads {number} in {name}, it is {}",
                value.number
            );
            self.checker.fail(what);
        }
        self.fresh.set(self.fresh.get() + 1);
    }
}

enum Outcome {
    Granted(Mode, Option<Lvb>),
    Refused,
    Gone,
}

struct User {
    judge: Rc<Judge>,
    holder: Holder,
    member: Member,
    domain: Domain,
    inbox: Rc<Inbox>,
    rng: RefCell<SimRng>,
}

/// What was said of each lock, and whom it keeps waiting.
#[derive(Default)]
struct Inbox {
    outcomes: RefCell<BTreeMap<LockId, Outcome>>,
    wanted: RefCell<BTreeMap<LockId, Mode>>,
}

/// Joins the domain and uses locks until the life ends.
pub async fn use_locks(judge: Rc<Judge>, member: Member, holder: Holder, rng: SimRng) {
    let domains = Domains::new(&member);
    let inbox = Rc::new(Inbox::default());
    let hears = inbox.clone();
    let listener = move |notice: Notice| {
        let (lock, outcome) = match notice {
            Notice::Granted { lock, mode, lvb } => (lock, Outcome::Granted(mode, lvb)),
            Notice::Refused(lock) => (lock, Outcome::Refused),
            Notice::Unlocked(lock) | Notice::Cancelled(lock) => (lock, Outcome::Gone),
            Notice::Blocked { lock, wanted } => {
                hears.wanted.borrow_mut().insert(lock, wanted);
                return;
            }
            _ => return,
        };
        hears.outcomes.borrow_mut().insert(lock, outcome);
    };
    let name = DomainName::new(DOMAIN).unwrap();
    let domain = match domains.join(name, false, listener).await {
        Ok(domain) => domain,
        Err(error) => {
            judge
                .checker
                .note(format!("{}.{}: no domain: {error}", holder.0, holder.1));
            return;
        }
    };
    judge
        .checker
        .note(format!("{}.{}: in the domain", holder.0, holder.1));
    let host = member.host();
    let lanes = (0..2).map(|lane| {
        let user = User {
            judge: judge.clone(),
            holder,
            member: member.clone(),
            domain: domain.clone(),
            inbox: inbox.clone(),
            rng: RefCell::new(SimRng::new(rng.clone().below(u64::MAX) + lane)),
        };
        async move { while let Some(()) = user.one_lock(lane).await {} }
    });
    futures_util::future::join_all(lanes.collect::<Vec<_>>()).await;
    drop(host);
}

fn full_name(name: u64) -> LockName {
    LockName::new(format!("M{name:030}").as_bytes()).unwrap()
}

impl User {
    fn below(&self, bound: u64) -> u64 {
        self.rng.borrow_mut().below(bound)
    }

    /// Takes a lock, perhaps changes it, and gives it up. `None`: the life is over.
    async fn one_lock(&self, lane: u64) -> Option<()> {
        self.sleep(self.below(30)).await?;
        // Two lanes of a node never meet: the judge counts by node.
        let name = self.below(NAMES) * 2 + lane;
        let mode = [Mode::Pr, Mode::Ex][self.below(2) as usize];
        let lock = self
            .domain
            .lock(full_name(name), mode, LockFlags::VALBLK)
            .ok()?;
        let Outcome::Granted(mode, lvb) = self.outcome(lock).await? else {
            return Some(());
        };
        self.granted(name, mode, lvb);
        let mut mode = mode;
        loop {
            self.hold(lock).await?;
            match self.below(3) {
                0 if mode == Mode::Ex => {
                    let value = self.judge.next_value(name, self.holder);
                    self.judge.lowers(name, self.holder, Some(Mode::Pr));
                    let flags = LockFlags::VALBLK;
                    self.domain
                        .convert(lock, Mode::Pr, flags, Some(value))
                        .ok()?;
                    let Outcome::Granted(now, _) = self.outcome(lock).await? else {
                        return None;
                    };
                    mode = now;
                }
                1 if mode == Mode::Pr => {
                    let flags = LockFlags::VALBLK | LockFlags::NOQUEUE;
                    self.domain.convert(lock, Mode::Ex, flags, None).ok()?;
                    if let Outcome::Granted(now, lvb) = self.outcome(lock).await? {
                        self.granted(name, now, lvb);
                        mode = now;
                    }
                }
                _ => break,
            }
        }
        let value = (mode == Mode::Ex).then(|| self.judge.next_value(name, self.holder));
        self.judge.lowers(name, self.holder, None);
        self.inbox.wanted.borrow_mut().remove(&lock);
        self.domain.unlock(lock, value).ok()?;
        self.outcome(lock).await?;
        Some(())
    }

    fn granted(&self, name: u64, mode: Mode, lvb: Option<Lvb>) {
        self.judge.holds(name, self.holder, mode);
        if let Some(lvb) = lvb {
            self.judge.read(name, self.holder, lvb);
        }
    }

    /// Holds the lock for a while, less if it is wanted.
    async fn hold(&self, lock: LockId) -> Option<()> {
        for _ in 0..self.below(10) {
            self.sleep(5).await?;
            if self.inbox.wanted.borrow().contains_key(&lock) {
                break;
            }
        }
        Some(())
    }

    async fn sleep(&self, milliseconds: u64) -> Option<()> {
        let host = self.member.host();
        host.sleep(MILLISECOND * milliseconds as u32).await;
        self.member.lease().fence().is_none().then_some(())
    }

    /// What becomes of the lock's request; looks again and again, and in between if the life has ended.
    async fn outcome(&self, lock: LockId) -> Option<Outcome> {
        let mut looks = 0u64;
        loop {
            let outcome = self.inbox.outcomes.borrow_mut().remove(&lock);
            if let Some(outcome) = outcome {
                self.judge.waited.set(self.judge.waited.get().max(looks));
                return Some(outcome);
            }
            looks += 1;
            self.sleep(5).await?;
        }
    }
}

/// Until the life of the member ends, however long `work` takes.
pub async fn while_member(member: &Member, work: impl Future<Output = ()>) {
    let (work, ended) = (std::pin::pin!(work), std::pin::pin!(member.ended()));
    select(work, ended).await;
}
