//! The seventh phase: every directory has a way to the root, every inode as many names as it counts,
//! and orphans are in their directories.

use std::collections::HashMap;

use ondisk::{BlockNr, FileType};

use super::inodes::state;
use super::places::{Place, Places};
use super::report::Phase;
use super::view::Step;
use super::{Checker, Code, Spot};

/// A directory.
#[derive(Debug, Clone, Copy, Default)]
struct Dir {
    /// The directory with its name.
    parent: BlockNr,
    /// What its second entry says.
    dotdot: BlockNr,
    orphaned: bool,
    /// The walk upwards that saw it last.
    seen_in: u32,
    connected: bool,
}

/// Links of an inode that has not exactly one.
#[derive(Debug, Clone, Copy)]
struct Count {
    /// What the inode says.
    said: u32,
    /// Names found.
    found: u32,
}

/// Names and directories, as far as they are known.
#[derive(Default)]
pub(super) struct Links {
    dirs: HashMap<u64, Dir>,
    counts: HashMap<u64, Count>,
}

impl Links {
    pub fn add_dir(&mut self, nr: BlockNr, orphaned: bool) {
        self.dirs.insert(
            nr.0,
            Dir {
                orphaned,
                ..Dir::default()
            },
        );
    }

    /// Every directory, and whether it is an orphan, by number.
    pub fn sorted_dirs(&self) -> Vec<(BlockNr, bool)> {
        let all = self.dirs.iter();
        let mut all: Vec<_> = all.map(|(nr, dir)| (BlockNr(*nr), dir.orphaned)).collect();
        all.sort_unstable();
        all
    }

    pub fn expect(&mut self, nr: BlockNr, said: u32) {
        self.counts.insert(nr.0, Count { said, found: 0 });
    }

    /// A name leads to an inode.
    pub fn name(&mut self, places: &mut Places, place: Place, nr: BlockNr) {
        let Some(state) = places.state_mut(place) else {
            return;
        };
        if *state & state::COUNTED == 0 {
            if *state & state::NAMED == 0 {
                *state |= state::NAMED;
                return;
            }
            // The second name of an inode that says it has one.
            *state |= state::COUNTED;
            self.counts.insert(nr.0, Count { said: 1, found: 1 });
        }
        if let Some(count) = self.counts.get_mut(&nr.0) {
            count.found = count.found.saturating_add(1);
        }
    }

    pub fn set_dotdot(&mut self, dir: BlockNr, to: BlockNr) {
        if let Some(dir) = self.dirs.get_mut(&dir.0) {
            dir.dotdot = to;
        }
    }

    /// False if it has a parent already.
    pub fn set_parent(&mut self, dir: BlockNr, parent: BlockNr) -> bool {
        match self.dirs.get_mut(&dir.0) {
            Some(dir) if dir.parent.is_some() => false,
            Some(dir) => {
                dir.parent = parent;
                true
            }
            None => true,
        }
    }

    pub fn parent(&self, dir: BlockNr) -> Option<BlockNr> {
        self.dirs.get(&dir.0).map(|dir| dir.parent)
    }

    pub fn is_dir(&self, nr: BlockNr) -> bool {
        self.dirs.contains_key(&nr.0)
    }
}

