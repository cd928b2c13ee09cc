//! A chain allocator: an inode with chains of groups, each group a bitmap. The global bitmap and the
//! suballocators are both this; what differs is what a bit stands for.
//!
//! Every change keeps four numbers in step, in one handle: the bits, the group's free count, the
//! chain's free count, the inode's used count.

use ondisk::{
    BlockNr, ChainRec, Corrupt, Dinode, GroupDesc, GroupParent, Kind, Structure, Why, chain_list,
    chain_list_mut, group_bitmap, group_bitmap_mut, group_first_cluster,
};

use super::bits;
use crate::cache::BlockRef;
use crate::core::Core;
use crate::error::{Error, Result};
use crate::journal::Handle;

/// An allocator's inode.
pub(super) struct Allocator {
    pub block: BlockRef,
    /// The global bitmap: a bit is a cluster, not a block.
    is_global: bool,
}

/// Bits to find.
#[derive(Clone, Copy)]
pub(super) struct Want {
    pub min: u32,
    pub max: u32,
}

/// Bits found, and taken.
#[derive(Clone)]
pub(super) struct Taken {
    pub group: BlockRef,
    pub bit: u32,
    pub count: u32,
}

impl Allocator {
    pub async fn open(core: &Core, nr: BlockNr, is_global: bool) -> Result<Allocator> {
        let block = core.cache.read(nr, Kind::Dinode).await?;
        if Dinode::of(&block.data()).body() != ondisk::Body::Chains {
            let flags = Dinode::of(&block.data()).i_flags.get().into();
            return Err(corrupt(
                nr,
                Structure::ChainList,
                "i_flags",
                flags,
                "not a chain allocator",
            ));
        }
        Ok(Allocator { block, is_global })
    }

    pub fn chains(&self) -> Vec<ChainRec> {
        chain_list(&self.block.data()).used().to_vec()
    }

    pub fn used(&self) -> u32 {
        Dinode::of(&self.block.data()).used()
    }

    pub fn total(&self) -> u32 {
        Dinode::of(&self.block.data()).total()
    }

    /// A group's descriptor, checked against this allocator.
    pub async fn group(&self, core: &Core, nr: BlockNr) -> Result<BlockRef> {
        if !core.geometry.holds_block(nr) {
            let own = self.block.nr();
            return Err(corrupt(
                own,
                Structure::ChainList,
                "group",
                nr.0,
                "outside the volume",
            ));
        }
        let group = core.cache.read(nr, Kind::GroupDesc).await?;
        let chains = *chain_list(&self.block.data()).header;
        let parent = GroupParent {
            nr: self.block.nr(),
            chains: &chains,
        };
        GroupDesc::validate_in(&group.data(), nr, &core.geometry, parent, false)?;
        Ok(group)
    }

    /// Takes a run of bits: from the goal on if it is free there, else from the goal's group, else
    /// from the chain with the most free bits, else from any. `None` if no group has `min` in a row.
    pub async fn claim(
        &self,
        core: &Core,
        h: &mut Handle<'_>,
        goal: Option<(BlockNr, Option<u32>)>,
        want: Want,
    ) -> Result<Option<Taken>> {
        if let Some((nr, bit)) = goal {
            let group = self.group(core, nr).await?;
            if let Some(taken) = self.claim_in(core, h, &group, bit, want)? {
                return Ok(Some(taken));
            }
        }
        let chains = self.chains();
        let mut order: Vec<&ChainRec> = chains
            .iter()
            .filter(|chain| chain.c_free.get() >= want.min.max(1))
            .collect();
        order.sort_by_key(|chain| std::cmp::Reverse(chain.c_free.get()));
        for chain in order {
            if let Some(taken) = self.claim_in_chain(core, h, chain, want).await? {
                return Ok(Some(taken));
            }
        }
        Ok(None)
    }

