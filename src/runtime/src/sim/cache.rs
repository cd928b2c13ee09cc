//! The volatile write cache of a simulated disk, and what a power loss may make of it.
//!
//! The rules this file owns (the model of `docs/media.md`):
//! * A write is durable once a flush has ended that was submitted after the write had completed.
//! * Until then a power loss keeps any part of it: all, nothing, or any of its sectors, whatever
//!   happened to other writes. A sector is never torn.
//! * Where kept writes overlap, the one that was executed later wins.
//!
//! Executed writes stay in order, so what a flush covers is always a prefix of them.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use super::image::Image;
use super::rng::SimRng;

/// What a write, unmap or write-zeroes does to the content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub offset: u64,
    pub len: u64,
    pub(super) data: Data,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Data {
    Bytes(Arc<[u8]>),
    Fill(u8),
}

impl Change {
    /// Applies the part `within` of it.
    pub(super) fn apply_part(&self, image: &mut Image, within: Range<u64>) {
        let offset = self.offset + within.start;
        match &self.data {
            Data::Bytes(bytes) => {
                image.write(offset, &bytes[within.start as usize..within.end as usize]);
            }
            Data::Fill(value) => image.fill(offset, within.end - within.start, *value),
        }
    }

    pub(super) fn apply(&self, image: &mut Image) {
        self.apply_part(image, 0..self.len);
    }

    pub fn end(&self) -> u64 {
        self.offset + self.len
    }
}

/// A change that a power loss may keep or lose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolatileChange {
    pub offset: u64,
    pub len: u64,
    /// Submitted but not completed.
    pub in_flight: bool,
}

/// What becomes of one volatile change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keep {
    Nothing,
    Everything,
    /// One flag for each sector.
    Sectors(Vec<bool>),
}

/// What becomes of each volatile change, in the order of [`Cache::volatile`]. Missing ones are
/// lost. Printable, so that a test can say which crash it was.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Choice(pub Vec<Keep>);

/// How a power loss treats the volatile changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrashModel {
    /// All are lost.
    LoseAll,
    /// All are kept: a disk without a cache, or a killed process.
    KeepAll,
    /// The first few are kept, in order.
    Prefix,
    /// Any are kept, in any order until the flush.
    Subset,
    /// Any sectors of any are kept.
    Torn,
    /// One of the others, at random.
    Any,
}

impl CrashModel {
    /// Draws one outcome for these changes.
    pub fn choose(self, volatile: &[VolatileChange], sector: u32, rng: &mut SimRng) -> Choice {
        let count = volatile.len();
        match self {
            CrashModel::LoseAll => Choice::default(),
            CrashModel::KeepAll => Choice::first(count),
            CrashModel::Prefix => Choice::first(rng.below(count as u64 + 1) as usize),
            CrashModel::Subset => {
                let keep = |_| match rng.coin() {
                    true => Keep::Everything,
                    false => Keep::Nothing,
                };
                Choice((0..count).map(keep).collect())
            }
            CrashModel::Torn => {
                let tear = |change: &VolatileChange| tear(change, sector, rng);
                Choice(volatile.iter().map(tear).collect())
            }
            CrashModel::Any => {
                let models = [
                    CrashModel::LoseAll,
                    CrashModel::KeepAll,
                    CrashModel::Prefix,
                    CrashModel::Subset,
                    CrashModel::Torn,
                    CrashModel::Torn,
                ];
                models[rng.below(models.len() as u64) as usize].choose(volatile, sector, rng)
            }
        }
    }
}

/// Half of the time whole or lost; else a head, a tail, or any sectors.
fn tear(change: &VolatileChange, sector: u32, rng: &mut SimRng) -> Keep {
    let sectors = change.len.div_ceil(u64::from(sector));
    let cut = rng.below(sectors + 1);
    match rng.below(6) {
        0 => Keep::Nothing,
        1 | 2 => Keep::Everything,
        3 => Keep::Sectors((0..sectors).map(|s| s < cut).collect()),
        4 => Keep::Sectors((0..sectors).map(|s| s >= cut).collect()),
        _ => Keep::Sectors((0..sectors).map(|_| rng.coin()).collect()),
    }
}

impl Choice {
    /// The first `count` changes are kept whole.
    pub fn first(count: usize) -> Choice {
        Choice(vec![Keep::Everything; count])
    }

    /// Outcomes worth trying for `count` changes, at most `limit` of them: every subset of whole
    /// changes if they fit, else all prefixes, each change alone, all but each one, as far as they
    /// fit, and random subsets for the rest.
    pub fn enumerate(count: usize, limit: usize, rng: &mut SimRng) -> Vec<Choice> {
        let subset = |kept: &dyn Fn(usize) -> bool| {
            Choice(
                (0..count)
                    .map(|index| match kept(index) {
                        true => Keep::Everything,
                        false => Keep::Nothing,
                    })
                    .collect(),
            )
        };
        if count < 32 && 1usize << count <= limit {
            return (0..1usize << count)
                .map(|bits| subset(&|index| bits >> index & 1 == 1))
                .collect();
        }
        // The two ends first: they are the likeliest to be wrong.
        let mut all = vec![subset(&|_| false), subset(&|_| true)];
        all.extend((1..count).map(|prefix| subset(&|index| index < prefix)));
        all.extend((0..count).map(|lost| subset(&|index| index != lost)));
        all.extend((0..count).map(|kept| subset(&|index| index == kept)));
        all.truncate(limit);
        while all.len() < limit {
            let bits: Vec<bool> = (0..count).map(|_| rng.coin()).collect();
            all.push(subset(&|index| bits[index]));
        }
        all
    }
}