impl Checker<'_> {
    pub(super) async fn check_links(&mut self) -> Step<()> {
        let inodes = self.report.summary.inodes;
        let dirs = self.links.sorted_dirs();
        self.report
            .begin(Phase::Links, inodes + dirs.len() as u64)?;
        self.check_root().await?;
        for (at, (nr, _)) in dirs.iter().enumerate() {
            self.connect(*nr, at as u32 + 1);
            self.report.advance(1)?;
            if at % 256 == 0 {
                self.view.breathe(64).await?;
            }
        }
        for group in 0..self.places.groups.len() {
            if self.places.groups[group].allocator.of_inodes {
                self.check_counts(group)?;
                self.view.breathe(64).await?;
            }
        }
        Ok(())
    }

    async fn check_root(&mut self) -> Step<()> {
        let root = self.geometry.root_dir;
        for top in [root, self.geometry.system_dir] {
            if !self.links.is_dir(top) {
                let message = format!("inode {top} must be a directory, and is none");
                self.find(Code::RootDirMissing, Spot::ino(top), message);
                continue;
            }
            // Nothing names them but themselves.
            if !self.links.set_parent(top, top) {
                let message = "a directory names it as its own";
                self.find(Code::DirParentDup, Spot::ino(top), message);
            }
            if let Some(dir) = self.links.dirs.get_mut(&top.0) {
                dir.connected = true;
                dir.parent = top;
            }
        }
        let mut found = !self.links.is_dir(root);
        let mut walk = self.open_dir(root).await?;
        while let Some(block) = self.next_dir_block(&mut walk).await? {
            let mut entries = block.entries().map_while(Result::ok);
            found |= entries.any(|entry| entry.name == b"lost+found" && !entry.is_free());
        }
        if !found {
            let message = "there is no /lost+found";
            self.find(Code::LostfoundMissing, Spot::ino(root), message);
        }
        Ok(())
    }

    /// Goes up until a directory that is connected, or one that this walk has seen.
    fn connect(&mut self, start: BlockNr, walk: u32) {
        let mut at = start;
        while let Some(dir) = self.links.dirs.get_mut(&at.0) {
            if dir.connected {
                break;
            }
            // Whatever comes of it, it is told once.
            dir.connected = true;
            dir.seen_in = walk;
            let parent = dir.parent;
            let above = self.links.dirs.get(&parent.0).copied();
            match above {
                Some(above) if above.seen_in != walk => at = parent,
                _ => {
                    let message = "no way from the directory leads to the root";
                    self.find(Code::DirNotConnected, Spot::ino(at), message);
                    break;
                }
            }
        }
        let Some(dir) = self.links.dirs.get(&start.0).copied() else {
            return;
        };
        if !dir.orphaned && dir.parent.is_some() && dir.dotdot != dir.parent {
            let message = format!(
                "the directory is in directory {}, its second entry says {}",
                dir.parent, dir.dotdot
            );
            self.find(Code::DirDotdot, Spot::ino(start), message);
        }
    }

    fn check_counts(&mut self, at: usize) -> Step<()> {
        let mut done = 0;
        for bit in 1..self.places.groups[at].bits {
            let byte = self.places.groups[at].state(bit);
            if byte & state::KIND == 0 {
                continue;
            }
            done += 1;
            let Some(nr) = self.places.groups[at].block(bit) else {
                continue;
            };
            self.check_count(nr, byte);
        }
        self.report.advance(done)
    }

    fn check_count(&mut self, nr: BlockNr, byte: u8) {
        let spot = Spot::ino(nr);
        let (said, found) = match self.links.counts.get(&nr.0) {
            Some(count) if byte & state::COUNTED != 0 => (count.said, count.found),
            _ => (1, u32::from(byte & state::NAMED != 0)),
        };
        let in_orphan_dir = byte & state::IN_ORPHAN_DIR != 0;
        if byte & state::ORPHANED != 0 {
            if !in_orphan_dir {
                let message = "the inode is an orphan, but in no orphan directory";
                self.find(Code::InodeOrphaned, spot, message);
            }
            if found > 0 || said > 0 {
                let message = format!("the inode is an orphan with {said} links and {found} names");
                self.find(Code::InodeCount, spot, message);
            }
            return;
        }
        if in_orphan_dir {
            return; // told with the entry
        }
        let is_dir = byte & state::KIND == FileType::Directory.dirent();
        let unnamed = if is_dir {
            // Its own first entry does not count; whether it is connected is told elsewhere.
            false
        } else {
            found == 0
        };
        if unnamed {
            let message = format!("the inode has no name, and counts {said} links");
            self.find(Code::InodeNotConnected, spot, message);
        } else if said != found {
            let message = format!("the inode counts {said} links, it has {found}");
            self.find(Code::InodeCount, spot, message);
        }
    }
}
