//! A recording of everything that changed a simulated disk, from which the disk can be rebuilt as a
//! power loss at any moment may have left it. Run the workload once, then look at each of its
//! crashes: an image costs its few volatile writes, not a replay.

use std::cell::RefCell;

use super::cache::{Cache, Change, Choice, VolatileChange};
use super::image::Image;

#[derive(Clone)]
pub(super) enum Event {
    Submitted {
        id: u64,
        change: Change,
    },
    Executed {
        id: u64,
        reached: u64,
    },
    /// Everything before this position of the cache became durable.
    Destaged {
        position: u64,
    },
    Resized {
        size_bytes: u64,
    },
}

impl Event {
    pub fn play(&self, cache: &mut Cache) {
        match self {
            Event::Submitted { id, change } => cache.submit(*id, change.clone()),
            Event::Executed { id, reached } => {
                cache.execute(*id, *reached);
            }
            Event::Destaged { position } => cache.destage(*position),
            Event::Resized { size_bytes } => cache.resize(*size_bytes),
        }
    }
}

/// A recorded run of a disk. A *point* is a moment between two events; there are `points()` of
/// them, and point `p` is what `SimDisk::point` returned at that moment of the recording.
pub struct Trace {
    start: Cache,
    events: Vec<Event>,
    /// The state at the last point asked for. Asking in rising order plays each event once.
    cursor: RefCell<(usize, Cache)>,
}

impl Trace {
    pub(super) fn new(mut start: Cache, events: Vec<Event>) -> Self {
        start.start_digest();
        Trace {
            cursor: RefCell::new((0, start.clone())),
            start,
            events,
        }
    }

    pub fn points(&self) -> usize {
        self.events.len() + 1
    }

    /// The points right after a change was submitted or a flush took effect, and the two ends: what
    /// can be kept and lost is no different at the others. Enough for a sweep.
    pub fn interesting_points(&self) -> impl Iterator<Item = usize> {
        let last = self.events.len();
        (0..=last).filter(move |point| {
            let before = point.checked_sub(1).map(|index| &self.events[index]);
            *point == last || !matches!(before, Some(Event::Executed { .. }))
        })
    }

    fn at<T>(&self, point: usize, see: impl FnOnce(&Cache) -> T) -> T {
        let mut cursor = self.cursor.borrow_mut();
        if point < cursor.0 {
            *cursor = (0, self.start.clone());
        }
        let (from, cache) = &mut *cursor;
        for event in &self.events[*from..point] {
            event.play(cache);
        }
        *from = point;
        see(cache)
    }

    /// What a power loss at this point may keep or lose.
    ///
    /// # Panics
    /// When `point` is not below [`Trace::points`]: a program error.
    pub fn volatile_at(&self, point: usize) -> Vec<VolatileChange> {
        self.at(point, Cache::volatile)
    }

    /// The medium after a power loss at this point, with this outcome.
    ///
    /// # Panics
    /// When `point` is not below [`Trace::points`]: a program error.
    pub fn image_at(&self, point: usize, choice: &Choice) -> Image {
        self.at(point, |cache| cache.image(choice))
    }

    /// As [`Trace::image_at`], and a number that tells this image from others of the same trace:
    /// equal images have equal numbers.
    ///
    /// # Panics
    /// When `point` is not below [`Trace::points`]: a program error.
    pub fn crash_at(&self, point: usize, choice: &Choice) -> (Image, u64) {
        self.at(point, |cache| cache.outcome(choice))
    }
}
