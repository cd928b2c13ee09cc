//! Walks over everything that a volume's metadata leads to, verifying and validating each block on the way.

use crate::volume::Volume;
use ondisk::feature::{DynFeatures, ExtentFlags};
use ondisk::hash::{Bytes, dir_hash};
use ondisk::{
    BlockNr, Body, Dinode, DxLeaf, DxRoot, ExtentBlock, ExtentRec, FileType, GroupDesc,
    GroupParent, Kind, RefcountBlock, RootKind, XattrArea, XattrBlock, XattrBucket, XattrValue,
    chain_list, extent_list, group_bit_to_block, group_bitmap, group_block_to_bit, quota,
    refcount_list,
};
use std::collections::{BTreeMap, BTreeSet};

/// What was seen on the way.
#[derive(Debug, Default)]
pub struct Seen {
    pub inodes: usize,
    pub groups: usize,
    pub discontiguous_groups: usize,
    pub extent_blocks: usize,
    pub dir_entries: usize,
    pub index_leaves: usize,
    pub index_entries: usize,
    pub xattrs: usize,
    pub xattr_buckets: usize,
    pub outside_values: usize,
    pub refcount_records: usize,
    pub unwritten: usize,
    pub shared: usize,
    pub fast_symlinks: usize,
}

/// All leaf records below a root, in order.
pub fn extents(volume: &Volume, block: &[u8], root: RootKind) -> Vec<ExtentRec> {
    let mut found = Vec::new();
    collect(volume, block, root, &mut found, &mut 0);
    found
}

fn collect(
    volume: &Volume,
    block: &[u8],
    root: RootKind,
    found: &mut Vec<ExtentRec>,
    extent_blocks: &mut usize,
) {
    let list = extent_list(block, root);
    if list.is_leaf() {
        found.extend(list.used().iter().filter(|rec| !rec.is_empty_leaf()));
        return;
    }
    for rec in list.used() {
        let child = volume.verified(Kind::ExtentBlock, rec.block());
        ExtentBlock::validate(&child, rec.block(), volume.geometry())
            .expect("a valid extent block");
        assert_eq!(
            extent_list(&child, RootKind::ExtentBlock).depth() + 1,
            list.depth()
        );
        *extent_blocks += 1;
        collect(volume, &child, RootKind::ExtentBlock, found, extent_blocks);
    }
}

/// The physical blocks of a file without holes, in order.
pub fn file_blocks(volume: &Volume, dinode: &[u8]) -> Vec<BlockNr> {
    let per_cluster = u64::from(volume.geometry().blocks_per_cluster());
    extents(volume, dinode, RootKind::Dinode)
        .iter()
        .flat_map(|rec| {
            let start = rec.e_blkno.get();
            (start..start + u64::from(rec.leaf_clusters()) * per_cluster).map(BlockNr)
        })
        .collect()
}

/// All groups of an allocator: chain, descriptor's place, descriptor.
pub fn groups(volume: &Volume, allocator: &[u8], nr: BlockNr) -> Vec<(usize, BlockNr, Vec<u8>)> {
    let chains = chain_list(allocator);
    let parent = GroupParent {
        nr,
        chains: chains.header,
    };
    let mut found = Vec::new();
    for (index, chain) in chains.used().iter().enumerate() {
        let mut group = chain.first_group();
        while group.is_some() {
            let desc = volume.verified(Kind::GroupDesc, group);
            GroupDesc::validate_in(&desc, group, volume.geometry(), parent, false)
                .expect("a valid group");
            assert_eq!(usize::from(GroupDesc::of(&desc).bg_chain.get()), index);
            let next = GroupDesc::of(&desc).next_group();
            found.push((index, group, desc));
            group = next;
        }
    }
    found
}

