//! The last phase: the structure of quota files. What they count is not compared: nothing keeps it, and
//! `fsck.ocfs2` computes it anew.

use ondisk::feature::{InodeFlags, RoCompat};
use ondisk::quota::{
    GlobalInfo, LocalInfo, QuotaType, TREE_ROOT, chunk_header_block, global_leaf, tree_children,
    tree_depth, tree_fanout, validate_chunk, validate_leaf, validate_tree_block,
};
use ondisk::{BlockNr, Dinode, Kind, SystemFile};

use super::extents::Extent;
use super::report::Phase;
use super::view::Step;
use super::{Checker, Code, Spot};

/// A quota file, and where its blocks are.
struct File {
    nr: BlockNr,
    extents: Vec<Extent>,
    /// Blocks of the file.
    blocks: u64,
}

/// A block of the tree that is still to be looked at.
struct Node {
    block: u32,
    /// Levels above it.
    level: u32,
    /// The identity so far: which children led here.
    id: u64,
}

impl Checker<'_> {
    pub(super) async fn check_quotas(&mut self) -> Step<()> {
        let slots = self.geometry.max_slots;
        self.report
            .begin(Phase::Quotas, 2 * (u64::from(slots) + 1))?;
        for (kind, feature, global, local) in [
            (
                QuotaType::User,
                RoCompat::USRQUOTA,
                SystemFile::UserQuota,
                SystemFile::LocalUserQuota,
            ),
            (
                QuotaType::Group,
                RoCompat::GRPQUOTA,
                SystemFile::GroupQuota,
                SystemFile::LocalGroupQuota,
            ),
        ] {
            if !self.geometry.ro_compat.contains(feature) {
                continue;
            }
            for (slot, nr) in self.files.all(global) {
                if let Some(file) = self.quota_file(global, slot, nr).await? {
                    self.check_global(&file, kind).await?;
                }
                self.report.advance(1)?;
            }
            for (slot, nr) in self.files.all(local) {
                if let Some(file) = self.quota_file(local, slot, nr).await? {
                    self.check_local(&file, kind).await?;
                }
                self.report.advance(1)?;
            }
        }
        Ok(())
    }

    async fn quota_file(&mut self, file: SystemFile, slot: u16, nr: BlockNr) -> Step<Option<File>> {
        let Some((_, bytes)) = self.system_inode(file, slot, InodeFlags::QUOTA).await? else {
            return Ok(None);
        };
        let blocks = Dinode::of(&bytes).i_size.get() >> self.geometry.block_size_bits;
        let mut extents = Vec::new();
        if Dinode::of(&bytes).body() == ondisk::Body::Extents {
            let mut walk = self.quiet_walk(nr, &bytes);
            while let Some(leaf) = self.next_leaf(&mut walk).await? {
                extents.extend(leaf);
            }
        }
        Ok(Some(File {
            nr,
            extents,
            blocks,
        }))
    }

    /// A block of the file, with its place.
    async fn quota_block(&mut self, file: &File, index: u64) -> Step<Option<(BlockNr, Vec<u8>)>> {
        if index >= file.blocks {
            return Ok(None);
        }
        let per_cluster = u64::from(self.geometry.blocks_per_cluster());
        let cluster = index / per_cluster;
        let extent = file.extents.iter().find(|extent| {
            let first = u64::from(extent.cpos);
            (first..first + u64::from(extent.clusters)).contains(&cluster)
        });
        let Some(extent) = extent else {
            return Ok(None);
        };
        let into = (cluster - u64::from(extent.cpos)) * per_cluster + index % per_cluster;
        let nr = BlockNr(extent.start.0 + into);
        let bytes = self.read(nr, Kind::QuotaBlock, Some(file.nr)).await?;
        Ok(bytes.map(|bytes| (nr, bytes)))
    }

    async fn check_global(&mut self, file: &File, kind: QuotaType) -> Step<()> {
        let spot = Spot::ino(file.nr);
        let Some((nr, bytes)) = self.quota_block(file, 0).await? else {
            self.find(Code::QmagicInvalid, spot, "the quota file is empty");
            return Ok(());
        };
        if let Err(error) = GlobalInfo::validate(&bytes, nr, kind) {
            self.find(
                Code::QmagicInvalid,
                Spot::of(file.nr, nr),
                error.to_string(),
            );
            return Ok(());
        }
        let blocks = GlobalInfo::of(&bytes).dqi_blocks.get();
        if u64::from(blocks) > file.blocks {
            let message = format!("a tree of {blocks} blocks in a file of {}", file.blocks);
            self.find(Code::QtreeBlkInvalid, Spot::of(file.nr, nr), message);
            return Ok(());
        }
        let size = bytes.len();
        let fanout = u64::from(tree_fanout(size));
        let mut seen = vec![false; blocks as usize];
        let mut pending = vec![Node {
            block: TREE_ROOT,
            level: 0,
            id: 0,
        }];
        while let Some(node) = pending.pop() {
            let Some((nr, bytes)) = self.quota_block(file, node.block.into()).await? else {
                let message = format!("block {} of the tree cannot be read", node.block);
                self.find(Code::QtreeBlkInvalid, spot, message);
                continue;
            };
            let spot = Spot::of(file.nr, nr);
            if node.level == tree_depth(size) {
                self.check_quota_leaf(spot, &bytes, &node, blocks);
                continue;
            }
            if std::mem::replace(&mut seen[node.block as usize], true) {
                let message = format!("block {} is in the tree twice", node.block);
                self.find(Code::QtreeBlkInvalid, spot, message);
                continue;
            }
            if let Err(error) = validate_tree_block(&bytes, nr, blocks) {
                self.find(Code::QtreeBlkInvalid, spot, error.to_string());
                continue;
            }
            for (at, child) in tree_children(&bytes).iter().enumerate() {
                if child.get() != 0 {
                    pending.push(Node {
                        block: child.get(),
                        level: node.level + 1,
                        id: node.id * fanout + at as u64,
                    });
                }
            }
        }
        Ok(())
    }

    /// A leaf must have the one identity that led to it, once.
    fn check_quota_leaf(&mut self, spot: Spot, bytes: &[u8], node: &Node, blocks: u32) {
        let nr = spot.block.unwrap_or_default();
        if let Err(error) = validate_leaf(bytes, nr, blocks) {
            self.find(Code::QtreeBlkInvalid, spot, error.to_string());
            return;
        }
        let entries = global_leaf(bytes).1.iter();
        let found = entries
            .filter(|entry| !entry.is_unused() && u64::from(entry.dqb_id.get()) == node.id)
            .count();
        match found {
            1 => {}
            0 => {
                let message = format!("identity {} is looked for here, and is not here", node.id);
                self.find(Code::DqblkInvalid, spot, message);
            }
            _ => {
                let message = format!("identity {} is here {found} times", node.id);
                self.find(Code::DupDqblkValid, spot, message);
            }
        }
    }

    async fn check_local(&mut self, file: &File, kind: QuotaType) -> Step<()> {
        let spot = Spot::ino(file.nr);
        let Some((nr, bytes)) = self.quota_block(file, 0).await? else {
            self.find(Code::QuotaLocalInvalid, spot, "the quota file is empty");
            return Ok(());
        };
        let info = *LocalInfo::of(&bytes);
        let wrong = LocalInfo::validate(&bytes, nr, kind).err();
        if let Some(error) = wrong {
            self.find(
                Code::QuotaLocalInvalid,
                Spot::of(file.nr, nr),
                error.to_string(),
            );
            return Ok(());
        }
        if u64::from(info.dqi_blocks.get()) > file.blocks {
            let message = format!(
                "{} blocks in a file of {}",
                info.dqi_blocks.get(),
                file.blocks
            );
            self.find(Code::QuotaLocalInvalid, Spot::of(file.nr, nr), message);
            return Ok(());
        }
        for chunk in 0..info.dqi_chunks.get() {
            let index = chunk_header_block(bytes.len(), chunk);
            let Some((nr, bytes)) = self.quota_block(file, index).await? else {
                let message = format!("chunk {chunk} cannot be read");
                self.find(Code::QuotaLocalInvalid, spot, message);
                break;
            };
            if let Err(error) = validate_chunk(&bytes, nr) {
                self.find(
                    Code::QuotaLocalInvalid,
                    Spot::of(file.nr, nr),
                    error.to_string(),
                );
            }
        }
        Ok(())
    }
}
