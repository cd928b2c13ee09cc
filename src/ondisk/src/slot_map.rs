//! The slot map: which node holds which slot. Content of the system file `slot_map`, in one of two forms.
//!
//! It is written in place, never through a journal, under the superblock's cluster lock, and carries no checksum. A
//! crash while writing it leaves at most one sector old or new: entries do not cross sectors.

use crate::access::{layout, records_of, records_of_mut};
use crate::corrupt::{Check, Corrupt, Structure};
use crate::feature::Incompat;
use crate::le::{U16, U32};
use crate::{BlockNr, Geometry, SlotNr};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A slot in the extended form.
#[derive(
    FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, PartialEq, Eq,
)]
#[repr(C)]
pub struct SlotMapEntryExtended {
    /// Not 0: the slot is taken.
    pub es_valid: u8,
    pub es_reserved1: [u8; 3],
    pub es_node_num: U32,
}
layout!(SlotMapEntryExtended, 8, es_node_num @ 4);

/// In the old form: the slot is free.
const OLD_FREE: u16 = 0xFFFF;

/// Bytes of the file that the map occupies: all of its content that matters, a part of its first cluster.
pub fn slot_map_bytes(geometry: &Geometry) -> usize {
    let slots = usize::from(geometry.max_slots);
    if geometry.has(Incompat::EXTENDED_SLOT_MAP) {
        slots * size_of::<SlotMapEntryExtended>()
    } else {
        slots * size_of::<U16>()
    }
}

/// The map, over the file's first bytes.
#[derive(Clone, Copy, Debug)]
pub enum SlotMapRef<'a> {
    /// A node number a slot.
    Old(&'a [U16]),
    Extended(&'a [SlotMapEntryExtended]),
}

/// The map, to change.
#[derive(Debug)]
pub enum SlotMapMut<'a> {
    /// A node number a slot.
    Old(&'a mut [U16]),
    Extended(&'a mut [SlotMapEntryExtended]),
}

/// The map in `bytes`, the start of the file that lies in block `nr`.
///
/// # Errors
/// If `bytes` (as long as the file's size allows) do not cover all slots.
pub fn slot_map<'a>(
    bytes: &'a [u8],
    nr: BlockNr,
    geometry: &Geometry,
) -> Result<SlotMapRef<'a>, Corrupt> {
    let bytes = &bytes[..checked_len(bytes.len(), nr, geometry)?];
    Ok(if geometry.has(Incompat::EXTENDED_SLOT_MAP) {
        SlotMapRef::Extended(records_of(bytes))
    } else {
        SlotMapRef::Old(records_of(bytes))
    })
}

/// The map in `bytes`, to change.
///
/// # Errors
/// As [`slot_map`].
pub fn slot_map_mut<'a>(
    bytes: &'a mut [u8],
    nr: BlockNr,
    geometry: &Geometry,
) -> Result<SlotMapMut<'a>, Corrupt> {
    let len = checked_len(bytes.len(), nr, geometry)?;
    let bytes = &mut bytes[..len];
    Ok(if geometry.has(Incompat::EXTENDED_SLOT_MAP) {
        SlotMapMut::Extended(records_of_mut(bytes))
    } else {
        SlotMapMut::Old(records_of_mut(bytes))
    })
}

fn checked_len(found: usize, nr: BlockNr, geometry: &Geometry) -> Result<usize, Corrupt> {
    let needed = slot_map_bytes(geometry);
    let check = Check::new(Structure::SlotMap, nr);
    check.rule(
        found >= needed,
        "size",
        found as u64,
        "too short for all slots",
    )?;
    Ok(needed)
}

impl SlotMapRef<'_> {
    /// Slots there are.
    pub const fn len(&self) -> usize {
        match self {
            Self::Old(slots) => slots.len(),
            Self::Extended(slots) => slots.len(),
        }
    }

    /// Whether there is no slot at all, which no valid volume has.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The node that holds `slot`; `None` if it is free or does not exist.
    pub fn node(&self, slot: SlotNr) -> Option<u32> {
        let index = usize::from(slot.0);
        match self {
            Self::Old(slots) => {
                let node = slots.get(index)?.get();
                (node != OLD_FREE).then_some(u32::from(node))
            }
            Self::Extended(slots) => {
                let entry = slots.get(index)?;
                (entry.es_valid != 0).then(|| entry.es_node_num.get())
            }
        }
    }

    /// The slot that `node` holds.
    pub fn slot_of(&self, node: u32) -> Option<SlotNr> {
        self.taken()
            .find(|&(_, holder)| holder == node)
            .map(|(slot, _)| slot)
    }

    /// The first free slot.
    pub fn first_free(&self) -> Option<SlotNr> {
        self.slots().find(|&slot| self.node(slot).is_none())
    }

    /// All taken slots with their nodes.
    pub fn taken(&self) -> impl Iterator<Item = (SlotNr, u32)> {
        self.slots()
            .filter_map(|slot| Some((slot, self.node(slot)?)))
    }

    fn slots(&self) -> impl Iterator<Item = SlotNr> + use<> {
        (0..self.len() as u16).map(SlotNr)
    }
}

impl SlotMapMut<'_> {
    /// The same map to read.
    pub fn as_ref(&self) -> SlotMapRef<'_> {
        match self {
            Self::Old(slots) => SlotMapRef::Old(slots),
            Self::Extended(slots) => SlotMapRef::Extended(slots),
        }
    }

    /// Gives `slot` to `node`, or frees it.
    ///
    /// # Panics
    /// If there is no such slot, or the old form cannot say the node's number.
    pub fn set(&mut self, slot: SlotNr, node: Option<u32>) {
        let index = usize::from(slot.0);
        match self {
            Self::Old(slots) => {
                let node = node.map_or(OLD_FREE, |node| {
                    u16::try_from(node).expect("node numbers are below 255")
                });
                slots[index].set(node);
            }
            Self::Extended(slots) => {
                slots[index] = SlotMapEntryExtended {
                    es_valid: u8::from(node.is_some()),
                    es_reserved1: [0; 3],
                    es_node_num: node.unwrap_or(0).into(),
                };
            }
        }
    }
}
