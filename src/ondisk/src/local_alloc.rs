//! The local alloc of a slot: a window of the global bitmap that the slot allocates from without a cluster lock.
//!
//! The window's bits are all set in the global bitmap; the bitmap here says which of them have been handed out. A slot
//! that was shut down cleanly has an empty one. `i_used` and `i_total` of the dinode count its bits.

use crate::access::{layout, list, list_mut, prefix_mut};
use crate::capacity::{self, offset};
use crate::corrupt::{Check, Corrupt, Structure};
use crate::le::{U16, U32, U64};
use crate::{BlockNr, Dinode};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What precedes the bitmap.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct LocalAllocHeader {
    /// First cluster of the window.
    pub la_bm_off: U32,
    /// Bytes of the bitmap.
    pub la_size: U16,
    pub la_reserved1: U16,
    pub la_reserved2: U64,
}
layout!(LocalAllocHeader, 0x10, la_size @ 4, la_reserved2 @ 8);

/// A slot's window.
#[derive(Clone, Copy, Debug)]
pub struct LocalAllocRef<'a> {
    /// Used and total bits, as the dinode has them.
    pub dinode: &'a Dinode,
    pub header: &'a LocalAllocHeader,
    /// `la_size` bytes, least significant bit first.
    pub bitmap: &'a [u8],
}

/// A slot's window, to change.
#[derive(Debug)]
pub struct LocalAllocMut<'a> {
    /// Used and total bits, as the dinode has them.
    pub dinode: &'a mut Dinode,
    pub header: &'a mut LocalAllocHeader,
    /// `la_size` bytes, least significant bit first.
    pub bitmap: &'a mut [u8],
}

/// The local alloc of its dinode's block.
pub fn local_alloc(block: &[u8]) -> LocalAllocRef<'_> {
    let (header, bitmap) = list(&block[offset::ID2..], |head: &LocalAllocHeader| {
        head.la_size.get().into()
    });
    LocalAllocRef {
        dinode: Dinode::of(block),
        header,
        bitmap,
    }
}

/// The local alloc of its dinode's block, to change.
pub fn local_alloc_mut(block: &mut [u8]) -> LocalAllocMut<'_> {
    let (dinode, rest) = block.split_at_mut(offset::ID2);
    let (header, bitmap) = list_mut(rest, |head: &LocalAllocHeader| head.la_size.get().into());
    LocalAllocMut {
        dinode: prefix_mut(dinode),
        header,
        bitmap,
    }
}

impl LocalAllocRef<'_> {
    /// Whether no window is open: nothing to give back.
    pub fn is_empty(&self) -> bool {
        self.dinode.total() == 0
            && self.dinode.used() == 0
            && self.bitmap.iter().all(|&byte| byte == 0)
    }

    pub(crate) fn validate(&self, nr: BlockNr) -> Result<(), Corrupt> {
        let check = Check::new(Structure::LocalAlloc, nr);
        let bytes = self.header.la_size.get();
        let room = self.bitmap.len(); // what the block has of la_size
        check.at_most("la_size", bytes, room as u64)?;
        check.at_most("i_total", self.dinode.total(), 8 * u64::from(bytes))?;
        check.at_most("i_used", self.dinode.used(), self.dinode.total())
    }
}

impl LocalAllocMut<'_> {
    /// Closes the window: what a clean shutdown and a recovery (after keeping a copy) leave behind.
    pub fn clear(&mut self) {
        self.dinode.set_rdev(0);
        self.header.la_bm_off.set(0);
        self.bitmap.fill(0);
    }
}

/// Makes an empty local alloc in its dinode's block.
pub fn init_local_alloc(block: &mut [u8]) {
    let bytes = capacity::local_alloc_bytes(block.len()) as u16;
    let header: &mut LocalAllocHeader = prefix_mut(&mut block[offset::ID2..]);
    *header = LocalAllocHeader::new_zeroed();
    header.la_size.set(bytes);
    local_alloc_mut(block).clear();
}
