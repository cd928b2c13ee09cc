//! The inode's block: its fixed part, which of the many things its variable part is, and whether all of that is valid.
//!
//! `fs` reads and changes dinodes through [`Dinode::of`] / [`Dinode::of_mut`] and the views of the variable part;
//! [`Dinode::body`] says which view applies. The rule owned here: the flags of the fixed part choose the variable part,
//! and an inline xattr area at the block's end takes its room away from it.

use crate::access::{layout, over_block};
use crate::capacity::{self, offset};
use crate::corrupt::{Check, Corrupt, Structure};
use crate::feature::{DynFeatures, Incompat, InodeFlags, JOURNAL_DIRTY};
use crate::file_type::FileType;
use crate::le::{U16, U32, U64};
use crate::{
    BlockCheck, BlockNr, Generation, Geometry, InlineDataHeader, RootKind, SlotNr, Suballoc,
    XattrArea, chain_list, extent_list, init_extent_list, local_alloc, truncate_log,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The fixed part of a dinode. `id1` is seen through accessors, `id2` through views.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct Dinode {
    pub i_signature: [u8; 8],
    pub i_generation: U32,
    pub i_suballoc_slot: U16,
    pub i_suballoc_bit: U16,
    pub i_links_count_hi: U16,
    pub i_xattr_inline_size: U16,
    pub i_clusters: U32,
    pub i_uid: U32,
    pub i_gid: U32,
    pub i_size: U64,
    pub i_mode: U16,
    pub i_links_count: U16,
    pub i_flags: U32,
    pub i_atime: U64,
    pub i_ctime: U64,
    pub i_mtime: U64,
    pub i_dtime: U64,
    pub i_blkno: U64,
    pub i_last_eb_blk: U64,
    pub i_fs_generation: U32,
    pub i_atime_nsec: U32,
    pub i_ctime_nsec: U32,
    pub i_mtime_nsec: U32,
    pub i_attr: U32,
    pub i_orphaned_slot: U16,
    pub i_dyn_features: U16,
    pub i_xattr_loc: U64,
    pub i_check: BlockCheck,
    pub i_dx_root: U64,
    pub i_refcount_loc: U64,
    pub i_suballoc_loc: U64,
    pub i_dio_orphaned_slot: U16,
    pub i_reserved1: [U16; 3],
    pub i_reserved2: [U64; 2],
    /// The union `id1`: device number, or used and total bits of a bitmap, or a journal's flags and recovery
    /// generation. See [`Dinode::rdev`], [`Dinode::used`], [`Dinode::journal_flags`].
    pub id1: [u8; 8],
}
layout!(
    Dinode, 0xC0,
    i_generation @ 0x08, i_suballoc_slot @ 0x0C, i_links_count_hi @ 0x10, i_xattr_inline_size @ 0x12,
    i_clusters @ 0x14, i_uid @ 0x18, i_size @ 0x20, i_mode @ 0x28, i_links_count @ 0x2A, i_flags @ 0x2C,
    i_atime @ 0x30, i_ctime @ 0x38, i_mtime @ 0x40, i_dtime @ 0x48, i_blkno @ 0x50, i_last_eb_blk @ 0x58,
    i_fs_generation @ 0x60, i_atime_nsec @ 0x64, i_mtime_nsec @ 0x6C, i_attr @ 0x70, i_orphaned_slot @ 0x74,
    i_dyn_features @ 0x76, i_xattr_loc @ 0x78, i_check @ 0x80, i_dx_root @ 0x88, i_refcount_loc @ 0x90,
    i_suballoc_loc @ 0x98, i_dio_orphaned_slot @ 0xA0, i_reserved2 @ 0xA8, id1 @ 0xB8,
);
over_block!(Dinode);

/// What the variable part of a dinode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// The superblock.
    Super,
    /// A window of the global bitmap: [`local_alloc`].
    LocalAlloc,
    /// An allocator's chains: [`chain_list`].
    Chains,
    /// A truncate log: [`truncate_log`].
    TruncateLog,
    /// Data of a file or entries of a directory: [`inline_data`](crate::inline_data).
    Inline,
    /// The text of a symlink: [`fast_symlink`](crate::fast_symlink).
    FastSymlink,
    /// An extent list: [`extent_list`] with [`RootKind::Dinode`].
    Extents,
}

/// What a new inode starts with.
#[derive(Debug, Clone, Copy)]
pub struct NewDinode {
    /// Its own block.
    pub nr: BlockNr,
    /// Where that was allocated.
    pub suballoc: Suballoc,
    /// The inode's generation: file handles and lock names tell reuses of a block apart by it.
    pub generation: Generation,
    /// Type and permissions, as `st_mode`.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub links: u32,
    /// Device number in the kernel's `huge` encoding; 0 unless a character or block device.
    pub rdev: u64,
    /// Seconds and nanoseconds of all three times.
    pub time: (u64, u32),
    /// Bytes at the block's end to set aside for inline xattrs now; 0 for none.
    pub inline_xattr_bytes: u16,
    /// Whether to start with inline data rather than an extent list.
    pub inline_data: bool,
}