/// Every block of a quota file must have the right checksum.
pub fn verify_quota_blocks(content: &mut [u8], block_size: usize) {
    for (index, block) in content.chunks_mut(block_size).enumerate() {
        let verdict = Kind::QuotaBlock.verify(block, BlockNr(index as u64));
        assert_eq!(
            verdict,
            Ok(ondisk::metaecc::Verdict::Clean),
            "block {index} of a quota file"
        );
    }
}

/// The entry of an identity in a global quota file.
pub fn find_quota(content: &[u8], size: usize, id: u32) -> Option<quota::GlobalDqblk> {
    let block = |index: u32| &content[index as usize * size..][..size];
    let blocks = quota::GlobalInfo::of(content).dqi_blocks.get();
    let mut at = quota::TREE_ROOT;
    for level in 0..quota::tree_depth(size) {
        quota::validate_tree_block(block(at), BlockNr(at.into()), blocks).expect("a tree block");
        at = quota::tree_children(block(at))[quota::tree_index(size, id, level)].get();
        if at == 0 {
            return None;
        }
    }
    quota::validate_leaf(block(at), BlockNr(at.into()), blocks).expect("a leaf block");
    let (header, entries) = quota::global_leaf(block(at));
    let used = entries.iter().filter(|entry| !entry.is_unused()).count();
    assert_eq!(used, usize::from(header.dqdh_entries.get()));
    entries
        .iter()
        .find(|entry| entry.dqb_id.get() == id && !entry.is_unused())
        .copied()
}

/// All of it: allocators, then every inode that any inode allocator says is in use.
pub fn verify_everything(volume: &Volume) -> Seen {
    let mut seen = Seen::default();
    let mut refcount_roots = BTreeSet::new();
    let allocators: Vec<_> = volume
        .system_files()
        .into_iter()
        .filter(|(_, nr)| Dinode::of(&volume.dinode(*nr)).body() == Body::Chains)
        .collect();
    for (name, nr) in allocators {
        let block = volume.dinode(nr);
        let (mut total, mut used) = (0, 0);
        for (_, _, desc) in groups(volume, &block, nr) {
            let fixed = GroupDesc::of(&desc);
            seen.groups += 1;
            seen.discontiguous_groups +=
                usize::from(ondisk::group_extents(&desc, volume.geometry()).is_some());
            let bits: Vec<u16> = set_bits(&desc).collect();
            assert_eq!(
                bits.len(),
                usize::from(fixed.bg_bits.get() - fixed.bg_free_bits_count.get()),
                "{name}"
            );
            total += u32::from(fixed.bg_bits.get());
            used += bits.len() as u32;
            if name.contains("inode_alloc") {
                verify_inodes(volume, &desc, &bits, &mut seen, &mut refcount_roots);
            }
        }
        assert_eq!(
            (total, used),
            (Dinode::of(&block).total(), Dinode::of(&block).used()),
            "{name}"
        );
    }
    for root in refcount_roots {
        verify_refcounts(volume, root, &mut seen);
    }
    seen
}

fn set_bits(desc: &[u8]) -> impl Iterator<Item = u16> {
    let bitmap = group_bitmap(desc);
    (0..GroupDesc::of(desc).bg_bits.get())
        .filter(|bit| bitmap[usize::from(bit / 8)] >> (bit % 8) & 1 == 1)
}

fn verify_inodes(
    volume: &Volume,
    desc: &[u8],
    bits: &[u16],
    seen: &mut Seen,
    refcount_roots: &mut BTreeSet<BlockNr>,
) {
    let own = BlockNr(GroupDesc::of(desc).bg_blkno.get());
    for &bit in bits {
        let nr = group_bit_to_block(desc, volume.geometry(), bit).expect("a bit of the group");
        assert_eq!(group_block_to_bit(desc, volume.geometry(), nr), Some(bit));
        if nr == own || !volume.block(nr).starts_with(b"INODE01") {
            assert!(
                nr == own || nr.0 <= 4,
                "a bit in use for what is no inode: {nr}"
            );
            continue;
        }
        let block = volume.dinode(nr);
        let dinode = Dinode::of(&block);
        assert_eq!(
            (dinode.suballoc().bit, dinode.suballoc().group_of(nr)),
            (bit, Some(own))
        );
        seen.inodes += 1;
        verify_inode(volume, nr, &block, seen);
        if dinode.dyn_features().contains(DynFeatures::HAS_REFCOUNT) {
            refcount_roots.insert(BlockNr(dinode.i_refcount_loc.get()));
        }
    }
}

