//! Golden tests: volumes that `mkfs.ocfs2` made, read by us and by `debugfs.ocfs2`, have to look the same to both.
//!
//! Every block size with every cluster size, all features. And the blocks of every metadata structure on them must pass
//! their checksum and their validation. [`kernel_image`] does the latter to a volume that the Linux driver has filled,
//! whose path is in `OCELOT_KERNEL_IMAGE` (oracle/kernel-make makes one); without it that test has nothing to look at.

mod debugfs;
mod volume;
mod walk;

use debugfs::Report;
use ondisk::feature::{DynFeatures, Incompat, InodeFlags};
use ondisk::{
    BlockNr, Body, Dinode, Geometry, GroupDesc, HeartbeatBlock, InlineDataHeader, RootKind, SlotNr,
    SuperBlock, SystemFile, chain_list, extent_list, jbd2, local_alloc, quota, slot_map,
    truncate_log,
};
use std::path::PathBuf;
use volume::Volume;
use zerocopy::FromBytes;

/// Block size, cluster size, megabytes of volume and of each journal.
const FORMATS: [(u32, &str, u64, &str); 12] = [
    (512, "4K", 64, "4M"),
    (512, "32K", 64, "4M"),
    (512, "1M", 300, "16M"),
    (1024, "4K", 64, "4M"),
    (1024, "32K", 64, "4M"),
    (1024, "1M", 300, "16M"),
    (2048, "4K", 64, "4M"),
    (2048, "32K", 64, "4M"),
    (2048, "1M", 300, "16M"),
    (4096, "4K", 64, "4M"),
    (4096, "32K", 64, "4M"),
    (4096, "1M", 300, "16M"),
];

fn on_each_format(test: impl Fn(&Volume)) {
    assert!(
        debugfs::tools_are_here(),
        "mkfs.ocfs2 and debugfs.ocfs2 are not installed"
    );
    for (block, cluster, megabytes, journal) in FORMATS {
        let volume = Volume::format(block, cluster, megabytes, journal);
        assert_eq!(volume.geometry().block_size(), block as usize);
        eprintln!("blocks of {block}, clusters of {cluster}");
        test(&volume);
    }
}

#[test]
fn superblock_is_as_debugfs_sees_it() {
    on_each_format(|volume| {
        let (geometry, report) = (volume.geometry(), volume.debugfs("stats"));
        let raw = SuperBlock::of_dinode(volume.super_block());
        assert_eq!(
            u64::from(geometry.block_size_bits),
            report.number("Block Size Bits")
        );
        assert_eq!(
            u64::from(geometry.cluster_size_bits),
            report.number("Cluster Size Bits")
        );
        assert_eq!(
            u64::from(geometry.max_slots),
            report.number("Max Node Slots")
        );
        assert_eq!(
            u64::from(geometry.total_clusters),
            report.number("Clusters")
        );
        assert_eq!(
            u64::from(geometry.compat.bits()),
            report.number("Feature Compat")
        );
        assert_eq!(
            u64::from(geometry.incompat.bits()),
            report.number("Feature Incompat")
        );
        assert_eq!(
            u64::from(geometry.ro_compat.bits()),
            report.number("Feature RO compat")
        );
        assert_eq!(geometry.root_dir.0, report.number("Root Blknum"));
        assert_eq!(geometry.system_dir.0, report.number("System Dir Blknum"));
        assert_eq!(
            geometry.first_cluster_group.0,
            report.number("First Cluster Group Blknum")
        );
        assert_eq!(
            u64::from(geometry.xattr_inline_size),
            report.number("Extended Attributes Inline Size")
        );
        assert_eq!(geometry.uuid_string(), report.word("UUID"));
        assert_eq!(u64::from(geometry.uuid_hash), report.number("Hash"));
        assert_eq!(ondisk::hash::uuid_hash(&geometry.uuid), geometry.uuid_hash);
        assert_eq!(
            u64::from(geometry.fs_generation.0),
            report.number("FS Generation")
        );
        let seeds: Vec<u64> = report
            .words("DX Seeds")
            .take(3)
            .map(|word| word.parse().expect("a number"))
            .collect();
        assert_eq!(
            seeds,
            geometry.dx_seed[..3]
                .iter()
                .map(|&seed| u64::from(seed))
                .collect::<Vec<_>>()
        );
        assert_eq!(
            u64::from(raw.s_max_mnt_count.get()),
            report.number("Max Mount Count")
        );
        assert!(geometry.is_local() && geometry.has_metaecc() && geometry.has_unwritten());
        assert!(geometry.has(Incompat::APPEND_DIO) && geometry.read_only_because().is_empty());
        assert_eq!(geometry.total_bytes(), volume.len());
    });
}

