//! Clusters that are free on paper but must not be handed out yet.
//!
//! If we crash before the freeing transaction is committed, the old owner still has the cluster: a
//! new owner's data in it would be the old owner's corruption. And if a block of metadata is still
//! in the log, a replay would write it over whatever the cluster holds by then.

use std::collections::BTreeMap;

use ondisk::ClusterNr;

use super::Tid;

/// The clusters that are pinned, until one of two watermarks has passed.
#[derive(Debug, Default)]
pub struct Pins {
    committed: Ranges,
    checkpointed: Ranges,
}

/// Ranges by start. Ranges may overlap; a pin is small and short-lived, so that a list per start is
/// not worth it: the longer, later one wins.
#[derive(Debug, Default)]
struct Ranges {
    by_start: BTreeMap<u32, Pin>,
    /// No range is longer: how far back one may start that reaches a cluster.
    longest: u32,
}

#[derive(Debug, Clone, Copy)]
struct Pin {
    clusters: u32,
    tid: Tid,
}

impl Pins {
    pub(super) fn until_committed(&mut self, start: ClusterNr, clusters: u32, tid: Tid) {
        self.committed.add(start, clusters, tid);
    }

    pub(super) fn until_checkpointed(&mut self, start: ClusterNr, clusters: u32, tid: Tid) {
        self.checkpointed.add(start, clusters, tid);
    }

    /// Drops what the two watermarks have passed.
    pub(super) fn release(&mut self, committed: Tid, checkpointed: Tid) {
        self.committed.release(committed);
        self.checkpointed.release(checkpointed);
    }

    pub fn is_empty(&self) -> bool {
        self.committed.by_start.is_empty() && self.checkpointed.by_start.is_empty()
    }

    /// The ranges that only somebody's interest in their old content keeps, once everything up to
    /// here is checkpointed.
    pub(super) fn held(&self, checkpointed: Tid) -> Vec<(ClusterNr, u32)> {
        let all = self.checkpointed.by_start.iter();
        all.filter(|(_, pin)| pin.tid <= checkpointed)
            .map(|(&first, pin)| (ClusterNr(first), pin.clusters))
            .collect()
    }

    /// Every pinned range that meets `start..start + clusters`, clipped to it.
    pub fn within(&self, start: ClusterNr, clusters: u32) -> Vec<(ClusterNr, u32)> {
        let mut found = self.committed.within(start, clusters);
        found.extend(self.checkpointed.within(start, clusters));
        found
    }
}

impl Ranges {
    fn add(&mut self, start: ClusterNr, clusters: u32, tid: Tid) {
        let pin = self
            .by_start
            .entry(start.0)
            .or_insert(Pin { clusters, tid });
        pin.clusters = pin.clusters.max(clusters);
        pin.tid = pin.tid.max(tid);
        self.longest = self.longest.max(clusters);
    }

    fn release(&mut self, passed: Tid) {
        self.by_start.retain(|_, pin| pin.tid > passed);
        if self.by_start.is_empty() {
            self.longest = 0;
        }
    }

    fn within(&self, start: ClusterNr, clusters: u32) -> Vec<(ClusterNr, u32)> {
        let (from, to) = (start.0, start.0.saturating_add(clusters));
        let first = from.saturating_sub(self.longest);
        let clip = |(&first, pin): (&u32, &Pin)| {
            let (a, b) = (first.max(from), first.saturating_add(pin.clusters).min(to));
            (a < b).then(|| (ClusterNr(a), b - a))
        };
        self.by_start.range(first..to).filter_map(clip).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_clipped_and_released() {
        let mut pins = Pins::default();
        pins.until_committed(ClusterNr(10), 5, Tid(3));
        pins.until_committed(ClusterNr(12), 1, Tid(4));
        pins.until_checkpointed(ClusterNr(u32::MAX - 2), 2, Tid(3));
        let at = |pins: &Pins, start, clusters| pins.within(ClusterNr(start), clusters);
        assert_eq!(at(&pins, 14, 9), [(ClusterNr(14), 1)]);
        assert_eq!(at(&pins, 15, 9), []);
        assert_eq!(at(&pins, 0, 11), [(ClusterNr(10), 1)]);
        assert_eq!(at(&pins, 0, 10), []);
        assert_eq!(at(&pins, 12, 1), [(ClusterNr(12), 1), (ClusterNr(12), 1)]);
        assert_eq!(at(&pins, u32::MAX - 1, 9), [(ClusterNr(u32::MAX - 1), 1)]);
        pins.release(Tid(3), Tid(2));
        assert_eq!(at(&pins, 0, 20), [(ClusterNr(12), 1)]);
        pins.release(Tid(4), Tid(3));
        assert!(pins.is_empty());
    }
}
