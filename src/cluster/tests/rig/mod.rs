//! A cluster of Ocelot nodes in one simulated world: one disk, one network, one seed. Each node lives under
//! [`cluster::member::supervise`], writes to the volume behind its lease as long as it is a member, and calls the others.
//! A checker outside of all nodes sees what they do and panics when they must not.
#![allow(clippy::unwrap_used, reason = "a test fails where it panics")]
#![allow(dead_code, reason = "each test uses a part")]

mod locks;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::rc::Rc;
use std::time::Duration;

use cluster::member::{After, Answer, Handler, Observer, Owner, supervise};
use cluster::{
    ClusterDef, Fence, HeartbeatMode, JoinError, Lease, Member, MemberConfig, NodeDef, NodeNr,
    NodeSet, RegionName, RegionPlace, SendError, Timing,
};
use futures_util::future::select;
use runtime::sim::{
    DiskOptions, Image, NetOptions, PortState, SimDisk, SimNet, SimNode, SimPort, SimRng,
    Simulation, World,
};
use runtime::{BlockDeviceExt, Buffer, Host, LocalFuture, Op};

pub use locks::Judge;

pub const MILLISECOND: Duration = Duration::from_millis(1);
pub const SECOND: Duration = Duration::from_secs(1);

/// Where the heartbeat region is.
const HEARTBEAT_AT: u64 = 1 << 20;
/// Where the volume's own blocks begin.
const VOLUME_AT: u64 = 2 << 20;
/// Under which the nodes talk.
const KEY: u32 = 0x1234;
const TICK: u16 = 600;

pub fn nr(number: u8) -> NodeNr {
    NodeNr::new(number).unwrap()
}

pub fn ip(number: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, number + 1))
}

/// What the checker knows of a node.
#[derive(Default)]
struct Seen {
    /// Counts its lives.
    life: u64,
    /// It is a member, and writes.
    member: bool,
    lease: Option<Lease>,
    alive: bool,
    /// What it thinks of others.
    up: BTreeSet<u8>,
    dead: BTreeSet<u8>,
    connected: BTreeSet<u8>,
    fences: Vec<(Duration, Fence)>,
    joined: u64,
    failed_joins: u64,
    /// When it last was paused, or its disk was bad: what it notices later than others is not its fault.
    hindered: Duration,
}

impl Seen {
    /// It is a member that may act on what it thinks. Whoever sleeps beyond its lease may not, and will find out.
    fn acts(&self, now: Duration) -> bool {
        let valid = |lease: &Lease| lease.fence().is_none() && lease.until() > now;
        self.member && self.lease.as_ref().is_some_and(valid)
    }
}

/// Sees everything, belongs to nobody.
pub struct Checker {
    world: World,
    timing: Timing,
    seen: RefCell<Vec<Seen>>,
    pub writes: Cell<u64>,
    pub calls: Cell<u64>,
    /// The last number that a node had from a life of another.
    had: RefCell<BTreeMap<(u8, u64, u8, u64), u64>>,
    log: RefCell<Vec<String>>,
}

impl Checker {
    fn note(&self, what: String) {
        let log = &mut *self.log.borrow_mut();
        log.push(format!("{:?} {what}", self.world.now()));
        if log.len() > 400 {
            log.drain(..200);
        }
    }

    fn fail(&self, what: String) -> ! {
        let log = self.log.borrow();
        let last = log.iter().rev().take(150).rev();
        let history: Vec<&str> = last.map(String::as_str).collect();
        panic!("{what} at {:?}\n{}", self.world.now(), history.join("\n"));
    }

    /// Whether a life of a node is one of a member that may act.
    pub fn acts(&self, (node, life): (u8, u64)) -> bool {
        let seen = &self.seen.borrow()[usize::from(node)];
        seen.alive && seen.life == life && seen.acts(self.world.now())
    }

    /// A node sends a write of the volume on its way.
    fn volume_write(&self, node: u8) {
        self.writes.set(self.writes.get() + 1);
        let seen = self.seen.borrow();
        if !seen[usize::from(node)].alive {
            self.fail(format!("node {node} writes, and is dead"));
        }
        for (other, view) in seen.iter().enumerate() {
            if view.acts(self.world.now()) && view.dead.contains(&node) {
                self.fail(format!(
                    "node {node} writes, and member {other} took it for dead"
                ));
            }
        }
    }

    pub fn members(&self) -> Vec<u8> {
        let seen = self.seen.borrow();
        let members = seen.iter().enumerate().filter(|(_, view)| view.member);
        members.map(|(node, _)| node as u8).collect()
    }

