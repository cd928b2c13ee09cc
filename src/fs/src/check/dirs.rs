//! The sixth phase: the entries of every directory, the trailers of its blocks, and its index.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;

use ondisk::feature::{DynFeatures, Incompat};
use ondisk::hash::{Bytes, dir_hash};
use ondisk::{
    BlockNr, Body, Dinode, DirBlock, DirEntries, DirEntry, DirTrailer, FileType, Kind, SystemFile,
    dirent_len, entries_end, inline_data_span,
};

use super::bits::Parts;
use super::dx::Name;
use super::extents::{Extent, Walk};
use super::inodes::state;
use super::report::Phase;
use super::view::Step;
use super::{Checker, Code, Spot};

/// A walk over a directory's blocks.
pub(super) struct DirWalk {
    ino: BlockNr,
    inline: Option<Vec<u8>>,
    walk: Option<Walk>,
    extents: VecDeque<Extent>,
    /// The next block, and how many there are.
    next: u64,
    count: u64,
    trailer: bool,
    /// What cannot be read, or is damaged, becomes a finding.
    tell: bool,
}

/// A block of entries, or the entries in an inode.
pub(super) struct Entries {
    pub nr: BlockNr,
    /// Which block of the directory.
    pub logical: u64,
    bytes: Vec<u8>,
    span: Range<usize>,
    pub trailer: Option<DirTrailer>,
}

impl Entries {
    pub fn entries(&self) -> DirEntries<'_> {
        self.block().entries()
    }

    fn block(&self) -> DirBlock<'_> {
        DirBlock::inline(&self.bytes[self.span.clone()], self.nr)
    }
}

/// What a directory's blocks say of their holes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hole {
    pub said: u16,
    pub largest: usize,
    pub next: BlockNr,
}

/// A directory as it is checked.
struct Dir {
    ino: BlockNr,
    indexed: bool,
    orphaned: bool,
    /// The slot whose orphans it has.
    orphans_of: Option<u16>,
    /// Its first block.
    first: Option<BlockNr>,
    names: Parts<Name>,
    holes: HashMap<BlockNr, Hole>,
}

