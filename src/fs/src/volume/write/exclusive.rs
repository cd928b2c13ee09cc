//! Requests that have the inode to themselves, and write through: to the device and past the cache
//! before they are answered. Direct requests that change the file's shape, and buffered ones that
//! cannot wait in memory.
//!
//! The whole request is under one hold of the inode, to its last byte: other users see all of it or
//! nothing, whatever mix of steps it takes.

use ondisk::feature::{DynFeatures, ExtentFlags, Incompat};
use ondisk::{Dinode, RootKind};

use super::iocb::{Fallback, Iocb, LockLevel, Outcome, Path};
use super::payload::Payload;
use super::step::{By, WRITE_BLOCKS};
use crate::alloc;
use crate::error::{Error, Result};
use crate::extent;
use crate::inode::InodeRef;
use crate::pages::pages_of;
use crate::volume::Volume;
use crate::volume::attr::without_set_id;

impl Volume {
    /// The whole rest of a request, step by step.
    pub(super) async fn write_exclusive(&self, iocb: &mut Iocb<'_>) -> Result<()> {
        let inode = iocb.file.inode().clone();
        let _hold = self.hold_shape(&inode, iocb.file.flags().nowait).await?;
        if iocb.file.flags().append {
            // Decided here, under the lock: a size read before it may be another writer's past.
            iocb.move_to_end(inode.size());
        }
        let end = self.end_of(iocb)?;
        if iocb.file.flags().fixed_size && end > inode.size() {
            // Decided here as well: what is in place never moves the end.
            return Err(Error::Range(format!(
                "{} bytes at {} in a file of {} bytes that does not grow",
                iocb.rest().len(),
                iocb.position(),
                inode.size()
            )));
        }
        let range = pages_of(iocb.position(), end);
        self.settle_held(&inode, range.clone(), end).await?;
        let result = self.write_through(iocb, &inode, end).await;
        self.drop_clean(&inode, range);
        result
    }

    /// One past the request's last byte, if a file can have it.
    pub(super) fn end_of(&self, iocb: &Iocb<'_>) -> Result<u64> {
        iocb.end()
            .filter(|&end| end <= self.max_file_bytes())
            .ok_or_else(|| {
                let (len, at) = (iocb.rest().len(), iocb.position());
                Error::TooBig(format!(
                    "{len} bytes at {at}, at most {}",
                    self.max_file_bytes()
                ))
            })
    }

