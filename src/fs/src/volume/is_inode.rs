//! Is the block that a client names an inode? Anything may be in a block, also bytes that a user
//! wrote into a file and that look like a dinode. What decides is the allocator: the block must be
//! a claimed bit of a group that belongs to an inode allocator.

use ondisk::{BlockNr, Dinode, GroupDesc, Kind, group_bitmap, group_block_to_bit};

use crate::core::Core;
use crate::error::{Error, Result};
use crate::system::SystemFile;

/// `Stale` unless `nr` is an allocated inode. Reads the block past the cache, so that garbage does
/// not get in.
pub(super) async fn is_inode(core: &Core, nr: BlockNr) -> Result<()> {
    let stale = Error::Stale(nr);
    if !core.geometry.holds_block(nr) {
        return Err(stale);
    }
    let bytes = match core.cache.peek(nr) {
        Some(block) => block.snapshot().to_vec(),
        None => core.cache.read_raw(nr, core.block_size()).await?,
    };
    let dinode = Dinode::of(&bytes);
    if dinode.i_signature != Dinode::SIGNATURE || dinode.i_blkno.get() != nr.0 {
        return Err(stale);
    }
    let place = dinode.suballoc();
    let allocator = if !place.slot.is_some() {
        core.system.of(SystemFile::GlobalInodeAlloc, place.slot)
    } else if place.slot.0 < core.system.slot_count() {
        core.system.of(SystemFile::InodeAlloc, place.slot)
    } else {
        return Err(stale);
    };
    // The group, too, is only believed if it is one of that allocator's.
    let group = place.group_of(nr);
    let Some(group) = group.filter(|&group| core.geometry.holds_block(group)) else {
        return Err(stale);
    };
    if core.cache.peek(group).is_none() {
        let raw = core.cache.read_raw(group, core.block_size()).await?;
        if GroupDesc::of(&raw).bg_signature != GroupDesc::SIGNATURE {
            return Err(stale);
        }
    }
    let Ok(group) = core.cache.read(group, Kind::GroupDesc).await else {
        return Err(stale);
    };
    let data = group.data();
    let claimed = GroupDesc::of(&data).bg_parent_dinode.get() == allocator.0
        && group_block_to_bit(&data, &core.geometry, nr) == Some(place.bit)
        && group_bitmap(&data)
            .get(usize::from(place.bit / 8))
            .is_some_and(|byte| byte >> (place.bit % 8) & 1 == 1);
    if claimed { Ok(()) } else { Err(stale) }
}
