//! Whole clusters in one process: two to eight nodes with heartbeat and o2net on one simulated disk and network, one seed
//! for all. See `rig` for what is checked at every step.
#![allow(clippy::unwrap_used, reason = "a test fails where it panics")]

mod rig;

use std::rc::Rc;
use std::time::Duration;

use cluster::member::MemberConfig;
use cluster::{Fence, JoinError, Member, Timing, quorum};
use rig::{MILLISECOND, Rig, SECOND, for_seeds, ip, nr, set};
use runtime::Host;
use runtime::sim::{PortState, SimNode};

fn all(count: u8) -> Vec<u8> {
    (0..count).collect()
}

fn settled(seed: u64, count: u8, timing: Timing) -> Rig {
    let mut rig = Rig::new(seed, count, timing);
    rig.start_all();
    rig.settle(&all(count), timing.join + timing.beat * 20);
    rig
}

/// Two to eight, by seed.
fn count_of(seed: u64) -> u8 {
    2 + (seed % 7) as u8
}

fn others(count: u8, but: u8) -> Vec<u8> {
    (0..count).filter(|node| *node != but).collect()
}

/// How long a node may take to be a member again once nothing hinders it.
fn comeback(timing: Timing) -> Duration {
    timing.beat * 200 + timing.join * 2
}

#[test]
fn nodes_join_and_a_killed_one_is_missed_within_3_seconds() {
    for_seeds("join", 0, 8, |seed| {
        let count = count_of(seed);
        let mut rig = settled(seed, count, Timing::fast());
        rig.run(SECOND);
        let victim = rig.rng.below(u64::from(count)) as u8;
        let silent = rig.rng.coin();
        rig.kill(victim, silent);
        let killed = rig.world.now();
        let others = others(count, victim);
        rig.run_until("a death noticed", 3 * SECOND, |checker| {
            others.iter().all(|node| !checker.sees(*node, victim))
        });
        let noticed = rig.world.now() - killed;
        assert!(
            noticed > Timing::fast().fence_after(),
            "noticed early: {noticed:?}"
        );
        rig.run(10 * SECOND);
        for node in &others {
            assert_eq!(rig.checker.fences(*node), [], "seed {seed}");
        }
        rig.start(victim);
        rig.settle(&all(count), 20 * SECOND);
        assert!(rig.checker.writes.get() > 500 && rig.checker.calls.get() > 10);
    });
}

#[test]
fn with_the_kernels_time_outs_a_death_is_missed_within_64_seconds() {
    let mut rig = settled(1, 3, Timing::kernel());
    rig.run(60 * SECOND);
    rig.kill(1, true);
    rig.run(60 * SECOND);
    assert!(rig.checker.sees(0, 1) && rig.checker.sees(2, 1), "not yet");
    rig.run_until("a death noticed", 5 * SECOND, |checker| {
        !checker.sees(0, 1) && !checker.sees(2, 1)
    });
    assert_eq!(rig.checker.members(), [0, 2]);
}

/// A node that is started again before anybody missed it: its old life is over for all before its new one begins.
#[test]
fn a_quick_restart_is_a_death_and_a_birth() {
    for_seeds("restart", 10, 8, |seed| {
        let count = count_of(seed);
        let mut rig = settled(seed, count, Timing::fast());
        let node = rig.rng.below(u64::from(count)) as u8;
        rig.kill(node, false);
        rig.run(100 * MILLISECOND);
        rig.start(node);
        rig.settle(&all(count), 10 * SECOND);
        assert_eq!(rig.checker.joined(node), 2);
    });
}

