//! Every parser of `ondisk`: a block of some kind, geometry and number, its checksum repaired or not. What a
//! validation lets through is walked to the end.
#![no_main]

use std::hint::black_box;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use ondisk::jbd2;
use ondisk::quota::{self, GlobalInfo, LocalInfo, QuotaType};
use ondisk::*;

#[path = "../src/geometries.rs"]
mod geometries;

static GEOMETRIES: LazyLock<Vec<Geometry>> = LazyLock::new(geometries::make);

/// What every root of an extent tree lets one do.
fn extents(block: &[u8], root: RootKind) {
    let list = extent_list(block, root);
    for rec in list.used() {
        black_box((
            rec.block(),
            rec.end(list.depth()),
            rec.leaf_clusters(),
            rec.flags(),
        ));
    }
    for cpos in [0, 1, u32::MAX] {
        black_box(list.find(cpos));
    }
}

fn xattrs(area: &XattrArea<'_>, nr: BlockNr, geometry: &Geometry) {
    if area.validate(nr, geometry).is_err() {
        return;
    }
    for entry in area.entries() {
        black_box((area.name(entry), entry.namespace()));
        if let Some(XattrValue::Outside(value)) = area.value(entry) {
            for rec in value.list.used() {
                black_box((rec.block(), rec.end(value.list.depth()), rec.flags()));
            }
        }
    }
    black_box((area.gap(), area.find(XattrNamespace::User, b"name")));
}

fn directory(entries: DirBlock<'_>) {
    black_box((
        entries.find(b"name").is_ok(),
        entries.largest_room().is_ok(),
    ));
    let good = entries.check().is_ok();
    let count = entries.entries().take_while(Result::is_ok).count();
    assert!(good || count < 100_000);
}

fn dinode(block: &[u8], nr: BlockNr, geometry: &Geometry) {
    if Dinode::validate(block, nr, geometry).is_err() {
        return;
    }
    let d = Dinode::of(block);
    black_box((
        d.file_type(),
        d.links(),
        d.suballoc(),
        d.suballoc().group_of(nr),
        d.flags(),
    ));
    match d.body() {
        Body::LocalAlloc => drop(black_box(local_alloc(block).is_empty())),
        Body::TruncateLog => drop(black_box(truncate_log(block).used().len())),
        Body::Chains => {
            for chain in chain_list(block).used() {
                black_box(chain.first_group());
            }
        }
        Body::Inline => {
            let data = inline_data(block);
            if d.file_type() == Some(FileType::Directory) {
                directory(DirBlock::inline(data, nr));
            }
        }
        Body::FastSymlink => drop(black_box(fast_symlink(block).len())),
        Body::Extents => extents(block, RootKind::Dinode),
        _ => {}
    }
    if let Some(area) = XattrArea::inline(block) {
        xattrs(&area, nr, geometry);
    }
}

fn journal(block: &[u8], nr: BlockNr, kind: u8) {
    let wide = kind & 1 != 0;
    if jbd2::SuperBlock::validate(block, nr, 1 << 20).is_ok() {
        let raw = jbd2::SuperBlock::of(block);
        black_box((
            raw.is_wide(),
            raw.is_clean(),
            raw.next_block(raw.s_first.get()),
        ));
    }
    match jbd2::Header::read(block) {
        Some((jbd2::BlockType::Descriptor, _)) => {
            assert!(jbd2::tags(block, wide).count() <= block.len() / 8);
        }
        Some((jbd2::BlockType::Revoke, _)) => {
            if let Ok(blocks) = jbd2::revoked_blocks(block, wide, nr) {
                assert!(blocks.into_iter().count() <= block.len() / 4);
            }
        }
        Some((jbd2::BlockType::Commit, _)) => {
            let mut checksum = jbd2::Checksum::default();
            checksum.update(block);
            black_box(jbd2::CommitBlock::of(block).checksum_holds(checksum));
        }
        _ => {}
    }
}

fn quota_blocks(block: &[u8], nr: BlockNr) {
    for kind in [QuotaType::User, QuotaType::Group] {
        black_box(GlobalInfo::validate(block, nr, kind).is_ok());
        black_box(LocalInfo::validate(block, nr, kind).is_ok());
    }
    if quota::validate_chunk(block, nr).is_ok() {
        black_box(quota::local_chunk(block));
    }
    if quota::validate_tree_block(block, nr, 1000).is_ok() {
        black_box(quota::tree_children(block));
    }
    if quota::validate_leaf(block, nr, 1000).is_ok() {
        black_box(quota::global_leaf(block));
    }
    black_box(quota::local_entries(block));
}