/// What is on the medium, what is in the cache, and what is on its way.
#[derive(Clone)]
pub(super) struct Cache {
    durable: Image,
    /// Executed, newest last, not yet durable.
    executed: VecDeque<Change>,
    /// Changes that went from `executed` into `durable`.
    destaged: u64,
    in_flight: BTreeMap<u64, Change>,
    sector: u32,
    /// How the durable image differs from the one at the start, as a sum over its sectors: equal
    /// images have equal digests. Only kept for a [`super::Trace`], as it costs a look at every
    /// byte.
    digest: Option<u64>,
}

/// A sector's part of a digest.
fn digest_of(image: &Image, offset: u64, len: u64) -> u64 {
    let bytes = image.read_vec(offset, len as usize);
    let words = bytes.chunks(8).map(|word| {
        let mut whole = [0; 8];
        whole[..word.len()].copy_from_slice(word);
        u64::from_le_bytes(whole)
    });
    let mix =
        |sum: u64, word: u64| (sum.rotate_left(23) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let sum = words.fold(mix(!0, offset), mix);
    sum ^ (sum >> 29)
}

/// Applies the part `within` of a change, and brings a digest up to date.
fn apply_counted(
    change: &Change,
    image: &mut Image,
    within: Range<u64>,
    sector: u64,
    digest: &mut Option<u64>,
) {
    let Some(digest) = digest else {
        change.apply_part(image, within);
        return;
    };
    let mut at = within.start;
    while at < within.end {
        let (start, size) = (change.offset + at, image.size_bytes());
        let len = (sector - start % sector).min(within.end - at);
        let whole = start - start % sector;
        let span = sector.min(size - whole);
        *digest ^= digest_of(image, whole, span);
        change.apply_part(image, at..at + len);
        *digest ^= digest_of(image, whole, span);
        at += len;
    }
}

impl Cache {
    pub fn new(durable: Image, sector: u32) -> Self {
        Cache {
            digest: None,
            durable,
            executed: VecDeque::new(),
            destaged: 0,
            in_flight: BTreeMap::new(),
            sector,
        }
    }

    pub fn submit(&mut self, id: u64, change: Change) {
        self.in_flight.insert(id, change);
    }

    /// Does any change in flight touch this range?
    pub fn overlaps(&self, range: &Range<u64>) -> bool {
        self.in_flight
            .values()
            .any(|change| change.offset < range.end && range.start < change.end())
    }

    /// The change is done as far as its first `reached` bytes.
    pub fn execute(&mut self, id: u64, reached: u64) -> Option<Change> {
        let mut change = self.in_flight.remove(&id)?;
        if reached < change.len {
            change.len = reached;
        }
        if change.len > 0 {
            self.executed.push_back(change.clone());
        }
        Some(change)
    }

    /// Everything executed so far, as a position for [`Cache::destage`].
    pub fn position(&self) -> u64 {
        self.destaged + self.executed.len() as u64
    }

    pub fn executed_len(&self) -> u64 {
        self.executed.len() as u64
    }

    /// Makes everything before `position` durable.
    pub fn destage(&mut self, position: u64) {
        while self.destaged < position
            && let Some(change) = self.executed.pop_front()
        {
            let (sector, within) = (u64::from(self.sector), 0..change.len);
            apply_counted(&change, &mut self.durable, within, sector, &mut self.digest);
            self.destaged += 1;
        }
    }

    /// The medium changed its size. What does not fit any more is forgotten; those changes fail.
    pub fn resize(&mut self, size_bytes: u64) {
        self.destage(self.position());
        self.in_flight
            .retain(|_, change| change.end() <= size_bytes);
        self.durable.resize(size_bytes);
    }

    /// Changes a power loss may take: executed ones in order, then those in flight.
    pub fn volatile(&self) -> Vec<VolatileChange> {
        let describe = |change: &Change, in_flight| VolatileChange {
            offset: change.offset,
            len: change.len,
            in_flight,
        };
        let executed = self.executed.iter().map(|change| describe(change, false));
        let in_flight = self.in_flight.values().map(|change| describe(change, true));
        executed.chain(in_flight).collect()
    }

    /// Counts from here on how the image changes.
    pub fn start_digest(&mut self) {
        self.digest = Some(0);
    }

    /// The medium after a power loss with this outcome.
    pub fn image(&self, choice: &Choice) -> Image {
        self.outcome(choice).0
    }

    /// As [`Cache::image`], with its digest; that is 0 unless it was started.
    pub fn outcome(&self, choice: &Choice) -> (Image, u64) {
        let (mut image, mut digest) = (self.durable.clone(), self.digest);
        let changes = self.executed.iter().chain(self.in_flight.values());
        let sector = u64::from(self.sector);
        for (change, keep) in changes.zip(&choice.0) {
            match keep {
                Keep::Nothing => {}
                Keep::Everything => {
                    apply_counted(change, &mut image, 0..change.len, sector, &mut digest);
                }
                Keep::Sectors(kept) => {
                    for (index, _) in kept.iter().enumerate().filter(|(_, kept)| **kept) {
                        let start = index as u64 * sector;
                        let end = (start + sector).min(change.len);
                        if start < end {
                            apply_counted(change, &mut image, start..end, sector, &mut digest);
                        }
                    }
                }
            }
        }
        (image, digest.unwrap_or(0))
    }
}
