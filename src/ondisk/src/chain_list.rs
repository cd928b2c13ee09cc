//! The chain list of an allocator: chains of groups, each group a bitmap. In the `id2` of the allocator's dinode.

use crate::BlockNr;
use crate::access::{layout, list, list_mut, prefix_mut};
use crate::capacity::{self, offset};
use crate::corrupt::{Check, Corrupt, Structure};
use crate::le::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What precedes the chains.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct ChainListHeader {
    /// Clusters of a full group.
    pub cl_cpg: U16,
    /// Bits for a cluster: 1 in the global bitmap, the blocks of a cluster in suballocators.
    pub cl_bpc: U16,
    /// Chains there is room for.
    pub cl_count: U16,
    /// Chains in use.
    pub cl_next_free_rec: U16,
    pub cl_reserved1: U64,
}
layout!(ChainListHeader, 0x10, cl_bpc @ 2, cl_count @ 4, cl_next_free_rec @ 6);

impl ChainListHeader {
    /// Bits of a full group.
    pub fn bits_per_group(&self) -> u32 {
        u32::from(self.cl_cpg.get()) * u32::from(self.cl_bpc.get())
    }
}

/// One chain.
#[derive(
    FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, PartialEq, Eq,
)]
#[repr(C)]
pub struct ChainRec {
    /// Free bits of all its groups.
    pub c_free: U32,
    /// Bits of all its groups.
    pub c_total: U32,
    /// First group; each leads to the next.
    pub c_blkno: U64,
}
layout!(ChainRec, 0x10, c_total @ 4, c_blkno @ 8);

impl ChainRec {
    /// The first group's descriptor.
    pub fn first_group(&self) -> BlockNr {
        BlockNr(self.c_blkno.get())
    }
}

/// The chains of an allocator.
#[derive(Clone, Copy, Debug)]
pub struct ChainListRef<'a> {
    pub header: &'a ChainListHeader,
    /// All records, used and free.
    pub records: &'a [ChainRec],
}

/// The chains of an allocator, to change.
#[derive(Debug)]
pub struct ChainListMut<'a> {
    pub header: &'a mut ChainListHeader,
    /// All records, used and free.
    pub records: &'a mut [ChainRec],
}

/// The chain list of an allocator's dinode block.
pub fn chain_list(block: &[u8]) -> ChainListRef<'_> {
    let (header, records) = list(&block[offset::ID2..], |head: &ChainListHeader| {
        head.cl_count.get().into()
    });
    ChainListRef { header, records }
}

/// The chain list of an allocator's dinode block, to change.
pub fn chain_list_mut(block: &mut [u8]) -> ChainListMut<'_> {
    let (header, records) = list_mut(&mut block[offset::ID2..], |head: &ChainListHeader| {
        head.cl_count.get().into()
    });
    ChainListMut { header, records }
}

/// Makes an empty chain list in an allocator's dinode block.
pub fn init_chain_list(block: &mut [u8], clusters_per_group: u16, bits_per_cluster: u16) {
    let count = capacity::chains_in_inode(block.len()) as u16;
    let header: &mut ChainListHeader = prefix_mut(&mut block[offset::ID2..]);
    *header = ChainListHeader::new_zeroed();
    header.cl_cpg.set(clusters_per_group);
    header.cl_bpc.set(bits_per_cluster);
    header.cl_count.set(count);
    chain_list_mut(block).records.fill(ChainRec::new_zeroed());
}

impl<'a> ChainListRef<'a> {
    /// Chains in use.
    pub fn used(&self) -> &'a [ChainRec] {
        &self.records[..usize::from(self.header.cl_next_free_rec.get()).min(self.records.len())]
    }

    /// Whether the list keeps its limits and its divisors are not zero.
    pub(crate) fn validate(&self, nr: BlockNr, block_size: usize) -> Result<(), Corrupt> {
        let check = Check::new(Structure::ChainList, nr);
        let count = self.header.cl_count.get();
        check.equals(
            "cl_count",
            count,
            capacity::chains_in_inode(block_size) as u64,
        )?;
        check.at_most(
            "cl_next_free_rec",
            self.header.cl_next_free_rec.get(),
            count,
        )?;
        let (cpg, bpc) = (self.header.cl_cpg.get(), self.header.cl_bpc.get());
        check.rule(cpg > 0, "cl_cpg", cpg, "a group has at least one cluster")?;
        check.rule(bpc > 0, "cl_bpc", bpc, "a cluster has at least one bit")
    }
}

impl ChainListMut<'_> {
    /// The same list to read.
    pub fn as_ref(&self) -> ChainListRef<'_> {
        ChainListRef {
            header: self.header,
            records: self.records,
        }
    }

    /// Opens another chain; `None` if all are open.
    pub fn open_chain(&mut self) -> Option<(u16, &mut ChainRec)> {
        let index = self.header.cl_next_free_rec.get();
        let rec = self.records.get_mut(usize::from(index))?;
        self.header.cl_next_free_rec.set(index + 1);
        *rec = ChainRec::new_zeroed();
        Some((index, rec))
    }
}
