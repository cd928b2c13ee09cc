//! When nobody can write: a storage outage that all nodes share must not make all of them stop. A node whose write hangs
//! for half of its time tells the lowest node that lives; once that one has heard it from everybody, and hangs itself,
//! it lets everybody wait anew. (A node whose beats *fail* does not take part: it may be the only one.)

use dlm::{NodeNr, NodeSet};

use crate::conf::RegionName;

/// "My write hangs", to the lowest node.
pub const TIMEOUT_MSG: u16 = 1;
/// "So do all", from it.
pub const APPROVE_MSG: u16 = 2;

/// The key of a region's messages: CRC-32 of its name from its index (in the order of their start) + 32.
pub fn key(index: u32, name: &RegionName) -> u32 {
    let seed = index.wrapping_add(32);
    // The library starts from the complement of what it is given and ends with a complement.
    let mut hasher = crc32fast::Hasher::new_with_initial(!seed);
    hasher.update(name.as_bytes());
    !hasher.finalize()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// This node's own write hangs.
    Hangs { up: NodeSet },
    /// A node says that its write hangs.
    Heard(NodeNr),
    /// The lowest node says that all hang.
    Approved,
    /// A write came back.
    Written,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Send [`TIMEOUT_MSG`] there.
    Tell(NodeNr),
    /// Send [`APPROVE_MSG`] to these.
    Approve(NodeSet),
    /// The right to write begins anew.
    Renew,
    /// Not everybody has spoken: ask [`Event::Hangs`] again after [`crate::Timing::negotiate_again`].
    LookAgain,
}

/// One region's talk.
#[derive(Debug, Clone)]
pub struct Negotiation {
    node: NodeNr,
    heard: NodeSet,
}

impl Negotiation {
    pub fn new(node: NodeNr) -> Self {
        let heard = NodeSet::EMPTY;
        Negotiation { node, heard }
    }

    pub fn step(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::Heard(node) => {
                self.heard.insert(node);
                Vec::new()
            }
            Event::Written => {
                self.heard = NodeSet::EMPTY;
                Vec::new()
            }
            Event::Approved => {
                self.heard = NodeSet::EMPTY;
                vec![Action::Renew]
            }
            Event::Hangs { up } => match up.first() {
                Some(lowest) if lowest == self.node => {
                    self.heard.insert(self.node);
                    if !up.difference(self.heard).is_empty() {
                        return vec![Action::LookAgain];
                    }
                    self.heard = NodeSet::EMPTY;
                    vec![Action::Renew, Action::Approve(up.without(self.node))]
                }
                Some(lowest) => vec![Action::Tell(lowest)],
                None => Vec::new(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nr(number: u8) -> NodeNr {
        NodeNr::new(number).unwrap()
    }

    #[test]
    fn all_must_hang() {
        let up: NodeSet = [1, 3, 4].map(nr).into_iter().collect();
        let mut lowest = Negotiation::new(nr(1));
        assert_eq!(lowest.step(Event::Heard(nr(3))), []);
        assert_eq!(lowest.step(Event::Hangs { up }), [Action::LookAgain]);
        assert_eq!(lowest.step(Event::Heard(nr(4))), []);
        let approve = Action::Approve(up.without(nr(1)));
        assert_eq!(lowest.step(Event::Hangs { up }), [Action::Renew, approve]);
        assert_eq!(
            lowest.step(Event::Hangs { up }),
            [Action::LookAgain],
            "all is forgotten"
        );
        lowest.step(Event::Heard(nr(3)));
        lowest.step(Event::Heard(nr(4)));
        lowest.step(Event::Written);
        assert_eq!(lowest.step(Event::Hangs { up }), [Action::LookAgain]);

        let mut other = Negotiation::new(nr(4));
        assert_eq!(other.step(Event::Hangs { up }), [Action::Tell(nr(1))]);
        assert_eq!(other.step(Event::Approved), [Action::Renew]);
    }

    #[test]
    fn the_key_is_a_crc_from_the_regions_index() {
        let name = RegionName::new("4BD61E13FD444856849E9B5CB1AEECB0").unwrap();
        let naive = |seed: u32| {
            name.as_bytes().iter().fold(seed, |crc, byte| {
                (0..8).fold(crc ^ u32::from(*byte), |crc: u32, _| match crc & 1 {
                    1 => crc >> 1 ^ 0xEDB8_8320,
                    _ => crc >> 1,
                })
            })
        };
        assert_eq!(key(0, &name), naive(32));
        assert_eq!(key(5, &name), naive(37));
    }
}
