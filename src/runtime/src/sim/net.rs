//! A simulated network: nodes by their address, connections that take time, pieces cut anywhere,
//! paths cut, connections reset, nodes that fall silent.
//!
//! What it keeps of TCP: bytes arrive in order or not at all; a path that is cut delays (data is
//! sent again when it is whole) and a reset loses; the process of a node may stand still while its
//! stack still takes bytes up to a bound.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::rng::SimRng;
use super::world::World;
use crate::host::{Host, LocalFuture};
use crate::net::{Listener, NetError, NetErrorKind, NetOp, Network, Stream};

/// How a simulated network behaves.
#[derive(Debug, Clone)]
pub struct NetOptions {
    /// How long a piece takes from node to node.
    pub latency: Range<Duration>,
    /// Bytes on their way or not yet received, per direction, before a send waits.
    pub window_bytes: usize,
    /// Connections that wait to be accepted.
    pub backlog: usize,
    /// A connect without an answer is tried again this often,
    pub connect_retry: Duration,
    /// and given up after this long.
    pub connect_timeout: Duration,
    /// Receives return a part of what is there, at random.
    pub fragment: bool,
}

impl Default for NetOptions {
    fn default() -> Self {
        NetOptions {
            latency: Duration::from_micros(50)..Duration::from_millis(1),
            window_bytes: 64 << 10,
            backlog: 128,
            connect_retry: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(10),
            fragment: true,
        }
    }
}

/// Counts of what a network did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NetStats {
    pub connections: u64,
    pub bytes: u64,
    pub resets: u64,
}

type ConnectionId = u64;

enum Piece {
    Bytes(Vec<u8>),
    End,
    Reset,
}

/// One end of a connection, and what is on its way to it.
struct End {
    address: SocketAddr,
    coming: VecDeque<(Duration, Piece)>,
    coming_bytes: usize,
    arrived: VecDeque<u8>,
    ended: bool,
    broken: bool,
    closed: bool,
    readers: Vec<Waker>,
    /// Sends of the *other* end that wait for room here.
    writers: Vec<Waker>,
}

impl End {
    fn new(address: SocketAddr) -> Self {
        End {
            address,
            coming: VecDeque::new(),
            coming_bytes: 0,
            arrived: VecDeque::new(),
            ended: false,
            broken: false,
            closed: false,
            readers: Vec::new(),
            writers: Vec::new(),
        }
    }

    fn break_off(&mut self) {
        self.broken = true;
        self.coming.clear();
        self.coming_bytes = 0;
        self.arrived.clear();
        wake(&mut self.readers);
    }
}

fn wake(wakers: &mut Vec<Waker>) {
    wakers.drain(..).for_each(Waker::wake);
}

struct Listening {
    /// Which listener it belongs to: one that outlived a crash must not end its successor.
    serial: u64,
    waiting: VecDeque<Rc<dyn Stream>>,
    wakers: Vec<Waker>,
}

struct State {
    rng: SimRng,
    options: NetOptions,
    listening: BTreeMap<SocketAddr, Listening>,
    connections: BTreeMap<ConnectionId, [End; 2]>,
    /// Directed paths that carry nothing.
    cut: BTreeSet<(IpAddr, IpAddr)>,
    /// Addresses whose stack is gone without a word.
    silent: BTreeSet<IpAddr>,
    slow: BTreeMap<(IpAddr, IpAddr), Range<Duration>>,
    next_id: ConnectionId,
    next_port: u16,
    stats: NetStats,
}

struct Inner {
    world: World,
    state: RefCell<State>,
}

/// A simulated network; clones are the same one.
#[derive(Clone)]
pub struct SimNet {
    inner: Rc<Inner>,
}

