//! Extent trees: which clusters hold which part of a file, a directory index, an xattr value, …
//!
//! ```text
//!   root list (in a dinode, index root, xattr or refcount block)      depth 2
//!   ├── extent block ── extent block ── …                             depth 1
//!   │   ├── leaf ─next─► leaf ─next─► …                               depth 0, records of clusters
//! ```
//!
//! The rules this room owns, all of them the Linux driver's:
//! * Leaves form **one packed sequence** of records: every leaf but the rightmost is full, so is
//!   every interior list but those of the right edge. A record put into the middle moves the ones
//!   behind it to the right, leaf by leaf; a record taken out moves them to the left. (The driver
//!   refuses to rotate through a leaf that is not full.) A first record of no clusters, which the
//!   driver leaves behind at times, is read as absent and goes away at the next change.
//! * Sibling ranges touch: an interior record ends where the next one starts, that is at the first
//!   record of the next child. The last record of each right-edge list ends with the last leaf record.
//! * Neighbouring records that continue each other, logically, physically and in flags, are one
//!   record of at most 65535 clusters.
//! * The clusters count and the last-leaf pointer beside the root follow every change.
//!
//! A change happens inside one [`Handle`](crate::journal::Handle): on any error the caller drops
//! it, and the tree is as before. Whoever reads a tree holds its owner's lock at least shared.

#[cfg(test)]
mod check;
mod edit;
mod grow;
mod path;
mod read;
mod root;
#[cfg(test)]
mod tests;

#[cfg(test)]
pub use check::self_check;
pub use edit::{insert, remove, set_flags, take};
pub use read::{floor, last_runs, lookup, runs};
pub use root::Root;

use ondisk::feature::ExtentFlags;
use ondisk::{BlockNr, ExtentRec};

/// Clusters that belong together: one leaf record, or a part of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// First logical cluster; a hash or a low half of a number in trees with such keys.
    pub cpos: u32,
    /// At most 65535.
    pub clusters: u32,
    /// The block where it starts on the device.
    pub physical: BlockNr,
    pub flags: ExtentFlags,
}

impl Run {
    fn of(rec: &ExtentRec) -> Run {
        Run {
            cpos: rec.e_cpos.get(),
            clusters: rec.leaf_clusters().into(),
            physical: rec.block(),
            flags: rec.flags(),
        }
    }

    /// One past the last logical cluster.
    pub fn end(&self) -> u64 {
        u64::from(self.cpos) + u64::from(self.clusters)
    }
}

/// Where a logical cluster is, and for how many from it on the answer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    pub cpos: u32,
    /// From `cpos` on, to the end of the record or of the hole.
    pub clusters: u32,
    /// The block where `cpos` is on the device; `None` in a hole.
    pub physical: Option<BlockNr>,
    pub flags: ExtentFlags,
}
