//! Cloning a file: a new name for a new inode that shares the other's data (reflink).
//!
//! ```text
//!  1  an inode without a name, in our orphan directory         one handle
//!  2  attributes, shared extents, size                          many
//!  3  out of the orphan directory, into its own, with a link    one handle
//! ```
//! If we crash before the third, the next mount finds an orphan and deletes it, and so takes back
//! every count that it had added. If something fails we do the same at once. Locks: the directory,
//! then both inodes by block number; the new one's number is known once it is an orphan, which
//! nobody else looks for.

use ondisk::feature::{Incompat, InodeFlags};
use ondisk::{Body, Dinode, Generation, Kind, NewDinode, Suballoc};

use super::names::{check_name, set_ctime, touch};
use super::remove::{REMOVE_BLOCKS, orphan_name};
use super::{Attr, FileKind, Ino, Volume, flags, kind_of, require_live_dir};
use crate::alloc;
use crate::dir;
use crate::error::{Error, Result};
use crate::inode::InodeRef;
use crate::refcount;
use crate::system::SystemFile;
use crate::xattr::{self, XattrMode};

/// Blocks that making an inode may change beside its orphan entry.
const MAKE_BLOCKS: u32 = 64;

/// Set-user-id and set-group-id.
const SET_ID: u16 = 0o6000;

/// Whose a clone is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloneAs {
    /// The source's owner, group, permissions and modification time, and all of its attributes.
    Same,
    /// A new file's: this owner and group, the source's permissions without set-id bits, times of
    /// now; attributes but those of `security.` and ACLs.
    New { uid: u32, gid: u32 },
}

impl Volume {
    /// Makes `name` in `parent` a clone of a regular file: the same content, on the same clusters
    /// until either is written. It appears complete or not at all.
    ///
    /// # Errors
    /// `NotSupported` on a volume without refcount trees; `NotPermitted` if the source is no regular
    /// file; `Exists`; `NoSpace`.
    pub async fn clone_file(
        &self,
        source: Ino,
        parent: Ino,
        name: &[u8],
        whose: CloneAs,
    ) -> Result<Attr> {
        let _gate = self.enter_writing().await?;
        let result = async {
            check_name(name)?;
            if !self.core().geometry.has(Incompat::REFCOUNT_TREE) {
                return Err(Error::NotSupported(
                    "the volume has no refcount trees".into(),
                ));
            }
            let dir = self.client_dir(parent).await?;
            let source = self.client_inode(source).await?;
            if kind_of(&source) != FileKind::Regular {
                let (kind, nr) = (kind_of(&source), source.nr());
                return Err(Error::NotPermitted(format!("to clone {kind:?} inode {nr}")));
            }
            let _dir_lock = dir.exclusive().await?;
            require_live_dir(&dir)?;
            if dir::lookup(self.core(), &dir, name).await?.is_some() {
                return Err(Error::Exists(String::from_utf8_lossy(name).into_owned()));
            }
            let _source_hold = self.hold_shape(&source, false).await?;
            self.settle_all_held(&source).await?;
            self.clone_locked(&source, &dir, name, whose).await
        }
        .await;
        self.watch(result)
    }

    async fn clone_locked(
        &self,
        source: &InodeRef,
        dir: &InodeRef,
        name: &[u8],
        whose: CloneAs,
    ) -> Result<Attr> {
        let core = self.core();
        let make = async || self.make_orphan(source, dir, whose).await;
        let target = alloc::with_space(core, make).await?;
        // Out of the order of block numbers: nobody can be waiting for one that has no name yet.
        let lock = target.exclusive().await?;
        let filled = async {
            // Attributes like to lie in the inode: before the extents, which leave no room there,
            // but behind inline data, which must.
            let inline = source.dinode().body() == Body::Inline;
            if !inline {
                self.copy_attributes(source, &target, whose).await?;
            }
            refcount::reflink(core, source, &target).await?;
            if inline {
                self.copy_attributes(source, &target, whose).await?;
            }
            let appear = async || self.appear(source, &target, dir, name, whose).await;
            alloc::with_space(core, appear).await
        };
        let Err(error) = filled.await else {
            return Ok(self.attr_of(&target));
        };
        if !matches!(error, Error::Corrupt(_)) && self.read_only().is_none() {
            let deleted = if target.opens.get() == 0 {
                self.delete(&target).await
            } else {
                Ok(()) // somebody guessed its number; the last close deletes it
            };
            if let Err(second) = deleted {
                tracing::warn!(inode = target.nr().0, error = %second, "a half-made clone is left to the next mount");
            }
            self.plan_flush();
        }
        drop(lock);
        Err(error)
    }

