//! The extent list: header and records, wherever it is rooted. All of OCFS2's trees are made of it.
//!
//! [`extent_list`] gives the list of any block that has one; readers and the tree code of `fs` use the views. A view's
//! records are the whole list as `l_count` says, but never more than the block has room for, so indexing by validated
//! or unvalidated counts cannot leave the block.

use crate::access::{layout, list, list_mut};
use crate::capacity::{self, offset};
use crate::corrupt::{Check, Corrupt};
use crate::feature::ExtentFlags;
use crate::le::{U16, U32, U64};
use crate::{BlockNr, Dinode};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What precedes the records.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct ExtentListHeader {
    /// 0: records are leaves. Else they lead to extent blocks one level down.
    pub l_tree_depth: U16,
    /// Records there is room for.
    pub l_count: U16,
    /// Records in use.
    pub l_next_free_rec: U16,
    pub l_reserved1: U16,
    pub l_reserved2: U64,
}
layout!(ExtentListHeader, 0x10, l_count @ 2, l_next_free_rec @ 4);

/// One extent (in a leaf) or one child (above).
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct ExtentRec {
    /// First logical cluster (files), hash (xattr and directory indexes), physical cluster (refcount trees).
    pub e_cpos: U32,
    /// Clusters covered: 32 bits in an interior record; in a leaf 16 bits, a reserved byte and flags. See
    /// [`ExtentRec::leaf_clusters`], [`ExtentRec::int_clusters`], [`ExtentRec::flags`].
    pub e_clusters: [u8; 4],
    /// First physical block of the extent, or the child block.
    pub e_blkno: U64,
}
layout!(ExtentRec, 0x10, e_clusters @ 4, e_blkno @ 8);

impl ExtentRec {
    /// A leaf record.
    pub fn leaf(cpos: u32, clusters: u16, start: BlockNr, flags: ExtentFlags) -> Self {
        let [low, high] = clusters.to_le_bytes();
        Self {
            e_cpos: cpos.into(),
            e_clusters: [low, high, 0, flags.bits()],
            e_blkno: start.0.into(),
        }
    }

    /// An interior record.
    pub fn interior(cpos: u32, clusters: u32, child: BlockNr) -> Self {
        Self {
            e_cpos: cpos.into(),
            e_clusters: clusters.to_le_bytes(),
            e_blkno: child.0.into(),
        }
    }

    /// Clusters of a leaf record.
    pub const fn leaf_clusters(&self) -> u16 {
        u16::from_le_bytes([self.e_clusters[0], self.e_clusters[1]])
    }

    /// Clusters of an interior record.
    pub const fn int_clusters(&self) -> u32 {
        u32::from_le_bytes(self.e_clusters)
    }

    /// Clusters of a record in a list of this depth.
    pub const fn clusters(&self, depth: u16) -> u32 {
        if depth == 0 {
            self.leaf_clusters() as u32
        } else {
            self.int_clusters()
        }
    }

    /// Flags of a leaf record.
    pub const fn flags(&self) -> ExtentFlags {
        ExtentFlags::from_bits_retain(self.e_clusters[3])
    }

    /// Sets the clusters of a leaf record, its flags stay.
    pub fn set_leaf_clusters(&mut self, clusters: u16) {
        self.e_clusters[..2].copy_from_slice(&clusters.to_le_bytes());
    }

    /// Sets the clusters of an interior record.
    pub fn set_int_clusters(&mut self, clusters: u32) {
        self.e_clusters = clusters.to_le_bytes();
    }

    /// Sets the clusters of a record in a list of this depth. In a leaf more than 65535 do not fit: a mistake.
    ///
    /// # Panics
    /// If `depth` is 0 and `clusters` exceeds 16 bits.
    pub fn set_clusters(&mut self, depth: u16, clusters: u32) {
        if depth == 0 {
            self.set_leaf_clusters(
                u16::try_from(clusters).expect("a leaf record holds at most 65535 clusters"),
            );
        } else {
            self.set_int_clusters(clusters);
        }
    }

    /// Sets the flags of a leaf record.
    pub fn set_flags(&mut self, flags: ExtentFlags) {
        self.e_clusters[3] = flags.bits();
    }

    /// First physical block of the extent, or the child block.
    pub fn block(&self) -> BlockNr {
        BlockNr(self.e_blkno.get())
    }

