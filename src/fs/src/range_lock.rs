//! Order among the writes of one file that run at the same time.
//!
//! Two writes of whole blocks need no order: the device takes them as they come, as it does for any
//! two requests. A ragged edge is different: its block is read, merged and written, and whoever
//! writes that block meanwhile would be lost. So a write holds its range of blocks, and two ranges
//! conflict only where an edge of one lies in the other.
//!
//! First come, first served: a range waits for the conflicting ones that asked earlier, granted or
//! not. Each request asks once, for everything: there is nothing to deadlock, and every request's
//! turn comes.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// The ranges of one file.
#[derive(Default)]
pub struct RangeLocks {
    /// In numbered places, which are used again: to come and go costs no search.
    places: RefCell<Vec<Option<Entry>>>,
    free: RefCell<Vec<usize>>,
    next: Cell<u64>,
    /// Ranges with a ragged edge among them: without any, whole blocks need not look.
    edged: Cell<usize>,
}

struct Entry {
    /// In the order of asking.
    ticket: u64,
    range: Range,
    waker: Option<Waker>,
}

/// Blocks `first..end`, at least one. An edge is a block that is only partly written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    pub first: u64,
    pub end: u64,
    pub head_edge: bool,
    pub tail_edge: bool,
}

impl Range {
    /// The blocks of `len` bytes at `position`.
    pub fn of_bytes(position: u64, len: u64, block_size: u64) -> Range {
        let end = position + len;
        Range {
            first: position / block_size,
            end: end.div_ceil(block_size),
            head_edge: !position.is_multiple_of(block_size),
            tail_edge: !end.is_multiple_of(block_size),
        }
    }

    pub fn has_edge(&self) -> bool {
        self.head_edge || self.tail_edge
    }

    fn holds(&self, block: u64) -> bool {
        (self.first..self.end).contains(&block)
    }

    fn conflicts(&self, other: &Range) -> bool {
        let reaches = |edged: &Range, other: &Range| {
            (edged.head_edge && other.holds(edged.first))
                || (edged.tail_edge && other.holds(edged.end - 1))
        };
        reaches(self, other) || reaches(other, self)
    }
}

/// A range that is held; dropping it lets the next ones go.
#[must_use = "the range is held as long as its guard lives"]
pub struct RangeGuard<'a> {
    locks: &'a RangeLocks,
    place: usize,
    ticket: u64,
}

impl RangeLocks {
    /// Waits for the range. The answer's second half tells whether it had to.
    pub async fn lock(&self, range: Range) -> (RangeGuard<'_>, bool) {
        // The guard takes the entry away, also if this future is dropped half-way.
        let guard = self.enter(range);
        if self.edged.get() == 0 {
            return (guard, false);
        }
        let mut waited = false;
        poll_fn(|cx| {
            let mut places = self.places.borrow_mut();
            let in_the_way =
                |other: &Entry| other.ticket < guard.ticket && other.range.conflicts(&range);
            if !places.iter().flatten().any(in_the_way) {
                return Poll::Ready(());
            }
            waited = true;
            let own = places[guard.place].as_mut();
            own.expect("only its guard removes it").waker = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
        (guard, waited)
    }

    /// The range, if nobody conflicts.
    pub fn try_lock(&self, range: Range) -> Option<RangeGuard<'_>> {
        let conflicts = |other: &Entry| other.range.conflicts(&range);
        let edges_about = self.edged.get() > 0 || range.has_edge();
        if edges_about && self.places.borrow().iter().flatten().any(conflicts) {
            return None;
        }
        Some(self.enter(range))
    }

    fn enter(&self, range: Range) -> RangeGuard<'_> {
        let ticket = self.next.get();
        self.next.set(ticket + 1);
        self.edged
            .set(self.edged.get() + usize::from(range.has_edge()));
        let entry = Some(Entry {
            ticket,
            range,
            waker: None,
        });
        let (mut places, mut free) = (self.places.borrow_mut(), self.free.borrow_mut());
        let place = match free.pop() {
            Some(place) => {
                places[place] = entry;
                place
            }
            None => {
                places.push(entry);
                // Room for all of them, so that to let go never takes memory.
                free.reserve(places.len());
                places.len() - 1
            }
        };
        RangeGuard {
            locks: self,
            place,
            ticket,
        }
    }

    #[cfg(test)]
    fn is_idle(&self) -> bool {
        self.places.borrow().iter().all(Option::is_none)
    }
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        let locks = self.locks;
        let mut places = locks.places.borrow_mut();
        let Some(gone) = places[self.place].take() else {
            return;
        };
        locks.free.borrow_mut().push(self.place);
        // Who waits has an edge, or waits for one: with none about, nobody does.
        if locks.edged.get() == 0 {
            return;
        }
        locks
            .edged
            .set(locks.edged.get() - usize::from(gone.range.has_edge()));
        for later in places.iter_mut().flatten() {
            if later.ticket > self.ticket
                && later.range.conflicts(&gone.range)
                && let Some(waker) = later.waker.take()
            {
                waker.wake();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtime::sim::Simulation;
    use std::rc::Rc;

    fn range(position: u64, len: u64) -> Range {
        Range::of_bytes(position, len, 4096)
    }

    #[test]
    fn only_edges_conflict() {
        assert!(
            !range(0, 8192).conflicts(&range(4096, 8192)),
            "whole blocks"
        );
        assert!(
            range(100, 10).conflicts(&range(200, 10)),
            "two edges in one block"
        );
        assert!(
            range(0, 8192).conflicts(&range(8000, 10)),
            "an edge in a whole block"
        );
        assert!(!range(0, 4096).conflicts(&range(5000, 10)), "apart");
        assert!(range(4000, 200).conflicts(&range(4100, 10)), "tail edge");
        assert!(
            !range(100, 3 * 4096).conflicts(&range(4096, 4096)),
            "inside, between the edges"
        );
    }

    /// Regression 3: very many unaligned requests in one block all come to their turn, in order.
    #[test]
    fn a_thousand_unaligned_requests_make_progress() {
        let sim = Simulation::new(3);
        let world = sim.world();
        let locks = Rc::new(RangeLocks::default());
        let order = Rc::new(RefCell::new(Vec::new()));
        let first = sim.block_on(locks.lock(range(1, 1))).unwrap().0;
        for i in 0..1000u64 {
            let (locks, order) = (locks.clone(), order.clone());
            world.spawn_named("writer", async move {
                let (_guard, waited) = locks.lock(range(i % 4000, 7)).await;
                assert!(waited);
                order.borrow_mut().push(i);
            });
        }
        sim.run_until_idle().unwrap();
        assert!(order.borrow().is_empty());
        drop(first);
        sim.run_until_idle().unwrap();
        assert_eq!(order.borrow().len(), 1000);
        assert!(locks.is_idle());
    }

    #[test]
    fn a_dropped_wait_leaves_nothing() {
        let sim = Simulation::new(3);
        let locks = RangeLocks::default();
        let held = locks.try_lock(range(1, 1)).unwrap();
        assert!(locks.try_lock(range(2, 1)).is_none());
        {
            let mut waiting = Box::pin(locks.lock(range(2, 1)));
            let mut cx = std::task::Context::from_waker(Waker::noop());
            assert!(waiting.as_mut().poll(&mut cx).is_pending());
        }
        drop(held);
        assert!(locks.is_idle());
        let (_guard, waited) = sim.block_on(locks.lock(range(2, 1))).unwrap();
        assert!(!waited);
    }
}
