//! The journal: jbd2's format, one running transaction, exclusive handles.
//!
//! ```text
//!  handle: begin ─ modify… ─ commit()        (dropped without commit(): every block rolled back)
//!                      │
//!  running ──(fsync, size, age)──► committing ──► committed ──► checkpointed
//!  blocks joined      snapshots of all blocks     in the log    at their home places,
//!  by handles         descriptor+data, flush,                   log space reusable
//!                     commit block, flush
//! ```
//!
//! Rules this file owns:
//! * A handle is **exclusive**: one operation changes metadata at a time, and either all of its
//!   changes stay or none. A commit is made between handles, so a transaction is whole operations.
//! * If we crash before the commit block of a transaction is on the medium, none of it happened.
//! * Clusters freed by a transaction are not handed out again before it is committed, and those
//!   that held metadata not before it is checkpointed ([`Pins`]): so a replay never
//!   overwrites a new owner's bytes, and no revoke records are needed.
//! * The first error of the device in the log or in a checkpoint stops the journal for good. Its
//!   cause is kept, and noted in the log's superblock as jbd2 does; reads go on.
//!
//! Commits and checkpoints are tasks of their own: whoever waits for one may give up waiting.

mod checkpoint;
mod commit;
mod handle;
mod log;
mod owner;
mod pins;
mod replay;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod wait;
mod write;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::{Rc, Weak};
use std::time::Duration;

use ondisk::{BlockNr, ClusterNr, Geometry, SlotNr, jbd2};
use runtime::{BlockDevice, Host};

use crate::cache::{BlockRef, Cache};
use crate::core::Core;
use crate::error::{Errno, Error, Result};
use crate::moment::Moment;
use crate::slot_map::SlotMap;
use crate::system::SystemFile;
use checkpoint::Committed;
use log::Log;
use owner::Owner;
use wait::{Signal, Turns};

pub use handle::Handle;
pub use owner::{Recovery, recover_slot};
pub use pins::Pins;

/// A transaction's number. The journal's blocks carry its low 32 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tid(pub u64);

impl Tid {
    /// As the journal's blocks say it.
    fn logged(self) -> jbd2::Tid {
        jbd2::Tid(self.0 as u32)
    }

    fn next(self) -> Tid {
        Tid(self.0 + 1)
    }

    fn before(self) -> Tid {
        Tid(self.0.saturating_sub(1))
    }
}

/// What a journal works on: there before the rest of the volume is.
#[derive(Clone)]
pub struct JournalSetup {
    pub device: Rc<dyn BlockDevice>,
    pub host: Rc<dyn Host>,
    pub geometry: Rc<Geometry>,
    pub cache: Rc<Cache>,
    /// A transaction is committed at the latest this long after its first change.
    pub commit_interval: Duration,
}

impl JournalSetup {
    /// Opens the journal of `core`'s slot, and on a local volume, where nobody else can be alive,
    /// recovers every other one that is dirty. Gives the slots that were not left cleanly, ours
    /// first: their local allocs, truncate logs and orphans need recovery, and the other ones are
    /// then to be freed in the slot map (until when they are given here again).
    ///
    /// After a replay the cache is empty: blocks and inodes that were read before are outdated.
    pub async fn open(&self, core: &Core) -> Result<(Journal, Vec<SlotNr>)> {
        let file = |slot| core.system.of(SystemFile::Journal, slot);
        let (journal, recovery) = Journal::open(self.clone(), file(core.slot)).await?;
        let mut slots = Vec::from_iter(recovery.dirty.then_some(core.slot));
        if self.geometry.is_local() {
            let map = SlotMap::read(&self.cache, &self.geometry, &core.system).await?;
            let taken = map.taken(&self.geometry)?;
            for slot in (0..core.system.slot_count())
                .map(SlotNr)
                .filter(|slot| *slot != core.slot)
            {
                let replayed = recover_slot(self, file(slot)).await?.is_some();
                if replayed || taken.iter().any(|(other, _)| *other == slot) {
                    slots.push(slot);
                }
            }
        }
        Ok((journal, slots))
    }
}

/// The journal of our slot.
pub struct Journal {
    inner: Rc<Inner>,
}

