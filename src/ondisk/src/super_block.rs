//! The superblock: 0x140 bytes in the `id2` of a dinode in block 2, and how a [`Geometry`] comes out of it.
//!
//! Called once per mount (and by tools on backup superblocks). The rule owned here: nothing of a volume is touched
//! before its superblock is one that this implementation understands in full.

use crate::access::{layout, prefix, prefix_mut};
use crate::capacity::{MAX_BLOCK_SIZE, MIN_BLOCK_SIZE, offset};
use crate::corrupt::Corrupt;
use crate::feature::{Compat, Incompat, InodeFlags, RoCompat};
use crate::le::{U16, U32, U64};
use crate::metaecc::Verdict;
use crate::{BlockNr, ClusterInfo, Dinode, Generation, Geometry, Kind};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The block that holds the superblock, whatever the block size.
pub const SUPER_BLOCK: BlockNr = BlockNr(2);
/// Signature of the dinode around it.
pub const SIGNATURE: [u8; 8] = *b"OCFSV2\0\0";
/// The only revision there is.
pub const REVISION: (u16, u16) = (0, 90);
/// The most slots a volume can have.
pub const MAX_SLOTS: u16 = 255;
/// How much of a device [`probe`] has to see: block 2 of the largest block size.
pub const PROBE_BYTES: usize = 3 * MAX_BLOCK_SIZE;

/// Cluster stack and name; valid only with USERSPACE_STACK or CLUSTERINFO.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct ClusterInfoRaw {
    /// `o2cb`, `pcmk` or `cman`.
    pub ci_stack: [u8; 4],
    /// [`O2CB_GLOBAL_HEARTBEAT`](crate::feature::O2CB_GLOBAL_HEARTBEAT).
    pub ci_stackflags: u8,
    pub ci_reserved: [u8; 3],
    /// NUL padded, not NUL terminated if it is 16 long.
    pub ci_cluster: [u8; 16],
}
layout!(ClusterInfoRaw, 0x18, ci_stackflags @ 4, ci_cluster @ 8);

/// The superblock proper, relative to `id2` of its dinode.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct SuperBlock {
    pub s_major_rev_level: U16,
    pub s_minor_rev_level: U16,
    pub s_mnt_count: U16,
    pub s_max_mnt_count: U16,
    /// [`ERROR_FS`](crate::feature::ERROR_FS).
    pub s_state: U16,
    pub s_errors: U16,
    pub s_checkinterval: U32,
    pub s_lastcheck: U64,
    pub s_creator_os: U32,
    pub s_feature_compat: U32,
    pub s_feature_incompat: U32,
    pub s_feature_ro_compat: U32,
    pub s_root_blkno: U64,
    pub s_system_dir_blkno: U64,
    pub s_blocksize_bits: U32,
    pub s_clustersize_bits: U32,
    pub s_max_slots: U16,
    pub s_tunefs_flag: U16,
    pub s_uuid_hash: U32,
    pub s_first_cluster_group: U64,
    pub s_label: [u8; 64],
    pub s_uuid: [u8; 16],
    pub s_cluster_info: ClusterInfoRaw,
    pub s_xattr_inline_size: U16,
    pub s_reserved0: U16,
    pub s_dx_seed: [U32; 3],
    pub s_reserved2: [U64; 15],
}
layout!(
    SuperBlock, 0x140,
    s_state @ 0x08, s_lastcheck @ 0x10, s_feature_compat @ 0x1C, s_feature_incompat @ 0x20,
    s_feature_ro_compat @ 0x24, s_root_blkno @ 0x28, s_system_dir_blkno @ 0x30, s_blocksize_bits @ 0x38,
    s_clustersize_bits @ 0x3C, s_max_slots @ 0x40, s_tunefs_flag @ 0x42, s_uuid_hash @ 0x44,
    s_first_cluster_group @ 0x48, s_label @ 0x50, s_uuid @ 0x90, s_cluster_info @ 0xA0,
    s_xattr_inline_size @ 0xB8, s_dx_seed @ 0xBC, s_reserved2 @ 0xC8,
);

