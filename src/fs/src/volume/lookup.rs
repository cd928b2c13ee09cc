//! Reading names and attributes: lookup, path resolution, stat, readdir, readlink, statfs.

use std::collections::VecDeque;

use ondisk::feature::DynFeatures;
use ondisk::{Geometry, SlotNr};
use runtime::WallTime;

use super::{Attr, DirEntry, FileKind, Ino, StatFs, Volume, VolumeInfo, kind_of, require_dir};
use crate::alloc;
use crate::dir;
use crate::error::{Error, Result};
use crate::inode::InodeRef;
use crate::limits;
use crate::system::SystemFile;

/// Seconds and nanoseconds as the dinode has them.
fn time(seconds: u64, nanoseconds: u32) -> WallTime {
    WallTime {
        seconds: seconds as i64,
        nanoseconds,
    }
}

impl Volume {
    pub(super) fn attr_of(&self, inode: &InodeRef) -> Attr {
        let geometry = &self.core().geometry;
        let d = inode.dinode();
        let kind = kind_of(inode);
        let inline = d.dyn_features().contains(DynFeatures::INLINE_DATA);
        let sectors_per_cluster = geometry.cluster_size() as u64 / 512;
        Attr {
            ino: inode.nr().into(),
            generation: d.i_generation.get(),
            kind,
            permissions: d.i_mode.get() & 0o7777,
            links: d.links(),
            uid: d.i_uid.get(),
            gid: d.i_gid.get(),
            rdev: match kind {
                FileKind::CharDevice | FileKind::BlockDevice => d.rdev(),
                _ => 0,
            },
            size_bytes: inode.size(),
            // A file with its data in the inode shows a sector, or programs take it for a hole.
            blocks: if inline {
                inode.size().div_ceil(512)
            } else {
                // Cached data will have its space, and is no hole.
                (u64::from(d.i_clusters.get()) + inode.pages.delayed()) * sectors_per_cluster
            },
            atime: time(d.i_atime.get(), d.i_atime_nsec.get()),
            mtime: time(d.i_mtime.get(), d.i_mtime_nsec.get()),
            ctime: time(d.i_ctime.get(), d.i_ctime_nsec.get()),
        }
    }

    /// The attributes of an inode.
    pub async fn getattr(&self, ino: Ino) -> Result<Attr> {
        let _gate = self.enter().await?;
        let result = self
            .client_inode(ino)
            .await
            .map(|inode| self.attr_of(&inode));
        self.watch(result)
    }

    /// The entry `name` of a directory. `.` and `..` are entries like others.
    pub async fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr> {
        let _gate = self.enter().await?;
        let result = async {
            let dir = self.client_dir(parent).await?;
            let inode = self.step(&dir, name).await?;
            Ok(self.attr_of(&inode))
        }
        .await;
        self.watch(result)
    }

    /// One step of a path.
    pub(super) async fn step(&self, dir: &InodeRef, name: &[u8]) -> Result<InodeRef> {
        require_dir(dir)?;
        if name.len() > limits::NAME_MAX {
            return Err(Error::NameTooLong(name.len()));
        }
        let _shared = dir.shared().await?;
        match dir::lookup(self.core(), dir, name).await? {
            Some(hit) => self.inode(hit.ino).await,
            None => Err(Error::NotFound(String::from_utf8_lossy(name).into_owned())),
        }
    }

    /// Walks `path` from `base` (the root for a path that starts with `/`). Symbolic links on the
    /// way are followed, the last one only with `follow_last`. `..` at the root stays there, so
    /// that no path leaves the volume.
    pub async fn resolve(&self, base: Ino, path: &[u8], follow_last: bool) -> Result<Attr> {
        let _gate = self.enter().await?;
        let result = async {
            let inode = self.walk(base, path, follow_last).await?;
            Ok(self.attr_of(&inode))
        }
        .await;
        self.watch(result)
    }

    /// As [`Volume::resolve`], but for the directory that has (or would have) the last name, and
    /// that name: what creates and removes names needs.
    pub async fn resolve_parent(&self, base: Ino, path: &[u8]) -> Result<(Ino, Vec<u8>)> {
        let trimmed = path.len() - path.iter().rev().take_while(|&&b| b == b'/').count();
        let path = &path[..trimmed];
        let (parent, name) = match path.iter().rposition(|&b| b == b'/') {
            Some(slash) => (&path[..slash + 1], &path[slash + 1..]),
            None => (&path[..0], path),
        };
        if name.is_empty() || name == b"." || name == b".." {
            return Err(Error::Invalid(format!(
                "path {:?} has no last name to work on",
                String::from_utf8_lossy(path)
            )));
        }
        let _gate = self.enter().await?;
        let result = async {
            let dir = self.walk(base, parent, true).await?;
            require_dir(&dir)?;
            Ok((Ino::from(dir.nr()), name.to_vec()))
        }
        .await;
        self.watch(result)
    }