/// A split in two: the side that the table picks goes on, the other stops and comes back by itself.
#[test]
fn of_a_partition_exactly_one_side_goes_on() {
    for_seeds("partition", 20, 14, |seed| {
        let count = count_of(seed);
        let mut rig = settled(seed, count, Timing::fast());
        let side: Vec<u8> = loop {
            let bits = 1 + rig.rng.below((1 << count) - 2);
            let side: Vec<u8> = (0..count).filter(|node| bits >> node & 1 == 1).collect();
            if !side.is_empty() && side.len() < usize::from(count) {
                break side;
            }
        };
        let rest: Vec<u8> = (0..count).filter(|node| !side.contains(node)).collect();
        let loses = quorum::decide(nr(side[0]), set(0..count), set(side.iter().copied()));
        let (losers, winners) = match loses.is_some() {
            true => (side, rest),
            false => (rest, side),
        };
        let of = |side: &[u8]| side.iter().map(|node| ip(*node)).collect::<Vec<_>>();
        rig.net.partition(&of(&losers), &of(&winners));
        rig.note(&format!(
            "partition: {losers:?} must stop, {winners:?} must not"
        ));
        let timing = rig.timing;
        let decided = timing.idle + timing.quorum_delay() + timing.keepalive + timing.beat;
        rig.run_until("the losers stopped", decided, |checker| {
            losers.iter().all(|node| !checker.fences(*node).is_empty())
        });
        for node in &losers {
            let (_, fence) = &rig.checker.fences(*node)[0];
            assert!(matches!(fence, Fence::Quorum(_)), "{fence}");
        }
        // They say so on disk: nobody waits for their silence.
        rig.run_until("the losers missed", 3 * timing.beat, |checker| {
            let missed = |node: &u8| losers.iter().all(|loser| !checker.sees(*node, *loser));
            winners.iter().all(missed)
        });
        rig.run(20 * SECOND);
        assert_eq!(rig.checker.members(), winners, "seed {seed}");
        for node in &winners {
            assert_eq!(rig.checker.fences(*node), [], "seed {seed}");
        }
        rig.net.mend_all();
        rig.settle(&all(count), comeback(timing));
    });
}

/// Short stalls of a node or its network are nobody's death.
#[test]
fn what_is_shorter_than_the_time_outs_harms_nobody() {
    for_seeds("short", 40, 8, |seed| {
        let count = count_of(seed);
        let rig = settled(seed, count, Timing::fast());
        for round in 0..20 {
            let node = (round + seed as u8) % count;
            match round % 3 {
                0 => {
                    rig.pause(node);
                    rig.run(1500 * MILLISECOND);
                    rig.resume(node);
                }
                1 => {
                    rig.set_disk(node, PortState::Stalled);
                    rig.run(1500 * MILLISECOND);
                    rig.set_disk(node, PortState::Up);
                }
                _ => {
                    rig.net.cut(ip(node), ip((node + 1) % count));
                    rig.run(3 * SECOND);
                    rig.net.mend_all();
                }
            }
            rig.run(SECOND);
        }
        rig.settle(&all(count), SECOND);
        for node in 0..count {
            assert_eq!(
                (rig.checker.fences(node), rig.checker.joined(node)),
                (vec![], 1)
            );
        }
    });
}

/// Broken connections lose nothing, repeat nothing, and are nobody's death: the rig's calls check each number.
#[test]
fn resets_lose_no_message() {
    for_seeds("resets", 60, 8, |seed| {
        let count = count_of(seed);
        let mut rig = settled(seed, count, Timing::fast());
        for _ in 0..200 {
            let (a, b) = (
                rig.rng.below(u64::from(count)),
                rig.rng.below(u64::from(count)),
            );
            rig.net.reset(ip(a as u8), ip(b as u8));
            let quiet = MILLISECOND * (1 + rig.rng.below(300)) as u32;
            rig.run(quiet);
        }
        rig.settle(&all(count), 2 * SECOND);
        let resets = rig.net.stats().resets;
        assert!(resets > 20, "{resets}");
        for node in 0..count {
            assert_eq!(
                (rig.checker.fences(node), rig.checker.joined(node)),
                (vec![], 1)
            );
        }
    });
}

