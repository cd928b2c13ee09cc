//! Many blocks to the device, in as few and as many-at-once writes as is good: neighbours merged,
//! a bounded number in flight. Used by commits (into the log), checkpoints and replays (to the
//! home places).
//!
//! No order between the writes of one call; durability is the caller's flush.

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use ondisk::{BlockNr, Geometry};
use runtime::{BlockDevice, BlockDeviceExt, Buffer};

use crate::error::Result;
use crate::limits::{JOURNAL_IO_BYTES, JOURNAL_IOS_IN_FLIGHT};

/// Writes each piece of bytes (whole blocks) at its block. Pieces that follow one another, in the
/// list and on the device, go out as one write. All writes have ended when it returns, also with an
/// error, which is the first one.
pub(super) async fn write_blocks<'a>(
    device: &dyn BlockDevice,
    geometry: &Geometry,
    pieces: impl IntoIterator<Item = (BlockNr, &'a [u8])>,
) -> Result<()> {
    let mut pieces = pieces.into_iter().peekable();
    let mut in_flight = FuturesUnordered::new();
    let mut failed = None;
    while let Some((start, first)) = pieces.next() {
        let mut run = vec![first];
        let mut len = first.len();
        while let Some((next, bytes)) = pieces.peek() {
            let adjacent = next.0 == start.0 + (len / geometry.block_size()) as u64;
            if !adjacent || len + bytes.len() > JOURNAL_IO_BYTES {
                break;
            }
            len += bytes.len();
            run.push(bytes);
            pieces.next();
        }
        if in_flight.len() >= JOURNAL_IOS_IN_FLIGHT
            && let Some((_, Err(error))) = in_flight.next().await
        {
            failed.get_or_insert(error);
        }
        if failed.is_some() {
            break;
        }
        in_flight.push(device.write(byte_offset(geometry, start), gather(device, &run, len)));
    }
    while let Some((_, result)) = in_flight.next().await {
        if let Err(error) = result {
            failed.get_or_insert(error);
        }
    }
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(()),
    }
}

/// Where a block is on the device, in bytes.
pub(super) fn byte_offset(geometry: &Geometry, block: BlockNr) -> u64 {
    block.0 << geometry.block_size_bits
}

fn gather(device: &dyn BlockDevice, run: &[&[u8]], len: usize) -> Buffer {
    let mut buffer = device.allocate(len);
    let mut at = 0;
    for bytes in run {
        buffer[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    }
    buffer
}
