//! A run of operations that was recorded, and what a power loss at any point of it may leave.
//!
//! The rules, for each client of the run by itself:
//! * Names, kinds, links, attributes are those after some operation, not before the last that an fsync or
//!   a sync has acknowledged, not after the last that had begun.
//! * So is a file's size, unless the file is written through a cache: then it is of that time or of any
//!   time since the file's own last fsync.
//! * Each byte is one that the file has had at that place since its last fsync.
#![allow(clippy::unwrap_used, reason = "a test fails where it panics")]

use std::collections::{BTreeMap, BTreeSet};

use fs::volume::{Ino, Volume};
use runtime::sim::{SimDisk, Trace};

use super::script::{Can, How, Op, Player, changes, changes_names_in, script};
use super::view::{Seen, View};

/// What one client did: what it saw after each operation, when each began, and what is durable since when.
pub struct Client {
    pub home: String,
    pub ops: Vec<Op>,
    views: Vec<View>,
    begun: Vec<usize>,
    /// Point, and how many operations are durable from then on.
    durable: Vec<(usize, usize)>,
    /// Point, file, and the view from which on its bytes may come.
    flushed: Vec<(usize, Ino, usize)>,
    /// Files that are written through a cache.
    buffered: BTreeSet<Ino>,
}

/// A recorded run of several clients, each in a directory of its own.
pub struct Run {
    pub trace: Trace,
    pub clients: Vec<Client>,
}

impl Client {
    pub fn new(seed: u64, number: u64, length: usize, can: Can) -> Client {
        let home = format!("/t{number}");
        Client {
            ops: script(seed * 16 + number, &home, length, can),
            home,
            views: Vec::new(),
            begun: Vec::new(),
            durable: Vec::new(),
            flushed: Vec::new(),
            buffered: BTreeSet::new(),
        }
    }

    /// Plays the script on a disk that records.
    pub async fn play(&mut self, volume: &Volume, disk: &SimDisk) {
        let player = Player::new(volume);
        self.views.push(View::of(volume, &self.home).await.unwrap());
        self.durable.push((0, 0));
        // How many operations have to be durable for what each inode is by its own.
        let mut last: BTreeMap<Ino, usize> = BTreeMap::new();
        let ops = self.ops.clone();
        for (index, op) in ops.iter().enumerate() {
            self.begun.push(disk.point());
            let result = player.apply(op).await;
            result.unwrap_or_else(|error| panic!("{op:?}: {error}"));
            // Looking changes nothing on the disk, and nobody else is in here.
            let point = disk.point();
            let view = View::of(volume, &self.home).await.unwrap();
            let ino_of = |path: &str| view.paths.get(path).map(|seen| seen.ino);
            if let Some(ino) = changes(op).and_then(ino_of) {
                last.insert(ino, index + 1);
            }
            for dir in changes_names_in(op) {
                last.extend(ino_of(dir).map(|ino| (ino, index + 1)));
            }
            let settled = |ino: &Ino| last.get(ino).copied().unwrap_or(0);
            match op {
                Op::Sync => {
                    self.durable.push((point, index));
                    let files = view.bytes.keys();
                    self.flushed.extend(files.map(|ino| (point, *ino, index)));
                }
                Op::Fsync(path) => {
                    let ino = view.paths[path].ino;
                    self.durable.push((point, settled(&ino)));
                    self.flushed.push((point, ino, index));
                }
                Op::FsyncDir(path) => {
                    let durable = ino_of(path).as_ref().map_or(0, settled);
                    self.durable.push((point, durable));
                }
                Op::Write(path, _, _, _, How::Buffered) => {
                    self.buffered.insert(view.paths[path].ino);
                }
                Op::Write(path, _, _, _, How::Synchronous) => {
                    self.flushed.push((point, view.paths[path].ino, index + 1));
                }
                _ => {}
            }
            self.views.push(view);
        }
        player.let_go().await.unwrap();
    }

    /// Everything is durable.
    pub fn unmounted(&mut self, disk: &SimDisk) {
        self.durable.push((disk.point(), self.ops.len()));
    }

    /// The promises that hold at a point: images alike need to be looked at again only if there are more.
    pub fn promises(&self, point: usize) -> usize {
        let durable = self.durable.iter().filter(|(at, _)| *at <= point).count();
        durable + self.flushed.iter().filter(|(at, ..)| *at <= point).count()
    }

    /// How many operations are durable at a point, and how many have begun.
    fn bounds(&self, point: usize) -> (usize, usize) {
        let passed = self.durable.iter().filter(|(at, _)| *at <= point);
        let least = passed.map(|(_, count)| *count).max().unwrap_or(0);
        (least, self.begun.iter().filter(|at| **at <= point).count())
    }