    async fn claim_in_chain(
        &self,
        core: &Core,
        h: &mut Handle<'_>,
        chain: &ChainRec,
        want: Want,
    ) -> Result<Option<Taken>> {
        let mut next = chain.first_group();
        let mut bits_seen = 0u64;
        while next.is_some() {
            let group = self.group(core, next).await?;
            bits_seen += u64::from(GroupDesc::of(&group.data()).bg_bits.get().max(1));
            if bits_seen > u64::from(chain.c_total.get()) {
                let rule = "the chain's groups have more bits than the chain, or it is a loop";
                return Err(corrupt(
                    next,
                    Structure::GroupDesc,
                    "bg_bits",
                    bits_seen,
                    rule,
                ));
            }
            if let Some(taken) = self.claim_in(core, h, &group, None, want)? {
                return Ok(Some(taken));
            }
            next = GroupDesc::of(&group.data()).next_group();
        }
        Ok(None)
    }

    fn claim_in(
        &self,
        core: &Core,
        h: &mut Handle<'_>,
        group: &BlockRef,
        goal: Option<u32>,
        want: Want,
    ) -> Result<Option<Taken>> {
        let found = {
            let data = group.data();
            let desc = GroupDesc::of(&data);
            if u32::from(desc.bg_free_bits_count.get()) < want.min.max(1) {
                return Ok(None);
            }
            let bitmap = group_bitmap(&data);
            let count = self.usable_bits(core, group.nr(), desc.bg_bits.get().into());
            match self.with_pinned_bits(core, group.nr(), bitmap, count) {
                Some(busy) => bits::find(&busy, count, goal, want.min.max(1), want.max),
                None => bits::find(bitmap, count, goal, want.min.max(1), want.max),
            }
        };
        let Some((bit, count)) = found else {
            return Ok(None);
        };
        self.take(h, group, bit, count)?;
        Ok(Some(Taken {
            group: group.clone(),
            bit,
            count,
        }))
    }

    /// A resize that was interrupted may have left bits behind the volume's end.
    fn usable_bits(&self, core: &Core, group: BlockNr, bits: u32) -> u32 {
        match group_first_cluster(group, &core.geometry) {
            Some(first) if self.is_global => {
                bits.min(core.geometry.total_clusters.saturating_sub(first.0))
            }
            _ => bits,
        }
    }

    /// The bitmap with the clusters that are free in it but still pinned, if there are any.
    ///
    /// If we crash before the transaction that freed them is in the log, their old owner has them
    /// again: they must not hold a new owner's data by then.
    fn with_pinned_bits(
        &self,
        core: &Core,
        group: BlockNr,
        bitmap: &[u8],
        count: u32,
    ) -> Option<Vec<u8>> {
        let pins = core.journal.pins();
        if !self.is_global || pins.is_empty() {
            return None;
        }
        let first = group_first_cluster(group, &core.geometry)?;
        let pinned = pins.within(first, count);
        if pinned.is_empty() {
            return None;
        }
        let mut busy = bitmap.to_vec();
        for (start, clusters) in pinned {
            for cluster in start.0..start.0 + clusters {
                bits::set(&mut busy, cluster - first.0);
            }
        }
        Some(busy)
    }

    fn take(&self, h: &mut Handle<'_>, group: &BlockRef, bit: u32, count: u32) -> Result<()> {
        let chain = {
            let mut data = h.modify(group);
            let bitmap = group_bitmap_mut(&mut data);
            for bit in bit..bit + count {
                bits::set(bitmap, bit);
            }
            let contiguous = self.contiguous_after(&data);
            let desc = GroupDesc::of_mut(&mut data);
            // The caller saw at least that many clear bits; a count that is lower lies.
            let free = u32::from(desc.bg_free_bits_count.get()).checked_sub(count);
            let Some(free) = free else {
                let found = desc.bg_free_bits_count.get().into();
                let rule = "fewer than its clear bits";
                return Err(corrupt(
                    group.nr(),
                    Structure::GroupDesc,
                    "bg_free_bits_count",
                    found,
                    rule,
                ));
            };
            desc.bg_free_bits_count.set(free as u16);
            desc.bg_contig_free_bits.set(contiguous);
            desc.bg_chain.get()
        };
        self.count(h, chain, i64::from(count))
    }

