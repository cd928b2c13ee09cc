//! Between the messages and the door's words, both ways; and the checks of what a client sends.

use bytes::Bytes;
use proto::v1;
use runtime::WallTime;

use crate::door::{
    Attempted, Attr, ExtentInfo, Fallback, FileKind, Ino, LockLevel, NewInode, SetTime, WritePath,
};
use crate::failure::{Failure, Result};
use crate::limits;

pub const PERMISSIONS: u32 = 0o7777;

/// A location that was looked at: the bytes are within limits, the inode is not yet checked.
pub struct Place {
    pub volume: String,
    /// `None` is the volume's root.
    pub inode: Option<Ino>,
    pub path: Bytes,
    pub generation: u32,
}

/// `field` is the location's name in the request.
pub fn place(field: &str, location: Option<v1::Location>) -> Result<Place> {
    let Some(location) = location else {
        return Err(Failure::field(field, "must be given"));
    };
    let v1::Location {
        volume,
        inode,
        path,
        generation,
    } = location;
    if path.len() > limits::PATH_MAX {
        return Err(Failure::new(
            proto::errors::errno::ENAMETOOLONG,
            format!(
                "path of {} bytes is longer than {}",
                path.len(),
                limits::PATH_MAX
            ),
        ));
    }
    if path.contains(&0) {
        return Err(Failure::field(&format!("{field}.path"), "holds a NUL byte").path(&path));
    }
    if generation != 0 && inode == 0 {
        return Err(Failure::field(
            &format!("{field}.generation"),
            "means nothing without an inode",
        ));
    }
    Ok(Place {
        volume,
        inode: (inode != 0).then_some(Ino(inode)),
        path,
        generation,
    })
}

/// As [`place`], for requests that work on a name.
pub fn named_place(field: &str, location: Option<v1::Location>) -> Result<Place> {
    let place = place(field, location)?;
    if place.path.is_empty() {
        return Err(Failure::field(
            &format!("{field}.path"),
            "must name something",
        ));
    }
    Ok(place)
}

pub fn permissions(field: &str, bits: u32) -> Result<u16> {
    if bits & !PERMISSIONS != 0 {
        return Err(Failure::field(
            field,
            format!("{bits:#o} has bits outside 07777"),
        ));
    }
    Ok(bits as u16)
}

pub fn new_inode(new: Option<v1::NewInode>, default_permissions: u16) -> Result<NewInode> {
    let new = new.unwrap_or_default();
    Ok(NewInode {
        permissions: match new.permissions {
            Some(bits) => permissions("new.permissions", bits)?,
            None => default_permissions,
        },
        uid: new.uid,
        gid: new.gid,
    })
}

pub fn extent(extent: ExtentInfo) -> v1::Extent {
    v1::Extent {
        logical: extent.logical,
        physical: extent.physical,
        length: extent.length,
        unwritten: extent.unwritten,
        shared: extent.shared,
        inline: extent.inline,
    }
}

pub fn xattr_name(name: &Bytes) -> Result<()> {
    if name.is_empty() || name.len() > 255 || name.contains(&0) {
        return Err(Failure::field("name", "must be 1 to 255 bytes without NUL"));
    }
    Ok(())
}

pub fn set_time(field: &str, update: Option<v1::TimeUpdate>) -> Result<Option<SetTime>> {
    let Some(update) = update else {
        return Ok(None);
    };
    match update.time {
        Some(v1::time_update::Time::Now(true)) => Ok(Some(SetTime::Now)),
        Some(v1::time_update::Time::At(time)) if time.nanoseconds < 1_000_000_000 => {
            Ok(Some(SetTime::At(WallTime {
                seconds: time.seconds,
                nanoseconds: time.nanoseconds,
            })))
        }
        Some(v1::time_update::Time::At(time)) => Err(Failure::field(
            &format!("{field}.at.nanoseconds"),
            format!("{} is not below 1000000000", time.nanoseconds),
        )),
        Some(v1::time_update::Time::Now(false)) | None => {
            Err(Failure::field(field, "says neither `at` nor `now`"))
        }
    }
}

pub fn time(time: WallTime) -> Option<v1::Time> {
    Some(v1::Time {
        seconds: time.seconds,
        nanoseconds: time.nanoseconds,
    })
}

pub fn kind(kind: FileKind) -> v1::FileKind {
    match kind {
        FileKind::Regular => v1::FileKind::Regular,
        FileKind::Directory => v1::FileKind::Directory,
        FileKind::Symlink => v1::FileKind::Symlink,
        FileKind::CharDevice => v1::FileKind::CharacterDevice,
        FileKind::BlockDevice => v1::FileKind::BlockDevice,
        FileKind::Fifo => v1::FileKind::Fifo,
        FileKind::Socket => v1::FileKind::Socket,
    }
}