/// A process that stood still beyond its lease: others have gone on without it, and it must not write when it wakes.
#[test]
fn whoever_sleeps_too_long_wakes_up_fenced() {
    for_seeds("sleep", 80, 10, |seed| {
        let count = count_of(seed);
        let mut rig = settled(seed, count, Timing::fast());
        let node = rig.rng.below(u64::from(count)) as u8;
        rig.pause(node);
        let sleep = 2200 * MILLISECOND + MILLISECOND * rig.rng.below(4000) as u32;
        rig.run(sleep);
        let before = rig.checker.writes.get();
        rig.resume(node);
        rig.run(MILLISECOND);
        assert_eq!(rig.checker.fences(node).len(), 1, "seed {seed}");
        assert!(!rig.checker.is_member(node) && rig.checker.writes.get() - before < 20);
        rig.settle(&all(count), comeback(rig.timing));
        assert_eq!(rig.checker.joined(node), 2);
    });
}

#[test]
fn whoever_loses_its_disk_stops_in_time_and_comes_back() {
    for_seeds("disk", 100, 10, |seed| {
        let count = count_of(seed);
        let mut rig = settled(seed, count, Timing::fast());
        let node = rig.rng.below(u64::from(count)) as u8;
        let state = [PortState::Failing, PortState::Stalled][(seed % 2) as usize];
        rig.set_disk(node, state);
        let limit = rig.timing.fence_after() + 10 * MILLISECOND;
        rig.run_until("fenced", limit, |checker| !checker.fences(node).is_empty());
        let fence = &rig.checker.fences(node)[0].1;
        assert!(
            matches!(fence, Fence::Disk { .. } | Fence::Slept { .. }),
            "{fence}"
        );
        rig.run(5 * SECOND);
        assert_eq!(rig.checker.members(), others(count, node));
        rig.set_disk(node, PortState::Up);
        rig.settle(&all(count), comeback(rig.timing));
    });
}

/// A device that nobody can reach is nobody's fault: with the kernel's rule they talk about it, and wait.
#[test]
fn an_outage_that_all_share_stops_nobody() {
    for_seeds("outage", 120, 7, |seed| {
        let count = count_of(seed);
        let mut rig = Rig::new(seed, count, Timing::fast());
        rig.outlast_outages = true;
        rig.start_all();
        rig.settle(&all(count), 20 * SECOND);
        (0..count).for_each(|node| rig.set_disk(node, PortState::Stalled));
        rig.run(12 * SECOND);
        (0..count).for_each(|node| rig.set_disk(node, PortState::Up));
        rig.run(5 * SECOND);
        rig.settle(&all(count), SECOND);
        for node in 0..count {
            assert_eq!(
                (rig.checker.fences(node), rig.checker.joined(node)),
                (vec![], 1)
            );
        }
    });
}

/// In global mode half of the regions must be lost before a node stops.
#[test]
fn one_of_three_regions_may_be_lost() {
    for_seeds("global", 140, 4, |seed| {
        let mut rig = Rig::with_regions(seed, 3, Timing::fast(), 3);
        rig.start_all();
        rig.settle(&all(3), 20 * SECOND);
        rig.run(3 * SECOND);
        rig.set_region(1, 1, PortState::Failing);
        rig.run(10 * SECOND);
        assert_eq!(rig.checker.members(), all(3));
        assert!(rig.checker.sees(0, 1));
        rig.set_region(1, 2, PortState::Stalled);
        rig.run_until("fenced", 3 * SECOND, |checker| !checker.is_member(1));
        rig.run(5 * SECOND);
        assert_eq!(rig.checker.members(), [0, 2]);
        rig.set_region(1, 1, PortState::Up);
        rig.set_region(1, 2, PortState::Up);
        rig.settle(&all(3), comeback(rig.timing));
    });
}

/// Joins from outside of the rig, as node `number`.
fn join_as(rig: &Rig, config: MemberConfig, at: u8) -> Result<(), JoinError> {
    let node = SimNode::new(&rig.world, "stranger");
    let network = rig.net.node(ip(at));
    let result = Member::join(config, node.host(), network, Vec::new());
    rig.sim.block_on(result).unwrap().map(|_| ())
}