    async fn write_through(&self, iocb: &mut Iocb<'_>, inode: &InodeRef, end: u64) -> Result<()> {
        let direct = iocb.file.flags().direct;
        let outcome = |path, bytes, fallback: Option<Fallback>| Outcome {
            path,
            bytes,
            direct: direct && fallback.is_none(),
            fallback,
            edges_serialised: false,
            exclusive: true,
            lock: LockLevel::Exclusive,
        };
        self.drop_set_id(inode).await?;
        if self
            .write_inline(inode, iocb.position(), iocb.rest(), end)
            .await?
        {
            let fallback = direct.then_some(Fallback::InlineData);
            self.advance(iocb, outcome(Path::Inline, iocb.rest().len(), fallback));
            return Ok(());
        }
        let size = inode.dinode().i_size.get();
        if iocb.position() > size {
            self.zero_gap(inode, size, iocb.position()).await?;
            self.fill_to(inode, iocb.position()).await?;
        }
        let begun_at = iocb.position();
        while !iocb.rest().is_empty() {
            let at = iocb.position();
            // What this step is, the step itself decides; why it is not direct, the end of the file.
            let past_end = iocb
                .end()
                .is_some_and(|end| end > inode.dinode().i_size.get());
            let no_append = direct && past_end && !self.core().geometry.has(Incompat::APPEND_DIO);
            let fallback = no_append.then_some(Fallback::NoAppendDirect);
            let data = Payload::Bytes(iocb.rest());
            match self.write_step(inode, at, data, By::Request).await {
                Ok((path, bytes)) => {
                    self.advance(iocb, outcome(path, bytes as usize, fallback));
                }
                Err(error) => {
                    if iocb.position() == begun_at {
                        self.take_back(inode, size).await?;
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    pub(super) async fn drop_set_id(&self, inode: &InodeRef) -> Result<()> {
        let mode = inode.dinode().i_mode.get();
        if without_set_id(mode) == mode {
            return Ok(());
        }
        let mut h = self.core().journal.begin(1).await?;
        Dinode::of_mut(&mut h.modify(inode.block()))
            .i_mode
            .set(without_set_id(mode));
        inode.changed_in(h.commit());
        Ok(())
    }

    /// Writes into the dinode, if the file is inline (or empty and may become it) and the write
    /// fits; true if it did. A file that is inline and no longer fits is moved out first.
    pub(super) async fn write_inline(
        &self,
        inode: &InodeRef,
        position: u64,
        data: &[u8],
        end: u64,
    ) -> Result<bool> {
        let core = self.core();
        let Inline {
            inline,
            room,
            may_become,
        } = self.inline_of(inode);
        if end > room || !(inline || may_become) {
            if inline {
                alloc::with_space(core, async || self.inline_to_extents(inode).await).await?;
            }
            return Ok(false);
        }
        let mut h = core.journal.begin(1).await?;
        {
            let mut bytes = h.modify(inode.block());
            if !inline {
                become_inline(&mut bytes);
            }
            let size = Dinode::of(&bytes).i_size.get();
            let area = ondisk::inline_data_mut(&mut bytes);
            if position > size {
                area[size as usize..position as usize].fill(0);
            }
            area[position as usize..end as usize].copy_from_slice(data);
        }
        self.finish_step(h, inode, end, true);
        Ok(true)
    }

    /// What the dinode says of data in it.
    pub(super) fn inline_of(&self, inode: &InodeRef) -> Inline {
        let block = inode.block().data();
        let d = Dinode::of(&block);
        // Cached data that has no cluster yet counts as well.
        let empty = d.i_clusters.get() == 0 && inode.size() == 0;
        Inline {
            inline: d.dyn_features().contains(DynFeatures::INLINE_DATA),
            room: inline_room(&block) as u64,
            may_become: empty && self.core().geometry.has(Incompat::INLINE_DATA),
        }
    }

    /// Moves inline data into a cluster of its own. The size stays. If the file is empty there is
    /// nothing to write, and no cluster.
    pub(in crate::volume) async fn inline_to_extents(&self, inode: &InodeRef) -> Result<()> {
        let core = self.core();
        let size = inode.dinode().i_size.get() as usize;
        let data = ondisk::inline_data(&inode.block().data())[..size].to_vec();
        let mut h = core.journal.begin(WRITE_BLOCKS).await?;
        {
            let mut bytes = h.modify(inode.block());
            become_extents(&mut bytes);
        }
        if size > 0 {
            let (start, _) = alloc::claim_clusters(core, &mut h, None, 1, 1).await?;
            let first = core.geometry.first_block(start);
            self.write_padded(first, 1, 0, Payload::Bytes(&data))
                .await?;
            let root = extent::Root::dinode(inode.block());
            extent::insert(core, &mut h, &root, 0, first, 1, ExtentFlags::empty()).await?;
        }
        inode.changed_in(h.commit());
        Ok(())
    }
}

/// Whether a file's data is, or could be, in its dinode.
pub(super) struct Inline {
    pub inline: bool,
    /// Bytes it has room for.
    pub room: u64,
    /// It is empty, and the volume allows it.
    pub may_become: bool,
}

/// The variable part of an empty dinode becomes inline data, all zero.
fn become_inline(block: &mut [u8]) {
    let room = inline_room(block);
    let d = Dinode::of_mut(block);
    d.set_dyn_features(d.dyn_features() | DynFeatures::INLINE_DATA);
    ondisk::set_inline_data_count(block, room as u16);
    ondisk::inline_data_mut(block).fill(0);
}

/// The variable part of an inline dinode becomes an empty extent list.
fn become_extents(block: &mut [u8]) {
    ondisk::inline_data_mut(block).fill(0);
    let xattrs = Dinode::of(block).inline_xattr_bytes(block.len());
    let count = ondisk::capacity::extents_in_inode(block.len(), xattrs);
    let d = Dinode::of_mut(block);
    d.set_dyn_features(d.dyn_features() - DynFeatures::INLINE_DATA);
    ondisk::init_extent_list(block, RootKind::Dinode, 0, count as u16);
}

/// Bytes of inline data that a dinode has room for, before its inline xattrs.
fn inline_room(block: &[u8]) -> usize {
    let xattrs = Dinode::of(block).inline_xattr_bytes(block.len());
    ondisk::capacity::inline_data_bytes(block.len(), xattrs)
}
