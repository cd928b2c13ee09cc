//! Who goes on when nodes cannot talk to each other though they all beat: the kernel's table.
//!
//! A node that lost the connection to one that still beats waits until it is sure that the other still beats (the mesh
//! says [`Event::StillUp`]), and until the fate of all others is known; then it counts. *Holds* are what it waits for:
//!
//! ```text
//! a node beats, and is not connected yet        held until it connects or dies
//! a node is connected, and does not beat yet    held until it beats or is lost
//! a connection broke, the node beats            held until it connects again, dies, or is found to be still up
//! ```

use std::fmt;

use dlm::{NodeNr, NodeSet};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The node beats (this node's own beat too).
    HeartbeatUp(NodeNr),
    HeartbeatDown(NodeNr),
    Connected(NodeNr),
    /// The connection broke or fell silent.
    Disconnected(NodeNr),
    /// It broke long ago, and the node has not died of it.
    StillUp(NodeNr),
}

/// What a decision was made on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// Nodes that beat, this one among them.
    pub heartbeating: usize,
    /// Those of them that this node can talk to, itself among them.
    pub connected: usize,
    /// The lowest that beats.
    pub lowest: NodeNr,
}

/// Why a node must stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// It can talk to fewer than half (or, of an odd number, to no majority).
    Minority(Count),
    /// It can talk to exactly half, and the lowest node is in the other.
    HalfWithoutLowest(Count),
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Loss::Minority(count) | Loss::HalfWithoutLowest(count)) = self;
        let (connected, heartbeating) = (count.connected, count.heartbeating);
        write!(
            f,
            "connected to {connected} of {heartbeating} nodes that beat"
        )?;
        if let Loss::HalfWithoutLowest(count) = self {
            write!(f, ", a half without the lowest, node {}", count.lowest)?;
        }
        Ok(())
    }
}

/// The table. `None`: go on.
pub fn decide(node: NodeNr, heartbeating: NodeSet, connected: NodeSet) -> Option<Loss> {
    let lowest = heartbeating.first()?;
    let reachable = heartbeating.intersection(connected.with(node));
    let count = Count {
        heartbeating: heartbeating.count(),
        connected: reachable.count(),
        lowest,
    };
    if !heartbeating.contains(node) || count.heartbeating == 1 {
        return None;
    }
    let odd = count.heartbeating % 2 == 1;
    let quorum = count.heartbeating.div_ceil(2);
    if count.connected < quorum {
        return Some(Loss::Minority(count));
    }
    let half = !odd && count.connected == quorum;
    (half && !reachable.contains(lowest)).then_some(Loss::HalfWithoutLowest(count))
}

/// The state of one node's quorum.
#[derive(Debug, Clone)]
pub struct Quorum {
    node: NodeNr,
    heartbeating: NodeSet,
    connected: NodeSet,
    holds: NodeSet,
    /// A decision is due once nothing is held.
    pending: bool,
}

impl Quorum {
    pub fn new(node: NodeNr) -> Self {
        Quorum {
            node,
            heartbeating: NodeSet::EMPTY,
            connected: NodeSet::EMPTY.with(node),
            holds: NodeSet::EMPTY,
            pending: false,
        }
    }

    /// Nodes whose fate is waited for.
    pub fn holds(&self) -> NodeSet {
        self.holds
    }

    /// Nodes that beat and that this node can talk to, itself among them.
    pub fn reachable(&self) -> NodeSet {
        self.heartbeating.intersection(self.connected)
    }

    /// Takes an event in; a loss means that this node must stop.
    pub fn step(&mut self, event: Event) -> Option<Loss> {
        match event {
            Event::HeartbeatUp(node) => {
                self.heartbeating.insert(node);
                self.hold(node, !self.connected.contains(node));
            }
            Event::Connected(node) => {
                self.connected.insert(node);
                self.hold(node, !self.heartbeating.contains(node));
            }
            Event::HeartbeatDown(node) => {
                self.heartbeating.remove(node);
                self.hold(node, false);
            }
            Event::Disconnected(node) => {
                let was = self.connected.remove(node);
                if was && self.heartbeating.contains(node) {
                    self.hold(node, true);
                } else if !self.heartbeating.contains(node) {
                    self.hold(node, false);
                }
            }
            Event::StillUp(node) => {
                self.pending = true;
                self.hold(node, false);
            }
        }
        if !self.pending || !self.holds.is_empty() {
            return None;
        }
        self.pending = false;
        decide(self.node, self.heartbeating, self.connected)
    }