    pub fn is_member(&self, node: u8) -> bool {
        self.seen.borrow()[usize::from(node)].member
    }

    /// Whether `node` takes `other` for alive.
    pub fn sees(&self, node: u8, other: u8) -> bool {
        self.seen.borrow()[usize::from(node)].up.contains(&other)
    }

    pub fn is_connected(&self, node: u8, other: u8) -> bool {
        self.seen.borrow()[usize::from(node)]
            .connected
            .contains(&other)
    }

    pub fn fences(&self, node: u8) -> Vec<(Duration, Fence)> {
        self.seen.borrow()[usize::from(node)].fences.clone()
    }

    pub fn joined(&self, node: u8) -> u64 {
        self.seen.borrow()[usize::from(node)].joined
    }

    fn life(&self, node: u8) -> u64 {
        self.seen.borrow()[usize::from(node)].life
    }

    /// A node was killed: whoever saw it must find out in time, unless hindered.
    fn killed(self: &Rc<Self>, node: u8) {
        let now = self.world.now();
        let life = self.life(node);
        {
            let seen = &mut self.seen.borrow_mut()[usize::from(node)];
            seen.alive = false;
            seen.member = false;
            seen.up.clear();
            seen.dead.clear();
            seen.connected.clear();
        }
        let limit = self.timing.dead_after() + self.timing.beat * 3;
        for other in 0..self.seen.borrow().len() as u8 {
            let (saw, other_life) = (self.sees(other, node), self.life(other));
            if !saw || other == node || !self.is_member(other) {
                continue;
            }
            let checker = self.clone();
            self.world.call_after(limit, move || {
                let acts = checker.seen.borrow()[usize::from(other)].acts(checker.world.now());
                let same = checker.life(other) == other_life && acts;
                let hindered = checker.seen.borrow()[usize::from(other)]
                    .hindered
                    .saturating_add(SECOND)
                    > now;
                let reborn = checker.life(node) != life;
                if same && !hindered && !reborn && checker.sees(other, node) {
                    checker.fail(format!(
                        "node {other} has not noticed in {limit:?} that {node} died"
                    ));
                }
            });
        }
    }
}

struct NodeObserver {
    checker: Rc<Checker>,
    node: u8,
    life: u64,
}

impl NodeObserver {
    fn with(&self, what: impl FnOnce(&mut Seen)) {
        let seen = &mut self.checker.seen.borrow_mut()[usize::from(self.node)];
        if seen.life == self.life {
            what(seen);
        }
    }
}

impl Observer for NodeObserver {
    fn node_up(&self, node: NodeNr) {
        self.checker
            .note(format!("{}.{}: up {node}", self.node, self.life));
        self.with(|seen| {
            seen.up.insert(node.get());
            seen.dead.remove(&node.get());
        });
    }

    fn node_down(&self, node: NodeNr) {
        self.checker
            .note(format!("{}.{}: down {node}", self.node, self.life));
        self.with(|seen| {
            seen.up.remove(&node.get());
            seen.dead.insert(node.get());
        });
    }

    fn connected(&self, node: NodeNr) {
        self.checker
            .note(format!("{}.{}: connected {node}", self.node, self.life));
        self.with(|seen| {
            seen.connected.insert(node.get());
        });
    }

    fn disconnected(&self, node: NodeNr) {
        self.checker
            .note(format!("{}.{}: disconnected {node}", self.node, self.life));
        self.with(|seen| {
            seen.connected.remove(&node.get());
        });
    }

    fn fenced(&self, fence: &Fence) {
        self.checker
            .note(format!("{}.{}: fenced: {fence}", self.node, self.life));
        let now = self.checker.world.now();
        self.with(|seen| {
            if seen.member && *fence != Fence::Left {
                seen.fences.push((now, fence.clone()));
            }
            seen.member = false;
        });
    }
}

/// What a node does with its membership: writes its own blocks of the volume all the time, and tells all others a number
/// that grows.
struct Worker {
    checker: Rc<Checker>,
    node: u8,
    port: SimPort,
    host: Rc<dyn Host>,
    judge: Option<Rc<Judge>>,
    rng: RefCell<SimRng>,
}

impl Owner for Worker {
    fn observers(&self) -> Vec<Rc<dyn Observer>> {
        let life = {
            let seen = &mut self.checker.seen.borrow_mut()[usize::from(self.node)];
            seen.life += 1;
            seen.up.clear();
            seen.dead.clear();
            seen.connected.clear();
            seen.life
        };
        let (checker, node) = (self.checker.clone(), self.node);
        checker.note(format!("{node}.{life}: begins to join"));
        vec![Rc::new(NodeObserver {
            checker,
            node,
            life,
        })]
    }