impl Dinode {
    /// What the block must start with.
    pub const SIGNATURE: [u8; 8] = *b"INODE01\0";

    /// Makes `block` a new, valid, empty inode.
    ///
    /// Symlinks that will be fast start with an extent list too: their text is written over it.
    pub fn init(block: &mut [u8], geometry: &Geometry, new: &NewDinode) {
        block.fill(0);
        let size = block.len();
        let this = Self::of_mut(block);
        this.i_signature = Self::SIGNATURE;
        this.i_generation = new.generation.0.into();
        this.i_fs_generation = geometry.fs_generation.0.into();
        this.i_blkno = new.nr.0.into();
        this.i_suballoc_slot = new.suballoc.slot.0.into();
        this.i_suballoc_bit = new.suballoc.bit.into();
        this.i_suballoc_loc = new.suballoc.group.0.into();
        this.i_uid = new.uid.into();
        this.i_gid = new.gid.into();
        this.i_mode = new.mode.into();
        this.set_rdev(new.rdev);
        this.set_links(new.links);
        this.i_flags = InodeFlags::VALID.bits().into();
        let (seconds, nanoseconds) = new.time;
        (this.i_atime, this.i_ctime, this.i_mtime) =
            (seconds.into(), seconds.into(), seconds.into());
        (this.i_atime_nsec, this.i_ctime_nsec, this.i_mtime_nsec) =
            (nanoseconds.into(), nanoseconds.into(), nanoseconds.into());
        let mut features = DynFeatures::empty();
        if new.inline_xattr_bytes > 0 {
            features |= DynFeatures::HAS_XATTR | DynFeatures::INLINE_XATTR;
            this.i_xattr_inline_size = new.inline_xattr_bytes.into();
        }
        features.set(DynFeatures::INLINE_DATA, new.inline_data);
        this.set_dyn_features(features);
        let xattr = usize::from(new.inline_xattr_bytes);
        if new.inline_data {
            let header: &mut InlineDataHeader =
                crate::access::prefix_mut(&mut block[offset::ID2..]);
            header
                .id_count
                .set(capacity::inline_data_bytes(size, xattr) as u16);
        } else {
            init_extent_list(
                block,
                RootKind::Dinode,
                0,
                capacity::extents_in_inode(size, xattr) as u16,
            );
        }
    }

    /// `i_flags`.
    pub fn flags(&self) -> InodeFlags {
        InodeFlags::from_bits_retain(self.i_flags.get())
    }

    /// Sets `i_flags`.
    pub fn set_flags(&mut self, flags: InodeFlags) {
        self.i_flags.set(flags.bits());
    }

    /// `i_dyn_features`.
    pub fn dyn_features(&self) -> DynFeatures {
        DynFeatures::from_bits_retain(self.i_dyn_features.get())
    }

    /// Sets `i_dyn_features`.
    pub fn set_dyn_features(&mut self, features: DynFeatures) {
        self.i_dyn_features.set(features.bits());
    }

    /// The type in `i_mode`; `None` if it is none of the seven.
    pub fn file_type(&self) -> Option<FileType> {
        FileType::of_mode(self.i_mode.get())
    }

    /// Link count of both halves.
    pub fn links(&self) -> u32 {
        u32::from(self.i_links_count_hi.get()) << 16 | u32::from(self.i_links_count.get())
    }

    /// Sets both halves of the link count.
    pub fn set_links(&mut self, links: u32) {
        self.i_links_count.set((links & 0xFFFF) as u16);
        self.i_links_count_hi.set((links >> 16) as u16);
    }

    /// Where the inode was allocated.
    pub fn suballoc(&self) -> Suballoc {
        Suballoc {
            slot: SlotNr(self.i_suballoc_slot.get()),
            bit: self.i_suballoc_bit.get(),
            group: BlockNr(self.i_suballoc_loc.get()),
        }
    }

    /// `id1` as a device number, in the kernel's `huge` encoding.
    pub const fn rdev(&self) -> u64 {
        u64::from_le_bytes(self.id1)
    }

    /// Sets `id1` to a device number.
    pub fn set_rdev(&mut self, rdev: u64) {
        self.id1 = rdev.to_le_bytes();
    }

    fn id1_halves(&self) -> [u32; 2] {
        let id1 = self.rdev();
        [id1 as u32, (id1 >> 32) as u32]
    }