#[test]
fn a_number_that_is_taken_is_refused_and_its_holder_not_harmed() {
    let rig = settled(7, 3, Timing::fast());
    let mut config = rig.config(1);
    // The same number on another machine.
    let node = config
        .cluster
        .nodes
        .iter_mut()
        .find(|node| node.number == nr(1))
        .unwrap();
    node.address.set_ip(std::net::Ipv4Addr::new(10, 0, 0, 99));
    let error = join_as(&rig, config, 98).unwrap_err();
    assert!(
        matches!(
            error,
            JoinError::Unsteady {
                slot_taken: true,
                ..
            }
        ),
        "{error}"
    );
    rig.run(5 * SECOND);
    rig.settle(&all(3), SECOND);
    assert_eq!((rig.checker.fences(1), rig.checker.joined(1)), (vec![], 1));
}

#[test]
fn other_time_outs_are_refused() {
    let mut rig = Rig::new(9, 3, Timing::fast());
    rig.start(0);
    rig.start(1);
    rig.settle(&[0, 1], 20 * SECOND);
    let mut config = rig.config(2);
    config.timing.idle += SECOND;
    let error = join_as(&rig, config, 2).unwrap_err();
    assert_eq!(
        error,
        JoinError::NotConnected {
            missing: set([0, 1])
        }
    );
    let mut config = rig.config(2);
    config.regions[0].blocks = 2;
    assert!(matches!(
        join_as(&rig, config, 2),
        Err(JoinError::Region(_))
    ));
    let mut config = rig.config(2);
    config.cluster.nodes.pop();
    assert_eq!(
        join_as(&rig, config, 2),
        Err(JoinError::NotConfigured(nr(2)))
    );
    rig.run(5 * SECOND);
    rig.settle(&[0, 1], SECOND);
    rig.start(2);
    rig.settle(&all(3), 20 * SECOND);
}

/// A node whose beat hangs may still write for a while: whoever joins meanwhile must not think that it is alone.
#[test]
fn whoever_joins_waits_for_a_node_that_stands_still() {
    for_seeds("overlooked", 160, 8, |seed| {
        let mut rig = Rig::new(seed, 2, Timing::fast());
        rig.start(0);
        rig.settle(&[0], 20 * SECOND);
        let state = seed % 2;
        match state {
            0 => rig.set_disk(0, PortState::Stalled),
            _ => rig.pause(0),
        }
        rig.start(1);
        rig.run(rig.timing.beat * 8);
        assert_eq!(rig.checker.members(), [0], "seed {seed}");
        rig.set_disk(0, PortState::Up);
        rig.resume(0);
        rig.settle(&[0, 1], 20 * SECOND);
        assert_eq!(rig.checker.joined(0), 1);
    });
}

/// Like the kernel: no sessions. A reset is answered by quorum's decision after its delay, or by a new connection.
#[test]
fn leaving_in_order_is_noticed_at_once() {
    let mut rig = Rig::new(11, 3, Timing::kernel());
    rig.start(0);
    rig.start(1);
    rig.settle(&[0, 1], 200 * SECOND);
    let mut config = rig.config(2);
    config.like_the_kernel = true;
    let node = SimNode::new(&rig.world, "third");
    let joining = Member::join(config, node.host(), rig.net.node(ip(2)), Vec::new());
    let member = rig.sim.block_on(joining).unwrap().unwrap();
    assert_eq!(member.status().reachable, set([0, 1, 2]));
    assert!(rig.checker.sees(0, 2));
    rig.sim.block_on(member.leave()).unwrap();
    assert_eq!(member.lease().fence(), Some(Fence::Left));
    rig.run_until("noticed", 5 * SECOND, |checker| {
        !checker.sees(0, 2) && !checker.sees(1, 2)
    });
    drop(Rc::new(member));
}

/// Locks are granted, passed on and recovered, with nothing in the way.
#[test]
fn locks_are_passed_on() {
    for_seeds("locks", 200, 4, |seed| {
        let count = count_of(seed);
        let (mut rig, judge) = Rig::new(seed, count, Timing::fast()).with_locks();
        rig.start_all();
        rig.settle(&all(count), 20 * SECOND);
        rig.run(10 * SECOND);
        assert!(judge.granted.get() > 300, "{}", judge.granted.get());
        assert!(judge.fresh.get() > 100, "{}", judge.fresh.get());
        let victim = rig.rng.below(u64::from(count)) as u8;
        rig.kill(victim, true);
        rig.run(5 * SECOND);
        let before = judge.granted.get();
        rig.run(5 * SECOND);
        let after = judge.granted.get() - before;
        assert!(after > 100, "{after} after a death, seed {seed}");
    });
}

