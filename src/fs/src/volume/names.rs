//! Making names: create, mkdir, mknod, symlink, link.
//!
//! Each is one journal handle: the inode, its directory entry and the counts appear together or not
//! at all.

use ondisk::feature::{Incompat, InodeFlags};
use ondisk::{Dinode, Generation, Kind, NewDinode, Suballoc};
use runtime::WallTime;

use super::{Attr, FileKind, IfExists, Ino, NewInode, Volume, flags, kind_of, require_live_dir};
use crate::alloc;
use crate::cache::BlockRef;
use crate::dir;
use crate::error::{Error, Result};
use crate::extent;
use crate::inode::{Inode, InodeRef};
use crate::journal::Handle;
use crate::limits;

/// Blocks that making an inode may change beside its entry: the inode, its group and allocator with
/// a new (perhaps discontiguous) group, a directory's first block and index.
const MAKE_BLOCKS: u32 = 64;

/// What to make.
#[derive(Clone, Copy)]
enum What<'a> {
    Regular,
    Directory,
    Symlink(&'a [u8]),
    Special(FileKind, u64),
}

impl What<'_> {
    fn kind(self) -> FileKind {
        match self {
            What::Regular => FileKind::Regular,
            What::Directory => FileKind::Directory,
            What::Symlink(_) => FileKind::Symlink,
            What::Special(kind, _) => kind,
        }
    }
}

impl Volume {
    /// Makes a regular file, or finds the existing one with [`IfExists::Use`].
    pub async fn create(
        &self,
        parent: Ino,
        name: &[u8],
        new: NewInode,
        taken: IfExists,
    ) -> Result<Attr> {
        self.make(parent, name, What::Regular, new, taken).await
    }

    pub async fn mkdir(&self, parent: Ino, name: &[u8], new: NewInode) -> Result<Attr> {
        self.make(parent, name, What::Directory, new, IfExists::Fail)
            .await
    }

    /// Makes a symbolic link. Its target is not looked at; 1 to 4095 bytes without NUL.
    pub async fn symlink(
        &self,
        parent: Ino,
        name: &[u8],
        target: &[u8],
        new: NewInode,
    ) -> Result<Attr> {
        if target.is_empty() || target.contains(&0) {
            return Err(Error::Invalid(
                "a symbolic link's target is empty or has a NUL".into(),
            ));
        }
        if target.len() > limits::SYMLINK_MAX {
            return Err(Error::NameTooLong(target.len()));
        }
        let new = NewInode {
            permissions: 0o777,
            ..new
        };
        self.make(parent, name, What::Symlink(target), new, IfExists::Fail)
            .await
    }

    /// Makes a device node, a FIFO or a socket. `rdev` counts for device nodes only.
    pub async fn mknod(
        &self,
        parent: Ino,
        name: &[u8],
        kind: FileKind,
        rdev: u64,
        new: NewInode,
    ) -> Result<Attr> {
        let what = match kind {
            FileKind::Regular => What::Regular,
            FileKind::CharDevice | FileKind::BlockDevice => What::Special(kind, rdev),
            FileKind::Fifo | FileKind::Socket => What::Special(kind, 0),
            FileKind::Directory | FileKind::Symlink => {
                return Err(Error::Invalid(format!("mknod does not make a {kind:?}")));
            }
        };
        self.make(parent, name, what, new, IfExists::Fail).await
    }

    async fn make(
        &self,
        parent: Ino,
        name: &[u8],
        what: What<'_>,
        new: NewInode,
        taken: IfExists,
    ) -> Result<Attr> {
        let _gate = self.enter_writing().await?;
        let result = async {
            check_name(name)?;
            let dir = self.client_dir(parent).await?;
            let _exclusive = dir.exclusive().await?;
            require_live_dir(&dir)?;
            if let Some(hit) = dir::lookup(self.core(), &dir, name).await? {
                let existing = self.inode(hit.ino).await?;
                if taken == IfExists::Use && kind_of(&existing) == FileKind::Regular {
                    return Ok(self.attr_of(&existing));
                }
                return Err(Error::Exists(String::from_utf8_lossy(name).into_owned()));
            }
            if what.kind() == FileKind::Directory && self.links(&dir) >= self.link_max() {
                return Err(Error::TooManyLinks(dir.nr()));
            }
            alloc::with_space(self.core(), async || {
                self.make_in(&dir, name, what, new).await
            })
            .await
        }
        .await;
        self.watch(result)
    }

    /// One handle: claims and fills the inode, enters its name. The directory is locked.
    async fn make_in(
        &self,
        dir: &InodeRef,
        name: &[u8],
        what: What<'_>,
        new: NewInode,
    ) -> Result<Attr> {
        let core = self.core();
        let now = core.now();
        let entry_blocks = dir::insert_blocks(core, dir, name).await?;
        let mut h = core.journal.begin(MAKE_BLOCKS + entry_blocks).await?;
        let place = alloc::claim_inode(core, &mut h, Some(dir.nr())).await?;
        let block = h.fresh(place.block, Kind::Dinode);
        let kind = what.kind();
        {
            let parent = dir.dinode();
            // A set-group-id directory hands its group on, and to directories the bit as well.
            let setgid = parent.i_mode.get() & 0o2000 != 0;
            let gid = if setgid { parent.i_gid.get() } else { new.gid };
            let mut mode = kind.mode_bits() | (new.permissions & 0o7777);
            if setgid && kind == FileKind::Directory {
                mode |= 0o2000;
            }
            let rdev = match what {
                What::Special(FileKind::CharDevice | FileKind::BlockDevice, rdev) => rdev,
                _ => 0,
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
                uid: new.uid,
                gid,
                links: if kind == FileKind::Directory { 2 } else { 1 },
                rdev,
                time: (now.seconds as u64, now.nanoseconds),
                inline_xattr_bytes: 0,
                inline_data: false,
            };
            Dinode::init(&mut h.modify(&block), &core.geometry, &init);
        }
        match what {
            What::Directory => dir::init_new(core, &mut h, &block, dir.nr()).await?,
            What::Symlink(target) => self.fill_symlink(&mut h, &block, target).await?,
            What::Regular | What::Special(..) => {}
        }
        dir::insert(core, &mut h, dir, name, place.block, kind.dirent()).await?;
        {
            let links = self.links(dir);
            let mut bytes = h.modify(dir.block());
            let d = Dinode::of_mut(&mut bytes);
            touch(d, now);
            if kind == FileKind::Directory {
                d.set_links(links + 1);
            }
        }
        let tid = h.commit();
        dir.changed_in(tid);
        let inode = core.inodes.adopt(place.block, block);
        inode.changed_in(tid);
        Ok(self.attr_of(&inode))
    }

