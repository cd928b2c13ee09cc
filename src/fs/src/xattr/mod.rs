//! Extended attributes: in the inode's block, in an xattr block of its own, or in a tree of buckets; large values in
//! clusters of their own. Called by [`crate::volume`] for the xattr operations and when an inode is deleted.
//!
//! ```text
//!  dinode ──[inline area]                      first choice, if the inode has room for it
//!     └── i_xattr_loc ─► xattr block           one area, until it is full; then the root of
//!                           └─► tree by hash ─► extents of buckets, sorted by name hash
//! ```
//!
//! An attribute is in one of these places; all of them may be in use at once. Callers hold the inode's lock: shared to
//! read, exclusive to change. A change is one handle: it is all there or not at all, a large value included.
//!
//! Semantics of ACLs, and who may see which namespace, are the caller's.

mod area;
mod bucket;
mod destroy;
mod index;
mod name;
mod set;
pub(crate) mod tree;
mod value;

#[cfg(test)]
mod tests;

use ondisk::feature::{DynFeatures, Incompat};
use ondisk::{BlockNr, Kind, RootKind, XATTR_BUCKET_BYTES, XattrArea, XattrBlock};

use self::area::{Item, Stored};
use self::name::Name;
use crate::alloc;
use crate::cache::BlockRef;
use crate::core::Core;
use crate::error::{Error, Result};
use crate::inode::Inode;

/// What an existing, or missing, attribute means to a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XattrMode {
    /// Make or replace.
    Any,
    /// An existing attribute is an error.
    Create,
    /// A missing attribute is an error.
    Replace,
}

/// Every attribute, as full name and size of its value in bytes, in no particular order. Entries with a prefix that
/// nobody knows are left out.
pub async fn list(core: &Core, inode: &Inode) -> Result<Vec<(Vec<u8>, u64)>> {
    let mut found = Vec::new();
    for area in areas(core, inode).await? {
        for item in area.items()? {
            if let Some(full) = Name::full(item.name.index, &item.name.suffix) {
                found.push((full, item.size()));
            }
        }
    }
    Ok(found)
}

/// The value of an attribute; `None` if there is none of that name.
pub async fn get(core: &Core, inode: &Inode, name: &[u8]) -> Result<Option<Vec<u8>>> {
    let name = parse(core, name)?;
    let Some(found) = find(core, inode, &name).await? else {
        return Ok(None);
    };
    match found.item.stored {
        Stored::Local(value) => Ok(Some(value)),
        Stored::Outside { size, .. } => Ok(Some(
            value::read(core, &found.place.block, found.value_offset, size).await?,
        )),
    }
}

/// Sets an attribute. If that fails, the old value, or none, is what there is.
///
/// # Errors
/// `Exists` or `NoAttribute` as the mode demands, `TooBig` for a value of more than 64 KiB, `NoSpace`.
pub async fn set(
    core: &Core,
    inode: &Inode,
    name: &[u8],
    value: &[u8],
    mode: XattrMode,
) -> Result<()> {
    let name = parse(core, name)?;
    alloc::with_space(core, async || {
        set::set(core, inode, name.clone(), value, mode).await
    })
    .await
}

/// Removes an attribute.
///
/// # Errors
/// `NoAttribute` if there is none of that name.
pub async fn remove(core: &Core, inode: &Inode, name: &[u8]) -> Result<()> {
    let name = parse(core, name)?;
    alloc::with_space(core, async || set::remove(core, inode, name.clone()).await).await
}

/// Frees all attributes of an inode that is being deleted, in several handles.
pub async fn destroy(core: &Core, inode: &Inode) -> Result<()> {
    destroy::destroy(core, inode).await
}

/// A name that is valid, on a volume that has attributes.
fn parse(core: &Core, name: &[u8]) -> Result<Name> {
    if !core.geometry.has(Incompat::XATTR) {
        return Err(Error::NotSupported("the volume has no xattrs".to_owned()));
    }
    Name::parse(name)
}

/// An area of attributes: which block (or bucket) and where in it.
#[derive(Clone)]
struct Place {
    block: BlockRef,
    start: usize,
    end: usize,
}

