//! Refcount trees: how many files share each cluster. A block holds records, or roots a tree of blocks that do.

use crate::access::{layout, list, list_mut, over_block, prefix_mut};
use crate::capacity::{self, offset};
use crate::corrupt::{Check, Corrupt, Structure};
use crate::le::{U16, U32, U64};
use crate::{BlockCheck, BlockNr, Generation, Geometry, RootKind, SlotNr, Suballoc, extent_list};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What precedes the record list or extent list.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct RefcountBlock {
    pub rf_signature: [u8; 8],
    pub rf_suballoc_slot: U16,
    pub rf_suballoc_bit: U16,
    pub rf_fs_generation: U32,
    pub rf_blkno: U64,
    /// In a leaf: the root.
    pub rf_parent: U64,
    pub rf_check: BlockCheck,
    pub rf_last_eb_blk: U64,
    /// In the root: inodes that use the tree.
    pub rf_count: U32,
    /// [`RefcountBlock::LEAF`], [`RefcountBlock::TREE`].
    pub rf_flags: U32,
    /// In the root: clusters of leaves.
    pub rf_clusters: U32,
    /// In a leaf: the lowest cluster (low 32 bits) it is responsible for.
    pub rf_cpos: U32,
    /// The same in all blocks of a tree; part of its lock's name.
    pub rf_generation: U32,
    pub rf_reserved0: U32,
    pub rf_suballoc_loc: U64,
    pub rf_reserved1: [U64; 6],
}
layout!(
    RefcountBlock, 0x80,
    rf_suballoc_slot @ 0x08, rf_fs_generation @ 0x0C, rf_blkno @ 0x10, rf_parent @ 0x18, rf_check @ 0x20,
    rf_last_eb_blk @ 0x28, rf_count @ 0x30, rf_flags @ 0x34, rf_clusters @ 0x38, rf_cpos @ 0x3C,
    rf_generation @ 0x40, rf_suballoc_loc @ 0x48, rf_reserved1 @ 0x50,
);
over_block!(RefcountBlock);

/// What precedes the records.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct RefcountListHeader {
    /// Records there is room for.
    pub rl_count: U16,
    /// Records in use.
    pub rl_used: U16,
    pub rl_reserved2: U32,
    pub rl_reserved1: U64,
}
layout!(RefcountListHeader, 0x10, rl_used @ 2, rl_reserved1 @ 8);

/// A run of clusters with the same count.
#[derive(
    FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, PartialEq, Eq,
)]
#[repr(C)]
pub struct RefcountRec {
    /// First physical cluster.
    pub r_cpos: U64,
    pub r_clusters: U32,
    pub r_refcount: U32,
}
layout!(RefcountRec, 0x10, r_clusters @ 8, r_refcount @ 12);

impl RefcountRec {
    /// A record.
    pub fn new(start: u64, clusters: u32, count: u32) -> Self {
        Self {
            r_cpos: start.into(),
            r_clusters: clusters.into(),
            r_refcount: count.into(),
        }
    }

    /// The first cluster past the run.
    pub fn end(&self) -> u64 {
        self.r_cpos
            .get()
            .saturating_add(self.r_clusters.get().into())
    }
}

/// Records of a block, sorted by cluster.
#[derive(Clone, Copy, Debug)]
pub struct RefcountListRef<'a> {
    pub header: &'a RefcountListHeader,
    /// All records, used and free.
    pub records: &'a [RefcountRec],
}

/// Records of a block, to change.
#[derive(Debug)]
pub struct RefcountListMut<'a> {
    pub header: &'a mut RefcountListHeader,
    /// All records, used and free.
    pub records: &'a mut [RefcountRec],
}

/// The records of a refcount block. Meaningless in one that roots a tree: see [`RefcountBlock::is_tree`].
pub fn refcount_list(block: &[u8]) -> RefcountListRef<'_> {
    let (header, records) = list(
        &block[offset::REFCOUNT_LIST..],
        |head: &RefcountListHeader| head.rl_count.get().into(),
    );
    RefcountListRef { header, records }
}

/// The records of a refcount block, to change.
pub fn refcount_list_mut(block: &mut [u8]) -> RefcountListMut<'_> {
    let (header, records) = list_mut(
        &mut block[offset::REFCOUNT_LIST..],
        |head: &RefcountListHeader| head.rl_count.get().into(),
    );
    RefcountListMut { header, records }
}

/// Makes the record list of a refcount block empty.
pub fn init_refcount_list(block: &mut [u8]) {
    let count = capacity::refcount_records(block.len()) as u16;
    block[offset::REFCOUNT_LIST..].fill(0);
    let header: &mut RefcountListHeader = prefix_mut(&mut block[offset::REFCOUNT_LIST..]);
    header.rl_count.set(count);
}

