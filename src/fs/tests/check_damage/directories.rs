//! Damages to entries, trailers and indexes of directories, and to orphan directories.

use super::*;

fn index_root(b: &Bench, name: &str) -> u64 {
    Dinode::of(&b.block(b.ino(name))).i_dx_root.get()
}

/// The first entry of a name in an index leaf: the dots come before it.
fn of_a_name(bytes: &[u8]) -> usize {
    let list = DxLeaf::entries(bytes);
    let used = list.used().iter();
    used.enumerate()
        .find(|(_, entry)| entry.dx_major_hash.get() != 0)
        .map(|(at, _)| at)
        .unwrap()
}

fn index_leaf(b: &mut Bench, change: impl FnOnce(&mut [u8])) {
    let block = b.block(index_root(b, "many"));
    let first = b.leaves(&block, RootKind::DxRoot)[0].block().0;
    b.edit(first, Kind::DxLeaf, change);
}

fn trailer(b: &mut Bench, change: impl FnOnce(&mut DirTrailer)) {
    let nr = b.dir_blocks(b.ino("some"))[0];
    b.edit(nr, Kind::DirBlock { trailer: true }, |bytes| {
        change(DirTrailer::of_mut(bytes))
    });
}

fn name(at: usize) -> String {
    format!("{at:03}{}", "n".repeat(5))
}

/// Another entry behind the dots of a directory that has no other in its first block.
fn add_entry(b: &mut Bench, dir: &str, ino: u64, kind: u8, name: &[u8]) {
    b.dirent(dir, "..", |rec| {
        let all = usize::from(u16::from_le_bytes([rec[8], rec[9]]));
        assert!(all > 64, "no room in {dir}");
        ondisk::set_rec_len(rec, 0, 16);
        ondisk::write_dirent(rec, 16, BlockNr(ino), all - 16, kind, name);
    });
}

