//! A directory's entries as a row of areas: one in the dinode, or one in each block of its clusters up
//! to its size. The only file that knows how a place in a directory becomes a place on the device.

use ondisk::{
    BlockNr, Corrupt, Dinode, DirTrailer, Kind, Structure, entries_end, inline_data_span,
};

use super::area::Area;
use super::{Form, corrupt};
use crate::cache::BlockRef;
use crate::core::Core;
use crate::error::Result;
use crate::extent::{self, Mapping, Root};

/// The areas of one directory, at one moment: made anew after each change of its size or form.
pub(super) struct Blocks {
    dir: BlockRef,
    form: Form,
    count: u64,
    block_size: u64,
    /// The clusters around the last block asked for.
    run: Option<Mapping>,
}

impl Blocks {
    pub fn of(core: &Core, dir: &BlockRef) -> Result<Blocks> {
        let form = Form::of(dir);
        let block_size = core.block_size() as u64;
        let data = dir.data();
        let dinode = Dinode::of(&data);
        let size = dinode.i_size.get();
        let broken = |rule| Err(corrupt(Structure::Dinode, dir.nr(), "i_size", size, rule));
        if size == 0 {
            return broken("a directory is never empty");
        }
        if form == Form::Inline {
            return Ok(Blocks {
                dir: dir.clone(),
                form,
                count: 1,
                block_size,
                run: None,
            });
        }
        // Whole blocks, but mkfs.ocfs2 counts lost+found's only block without its trailer.
        let count = size.div_ceil(block_size);
        let clusters = core.geometry.clusters_for_blocks(count);
        if clusters > dinode.i_clusters.get().into() {
            return broken("more than the directory's clusters hold");
        }
        Ok(Blocks {
            dir: dir.clone(),
            form,
            count,
            block_size,
            run: None,
        })
    }

    /// How many areas there are; at least one.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Bytes from the start of one area to that of the next, as positions in the directory count.
    /// Inline data keeps its offsets when it becomes the first block.
    pub fn stride(&self) -> u64 {
        self.block_size
    }

    /// The area of that index, which is below [`Blocks::count`].
    pub async fn area(&mut self, core: &Core, index: u64) -> Result<Area> {
        if self.form == Form::Inline {
            let data = self.dir.data();
            let mut span = inline_data_span(&data);
            let size = Dinode::of(&data).i_size.get() as usize;
            span.end = span.end.min(span.start.saturating_add(size));
            return Ok(Area::new(self.dir.clone(), span));
        }
        let nr = self.locate(core, index).await?;
        at(core, &self.dir, nr).await
    }

    /// The block on the device. Runs are kept, since most callers go from block to block.
    pub async fn locate(&mut self, core: &Core, index: u64) -> Result<BlockNr> {
        let per_cluster = u64::from(core.geometry.blocks_per_cluster());
        // The size is at most what 2^32 clusters hold.
        let cluster = (index / per_cluster) as u32;
        let inside = |run: &Mapping| {
            run.cpos <= cluster && u64::from(cluster - run.cpos) < u64::from(run.clusters)
        };
        let run = match self.run.filter(inside) {
            Some(run) => run,
            None => extent::lookup(core, &Root::dinode(&self.dir), cluster).await?,
        };
        self.run = Some(run);
        let Some(physical) = run.physical else {
            let rule = "a block of the directory is in no cluster";
            return Err(corrupt(
                Structure::Dinode,
                self.dir.nr(),
                "block",
                index,
                rule,
            ));
        };
        Ok(BlockNr(
            physical.0 + (index - u64::from(run.cpos) * per_cluster),
        ))
    }
}

/// The area in block `nr` of a directory that has clusters. A number from the index or from the list
/// of blocks with holes is good if the block's trailer says that it belongs to the directory.
pub(super) async fn at(core: &Core, dir: &BlockRef, nr: BlockNr) -> Result<Area> {
    check_place(core, dir, nr)?;
    let trailer = has_trailer(core, dir);
    let block = core.cache.read(nr, Kind::DirBlock { trailer }).await?;
    if trailer {
        DirTrailer::validate(&block.data(), nr, dir.nr())?;
    }
    Ok(in_block(core, block, trailer))
}

/// The area of a block that is in memory.
pub(super) fn in_block(core: &Core, block: BlockRef, trailer: bool) -> Area {
    Area::new(block, 0..entries_end(core.block_size(), trailer))
}

/// Whether the blocks of this directory end with a trailer.
pub(super) fn has_trailer(core: &Core, dir: &BlockRef) -> bool {
    Dinode::of(&dir.data()).has_dir_trailer(&core.geometry)
}

/// A block number read from the directory `dir` or its index is one that the volume has.
pub(super) fn check_place(core: &Core, dir: &BlockRef, nr: BlockNr) -> Result<(), Corrupt> {
    let check = ondisk::Check::new(Structure::DirBlock, dir.nr());
    let rule = "the directory leads out of the volume";
    check.rule(core.geometry.holds_block(nr), "block", nr.0, rule)
}
