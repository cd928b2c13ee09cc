//! The attributes of one area (the end of a dinode, the body of an xattr block, a bucket), taken out as a list and laid
//! out again. Called by everything in [`crate::xattr`] that changes attributes.
//!
//! An area is always written whole and compact: entries in list order, names and values from its end downwards in the
//! same order. That leaves no holes to collect later, keeps the counters of a bucket's header exact, and satisfies what
//! the kernel expects when it turns a block into a bucket: the last entry's name is the lowest.

use ondisk::{
    BlockNr, Check, Corrupt, Structure, Why, XATTR_VALUE_ROOT_BYTES, XattrArea, XattrEntry,
    XattrHeader, XattrValue, xattr_padded,
};
use zerocopy::{FromBytes, IntoBytes};

use super::name::Name;

/// Zero bytes that always stay between the last entry and the lowest name.
const GAP: usize = 4;
const HEADER: usize = size_of::<XattrHeader>();
const ENTRY: usize = size_of::<XattrEntry>();

/// What is stored behind a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stored {
    /// The value itself, at most 80 bytes.
    Local(Vec<u8>),
    /// The root of the value's tree, as it is on disk, and the value's size in bytes.
    Outside {
        root: [u8; XATTR_VALUE_ROOT_BYTES],
        size: u64,
    },
}

/// One attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    pub hash: u32,
    pub name: Name,
    pub stored: Stored,
}

impl Item {
    /// Bytes of the value.
    pub fn size(&self) -> u64 {
        match &self.stored {
            Stored::Local(value) => value.len() as u64,
            Stored::Outside { size, .. } => *size,
        }
    }

    pub fn is_outside(&self) -> bool {
        matches!(self.stored, Stored::Outside { .. })
    }

    /// Bytes of name and value, padded.
    fn name_value_bytes(&self) -> usize {
        let value = match &self.stored {
            Stored::Local(value) => xattr_padded(value.len()),
            Stored::Outside { root, .. } => root.len(),
        };
        xattr_padded(self.name.suffix.len()) + value
    }

    /// Bytes that the attribute takes from an area.
    pub fn bytes(&self) -> usize {
        ENTRY + self.name_value_bytes()
    }
}

/// How an area wants its names and values laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// The end of a dinode or the body of an xattr block: one piece.
    Plain,
    /// A bucket: no name and value cross a boundary between blocks of this size.
    Bucket { block_size: usize },
}

/// The attributes of an area, in its order.
pub(crate) fn items(bytes: &[u8], nr: BlockNr) -> Result<Vec<Item>, Corrupt> {
    let area = XattrArea::new(bytes);
    let mut items = Vec::with_capacity(area.entries().len());
    for (index, entry) in area.entries().iter().enumerate() {
        let broken = |rule| {
            let why = Why::At {
                offset: HEADER + index * ENTRY,
                rule,
                found: u64::from(entry.xe_name_offset.get()),
            };
            Check::new(Structure::XattrArea, nr).fail(why)
        };
        let name = area
            .name(entry)
            .ok_or_else(|| broken("name lies outside the area"))?;
        let stored = match area.value(entry) {
            Some(XattrValue::Local(value)) => Stored::Local(value.to_vec()),
            Some(XattrValue::Outside(value)) => {
                // A root with more room than one record would overlap its neighbour.
                if value.list.header.l_count.get() != 1 {
                    return Err(broken("value root has room for more than one record"));
                }
                let root = bytes.get(value.offset..value.offset + XATTR_VALUE_ROOT_BYTES);
                let root = root.and_then(|root| root.try_into().ok());
                let root = root.ok_or_else(|| broken("value root lies outside the area"))?;
                Stored::Outside {
                    root,
                    size: entry.xe_value_size.get(),
                }
            }
            None => return Err(broken("value lies outside the area")),
        };
        let name = Name {
            index: entry.type_number(),
            suffix: name.to_vec(),
        };
        items.push(Item {
            hash: entry.xe_name_hash.get(),
            name,
            stored,
        });
    }
    Ok(items)
}

/// Where in an area of `len` bytes each item's name goes; `None` if they do not all fit.
fn layout(items: &[Item], len: usize, shape: Shape) -> Option<Vec<usize>> {
    let floor = HEADER + items.len() * ENTRY + GAP;
    let mut end = len;
    let mut places = Vec::with_capacity(items.len());
    for item in items {
        let size = item.name_value_bytes();
        if let Shape::Bucket { block_size } = shape
            && size > 0
            && end.checked_sub(size)? / block_size != (end - 1) / block_size
        {
            end -= end % block_size;
        }
        end = end.checked_sub(size).filter(|&end| end >= floor)?;
        places.push(end);
    }
    // An attribute of no bytes at all (an ACL without a value) lies at the end of the one before.
    (floor <= len).then_some(places)
}

/// Whether the items fit into an area of `len` bytes.
pub(crate) fn fits(items: &[Item], len: usize, shape: Shape) -> bool {
    layout(items, len, shape).is_some()
}

/// Writes an area: header, entries, names and values, zeros between. What a bucket's header says about its extent
/// stays; an emptied bucket keeps the hash of its first entry, by which it is still found.
///
/// # Panics
/// If the items do not fit: [`fits`] has said that they do.
pub(crate) fn write(items: &[Item], bytes: &mut [u8], shape: Shape) {
    let places =
        layout(items, bytes.len(), shape).expect("the caller has checked that the items fit");
    let old = XattrHeader::read_from_prefix(bytes)
        .expect("an area is longer than its header")
        .0;
    let old_hash: [u8; 4] = bytes[HEADER..HEADER + 4].try_into().expect("four bytes");
    let len = bytes.len();
    bytes.fill(0);
    let mut header = XattrHeader {
        xh_count: (items.len() as u16).into(),
        ..old
    };
    if matches!(shape, Shape::Bucket { .. }) {
        let lowest = places.last().copied().unwrap_or(len);
        header.xh_free_start.set(lowest as u16);
        header
            .xh_name_value_len
            .set(items.iter().map(Item::name_value_bytes).sum::<usize>() as u16);
        if items.is_empty() {
            bytes[HEADER..HEADER + 4].copy_from_slice(&old_hash);
        }
    } else {
        header.xh_free_start.set(0);
        header.xh_name_value_len.set(0);
    }
    bytes[..HEADER].copy_from_slice(header.as_bytes());
    for (index, (item, &place)) in items.iter().zip(&places).enumerate() {
        let local = if item.is_outside() {
            0
        } else {
            XattrEntry::LOCAL
        };
        let entry = XattrEntry {
            xe_name_hash: item.hash.into(),
            xe_name_offset: (place as u16).into(),
            xe_name_len: item.name.suffix.len() as u8,
            xe_type: item.name.index | local,
            xe_value_size: item.size().into(),
        };
        let at = HEADER + index * ENTRY;
        bytes[at..at + ENTRY].copy_from_slice(entry.as_bytes());
        let suffix = &item.name.suffix;
        bytes[place..place + suffix.len()].copy_from_slice(suffix);
        let value: &[u8] = match &item.stored {
            Stored::Local(value) => value,
            Stored::Outside { root, .. } => root,
        };
        let at = place + xattr_padded(suffix.len());
        bytes[at..at + value.len()].copy_from_slice(value);
    }
}

/// The offset of each item's value (or value root) once [`write`] has laid them out.
pub(crate) fn value_offset(
    items: &[Item],
    index: usize,
    len: usize,
    shape: Shape,
) -> Option<usize> {
    let place = *layout(items, len, shape)?.get(index)?;
    Some(place + xattr_padded(items[index].name.suffix.len()))
}
