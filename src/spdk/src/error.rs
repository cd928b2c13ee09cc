//! What can go wrong here, by what the caller can do about it.

use std::path::PathBuf;

pub use crate::reactor::ReactorError;

/// SPDK did not start. Nothing of it runs then, but a process can try only once: SPDK's environment does not start
/// twice.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("SPDK runs already in this process, or ran: it starts once a process")]
    AlreadyStarted,
    #[error(
        "{wanted_mib} MiB of huge pages are needed, {free_mib} MiB are free: run spdk-config/hugepages {wanted_mib} as root, or start without huge pages"
    )]
    NoHugePages { wanted_mib: u32, free_mib: u32 },
    #[error("{0}: not a sensible option")]
    Options(String),
    #[error("SPDK's environment did not start (errno {errno}): {}", log_or_silence(.log))]
    Environment { errno: i32, log: Vec<String> },
    #[error("SPDK's subsystems did not start (errno {errno}): {}", log_or_silence(.log))]
    Subsystems { errno: i32, log: Vec<String> },
    #[error("SPDK thread {0:?} could not be made: out of memory")]
    Thread(String),
    #[error("starting a thread or its eventfd")]
    Os(#[from] std::io::Error),
    #[error("SPDK configuration {}", .0)]
    Config(#[from] ConfigError),
    #[error("SPDK's RPC server did not start on {}", .0.display())]
    RpcSocket(PathBuf),
    #[error("SPDK's thread ended while it started: {0}")]
    Died(String),
}

fn log_or_silence(log: &[String]) -> String {
    if log.is_empty() {
        "it said nothing".to_owned()
    } else {
        log.join("; ")
    }
}

/// A configuration that cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{}: {error}", path.display())]
    Read {
        path: PathBuf,
        error: std::io::Error,
    },
    #[error("is not JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("is not in SPDK's form: {0}")]
    Shape(String),
    #[error("subsystem {subsystem}: unknown method {method}")]
    UnknownMethod { subsystem: String, method: String },
    #[error("subsystem {subsystem}: {method} failed")]
    Call {
        subsystem: String,
        method: String,
        #[source]
        error: RpcError,
    },
}

/// A JSON-RPC call of our own SPDK failed.
#[derive(Debug, thiserror::Error)]
pub enum RpcError {
    /// SPDK's own answer. Codes below -32000 are JSON-RPC's; small negative ones are errnos.
    #[error("{method}: {message} (code {code})")]
    Refused {
        method: String,
        code: i64,
        message: String,
    },
    #[error("{method}: no answer: {why}")]
    Broken { method: String, why: String },
    #[error("{method}: {error}")]
    Reactor {
        method: String,
        #[source]
        error: ReactorError,
    },
    #[error("{method}: {limit} calls wait for answers already")]
    TooMany { method: String, limit: usize },
}

impl RpcError {
    /// The errno SPDK answered with, if it was one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            RpcError::Refused { code, .. } if (-4095..0).contains(code) => {
                i32::try_from(-code).ok()
            }
            _ => None,
        }
    }
}

/// A block device could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error("no block device {name:?}; there are: {}", present.join(", "))]
    NotFound { name: String, present: Vec<String> },
    #[error("block device {name:?} is in use: claimed for writing by another module")]
    Busy { name: String },
    #[error("block device {name:?} cannot serve a volume: {why}")]
    Unsuitable { name: String, why: String },
    #[error("opening block device {name:?} failed with errno {errno}")]
    Failed { name: String, errno: i32 },
    #[error("block devices are opened on a reactor, not on a thread of another kind")]
    NotOnReactor,
}

/// A device could not be reset.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("reset of block device {name:?}: {kind:?}: {detail}")]
pub struct ResetError {
    pub name: String,
    pub kind: runtime::DeviceErrorKind,
    pub detail: String,
}

/// SPDK did not stop in the time it has. What it holds stays as it is; the process should end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StopError {
    #[error("SPDK is still waiting for {waiting_for} after {seconds} s")]
    Stuck {
        waiting_for: &'static str,
        seconds: u64,
    },
    #[error("SPDK's thread ended before it was told to")]
    Died,
}