fn verify_inode(volume: &Volume, nr: BlockNr, block: &[u8], seen: &mut Seen) {
    let dinode = Dinode::of(block);
    if dinode.body() == Body::Extents {
        let mut found = Vec::new();
        collect(
            volume,
            block,
            RootKind::Dinode,
            &mut found,
            &mut seen.extent_blocks,
        );
        let clusters: u32 = found.iter().map(|rec| u32::from(rec.leaf_clusters())).sum();
        assert_eq!(clusters, dinode.i_clusters.get(), "inode {nr}");
        assert!(
            found
                .windows(2)
                .all(|pair| pair[0].end(0) <= u64::from(pair[1].e_cpos.get()))
        );
        seen.unwritten += found
            .iter()
            .filter(|rec| rec.flags().contains(ExtentFlags::UNWRITTEN))
            .count();
        seen.shared += found
            .iter()
            .filter(|rec| rec.flags().contains(ExtentFlags::REFCOUNTED))
            .count();
    }
    if dinode.body() == Body::FastSymlink {
        seen.fast_symlinks += 1;
        assert_eq!(
            ondisk::fast_symlink(block).len() as u64,
            dinode.i_size.get()
        );
    }
    if dinode.file_type() == Some(FileType::Directory) {
        let entries = volume.entries(nr);
        seen.dir_entries += entries.len();
        if dinode.dyn_features().contains(DynFeatures::INDEXED_DIR) {
            verify_index(volume, nr, BlockNr(dinode.i_dx_root.get()), &entries, seen);
        }
    }
    verify_xattrs(volume, block, seen);
}

/// Every name must be in the index, at the hash we compute and in the leaf we would look into.
fn verify_index(
    volume: &Volume,
    dir: BlockNr,
    root: BlockNr,
    entries: &[(Vec<u8>, BlockNr)],
    seen: &mut Seen,
) {
    let geometry = volume.geometry();
    let block = volume.verified(Kind::DxRoot, root);
    DxRoot::validate(&block, root, geometry).expect("a valid index root");
    let fixed = DxRoot::of(&block);
    assert_eq!(fixed.dr_dir_blkno.get(), dir.0);
    let mut index: BTreeMap<_, usize> = BTreeMap::new();
    if fixed.is_inline() {
        for entry in DxRoot::entries(&block).used() {
            *index.entry(entry.hash()).or_default() += 1;
        }
    } else {
        let mut found = Vec::new();
        collect(
            volume,
            &block,
            RootKind::DxRoot,
            &mut found,
            &mut seen.extent_blocks,
        );
        let per_cluster = u64::from(geometry.blocks_per_cluster());
        for rec in &found {
            for offset in 0..u64::from(rec.leaf_clusters()) * per_cluster {
                let nr = BlockNr(rec.e_blkno.get() + offset);
                let leaf = volume.verified(Kind::DxLeaf, nr);
                DxLeaf::validate(&leaf, nr, geometry).expect("a valid index leaf");
                seen.index_leaves += 1;
                for entry in DxLeaf::entries(&leaf).used() {
                    assert_eq!(
                        u64::from(entry.dx_minor_hash.get()) % per_cluster,
                        offset % per_cluster
                    );
                    assert!(rec.e_cpos.get() <= entry.dx_major_hash.get());
                    *index.entry(entry.hash()).or_default() += 1;
                }
            }
        }
    }
    assert_eq!(
        index.values().sum::<usize>(),
        entries.len(),
        "directory {dir}"
    );
    assert_eq!(
        fixed.dr_num_entries.get() as usize,
        entries.len(),
        "directory {dir}"
    );
    seen.index_entries += entries.len();
    for (name, _) in entries {
        let hashed =
            [Bytes::Unsigned, Bytes::Signed].map(|bytes| dir_hash(&geometry.dx_seed, name, bytes));
        assert!(
            hashed.iter().any(|hash| index.contains_key(hash)),
            "{}",
            name.escape_ascii()
        );
    }
}