    fn live(&self, member: Member) -> LocalFuture<After> {
        let (checker, node, host) = (self.checker.clone(), self.node, self.host.clone());
        let port = self.port.clone();
        let (judge, rng) = (self.judge.clone(), self.rng.borrow_mut().fork());
        Box::pin(async move {
            let life = checker.life(node);
            checker.note(format!("{node}.{life}: member"));
            {
                let seen = &mut checker.seen.borrow_mut()[usize::from(node)];
                seen.member = member.lease().fence().is_none();
                seen.lease = Some(member.lease());
                seen.joined += 1;
            }
            let handler = Rc::new(Ticks {
                checker: checker.clone(),
                node,
                life,
            });
            member.handle(KEY, handler);
            let callers = member.config().cluster.nodes.iter();
            for other in callers
                .map(|other| other.number)
                .filter(|other| other.get() != node)
            {
                let call = call_loop(checker.clone(), member.clone(), life, other);
                host.spawn(Box::pin(call));
            }
            if let Some(judge) = judge {
                let user = member.clone();
                host.spawn(Box::pin(async move {
                    let work = locks::use_locks(judge, user.clone(), (node, life), rng);
                    locks::while_member(&user, work).await;
                }));
            }
            let device = member.lease().gate(Rc::new(port));
            let at = VOLUME_AT + u64::from(node) * 4096;
            loop {
                let (_, result) = device.write(at, Buffer::zeroed(4096)).await;
                if result.is_err() && member.lease().fence().is_some() {
                    break;
                }
                host.sleep(15 * MILLISECOND).await;
            }
            member.ended().await;
            After::JoinAgain
        })
    }

    fn failed(&self, error: &JoinError) -> After {
        self.checker
            .note(format!("{}: cannot join: {error}", self.node));
        self.checker.seen.borrow_mut()[usize::from(self.node)].failed_joins += 1;
        After::JoinAgain
    }
}

/// Tells `other` growing numbers, one at a time, as long as the life lasts.
async fn call_loop(checker: Rc<Checker>, member: Member, life: u64, other: NodeNr) {
    let mut number = 0u64;
    while member.lease().fence().is_none() {
        number += 1;
        let mut payload = life.to_be_bytes().to_vec();
        payload.extend(number.to_be_bytes());
        match member.call(other, TICK, KEY, payload).await {
            Ok(status) if status == number as i32 => checker.calls.set(checker.calls.get() + 1),
            Ok(status) => checker.fail(format!("{other} answers {status} to {number}")),
            // It joins, or is gone: its next life begins anew.
            Err(SendError::NoHandler) => number -= 1,
            Err(SendError::Down | SendError::Died | SendError::Stopped) => number += 1_000_000,
            Err(error) => checker.fail(format!("a call of {other}: {error}")),
        }
        member.host().sleep(100 * MILLISECOND).await;
    }
}

/// Checks that each number comes once and in order.
struct Ticks {
    checker: Rc<Checker>,
    node: u8,
    life: u64,
}

impl Handler for Ticks {
    fn message(&self, from: NodeNr, msg_type: u16, payload: Vec<u8>, answer: Answer) {
        assert_eq!(msg_type, TICK);
        let word = |at: usize| u64::from_be_bytes(payload[at..at + 8].try_into().unwrap());
        let (their_life, number) = (word(0), word(8));
        let key = (self.node, self.life, from.get(), their_life);
        let last = self.checker.had.borrow_mut().insert(key, number);
        if last.is_some_and(|last| number <= last) {
            let node = self.node;
            self.checker
                .fail(format!("{node} has {number} of {from} after {last:?}"));
        }
        answer.status(number as i32);
    }
}

pub struct Rig {
    pub sim: Simulation,
    pub world: World,
    pub net: SimNet,
    pub disk: SimDisk,
    pub checker: Rc<Checker>,
    pub timing: Timing,
    pub rng: SimRng,
    pub outlast_outages: bool,
    /// Members use locks, and this judges them.
    pub judge: Option<Rc<Judge>>,
    nodes: Vec<SimNode>,
    ports: Vec<SimPort>,
    /// Of every further region, each node's port.
    more: Vec<Vec<SimPort>>,
    cluster: ClusterDef,
}

fn region_name(index: usize) -> RegionName {
    RegionName::new(&format!("4BD61E13FD444856849E9B5CB1AEEC{index:02X}")).unwrap()
}

