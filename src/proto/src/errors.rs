//! Errors on the wire: the one map from errno to gRPC code, errno names, and [`ErrorDetail`] inside
//! a status. The server writes with it, the client reads with it.

use bytes::Bytes;
use prost::Message;
use tonic::{Code, Status};

use crate::v1::ErrorDetail;

/// `google.rpc.Status`: what the `grpc-status-details-bin` trailer holds by convention, so that
/// clients of any language find the details with their own library.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

const DETAIL_TYPE: &str = "type.googleapis.com/ocelot.v1.ErrorDetail";

macro_rules! errnos {
    ($($name:ident = $number:literal => $code:ident, $text:literal;)*) => {
        /// Linux's error numbers, those that this interface uses.
        pub mod errno {
            $(pub const $name: i32 = $number;)*
        }

        /// The name of an error number, or "E" and the number.
        pub fn errno_name(number: i32) -> String {
            match number {
                $($number => stringify!($name).to_owned(),)*
                other => format!("E{other}"),
            }
        }

        /// What people call it.
        pub fn errno_text(number: i32) -> &'static str {
            match number {
                $($number => $text,)*
                _ => "unknown error",
            }
        }

        /// The class that gRPC has for an error number. See `error.proto`.
        pub fn code_of_errno(number: i32) -> Code {
            match number {
                $($number => Code::$code,)*
                _ => Code::Internal,
            }
        }

        #[cfg(test)]
        const ALL: &[i32] = &[$($number),*];
    };
}

errnos! {
    EPERM = 1 => PermissionDenied, "operation not permitted";
    ENOENT = 2 => NotFound, "no such file or directory";
    EIO = 5 => Internal, "input/output error";
    EBADF = 9 => FailedPrecondition, "no such open handle";
    EAGAIN = 11 => Aborted, "would have to wait";
    ENOMEM = 12 => ResourceExhausted, "out of memory";
    EACCES = 13 => PermissionDenied, "permission denied";
    EBUSY = 16 => FailedPrecondition, "busy";
    EEXIST = 17 => AlreadyExists, "file exists";
    EXDEV = 18 => FailedPrecondition, "on another volume";
    ENODEV = 19 => Unavailable, "no such device";
    ENOTDIR = 20 => FailedPrecondition, "not a directory";
    EISDIR = 21 => FailedPrecondition, "is a directory";
    EINVAL = 22 => InvalidArgument, "invalid argument";
    EMFILE = 24 => ResourceExhausted, "too many open handles";
    EFBIG = 27 => OutOfRange, "file too large";
    ENOSPC = 28 => ResourceExhausted, "no space left on volume";
    EROFS = 30 => FailedPrecondition, "read-only volume";
    EMLINK = 31 => FailedPrecondition, "too many links";
    ERANGE = 34 => OutOfRange, "out of range";
    ENAMETOOLONG = 36 => InvalidArgument, "name too long";
    ENOTEMPTY = 39 => FailedPrecondition, "directory not empty";
    ELOOP = 40 => FailedPrecondition, "too many symbolic links";
    ENODATA = 61 => NotFound, "no such attribute";
    EOPNOTSUPP = 95 => Unimplemented, "not supported";
    ESHUTDOWN = 108 => Unavailable, "shutting down";
    ESTALE = 116 => FailedPrecondition, "stale inode";
    EUCLEAN = 117 => DataLoss, "volume is corrupt";
    EDQUOT = 122 => ResourceExhausted, "quota exceeded";
    ECANCELED = 125 => FailedPrecondition, "canceled";
}

/// A detail with errno, its name and a message; the rest empty.
pub fn detail(errno: i32, message: impl Into<String>) -> ErrorDetail {
    ErrorDetail {
        errno,
        errno_name: errno_name(errno),
        message: message.into(),
        ..ErrorDetail::default()
    }
}

/// The status that carries this detail. Its message is the detail's, with the path or field.
pub fn status(detail: ErrorDetail) -> Status {
    let detail = within_limits(detail);
    let code = code_of_errno(detail.errno);
    let mut message = String::new();
    if !detail.field.is_empty() {
        message.push_str(&detail.field);
        message.push_str(": ");
    }
    if !detail.path.is_empty() {
        // Paths may be long; the whole one is in the detail.
        let shown = &detail.path[..detail.path.len().min(128)];
        message.push_str(&shown.escape_ascii().to_string());
        message.push_str(": ");
    }
    message.push_str(&detail.message);
    message.push_str(&format!(" ({})", detail.errno_name));
    let rpc = RpcStatus {
        code: code as i32,
        message: message.clone(),
        details: vec![prost_types::Any {
            type_url: DETAIL_TYPE.to_owned(),
            value: detail.encode_to_vec(),
        }],
    };
    Status::with_details(code, message, Bytes::from(rpc.encode_to_vec()))
}

/// Trailers have to fit header limits (clients built on grpc's C core refuse more than 8 KiB of
/// them), message escaped and details in base64: long paths and messages are cut.
fn within_limits(mut detail: ErrorDetail) -> ErrorDetail {
    const PATH_MOST: usize = 1024;
    const MESSAGE_MOST: usize = 512;
    detail.path.truncate(PATH_MOST);
    let mut end = detail.message.len().min(MESSAGE_MOST);
    while !detail.message.is_char_boundary(end) {
        end -= 1;
    }
    detail.message.truncate(end);
    detail
}

/// The detail in a status, if it has one.
pub fn detail_of(status: &Status) -> Option<ErrorDetail> {
    let rpc = RpcStatus::decode(status.details()).ok()?;
    rpc.details
        .iter()
        .find(|any| any.type_url == DETAIL_TYPE)
        .and_then(|any| ErrorDetail::decode(any.value.as_slice()).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detail_survives_the_trip_in_a_status() {
        let sent = ErrorDetail {
            path: Bytes::from_static(b"/a/\xff\xfe"),
            handle: u64::MAX,
            bytes_written: 4097,
            volume: "data".into(),
            ..detail(errno::ENOSPC, "allocating 3 clusters")
        };
        let status = status(sent.clone());
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(
            status.message(),
            "/a/\\xff\\xfe: allocating 3 clusters (ENOSPC)"
        );
        assert_eq!(detail_of(&status), Some(sent));
    }

    #[test]
    fn long_paths_and_messages_do_not_overflow_the_trailers() {
        let sent = ErrorDetail {
            path: Bytes::from(vec![b'x'; 100_000]),
            ..detail(errno::ENOENT, "é".repeat(50_000))
        };
        let status = status(sent);
        assert!(status.details().len() * 4 / 3 + status.message().len() * 3 < 8192);
        assert!(detail_of(&status).is_some());
    }

    #[test]
    fn every_errno_has_a_name_a_text_and_a_code() {
        for &number in ALL {
            assert!(errno_name(number).starts_with('E'));
            assert_ne!(errno_text(number), "unknown error");
            assert_ne!(code_of_errno(number), Code::Ok);
        }
        assert_eq!(errno_name(9999), "E9999");
        assert_eq!(code_of_errno(9999), Code::Internal);
    }

    #[test]
    fn a_status_of_someone_else_has_no_detail() {
        assert_eq!(detail_of(&Status::unavailable("connection refused")), None);
        let garbage =
            Status::with_details(Code::Internal, "x", Bytes::from_static(b"\xff\xff\xff"));
        assert_eq!(detail_of(&garbage), None);
    }
}
