//! The log back to the home places, after a crash: ours, the kernel's, or that of fsck's making.
//!
//! First the whole log is read as a list of transactions, up to the first one without a good commit
//! block; nothing is written before every block number in it is known to be on the volume. Then
//! each home block gets the newest version there is of it, unless a revoke record in the same or a
//! later transaction says that it is no longer metadata. Doing it twice, or again after a crash
//! in the middle, comes to the same.

use std::collections::{BTreeMap, HashMap};

use futures_util::stream::{self, StreamExt, TryStreamExt};
use ondisk::{BlockNr, Check, Structure, Why};

use super::JournalSetup;
use super::format::{self, BlockType, LogSuper, MAGIC, Tag, TagForm};
use super::log::{flush, read_block};
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
                    bytes[..4].copy_from_slice(&MAGIC);
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
    form: TagForm,
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
    checksum: u32,
}

impl<'a> Scan<'a> {
    fn new(setup: &'a JournalSetup, map: &'a FileMap, superblock: &'a LogSuper) -> Self {
        Scan {
            setup,
            map,
            superblock,
            form: TagForm::new(setup.geometry.block_size(), superblock.wide()),
            transactions: 0,
            copies: Vec::new(),
            revoked: HashMap::new(),
        }
    }

    /// Reads the log to its end. An error that it gives back (rather than fails with) is one that
    /// does not concern the transactions it has found.
    async fn run(&mut self) -> Result<Option<crate::Error>> {
        let length = self.superblock.end() - self.superblock.first();
        let mut position = self.superblock.start();
        let mut seen = 0u64;
        let mut open = Open {
            checksum: !0,
            ..Default::default()
        };
        let mut last_commit = 0;
        // The log may be full; what is met after one round is its own beginning.
        while seen < u64::from(length) {
            let at = position;
            let block = scan_read(self.setup, self.map, at).await?;
            let Some((kind, sequence)) = format::header(&block) else {
                break;
            };
            if sequence != self.superblock.sequence().wrapping_add(self.transactions) {
                break;
            }
            position = self.after(at, 1);
            seen += 1;
            match kind {
                BlockType::Descriptor => {
                    let tags = self.form.tags(&block);
                    open.checksum = self.checksum(open.checksum, &block);
                    for (index, tag) in tags.iter().enumerate() {
                        let place = self.after(position, index as u32);
                        if self.superblock.checksummed() {
                            let data = scan_read(self.setup, self.map, place).await?;
                            open.checksum = self.checksum(open.checksum, &data);
                        }
                        open.copies.push((*tag, place));
                    }
                    position = self.after(position, tags.len() as u32);
                    seen += tags.len() as u64;
                }
                BlockType::Revoke => {
                    open.revoked
                        .extend(self.form.revoked(&block, self.place(at))?);
                }
                BlockType::Commit => {
                    let time = format::commit_seconds(&block);
                    if self.superblock.checksummed()
                        && !format::commit_checksum_fits(&block, open.checksum)
                    {
                        return self.damaged(at, time < last_commit, position).await;
                    }
                    last_commit = time;
                    let whole = std::mem::replace(
                        &mut open,
                        Open {
                            checksum: !0,
                            ..Default::default()
                        },
                    );
                    self.take(whole, at)?;
                }
            }
        }
        Ok(None)
    }

    /// A commit block whose transaction is not what it says. With asynchronous commits that is a
    /// commit that the crash has interrupted, and the end of the log, unless a later commit follows:
    /// then an acknowledged one is damaged. Older than the one before it, it is of the log's past.
    async fn damaged(&self, at: u32, stale: bool, next: u32) -> Result<Option<crate::Error>> {
        if stale || (self.superblock.async_commit() && !self.commit_follows(next).await?) {
            return Ok(None);
        }
        let sequence = self.superblock.sequence().wrapping_add(self.transactions);
        let check = Check::new(Structure::JournalCommit, self.place(at));
        Ok(Some(
            check
                .fail(Why::Value {
                    field: "h_sequence",
                    found: sequence.into(),
                    rule: "the transaction's checksum must be that of its blocks",
                })
                .into(),
        ))
    }

    /// Whether the transaction after the present one, which starts at `position`, has a commit
    /// block.
    async fn commit_follows(&self, mut position: u32) -> Result<bool> {
        let wanted = self
            .superblock
            .sequence()
            .wrapping_add(self.transactions)
            .wrapping_add(1);
        let length = self.superblock.end() - self.superblock.first();
        let mut seen = 0u64;
        while seen < u64::from(length) {
            let block = scan_read(self.setup, self.map, position).await?;
            let tags = match format::header(&block) {
                Some((BlockType::Commit, sequence)) if sequence == wanted => return Ok(true),
                Some((BlockType::Descriptor, sequence)) if sequence == wanted => {
                    self.form.tags(&block).len() as u32
                }
                Some((BlockType::Revoke, sequence)) if sequence == wanted => 0,
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
        for (Tag { home, escaped }, position) in whole.copies {
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

    fn checksum(&self, seed: u32, bytes: &[u8]) -> u32 {
        if self.superblock.checksummed() {
            format::checksum(seed, bytes)
        } else {
            seed
        }
    }

    fn after(&self, position: u32, count: u32) -> u32 {
        let (first, end) = (self.superblock.first(), self.superblock.end());
        first + (position - first + count) % (end - first)
    }

    fn place(&self, position: u32) -> BlockNr {
        self.map.block(u64::from(position))
    }
}