#[test]
fn system_inodes_are_as_debugfs_sees_them() {
    on_each_format(|volume| {
        let files = volume.system_files();
        assert_eq!(files.len(), 7 + 2 * 8, "two slots");
        for (name, nr) in files {
            let block = volume.dinode(nr);
            let (dinode, report) = (Dinode::of(&block), volume.debugfs(&format!("stat <{nr}>")));
            compare_fixed_part(dinode, nr, &report);
            match dinode.body() {
                Body::Extents => compare_extents(&block, &report),
                Body::Chains => compare_chains(volume, &block, nr, &report),
                Body::LocalAlloc => {
                    let alloc = local_alloc(&block);
                    assert_eq!(
                        u64::from(alloc.header.la_bm_off.get()),
                        report.number("Local Bitmap Offset")
                    );
                    assert_eq!(
                        u64::from(alloc.header.la_size.get()),
                        report.last_number("Size")
                    );
                    assert!(alloc.is_empty());
                }
                Body::TruncateLog => {
                    let log = truncate_log(&block);
                    assert_eq!(
                        u64::from(log.header.tl_count.get()),
                        report.number("Total Records")
                    );
                    assert_eq!(u64::from(log.header.tl_used.get()), report.number("Used"));
                }
                Body::Inline => {
                    let (header, _) =
                        InlineDataHeader::ref_from_prefix(&block[0xC0..]).expect("long enough");
                    assert_eq!(
                        u64::from(header.id_count.get()),
                        report.number("Inline Data Max")
                    );
                }
                other => panic!("{name} is {other:?}"),
            }
        }
    });
}

fn compare_fixed_part(dinode: &Dinode, nr: BlockNr, report: &Report) {
    assert_eq!(nr.0, report.number("Inode"));
    assert_eq!(
        format!("0{:o}", dinode.i_mode.get() & 0o7777),
        report.word("Mode")
    );
    assert_eq!(
        u64::from(dinode.i_generation.get()),
        report.number("Generation")
    );
    assert_eq!(
        u64::from(dinode.i_fs_generation.get()),
        report.number("FS Generation")
    );
    assert_eq!(
        format!("{:08x}", dinode.i_check.bc_crc32e.get()),
        report.word("CRC32")
    );
    assert_eq!(
        format!("{:04x}", dinode.i_check.bc_ecc.get()),
        report.word("ECC")
    );
    assert_eq!(u64::from(dinode.i_uid.get()), report.number("User"));
    assert_eq!(u64::from(dinode.i_gid.get()), report.number("Group"));
    assert_eq!(dinode.i_size.get(), report.number("Size"));
    assert_eq!(u64::from(dinode.links()), report.number("Links"));
    assert_eq!(
        u64::from(dinode.i_clusters.get()),
        report.number("Clusters")
    );
    assert_eq!(dinode.i_last_eb_blk.get(), report.number("Last Extblk"));
    assert_eq!(
        u64::from(dinode.i_suballoc_bit.get()),
        report.number("Sub Alloc Bit")
    );
    assert_eq!(
        SlotNr(dinode.i_suballoc_slot.get()) == SlotNr::INVALID,
        report.word("Sub Alloc Slot") == "Global"
    );
    assert_eq!(format!("{:#x}", dinode.i_mtime.get()), report.word("mtime"));
    assert_eq!(
        format!("({:#x})", dinode.dyn_features().bits()),
        report.word("Dynamic Features")
    );
    let flags = report.line("Flags");
    for (flag, word) in [
        (InodeFlags::VALID, "Valid"),
        (InodeFlags::SYSTEM, "System"),
        (InodeFlags::BITMAP, "Allocbitmap"),
        (InodeFlags::LOCAL_ALLOC, "Localalloc"),
        (InodeFlags::JOURNAL, "Journal"),
        (InodeFlags::HEARTBEAT, "Heartbeat"),
        (InodeFlags::CHAIN, "Chain"),
        (InodeFlags::DEALLOC, "Dealloc"),
    ] {
        assert_eq!(
            dinode.flags().contains(flag),
            flags.split(' ').any(|found| found == word),
            "{word} in {flags}"
        );
    }
}

