//! Metadata blocks in memory. Every structure of the volume but file data is read through here:
//! [`Cache::read`] verifies checksum and structure once, and from then on the block is trusted.
//!
//! A block's bytes are shared and copied on write ([`Rc::make_mut`]): whoever holds a snapshot (a
//! commit on its way to the log, a handle that may roll back, a checkpoint) keeps exactly the bytes
//! of that moment while the block moves on. That is all the "frozen data" there is.
//!
//! Only [`crate::journal::Handle`] changes a block.

use std::cell::{Cell, Ref, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::rc::Rc;

use ondisk::metaecc::Verdict;
use ondisk::{
    BlockNr, Check, Dinode, DxLeaf, DxRoot, ExtentBlock, Geometry, GroupDesc, Kind, RefcountBlock,
    Structure, SuperBlock, Why, XATTR_BUCKET_BYTES, XattrBlock, XattrBucket,
};
use runtime::{BlockDevice, BlockDeviceExt};

use crate::error::{Error, Result};
use crate::journal::wait::Signal;
use crate::limits::HEAL_MAX;
use crate::moment::Moment;

/// By block number. The hasher has no random seed: a simulated run depends on its own seed alone.
type Map<T> = HashMap<BlockNr, T, BuildHasherDefault<DefaultHasher>>;

/// The bytes of a block at one moment.
pub type Bytes = Rc<Vec<u8>>;

/// A metadata block (or a run of blocks that is one structure: an xattr bucket on a volume with
/// small blocks) in memory.
pub struct Block {
    nr: BlockNr,
    kind: Cell<Kind>,
    data: RefCell<Bytes>,
    /// Reasons it cannot leave the cache: in a transaction that is not checkpointed yet.
    pins: Cell<u32>,
    /// For eviction: set on use, cleared by the clock's hand.
    referenced: Cell<bool>,
}

pub type BlockRef = Rc<Block>;

impl Block {
    pub fn nr(&self) -> BlockNr {
        self.nr
    }

    pub fn kind(&self) -> Kind {
        self.kind.get()
    }

    /// The bytes now. Not to be held across an await.
    pub fn data(&self) -> Ref<'_, [u8]> {
        Ref::map(self.data.borrow(), |bytes| bytes.as_slice())
    }

    /// The bytes of this moment, to keep.
    pub fn snapshot(&self) -> Bytes {
        self.data.borrow().clone()
    }

    pub(crate) fn cell(&self) -> &RefCell<Bytes> {
        &self.data
    }

    pub(crate) fn set_kind(&self, kind: Kind) {
        self.kind.set(kind);
    }

    pub(crate) fn pin(&self) {
        self.pins.set(self.pins.get() + 1);
    }

    pub(crate) fn unpin(&self) {
        let pins = self.pins.get();
        assert!(
            pins > 0,
            "block {} unpinned more often than pinned",
            self.nr.0
        );
        self.pins.set(pins - 1);
    }
}

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Block({} {:?})", self.nr.0, self.kind.get())
    }
}

/// The cache of one volume.
pub struct Cache {
    device: Rc<dyn BlockDevice>,
    geometry: Rc<Geometry>,
    blocks: RefCell<Map<BlockRef>>,
    bytes: Cell<usize>,
    budget_bytes: usize,
    /// Single-bit errors corrected from the checksum since mount.
    corrected: Cell<u64>,
    /// Blocks that are right here and wrong on the medium.
    to_heal: RefCell<Vec<BlockRef>>,
    /// Moves on with every change of a block that may be part of an extent tree.
    shape: Cell<u64>,
    /// Blocks being read, and whether what is read is outdated already.
    loading: RefCell<Map<Rc<Cell<bool>>>>,
    /// A read has ended.
    loaded: Signal,
    /// The moment that a check reads, while it lasts.
    moment: RefCell<Option<Rc<Moment>>>,
}

/// A read on its way; ends with its drop, also when its reader gives up.
struct Load<'a> {
    cache: &'a Cache,
    nr: BlockNr,
    stale: Rc<Cell<bool>>,
}

