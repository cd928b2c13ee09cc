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
use std::rc::Rc;

use ondisk::{BlockNr, Geometry, Kind};
use runtime::{BlockDevice, BlockDeviceExt};

use crate::error::Result;

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
        assert!(pins > 0, "block {} unpinned more often than pinned", self.nr.0);
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
    blocks: RefCell<HashMap<BlockNr, BlockRef>>,
    bytes: Cell<usize>,
    budget_bytes: usize,
    /// Single-bit errors corrected from the checksum since mount.
    corrected: Cell<u64>,
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
        }
    }

    pub fn corrected(&self) -> u64 {
        self.corrected.get()
    }

    /// A block of the given kind, from memory or from the device, checked.
    pub async fn read(&self, nr: BlockNr, kind: Kind) -> Result<BlockRef> {
        if let Some(block) = self.peek(nr) {
            // Two tasks may have read it as different kinds only if the volume is corrupt: the
            // structure is then checked again as what is asked for now.
            if block.kind() != kind {
                ondisk::validate(kind, &block.data(), nr, &self.geometry)?;
            }
            return Ok(block);
        }
        let len = self.span_bytes(kind);
        let mut bytes = self.read_raw(nr, len).await?;
        if self.checksummed()
            && let Some(corrected) = ondisk::verify_checksum(kind, &mut bytes, nr, &self.geometry)?
        {
            self.corrected.set(self.corrected.get() + 1);
            tracing::warn!(block = nr.0, ?corrected, "a single-bit error was corrected");
        }
        ondisk::validate(kind, &bytes, nr, &self.geometry)?;
        // Another task may have read, and even changed, the block while we waited.
        if let Some(block) = self.peek(nr) {
            return Ok(block);
        }
        Ok(self.insert(nr, kind, bytes))
    }

    /// Bytes straight from the device, unchecked and uncached.
    pub async fn read_raw(&self, nr: BlockNr, len: usize) -> Result<Vec<u8>> {
        let offset = self.geometry.block_offset(nr)?;
        let buffer = self.device.allocate(len);
        let (buffer, result) = self.device.read(offset, buffer).await;
        result?;
        Ok(buffer.to_vec())
    }

    /// A block that was just allocated: all zero, not read. Whatever was cached under its number
    /// is replaced in place.
    pub(crate) fn fresh(&self, nr: BlockNr, kind: Kind) -> BlockRef {
        let len = self.span_bytes(kind);
        if let Some(block) = self.peek(nr) {
            block.set_kind(kind);
            return block;
        }
        self.insert(nr, kind, vec![0; len])
    }

    pub fn peek(&self, nr: BlockNr) -> Option<BlockRef> {
        let block = self.blocks.borrow().get(&nr).cloned()?;
        block.referenced.set(true);
        Some(block)
    }

    /// Drops a block that is no longer metadata. One that a transaction still holds stays alive in
    /// there; nobody finds it here any more.
    pub(crate) fn forget(&self, nr: BlockNr) {
        if let Some(block) = self.blocks.borrow_mut().remove(&nr) {
            self.bytes.set(self.bytes.get() - block.data().len());
        }
    }

    fn checksummed(&self) -> bool {
        self.geometry.has_metaecc()
    }

    fn span_bytes(&self, kind: Kind) -> usize {
        kind.span_bytes(self.geometry.block_size())
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
