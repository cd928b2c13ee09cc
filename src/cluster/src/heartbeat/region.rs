//! One heartbeat region: what a node reads in the others' blocks and writes into its own. A machine: it is told what was
//! read and written, and says what to write and who lives.
//!
//! A beat is: read all blocks, judge them, write the own block, note when that write set out. The rules are the
//! kernel's, and two are stricter, so that **a node has stopped for half a beat at least before any other calls it dead**:
//!
//! * the right to write lasts [`Timing::fence_after`] from when the last good beat *set out* (the kernel: from its end,
//!   which may be much later than the moment it took effect);
//! * silence counts as death only after so many samples *and* so much time between the end of the read that saw the
//!   last change and the start of the read that decides (the kernel counts samples; slow reads shorten their time).
//!
//! A third closes a gap: **a node that stands still is not overlooked.** A block that its writer has not signed off
//! (generation not 0) may be that of a node whose beat hangs and whose right to write has not ended yet. Whoever starts
//! waits until that node beats, or has been silent for [`Timing::dead_after`]. (The kernel starts after three beats, and
//! both then think that they are alone.)

use std::collections::BTreeMap;
use std::time::Duration;

use dlm::{NodeNr, NodeSet};

use crate::timing::{Timing, millis};

/// How far the clocks of two nodes may be apart when an old block is taken for old without waiting.
const CLOCK_SKEW_SECONDS: u64 = 3600;

/// What a block said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    Block(Beat),
    /// Its checksum is wrong: torn, or never formatted.
    Garbled,
}

/// The content of a heartbeat block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Beat {
    /// Changes with every beat.
    pub sequence: u64,
    /// The writer.
    pub node: u8,
    /// Drawn at the start of a life, 0 at its end.
    pub generation: u64,
    /// The writer's [`Timing::dead_after`].
    pub dead_ms: u32,
}

#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// All blocks were read. Times are the host's; `wall_seconds` is what the clock on the wall says.
    Read {
        started: Duration,
        now: Duration,
        wall_seconds: u64,
        blocks: &'a BTreeMap<NodeNr, Reading>,
    },
    ReadFailed {
        now: Duration,
    },
    /// The own block was written; the write set out at `started`.
    Written {
        started: Duration,
        now: Duration,
    },
    WriteFailed {
        now: Duration,
    },
    /// Look at the clock.
    Timer {
        now: Duration,
    },
    /// All nodes wait for the same dead device: the right to write is renewed for all.
    Approved {
        now: Duration,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Write(Beat),
    /// The node beats here.
    Live(NodeNr),
    /// It does not any more, or began anew.
    Dead(NodeNr),
    /// Everybody who beats here has been seen, and has seen this node: the start is over.
    Steady,
    /// The start failed: blocks kept changing hands, or another node writes into this one's.
    Unsteady {
        slot_taken: bool,
    },
    /// The right to write lasts until then.
    Lease(Duration),
    /// The right to write ended.
    Expired {
        since: Duration,
    },
    /// The own block holds what another wrote.
    SlotTaken {
        expected: Beat,
        found: Beat,
    },
    /// A node that begins to live has other time-outs.
    OtherTiming {
        node: NodeNr,
        dead_ms: u32,
    },
}

#[derive(Debug, Clone)]
struct Slot {
    sequence: u64,
    generation: u64,
    changed: u32,
    equal: u32,
    live: bool,
    /// When the read that saw the last change had ended.
    changed_at: Duration,
}

/// How a node starts to beat.
#[derive(Debug, Clone, Copy)]
pub struct Start {
    /// Of this life: drawn at random, not 0.
    pub generation: u64,
    /// The first region of a global cluster takes longer.
    pub patient: bool,
    /// No process of an earlier life of this node can still write: its own block needs no waiting for.
    pub old_life_is_over: bool,
}