/// Shared with the tasks that commit and checkpoint.
struct Inner {
    me: Weak<Inner>,
    host: Rc<dyn Host>,
    device: Rc<dyn BlockDevice>,
    geometry: Rc<Geometry>,
    cache: Rc<Cache>,
    log: Log,
    owner: Owner,
    /// Held by the handle.
    exclusive: Turns,
    running: RefCell<Running>,
    /// In the log, not yet at home. Oldest first.
    waiting: RefCell<VecDeque<Committed>>,
    committed: Cell<Tid>,
    checkpointed: Cell<Tid>,
    /// Commit up to here; the committing task is running.
    commit_wanted: Cell<Tid>,
    committing: Cell<bool>,
    /// Checkpoint up to here; the checkpointing task is running.
    checkpoint_wanted: Cell<Tid>,
    checkpointing: Cell<bool>,
    /// The task that commits by age is running.
    ticking: Cell<bool>,
    pins: RefCell<Pins>,
    /// The first error that stopped writing.
    aborted: RefCell<Option<Error>>,
    /// That error is on its way to the log's superblock.
    noting: Cell<bool>,
    closed: Cell<bool>,
    max_transaction: u32,
    commit_interval: Duration,
    /// Any of the above has changed.
    changed: Signal,
}

/// The cause of a stop, in words.
fn cause_of(error: &Error) -> String {
    match error {
        Error::ReadOnly(cause) => cause.clone(),
        other => other.to_string(),
    }
}

/// The transaction that handles join.
struct Running {
    tid: Tid,
    /// By number: a transaction is written in that order.
    blocks: BTreeMap<BlockNr, BlockRef>,
    /// What they take in the log, in blocks.
    units: u32,
    /// When its first handle was committed.
    since: Option<Duration>,
}

impl Running {
    fn new(tid: Tid) -> Self {
        Running {
            tid,
            blocks: BTreeMap::new(),
            units: 0,
            since: None,
        }
    }

    /// When it got its first change, if it has any.
    fn since(&self) -> Option<Duration> {
        self.since.filter(|_| !self.blocks.is_empty())
    }
}

impl Journal {
    /// Opens the journal whose dinode is block `dinode`, and marks it as in use. If its last owner
    /// did not close it, it is replayed first: what was read from the volume before is outdated
    /// then (the cache is emptied), and the slot's local alloc, truncate log and orphans are to be
    /// recovered, as [`Recovery::dirty`] tells.
    pub async fn open(setup: JournalSetup, dinode: BlockNr) -> Result<(Journal, Recovery)> {
        let (owner, log, first, recovery) = owner::open(&setup, dinode).await?;
        let JournalSetup {
            device,
            host,
            geometry,
            cache,
            commit_interval,
        } = setup;
        let done = Tid(first.0 - 1);
        let inner = Rc::new_cyclic(|me| Inner {
            me: me.clone(),
            host,
            device,
            geometry,
            cache,
            owner,
            exclusive: Turns::default(),
            running: RefCell::new(Running::new(first)),
            waiting: RefCell::default(),
            committed: Cell::new(done),
            checkpointed: Cell::new(done),
            commit_wanted: Cell::new(done),
            committing: Cell::new(false),
            checkpoint_wanted: Cell::new(done),
            checkpointing: Cell::new(false),
            ticking: Cell::new(false),
            pins: RefCell::default(),
            aborted: RefCell::default(),
            noting: Cell::new(false),
            closed: Cell::new(false),
            commit_interval,
            max_transaction: log.max_transaction(),
            log,
            changed: Signal::default(),
        });
        Ok((Journal { inner }, recovery))
    }

