//! One group descriptor against its place: whose it is, which chain it is in, its counts against its
//! bitmap, and the parts of a discontiguous one.

use ondisk::{BlockNr, ChainListHeader, GroupDesc, group_bitmap, group_extents};

use super::{Checker, Code, Spot};

/// Where a group was found.
#[derive(Clone, Copy)]
pub(super) struct Found<'a> {
    /// The allocator's inode.
    pub allocator: BlockNr,
    pub chain: u16,
    pub header: &'a ChainListHeader,
    /// In the global bitmap, bits are clusters.
    pub of_clusters: bool,
}

/// The free bits of a bitmap's first `bits`.
fn free_bits(bitmap: &[u8], bits: u32) -> u32 {
    let whole = (bits / 8) as usize;
    let set: u32 = bitmap
        .iter()
        .take(whole)
        .map(|byte| byte.count_ones())
        .sum();
    let rest = bitmap.get(whole).map_or(0, |byte| {
        (u32::from(*byte) & ((1 << (bits % 8)) - 1)).count_ones()
    });
    let known = bits.min(bitmap.len() as u32 * 8);
    known.saturating_sub(set + rest)
}

impl Checker<'_> {
    /// Checks a group's fields.
    pub(super) fn check_group(&mut self, nr: BlockNr, bytes: &[u8], found: &Found<'_>) {
        let group = GroupDesc::of(bytes);
        let spot = Spot::of(found.allocator, nr);
        if group.bg_parent_dinode.get() != found.allocator.0 {
            let message = format!(
                "the group says that it is of allocator {}",
                group.bg_parent_dinode.get()
            );
            self.find(Code::GroupParent, spot, message);
        }
        if group.bg_blkno.get() != nr.0 {
            let message = format!("the group calls itself block {}", group.bg_blkno.get());
            self.find(Code::GroupBlkno, spot, message);
        }
        if group.bg_chain.get() != found.chain {
            let message = format!(
                "the group is in chain {}, it says {}",
                found.chain,
                group.bg_chain.get()
            );
            self.find(Code::GroupChain, spot, message);
        }
        let bits = u32::from(group.bg_bits.get());
        let bitmap = group_bitmap(bytes);
        let room = bitmap.len() as u32 * 8;
        let most = found.header.bits_per_group().min(room);
        if bits > most || u32::from(group.bg_size.get()) != bitmap.len() as u32 {
            let message = format!(
                "the group has {bits} bits in {} bytes, at most {most} possible",
                group.bg_size.get()
            );
            self.find(Code::GroupBits, spot, message);
        }
        let free = free_bits(bitmap, bits);
        if u32::from(group.bg_free_bits_count.get()) != free {
            let message = format!(
                "the group counts {} free bits, its bitmap has {free}",
                group.bg_free_bits_count.get()
            );
            self.find(Code::GroupFreeBits, spot, message);
        }
        if bitmap.first().is_none_or(|byte| byte & 1 == 0) {
            self.find(
                Code::GroupFreeBits,
                spot,
                "the bit of the group itself is clear",
            );
        }
    }

    /// The runs of blocks that a suballocator's group is made of; `None` if they make no sense.
    pub(super) fn group_runs(
        &mut self,
        nr: BlockNr,
        bytes: &[u8],
        found: &Found<'_>,
    ) -> Option<Vec<(u64, u32)>> {
        let spot = Spot::of(found.allocator, nr);
        let clusters = u32::from(found.header.cl_cpg.get());
        let per_cluster = self.geometry.blocks_per_cluster();
        let bits = u32::from(GroupDesc::of(bytes).bg_bits.get());
        let Some(list) = group_extents(bytes, &self.geometry) else {
            let end = nr.0.saturating_add(u64::from(bits));
            let aligned = self.geometry.block_in_cluster(nr) == 0;
            if end > self.geometry.total_blocks() || !aligned {
                let message =
                    format!("a group of {bits} blocks from {nr} is not inside the volume");
                self.find(Code::GroupBits, spot, message);
                return None;
            }
            return Some(vec![(nr.0, bits)]);
        };
        if list.depth() != 0 {
            let message = format!("the group's list has depth {}", list.depth());
            self.find(Code::DiscontigBgDepth, spot, message);
        }
        let most = ondisk::capacity::extents_in_group(bytes.len());
        let (count, used) = (
            usize::from(list.header.l_count.get()),
            usize::from(list.header.l_next_free_rec.get()),
        );
        if count > most {
            let message = format!("the group's list claims {count} records, {most} fit");
            self.find(Code::DiscontigBgCount, spot, message);
        }
        if used > count.min(most) {
            let message = format!(
                "the group's list uses {used} records of {}",
                count.min(most)
            );
            self.find(Code::DiscontigBgNextFreeRec, spot, message);
        }
        let (mut runs, mut sum) = (Vec::new(), 0u32);
        for (at, rec) in list.used().iter().take(most).enumerate() {
            let part = u32::from(rec.leaf_clusters());
            if rec.block() == BlockNr::NONE && part == 0 {
                let message = format!("the group's list uses {used} records, {at} are filled");
                self.find(Code::DiscontigBgNextFreeRec, spot, message);
                break;
            }
            let blocks = u64::from(part) * u64::from(per_cluster);
            let end = rec.block().0.checked_add(blocks);
            let inside = self.holds(rec.block())
                && end.is_some_and(|end| end <= self.geometry.total_blocks())
                && self.geometry.block_in_cluster(rec.block()) == 0;
            if !inside {
                let message = format!(
                    "part {at} of the group, {part} clusters at block {}, is not inside the volume",
                    rec.block()
                );
                self.find(Code::DiscontigBgRecRange, spot, message);
                return None;
            }
            if rec.e_cpos.get() != sum || (at == 0 && rec.block() != nr) {
                let message = format!(
                    "part {at} of the group starts at {}, expected {sum}",
                    rec.e_cpos.get()
                );
                self.find(Code::DiscontigBgRecCorrupt, spot, message);
            }
            sum = sum.saturating_add(part);
            runs.push((rec.block().0, blocks as u32));
        }
        if sum > clusters {
            let message = format!("the group's parts have {sum} clusters, a group {clusters}");
            self.find(Code::DiscontigBgClusters, spot, message);
        }
        if sum < clusters {
            let message = format!("the group's parts have {sum} clusters, a group {clusters}");
            self.find(Code::DiscontigBgLessClusters, spot, message);
        }
        Some(runs)
    }
}