/// The state of a region on one node.
#[derive(Debug, Clone)]
pub struct Region {
    node: NodeNr,
    timing: Timing,
    generation: u64,
    slots: BTreeMap<NodeNr, Slot>,
    /// What the own block must hold: the last that was written, or before that what was there.
    own: Beat,
    own_is_ours: bool,
    /// The first read is only looked at.
    baseline: bool,
    steady_left: u32,
    unsteady_left: u32,
    slot_taken: bool,
    /// Of the beat that is under way.
    own_ok: bool,
    /// Nodes that may live though they do not beat, and when their blocks last changed.
    suspects: BTreeMap<NodeNr, Duration>,
    old_life_is_over: bool,
    membership_changed: bool,
    lease: Option<Duration>,
    /// Before the start is over: until when the others cannot have taken this node for dead.
    alive_until: Option<Duration>,
    expired: bool,
    /// The last beat ended well: one that does not come back hangs, and has not failed.
    last_good: bool,
    /// What the own block held before the last write.
    before: Option<Beat>,
    /// What the own block may hold as well, after a write that failed.
    or_else: Option<Beat>,
}

impl Region {
    /// A region on node `node` of the cluster of `nodes`.
    ///
    /// # Panics
    /// When the generation is 0, which stands for the end of a life: a program error.
    pub fn new(node: NodeNr, nodes: NodeSet, timing: Timing, start: Start) -> Self {
        let generation = start.generation;
        assert!(generation != 0, "generation 0 is the end of a life");
        let live = timing.live_threshold;
        let steady = if start.patient { live * 2 } else { live } + 1;
        let slot = Slot {
            sequence: 0,
            generation: 0,
            changed: 0,
            equal: 0,
            live: false,
            changed_at: Duration::ZERO,
        };
        Region {
            node,
            timing,
            generation,
            slots: nodes
                .with(node)
                .iter()
                .map(|nr| (nr, slot.clone()))
                .collect(),
            own: Beat::default(),
            own_is_ours: false,
            baseline: true,
            steady_left: steady,
            unsteady_left: steady * 3,
            slot_taken: false,
            own_ok: false,
            suspects: BTreeMap::new(),
            old_life_is_over: start.old_life_is_over,
            membership_changed: false,
            lease: None,
            alive_until: None,
            expired: false,
            last_good: false,
            before: None,
            or_else: None,
        }
    }

    /// Nodes that beat here.
    pub fn live(&self) -> NodeSet {
        let live = self.slots.iter().filter(|(_, slot)| slot.live);
        live.map(|(node, _)| *node).collect()
    }

    /// Nodes whose silence the start waits for.
    pub fn suspects(&self) -> NodeSet {
        self.suspects.keys().copied().collect()
    }

    pub fn is_steady(&self) -> bool {
        self.steady_left == 0
    }

    /// Until when this node may write; none before its start is over.
    pub fn lease(&self) -> Option<Duration> {
        self.lease
    }

    /// When [`Event::Timer`] will find the right to write ended. Also a life that has only begun ends when its beats fail
    /// for so long: the others have taken it for dead.
    pub fn lease_end(&self) -> Option<Duration> {
        self.lease.or(self.alive_until).filter(|_| !self.expired)
    }

    /// When a write that has not come back by then is talked about with the others.
    pub fn negotiate_at(&self) -> Option<Duration> {
        let lease = self.lease.filter(|_| self.last_good && !self.expired)?;
        let started = lease.saturating_sub(self.timing.fence_after());
        Some(started + self.timing.negotiate_after())
    }

    /// What this node writes as its last, once nothing of it can write any more: the others take it for dead at once.
    /// Nothing when the block was never this node's, or is another's.
    pub fn farewell(&self) -> Option<Beat> {
        let generation = 0;
        let ours = self.own_is_ours && (!self.slot_taken || self.is_steady());
        ours.then(|| Beat {
            generation,
            ..self.next_beat(0)
        })
    }