/// Everything at once, with locks.
#[test]
fn storms_with_locks() {
    for_seeds("lock storm", 2000, 12, |seed| {
        storm(seed, true);
    });
}

/// Everything at once.
#[test]
fn storms() {
    for_seeds("storm", 1000, 20, |seed| {
        storm(seed, false);
    });
}

/// One bad day for a cluster. Returns what it was like, for comparison.
fn storm(seed: u64, locks: bool) -> (u64, u64, runtime::sim::Fingerprint) {
    let count = count_of(seed);
    let mut rig = Rig::new(seed, count, Timing::fast());
    if locks {
        rig = rig.with_locks().0;
    }
    rig.start_all();
    let steps = 25 + rig.rng.below(15);
    for _ in 0..steps {
        let node = rig.rng.below(u64::from(count)) as u8;
        let other = rig.rng.below(u64::from(count)) as u8;
        match rig.rng.below(16) {
            0 | 1 if rig.is_alive(node) => {
                let silent = rig.rng.coin();
                rig.kill(node, silent);
            }
            0..=3 if !rig.is_alive(node) => rig.start(node),
            4 | 5 if rig.is_alive(node) => rig.pause(node),
            6 | 7 => (0..count)
                .filter(|n| rig.is_paused(*n))
                .for_each(|n| rig.resume(n)),
            8 => {
                let bits = rig.rng.below(1 << count);
                let in_one = |node: &u8| bits >> node & 1 == 1;
                let (one, two): (Vec<u8>, Vec<u8>) = (0..count).partition(in_one);
                let of = |side: &[u8]| side.iter().map(|node| ip(*node)).collect::<Vec<_>>();
                rig.note(&format!("partition {one:?} {two:?}"));
                rig.net.partition(&of(&one), &of(&two));
            }
            9 if node != other => {
                rig.note(&format!("cut {node} to {other}"));
                rig.net.cut_one_way(ip(node), ip(other));
            }
            10 | 11 => {
                rig.note("mend");
                rig.net.mend_all();
            }
            12 => {
                rig.note(&format!("reset {node} {other}"));
                rig.net.reset(ip(node), ip(other));
            }
            13 => {
                let slow = 100 * MILLISECOND..900 * MILLISECOND;
                rig.net
                    .set_latency(ip(node), ip(other), rig.rng.coin().then_some(slow));
            }
            14 => {
                let states = [PortState::Failing, PortState::Stalled];
                let state = states[rig.rng.below(2) as usize];
                rig.set_disk(node, state);
            }
            _ => (0..count).for_each(|node| rig.set_disk(node, PortState::Up)),
        }
        let quiet = MILLISECOND * rig.rng.below(2500) as u32;
        rig.run(quiet);
    }
    rig.note("the storm is over");
    rig.net.mend_all();
    for node in 0..count {
        rig.set_disk(node, PortState::Up);
        (0..count).for_each(|other| rig.net.set_latency(ip(node), ip(other), None));
        rig.resume(node);
        if !rig.is_alive(node) {
            rig.start(node);
        }
    }
    rig.settle(&all(count), comeback(rig.timing));
    if let Some(judge) = rig.judge.clone() {
        // Locks go on being granted.
        rig.run(15 * SECOND);
        let before = judge.granted.get();
        rig.run(10 * SECOND);
        let after = judge.granted.get() - before;
        assert!(after > 50, "{after} grants after the storm of seed {seed}");
    }
    (
        rig.checker.writes.get(),
        rig.checker.calls.get(),
        rig.sim.fingerprint(),
    )
}

#[test]
fn one_seed_is_one_history() {
    assert_eq!(storm(5, true), storm(5, true));
    assert_ne!(storm(5, false).2, storm(6, false).2);
}
