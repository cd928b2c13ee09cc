//! Directories: names to inodes, in the three forms that the format has.
//!
//! ```text
//!  inline     entries in the dinode                        while they fit and the volume has inline data
//!  linear     entries in blocks of the directory's clusters
//!  indexed    the same blocks, and beside them
//!             index root ─┬─ entries (hash → block), while they are few
//!                         └─ extent tree by major hash ─► clusters of leaves, the leaf by minor hash
//!             a list of the blocks with holes, from the root through the blocks' trailers
//! ```
//!
//! The door for the operations on names (and for the orphan directories, whose entries are like any
//! other). Everything that changes works inside the caller's [`Handle`], so that an operation's names,
//! inodes and link counts change together or not at all; whoever calls holds the directory's lock.
//! The directory's size, clusters, features and index are kept here; times and link counts are the
//! caller's.
//!
//! The rules this room owns, all of them the Linux driver's:
//! * Entries never move. Removing one gives its bytes to the one before it, adding one splits a record
//!   with room. That makes a byte offset a position that survives changes: see [`read`].
//! * Names are hashed with unsigned bytes. Linux before 6.2 on x86 hashed signed, so a name outside
//!   ASCII that is not found is looked up a second time that way.
//! * The index holds every name, `.` and `..` too; each block with a hole is on the list, once.

mod area;
mod blocks;
mod create;
mod destroy;
mod free_list;
mod grow;
mod index;
mod split;

#[cfg(test)]
mod check;
#[cfg(test)]
mod tests;

use ondisk::feature::DynFeatures;
use ondisk::{BlockNr, Corrupt, Dinode, Structure, Why};

use crate::cache::BlockRef;
use crate::core::Core;
use crate::error::{Error, Result};
use crate::inode::Inode;
use crate::journal::Handle;
use crate::limits::NAME_MAX;

use area::Found;
use blocks::Blocks;

pub use create::init_new;
pub use destroy::destroy;

#[cfg(test)]
pub(crate) use check::self_check;

/// What a name leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hit {
    pub ino: BlockNr,
    /// As in the entry: a [`ondisk::FileType`], or 0 where whoever wrote it did not say.
    pub file_type: u8,
}

/// One entry, as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub name: Vec<u8>,
    pub ino: BlockNr,
    pub file_type: u8,
    /// Where the listing goes on after this entry.
    pub cookie_next: u64,
}

/// How a directory keeps its entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Inline,
    Linear,
    Indexed,
}

impl Form {
    fn of(dir: &BlockRef) -> Form {
        let features = Dinode::of(&dir.data()).dyn_features();
        if features.contains(DynFeatures::INLINE_DATA) {
            Form::Inline
        } else if features.contains(DynFeatures::INDEXED_DIR) {
            Form::Indexed
        } else {
            Form::Linear
        }
    }
}

/// The entry of a name, `.` and `..` included.
///
/// # Errors
/// A name too long to exist, a corrupt directory, the device's.
pub async fn lookup(core: &Core, dir: &Inode, name: &[u8]) -> Result<Option<Hit>> {
    let found = find(core, dir.block(), name).await?;
    Ok(found.map(|found| Hit {
        ino: found.ino,
        file_type: found.file_type,
    }))
}

/// At most `max` entries from `cookie` on, `.` and `..` included, and whether that was the end. The
/// first call passes 0, the next ones the last entry's `cookie_next`.
///
/// A cookie is a byte offset in the directory. Entries do not move while they live, so one that is
/// there all the time is listed exactly once, whatever comes and goes between two calls; the record
/// that a cookie pointed to may be gone, so the listing goes on at the first one not before it.
///
/// # Errors
/// A corrupt directory, but only once what is readable before the damage has been listed.
pub async fn read(core: &Core, dir: &Inode, cookie: u64, max: usize) -> Result<(Vec<Entry>, bool)> {
    let mut blocks = Blocks::of(core, dir.block())?;
    let mut entries = Vec::new();
    let mut index = cookie / blocks.stride();
    let mut from = (cookie % blocks.stride()) as usize;
    while index < blocks.count() {
        if entries.len() >= max {
            return Ok((entries, false));
        }
        let listed = match blocks.area(core, index).await {
            Ok(area) => area.list(index * blocks.stride(), from, max, &mut entries),
            Err(error) => Err(error),
        };
        match listed {
            Ok(true) => (index, from) = (index + 1, 0),
            Ok(false) => return Ok((entries, false)),
            Err(_) if !entries.is_empty() => return Ok((entries, false)),
            Err(error) => return Err(error),
        }
    }
    Ok((entries, true))
}

/// Whether nothing but `.` and `..` is in it.
///
/// # Errors
/// Also when `.` and `..` are not where they must be: such a directory is not one to delete.
pub async fn is_empty(core: &Core, dir: &Inode) -> Result<bool> {
    let block = dir.block();
    let indexed = Form::of(block) == Form::Indexed;
    if indexed && index::entry_count(&index::root(core, block).await?) != 2 {
        return Ok(false);
    }
    let mut blocks = Blocks::of(core, block)?;
    blocks.area(core, 0).await?.check_dots(block.nr())?;
    let mut seen = 0;
    for index in 0..blocks.count() {
        seen += blocks.area(core, index).await?.used()?;
        // The index has counted: two in all, and both are in the first block.
        if seen > 2 || indexed {
            break;
        }
    }
    Ok(seen == 2)
}

