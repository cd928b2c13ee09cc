//! Extended attributes as they lie in one area: header, entries growing up, names and values growing down.
//!
//! An area is the end of a dinode (inline xattrs), the body of an xattr block, or a bucket of 4096 bytes; in all three
//! [`XattrArea`] reads it and [`XattrArea::validate`] holds it to its rules. A value of up to 80 bytes is local, right
//! behind its name; a longer one has its own clusters, and an [`XattrValueRoot`] in its place.

use crate::access::{layout, list, prefix, prefix_mut};
use crate::corrupt::{Check, Corrupt, Structure};
use crate::hash::{Bytes, xattr_name_hash};
use crate::le::{U16, U32, U64};
use crate::{BlockCheck, BlockNr, ExtentListHeader, ExtentListRef, ExtentRec, Geometry};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a bucket, whatever the block size.
pub const XATTR_BUCKET_BYTES: usize = 4096;
/// Longest value that lies behind its name.
pub const XATTR_LOCAL_MAX: u64 = 80;
/// Bytes of a value root with its default list of one record.
pub const XATTR_VALUE_ROOT_BYTES: usize =
    size_of::<XattrValueRoot>() + size_of::<ExtentListHeader>() + size_of::<ExtentRec>();

/// Names and values are padded to this.
pub const fn xattr_padded(len: usize) -> usize {
    len.next_multiple_of(4)
}

/// What precedes the entries.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct XattrHeader {
    /// Entries.
    pub xh_count: U16,
    /// Lowest byte of names and values.
    pub xh_free_start: U16,
    /// Bytes of all names and values.
    pub xh_name_value_len: U16,
    /// Buckets of the extent; only in its first bucket.
    pub xh_num_buckets: U16,
    /// Only in buckets; over all their blocks.
    pub xh_check: BlockCheck,
}
layout!(XattrHeader, 0x10, xh_free_start @ 2, xh_name_value_len @ 4, xh_num_buckets @ 6, xh_check @ 8);

/// One attribute.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct XattrEntry {
    /// Of the name without its prefix.
    pub xe_name_hash: U32,
    /// From the area's start.
    pub xe_name_offset: U16,
    pub xe_name_len: u8,
    /// Low seven bits: prefix. High bit: the value is local.
    pub xe_type: u8,
    pub xe_value_size: U64,
}
layout!(XattrEntry, 0x10, xe_name_offset @ 4, xe_name_len @ 6, xe_type @ 7, xe_value_size @ 8);

/// Root of a value's extent tree, without its list.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct XattrValueRoot {
    pub xr_clusters: U32,
    pub xr_reserved0: U32,
    pub xr_last_eb_blk: U64,
}
layout!(XattrValueRoot, 0x10, xr_last_eb_blk @ 8);

impl XattrValueRoot {
    /// The value root at a byte offset of a block or a bucket; its list is
    /// [`extent_list`](crate::extent_list) with [`RootKind::XattrValue`](crate::RootKind).
    pub fn at(block: &[u8], offset: usize) -> &Self {
        prefix(&block[offset..])
    }

    /// The value root at a byte offset of a block or a bucket, to change.
    pub fn at_mut(block: &mut [u8], offset: usize) -> &mut Self {
        prefix_mut(&mut block[offset..])
    }
}

/// The prefixes of names, by their number on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum XattrNamespace {
    User = 1,
    PosixAclAccess = 2,
    PosixAclDefault = 3,
    Trusted = 4,
    Security = 5,
}

impl XattrNamespace {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::User,
        Self::PosixAclAccess,
        Self::PosixAclDefault,
        Self::Trusted,
        Self::Security,
    ];

    /// The namespace of this number.
    pub fn of(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|space| *space as u8 == number)
    }

    /// What precedes the stored name in the whole one. The two ACLs are whole names: what is stored is empty.
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::User => "user.",
            Self::PosixAclAccess => "system.posix_acl_access",
            Self::PosixAclDefault => "system.posix_acl_default",
            Self::Trusted => "trusted.",
            Self::Security => "security.",
        }
    }

    /// Splits a whole name into namespace and stored name; `None` if the format has no place for it.
    pub fn split(name: &[u8]) -> Option<(Self, &[u8])> {
        Self::ALL.into_iter().find_map(|space| {
            let rest = name.strip_prefix(space.prefix().as_bytes())?;
            let whole = matches!(space, Self::PosixAclAccess | Self::PosixAclDefault);
            (whole == rest.is_empty()).then_some((space, rest))
        })
    }
}

