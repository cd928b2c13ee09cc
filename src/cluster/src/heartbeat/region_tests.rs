use super::*;

fn nr(number: u8) -> NodeNr {
    NodeNr::new(number).unwrap()
}

/// A region on node 0 of three, with the kernel's time-outs, and the blocks of nodes 1 and 2 as they are on disk.
struct Bench {
    region: Region,
    now: Duration,
    blocks: BTreeMap<NodeNr, Reading>,
    latency: Duration,
}

const BEAT: Duration = Duration::from_secs(2);
/// What a clock that was set right shows at the start.
const WALL: u64 = 1_700_000_000;

impl Bench {
    fn new(timing: Timing) -> Self {
        let nodes = (0..3).map(nr).collect();
        let start = Start {
            generation: 77,
            patient: false,
            old_life_is_over: true,
        };
        let empty = |node| (nr(node), Reading::Block(Beat::default()));
        Bench {
            region: Region::new(nr(0), nodes, timing, start),
            now: Duration::from_secs(100),
            blocks: (0..3).map(empty).collect(),
            latency: Duration::from_millis(10),
        }
    }

    fn put(&mut self, node: u8, sequence: u64, generation: u64) {
        let beat = Beat {
            sequence,
            node,
            generation,
            dead_ms: 62_000,
        };
        self.blocks.insert(nr(node), Reading::Block(beat));
    }

    /// Node `node` beats once more.
    fn beat(&mut self, node: u8) {
        let Reading::Block(beat) = self.blocks[&nr(node)] else {
            panic!("garbled")
        };
        self.put(node, beat.sequence + 2, beat.generation.max(1));
    }

    fn read(&mut self) -> Vec<Action> {
        let started = self.now;
        self.now += self.latency;
        let event = Event::Read {
            started,
            now: self.now,
            wall_seconds: WALL + self.now.as_secs(),
            blocks: &self.blocks,
        };
        self.region.step(event)
    }

    /// A whole beat of node 0, and the time to the next.
    fn round(&mut self) -> Vec<Action> {
        let began = self.now;
        let mut actions = self.read();
        let wanted = actions.iter().find_map(|action| match action {
            Action::Write(beat) => Some(*beat),
            _ => None,
        });
        actions.retain(|action| !matches!(action, Action::Write(_)));
        if let Some(beat) = wanted {
            let started = self.now;
            self.now += self.latency;
            self.blocks.insert(nr(0), Reading::Block(beat));
            let now = self.now;
            actions.extend(self.region.step(Event::Written { started, now }));
        }
        self.now = self.now.max(began + BEAT);
        actions.retain(|action| !matches!(action, Action::Lease(_)));
        actions
    }

    /// Alone until steady.
    fn steady() -> Self {
        let mut bench = Bench::new(Timing::kernel());
        let mut actions = Vec::new();
        for _ in 0..10 {
            actions.extend(bench.round());
        }
        assert_eq!(actions, [Action::Live(nr(0)), Action::Steady]);
        bench
    }
}

#[test]
fn a_node_lives_after_two_changes_and_is_dead_after_31_samples_without() {
    let mut bench = Bench::steady();
    bench.put(1, 10, 5);
    assert_eq!(bench.round(), []);
    bench.beat(1);
    assert_eq!(bench.round(), [Action::Live(nr(1))]);
    for _ in 0..50 {
        bench.beat(1);
        assert_eq!(bench.round(), []);
    }
    let mut silent = 0;
    while bench.round().is_empty() {
        silent += 1;
    }
    assert_eq!(silent, 30, "the 31st sample decides");
    // It lives again after two more.
    bench.beat(1);
    assert_eq!(bench.round(), []);
    bench.beat(1);
    assert_eq!(bench.round(), [Action::Live(nr(1))]);
}

#[test]
fn thirty_samples_of_silence_are_borne() {
    let mut bench = Bench::steady();
    for _ in 0..4 {
        bench.beat(1);
        bench.round();
    }
    for _ in 0..30 {
        assert_eq!(bench.round(), []);
    }
    bench.beat(1);
    for _ in 0..30 {
        assert_eq!(bench.round(), []);
    }
}

#[test]
fn a_new_generation_is_a_death() {
    let mut bench = Bench::steady();
    bench.put(1, 10, 5);
    bench.round();
    bench.beat(1);
    assert_eq!(bench.round(), [Action::Live(nr(1))]);
    bench.put(1, 100, 6);
    assert_eq!(bench.round(), [Action::Dead(nr(1))]);
    bench.beat(1);
    assert_eq!(
        bench.round(),
        [Action::Live(nr(1))],
        "the change that killed it counts"
    );
    // It signs off, which is no life.
    bench.put(1, 200, 0);
    assert_eq!(bench.round(), [Action::Dead(nr(1))]);
    for sequence in 201..210 {
        bench.put(1, sequence, 0);
        assert_eq!(bench.round(), []);
    }
}