impl<'a> Load<'a> {
    /// None if the block is being read already.
    fn start(cache: &'a Cache, nr: BlockNr) -> Option<Self> {
        let mut loading = cache.loading.borrow_mut();
        if loading.contains_key(&nr) {
            return None;
        }
        let stale = Rc::<Cell<bool>>::default();
        loading.insert(nr, stale.clone());
        Some(Load { cache, nr, stale })
    }

    /// The block was made anew, or freed, while it was read.
    fn superseded(&self) -> bool {
        self.stale.get() || self.cache.blocks.borrow().contains_key(&self.nr)
    }
}

impl Drop for Load<'_> {
    fn drop(&mut self) {
        self.cache.loading.borrow_mut().remove(&self.nr);
        self.cache.loaded.notify();
    }
}

impl Cache {
    pub fn new(device: Rc<dyn BlockDevice>, geometry: Rc<Geometry>, budget_bytes: usize) -> Self {
        Cache {
            device,
            geometry,
            blocks: RefCell::default(),
            bytes: Cell::new(0),
            budget_bytes,
            corrected: Cell::new(0),
            to_heal: RefCell::default(),
            shape: Cell::new(0),
            loading: RefCell::default(),
            loaded: Signal::default(),
            moment: RefCell::default(),
        }
    }

    /// From now on the moment keeps what changes. False if there is one already. Only for the
    /// journal, which sees to it that no handle is open.
    pub(crate) fn begin_moment(&self, moment: &Rc<Moment>) -> bool {
        let mut now = self.moment.borrow_mut();
        if now.is_some() {
            return false;
        }
        *now = Some(moment.clone());
        true
    }

    /// Nobody reads the moment any more.
    pub(crate) fn drop_moment(&self) {
        self.moment.take();
    }

    pub(crate) fn moment(&self) -> Option<Rc<Moment>> {
        self.moment.borrow().clone()
    }

    /// A block is about to change from `before`; `None` if it is not in memory.
    pub(crate) fn keep(&self, nr: BlockNr, before: Option<&Bytes>) {
        if let Some(moment) = self.moment.borrow().as_ref() {
            moment.keep(nr, before.cloned());
        }
    }

    /// A block is about to be freed: what it was is kept while it is at hand.
    pub(crate) fn keep_freed(&self, nr: BlockNr) {
        if self.moment.borrow().is_none() {
            return;
        }
        let bytes = self.blocks.borrow().get(&nr).map(|block| block.snapshot());
        if bytes.is_some() {
            self.keep(nr, bytes.as_ref());
        }
    }

    /// The bytes of a block that is not at its home place yet.
    pub(crate) fn pinned(&self, nr: BlockNr) -> Option<Bytes> {
        let blocks = self.blocks.borrow();
        let block = blocks.get(&nr)?;
        (block.pins.get() > 0).then(|| block.snapshot())
    }

    /// A stamp for what is remembered of extent trees: good while it is the same.
    pub fn shape(&self) -> u64 {
        self.shape.get()
    }

    /// A block is about to change, or was put back.
    pub(crate) fn note_change(&self, kind: Kind) {
        if matches!(kind, Kind::Dinode | Kind::ExtentBlock) {
            self.shape.set(self.shape.get() + 1);
        }
    }

    pub fn corrected(&self) -> u64 {
        self.corrected.get()
    }

    pub(crate) fn wants_healing(&self) -> bool {
        !self.to_heal.borrow().is_empty()
    }

    /// The blocks that were corrected when they were read, and are still what they were: to be
    /// written again through the journal.
    pub(crate) fn take_to_heal(&self) -> Vec<BlockRef> {
        self.to_heal.take()
    }

    /// Whether this is the block of its number, not one that was freed or made anew since.
    pub(crate) fn is_current(&self, block: &BlockRef) -> bool {
        let blocks = self.blocks.borrow();
        let now = blocks.get(&block.nr());
        now.is_some_and(|now| Rc::ptr_eq(now, block))
    }