fn compare_extents(block: &[u8], report: &Report) {
    let list = extent_list(block, RootKind::Dinode);
    assert_eq!(u64::from(list.depth()), report.number("Tree Depth"));
    assert_eq!(list.records.len() as u64, report.number("Count"));
    let rows = report.rows("## Offset");
    assert_eq!(list.used().len(), rows.len());
    for (rec, row) in list.used().iter().zip(rows) {
        assert_eq!(list.depth(), 0, "mkfs makes no trees");
        assert_eq!(
            row[1..4],
            [
                rec.e_cpos.get().into(),
                rec.leaf_clusters().into(),
                rec.e_blkno.get()
            ]
        );
    }
}

fn compare_chains(volume: &Volume, block: &[u8], nr: BlockNr, report: &Report) {
    let (dinode, chains) = (Dinode::of(block), chain_list(block));
    assert_eq!(u64::from(dinode.total()), report.number("Bitmap Total"));
    assert_eq!(u64::from(dinode.used()), report.number("Used"));
    assert_eq!(
        u64::from(chains.header.cl_cpg.get()),
        report.number("Clusters per Group")
    );
    assert_eq!(
        u64::from(chains.header.cl_bpc.get()),
        report.number("Bits per Cluster")
    );
    assert_eq!(chains.records.len() as u64, report.number("Count"));
    let rows = report.rows("##   Total");
    assert_eq!(rows.len(), chains.used().len());
    for (rec, row) in chains.used().iter().zip(rows) {
        let (total, free) = (u64::from(rec.c_total.get()), u64::from(rec.c_free.get()));
        assert_eq!(row[1..5], [total, total - free, free, rec.c_blkno.get()]);
    }
    // The report goes on with the groups, chain by chain.
    let mut rows = report.all_rows("##   Block#").into_iter();
    for (_, group, desc) in walk::groups(volume, block, nr) {
        let desc = GroupDesc::of(&desc);
        let (bits, free) = (
            u64::from(desc.bg_bits.get()),
            u64::from(desc.bg_free_bits_count.get()),
        );
        let row = rows.next().expect("as many groups");
        assert_eq!(row[1..5], [group.0, bits, bits - free, free]);
        assert_eq!(row[6], u64::from(desc.bg_size.get()));
    }
    assert_eq!(rows.next(), None, "no more groups");
}

#[test]
fn journals_are_as_debugfs_sees_them() {
    on_each_format(|volume| {
        for slot in 0..2 {
            let nr = volume.system_file(SystemFile::Journal, SlotNr(slot));
            let dinode = volume.dinode(nr);
            assert!(!Dinode::of(&dinode).journal_is_dirty());
            let extents = walk::extents(volume, &dinode, RootKind::Dinode);
            let first = extents.first().expect("a journal has clusters").block();
            let block = volume.block(first);
            let blocks = Dinode::of(&dinode).i_size.get() >> volume.geometry().block_size_bits;
            jbd2::SuperBlock::validate(&block, first, blocks).expect("a journal");
            let (this, report) = (
                jbd2::SuperBlock::of(&block),
                volume.debugfs(&format!("logdump {slot}")),
            );
            assert_eq!(
                u64::from(this.s_blocksize.get()),
                report.number("Blocksize")
            );
            assert_eq!(
                u64::from(this.s_maxlen.get()),
                report.number("Total Blocks")
            );
            assert_eq!(u64::from(this.s_first.get()), report.number("First Block"));
            assert_eq!(
                u64::from(this.s_sequence.get()),
                report.number("First Commit ID")
            );
            assert_eq!(
                u64::from(this.s_start.get()),
                report.number("Start Log Blknum")
            );
            assert_eq!(
                u64::from(this.s_nr_users.get()),
                report.number("FS Share Cnt")
            );
            assert_eq!(this.s_uuid, volume.geometry().uuid);
            assert_eq!((this.compat().bits(), this.incompat().bits()), (0, 0));
        }
    });
}

