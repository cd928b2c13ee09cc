//! Rename: one handle moves the entry, replaces or exchanges the target, and mends `..`.
//!
//! Lock order: the rename mutex (only when the two directories differ), the directories by block
//! number, then the inodes by block number. With the mutex held nobody moves an ancestor, so that
//! the walk upwards that refuses a move into one's own subtree stays true.

use ondisk::{BlockNr, Dinode};

use super::names::{check_name, set_ctime, touch};
use super::remove::REMOVE_BLOCKS;
use super::{FileKind, Ino, RenameMode, Volume, kind_of, require_live_dir};
use crate::alloc;
use crate::dir;
use crate::error::{Error, Result};
use crate::inode::InodeRef;

/// One side of a rename.
struct Side<'a> {
    dir: &'a InodeRef,
    name: &'a [u8],
}

impl Volume {
    pub async fn rename(
        &self,
        from_dir: Ino,
        from: &[u8],
        to_dir: Ino,
        to: &[u8],
        mode: RenameMode,
    ) -> Result<()> {
        let _gate = self.enter_writing().await?;
        let result = self.rename_inner(from_dir, from, to_dir, to, mode).await;
        self.watch(result)
    }

    async fn rename_inner(
        &self,
        from_dir: Ino,
        from: &[u8],
        to_dir: Ino,
        to: &[u8],
        mode: RenameMode,
    ) -> Result<()> {
        for name in [from, to] {
            check_name(name).map_err(|error| match error {
                Error::Exists(name) => Error::Busy(format!("cannot rename {name:?}")),
                other => other,
            })?;
        }
        let source_dir = self.client_dir(from_dir).await?;
        let target_dir = self.client_dir(to_dir).await?;
        let same_dir = source_dir.nr() == target_dir.nr();
        let _rename = if same_dir {
            None
        } else {
            Some(self.0.rename.write().await)
        };
        let (first, second) = if source_dir.nr() <= target_dir.nr() {
            (&source_dir, &target_dir)
        } else {
            (&target_dir, &source_dir)
        };
        let _first = first.exclusive().await?;
        let _second = if same_dir {
            None
        } else {
            Some(second.exclusive().await?)
        };
        require_live_dir(&source_dir)?;
        require_live_dir(&target_dir)?;

        let (source, target) = (
            Side {
                dir: &source_dir,
                name: from,
            },
            Side {
                dir: &target_dir,
                name: to,
            },
        );
        let moved = self.entry(&source).await?.ok_or_else(|| not_found(from))?;
        let replaced = self.entry(&target).await?;
        let replaced = replaced.as_ref();
        match (mode, replaced) {
            (RenameMode::NoReplace, Some(_)) => {
                return Err(Error::Exists(String::from_utf8_lossy(to).into_owned()));
            }
            (RenameMode::Exchange, None) => return Err(not_found(to)),
            _ => {}
        }
        if replaced.is_some_and(|r| r.nr() == moved.nr()) {
            return Ok(()); // two names of one inode: POSIX wants nothing done
        }
        // A directory must not move into itself or below.
        self.refuse_loop(&moved, &target_dir).await?;
        if let (RenameMode::Exchange, Some(other)) = (mode, replaced) {
            self.refuse_loop(other, &source_dir).await?;
        }

        let mut involved: Vec<&InodeRef> = [Some(&moved), replaced].into_iter().flatten().collect();
        // A target directory that is the source's own parent is locked already (and refused below).
        involved.retain(|inode| inode.nr() != source_dir.nr() && inode.nr() != target_dir.nr());
        involved.sort_by_key(|inode| inode.nr());
        let mut guards = Vec::new();
        for inode in &involved {
            guards.push(inode.exclusive().await?);
        }
        match (mode, replaced) {
            (RenameMode::Exchange, Some(other)) => {
                alloc::with_space(self.core(), async || {
                    self.exchange(&source, &moved, &target, other).await
                })
                .await
            }
            (_, Some(old)) => {
                if kind_of(&moved) == FileKind::Directory {
                    if kind_of(old) != FileKind::Directory {
                        return Err(Error::NotDirectory(old.nr()));
                    }
                } else if kind_of(old) == FileKind::Directory {
                    return Err(Error::IsDirectory(old.nr()));
                }
                self.check_removable(old, kind_of(old) == FileKind::Directory)
                    .await?;
                alloc::with_space(self.core(), async || {
                    self.move_entry(&source, &moved, &target, Some(old)).await
                })
                .await?;
                drop(guards);
                self.delete_if_unused(old).await
            }
            (_, None) => {
                alloc::with_space(self.core(), async || {
                    self.move_entry(&source, &moved, &target, None).await
                })
                .await
            }
        }
    }

    async fn entry(&self, side: &Side<'_>) -> Result<Option<InodeRef>> {
        match dir::lookup(self.core(), side.dir, side.name).await? {
            Some(hit) => Ok(Some(self.inode(hit.ino).await?)),
            None => Ok(None),
        }
    }