    fn hold(&mut self, node: NodeNr, hold: bool) {
        match hold {
            true => self.holds.insert(node),
            false => self.holds.remove(node),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nr(number: u8) -> NodeNr {
        NodeNr::new(number).unwrap()
    }

    fn set(bits: u32) -> NodeSet {
        (0..8).filter(|n| bits >> n & 1 == 1).map(nr).collect()
    }

    /// Every split in two of every set of up to eight nodes: one side goes on, the other stops.
    #[test]
    fn of_two_sides_exactly_one_goes_on() {
        for beating in 1u32..256 {
            for side in (0u32..256).filter(|side| side & !beating == 0) {
                let sides = [side, beating & !side];
                let verdicts = sides.map(|side| {
                    let of_side = set(side);
                    let nodes = of_side
                        .iter()
                        .map(|node| decide(node, set(beating), of_side));
                    let verdicts: Vec<bool> = nodes.map(|loss| loss.is_none()).collect();
                    assert!(
                        verdicts.windows(2).all(|pair| pair[0] == pair[1]),
                        "a side that does not agree"
                    );
                    verdicts.first().copied()
                });
                let going_on = verdicts.iter().filter(|verdict| **verdict == Some(true));
                assert_eq!(going_on.count(), 1, "{beating:b} split into {sides:?}");
            }
        }
    }

    /// However many sides: at most one goes on.
    #[test]
    fn of_many_sides_at_most_one_goes_on() {
        for sides in 0..3u32.pow(6) {
            let of = |node: u32| sides / 3u32.pow(node) % 3;
            let side = |which| set((0..6).filter(|n| of(*n) == which).map(|n| 1 << n).sum());
            let going_on = (0..3).filter(|which| {
                let side = side(*which);
                side.first()
                    .is_some_and(|node| decide(node, set(63), side).is_none())
            });
            assert!(going_on.count() <= 1, "{sides}");
        }
    }

    #[test]
    fn the_kernels_table() {
        let verdict = |node, beating, connected| {
            decide(nr(node), set(beating), set(connected)).map(|loss| match loss {
                Loss::Minority(count) => ("minority", count.connected, count.heartbeating),
                Loss::HalfWithoutLowest(count) => ("half", count.connected, count.heartbeating),
            })
        };
        assert_eq!(verdict(0, 0b1, 0b1), None, "alone");
        assert_eq!(verdict(3, 0b0110, 0b1000), None, "does not beat itself");
        assert_eq!(verdict(0, 0b111, 0b011), None);
        assert_eq!(verdict(2, 0b111, 0b100), Some(("minority", 1, 3)));
        assert_eq!(verdict(0, 0b11, 0b01), None, "the lower of two");
        assert_eq!(verdict(1, 0b11, 0b10), Some(("half", 1, 2)));
        assert_eq!(verdict(3, 0b1111, 0b1100), Some(("half", 2, 4)));
        assert_eq!(verdict(3, 0b1111, 0b1000), Some(("minority", 1, 4)));
        assert_eq!(verdict(3, 0b1111, 0b1110), None);
        assert_eq!(
            verdict(1, 0b10_0011, 0b11_1110),
            None,
            "connected ones that do not beat"
        );
    }

    /// A cluster of three where node 2 lost node 0.
    #[test]
    fn a_decision_waits_for_what_is_held() {
        let mut quorum = Quorum::new(nr(2));
        for node in [2, 0, 1] {
            assert_eq!(quorum.step(Event::HeartbeatUp(nr(node))), None);
        }
        assert_eq!(quorum.holds(), set(0b011));
        assert_eq!(quorum.step(Event::Connected(nr(0))), None);
        assert_eq!(quorum.step(Event::Connected(nr(1))), None);
        assert_eq!(quorum.holds(), NodeSet::EMPTY);
        assert_eq!(quorum.step(Event::Disconnected(nr(0))), None);
        assert_eq!(quorum.step(Event::Disconnected(nr(1))), None);
        assert_eq!(quorum.step(Event::StillUp(nr(0))), None, "node 1 is held");
        let loss = quorum.clone().step(Event::StillUp(nr(1)));
        assert!(matches!(loss, Some(Loss::Minority(_))), "{loss:?}");
        let loss = quorum.clone().step(Event::Connected(nr(1)));
        assert_eq!(loss, None, "two of three");
        let loss = quorum.step(Event::HeartbeatDown(nr(1)));
        assert!(matches!(loss, Some(Loss::HalfWithoutLowest(_))), "{loss:?}");
    }

    #[test]
    fn a_connection_that_comes_back_is_no_loss() {
        let mut quorum = Quorum::new(nr(1));
        for event in [
            Event::HeartbeatUp(nr(1)),
            Event::Connected(nr(0)),
            Event::HeartbeatUp(nr(0)),
            Event::Disconnected(nr(0)),
            Event::Connected(nr(0)),
        ] {
            assert_eq!(quorum.step(event), None);
        }
        assert_eq!(quorum.holds(), NodeSet::EMPTY);
        assert_eq!(quorum.reachable(), set(0b11));
        // Connected before it beats, and lost before it beat.
        assert_eq!(quorum.step(Event::Connected(nr(5))), None);
        assert_eq!(quorum.holds(), set(0b10_0000));
        assert_eq!(quorum.step(Event::Disconnected(nr(5))), None);
        assert_eq!(quorum.holds(), NodeSet::EMPTY);
    }
}
