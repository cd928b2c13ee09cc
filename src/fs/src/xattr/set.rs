//! Setting and removing attributes. Called by [`super`].
//!
//! The order of places is the kernel's: the inline area if the attribute fits there (the area is made if the inode has
//! room for one), else the xattr block, which is made when it is missing and becomes a tree of buckets when it is full.
//! An attribute that moves from one place to another leaves the first in the same handle.
//!
//! What is replaced is looked up before the handle begins: the inode's lock keeps it as it is.

use ondisk::feature::DynFeatures;
use ondisk::{
    Body, Dinode, Kind, RootKind, Suballoc, XATTR_LOCAL_MAX, XattrBlock, capacity, extent_list,
    extent_list_mut, inline_data_span, set_inline_data_count,
};

use super::area::{self, Item, Shape, Stored};
use super::name::Name;
use super::tree::Tree;
use super::{Found, Place, XattrMode, external, find_external, index, is_indexed, value};
use crate::alloc;
use crate::cache::BlockRef;
use crate::core::Core;
use crate::error::{Error, Result};
use crate::inode::Inode;
use crate::journal::Handle;
use crate::limits::XATTR_VALUE_MAX;

/// Smallest inline area worth making.
const INLINE_MIN: usize = 256;
/// Blocks that any change may touch besides buckets and trees of values: inode, xattr block, allocators, truncate log.
const BASE_BLOCKS: u32 = 32;

/// What there is of the attribute now.
struct Present {
    inline: Option<Found>,
    external: Option<Found>,
    /// Trees of the values that go with them.
    old: Vec<Tree>,
    block: Option<BlockRef>,
}

impl Present {
    async fn look(core: &Core, inode: &Inode, name: &Name) -> Result<Present> {
        let inline = match Place::inline(core, inode) {
            Some(place) => place.find(name)?,
            None => None,
        };
        let block = external(core, inode).await?;
        let external = match &block {
            Some(block) => find_external(core, block, name).await?,
            None => None,
        };
        let mut old = Vec::new();
        for found in inline.iter().chain(&external) {
            if found.item.is_outside() {
                old.push(value::tree(core, &found.place.block, found.value_offset).await?);
            }
        }
        Ok(Present {
            inline,
            external,
            old,
            block,
        })
    }

    fn exists(&self) -> bool {
        self.inline.is_some() || self.external.is_some()
    }

    /// Blocks that freeing the old values may touch.
    fn old_blocks(&self) -> u32 {
        let pieces: usize = self
            .old
            .iter()
            .map(|tree| tree.extents.len() + tree.nodes.len())
            .sum();
        2 * pieces as u32
    }

    /// Frees the old values.
    async fn free(&self, core: &Core, h: &mut Handle<'_>, inode: &Inode) -> Result<()> {
        for tree in &self.old {
            value::free(core, h, inode, tree).await?;
        }
        Ok(())
    }
}

pub(super) async fn set(
    core: &Core,
    inode: &Inode,
    name: Name,
    value: &[u8],
    mode: XattrMode,
) -> Result<()> {
    if value.len() > XATTR_VALUE_MAX {
        return Err(Error::TooBig(format!(
            "xattr value of {} bytes, at most {XATTR_VALUE_MAX}",
            value.len()
        )));
    }
    let present = Present::look(core, inode, &name).await?;
    match mode {
        XattrMode::Create if present.exists() => {
            return Err(Error::Exists(format!("xattr {}", name.display())));
        }
        XattrMode::Replace if !present.exists() => return Err(Error::NoAttribute(name.display())),
        _ => {}
    }
    // An attribute that stays in its bucket has to stay where its hash says, whoever made that hash.
    let hash = match &present.external {
        Some(found) => found.item.hash,
        None => name.hash(core.geometry.uuid_hash),
    };
    let stored = if value.len() as u64 <= XATTR_LOCAL_MAX {
        Stored::Local(value.to_vec())
    } else {
        Stored::Outside {
            root: value::empty_root(),
            size: value.len() as u64,
        }
    };
    let item = Item { hash, name, stored };
    let inline = inline_plan(core, inode, &item)?;
    let mut blocks = BASE_BLOCKS + present.old_blocks() + value_blocks(core, value);
    if inline.is_none()
        && let Some(block) = &present.block
    {
        blocks += index::blocks_to_put(core, block, &item).await?;
    }

    let mut h = core.journal.begin(bounded(core, blocks)).await?;
    present.free(core, &mut h, inode).await?;
    let (block, offset) = match inline {
        Some(plan) => {
            if let Some(found) = &present.external {
                take_out(&mut h, core, found)?;
            }
            put_inline(core, &mut h, inode, plan)
        }
        None => {
            let put = put_external(core, &mut h, inode, present.block.clone(), &item).await?;
            if let Some(found) = &present.inline {
                take_out(&mut h, core, found)?;
            }
            put
        }
    };
    if item.is_outside() {
        value::store(core, &mut h, &block, offset, value).await?;
    }
    finish(core, h, inode);
    Ok(())
}

