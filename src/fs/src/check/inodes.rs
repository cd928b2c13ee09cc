//! The third phase: every inode of every group, with its extents and attributes.

use ondisk::feature::{DynFeatures, ExtentFlags, Incompat, InodeFlags};
use ondisk::{
    BlockNr, Body, Dinode, DxRoot, FileType, InlineDataHeader, Kind, RootKind, capacity,
    extent_list, local_alloc, truncate_log,
};
use zerocopy::FromBytes;

use super::extents::{Extent, Tree, TreeKind};
use super::places::Place;
use super::report::Phase;
use super::view::Step;
use super::{Checker, Code, Spot};
use crate::limits::CHECK_READ_BYTES;

/// Where a dinode's variable part begins.
const VARIABLE_PART: usize = ondisk::INLINE_DATA_OFFSET - size_of::<InlineDataHeader>();

/// What is remembered of an inode in a byte.
pub(super) mod state {
    /// The number of its file type, 1 to 7; 0 if it is no valid inode.
    pub const KIND: u8 = 0x07;
    /// A name leads to it.
    pub const NAMED: u8 = 0x08;
    /// Its links are counted one by one.
    pub const COUNTED: u8 = 0x10;
    pub const ORPHANED: u8 = 0x20;
    pub const DIO_ORPHANED: u8 = 0x40;
    /// An orphan directory has it.
    pub const IN_ORPHAN_DIR: u8 = 0x80;
}

