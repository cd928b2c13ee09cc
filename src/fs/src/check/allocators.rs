//! The second phase: the chains of the global bitmap, the inode allocators and the extent allocators.
//! After it the groups of the suballocators are known, and the clusters they use.

use std::collections::HashSet;

use ondisk::feature::InodeFlags;
use ondisk::{
    BlockNr, ChainListHeader, ChainRec, Dinode, GroupDesc, Kind, SlotNr, SystemFile, chain_list,
    group_bitmap,
};

use super::groups::Found;
use super::places::{AllocatorId, Group};
use super::report::Phase;
use super::view::Step;
use super::{Checker, Code, Spot};

/// What a chain sums up to.
#[derive(Default, Clone, Copy)]
struct Sums {
    free: u64,
    total: u64,
}

impl Checker<'_> {
    pub(super) async fn check_allocators(&mut self) -> Step<()> {
        let slots = self.geometry.max_slots;
        self.report
            .begin(Phase::Allocators, 2 + 2 * u64::from(slots))?;
        // Boot blocks and superblock.
        let per_cluster = u64::from(self.geometry.blocks_per_cluster());
        let reserved = self.geometry.first_cluster_group.0 / per_cluster;
        self.used.set_run(0, reserved);
        let backups: Vec<BlockNr> = self.geometry.backup_super_blocks().collect();
        for nr in backups {
            self.used.set_run(nr.0 / per_cluster, 1);
        }
        self.check_allocator(SystemFile::GlobalBitmap, 0).await?;
        self.report.advance(1)?;
        self.check_allocator(SystemFile::GlobalInodeAlloc, 0)
            .await?;
        self.report.advance(1)?;
        for file in [SystemFile::InodeAlloc, SystemFile::ExtentAlloc] {
            for slot in 0..slots {
                self.check_allocator(file, slot).await?;
                self.report.advance(1)?;
            }
        }
        self.places.sort();
        Ok(())
    }

    async fn check_allocator(&mut self, file: SystemFile, slot: u16) -> Step<()> {
        let flags = InodeFlags::BITMAP | InodeFlags::CHAIN;
        let Some((nr, bytes)) = self.system_inode(file, slot, flags).await? else {
            return Ok(());
        };
        let spot = Spot::ino(nr);
        let inode = Dinode::of(&bytes);
        let list = chain_list(&bytes);
        let header = *list.header;
        let of_clusters = file == SystemFile::GlobalBitmap;
        if of_clusters && inode.i_clusters.get() != self.geometry.total_clusters {
            let message = format!(
                "the superblock counts {} clusters, the global bitmap {}",
                self.geometry.total_clusters,
                inode.i_clusters.get()
            );
            self.find(Code::SuperblockClusters, spot, message);
        }
        let bpc = if of_clusters {
            1
        } else {
            self.geometry.blocks_per_cluster()
        };
        if header.cl_cpg.get() == 0 || u32::from(header.cl_bpc.get()) != bpc {
            let message = format!(
                "groups of {} clusters with {} bits each, {bpc} expected",
                header.cl_cpg.get(),
                header.cl_bpc.get()
            );
            self.find(Code::ChainCpg, spot, message);
            return Ok(());
        }
        let used = self.chains_in_use(spot, &bytes);
        let mut seen = HashSet::new();
        let mut all = Sums::default();
        for (index, rec) in used.iter().enumerate() {
            if !rec.first_group().is_some() {
                if !of_clusters {
                    let message = format!("chain {index} has no group");
                    self.find(Code::ChainEmpty, spot, message);
                }
                continue;
            }
            let allocator = AllocatorId {
                nr,
                slot: if file == SystemFile::GlobalInodeAlloc {
                    SlotNr::INVALID
                } else {
                    SlotNr(slot)
                },
                of_inodes: file != SystemFile::ExtentAlloc,
            };
            let sums = self
                .check_chain(
                    allocator,
                    of_clusters,
                    &header,
                    index as u16,
                    rec,
                    &mut seen,
                )
                .await?;
            all.free += sums.free;
            all.total += sums.total;
        }
        self.check_sums(spot, &bytes, all);
        if of_clusters {
            self.check_group_places(nr, &header, &seen);
        }
        Ok(())
    }

    /// The chains in use, as far as the list can be believed.
    fn chains_in_use(&mut self, spot: Spot, bytes: &[u8]) -> Vec<ChainRec> {
        let list = chain_list(bytes);
        let most = ondisk::capacity::chains_in_inode(bytes.len());
        let (count, used) = (
            usize::from(list.header.cl_count.get()),
            usize::from(list.header.cl_next_free_rec.get()),
        );
        if count > most || count == 0 {
            let message = format!("the allocator claims {count} chains, {most} fit");
            self.find(Code::ChainCount, spot, message);
        }
        if used > count.min(most) {
            let message = format!("the allocator uses {used} chains of {}", count.min(most));
            self.find(Code::ChainNextFree, spot, message);
        }
        let chains = list.records[..list.records.len().min(most).min(used)].to_vec();
        for (index, rec) in chains.iter().enumerate() {
            let first = rec.first_group();
            if first.is_some() && !self.holds(first) {
                let message = format!("chain {index} starts at block {first}, outside the volume");
                self.find(Code::ChainHeadLinkRange, spot, message);
            }
        }
        chains
    }

    /// Follows one chain.
    async fn check_chain(
        &mut self,
        allocator: AllocatorId,
        of_clusters: bool,
        header: &ChainListHeader,
        chain: u16,
        rec: &ChainRec,
        seen: &mut HashSet<BlockNr>,
    ) -> Step<Sums> {
        let spot = Spot::ino(allocator.nr);
        let found = Found {
            allocator: allocator.nr,
            chain,
            header,
            of_clusters,
        };
        let mut sums = Sums::default();
        let mut next = rec.first_group();
        let mut before = allocator.nr;
        while next.is_some() {
            let nr = next;
            if !self.holds(nr) {
                if before != allocator.nr {
                    let message = format!("chain {chain} leads to block {nr}, outside the volume");
                    self.find(
                        Code::ChainLinkRange,
                        Spot::of(allocator.nr, before),
                        message,
                    );
                }
                break;
            }
            if !seen.insert(nr) {
                let message = format!("chain {chain} leads to group {nr} again");
                self.find(
                    Code::GroupChainLoop,
                    Spot::of(allocator.nr, before),
                    message,
                );
                break;
            }
            let Some(bytes) = self.read(nr, Kind::GroupDesc, Some(allocator.nr)).await? else {
                break;
            };
            let group = GroupDesc::of(&bytes);
            if group.bg_signature != GroupDesc::SIGNATURE {
                let message = format!("chain {chain} leads to block {nr}, which is no group");
                self.find(Code::ChainLinkMagic, Spot::of(allocator.nr, nr), message);
                break;
            }
            let generation = self.geometry.fs_generation.0;
            if group.bg_generation.get() != generation {
                let message = format!(
                    "chain {chain} leads to a group of generation {:#x}, the volume's is {generation:#x}",
                    group.bg_generation.get()
                );
                self.find(Code::ChainLinkGen, Spot::of(allocator.nr, nr), message);
                break;
            }
            self.check_group(nr, &bytes, &found);
            sums.free += u64::from(group.bg_free_bits_count.get());
            sums.total += u64::from(group.bg_bits.get());
            self.take_group(allocator, &found, nr, &bytes);
            before = nr;
            next = group.next_group();
        }
        let (free, total) = (u64::from(rec.c_free.get()), u64::from(rec.c_total.get()));
        if (sums.free, sums.total) != (free, total) {
            let message = format!(
                "chain {chain} counts {free} free bits of {total}, its groups have {} of {}",
                sums.free, sums.total
            );
            self.find(Code::ChainBits, spot, message);
        }
        Ok(sums)
    }

    /// A group's clusters are in use, and its bits are known.
    fn take_group(&mut self, allocator: AllocatorId, found: &Found<'_>, nr: BlockNr, bytes: &[u8]) {
        let per_cluster = u64::from(self.geometry.blocks_per_cluster());
        let spot = Spot::of(allocator.nr, nr);
        if found.of_clusters {
            self.use_clusters(nr.0 / per_cluster, 1, "of a group descriptor", spot);
            self.bitmap_groups.push(nr);
            return;
        }
        let Some(runs) = self.group_runs(nr, bytes, found) else {
            return;
        };
        for &(first, blocks) in &runs {
            let clusters = u64::from(blocks).div_ceil(per_cluster);
            self.use_clusters(first / per_cluster, clusters, "of a group", spot);
        }
        let blocks: u64 = runs.iter().map(|run| u64::from(run.1)).sum();
        let bits = u64::from(GroupDesc::of(bytes).bg_bits.get())
            .min(group_bitmap(bytes).len() as u64 * 8)
            .min(blocks) as u32;
        self.places
            .add(Group::new(nr, allocator, runs, bits, group_bitmap(bytes)));
    }

    fn check_sums(&mut self, spot: Spot, bytes: &[u8], all: Sums) {
        let inode = Dinode::of(bytes);
        let (used, total) = (u64::from(inode.used()), u64::from(inode.total()));
        if (used, total) != (all.total.saturating_sub(all.free), all.total) {
            let message = format!(
                "the allocator counts {used} used bits of {total}, its chains have {} of {}",
                all.total.saturating_sub(all.free),
                all.total
            );
            self.find(Code::ChainGroupBits, spot, message);
        }
        let bpc = u64::from(chain_list(bytes).header.cl_bpc.get()).max(1);
        let clusters = all.total / bpc;
        if u64::from(inode.i_clusters.get()) != clusters {
            let message = format!(
                "the allocator counts {} clusters, its groups have {clusters}",
                inode.i_clusters.get()
            );
            self.find(Code::ChainIClusters, spot, message);
        }
        let size = clusters << self.geometry.cluster_size_bits;
        if inode.i_size.get() != size {
            let message = format!(
                "the allocator's size is {}, that of its groups {size}",
                inode.i_size.get()
            );
            self.find(Code::ChainISize, spot, message);
        }
    }

    /// The groups of the global bitmap are where they must be, all of them.
    fn check_group_places(
        &mut self,
        nr: BlockNr,
        header: &ChainListHeader,
        seen: &HashSet<BlockNr>,
    ) {
        let per_group = u64::from(header.cl_cpg.get());
        let full = ondisk::capacity::group_bitmap_bytes(self.geometry.block_size()) as u64 * 8;
        if per_group != full {
            let message = format!("groups of {per_group} clusters, their bitmaps have {full} bits");
            self.find(Code::ChainCpg, Spot::ino(nr), message);
        }
        let total = u64::from(self.geometry.total_clusters);
        self.bitmap_groups.sort();
        let mut missing = Vec::new();
        let mut expected = HashSet::new();
        for index in 0..total.div_ceil(full) {
            let block = self.bitmap_group(index, full);
            expected.insert(block);
            let there = self.bitmap_groups.binary_search(&block).is_ok();
            if !there && missing.len() < 1000 {
                missing.push(block);
            }
        }
        for block in missing {
            let message =
                format!("block {block} must be a group of the global bitmap, but is in no chain");
            self.find(Code::GroupExpectedDesc, Spot::of(nr, block), message);
        }
        let mut odd: Vec<BlockNr> = seen.difference(&expected).copied().collect();
        odd.sort();
        for block in odd {
            let message = format!(
                "block {block} is in a chain of the global bitmap, but no group belongs there"
            );
            self.find(Code::GroupUnexpectedDesc, Spot::of(nr, block), message);
        }
        self.bitmap_groups.retain(|block| expected.contains(block));
    }

    /// Where a group of the global bitmap is.
    fn bitmap_group(&self, index: u64, per_group: u64) -> BlockNr {
        match index {
            0 => self.geometry.first_cluster_group,
            _ => BlockNr(index * per_group * u64::from(self.geometry.blocks_per_cluster())),
        }
    }
}
