//! Findings as they are made, and what the caller is told.

use std::ops::ControlFlow;

use ondisk::BlockNr;

use super::code::{Code, Severity};
use super::view::{Step, Stop};
use crate::limits::{CHECK_FINDINGS_MAX, CHECK_PROGRESS_STEPS};

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub code: Code,
    pub severity: Severity,
    /// The block that says it, if one does.
    pub block: Option<u64>,
    /// The inode it belongs to.
    pub inode: Option<u64>,
    /// The inode's path, if it has one; system files are below `//`.
    pub path: Option<Vec<u8>>,
    /// What is wrong there, with the numbers.
    pub message: String,
}

/// What a check is doing. In this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Superblock, backups, system directory, journals, slot map.
    System,
    /// Chains and groups.
    Allocators,
    /// Inodes with their extents and attributes.
    Inodes,
    /// Refcount trees against what shares them.
    Refcounts,
    /// The global bitmap against what uses clusters.
    Clusters,
    /// Entries and indexes.
    Directories,
    /// Connection to the root, link counts, orphans.
    Links,
    Quotas,
}

impl Phase {
    pub const ALL: [Phase; 8] = [
        Phase::System,
        Phase::Allocators,
        Phase::Inodes,
        Phase::Refcounts,
        Phase::Clusters,
        Phase::Directories,
        Phase::Links,
        Phase::Quotas,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Phase::System => "system",
            Phase::Allocators => "allocators",
            Phase::Inodes => "inodes",
            Phase::Refcounts => "refcounts",
            Phase::Clusters => "clusters",
            Phase::Directories => "directories",
            Phase::Links => "links",
            Phase::Quotas => "quotas",
        }
    }
}

/// How far a phase has come, in units of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    pub phase: Phase,
    pub done: u64,
    pub total: u64,
    /// The volume changed too much, and the check begins again: which attempt this is.
    pub attempt: u32,
}

/// What a check looked at and found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    pub errors: u64,
    pub notes: u64,
    /// Findings beyond the most that are told one by one.
    pub untold: u64,
    pub inodes: u64,
    pub directories: u64,
    /// Inodes that wait for their deletion: open, or of an unfinished truncation.
    pub orphans: u64,
    pub clusters_used: u64,
    pub clusters_total: u64,
    /// Blocks whose single wrong bit the checksum corrects.
    pub correctable: u64,
    /// How often it had to begin, the last time included.
    pub attempts: u32,
}

impl Summary {
    /// No errors.
    pub fn is_clean(&self) -> bool {
        self.errors == 0
    }
}

/// What the caller of a check is told, while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Progress(Progress),
    /// Told once the whole check has held.
    Finding(Finding),
}

/// The caller's ear. `Break` ends the check.
pub type Observer<'a> = dyn FnMut(Event) -> ControlFlow<()> + 'a;

/// Whose and where.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Spot {
    pub block: Option<BlockNr>,
    pub ino: Option<BlockNr>,
}

impl Spot {
    pub fn block(nr: BlockNr) -> Spot {
        Spot {
            block: Some(nr),
            ino: None,
        }
    }

    pub fn ino(ino: BlockNr) -> Spot {
        Spot {
            block: Some(ino),
            ino: Some(ino),
        }
    }

    pub fn of(ino: BlockNr, nr: BlockNr) -> Spot {
        Spot {
            block: Some(nr),
            ino: Some(ino),
        }
    }
}

pub(super) struct Report<'a> {
    observer: &'a mut Observer<'a>,
    pub findings: Vec<Finding>,
    pub summary: Summary,
    progress: Progress,
    told: u64,
}

impl<'a> Report<'a> {
    pub fn new(observer: &'a mut Observer<'a>, attempt: u32) -> Self {
        Report {
            observer,
            findings: Vec::new(),
            summary: Summary {
                attempts: attempt,
                ..Summary::default()
            },
            progress: Progress {
                phase: Phase::System,
                done: 0,
                total: 0,
                attempt,
            },
            told: 0,
        }
    }

    pub fn add(&mut self, code: Code, spot: Spot, message: String) {
        self.add_as(code.severity(), code, spot, message);
    }

    pub fn add_as(&mut self, severity: Severity, code: Code, spot: Spot, message: String) {
        match severity {
            Severity::Error => self.summary.errors += 1,
            Severity::Note => self.summary.notes += 1,
        }
        if self.findings.len() >= CHECK_FINDINGS_MAX {
            self.summary.untold += 1;
            return;
        }
        self.findings.push(Finding {
            code,
            severity,
            block: spot.block.map(|nr| nr.0),
            inode: spot.ino.map(|nr| nr.0),
            path: None,
            message,
        });
    }

    pub fn begin(&mut self, phase: Phase, total: u64) -> Step<()> {
        self.progress = Progress {
            phase,
            done: 0,
            total,
            ..self.progress
        };
        self.tell_progress()
    }

    /// So much more of the phase is done.
    pub fn advance(&mut self, units: u64) -> Step<()> {
        let done = self.progress.done.saturating_add(units);
        self.progress.done = done.min(self.progress.total);
        let step = (self.progress.total / CHECK_PROGRESS_STEPS).max(1);
        if self.progress.done >= self.told.saturating_add(step) {
            return self.tell_progress();
        }
        Ok(())
    }

    fn tell_progress(&mut self) -> Step<()> {
        self.told = self.progress.done;
        self.tell(Event::Progress(self.progress))
    }

    fn tell(&mut self, event: Event) -> Step<()> {
        match (self.observer)(event) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Stop::Cancelled),
        }
    }

    /// Tells all findings, and gives the sums.
    pub fn finish(mut self) -> Step<Summary> {
        for finding in std::mem::take(&mut self.findings) {
            self.tell(Event::Finding(finding))?;
        }
        Ok(self.summary)
    }
}