    /// Waits for its turn and starts a handle. `blocks` is an estimate of the blocks the operation
    /// will change; a running transaction without room for them is committed first.
    pub async fn begin(&self, blocks: u32) -> Result<Handle<'_>> {
        let inner = &self.inner;
        if blocks > inner.max_transaction {
            return Err(Error::TransactionTooBig {
                blocks,
                limit: inner.max_transaction,
            });
        }
        loop {
            let turn = inner.exclusive.take().await;
            inner.check_writable()?;
            if inner.fits(blocks) {
                return Ok(Handle::new(inner, blocks, turn));
            }
            let full = inner.running_tid();
            drop(turn);
            inner.request_commit(full);
            let moved_on = || inner.running_tid() > full || !inner.is_writable();
            inner.changed.until(|| moved_on().then_some(())).await;
        }
    }

    /// For an operation that turns out to be longer than it announced, at a place where what it has
    /// done may stay by itself: it goes on with a handle of `blocks` more. The changes so far are
    /// committed with the transaction that they joined, the next ones perhaps with a later one: what
    /// is changed again joins again, and is rolled back to what it is now. Others may have their
    /// turn in between.
    pub async fn restart<'a>(&'a self, handle: Handle<'a>, blocks: u32) -> Result<Handle<'a>> {
        handle.commit();
        self.begin(blocks).await
    }

    /// Most blocks that [`Journal::begin`] accepts.
    pub fn max_handle(&self) -> u32 {
        self.inner.max_transaction
    }

    /// The transaction that a handle started now joins.
    pub fn running_tid(&self) -> Tid {
        self.inner.running_tid()
    }

    /// Everything up to here is in the log, durable.
    pub fn committed_tid(&self) -> Tid {
        self.inner.committed.get()
    }

    /// Everything up to here is at its home place, durable, and no longer in the log.
    pub fn checkpointed_tid(&self) -> Tid {
        self.inner.checkpointed.get()
    }

    /// Clusters that must not be handed out yet.
    pub fn pins(&self) -> std::cell::Ref<'_, Pins> {
        self.inner.pins.borrow()
    }

    /// Returns once the transaction is durable, committing it if it is the running one. Those who
    /// wait for one transaction share its commit.
    pub async fn wait_committed(&self, tid: Tid) -> Result<()> {
        self.inner.wait_committed(tid).await
    }

    /// Makes every committed handle durable.
    pub async fn force_commit(&self) -> Result<()> {
        self.inner.wait_committed(self.inner.running_tid()).await
    }

    /// Brings everything that is committed by now to its home place, and empties the log of it.
    pub async fn checkpoint(&self) -> Result<()> {
        self.inner.checkpoint(self.inner.committed.get()).await
    }

    /// Begins a moment: between two handles. `None` if somebody reads one already.
    pub async fn moment(&self, budget_bytes: usize) -> Option<MomentGuard> {
        let _turn = self.inner.exclusive.take().await;
        let moment = Moment::new(self.inner.running_tid(), budget_bytes);
        self.inner.cache.begin_moment(&moment).then(|| MomentGuard {
            inner: self.inner.clone(),
            moment,
        })
    }

    /// Lets go the clusters that are held for a moment, whose blocks are kept in memory from now on.
    pub async fn release_held(&self) {
        let inner = &self.inner;
        let Some(moment) = inner
            .cache
            .moment()
            .filter(|moment| moment.ended().is_none())
        else {
            return;
        };
        // What is freed meanwhile is of a later transaction, and held further on.
        let done = inner.checkpointed.get();
        let held = inner.pins.borrow().held(done);
        let per_cluster = u64::from(inner.geometry.blocks_per_cluster());
        for (start, clusters) in held {
            let first = inner.geometry.first_block(start).0;
            for nr in first..first + u64::from(clusters) * per_cluster {
                let nr = BlockNr(nr);
                if moment.kept(nr).is_some() || moment.ended().is_some() {
                    continue;
                }
                match inner.cache.read_raw(nr, inner.geometry.block_size()).await {
                    Ok(bytes) => moment.keep(nr, Some(Rc::new(bytes))),
                    Err(error) => moment.end(&error.to_string()),
                }
            }
        }
        let committed = inner.committed.get();
        inner.pins.borrow_mut().release(committed, done);
    }

    /// Ends a moment that somebody reads, and lets go what it holds. True if there was one.
    pub fn end_moment(&self, cause: &str) -> bool {
        let Some(moment) = self.inner.cache.moment() else {
            return false;
        };
        let first = moment.ended().is_none();
        moment.end(cause);
        self.inner.release_pins();
        first
    }

    /// Stops writing because of `cause` (a corrupt block that an operation has met, say). Only the
    /// first cause is kept.
    pub fn abort(&self, cause: &str) {
        self.inner.abort(Error::ReadOnly(cause.to_owned()));
    }

    /// Why writing has stopped.
    pub fn aborted(&self) -> Option<String> {
        self.inner.aborted.borrow().as_ref().map(cause_of)
    }

    pub fn is_aborted(&self) -> bool {
        self.inner.aborted.borrow().is_some()
    }

    /// Returns the cause once writing has stopped because of an error; `None` if the journal is
    /// closed before.
    pub async fn until_aborted(&self) -> Option<String> {
        let inner = &self.inner;
        let end = || {
            let cause = inner.aborted.borrow().as_ref().map(cause_of);
            (cause.is_some() || inner.closed.get()).then_some(cause)
        };
        inner.changed.until(end).await
    }

    /// Ends the journal: everything home, the log empty, the owner's mark cleared. Handles begun
    /// later are refused. After an abort the journal stays as it is on the device, for a replay.
    pub async fn close(&self) -> Result<()> {
        self.inner.closed.set(true);
        self.inner.changed.notify();
        self.inner.close().await
    }
}