    async fn walk(&self, base: Ino, path: &[u8], follow_last: bool) -> Result<InodeRef> {
        if path.len() > limits::PATH_MAX {
            return Err(Error::NameTooLong(path.len()));
        }
        let absolute = path.first() == Some(&b'/');
        let mut here = self
            .client_inode(if absolute { self.root() } else { base })
            .await?;
        let mut rest: VecDeque<Vec<u8>> = components(path);
        // A trailing slash asks for a directory, and so follows a link.
        let wants_dir = path.last() == Some(&b'/');
        let mut followed = 0;
        while let Some(name) = rest.pop_front() {
            if name == b"." {
                require_dir(&here)?;
                continue;
            }
            let next = self.step(&here, &name).await?;
            if kind_of(&next) != FileKind::Symlink
                || (rest.is_empty() && !follow_last && !wants_dir)
            {
                here = next;
                continue;
            }
            followed += 1;
            if followed > limits::SYMLINK_FOLLOW_MAX {
                return Err(Error::SymlinkLoop);
            }
            let target = self.read_link(&next).await?;
            if target.is_empty() {
                return Err(Error::NotFound("empty symbolic link".into()));
            }
            if target[0] == b'/' {
                here = self.client_inode(self.root()).await?;
            }
            for part in components(&target).into_iter().rev() {
                rest.push_front(part);
            }
        }
        if wants_dir {
            require_dir(&here)?;
        }
        Ok(here)
    }

    /// Entries of a directory from `cookie` (0 at first, then the `next` of the last entry seen):
    /// at most `max`, and none at the end.
    pub async fn readdir(&self, dir: Ino, cookie: u64, max: usize) -> Result<Vec<DirEntry>> {
        let _gate = self.enter().await?;
        let result = async {
            let dir = self.client_dir(dir).await?;
            let _shared = dir.shared().await?;
            let (entries, _) = dir::read(self.core(), &dir, cookie, max).await?;
            Ok(entries
                .into_iter()
                .map(|entry| DirEntry {
                    ino: entry.ino.into(),
                    kind: FileKind::of_dirent(entry.file_type),
                    name: entry.name,
                    next: entry.cookie_next,
                })
                .collect())
        }
        .await;
        self.watch(result)
    }

    /// The target of a symbolic link.
    pub async fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        let _gate = self.enter().await?;
        let result = async {
            let inode = self.client_inode(ino).await?;
            self.read_link(&inode).await
        }
        .await;
        self.watch(result)
    }

    async fn read_link(&self, inode: &InodeRef) -> Result<Vec<u8>> {
        if kind_of(inode) != FileKind::Symlink {
            return Err(Error::Invalid(format!(
                "inode {} is not a symbolic link",
                inode.nr()
            )));
        }
        let _shared = inode.shared().await?;
        let size = inode.dinode().i_size.get();
        if size > limits::SYMLINK_MAX as u64 {
            return Err(Error::Invalid(format!("symbolic link of {size} bytes")));
        }
        if inode.dinode().i_clusters.get() == 0 {
            let block = inode.block().data();
            return Ok(ondisk::fast_symlink(&block).to_vec());
        }
        Ok(self.read_range(inode, 0, size).await?.to_vec())
    }

    /// Space and inodes.
    pub async fn statfs(&self) -> Result<StatFs> {
        let _gate = self.enter().await?;
        let result = self.statfs_inner().await;
        self.watch(result)
    }

    async fn statfs_inner(&self) -> Result<StatFs> {
        let core = self.core();
        let space = alloc::space(core).await?;
        let free = u64::from(alloc::available_clusters(core).await?);
        let (mut used, mut total) = (0u64, 0u64);
        let per_slot =
            (0..core.system.slot_count()).map(|slot| (SystemFile::InodeAlloc, SlotNr(slot)));
        for (file, slot) in per_slot.chain([(SystemFile::GlobalInodeAlloc, SlotNr::INVALID)]) {
            let allocator = self.inode_any(core.system.of(file, slot)).await?;
            used += u64::from(allocator.dinode().used());
            total += u64::from(allocator.dinode().total());
        }
        let geometry = &core.geometry;
        let cluster = geometry.cluster_size() as u64;
        // As the kernel counts: every free cluster could become inodes.
        let free_inodes =
            total.saturating_sub(used) + free * u64::from(geometry.blocks_per_cluster());
        Ok(StatFs {
            block_size: geometry.block_size() as u32,
            cluster_size: geometry.cluster_size() as u32,
            total_bytes: u64::from(space.total_clusters) * cluster,
            free_bytes: free * cluster,
            total_inodes: used + free_inodes,
            free_inodes,
            name_max: limits::NAME_MAX as u32,
        })
    }

    /// What this volume is.
    pub fn info(&self) -> VolumeInfo {
        let core = self.core();
        let geometry = &core.geometry;
        VolumeInfo {
            label: geometry.label(),
            uuid: geometry.uuid_string(),
            device: core.device.info().name,
            block_size: geometry.block_size() as u32,
            cluster_size: geometry.cluster_size() as u32,
            slot: core.slot.0,
            max_slots: geometry.max_slots,
            features: features(geometry),
            read_only: self.read_only(),
            recovered: self.0.recovered,
            corrected_errors: core.cache.corrected(),
        }
    }
}

fn components(path: &[u8]) -> VecDeque<Vec<u8>> {
    path.split(|&b| b == b'/')
        .filter(|part| !part.is_empty())
        .map(<[u8]>::to_vec)
        .collect()
}

/// Every feature bit by name.
fn features(geometry: &Geometry) -> Vec<String> {
    let names = geometry.incompat.iter_names().map(|(name, _)| name);
    let names = names.chain(geometry.ro_compat.iter_names().map(|(name, _)| name));
    names
        .chain(geometry.compat.iter_names().map(|(name, _)| name))
        .map(str::to_lowercase)
        .collect()
}
