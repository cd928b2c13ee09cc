//! Faults that the simulation found, each told once more by hand: nodes whose messages are delivered one at a time.
#![allow(clippy::unwrap_used)] // helpers of tests

use dlm::wire::{AstKind, DLM_VERSION, FS_VERSION, LockFlags, Message, MsgType, reply};
use dlm::{
    Action, CallId, Config, Dlm, DomainName, Event, LockId, LockName, Lvb, Mode, NodeNr, State,
    Timer,
};
use std::collections::VecDeque;

enum Frame {
    Message(CallId, Message),
    Status(CallId, i32),
}

/// Some nodes and what is under way between each two of them.
struct Net {
    nodes: Vec<Option<Dlm>>,
    wires: Vec<Vec<VecDeque<Frame>>>,
    timers: Vec<(usize, Timer)>,
    said: Vec<Vec<Action>>,
    kernel_peers: bool,
}

fn nr(index: usize) -> NodeNr {
    NodeNr::new(index as u8).unwrap()
}

fn name() -> LockName {
    LockName::new(b"M000000000000000000000a00000000").unwrap()
}

fn config(index: usize, kernel_peers: bool) -> Config {
    Config {
        me: nr(index),
        domain: DomainName::new(b"4BD61E13FD444856849E9B5CB1AEECB0").unwrap(),
        dlm: DLM_VERSION,
        fs: FS_VERSION,
        nodes: Vec::new(),
        regions: Vec::new(),
        kernel_peers,
    }
}

impl Net {
    /// `count` members of one domain.
    fn joined(count: usize) -> Self {
        let mut net = Self {
            nodes: (0..count)
                .map(|i| Some(Dlm::new(config(i, false))))
                .collect(),
            wires: (0..count)
                .map(|_| (0..count).map(|_| VecDeque::new()).collect())
                .collect(),
            timers: Vec::new(),
            said: (0..count).map(|_| Vec::new()).collect(),
            kernel_peers: false,
        };
        for a in 0..count {
            for b in 0..count {
                net.event(a, Event::NodeUp(nr(b)));
            }
        }
        for index in 0..count {
            net.dlm(index).join().unwrap();
            net.rest();
            assert_eq!(net.dlm(index).state(), State::Joined);
        }
        net.said.iter_mut().for_each(Vec::clear);
        net
    }

    fn dlm(&mut self, index: usize) -> &mut Dlm {
        self.nodes[index].as_mut().expect("it lives")
    }

    fn event(&mut self, index: usize, event: Event) {
        self.dlm(index).step(event);
        self.carry_out(index);
    }

    fn carry_out(&mut self, index: usize) {
        let Some(dlm) = &mut self.nodes[index] else {
            return;
        };
        let actions: Vec<Action> = dlm.actions().collect();
        dlm.self_check().unwrap();
        for action in actions {
            match action {
                Action::Send { to, call, message } => {
                    self.wires[index][usize::from(to.get())]
                        .push_back(Frame::Message(call, message));
                }
                Action::Answer {
                    to,
                    msg_num,
                    status,
                } => {
                    let call = CallId(u64::from(msg_num));
                    self.wires[index][usize::from(to.get())].push_back(Frame::Status(call, status));
                }
                Action::Timer { timer, .. } => self.timers.push((index, timer)),
                action => self.said[index].push(action),
            }
        }
    }

    /// Delivers what is first on the way from one node to another; what kind it was, or none for an answer.
    fn deliver(&mut self, from: usize, to: usize) -> Option<MsgType> {
        self.carry_out(from);
        let frame = self.wires[from][to]
            .pop_front()
            .expect("something is under way");
        let (kind, event) = match frame {
            Frame::Message(call, message) => (
                Some(message.msg_type()),
                Event::Request {
                    from: nr(from),
                    msg_num: u32::try_from(call.0).unwrap(),
                    message,
                },
            ),
            Frame::Status(call, status) => (
                None,
                Event::Reply {
                    from: nr(from),
                    call,
                    status,
                },
            ),
        };
        self.event(to, event);
        kind
    }

