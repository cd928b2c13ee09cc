//! What a volume's superblock says about everything else: sizes, limits, features, seeds. Made once by
//! [`SuperBlock::parse`](crate::SuperBlock::parse), then handed to every validation.

use crate::capacity;
use crate::feature::{Compat, ERROR_FS, Incompat, O2CB_GLOBAL_HEARTBEAT, RoCompat};
use crate::{BlockNr, ClusterNr, Generation};

/// Which cluster a clustered volume belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClusterInfo {
    /// Stack label: `o2cb`, `pcmk`, `cman`.
    pub stack: [u8; 4],
    /// Flags of the stack.
    pub flags: u8,
    /// NUL-padded name.
    pub cluster: [u8; 16],
}

impl ClusterInfo {
    /// The cluster's name up to its first NUL.
    pub fn name(&self) -> String {
        until_nul(&self.cluster)
    }

    /// Whether o2cb's heartbeat regions are global.
    pub fn global_heartbeat(&self) -> bool {
        self.flags & O2CB_GLOBAL_HEARTBEAT != 0
    }
}

/// A volume's dimensions and features. Fields are as validated by `SuperBlock::parse`; whoever makes one by hand (a
/// test) answers for `9 <= block_size_bits <= 12 <= cluster_size_bits <= 20`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Geometry {
    pub block_size_bits: u32,
    pub cluster_size_bits: u32,
    pub total_clusters: u32,
    pub max_slots: u16,
    pub compat: Compat,
    pub incompat: Incompat,
    pub ro_compat: RoCompat,
    /// Every metadata block of the volume repeats it.
    pub fs_generation: Generation,
    pub uuid: [u8; 16],
    pub uuid_hash: u32,
    /// Seed of the directory hash; the fourth word is `uuid_hash`.
    pub dx_seed: [u32; 4],
    /// Bytes that a new inode sets aside for inline xattrs.
    pub xattr_inline_size: u16,
    /// Descriptor block of cluster group 0. Later groups have theirs in their own first block.
    pub first_cluster_group: BlockNr,
    pub root_dir: BlockNr,
    pub system_dir: BlockNr,
    /// NUL-padded.
    pub label: [u8; 64],
    /// `s_state`.
    pub state: u16,
    /// Absent on local volumes and on those of the classic stack.
    pub cluster_info: Option<ClusterInfo>,
}

impl Geometry {
    /// Bytes of a block.
    pub const fn block_size(&self) -> usize {
        1 << self.block_size_bits
    }

    /// Bytes of a cluster.
    pub const fn cluster_size(&self) -> usize {
        1 << self.cluster_size_bits
    }

    /// Blocks of a cluster.
    pub const fn blocks_per_cluster(&self) -> u32 {
        1 << (self.cluster_size_bits - self.block_size_bits)
    }

    /// Blocks of the volume.
    pub const fn total_blocks(&self) -> u64 {
        (self.total_clusters as u64) << (self.cluster_size_bits - self.block_size_bits)
    }

    /// Bytes of the volume. A device smaller than that is truncated.
    pub const fn total_bytes(&self) -> u64 {
        (self.total_clusters as u64) << self.cluster_size_bits
    }

    /// The first block of a cluster.
    pub const fn first_block(&self, cluster: ClusterNr) -> BlockNr {
        BlockNr((cluster.0 as u64) << (self.cluster_size_bits - self.block_size_bits))
    }

    /// The cluster that holds a block; `None` if the block is beyond 2^32 clusters.
    pub fn cluster_of(&self, block: BlockNr) -> Option<ClusterNr> {
        u32::try_from(block.0 >> (self.cluster_size_bits - self.block_size_bits))
            .ok()
            .map(ClusterNr)
    }

    /// The block's place in its cluster.
    pub const fn block_in_cluster(&self, block: BlockNr) -> u32 {
        (block.0 & (self.blocks_per_cluster() as u64 - 1)) as u32
    }

