//! The log back to the home places, after a crash: ours, the kernel's, or that of fsck's making.
//!
//! First the whole log is read as a list of transactions, up to the first one without a good commit
//! block; nothing is written before every block number in it is known to be on the volume. Then
//! each home block gets the newest version there is of it, unless a revoke record in the same or a
//! later transaction says that it is no longer metadata. Doing it twice, or again after a crash
//! in the middle, comes to the same.

use std::collections::{BTreeMap, HashMap};

use futures_util::stream::{self, StreamExt, TryStreamExt};
use ondisk::jbd2::{
    self, BlockType, Checksum, CommitBlock, Header, JournalCompat, JournalIncompat, Tag,
};
use ondisk::{BlockNr, Check, Structure, Why};

use super::JournalSetup;
use super::log::{LogSuper, flush, read_block};
use super::write::write_blocks;
use crate::error::Result;
use crate::file_map::FileMap;
use crate::limits::{JOURNAL_IOS_IN_FLIGHT, REPLAY_BATCH_BLOCKS};

/// What a replay has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Replayed {
    pub transactions: u32,
    pub blocks: u64,
}

/// Replays a log that is not empty. Its result is on the medium when this returns.
pub(super) async fn replay(
    setup: &JournalSetup,
    map: &FileMap,
    superblock: &LogSuper,
) -> Result<Replayed> {
    let mut scan = Scan::new(setup, map, superblock);
    let damaged = scan.run().await?;
    let newest = scan.newest();
    let blocks: Vec<(BlockNr, Copy)> = newest.into_iter().collect();
    for batch in blocks.chunks(REPLAY_BATCH_BLOCKS) {
        let contents: Vec<(BlockNr, Vec<u8>)> = stream::iter(batch)
            .map(|(home, copy)| async move {
                let mut bytes = scan_read(setup, map, copy.position).await?;
                if copy.escaped {
                    jbd2::unescape(&mut bytes);
                }
                Ok::<_, crate::Error>((*home, bytes))
            })
            .buffered(JOURNAL_IOS_IN_FLIGHT)
            .try_collect()
            .await?;
        let pieces = contents
            .iter()
            .map(|(home, bytes)| (*home, bytes.as_slice()));
        write_blocks(&*setup.device, &setup.geometry, pieces).await?;
    }
    flush(&*setup.device, setup.device.info().volatile_cache).await?;
    // What was whole is home. But a transaction that had been acknowledged is not: say so, and
    // leave the log to fsck.
    if let Some(damaged) = damaged {
        return Err(damaged);
    }
    let transactions = scan.transactions;
    tracing::info!(
        transactions,
        blocks = blocks.len(),
        "the journal was replayed"
    );
    Ok(Replayed {
        transactions,
        blocks: blocks.len() as u64,
    })
}

async fn scan_read(setup: &JournalSetup, map: &FileMap, position: u32) -> Result<Vec<u8>> {
    read_block(
        &*setup.device,
        &setup.geometry,
        map.block(u64::from(position)),
    )
    .await
}

/// A version of a block in the log.
#[derive(Debug, Clone, Copy)]
struct Copy {
    /// The how-manieth transaction of the log.
    transaction: u32,
    position: u32,
    escaped: bool,
}

/// A walk over the log.
struct Scan<'a> {
    setup: &'a JournalSetup,
    map: &'a FileMap,
    superblock: &'a LogSuper,
    /// Block numbers have 64 bits.
    wide: bool,
    /// Commit blocks have checksums.
    checksummed: bool,
    /// The log's first block, and the blocks it has.
    first: u32,
    length: u32,
    /// Whole transactions so far.
    transactions: u32,
    copies: Vec<(BlockNr, Copy)>,
    /// For each revoked block the last transaction that says so.
    revoked: HashMap<BlockNr, u32>,
}

/// What the blocks since the last commit block hold.
#[derive(Default)]
struct Open {
    copies: Vec<(Tag, u32)>,
    revoked: Vec<BlockNr>,
    checksum: Checksum,
}

impl<'a> Scan<'a> {
    fn new(setup: &'a JournalSetup, map: &'a FileMap, superblock: &'a LogSuper) -> Self {
        let raw = superblock.raw();
        Scan {
            setup,
            map,
            superblock,
            wide: raw.is_wide(),
            checksummed: raw.compat().contains(JournalCompat::CHECKSUM),
            first: raw.s_first.get(),
            length: raw.s_maxlen.get() - raw.s_first.get(),
            transactions: 0,
            copies: Vec::new(),
            revoked: HashMap::new(),
        }
    }

    /// The number of the transaction that is `ahead` of the present one.
    fn tid(&self, ahead: u32) -> jbd2::Tid {
        let start = self.superblock.raw().sequence().0;
        jbd2::Tid(start.wrapping_add(self.transactions).wrapping_add(ahead))
    }

