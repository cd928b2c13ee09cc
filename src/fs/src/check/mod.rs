//! The checker: does a volume agree with itself? It reads only, and changes nothing.
//!
//! [`Volume::check`](crate::volume::Volume::check) checks a mounted volume while it is in use;
//! [`check_device`] one at rest. Both run the same phases, and look at what `fsck.ocfs2` looks at and
//! at some more ([`Code`] has every kind of finding).
//!
//! # What an online check guarantees
//! It judges one moment, between two operations: of metadata that changes afterwards it sees the bytes
//! of that moment ([`crate::moment`]). So a change that happens during the check is never a finding,
//! and whatever is a finding was on the volume (with its journal replayed) at that moment. Blocks are
//! read from the medium, not from the cache, unless the medium is not up to date.
//!
//! The price is memory for what changes meanwhile. If that is more than the limit everything begins
//! again at a new moment; after some attempts the answer is [`Error::Busy`]. Findings are told only after the last phase, once the moment has held.
//!
//! # What it costs
//! A bit a cluster, about a byte an inode, 40 bytes a directory and 8 a shared extent; of the largest
//! directory 32 bytes a name. It gives others a turn every few blocks.
//!
//! # What is no finding
//! What recovery takes care of: the window of a slot's local alloc, clusters in a truncate log,
//! orphans, a journal in use. What the Linux driver itself leaves is a [`Severity::Note`].

mod allocators;
mod bits;
mod code;
mod dirs;
mod dx;
mod extents;
mod groups;
mod inodes;
mod links;
mod paths;
mod places;
mod quota;
mod refcounts;
mod report;
mod space;
mod system;
mod view;
mod xattrs;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;

use ondisk::{BlockNr, Geometry, Kind, PROBE_BYTES, SUPER_BLOCK, Suballoc};
use runtime::{BlockDevice, BlockDeviceExt};

pub use code::{Code, Severity};
pub use report::{Event, Finding, Observer, Phase, Progress, Summary};

use crate::core::Core;
use crate::error::{Error, Result};
use crate::limits::{CHECK_ATTEMPTS, CHECK_KEPT_BYTES};
use bits::Bits;
use links::Links;
use places::{Places, Use};
use refcounts::RefTree;
use report::{Report, Spot};
use system::Files;
use view::{Live, Step, Stop, Sum, View};

/// Checks a volume that nobody has mounted. Journals are not replayed: one that needs it is refused.
///
/// # Errors
/// [`Error::NotAVolume`], [`Error::Incompatible`] or [`Error::Corrupt`] if there is no superblock to
/// begin with; [`Error::Busy`] if a journal needs recovery, or if `observer` broke the check off.
pub async fn check_device(
    device: Rc<dyn BlockDevice>,
    observer: &mut Observer<'_>,
) -> Result<Summary> {
    let geometry = Rc::new(read_geometry(&*device).await?);
    let view = View::new(device, geometry.clone(), None);
    let mut checker = Checker::new(view, geometry, Report::new(observer, 1), true);
    match checker.run().await {
        Ok(()) => finish(checker),
        Err(stop) => Err(into_error(stop)),
    }
}

/// Checks a mounted volume, at a moment from now.
pub(crate) async fn check_mounted(
    core: &Core,
    is_mounted: impl Fn() -> bool,
    observer: &mut Observer<'_>,
) -> Result<Summary> {
    let mut cause = String::new();
    for attempt in 1..=CHECK_ATTEMPTS {
        let moment = if core.journal.is_set() {
            let moment = core.journal.moment(CHECK_KEPT_BYTES).await;
            let taken = || Error::Busy("another check of the volume is running".into());
            Some(moment.ok_or_else(taken)?)
        } else {
            None
        };
        let live = Live {
            cache: core.cache.clone(),
            moment,
        };
        let geometry = core.geometry.clone();
        let view = View::new(core.device.clone(), geometry.clone(), Some(live));
        let report = Report::new(observer, attempt);
        let mut checker = Checker::new(view, geometry, report, false);
        match checker.run().await {
            Ok(()) => return finish(checker),
            Err(Stop::Ended(why)) => {
                tracing::info!(attempt, why, "the check begins again");
                cause = why;
                if !is_mounted() {
                    break;
                }
            }
            Err(stop) => return Err(into_error(stop)),
        }
    }
    Err(Error::Busy(format!(
        "the check could not be finished: {cause}"
    )))
}