    /// A block of the given kind, from memory or from the device, checked.
    pub async fn read(&self, nr: BlockNr, kind: Kind) -> Result<BlockRef> {
        loop {
            if let Some(block) = self.peek(nr) {
                if block.kind() == kind || self.suits(&block, kind)? {
                    return Ok(block);
                }
                // Nobody uses it and it is as on the device: read again as what is asked for.
                self.forget(nr);
            }
            let Some(load) = Load::start(self, nr) else {
                // Somebody is reading it. Two reads would be a waste, and the slower one could
                // bring back bytes that the block has left behind meanwhile.
                self.loaded
                    .until(|| (!self.loading.borrow().contains_key(&nr)).then_some(()))
                    .await;
                continue;
            };
            let loaded = self.load_corrected(nr, kind).await;
            // What was read meanwhile may not even be valid: look again before complaining.
            if load.superseded() {
                continue;
            }
            let (bytes, corrected) = loaded?;
            let block = self.insert(nr, kind, bytes);
            if corrected {
                let mut to_heal = self.to_heal.borrow_mut();
                // What does not fit is corrected again when it is read again.
                if to_heal.len() < HEAL_MAX {
                    to_heal.push(block.clone());
                }
            }
            return Ok(block);
        }
    }

    /// A block of the given kind from the device, checked, not kept. For what is not changed by
    /// transactions: journal inodes, the slot map.
    pub(crate) async fn load(&self, nr: BlockNr, kind: Kind) -> Result<Vec<u8>> {
        Ok(self.load_corrected(nr, kind).await?.0)
    }

    /// As [`Cache::load`], and whether a bit had to be corrected.
    async fn load_corrected(&self, nr: BlockNr, kind: Kind) -> Result<(Vec<u8>, bool)> {
        let mut bytes = self.read_raw(nr, self.span_bytes(kind)).await?;
        let mut corrected = false;
        if self.checksummed()
            && let Verdict::Corrected { bit } = kind.verify(&mut bytes, nr)?
        {
            self.corrected.set(self.corrected.get() + 1);
            corrected = true;
            tracing::warn!(block = nr.0, bit, ?kind, "a single-bit error was corrected");
        }
        validate(kind, &bytes, nr, &self.geometry)?;
        Ok((bytes, corrected))
    }

    /// Whether a cached block may be used as `kind` as well; false if it should be read again.
    fn suits(&self, block: &BlockRef, kind: Kind) -> Result<bool> {
        let idle = block.pins.get() == 0 && Rc::strong_count(block) <= 2;
        if idle {
            return Ok(false);
        }
        // In use as another kind: right only where two kinds have one form (a block and its bytes).
        let data = block.data();
        if data.len() != self.span_bytes(kind) {
            let check = Check::new(kind.structure(), block.nr());
            return Err(check
                .fail(Why::Value {
                    field: "length",
                    found: data.len() as u64,
                    rule: "the block is in use as a structure of another size",
                })
                .into());
        }
        validate(kind, &data, block.nr(), &self.geometry)?;
        if block.kind().check_offset(data.len()).is_none() {
            block.set_kind(kind);
        }
        Ok(true)
    }

    /// Bytes straight from the device, unchecked and uncached.
    pub async fn read_raw(&self, nr: BlockNr, len: usize) -> Result<Vec<u8>> {
        let blocks = len.div_ceil(self.geometry.block_size()) as u64;
        let check = Check::new(Structure::Block, nr);
        if nr
            .0
            .checked_add(blocks)
            .is_none_or(|end| end > self.geometry.total_blocks())
        {
            let limit = self.geometry.total_blocks();
            return Err(check
                .fail(Why::Exceeds {
                    field: "block number",
                    found: nr.0,
                    limit,
                })
                .into());
        }
        let buffer = self.device.allocate(len);
        let offset = nr.0 << self.geometry.block_size_bits;
        let (buffer, result) = self.device.read(offset, buffer).await;
        result?;
        Ok(buffer.to_vec())
    }

    /// A block that was just allocated. Its bytes are the caller's to fill. Whatever is cached
    /// under its number becomes it; the second value is true if nothing was, so that a rollback
    /// knows to forget it.
    pub(crate) fn fresh(&self, nr: BlockNr, kind: Kind) -> (BlockRef, bool) {
        self.supersede(nr);
        let len = self.span_bytes(kind);
        if let Some(block) = self.peek(nr) {
            if block.data().len() == len {
                return (block, false);
            }
            self.forget(nr);
        }
        (self.insert(nr, kind, vec![0; len]), true)
    }

