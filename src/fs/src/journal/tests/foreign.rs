//! Logs that others write: revoke records, checksums, asynchronous commits, damage. Made block by
//! block here, replayed by [`Journal::open`].

use ondisk::BlockNr;
use ondisk::jbd2::{
    self, Checksum, CommitBlock, DescriptorWriter, JournalCompat, JournalIncompat, RevokeWriter,
    SuperBlock, Tid,
};
use runtime::sim::{Image, SimRng, Simulation};

use super::volume::{self, Volume, disk};
use crate::error::{Error, Result};
use crate::journal::{Journal, Recovery};

const BLOCK: usize = 4096;
/// Home blocks of the tests: free ones.
const HOME: u64 = 16_000;

struct Foreign {
    image: Image,
    /// The journal's first block.
    start: u64,
    dinode: BlockNr,
    /// The next block of the log.
    at: u64,
    tid: Tid,
    checksum: Option<Checksum>,
}

impl Foreign {
    fn new(compat: JournalCompat, incompat: JournalIncompat) -> Foreign {
        let volume = Volume::usual();
        let mut image = volume.image();
        let start = volume.journal_start().0;
        let mut block = image.read_vec(start * BLOCK as u64, BLOCK);
        let raw = SuperBlock::of_mut(&mut block);
        raw.s_feature_compat.set(compat.bits());
        raw.s_feature_incompat.set(incompat.bits());
        raw.s_sequence.set(u32::MAX); // wraps after one transaction
        raw.s_start.set(1000); // and so does the log, after 24 blocks
        image.write(start * BLOCK as u64, &block);
        let dinode = volume.system_block("journal:0000");
        let checksum = compat
            .contains(JournalCompat::CHECKSUM)
            .then(Checksum::default);
        Foreign {
            image,
            start,
            dinode,
            at: 1000,
            tid: Tid(u32::MAX),
            checksum,
        }
    }

    fn push(&mut self, block: &[u8]) {
        self.image
            .write((self.start + self.at) * BLOCK as u64, block);
        self.at = if self.at == 1023 { 1 } else { self.at + 1 };
    }

    fn wide(&self) -> bool {
        let block = self.image.read_vec(self.start * BLOCK as u64, BLOCK);
        SuperBlock::of(&block).is_wide()
    }

    /// A descriptor and its blocks, each filled with its byte.
    fn data(&mut self, blocks: &[(u64, u8)]) {
        let mut descriptor = vec![0; BLOCK];
        let mut tags = DescriptorWriter::new(&mut descriptor, self.tid, [9; 16], self.wide());
        for (home, _) in blocks {
            assert!(tags.push(BlockNr(*home), false));
        }
        tags.finish();
        let filled = blocks.iter().map(|(_, byte)| vec![*byte; BLOCK]);
        for block in std::iter::once(descriptor).chain(filled) {
            if let Some(sum) = self.checksum.as_mut() {
                sum.update(&block);
            }
            self.push(&block);
        }
    }

    fn revoke(&mut self, blocks: &[u64]) {
        let mut block = vec![0; BLOCK];
        let mut writer = RevokeWriter::new(&mut block, self.tid, self.wide());
        for home in blocks {
            assert!(writer.push(BlockNr(*home)));
        }
        self.push(&block);
    }

    fn commit(&mut self) {
        let mut block = vec![0; BLOCK];
        CommitBlock::init(&mut block, self.tid, (1_700_000_000, 0), self.checksum);
        self.checksum = self.checksum.map(|_| Checksum::default());
        self.push(&block);
        self.tid = self.tid.next();
    }

    /// The last block of the log, so far, is spoilt.
    fn spoil(&mut self, back: u64) {
        let offset = (self.start + self.at - back) * BLOCK as u64 + 2000;
        self.image.write(offset, b"spoilt");
    }

    fn replay(&self) -> (Result<Recovery>, Image) {
        let sim = Simulation::new(1);
        let world = sim.world();
        let disk = disk(self.image.clone(), &world);
        let setup = volume::setup(&disk, &world);
        let opened = sim.block_on(Journal::open(setup, self.dinode)).unwrap();
        (opened.map(|(_, recovery)| recovery), disk.image())
    }
}

fn home(image: &Image, nr: u64) -> u8 {
    let bytes = image.read_vec(nr * BLOCK as u64, BLOCK);
    assert!(
        bytes.iter().all(|byte| *byte == bytes[0]),
        "block {nr} is torn"
    );
    bytes[0]
}

fn plain() -> Foreign {
    Foreign::new(JournalCompat::empty(), JournalIncompat::empty())
}