pub(super) async fn remove(core: &Core, inode: &Inode, name: Name) -> Result<()> {
    let present = Present::look(core, inode, &name).await?;
    if !present.exists() {
        return Err(Error::NoAttribute(name.display()));
    }
    let mut h = core
        .journal
        .begin(bounded(core, BASE_BLOCKS + present.old_blocks()))
        .await?;
    present.free(core, &mut h, inode).await?;
    for found in present.inline.iter().chain(&present.external) {
        take_out(&mut h, core, found)?;
    }
    finish(core, h, inode);
    Ok(())
}

/// The estimates are for the worst case, which with clusters of 1 MiB (256 buckets) may exceed what a small journal
/// admits. Such a handle is started with the most there is: the log has room for several.
fn bounded(core: &Core, blocks: u32) -> u32 {
    blocks.min(core.journal.max_handle())
}

/// Every change is a change of the inode.
fn finish(core: &Core, mut h: Handle<'_>, inode: &Inode) {
    let now = core.now();
    {
        let mut bytes = h.modify(inode.block());
        let dinode = Dinode::of_mut(&mut bytes);
        dinode.i_ctime.set(now.seconds as u64);
        dinode.i_ctime_nsec.set(now.nanoseconds);
    }
    inode.changed_in(h.commit());
}

/// Blocks that storing a value may touch: in the worst case every cluster is an extent of its own.
fn value_blocks(core: &Core, value: &[u8]) -> u32 {
    if value.len() as u64 <= XATTR_LOCAL_MAX {
        return 0;
    }
    let clusters = core.geometry.clusters_for_bytes(value.len() as u64) as u32;
    8 + clusters.min(64)
}

/// The shape of the place's area.
fn shape(core: &Core, place: &Place) -> Shape {
    match place.block.kind() {
        Kind::XattrBucket => Shape::Bucket {
            block_size: core.block_size(),
        },
        _ => Shape::Plain,
    }
}

/// Writes the attributes of a place.
pub(super) fn write(core: &Core, h: &mut Handle<'_>, place: &Place, items: &[Item]) {
    let shape = shape(core, place);
    area::write(
        items,
        &mut h.modify(&place.block)[place.start..place.end],
        shape,
    );
}

/// Takes an attribute out of its place.
fn take_out(h: &mut Handle<'_>, core: &Core, found: &Found) -> Result<()> {
    let mut items = found.place.items()?;
    items.retain(|item| item.name != found.item.name);
    write(core, h, &found.place, &items);
    Ok(())
}

/// The list with `item` in the place of its namesake, or at the end.
pub(super) fn with(mut items: Vec<Item>, item: &Item) -> (Vec<Item>, usize) {
    match items.iter().position(|other| other.name == item.name) {
        Some(index) => {
            items[index] = item.clone();
            (items, index)
        }
        None => {
            items.push(item.clone());
            let last = items.len() - 1;
            (items, last)
        }
    }
}

/// What the inline area will hold.
struct InlinePlan {
    /// Bytes of the area; it is to be made if the inode has none.
    bytes: usize,
    make: bool,
    items: Vec<Item>,
    index: usize,
}

/// Whether the attribute goes inline, and how.
fn inline_plan(core: &Core, inode: &Inode, item: &Item) -> Result<Option<InlinePlan>> {
    if core.block_size() == ondisk::capacity::MIN_BLOCK_SIZE {
        return Ok(None);
    }
    let (bytes, make, items) = match Place::inline(core, inode) {
        Some(place) => (place.len(), false, place.items()?),
        None => match inline_room(core, inode) {
            Some(bytes) => (bytes, true, Vec::new()),
            None => return Ok(None),
        },
    };
    let (items, index) = with(items, item);
    Ok(
        area::fits(&items, bytes, Shape::Plain).then_some(InlinePlan {
            bytes,
            make,
            items,
            index,
        }),
    )
}