    /// Reads the log to its end. An error that it gives back (rather than fails with) is one that
    /// does not concern the transactions it has found.
    async fn run(&mut self) -> Result<Option<crate::Error>> {
        let mut position = self.superblock.raw().s_start.get();
        if position < self.first {
            // As mkfs.ocfs2 leaves it with blocks of 512 bytes: there is nothing.
            return Ok(None);
        }
        let (mut seen, mut open, mut last_commit) = (0u64, Open::default(), 0);
        // The log may be full; what is met after one round is its own beginning.
        while seen < u64::from(self.length) {
            let at = position;
            let block = scan_read(self.setup, self.map, at).await?;
            let kind = match Header::read(&block) {
                Some((kind, tid)) if tid == self.tid(0) => kind,
                _ => break,
            };
            position = self.after(at, 1);
            seen += 1;
            match kind {
                BlockType::Descriptor => {
                    let tags: Vec<Tag> = jbd2::tags(&block, self.wide).collect();
                    open.checksum.update(&block);
                    for (index, tag) in tags.iter().enumerate() {
                        let place = self.after(position, index as u32);
                        if self.checksummed {
                            let data = scan_read(self.setup, self.map, place).await?;
                            open.checksum.update(&data);
                        }
                        open.copies.push((*tag, place));
                    }
                    position = self.after(position, tags.len() as u32);
                    seen += tags.len() as u64;
                }
                BlockType::Revoke => {
                    let named = jbd2::revoked_blocks(&block, self.wide, self.place(at))?;
                    open.revoked.extend(named);
                }
                BlockType::Commit => {
                    let commit = CommitBlock::of(&block);
                    let time = commit.h_commit_sec.get();
                    if self.checksummed && !commit.checksum_holds(open.checksum) {
                        return self.damaged(at, time < last_commit, position).await;
                    }
                    last_commit = time;
                    self.take(std::mem::take(&mut open), at)?;
                }
                BlockType::SuperBlockV1 | BlockType::SuperBlockV2 => break,
            }
        }
        Ok(None)
    }

    /// A commit block whose transaction is not what it says. With asynchronous commits that is a
    /// commit that the crash has interrupted, and the end of the log, unless a later commit follows:
    /// then an acknowledged one is damaged. Older than the one before it, it is of the log's past.
    async fn damaged(&self, at: u32, stale: bool, next: u32) -> Result<Option<crate::Error>> {
        let incompat = self.superblock.raw().incompat();
        let async_commit = incompat.contains(JournalIncompat::ASYNC_COMMIT);
        if stale || (async_commit && !self.commit_follows(next).await?) {
            return Ok(None);
        }
        let check = Check::new(Structure::JournalCommit, self.place(at));
        Ok(Some(
            check
                .fail(Why::Value {
                    field: "h_sequence",
                    found: self.tid(0).0.into(),
                    rule: "the transaction's checksum must be that of its blocks",
                })
                .into(),
        ))
    }

    /// Whether the transaction after the present one, which starts at `position`, has a commit
    /// block.
    async fn commit_follows(&self, mut position: u32) -> Result<bool> {
        let mut seen = 0u64;
        while seen < u64::from(self.length) {
            let block = scan_read(self.setup, self.map, position).await?;
            let tags = match Header::read(&block) {
                Some((_, tid)) if tid != self.tid(1) => return Ok(false),
                Some((BlockType::Commit, _)) => return Ok(true),
                Some((BlockType::Descriptor, _)) => jbd2::tags(&block, self.wide).count() as u32,
                Some((BlockType::Revoke, _)) => 0,
                _ => return Ok(false),
            };
            position = self.after(position, 1 + tags);
            seen += 1 + u64::from(tags);
        }
        Ok(false)
    }

    /// A transaction is whole.
    fn take(&mut self, whole: Open, commit: u32) -> Result<()> {
        let transaction = self.transactions;
        let check = Check::new(Structure::JournalDescriptor, self.place(commit));
        let total = self.setup.geometry.total_blocks();
        for (tag, position) in whole.copies {
            let (home, escaped) = (tag.nr, tag.is_escaped());
            check.at_most("t_blocknr", home.0, total - 1)?;
            self.copies.push((
                home,
                Copy {
                    transaction,
                    position,
                    escaped,
                },
            ));
        }
        for home in whole.revoked {
            self.revoked.insert(home, transaction);
        }
        self.transactions += 1;
        Ok(())
    }

    /// For each home block the version to write.
    fn newest(&self) -> BTreeMap<BlockNr, Copy> {
        self.copies
            .iter()
            .filter(|(home, copy)| {
                self.revoked
                    .get(home)
                    .is_none_or(|&last| last < copy.transaction)
            })
            .copied()
            .collect()
    }

    fn after(&self, position: u32, count: u32) -> u32 {
        self.first + (position - self.first + count) % self.length
    }

    fn place(&self, position: u32) -> BlockNr {
        self.map.block(u64::from(position))
    }
}
