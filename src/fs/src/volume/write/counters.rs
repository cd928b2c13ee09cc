//! What the write path did since mount: the facts that a request can ask for, added up.

use std::cell::Cell;

use super::iocb::{Fallback, Outcome, Path};
use crate::error::Result;
use crate::pages::PageCounts;
use crate::volume::Volume;

/// Figures of a volume since mount.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    pub writes: WriteCounts,
    pub pages: PageCounts,
}

/// What write requests took. Attempts are counted by how they went about it; requests of a handle
/// that is neither direct nor in need of it are one attempt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WriteCounts {
    pub requests: u64,
    /// Requests that ended with an error, whatever they had written by then.
    pub failed: u64,
    /// Attempts, and bytes they wrote: into the page cache.
    pub cached: u64,
    pub cached_bytes: u64,
    /// Straight to written clusters.
    pub in_place: u64,
    pub in_place_bytes: u64,
    /// Into the inode.
    pub inline: u64,
    pub inline_bytes: u64,
    /// Into unwritten clusters.
    pub unwritten: u64,
    pub unwritten_bytes: u64,
    /// Into holes or past the end.
    pub hole: u64,
    pub hole_bytes: u64,
    /// Attempts that replaced shared clusters by copies.
    pub copy_on_write: u64,
    /// Attempts of direct handles that were not direct I/O: the data is in the inode.
    pub fallback_inline_data: u64,
    /// The volume has no append-dio.
    pub fallback_no_append_direct: u64,
    /// Attempts that held a ragged edge's block against others.
    pub edges_serialised: u64,
    /// Commits that requests waited for.
    pub commits_waited: u64,
}

/// The figures, as they grow.
#[derive(Default)]
pub(in crate::volume) struct WriteCounters(Cell<WriteCounts>);

impl WriteCounters {
    fn update(&self, change: impl FnOnce(&mut WriteCounts)) {
        let mut counts = self.0.get();
        change(&mut counts);
        self.0.set(counts);
    }

    pub(super) fn request(&self, result: &Result<()>) {
        self.update(|counts| {
            counts.requests += 1;
            counts.failed += u64::from(result.is_err());
        });
    }

    pub(super) fn waited(&self, commits: u32) {
        self.update(|counts| counts.commits_waited += u64::from(commits));
    }

    pub(super) fn attempt(&self, outcome: &Outcome) {
        self.update(|counts| {
            let bytes = outcome.bytes as u64;
            let (times, sum) = match outcome.path {
                Path::Cached => (&mut counts.cached, &mut counts.cached_bytes),
                Path::InPlace => (&mut counts.in_place, &mut counts.in_place_bytes),
                Path::Inline => (&mut counts.inline, &mut counts.inline_bytes),
                Path::Unwritten => (&mut counts.unwritten, &mut counts.unwritten_bytes),
                Path::Hole => (&mut counts.hole, &mut counts.hole_bytes),
                Path::CopyOnWrite => (&mut counts.copy_on_write, &mut 0),
            };
            *times += 1;
            *sum += bytes;
            match outcome.fallback {
                Some(Fallback::InlineData) => counts.fallback_inline_data += 1,
                Some(Fallback::NoAppendDirect) => counts.fallback_no_append_direct += 1,
                None => {}
            }
            counts.edges_serialised += u64::from(outcome.edges_serialised);
        });
    }
}

impl Volume {
    /// What this volume did since it was mounted.
    pub fn counters(&self) -> Counters {
        Counters {
            writes: self.0.write_counters.0.get(),
            pages: self.ledger().counts(),
        }
    }
}