/// Bytes of the inline area that the inode has room for, and has not yet; `None` if it has none.
fn inline_room(core: &Core, inode: &Inode) -> Option<usize> {
    let bytes = usize::from(core.geometry.xattr_inline_size);
    if bytes < INLINE_MIN || !bytes.is_multiple_of(16) {
        return None;
    }
    let data = inode.block().data();
    let dinode = Dinode::of(&data);
    let size = usize::try_from(dinode.i_size.get()).ok()?;
    let free = match dinode.body() {
        Body::Inline => inline_data_span(&data).len().checked_sub(size)?,
        Body::FastSymlink => capacity::fast_symlink_bytes(data.len()).checked_sub(size + 1)?,
        Body::Extents => {
            let list = extent_list(&data, RootKind::Dinode);
            (list.records.len() - list.used().len()) * size_of::<ondisk::ExtentRec>()
        }
        _ => return None,
    };
    (free >= bytes).then_some(bytes)
}

/// Takes the room for the inline area from the end of what the inode's block holds.
fn make_inline(block: &mut [u8], bytes: usize) {
    match Dinode::of(block).body() {
        Body::Inline => {
            let count = inline_data_span(block).len() - bytes;
            set_inline_data_count(block, count as u16);
        }
        Body::Extents => {
            let list = extent_list_mut(block, RootKind::Dinode);
            let count = list.records.len() - bytes / size_of::<ondisk::ExtentRec>();
            list.header.l_count.set(count as u16);
        }
        _ => {}
    }
    let start = block.len() - bytes;
    block[start..].fill(0);
    let dinode = Dinode::of_mut(block);
    dinode.i_xattr_inline_size.set(bytes as u16);
    dinode.set_dyn_features(
        dinode.dyn_features() | DynFeatures::INLINE_XATTR | DynFeatures::HAS_XATTR,
    );
}

/// Writes the inline area. Where the attribute's value root is in the inode's block.
fn put_inline(
    core: &Core,
    h: &mut Handle<'_>,
    inode: &Inode,
    plan: InlinePlan,
) -> (BlockRef, usize) {
    let end = core.block_size();
    let place = Place {
        block: inode.block().clone(),
        start: end - plan.bytes,
        end,
    };
    if plan.make {
        make_inline(&mut h.modify(inode.block()), plan.bytes);
    }
    write(core, h, &place, &plan.items);
    let offset = area::value_offset(&plan.items, plan.index, plan.bytes, Shape::Plain);
    let offset = place.start + offset.expect("the plan fits");
    (place.block, offset)
}

/// Puts an attribute into the xattr block or its buckets. Returns where its value root is.
async fn put_external(
    core: &Core,
    h: &mut Handle<'_>,
    inode: &Inode,
    block: Option<BlockRef>,
    item: &Item,
) -> Result<(BlockRef, usize)> {
    let block = match block {
        Some(block) => block,
        None => make_block(core, h, inode).await?,
    };
    if !is_indexed(&block) {
        let place = Place::block(core, &block);
        let (items, index) = with(place.items()?, item);
        if let Some(offset) = area::value_offset(&items, index, place.len(), Shape::Plain) {
            write(core, h, &place, &items);
            return Ok((block, place.start + offset));
        }
        index::convert(core, h, &block, place.items()?).await?;
    }
    index::put(core, h, &block, item).await
}

/// Gives the inode an empty xattr block.
async fn make_block(core: &Core, h: &mut Handle<'_>, inode: &Inode) -> Result<BlockRef> {
    let place = alloc::claim_metadata(core, h).await?;
    let block = h.fresh(place.block, Kind::XattrBlock);
    let suballoc = Suballoc {
        slot: place.slot,
        bit: place.bit,
        group: place.group,
    };
    XattrBlock::init(
        &mut h.modify(&block),
        place.block,
        &core.geometry,
        suballoc,
        false,
    );
    let mut bytes = h.modify(inode.block());
    let dinode = Dinode::of_mut(&mut bytes);
    dinode.i_xattr_loc.set(place.block.0);
    dinode.set_dyn_features(dinode.dyn_features() | DynFeatures::HAS_XATTR);
    drop(bytes);
    Ok(block)
}