    pub fn peek(&self, nr: BlockNr) -> Option<BlockRef> {
        let block = self.blocks.borrow().get(&nr).cloned()?;
        block.referenced.set(true);
        Some(block)
    }

    /// Drops a block that is no longer metadata. One that a transaction still holds stays alive in
    /// there; nobody finds it here any more.
    pub(crate) fn forget(&self, nr: BlockNr) {
        self.supersede(nr);
        self.keep_freed(nr);
        if let Some(block) = self.blocks.borrow_mut().remove(&nr) {
            self.bytes.set(self.bytes.get() - block.data().len());
        }
    }

    /// Forgets everything: the device was changed from elsewhere (a replay). Nothing may be in a
    /// transaction.
    pub(crate) fn clear(&self) {
        for stale in self.loading.borrow().values() {
            stale.set(true);
        }
        self.to_heal.take();
        let blocks = self.blocks.take();
        assert!(
            blocks.values().all(|block| block.pins.get() == 0),
            "the cache is cleared while a transaction holds blocks"
        );
        self.bytes.set(0);
    }

    /// A read of the block that is on its way brings outdated bytes.
    fn supersede(&self, nr: BlockNr) {
        if let Some(stale) = self.loading.borrow().get(&nr) {
            stale.set(true);
        }
    }

    fn checksummed(&self) -> bool {
        self.geometry.has_metaecc()
    }

    fn span_bytes(&self, kind: Kind) -> usize {
        match kind {
            Kind::XattrBucket => XATTR_BUCKET_BYTES.max(self.geometry.block_size()),
            _ => self.geometry.block_size(),
        }
    }

    fn insert(&self, nr: BlockNr, kind: Kind, bytes: Vec<u8>) -> BlockRef {
        self.bytes.set(self.bytes.get() + bytes.len());
        let block = Rc::new(Block {
            nr,
            kind: Cell::new(kind),
            data: RefCell::new(Rc::new(bytes)),
            pins: Cell::new(0),
            referenced: Cell::new(true),
        });
        self.blocks.borrow_mut().insert(nr, block.clone());
        if self.bytes.get() > self.budget_bytes {
            self.evict();
        }
        block
    }

    /// Drops blocks that nobody uses and that were not used since the last round, down to
    /// three quarters of the budget. A sweep costs one pass over the map and frees at least what
    /// it takes to make the next one far away.
    fn evict(&self) {
        let target = self.budget_bytes / 4 * 3;
        let mut bytes = self.bytes.get();
        self.blocks.borrow_mut().retain(|_, block| {
            if bytes <= target || block.pins.get() > 0 || Rc::strong_count(block) > 1 {
                return true;
            }
            if block.referenced.replace(false) {
                return true;
            }
            bytes -= block.data.borrow().len();
            false
        });
        self.bytes.set(bytes);
    }
}

/// The structure's own rules. What needs to know more than the block (which directory it is of) is
/// for the reader to validate: blocks of directories and of quota files.
fn validate(kind: Kind, block: &[u8], nr: BlockNr, geometry: &Geometry) -> Result<()> {
    match kind {
        Kind::SuperBlock => {
            SuperBlock::parse_at(block, nr).map_err(|why| Error::NotAVolume(why.to_string()))?;
        }
        Kind::Dinode => Dinode::validate(block, nr, geometry)?,
        Kind::ExtentBlock => ExtentBlock::validate(block, nr, geometry)?,
        Kind::GroupDesc => GroupDesc::validate(block, nr, geometry)?,
        Kind::DxRoot => DxRoot::validate(block, nr, geometry)?,
        Kind::DxLeaf => DxLeaf::validate(block, nr, geometry)?,
        Kind::XattrBlock => XattrBlock::validate(block, nr, geometry)?,
        Kind::XattrBucket => XattrBucket::validate(block, nr, geometry)?,
        Kind::RefcountBlock => RefcountBlock::validate(block, nr, geometry)?,
        Kind::DirBlock { .. } | Kind::QuotaBlock | Kind::Raw => {}
    }
    Ok(())
}