impl XattrEntry {
    /// In `xe_type`: the value is behind the name.
    pub const LOCAL: u8 = 0x80;

    /// Whether the value is behind the name.
    pub const fn is_local(&self) -> bool {
        self.xe_type & Self::LOCAL != 0
    }

    /// The number of the namespace.
    pub const fn type_number(&self) -> u8 {
        self.xe_type & !Self::LOCAL
    }

    /// The namespace, if it is a known one.
    pub fn namespace(&self) -> Option<XattrNamespace> {
        XattrNamespace::of(self.type_number())
    }

    /// Offset of the value, or of its root, from the area's start.
    pub fn value_offset(&self) -> usize {
        usize::from(self.xe_name_offset.get()) + xattr_padded(self.xe_name_len.into())
    }

    /// Bytes of the name and what lies behind it, padded.
    pub fn name_value_len(&self) -> usize {
        let value = if self.is_local() {
            xattr_padded(
                usize::try_from(self.xe_value_size.get().min(XATTR_LOCAL_MAX)).unwrap_or(0),
            )
        } else {
            XATTR_VALUE_ROOT_BYTES
        };
        xattr_padded(self.xe_name_len.into()) + value
    }
}

/// A value as it was found in its area.
#[derive(Clone, Copy, Debug)]
pub enum XattrValue<'a> {
    /// All of it.
    Local(&'a [u8]),
    /// In clusters of its own.
    Outside(XattrValueRef<'a>),
}

/// The root of a value with clusters of its own.
#[derive(Clone, Copy, Debug)]
pub struct XattrValueRef<'a> {
    /// Offset of the root in the area.
    pub offset: usize,
    pub root: &'a XattrValueRoot,
    /// First level of the extent tree.
    pub list: ExtentListRef<'a>,
}

/// Header, entries, names and values.
#[derive(Clone, Copy, Debug)]
pub struct XattrArea<'a> {
    area: &'a [u8],
    header: &'a XattrHeader,
    entries: &'a [XattrEntry],
}

impl<'a> XattrArea<'a> {
    /// The area that `area` is, all of it.
    ///
    /// # Panics
    /// If it is shorter than a header.
    pub fn new(area: &'a [u8]) -> Self {
        let (header, entries) = list(area, |head: &XattrHeader| head.xh_count.get().into());
        Self {
            area,
            header,
            entries,
        }
    }

    /// The inline xattrs of a dinode's block; `None` if it has none.
    pub fn inline(block: &'a [u8]) -> Option<Self> {
        let bytes = crate::Dinode::of(block).inline_xattr_bytes(block.len());
        (bytes >= size_of::<XattrHeader>()).then(|| Self::new(&block[block.len() - bytes..]))
    }

