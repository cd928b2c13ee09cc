//! POSIX ACLs between the form that the system call interface has (and `system.posix_acl_*` attributes therefore
//! show) and the one on the volume: a version in front of the entries, or none. The attribute operations of the door
//! call it; what an ACL means for permissions is the caller's.
//!
//! ```text
//!  shown   version 2 (4) │ tag (2) permissions (2) id (4) │ …        id is !0 where the tag names nobody
//!  stored                  tag (2) permissions (2) id (4) │ …
//! ```

use crate::error::{Error, Result};

const VERSION: [u8; 4] = 2u32.to_le_bytes();
const ENTRY: usize = 8;
/// The tags whose entries name a user or a group.
const NAMED: [u16; 2] = [0x02, 0x08];

pub(super) fn is_acl(name: &[u8]) -> bool {
    matches!(
        name,
        b"system.posix_acl_access" | b"system.posix_acl_default"
    )
}

/// The length that a stored value is shown with.
pub(super) fn shown_len(name: &[u8], stored: u64) -> u64 {
    if is_acl(name) {
        stored + VERSION.len() as u64
    } else {
        stored
    }
}

/// A stored ACL as it is shown.
pub(super) fn show(stored: &[u8]) -> Result<Vec<u8>> {
    Ok([&VERSION[..], &entries(stored)?].concat())
}

/// An ACL as it is stored.
pub(super) fn store(shown: &[u8]) -> Result<Vec<u8>> {
    match shown.split_first_chunk() {
        Some((&VERSION, rest)) => entries(rest),
        Some((version, _)) => Err(Error::NotSupported(format!(
            "ACL of version {}",
            u32::from_le_bytes(*version)
        ))),
        None => Err(Error::Invalid(format!("ACL of {} bytes", shown.len()))),
    }
}

fn entries(bytes: &[u8]) -> Result<Vec<u8>> {
    if !bytes.len().is_multiple_of(ENTRY) {
        return Err(Error::Invalid(format!(
            "ACL entries of {} bytes",
            bytes.len()
        )));
    }
    let mut entries = bytes.to_vec();
    for entry in entries.chunks_exact_mut(ENTRY) {
        if !NAMED.contains(&u16::from_le_bytes([entry[0], entry[1]])) {
            entry[4..].fill(0xff);
        }
    }
    Ok(entries)
}