impl<'a> RefcountListRef<'a> {
    /// Records in use.
    pub fn used(&self) -> &'a [RefcountRec] {
        &self.records[..usize::from(self.header.rl_used.get()).min(self.records.len())]
    }

    /// Whether no record is free.
    pub fn is_full(&self) -> bool {
        self.used().len() == self.records.len()
    }
}

impl RefcountListMut<'_> {
    /// The same records to read.
    pub fn as_ref(&self) -> RefcountListRef<'_> {
        RefcountListRef {
            header: self.header,
            records: self.records,
        }
    }

    /// Puts `rec` at `index` and moves the rest up. `false`, and nothing changed, if there is no room or `index` is past
    /// the used records.
    #[must_use]
    pub fn insert(&mut self, index: usize, rec: RefcountRec) -> bool {
        let used = self.as_ref().used().len();
        if used == self.records.len() || index > used {
            return false;
        }
        self.records.copy_within(index..used, index + 1);
        self.records[index] = rec;
        self.header.rl_used.set(used as u16 + 1);
        true
    }

    /// Takes the record at `index` out and moves the rest down; `None` if there is none.
    pub fn remove(&mut self, index: usize) -> Option<RefcountRec> {
        let used = self.as_ref().used().len();
        if index >= used {
            return None;
        }
        let removed = self.records[index];
        self.records.copy_within(index + 1..used, index);
        self.records[used - 1] = RefcountRec::new_zeroed();
        self.header.rl_used.set(used as u16 - 1);
        Some(removed)
    }
}

/// What a new refcount block is.
#[derive(Debug, Clone, Copy)]
pub enum NewRefcount {
    /// The root of a new tree, with one user.
    Root,
    /// A leaf of the tree with this root, responsible from this cluster on.
    Leaf { root: BlockNr, cpos: u32 },
}

impl RefcountBlock {
    /// What the block must start with.
    pub const SIGNATURE: [u8; 8] = *b"REFCNT1\0";
    /// `rf_flags`: not a root.
    pub const LEAF: u32 = 0x1;
    /// `rf_flags`: a root whose records are in leaves.
    pub const TREE: u32 = 0x2;

    /// Whether the block holds an extent list instead of records.
    pub fn is_tree(&self) -> bool {
        self.rf_flags.get() & Self::TREE != 0
    }

    /// Whether the block is below a root.
    pub fn is_leaf(&self) -> bool {
        self.rf_flags.get() & Self::LEAF != 0
    }

    /// Makes `block` a refcount block without records.
    pub fn init(
        block: &mut [u8],
        nr: BlockNr,
        geometry: &Geometry,
        suballoc: Suballoc,
        generation: Generation,
        new: NewRefcount,
    ) {
        block.fill(0);
        let this = Self::of_mut(block);
        this.rf_signature = Self::SIGNATURE;
        this.rf_suballoc_slot = suballoc.slot.0.into();
        this.rf_suballoc_bit = suballoc.bit.into();
        this.rf_suballoc_loc = suballoc.group.0.into();
        this.rf_fs_generation = geometry.fs_generation.0.into();
        this.rf_blkno = nr.0.into();
        this.rf_generation = generation.0.into();
        match new {
            NewRefcount::Root => this.rf_count = 1.into(),
            NewRefcount::Leaf { root, cpos } => {
                this.rf_flags = Self::LEAF.into();
                this.rf_parent = root.0.into();
                this.rf_cpos = cpos.into();
            }
        }
        init_refcount_list(block);
    }

    /// Where the block was allocated.
    pub fn suballoc(&self) -> Suballoc {
        Suballoc {
            slot: SlotNr(self.rf_suballoc_slot.get()),
            bit: self.rf_suballoc_bit.get(),
            group: BlockNr(self.rf_suballoc_loc.get()),
        }
    }

    /// Whether `block`, read from `nr`, is a refcount block of the volume.
    ///
    /// # Errors
    /// The rule it breaks.
    pub fn validate(block: &[u8], nr: BlockNr, geometry: &Geometry) -> Result<(), Corrupt> {
        let this = Self::of(block);
        let check = Check::new(Structure::RefcountBlock, nr);
        check.signature(&this.rf_signature, &Self::SIGNATURE)?;
        check.own_block(this.rf_blkno.get())?;
        check.generation(this.rf_fs_generation.get(), geometry.fs_generation)?;
        let capacity = capacity::refcount_records(block.len());
        if this.is_tree() {
            return extent_list(block, RootKind::Refcount).check_limits(check, capacity);
        }
        let list = refcount_list(block);
        check.equals("rl_count", list.header.rl_count.get(), capacity as u64)?;
        check.at_most("rl_used", list.header.rl_used.get(), capacity as u64)
    }
}