    /// The first position past the record; 64 bits wide because the last extent of the hash space ends at 2^32.
    pub fn end(&self, depth: u16) -> u64 {
        u64::from(self.e_cpos.get()) + u64::from(self.clusters(depth))
    }

    /// A leaf record that covers nothing. Rotations leave one at index 0.
    pub const fn is_empty_leaf(&self) -> bool {
        self.leaf_clusters() == 0
    }

    /// A record of zeros.
    pub fn zeroed() -> Self {
        Self::new_zeroed()
    }
}

impl core::fmt::Debug for ExtentRec {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("ExtentRec")
            .field("cpos", &self.e_cpos.get())
            .field("leaf_clusters", &self.leaf_clusters())
            .field("int_clusters", &self.int_clusters())
            .field("flags", &self.flags())
            .field("blkno", &self.e_blkno.get())
            .finish()
    }
}

/// Where in a block an extent list is rooted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RootKind {
    /// `id2` of a dinode: file data, directory entries. Ends before inline xattrs.
    Dinode,
    /// Any node below a root.
    ExtentBlock,
    /// The index of a directory.
    DxRoot,
    /// The buckets of an indexed xattr block.
    XattrTree,
    /// A refcount tree that has outgrown its block.
    Refcount,
    /// The parts of a discontiguous block group.
    GroupDesc,
    /// The value of an xattr: its [`XattrValueRoot`](crate::XattrValueRoot) lies at this byte offset. The offset comes
    /// from a validated xattr entry.
    XattrValue {
        /// Offset of the value root in the block (or bucket).
        offset: usize,
    },
}

impl RootKind {
    /// The bytes of the block that the list may occupy.
    fn span(self, block: &[u8]) -> core::ops::Range<usize> {
        let len = block.len();
        match self {
            Self::Dinode => offset::ID2..len - Dinode::of(block).inline_xattr_bytes(len),
            Self::ExtentBlock => offset::EXTENT_BLOCK_LIST..len,
            Self::DxRoot => offset::DX_ROOT_LIST..len,
            Self::XattrTree => offset::XATTR_TREE_LIST..len,
            Self::Refcount => offset::REFCOUNT_LIST..len,
            Self::GroupDesc => offset::GROUP_LIST..len,
            Self::XattrValue { offset } => offset + size_of::<crate::XattrValueRoot>()..len,
        }
    }

    /// Records that a list of this kind has room for in `block`. Value roots say it themselves, in their `l_count`.
    pub fn capacity(self, block: &[u8]) -> usize {
        let size = block.len();
        match self {
            Self::Dinode => {
                capacity::extents_in_inode(size, Dinode::of(block).inline_xattr_bytes(size))
            }
            Self::ExtentBlock => capacity::extents_in_extent_block(size),
            Self::DxRoot => capacity::extents_in_dx_root(size),
            Self::XattrTree => capacity::extents_in_xattr_root(size),
            Self::Refcount => capacity::refcount_records(size),
            Self::GroupDesc => capacity::extents_in_group(size),
            Self::XattrValue { .. } => extent_list(block, self).records.len(),
        }
    }
}

/// An extent list in a block.
#[derive(Clone, Copy, Debug)]
pub struct ExtentListRef<'a> {
    pub header: &'a ExtentListHeader,
    /// All records, used and free.
    pub records: &'a [ExtentRec],
}

/// An extent list in a block, to change.
#[derive(Debug)]
pub struct ExtentListMut<'a> {
    pub header: &'a mut ExtentListHeader,
    /// All records, used and free.
    pub records: &'a mut [ExtentRec],
}

/// The extent list of `block`.
///
/// # Panics
/// If the block is too short for its kind, or the offset of an xattr value was not validated.
#[track_caller]
pub fn extent_list(block: &[u8], root: RootKind) -> ExtentListRef<'_> {
    let (header, records) = list(&block[root.span(block)], |head: &ExtentListHeader| {
        head.l_count.get().into()
    });
    ExtentListRef { header, records }
}

/// The extent list of `block`, to change.
///
/// # Panics
/// If the block is too short for its kind, or the offset of an xattr value was not validated.
#[track_caller]
pub fn extent_list_mut(block: &mut [u8], root: RootKind) -> ExtentListMut<'_> {
    let span = root.span(block);
    let (header, records) = list_mut(&mut block[span], |head: &ExtentListHeader| {
        head.l_count.get().into()
    });
    ExtentListMut { header, records }
}

