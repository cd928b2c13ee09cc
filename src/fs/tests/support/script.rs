//! Scripts of operations, drawn from a seed, for runs that are crashed: a little of everything, each kind
//! near its limits of form (inline to extents, growing and shrinking trees, an index that splits, attributes
//! in and outside of the inode), played through the public door.
#![allow(clippy::unwrap_used, reason = "a test fails where it panics")]

use std::cell::RefCell;

use bytes::Bytes;
use fs::volume::{
    CloneAs, FileHandle, IfExists, NewInode, OpenFlags, RangeMode, RenameMode, SetAttr, Volume,
};
use fs::xattr::XattrMode;
use runtime::sim::SimRng;

use super::{READ_WRITE, new_inode, pattern};

/// One operation of a script, by path.
#[derive(Debug, Clone)]
pub enum Op {
    Create(String),
    Mkdir(String),
    Symlink(String, usize),
    Link(String, String),
    Unlink(String),
    /// Opened first, and held open until the end: an orphan.
    UnlinkOpen(String),
    Rmdir(String),
    Rename(String, String, RenameMode),
    /// Position, length, and what the pattern begins with.
    Write(String, u64, usize, u64, How),
    Truncate(String, u64),
    Fallocate(String, RangeMode, u64, u64),
    Clone(String, String),
    Chmod(String, u16),
    SetXattr(String, String, usize),
    RemoveXattr(String, String),
    Fsync(String),
    FsyncDir(String),
    Sync,
}

/// How a write goes. A file is written in one of these ways all its life (a synchronous one is also
/// direct), so that a test can hold it to what that way promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Perhaps through a cache: until an fsync a power loss may take the bytes, and with them a size
    /// that they had moved.
    Buffered,
    /// The size that it moves is metadata like any other.
    Direct,
    /// Durable when it returns.
    Synchronous,
}

use Op::*;

#[derive(Debug, Clone)]
struct File {
    path: String,
    direct: bool,
}

/// What a script may use of the volume it is for.
#[derive(Debug, Clone, Copy)]
pub struct Can {
    pub xattrs: bool,
    pub ranges: bool,
    pub clones: bool,
}

