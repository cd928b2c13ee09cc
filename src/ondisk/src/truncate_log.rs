//! The truncate log of a slot: clusters that are freed but not yet cleared in the global bitmap.

use crate::access::{layout, list, list_mut, prefix_mut};
use crate::capacity::{self, offset};
use crate::corrupt::{Check, Corrupt, Structure};
use crate::le::{U16, U32};
use crate::{BlockNr, ClusterNr};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What precedes the records.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct TruncateLogHeader {
    /// Records there is room for.
    pub tl_count: U16,
    /// Records in use.
    pub tl_used: U16,
    pub tl_reserved1: U32,
}
layout!(TruncateLogHeader, 8, tl_used @ 2);

/// A run of freed clusters. One that starts at 0 is void: cluster 0 is never freed.
#[derive(
    FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, PartialEq, Eq,
)]
#[repr(C)]
pub struct TruncateRec {
    pub t_start: U32,
    pub t_clusters: U32,
}
layout!(TruncateRec, 8, t_clusters @ 4);

/// A slot's log.
#[derive(Clone, Copy, Debug)]
pub struct TruncateLogRef<'a> {
    pub header: &'a TruncateLogHeader,
    /// All records, used and free.
    pub records: &'a [TruncateRec],
}

/// A slot's log, to change.
#[derive(Debug)]
pub struct TruncateLogMut<'a> {
    pub header: &'a mut TruncateLogHeader,
    /// All records, used and free.
    pub records: &'a mut [TruncateRec],
}

/// The truncate log of its dinode's block.
pub fn truncate_log(block: &[u8]) -> TruncateLogRef<'_> {
    let (header, records) = list(&block[offset::ID2..], |head: &TruncateLogHeader| {
        head.tl_count.get().into()
    });
    TruncateLogRef { header, records }
}

/// The truncate log of its dinode's block, to change.
pub fn truncate_log_mut(block: &mut [u8]) -> TruncateLogMut<'_> {
    let (header, records) = list_mut(&mut block[offset::ID2..], |head: &TruncateLogHeader| {
        head.tl_count.get().into()
    });
    TruncateLogMut { header, records }
}

/// Makes an empty truncate log in its dinode's block.
pub fn init_truncate_log(block: &mut [u8]) {
    let count = capacity::truncate_records(block.len()) as u16;
    let header: &mut TruncateLogHeader = prefix_mut(&mut block[offset::ID2..]);
    *header = TruncateLogHeader::new_zeroed();
    header.tl_count.set(count);
    truncate_log_mut(block)
        .records
        .fill(TruncateRec::new_zeroed());
}

impl<'a> TruncateLogRef<'a> {
    /// Records in use.
    pub fn used(&self) -> &'a [TruncateRec] {
        &self.records[..usize::from(self.header.tl_used.get()).min(self.records.len())]
    }

    pub(crate) fn validate(&self, nr: BlockNr, block_size: usize) -> Result<(), Corrupt> {
        let check = Check::new(Structure::TruncateLog, nr);
        let count = self.header.tl_count.get();
        check.equals(
            "tl_count",
            count,
            capacity::truncate_records(block_size) as u64,
        )?;
        check.at_most("tl_used", self.header.tl_used.get(), count)
    }
}

impl TruncateLogMut<'_> {
    /// The same log to read.
    pub fn as_ref(&self) -> TruncateLogRef<'_> {
        TruncateLogRef {
            header: self.header,
            records: self.records,
        }
    }

    /// Adds a run; one that continues the last record makes that one longer. `false` if the log is full.
    #[must_use]
    pub fn append(&mut self, start: ClusterNr, clusters: u32) -> bool {
        let used = self.as_ref().used().len();
        if let Some(last) = self.records[..used].last_mut() {
            let end = last.t_start.get().checked_add(last.t_clusters.get());
            let sum = last.t_clusters.get().checked_add(clusters);
            if let (true, Some(sum)) = (last.t_start.get() != 0 && end == Some(start.0), sum) {
                last.t_clusters.set(sum);
                return true;
            }
        }
        let Some(free) = self.records.get_mut(used) else {
            return false;
        };
        *free = TruncateRec {
            t_start: start.0.into(),
            t_clusters: clusters.into(),
        };
        self.header.tl_used.set(used as u16 + 1);
        true
    }

    /// Takes the last record off: flushing goes from the last to the first.
    pub fn pop(&mut self) -> Option<TruncateRec> {
        let last = self.as_ref().used().len().checked_sub(1)?;
        self.header.tl_used.set(last as u16);
        Some(core::mem::replace(
            &mut self.records[last],
            TruncateRec::new_zeroed(),
        ))
    }
}