#[test]
fn slots_are_free_and_hearts_are_silent() {
    on_each_format(|volume| {
        let content = volume.content(SystemFile::SlotMap, SlotNr(0));
        let map = slot_map(&content, BlockNr(0), volume.geometry()).expect("large enough");
        assert_eq!((map.len(), map.taken().count()), (2, 0));
        assert_eq!(map.first_free(), Some(SlotNr(0)));
        let content = volume.content(SystemFile::Heartbeat, SlotNr(0));
        for (node, block) in (0..16).zip(content.chunks(volume.geometry().block_size())) {
            HeartbeatBlock::validate(block, BlockNr(node), node as u8).expect("silent");
            assert!(HeartbeatBlock::of(block).is_silent());
        }
    });
}

#[test]
fn quota_files_are_sound() {
    on_each_format(|volume| {
        for (kind, global, local) in [
            (
                quota::QuotaType::User,
                SystemFile::UserQuota,
                SystemFile::LocalUserQuota,
            ),
            (
                quota::QuotaType::Group,
                SystemFile::GroupQuota,
                SystemFile::LocalGroupQuota,
            ),
        ] {
            let size = volume.geometry().block_size();
            let mut content = volume.content(global, SlotNr(0));
            walk::verify_quota_blocks(&mut content, size);
            quota::GlobalInfo::validate(&content[..size], BlockNr(0), kind).expect("information");
            let info = quota::GlobalInfo::of(&content);
            assert_eq!(
                (
                    info.dqi_bgrace.get(),
                    info.dqi_igrace.get(),
                    info.dqi_syncms.get()
                ),
                (604_800, 604_800, 10_000)
            );
            // mkfs accounts for the inodes of root: its entry has to be where the tree leads to.
            let root = walk::find_quota(&content, size, 0).expect("an entry for identity 0");
            assert!(root.dqb_curinodes.get() >= 1, "{root:?}");
            assert_eq!(walk::find_quota(&content, size, 4711), None);
            for slot in 0..2 {
                let mut content = volume.content(local, SlotNr(slot));
                walk::verify_quota_blocks(&mut content, size);
                quota::LocalInfo::validate(&content[..size], BlockNr(0), kind)
                    .expect("information");
                let info = quota::LocalInfo::of(&content);
                assert!(info.is_clean());
                for chunk in 0..info.dqi_chunks.get() {
                    let at = quota::chunk_header_block(size, chunk) as usize * size;
                    let block = &content[at..at + size];
                    quota::validate_chunk(block, BlockNr(0)).expect("a chunk");
                    let (header, bitmap) = quota::local_chunk(block);
                    assert_eq!(header.dqc_free.get(), 0, "the chunk has no blocks yet");
                    assert!(bitmap.iter().all(|&byte| byte == 0));
                }
            }
        }
    });
}

#[test]
fn every_block_of_a_new_volume_is_valid() {
    on_each_format(|volume| {
        let seen = walk::verify_everything(volume);
        assert!(seen.inodes >= 25 && seen.groups >= 3, "{seen:?}");
    });
}

#[test]
#[ignore = "needs OCELOT_KERNEL_IMAGE, a volume that the kernel made"]
fn kernel_image() {
    let path = std::env::var_os("OCELOT_KERNEL_IMAGE").unwrap();
    let volume = Volume::open(PathBuf::from(path));
    eprintln!("{:?}", walk::verify_everything(&volume));
    let log = walk::read_log(&volume, volume.system_file(SystemFile::Journal, SlotNr(0)));
    eprintln!("{log:?}");
    assert!(log.transactions > 0, "the kernel has written transactions");
}

