//! Why SPDK failed a request, in our words.

use runtime::DeviceErrorKind;
use spdk_sys as sys;

/// A failure as SPDK reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// Refused when it was submitted, or by Linux AIO.
    Errno(i32),
    /// An NVMe status: code type and code. SPDK maps other devices' errors to these.
    Nvme { kind: i32, code: i32 },
}

/// Reads the status of a failed request.
///
/// # Safety
/// `io` is a completed request that was not given back yet.
pub(super) unsafe fn failure_of(io: *mut sys::spdk_bdev_io) -> Failure {
    let mut errno = 0;
    // SAFETY: the caller's promise; the function reads the status and writes the number.
    unsafe { sys::spdk_bdev_io_get_aio_status(io, &mut errno) };
    // For whatever is no AIO error SPDK answers 0 or EIO here.
    if errno < 0 && errno != -5 {
        return Failure::Errno(-errno);
    }
    let (mut dword, mut kind, mut code) = (0, 0, 0);
    // SAFETY: as above.
    unsafe { sys::spdk_bdev_io_get_nvme_status(io, &mut dword, &mut kind, &mut code) };
    Failure::Nvme { kind, code }
}

impl Failure {
    /// What it means, and what it said. `removed`: the device is gone, which explains everything.
    pub(super) fn explain(self, removed: bool) -> (DeviceErrorKind, String) {
        let (kind, detail) = match self {
            Failure::Errno(errno) => (kind_of_errno(errno), format!("errno {errno}")),
            Failure::Nvme { kind, code } => (
                kind_of_nvme(kind, code),
                format!("NVMe status {kind:x}h/{code:02x}h"),
            ),
        };
        if removed {
            (DeviceErrorKind::Removed, detail)
        } else {
            (kind, detail)
        }
    }
}

fn kind_of_errno(errno: i32) -> DeviceErrorKind {
    match errno {
        19 | 6 => DeviceErrorKind::Removed,           // ENODEV, ENXIO
        28 | 122 => DeviceErrorKind::NoSpace,         // ENOSPC, EDQUOT
        1 | 9 | 13 | 30 => DeviceErrorKind::ReadOnly, // EPERM, EBADF (not open for writing), EACCES, EROFS
        95 => DeviceErrorKind::Unsupported,           // EOPNOTSUPP
        125 => DeviceErrorKind::Aborted,              // ECANCELED
        _ => DeviceErrorKind::Failed,
    }
}

/// NVM Express Base Specification, "Status Code": by code type, then code.
fn kind_of_nvme(kind: i32, code: i32) -> DeviceErrorKind {
    match (kind, code) {
        (0, 0x01) => DeviceErrorKind::Unsupported, // invalid opcode
        (0, 0x07 | 0x08) => DeviceErrorKind::Aborted, // by request, or its queue was deleted
        (0, 0x20) => DeviceErrorKind::ReadOnly,    // namespace is write protected
        (0, 0x80) => DeviceErrorKind::OutOfRange,
        (0, 0x81) => DeviceErrorKind::NoSpace, // capacity exceeded
        (0, 0x83) => DeviceErrorKind::Reserved, // reservation conflict
        (1, 0x82) => DeviceErrorKind::ReadOnly, // attempted write to read only range
        _ => DeviceErrorKind::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reservation_conflict_is_told_apart() {
        let conflict = Failure::Nvme {
            kind: 0,
            code: 0x83,
        };
        assert_eq!(conflict.explain(false).0, DeviceErrorKind::Reserved);
        assert_eq!(conflict.explain(true).0, DeviceErrorKind::Removed);
        assert_eq!(
            Failure::Errno(28).explain(false).0,
            DeviceErrorKind::NoSpace
        );
    }
}