impl Checker<'_> {
    pub(super) async fn check_inodes(&mut self) -> Step<()> {
        let groups: Vec<usize> = (0..self.places.groups.len())
            .filter(|&at| self.places.groups[at].allocator.of_inodes)
            .collect();
        let total = groups
            .iter()
            .map(|&at| self.places.groups[at].claimed_count());
        let total = total.sum();
        self.report.begin(Phase::Inodes, total)?;
        for group in groups {
            self.check_inode_group(group).await?;
        }
        self.check_metadata_bits();
        Ok(())
    }

    async fn check_inode_group(&mut self, group: usize) -> Step<()> {
        let at_once = CHECK_READ_BYTES / self.geometry.block_size();
        let runs = self.places.groups[group].runs.clone();
        let bits = self.places.groups[group].bits;
        let mut bit = 0;
        for (first, count) in runs {
            let mut done = 0;
            while done < count && bit < bits {
                let now = (count - done).min(at_once as u32).min(bits - bit);
                let start = BlockNr(first + u64::from(done));
                self.check_inode_run(group, bit, start, now).await?;
                done += now;
                bit += now;
            }
        }
        Ok(())
    }

    async fn check_inode_run(
        &mut self,
        group: usize,
        bit: u32,
        start: BlockNr,
        count: u32,
    ) -> Step<()> {
        let run = match self.view.read_run(start, count as usize).await? {
            Ok(run) => run,
            Err(error) => {
                let spot = Spot::block(start);
                self.find(
                    Code::ReadError,
                    spot,
                    format!("{count} blocks of inodes: {error}"),
                );
                return Ok(());
            }
        };
        let mut claimed = 0;
        for index in 0..run.len() {
            let bit = bit + index as u32;
            if bit == 0 {
                continue;
            }
            let (nr, place) = (run.nr(index), Place { group, bit });
            let is_claimed = self.places.groups[group].is_claimed(bit);
            let Some((bytes, stored)) = run.block(index) else {
                if is_claimed {
                    return Err(super::Stop::Ended(format!("inode {nr} was made anew")));
                }
                continue;
            };
            if !is_claimed {
                self.check_free_inode(nr, place, &bytes);
                continue;
            }
            claimed += 1;
            let bytes = if stored {
                let (bytes, sum) = self.view.verify(bytes, nr, Kind::Dinode);
                self.judge(sum, Spot::ino(nr));
                bytes
            } else {
                bytes
            };
            self.check_inode(nr, place, &bytes).await?;
            self.view.breathe(1).await?;
        }
        self.report.advance(claimed)
    }

    /// A block whose bit is clear must not be an inode in use.
    fn check_free_inode(&mut self, nr: BlockNr, place: Place, bytes: &[u8]) {
        let inode = Dinode::of(bytes);
        // Anything may be in a free block, also bytes of a file that look like an inode: only one that
        // says it is this very one counts.
        let in_use = inode.i_signature == Dinode::SIGNATURE
            && inode.i_blkno.get() == nr.0
            && inode.i_fs_generation.get() == self.geometry.fs_generation.0
            && inode.flags().contains(InodeFlags::VALID)
            && self.places.groups[place.group].agrees(place.bit, nr, inode.suballoc());
        if in_use {
            let message = "the inode is valid, but its bit in its allocator is clear";
            self.find(Code::InodeAllocRepair, Spot::ino(nr), message);
        }
    }

    async fn check_inode(&mut self, nr: BlockNr, place: Place, bytes: &[u8]) -> Step<()> {
        let inode = Dinode::of(bytes);
        let spot = Spot::ino(nr);
        self.places.groups[place.group].see(place.bit);
        let invalid = if inode.i_signature != Dinode::SIGNATURE {
            Some("it has no signature of one".to_owned())
        } else if inode.i_fs_generation.get() != self.geometry.fs_generation.0 {
            Some(format!(
                "it is of generation {:#x}",
                inode.i_fs_generation.get()
            ))
        } else if !inode.flags().contains(InodeFlags::VALID) {
            Some("it is not in use".to_owned())
        } else {
            None
        };
        if let Some(why) = invalid {
            let message = format!("the inode's bit in its allocator is set, but {why}");
            self.find(Code::InodeAllocRepair, spot, message);
            return Ok(());
        }
        self.report.summary.inodes += 1;
        self.check_identity(nr, place, inode);
        let Some(kind) = inode.file_type() else {
            let message = format!("the mode {:#o} names no type of file", inode.i_mode.get());
            self.find(Code::InodeMode, spot, message);
            return Ok(());
        };
        self.remember(nr, place, inode, kind);
        self.check_features(nr, inode);
        if inode.dyn_features().contains(DynFeatures::HAS_REFCOUNT) {
            self.check_refcount_root(nr, BlockNr(inode.i_refcount_loc.get()))
                .await?;
        }
        match inode.body() {
            Body::Super => {
                let message = "an inode claims to be the superblock";
                self.find(Code::InodeField, spot, message);
            }
            Body::Chains => {}
            Body::LocalAlloc => self.check_local_alloc(nr, bytes),
            Body::TruncateLog => self.check_truncate_log(nr, bytes),
            Body::Inline => self.check_inline(nr, bytes),
            Body::FastSymlink => self.check_fast_symlink(nr, bytes),
            Body::Extents => self.check_data(nr, kind, bytes).await?,
        }
        if inode.dyn_features().contains(DynFeatures::INDEXED_DIR) {
            self.check_index_tree(nr, bytes).await?;
        }
        if inode.dyn_features().contains(DynFeatures::HAS_XATTR) {
            self.check_xattrs(nr, bytes).await?;
        }
        Ok(())
    }

    fn check_identity(&mut self, nr: BlockNr, place: Place, inode: &Dinode) {
        let spot = Spot::ino(nr);
        if inode.i_blkno.get() != nr.0 {
            let message = format!("the inode calls itself {}", inode.i_blkno.get());
            self.find(Code::InodeBlkno, spot, message);
        }
        let group = &self.places.groups[place.group];
        let suballoc = inode.suballoc();
        if !group.agrees(place.bit, nr, suballoc) {
            let message = format!(
                "the inode says that it is bit {} of group {} of slot {}, it is bit {} of group {} of slot {}",
                suballoc.bit,
                suballoc.group,
                suballoc.slot,
                place.bit,
                group.nr,
                group.allocator.slot
            );
            self.find(Code::InodeSuballoc, spot, message);
        }
        if inode.i_dtime.get() != 0 {
            let message = format!("the inode was deleted at {}", inode.i_dtime.get());
            self.find(Code::InodeNzDtime, spot, message);
        }
    }

    /// What later phases ask of it.
    fn remember(&mut self, nr: BlockNr, place: Place, inode: &Dinode, kind: FileType) {
        let flags = inode.flags();
        let mut byte = kind.dirent();
        if flags.contains(InodeFlags::ORPHANED) {
            byte |= state::ORPHANED;
        }
        if flags.contains(InodeFlags::DIO_ORPHANED) {
            byte |= state::DIO_ORPHANED;
        }
        let links = inode.links();
        if kind == FileType::Directory {
            self.report.summary.directories += 1;
            let orphaned = flags.contains(InodeFlags::ORPHANED);
            self.links.add_dir(nr, orphaned);
        }
        if kind == FileType::Directory || links != 1 {
            byte |= state::COUNTED;
            self.links.expect(nr, links);
        }
        if let Some(state) = self.places.state_mut(place) {
            *state = byte;
        }
        if nr == self.geometry.root_dir && kind != FileType::Directory {
            let message = "the root directory's inode is no directory";
            self.find(Code::RootNotdir, Spot::ino(nr), message);
        }
    }

    fn check_features(&mut self, nr: BlockNr, inode: &Dinode) {
        let spot = Spot::ino(nr);
        let features = inode.dyn_features();
        let geometry = self.geometry.clone();
        if features.contains(DynFeatures::INLINE_DATA) && !geometry.has(Incompat::INLINE_DATA) {
            let message = "inline data on a volume without that feature";
            self.find(Code::InlineDataFlagInvalid, spot, message);
        }
        let shares = features.contains(DynFeatures::HAS_REFCOUNT);
        if shares && !geometry.has(Incompat::REFCOUNT_TREE) {
            let message = "a refcount tree on a volume without that feature";
            self.find(Code::RefcountFlagInvalid, spot, message);
        }
        let root = inode.i_refcount_loc.get();
        if !shares && root != 0 && geometry.has(Incompat::REFCOUNT_TREE) {
            let message = format!("the inode names refcount tree {root} without the flag for it");
            self.find(Code::RefcountLocInvalid, spot, message);
        }
        if features.contains(DynFeatures::INDEXED_DIR) && !geometry.has(Incompat::INDEXED_DIRS) {
            let message = "an index on a volume without that feature";
            self.find(Code::IvDxTree, spot, message);
        }
        let slots = geometry.max_slots;
        let flags = inode.flags();
        let bad_slot = (flags.contains(InodeFlags::ORPHANED)
            && inode.i_orphaned_slot.get() >= slots)
            || (flags.contains(InodeFlags::DIO_ORPHANED)
                && inode.i_dio_orphaned_slot.get() >= slots);
        if bad_slot {
            let message = "the inode is an orphan of a slot that the volume has not";
            self.find(Code::InodeField, spot, message);
        }
        let kind = inode.file_type();
        let device = matches!(kind, Some(FileType::CharDevice | FileType::BlockDevice));
        if !device && !flags.contains(InodeFlags::SYSTEM) && inode.rdev() != 0 {
            let message = format!("device number {:#x} of what is no device", inode.rdev());
            self.find(Code::InodeField, spot, message);
        }
    }

    fn check_inline(&mut self, nr: BlockNr, bytes: &[u8]) {
        let inode = Dinode::of(bytes);
        let spot = Spot::ino(nr);
        let size = bytes.len();
        let xattr = inode.inline_xattr_bytes(size);
        let most = capacity::inline_data_bytes(size, xattr) as u64;
        let whole = capacity::inline_data_bytes(size, 0) as u64;
        let header = InlineDataHeader::ref_from_prefix(&bytes[VARIABLE_PART..]);
        let count = header.map_or(0, |(header, _)| u64::from(header.id_count.get()));
        if count != most {
            let message = format!("room for {count} bytes of inline data, expected {most}");
            // A clone of a file with inline attributes, made by the Linux driver.
            if count == whole && inode.i_size.get() <= most {
                self.note(Code::InlineDataCountInvalid, spot, message);
            } else {
                self.find(Code::InlineDataCountInvalid, spot, message);
            }
        }
        if inode.i_size.get() > most {
            let message = format!("{} bytes of inline data, {most} fit", inode.i_size.get());
            self.find(Code::InodeInlineSize, spot, message);
        }
        if inode.i_clusters.get() != 0 {
            let message = format!("inline data and {} clusters", inode.i_clusters.get());
            self.find(Code::InodeInlineClusters, spot, message);
        }
    }

    fn check_fast_symlink(&mut self, nr: BlockNr, bytes: &[u8]) {
        let inode = Dinode::of(bytes);
        let end = bytes.len() - inode.inline_xattr_bytes(bytes.len());
        let room = &bytes[VARIABLE_PART..end.max(VARIABLE_PART)];
        let length = room.iter().position(|&byte| byte == 0);
        self.check_text(nr, inode.i_size.get(), length.map(|at| at as u64));
    }

    fn check_text(&mut self, nr: BlockNr, size: u64, length: Option<u64>) {
        let spot = Spot::ino(nr);
        match length {
            None => self.find(Code::LinkNullterm, spot, "the symlink's text does not end"),
            Some(length) if length != size => {
                let message = format!("the symlink's text has {length} bytes, its size is {size}");
                self.find(Code::LinkSize, spot, message);
            }
            Some(_) => {}
        }
    }

    /// An inode's extents; its size and clusters against them.
    async fn check_data(&mut self, nr: BlockNr, kind: FileType, bytes: &[u8]) -> Step<()> {
        let inode = *Dinode::of(bytes);
        let spot = Spot::ino(nr);
        let shares = inode.dyn_features().contains(DynFeatures::HAS_REFCOUNT);
        let tree = Tree {
            kind: match kind {
                FileType::Directory => TreeKind::Dense,
                _ => TreeKind::Data,
            },
            spot,
            capacity: RootKind::Dinode.capacity(bytes),
            may_share: shares,
            quiet: false,
        };
        let sharing = shares.then(|| BlockNr(inode.i_refcount_loc.get()));
        let mut walk = self.walk(tree, extent_list(bytes, RootKind::Dinode));
        let mut first = None;
        while let Some(leaf) = self.next_leaf(&mut walk).await? {
            first = first.or(leaf.first().copied());
            self.take_extents(nr, sharing, "of its data", &leaf);
            self.view.breathe(1).await?;
        }
        self.finish_walk(&mut walk, inode.i_last_eb_blk.get(), "the data");
        self.check_size(nr, kind, &inode, walk.clusters, walk.end());
        if kind == FileType::Symlink {
            self.check_slow_symlink(nr, &inode, first).await?;
        }
        Ok(())
    }

    /// Clusters of an inode are in use: its own, or shared ones, which are counted later.
    pub(super) fn take_extents(
        &mut self,
        nr: BlockNr,
        sharing: Option<BlockNr>,
        what: &str,
        extents: &[Extent],
    ) {
        let per_cluster = u64::from(self.geometry.blocks_per_cluster());
        for extent in extents {
            let first = extent.start.0 / per_cluster;
            let tree = sharing.filter(|_| extent.flags.contains(ExtentFlags::REFCOUNTED));
            match tree {
                Some(root) => self.share_clusters(root, first as u32, extent.clusters),
                None => self.use_clusters(first, extent.clusters.into(), what, Spot::ino(nr)),
            }
        }
    }

    fn check_size(&mut self, nr: BlockNr, kind: FileType, inode: &Dinode, clusters: u64, end: u64) {
        let spot = Spot::ino(nr);
        let sparse = self.geometry.has(Incompat::SPARSE_ALLOC);
        let size = inode.i_size.get();
        let bits = self.geometry.cluster_size_bits;
        let reach = end << bits;
        let code = if sparse {
            Code::InodeSparseClusters
        } else {
            Code::InodeClusters
        };
        if u64::from(inode.i_clusters.get()) != clusters {
            let message = format!(
                "the inode counts {} clusters, its extents have {clusters}",
                inode.i_clusters.get()
            );
            self.find(code, spot, message);
        }
        if kind == FileType::Directory {
            if clusters == 0 {
                self.find(Code::DirZero, spot, "the directory has no block");
            }
            if size > reach || !size.is_multiple_of(self.geometry.block_size() as u64) {
                let message = format!("a directory of {size} bytes in {reach}");
                self.find(Code::InodeSize, spot, message);
            }
            return;
        }
        if kind == FileType::Symlink {
            return;
        }
        if !sparse {
            if size > reach {
                let message = format!("{size} bytes, its clusters have {reach}");
                self.find(Code::InodeSize, spot, message);
            }
        } else if clusters > 0 && size <= reach.saturating_sub(1 << bits) {
            let message = format!("{size} bytes, but clusters up to {reach}");
            self.find(Code::InodeSparseSize, spot, message);
        }
    }

    /// The text of a symlink in clusters. Only if the inode is as it was: its clusters may be
    /// somebody else's by now.
    async fn check_slow_symlink(
        &mut self,
        nr: BlockNr,
        inode: &Dinode,
        first: Option<Extent>,
    ) -> Step<()> {
        let spot = Spot::ino(nr);
        let size = inode.i_size.get();
        let Some(first) = first.filter(|first| first.cpos == 0) else {
            if size > 0 {
                self.find(Code::LinkBlocks, spot, "the symlink's text has no block");
            }
            return Ok(());
        };
        if inode.i_clusters.get() == 0 {
            self.find(
                Code::LinkFastData,
                spot,
                "a symlink without clusters has extents",
            );
            return Ok(());
        }
        let bytes = u64::from(first.clusters) << self.geometry.cluster_size_bits;
        let block_size = self.geometry.block_size() as u64;
        // PATH_MAX and its NUL.
        let most = bytes.min(4096 + block_size);
        let mut length = 0;
        for index in 0..most / block_size {
            let block = BlockNr(first.start.0 + index);
            let Ok((text, _)) = self.view.read(block, Kind::Raw).await? else {
                let message = "the symlink's text cannot be read";
                self.find(Code::ReadError, Spot::of(nr, block), message);
                return Ok(());
            };
            if self.view.has_changed(nr) {
                return Ok(());
            }
            match text.iter().position(|&byte| byte == 0) {
                Some(at) => {
                    self.check_text(nr, size, Some(length + at as u64));
                    return Ok(());
                }
                None => length += block_size,
            }
        }
        if size >= bytes {
            let message = format!("{size} bytes of text in {bytes}");
            self.find(Code::LinkBlocks, spot, message);
        } else {
            self.check_text(nr, size, None);
        }
        Ok(())
    }

    /// The tree of a directory's index: its blocks and clusters. What is in it comes later.
    async fn check_index_tree(&mut self, nr: BlockNr, bytes: &[u8]) -> Step<()> {
        let root = BlockNr(Dinode::of(bytes).i_dx_root.get());
        let spot = Spot::of(nr, root);
        let Some(bytes) = self.read_index_root(nr, root, true).await? else {
            return Ok(());
        };
        let index = DxRoot::of(&bytes);
        if !self.use_metadata(root, "an index root", index.suballoc(), spot) || index.is_inline() {
            return Ok(());
        }
        let tree = Tree {
            kind: TreeKind::Keyed,
            spot,
            capacity: RootKind::DxRoot.capacity(&bytes),
            may_share: false,
            quiet: false,
        };
        let mut walk = self.walk(tree, extent_list(&bytes, RootKind::DxRoot));
        while let Some(leaf) = self.next_leaf(&mut walk).await? {
            self.take_extents(nr, None, "of its index", &leaf);
        }
        self.finish_walk(&mut walk, index.dr_last_eb_blk.get(), "the index");
        if walk.whole && u64::from(index.dr_clusters.get()) != walk.clusters {
            let message = format!(
                "the index counts {} clusters, its extents have {}",
                index.dr_clusters.get(),
                walk.clusters
            );
            self.find(Code::TreeClusters, spot, message);
        }
        Ok(())
    }

    /// An index root, if it is the directory's. Tells what is wrong only once.
    pub(super) async fn read_index_root(
        &mut self,
        nr: BlockNr,
        root: BlockNr,
        tell: bool,
    ) -> Step<Option<Vec<u8>>> {
        if !self.holds(root) {
            if tell {
                let message = format!("the index is in block {root}, outside the volume");
                self.find(Code::DxTreeCorrupt, Spot::ino(nr), message);
            }
            return Ok(None);
        }
        let bytes = if tell {
            self.read(root, Kind::DxRoot, Some(nr)).await?
        } else {
            self.view
                .read(root, Kind::DxRoot)
                .await?
                .ok()
                .map(|read| read.0)
        };
        let Some(bytes) = bytes else {
            return Ok(None);
        };
        let wrong = match DxRoot::validate(&bytes, root, &self.geometry) {
            Err(error) => Some(error.to_string()),
            Ok(()) if DxRoot::of(&bytes).dr_dir_blkno.get() != nr.0 => Some(format!(
                "the index is that of directory {}",
                DxRoot::of(&bytes).dr_dir_blkno.get()
            )),
            Ok(()) => None,
        };
        match wrong {
            None => Ok(Some(bytes)),
            Some(why) => {
                if tell {
                    self.find(Code::DxTreeCorrupt, Spot::of(nr, root), why);
                }
                Ok(None)
            }
        }
    }

    fn check_local_alloc(&mut self, nr: BlockNr, bytes: &[u8]) {
        let spot = Spot::ino(nr);
        let window = local_alloc(bytes);
        let most = capacity::local_alloc_bytes(bytes.len());
        let (size, start) = (
            usize::from(window.header.la_size.get()),
            window.header.la_bm_off.get(),
        );
        let (used, total) = (window.dinode.used(), window.dinode.total());
        let clusters = u64::from(self.geometry.total_clusters);
        let end = u64::from(start) + u64::from(total);
        let mut broken = false;
        if size > most {
            let message = format!("a window's bitmap of {size} bytes, {most} fit");
            self.find(Code::LallocSize, spot, message);
            broken = true;
        }
        if total == 0 {
            if used != 0 {
                self.find(
                    Code::LallocNzUsed,
                    spot,
                    format!("no window, and {used} used bits"),
                );
            }
            if start != 0 {
                self.find(
                    Code::LallocNzBm,
                    spot,
                    format!("no window, and a start at {start}"),
                );
            }
            return;
        }
        if u64::from(start) >= clusters {
            let message = format!("a window from cluster {start}, the volume has {clusters}");
            self.find(Code::LallocBmOverrun, spot, message);
            broken = true;
        }
        if u64::from(total) > size as u64 * 8 {
            let message = format!("a window of {total} bits in {size} bytes");
            self.find(Code::LallocBmSize, spot, message);
            broken = true;
        }
        if end > clusters {
            let message = format!("a window up to cluster {end}, the volume has {clusters}");
            self.find(Code::LallocBmStraddle, spot, message);
            broken = true;
        }
        if used > total {
            let message = format!("a window of {total} bits, and {used} of them used");
            self.find(Code::LallocUsedOverrun, spot, message);
            broken = true;
        }
        if broken {
            return;
        }
        // What is clear here is the slot's to hand out, and set in the global bitmap.
        let is_set = |bit: u32| {
            let byte = window.bitmap.get(bit as usize / 8).copied().unwrap_or(0);
            byte >> (bit % 8) & 1 == 1
        };
        let set = (0..total).filter(|&bit| is_set(bit)).count();
        if set != used as usize {
            let message = format!("a window counts {used} used bits, its bitmap has {set}");
            self.find(Code::LallocUsed, spot, message);
        }
        let mut bit = 0;
        while bit < total {
            let length = (bit..total).take_while(|&bit| !is_set(bit)).count() as u32;
            if length > 0 {
                let first = u64::from(start) + u64::from(bit);
                self.use_clusters(first, length.into(), "of a window", spot);
            }
            bit += length + 1;
        }
    }

    fn check_truncate_log(&mut self, nr: BlockNr, bytes: &[u8]) {
        let spot = Spot::ino(nr);
        let log = truncate_log(bytes);
        let most = capacity::truncate_records(bytes.len());
        let (count, used) = (
            usize::from(log.header.tl_count.get()),
            usize::from(log.header.tl_used.get()),
        );
        if count > most {
            let message = format!("a truncate log of {count} records, {most} fit");
            self.find(Code::DeallocCount, spot, message);
        }
        if used > count {
            let message = format!("a truncate log uses {used} records of {count}");
            self.find(Code::DeallocUsed, spot, message);
        }
        let clusters = u64::from(self.geometry.total_clusters);
        for (at, rec) in log.used().iter().take(most).enumerate() {
            let (start, length) = (rec.t_start.get(), rec.t_clusters.get());
            if start == 0 {
                continue;
            }
            let end = u64::from(start) + u64::from(length);
            let code = if u64::from(start) >= clusters {
                Code::TruncateRecStartRange
            } else if end > u64::from(u32::MAX) {
                Code::TruncateRecWrap
            } else if end > clusters {
                Code::TruncateRecRange
            } else {
                self.use_clusters(start.into(), length.into(), "of a truncate log", spot);
                continue;
            };
            let message =
                format!("record {at}: {length} clusters from {start}, the volume has {clusters}");
            self.find(code, spot, message);
        }
    }

    /// Blocks that are claimed in an extent allocator and that nobody uses.
    fn check_metadata_bits(&mut self) {
        for at in 0..self.places.groups.len() {
            let group = &self.places.groups[at];
            if group.allocator.of_inodes {
                continue;
            }
            let unused: Vec<u32> = (1..group.bits)
                .filter(|&bit| group.is_claimed(bit) && !group.is_seen(bit))
                .collect();
            for bit in unused {
                let group = &self.places.groups[at];
                let (nr, own) = (group.block(bit).unwrap_or(group.nr), group.nr);
                let message =
                    format!("bit {bit} of group {own} is set, but nothing uses the block");
                self.find(Code::SuballocBit, Spot::block(nr), message);
            }
        }
    }
}