    /// Delivers from one to the other up to and with the first message of a kind.
    fn deliver_until(&mut self, from: usize, to: usize, kind: MsgType) {
        while self.deliver(from, to) != Some(kind) {}
    }

    /// Delivers everything to those who live, until nothing is under way.
    fn rest(&mut self) {
        let count = self.nodes.len();
        (0..count).for_each(|index| self.carry_out(index));
        while let Some((a, b)) = (0..count)
            .flat_map(|a| (0..count).map(move |b| (a, b)))
            .find(|(a, b)| !self.wires[*a][*b].is_empty())
        {
            if self.nodes[b].is_some() {
                self.deliver(a, b);
            } else {
                self.wires[a][b].clear();
            }
        }
    }

    /// All timers so far are over; then rests.
    fn wait(&mut self) {
        for _ in 0..12 {
            self.rest();
            for (index, timer) in std::mem::take(&mut self.timers) {
                if self.nodes[index].is_some() {
                    self.event(index, Event::Timer(timer));
                    self.rest();
                }
            }
        }
    }

    /// The node dies; what it has sent and is not delivered is lost. The others do not know yet.
    fn kill(&mut self, index: usize) {
        self.nodes[index] = None;
        for wire in &mut self.wires[index] {
            wire.clear();
        }
    }

    fn hears_of_death(&mut self, index: usize, dead: usize) {
        self.event(index, Event::NodeDown(nr(dead)));
    }

    fn lock(&mut self, index: usize, mode: Mode, flags: LockFlags) -> LockId {
        let lock = self.dlm(index).lock(name(), mode, flags).unwrap();
        self.carry_out(index);
        lock
    }

    fn convert(
        &mut self,
        index: usize,
        lock: LockId,
        mode: Mode,
        flags: LockFlags,
        lvb: Option<Lvb>,
    ) {
        self.dlm(index).convert(lock, mode, flags, lvb).unwrap();
        self.carry_out(index);
    }

    fn heard(&mut self, index: usize) -> Vec<Action> {
        std::mem::take(&mut self.said[index])
    }
}

const NO_FLAGS: LockFlags = LockFlags::empty();

/// A withdrawal came too late, and the answer to it was "ask again", because the resource was on the move. It was asked
/// again, and took back the lock's next request.
#[test]
fn a_withdrawal_that_comes_too_late_does_not_withdraw_the_next_request() {
    let mut net = Net::joined(2);
    let held = net.lock(0, Mode::Ex, NO_FLAGS);
    net.rest();
    let lock = net.lock(1, Mode::Pr, NO_FLAGS);
    net.rest();
    net.convert(0, held, Mode::Pr, NO_FLAGS, None);
    // Granted; the withdrawal crosses the notice.
    net.dlm(1).cancel(lock).unwrap();
    net.carry_out(1);
    let Some(Frame::Message(call, Message::UnlockLock { .. })) = net.wires[1][0].pop_back() else {
        panic!("a withdrawal was sent");
    };
    net.deliver_until(0, 1, MsgType::ProxyAst);
    assert!(matches!(
        net.heard(1)[..],
        [Action::Granted { mode: Mode::Pr, .. }]
    ));
    net.convert(1, lock, Mode::Ex, NO_FLAGS, None);
    let event = Event::Reply {
        from: nr(0),
        call,
        status: reply::DlmStatus::Migrating.to_wire(),
    };
    net.event(1, event);
    net.wait();
    assert!(!net.heard(1).contains(&Action::Cancelled { lock }));
    net.convert(0, held, Mode::Nl, NO_FLAGS, None);
    net.rest();
    let heard = net.heard(1);
    assert!(
        matches!(heard[..], [Action::Granted { mode: Mode::Ex, .. }]),
        "{heard:?}"
    );
}

