use super::*;

fn nr(number: u8) -> NodeNr {
    NodeNr::new(number).unwrap()
}

/// Node 0 of two, in global mode with `count` regions, all of them steady and with both nodes.
struct Bench {
    heartbeat: Heartbeat,
    regions: Vec<RegionId>,
    own: Vec<Beat>,
    now: Duration,
    other: u64,
}

impl Bench {
    fn new(mode: HeartbeatMode, count: usize) -> Self {
        let nodes: NodeSet = [0, 1].map(nr).into_iter().collect();
        let mut heartbeat = Heartbeat::new(nr(0), nodes, Timing::kernel(), mode);
        let regions: Vec<_> = (0..count)
            .map(|index| heartbeat.add(7 + index as u64, true))
            .collect();
        let mut bench = Bench {
            heartbeat,
            own: vec![Beat::default(); count],
            regions,
            now: Duration::from_secs(1),
            other: 1,
        };
        let every: Vec<usize> = (0..count).collect();
        let mut seen = Vec::new();
        for _ in 0..20 {
            seen.extend(bench.round(&every));
        }
        seen.retain(|action| matches!(action, Action::NodeUp(_) | Action::NodeDown(_)));
        assert_eq!(seen.len(), 2, "each node comes up once: {seen:?}");
        bench
    }

    /// A beat in these regions; the others are out of reach.
    fn round(&mut self, reachable: &[usize]) -> Vec<Action> {
        let mut actions = Vec::new();
        self.other += 1;
        for index in 0..self.regions.len() {
            let (id, now) = (self.regions[index], self.now);
            if !reachable.contains(&index) {
                actions.extend(self.heartbeat.step(id, region::Event::ReadFailed { now }));
                continue;
            }
            let other = Beat {
                sequence: self.other,
                node: 1,
                generation: 3,
                dead_ms: 62_000,
            };
            let blocks = [
                (nr(0), Reading::Block(self.own[index])),
                (nr(1), Reading::Block(other)),
            ];
            let blocks = blocks.into_iter().collect();
            let event = region::Event::Read {
                started: now,
                now,
                wall_seconds: 0,
                blocks: &blocks,
            };
            let found = self.heartbeat.step(id, event);
            if let Some(Action::Write(_, beat)) = found
                .iter()
                .find(|action| matches!(action, Action::Write(..)))
            {
                self.own[index] = *beat;
                let started = now;
                actions.extend(
                    self.heartbeat
                        .step(id, region::Event::Written { started, now }),
                );
            }
            actions.extend(found);
        }
        self.now += Duration::from_secs(2);
        let now = self.now;
        for id in self.regions.clone() {
            actions.extend(self.heartbeat.step(id, region::Event::Timer { now }));
        }
        actions
    }

    /// Seconds until fenced, if within `limit` rounds.
    fn fenced(&mut self, reachable: &[usize], limit: usize) -> Option<u64> {
        let from = self.now;
        for _ in 0..limit {
            let actions = self.round(reachable);
            if actions
                .iter()
                .any(|action| matches!(action, Action::Fence { .. }))
            {
                assert!(self.heartbeat.is_fenced());
                assert_eq!(self.round(reachable), [], "nothing is done any more");
                return Some((self.now - from).as_secs() - 2);
            }
        }
        None
    }
}

#[test]
fn in_local_mode_one_lost_region_is_the_end() {
    let mut bench = Bench::new(HeartbeatMode::Local, 2);
    assert_eq!(bench.fenced(&[0, 1], 100), None);
    assert_eq!(
        bench.fenced(&[1], 100),
        Some(58),
        "60 s after the last good beat"
    );
}

#[test]
fn in_global_mode_half_of_the_regions_is() {
    for (count, may_lose) in [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2)] {
        let mut bench = Bench::new(HeartbeatMode::Global, count);
        assert_eq!(bench.heartbeat.quorum_regions(), (count, 0));
        let some: Vec<usize> = (may_lose..count).collect();
        assert_eq!(bench.fenced(&some, 100), None, "{count} regions");
        assert_eq!(bench.heartbeat.quorum_regions().1, may_lose);
        let too_few: Vec<usize> = (may_lose + 1..count).collect();
        assert_eq!(bench.fenced(&too_few, 100), Some(58), "{count} regions");
    }
}

/// The lease says beforehand when the fence will fall.
#[test]
fn the_lease_ends_when_the_fence_falls() {
    for (mode, count, lost) in [
        (HeartbeatMode::Local, 1, 1),
        (HeartbeatMode::Local, 3, 1),
        (HeartbeatMode::Global, 3, 2),
        (HeartbeatMode::Global, 4, 2),
        (HeartbeatMode::Global, 5, 4),
    ] {
        let mut bench = Bench::new(mode, count);
        let left: Vec<usize> = (lost..count).collect();
        bench.round(&left);
        let lease = bench.heartbeat.lease().unwrap();
        bench.fenced(&left, 100).unwrap();
        let fell = bench.now - Duration::from_secs(2);
        assert_eq!(lease, fell, "{mode:?} {count} {lost}");
    }
}

#[test]
fn a_region_that_comes_back_counts_again() {
    let mut bench = Bench::new(HeartbeatMode::Global, 3);
    assert_eq!(bench.fenced(&[1, 2], 60), None);
    assert_eq!(bench.fenced(&[0, 1, 2], 10), None);
    assert_eq!(bench.heartbeat.quorum_regions(), (3, 0));
    assert_eq!(bench.fenced(&[0, 1], 60), None);
}

#[test]
fn a_node_is_down_when_it_beats_nowhere() {
    let mut bench = Bench::new(HeartbeatMode::Local, 2);
    let up: NodeSet = [0, 1].map(nr).into_iter().collect();
    assert_eq!(bench.heartbeat.up(), up);
    let ids = bench.regions.clone();
    let downs = |actions: Vec<Action>| {
        actions
            .iter()
            .filter(|action| matches!(action, Action::NodeDown(_)))
            .count()
    };
    assert_eq!(downs(bench.heartbeat.remove(ids[0])), 0);
    assert_eq!(downs(bench.heartbeat.remove(ids[1])), 2);
    assert_eq!(bench.heartbeat.lease(), None);
}