/// Why a superblock is none, or none for us.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SuperError {
    #[error("no OCFS2 superblock found")]
    NotFound,
    #[error("this is an OCFS (version 1) volume")]
    Ocfs1,
    #[error("only {found} bytes, a superblock needs {needed}")]
    TooShort { found: usize, needed: usize },
    #[error(
        "superblock says blocks of 2^{found} bytes, it lies where blocks of 2^{expected} would put it"
    )]
    BlockSize { found: u32, expected: u32 },
    #[error("revision {major}.{minor} is not supported, only 0.90")]
    Revision { major: u16, minor: u16 },
    #[error("superblock in block {expected} calls itself block {found}")]
    OwnBlock { found: u64, expected: BlockNr },
    #[error("superblock: {field} is {found}: {rule}")]
    Field {
        field: &'static str,
        found: u64,
        rule: &'static str,
    },
    #[error("volume has unsupported features: {}", .0.join(", "))]
    Incompatible(Vec<String>),
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
}

/// A superblock that was found by [`probe`].
#[derive(Debug, Clone)]
pub struct Probed {
    /// What follows from it.
    pub geometry: Geometry,
    /// The whole block.
    pub block: Vec<u8>,
    /// Whether a flipped bit was repaired in `block`.
    pub verdict: Verdict,
}

/// Finds the superblock at the start of a device whose block size is not known yet.
///
/// `start` is the first [`PROBE_BYTES`] of the device (less only if the device is smaller).
///
/// # Errors
/// [`SuperError::NotFound`] if none of the four places holds one, else why the one found is refused.
pub fn probe(start: &[u8]) -> Result<Probed, SuperError> {
    if start.get(8..17) == Some(b"OracleCFS".as_slice()) {
        return Err(SuperError::Ocfs1);
    }
    for bits in MIN_BLOCK_SIZE.ilog2()..=MAX_BLOCK_SIZE.ilog2() {
        let size = 1usize << bits;
        let Some(block) = start.get(2 * size..3 * size) else {
            break;
        };
        if block[..7] != SIGNATURE[..7] {
            continue;
        }
        let mut block = block.to_vec();
        let ecc =
            Incompat::from_bits_retain(SuperBlock::of_dinode(&block).s_feature_incompat.get())
                .contains(Incompat::META_ECC);
        let verdict = if ecc {
            Kind::SuperBlock.verify(&mut block, SUPER_BLOCK)?
        } else {
            Verdict::Clean
        };
        let geometry = SuperBlock::parse(&block)?;
        return Ok(Probed {
            geometry,
            block,
            verdict,
        });
    }
    Err(if start.len() < 3 * MIN_BLOCK_SIZE {
        SuperError::TooShort {
            found: start.len(),
            needed: 3 * MIN_BLOCK_SIZE,
        }
    } else {
        SuperError::NotFound
    })
}

impl SuperBlock {
    /// The superblock inside its dinode's block.
    ///
    /// # Panics
    /// If the block has fewer than 512 bytes.
    #[track_caller]
    pub fn of_dinode(block: &[u8]) -> &Self {
        prefix(&block[offset::ID2..])
    }

    /// The superblock inside its dinode's block, to change.
    ///
    /// # Panics
    /// If the block has fewer than 512 bytes.
    #[track_caller]
    pub fn of_dinode_mut(block: &mut [u8]) -> &mut Self {
        prefix_mut(&mut block[offset::ID2..])
    }

    /// The geometry of the volume whose block 2 this is. The checksum is [`probe`]'s business.
    ///
    /// # Errors
    /// Why the volume cannot be used.
    pub fn parse(block: &[u8]) -> Result<Geometry, SuperError> {
        Self::parse_at(block, SUPER_BLOCK)
    }

    /// [`SuperBlock::parse`] of a backup superblock in block `nr`.
    ///
    /// # Errors
    /// Why the volume cannot be used.
    pub fn parse_at(block: &[u8], nr: BlockNr) -> Result<Geometry, SuperError> {
        if block.len() < MIN_BLOCK_SIZE {
            return Err(SuperError::TooShort {
                found: block.len(),
                needed: MIN_BLOCK_SIZE,
            });
        }
        let (dinode, raw) = (Dinode::of(block), Self::of_dinode(block));
        if dinode.i_signature[..7] != SIGNATURE[..7] {
            return Err(SuperError::NotFound);
        }
        check_numbers(block, nr, dinode, raw)?;
        let incompat = Incompat::from_bits_retain(raw.s_feature_incompat.get());
        let refused = incompat.refused_names();
        if !refused.is_empty() {
            return Err(SuperError::Incompatible(refused));
        }
        let [seed0, seed1, seed2] = raw.s_dx_seed.map(U32::get);
        Ok(Geometry {
            block_size_bits: raw.s_blocksize_bits.get(),
            cluster_size_bits: raw.s_clustersize_bits.get(),
            total_clusters: dinode.i_clusters.get(),
            max_slots: raw.s_max_slots.get(),
            compat: Compat::from_bits_retain(raw.s_feature_compat.get()),
            incompat,
            ro_compat: RoCompat::from_bits_retain(raw.s_feature_ro_compat.get()),
            fs_generation: Generation(dinode.i_fs_generation.get()),
            uuid: raw.s_uuid,
            uuid_hash: raw.s_uuid_hash.get(),
            dx_seed: [seed0, seed1, seed2, raw.s_uuid_hash.get()],
            xattr_inline_size: raw.s_xattr_inline_size.get(),
            first_cluster_group: BlockNr(raw.s_first_cluster_group.get()),
            root_dir: BlockNr(raw.s_root_blkno.get()),
            system_dir: BlockNr(raw.s_system_dir_blkno.get()),
            label: raw.s_label,
            state: raw.s_state.get(),
            cluster_info: cluster_info(incompat, raw)?,
        })
    }
}

