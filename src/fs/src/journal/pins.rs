//! Clusters that are free on paper but must not be handed out yet.
//!
//! If we crash before the freeing transaction is committed, the old owner still has the cluster: a
//! new owner's data in it would be the old owner's corruption. And if a block of metadata is still
//! in the log, a replay would write it over whatever the cluster holds by then.

use std::collections::BTreeMap;

use ondisk::ClusterNr;

use super::Tid;

/// Ranges by start. Ranges in one map may overlap; a pin is small and short-lived, so that a list
/// per start is not worth it: the longer, later one wins.
#[derive(Debug, Default)]
pub struct Pins {
    committed: BTreeMap<u32, Pin>,
    checkpointed: BTreeMap<u32, Pin>,
}

#[derive(Debug, Clone, Copy)]
struct Pin {
    clusters: u32,
    tid: Tid,
}

impl Pins {
    pub(super) fn until_committed(&mut self, start: ClusterNr, clusters: u32, tid: Tid) {
        add(&mut self.committed, start, clusters, tid);
    }

    pub(super) fn until_checkpointed(&mut self, start: ClusterNr, clusters: u32, tid: Tid) {
        add(&mut self.checkpointed, start, clusters, tid);
    }

    /// Drops what the two watermarks have passed.
    pub(super) fn release(&mut self, committed: Tid, checkpointed: Tid) {
        self.committed.retain(|_, pin| pin.tid > committed);
        self.checkpointed.retain(|_, pin| pin.tid > checkpointed);
    }

    pub fn is_empty(&self) -> bool {
        self.committed.is_empty() && self.checkpointed.is_empty()
    }

    /// Every pinned range that meets `start..start + clusters`, clipped to it.
    pub fn within(&self, start: ClusterNr, clusters: u32) -> Vec<(ClusterNr, u32)> {
        let (from, to) = (u64::from(start.0), u64::from(start.0) + u64::from(clusters));
        let mut found = Vec::new();
        for map in [&self.committed, &self.checkpointed] {
            for (&first, pin) in map {
                let (a, b) = (u64::from(first), u64::from(first) + u64::from(pin.clusters));
                let (a, b) = (a.max(from), b.min(to));
                if a < b {
                    found.push((ClusterNr(a as u32), (b - a) as u32));
                }
            }
        }
        found
    }
}

fn add(map: &mut BTreeMap<u32, Pin>, start: ClusterNr, clusters: u32, tid: Tid) {
    let pin = map.entry(start.0).or_insert(Pin { clusters, tid });
    pin.clusters = pin.clusters.max(clusters);
    pin.tid = pin.tid.max(tid);
}