impl Checker<'_> {
    /// Begins with a directory; nothing is reported. `None` if it is none.
    pub(super) async fn open_dir(&mut self, nr: BlockNr) -> Step<Option<DirWalk>> {
        let Ok((bytes, _)) = self.view.read(nr, Kind::Dinode).await? else {
            return Ok(None);
        };
        let inode = Dinode::of(&bytes);
        let is_dir = inode.i_signature == Dinode::SIGNATURE
            && inode.file_type() == Some(FileType::Directory);
        Ok(is_dir.then(|| self.dir_walk(nr, &bytes, false)))
    }

    fn dir_walk(&mut self, nr: BlockNr, bytes: &[u8], tell: bool) -> DirWalk {
        let inode = Dinode::of(bytes);
        let inline = inode.body() == Body::Inline;
        let walk = (inode.body() == Body::Extents).then(|| self.quiet_walk(nr, bytes));
        DirWalk {
            ino: nr,
            inline: inline.then(|| bytes.to_vec()),
            walk,
            extents: VecDeque::new(),
            next: 0,
            count: inode.i_size.get() >> self.geometry.block_size_bits,
            trailer: inode.has_dir_trailer(&self.geometry),
            tell,
        }
    }

    pub(super) async fn next_dir_block(
        &mut self,
        walk: &mut Option<DirWalk>,
    ) -> Step<Option<Entries>> {
        let Some(dir) = walk else { return Ok(None) };
        if let Some(bytes) = dir.inline.take() {
            let span = inline_data_span(&bytes);
            return Ok(Some(Entries {
                nr: dir.ino,
                logical: 0,
                bytes,
                span,
                trailer: None,
            }));
        }
        while dir.next < dir.count {
            let logical = dir.next;
            let Some(nr) = self.dir_block_nr(dir, logical).await? else {
                return Ok(None);
            };
            dir.next += 1;
            let kind = Kind::DirBlock {
                trailer: dir.trailer,
            };
            let bytes = if dir.tell {
                self.read(nr, kind, Some(dir.ino)).await?
            } else {
                self.view.read(nr, kind).await?.ok().map(|(bytes, _)| bytes)
            };
            let Some(bytes) = bytes else { continue };
            let span = 0..entries_end(bytes.len(), dir.trailer);
            let trailer = dir.trailer.then(|| *DirTrailer::of(&bytes));
            return Ok(Some(Entries {
                nr,
                logical,
                bytes,
                span,
                trailer,
            }));
        }
        Ok(None)
    }

    /// Where a directory's block is.
    async fn dir_block_nr(&mut self, dir: &mut DirWalk, logical: u64) -> Step<Option<BlockNr>> {
        let per_cluster = u64::from(self.geometry.blocks_per_cluster());
        let cluster = logical / per_cluster;
        loop {
            if let Some(extent) = dir.extents.front() {
                let (first, end) = (
                    u64::from(extent.cpos),
                    u64::from(extent.cpos) + u64::from(extent.clusters),
                );
                if cluster >= end {
                    dir.extents.pop_front();
                    continue;
                }
                if cluster < first {
                    return Ok(None); // a hole, told when its extents were
                }
                let into = (cluster - first) * per_cluster + logical % per_cluster;
                return Ok(Some(BlockNr(extent.start.0 + into)));
            }
            let Some(walk) = &mut dir.walk else {
                return Ok(None);
            };
            match self.next_leaf(walk).await? {
                Some(leaf) => dir.extents.extend(leaf),
                None => return Ok(None),
            }
        }
    }

    pub(super) async fn check_directories(&mut self) -> Step<()> {
        let dirs = self.links.sorted_dirs();
        self.report.begin(Phase::Directories, dirs.len() as u64)?;
        // Names for what was found so far.
        let wanted: HashSet<u64> = self
            .report
            .findings
            .iter()
            .filter_map(|finding| finding.inode)
            .collect();
        for (ino, orphaned) in dirs {
            self.check_directory(ino, orphaned, &wanted).await?;
            self.report.advance(1)?;
        }
        Ok(())
    }

    async fn check_directory(
        &mut self,
        ino: BlockNr,
        orphaned: bool,
        wanted: &HashSet<u64>,
    ) -> Step<()> {
        let Ok((bytes, _)) = self.view.read(ino, Kind::Dinode).await? else {
            return Ok(());
        };
        let inode = *Dinode::of(&bytes);
        let features = inode.dyn_features();
        let inline = features.contains(DynFeatures::INLINE_DATA);
        let indexed = features.contains(DynFeatures::INDEXED_DIR)
            && self.geometry.has(Incompat::INDEXED_DIRS);
        if !inline && !indexed && self.geometry.has(Incompat::INDEXED_DIRS) {
            let message = "the directory has no index";
            self.find(Code::DxTreeMissing, Spot::ino(ino), message);
        }
        let mut dir = Dir {
            ino,
            indexed,
            orphaned,
            orphans_of: self.files.orphan_slot(ino),
            // A name takes 16 bytes and more.
            names: Parts::new(inode.i_size.get() / 32),
            holes: HashMap::new(),
            first: None,
        };
        let mut walk = Some(self.dir_walk(ino, &bytes, true));
        while let Some(block) = self.next_dir_block(&mut walk).await? {
            self.check_dir_block(&mut dir, &block, wanted);
        }
        self.check_names(&mut dir, &inode).await
    }

    fn check_dir_block(&mut self, dir: &mut Dir, block: &Entries, wanted: &HashSet<u64>) {
        let spot = Spot::of(dir.ino, block.nr);
        if block.logical == 0 {
            dir.first = Some(block.nr);
        }
        let mut largest = Some(0);
        for (index, entry) in block.entries().enumerate() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    self.find(Code::DirentLength, spot, error.to_string());
                    largest = None;
                    break;
                }
            };
            largest = largest.map(|largest: usize| largest.max(entry.room()));
            let dot = match (block.logical, index) {
                (0, 0) => 1,
                (0, 1) => 2,
                _ => 0,
            };
            self.check_entry(dir, block.nr, &entry, dot, wanted);
        }
        if let Some(trailer) = block.trailer {
            self.check_trailer(dir, block.nr, &trailer, largest);
        }
    }

    fn check_trailer(
        &mut self,
        dir: &mut Dir,
        nr: BlockNr,
        trailer: &DirTrailer,
        largest: Option<usize>,
    ) {
        let spot = Spot::of(dir.ino, nr);
        if trailer.db_signature != DirTrailer::SIGNATURE {
            let message = "the block's trailer has no signature of one";
            self.find(Code::DirTrailerInvalid, spot, message);
            return;
        }
        if trailer.db_compat_inode.get() != 0 {
            let message = format!(
                "the trailer looks like an entry of inode {}",
                trailer.db_compat_inode.get()
            );
            self.find(Code::DirTrailerInode, spot, message);
        }
        if trailer.db_compat_name_len != 0 {
            let message = format!(
                "the trailer looks like a name of {} bytes",
                trailer.db_compat_name_len
            );
            self.find(Code::DirTrailerNameLen, spot, message);
        }
        if usize::from(trailer.db_compat_rec_len.get()) != size_of::<DirTrailer>() {
            let message = format!("the trailer has {} bytes", trailer.db_compat_rec_len.get());
            self.find(Code::DirTrailerRecLen, spot, message);
        }
        if trailer.db_blkno.get() != nr.0 {
            let message = format!("the block calls itself {}", trailer.db_blkno.get());
            self.find(Code::DirTrailerBlkno, spot, message);
        }
        if trailer.db_parent_dinode.get() != dir.ino.0 {
            let message = format!(
                "the block says that it is of directory {}",
                trailer.db_parent_dinode.get()
            );
            self.find(Code::DirTrailerParentInode, spot, message);
        }
        if let Some(largest) = largest.filter(|_| dir.indexed) {
            dir.holes.insert(
                nr,
                Hole {
                    said: trailer.db_free_rec_len.get(),
                    largest,
                    next: BlockNr(trailer.db_free_next.get()),
                },
            );
        }
    }

    /// An entry; `dot` is 1 or 2 where `.` or `..` belongs.
    fn check_entry(
        &mut self,
        dir: &mut Dir,
        block: BlockNr,
        entry: &DirEntry<'_>,
        dot: usize,
        wanted: &HashSet<u64>,
    ) {
        let spot = Spot::of(dir.ino, block);
        let name = entry.name.escape_ascii();
        let dots: &[u8] = &b".."[..dot];
        let is_dots = matches!(entry.name, b"." | b"..");
        if dot > 0 && entry.name != dots {
            let message = format!("the directory's entry {dot} is {name}");
            self.find(Code::DirentNotDotty, spot, message);
        }
        if dot == 0 && is_dots && !entry.is_free() {
            let message = format!("{name} at {} of the block", entry.offset);
            self.find(Code::DirentDottyDup, spot, message);
            return;
        }
        if dot == 1 {
            if entry.inode != dir.ino {
                let message = format!(". is inode {}", entry.inode);
                self.find(Code::DirentDotInode, spot, message);
            }
            if entry.rec_len != dirent_len(1) {
                let message = format!(". takes {} bytes", entry.rec_len);
                self.find(Code::DirentDotExcess, spot, message);
            }
        }
        if dot == 2 {
            self.links.set_dotdot(dir.ino, entry.inode);
        }
        if entry.is_free() {
            return;
        }
        if entry.name.is_empty() {
            let message = format!("an entry without a name at {} of the block", entry.offset);
            self.find(Code::DirentZero, spot, message);
        } else if !ondisk::is_legal_name(entry.name) {
            self.find(Code::DirentNameChars, spot, format!("the name {name}"));
        }
        if !self.holds(entry.inode) {
            let message = format!("{name} is inode {}, outside the volume", entry.inode);
            self.find(Code::DirentInodeRange, spot, message);
            return;
        }
        let place = self.places.inode(entry.inode);
        let claimed = place.filter(|at| self.places.groups[at.group].is_claimed(at.bit));
        let Some(place) = claimed else {
            let message = format!("{name} is inode {}, which is free", entry.inode);
            self.find(Code::DirentInodeFree, spot, message);
            return;
        };
        let kind = self.places.state(place) & state::KIND;
        if kind == 0 {
            // Told already: its bit is set, and it is no inode.
            return;
        }
        if entry.file_type != kind {
            let message = format!(
                "{name} is said to be of type {}, inode {} is of type {kind}",
                entry.file_type, entry.inode
            );
            self.find(Code::DirentType, spot, message);
        }
        self.count_entry(dir, entry, dot, kind, spot);
        if dot == 0 {
            if wanted.contains(&entry.inode.0) {
                self.names
                    .insert(entry.inode.0, (dir.ino.0, entry.name.to_vec()));
            }
            let seed = self.geometry.dx_seed;
            let hash = dir_hash(&seed, entry.name, Bytes::WRITTEN);
            let other =
                Bytes::matters_for(entry.name).then(|| dir_hash(&seed, entry.name, Bytes::OTHER));
            let mut hasher = DefaultHasher::new();
            entry.name.hash(&mut hasher);
            let name = Name {
                hash,
                other,
                block,
                print: hasher.finish(),
            };
            dir.names.push(hash.major, name);
        }
    }

    /// What an entry adds to link counts and to the tree of directories.
    fn count_entry(&mut self, dir: &Dir, entry: &DirEntry<'_>, dot: usize, kind: u8, spot: Spot) {
        let Some(place) = self.places.inode(entry.inode) else {
            return;
        };
        let is_dir = kind == FileType::Directory.dirent();
        if dot > 0 {
            // Of an orphaned directory both are of no account, its links are 0.
            if !dir.orphaned && is_dir {
                self.links.name(&mut self.places, place, entry.inode);
            }
            return;
        }
        if dir.orphans_of.is_some() {
            self.check_orphan_entry(dir, entry, is_dir, spot);
            return;
        }
        self.links.name(&mut self.places, place, entry.inode);
        if is_dir && !self.links.set_parent(entry.inode, dir.ino) {
            let message = format!(
                "{} is directory {}, which has another name",
                entry.name.escape_ascii(),
                entry.inode
            );
            self.find(Code::DirParentDup, spot, message);
        }
    }

    fn check_orphan_entry(&mut self, dir: &Dir, entry: &DirEntry<'_>, is_dir: bool, spot: Spot) {
        let Some(place) = self.places.inode(entry.inode) else {
            return;
        };
        let dio = entry.name.starts_with(b"dio-");
        let flag = if dio {
            state::DIO_ORPHANED
        } else {
            state::ORPHANED
        };
        let number = entry.name.strip_prefix(b"dio-").unwrap_or(entry.name);
        let expected = format!("{:016x}", entry.inode.0);
        let is_orphan = self.places.state(place) & flag != 0;
        if !is_orphan || number != expected.as_bytes() {
            let message = format!(
                "{} in {} is inode {}, which is no such orphan",
                entry.name.escape_ascii(),
                SystemFile::OrphanDir.name(ondisk::SlotNr(dir.orphans_of.unwrap_or(0))),
                entry.inode
            );
            self.find(Code::InodeOrphaned, spot, message);
        }
        self.report.summary.orphans += 1;
        if dio {
            return;
        }
        if let Some(state) = self.places.state_mut(place) {
            *state |= state::IN_ORPHAN_DIR;
        }
        if is_dir {
            self.links.set_parent(entry.inode, dir.ino);
            if let Some(place) = self.places.inode(dir.ino) {
                self.links.name(&mut self.places, place, dir.ino);
            }
        }
    }

    /// No name twice; and the index, if there is one.
    async fn check_names(&mut self, dir: &mut Dir, inode: &Dinode) -> Step<()> {
        let mut index = if dir.indexed {
            let root = BlockNr(inode.i_dx_root.get());
            self.index_entries(dir.ino, root, dir.names.count()).await?
        } else {
            None
        };
        if let Some(index) = &index {
            self.check_free_list(dir.ino, index.first_hole, &dir.holes);
            let astray = index.dots.iter().find(|nr| Some(**nr) != dir.first);
            if let Some(nr) = astray {
                let message = format!("the index leads to block {nr} for the directory's dots");
                self.find(Code::DxLookupFailed, Spot::of(dir.ino, *nr), message);
            }
        }
        let mut lost = super::dx::Lost::default();
        for part in 0..dir.names.count() {
            let mut names = dir.names.take(part);
            names.sort_unstable_by_key(|name| (name.hash, name.print, name.block));
            let twins = names
                .windows(2)
                .filter(|pair| pair[0].hash == pair[1].hash && pair[0].print == pair[1].print);
            for pair in twins {
                let name = self.name_in_block(dir.indexed, &pair[1]).await?;
                let message = format!("the name {name} is there twice");
                self.find(
                    Code::DirentDuplicate,
                    Spot::of(dir.ino, pair[1].block),
                    message,
                );
            }
            if let Some(index) = &mut index {
                names.sort_unstable_by_key(|name| (name.hash, name.block));
                lost.match_part(names, index.entries.take(part));
            }
            self.view.breathe(16).await?;
        }
        if index.is_some() {
            self.tell_lost(dir.ino, lost).await?;
        }
        Ok(())
    }

    /// The name behind a hash, read again.
    pub(super) async fn name_in_block(&mut self, indexed: bool, name: &Name) -> Step<String> {
        let trailer = self.geometry.has_dir_trailer(indexed);
        let Ok((bytes, _)) = self.view.read(name.block, Kind::Raw).await? else {
            return Ok(format!("with hash {:#010x}", name.hash.major));
        };
        let inode = Dinode::of(&bytes);
        let span = if inode.i_signature == Dinode::SIGNATURE {
            inline_data_span(&bytes)
        } else {
            0..entries_end(bytes.len(), trailer)
        };
        let block = DirBlock::inline(&bytes[span], name.block);
        for entry in block.entries().map_while(Result::ok) {
            let hash = dir_hash(&self.geometry.dx_seed, entry.name, Bytes::WRITTEN);
            if hash == name.hash && !entry.is_free() {
                return Ok(entry.name.escape_ascii().to_string());
            }
        }
        Ok(format!("with hash {:#010x}", name.hash.major))
    }
}
