//! Where a file's clusters were found lately, so that a stream of requests to the same extents does
//! not walk the tree for each.
//!
//! What is remembered is good while no block that may be part of an extent tree has changed
//! ([`Cache::shape`](crate::cache::Cache::shape)): coarse, and never wrong. Regression 28 is what
//! a finer rule got wrong.

use std::cell::{Cell, RefCell};

use crate::core::Core;
use crate::error::Result;
use crate::extent::{self, Mapping, Root, Run};
use crate::inode::Inode;

/// Runs remembered of one file.
const RUNS: usize = 64;

/// The runs of one file.
#[derive(Default)]
pub struct RunCache {
    shape: Cell<u64>,
    /// By logical cluster; they do not overlap.
    runs: RefCell<Vec<Run>>,
    /// Moves on through the places, for who gives way.
    hand: Cell<usize>,
}

impl RunCache {
    fn find(&self, shape: u64, cpos: u32) -> Option<Run> {
        if self.shape.get() != shape {
            return None;
        }
        let runs = self.runs.borrow();
        let behind = runs.partition_point(|run| run.cpos <= cpos);
        let run = runs.get(behind.checked_sub(1)?)?;
        (u64::from(cpos) < run.end()).then_some(*run)
    }

    fn add(&self, shape: u64, run: Run) {
        let mut runs = self.runs.borrow_mut();
        if self.shape.replace(shape) != shape {
            runs.clear();
        }
        if runs.len() == RUNS {
            let hand = self.hand.get() % RUNS;
            runs.remove(hand);
            // Not the neighbour next time: a stream that comes around would find nothing.
            self.hand.set(hand + 7);
        }
        let at = runs.partition_point(|other| other.cpos <= run.cpos);
        let known = at.checked_sub(1).and_then(|before| runs.get(before));
        if known.is_none_or(|known| known.end() <= u64::from(run.cpos)) {
            runs.insert(at, run);
        }
    }
}

/// As [`lookup`], from what is remembered only.
pub fn peek(core: &Core, inode: &Inode, cpos: u32) -> Option<Mapping> {
    let run = inode.runs.find(core.cache.shape(), cpos)?;
    Some(mapping(core, run, cpos))
}

/// As [`extent::lookup`] of a file's own tree. The caller holds the inode.
pub async fn lookup(core: &Core, inode: &Inode, cpos: u32) -> Result<Mapping> {
    if let Some(found) = peek(core, inode, cpos) {
        return Ok(found);
    }
    let root = Root::dinode(inode.block());
    // The stamp before the walk: a change during it makes what was found old at once.
    let shape = core.cache.shape();
    if let Some(run) = extent::runs(core, &root, cpos, 1).await?.pop()
        && run.cpos <= cpos
    {
        inode.runs.add(shape, run);
        return Ok(mapping(core, run, cpos));
    }
    extent::lookup(core, &root, cpos).await
}

fn mapping(core: &Core, run: Run, cpos: u32) -> Mapping {
    let into = cpos - run.cpos;
    let blocks = u64::from(into) * u64::from(core.geometry.blocks_per_cluster());
    Mapping {
        cpos,
        clusters: run.clusters - into,
        physical: Some(ondisk::BlockNr(run.physical.0 + blocks)),
        flags: run.flags,
    }
}
