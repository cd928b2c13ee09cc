//! Nodes, the network between them, heartbeat, and time.

use super::check::{Judge, Life};
use super::user::{Doing, User};
use dlm::wire::{DLM_VERSION, FS_VERSION, Message};
use dlm::{
    Action, CallId, Config, Dlm, DomainName, Event, LockId, LockName, Lvb, Mode, NodeNr, State,
    Timer,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

/// What a run is made of.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub name: &'static str,
    pub nodes: (u8, u8),
    pub names: usize,
    /// Things that users do.
    pub deeds: u32,
    /// Deaths in a run at most.
    pub deaths: u32,
    /// Orderly leaves in a run at most.
    pub leaves: u32,
    /// Whether nodes behave as if kernel nodes were about.
    pub kernel_peers: bool,
    /// Whether what a message sets off can overtake its answer, as it does on kernel nodes.
    pub late_answers: bool,
}

struct Node {
    life: u32,
    dlm: Option<Dlm>,
    user: User,
    /// The lives of the others that it is connected to.
    sees: BTreeMap<NodeNr, u32>,
}

#[derive(Clone, Debug)]
enum Frame {
    Message(u32, CallId, Message),
    Status(CallId, i32),
    NoHandler(CallId),
}

#[derive(Clone, Debug)]
enum Happening {
    Deliver { from: Life, to: Life, frame: Frame },
    Timer { at: Life, timer: Timer },
    Down { at: Life, dead: Life },
    Connect { a: Life, b: Life },
    Join { at: Life },
    Deed,
    Polite { at: Life },
    Kill,
    Leave,
    Boot { node: NodeNr },
}

struct Entry {
    time: u64,
    order: u64,
    what: Happening,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.time, self.order) == (other.time, other.order)
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.time, self.order).cmp(&(other.time, other.order))
    }
}

pub struct World {
    pub plan: Plan,
    pub rng: SmallRng,
    pub judge: Judge,
    pub values: u64,
    nodes: Vec<Node>,
    queue: BinaryHeap<Reverse<Entry>>,
    /// Microseconds.
    now: u64,
    order: u64,
    /// When the last frame of a pair arrives: the next is later.
    last: BTreeMap<(Life, Life), u64>,
    /// Answers under way: who sent which call under which number.
    asked: BTreeMap<(Life, u32), (Life, CallId)>,
    msg_num: u32,
    deeds: u32,
    slow: u64,
    trace: bool,
    ending: bool,
}

const DOMAIN: &[u8] = b"4BD61E13FD444856849E9B5CB1AEECB0";

fn nr(index: usize) -> NodeNr {
    NodeNr::new(index as u8).expect("few nodes")
}