#[test]
fn a_torn_block_is_a_missed_beat_and_no_more() {
    let mut bench = Bench::steady();
    for _ in 0..4 {
        bench.beat(1);
        bench.round();
    }
    let good = bench.blocks[&nr(1)];
    for _ in 0..30 {
        bench.blocks.insert(nr(1), Reading::Garbled);
        assert_eq!(bench.round(), []);
    }
    bench.blocks.insert(nr(1), good);
    bench.beat(1);
    assert_eq!(bench.round(), []);
    bench.blocks.insert(nr(1), Reading::Garbled);
    let rounds = (0..).take_while(|_| bench.round().is_empty()).count();
    assert_eq!(rounds, 30);
    // Junk where nobody lives is nothing.
    bench.blocks.insert(nr(2), Reading::Garbled);
    assert_eq!(bench.round(), []);
}

/// Samples that come close together, after one that took long, are not enough: time must have passed as well.
#[test]
fn slow_reads_do_not_shorten_a_nodes_time() {
    let mut bench = Bench::steady();
    for _ in 0..4 {
        bench.beat(1);
        bench.round();
    }
    let (last_seen, mut samples) = (bench.now - BEAT + bench.latency, 0);
    loop {
        let began = bench.now;
        if bench.read().contains(&Action::Dead(nr(1))) {
            let silence = began - last_seen;
            assert!(
                silence >= Timing::kernel().dead_after() - BEAT / 2,
                "{silence:?}"
            );
            break;
        }
        samples += 1;
        bench.now = bench.now.max(began + BEAT / 4);
    }
    assert!(samples > 100, "{samples}");
}

#[test]
fn the_right_to_write_counts_from_when_the_write_set_out() {
    let mut bench = Bench::steady();
    bench.read();
    let started = bench.now;
    let now = started + Duration::from_secs(10);
    let actions = bench.region.step(Event::Written { started, now });
    let until = started + Duration::from_secs(60);
    assert_eq!(actions, [Action::Lease(until)]);
    assert_eq!(bench.region.lease(), Some(until));
    let early = until - Duration::from_nanos(1);
    assert_eq!(bench.region.step(Event::Timer { now: early }), []);
    let expired = Action::Expired { since: started };
    assert_eq!(bench.region.step(Event::Timer { now: until }), [expired]);
    assert_eq!(
        bench.region.step(Event::Timer { now: until + BEAT }),
        [],
        "told once"
    );
    assert_eq!(bench.region.lease_end(), None);
}

#[test]
fn whoever_wakes_too_late_is_told_before_it_writes() {
    let mut bench = Bench::steady();
    bench.now += Duration::from_secs(70);
    let actions = bench.read();
    assert!(matches!(actions[0], Action::Expired { .. }), "{actions:?}");
}

#[test]
fn an_own_block_that_another_wrote_renews_nothing() {
    let mut bench = Bench::steady();
    let lease = bench.region.lease();
    bench.put(0, 5, 99);
    let actions = bench.round();
    assert!(
        matches!(actions[..], [Action::SlotTaken { .. }]),
        "{actions:?}"
    );
    assert_eq!(bench.region.lease(), lease);
    bench.round();
    assert!(bench.region.lease() > lease, "it holds the own beat again");
}

#[test]
fn after_a_failed_write_the_block_may_hold_either() {
    for arrived in [false, true] {
        let mut bench = Bench::steady();
        let actions = bench.read();
        let Action::Write(beat) = actions[0] else {
            panic!("{actions:?}")
        };
        if arrived {
            bench.blocks.insert(nr(0), Reading::Block(beat));
        }
        let now = bench.now;
        assert_eq!(bench.region.step(Event::WriteFailed { now }), []);
        bench.now += BEAT;
        assert_eq!(bench.round(), [], "arrived: {arrived}");
    }
}

#[test]
fn sequence_numbers_always_change() {
    let mut bench = Bench::steady();
    bench.round();
    let mut last = 0;
    for step in [2000, 1, 1, 1, 500, 1] {
        bench.now += Duration::from_millis(step);
        let actions = bench.read();
        let Action::Write(beat) = actions[0] else {
            panic!("{actions:?}")
        };
        assert!(beat.sequence > last, "{beat:?} after {last}");
        last = beat.sequence;
        let (started, now) = (bench.now, bench.now);
        bench.blocks.insert(nr(0), Reading::Block(beat));
        bench.region.step(Event::Written { started, now });
    }
    let farewell = bench.region.farewell().unwrap();
    assert_eq!((farewell.generation, farewell.node), (0, 0));
    assert!(farewell.sequence > last);
}