    fn set_id1_halves(&mut self, [low, high]: [u32; 2]) {
        self.set_rdev(u64::from(low) | u64::from(high) << 32);
    }

    /// `id1.bitmap1.i_used`: bits in use in an allocator or local alloc.
    pub fn used(&self) -> u32 {
        self.id1_halves()[0]
    }

    /// Sets `i_used`.
    pub fn set_used(&mut self, used: u32) {
        self.set_id1_halves([used, self.total()]);
    }

    /// `id1.bitmap1.i_total`: bits of an allocator or local alloc.
    pub fn total(&self) -> u32 {
        self.id1_halves()[1]
    }

    /// Sets `i_total`.
    pub fn set_total(&mut self, total: u32) {
        self.set_id1_halves([self.used(), total]);
    }

    /// `id1.journal1.ij_flags`.
    pub fn journal_flags(&self) -> u32 {
        self.id1_halves()[0]
    }

    /// Whether a journal's owner did not unmount.
    pub fn journal_is_dirty(&self) -> bool {
        self.journal_flags() & JOURNAL_DIRTY != 0
    }

    /// Marks a journal as in use, or as clean.
    pub fn set_journal_dirty(&mut self, dirty: bool) {
        let flags = if dirty {
            self.journal_flags() | JOURNAL_DIRTY
        } else {
            self.journal_flags() & !JOURNAL_DIRTY
        };
        self.set_id1_halves([flags, self.journal_recovery_generation()]);
    }

    /// `id1.journal1.ij_recovery_generation`: how often the journal was recovered.
    pub fn journal_recovery_generation(&self) -> u32 {
        self.id1_halves()[1]
    }

    /// Sets the recovery generation.
    pub fn set_journal_recovery_generation(&mut self, generation: u32) {
        self.set_id1_halves([self.journal_flags(), generation]);
    }

    /// What the variable part is.
    pub fn body(&self) -> Body {
        let flags = self.flags();
        if flags.contains(InodeFlags::SUPER_BLOCK) {
            Body::Super
        } else if flags.contains(InodeFlags::LOCAL_ALLOC) {
            Body::LocalAlloc
        } else if flags.contains(InodeFlags::CHAIN) {
            Body::Chains
        } else if flags.contains(InodeFlags::DEALLOC) {
            Body::TruncateLog
        } else if self.dyn_features().contains(DynFeatures::INLINE_DATA) {
            Body::Inline
        } else if self.file_type() == Some(FileType::Symlink)
            && self.i_clusters.get() == 0
            && self.i_size.get() > 0
        {
            Body::FastSymlink
        } else {
            Body::Extents
        }
    }

    /// Bytes at the end of a block of `block_size` that belong to inline xattrs; at most what lies behind `id2`'s start.
    pub fn inline_xattr_bytes(&self, block_size: usize) -> usize {
        if self.dyn_features().contains(DynFeatures::INLINE_XATTR) {
            // The 16 bytes are a list header: views of the rest must find at least that.
            usize::from(self.i_xattr_inline_size.get())
                .min(block_size.saturating_sub(offset::ID2 + 16))
        } else {
            0
        }
    }

    /// Whether a directory's blocks end with a trailer.
    pub fn has_dir_trailer(&self, geometry: &Geometry) -> bool {
        let features = self.dyn_features();
        !features.contains(DynFeatures::INLINE_DATA)
            && geometry.has_dir_trailer(features.contains(DynFeatures::INDEXED_DIR))
    }

    /// Whether `block`, read from `nr`, is a live inode of the volume with a sound variable part.
    ///
    /// # Errors
    /// The rule it breaks.
    pub fn validate(block: &[u8], nr: BlockNr, geometry: &Geometry) -> Result<(), Corrupt> {
        let this = Self::of(block);
        let check = Check::new(Structure::Dinode, nr);
        check.signature(&this.i_signature, &Self::SIGNATURE)?;
        check.own_block(this.i_blkno.get())?;
        let flags = this.flags();
        check.rule(
            flags.contains(InodeFlags::VALID),
            "i_flags",
            flags.bits(),
            "the inode is not in use",
        )?;
        check.generation(this.i_fs_generation.get(), geometry.fs_generation)?;
        this.validate_type(check, geometry)?;
        this.validate_slots(check, geometry)?;
        let features = this.dyn_features();
        if features.contains(DynFeatures::HAS_REFCOUNT) {
            let root = this.i_refcount_loc.get();
            check.rule(
                root != 0,
                "i_refcount_loc",
                root,
                "the inode says that it has a refcount tree",
            )?;
        }
        if features.contains(DynFeatures::INLINE_XATTR) {
            this.validate_inline_xattr(check, block, nr, geometry)?;
        }
        this.validate_body(check, block, nr)
    }