/// Every number of the superblock that the rest relies upon.
fn check_numbers(
    block: &[u8],
    nr: BlockNr,
    dinode: &Dinode,
    raw: &SuperBlock,
) -> Result<(), SuperError> {
    let field = |holds: bool, field: &'static str, found: u64, rule: &'static str| {
        if holds {
            Ok(())
        } else {
            Err(SuperError::Field { field, found, rule })
        }
    };
    let block_bits = raw.s_blocksize_bits.get();
    let expected = block.len().ilog2();
    if block_bits != expected || !block.len().is_power_of_two() {
        return Err(SuperError::BlockSize {
            found: block_bits,
            expected,
        });
    }
    field(
        (9..=12).contains(&block_bits),
        "s_blocksize_bits",
        block_bits.into(),
        "must be 9 to 12",
    )?;
    let revision = (raw.s_major_rev_level.get(), raw.s_minor_rev_level.get());
    if revision != REVISION {
        return Err(SuperError::Revision {
            major: revision.0,
            minor: revision.1,
        });
    }
    if dinode.i_blkno.get() != nr.0 {
        return Err(SuperError::OwnBlock {
            found: dinode.i_blkno.get(),
            expected: nr,
        });
    }
    let cluster_bits = raw.s_clustersize_bits.get();
    field(
        (12..=20).contains(&cluster_bits),
        "s_clustersize_bits",
        cluster_bits.into(),
        "must be 12 to 20",
    )?;
    let flags = InodeFlags::from_bits_retain(dinode.i_flags.get());
    field(
        flags.contains(InodeFlags::VALID),
        "i_flags",
        flags.bits().into(),
        "the valid flag must be set",
    )?;
    let slots = raw.s_max_slots.get();
    field(
        (1..=MAX_SLOTS).contains(&slots),
        "s_max_slots",
        slots.into(),
        "must be 1 to 255",
    )?;
    field(
        dinode.i_clusters.get() > 0,
        "i_clusters",
        0,
        "a volume has at least one cluster",
    )?;
    // i_clusters has 32 bits and a cluster at most 2^20 bytes, so no product below overflows 64 bits.
    let blocks = u64::from(dinode.i_clusters.get()) << (cluster_bits - block_bits);
    for (name, pointer) in [
        ("s_root_blkno", raw.s_root_blkno),
        ("s_system_dir_blkno", raw.s_system_dir_blkno),
        ("s_first_cluster_group", raw.s_first_cluster_group),
    ] {
        let pointer = pointer.get();
        field(
            pointer > SUPER_BLOCK.0 && pointer < blocks,
            name,
            pointer,
            "must lie inside the volume",
        )?;
    }
    let inline = raw.s_xattr_inline_size.get();
    let room = block.len() - offset::ID2 - 16;
    field(
        usize::from(inline) <= room,
        "s_xattr_inline_size",
        inline.into(),
        "leaves no room in an inode",
    )
}

/// Stack and cluster name, where the features say that they are valid.
fn cluster_info(incompat: Incompat, raw: &SuperBlock) -> Result<Option<ClusterInfo>, SuperError> {
    if !incompat.intersects(Incompat::USERSPACE_STACK | Incompat::CLUSTERINFO) {
        return Ok(None);
    }
    let info = &raw.s_cluster_info;
    if !info.ci_stack.iter().all(u8::is_ascii_alphanumeric) {
        return Err(SuperError::Field {
            field: "ci_stack",
            found: u32::from_le_bytes(info.ci_stack).into(),
            rule: "must be four letters or digits",
        });
    }
    Ok(Some(ClusterInfo {
        stack: info.ci_stack,
        flags: info.ci_stackflags,
        cluster: info.ci_cluster,
    }))
}
