//! Large values: those that have clusters of their own, through an extent tree whose root lies where a local value
//! would. Called by [`super`] to read them and by [`super::set`] and [`super::destroy`] to make and free them.
//!
//! Values go to the device and come from it directly, not through the journal. The order that makes this right: a value
//! is written to clusters that nobody refers to before the handle that refers to them is committed, and a value is never
//! changed in place. If we crash in between, the old value is there and the new clusters are free.

use ondisk::feature::ExtentFlags;
use ondisk::{
    BlockNr, ClusterNr, Corrupt, ExtentBlock, ExtentListHeader, RootKind, Suballoc,
    XATTR_VALUE_ROOT_BYTES, XattrValueRoot,
};
use runtime::BlockDeviceExt;
use zerocopy::FromBytes;

use super::tree::{self, Tree, corrupt};
use crate::alloc;
use crate::cache::BlockRef;
use crate::core::Core;
use crate::error::Result;
use crate::extent::{self, Root};
use crate::inode::Inode;
use crate::journal::Handle;
use crate::limits::XATTR_VALUE_MAX;
use crate::refcount;
use crate::system::SystemFile;

/// Reads a value of `size` bytes whose root lies in `block` at `offset`.
pub(crate) async fn read(
    core: &Core,
    block: &BlockRef,
    offset: usize,
    size: u64,
) -> Result<Vec<u8>> {
    let tree = tree::read(core, block, RootKind::XattrValue { offset }).await?;
    let size = checked_size(block.nr(), size)?;
    let mut value = Vec::with_capacity(size);
    for (start, bytes) in pieces(core, block.nr(), &tree, size)? {
        // The device reads whole blocks; the tail of the last one is not ours.
        let whole = bytes.next_multiple_of(core.block_size());
        let data = core.cache.read_raw(start, whole).await?;
        value.extend_from_slice(&data[..bytes]);
    }
    Ok(value)
}

/// Where the bytes of a value lie: runs by block and length in bytes. A hole is corrupt: values have none.
fn pieces(
    core: &Core,
    nr: BlockNr,
    tree: &Tree,
    size: usize,
) -> Result<Vec<(BlockNr, usize)>, Corrupt> {
    let mut pieces = Vec::new();
    let (mut done, mut position) = (0, 0u32);
    for rec in &tree.extents {
        if done == size {
            break;
        }
        if rec.e_cpos.get() != position {
            return Err(corrupt(
                nr,
                "e_cpos",
                u64::from(rec.e_cpos.get()),
                "an xattr's value has a hole",
            ));
        }
        let clusters = rec.clusters(0);
        let bytes = (clusters as usize * core.geometry.cluster_size()).min(size - done);
        pieces.push((rec.block(), bytes));
        done += bytes;
        position = position.saturating_add(clusters);
    }
    if done < size {
        return Err(corrupt(
            nr,
            "xe_value_size",
            size as u64,
            "an xattr's value is longer than its clusters",
        ));
    }
    Ok(pieces)
}

fn checked_size(nr: BlockNr, size: u64) -> Result<usize, Corrupt> {
    usize::try_from(size)
        .ok()
        .filter(|&size| size <= XATTR_VALUE_MAX)
        .ok_or_else(|| corrupt(nr, "xe_value_size", size, "no xattr's value is that long"))
}

/// Writes a piece of a value to clusters that are not referred to yet; the last block is filled up with zeros.
pub(crate) async fn write_piece(core: &Core, start: BlockNr, piece: &[u8]) -> Result<()> {
    let len = piece.len().next_multiple_of(core.block_size());
    let mut buffer = core.device.allocate(len);
    buffer[..piece.len()].copy_from_slice(piece);
    buffer[piece.len()..].fill(0);
    let offset = start.0 << core.geometry.block_size_bits;
    let (_, result) = core.device.write(offset, buffer).await;
    Ok(result?)
}

/// Stores a value in new clusters and hangs them on the empty root in `block` at `offset`. The clusters are written
/// before this returns, so before the handle can be committed.
pub(crate) async fn store(
    core: &Core,
    h: &mut Handle<'_>,
    block: &BlockRef,
    offset: usize,
    value: &[u8],
) -> Result<()> {
    let geometry = &core.geometry;
    let root = Root {
        block: block.clone(),
        kind: RootKind::XattrValue { offset },
    };
    let mut rest = value;
    let mut position = 0u32;
    let mut goal = None;
    while !rest.is_empty() {
        let wanted = rest.len().div_ceil(geometry.cluster_size()) as u32;
        let (start, got) = alloc::claim_clusters(core, h, goal, 1, wanted).await?;
        let (piece, behind) = rest.split_at(rest.len().min(got as usize * geometry.cluster_size()));
        let first = geometry.first_block(start);
        write_piece(core, first, piece).await?;
        extent::insert(core, h, &root, position, first, got, ExtentFlags::empty()).await?;
        rest = behind;
        position += got;
        goal = start.0.checked_add(got).map(ClusterNr);
    }
    Ok(())
}

/// An empty root, as it lies in an area before [`store`].
pub(crate) fn empty_root() -> [u8; XATTR_VALUE_ROOT_BYTES] {
    let mut root = [0; XATTR_VALUE_ROOT_BYTES];
    let header = size_of::<XattrValueRoot>();
    let (list, _) =
        ExtentListHeader::mut_from_prefix(&mut root[header..]).expect("a root holds its list");
    list.l_count.set(1);
    root
}

/// The tree of a value, to be freed by a handle that comes later.
pub(crate) async fn tree(core: &Core, block: &BlockRef, offset: usize) -> Result<Tree> {
    tree::read(core, block, RootKind::XattrValue { offset }).await
}

/// Gives back everything a value has: clusters (or its share of them) and extent blocks. The root must be gone, or go,
/// in the same handle.
pub(crate) async fn free(
    core: &Core,
    h: &mut Handle<'_>,
    inode: &Inode,
    tree: &Tree,
) -> Result<()> {
    for rec in &tree.extents {
        let start = core
            .geometry
            .cluster_of(rec.block())
            .expect("the tree was read with its records checked");
        if rec.flags().contains(ExtentFlags::REFCOUNTED) {
            refcount::decrease(core, h, inode, start, rec.clusters(0)).await?;
        } else {
            alloc::release_clusters(core, h, start, rec.clusters(0)).await?;
        }
    }
    for node in &tree.nodes {
        let place = ExtentBlock::of(&node.data()).suballoc();
        release_block(core, h, node, place).await?;
    }
    Ok(())
}

/// Gives a metadata block back to the extent allocator that it came from.
pub(crate) async fn release_block(
    core: &Core,
    h: &mut Handle<'_>,
    block: &BlockRef,
    from: Suballoc,
) -> Result<()> {
    let allocator = SystemFile::ExtentAlloc;
    alloc::release_place(
        core,
        h,
        allocator,
        from.slot,
        from.bit,
        from.group,
        block.nr(),
    )
    .await
}