impl SimNet {
    pub fn new(world: &World, options: NetOptions) -> Self {
        let state = State {
            rng: world.fork_rng(),
            options,
            listening: BTreeMap::new(),
            connections: BTreeMap::new(),
            cut: BTreeSet::new(),
            silent: BTreeSet::new(),
            slow: BTreeMap::new(),
            next_id: 0,
            next_port: 32_768,
            stats: NetStats::default(),
        };
        SimNet {
            inner: Rc::new(Inner {
                world: world.clone(),
                state: RefCell::new(state),
            }),
        }
    }

    /// The network as the node at `address` has it.
    pub fn node(&self, address: IpAddr) -> Rc<dyn Network> {
        Rc::new(SimStack {
            net: self.inner.clone(),
            address,
        })
    }

    pub fn stats(&self) -> NetStats {
        self.inner.state.borrow().stats
    }

    /// From now on nothing comes from `from` to `to`; it is kept and sent again when the path is
    /// mended.
    pub fn cut_one_way(&self, from: IpAddr, to: IpAddr) {
        self.inner.state.borrow_mut().cut.insert((from, to));
    }

    /// Nothing passes between the two any more.
    pub fn cut(&self, a: IpAddr, b: IpAddr) {
        self.cut_one_way(a, b);
        self.cut_one_way(b, a);
    }

    /// Cuts every path between a node of one group and a node of the other.
    pub fn partition(&self, one: &[IpAddr], other: &[IpAddr]) {
        for (a, b) in one.iter().flat_map(|a| other.iter().map(move |b| (a, b))) {
            self.cut(*a, *b);
        }
    }

    pub fn mend(&self, a: IpAddr, b: IpAddr) {
        {
            let cut = &mut self.inner.state.borrow_mut().cut;
            cut.remove(&(a, b));
            cut.remove(&(b, a));
        }
        self.inner.send_again();
    }

    /// Mends all paths.
    pub fn mend_all(&self) {
        self.inner.state.borrow_mut().cut.clear();
        self.inner.send_again();
    }

    /// The latency from `from` to `to`, or the network's own again.
    pub fn set_latency(&self, from: IpAddr, to: IpAddr, latency: Option<Range<Duration>>) {
        let slow = &mut self.inner.state.borrow_mut().slow;
        match latency {
            Some(latency) => slow.insert((from, to), latency),
            None => slow.remove(&(from, to)),
        };
    }

    /// Breaks all connections between the two, for both at once. What is on its way is lost.
    pub fn reset(&self, a: IpAddr, b: IpAddr) {
        let state = &mut *self.inner.state.borrow_mut();
        for ends in state.connections.values_mut() {
            let [one, other] = [ends[0].address.ip(), ends[1].address.ip()];
            if (one, other) == (a, b) || (one, other) == (b, a) {
                state.stats.resets += 1;
                ends.iter_mut().for_each(End::break_off);
                ends.iter_mut().for_each(|end| wake(&mut end.writers));
            }
        }
    }

    /// The process at `address` is gone and its stack says so: listeners are closed, and peers see
    /// their connections reset as soon as a path lets the news through.
    pub fn crash(&self, address: IpAddr) {
        self.inner.leave(address, true);
    }

    /// The machine at `address` is gone without a word: peers see nothing more of it, until
    /// [`SimNet::power_on`].
    pub fn power_off(&self, address: IpAddr) {
        self.inner.leave(address, false);
        self.inner.state.borrow_mut().silent.insert(address);
    }

    /// A machine starts anew: to old connections of its peers it answers with a reset.
    pub fn power_on(&self, address: IpAddr) {
        self.inner.state.borrow_mut().silent.remove(&address);
        self.inner.send_again();
    }
}

