//! The list of an indexed directory's blocks with holes: its head is in the index root, its links are
//! in the blocks' trailers, each with the size of its block's largest hole.
//!
//! The rule owned here: a block is on the list, once, exactly while its trailer says a hole, and what
//! it says is never more than there is. (Linux says 64 bytes too little in a directory's first block
//! until that changes.)

use ondisk::{BlockNr, Dinode, DxRoot, Structure, dirent_len};

use super::area::Area;
use super::{blocks, corrupt};
use crate::cache::BlockRef;
use crate::core::Core;
use crate::error::Result;
use crate::journal::Handle;

/// A block on the list, and the one before it; `None` if it is the first.
pub(super) struct Place {
    pub area: Area,
    pub before: Option<Area>,
}

/// The first block of the list.
pub(super) fn head(root: &BlockRef) -> BlockNr {
    BlockNr(DxRoot::of(&root.data()).dr_free_blk.get())
}

fn set_head(h: &mut Handle<'_>, root: &BlockRef, nr: BlockNr) {
    DxRoot::of_mut(&mut h.modify(root)).dr_free_blk.set(nr.0);
}

/// The first block on the list that says it has a hole for a name of that length.
pub(super) async fn search(
    core: &Core,
    dir: &BlockRef,
    root: &BlockRef,
    name_len: usize,
) -> Result<Option<Place>> {
    let need = dirent_len(name_len);
    let limit = Dinode::of(&dir.data())
        .i_size
        .get()
        .div_ceil(core.block_size() as u64);
    let mut seen = 0;
    let mut before = None;
    let mut next = head(root);
    while next.is_some() {
        // A list in a circle is longer than there are blocks.
        seen += 1;
        if seen > limit {
            let rule = "the list of blocks with holes has no end";
            return Err(corrupt(
                Structure::DirTrailer,
                next,
                "db_free_next",
                next.0,
                rule,
            ));
        }
        let area = blocks::at(core, dir, next).await?;
        let trailer = area.trailer();
        if usize::from(trailer.db_free_rec_len.get()) >= need {
            return Ok(Some(Place { area, before }));
        }
        next = BlockNr(trailer.db_free_next.get());
        before = Some(area);
    }
    Ok(None)
}

/// Puts a block at the list's front. Its trailer says the hole already.
pub(super) fn link(h: &mut Handle<'_>, root: &BlockRef, area: &Area) {
    let first = head(root);
    area.change_trailer(h, |trailer| trailer.db_free_next.set(first.0));
    set_head(h, root, area.into());
}

/// After an entry was taken out: a block that had no hole joins the list.
pub(super) fn grown(h: &mut Handle<'_>, root: &BlockRef, area: &Area) -> Result<()> {
    let hole = area.largest_hole()?;
    let listed = area.trailer().db_free_rec_len.get() != 0;
    area.change_trailer(h, |trailer| trailer.db_free_rec_len.set(hole as u16));
    if !listed {
        link(h, root, area);
    }
    Ok(())
}

/// After an entry was added: a block without a hole leaves the list.
pub(super) fn shrunk(h: &mut Handle<'_>, root: &BlockRef, place: &Place) -> Result<()> {
    let area = &place.area;
    let hole = area.largest_hole()?;
    if hole == 0 {
        let next = area.trailer().db_free_next.get();
        match &place.before {
            Some(before) => before.change_trailer(h, |trailer| trailer.db_free_next.set(next)),
            None => set_head(h, root, BlockNr(next)),
        }
    }
    area.change_trailer(h, |trailer| {
        trailer.db_free_rec_len.set(hole as u16);
        if hole == 0 {
            trailer.db_free_next.set(0);
        }
    });
    Ok(())
}