    pub fn step(&mut self, event: Event<'_>) -> Vec<Action> {
        let mut actions = Vec::new();
        let (Event::Read { now, .. }
        | Event::ReadFailed { now }
        | Event::Written { now, .. }
        | Event::WriteFailed { now }
        | Event::Timer { now }
        | Event::Approved { now }) = event;
        // Whoever slept beyond its right must not write, whatever it was about to do. (In global mode the region may come
        // back: its beats go on while enough other regions are good.)
        if let Some(until) = self.lease_end().filter(|until| now >= *until) {
            self.expired = true;
            let since = until.saturating_sub(self.timing.fence_after());
            actions.push(Action::Expired { since });
        }
        match event {
            Event::Read {
                started,
                now,
                wall_seconds,
                blocks,
            } => self.read(started, now, wall_seconds, blocks, &mut actions),
            Event::ReadFailed { .. } => {
                self.last_good = false;
                self.end_beat(false, &mut actions);
            }
            Event::WriteFailed { .. } => {
                self.last_good = false;
                self.or_else = self.before;
                self.end_beat(false, &mut actions);
            }
            Event::Written { started, .. } => {
                let good = self.own_ok;
                self.last_good = true;
                self.or_else = None;
                self.end_beat(true, &mut actions);
                self.alive_until = Some(started + self.timing.fence_after());
                if good && self.is_steady() {
                    self.renew(started, &mut actions);
                }
            }
            Event::Timer { .. } => {}
            Event::Approved { now } => {
                if self.lease.is_some() {
                    self.renew(now, &mut actions);
                }
            }
        }
        actions
    }

    fn renew(&mut self, started: Duration, actions: &mut Vec<Action>) {
        let until = started + self.timing.fence_after();
        self.lease = Some(self.lease.map_or(until, |old| old.max(until)));
        self.expired = false;
        actions.push(Action::Lease(until));
    }

    fn next_beat(&self, wall_seconds: u64) -> Beat {
        let last = self.own.sequence;
        let sequence = match wall_seconds > last {
            true => wall_seconds,
            // Several beats in one second, or a clock that was set back.
            false => last.checked_add(1).unwrap_or(1),
        };
        Beat {
            sequence,
            node: self.node.get(),
            generation: self.generation,
            dead_ms: millis(self.timing.dead_after()),
        }
    }

    fn read(
        &mut self,
        started: Duration,
        now: Duration,
        wall_seconds: u64,
        blocks: &BTreeMap<NodeNr, Reading>,
        actions: &mut Vec<Action>,
    ) {
        if std::mem::take(&mut self.baseline) {
            for (node, slot) in &mut self.slots {
                if let Some(Reading::Block(beat)) = blocks.get(node) {
                    slot.sequence = beat.sequence;
                    slot.generation = beat.generation;
                    if *node == self.node {
                        self.own = *beat;
                    }
                    let own = *node == self.node && self.old_life_is_over;
                    // Sequence numbers are clock times only where beats are seconds apart.
                    let dated = self.timing.beat >= Duration::from_secs(1);
                    let age = wall_seconds.saturating_sub(beat.sequence);
                    let old =
                        dated && age > self.timing.dead_after().as_secs() + CLOCK_SKEW_SECONDS;
                    if beat.sequence != 0 && beat.generation != 0 && !own && !old {
                        self.suspects.insert(*node, now);
                    }
                }
            }
            return;
        }
        self.own_ok = self.check_own(blocks.get(&self.node), actions);
        if self.slot_taken && !self.own_is_ours {
            // Somebody lives under this number: not a byte is written into its block.
            actions.push(Action::Unsteady { slot_taken: true });
            return;
        }
        self.membership_changed = false;
        self.before = Some(self.or_else.unwrap_or(self.own));
        self.own = self.next_beat(wall_seconds);
        self.own_is_ours = true;
        actions.push(Action::Write(self.own));
        let nodes: Vec<NodeNr> = self.slots.keys().copied().collect();
        for node in nodes {
            let reading = match node == self.node {
                true => Some(Reading::Block(self.own)),
                false => blocks.get(&node).copied(),
            };
            if let Some(reading) = reading {
                self.suspect(node, reading, now);
                self.judge(node, reading, started, now, actions);
            }
        }
        let (slots, dead_after) = (&self.slots, self.timing.dead_after());
        self.suspects.retain(|node, changed| {
            let slot = &slots[node];
            let beats = slot.live && *node != self.node;
            !beats && slot.generation != 0 && started.saturating_sub(*changed) < dead_after
        });
    }