fn verify_xattrs(volume: &Volume, block: &[u8], seen: &mut Seen) {
    let geometry = volume.geometry();
    let dinode = Dinode::of(block);
    if let Some(area) = XattrArea::inline(block) {
        let start = block.len() - area.bytes().len();
        verify_area(volume, block, start, area, seen);
    }
    let nr = BlockNr(dinode.i_xattr_loc.get());
    if !nr.is_some() {
        return;
    }
    let block = volume.verified(Kind::XattrBlock, nr);
    XattrBlock::validate(&block, nr, geometry).expect("a valid xattr block");
    if !XattrBlock::of(&block).is_indexed() {
        let start = XattrBlock::area_span(block.len()).start;
        verify_area(volume, &block, start, XattrBlock::area(&block), seen);
        return;
    }
    let mut found = Vec::new();
    collect(
        volume,
        &block,
        RootKind::XattrTree,
        &mut found,
        &mut seen.extent_blocks,
    );
    for rec in found {
        let first = volume.blocks(rec.block(), geometry.blocks_per_bucket() as u64);
        let buckets = XattrBucket::area(&first).header().xh_num_buckets.get();
        assert!(buckets > 0, "an extent has buckets");
        for index in 0..u64::from(buckets) {
            let nr = BlockNr(rec.e_blkno.get() + index * geometry.blocks_per_bucket() as u64);
            let mut bucket = volume.blocks(nr, geometry.blocks_per_bucket() as u64);
            let verdict = Kind::XattrBucket.verify(&mut bucket, nr);
            assert_eq!(verdict, Ok(ondisk::metaecc::Verdict::Clean));
            XattrBucket::validate(&bucket, nr, geometry).expect("a valid bucket");
            seen.xattr_buckets += 1;
            verify_area(volume, &bucket, 0, XattrBucket::area(&bucket), seen);
        }
    }
}

fn verify_area(volume: &Volume, block: &[u8], start: usize, area: XattrArea<'_>, seen: &mut Seen) {
    for entry in area.entries() {
        seen.xattrs += 1;
        assert!(entry.namespace().is_some());
        if let Some(XattrValue::Outside(value)) = area.value(entry) {
            seen.outside_values += 1;
            let root = RootKind::XattrValue {
                offset: start + value.offset,
            };
            let clusters: u32 = extents(volume, block, root)
                .iter()
                .map(|rec| u32::from(rec.leaf_clusters()))
                .sum();
            assert_eq!(clusters, value.root.xr_clusters.get());
            assert!(
                u64::from(clusters)
                    >= volume
                        .geometry()
                        .clusters_for_bytes(entry.xe_value_size.get())
            );
        }
    }
}

fn verify_refcounts(volume: &Volume, root: BlockNr, seen: &mut Seen) {
    let block = volume.verified(Kind::RefcountBlock, root);
    RefcountBlock::validate(&block, root, volume.geometry()).expect("a valid refcount root");
    if !RefcountBlock::of(&block).is_tree() {
        seen.refcount_records += refcount_list(&block).used().len();
        return;
    }
    for rec in extents(volume, &block, RootKind::Refcount) {
        for offset in 0..u64::from(rec.leaf_clusters()) {
            let nr = BlockNr(rec.e_blkno.get() + offset);
            let leaf = volume.verified(Kind::RefcountBlock, nr);
            RefcountBlock::validate(&leaf, nr, volume.geometry()).expect("a valid refcount leaf");
            assert_eq!(RefcountBlock::of(&leaf).rf_parent.get(), root.0);
            seen.refcount_records += refcount_list(&leaf).used().len();
        }
    }
}

