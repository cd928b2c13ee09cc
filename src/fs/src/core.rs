//! One mounted volume, as its parts see it: the device, the geometry, the cache, the journal, the
//! system files. Every inner module takes `&Core`; [`crate::volume::Volume`] owns it.

use std::rc::Rc;

use ondisk::{BlockNr, Geometry, SlotNr};
use runtime::{BlockDevice, Host, WallTime};

use crate::alloc;
use crate::cache::Cache;
use crate::inode::Inodes;
use crate::journal::Journal;
use crate::system::System;

/// What the inner modules share. All of it lives on one thread.
pub struct Core {
    pub device: Rc<dyn BlockDevice>,
    pub host: Rc<dyn Host>,
    pub geometry: Rc<Geometry>,
    pub cache: Rc<Cache>,
    pub journal: Journal,
    /// Our slot: which journal, allocators and orphan directory are ours.
    pub slot: SlotNr,
    pub system: System,
    pub inodes: Inodes,
    /// Hints and windows of the allocators; what counts is in their blocks.
    pub alloc: alloc::State,
}

impl Core {
    pub fn block_size(&self) -> usize {
        self.geometry.block_size()
    }

    pub fn now(&self) -> WallTime {
        self.host.wall()
    }

    /// The inode block of a system file of our slot or of the volume.
    pub fn system_file(&self, file: crate::system::SystemFile) -> BlockNr {
        self.system.of(file, self.slot)
    }
}
