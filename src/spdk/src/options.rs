//! How SPDK is to start.

use std::path::PathBuf;
use std::time::Duration;

/// What [`crate::Spdk::start`] needs to know. `Options::default()` suits a small daemon on any machine.
#[derive(Debug, Clone)]
pub struct Options {
    /// For SPDK's messages and thread names.
    pub name: String,
    pub memory: Memory,
    pub reactors: Reactors,
    pub polling: Polling,
    /// Block devices and their settings, in SPDK's JSON form.
    pub config: Config,
    /// Where SPDK's own JSON-RPC server listens for `rpc.py`; none by default. Costs a poll every 4 ms.
    pub rpc_socket: Option<PathBuf>,
    /// Look for devices on the PCI bus. Needs huge pages.
    pub pci: bool,
    /// SPDK's notices go to `tracing` at level info; without it only at debug.
    pub notices: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            name: "ocelot".to_owned(),
            memory: Memory::Auto { mib: 512 },
            reactors: Reactors::Floating(1),
            polling: Polling::default(),
            config: Config::None,
            rpc_socket: None,
            pci: true,
            notices: false,
        }
    }
}

/// Where DMA memory comes from.
///
/// Huge pages are taken as anonymous shareable files: nothing is left behind by a killed process, no hugetlbfs has to be
/// mounted, and vfio-user controllers can be given access to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// Huge pages if so many MiB of them are free, else ordinary memory of that size.
    Auto { mib: u32 },
    /// Huge pages: `mib` at the start, more as it is needed.
    HugePages { mib: u32 },
    /// Ordinary memory, all taken at the start. No NVMe over PCIe or vfio-user.
    Ordinary { mib: u32 },
}

/// The threads that poll.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reactors {
    /// So many, on whatever processors the operating system gives them.
    Floating(usize),
    /// One on each of these processors, pinned.
    Pinned(Vec<u32>),
}

impl Reactors {
    pub fn count(&self) -> usize {
        match self {
            Reactors::Floating(count) => *count,
            Reactors::Pinned(processors) => processors.len(),
        }
    }
}

/// What a reactor does when there is nothing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Polling {
    /// Poll on: the lowest latency, a whole processor.
    Busy,
    /// Poll while requests are in flight or tasks are ready; then, after a short spin, sleep until woken.
    Adaptive {
        /// How long to go on polling after the last thing that happened.
        spin: Duration,
        /// The longest sleep: how late SPDK's own housekeeping (NVMe keep-alive, lost connections, hot removal) may be.
        max_sleep: Duration,
    },
}

impl Default for Polling {
    fn default() -> Self {
        Polling::Adaptive {
            spin: Duration::from_micros(30),
            max_sleep: Duration::from_millis(10),
        }
    }
}

/// An SPDK JSON configuration: `{"subsystems": [{"subsystem": …, "config": [{"method": …, "params": …}]}]}`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Config {
    #[default]
    None,
    File(PathBuf),
    Json(String),
}
