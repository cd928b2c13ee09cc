//! When to read ahead of somebody who reads a file in order, and how far.

use std::cell::Cell;
use std::ops::Range;

use super::PAGE_BYTES;
use crate::limits;

const MIN: u64 = limits::READ_AHEAD_MIN / PAGE_BYTES as u64;
const MAX: u64 = limits::READ_AHEAD_MAX / PAGE_BYTES as u64;

/// What an open file remembers of its reader. In pages.
#[derive(Debug, Default)]
pub struct ReadAhead {
    /// Where the reader is, if it goes on in order.
    next: Cell<u64>,
    /// How far is read ahead of it, while it does.
    window: Cell<u64>,
    /// What was read ahead, or asked for, ends here.
    reached: Cell<u64>,
}

impl ReadAhead {
    /// The reader asks for `wanted` of a file of `size` pages: what to read besides, if anything.
    pub fn next(&self, wanted: Range<u64>, size: u64) -> Option<Range<u64>> {
        // The last page of a request is often the first of the next one.
        let in_order = wanted.start == self.next.get() || wanted.start + 1 == self.next.get();
        self.next.set(wanted.end);
        if !in_order {
            self.window.set(0);
            self.reached.set(wanted.end);
            return None;
        }
        let asked = wanted.end - wanted.start;
        // With less than half the window ahead of it, it gets the next one, twice as long.
        let reached = self.reached.get().max(wanted.end);
        if self.window.get() > 0 && reached - wanted.end > self.window.get() / 2 {
            return None;
        }
        let window = (self.window.get() * 2).max(2 * asked).clamp(MIN, MAX);
        self.window.set(window);
        let end = (wanted.end + window).min(size);
        self.reached.set(end.max(reached));
        (reached < end).then_some(reached..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_in_order_is_never_caught_up_with() {
        let ahead = ReadAhead::default();
        let size = 10_000;
        let (mut at, mut reached, mut pieces) = (0, 0, 0);
        while at < size {
            if let Some(range) = ahead.next(at..at + 1, size) {
                assert_eq!(
                    range.start,
                    reached.max(at + 1),
                    "no page twice, none left out"
                );
                assert!(range.end - range.start <= MAX);
                reached = range.end;
                pieces += 1;
            }
            at += 1;
            assert!(reached >= at.min(size) || at == 1);
        }
        assert_eq!(reached, size);
        assert!(pieces < 60, "{pieces} pieces of up to {MAX} pages");
    }

    #[test]
    fn a_reader_at_random_gets_nothing_besides() {
        let ahead = ReadAhead::default();
        for at in [500, 20, 9000, 77, 3] {
            assert_eq!(ahead.next(at..at + 1, 10_000), None);
        }
        // Once it goes on in order it does.
        assert_eq!(ahead.next(4..5, 10_000), Some(5..5 + MIN));
    }

    #[test]
    fn nothing_is_read_past_the_end() {
        let ahead = ReadAhead::default();
        assert_eq!(ahead.next(0..1, 1), None);
        let ahead = ReadAhead::default();
        assert_eq!(ahead.next(0..1, 3), Some(1..3));
        assert_eq!(ahead.next(1..2, 3), None);
        assert_eq!(ahead.next(2..3, 3), None);
    }
}