#[test]
fn a_revoke_record_holds_for_its_own_and_earlier_transactions() {
    for incompat in [
        JournalIncompat::REVOKE,
        JournalIncompat::REVOKE | JournalIncompat::WIDE,
    ] {
        let mut log = Foreign::new(JournalCompat::empty(), incompat);
        log.data(&[(HOME, 1), (HOME + 1, 1), (HOME + 2, 1), (HOME + 3, 1)]);
        log.commit();
        log.revoke(&[HOME, HOME + 1, HOME + 2]);
        log.data(&[(HOME + 1, 2)]); // revoked all the same: its own transaction says so
        log.commit();
        log.data(&[(HOME + 2, 3)]); // written again later
        log.commit();
        log.revoke(&[HOME + 3]); // never committed
        log.data(&[(HOME + 3, 4)]);
        let (recovery, image) = log.replay();
        assert_eq!(recovery.unwrap().transactions, 3);
        assert_eq!([0, 1, 2, 3].map(|at| home(&image, HOME + at)), [0, 0, 3, 1]);
    }
}

#[test]
fn a_log_that_wraps_in_the_middle_of_a_transaction() {
    let mut log = plain();
    for round in 0..9u8 {
        let blocks: Vec<(u64, u8)> = (0..7)
            .map(|at| (HOME + at, 10 * round + at as u8))
            .collect();
        log.data(&blocks);
        log.commit();
    }
    let (recovery, image) = log.replay();
    let recovery = recovery.unwrap();
    assert_eq!((recovery.transactions, recovery.blocks), (9, 7));
    assert_eq!(
        (0..7).map(|at| home(&image, HOME + at)).collect::<Vec<_>>(),
        [80, 81, 82, 83, 84, 85, 86]
    );
}

#[test]
fn a_damaged_transaction_is_not_replayed() {
    for incompat in [JournalIncompat::empty(), JournalIncompat::ASYNC_COMMIT] {
        // The last one: with asynchronous commits an interrupted commit, else damage.
        let mut log = Foreign::new(JournalCompat::CHECKSUM, incompat);
        log.data(&[(HOME, 1)]);
        log.commit();
        log.data(&[(HOME, 2)]);
        log.commit();
        log.spoil(2);
        let (recovery, image) = log.replay();
        assert_eq!(home(&image, HOME), 1);
        match recovery {
            Ok(recovery) => {
                assert!(!incompat.is_empty());
                assert_eq!(recovery.transactions, 1);
            }
            Err(error) => assert!(
                incompat.is_empty() && matches!(error, Error::Corrupt(_)),
                "{error}"
            ),
        }
        // One in the middle: an acknowledged transaction is lost, whoever wrote it.
        log.data(&[(HOME, 3)]);
        log.commit();
        let (recovery, image) = log.replay();
        assert_eq!(home(&image, HOME), 1);
        assert!(matches!(recovery, Err(Error::Corrupt(_))));
    }
}

#[test]
fn a_block_beyond_the_volume_is_corruption_and_nothing_is_written() {
    let mut log = plain();
    log.data(&[(HOME, 1)]);
    log.commit();
    log.data(&[(1 << 31, 2)]);
    log.commit();
    let (recovery, image) = log.replay();
    let error = recovery.unwrap_err();
    assert!(
        matches!(error, Error::Corrupt(_)) && error.to_string().contains("t_blocknr"),
        "{error}"
    );
    assert_eq!(home(&image, HOME), 0);
    // Not committed, it is nobody's concern.
    let mut log = plain();
    log.data(&[(HOME, 1)]);
    log.commit();
    log.data(&[(1 << 31, 2)]);
    let (recovery, image) = log.replay();
    assert_eq!(recovery.unwrap().transactions, 1);
    assert_eq!(home(&image, HOME), 1);
}

#[test]
fn features_we_do_not_know_are_refused() {
    let log = Foreign::new(JournalCompat::empty(), JournalIncompat::CSUM_V3);
    assert!(log.replay().0.is_err());
}

#[test]
fn whatever_is_in_the_log_the_replay_ends() {
    let mut log = plain();
    log.revoke(&[HOME]);
    for round in 0..6u8 {
        log.data(&[(HOME, round), (HOME + 1, round)]);
        log.commit();
    }
    let mut rng = SimRng::new(3);
    let clean = log.image.clone();
    for _ in 0..400 {
        log.image = clean.clone();
        for _ in 0..1 + rng.below(6) {
            // Superblock or log, in the bytes that mean something.
            let block = if rng.coin() {
                0
            } else {
                (1000 + rng.below(40) - 1) % 1023 + 1
            };
            let offset = (log.start + block) * BLOCK as u64 + rng.below(64);
            let byte = [0, 1, 2, 5, 8, 0xFF, rng.below(256) as u8][rng.below(7) as usize];
            log.image.write(offset, &[byte]);
        }
        let _ = log.replay();
    }
    // A descriptor without end, and one that names itself.
    let mut log = plain();
    for _ in 0..1023 {
        log.revoke(&[]);
    }
    assert_eq!(log.replay().0.unwrap().transactions, 0);
    assert!(jbd2::tags(&vec![0xFF; BLOCK], true).count() > 0);
}
