//! What each way to a file costs, side by side: SPDK's raw device, and a file on it as a bdev in process, over vfio-user,
//! over NVMe/TCP and over gRPC; and what ext4 and XFS do on the same kind of memory.
//!
//!     make bench [SECONDS_EACH=3]        (cargo bench -p server --bench paths -- SECONDS FOLDER)
//!
//! Everything is memory, so that the software is what is measured. Writes FOLDER/paths.json and FOLDER/paths.svg. One processor
//! serves (the first), another one asks (the second); what cannot be run here is named and left out. Figures are
//! comparable within one run only, and only on a machine that does nothing else.
#![allow(clippy::print_stdout, reason = "the result goes to standard output")]

#[path = "paths/inside.rs"]
mod inside;
#[path = "paths/kernel.rs"]
mod kernel;
#[path = "paths/outside.rs"]
mod outside;
#[path = "paths/report.rs"]
mod report;

use std::error::Error;
use std::path::PathBuf;

pub type Failure = Box<dyn Error + Send + Sync>;
pub type Outcome<T> = Result<T, Failure>;

/// Of each device, and of the file that is worked on.
pub const DEVICE_MIB: u64 = 256;
pub const FILE_BYTES: u64 = 128 << 20;

/// One workload; random places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    pub read: bool,
    pub block: u32,
    pub depth: u32,
}

impl Load {
    pub fn all() -> impl Iterator<Item = Load> {
        [4096, 131_072].into_iter().flat_map(|block| {
            [1, 32]
                .into_iter()
                .flat_map(move |depth| [false, true].map(move |read| Load { read, block, depth }))
        })
    }

    pub fn name(self) -> String {
        let operation = if self.read { "read" } else { "write" };
        format!("{operation} {} KiB depth {}", self.block / 1024, self.depth)
    }
}

/// A measurement.
#[derive(Debug, Clone)]
pub struct Row {
    /// What was asked, by which way: `file over vfio-user`.
    pub subject: &'static str,
    /// What it is held against.
    pub base: &'static str,
    pub load: Load,
    pub iops: f64,
}

pub struct Plan {
    pub seconds: u64,
    pub folder: PathBuf,
    pub rows: Vec<Row>,
    /// What could not be run, and why.
    pub missing: Vec<String>,
}

impl Plan {
    pub fn add(&mut self, subject: &'static str, base: &'static str, load: Load, iops: f64) {
        println!("{subject:28} {:24} {iops:12.0} IOPS", load.name());
        self.rows.push(Row {
            subject,
            base,
            load,
            iops,
        });
    }

    /// Runs a part; if it fails the others go on.
    fn part(&mut self, name: &str, part: impl FnOnce(&mut Plan) -> Outcome<()>) {
        if let Err(error) = part(self) {
            println!("{name}: left out: {error}");
            self.missing.push(format!("{name}: {error}"));
        }
    }
}

fn main() -> Outcome<()> {
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'))
        .collect();
    let seconds = words.iter().find_map(|word| word.parse().ok()).unwrap_or(3);
    let folder = words.iter().find(|word| word.parse::<u64>().is_err());
    let mut plan = Plan {
        seconds,
        folder: folder.map_or_else(|| PathBuf::from("target/bench"), PathBuf::from),
        rows: Vec::new(),
        missing: Vec::new(),
    };
    std::fs::create_dir_all(&plan.folder)?;
    plan.part("bdevperf on the raw device", outside::raw);
    plan.part("nvmf_tgt with the raw device", outside::target);
    plan.part("ext4", |plan| kernel::file_system(plan, "ext4"));
    plan.part("xfs", |plan| kernel::file_system(plan, "xfs"));
    // Last: SPDK starts in this process, and its reactor takes a processor for itself.
    plan.part("ocelot", inside::ocelot);
    report::write(&plan)
}
