//! Damages to the superblock, journals, chains, groups, windows and truncate logs; and to quota files.

use super::*;

fn local_alloc(bench: &mut Bench, change: impl FnOnce(ondisk::LocalAllocMut<'_>)) {
    bench.inode_block("local_alloc:0001", |bytes| change(local_alloc_mut(bytes)));
}

fn truncate_rec(bench: &mut Bench, start: u32, clusters: u32) {
    bench.inode_block("truncate_log:0001", |bytes| {
        let log = truncate_log_mut(bytes);
        log.header.tl_used.set(1);
        log.records[0].t_start.set(start);
        log.records[0].t_clusters.set(clusters);
    });
}

fn chain(bench: &mut Bench, allocator: &str, change: impl FnOnce(&mut ondisk::ChainRec)) {
    bench.inode_block(allocator, |bytes| {
        change(&mut chain_list_mut(bytes).records[0])
    });
}

fn journal(bench: &mut Bench, change: impl FnOnce(&mut ondisk::jbd2::SuperBlock)) {
    let first = bench.extents(bench.ino("journal:0001"))[0].block().0;
    let mut bytes = bench.block(first);
    change(ondisk::jbd2::SuperBlock::of_mut(&mut bytes));
    bench.put(first, &bytes);
}

#[test]
fn allocators() {
    let bench = furnish(4096, 4096, 48, ALL);
    let damages: &[Damage] = &[
        ("super: clusters", Code::SuperblockClusters, Same, |b| {
            b.edit(SUPER_BLOCK.0, Kind::SuperBlock, |bytes| {
                let inode = Dinode::of_mut(bytes);
                inode.i_clusters.set(inode.i_clusters.get() - 100);
            });
        }),
        ("journal: magic", Code::JournalFileInvalid, Silent, |b| {
            journal(b, |journal| journal.s_header.h_magic.set(7));
        }),
        (
            "journal: feature",
            Code::JournalMissingFeature,
            Silent,
            |b| {
                journal(b, |journal| journal.s_feature_incompat.set(1));
            },
        ),
        (
            "journal: unknown feature",
            Code::JournalUnknownFeature,
            Silent,
            |b| {
                journal(b, |journal| journal.s_feature_incompat.set(0x4000));
            },
        ),
        (
            "journal: clusters",
            Code::JournalTooSmall,
            Other("INODE_SPARSE_CLUSTERS"),
            |b| {
                b.inode("journal:0001", |inode| inode.i_clusters.set(600));
            },
        ),
        (
            "slot map: a node twice",
            Code::SlotMapInvalid,
            Silent,
            |b| {
                let nr = b.extents(b.ino("slot_map"))[0].block().0;
                let mut bytes = b.block(nr);
                bytes[..16].copy_from_slice(&[1, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0]);
                b.put(nr, &bytes);
            },
        ),
        ("chain: free", Code::ChainBits, Same, |b| {
            chain(b, "inode_alloc:0000", |rec| {
                rec.c_free.set(rec.c_free.get() + 1)
            });
        }),
        ("chain: head range", Code::ChainHeadLinkRange, Same, |b| {
            chain(b, "extent_alloc:0000", |rec| rec.c_blkno.set(1 << 50));
        }),
        ("chain: magic", Code::ChainLinkMagic, Complains, |b| {
            let inode = b.ino("data");
            chain(b, "extent_alloc:0000", |rec| rec.c_blkno.set(inode));
        }),
        ("chain: empty", Code::ChainEmpty, Same, |b| {
            chain(b, "extent_alloc:0000", |rec| rec.c_blkno.set(0));
        }),
        ("chain list: count", Code::ChainCount, Same, |b| {
            b.inode_block("inode_alloc:0000", |bytes| {
                chain_list_mut(bytes).header.cl_count.set(300);
            });
        }),
        ("chain list: next free", Code::ChainNextFree, Same, |b| {
            b.inode_block("inode_alloc:0001", |bytes| {
                chain_list_mut(bytes).header.cl_next_free_rec.set(244);
            });
        }),
        ("chain list: clusters a group", Code::ChainCpg, Same, |b| {
            b.inode_block("global_bitmap", |bytes| {
                chain_list_mut(bytes).header.cl_cpg.set(20000);
            });
        }),
        ("allocator: used", Code::ChainGroupBits, Same, |b| {
            b.inode("inode_alloc:0000", |inode| inode.set_used(inode.used() + 1));
        }),
        ("allocator: clusters", Code::ChainIClusters, Same, |b| {
            b.inode("inode_alloc:0000", |inode| inode.i_clusters.set(7));
        }),
        ("allocator: size", Code::ChainISize, Same, |b| {
            b.inode("extent_alloc:0000", |inode| inode.i_size.set(4096));
        }),
        ("group: generation", Code::ChainLinkGen, Same, |b| {
            let nr = b.first_group("extent_alloc:0000");
            b.group(nr, |group| group.bg_generation.set(7));
        }),
        ("group: parent", Code::GroupParent, Same, |b| {
            let nr = b.first_group("inode_alloc:0000");
            b.group(nr, |group| group.bg_parent_dinode.set(7));
        }),
        ("group: own block", Code::GroupBlkno, Same, |b| {
            let nr = b.first_group("inode_alloc:0000");
            b.group(nr, |group| group.bg_blkno.set(7777));
        }),
        ("group: chain", Code::GroupChain, Same, |b| {
            let nr = b.first_group("inode_alloc:0000");
            b.group(nr, |group| group.bg_chain.set(3));
        }),
        (
            "group: too many free bits",
            Code::GroupFreeBits,
            Same,
            |b| {
                let nr = b.first_group("inode_alloc:0000");
                b.group(nr, |group| {
                    group
                        .bg_free_bits_count
                        .set(group.bg_free_bits_count.get() + 1);
                });
            },
        ),
        (
            "group: too few free bits",
            Code::GroupFreeBits,
            Other("CHAIN_BITS"),
            |b| {
                let nr = b.first_group("inode_alloc:0000");
                b.group(nr, |group| {
                    group
                        .bg_free_bits_count
                        .set(group.bg_free_bits_count.get() - 1);
                });
            },
        ),
        ("group: circle", Code::GroupChainLoop, Same, |b| {
            let nr = b.first_group("inode_alloc:0000");
            b.group(nr, |group| group.bg_next_group.set(nr));
        }),
        ("group: next", Code::ChainLinkRange, Same, |b| {
            let nr = b.first_group("inode_alloc:0000");
            b.group(nr, |group| group.bg_next_group.set(1 << 40));
        }),
        (
            "bitmap: group gone",
            Code::GroupExpectedDesc,
            Complains,
            |b| {
                chain(b, "global_bitmap", |rec| rec.c_blkno.set(0));
            },
        ),
        (
            "bitmap: group elsewhere",
            Code::GroupUnexpectedDesc,
            Complains,
            |b| {
                let other = b.first_group("inode_alloc:0000");
                let nr = b.first_group("global_bitmap");
                b.group(nr, |group| group.bg_next_group.set(other));
            },
        ),
        ("bitmap: used and clear", Code::ClusterAllocBit, Same, |b| {
            let nr = b.first_group("global_bitmap");
            let cluster = b.extents(b.ino("data"))[0].block().0 as u32;
            b.set_bit("global_bitmap", nr, cluster, false);
        }),
        ("bitmap: set and unused", Code::ClusterAllocBit, Same, |b| {
            let (nr, bit) = b.free_bit("global_bitmap");
            b.set_bit("global_bitmap", nr, bit, true);
        }),
        (
            "bitmap: byte of bits",
            Code::GroupFreeBits,
            Other("CLUSTER_ALLOC_BIT"),
            |b| {
                let (nr, bit) = b.free_bit("global_bitmap");
                b.edit(nr, Kind::GroupDesc, |bytes| {
                    group_bitmap_mut(bytes)[bit as usize / 8] |= 0xF
                });
            },
        ),
        (
            "extent allocator: set and unused",
            Code::SuballocBit,
            Silent,
            |b| {
                let (nr, bit) = b.free_bit("extent_alloc:0000");
                b.set_bit("extent_alloc:0000", nr, bit, true);
            },
        ),
        (
            "extent allocator: used and clear",
            Code::SuballocBit,
            Silent,
            |b| {
                let nr = b.first_group("extent_alloc:0000");
                let bit = b.first_leaf("sparse") - nr;
                b.set_bit("extent_alloc:0000", nr, bit as u32, false);
            },
        ),
        (
            "inode allocator: valid and clear",
            Code::InodeAllocRepair,
            Complains,
            |b| {
                let nr = b.first_group("inode_alloc:0000");
                let bit = b.ino("data") - nr;
                b.set_bit("inode_alloc:0000", nr, bit as u32, false);
            },
        ),
        (
            "inode allocator: set and unused",
            Code::InodeAllocRepair,
            Complains,
            |b| {
                let (nr, bit) = b.free_bit("inode_alloc:0000");
                b.set_bit("inode_alloc:0000", nr, bit, true);
            },
        ),
        ("local alloc: used", Code::LallocNzUsed, Same, |b| {
            local_alloc(b, |window| window.dinode.set_used(3));
        }),
        ("local alloc: start", Code::LallocNzBm, Same, |b| {
            local_alloc(b, |window| window.header.la_bm_off.set(7));
        }),
        ("local alloc: size", Code::LallocSize, Same, |b| {
            local_alloc(b, |window| window.header.la_size.set(5000));
        }),
        ("local alloc: overrun", Code::LallocBmOverrun, Same, |b| {
            local_alloc(b, |window| {
                window.header.la_bm_off.set(1 << 30);
                window.dinode.set_total(10);
            });
        }),
        ("local alloc: bits", Code::LallocBmSize, Same, |b| {
            local_alloc(b, |window| window.dinode.set_total(40_000));
        }),
        ("local alloc: end", Code::LallocBmStraddle, Same, |b| {
            local_alloc(b, |window| {
                window.header.la_bm_off.set(12_000);
                window.dinode.set_total(1000);
            });
        }),
        (
            "local alloc: more used than there",
            Code::LallocUsedOverrun,
            Same,
            |b| {
                local_alloc(b, |window| {
                    window.header.la_bm_off.set(9000);
                    window.dinode.set_total(10);
                    window.dinode.set_used(11);
                });
            },
        ),
        ("truncate log: count", Code::DeallocCount, Same, |b| {
            b.inode_block("truncate_log:0001", |bytes| {
                truncate_log_mut(bytes).header.tl_count.set(600);
            });
        }),
        ("truncate log: used", Code::DeallocUsed, Complains, |b| {
            b.inode_block("truncate_log:0001", |bytes| {
                truncate_log_mut(bytes).header.tl_used.set(488);
            });
        }),
        (
            "truncate log: start",
            Code::TruncateRecStartRange,
            Complains,
            |b| {
                truncate_rec(b, 1 << 30, 1);
            },
        ),
        (
            "truncate log: wrap",
            Code::TruncateRecWrap,
            Complains,
            |b| {
                truncate_rec(b, 5000, u32::MAX);
            },
        ),
        (
            "truncate log: end",
            Code::TruncateRecRange,
            Complains,
            |b| {
                truncate_rec(b, 12_000, 5000);
            },
        ),
        (
            "truncate log: a file's clusters",
            Code::DupClustersClone,
            Complains,
            |b| {
                let cluster = b.extents(b.ino("data"))[0].block().0 as u32;
                truncate_rec(b, cluster, 1);
            },
        ),
    ];
    run(&bench, damages);
}

#[test]
fn quotas() {
    let features = format!("{ALL},usrquota,grpquota");
    let bench = furnish(4096, 4096, 64, &features);
    fn quota(b: &mut Bench, name: &str, block: usize, change: fn(&mut [u8])) {
        let nr = b.extents(b.ino(name))[0].block().0 + block as u64;
        b.edit(nr, Kind::QuotaBlock, change);
    }
    let damages: &[Damage] = &[
        ("quota: magic", Code::QmagicInvalid, Complains, |b| {
            quota(b, "aquota.user", 0, |bytes| bytes[0] ^= 0xFF);
        }),
        ("quota: tree", Code::QtreeBlkInvalid, Silent, |b| {
            quota(b, "aquota.user", 1, |bytes| bytes[2] = 0xFF);
        }),
        ("quota: local", Code::QuotaLocalInvalid, Silent, |b| {
            quota(b, "aquota.group:0000", 0, |bytes| bytes[0] ^= 0xFF);
        }),
    ];
    run(&bench, damages);
}