    /// Gives bits back. A bit that is clear already means that something is freed twice.
    pub async fn free(
        &self,
        core: &Core,
        h: &mut Handle<'_>,
        group: BlockNr,
        bit: u32,
        count: u32,
    ) -> Result<()> {
        let group = self.group(core, group).await?;
        {
            let data = group.data();
            let total = u32::from(GroupDesc::of(&data).bg_bits.get());
            let bitmap = group_bitmap(&data);
            let own = self.descriptor_bits(core, group.nr());
            for bit in bit..bit.saturating_add(count) {
                let rule = if bit >= total {
                    "freed, but the group has fewer bits"
                } else if bit < own {
                    "freed, but it holds the group's descriptor"
                } else if !bits::is_set(bitmap, bit) {
                    "freed, but it is free already"
                } else {
                    continue;
                };
                return Err(corrupt(
                    group.nr(),
                    Structure::GroupDesc,
                    "bit",
                    bit.into(),
                    rule,
                ));
            }
        }
        let chain = {
            let mut data = h.modify(&group);
            let bitmap = group_bitmap_mut(&mut data);
            for bit in bit..bit + count {
                bits::clear(bitmap, bit);
            }
            let contiguous = self.contiguous_after(&data);
            let desc = GroupDesc::of_mut(&mut data);
            let free = u32::from(desc.bg_free_bits_count.get()) + count;
            if free > u32::from(desc.bg_bits.get()) {
                let rule = "more than its bits";
                return Err(corrupt(
                    group.nr(),
                    Structure::GroupDesc,
                    "bg_free_bits_count",
                    free.into(),
                    rule,
                ));
            }
            desc.bg_free_bits_count.set(free as u16);
            desc.bg_contig_free_bits.set(contiguous);
            desc.bg_chain.get()
        };
        self.count(h, chain, -i64::from(count))
    }

    /// Bits at a group's start that can never be free: its descriptor's. In the first cluster group
    /// the descriptor lies behind other things, all of them in use forever.
    fn descriptor_bits(&self, core: &Core, group: BlockNr) -> u32 {
        if self.is_global && group == core.geometry.first_cluster_group {
            core.geometry
                .cluster_of(group)
                .map_or(1, |cluster| cluster.0 + 1)
        } else {
            1
        }
    }

    /// The longest free run to note: 0, "unknown", where nobody keeps it. Newer kernels do, in the
    /// global bitmap, and believe it.
    fn contiguous_after(&self, data: &[u8]) -> u16 {
        let desc = GroupDesc::of(data);
        if !self.is_global || desc.bg_contig_free_bits.get() == 0 {
            return 0;
        }
        bits::longest_clear(group_bitmap(data), desc.bg_bits.get().into()) as u16
    }

    /// Counts bits taken (or, if negative, given back) in the chain and in the inode.
    fn count(&self, h: &mut Handle<'_>, chain: u16, taken: i64) -> Result<()> {
        let nr = self.block.nr();
        let mut data = h.modify(&self.block);
        let (used, total) = (Dinode::of(&data).used(), Dinode::of(&data).total());
        let now = i64::from(used) + taken;
        if now < 0 || now > i64::from(total) {
            let rule = "does not fit the bits taken or freed";
            return Err(corrupt(nr, Structure::Dinode, "i_used", used.into(), rule));
        }
        Dinode::of_mut(&mut data).set_used(now as u32);
        let list = chain_list_mut(&mut data);
        let rec = &mut list.records[usize::from(chain)]; // checked with the group
        let free = i64::from(rec.c_free.get()) - taken;
        if free < 0 || free > i64::from(rec.c_total.get()) {
            let rule = "does not fit the bits taken or freed";
            return Err(corrupt(
                nr,
                Structure::ChainList,
                "c_free",
                rec.c_free.get().into(),
                rule,
            ));
        }
        rec.c_free.set(free as u32);
        Ok(())
    }
}

pub(super) fn corrupt(
    block: BlockNr,
    what: Structure,
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