/// Rounds until steady, with `each` before each.
fn rounds_to_steady(bench: &mut Bench, mut each: impl FnMut(&mut Bench)) -> (usize, Vec<Action>) {
    for round in 1..200 {
        each(bench);
        let actions = bench.round();
        if bench.region.is_steady() || !actions.is_empty() && !bench.region.live().contains(nr(0)) {
            return (round, actions);
        }
    }
    panic!("never steady")
}

#[test]
fn a_start_waits_for_whoever_may_live() {
    let kernel = Timing::kernel();
    let fresh = rounds_to_steady(&mut Bench::new(kernel), |_| {}).0;
    assert!((4..=7).contains(&fresh), "{fresh}");
    // Somebody beats: it is seen, and that is all.
    let mut bench = Bench::new(kernel);
    let beating = rounds_to_steady(&mut bench, |bench| bench.beat(1)).0;
    assert!(beating <= 8, "{beating}");
    assert!(bench.region.live().contains(nr(1)));
    // A block from a second ago that does not change.
    let now = WALL + 100;
    for (sequence, wait) in [(now - 1, true), (now + 9_999, true), (now - 7_000, false)] {
        let mut bench = Bench::new(kernel);
        bench.put(1, sequence, 5);
        let rounds = rounds_to_steady(&mut bench, |_| {}).0;
        assert_eq!(rounds > 31, wait, "{sequence}: {rounds}");
        assert!(rounds <= 33 + fresh, "{rounds}");
    }
    // One that was signed off.
    let mut bench = Bench::new(kernel);
    bench.put(1, now - 1, 0);
    assert_eq!(rounds_to_steady(&mut bench, |_| {}).0, fresh);
    // One that stands still, wakes after half of its time, and is then seen.
    let mut bench = Bench::new(kernel);
    bench.put(1, now - 1, 5);
    let mut round = 0;
    let (rounds, _) = rounds_to_steady(&mut bench, |bench| {
        round += 1;
        if round > 15 {
            bench.beat(1);
        }
    });
    assert!((18..25).contains(&rounds), "{rounds}");
    assert!(bench.region.live().contains(nr(1)));
    // Where beats are no seconds apart, numbers are no dates.
    let mut bench = Bench::new(Timing::fast());
    bench.put(1, now - 7_000, 5);
    assert_eq!(bench.round(), []);
    assert_eq!(bench.region.suspects().iter().collect::<Vec<_>>(), [nr(1)]);
}

#[test]
fn a_number_that_is_taken_is_never_written() {
    let mut bench = Bench::new(Timing::kernel());
    bench.put(0, 50, 9);
    assert_eq!(bench.round(), []);
    bench.put(0, 52, 9);
    let actions = bench.read();
    assert!(
        matches!(
            actions[..],
            [
                Action::SlotTaken { .. },
                Action::Unsteady { slot_taken: true }
            ]
        ),
        "{actions:?}"
    );
    assert_eq!(bench.region.farewell(), None);
}

#[test]
fn blocks_that_fail_all_the_time_end_the_start() {
    let mut bench = Bench::new(Timing::kernel());
    bench.round();
    let mut actions = Vec::new();
    for _ in 0..9 {
        bench.now += BEAT;
        actions.extend(bench.region.step(Event::ReadFailed { now: bench.now }));
    }
    assert_eq!(actions, [Action::Unsteady { slot_taken: false }]);
}

#[test]
fn a_start_whose_beats_stop_is_over() {
    let mut bench = Bench::new(Timing::kernel());
    bench.put(1, WALL + 99, 5); // somebody to wait for
    for _ in 0..3 {
        bench.round();
    }
    assert_eq!(bench.region.lease(), None);
    let end = bench.region.lease_end().unwrap();
    assert_eq!(bench.region.step(Event::Timer { now: end - BEAT }), []);
    let actions = bench.region.step(Event::Timer { now: end });
    assert!(
        matches!(actions[..], [Action::Expired { .. }]),
        "{actions:?}"
    );
}

#[test]
fn approval_begins_the_time_anew() {
    let mut bench = Bench::steady();
    let lease = bench.region.lease().unwrap();
    let hangs = bench.region.negotiate_at().unwrap();
    assert_eq!(lease - hangs, Duration::from_secs(30));
    let now = hangs + Duration::from_secs(5);
    let until = now + Duration::from_secs(60);
    assert_eq!(
        bench.region.step(Event::Approved { now }),
        [Action::Lease(until)]
    );
    // A node whose beats fail has nothing to talk about.
    bench.region.step(Event::ReadFailed { now });
    assert_eq!(bench.region.negotiate_at(), None);
}
