//! Disk heartbeat: all regions of a node together. A node is up while it beats in any region, and down when it beats in
//! none; this node must stop when it cannot write: in local mode when one region is lost, in global mode when half of
//! the *quorum regions* are (those that are steady and where everybody who lives has been seen).

pub mod negotiate;
pub mod region;

use std::collections::BTreeMap;
use std::time::Duration;

use dlm::{NodeNr, NodeSet};

use crate::conf::HeartbeatMode;
use crate::timing::Timing;
use region::Region;
pub use region::Start;
pub use region::{Beat, Reading};

/// Names a region on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegionId(pub u32);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Write(RegionId, Beat),
    NodeUp(NodeNr),
    NodeDown(NodeNr),
    /// The region's start is over.
    Steady(RegionId),
    /// The region's start failed.
    Unsteady {
        region: RegionId,
        slot_taken: bool,
    },
    /// This node may write until then.
    Lease(Duration),
    /// This node must stop: it could not beat in this region since then.
    Fence {
        region: RegionId,
        since: Duration,
    },
    /// For the log.
    Remark(RegionId, Remark),
}

/// What is worth a line in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Remark {
    #[error("another node writes into this node's block: expected {expected:?}, found {found:?}")]
    SlotTaken { expected: Beat, found: Beat },
    #[error("node {node} has a dead time of {dead_ms} ms, which differs from ours")]
    OtherTiming { node: NodeNr, dead_ms: u32 },
    #[error("no heartbeat since {since:?}; enough other regions are left")]
    RegionLost { since: Duration },
}

#[derive(Debug, Clone)]
struct Entry {
    region: Region,
    quorum: bool,
    failed: bool,
}

/// The state of a node's heartbeat.
#[derive(Debug, Clone)]
pub struct Heartbeat {
    node: NodeNr,
    nodes: NodeSet,
    timing: Timing,
    mode: HeartbeatMode,
    regions: BTreeMap<RegionId, Entry>,
    next_region: u32,
    up: NodeSet,
    fenced: bool,
}

impl Heartbeat {
    pub fn new(node: NodeNr, nodes: NodeSet, timing: Timing, mode: HeartbeatMode) -> Self {
        Heartbeat {
            node,
            nodes,
            timing,
            mode,
            regions: BTreeMap::new(),
            next_region: 0,
            up: NodeSet::EMPTY,
            fenced: false,
        }
    }

    /// Begins to beat in a region, with a new generation (not 0). `old_life_is_over`: see [`Start`].
    pub fn add(&mut self, generation: u64, old_life_is_over: bool) -> RegionId {
        let id = RegionId(self.next_region);
        self.next_region += 1;
        let start = Start {
            generation,
            patient: self.mode == HeartbeatMode::Global && self.regions.is_empty(),
            old_life_is_over,
        };
        let region = Region::new(self.node, self.nodes, self.timing, start);
        let entry = Entry {
            region,
            quorum: false,
            failed: false,
        };
        self.regions.insert(id, entry);
        id
    }

    /// Stops beating in a region. Whoever beat only there is down for this node.
    pub fn remove(&mut self, id: RegionId) -> Vec<Action> {
        self.regions.remove(&id);
        let mut actions = self.changes();
        actions.extend(self.lease().map(Action::Lease));
        actions
    }

    /// Nodes that are up.
    pub fn up(&self) -> NodeSet {
        self.up
    }

    pub fn region(&self, id: RegionId) -> Option<&Region> {
        self.regions.get(&id).map(|entry| &entry.region)
    }

    pub fn is_fenced(&self) -> bool {
        self.fenced
    }

    /// Regions that count, and how many of them are lost.
    pub fn quorum_regions(&self) -> (usize, usize) {
        let quorum = self.regions.values().filter(|entry| entry.quorum);
        let failed = quorum.clone().filter(|entry| entry.failed);
        (quorum.count(), failed.count())
    }

    /// Until when this node may write.
    pub fn lease(&self) -> Option<Duration> {
        let counts = |entry: &&Entry| match self.mode {
            HeartbeatMode::Local => true,
            HeartbeatMode::Global => entry.quorum,
        };
        let leases = |entries: &mut dyn Iterator<Item = &Entry>| {
            let mut leases: Vec<_> = entries.filter_map(|entry| entry.region.lease()).collect();
            leases.sort();
            leases
        };
        let counted = leases(&mut self.regions.values().filter(counts));
        match self.mode {
            HeartbeatMode::Local => counted.first().copied(),
            // The end of the lease that makes half of them lost.
            HeartbeatMode::Global if !counted.is_empty() => {
                counted.get(counted.len().div_ceil(2) - 1).copied()
            }
            HeartbeatMode::Global => leases(&mut self.regions.values()).first().copied(),
        }
    }

    /// Takes an event of one region in.
    pub fn step(&mut self, id: RegionId, event: region::Event<'_>) -> Vec<Action> {
        let mut actions = Vec::new();
        let Some(entry) = self.regions.get_mut(&id).filter(|_| !self.fenced) else {
            return actions;
        };
        let before = entry.region.lease();
        for action in entry.region.step(event) {
            match action {
                region::Action::Write(beat) => actions.push(Action::Write(id, beat)),
                region::Action::Live(_) | region::Action::Dead(_) => {}
                region::Action::Steady => actions.push(Action::Steady(id)),
                region::Action::Unsteady { slot_taken } => {
                    let region = id;
                    actions.push(Action::Unsteady { region, slot_taken });
                }
                region::Action::Lease(_) => {
                    if let Some(entry) = self.regions.get_mut(&id) {
                        entry.failed = false;
                    }
                }
                region::Action::Expired { since } => {
                    if self.region_lost(id) {
                        self.fenced = true;
                        return vec![Action::Fence { region: id, since }];
                    }
                    actions.push(Action::Remark(id, Remark::RegionLost { since }));
                }
                region::Action::SlotTaken { expected, found } => {
                    actions.push(Action::Remark(id, Remark::SlotTaken { expected, found }));
                }
                region::Action::OtherTiming { node, dead_ms } => {
                    actions.push(Action::Remark(id, Remark::OtherTiming { node, dead_ms }));
                }
            }
        }
        actions.extend(self.changes());
        let steady = |entry: &Entry| entry.region.is_steady();
        if self.mode == HeartbeatMode::Global
            && let Some(entry) = self.regions.get_mut(&id)
            && steady(entry)
            && entry.region.lease() != before
            && entry.region.live() == self.up
        {
            entry.quorum = true;
        }
        if self.regions.get(&id).and_then(|entry| entry.region.lease()) != before {
            actions.extend(self.lease().map(Action::Lease));
        }
        actions
    }

    /// A region was lost: whether this node must stop.
    fn region_lost(&mut self, id: RegionId) -> bool {
        if let Some(entry) = self.regions.get_mut(&id) {
            entry.failed = true;
        }
        let (quorum, failed) = self.quorum_regions();
        self.mode == HeartbeatMode::Local || failed * 2 >= quorum
    }

    /// Who came and went, over all regions.
    fn changes(&mut self) -> Vec<Action> {
        let regions = self.regions.values().map(|entry| entry.region.live());
        let up = regions.fold(NodeSet::EMPTY, NodeSet::union);
        let old = std::mem::replace(&mut self.up, up);
        let down = old.difference(up).iter().map(Action::NodeDown);
        let new = up.difference(old).iter().map(Action::NodeUp);
        down.chain(new).collect()
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