/// Most blocks that adding `name` changes now, for [`crate::journal::Journal::begin`]. Good while
/// the directory's lock is held.
pub async fn insert_blocks(core: &Core, dir: &Inode, name: &[u8]) -> Result<u32> {
    // An entry's block and the one before it on the list, the dinode, the index root and leaf; a
    // new block; the allocators' blocks and the path of a tree, for up to three allocations.
    const PLAIN: u32 = 5 + 1 + 3 * 12;
    Ok(PLAIN
        + match Form::of(dir.block()) {
            Form::Linear => 0,
            Form::Inline => grow::leaves_made(core, dir.block()).await?,
            Form::Indexed => split::leaves_changed(core, dir.block(), name).await?,
        })
}

/// Most blocks that removing or replacing a name changes.
pub const REMOVE_BLOCKS: u32 = 4;

/// Adds an entry.
///
/// # Errors
/// [`Error::Exists`] if the name is there; [`Error::NoSpace`] also for more names of one hash than an
/// index leaf holds.
pub async fn insert(
    core: &Core,
    h: &mut Handle<'_>,
    dir: &Inode,
    name: &[u8],
    ino: BlockNr,
    file_type: u8,
) -> Result<()> {
    check_name(name)?;
    let block = dir.block();
    if find(core, block, name).await?.is_some() {
        return Err(Error::Exists(quoted(name)));
    }
    let entry = area::New {
        name,
        ino,
        file_type,
    };
    if Form::of(block) == Form::Inline {
        let area = Blocks::of(core, block)?.area(core, 0).await?;
        if let Some(at) = area.room_for(name.len())? {
            return Ok(area.add(h, at, &entry)?);
        }
        grow::inline_to_blocks(core, h, block).await?;
    }
    match Form::of(block) {
        Form::Indexed => index::insert(core, h, block, &entry).await,
        _ => insert_linear(core, h, block, &entry).await,
    }
}

/// The first hole of all blocks, or a new block.
async fn insert_linear(
    core: &Core,
    h: &mut Handle<'_>,
    dir: &BlockRef,
    entry: &area::New<'_>,
) -> Result<()> {
    let mut blocks = Blocks::of(core, dir)?;
    for index in 0..blocks.count() {
        let area = blocks.area(core, index).await?;
        if let Some(at) = area.room_for(entry.name.len())? {
            return Ok(area.add(h, at, entry)?);
        }
    }
    let area = grow::append_block(core, h, dir).await?;
    Ok(area.add(h, 0, entry)?)
}

/// Takes an entry out.
///
/// # Errors
/// [`Error::NotFound`]; [`Error::Invalid`] for `.` and `..`.
pub async fn remove(core: &Core, h: &mut Handle<'_>, dir: &Inode, name: &[u8]) -> Result<()> {
    if is_dot(name) {
        return Err(Error::Invalid(format!(
            "{} is not to be removed",
            quoted(name)
        )));
    }
    let found = existing(core, dir.block(), name).await?;
    found.area.take_out(h, found.at)?;
    if let Some(slot) = &found.slot {
        index::removed(core, h, dir.block(), &found.area, slot).await?;
    }
    Ok(())
}

/// Lets a name lead to another inode; `..` too, as when a directory moves.
///
/// # Errors
/// [`Error::NotFound`].
pub async fn replace(
    core: &Core,
    h: &mut Handle<'_>,
    dir: &Inode,
    name: &[u8],
    new_ino: BlockNr,
    new_type: u8,
) -> Result<()> {
    let found = existing(core, dir.block(), name).await?;
    found.area.set_inode(h, found.at, new_ino, new_type);
    Ok(())
}

async fn find(core: &Core, dir: &BlockRef, name: &[u8]) -> Result<Option<Found>> {
    if name.len() > NAME_MAX {
        return Err(Error::NameTooLong(name.len()));
    }
    if Form::of(dir) == Form::Indexed {
        return index::find(core, dir, name).await;
    }
    let mut blocks = Blocks::of(core, dir)?;
    for index in 0..blocks.count() {
        if let Some(found) = blocks.area(core, index).await?.find(name)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

async fn existing(core: &Core, dir: &BlockRef, name: &[u8]) -> Result<Found> {
    let found = find(core, dir, name).await?;
    found.ok_or_else(|| Error::NotFound(quoted(name)))
}

/// Whether a name may be added.
fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > NAME_MAX {
        return Err(Error::NameTooLong(name.len()));
    }
    if is_dot(name) {
        return Err(Error::Exists(quoted(name)));
    }
    if !ondisk::is_legal_name(name) {
        let why = "a name is not empty and has no slash and no NUL";
        return Err(Error::Invalid(format!("{}: {why}", quoted(name))));
    }
    Ok(())
}

fn is_dot(name: &[u8]) -> bool {
    matches!(name, b"." | b"..")
}

fn quoted(name: &[u8]) -> String {
    format!("\"{}\"", name.escape_ascii())
}

/// A rule broken in a block of a directory.
fn corrupt(
    what: Structure,
    block: BlockNr,
    field: &'static str,
    found: u64,
    rule: &'static str,
) -> Error {
    Error::Corrupt(Corrupt {
        block,
        what,
        why: Why::Value { field, found, rule },
    })
}
