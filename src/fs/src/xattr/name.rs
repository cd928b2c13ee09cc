//! Names of extended attributes: what a client says (`user.foo`) against what is stored (a number for the prefix and
//! the rest of the name). Called by the public operations of [`crate::xattr`]; owns the errors of names that cannot be.

use ondisk::XattrNamespace;
use ondisk::hash::{Bytes, xattr_name_hash};

use crate::error::{Error, Result};
use crate::limits::NAME_MAX;

/// A name in its stored form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name {
    /// The prefix's number.
    pub index: u8,
    /// The name behind its prefix.
    pub suffix: Vec<u8>,
}

impl Name {
    /// The stored form of a full name.
    ///
    /// # Errors
    /// `Range` for a length that is not 1 to 255, `NotSupported` for an unknown prefix, `Invalid` for a prefix with
    /// nothing behind it or a NUL inside.
    pub fn parse(full: &[u8]) -> Result<Name> {
        if full.is_empty() || full.len() > NAME_MAX {
            return Err(Error::Range(format!("xattr name of {} bytes", full.len())));
        }
        let shown = || String::from_utf8_lossy(full).into_owned();
        if full.contains(&0) {
            return Err(Error::Invalid(format!("NUL in xattr name {}", shown())));
        }
        if let Some((space, suffix)) = XattrNamespace::split(full) {
            return Ok(Name {
                index: space as u8,
                suffix: suffix.to_vec(),
            });
        }
        if XattrNamespace::ALL
            .iter()
            .any(|space| space.prefix().as_bytes() == full)
        {
            return Err(Error::Invalid(format!(
                "xattr name {} ends with its prefix",
                shown()
            )));
        }
        Err(Error::NotSupported(format!(
            "xattr name {}: unknown prefix",
            shown()
        )))
    }

    /// The full name of a stored one; `None` for a prefix that nobody knows, which the kernel does not list either.
    pub fn full(index: u8, suffix: &[u8]) -> Option<Vec<u8>> {
        let prefix = XattrNamespace::of(index)?.prefix();
        Some([prefix.as_bytes(), suffix].concat())
    }

    /// The hash that new entries are sorted by.
    pub fn hash(&self, uuid_hash: u32) -> u32 {
        xattr_name_hash(uuid_hash, &self.suffix, Bytes::WRITTEN)
    }

    /// Every hash that the entry may have been stored with: name bytes were taken as signed or not.
    pub fn hashes(&self, uuid_hash: u32) -> Vec<u32> {
        let mut hashes = vec![self.hash(uuid_hash)];
        if Bytes::matters_for(&self.suffix) {
            hashes.push(xattr_name_hash(uuid_hash, &self.suffix, Bytes::OTHER));
        }
        hashes
    }

    /// For messages.
    pub fn display(&self) -> String {
        let full = Name::full(self.index, &self.suffix).unwrap_or_else(|| self.suffix.clone());
        String::from_utf8_lossy(&full).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_split_and_joined() {
        for (full, index, suffix) in [
            (&b"user.a"[..], 1, &b"a"[..]),
            (b"system.posix_acl_access", 2, b""),
            (b"system.posix_acl_default", 3, b""),
            (b"trusted.overlay.opaque", 4, b"overlay.opaque"),
            (b"security.selinux", 5, b"selinux"),
        ] {
            let name = Name::parse(full).unwrap();
            assert_eq!((name.index, &name.suffix[..]), (index, suffix));
            assert_eq!(Name::full(index, suffix).unwrap(), full);
        }
        assert_eq!(Name::full(0, b"x"), None);
        assert_eq!(Name::full(6, b"x"), None);
    }

    #[test]
    fn bad_names_have_their_own_errors() {
        assert!(matches!(Name::parse(b""), Err(Error::Range(_))));
        assert!(matches!(Name::parse(&[b'u'; 256]), Err(Error::Range(_))));
        assert!(matches!(Name::parse(b"user."), Err(Error::Invalid(_))));
        assert!(matches!(Name::parse(b"user.a\0b"), Err(Error::Invalid(_))));
        assert!(matches!(
            Name::parse(b"system.other"),
            Err(Error::NotSupported(_))
        ));
        assert!(matches!(
            Name::parse(b"system.posix_acl_access2"),
            Err(Error::NotSupported(_))
        ));
        assert!(matches!(Name::parse(b"foo"), Err(Error::NotSupported(_))));
    }
}