    /// The target goes into the inode if it fits there, else into a cluster of its own. That is
    /// written while the handle is open: before any commit that could show it.
    async fn fill_symlink(
        &self,
        h: &mut Handle<'_>,
        block: &BlockRef,
        target: &[u8],
    ) -> Result<()> {
        let core = self.core();
        if ondisk::set_fast_symlink(&mut h.modify(block), target) {
            return Ok(());
        }
        Dinode::of_mut(&mut h.modify(block))
            .i_size
            .set(target.len() as u64);
        let (cluster, _) = alloc::claim_clusters(core, h, None, 1, 1).await?;
        let mut padded = target.to_vec();
        padded.resize(target.len().next_multiple_of(core.block_size()), 0);
        let first = core.geometry.first_block(cluster);
        self.write_blocks(first, &padded).await?;
        let root = extent::Root::dinode(block);
        extent::insert(
            core,
            h,
            &root,
            0,
            first,
            1,
            ondisk::feature::ExtentFlags::empty(),
        )
        .await
    }

    /// A further name for an inode that is not a directory.
    pub async fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr> {
        let _gate = self.enter_writing().await?;
        let result = async {
            check_name(name)?;
            let dir = self.client_dir(parent).await?;
            let inode = self.client_inode(ino).await?;
            if kind_of(&inode) == FileKind::Directory {
                return Err(Error::NotPermitted(format!(
                    "hard link to directory inode {}",
                    inode.nr()
                )));
            }
            let _dir_lock = dir.exclusive().await?;
            let _inode_lock = inode.exclusive().await?;
            require_live_dir(&dir)?;
            if flags(&inode).contains(InodeFlags::ORPHANED) {
                return Err(Error::NotFound(format!(
                    "inode {} has no name any more",
                    inode.nr()
                )));
            }
            if self.links(&inode) >= self.link_max() {
                return Err(Error::TooManyLinks(inode.nr()));
            }
            if dir::lookup(self.core(), &dir, name).await?.is_some() {
                return Err(Error::Exists(String::from_utf8_lossy(name).into_owned()));
            }
            alloc::with_space(self.core(), async || self.link_in(&dir, name, &inode).await).await?;
            Ok(self.attr_of(&inode))
        }
        .await;
        self.watch(result)
    }

    async fn link_in(&self, dir: &InodeRef, name: &[u8], inode: &InodeRef) -> Result<()> {
        let core = self.core();
        let now = core.now();
        let blocks = dir::insert_blocks(core, dir, name).await?;
        let mut h = core.journal.begin(1 + blocks).await?;
        dir::insert(core, &mut h, dir, name, inode.nr(), kind_of(inode).dirent()).await?;
        let links = self.links(inode) + 1;
        {
            let mut bytes = h.modify(inode.block());
            let d = Dinode::of_mut(&mut bytes);
            d.set_links(links);
            set_ctime(d, now);
        }
        touch(Dinode::of_mut(&mut h.modify(dir.block())), now);
        let tid = h.commit();
        dir.changed_in(tid);
        inode.changed_in(tid);
        Ok(())
    }

    pub(super) fn links(&self, inode: &Inode) -> u32 {
        inode.dinode().links()
    }

    /// The format's limit: 16 bits, or 31 where directories are indexed.
    pub(super) fn link_max(&self) -> u32 {
        if self.core().geometry.has(Incompat::INDEXED_DIRS) {
            0x7fff_ffff
        } else {
            32000
        }
    }
}

pub(super) fn set_ctime(d: &mut Dinode, now: WallTime) {
    d.i_ctime.set(now.seconds as u64);
    d.i_ctime_nsec.set(now.nanoseconds);
}

/// Content changed: mtime and ctime.
pub(super) fn touch(d: &mut Dinode, now: WallTime) {
    d.i_mtime.set(now.seconds as u64);
    d.i_mtime_nsec.set(now.nanoseconds);
    set_ctime(d, now);
}

/// Names that can be made: 1 to 255 bytes, no slash, no NUL, not `.` or `..`.
pub(super) fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > limits::NAME_MAX {
        return Err(Error::NameTooLong(name.len()));
    }
    if name == b"." || name == b".." {
        return Err(Error::Exists(String::from_utf8_lossy(name).into_owned()));
    }
    if name.is_empty() || name.contains(&b'/') || name.contains(&0) {
        return Err(Error::Invalid(format!(
            "name {:?}",
            String::from_utf8_lossy(name)
        )));
    }
    Ok(())
}
