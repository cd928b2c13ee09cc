//! What every kind of block has in common: a new one is valid, one of another place or volume is not, and no bytes
//! whatever make a validation or a view panic.

use ondisk::feature::{Compat, ExtentFlags, Incompat, InodeFlags, RoCompat};
use ondisk::jbd2;
use ondisk::*;
use proptest::prelude::*;

const NR: BlockNr = BlockNr(1234);
const SUBALLOC: Suballoc = Suballoc {
    slot: SlotNr(1),
    bit: 7,
    group: BlockNr(1227),
};

fn geometry(block_size_bits: u32) -> Geometry {
    Geometry {
        block_size_bits,
        cluster_size_bits: 12,
        total_clusters: 100_000,
        max_slots: 4,
        compat: Compat::all(),
        incompat: Incompat::SUPPORTED,
        ro_compat: RoCompat::SUPPORTED,
        fs_generation: Generation(0xFEED_BEEF),
        uuid: [7; 16],
        uuid_hash: 0x93e3_8655,
        dx_seed: [1, 2, 3, 0x93e3_8655],
        xattr_inline_size: 256,
        first_cluster_group: BlockNr(4),
        root_dir: BlockNr(10),
        system_dir: BlockNr(11),
        label: [0; 64],
        state: 0,
        cluster_info: None,
    }
}

fn new_dinode(kind: FileType, inline_xattr_bytes: u16, inline_data: bool) -> NewDinode {
    NewDinode {
        nr: NR,
        suballoc: SUBALLOC,
        generation: Generation(5),
        mode: kind.mode_bits() | 0o644,
        uid: 1,
        gid: 2,
        links: 70_000,
        rdev: 0,
        time: (1, 2),
        inline_xattr_bytes,
        inline_data,
    }
}

type Validate = fn(&[u8], BlockNr, &Geometry) -> Result<(), Corrupt>;