#[test]
fn directories() {
    let bench = furnish(4096, 4096, 48, ALL);
    let damages: &[Damage] = &[
        ("entry: length", Code::DirentLength, Same, |b| {
            b.dirent("few", &name(1), |rec| rec[8] = 7);
        }),
        ("entry: length zero", Code::DirentLength, Same, |b| {
            b.dirent("few", &name(1), |rec| rec[8..10].fill(0));
        }),
        (
            "entry: length past the end",
            Code::DirentLength,
            Same,
            |b| {
                b.dirent("few", &name(1), |rec| rec[8..10].fill(0xFC));
            },
        ),
        ("dot: another inode", Code::DirentDotInode, Same, |b| {
            let other = b.ino("some");
            b.dirent("few", ".", |rec| {
                rec[..8].copy_from_slice(&other.to_le_bytes())
            });
        }),
        ("dot: another name", Code::DirentNotDotty, Same, |b| {
            b.dirent("few", ".", |rec| rec[12] = b'x');
        }),
        ("dot: too long", Code::DirentDotExcess, Same, |b| {
            b.dirent("few", ".", |rec| rec[8] = 32);
        }),
        ("dot: twice", Code::DirentDottyDup, Same, |b| {
            b.dirent("few", &name(1), |rec| {
                rec[10] = 1;
                rec[12] = b'.';
            });
        }),
        ("dotdot: not the parent", Code::DirDotdot, Same, |b| {
            let other = b.ino("some");
            b.dirent("few", "..", |rec| {
                rec[..8].copy_from_slice(&other.to_le_bytes())
            });
        }),
        ("entry: no name", Code::DirentZero, Same, |b| {
            b.dirent("few", &name(1), |rec| rec[10] = 0);
        }),
        ("entry: slash", Code::DirentNameChars, Same, |b| {
            b.dirent("few", &name(1), |rec| rec[12] = b'/');
        }),
        ("entry: range", Code::DirentInodeRange, Same, |b| {
            b.dirent("few", &name(1), |rec| rec[7] = 1);
        }),
        ("entry: a free inode", Code::DirentInodeFree, Same, |b| {
            let (nr, bit) = b.free_bit("inode_alloc:0000");
            let free = nr + u64::from(bit);
            b.dirent("few", &name(1), |rec| {
                rec[..8].copy_from_slice(&free.to_le_bytes())
            });
        }),
        (
            "entry: no inode at all",
            Code::DirentInodeFree,
            Complains,
            |b| {
                let other = b.first_group("global_bitmap");
                b.dirent("few", &name(1), |rec| {
                    rec[..8].copy_from_slice(&other.to_le_bytes())
                });
            },
        ),
        ("entry: type", Code::DirentType, Same, |b| {
            b.dirent("few", &name(1), |rec| rec[11] = 7);
        }),
        ("entry: name twice", Code::DirentDuplicate, Same, |b| {
            b.dirent("few", &name(1), |rec| rec[14] = b'2');
        }),
        ("entry: gone", Code::InodeNotConnected, Same, |b| {
            b.dirent("few", &name(1), |rec| rec[..8].fill(0));
        }),
        (
            "entry: a directory twice",
            Code::DirParentDup,
            Complains,
            |b| {
                let below = b.ino("below");
                b.dirent("few", &name(1), |rec| {
                    rec[..8].copy_from_slice(&below.to_le_bytes());
                    rec[11] = 2;
                });
            },
        ),
        (
            "directory: not connected",
            Code::DirNotConnected,
            Same,
            |b| {
                b.dirent("above", "below", |rec| rec[..8].fill(0));
            },
        ),
        (
            "directory: a circle",
            Code::DirNotConnected,
            Other("DIR_DOTDOT"),
            |b| {
                // "above" is in "below" and nowhere else.
                let above = b.ino("above");
                b.dirent("/", "above", |rec| rec[..8].fill(0));
                add_entry(b, "below", above, 2, b"above");
            },
        ),
        (
            "trailer: signature",
            Code::DirTrailerInvalid,
            Complains,
            |b| {
                trailer(b, |trailer| trailer.db_signature[0] = b'X');
            },
        ),
        ("trailer: inode", Code::DirTrailerInode, Same, |b| {
            trailer(b, |trailer| trailer.db_compat_inode.set(7));
        }),
        ("trailer: name", Code::DirTrailerNameLen, Same, |b| {
            trailer(b, |trailer| trailer.db_compat_name_len = 7);
        }),
        ("trailer: length", Code::DirTrailerRecLen, Same, |b| {
            trailer(b, |trailer| trailer.db_compat_rec_len.set(60));
        }),
        ("trailer: own block", Code::DirTrailerBlkno, Same, |b| {
            trailer(b, |trailer| trailer.db_blkno.set(7));
        }),
        ("trailer: parent", Code::DirTrailerParentInode, Same, |b| {
            trailer(b, |trailer| trailer.db_parent_dinode.set(7));
        }),
        ("trailer: list of holes", Code::DirFreeList, Silent, |b| {
            trailer(b, |trailer| trailer.db_free_next.set(7777));
        }),
        ("index: an entry gone", Code::DxLookupFailed, Same, |b| {
            index_leaf(b, |bytes| {
                let at = of_a_name(bytes);
                DxLeaf::entries_mut(bytes).remove(at).unwrap();
            });
        }),
        (
            "index: another block",
            Code::DxLookupFailed,
            Complains,
            |b| {
                index_leaf(b, |bytes| {
                    let at = of_a_name(bytes);
                    let list = DxLeaf::entries_mut(bytes);
                    let hash = list.records[at].hash();
                    list.records[at] = DxEntry::new(hash, BlockNr(7777));
                });
            },
        ),
        (
            "index: another block for the dots",
            Code::DxLookupFailed,
            Same,
            |b| {
                index_leaf(b, |bytes| {
                    let list = DxLeaf::entries_mut(bytes);
                    assert_eq!(list.records[0].dx_major_hash.get(), 0);
                    let hash = list.records[0].hash();
                    list.records[0] = DxEntry::new(hash, BlockNr(7777));
                });
            },
        ),
        ("index: another hash", Code::DxLookupFailed, Same, |b| {
            index_leaf(b, |bytes| {
                let at = of_a_name(bytes);
                DxLeaf::entries_mut(bytes).records[at].dx_major_hash.set(7);
            });
        }),
        (
            "index: leaf's signature",
            Code::DxTreeCorrupt,
            Complains,
            |b| {
                index_leaf(b, |bytes| DxLeaf::of_mut(bytes).dl_signature[0] = b'X');
            },
        ),
        (
            "index: root's signature",
            Code::DxTreeCorrupt,
            Complains,
            |b| {
                let nr = index_root(b, "many");
                b.edit(nr, Kind::DxRoot, |bytes| {
                    DxRoot::of_mut(bytes).dr_signature[0] = b'X'
                });
            },
        ),
        (
            "index: an entry gone from the root",
            Code::DxLookupFailed,
            Same,
            |b| {
                let nr = index_root(b, "some");
                b.edit(nr, Kind::DxRoot, |bytes| {
                    assert!(DxRoot::of(bytes).is_inline());
                    DxRoot::entries_mut(bytes).remove(9).unwrap();
                });
            },
        ),
        ("index: count", Code::DxEntryCount, Silent, |b| {
            let nr = index_root(b, "many");
            b.edit(nr, Kind::DxRoot, |bytes| {
                DxRoot::of_mut(bytes).dr_num_entries.set(7)
            });
        }),
        ("index: not there", Code::DxTreeMissing, Same, |b| {
            b.inode("some", |inode| {
                inode.set_dyn_features(inode.dyn_features() - DynFeatures::INDEXED_DIR);
                inode.i_dx_root.set(0);
            });
        }),
        ("lost+found: gone", Code::LostfoundMissing, Same, |b| {
            b.dirent("/", "lost+found", |rec| rec[12] = b'L');
        }),
        (
            "orphan directory: gone",
            Code::OrphanDirMissing,
            Complains,
            |b| {
                let system = b.geometry.system_dir.0;
                b.inodes.insert("//".into(), system);
                b.dirent("//", "orphan_dir:0001", |rec| rec[12] = b'O');
            },
        ),
        (
            "orphan directory: not an orphan",
            Code::InodeOrphaned,
            Complains,
            |b| {
                let ino = b.ino("inline");
                let entry = format!("{ino:016x}");
                add_entry(b, "orphan_dir:0000", ino, 1, entry.as_bytes());
            },
        ),
    ];
    run(&bench, damages);
}