    /// Type, device number, and size against clusters.
    fn validate_type(&self, check: Check, geometry: &Geometry) -> Result<(), Corrupt> {
        let mode = self.i_mode.get();
        let Some(kind) = self.file_type() else {
            return check.rule(false, "i_mode", mode, "names none of the seven file types");
        };
        if self.flags().contains(InodeFlags::SYSTEM) {
            // id1 holds counters there, and each system file has its own rules of storage.
            return Ok(());
        }
        let device = matches!(kind, FileType::CharDevice | FileType::BlockDevice);
        check.rule(
            device || self.rdev() == 0,
            "i_rdev",
            self.rdev(),
            "only devices have a device number",
        )?;
        let size = self.i_size.get();
        let stored =
            self.i_clusters.get() > 0 || self.dyn_features().contains(DynFeatures::INLINE_DATA);
        if size == 0 || stored {
            return Ok(());
        }
        check.rule(
            kind != FileType::Directory,
            "i_size",
            size,
            "a directory without clusters has a size",
        )?;
        check.rule(
            kind != FileType::Regular || geometry.has(Incompat::SPARSE_ALLOC),
            "i_size",
            size,
            "a file without clusters has a size and the volume has no sparse files",
        )
    }

    /// Every slot number.
    fn validate_slots(&self, check: Check, geometry: &Geometry) -> Result<(), Corrupt> {
        let last = geometry.max_slots.saturating_sub(1);
        let slot = self.i_suballoc_slot.get();
        if SlotNr(slot).is_some() {
            check.at_most("i_suballoc_slot", slot, last)?;
        }
        if self.flags().contains(InodeFlags::ORPHANED) {
            check.at_most("i_orphaned_slot", self.i_orphaned_slot.get(), last)?;
        }
        if self.flags().contains(InodeFlags::DIO_ORPHANED) {
            check.at_most("i_dio_orphaned_slot", self.i_dio_orphaned_slot.get(), last)?;
        }
        Ok(())
    }

    fn validate_inline_xattr(
        &self,
        check: Check,
        block: &[u8],
        nr: BlockNr,
        geometry: &Geometry,
    ) -> Result<(), Corrupt> {
        let bytes = self.i_xattr_inline_size.get();
        let room = block.len() - offset::ID2 - 16;
        check.rule(
            bytes >= 16,
            "i_xattr_inline_size",
            bytes,
            "too small for a header",
        )?;
        check.rule(
            bytes.is_multiple_of(4),
            "i_xattr_inline_size",
            bytes,
            "must be a multiple of four",
        )?;
        check.at_most("i_xattr_inline_size", bytes, room as u64)?;
        XattrArea::new(&block[block.len() - usize::from(bytes)..]).validate(nr, geometry)
    }

    fn validate_body(&self, check: Check, block: &[u8], nr: BlockNr) -> Result<(), Corrupt> {
        let size = block.len();
        let xattr = self.inline_xattr_bytes(size);
        if self.dyn_features().contains(DynFeatures::INLINE_DATA) {
            // Whatever else the inode claims to be: these two exclude each other.
            let clusters = self.i_clusters.get();
            check.rule(
                clusters == 0,
                "i_clusters",
                clusters,
                "an inode with inline data has no clusters",
            )?;
        }
        match self.body() {
            Body::Super => check.rule(
                false,
                "i_flags",
                self.i_flags.get(),
                "a superblock is no inode",
            ),
            Body::LocalAlloc => local_alloc(block).validate(nr),
            Body::Chains => chain_list(block).validate(nr, size),
            Body::TruncateLog => truncate_log(block).validate(nr, size),
            Body::Inline => {
                let header: &InlineDataHeader = crate::access::prefix(&block[offset::ID2..]);
                let count = header.id_count.get();
                check.at_most(
                    "id_count",
                    count,
                    capacity::inline_data_bytes(size, xattr) as u64,
                )?;
                check.at_most("i_size", self.i_size.get(), count)
            }
            Body::FastSymlink => self.validate_fast_symlink(check, block, xattr),
            Body::Extents => extent_list(block, RootKind::Dinode)
                .check_limits(check, capacity::extents_in_inode(size, xattr)),
        }
    }

    /// The text ends where the size says, with its NUL, before the inline xattrs.
    fn validate_fast_symlink(
        &self,
        check: Check,
        block: &[u8],
        xattr: usize,
    ) -> Result<(), Corrupt> {
        let length = self.i_size.get();
        let room = &block[offset::ID2..block.len() - xattr];
        check.at_most("i_size", length, room.len() as u64 - 1)?;
        let nul = room
            .iter()
            .position(|&byte| byte == 0)
            .map_or(u64::MAX, |at| at as u64);
        check.rule(
            nul == length,
            "i_size",
            length,
            "the symlink's text does not end there",
        )
    }
}