impl Inner {
    fn leave(self: &Rc<Self>, address: IpAddr, tell: bool) {
        let mut ids = Vec::new();
        let waiting: Vec<Listening> = {
            let state = &mut *self.state.borrow_mut();
            for (id, ends) in &mut state.connections {
                for side in 0..2 {
                    if ends[side].address.ip() == address && !ends[side].broken {
                        ends[side].break_off();
                        wake(&mut ends[1 - side].writers);
                        ids.push((*id, 1 - side));
                    }
                }
            }
            let gone = state.listening.keys().copied();
            let gone: Vec<_> = gone.filter(|local| local.ip() == address).collect();
            let take = |local| state.listening.remove(local);
            gone.iter().filter_map(take).collect()
        };
        for mut listening in waiting {
            wake(&mut listening.wakers);
        }
        if tell {
            for (id, side) in ids {
                self.put(id, side, Piece::Reset);
            }
        }
    }

    /// Sends a piece on its way to `side` of the connection.
    fn put(self: &Rc<Self>, id: ConnectionId, side: usize, piece: Piece) {
        let due = {
            let state = &mut *self.state.borrow_mut();
            let now = self.world.now();
            let Some(ends) = state.connections.get(&id) else {
                return;
            };
            let path = (ends[1 - side].address.ip(), ends[side].address.ip());
            let latency = state.draw_latency(path);
            let Some(ends) = state.connections.get_mut(&id) else {
                return;
            };
            let end = &mut ends[side];
            if end.broken {
                return;
            }
            // In order: never before what was sent before.
            let after = end.coming.back().map_or(Duration::ZERO, |(due, _)| *due);
            let due = after.max(now.saturating_add(latency));
            if let Piece::Bytes(bytes) = &piece {
                end.coming_bytes += bytes.len();
            }
            end.coming.push_back((due, piece));
            due
        };
        self.deliver_at(due, id, side);
    }

    fn deliver_at(self: &Rc<Self>, due: Duration, id: ConnectionId, side: usize) {
        let net: Weak<Inner> = Rc::downgrade(self);
        let delay = due.saturating_sub(self.world.now());
        self.world.call_after(delay, move || {
            if let Some(net) = net.upgrade() {
                net.deliver(id, side);
            }
        });
    }

    /// Delivers what is due at `side`, unless the path is cut.
    fn deliver(self: &Rc<Self>, id: ConnectionId, side: usize) {
        let mut answer_reset = false;
        {
            let state = &mut *self.state.borrow_mut();
            let now = self.world.now();
            let Some(ends) = state.connections.get_mut(&id) else {
                return;
            };
            let (from, to) = (ends[1 - side].address.ip(), ends[side].address.ip());
            let cut = state.cut.contains(&(from, to));
            if cut || state.silent.contains(&to) || state.silent.contains(&from) {
                return;
            }
            let end = &mut ends[side];
            while end.coming.front().is_some_and(|(due, _)| *due <= now) {
                let Some((_, piece)) = end.coming.pop_front() else {
                    break;
                };
                match piece {
                    Piece::Bytes(bytes) => {
                        end.coming_bytes -= bytes.len();
                        if end.closed || end.broken {
                            answer_reset = true;
                            continue;
                        }
                        state.stats.bytes += bytes.len() as u64;
                        end.arrived.extend(bytes);
                    }
                    Piece::End => end.ended = true,
                    Piece::Reset => {
                        end.break_off();
                        wake(&mut ends[1 - side].writers);
                        break;
                    }
                }
            }
            let end = &mut ends[side];
            wake(&mut end.readers);
            // A sender waits for room here, or to hear that nobody reads.
            if answer_reset || end.closed {
                wake(&mut end.writers);
            }
        }
        if answer_reset {
            self.put(id, 1 - side, Piece::Reset);
        }
        self.forget_if_over(id);
    }