impl World {
    pub fn new(plan: Plan, seed: u64, trace: bool) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let count = rng.random_range(plan.nodes.0..=plan.nodes.1);
        let nodes = (0..count).map(|_| Node {
            life: 0,
            dlm: None,
            user: User::default(),
            sees: BTreeMap::new(),
        });
        let mut world = Self {
            plan,
            judge: Judge::default(),
            values: 0,
            nodes: nodes.collect(),
            queue: BinaryHeap::new(),
            now: 0,
            order: 0,
            last: BTreeMap::new(),
            asked: BTreeMap::new(),
            msg_num: 0,
            deeds: 0,
            slow: *[1, 1, 4, 20].get(rng.random_range(0..4)).expect("four"),
            trace,
            ending: false,
            rng,
        };
        for index in 0..world.nodes.len() {
            let when = world.rng.random_range(0..300_000);
            world.later(when, Happening::Boot { node: nr(index) });
        }
        let span = u64::from(plan.deeds) * 1000;
        for _ in 0..plan.deaths {
            if world.rng.random_ratio(2, 3) {
                let when = world.rng.random_range(0..span + 400_000);
                world.later(when, Happening::Kill);
                // Misfortunes do not come alone.
                if world.rng.random_ratio(1, 4) {
                    let soon = world.rng.random_range(0..60_000);
                    world.later(when + soon, Happening::Kill);
                }
            }
        }
        for _ in 0..plan.leaves {
            let when = world.rng.random_range(0..span + 400_000);
            world.later(when, Happening::Leave);
        }
        world.later(400_000, Happening::Deed);
        world
    }

    pub fn name(index: usize) -> LockName {
        LockName::new(format!("M{index:030}").as_bytes()).expect("31 bytes")
    }

    pub fn say(&self, what: impl FnOnce() -> String) {
        if self.trace {
            println!("{:>10} {}", self.now, what());
        }
    }

    fn later(&mut self, after: u64, what: Happening) {
        self.order += 1;
        self.queue.push(Reverse(Entry {
            time: self.now + after,
            order: self.order,
            what,
        }));
    }

    fn node(&mut self, node: NodeNr) -> &mut Node {
        &mut self.nodes[usize::from(node.get())]
    }

    pub fn dlm(&mut self, node: NodeNr) -> Option<&mut Dlm> {
        self.node(node).dlm.as_mut()
    }

    pub fn user(&mut self, node: NodeNr) -> Option<&mut User> {
        let node = self.node(node);
        node.dlm.is_some().then_some(&mut node.user)
    }

    pub fn life(&mut self, node: NodeNr) -> Life {
        (node, self.node(node).life)
    }

    fn is_alive(&mut self, life: Life) -> bool {
        let node = self.node(life.0);
        node.dlm.is_some() && node.life == life.1
    }

    /// Runs to the end, and looks at what is left.
    pub fn run(&mut self) {
        self.run_until_quiet(600_000_000);
        self.quiet();
        // Everybody leaves, in some order.
        self.ending = true;
        for index in 0..self.nodes.len() {
            self.start_leaving(nr(index));
        }
        self.run_until_quiet(900_000_000);
        for index in 0..self.nodes.len() {
            let left = self.nodes[index].dlm.as_ref().map(Dlm::state);
            assert!(
                left.is_none(),
                "node {index} could not leave: {left:?}\n{self}"
            );
        }
    }

    fn run_until_quiet(&mut self, limit: u64) {
        while let Some(Reverse(entry)) = self.queue.pop() {
            self.now = entry.time;
            assert!(self.now < limit, "it does not come to rest\n{self}");
            self.happens(entry.what);
        }
    }

    fn happens(&mut self, what: Happening) {
        match what {
            Happening::Deliver { from, to, frame } => self.deliver(from, to, frame),
            Happening::Timer { at, timer } => {
                if self.is_alive(at) {
                    self.step(at.0, Event::Timer(timer));
                }
            }
            Happening::Down { at, dead } => {
                if self.is_alive(at) && self.node(at.0).sees.get(&dead.0) == Some(&dead.1) {
                    self.node(at.0).sees.remove(&dead.0);
                    self.say(|| format!("{:?} sees that {dead:?} is dead", at.0));
                    self.step(at.0, Event::NodeDown(dead.0));
                }
            }
            Happening::Connect { a, b } => {
                if self.is_alive(a) && self.is_alive(b) {
                    self.node(a.0).sees.insert(b.0, b.1);
                    self.node(b.0).sees.insert(a.0, a.1);
                    self.step(a.0, Event::NodeUp(b.0));
                    self.step(b.0, Event::NodeUp(a.0));
                }
            }
            Happening::Join { at } => self.join(at),
            Happening::Deed => self.deed(),
            Happening::Polite { at } => {
                if self.is_alive(at) {
                    self.user_acts(at.0, true);
                    self.go_on_leaving(at.0);
                }
            }
            Happening::Kill => self.kill(),
            Happening::Leave => {
                let index = self.rng.random_range(0..self.nodes.len());
                self.start_leaving(nr(index));
            }
            Happening::Boot { node } => self.boot(node),
        }
    }

    fn deed(&mut self) {
        self.deeds += 1;
        let index = self.rng.random_range(0..self.nodes.len());
        if self
            .dlm(nr(index))
            .is_some_and(|dlm| dlm.state() == State::Joined)
        {
            self.user_acts(nr(index), false);
        }
        if self.deeds < self.plan.deeds {
            let after = self.rng.random_range(0..2000);
            self.later(after, Happening::Deed);
        }
    }

    fn boot(&mut self, node: NodeNr) {
        if self.node(node).dlm.is_some() || self.ending {
            return;
        }
        // Its old life has to be known to be over.
        if self
            .nodes
            .iter()
            .any(|other| other.dlm.is_some() && other.sees.contains_key(&node))
        {
            return self.later(50_000, Happening::Boot { node });
        }
        let config = Config {
            me: node,
            domain: DomainName::new(DOMAIN).expect("32 digits"),
            dlm: DLM_VERSION,
            fs: FS_VERSION,
            nodes: Vec::new(),
            regions: Vec::new(),
            kernel_peers: self.plan.kernel_peers,
        };
        let fresh = self.node(node);
        fresh.life += 1;
        fresh.dlm = Some(Dlm::new(config));
        fresh.user = User::default();
        fresh.sees = BTreeMap::new();
        let life = self.life(node);
        self.say(|| format!("{life:?} boots"));
        for index in 0..self.nodes.len() {
            if nr(index) != node && self.nodes[index].dlm.is_some() {
                let b = self.life(nr(index));
                let after = self.rng.random_range(0..20_000);
                self.later(after, Happening::Connect { a: life, b });
            }
        }
        self.later(25_000, Happening::Join { at: life });
    }

    fn join(&mut self, at: Life) {
        if !self.is_alive(at) {
            return;
        }
        let others = (0..self.nodes.len()).map(nr).filter(|other| *other != at.0);
        let alive: Vec<NodeNr> = others
            .filter(|o| self.nodes[usize::from(o.get())].dlm.is_some())
            .collect();
        let sees = self.node(at.0).sees.clone();
        let dead_seen = sees.keys().any(|seen| !alive.contains(seen));
        if dead_seen || alive.iter().any(|other| !sees.contains_key(other)) {
            return self.later(10_000, Happening::Join { at });
        }
        self.dlm(at.0).expect("it lives").join().expect("it is new");
        self.carry_out(at.0);
    }

    fn kill(&mut self) {
        let alive: Vec<usize> = (0..self.nodes.len())
            .filter(|index| self.nodes[*index].dlm.is_some())
            .collect();
        if alive.len() < 2 || self.ending {
            return;
        }
        let index = alive[self.rng.random_range(0..alive.len())];
        let dead = self.life(nr(index));
        self.say(|| format!("{dead:?} dies"));
        self.node(dead.0).dlm = None;
        self.judge.died(dead);
        for other in 0..self.nodes.len() {
            if self.nodes[other].dlm.is_some() {
                let at = self.life(nr(other));
                let after = self.rng.random_range(0..100_000);
                self.later(after, Happening::Down { at, dead });
            }
        }
        let after = self.rng.random_range(0..1_000_000);
        self.later(after, Happening::Boot { node: dead.0 });
    }

    fn start_leaving(&mut self, node: NodeNr) {
        if let Some(user) = self.user(node) {
            user.leaving = true;
            self.go_on_leaving(node);
        }
    }

    /// Gives up what is held, and leaves when nothing is.
    fn go_on_leaving(&mut self, node: NodeNr) {
        if self.user(node).is_none_or(|user| !user.leaving) {
            return;
        }
        let idle: Vec<LockId> = self.user(node).map_or(Vec::new(), |user| {
            let idle = user
                .locks
                .iter()
                .filter(|(_, held)| held.doing == Doing::Nothing);
            idle.map(|(id, _)| *id).collect()
        });
        for id in idle {
            self.unlock(node, id);
        }
        let empty = self.user(node).is_some_and(|user| user.locks.is_empty());
        match self.dlm(node).map(|dlm| dlm.state()) {
            Some(State::Joined) if empty => {
                self.say(|| format!("{node:?} leaves"));
                self.dlm(node)
                    .expect("it is there")
                    .leave()
                    .expect("nothing is held");
                self.carry_out(node);
            }
            Some(State::Joined | State::Joining | State::New) => {
                let at = self.life(node);
                self.later(20_000, Happening::Polite { at });
            }
            _ => {}
        }
    }

    fn left(&mut self, node: NodeNr) {
        let life = self.life(node);
        self.say(|| format!("{life:?} has left"));
        self.node(node).dlm = None;
        // Heartbeat goes on, or stops: to the others it is the same as a death of one who is no member.
        for other in 0..self.nodes.len() {
            if self.nodes[other].dlm.is_some() {
                let at = self.life(nr(other));
                let after = self.rng.random_range(1..50_000);
                self.later(after, Happening::Down { at, dead: life });
            }
        }
        let after = self.rng.random_range(0..600_000);
        self.later(after, Happening::Boot { node });
    }

    fn send(&mut self, from: Life, to: Life, frame: Frame) {
        let delay = if self.rng.random_ratio(1, 20) {
            self.rng.random_range(0..5000 * self.slow)
        } else {
            self.rng.random_range(20..300 * self.slow)
        };
        let last = self.last.get(&(from, to)).copied().unwrap_or(0);
        let time = (self.now + delay).max(last + 1);
        self.last.insert((from, to), time);
        self.later(time - self.now, Happening::Deliver { from, to, frame });
    }

    fn deliver(&mut self, from: Life, to: Life, frame: Frame) {
        if !self.is_alive(to) {
            // A node that has left answers that it knows no domain, as long as its process runs.
            if let Frame::Message(_, call, _) = frame
                && self.node(to.0).life == to.1
                && self.is_alive(from)
                && !self.judge.died.contains(&to)
            {
                self.send(to, from, Frame::NoHandler(call));
            }
            return;
        }
        if self.node(to.0).sees.get(&from.0) != Some(&from.1) {
            return;
        }
        self.say(|| format!("{:?} -> {:?} {frame:?}", from.0, to.0));
        let from_node = from.0;
        match frame {
            Frame::Message(msg_num, call, message) => {
                self.asked.insert((to, msg_num), (from, call));
                let event = Event::Request {
                    from: from_node,
                    msg_num,
                    message,
                };
                self.step(to.0, event);
            }
            Frame::Status(call, status) => {
                let event = Event::Reply {
                    from: from_node,
                    call,
                    status,
                };
                self.step(to.0, event);
            }
            Frame::NoHandler(call) => {
                let event = Event::NoHandler {
                    from: from_node,
                    call,
                };
                self.step(to.0, event);
            }
        }
    }

    fn step(&mut self, node: NodeNr, event: Event) {
        let dlm = self.dlm(node).expect("it lives");
        dlm.step(event);
        self.carry_out(node);
    }

    /// Does what a node asks for.
    pub fn carry_out(&mut self, node: NodeNr) {
        let life = self.life(node);
        let Some(dlm) = self.dlm(node) else { return };
        let actions: Vec<Action> = dlm.actions().collect();
        if let Err(wrong) = dlm.self_check() {
            panic!("{node:?}: {wrong}");
        }
        for action in self.overtaken(actions) {
            self.carry_out_one(node, life, action);
        }
    }

    /// A kernel node's notices come from another thread than its answers.
    fn overtaken(&mut self, mut actions: Vec<Action>) -> Vec<Action> {
        let late = self.plan.late_answers && self.rng.random_ratio(1, 3);
        if late && matches!(actions.first(), Some(Action::Answer { .. })) {
            let answer = actions.remove(0);
            let notice = |action: &Action| {
                matches!(
                    action,
                    Action::Send {
                        message: Message::ProxyAst { .. },
                        ..
                    }
                )
            };
            let after = actions.iter().rposition(notice).map_or(0, |last| last + 1);
            actions.insert(after, answer);
        }
        actions
    }

    fn carry_out_one(&mut self, node: NodeNr, life: Life, action: Action) {
        match action {
            Action::Send { to, call, message } => {
                self.msg_num += 1;
                let wire = message.encode();
                let again = dlm::wire::decode(message.msg_type() as u16, &wire);
                assert_eq!(again.as_ref(), Ok(&message), "it does not survive the wire");
                if let Some(other) = self.node(node).sees.get(&to).copied() {
                    self.send(
                        life,
                        (to, other),
                        Frame::Message(self.msg_num, call, message),
                    );
                }
            }
            Action::Answer {
                to,
                msg_num,
                status,
            } => {
                let (asker, call) = self.asked.remove(&(life, msg_num)).expect("it was asked");
                assert_eq!(asker.0, to);
                self.send(life, asker, Frame::Status(call, status));
            }
            Action::Timer { after_ms, timer } => {
                self.later(
                    u64::from(after_ms) * 1000,
                    Happening::Timer { at: life, timer },
                );
            }
            Action::Granted { lock, mode, lvb } => self.on_granted(node, life, lock, mode, lvb),
            Action::Refused { lock } | Action::Cancelled { lock } => {
                self.say(|| format!("{node:?}: {lock:?} is refused or cancelled"));
                let user = self.user(node).expect("it lives");
                let held = user.locks.get_mut(&lock).expect("the lock is known");
                let name = held.name;
                match held.doing {
                    Doing::Creating(_) => {
                        user.locks.remove(&lock);
                        self.judge.forgotten(name, life, lock.cookie());
                    }
                    Doing::Converting(to) => {
                        assert!(to > held.mode, "a conversion down is never refused");
                        held.doing = Doing::Nothing;
                    }
                    doing => panic!("refused while {doing:?}"),
                }
                self.polite(life);
            }
            Action::Unlocked { lock } => {
                self.say(|| format!("{node:?}: {lock:?} is unlocked"));
                let user = self.user(node).expect("it lives");
                let held = user.locks.remove(&lock).expect("the lock is known");
                assert_eq!(held.doing, Doing::Unlocking);
                self.judge.forgotten(held.name, life, lock.cookie());
            }
            Action::Blocked { lock, wanted } => {
                self.say(|| format!("{node:?}: {lock:?} is in the way of {wanted:?}"));
                let user = self.user(node).expect("it lives");
                let held = user.locks.get_mut(&lock).expect("the lock is known");
                held.wanted = held.wanted.max(Some(wanted));
                self.polite(life);
            }
            Action::MemberDied(dead) => {
                let dead = self.life(dead);
                self.say(|| format!("{node:?} is told that {dead:?} died"));
                self.judge.heard.entry(life).or_default().insert(dead);
            }
            Action::Left => self.left(node),
            Action::JoinFailed(error) => panic!("{node:?} cannot join: {error}"),
            Action::Evicted { by } => panic!("{node:?} is evicted by {by:?}"),
            Action::Joined { members } => {
                self.say(|| format!("{node:?} is in {members:?}"));
                let members = members.iter().map(|member| self.life(member));
                let members: Vec<Life> = members.collect();
                self.judge.joined(life, &members);
            }
            Action::MemberJoined(_) | Action::MemberLeft(_) | Action::Recovered(_) => {
                self.say(|| format!("{node:?} {action:?}"));
            }
        }
    }

    fn on_granted(&mut self, node: NodeNr, life: Life, lock: LockId, mode: Mode, lvb: Option<Lvb>) {
        self.say(|| format!("{node:?}: {lock:?} is granted {mode:?} {lvb:?}"));
        let user = self.user(node).expect("it lives");
        let held = user.locks.get_mut(&lock).expect("the lock is known");
        match held.doing {
            Doing::Creating(asked) | Doing::Converting(asked) => assert_eq!(asked, mode),
            doing => panic!("granted while {doing:?}"),
        }
        held.doing = Doing::Nothing;
        held.mode = mode;
        let name = held.name;
        if held.wanted.is_some_and(|wanted| wanted.compatible(mode)) {
            held.wanted = None;
        }
        self.judge.granted(name, life, lock.cookie(), mode, lvb);
        self.polite(life);
    }

    fn polite(&mut self, at: Life) {
        let after = self.rng.random_range(0..5000);
        self.later(after, Happening::Polite { at });
    }

    /// Everything has come to rest: nobody waits, and all are of one mind.
    fn quiet(&mut self) {
        for index in 0..self.nodes.len() {
            let node = &self.nodes[index];
            let Some(dlm) = &node.dlm else { continue };
            assert_eq!(dlm.state(), State::Joined, "node {index}\n{self}");
            assert!(dlm.is_quiet(), "node {index} is not quiet\n{self}");
            for (id, held) in &node.user.locks {
                assert_eq!(
                    held.doing,
                    Doing::Nothing,
                    "{id:?} of node {index} waits\n{self}"
                );
            }
        }
        let alive: Vec<&Dlm> = self
            .nodes
            .iter()
            .filter_map(|node| node.dlm.as_ref())
            .collect();
        for dlm in &alive {
            for res in dlm.resources() {
                let master = res.master().expect("known");
                let there = alive.iter().find(|other| other.node() == master);
                let there = there.and_then(|other| other.find(res.name()));
                let there =
                    there.unwrap_or_else(|| panic!("{} is not at its master\n{self}", res.name()));
                assert!(
                    there.is_mastered_here(),
                    "{}: two minds\n{self}",
                    res.name()
                );
                let me = dlm.node();
                if master != me {
                    assert!(
                        there.references().contains(me),
                        "{}: no reference\n{self}",
                        res.name()
                    );
                }
                let mut here: Vec<_> = res.granted().map(|l| (l.cookie, l.held)).collect();
                let mut known: Vec<_> = there
                    .granted()
                    .filter(|l| l.node == me || master == me)
                    .map(|l| (l.cookie, l.held))
                    .collect();
                here.sort_unstable();
                known.sort_unstable();
                assert_eq!(
                    here,
                    known,
                    "{}: its master knows better\n{self}",
                    res.name()
                );
            }
        }
    }
}

impl std::fmt::Display for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "at {} us:", self.now)?;
        for node in &self.nodes {
            let Some(dlm) = &node.dlm else { continue };
            writeln!(
                f,
                "{:?} {:?} members {:?} dead {:?}",
                dlm.node(),
                dlm.state(),
                dlm.members(),
                dlm.recovering()
            )?;
            for res in dlm.resources() {
                writeln!(f, "    {res:?}")?;
            }
        }
        Ok(())
    }
}
