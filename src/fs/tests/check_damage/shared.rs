//! Damages to refcount trees and extended attributes.

use super::*;

fn root_of_refcounts(b: &Bench, name: &str) -> u64 {
    Dinode::of(&b.block(b.ino(name))).i_refcount_loc.get()
}

fn refcount(b: &mut Bench, change: impl FnOnce(&mut [u8])) {
    let nr = root_of_refcounts(b, "data");
    b.edit(nr, Kind::RefcountBlock, change);
}

/// The first leaf of the tree of "sparse".
fn refcount_leaf(b: &mut Bench, change: impl FnOnce(&mut [u8])) {
    let root = root_of_refcounts(b, "sparse");
    let block = b.block(root);
    assert!(RefcountBlock::of(&block).is_tree());
    let first = b.leaves(&block, RootKind::Refcount)[0].block().0;
    b.edit(first, Kind::RefcountBlock, change);
}

fn xattr_block(b: &Bench, name: &str) -> u64 {
    Dinode::of(&b.block(b.ino(name))).i_xattr_loc.get()
}

fn bucket(b: &mut Bench, change: impl FnOnce(&mut [u8])) {
    let block = b.block(xattr_block(b, "xtree"));
    assert!(XattrBlock::of(&block).is_indexed());
    let first = b.leaves(&block, RootKind::XattrTree)[0].block().0;
    b.edit(first, Kind::XattrBucket, change);
}

fn header(bytes: &mut [u8]) -> &mut XattrHeader {
    XattrHeader::mut_from_prefix(bytes).unwrap().0
}

fn entry(bytes: &mut [u8], at: usize) -> &mut ondisk::XattrEntry {
    ondisk::XattrEntry::mut_from_prefix(&mut bytes[16 + 16 * at..])
        .unwrap()
        .0
}

fn xblock_area(b: &mut Bench, change: impl FnOnce(&mut [u8])) {
    let nr = xattr_block(b, "xblock");
    b.edit(nr, Kind::XattrBlock, |bytes| {
        let span = XattrBlock::area_span(bytes.len());
        change(&mut bytes[span]);
    });
}