/// Makes an empty list of the given depth, with room for `count` records, where `root` has it in `block`. The records
/// that lie inside the block are zeroed.
///
/// # Panics
/// If the block is too short for its kind.
pub fn init_extent_list(block: &mut [u8], root: RootKind, depth: u16, count: u16) {
    let span = root.span(block);
    let header: &mut ExtentListHeader = crate::access::prefix_mut(&mut block[span.clone()]);
    *header = ExtentListHeader::new_zeroed();
    header.l_tree_depth.set(depth);
    header.l_count.set(count);
    extent_list_mut(block, root)
        .records
        .fill(ExtentRec::zeroed());
}

impl<'a> ExtentListRef<'a> {
    /// Levels below this list; 0 if its records are extents.
    pub fn depth(&self) -> u16 {
        self.header.l_tree_depth.get()
    }

    /// Whether the records are extents.
    pub fn is_leaf(&self) -> bool {
        self.depth() == 0
    }

    /// Records in use.
    pub fn used(&self) -> &'a [ExtentRec] {
        &self.records[..usize::from(self.header.l_next_free_rec.get()).min(self.records.len())]
    }

    /// Whether no record is free.
    pub fn is_full(&self) -> bool {
        self.used().len() == self.records.len()
    }

    /// The used record that covers `cpos`, with its index. Linear in leaves is right: an empty first record is allowed.
    pub fn find(&self, cpos: u32) -> Option<(usize, &'a ExtentRec)> {
        let depth = self.depth();
        let wanted = u64::from(cpos);
        self.used()
            .iter()
            .enumerate()
            .find(|(_, rec)| u64::from(rec.e_cpos.get()) <= wanted && wanted < rec.end(depth))
    }

    /// The limits of the list: some room, no more than `capacity`, no more used than there is room for.
    ///
    /// # Errors
    /// The limit that is broken.
    pub fn check_limits(&self, check: Check, capacity: usize) -> Result<(), Corrupt> {
        let count = self.header.l_count.get();
        check.rule(
            count > 0,
            "l_count",
            count,
            "an extent list has room for at least one record",
        )?;
        check.at_most("l_count", count, capacity as u64)?;
        check.at_most("l_next_free_rec", self.header.l_next_free_rec.get(), count)?;
        check.at_most("l_tree_depth", self.header.l_tree_depth.get(), MAX_DEPTH)
    }
}

/// The format says that the high eight bits of a depth are not used. A walk down a tree ends because it checks that each
/// child's depth is one less than its parent's, not because of this.
pub const MAX_DEPTH: u16 = 255;

impl ExtentListMut<'_> {
    /// The same list to read.
    pub fn as_ref(&self) -> ExtentListRef<'_> {
        ExtentListRef {
            header: self.header,
            records: self.records,
        }
    }

    /// Records in use, to change.
    pub fn used_mut(&mut self) -> &mut [ExtentRec] {
        let used = usize::from(self.header.l_next_free_rec.get()).min(self.records.len());
        &mut self.records[..used]
    }

    /// Puts `rec` at `index` and moves the rest up. `false`, and nothing changed, if the list is full or `index` is
    /// past the used records.
    #[must_use]
    pub fn insert(&mut self, index: usize, rec: ExtentRec) -> bool {
        let used = self.as_ref().used().len();
        if used == self.records.len() || index > used {
            return false;
        }
        self.records.copy_within(index..used, index + 1);
        self.records[index] = rec;
        self.header
            .l_next_free_rec
            .set(self.header.l_next_free_rec.get() + 1);
        true
    }

    /// Takes the record at `index` out and moves the rest down; `None` if there is none.
    pub fn remove(&mut self, index: usize) -> Option<ExtentRec> {
        let used = self.as_ref().used().len();
        if index >= used {
            return None;
        }
        let removed = self.records[index];
        self.records.copy_within(index + 1..used, index);
        self.records[used - 1] = ExtentRec::zeroed();
        self.header
            .l_next_free_rec
            .set(self.header.l_next_free_rec.get() - 1);
        Some(removed)
    }
}