impl Rig {
    pub fn new(seed: u64, count: u8, timing: Timing) -> Self {
        Rig::with_regions(seed, count, timing, 1)
    }

    /// More than one region: global mode, each region on a disk of its own; the first is the volume's.
    pub fn with_regions(seed: u64, count: u8, timing: Timing, regions: usize) -> Self {
        let sim = Simulation::new(seed);
        sim.set_step_budget(3_000_000);
        let world = sim.world();
        let net = SimNet::new(&world, NetOptions::default());
        let options = DiskOptions {
            latency: Duration::from_micros(20)..Duration::from_millis(5),
            ..DiskOptions::default()
        };
        let disk = SimDisk::with(Image::empty(8 << 20), options, Some(&world));
        let node = |number| NodeDef {
            number: nr(number),
            name: format!("node{number}"),
            address: SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, number + 1), 7777),
        };
        let cluster = ClusterDef {
            name: "sim".into(),
            mode: match regions {
                1 => HeartbeatMode::Local,
                _ => HeartbeatMode::Global,
            },
            nodes: (0..count).map(node).collect(),
            regions: (0..regions).map(region_name).collect(),
        };
        let more = (1..regions).map(|_| {
            let options = DiskOptions::default();
            let disk = SimDisk::with(Image::empty(8 << 20), options, Some(&world));
            let ports = (0..count).map(|_| SimPort::new(Rc::new(disk.clone())));
            ports.collect()
        });
        let more = more.collect();
        let seen = (0..count).map(|_| Seen::default()).collect();
        let checker = Rc::new(Checker {
            world: world.clone(),
            timing,
            seen: RefCell::new(seen),
            writes: Cell::new(0),
            calls: Cell::new(0),
            had: RefCell::default(),
            log: RefCell::default(),
        });
        let ports = (0..count).map(|_| SimPort::new(Rc::new(disk.clone())));
        let nodes = (0..count).map(|number| SimNode::new(&world, &format!("n{number}")));
        let mut rig = Rig {
            net,
            checker,
            timing,
            rng: world.fork_rng(),
            outlast_outages: false,
            judge: None,
            nodes: nodes.collect(),
            ports: ports.collect(),
            more,
            cluster,
            disk,
            world,
            sim,
        };
        (0..count).for_each(|number| rig.watch(number));
        rig
    }

    /// From now on members that start use locks.
    pub fn with_locks(mut self) -> (Self, Rc<Judge>) {
        let judge = Rc::new(Judge::new(self.checker.clone()));
        self.judge = Some(judge.clone());
        (self, judge)
    }

    pub fn count(&self) -> u8 {
        self.nodes.len() as u8
    }

    fn watch(&mut self, number: u8) {
        let checker = self.checker.clone();
        self.ports[usize::from(number)].watch(move |op, offset, _| {
            if op == Op::Write && offset >= VOLUME_AT {
                checker.volume_write(number);
            }
        });
    }

    fn places(&self, number: u8) -> Vec<RegionPlace> {
        let own = [&self.ports[usize::from(number)]];
        let more = self.more.iter().map(|ports| &ports[usize::from(number)]);
        let place = |(index, port): (usize, &SimPort)| RegionPlace {
            name: region_name(index),
            device: Rc::new(port.clone()),
            offset: HEARTBEAT_AT,
            blocks: 255,
        };
        own.into_iter().chain(more).enumerate().map(place).collect()
    }

    /// The path of one node to one of the further regions.
    pub fn set_region(&self, number: u8, region: usize, state: PortState) {
        self.checker
            .note(format!("--- region {region} of {number}: {state:?}"));
        self.more[region - 1][usize::from(number)].set(state);
    }

    pub fn config(&self, number: u8) -> MemberConfig {
        MemberConfig {
            cluster: self.cluster.clone(),
            node: nr(number),
            timing: self.timing,
            regions: self.places(number),
            old_life_is_over: true,
            outlast_outages: self.outlast_outages,
            like_the_kernel: false,
        }
    }

    pub fn host(&self, number: u8) -> Rc<dyn Host> {
        self.nodes[usize::from(number)].host()
    }

    /// Starts a node's process.
    pub fn start(&mut self, number: u8) {
        let index = usize::from(number);
        if !self.nodes[index].is_alive() {
            self.nodes[index] = SimNode::new(&self.world, &format!("n{number}"));
            self.ports[index] = SimPort::new(Rc::new(self.disk.clone()));
            self.watch(number);
            self.net.power_on(ip(number));
        }
        self.checker.seen.borrow_mut()[index].alive = true;
        let host = self.host(number);
        let owner = Rc::new(Worker {
            checker: self.checker.clone(),
            node: number,
            port: self.ports[index].clone(),
            host: host.clone(),
            judge: self.judge.clone(),
            rng: RefCell::new(self.rng.fork()),
        });
        let life = supervise(self.config(number), host, self.net.node(ip(number)), owner);
        self.nodes[index].spawn_named("supervise", async move {
            life.await.map(|_| ()).unwrap_or(());
        });
    }

    pub fn start_all(&mut self) {
        (0..self.count()).for_each(|number| self.start(number));
    }

    pub fn is_alive(&self, number: u8) -> bool {
        self.nodes[usize::from(number)].is_alive()
    }

    pub fn is_paused(&self, number: u8) -> bool {
        self.nodes[usize::from(number)].is_paused()
    }

    /// The process dies: its stack says so, or the whole machine falls silent.
    pub fn kill(&mut self, number: u8, silent: bool) {
        self.checker
            .note(format!("--- kill {number}, silent: {silent}"));
        self.ports[usize::from(number)].forget_stalled();
        self.nodes[usize::from(number)].kill();
        match silent {
            true => self.net.power_off(ip(number)),
            false => self.net.crash(ip(number)),
        }
        self.checker.killed(number);
    }

    pub fn pause(&self, number: u8) {
        self.checker.note(format!("--- pause {number}"));
        self.nodes[usize::from(number)].pause();
        self.hinder(number, Duration::MAX);
    }

    pub fn resume(&self, number: u8) {
        self.checker.note(format!("--- resume {number}"));
        self.nodes[usize::from(number)].resume();
        self.hinder(number, self.world.now());
    }

    fn hinder(&self, number: u8, until: Duration) {
        self.checker.seen.borrow_mut()[usize::from(number)].hindered = until;
    }

    pub fn set_disk(&self, number: u8, state: PortState) {
        self.checker
            .note(format!("--- disk of {number}: {state:?}"));
        self.ports[usize::from(number)].set(state);
        let until = match state {
            PortState::Up => self.world.now(),
            PortState::Failing | PortState::Stalled => Duration::MAX,
        };
        self.hinder(number, until);
    }

    pub fn note(&self, what: &str) {
        self.checker.note(format!("--- {what}"));
    }

    pub fn run(&self, duration: Duration) {
        if let Err(error) = self.sim.run_for(duration) {
            self.checker.fail(error.to_string());
        }
    }

    /// Runs until `done`, at most for `limit`.
    pub fn run_until(&self, what: &str, limit: Duration, done: impl Fn(&Checker) -> bool) {
        let end = self.world.now() + limit;
        while !done(&self.checker) {
            if self.world.now() >= end {
                self.checker.fail(format!("not in {limit:?}: {what}"));
            }
            self.run(10 * MILLISECOND);
        }
    }

    /// Runs until these and no others are members, and all of them see and reach each other.
    pub fn settle(&self, nodes: &[u8], limit: Duration) {
        let whole = |checker: &Checker| {
            checker.members() == nodes
                && nodes.iter().all(|one| {
                    nodes.iter().filter(|other| *other != one).all(|other| {
                        checker.sees(*one, *other) && checker.is_connected(*one, *other)
                    })
                })
        };
        self.run_until(&format!("members {nodes:?}"), limit, whole);
    }
}

