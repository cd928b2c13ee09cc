//! A new directory's content: `.` and `..`.

use ondisk::feature::{ExtentFlags, Incompat};
use ondisk::{BlockNr, Dinode, DirTrailer, Kind, entries_end, init_dot_entries, inline_data_mut};

use super::{Form, blocks, grow};
use crate::alloc;
use crate::cache::BlockRef;
use crate::core::Core;
use crate::error::Result;
use crate::extent::{self, Root};
use crate::journal::Handle;

/// Makes the directory of a new inode, whose dinode says whether it starts inline. Without inline data
/// it gets one block and, on a volume that indexes directories, the index. The two links it starts
/// with are the caller's to count.
pub async fn init_new(
    core: &Core,
    h: &mut Handle<'_>,
    dir: &BlockRef,
    parent: BlockNr,
) -> Result<()> {
    if Form::of(dir) == Form::Inline {
        let mut data = h.modify(dir);
        let area = inline_data_mut(&mut data);
        init_dot_entries(area, dir.nr(), parent);
        let size = area.len() as u64;
        Dinode::of_mut(&mut data).i_size.set(size);
        return Ok(());
    }
    let indexed = core.geometry.has(Incompat::INDEXED_DIRS);
    let trailer = core.geometry.has_dir_trailer(indexed);
    let goal = core.geometry.cluster_of(dir.nr());
    let (cluster, _) = alloc::claim_clusters(core, h, goal, 1, 1).await?;
    let nr = core.geometry.first_block(cluster);
    extent::insert(core, h, &Root::dinode(dir), 0, nr, 1, ExtentFlags::empty()).await?;
    let size = core.block_size();
    Dinode::of_mut(&mut h.modify(dir)).i_size.set(size as u64);

    let block = h.fresh(nr, Kind::DirBlock { trailer });
    init_dot_entries(
        &mut h.modify(&block)[..entries_end(size, trailer)],
        dir.nr(),
        parent,
    );
    let area = blocks::in_block(core, block.clone(), trailer);
    if trailer {
        let hole = area.largest_hole()?;
        DirTrailer::init(&mut h.modify(&block), nr, dir.nr(), hole as u16);
    }
    if indexed {
        grow::attach_index(core, h, dir, &area).await?;
    }
    Ok(())
}