    /// Walks from `into` to the root; meeting `moved` on the way is an error.
    async fn refuse_loop(&self, moved: &InodeRef, into: &InodeRef) -> Result<()> {
        if kind_of(moved) != FileKind::Directory {
            return Ok(());
        }
        let root = BlockNr::from(self.root());
        let mut here = into.clone();
        // No tree of directories is deeper than the volume has blocks; a `..` loop ends here.
        for _ in 0..self.core().geometry.total_blocks() {
            if here.nr() == moved.nr() {
                return Err(Error::Invalid(format!(
                    "directory inode {} would move into itself",
                    moved.nr()
                )));
            }
            if here.nr() == root {
                return Ok(());
            }
            let up = dir::lookup(self.core(), &here, b"..").await?;
            let up = up.ok_or_else(|| {
                Error::NotFound(format!("\"..\" of directory inode {}", here.nr()))
            })?;
            here = self.inode(up.ino).await?;
        }
        Err(Error::SymlinkLoop)
    }

    async fn move_entry(
        &self,
        source: &Side<'_>,
        moved: &InodeRef,
        target: &Side<'_>,
        replaced: Option<&InodeRef>,
    ) -> Result<()> {
        let core = self.core();
        let now = core.now();
        let kind = kind_of(moved);
        let across = source.dir.nr() != target.dir.nr();
        let more = match replaced {
            Some(old) => self.orphan_blocks(old).await?,
            None => dir::insert_blocks(core, target.dir, target.name).await?,
        };
        let mut h = core.journal.begin(2 * REMOVE_BLOCKS + more).await?;
        if let Some(old) = replaced {
            dir::replace(
                core,
                &mut h,
                target.dir,
                target.name,
                moved.nr(),
                kind.dirent(),
            )
            .await?;
            self.drop_link(&mut h, old).await?;
        } else {
            dir::insert(
                core,
                &mut h,
                target.dir,
                target.name,
                moved.nr(),
                kind.dirent(),
            )
            .await?;
        }
        dir::remove(core, &mut h, source.dir, source.name).await?;
        if kind == FileKind::Directory && across {
            dir::replace(
                core,
                &mut h,
                moved,
                b"..",
                target.dir.nr(),
                FileKind::Directory.dirent(),
            )
            .await?;
        }
        set_ctime(Dinode::of_mut(&mut h.modify(moved.block())), now);

        // A directory takes its ".." with it; a replaced one no longer points up.
        let is_dir = kind == FileKind::Directory;
        let mut gain = i64::from(is_dir && across);
        if replaced.is_some_and(|old| kind_of(old) == FileKind::Directory) {
            gain -= 1;
        }
        let lose = i64::from(is_dir && across);
        self.change_links(&mut h, target.dir, gain)?;
        self.change_links(&mut h, source.dir, -lose)?;
        touch(Dinode::of_mut(&mut h.modify(source.dir.block())), now);
        touch(Dinode::of_mut(&mut h.modify(target.dir.block())), now);
        let tid = h.commit();
        for inode in [source.dir, target.dir, moved].into_iter().chain(replaced) {
            inode.changed_in(tid);
        }
        Ok(())
    }

    async fn exchange(
        &self,
        a: &Side<'_>,
        a_inode: &InodeRef,
        b: &Side<'_>,
        b_inode: &InodeRef,
    ) -> Result<()> {
        let core = self.core();
        let now = core.now();
        let mut h = core.journal.begin(2 * REMOVE_BLOCKS).await?;
        let across = a.dir.nr() != b.dir.nr();
        for (side, inode) in [(a, b_inode), (b, a_inode)] {
            let kind = kind_of(inode);
            dir::replace(core, &mut h, side.dir, side.name, inode.nr(), kind.dirent()).await?;
            if kind == FileKind::Directory && across {
                dir::replace(core, &mut h, inode, b"..", side.dir.nr(), kind.dirent()).await?;
            }
            set_ctime(Dinode::of_mut(&mut h.modify(inode.block())), now);
        }
        if across {
            let is_dir = |inode: &InodeRef| i64::from(kind_of(inode) == FileKind::Directory);
            self.change_links(&mut h, a.dir, is_dir(b_inode) - is_dir(a_inode))?;
            self.change_links(&mut h, b.dir, is_dir(a_inode) - is_dir(b_inode))?;
        }
        touch(Dinode::of_mut(&mut h.modify(a.dir.block())), now);
        touch(Dinode::of_mut(&mut h.modify(b.dir.block())), now);
        let tid = h.commit();
        for inode in [a.dir, b.dir, a_inode, b_inode] {
            inode.changed_in(tid);
        }
        Ok(())
    }

    fn change_links(
        &self,
        h: &mut crate::journal::Handle<'_>,
        dir: &InodeRef,
        by: i64,
    ) -> Result<()> {
        if by == 0 {
            return Ok(());
        }
        let links = i64::from(self.links(dir)) + by;
        if links > i64::from(self.link_max()) {
            return Err(Error::TooManyLinks(dir.nr()));
        }
        let links = u32::try_from(links.max(0)).expect("bounded by the link limit");
        Dinode::of_mut(&mut h.modify(dir.block())).set_links(links);
        Ok(())
    }
}

fn not_found(name: &[u8]) -> Error {
    Error::NotFound(String::from_utf8_lossy(name).into_owned())
}
