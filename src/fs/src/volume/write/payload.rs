//! What a step of a write puts on the device: a caller's bytes, or pages of the cache.

use std::sync::Arc;

use runtime::Buffer;

use crate::limits;
use crate::pages::PAGE_BYTES;
use crate::volume::Volume;

/// Data on its way to the device.
#[derive(Clone, Copy)]
pub(in crate::volume) enum Payload<'a> {
    Bytes(&'a [u8]),
    /// Whole pages, of which the first `len` bytes count; what follows is zero. Their place in the
    /// file begins with a page.
    Pages {
        pages: &'a [Arc<Buffer>],
        len: u64,
    },
}

impl<'a> Payload<'a> {
    pub fn len(&self) -> u64 {
        match self {
            Payload::Bytes(bytes) => bytes.len() as u64,
            Payload::Pages { len, .. } => *len,
        }
    }

    /// Its first `len` bytes.
    pub fn first(&self, len: u64) -> Payload<'a> {
        match *self {
            Payload::Bytes(bytes) => Payload::Bytes(&bytes[..len as usize]),
            Payload::Pages { pages, .. } => {
                let count = len.div_ceil(PAGE_BYTES as u64) as usize;
                let pages = &pages[..count];
                Payload::Pages { pages, len }
            }
        }
    }

    /// Bytes that it brings, with what follows in its last page.
    pub fn whole(&self) -> usize {
        match self {
            Payload::Bytes(bytes) => bytes.len(),
            Payload::Pages { pages, .. } => pages.len() * PAGE_BYTES,
        }
    }
}

/// Buffers for a run of `total` bytes on the device, for one device write each, with where each
/// begins: zeroes but for the payload, which begins at `into`.
pub(super) fn padded(
    volume: &Volume,
    payload: Payload<'_>,
    into: usize,
    total: usize,
) -> Vec<(usize, Vec<Buffer>)> {
    let tail = into + payload.whole();
    debug_assert!(tail <= total);
    let device = &volume.core().device;
    let mut writes = Vec::with_capacity(total.div_ceil(limits::DATA_IO_BYTES));
    let mut at = 0;
    while at < total {
        let end = (at + limits::DATA_IO_BYTES).min(total);
        let buffers = match payload {
            Payload::Bytes(bytes) => {
                let mut buffer = device.allocate(end - at);
                let (from, to) = (into.clamp(at, end), tail.clamp(at, end));
                buffer[..from - at].fill(0);
                if from < to {
                    buffer[from - at..to - at].copy_from_slice(&bytes[from - into..to - into]);
                }
                buffer[to.max(from) - at..].fill(0);
                vec![buffer]
            }
            Payload::Pages { pages, .. } => (at..end)
                .step_by(PAGE_BYTES)
                .map(|place| match place.checked_sub(into) {
                    Some(inside) if place < tail => pages[inside / PAGE_BYTES].clone(),
                    _ => volume.zero_page(),
                })
                .map(Buffer::shared)
                .collect(),
        };
        writes.push((at, buffers));
        at = end;
    }
    writes
}