/// A new block of each kind, with its validation.
fn new_blocks(geometry: &Geometry) -> Vec<(&'static str, Validate, Vec<u8>)> {
    let mut blocks: Vec<(&'static str, Validate, Vec<u8>)> = Vec::new();
    let mut add = |name, validate: Validate, make: &dyn Fn(&mut [u8])| {
        let mut block = vec![0xA5; geometry.block_size()];
        make(&mut block);
        blocks.push((name, validate, block));
    };
    for (name, kind, xattr, inline) in [
        ("file", FileType::Regular, 0, false),
        ("file with xattrs", FileType::Regular, 256, false),
        ("inline file with xattrs", FileType::Regular, 256, true),
        ("fifo", FileType::Fifo, 0, false),
    ] {
        let new = new_dinode(kind, xattr, inline);
        add(name, Dinode::validate, &|block| {
            Dinode::init(block, geometry, &new)
        });
    }
    add("directory", Dinode::validate, &|block| {
        Dinode::init(block, geometry, &new_dinode(FileType::Directory, 0, true));
        init_dot_entries(inline_data_mut(block), NR, BlockNr(10));
        let size = inline_data(block).len() as u64;
        Dinode::of_mut(block).i_size.set(size);
    });
    add("symlink", Dinode::validate, &|block| {
        Dinode::init(block, geometry, &new_dinode(FileType::Symlink, 256, false));
        assert!(set_fast_symlink(block, b"where/to"));
    });
    let system = |block: &mut [u8], flags: InodeFlags| {
        Dinode::init(block, geometry, &new_dinode(FileType::Regular, 0, false));
        Dinode::of_mut(block).set_flags(flags | InodeFlags::VALID | InodeFlags::SYSTEM);
    };
    add("allocator", Dinode::validate, &|block| {
        system(block, InodeFlags::BITMAP | InodeFlags::CHAIN);
        init_chain_list(block, 512, 8);
    });
    add("truncate log", Dinode::validate, &|block| {
        system(block, InodeFlags::DEALLOC);
        init_truncate_log(block);
    });
    add("local alloc", Dinode::validate, &|block| {
        system(block, InodeFlags::BITMAP | InodeFlags::LOCAL_ALLOC);
        init_local_alloc(block);
    });
    add("extent block", ExtentBlock::validate, &|block| {
        ExtentBlock::init(block, NR, geometry, SUBALLOC, 2);
    });
    let group = NewGroup {
        nr: NR,
        parent: BlockNr(20),
        chain: 3,
        next: BlockNr(99),
        suballocator: true,
    };
    add("group", GroupDesc::validate, &|block| {
        GroupDesc::init(block, geometry, &group, 2048)
    });
    add("discontiguous group", GroupDesc::validate, &|block| {
        let runs = [(NR, 2), (BlockNr(8000), 5)];
        assert!(GroupDesc::init_discontiguous(
            block, geometry, &group, 8, &runs
        ));
    });
    for inline in [false, true] {
        add("index root", DxRoot::validate, &|block| {
            DxRoot::init(block, NR, geometry, SUBALLOC, BlockNr(10), inline);
        });
    }
    add("index leaf", DxLeaf::validate, &|block| {
        DxLeaf::init(block, NR, geometry)
    });
    for indexed in [false, true] {
        add("xattr block", XattrBlock::validate, &|block| {
            XattrBlock::init(block, NR, geometry, SUBALLOC, indexed);
        });
    }
    for new in [
        NewRefcount::Root,
        NewRefcount::Leaf {
            root: BlockNr(5),
            cpos: 77,
        },
    ] {
        add("refcount block", RefcountBlock::validate, &|block| {
            RefcountBlock::init(block, NR, geometry, SUBALLOC, Generation(1), new);
        });
    }
    add("directory block", validate_dir, &|block| {
        let end = entries_end(block.len(), true);
        init_free_area(&mut block[..end]);
        DirTrailer::init(block, NR, BlockNr(10), end as u16);
    });
    blocks
}

fn validate_dir(block: &[u8], nr: BlockNr, geometry: &Geometry) -> Result<(), Corrupt> {
    DirBlock::validate(block, nr, geometry, BlockNr(10), true)
}

#[test]
fn new_blocks_are_valid_and_know_their_place() {
    for bits in 9..=12 {
        let geometry = geometry(bits);
        for (name, validate, block) in new_blocks(&geometry) {
            assert_eq!(validate(&block, NR, &geometry), Ok(()), "{name}, 2^{bits}");
            let error = validate(&block, BlockNr(NR.0 + 1), &geometry).expect_err(name);
            assert_eq!(error.why, Why::OwnBlock { found: NR.0 }, "{name}");
            let other = Geometry {
                fs_generation: Generation(1),
                ..geometry.clone()
            };
            if name != "directory block" {
                let error = validate(&block, NR, &other).expect_err(name);
                assert!(
                    matches!(error.why, Why::Generation { .. }),
                    "{name}: {error}"
                );
            }
            let zeros = vec![0; block.len()];
            let error = validate(&zeros, NR, &geometry).expect_err(name);
            assert!(
                matches!(error.why, Why::Signature { .. }),
                "{name}: {error}"
            );
        }
    }
}

/// One damage a rule, each to a block that is valid without it.
#[test]
fn each_rule_of_an_inode_is_held() {
    let geometry = geometry(12);
    let blocks = new_blocks(&geometry);
    let damage = |name: &str, field: &str, change: &dyn Fn(&mut [u8])| {
        let (_, validate, block) = blocks
            .iter()
            .find(|(kind, ..)| *kind == name)
            .expect("a kind");
        let mut block = block.clone();
        change(&mut block);
        let error = validate(&block, NR, &geometry)
            .expect_err(field)
            .to_string();
        assert!(error.contains(field), "{field}: {error}");
    };
    damage("file", "i_flags", &|block| {
        Dinode::of_mut(block).i_flags.set(0)
    });
    damage("file", "i_mode", &|block| {
        Dinode::of_mut(block).i_mode.set(0o644)
    });
    damage("file", "i_rdev", &|block| Dinode::of_mut(block).set_rdev(1));
    damage("file", "i_suballoc_slot", &|block| {
        Dinode::of_mut(block).i_suballoc_slot.set(4)
    });
    damage("file", "i_orphaned_slot", &|block| {
        let dinode = Dinode::of_mut(block);
        dinode.set_flags(dinode.flags() | InodeFlags::ORPHANED);
        dinode.i_orphaned_slot.set(4);
    });
    damage("file", "i_dio_orphaned_slot", &|block| {
        let dinode = Dinode::of_mut(block);
        dinode.set_flags(dinode.flags() | InodeFlags::DIO_ORPHANED);
        dinode.i_dio_orphaned_slot.set(4);
    });
    damage("file", "i_refcount_loc", &|block| {
        Dinode::of_mut(block).i_dyn_features.set(0x10)
    });
    damage("file", "l_count", &|block| {
        extent_list_mut(block, RootKind::Dinode)
            .header
            .l_count
            .set(0)
    });
    damage("file", "l_count", &|block| {
        extent_list_mut(block, RootKind::Dinode)
            .header
            .l_count
            .set(244)
    });
    damage("file with xattrs", "l_count", &|block| {
        extent_list_mut(block, RootKind::Dinode)
            .header
            .l_count
            .set(228);
    });
    damage("file", "l_next_free_rec", &|block| {
        extent_list_mut(block, RootKind::Dinode)
            .header
            .l_next_free_rec
            .set(244);
    });
    damage("file with xattrs", "i_xattr_inline_size", &|block| {
        Dinode::of_mut(block).i_xattr_inline_size.set(8);
    });
    damage("file with xattrs", "xh_count", &|block| {
        let at = block.len() - 256;
        block[at] = 16;
    });
    damage("inline file with xattrs", "i_clusters", &|block| {
        Dinode::of_mut(block).i_clusters.set(1)
    });
    damage("inline file with xattrs", "id_count", &|block| {
        set_inline_data_count(block, 3641)
    });
    damage("inline file with xattrs", "i_size", &|block| {
        Dinode::of_mut(block).i_size.set(3641)
    });
    damage("directory", "i_size", &|block| {
        let dinode = Dinode::of_mut(block);
        dinode.i_dyn_features.set(0);
    });
    damage("symlink", "i_size", &|block| {
        Dinode::of_mut(block).i_size.set(9)
    });
    damage("symlink", "i_size", &|block| {
        Dinode::of_mut(block).i_size.set(1 << 40)
    });
    damage("allocator", "cl_count", &|block| {
        chain_list_mut(block).header.cl_count.set(242)
    });
    damage("allocator", "cl_next_free_rec", &|block| {
        chain_list_mut(block).header.cl_next_free_rec.set(244);
    });
    damage("allocator", "cl_bpc", &|block| {
        chain_list_mut(block).header.cl_bpc.set(0)
    });
    damage("truncate log", "tl_used", &|block| {
        truncate_log_mut(block).header.tl_used.set(488)
    });
    damage("local alloc", "la_size", &|block| {
        local_alloc_mut(block).header.la_size.set(3889)
    });
    damage("local alloc", "i_used", &|block| {
        Dinode::of_mut(block).set_used(1)
    });
    damage("group", "bg_free_bits_count", &|block| {
        GroupDesc::of_mut(block).bg_free_bits_count.set(2049)
    });
    damage("group", "bg_bits", &|block| {
        GroupDesc::of_mut(block).bg_bits.set(2049)
    });
    damage("discontiguous group", "a part", &|block| {
        extent_list_mut(block, RootKind::GroupDesc).records[1]
            .e_cpos
            .set(3);
    });
    damage("index leaf", "de_num_used", &|block| {
        DxLeaf::entries_mut(block).header.de_num_used.set(254)
    });
    damage("refcount block", "rl_used", &|block| {
        refcount_list_mut(block).header.rl_used.set(248)
    });
}

#[test]
fn bits_of_a_discontiguous_group_run_through_its_parts() {
    let geometry = geometry(9); // eight blocks a cluster
    let group = NewGroup {
        nr: NR,
        parent: BlockNr(20),
        chain: 0,
        next: BlockNr::NONE,
        suballocator: true,
    };
    let mut block = vec![0; 512];
    assert!(GroupDesc::init_discontiguous(
        &mut block,
        &geometry,
        &group,
        8,
        &[(NR, 2), (BlockNr(8000), 5)]
    ));
    assert_eq!(GroupDesc::of(&block).bg_bits.get(), 56);
    for (bit, nr) in [(0, 1234), (15, 1249), (16, 8000), (55, 8039)] {
        assert_eq!(
            group_bit_to_block(&block, &geometry, bit),
            Some(BlockNr(nr))
        );
        assert_eq!(
            group_block_to_bit(&block, &geometry, BlockNr(nr)),
            Some(bit)
        );
    }
    assert_eq!(group_bit_to_block(&block, &geometry, 56), None);
    for nr in [1233, 1250, 7999, 8040] {
        assert_eq!(group_block_to_bit(&block, &geometry, BlockNr(nr)), None);
    }
    let many = vec![(NR, 1); 12];
    assert!(
        !GroupDesc::init_discontiguous(&mut block, &geometry, &group, 8, &many),
        "eleven records fit"
    );
}

#[test]
fn slot_maps_of_both_forms_say_who_is_where() {
    for incompat in [Incompat::empty(), Incompat::EXTENDED_SLOT_MAP] {
        let geometry = Geometry {
            incompat,
            ..geometry(9)
        };
        let mut bytes = vec![0; 512];
        let mut map = slot_map_mut(&mut bytes, NR, &geometry).expect("long enough");
        for slot in 0..4 {
            map.set(SlotNr(slot), None);
        }
        map.set(SlotNr(0), Some(9));
        map.set(SlotNr(2), Some(0));
        let map = slot_map(&bytes, NR, &geometry).expect("long enough");
        assert_eq!(
            map.taken().collect::<Vec<_>>(),
            [(SlotNr(0), 9), (SlotNr(2), 0)]
        );
        assert_eq!(
            (map.first_free(), map.slot_of(0)),
            (Some(SlotNr(1)), Some(SlotNr(2)))
        );
        assert_eq!((map.node(SlotNr(4)), map.len()), (None, 4));
        assert!(slot_map(&bytes[..7], NR, &geometry).is_err());
    }
}

#[test]
fn a_truncate_log_merges_and_fills() {
    let mut block = vec![0; 512];
    init_truncate_log(&mut block);
    let mut log = truncate_log_mut(&mut block);
    assert!(log.append(ClusterNr(10), 5) && log.append(ClusterNr(15), 2));
    assert_eq!(
        log.as_ref().used(),
        [TruncateRec {
            t_start: 10.into(),
            t_clusters: 7.into()
        }]
    );
    for index in 1..39 {
        assert!(log.append(ClusterNr(100 * index), 1));
    }
    assert!(!log.append(ClusterNr(9999), 1), "full");
    assert!(log.append(ClusterNr(3801), 1), "but the last one can grow");
    assert_eq!(
        log.pop()
            .map(|rec| (rec.t_start.get(), rec.t_clusters.get())),
        Some((3800, 2))
    );
    assert_eq!(log.as_ref().used().len(), 38);
}

/// Calls everything that reads a block; what it says does not matter here.
fn read_in_every_way(block: &[u8], geometry: &Geometry) {
    for (_, validate, _) in new_blocks(geometry) {
        let _ = validate(block, NR, geometry);
    }
    for root in [
        RootKind::Dinode,
        RootKind::ExtentBlock,
        RootKind::DxRoot,
        RootKind::XattrTree,
        RootKind::Refcount,
        RootKind::GroupDesc,
    ] {
        let list = extent_list(block, root);
        assert!(list.records.len() <= root.capacity(block));
        let _ = (
            list.find(77),
            list.is_full(),
            list.used().iter().map(|rec| rec.end(list.depth())).max(),
        );
    }
    let areas = [
        XattrArea::inline(block),
        Some(XattrBlock::area(block)),
        Some(XattrBucket::area(block)),
    ];
    for area in areas.into_iter().flatten() {
        let _ = (area.gap(), area.find(XattrNamespace::User, b"a"));
        for entry in area.entries() {
            let _ = (area.name(entry), area.value(entry), entry.name_value_len());
        }
    }
    let _ = XattrBucket::validate(block, NR, geometry);
    let _ = (
        chain_list(block).used(),
        truncate_log(block).used(),
        local_alloc(block).is_empty(),
    );
    let _ = (
        inline_data(block),
        fast_symlink(block),
        Dinode::of(block).body(),
        group_bitmap(block),
    );
    let _ = (
        DxRoot::entries(block).used(),
        DxLeaf::entries(block).is_full(),
        refcount_list(block).used(),
    );
    for bit in [0, 1, 100, u16::MAX] {
        let _ = group_bit_to_block(block, geometry, bit);
    }
    let _ = group_block_to_bit(block, geometry, BlockNr(1300));
    for trailer in [false, true] {
        let _ = DirBlock::new(block, NR, trailer).largest_room();
    }
    let _ = (
        SuperBlock::parse(block),
        SuperBlock::parse_at(block, NR),
        probe(block),
    );
    let _ = HeartbeatBlock::validate(block, NR, 3);
    let _ = (
        slot_map(block, NR, geometry).map(|map| map.taken().count()),
        Suballoc::group_of(&SUBALLOC, NR),
    );
    for kind in [quota::QuotaType::User, quota::QuotaType::Group] {
        let _ = quota::GlobalInfo::validate(block, NR, kind);
        let _ = quota::LocalInfo::validate(block, NR, kind);
    }
    let _ = quota::validate_tree_block(block, NR, 100);
    let _ = (
        quota::validate_leaf(block, NR, 100),
        quota::validate_chunk(block, NR),
    );
    let _ = jbd2::SuperBlock::validate(block, NR, 100);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn random_blocks_make_nothing_panic(bits in 9u32..=12, seed in prop::collection::vec(any::<u8>(), 512)) {
        let geometry = geometry(bits);
        let block: Vec<u8> = seed.iter().copied().cycle().take(geometry.block_size()).collect();
        read_in_every_way(&block, &geometry);
    }

    /// Damage to a valid block gets past the first rules, unlike noise.
    #[test]
    fn damaged_blocks_make_nothing_panic(
        bits in 9u32..=12,
        kind in any::<prop::sample::Index>(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        low in any::<bool>(),
    ) {
        let geometry = geometry(bits);
        let blocks = new_blocks(&geometry);
        let (_, validate, mut block) = blocks[kind.index(blocks.len())].clone();
        // Half of the time in the part where the fixed fields and list headers are.
        let reach = if low { 0x180 } else { block.len() };
        for (place, value) in damage {
            block[place.index(reach)] = value;
        }
        let _ = validate(&block, NR, &geometry);
        read_in_every_way(&block, &geometry);
    }

    #[test]
    fn an_extent_list_is_a_short_vector(steps in prop::collection::vec((any::<bool>(), 0usize..40, any::<u32>()), 0..80)) {
        let geometry = geometry(9);
        let mut block = vec![0; 512];
        ExtentBlock::init(&mut block, NR, &geometry, SUBALLOC, 0);
        let mut model: Vec<u32> = Vec::new();
        for (insert, index, cpos) in steps {
            let mut list = extent_list_mut(&mut block, RootKind::ExtentBlock);
            if insert {
                let rec = ExtentRec::leaf(cpos, 9, NR, ExtentFlags::UNWRITTEN);
                let fits = index <= model.len() && model.len() < 28;
                prop_assert_eq!(list.insert(index, rec), fits);
                if fits {
                    model.insert(index, cpos);
                }
            } else {
                let removed = list.remove(index).map(|rec| rec.e_cpos.get());
                let expected = (index < model.len()).then(|| model.remove(index));
                prop_assert_eq!(removed, expected);
            }
            let list = list.as_ref();
            prop_assert!(list.used().iter().map(|rec| rec.e_cpos.get()).eq(model.iter().copied()));
            prop_assert!(list.records[model.len()..].iter().all(|rec| *rec == ExtentRec::zeroed()));
        }
        prop_assert_eq!(ExtentBlock::validate(&block, NR, &geometry), Ok(()));
    }
}