fn group(block: &[u8], nr: BlockNr, geometry: &Geometry) {
    if GroupDesc::validate(block, nr, geometry).is_err() {
        return;
    }
    black_box((group_bitmap(block).len(), GroupDesc::of(block).next_group()));
    black_box((
        group_first_cluster(nr, geometry),
        group_extents(block, geometry).is_some(),
    ));
    for bit in [
        0,
        1,
        GroupDesc::of(block).bg_bits.get().saturating_sub(1),
        u16::MAX,
    ] {
        let place = group_bit_to_block(block, geometry, bit);
        black_box(place.and_then(|place| group_block_to_bit(block, geometry, place)));
    }
}

fuzz_target!(|data: &[u8]| {
    let [kind, how, n0, n1, n2, n3, bytes @ ..] = data else {
        return;
    };
    let geometry = &GEOMETRIES[usize::from(how % 4)];
    let nr = BlockNr(u32::from_le_bytes([*n0, *n1, *n2, *n3]).into());
    let size = geometry.block_size();
    let mut block = bytes[..bytes.len().min(size)].to_vec();
    block.resize(size, 0);
    let checked = match kind % 16 {
        0 => Kind::SuperBlock,
        1..4 => Kind::Dinode,
        4 => Kind::ExtentBlock,
        5 => Kind::GroupDesc,
        6 => Kind::DxRoot,
        7 => Kind::DxLeaf,
        8 => Kind::XattrBlock,
        9 => Kind::XattrBucket,
        10 => Kind::RefcountBlock,
        11 => Kind::DirBlock { trailer: true },
        12 => Kind::QuotaBlock,
        _ => Kind::Raw,
    };
    if checked == Kind::XattrBucket {
        block.resize(size.max(XATTR_BUCKET_BYTES), 0);
    }
    if how & 0x80 != 0 {
        checked.compute(&mut block);
    }
    // May repair a bit.
    black_box(checked.verify(&mut block, nr).is_ok());
    match checked {
        Kind::SuperBlock => {
            black_box(SuperBlock::parse_at(&block, nr).is_ok());
            let mut start = vec![0; PROBE_BYTES];
            let at = usize::from(how >> 2 & 7) * 1024;
            let end = (at + size).min(PROBE_BYTES);
            start[at..end].copy_from_slice(&block[..end - at]);
            if let Ok(probed) = probe(&start) {
                let geometry = probed.geometry;
                black_box((
                    geometry.total_blocks(),
                    geometry.total_bytes(),
                    geometry.read_only_because(),
                ));
            }
        }
        Kind::Dinode => dinode(&block, nr, geometry),
        Kind::ExtentBlock if ExtentBlock::validate(&block, nr, geometry).is_ok() => {
            extents(&block, RootKind::ExtentBlock);
        }
        Kind::GroupDesc => group(&block, nr, geometry),
        Kind::DxRoot if DxRoot::validate(&block, nr, geometry).is_ok() => {
            black_box((
                DxRoot::of(&block).suballoc(),
                DxRoot::entries(&block).used().len(),
            ));
            extents(&block, RootKind::DxRoot);
        }
        Kind::DxLeaf if DxLeaf::validate(&block, nr, geometry).is_ok() => {
            black_box(DxLeaf::entries(&block).used().len());
        }
        Kind::XattrBlock if XattrBlock::validate(&block, nr, geometry).is_ok() => {
            if XattrBlock::of(&block).is_indexed() {
                extents(&block, RootKind::XattrTree);
            } else {
                xattrs(&XattrBlock::area(&block), nr, geometry);
            }
        }
        Kind::XattrBucket if XattrBucket::validate(&block, nr, geometry).is_ok() => {
            xattrs(&XattrBucket::area(&block), nr, geometry);
        }
        Kind::RefcountBlock if RefcountBlock::validate(&block, nr, geometry).is_ok() => {
            if RefcountBlock::of(&block).is_tree() {
                extents(&block, RootKind::Refcount);
            } else {
                for rec in refcount_list(&block).used() {
                    black_box(rec.end());
                }
            }
        }
        Kind::DirBlock { trailer } => {
            directory(DirBlock::new(&block, nr, trailer));
            directory(DirBlock::new(&block, nr, false));
            black_box(DirTrailer::validate(&block, nr, BlockNr(nr.0 ^ 1)).is_ok());
        }
        Kind::QuotaBlock => quota_blocks(&block, nr),
        Kind::Raw => {
            journal(&block, nr, *kind);
            if let Ok(map) = slot_map(&block, nr, geometry) {
                black_box((map.taken().count(), map.first_free(), map.slot_of(3)));
            }
            black_box(HeartbeatBlock::validate(&block, nr, 3).is_ok());
        }
        _ => {}
    }
});
