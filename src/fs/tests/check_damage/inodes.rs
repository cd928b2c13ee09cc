//! Damages to inodes and extent trees.

use super::*;

fn first_rec(bench: &mut Bench, name: &str, change: impl FnOnce(&mut ondisk::ExtentRec)) {
    bench.inode_block(name, |bytes| {
        change(&mut extent_list_mut(bytes, RootKind::Dinode).records[0]);
    });
}

fn leaf(bench: &mut Bench, change: impl FnOnce(&mut [u8])) {
    let nr = bench.first_leaf("sparse");
    bench.edit(nr, Kind::ExtentBlock, change);
}

fn leaf_recs(bench: &mut Bench, change: impl FnOnce(&mut [ondisk::ExtentRec])) {
    leaf(bench, |bytes| {
        change(extent_list_mut(bytes, RootKind::ExtentBlock).records)
    });
}

#[test]
fn inodes_and_extents() {
    let bench = furnish(4096, 4096, 48, ALL);
    let damages: &[Damage] = &[
        ("inode: signature", Code::InodeAllocRepair, Same, |b| {
            b.inode("inline", |inode| inode.i_signature = *b"INODE99\0");
        }),
        ("inode: not valid", Code::InodeAllocRepair, Same, |b| {
            b.inode("inline", |inode| inode.set_flags(InodeFlags::empty()));
        }),
        (
            "inode: volume generation",
            Code::InodeAllocRepair,
            Same,
            |b| {
                b.inode("inline", |inode| inode.i_fs_generation.set(7));
            },
        ),
        ("inode: own block", Code::InodeBlkno, Same, |b| {
            b.inode("inline", |inode| inode.i_blkno.set(7777));
        }),
        ("inode: bit", Code::InodeSuballoc, Silent, |b| {
            b.inode("inline", |inode| {
                inode.i_suballoc_bit.set(inode.i_suballoc_bit.get() + 1);
            });
        }),
        ("inode: deleted", Code::InodeNzDtime, Same, |b| {
            b.inode("inline", |inode| inode.i_dtime.set(7));
        }),
        ("inode: type", Code::InodeMode, Complains, |b| {
            b.inode("inline", |inode| inode.i_mode.set(0o000_644));
        }),
        ("inode: root is a file", Code::RootNotdir, Same, |b| {
            b.inode("/", |inode| inode.i_mode.set(0o100_644));
        }),
        (
            "inode: refcount root without flag",
            Code::RefcountLocInvalid,
            Same,
            |b| {
                b.inode("inline", |inode| inode.i_refcount_loc.set(7777));
            },
        ),
        ("inode: clusters", Code::InodeSparseClusters, Same, |b| {
            b.inode("other", |inode| inode.i_clusters.set(9));
        }),
        (
            "inode: size below clusters",
            Code::InodeSparseSize,
            Same,
            |b| {
                b.inode("other", |inode| inode.i_size.set(1));
            },
        ),
        ("inode: inline size", Code::InodeInlineSize, Same, |b| {
            b.inode("inline", |inode| inode.i_size.set(5000));
        }),
        (
            "inode: inline room",
            Code::InlineDataCountInvalid,
            Same,
            |b| {
                b.inode_block("inline", |bytes| ondisk::set_inline_data_count(bytes, 100));
            },
        ),
        (
            "inode: inline clusters",
            Code::InodeInlineClusters,
            Same,
            |b| {
                b.inode("inline", |inode| inode.i_clusters.set(1));
            },
        ),
        ("inode: links", Code::InodeCount, Same, |b| {
            b.inode("inline", |inode| inode.set_links(2));
        }),
        ("inode: links of a directory", Code::InodeCount, Same, |b| {
            b.inode("few", |inode| inode.set_links(3));
        }),
        (
            "inode: orphan without its directory",
            Code::InodeOrphaned,
            Silent,
            |b| {
                b.inode("inline", |inode| {
                    inode.set_flags(inode.flags() | InodeFlags::ORPHANED);
                    inode.set_links(0);
                });
            },
        ),
        ("symlink: size", Code::LinkSize, Silent, |b| {
            b.inode("fast", |inode| inode.i_size.set(3));
        }),
        ("symlink: no end", Code::LinkNullterm, Silent, |b| {
            b.inode_block("fast", |bytes| bytes[0xC0..].fill(b'x'));
        }),
        ("symlink: size in a block", Code::LinkSize, Same, |b| {
            b.inode("slow", |inode| inode.i_size.set(3999));
        }),
        (
            "symlink: text without an end",
            Code::LinkNullterm,
            Same,
            |b| {
                let nr = b.extents(b.ino("slow"))[0].block().0;
                b.put(nr, &[b'x'; 4096]);
            },
        ),
        ("directory: no block", Code::DirZero, Same, |b| {
            b.inode_block("some", |bytes| {
                extent_list_mut(bytes, RootKind::Dinode)
                    .header
                    .l_next_free_rec
                    .set(0);
                Dinode::of_mut(bytes).i_clusters.set(0);
                Dinode::of_mut(bytes).i_size.set(0);
            });
        }),
        ("directory: size", Code::InodeSize, Same, |b| {
            b.inode("some", |inode| inode.i_size.set(1 << 20));
        }),
        ("directory: hole", Code::NoHoles, Same, |b| {
            first_rec(b, "some", |rec| rec.e_cpos.set(1));
        }),
        ("extent block: own block", Code::EbBlkno, Same, |b| {
            leaf(b, |bytes| ExtentBlock::of_mut(bytes).h_blkno.set(7));
        }),
        ("extent block: generation", Code::EbGen, Same, |b| {
            leaf(b, |bytes| ExtentBlock::of_mut(bytes).h_fs_generation.set(7));
        }),
        (
            "extent block: signature",
            Code::ExtentEbInvalid,
            Same,
            |b| {
                leaf(b, |bytes| ExtentBlock::of_mut(bytes).h_signature[0] = b'X');
            },
        ),
        (
            "extent block: next leaf",
            Code::ExtentLeafLink,
            Silent,
            |b| {
                leaf(b, |bytes| ExtentBlock::of_mut(bytes).h_next_leaf_blk.set(7));
            },
        ),
        ("extent block: bit", Code::SuballocBit, Silent, |b| {
            leaf(b, |bytes| ExtentBlock::of_mut(bytes).h_suballoc_bit.set(7));
        }),
        ("extent list: depth", Code::ExtentListDepth, Same, |b| {
            leaf(b, |bytes| {
                extent_list_mut(bytes, RootKind::ExtentBlock)
                    .header
                    .l_tree_depth
                    .set(1);
            });
        }),
        ("extent list: count", Code::ExtentListCount, Same, |b| {
            leaf(b, |bytes| {
                extent_list_mut(bytes, RootKind::ExtentBlock)
                    .header
                    .l_count
                    .set(300);
            });
        }),
        ("extent list: used", Code::ExtentListFree, Same, |b| {
            leaf(b, |bytes| {
                extent_list_mut(bytes, RootKind::ExtentBlock)
                    .header
                    .l_next_free_rec
                    .set(253);
            });
        }),
        ("extent: range", Code::ExtentBlknoRange, Same, |b| {
            first_rec(b, "other", |rec| rec.e_blkno.set(1 << 40));
        }),
        ("extent: overrun", Code::ExtentClustersOverrun, Same, |b| {
            first_rec(b, "other", |rec| rec.e_blkno.set(12_287));
        }),
        ("extent: overlap", Code::ExtentOverlap, Silent, |b| {
            leaf_recs(b, |recs| recs[5].e_cpos = recs[4].e_cpos);
        }),
        (
            "extent: shared without a tree",
            Code::ExtentMarkedRefcounted,
            Same,
            |b| {
                first_rec(b, "other", |rec| rec.set_flags(ExtentFlags::REFCOUNTED));
            },
        ),
        (
            "extent: another file's clusters",
            Code::DupClustersClone,
            Complains,
            |b| {
                let victim = b.extents(b.ino("xinline"))[0].e_blkno;
                first_rec(b, "other", |rec| rec.e_blkno = victim);
            },
        ),
        ("extent: last leaf", Code::ExtentLeafLink, Complains, |b| {
            b.inode("sparse", |inode| inode.i_last_eb_blk.set(7));
        }),
        (
            "extent: an empty record",
            Code::ExtentRecEmpty,
            Complains,
            |b| {
                leaf_recs(b, |recs| recs[7].set_leaf_clusters(0));
            },
        ),
        (
            "extent tree: child's range",
            Code::ExtentChildRange,
            Silent,
            |b| {
                b.inode_block("sparse", |bytes| {
                    let list = extent_list_mut(bytes, RootKind::Dinode);
                    let at = usize::from(list.records[0].int_clusters() == 0);
                    list.records[at].set_int_clusters(100);
                });
            },
        ),
        (
            "extent tree: a block twice",
            Code::MetadataDuplicate,
            Complains,
            |b| {
                let leaf = b.first_leaf("sparse");
                b.inode_block("sparse-clone", |bytes| {
                    let list = extent_list_mut(bytes, RootKind::Dinode);
                    let at = usize::from(list.records[0].int_clusters() == 0);
                    list.records[at].e_blkno.set(leaf);
                });
            },
        ),
        ("checksum: two bits", Code::BadCrc32, Complains, |b| {
            let nr = b.ino("some");
            let mut bytes = b.block(nr);
            bytes[0x30] ^= 3;
            b.put(nr, &bytes);
        }),
        ("checksum: one bit", Code::SingleBitError, Silent, |b| {
            let nr = b.ino("inline");
            let mut bytes = b.block(nr);
            bytes[0x30] ^= 2;
            b.put(nr, &bytes);
        }),
    ];
    run(&bench, damages);
    let damages: &[Damage] = &[
        ("extent: unaligned", Code::ExtentBlknoUnaligned, Same, |b| {
            first_rec(b, "other", |rec| rec.e_blkno.set(rec.e_blkno.get() + 1));
        }),
        ("extent block: range", Code::ExtentBlknoRange, Same, |b| {
            b.inode_block("sparse", |bytes| {
                let list = extent_list_mut(bytes, RootKind::Dinode);
                let at = usize::from(list.records[0].int_clusters() == 0);
                list.records[at].e_blkno.set(1 << 60);
            });
        }),
    ];
    run(&furnish(1024, 4096, 48, ALL), damages);
    let damages: &[Damage] = &[
        ("plain: size", Code::InodeSize, Same, |b| {
            b.inode("data", |inode| inode.i_size.set(1 << 30));
        }),
        ("plain: clusters", Code::InodeClusters, Same, |b| {
            b.inode("data", |inode| inode.i_clusters.set(3));
        }),
        ("plain: unwritten", Code::ExtentMarkedUnwritten, Same, |b| {
            first_rec(b, "data", |rec| rec.set_flags(ExtentFlags::UNWRITTEN));
        }),
        (
            "plain: inline flag",
            Code::InlineDataFlagInvalid,
            Same,
            |b| {
                b.inode("data", |inode| {
                    inode.set_dyn_features(DynFeatures::INLINE_DATA)
                });
            },
        ),
        (
            "plain: refcount flag",
            Code::RefcountFlagInvalid,
            Same,
            |b| {
                b.inode("data", |inode| {
                    inode.set_dyn_features(DynFeatures::HAS_REFCOUNT);
                    inode.i_refcount_loc.set(5000);
                });
            },
        ),
        ("plain: index", Code::IvDxTree, Same, |b| {
            b.inode("few", |inode| {
                inode.set_dyn_features(DynFeatures::INDEXED_DIR)
            });
        }),
    ];
    run(
        &support::bench::furnish_plain(4096, 4096, 48, PLAIN),
        damages,
    );
}
