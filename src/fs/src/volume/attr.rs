//! Setting attributes.

use ondisk::Dinode;
use runtime::WallTime;

use super::names::set_ctime;
use super::{Attr, FileKind, Ino, SetAttr, SetTime, Volume, kind_of};
use crate::error::{Error, Result};
use crate::inode::InodeRef;

impl Volume {
    /// Changes attributes; a size goes through truncation first. Returns what the inode then has.
    pub async fn setattr(&self, ino: Ino, set: SetAttr) -> Result<Attr> {
        let _gate = self.enter_writing().await?;
        let result = async {
            let inode = self.client_inode(ino).await?;
            // A size changes where the file's data lies.
            let _turn = match set.size_bytes {
                Some(_) => Some(inode.pages.turn.take().await),
                None => None,
            };
            let _exclusive = inode.exclusive().await?;
            if let Some(size) = set.size_bytes {
                match kind_of(&inode) {
                    FileKind::Regular => self.truncate_locked(&inode, size).await?,
                    FileKind::Directory => return Err(Error::IsDirectory(inode.nr())),
                    kind => return Err(Error::Invalid(format!("a {kind:?} has no size to set"))),
                }
            }
            self.set_fields(&inode, &set).await?;
            Ok(self.attr_of(&inode))
        }
        .await;
        self.watch(result)
    }

    async fn set_fields(&self, inode: &InodeRef, set: &SetAttr) -> Result<()> {
        let rest = SetAttr {
            size_bytes: None,
            ..set.clone()
        };
        if rest == SetAttr::default() {
            return Ok(());
        }
        if let Some(bits) = set.permissions
            && bits & !0o7777 != 0
        {
            return Err(Error::Invalid(format!(
                "permissions {bits:o} have bits of a file type"
            )));
        }
        let core = self.core();
        let now = core.now();
        let at = |time: SetTime| match time {
            SetTime::Now => now,
            SetTime::At(time) => time,
        };
        for time in [set.atime, set.mtime].into_iter().flatten() {
            if at(time).nanoseconds >= 1_000_000_000 {
                return Err(Error::Invalid(format!(
                    "{} nanoseconds",
                    at(time).nanoseconds
                )));
            }
        }
        let mut h = core.journal.begin(1).await?;
        {
            let mut bytes = h.modify(inode.block());
            let d = Dinode::of_mut(&mut bytes);
            let mut mode = d.i_mode.get();
            if set.uid.is_some() || set.gid.is_some() {
                mode = without_set_id(mode);
            }
            if let Some(bits) = set.permissions {
                mode = mode & 0o170000 | bits;
            }
            d.i_mode.set(mode);
            if let Some(uid) = set.uid {
                d.i_uid.set(uid);
            }
            if let Some(gid) = set.gid {
                d.i_gid.set(gid);
            }
            if let Some(time) = set.atime {
                let WallTime {
                    seconds,
                    nanoseconds,
                } = at(time);
                d.i_atime.set(seconds as u64);
                d.i_atime_nsec.set(nanoseconds);
            }
            if let Some(time) = set.mtime {
                let WallTime {
                    seconds,
                    nanoseconds,
                } = at(time);
                d.i_mtime.set(seconds as u64);
                d.i_mtime_nsec.set(nanoseconds);
            }
            set_ctime(d, now);
        }
        inode.changed_in(h.commit());
        Ok(())
    }
}

/// A new owner, or new content, ends set-user-id, and set-group-id where it means execution.
pub(super) fn without_set_id(mode: u16) -> u16 {
    if mode & 0o170000 != FileKind::Regular.mode_bits() {
        return mode;
    }
    let mode = mode & !0o4000;
    if mode & 0o010 != 0 {
        mode & !0o2000
    } else {
        mode
    }
}
