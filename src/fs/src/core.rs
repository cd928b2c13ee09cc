//! One mounted volume, as its parts see it: the device, the geometry, the cache, the journal, the
//! system files. Every inner module takes `&Core`; [`crate::volume::Volume`] owns it.

use std::cell::OnceCell;
use std::ops::Deref;
use std::rc::Rc;

use ondisk::{BlockNr, Geometry, SlotNr};
use runtime::{BlockDevice, Host, WallTime};

use crate::alloc;
use crate::cache::Cache;
use crate::inode::Inodes;
use crate::journal::Journal;
use crate::system::System;

/// Something that mount makes once the parts it is found with exist.
pub struct Late<T>(OnceCell<T>);

impl<T> Default for Late<T> {
    fn default() -> Self {
        Late(OnceCell::new())
    }
}

impl<T> Late<T> {
    pub fn of(value: T) -> Self {
        Late(OnceCell::from(value))
    }

    pub fn is_set(&self) -> bool {
        self.0.get().is_some()
    }
}

impl<T> Deref for Late<T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.0.get().expect("mount sets it before anything uses it")
    }
}

/// What the inner modules share. All of it lives on one thread.
pub struct Core {
    pub device: Rc<dyn BlockDevice>,
    pub host: Rc<dyn Host>,
    pub geometry: Rc<Geometry>,
    pub cache: Rc<Cache>,
    pub journal: Late<Journal>,
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