    /// An empty inode without a name, of the shape that the source's data and attributes need.
    async fn make_orphan(
        &self,
        source: &InodeRef,
        dir: &InodeRef,
        whose: CloneAs,
    ) -> Result<InodeRef> {
        let core = self.core();
        let now = core.now();
        // The name of an orphan has one length, so any inode tells what its entry needs.
        let blocks = MAKE_BLOCKS + self.orphan_blocks(source).await?;
        let mut h = core.journal.begin(blocks).await?;
        let place = alloc::claim_inode(core, &mut h, Some(dir.nr())).await?;
        let block = h.fresh(place.block, Kind::Dinode);
        {
            let from = source.dinode();
            let parent = dir.dinode();
            let mode = from.i_mode.get();
            let (mode, uid, gid) = match whose {
                CloneAs::Same => (mode, from.i_uid.get(), from.i_gid.get()),
                CloneAs::New { uid, .. } if parent.i_mode.get() & 0o2000 != 0 => {
                    (mode & !SET_ID, uid, parent.i_gid.get())
                }
                CloneAs::New { uid, gid } => (mode & !SET_ID, uid, gid),
            };
            let init = NewDinode {
                nr: place.block,
                suballoc: Suballoc {
                    slot: place.slot,
                    bit: place.bit,
                    group: place.group,
                },
                generation: Generation(core.host.random() as u32),
                mode,
                uid,
                gid,
                links: 0,
                rdev: 0,
                time: (now.seconds as u64, now.nanoseconds),
                // Set aside before the extents come: they would take the room.
                inline_xattr_bytes: from.inline_xattr_bytes(core.block_size()) as u16,
                inline_data: from.body() == Body::Inline,
            };
            let attr = from.i_attr.get();
            let mut bytes = h.modify(&block);
            Dinode::init(&mut bytes, &core.geometry, &init);
            Dinode::of_mut(&mut bytes).i_attr.set(attr);
        }
        let inode = core.inodes.adopt(place.block, block);
        if let Err(error) = self.add_orphan(&mut h, &inode).await {
            // The handle is rolled back: the block is no inode.
            core.inodes.deleted(&inode);
            return Err(error);
        }
        inode.changed_in(h.commit());
        Ok(inode)
    }

    async fn copy_attributes(
        &self,
        source: &InodeRef,
        target: &InodeRef,
        whose: CloneAs,
    ) -> Result<()> {
        let core = self.core();
        for (name, _) in xattr::list(core, source).await? {
            if whose != CloneAs::Same && is_security(&name) {
                continue;
            }
            if let Some(value) = xattr::get(core, source, &name).await? {
                xattr::set(core, target, &name, &value, XattrMode::Create).await?;
            }
        }
        Ok(())
    }

    /// The clone gets its name and stops being an orphan, in one handle.
    async fn appear(
        &self,
        source: &InodeRef,
        target: &InodeRef,
        dir: &InodeRef,
        name: &[u8],
        whose: CloneAs,
    ) -> Result<()> {
        let core = self.core();
        let now = core.now();
        let orphans = self
            .inode_any(core.system_file(SystemFile::OrphanDir))
            .await?;
        let blocks = REMOVE_BLOCKS + dir::insert_blocks(core, dir, name).await?;
        let mut h = core.journal.begin(blocks).await?;
        dir::remove(core, &mut h, &orphans, &orphan_name(target.nr())).await?;
        let kind = kind_of(target).dirent();
        dir::insert(core, &mut h, dir, name, target.nr(), kind).await?;
        {
            let times = {
                let from = source.dinode();
                (from.i_mtime.get(), from.i_mtime_nsec.get())
            };
            let cleared = flags(target) - InodeFlags::ORPHANED;
            let mut bytes = h.modify(target.block());
            let d = Dinode::of_mut(&mut bytes);
            d.set_flags(cleared);
            d.i_orphaned_slot.set(0);
            d.set_links(1);
            set_ctime(d, now);
            if whose == CloneAs::Same {
                d.i_mtime.set(times.0);
                d.i_mtime_nsec.set(times.1);
            }
        }
        touch(Dinode::of_mut(&mut h.modify(dir.block())), now);
        let tid = h.commit();
        dir.changed_in(tid);
        target.changed_in(tid);
        Ok(())
    }
}

/// What a new file gets afresh rather than from its source.
fn is_security(name: &[u8]) -> bool {
    name.starts_with(b"security.") || name.starts_with(b"system.posix_acl_")
}