    /// Whether an operation that takes or gives back space past the end of a file in handles of its
    /// own, before or after the size moves, may be half done: fsck.ocfs2 then sees space that it takes
    /// for a wrong size, as it does after such a crash of the kernel.
    pub fn may_have_space_past_the_end(&self, point: usize) -> bool {
        let (least, most) = self.bounds(point);
        let moves = |op: &Op| matches!(op, Op::Truncate(..) | Op::Fallocate(..));
        self.ops[least..most].iter().any(moves)
    }

    /// Holds what is there after a power loss at `point` to the run.
    pub fn judge(&self, point: usize, shown: &View) -> Result<(), String> {
        let (least, most) = self.bounds(point);
        let mut problem = String::new();
        for index in (least..=most).rev() {
            match self.agrees(index, most, point, shown) {
                Ok(()) => return Ok(()),
                Err(why) if problem.len() < 3000 => {
                    problem += &format!("  not as after {index}: {why}\n");
                }
                Err(_) => {}
            }
        }
        Err(format!(
            "{} agrees with no state from {least} to {most}:\n{problem}",
            self.home
        ))
    }

    /// The view that a file was last flushed at.
    fn flushed_at(&self, ino: Ino, point: usize) -> usize {
        let passed = self
            .flushed
            .iter()
            .filter(|(at, of, _)| *at <= point && *of == ino);
        passed.map(|(_, _, index)| *index).max().unwrap_or(0)
    }

    fn size_at(&self, index: usize, ino: Ino) -> Option<u64> {
        let bytes = self.views.get(index)?.bytes.get(&ino)?;
        Some(bytes.len() as u64)
    }

    /// The file that operation `index` gives another size, from its beginning to its end: an operation of
    /// several handles may be half done.
    fn resized_by(&self, index: usize) -> Option<(Ino, std::ops::RangeInclusive<u64>)> {
        let (Op::Write(path, ..) | Op::Truncate(path, _) | Op::Fallocate(path, ..)) =
            self.ops.get(index)?
        else {
            return None;
        };
        let ino = self.views[index].paths.get(path)?.ino;
        let before = self.size_at(index, ino)?;
        let after = self.size_at(index + 1, ino).unwrap_or(before);
        Some((ino, before.min(after)..=before.max(after)))
    }

    /// Whether a file written through a cache may have this size, with everything else as after `index`.
    fn may_lag(&self, seen: &Seen, index: usize, most: usize, point: usize) -> bool {
        if !self.buffered.contains(&seen.ino) {
            return false;
        }
        let from = self.flushed_at(seen.ino, point);
        let to = index.max(from);
        (from..=to).any(|at| {
            let at_rest = self.size_at(at, seen.ino) == Some(seen.size);
            let on_its_way = (at < to || at < most)
                .then(|| self.resized_by(at))
                .flatten()
                .is_some_and(|(ino, sizes)| ino == seen.ino && sizes.contains(&seen.size));
            at_rest || on_its_way
        })
    }

    fn agrees(&self, index: usize, most: usize, point: usize, shown: &View) -> Result<(), String> {
        let known = &self.views[index];
        let mut names = known.paths.keys();
        if let Some(path) = names.find(|path| !shown.paths.contains_key(*path)) {
            return Err(format!("{path} is missing"));
        }
        let growing = (index < most).then(|| self.resized_by(index)).flatten();
        for (path, seen) in &shown.paths {
            let Some(wanted) = known.paths.get(path) else {
                return Err(format!("{path} is unexpected"));
            };
            let mut wanted = wanted.clone();
            let growing = growing
                .as_ref()
                .is_some_and(|(ino, sizes)| *ino == seen.ino && sizes.contains(&seen.size));
            if growing || self.may_lag(seen, index, most, point) {
                wanted.size = seen.size;
            }
            if *seen != wanted {
                return Err(format!("{path} is {seen} not {wanted}"));
            }
        }
        for (ino, bytes) in &shown.bytes {
            let from = self.flushed_at(*ino, point);
            let versions: Vec<&Vec<u8>> = (from.min(index)..=most)
                .filter_map(|at| self.views[at].bytes.get(ino))
                .collect();
            if versions.contains(&bytes) {
                continue;
            }
            let had = |at: usize, byte: u8| {
                let mut all = versions.iter();
                all.any(|version| version.get(at).copied().unwrap_or(0) == byte)
            };
            let foreign = bytes
                .iter()
                .enumerate()
                .find(|(at, byte)| !had(*at, **byte));
            if let Some((at, byte)) = foreign {
                return Err(format!(
                    "inode {} has {byte:02x} at {at} of {}, which is of no version since {from}",
                    ino.0,
                    bytes.len()
                ));
            }
        }
        Ok(())
    }
}