    /// Paths were mended: what was kept goes on its way again. Bytes for an end that has died
    /// meanwhile are answered with a reset.
    fn send_again(self: &Rc<Self>) {
        let mut again = Vec::new();
        let mut resets = Vec::new();
        {
            let state = &mut *self.state.borrow_mut();
            let now = self.world.now();
            let ids: Vec<_> = state.connections.keys().copied().collect();
            for (id, side) in ids.into_iter().flat_map(|id| [(id, 0), (id, 1)]) {
                let ends = &state.connections[&id];
                let path = (ends[1 - side].address.ip(), ends[side].address.ip());
                if ends[1 - side].broken && !ends[side].broken {
                    resets.push((id, side));
                }
                let Some((oldest, _)) = ends[side].coming.front() else {
                    continue;
                };
                if *oldest > now {
                    continue;
                }
                let due = now.saturating_add(state.draw_latency(path));
                if let Some(ends) = state.connections.get_mut(&id) {
                    for (when, _) in &mut ends[side].coming {
                        *when = due.max(*when);
                    }
                }
                again.push((due, id, side));
            }
        }
        for (due, id, side) in again {
            self.deliver_at(due, id, side);
        }
        for (id, side) in resets {
            self.put(id, side, Piece::Reset);
        }
    }

    /// Both ends have closed or lost it, and nothing is on its way.
    fn forget_if_over(&self, id: ConnectionId) {
        let gone = {
            let state = &mut *self.state.borrow_mut();
            let over = state.connections.get(&id).is_some_and(|ends| {
                let over = |end: &End| end.closed && end.coming.is_empty();
                ends.iter().all(over)
            });
            if over {
                state.connections.remove(&id)
            } else {
                None
            }
        };
        drop(gone);
    }

    fn path_is_up(&self, from: IpAddr, to: IpAddr) -> bool {
        let state = self.state.borrow();
        let cut = |from, to| state.cut.contains(&(from, to));
        let silent = |address| state.silent.contains(&address);
        !cut(from, to) && !cut(to, from) && !silent(from) && !silent(to)
    }

    async fn connect(
        self: Rc<Self>,
        local: IpAddr,
        remote: SocketAddr,
    ) -> Result<Rc<dyn Stream>, NetError> {
        let (retry, timeout) = {
            let state = self.state.borrow();
            let options = &state.options;
            (options.connect_retry, options.connect_timeout)
        };
        let give_up = self.world.now().saturating_add(timeout);
        loop {
            self.travel(local, remote.ip()).await;
            if self.path_is_up(local, remote.ip()) {
                match self.open(local, remote) {
                    Opened::Stream(stream) => {
                        self.travel(remote.ip(), local).await;
                        return Ok(stream);
                    }
                    Opened::Refused => {
                        self.travel(remote.ip(), local).await;
                        return Err(failure(NetOp::Connect, remote, NetErrorKind::Refused));
                    }
                    Opened::Full => {}
                }
            }
            if self.world.now() >= give_up {
                return Err(failure(NetOp::Connect, remote, NetErrorKind::Unreachable));
            }
            self.world.sleep(retry).await;
        }
    }

    async fn travel(&self, from: IpAddr, to: IpAddr) {
        let latency = self.state.borrow_mut().draw_latency((from, to));
        self.world.sleep(latency).await;
    }

    /// The first packet of a connection has reached the listener.
    fn open(self: &Rc<Self>, local: IpAddr, remote: SocketAddr) -> Opened {
        let state = &mut *self.state.borrow_mut();
        let Some(listening) = state.listening.get_mut(&remote) else {
            return Opened::Refused;
        };
        if listening.waiting.len() >= state.options.backlog {
            return Opened::Full;
        }
        let local = SocketAddr::new(local, state.next_port);
        state.next_port = state.next_port.checked_add(1).unwrap_or(32_768);
        let id = state.next_id;
        state.next_id += 1;
        state.stats.connections += 1;
        let ends = [End::new(local), End::new(remote)];
        state.connections.insert(id, ends);
        let stream = |side| SimStream {
            net: self.clone(),
            id,
            side,
            local: if side == 0 { local } else { remote },
            peer: if side == 0 { remote } else { local },
        };
        listening.waiting.push_back(Rc::new(stream(1)));
        wake(&mut listening.wakers);
        Opened::Stream(Rc::new(stream(0)))
    }
}