/// The seed to run, or `count` of them from `first`. `OCELOT_SEED` gives one, `OCELOT_SEEDS` a number of them.
pub fn seeds(first: u64, count: u64) -> Vec<u64> {
    let read = |name| {
        std::env::var(name)
            .ok()
            .map(|text| text.parse::<u64>().unwrap())
    };
    match (read("OCELOT_SEED"), read("OCELOT_SEEDS")) {
        (Some(seed), _) => vec![seed],
        (None, many) => (first..first + many.unwrap_or(count)).collect(),
    }
}

/// Runs `test` with each seed, and says with which it failed.
pub fn for_seeds(name: &str, first: u64, count: u64, test: impl Fn(u64)) {
    for seed in seeds(first, count) {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(seed)));
        if let Err(panic) = result {
            eprintln!("{name}: seed {seed}; again with OCELOT_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

pub async fn race<T>(
    future: impl Future<Output = T> + Unpin,
    host: &dyn Host,
    limit: Duration,
) -> Option<T> {
    match select(future, host.sleep(limit)).await {
        futures_util::future::Either::Left((value, _)) => Some(value),
        futures_util::future::Either::Right(_) => None,
    }
}

pub fn set(nodes: impl IntoIterator<Item = u8>) -> NodeSet {
    nodes.into_iter().map(nr).collect()
}
