//! Taking names away, and what is left when the last one is gone.
//!
//! An inode that loses its last name goes into our slot's orphan directory in the same handle: if we
//! crash, the next mount finds it there and finishes. Its clusters go in several handles, from the
//! end of the file; the inode itself and its orphan entry go together in the last one.

use ondisk::feature::{DynFeatures, InodeFlags};
use ondisk::{BlockNr, Dinode};

use super::names::{set_ctime, touch};
use super::{FileKind, Ino, Volume, flags, kind_of};
use crate::alloc;
use crate::dir;
use crate::error::{Error, Result};
use crate::inode::InodeRef;
use crate::journal::Handle;
use crate::refcount;
use crate::system::SystemFile;
use crate::xattr;

/// Blocks that taking one name may change: the directory and its index, the inode, its allocator.
/// What its orphan entry needs comes on top.
pub(super) const REMOVE_BLOCKS: u32 = 60 + dir::REMOVE_BLOCKS;

/// Prefix of the orphan entry of a file that a direct write was extending.
const DIO_PREFIX: &[u8] = b"dio-";

/// An orphan directory's name for an inode.
pub(super) fn orphan_name(nr: BlockNr) -> Vec<u8> {
    format!("{:016x}", nr.0).into_bytes()
}

impl Volume {
    /// Takes away a name that is not a directory's.
    pub async fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.take_name(parent, name, false).await
    }

    /// Removes an empty directory.
    pub async fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.take_name(parent, name, true).await
    }

    async fn take_name(&self, parent: Ino, name: &[u8], directory: bool) -> Result<()> {
        let _gate = self.enter_writing().await?;
        let result = async {
            if name == b"." {
                return Err(Error::Invalid("cannot remove \".\"".into()));
            }
            if name == b".." {
                return Err(Error::NotEmpty(parent.into()));
            }
            let dir = self.client_dir(parent).await?;
            let dir_lock = dir.exclusive().await?;
            let Some(hit) = dir::lookup(self.core(), &dir, name).await? else {
                return Err(Error::NotFound(String::from_utf8_lossy(name).into_owned()));
            };
            let inode = self.inode(hit.ino).await?;
            let inode_lock = inode.exclusive().await?;
            self.check_removable(&inode, directory).await?;
            alloc::with_space(self.core(), async || self.take_in(&dir, name, &inode).await).await?;
            drop(inode_lock);
            drop(dir_lock);
            self.delete_if_unused(&inode).await
        }
        .await;
        self.watch(result)
    }

    /// That `inode` may lose a name, as a directory or as anything else.
    pub(super) async fn check_removable(&self, inode: &InodeRef, directory: bool) -> Result<()> {
        match (kind_of(inode) == FileKind::Directory, directory) {
            (true, false) => Err(Error::IsDirectory(inode.nr())),
            (false, true) => Err(Error::NotDirectory(inode.nr())),
            (true, true) if !dir::is_empty(self.core(), inode).await? => {
                Err(Error::NotEmpty(inode.nr()))
            }
            _ => Ok(()),
        }
    }

    async fn take_in(&self, dir: &InodeRef, name: &[u8], inode: &InodeRef) -> Result<()> {
        let core = self.core();
        let now = core.now();
        let blocks = REMOVE_BLOCKS + self.orphan_blocks(inode).await?;
        let mut h = core.journal.begin(blocks).await?;
        dir::remove(core, &mut h, dir, name).await?;
        let links = self.links(dir);
        {
            let mut bytes = h.modify(dir.block());
            let d = Dinode::of_mut(&mut bytes);
            touch(d, now);
            if kind_of(inode) == FileKind::Directory {
                d.set_links(links.saturating_sub(1));
            }
        }
        self.drop_link(&mut h, inode).await?;
        let tid = h.commit();
        dir.changed_in(tid);
        inode.changed_in(tid);
        Ok(())
    }

    /// Counts one name less; an inode without any becomes an orphan. A directory has none left
    /// once its one name is gone.
    pub(super) async fn drop_link(&self, h: &mut Handle<'_>, inode: &InodeRef) -> Result<()> {
        let links = match kind_of(inode) {
            FileKind::Directory => 0,
            _ => self.links(inode).saturating_sub(1),
        };
        {
            let mut bytes = h.modify(inode.block());
            let d = Dinode::of_mut(&mut bytes);
            d.set_links(links);
            set_ctime(d, self.core().now());
        }
        if links == 0 {
            self.add_orphan(h, inode).await
        } else {
            Ok(())
        }
    }

    /// Blocks that making an inode an orphan may change.
    pub(super) async fn orphan_blocks(&self, inode: &InodeRef) -> Result<u32> {
        let core = self.core();
        let orphans = self
            .inode_any(core.system_file(SystemFile::OrphanDir))
            .await?;
        dir::insert_blocks(core, &orphans, &orphan_name(inode.nr())).await
    }

    pub(super) async fn add_orphan(&self, h: &mut Handle<'_>, inode: &InodeRef) -> Result<()> {
        let core = self.core();
        let orphans = self
            .inode_any(core.system_file(SystemFile::OrphanDir))
            .await?;
        dir::insert(
            core,
            h,
            &orphans,
            &orphan_name(inode.nr()),
            inode.nr(),
            kind_of(inode).dirent(),
        )
        .await?;
        let is_dir = kind_of(inode) == FileKind::Directory;
        let links = self.links(&orphans);
        {
            let mut bytes = h.modify(orphans.block());
            if is_dir {
                Dinode::of_mut(&mut bytes).set_links(links + 1);
            }
        }
        let mut bytes = h.modify(inode.block());
        let d = Dinode::of_mut(&mut bytes);
        d.i_flags.set(d.i_flags.get() | InodeFlags::ORPHANED.bits());
        d.i_orphaned_slot.set(core.slot.0);
        Ok(())
    }

    /// Deletes an orphan that nobody has open.
    pub(super) async fn delete_if_unused(&self, inode: &InodeRef) -> Result<()> {
        if inode.opens.get() > 0 || !flags(inode).contains(InodeFlags::ORPHANED) {
            return Ok(());
        }
        let Ok(_hold) = self.hold_shape(inode, false).await else {
            return Ok(()); // somebody else has deleted it meanwhile
        };
        if inode.opens.get() > 0 || self.links(inode) > 0 {
            return Ok(());
        }
        self.delete(inode).await
    }

    /// Frees everything an orphan has, then the orphan. The caller has it exclusively.
    pub(super) async fn delete(&self, inode: &InodeRef) -> Result<()> {
        let core = self.core();
        self.cut_held(inode, 0).await?;
        if kind_of(inode) == FileKind::Directory {
            dir::destroy(core, inode).await?;
        }
        let dynamic = inode.dinode().dyn_features();
        if !dynamic.contains(DynFeatures::INLINE_DATA) && inode.dinode().i_clusters.get() > 0 {
            self.free_extents_from(inode, 0).await?;
        }
        if dynamic.contains(DynFeatures::HAS_XATTR) {
            xattr::destroy(core, inode).await?;
        }
        if dynamic.contains(DynFeatures::HAS_REFCOUNT) {
            let mut h = core.journal.begin(REMOVE_BLOCKS).await?;
            refcount::detach(core, &mut h, inode).await?;
            h.commit();
        }
        alloc::with_space(core, async || self.delete_inode(inode).await).await
    }

    async fn delete_inode(&self, inode: &InodeRef) -> Result<()> {
        let core = self.core();
        let slot = ondisk::SlotNr(inode.dinode().i_orphaned_slot.get());
        if slot.0 >= core.system.slot_count() {
            return Err(Error::Invalid(format!(
                "inode {} is orphaned in slot {slot}",
                inode.nr()
            )));
        }
        let orphans = self
            .inode_any(core.system.of(SystemFile::OrphanDir, slot))
            .await?;
        let mut h = core.journal.begin(REMOVE_BLOCKS).await?;
        dir::remove(core, &mut h, &orphans, &orphan_name(inode.nr())).await?;
        if kind_of(inode) == FileKind::Directory {
            let links = self.links(&orphans).saturating_sub(1);
            Dinode::of_mut(&mut h.modify(orphans.block())).set_links(links);
        }
        let place = inode.dinode().suballoc();
        {
            let mut bytes = h.modify(inode.block());
            let d = Dinode::of_mut(&mut bytes);
            d.i_dtime.set(core.now().seconds as u64);
            let keep = InodeFlags::VALID | InodeFlags::ORPHANED;
            d.i_flags.set(d.i_flags.get() & !keep.bits());
        }
        let file = SystemFile::InodeAlloc;
        alloc::release_place(
            core,
            &mut h,
            file,
            place.slot,
            place.bit,
            place.group,
            inode.nr(),
        )
        .await?;
        h.commit();
        core.inodes.deleted(inode);
        Ok(())
    }

    /// Finishes what a crash, or a node that left, has left in a slot's orphan directory.
    pub(super) async fn clean_orphans(&self, slot: ondisk::SlotNr) -> Result<usize> {
        let core = self.core();
        let orphans = self
            .inode_any(core.system.of(SystemFile::OrphanDir, slot))
            .await?;
        let mut cookie = 0;
        let mut names = Vec::new();
        loop {
            let (entries, done) = dir::read(core, &orphans, cookie, 1024).await?;
            let Some(last) = entries.last() else { break };
            cookie = last.cookie_next;
            names.extend(
                entries
                    .into_iter()
                    .filter(|e| e.name != b"." && e.name != b".."),
            );
            if done {
                break;
            }
        }
        let mut count = 0;
        for entry in names {
            count += usize::from(self.finish_orphan(&orphans, entry).await?);
        }
        Ok(count)
    }

    /// Finishes one entry, if it is what it says. Only the inode's own word makes it an orphan: an
    /// entry that leads elsewhere must not delete a file, nor keep the volume from being mounted.
    async fn finish_orphan(&self, orphans: &InodeRef, entry: dir::Entry) -> Result<bool> {
        let left = |why: &str| {
            let name = String::from_utf8_lossy(&entry.name);
            let (inode, dir) = (entry.ino.0, orphans.nr().0);
            tracing::warn!(%name, inode, dir, why, "an orphan is left to fsck.ocfs2");
            Ok(false)
        };
        let inode = match self.inode(entry.ino).await {
            Ok(inode) => inode,
            Err(error @ (Error::Stale(_) | Error::Corrupt(_))) => return left(&error.to_string()),
            Err(error) => return Err(error),
        };
        let flags = flags(&inode);
        if entry.name.starts_with(DIO_PREFIX) {
            if !flags.contains(InodeFlags::DIO_ORPHANED) {
                return left("the inode is not marked as being extended");
            }
            self.finish_direct_extend(orphans, &entry.name, &inode)
                .await?;
            return Ok(true);
        }
        if !flags.contains(InodeFlags::ORPHANED) || self.links(&inode) > 0 {
            return left("the inode is not marked as an orphan");
        }
        if inode.opens.get() > 0 {
            return Ok(false);
        }
        let _lock = inode.exclusive().await?;
        self.delete(&inode).await?;
        Ok(true)
    }

    /// A direct write was extending the file when its node died: what is past the size goes, the
    /// file stays.
    async fn finish_direct_extend(
        &self,
        orphans: &InodeRef,
        name: &[u8],
        inode: &InodeRef,
    ) -> Result<()> {
        let core = self.core();
        let _lock = inode.exclusive().await?;
        let size = inode.dinode().i_size.get();
        if inode.dinode().body() == ondisk::Body::Extents {
            let keep = size.div_ceil(core.geometry.cluster_size() as u64);
            self.free_extents_from(inode, keep).await?;
        }
        let mut h = core.journal.begin(REMOVE_BLOCKS).await?;
        dir::remove(core, &mut h, orphans, name).await?;
        {
            let mut bytes = h.modify(inode.block());
            let d = Dinode::of_mut(&mut bytes);
            d.i_flags
                .set(d.i_flags.get() & !InodeFlags::DIO_ORPHANED.bits());
            d.i_dio_orphaned_slot.set(0);
        }
        h.commit();
        Ok(())
    }

    /// An inode of ours, system inodes included.
    pub(super) async fn inode_any(&self, nr: BlockNr) -> Result<InodeRef> {
        self.core().inodes.get(self.core(), nr).await
    }
}