impl Place {
    /// The inline area, if the inode has one.
    fn inline(core: &Core, inode: &Inode) -> Option<Place> {
        let end = core.block_size();
        let bytes = inode.dinode().inline_xattr_bytes(end);
        (bytes > 0).then(|| Place {
            block: inode.block().clone(),
            start: end - bytes,
            end,
        })
    }

    /// The area of an xattr block that is not indexed.
    fn block(core: &Core, block: &BlockRef) -> Place {
        let span = XattrBlock::area_span(core.block_size());
        Place {
            block: block.clone(),
            start: span.start,
            end: span.end,
        }
    }

    fn bucket(block: &BlockRef) -> Place {
        Place {
            block: block.clone(),
            start: 0,
            end: XATTR_BUCKET_BYTES,
        }
    }

    fn len(&self) -> usize {
        self.end - self.start
    }

    fn items(&self) -> Result<Vec<Item>> {
        Ok(area::items(
            &self.block.data()[self.start..self.end],
            self.block.nr(),
        )?)
    }

    /// The offset in the block of the value, or its root, of the entry at `index`.
    fn value_offset(&self, index: usize) -> Result<usize> {
        let data = self.block.data();
        let entry = XattrArea::new(&data[self.start..self.end])
            .entries()
            .get(index)
            .copied();
        let entry = entry.ok_or_else(|| {
            tree::corrupt(self.block.nr(), "xh_count", index as u64, "no such entry")
        })?;
        Ok(self.start + entry.value_offset())
    }

    /// The attribute of that name, if it is here.
    fn find(&self, name: &Name) -> Result<Option<Found>> {
        let items = self.items()?;
        let Some(index) = items.iter().position(|item| item.name == *name) else {
            return Ok(None);
        };
        let value_offset = self.value_offset(index)?;
        let item = items
            .into_iter()
            .nth(index)
            .expect("the position is one of the list");
        Ok(Some(Found {
            place: self.clone(),
            value_offset,
            item,
        }))
    }
}

/// An attribute and where it is.
struct Found {
    place: Place,
    /// Offset in the block of the value or its root.
    value_offset: usize,
    item: Item,
}

/// The external xattr block of an inode, if it has one.
async fn external(core: &Core, inode: &Inode) -> Result<Option<BlockRef>> {
    let nr = {
        let dinode = inode.dinode();
        let has = dinode.dyn_features().contains(DynFeatures::HAS_XATTR);
        BlockNr(if has { dinode.i_xattr_loc.get() } else { 0 })
    };
    if nr.is_some() {
        Ok(Some(core.cache.read(nr, Kind::XattrBlock).await?))
    } else {
        Ok(None)
    }
}

fn is_indexed(block: &BlockRef) -> bool {
    XattrBlock::of(&block.data()).is_indexed()
}

/// Every area of an inode.
async fn areas(core: &Core, inode: &Inode) -> Result<Vec<Place>> {
    let mut places = Vec::from_iter(Place::inline(core, inode));
    if let Some(block) = external(core, inode).await? {
        if is_indexed(&block) {
            for rec in tree::read(core, &block, RootKind::XattrTree).await?.extents {
                let extent = bucket::Extent::open(core, &block, &rec).await?;
                for index in 0..extent.count {
                    places.push(Place::bucket(&extent.read(core, index).await?));
                }
            }
        } else {
            places.push(Place::block(core, &block));
        }
    }
    Ok(places)
}

/// The attribute of that name, wherever it is.
async fn find(core: &Core, inode: &Inode, name: &Name) -> Result<Option<Found>> {
    if let Some(place) = Place::inline(core, inode)
        && let Some(found) = place.find(name)?
    {
        return Ok(Some(found));
    }
    match external(core, inode).await? {
        Some(block) => find_external(core, &block, name).await,
        None => Ok(None),
    }
}

/// The attribute of that name in an xattr block or its buckets.
async fn find_external(core: &Core, block: &BlockRef, name: &Name) -> Result<Option<Found>> {
    if !is_indexed(block) {
        return Place::block(core, block).find(name);
    }
    for hash in name.hashes(core.geometry.uuid_hash) {
        if let Some(spot) = bucket::locate(core, block, hash).await?
            && let Some(found) = Place::bucket(&spot.bucket).find(name)?
        {
            return Ok(Some(found));
        }
    }
    Ok(None)
}
