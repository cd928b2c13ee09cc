//! A failed operation on its way to the client: errno, message and what the request was about. Every
//! room's errors become one of these; the map to gRPC is in `proto::errors`.

use std::fmt;

use bytes::Bytes;
use proto::errors::{self, errno};
use proto::v1::ErrorDetail;
use tonic::Status;

/// What the client will be told.
#[derive(Clone, PartialEq)]
pub struct Failure(Box<ErrorDetail>);

pub type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    pub fn new(errno: i32, message: impl Into<String>) -> Self {
        Failure(Box::new(errors::detail(errno, message)))
    }

    /// A malformed request: the field at fault, and what is wrong with it.
    pub fn field(field: &str, message: impl Into<String>) -> Self {
        let mut failure = Failure::new(errno::EINVAL, message);
        failure.0.field = field.to_owned();
        failure
    }

    pub fn bad_handle(handle: u64) -> Self {
        Failure::new(errno::EBADF, format!("handle {handle:#018x} is not open")).handle(handle)
    }

    /// The volume's thread has ended.
    pub fn gone(what: &str) -> Self {
        Failure::new(errno::ESHUTDOWN, format!("{what} is shut down"))
    }

    pub fn errno(&self) -> i32 {
        self.0.errno
    }

    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Fills in the path, unless one is there.
    pub fn path(mut self, path: &Bytes) -> Self {
        if self.0.path.is_empty() {
            self.0.path = path.clone();
        }
        self
    }

    pub fn handle(mut self, handle: u64) -> Self {
        self.0.handle = handle;
        self
    }

    pub fn volume(mut self, volume: &str) -> Self {
        if self.0.volume.is_empty() {
            self.0.volume = volume.to_owned();
        }
        self
    }

    pub fn bytes_written(mut self, bytes: u64) -> Self {
        self.0.bytes_written = bytes;
        self
    }

    pub fn into_detail(self) -> ErrorDetail {
        *self.0
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Failure({self})")
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let detail = &self.0;
        if !detail.field.is_empty() {
            write!(f, "{}: ", detail.field)?;
        }
        if !detail.path.is_empty() {
            write!(f, "{}: ", detail.path.escape_ascii())?;
        }
        write!(f, "{} ({})", detail.message, detail.errno_name)
    }
}

impl std::error::Error for Failure {}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Status {
        errors::status(failure.into_detail())
    }
}