enum Opened {
    Stream(Rc<dyn Stream>),
    Refused,
    Full,
}

fn failure(op: NetOp, address: SocketAddr, kind: NetErrorKind) -> NetError {
    NetError {
        op,
        address,
        kind,
        detail: "in the simulated network".into(),
    }
}

impl State {
    fn draw_latency(&mut self, path: (IpAddr, IpAddr)) -> Duration {
        let own = &self.options.latency;
        let Range { start, end } = self.slow.get(&path).unwrap_or(own).clone();
        let width = end.saturating_sub(start).as_nanos() as u64;
        start + Duration::from_nanos(self.rng.below(width))
    }
}

/// The network as one node has it.
struct SimStack {
    net: Rc<Inner>,
    address: IpAddr,
}

impl Network for SimStack {
    fn listen(&self, local: SocketAddr) -> LocalFuture<Result<Rc<dyn Listener>, NetError>> {
        let (net, address) = (self.net.clone(), self.address);
        Box::pin(async move {
            if local.ip() != address {
                let kind = NetErrorKind::AddressNotAvailable;
                return Err(failure(NetOp::Listen, local, kind));
            }
            let state = &mut *net.state.borrow_mut();
            if state.listening.contains_key(&local) {
                return Err(failure(NetOp::Listen, local, NetErrorKind::AddressInUse));
            }
            let serial = state.next_id;
            state.next_id += 1;
            let listening = Listening {
                serial,
                waiting: VecDeque::new(),
                wakers: Vec::new(),
            };
            state.listening.insert(local, listening);
            let net = net.clone();
            let listener: Rc<dyn Listener> = Rc::new(SimListener { net, local, serial });
            Ok(listener)
        })
    }

    fn connect(
        &self,
        local: IpAddr,
        remote: SocketAddr,
    ) -> LocalFuture<Result<Rc<dyn Stream>, NetError>> {
        if local != self.address {
            let kind = NetErrorKind::AddressNotAvailable;
            return Box::pin(async move { Err(failure(NetOp::Connect, remote, kind)) });
        }
        Box::pin(self.net.clone().connect(local, remote))
    }
}

struct SimListener {
    net: Rc<Inner>,
    local: SocketAddr,
    serial: u64,
}

impl Listener for SimListener {
    fn local(&self) -> SocketAddr {
        self.local
    }

    fn accept(&self) -> LocalFuture<Result<Rc<dyn Stream>, NetError>> {
        let (net, local, serial) = (self.net.clone(), self.local, self.serial);
        Box::pin(poll_fn(move |cx| {
            let state = &mut *net.state.borrow_mut();
            let listening = state.listening.get_mut(&local);
            let Some(listening) = listening.filter(|found| found.serial == serial) else {
                let error = failure(NetOp::Accept, local, NetErrorKind::Closed);
                return Poll::Ready(Err(error));
            };
            match listening.waiting.pop_front() {
                Some(stream) => Poll::Ready(Ok(stream)),
                None => {
                    listening.wakers.push(cx.waker().clone());
                    Poll::Pending
                }
            }
        }))
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        let gone = {
            let listening = &mut self.net.state.borrow_mut().listening;
            let own = |found: &Listening| found.serial == self.serial;
            match listening.get(&self.local).is_some_and(own) {
                true => listening.remove(&self.local),
                false => None,
            }
        };
        // Streams nobody accepted are closed with it.
        if let Some(mut gone) = gone {
            wake(&mut gone.wakers);
        }
    }
}

struct SimStream {
    net: Rc<Inner>,
    id: ConnectionId,
    side: usize,
    local: SocketAddr,
    peer: SocketAddr,
}