fn finish(checker: Checker<'_>) -> Result<Summary> {
    checker.report.finish().map_err(into_error)
}

fn into_error(stop: Stop) -> Error {
    match stop {
        Stop::Failed(error) => error,
        Stop::Cancelled => Error::Busy("the check was broken off".into()),
        Stop::Ended(why) => Error::Busy(format!("the check could not be finished: {why}")),
    }
}

async fn read_geometry(device: &dyn BlockDevice) -> Result<Geometry> {
    let info = device.info();
    let len = (PROBE_BYTES as u64)
        .next_multiple_of(u64::from(info.block_size))
        .min(info.size_bytes());
    let (start, result) = device.read(0, device.allocate(len as usize)).await;
    result?;
    let probed = ondisk::probe(&start).map_err(|error| match error {
        ondisk::SuperError::Incompatible(names) => Error::Incompatible(names.join(", ")),
        ondisk::SuperError::Corrupt(corrupt) => Error::Corrupt(corrupt),
        other => Error::NotAVolume(other.to_string()),
    })?;
    let geometry = probed.geometry;
    if geometry.total_bytes() > info.size_bytes()
        || (geometry.block_size() as u64) < u64::from(info.block_size)
    {
        return Err(Error::NotAVolume(format!(
            "{} bytes in blocks of {} do not fit the device",
            geometry.total_bytes(),
            geometry.block_size()
        )));
    }
    Ok(geometry)
}

/// Everything that the phases share.
pub(super) struct Checker<'a> {
    view: View,
    geometry: Rc<Geometry>,
    report: Report<'a>,
    /// Nobody has it mounted: a journal in use needs recovery.
    at_rest: bool,
    files: Files,
    /// Clusters that somebody uses.
    used: Bits,
    /// The groups of the suballocators.
    places: Places,
    /// Groups of the global bitmap that are sound, by number.
    bitmap_groups: Vec<BlockNr>,
    links: Links,
    trees: BTreeMap<BlockNr, RefTree>,
    /// Names of inodes that have findings: directory and name.
    names: HashMap<u64, (u64, Vec<u8>)>,
    /// Blocks whose checksum was told to be wrong: some are read in several phases.
    wrong_sums: HashSet<BlockNr>,
}

impl<'a> Checker<'a> {
    fn new(view: View, geometry: Rc<Geometry>, report: Report<'a>, at_rest: bool) -> Self {
        let clusters = u64::from(geometry.total_clusters);
        Checker {
            view,
            geometry,
            report,
            at_rest,
            files: Files::default(),
            used: Bits::new(clusters),
            places: Places::default(),
            bitmap_groups: Vec::new(),
            links: Links::default(),
            trees: BTreeMap::new(),
            names: HashMap::new(),
            wrong_sums: HashSet::new(),
        }
    }

    async fn run(&mut self) -> Step<()> {
        self.check_system().await?;
        self.check_allocators().await?;
        self.check_inodes().await?;
        self.check_refcounts().await?;
        self.check_clusters().await?;
        self.check_directories().await?;
        self.check_links().await?;
        self.check_quotas().await?;
        self.find_paths().await?;
        self.view.holds()?;
        self.report.summary.clusters_total = self.used.len();
        self.report.summary.clusters_used = self.used.count_set();
        Ok(())
    }