    /// The header.
    pub const fn header(&self) -> &'a XattrHeader {
        self.header
    }

    /// The bytes.
    pub const fn bytes(&self) -> &'a [u8] {
        self.area
    }

    /// The entries: `xh_count`, or as many as the area has room for.
    pub const fn entries(&self) -> &'a [XattrEntry] {
        self.entries
    }

    /// The stored name of an entry, without its prefix; `None` if it lies outside (validation sees to that it does not).
    pub fn name(&self, entry: &XattrEntry) -> Option<&'a [u8]> {
        let start = usize::from(entry.xe_name_offset.get());
        self.area.get(start..start + usize::from(entry.xe_name_len))
    }

    /// The value of an entry; `None` if it lies outside (validation sees to that it does not).
    pub fn value(&self, entry: &XattrEntry) -> Option<XattrValue<'a>> {
        let offset = entry.value_offset();
        if entry.is_local() {
            let length = usize::try_from(entry.xe_value_size.get()).ok()?;
            return self
                .area
                .get(offset..offset.checked_add(length)?)
                .map(XattrValue::Local);
        }
        let fixed = size_of::<XattrValueRoot>();
        let rest = self
            .area
            .get(offset..)
            .filter(|rest| rest.len() >= fixed + size_of::<ExtentListHeader>())?;
        let (header, records) = list(&rest[fixed..], |head: &ExtentListHeader| {
            head.l_count.get().into()
        });
        let root = XattrValueRef {
            offset,
            root: prefix(rest),
            list: ExtentListRef { header, records },
        };
        Some(XattrValue::Outside(root))
    }

    /// The entry of a stored name in a namespace, with its index.
    pub fn find(&self, space: XattrNamespace, name: &[u8]) -> Option<(usize, &'a XattrEntry)> {
        self.entries
            .iter()
            .enumerate()
            .find(|(_, entry)| entry.type_number() == space as u8 && self.name(entry) == Some(name))
    }

    /// Bytes between the last entry and the first name. The format wants four zero bytes of them to stay.
    pub fn gap(&self) -> usize {
        let entries_end = size_of::<XattrHeader>() + size_of_val(self.entries);
        let lowest = self
            .entries
            .iter()
            .map(|entry| usize::from(entry.xe_name_offset.get()))
            .min();
        lowest
            .unwrap_or(self.area.len())
            .saturating_sub(entries_end)
    }

    /// Whether all entries, names and values lie inside the area and names hash to what their entries say.
    ///
    /// # Errors
    /// The rule it breaks.
    pub fn validate(&self, nr: BlockNr, geometry: &Geometry) -> Result<(), Corrupt> {
        let check = Check::new(Structure::XattrArea, nr);
        let room = (self.area.len() - size_of::<XattrHeader>()) / size_of::<XattrEntry>();
        check.at_most("xh_count", self.header.xh_count.get(), room as u64)?;
        for (index, entry) in self.entries.iter().enumerate() {
            let offset = size_of::<XattrHeader>() + index * size_of::<XattrEntry>();
            self.validate_entry(check, offset, entry, geometry)?;
        }
        Ok(())
    }

    fn validate_entry(
        &self,
        check: Check,
        offset: usize,
        entry: &XattrEntry,
        geometry: &Geometry,
    ) -> Result<(), Corrupt> {
        let entries_end = size_of::<XattrHeader>() + size_of_val(self.entries);
        let name_offset = entry.xe_name_offset.get();
        let behind = usize::from(name_offset) >= entries_end;
        check.at(
            behind,
            offset,
            "name offset leads into the entries",
            name_offset,
        )?;
        let Some(name) = self.name(entry) else {
            return check.at(false, offset, "name lies outside the area", name_offset);
        };
        let size = entry.xe_value_size.get();
        if entry.is_local() {
            check.at(
                size <= XATTR_LOCAL_MAX,
                offset,
                "local value is longer than 80 bytes",
                size,
            )?;
        }
        match self.value(entry) {
            None => check.at(false, offset, "value lies outside the area", size)?,
            Some(XattrValue::Local(_)) => {}
            Some(XattrValue::Outside(value)) => {
                let count = value.list.header.l_count.get();
                let used = value.list.header.l_next_free_rec.get();
                let fits = count > 0 && usize::from(count) == value.list.records.len();
                check.at(
                    fits,
                    offset,
                    "value root's list lies outside the area",
                    count,
                )?;
                check.at(
                    used <= count,
                    offset,
                    "value root's list has more records used than it has",
                    used,
                )?;
            }
        }
        let hash = entry.xe_name_hash.get();
        let matches = [Bytes::Unsigned, Bytes::Signed]
            .into_iter()
            .any(|bytes| xattr_name_hash(geometry.uuid_hash, name, bytes) == hash);
        check.at(matches, offset, "name does not hash to this", hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_split_at_their_prefix() {
        assert_eq!(
            XattrNamespace::split(b"user.foo"),
            Some((XattrNamespace::User, b"foo".as_slice()))
        );
        assert_eq!(
            XattrNamespace::split(b"system.posix_acl_access"),
            Some((XattrNamespace::PosixAclAccess, b"".as_slice()))
        );
        for name in [
            b"user.".as_slice(),
            b"system.other",
            b"system.posix_acl_access2",
            b"plain",
        ] {
            assert_eq!(XattrNamespace::split(name), None, "{}", name.escape_ascii());
        }
    }
}