/// So many operations (and a few that set the scene) below the directory `home`.
pub fn script(seed: u64, home: &str, length: usize, can: Can) -> Vec<Op> {
    let mut rng = SimRng::new(seed);
    let mut ops = Vec::new();
    let dirs = ["", "/a", "/a/b", "/c"].map(|dir| format!("{home}{dir}"));
    ops.extend(dirs[1..].iter().cloned().map(Mkdir));
    let mut files: Vec<File> = Vec::new();
    let mut serial = 0;
    for _ in 0..length {
        let dir = &dirs[rng.below(4) as usize];
        serial += 1;
        let long = if rng.below(4) == 0 {
            "long".repeat(40)
        } else {
            String::new()
        };
        let fresh = format!("{dir}/n{serial}{long}");
        let direct = rng.coin();
        let how = match (direct, rng.below(4)) {
            (false, _) => How::Buffered,
            (true, 0) => How::Synchronous,
            (true, _) => How::Direct,
        };
        let new = File {
            path: fresh.clone(),
            direct,
        };
        if files.len() < 3 {
            ops.push(Create(fresh.clone()));
            ops.push(Write(fresh, 0, 3000, serial, how));
            files.push(new);
            continue;
        }
        let at = rng.below(files.len() as u64) as usize;
        let file = files[at].path.clone();
        let how = match (files[at].direct, rng.below(4)) {
            (false, _) => How::Buffered,
            (true, 0) => How::Synchronous,
            (true, _) => How::Direct,
        };
        match rng.below(32) {
            0..3 => {
                ops.push(Create(fresh));
                files.push(new);
            }
            3 => ops.extend([Mkdir(fresh.clone()), Rmdir(fresh)]),
            4 => {
                let len = [20, 700, 4000][rng.below(3) as usize];
                ops.push(Symlink(fresh.clone(), len));
                ops.push(Unlink(fresh));
            }
            5 => ops.extend([Link(file, fresh.clone()), Unlink(fresh)]),
            6..8 => {
                ops.push(Unlink(file));
                files.remove(at);
            }
            8..10 => {
                ops.push(Rename(file, fresh.clone(), RenameMode::Replace));
                files[at].path = fresh;
            }
            10 => {
                let other = rng.below(files.len() as u64) as usize;
                if other != at {
                    let target = files[other].path.clone();
                    ops.push(Rename(file.clone(), target.clone(), RenameMode::Exchange));
                    files[at].path = target;
                    files[other].path = file;
                }
            }
            11 => {
                let other = rng.below(files.len() as u64) as usize;
                if other != at {
                    let target = files[other].path.clone();
                    ops.push(Rename(file, target.clone(), RenameMode::Replace));
                    files[at].path = target;
                    files.remove(other);
                }
            }
            12..17 => {
                let position = [0, 5, 3000, 4096, 70_000, 150_000][rng.below(6) as usize];
                let len = [1, 100, 4096, 8000, 60_000][rng.below(5) as usize];
                ops.push(Write(file, position, len, serial, how));
            }
            17 => ops.push(Truncate(file, rng.below(100_000))),
            18 => ops.push(Chmod(file, 0o600 + rng.below(64) as u16)),
            19 | 20 if can.xattrs => {
                let name = format!("user.x{}", rng.below(3));
                let len = [10, 300, 5000][rng.below(3) as usize];
                ops.push(SetXattr(file.clone(), name.clone(), len));
                if rng.below(3) == 0 {
                    ops.push(RemoveXattr(file, name));
                }
            }
            21 if can.ranges => {
                // Not past the end: fsck.ocfs2 takes such space for a wrong size.
                let mode = match rng.below(3) {
                    0 => RangeMode::Allocate { keep_size: false },
                    1 => RangeMode::PunchHole,
                    _ => RangeMode::Zero { keep_size: false },
                };
                ops.push(Fallocate(
                    file,
                    mode,
                    rng.below(60_000),
                    1 + rng.below(90_000),
                ));
            }
            22 if can.clones => {
                ops.push(Clone(file, fresh));
                files.push(new);
            }
            23 if files.len() > 4 => {
                ops.push(UnlinkOpen(file));
                files.remove(at);
            }
            24 => ops.push(FsyncDir(dir.clone())),
            25..30 => ops.push(Fsync(file)),
            _ => ops.push(Sync),
        }
    }
    ops.push(Sync);
    ops
}

/// The path of the inode that the operation changes, if it is one and stays.
pub fn changes(op: &Op) -> Option<&str> {
    match op {
        Truncate(path, _)
        | Fallocate(path, ..)
        | Chmod(path, _)
        | SetXattr(path, ..)
        | RemoveXattr(path, _)
        | Create(path)
        | Clone(_, path) => Some(path),
        // The size and bytes of a write are its file's alone; see `How`.
        _ => None,
    }
}

/// The directories in which the operation changes a name.
pub fn changes_names_in(op: &Op) -> Vec<&str> {
    let of = |path: &str| path.rfind('/').unwrap_or(0);
    match op {
        Create(path)
        | Mkdir(path)
        | Symlink(path, _)
        | Link(_, path)
        | Unlink(path)
        | UnlinkOpen(path)
        | Rmdir(path)
        | Clone(_, path) => vec![&path[..of(path)]],
        Rename(from, to, _) => vec![&from[..of(from)], &to[..of(to)]],
        _ => Vec::new(),
    }
}

/// Plays operations, and keeps what they leave open.
pub struct Player {
    volume: Volume,
    held: RefCell<Vec<FileHandle>>,
}

impl Player {
    pub fn new(volume: &Volume) -> Player {
        Player {
            volume: volume.clone(),
            held: RefCell::default(),
        }
    }