    fn find(&mut self, code: Code, spot: Spot, message: impl Into<String>) {
        self.report.add(code, spot, message.into());
    }

    fn note(&mut self, code: Code, spot: Spot, message: impl Into<String>) {
        self.report
            .add_as(Severity::Note, code, spot, message.into());
    }

    /// Whether metadata can be in a block.
    fn holds(&self, nr: BlockNr) -> bool {
        nr.0 > SUPER_BLOCK.0 && nr.0 < self.geometry.total_blocks()
    }

    /// A structure, whatever its checksum says: a wrong one is a finding. `None` if it cannot be read,
    /// which is one too. Blocks outside the volume are the caller's finding.
    async fn read(
        &mut self,
        nr: BlockNr,
        kind: Kind,
        ino: Option<BlockNr>,
    ) -> Step<Option<Vec<u8>>> {
        let spot = Spot {
            block: Some(nr),
            ino,
        };
        if nr.0 >= self.geometry.total_blocks() {
            return Ok(None);
        }
        match self.view.read(nr, kind).await? {
            Ok((bytes, sum)) => {
                self.judge(sum, spot);
                Ok(Some(bytes))
            }
            Err(error) => {
                self.find(Code::ReadError, spot, error.to_string());
                Ok(None)
            }
        }
    }

    fn judge(&mut self, sum: Sum, spot: Spot) {
        let is_wrong = matches!(sum, Sum::Corrected { .. } | Sum::Wrong(_));
        if is_wrong && !self.wrong_sums.insert(spot.block.unwrap_or_default()) {
            return;
        }
        match sum {
            Sum::None | Sum::Right => {}
            Sum::Corrected { bit } => {
                self.report.summary.correctable += 1;
                let message = format!("bit {bit} of the block is wrong; the checksum corrects it");
                self.find(Code::SingleBitError, spot, message);
            }
            Sum::Wrong(corrupt) => self.find(Code::BadCrc32, spot, corrupt.to_string()),
        }
    }

    /// A metadata block that is no inode is used by `ino`. False if it is not to be looked into: it is
    /// somebody else's, or nobody's.
    fn use_metadata(&mut self, nr: BlockNr, what: &str, suballoc: Suballoc, spot: Spot) -> bool {
        let spot = Spot {
            block: Some(nr),
            ..spot
        };
        let place = match self.places.use_metadata(nr) {
            Use::First(place) => place,
            Use::Unclaimed(place) => {
                let message = format!("{what} is in use, but its bit in its allocator is clear");
                self.find(Code::SuballocBit, spot, message);
                place
            }
            Use::Again(_) => {
                let message = format!("{what} is used by something else as well");
                self.find(Code::MetadataDuplicate, spot, message);
                return false;
            }
            Use::Outside => {
                let message = format!("{what} is in no group of an extent allocator");
                self.find(Code::SuballocBit, spot, message);
                return false;
            }
        };
        let group = &self.places.groups[place.group];
        if !group.agrees(place.bit, nr, suballoc) {
            let (own, slot) = (group.nr, group.allocator.slot);
            let message = format!(
                "{what} says that it is bit {} of a group of slot {}, it is bit {} of group {own} of slot {slot}",
                suballoc.bit, suballoc.slot, place.bit
            );
            self.find(Code::SuballocBit, spot, message);
        }
        true
    }

    /// Clusters are used by one owner.
    fn use_clusters(&mut self, start: u64, clusters: u64, what: &str, spot: Spot) {
        for (first, count) in self.used.set_run(start, clusters) {
            let message = format!(
                "{}, {what}, used by something else as well",
                Clusters(first, count)
            );
            self.find(Code::DupClustersClone, spot, message);
        }
    }
}

/// A run of clusters in words.
struct Clusters(u64, u64);

impl std::fmt::Display for Clusters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.1 {
            1 => write!(f, "cluster {}", self.0),
            count => write!(f, "{count} clusters from {}", self.0),
        }
    }
}