    /// A block of somebody who is not known to live, and who may.
    fn suspect(&mut self, node: NodeNr, reading: Reading, now: Duration) {
        let (Some(slot), Reading::Block(beat)) = (self.slots.get(&node), reading) else {
            return;
        };
        let changed = (slot.sequence, slot.generation) != (beat.sequence, beat.generation);
        if node != self.node && changed && !slot.live && beat.generation != 0 {
            self.suspects.insert(node, now);
        }
    }

    /// Whether the own block holds what it must. A block nobody ever wrote into proves nothing yet.
    fn check_own(&mut self, reading: Option<&Reading>, actions: &mut Vec<Action>) -> bool {
        let found = match reading {
            Some(Reading::Block(beat)) => *beat,
            // The own write may be torn by a crash of the device; it is written anew.
            Some(Reading::Garbled) | None => return false,
        };
        if !self.own_is_ours && self.own.sequence == 0 && found.sequence == 0 {
            return false;
        }
        let is = |beat: &Beat| {
            (found.sequence, found.generation, found.node)
                == (beat.sequence, beat.generation, beat.node)
        };
        let same = is(&self.own) || self.or_else.as_ref().is_some_and(is);
        if !same {
            self.slot_taken = true;
            let expected = self.own;
            actions.push(Action::SlotTaken { expected, found });
        }
        same
    }

    fn judge(
        &mut self,
        node: NodeNr,
        reading: Reading,
        started: Duration,
        now: Duration,
        actions: &mut Vec<Action>,
    ) {
        let timing = self.timing;
        let Some(slot) = self.slots.get_mut(&node) else {
            return;
        };
        let mut reborn = false;
        let mut dead_ms = 0;
        match reading {
            Reading::Garbled if !slot.live => return,
            // A miss. What else it holds may be junk.
            Reading::Garbled => slot.equal = slot.equal.saturating_add(1),
            Reading::Block(beat) => {
                match slot.sequence == beat.sequence {
                    true => slot.equal = slot.equal.saturating_add(1),
                    false => slot.changed = slot.changed.saturating_add(1),
                }
                slot.sequence = beat.sequence;
                dead_ms = beat.dead_ms;
                // Gone and back before anybody missed it: dead first, then live again.
                reborn = slot.generation != beat.generation;
                if reborn {
                    slot.equal = 0;
                }
                slot.generation = beat.generation;
            }
        }
        if !slot.live {
            if slot.changed >= timing.live_threshold && slot.generation != 0 {
                slot.live = true;
                slot.equal = 0;
                slot.changed = 0;
                slot.changed_at = now;
                self.membership_changed = true;
                actions.push(Action::Live(node));
                if dead_ms != 0 && dead_ms != millis(timing.dead_after()) {
                    actions.push(Action::OtherTiming { node, dead_ms });
                }
            }
            return;
        }
        let silent = started.saturating_sub(slot.changed_at);
        let long = silent >= timing.dead_after().saturating_sub(timing.beat / 2);
        if reborn || slot.equal >= timing.dead_threshold && long {
            slot.live = false;
            self.membership_changed = true;
            if !reborn {
                slot.changed = 0;
            }
            actions.push(Action::Dead(node));
            return;
        }
        if slot.changed > 0 {
            slot.changed = 0;
            slot.equal = 0;
            slot.changed_at = now;
        }
    }

    fn end_beat(&mut self, written: bool, actions: &mut Vec<Action>) {
        if self.steady_left == 0 {
            return;
        }
        if written && self.own_ok && !self.membership_changed {
            if self.steady_left > 1 || self.suspects.is_empty() {
                self.steady_left -= 1;
            }
            if self.steady_left == 0 {
                actions.push(Action::Steady);
                return;
            }
        }
        if !self.suspects.is_empty() {
            return; // their silence has an end
        }
        self.unsteady_left = self.unsteady_left.saturating_sub(1);
        if self.unsteady_left == 0 {
            let slot_taken = self.slot_taken;
            actions.push(Action::Unsteady { slot_taken });
        }
    }
}

#[cfg(test)]
#[path = "region_tests.rs"]
mod tests;