/// What a journal's log holds from its start on.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Log {
    pub transactions: usize,
    pub descriptors: usize,
    pub tags: usize,
    pub escaped: usize,
    pub revokes: usize,
}

/// Walks the log as a recovery does, up to the last commit.
pub fn read_log(volume: &Volume, journal: BlockNr) -> Log {
    use ondisk::jbd2::{self, BlockType};
    let dinode = volume.dinode(journal);
    let blocks = file_blocks(volume, &dinode);
    let block = volume.block(blocks[0]);
    jbd2::SuperBlock::validate(&block, blocks[0], blocks.len() as u64).expect("a journal");
    let this = jbd2::SuperBlock::of(&block);
    let (mut log, mut pending) = (Log::default(), Log::default());
    // A clean journal says where nothing is; its old transactions are still there.
    let (mut at, mut tid) = if this.is_clean() {
        let header = |at: u32| jbd2::Header::read(&volume.block(blocks[at as usize]));
        let log_blocks = this.s_first.get()..this.s_maxlen.get() - 1;
        let begins = |at: &u32| {
            matches!(header(*at), Some((BlockType::Commit, _)))
                && matches!(header(at + 1), Some((BlockType::Descriptor, _)))
        };
        match log_blocks.into_iter().find(begins) {
            Some(at) => (at + 1, header(at + 1).expect("seen above").1),
            None => return log,
        }
    } else {
        (this.s_start.get(), this.sequence())
    };
    for _ in 0..blocks.len() {
        let block = volume.block(blocks[at as usize]);
        let Some((kind, found)) = jbd2::Header::read(&block) else {
            break;
        };
        if found != tid {
            break;
        }
        at = this.next_block(at);
        match kind {
            BlockType::Descriptor => {
                pending.descriptors += 1;
                let tags: Vec<_> = jbd2::tags(&block, this.is_wide()).collect();
                assert!(!tags.is_empty());
                assert!(tags.len() <= jbd2::tags_per_descriptor(block.len(), this.is_wide()));
                for (index, tag) in tags.iter().enumerate() {
                    assert!(volume.geometry().holds_block(tag.nr), "{tag:?}");
                    let last = tag.flags & jbd2::FLAG_LAST_TAG != 0;
                    assert_eq!(last, index + 1 == tags.len());
                    // The next thing after the tags' data must be of the journal again: the walk itself checks it.
                    at = this.next_block(at);
                    pending.escaped += usize::from(tag.is_escaped());
                }
                pending.tags += tags.len();
                // Written again by us, the descriptor is the kernel's byte for byte.
                let mut ours = vec![0xFF; block.len()];
                let mut writer =
                    jbd2::DescriptorWriter::new(&mut ours, tid, [0; 16], this.is_wide());
                assert!(tags.iter().all(|tag| writer.push(tag.nr, tag.is_escaped())));
                writer.finish();
                assert!(ours == block, "descriptor of {tid}");
            }
            BlockType::Revoke => {
                let revoked = jbd2::revoked_blocks(&block, this.is_wide(), blocks[0]);
                pending.revokes += revoked.expect("sound").count();
            }
            BlockType::Commit => {
                let commit = jbd2::CommitBlock::of(&block);
                let time = (commit.h_commit_sec.get(), commit.h_commit_nsec.get());
                let mut ours = vec![0xFF; block.len()];
                jbd2::CommitBlock::init(&mut ours, tid, time, None);
                assert!(ours == block, "commit of {tid}");
                log.transactions += 1;
                log.descriptors += pending.descriptors;
                log.tags += pending.tags;
                log.escaped += pending.escaped;
                log.revokes += pending.revokes;
                pending = Log::default();
                tid = tid.next();
            }
            BlockType::SuperBlockV1 | BlockType::SuperBlockV2 => break,
        }
    }
    log
}