#[test]
fn a_flipped_bit_of_a_real_block_is_repaired() {
    assert!(
        debugfs::tools_are_here(),
        "mkfs.ocfs2 and debugfs.ocfs2 are not installed"
    );
    let volume = Volume::format(1024, "4K", 64, "4M");
    let good = volume.block(volume.geometry().system_dir);
    let mut block = good.clone();
    block[0x123] ^= 0x10;
    let verdict = ondisk::Kind::Dinode.verify(&mut block, volume.geometry().system_dir);
    assert_eq!(
        verdict,
        Ok(ondisk::metaecc::Verdict::Corrected { bit: 0x123 * 8 + 4 })
    );
    assert_eq!(block, good);
    assert!(
        Dinode::of(&good)
            .dyn_features()
            .contains(DynFeatures::INLINE_DATA)
            || good.len() < 4096
    );
}

/// `Geometry` is what the rest compares against; keep it in the test's sight.
#[test]
fn backup_superblocks_are_where_the_geometry_says() {
    assert!(
        debugfs::tools_are_here(),
        "mkfs.ocfs2 and debugfs.ocfs2 are not installed"
    );
    let volume = Volume::format(4096, "1M", 1100, "16M");
    let geometry: &Geometry = volume.geometry();
    let backups: Vec<_> = geometry.backup_super_blocks().collect();
    assert_eq!(backups, [BlockNr((1 << 30) / 4096)]);
    let mut block = volume.block(backups[0]);
    ondisk::Kind::SuperBlock
        .verify(&mut block, backups[0])
        .expect("a checksum of its own");
    assert_eq!(
        &SuperBlock::parse_at(&block, backups[0]).expect("a superblock"),
        geometry
    );
    assert!(
        SuperBlock::parse(&block).is_err(),
        "it knows that it is not in block 2"
    );
}

#[test]
fn what_we_do_not_know_is_refused_or_read_only() {
    assert!(
        debugfs::tools_are_here(),
        "mkfs.ocfs2 and debugfs.ocfs2 are not installed"
    );
    let volume = Volume::format(2048, "4K", 64, "4M");
    let parse = |change: &dyn Fn(&mut SuperBlock)| {
        let mut block = volume.super_block().to_vec();
        change(SuperBlock::of_dinode_mut(&mut block));
        SuperBlock::parse(&block)
    };
    let unknown = parse(&|this| this.s_feature_incompat.set(0x1_0000 | 0x20)).expect_err("refused");
    assert_eq!(
        unknown.to_string(),
        "volume has unsupported features: TUNEFS_INPROG, incompat bit 0x10000"
    );
    let read_only = parse(&|this| this.s_feature_ro_compat.set(0x9)).expect("readable");
    assert_eq!(read_only.read_only_because(), ["ro_compat bit 0x0008"]);
    let damages: [fn(&mut SuperBlock); 8] = [
        |this| this.s_major_rev_level.set(1),
        |this| this.s_blocksize_bits.set(12),
        |this| this.s_clustersize_bits.set(21),
        |this| this.s_max_slots.set(0),
        |this| this.s_max_slots.set(256),
        |this| this.s_root_blkno.set(0),
        |this| this.s_system_dir_blkno.set(u64::MAX),
        |this| this.s_xattr_inline_size.set(2048),
    ];
    for (index, damage) in damages.into_iter().enumerate() {
        assert!(parse(&damage).is_err(), "damage {index}");
    }
    // Found with a flipped bit, and not found where there is none.
    let mut start = volume.blocks(BlockNr(0), ondisk::PROBE_BYTES as u64 / 2048);
    start[2 * 2048 + 0x150] ^= 4;
    let probed = ondisk::probe(&start).expect("repaired");
    assert_eq!(&probed.geometry, volume.geometry());
    assert_ne!(probed.verdict, ondisk::metaecc::Verdict::Clean);
    start[2 * 2048 + 0x158] ^= 4;
    assert!(matches!(
        ondisk::probe(&start),
        Err(ondisk::SuperError::Corrupt(_))
    ));
    assert_eq!(
        ondisk::probe(&[0; 12288]).expect_err("nothing"),
        ondisk::SuperError::NotFound
    );
    assert!(ondisk::probe(&start[..100]).is_err());
}