#[test]
fn refcounts_and_attributes() {
    let bench = furnish(4096, 4096, 48, ALL);
    let damages: &[Damage] = &[
        ("refcount: users", Code::RefcountCount, Same, |b| {
            refcount(b, |bytes| RefcountBlock::of_mut(bytes).rf_count.set(5));
        }),
        ("refcount: count", Code::RefcountCountInvalid, Same, |b| {
            refcount(b, |bytes| {
                refcount_list_mut(bytes).records[0].r_refcount.set(5)
            });
        }),
        (
            "refcount: a record too many",
            Code::RefcountRecRedundant,
            Same,
            |b| {
                refcount(b, |bytes| {
                    let rec = ondisk::RefcountRec::new(12_000, 2, 2);
                    let mut list = refcount_list_mut(bytes);
                    let used = list.as_ref().used().len();
                    assert!(list.insert(used, rec));
                });
            },
        ),
        ("refcount: own block", Code::RbBlkno, Same, |b| {
            refcount_leaf(b, |bytes| RefcountBlock::of_mut(bytes).rf_blkno.set(7));
        }),
        ("refcount: generation", Code::RbGen, Same, |b| {
            refcount_leaf(b, |bytes| {
                RefcountBlock::of_mut(bytes).rf_fs_generation.set(7)
            });
        }),
        ("refcount: parent", Code::RbParent, Same, |b| {
            refcount_leaf(b, |bytes| RefcountBlock::of_mut(bytes).rf_parent.set(7));
        }),
        (
            "refcount: signature of a leaf",
            Code::RefcountBlockInvalid,
            Complains,
            |b| {
                refcount_leaf(b, |bytes| {
                    RefcountBlock::of_mut(bytes).rf_signature[0] = b'X'
                });
            },
        ),
        (
            "refcount: signature of the root",
            Code::RefcountRootBlockInvalid,
            Complains,
            |b| {
                refcount(b, |bytes| {
                    RefcountBlock::of_mut(bytes).rf_signature[0] = b'X'
                });
            },
        ),
        ("refcount: list count", Code::RefcountListCount, Same, |b| {
            refcount(b, |bytes| refcount_list_mut(bytes).header.rl_count.set(300));
        }),
        (
            "refcount: list used",
            Code::RefcountListUsed,
            Complains,
            |b| {
                refcount_leaf(b, |bytes| refcount_list_mut(bytes).header.rl_used.set(248));
            },
        ),
        (
            "refcount: record's range",
            Code::RefcountClusterRange,
            Complains,
            |b| {
                refcount(b, |bytes| {
                    refcount_list_mut(bytes).records[0].r_cpos.set(1 << 33)
                });
            },
        ),
        (
            "refcount: records collide",
            Code::RefcountClusterCollision,
            Complains,
            |b| {
                refcount_leaf(b, |bytes| {
                    let list = refcount_list_mut(bytes);
                    list.records[3].r_cpos = list.records[2].r_cpos;
                });
            },
        ),
        ("refcount: leaves", Code::RefcountClusters, Same, |b| {
            let nr = root_of_refcounts(b, "sparse");
            b.edit(nr, Kind::RefcountBlock, |bytes| {
                RefcountBlock::of_mut(bytes).rf_clusters.set(9);
            });
        }),
        (
            "refcount: a leaf is empty",
            Code::RefcountListEmpty,
            Complains,
            |b| {
                refcount_leaf(b, |bytes| refcount_list_mut(bytes).header.rl_used.set(0));
            },
        ),
        ("refcount: bit", Code::SuballocBit, Silent, |b| {
            refcount(b, |bytes| {
                RefcountBlock::of_mut(bytes).rf_suballoc_bit.set(3)
            });
        }),
        (
            "xattr: block signature",
            Code::XattrBlockInvalid,
            Complains,
            |b| {
                let nr = xattr_block(b, "xblock");
                b.edit(nr, Kind::XattrBlock, |bytes| {
                    XattrBlock::of_mut(bytes).xb_signature[0] = 0
                });
            },
        ),
        (
            "xattr: block elsewhere",
            Code::XattrBlockInvalid,
            Complains,
            |b| {
                b.inode("xblock", |inode| inode.i_xattr_loc.set(1 << 50));
            },
        ),
        ("xattr: count", Code::XattrCountInvalid, Same, |b| {
            xblock_area(b, |bytes| header(bytes).xh_count.set(100));
        }),
        (
            "xattr: name offset",
            Code::XattrNameOffsetInvalid,
            Same,
            |b| {
                xblock_area(b, |bytes| entry(bytes, 0).xe_name_offset.set(5000));
            },
        ),
        ("xattr: location", Code::XattrLocationInvalid, Same, |b| {
            xblock_area(b, |bytes| entry(bytes, 0).xe_value_size.set(200));
        }),
        ("xattr: over another", Code::XattrValueInvalid, Same, |b| {
            xblock_area(b, |bytes| {
                let other = entry(bytes, 1).xe_name_offset;
                entry(bytes, 0).xe_name_offset = other;
            });
        }),
        ("xattr: hash", Code::XattrHashInvalid, Same, |b| {
            xblock_area(b, |bytes| entry(bytes, 0).xe_name_hash.set(7));
        }),
        (
            "xattr: hash in the inode",
            Code::XattrHashInvalid,
            Same,
            |b| {
                b.inode_block("xinline", |bytes| {
                    let at = bytes.len() - 256;
                    entry(&mut bytes[at..], 0).xe_name_hash.set(7);
                });
            },
        ),
        (
            "xattr: bucket count",
            Code::XattrBucketCountInvalid,
            Same,
            |b| {
                bucket(b, |bytes| header(bytes).xh_num_buckets.set(0));
            },
        ),
        (
            "xattr: free start",
            Code::XattrFreeStartInvalid,
            Same,
            |b| {
                bucket(b, |bytes| header(bytes).xh_free_start.set(4000));
            },
        ),
        (
            "xattr: value length",
            Code::XattrValueLenInvalid,
            Same,
            |b| {
                bucket(b, |bytes| header(bytes).xh_name_value_len.set(4));
            },
        ),
        ("xattr: order", Code::XattrOrder, Complains, |b| {
            bucket(b, |bytes| {
                let (one, two) = (*entry(bytes, 0), *entry(bytes, 1));
                *entry(bytes, 0) = two;
                *entry(bytes, 1) = one;
            });
        }),
        (
            "xattr: a value's clusters",
            Code::TreeClusters,
            Silent,
            |b| {
                let nr = b.ino("xlarge");
                let block = b.block(nr);
                let area = ondisk::XattrArea::inline(&block).unwrap();
                let offset = area.entries()[0].value_offset() + block.len() - area.bytes().len();
                b.edit(nr, Kind::Dinode, |bytes| {
                    ondisk::XattrValueRoot::at_mut(bytes, offset)
                        .xr_clusters
                        .set(9);
                });
            },
        ),
    ];
    run(&bench, damages);
}
