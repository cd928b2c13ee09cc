//! What is written is read back, and nothing that is read makes a panic.

use super::*;
use crate::BlockNr;
use proptest::prelude::*;

const UUID: [u8; 16] = *b"0123456789abcdef";

#[test]
fn a_full_descriptor_has_as_many_tags_as_announced() {
    for size in [512, 1024, 2048, 4096] {
        for wide in [false, true] {
            let mut block = vec![0xFF; size];
            let mut writer = DescriptorWriter::new(&mut block, Tid(7), UUID, wide);
            let mut count = 0;
            while writer.push(BlockNr(1000 + count), count % 3 == 0) {
                count += 1;
            }
            writer.finish();
            assert_eq!(
                count as usize,
                tags_per_descriptor(size, wide),
                "{size} {wide}"
            );
            assert_eq!(Header::read(&block), Some((BlockType::Descriptor, Tid(7))));
            let found: Vec<_> = tags(&block, wide).collect();
            assert_eq!(found.len() as u64, count);
            for (index, tag) in (0..).zip(&found) {
                assert_eq!(tag.nr, BlockNr(1000 + index));
                assert_eq!(tag.is_escaped(), index % 3 == 0);
                assert_eq!(tag.flags & FLAG_LAST_TAG != 0, index + 1 == count);
                assert_eq!(tag.flags & FLAG_SAME_UUID != 0, index > 0);
            }
        }
    }
}

/// The bytes themselves, from the format's description.
#[test]
fn tags_lie_where_linux_looks_for_them() {
    let mut block = vec![0; 512];
    let mut writer = DescriptorWriter::new(&mut block, Tid(0x0102_0304), UUID, true);
    assert!(writer.push(BlockNr(0x11_2233_4455), false) && writer.push(BlockNr(6), true));
    writer.finish();
    assert_eq!(
        block[..12],
        [0xC0, 0x3B, 0x39, 0x98, 0, 0, 0, 1, 1, 2, 3, 4]
    );
    assert_eq!(
        block[12..24],
        [0x22, 0x33, 0x44, 0x55, 0, 0, 0, 0, 0, 0, 0, 0x11]
    );
    assert_eq!(block[24..40], UUID);
    assert_eq!(block[40..52], [0, 0, 0, 6, 0, 0, 0, 1 | 2 | 8, 0, 0, 0, 0]);
    assert!(block[52..].iter().all(|&byte| byte == 0));
}

#[test]
fn revokes_come_back() {
    for wide in [false, true] {
        let mut block = vec![0; 1024];
        let mut writer = RevokeWriter::new(&mut block, Tid(9), wide);
        let mut count = 0;
        while writer.push(BlockNr(0x0100_0000 + count)) {
            count += 1;
        }
        assert_eq!(count as usize, revokes_per_block(1024, wide));
        assert_eq!(Header::read(&block), Some((BlockType::Revoke, Tid(9))));
        let found: Vec<_> = revoked_blocks(&block, wide, BlockNr(0))
            .expect("sound")
            .collect();
        assert!(
            found
                .into_iter()
                .eq((0..count).map(|index| BlockNr(0x0100_0000 + index)))
        );
        RevokeHeader::of_mut(&mut block).r_count.set(1025);
        assert!(revoked_blocks(&block, wide, BlockNr(0)).is_err());
        RevokeHeader::of_mut(&mut block).r_count.set(3);
        assert_eq!(
            revoked_blocks(&block, wide, BlockNr(0))
                .expect("too short to name any")
                .count(),
            0
        );
    }
}

#[test]
fn commits_know_their_transaction() {
    let mut sum = Checksum::default();
    sum.update(b"123456789");
    assert_eq!(
        sum.value(),
        !0xFC89_1918,
        "CRC-32/BZIP2, whose end is inverted"
    );
    let mut block = vec![0; 512];
    CommitBlock::init(&mut block, Tid(5), (10, 20), Some(sum));
    assert_eq!(Header::read(&block), Some((BlockType::Commit, Tid(5))));
    let commit = CommitBlock::of(&block);
    assert_eq!(
        (commit.h_commit_sec.get(), commit.h_commit_nsec.get()),
        (10, 20)
    );
    assert!(commit.checksum_holds(sum) && !commit.checksum_holds(Checksum::default()));
    CommitBlock::init(&mut block, Tid(5), (10, 20), None);
    assert!(
        CommitBlock::of(&block).checksum_holds(sum),
        "none was written"
    );
}

#[test]
fn escaping_is_undone() {
    let mut data = vec![0xAB; 512];
    assert!(!escape(&mut data));
    data[..4].copy_from_slice(&[0xC0, 0x3B, 0x39, 0x98]);
    let original = data.clone();
    assert!(escape(&mut data) && data[..4] == [0; 4]);
    unescape(&mut data);
    assert_eq!(data, original);
}

#[test]
fn transactions_are_ordered_around_the_end() {
    assert!(Tid(1).is_after(Tid(u32::MAX)) && !Tid(u32::MAX).is_after(Tid(1)));
    assert!(Tid(4).is_at_or_after(Tid(4)) && !Tid(4).is_after(Tid(4)));
    assert_eq!(Tid(u32::MAX).next(), Tid(0));
}

#[test]
fn a_new_superblock_is_valid_and_each_damage_is_noticed() {
    let new = NewJournal {
        blocks: 1024,
        uuid: UUID,
        compat: JournalCompat::empty(),
        incompat: JournalIncompat::REVOKE,
    };
    let mut good = vec![0; 4096];
    SuperBlock::init(&mut good, &new);
    SuperBlock::validate(&good, BlockNr(77), 1024).expect("just made");
    let this = SuperBlock::of(&good);
    assert!(this.is_clean() && !this.is_wide() && this.sequence() == Tid(1));
    assert_eq!((this.next_block(5), this.next_block(1023)), (6, 1));
    assert!(
        SuperBlock::validate(&good, BlockNr(77), 1023).is_err(),
        "longer than its file"
    );
    let damages: [fn(&mut SuperBlock); 6] = [
        |this| this.s_header.h_magic.set(1),
        |this| this.s_header.h_blocktype.set(2),
        |this| this.s_blocksize.set(1024),
        |this| this.s_first.set(0),
        |this| this.s_start.set(1024),
        |this| this.s_feature_incompat.set(JournalIncompat::CSUM_V3.bits()),
    ];
    for (index, damage) in damages.into_iter().enumerate() {
        let mut block = good.clone();
        damage(SuperBlock::of_mut(&mut block));
        assert!(
            SuperBlock::validate(&block, BlockNr(77), 1024).is_err(),
            "damage {index}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn no_bytes_make_a_reader_panic(mut block in prop::collection::vec(any::<u8>(), 512..=512), wide: bool) {
        let _ = Header::read(&block);
        prop_assert!(tags(&block, wide).count() <= 512 / 8);
        if let Ok(blocks) = revoked_blocks(&block, wide, BlockNr(1)) {
            prop_assert!(blocks.count() <= 512 / 4);
        }
        let _ = SuperBlock::validate(&block, BlockNr(1), 1 << 20);
        let _ = SuperBlock::of(&block).next_block(u32::MAX);
        let _ = CommitBlock::of(&block).checksum_holds(Checksum::default());
        let _ = escape(&mut block);
    }
}
