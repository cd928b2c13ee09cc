//! What went wrong, for people and for the exit status.

use std::fmt::Display;
use std::io;
use std::path::Path;

use proto::errors::{self, errno};
use proto::v1::ErrorDetail;
use tonic::{Code, Status};

/// The exit statuses. They are documented in the help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Failed = 1,
    Usage = 2,
    NotFound = 3,
    Exists = 4,
    Denied = 5,
    NoSpace = 6,
    Unreachable = 7,
    Damaged = 8,
}

#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub message: String,
    pub exit: Exit,
    /// 0 if it has none.
    pub errno: i32,
}

pub type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Failure {
            message: message.into(),
            exit,
            errno: 0,
        }
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Failure::new(Exit::Usage, message)
    }

    /// The daemon's answer to something about `what`.
    pub fn of_status(what: impl Display, status: &Status) -> Self {
        if let Some(detail) = errors::detail_of(status) {
            return Failure::of_detail(what, &detail);
        }
        let exit = match status.code() {
            Code::Unavailable | Code::DeadlineExceeded => Exit::Unreachable,
            Code::InvalidArgument => Exit::Usage,
            _ => Exit::Failed,
        };
        let message = match cause(status) {
            Some(cause) => format!("{what}: {} ({cause})", status.message()),
            None => format!("{what}: {}", status.message()),
        };
        Failure {
            message,
            exit,
            errno: 0,
        }
    }

    pub fn of_detail(what: impl Display, detail: &ErrorDetail) -> Self {
        let text = errors::errno_text(detail.errno);
        let field = if detail.field.is_empty() {
            String::new()
        } else {
            format!("{}: ", detail.field)
        };
        let mut message = format!("{what}: {text} [{}]", detail.errno_name);
        if !detail.message.is_empty() && detail.message != text {
            message.push_str(&format!(": {field}{}", detail.message));
        }
        if detail.bytes_written > 0 {
            message.push_str(&format!(" ({} bytes are in)", detail.bytes_written));
        }
        Failure {
            message,
            exit: exit_of_errno(detail.errno),
            errno: detail.errno,
        }
    }

    /// A local file's error.
    pub fn of_io(what: &Path, error: &io::Error) -> Self {
        let errno = error.raw_os_error().unwrap_or(0);
        Failure {
            message: format!("{}: {error}", what.display()),
            exit: exit_of_errno(errno),
            errno,
        }
    }

    pub fn is(&self, errno: i32) -> bool {
        self.errno == errno
    }
}

fn exit_of_errno(number: i32) -> Exit {
    match number {
        errno::ENOENT | errno::ENODATA | errno::ENODEV => Exit::NotFound,
        errno::EEXIST => Exit::Exists,
        errno::EPERM | errno::EACCES | errno::EROFS => Exit::Denied,
        errno::ENOSPC | errno::EDQUOT => Exit::NoSpace,
        errno::EINVAL | errno::ENAMETOOLONG => Exit::Usage,
        errno::ESHUTDOWN => Exit::Unreachable,
        _ => Exit::Failed,
    }
}

/// The innermost reason of a transport error ("connection refused").
fn cause(status: &Status) -> Option<String> {
    let mut innermost = std::error::Error::source(status)?;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    Some(innermost.to_string())
}

/// Puts what the request was about to a status.
pub trait About<T> {
    fn about(self, what: impl Display) -> Result<T>;
}

impl<T> About<T> for std::result::Result<T, Status> {
    fn about(self, what: impl Display) -> Result<T> {
        self.map_err(|status| Failure::of_status(what, &status))
    }
}

pub trait AboutFile<T> {
    fn about_file(self, path: &Path) -> Result<T>;
}

impl<T> AboutFile<T> for io::Result<T> {
    fn about_file(self, path: &Path) -> Result<T> {
        self.map_err(|error| Failure::of_io(path, &error))
    }
}

impl<T> AboutFile<T> for rustix::io::Result<T> {
    fn about_file(self, path: &Path) -> Result<T> {
        self.map_err(|error| Failure::of_io(path, &error.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_s_error_names_path_and_errno_and_gives_the_exit_status() {
        let status = errors::status(errors::detail(errno::ENOENT, "no entry \"x\""));
        let failure = Failure::of_status("data:/x", &status);
        assert_eq!(failure.exit, Exit::NotFound);
        assert_eq!(
            failure.message,
            "data:/x: no such file or directory [ENOENT]: no entry \"x\""
        );
    }

    #[test]
    fn bytes_that_are_in_are_told() {
        let detail = ErrorDetail {
            bytes_written: 4096,
            ..errors::detail(errno::ENOSPC, "full")
        };
        let failure = Failure::of_detail("/x", &detail);
        assert_eq!(failure.exit, Exit::NoSpace);
        assert!(
            failure.message.ends_with("full (4096 bytes are in)"),
            "{}",
            failure.message
        );
    }

    #[test]
    fn no_daemon_is_a_status_of_its_own() {
        let failure = Failure::of_status("unix:/x", &Status::unavailable("no"));
        assert_eq!(failure.exit, Exit::Unreachable);
    }
}
