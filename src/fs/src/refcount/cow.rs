//! Breaking the sharing of a range of a file before it is written. Called by the write path.
//!
//! The data is copied to new clusters on the device before the handle that makes the file refer to them is committed:
//! if we crash in between, the file has its old clusters with the same bytes. Several handles, each a bounded piece.

use ondisk::feature::ExtentFlags;
use ondisk::{BlockNr, ClusterNr};
use runtime::BlockDeviceExt;

use super::{CHANGE_BLOCKS, leaf, root};
use crate::alloc;
use crate::core::Core;
use crate::error::Result;
use crate::extent::{self, Mapping, Root};
use crate::inode::Inode;

/// Bytes copied by one handle.
const COPY_BYTES: usize = 1 << 20;
/// Blocks that replacing one extent may touch, its refcounts aside.
const REPLACE_BLOCKS: u32 = 48;

/// Makes the clusters `cpos..cpos + clusters` of a file exclusively its own; holes stay holes.
///
/// The caller holds the inode's lock exclusively and has written back what it has of the range in memory: the copy is
/// made from the device.
pub async fn cow(core: &Core, inode: &Inode, cpos: u32, clusters: u32) -> Result<()> {
    let tree = Root::dinode(inode.block());
    let end = u64::from(cpos) + u64::from(clusters);
    let mut at = u64::from(cpos);
    while at < end {
        let found = extent::lookup(core, &tree, at as u32).await?;
        let len = u64::from(found.clusters).min(end - at) as u32;
        if len == 0 {
            return Ok(());
        }
        let done = match found.physical {
            Some(start) if found.flags.contains(ExtentFlags::REFCOUNTED) => {
                alloc::with_space(core, async || {
                    replace(core, inode, &tree, &found, start, len).await
                })
                .await?
            }
            _ => len,
        };
        at += u64::from(done);
    }
    Ok(())
}

/// Replaces, or takes over, the start of a shared run of `len` clusters. Returns how many it has dealt with.
async fn replace(
    core: &Core,
    inode: &Inode,
    tree: &Root,
    found: &Mapping,
    start: BlockNr,
    len: u32,
) -> Result<u32> {
    let geometry = &core.geometry;
    let old = geometry
        .cluster_of(start)
        .expect("an extent's place was checked when it was read");
    let piece = len.min((COPY_BYTES / geometry.cluster_size()).max(1) as u32);
    let mut h = core.journal.begin(REPLACE_BLOCKS + CHANGE_BLOCKS).await?;
    let counts = root(core, inode).await?;
    let (count, len) = leaf::count_at(core, &counts, old, len).await?;
    if count == 1 {
        // Nobody else has it any more: the record goes, the clusters stay.
        leaf::change(core, &mut h, &counts, old, len, leaf::Change::Less).await?;
        extent::set_flags(
            core,
            &mut h,
            tree,
            found.cpos,
            len,
            ExtentFlags::empty(),
            ExtentFlags::REFCOUNTED,
        )
        .await?;
        inode.changed_in(h.commit());
        return Ok(len);
    }
    let (new, got) = alloc::claim_clusters(core, &mut h, None, 1, piece.min(len)).await?;
    if !found.flags.contains(ExtentFlags::UNWRITTEN) {
        copy(core, old, new, got).await?;
    }
    extent::remove(core, &mut h, tree, found.cpos, got).await?;
    let flags = found.flags - ExtentFlags::REFCOUNTED;
    extent::insert(
        core,
        &mut h,
        tree,
        found.cpos,
        geometry.first_block(new),
        got,
        flags,
    )
    .await?;
    super::decrease(core, &mut h, inode, old, got).await?;
    inode.changed_in(h.commit());
    Ok(got)
}

/// Copies clusters on the device.
async fn copy(core: &Core, from: ClusterNr, to: ClusterNr, clusters: u32) -> Result<()> {
    let bits = core.geometry.cluster_size_bits;
    let buffer = core.device.allocate((clusters as usize) << bits);
    let (buffer, result) = core.device.read(u64::from(from.0) << bits, buffer).await;
    result?;
    let (_, result) = core.device.write(u64::from(to.0) << bits, buffer).await;
    Ok(result?)
}