/// A lock that goes up from NL without asking for the value block kept its copy of long ago, and after the master's death
/// that copy became the resource's value.
#[test]
fn a_holder_that_has_not_asked_for_the_value_does_not_vouch_for_an_old_one() {
    let mut net = Net::joined(3);
    let master = net.lock(0, Mode::Nl, NO_FLAGS);
    net.rest();
    let (old, new) = (Lvb([1; 64]), Lvb([2; 64]));
    let stale = net.lock(1, Mode::Ex, LockFlags::VALBLK);
    net.rest();
    net.convert(1, stale, Mode::Pr, NO_FLAGS, Some(old));
    net.rest();
    net.convert(1, stale, Mode::Nl, NO_FLAGS, None);
    net.rest();
    net.convert(0, master, Mode::Ex, LockFlags::VALBLK, None);
    net.rest();
    net.convert(0, master, Mode::Nl, NO_FLAGS, Some(new));
    net.rest();
    net.convert(1, stale, Mode::Pr, NO_FLAGS, None);
    net.rest();
    net.kill(0);
    net.hears_of_death(1, 0);
    net.hears_of_death(2, 0);
    net.wait();
    net.heard(2);
    net.lock(2, Mode::Pr, LockFlags::VALBLK);
    net.rest();
    let heard = net.heard(2);
    let [Action::Granted { lvb: Some(lvb), .. }] = heard[..] else {
        panic!("{heard:?}");
    };
    assert_eq!(lvb, Lvb::EMPTY, "nobody knows the value {new:?}");
}

