//! Local files' attributes, to and from the daemon's.

use std::ffi::OsString;
use std::fs::Metadata;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use bytes::Bytes;
use proto::v1::time_update::Time as Update;
use proto::v1::{Attributes, FileKind, SetAttributesRequest, Time, TimeUpdate};
use rustix::fs::{AtFlags, CWD, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::error::{AboutFile, Result};

/// Owner, permissions and times of a local file, as a change to a remote one.
pub fn preserving(metadata: &Metadata) -> SetAttributesRequest {
    let time = |seconds: i64, nanoseconds: i64| {
        let nanoseconds = u32::try_from(nanoseconds).unwrap_or(0);
        Some(TimeUpdate {
            time: Some(Update::At(Time {
                seconds,
                nanoseconds,
            })),
        })
    };
    SetAttributesRequest {
        permissions: Some(metadata.mode() & 0o7777),
        uid: Some(metadata.uid()),
        gid: Some(metadata.gid()),
        accessed: time(metadata.atime(), metadata.atime_nsec()),
        modified: time(metadata.mtime(), metadata.mtime_nsec()),
        ..SetAttributesRequest::default()
    }
}

/// The extended attributes of a local file (not of what a link points at).
pub fn xattrs(path: &Path) -> Result<Vec<(Bytes, Bytes)>> {
    let mut names = vec![0u8; 65536];
    let length = match rustix::fs::llistxattr(path, &mut names[..]) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(error) => return Err(error).about_file(path),
    };
    let mut xattrs = Vec::new();
    for name in names[..length]
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
    {
        let mut value = vec![0u8; 65536];
        match rustix::fs::lgetxattr(path, name, &mut value[..]) {
            Ok(length) => {
                value.truncate(length);
                xattrs.push((Bytes::copy_from_slice(name), Bytes::from(value)));
            }
            // Removed meanwhile, or not for us to see.
            Err(Errno::NODATA | Errno::PERM | Errno::ACCESS) => {}
            Err(error) => return Err(error).about_file(path),
        }
    }
    Ok(xattrs)
}

/// Gives a local file (or link) what the remote one has. Owner and extended attributes as far as
/// this user and this file system allow.
pub fn apply(path: &Path, attributes: &Attributes, xattrs: &[(Bytes, Bytes)]) -> Result<()> {
    for (name, value) in xattrs {
        match rustix::fs::lsetxattr(path, &name[..], value, XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => {}
            Err(error) => return Err(error).about_file(path),
        }
    }
    let owner = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
    match rustix::fs::chownat(
        CWD,
        path,
        Some(owner.0),
        Some(owner.1),
        AtFlags::SYMLINK_NOFOLLOW,
    ) {
        Ok(()) | Err(Errno::PERM | Errno::INVAL) => {}
        Err(error) => return Err(error).about_file(path),
    }
    if attributes.kind() != FileKind::Symlink {
        // After the owner: chown drops set-id bits.
        let mode = Mode::from_raw_mode(attributes.permissions & 0o7777);
        rustix::fs::chmodat(CWD, path, mode, AtFlags::empty()).about_file(path)?;
    }
    let time = |time: Option<Time>| {
        let time = time.unwrap_or_default();
        Timespec {
            tv_sec: time.seconds,
            tv_nsec: i64::from(time.nanoseconds),
        }
    };
    let times = Timestamps {
        last_access: time(attributes.accessed),
        last_modification: time(attributes.modified),
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).about_file(path)
}

/// A name of a remote directory as a local one. What a damaged or hostile volume says must not lead
/// out of the directory.
pub fn entry_name(name: &Bytes) -> Option<OsString> {
    let bad = name.is_empty()
        || &name[..] == b"."
        || &name[..] == b".."
        || name.contains(&b'/')
        || name.contains(&0);
    (!bad).then(|| OsString::from_vec(name.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for bad in ["", ".", "..", "a/b", "/etc", "a\0"] {
            assert_eq!(
                entry_name(&Bytes::from_static(bad.as_bytes())),
                None,
                "{bad:?}"
            );
        }
        assert!(entry_name(&Bytes::from_static(b"\xff..")).is_some());
    }

    #[test]
    fn attributes_go_there_and_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        std::fs::write(&path, b"x").unwrap();
        let attributes = Attributes {
            kind: FileKind::Regular.into(),
            permissions: 0o640,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            accessed: Some(Time {
                seconds: 1,
                nanoseconds: 2,
            }),
            modified: Some(Time {
                seconds: 1_000_000_000,
                nanoseconds: 999_999_999,
            }),
            ..Attributes::default()
        };
        apply(&path, &attributes, &[]).unwrap();
        let request = preserving(&std::fs::symlink_metadata(&path).unwrap());
        assert_eq!(request.permissions, Some(0o640));
        let modified = request.modified.and_then(|update| update.time);
        assert_eq!(modified, attributes.modified.map(Update::At));
    }
}