    pub async fn let_go(&self) -> fs::Result<()> {
        for file in self.held.take() {
            self.volume.close(file).await?;
        }
        Ok(())
    }

    pub async fn apply(&self, op: &Op) -> fs::Result<()> {
        let volume = &self.volume;
        let root = volume.root();
        let at = async |path: &str| volume.resolve(root, path.as_bytes(), false).await;
        let parent = async |path: &str| volume.resolve_parent(root, path.as_bytes()).await;
        match op {
            Create(path) => {
                let (dir, name) = parent(path).await?;
                let new = new_inode();
                volume.create(dir, &name, new, IfExists::Fail).await?;
            }
            Mkdir(path) => {
                let (dir, name) = parent(path).await?;
                let new = NewInode {
                    permissions: 0o755,
                    ..new_inode()
                };
                volume.mkdir(dir, &name, new).await?;
            }
            Symlink(path, len) => {
                let (dir, name) = parent(path).await?;
                let target = vec![b't'; *len];
                volume.symlink(dir, &name, &target, new_inode()).await?;
            }
            Link(from, to) => {
                let (dir, name) = parent(to).await?;
                volume.link(at(from).await?.ino, dir, &name).await?;
            }
            Unlink(path) => {
                let (dir, name) = parent(path).await?;
                volume.unlink(dir, &name).await?;
            }
            UnlinkOpen(path) => {
                let file = volume.open(at(path).await?.ino, READ_WRITE).await?;
                let (dir, name) = parent(path).await?;
                volume.unlink(dir, &name).await?;
                self.held.borrow_mut().push(file);
            }
            Rmdir(path) => {
                let (dir, name) = parent(path).await?;
                volume.rmdir(dir, &name).await?;
            }
            Rename(from, to, mode) => {
                let ((a, from), (b, to)) = (parent(from).await?, parent(to).await?);
                volume.rename(a, &from, b, &to, *mode).await?;
            }
            Write(path, position, len, seed, how) => {
                let flags = OpenFlags {
                    direct: *how != How::Buffered,
                    dsync: *how == How::Synchronous,
                    ..READ_WRITE
                };
                let file = volume.open(at(path).await?.ino, flags).await?;
                let data = Bytes::from(pattern(*seed, *len));
                let written = volume.write(&file, *position, data).await;
                volume.close(file).await?;
                assert!(written.error.is_none(), "{written:?}");
            }
            Fallocate(path, mode, offset, len) => {
                let file = volume.open(at(path).await?.ino, READ_WRITE).await?;
                let result = volume.fallocate(&file, *mode, *offset, *len).await;
                volume.close(file).await?;
                result?;
            }
            Clone(from, to) => {
                let (dir, name) = parent(to).await?;
                let source = at(from).await?.ino;
                volume.clone_file(source, dir, &name, CloneAs::Same).await?;
            }
            Truncate(path, size) => {
                let set = SetAttr {
                    size_bytes: Some(*size),
                    ..SetAttr::default()
                };
                volume.setattr(at(path).await?.ino, set).await?;
            }
            Chmod(path, permissions) => {
                let set = SetAttr {
                    permissions: Some(*permissions),
                    ..SetAttr::default()
                };
                volume.setattr(at(path).await?.ino, set).await?;
            }
            SetXattr(path, name, len) => {
                let value = pattern(*len as u64, *len);
                let (ino, name) = (at(path).await?.ino, name.as_bytes());
                volume.setxattr(ino, name, &value, XattrMode::Any).await?;
            }
            RemoveXattr(path, name) => {
                let ino = at(path).await?.ino;
                volume.removexattr(ino, name.as_bytes()).await?;
            }
            Fsync(path) | FsyncDir(path) => {
                volume.fsync_ino(at(path).await?.ino, false).await?;
            }
            Sync => volume.sync().await?,
        }
        Ok(())
    }
}