/// The withdrawal of a new lock found nothing at the master, who had said "not now" to the lock; but meanwhile the lock was
/// asked for again. It was forgotten here and granted there, and nobody ever gave it up.
#[test]
fn a_lock_that_is_withdrawn_while_it_is_asked_for_again_is_not_left_behind() {
    let mut net = Net::joined(3);
    for index in [0, 1, 2] {
        net.lock(index, Mode::Nl, NO_FLAGS);
        net.rest();
    }
    net.heard(1);
    // Node 2 dies, and node 1 leads its recovery: the master is frozen, and has sent all it knows.
    net.kill(2);
    net.hears_of_death(1, 2);
    while net.wires[1][0].is_empty() || net.deliver(1, 0) != Some(MsgType::LockRequest) {
        if net.wires[1][0].is_empty() {
            net.deliver(0, 1);
        }
    }
    net.timers.clear();
    let lock = net.lock(1, Mode::Ex, NO_FLAGS);
    net.dlm(1).cancel(lock).unwrap();
    net.deliver_until(1, 0, MsgType::CreateLock);
    // "Not now" is the answer to the lock, which is asked for again behind the end of the recovery.
    while !net.wires[0][1].is_empty() {
        net.deliver(0, 1);
    }
    for (index, timer) in std::mem::take(&mut net.timers) {
        net.event(index, Event::Timer(timer));
    }
    net.wait();
    let heard = net.heard(1);
    assert!(heard.contains(&Action::Cancelled { lock }), "{heard:?}");
    let there = net.dlm(0).find(name()).unwrap();
    let left: Vec<_> = there
        .granted()
        .filter(|held| held.cookie == lock.cookie())
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Two nodes that wanted to join said no to each other also while they only waited for their next attempt: in step, they
/// kept each other out for ever.
#[test]
fn a_node_between_two_attempts_to_join_is_in_nobodys_way() {
    let mut net = Net::joined(1);
    net.nodes.push(Some(Dlm::new(config(1, net.kernel_peers))));
    net.nodes.push(Some(Dlm::new(config(2, net.kernel_peers))));
    net.said.extend([Vec::new(), Vec::new()]);
    net.wires = (0..3)
        .map(|_| (0..3).map(|_| VecDeque::new()).collect())
        .collect();
    for a in 0..3 {
        for b in 0..3 {
            net.event(a, Event::NodeUp(nr(b)));
        }
    }
    net.dlm(1).join().unwrap();
    net.carry_out(1);
    net.dlm(2).join().unwrap();
    net.carry_out(2);
    net.rest(); // at least one of them is refused
    net.wait();
    assert_eq!(net.dlm(1).state(), State::Joined);
    assert_eq!(net.dlm(2).state(), State::Joined);
}

/// A master's and a new master's copy of one truth: the old master dies when it has sent everything, and the one who has it
/// claims the resource. Its own unlock, whose answer died, was never made again.
#[test]
fn a_new_master_that_claims_its_resource_does_its_own_lost_requests() {
    let mut net = Net::joined(3);
    net.lock(0, Mode::Nl, NO_FLAGS);
    net.rest();
    let lock = net.lock(1, Mode::Ex, NO_FLAGS);
    net.rest();
    let mine = net.heard(0);
    let own = mine.iter().find_map(|action| match action {
        Action::Granted { lock, .. } => Some(*lock),
        _ => None,
    });
    net.dlm(0).unlock(own.unwrap(), None).unwrap();
    net.carry_out(0);
    net.rest();
    net.dlm(0).leave().unwrap();
    net.carry_out(0);
    // All have heard that it leaves, and everything is on its way to the new master.
    while !net.wires[0][1]
        .iter()
        .any(|f| matches!(f, Frame::Message(_, Message::MigLockres(_))))
    {
        for (a, b) in [(0, 1), (0, 2), (1, 0), (2, 0)] {
            if !net.wires[a][b].is_empty() {
                net.deliver(a, b);
            }
        }
    }
    net.dlm(1).unlock(lock, None).unwrap();
    net.carry_out(1);
    net.deliver_until(0, 1, MsgType::MigLockres);
    net.kill(0);
    net.hears_of_death(1, 0);
    net.hears_of_death(2, 0);
    net.heard(1);
    net.wait();
    assert!(net.heard(1).contains(&Action::Unlocked { lock }) || net.dlm(1).find(name()).is_none());
    net.lock(2, Mode::Ex, NO_FLAGS);
    net.rest();
    assert!(matches!(
        net.heard(2).last(),
        Some(Action::Granted { mode: Mode::Ex, .. })
    ));
}

/// A resource moved here with the lock of a node that was dead already, which its old master had not heard when it sent it.
/// The lock stayed for ever: its owner's death had been seen to before.
#[test]
fn a_dead_nodes_lock_does_not_come_along_with_a_resource() {
    let mut net = Net::joined(3);
    let own = net.lock(0, Mode::Nl, NO_FLAGS);
    net.rest();
    net.lock(1, Mode::Nl, NO_FLAGS);
    net.rest();
    net.lock(2, Mode::Ex, NO_FLAGS);
    net.rest();
    net.dlm(0).unlock(own, None).unwrap();
    net.dlm(0).leave().unwrap();
    net.carry_out(0);
    while !net.wires[0][1]
        .iter()
        .any(|frame| matches!(frame, Frame::Message(_, Message::MigLockres(_))))
    {
        for (a, b) in [(0, 1), (0, 2), (1, 0), (2, 0)] {
            if !net.wires[a][b].is_empty() {
                net.deliver(a, b);
            }
        }
    }
    net.kill(2);
    net.hears_of_death(1, 2);
    net.deliver_until(0, 1, MsgType::MigLockres);
    net.hears_of_death(0, 2);
    net.wait();
    net.heard(1);
    net.lock(1, Mode::Ex, NO_FLAGS);
    net.wait();
    let heard = net.heard(1);
    let granted = |action: &Action| matches!(action, Action::Granted { mode: Mode::Ex, .. });
    assert!(heard.iter().any(granted), "{heard:?}");
}

/// Nothing that a node in its senses would not send takes the state machine out of its own.
#[test]
fn a_notice_of_a_lock_that_nobody_has_is_ignored() {
    let mut net = Net::joined(2);
    net.lock(0, Mode::Ex, NO_FLAGS);
    net.rest();
    let message = Message::ProxyAst {
        node: nr(1),
        cookie: 7,
        flags: NO_FLAGS,
        kind: AstKind::Bast(Mode::Ex),
        name: name(),
        lvb: None,
    };
    let event = Event::Request {
        from: nr(1),
        msg_num: 1,
        message,
    };
    net.dlm(0).step(event);
    let answers: Vec<Action> = net.dlm(0).actions().collect();
    let normal = reply::DlmStatus::Normal.to_wire();
    assert!(matches!(answers[..], [Action::Answer { status, .. }] if status == normal));
}