/// Ends its moment with its drop.
pub struct MomentGuard {
    inner: Rc<Inner>,
    moment: Rc<Moment>,
}

impl std::ops::Deref for MomentGuard {
    type Target = Moment;
    fn deref(&self) -> &Moment {
        &self.moment
    }
}

impl Drop for MomentGuard {
    fn drop(&mut self) {
        self.inner.cache.drop_moment();
        self.inner.release_pins();
    }
}

impl Drop for Journal {
    /// Ends the timer's task, also if nobody closed.
    fn drop(&mut self) {
        self.inner.closed.set(true);
        self.inner.changed.notify();
    }
}

impl Inner {
    fn running_tid(&self) -> Tid {
        self.running.borrow().tid
    }

    fn is_writable(&self) -> bool {
        self.aborted.borrow().is_none() && !self.closed.get()
    }

    fn check_writable(&self) -> Result<()> {
        if let Some(cause) = self.aborted.borrow().as_ref() {
            return Err(Error::ReadOnly(cause_of(cause)));
        }
        if self.closed.get() {
            return Err(Error::ReadOnly("the journal is closed".to_owned()));
        }
        Ok(())
    }

    /// The error that stopped writing, as it was.
    fn failure(&self) -> Option<Error> {
        self.aborted.borrow().clone()
    }

    fn abort(&self, cause: Error) {
        let mut aborted = self.aborted.borrow_mut();
        if aborted.is_none() {
            tracing::error!(%cause, "the journal stops");
            *aborted = Some(cause);
            drop(aborted);
            self.note_error();
            self.changed.notify();
        }
    }

    /// Leaves the first error in the log's superblock, where the kernel and fsck.ocfs2 look for it. A
    /// device that has failed may refuse this as well.
    fn note_error(&self) {
        let Some(inner) = self.me.upgrade() else {
            return;
        };
        let errno = inner.failure().map_or(Errno::EIO, |error| error.errno());
        inner.noting.set(true);
        self.host.spawn(Box::pin(async move {
            if let Err(error) = inner.log.note_error(errno).await {
                tracing::warn!(%error, "the journal's error could not be noted on the device");
            }
            inner.noting.set(false);
            inner.changed.notify();
        }));
    }

    /// Whether the running transaction has room for so many blocks more.
    fn fits(&self, blocks: u32) -> bool {
        self.running.borrow().units.saturating_add(blocks) <= self.max_transaction
    }

    /// What a block takes in the log.
    fn log_units(&self, block: &BlockRef) -> u32 {
        (block.data().len() >> self.geometry.block_size_bits) as u32
    }

    /// Joins a block to the running transaction; false if it was in it.
    fn join(&self, block: &BlockRef) -> bool {
        // Bytes changed beside the cache would be seen by nobody, and written over others.
        assert!(
            self.cache
                .peek(block.nr())
                .is_some_and(|cached| Rc::ptr_eq(&cached, block)),
            "block {} is changed through a reference that the cache has dropped",
            block.nr()
        );
        let mut running = self.running.borrow_mut();
        if running.blocks.contains_key(&block.nr()) {
            return false;
        }
        block.pin();
        running.units += self.log_units(block);
        running.blocks.insert(block.nr(), block.clone());
        true
    }

    fn leave(&self, block: &BlockRef) {
        let mut running = self.running.borrow_mut();
        if running.blocks.remove(&block.nr()).is_some() {
            running.units -= self.log_units(block);
            block.unpin();
        }
    }

    /// Forgets the blocks of clusters that were freed: they need not reach the log either. If the
    /// transaction is committed they are nobody's, else the old owner still has its older bytes.
    fn forget_clusters(&self, start: ClusterNr, clusters: u32) {
        let per_cluster = u64::from(self.geometry.blocks_per_cluster());
        let first = self.geometry.first_block(start).0;
        let end = first + u64::from(clusters) * per_cluster;
        let joined: Vec<BlockRef> = {
            let running = self.running.borrow();
            running
                .blocks
                .range(BlockNr(first)..BlockNr(end))
                .map(|(_, b)| b.clone())
                .collect()
        };
        for block in joined {
            self.leave(&block);
        }
        for nr in first..end {
            self.cache.forget(BlockNr(nr));
        }
    }
}