impl Inner {
    fn poll_receive(
        self: &Rc<Self>,
        (id, side, peer): (ConnectionId, usize, SocketAddr),
        max: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Vec<u8>, NetError>> {
        let state = &mut *self.state.borrow_mut();
        let failed = |kind| Poll::Ready(Err(failure(NetOp::Receive, peer, kind)));
        let Some(ends) = state.connections.get_mut(&id) else {
            return failed(NetErrorKind::Closed);
        };
        let end = &mut ends[side];
        if end.closed {
            return failed(NetErrorKind::Closed);
        }
        if end.broken {
            return failed(NetErrorKind::Reset);
        }
        let there = end.arrived.len().min(max);
        if there == 0 && !end.ended {
            end.readers.push(cx.waker().clone());
            return Poll::Pending;
        }
        let count = match state.options.fragment && there > 1 && state.rng.below(4) == 0 {
            true => 1 + state.rng.below(there as u64) as usize,
            false => there,
        };
        let bytes = end.arrived.drain(..count).collect();
        wake(&mut end.writers);
        Poll::Ready(Ok(bytes))
    }

    fn poll_send(
        self: &Rc<Self>,
        (id, side, peer): (ConnectionId, usize, SocketAddr),
        bytes: &mut Vec<u8>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), NetError>> {
        {
            let state = &mut *self.state.borrow_mut();
            let failed = |kind| Poll::Ready(Err(failure(NetOp::Send, peer, kind)));
            let window = state.options.window_bytes;
            let Some(ends) = state.connections.get_mut(&id) else {
                return failed(NetErrorKind::Closed);
            };
            if ends[side].closed {
                return failed(NetErrorKind::Closed);
            }
            if ends[side].broken {
                return failed(NetErrorKind::Reset);
            }
            let other = &mut ends[1 - side];
            if other.coming_bytes + other.arrived.len() >= window && !other.broken {
                other.writers.push(cx.waker().clone());
                return Poll::Pending;
            }
        }
        if !bytes.is_empty() {
            self.put(id, 1 - side, Piece::Bytes(std::mem::take(bytes)));
        }
        Poll::Ready(Ok(()))
    }

    fn close(self: &Rc<Self>, id: ConnectionId, side: usize) {
        let last = {
            let state = &mut *self.state.borrow_mut();
            let Some(ends) = state.connections.get_mut(&id) else {
                return;
            };
            if ends[side].closed {
                return;
            }
            ends[side].closed = true;
            wake(&mut ends[side].readers);
            wake(&mut ends[1 - side].writers);
            let unread = !ends[side].arrived.is_empty();
            ends[side].arrived.clear();
            wake(&mut ends[side].writers);
            match (ends[side].broken, unread) {
                // Whoever broke it has told the peer, or is silent.
                (true, _) => None,
                // A stack resets a connection that is closed with bytes unread.
                (false, true) => Some(Piece::Reset),
                (false, false) => Some(Piece::End),
            }
        };
        if let Some(last) = last {
            self.put(id, 1 - side, last);
        }
        self.forget_if_over(id);
    }
}

impl SimStream {
    fn key(&self) -> (ConnectionId, usize, SocketAddr) {
        (self.id, self.side, self.peer)
    }
}

impl Stream for SimStream {
    fn local(&self) -> SocketAddr {
        self.local
    }

    fn peer(&self) -> SocketAddr {
        self.peer
    }

    fn receive(&self, max: usize) -> LocalFuture<Result<Vec<u8>, NetError>> {
        let (net, key) = (self.net.clone(), self.key());
        Box::pin(poll_fn(move |cx| net.poll_receive(key, max, cx)))
    }

    fn send(&self, mut bytes: Vec<u8>) -> LocalFuture<Result<(), NetError>> {
        let (net, key) = (self.net.clone(), self.key());
        Box::pin(poll_fn(move |cx| net.poll_send(key, &mut bytes, cx)))
    }

    fn close(&self) {
        self.net.close(self.id, self.side);
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        self.net.close(self.id, self.side);
    }
}

#[cfg(test)]
#[path = "net_tests.rs"]
mod tests;