pub fn kind_of_message(kind: i32) -> Result<FileKind> {
    Ok(match v1::FileKind::try_from(kind) {
        Ok(v1::FileKind::Regular) => FileKind::Regular,
        Ok(v1::FileKind::Directory) => FileKind::Directory,
        Ok(v1::FileKind::Symlink) => FileKind::Symlink,
        Ok(v1::FileKind::CharacterDevice) => FileKind::CharDevice,
        Ok(v1::FileKind::BlockDevice) => FileKind::BlockDevice,
        Ok(v1::FileKind::Fifo) => FileKind::Fifo,
        Ok(v1::FileKind::Socket) => FileKind::Socket,
        Ok(v1::FileKind::Unspecified) | Err(_) => {
            return Err(Failure::field("kind", format!("{kind} is no kind of file")));
        }
    })
}

pub fn attempt(attempted: &Attempted) -> v1::WriteAttempt {
    use v1::write_attempt::{Fallback as Why, LockLevel as Level, Path};
    let path = match attempted.path {
        WritePath::InPlace => Path::InPlace,
        WritePath::Inline => Path::Inline,
        WritePath::Unwritten => Path::Unwritten,
        WritePath::Hole => Path::Hole,
        WritePath::CopyOnWrite => Path::CopyOnWrite,
        WritePath::Cached => Path::Cached,
    };
    let fallback = match attempted.fallback {
        None => Why::Unspecified,
        Some(Fallback::InlineData) => Why::InlineData,
        Some(Fallback::NoAppendDirect) => Why::NoAppendDirect,
    };
    let lock = match attempted.lock {
        LockLevel::Shared => Level::Shared,
        LockLevel::Exclusive => Level::Exclusive,
    };
    v1::WriteAttempt {
        path: path.into(),
        offset: attempted.position,
        length: attempted.length,
        bytes: attempted.bytes,
        edges_serialised: attempted.edges_serialised,
        exclusive: attempted.exclusive,
        direct: attempted.direct,
        fallback: fallback.into(),
        lock: lock.into(),
        commits_waited: attempted.commits_waited,
    }
}

pub fn attributes(attr: &Attr) -> v1::Attributes {
    v1::Attributes {
        inode: attr.ino.0,
        generation: attr.generation,
        kind: kind(attr.kind).into(),
        permissions: u32::from(attr.permissions),
        links: attr.links,
        uid: attr.uid,
        gid: attr.gid,
        device_number: attr.rdev,
        size_bytes: attr.size_bytes,
        allocated_bytes: attr.blocks.saturating_mul(512),
        accessed: time(attr.atime),
        modified: time(attr.mtime),
        changed: time(attr.ctime),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(path: &[u8]) -> Option<v1::Location> {
        Some(v1::Location {
            path: Bytes::copy_from_slice(path),
            ..Default::default()
        })
    }

    #[test]
    fn garbage_names_the_field() {
        let field = |failure: Failure| failure.into_detail().field;
        assert_eq!(field(place("at", None).err().unwrap()), "at");
        assert_eq!(
            field(place("from", location(b"a\0b")).err().unwrap()),
            "from.path"
        );
        assert_eq!(
            field(named_place("to", location(b"")).err().unwrap()),
            "to.path"
        );
        let bad = v1::NewInode {
            permissions: Some(0o100644),
            ..Default::default()
        };
        assert_eq!(
            field(new_inode(Some(bad), 0o644).err().unwrap()),
            "new.permissions"
        );
        let never = v1::Time {
            seconds: 0,
            nanoseconds: 1_000_000_000,
        };
        let never = v1::TimeUpdate {
            time: Some(v1::time_update::Time::At(never)),
        };
        assert_eq!(
            field(set_time("modified", Some(never)).err().unwrap()),
            "modified.at.nanoseconds"
        );
        assert_eq!(field(kind_of_message(99).err().unwrap()), "kind");
    }

    #[test]
    fn kinds_go_there_and_back() {
        for number in 1..=7 {
            let there = kind_of_message(number).unwrap();
            assert_eq!(i32::from(kind(there)), number);
        }
    }

    #[test]
    fn a_path_need_not_be_utf8() {
        let place = place("at", location(b"/\xff\xfe")).unwrap();
        assert_eq!(&place.path[..], b"/\xff\xfe");
    }
}