    /// Clusters that hold `blocks` blocks.
    pub const fn clusters_for_blocks(&self, blocks: u64) -> u64 {
        blocks.div_ceil(self.blocks_per_cluster() as u64)
    }

    /// Clusters that hold `bytes` bytes.
    pub const fn clusters_for_bytes(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.cluster_size() as u64)
    }

    /// Blocks that hold `bytes` bytes.
    pub const fn blocks_for_bytes(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.block_size() as u64)
    }

    /// Whether `block` is one that metadata can be in: inside the volume and past the superblock's.
    pub const fn holds_block(&self, block: BlockNr) -> bool {
        block.0 >= 2 && block.0 < self.total_blocks()
    }

    /// Whether `count` clusters from `start` on lie inside the volume.
    pub fn holds_clusters(&self, start: ClusterNr, count: u32) -> bool {
        start
            .0
            .checked_add(count)
            .is_some_and(|end| end <= self.total_clusters)
    }

    /// Blocks that carry a backup superblock, if the volume has any.
    pub fn backup_super_blocks(&self) -> impl Iterator<Item = BlockNr> {
        let count = if self.compat.contains(Compat::BACKUP_SB) {
            6
        } else {
            0
        };
        (0..count)
            .map(|index| BlockNr((1u64 << (30 + 2 * index)) >> self.block_size_bits))
            .filter(|block| block.0 < self.total_blocks())
    }

    /// Whether an incompatible feature is on.
    pub const fn has(&self, feature: Incompat) -> bool {
        self.incompat.contains(feature)
    }

    /// Whether metadata carries checksums.
    pub const fn has_metaecc(&self) -> bool {
        self.has(Incompat::META_ECC)
    }

    /// Whether extents can be allocated without being written. Needs sparse allocation too, as in the kernel.
    pub const fn has_unwritten(&self) -> bool {
        self.ro_compat.contains(RoCompat::UNWRITTEN) && self.has(Incompat::SPARSE_ALLOC)
    }

    /// Whether the volume is for one node only.
    pub const fn is_local(&self) -> bool {
        self.has(Incompat::LOCAL_MOUNT)
    }

    /// Features that forbid writing, by name; empty if writing is allowed.
    pub fn read_only_because(&self) -> Vec<String> {
        self.ro_compat.unknown_names()
    }

    /// Whether somebody saw an error on the volume and no fsck has cleared it.
    pub const fn has_error_state(&self) -> bool {
        self.state & ERROR_FS != 0
    }

    /// Whether a directory's blocks end with a trailer. Inline directories never have one.
    pub const fn has_dir_trailer(&self, indexed: bool) -> bool {
        self.has_metaecc() || indexed
    }

    /// The volume's label up to its first NUL.
    pub fn label(&self) -> String {
        until_nul(&self.label)
    }

    /// The UUID as 32 upper-case hex digits: the volume's name in the cluster.
    pub fn uuid_string(&self) -> String {
        self.uuid.iter().map(|byte| format!("{byte:02X}")).collect()
    }

    /// Bytes of a group's bitmap: to the end of the block in the global bitmap, and in suballocators unless their
    /// groups may be discontiguous.
    pub const fn group_bitmap_bytes(&self, suballocator: bool) -> usize {
        if suballocator && self.has(Incompat::DISCONTIG_BG) {
            capacity::DISCONTIG_BITMAP_BYTES
        } else {
            capacity::group_bitmap_bytes(self.block_size())
        }
    }

    /// Blocks of an xattr bucket.
    pub const fn blocks_per_bucket(&self) -> usize {
        crate::XATTR_BUCKET_BYTES >> self.block_size_bits
    }

    /// Buckets of a cluster.
    pub const fn buckets_per_cluster(&self) -> usize {
        self.cluster_size() / crate::XATTR_BUCKET_BYTES
    }
}

fn until_nul(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
