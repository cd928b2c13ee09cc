//! The one error of validation: which structure in which block breaks which rule, with the numbers.
//!
//! [`Check`] is how the `validate` functions of this crate say their rules; each rule reads as one line there.

use crate::BlockNr;
use core::fmt;

/// A block does not hold what the format says it must.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} in block {block} is corrupt: {why}")]
pub struct Corrupt {
    /// The block, or the first one where several make one structure.
    pub block: BlockNr,
    /// What was looked for there.
    pub what: Structure,
    /// The broken rule.
    pub why: Why,
}

/// Kinds of structure that can be corrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Structure {
    SuperBlock,
    Dinode,
    ExtentBlock,
    ExtentList,
    ChainList,
    GroupDesc,
    LocalAlloc,
    TruncateLog,
    DirBlock,
    DirTrailer,
    DxRoot,
    DxLeaf,
    XattrArea,
    XattrBlock,
    XattrBucket,
    RefcountBlock,
    SlotMap,
    Heartbeat,
    Quota,
    JournalSuperBlock,
    JournalDescriptor,
    JournalRevoke,
    JournalCommit,
    /// A block whose kind does not matter to the one who found it corrupt.
    Block,
}

impl fmt::Display for Structure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SuperBlock => "superblock",
            Self::Dinode => "dinode",
            Self::ExtentBlock => "extent block",
            Self::ExtentList => "extent list",
            Self::ChainList => "chain list",
            Self::GroupDesc => "group descriptor",
            Self::LocalAlloc => "local alloc",
            Self::TruncateLog => "truncate log",
            Self::DirBlock => "directory block",
            Self::DirTrailer => "directory trailer",
            Self::DxRoot => "directory index root",
            Self::DxLeaf => "directory index leaf",
            Self::XattrArea => "xattr area",
            Self::XattrBlock => "xattr block",
            Self::XattrBucket => "xattr bucket",
            Self::RefcountBlock => "refcount block",
            Self::SlotMap => "slot map",
            Self::Heartbeat => "heartbeat block",
            Self::Quota => "quota block",
            Self::JournalSuperBlock => "journal superblock",
            Self::JournalDescriptor => "journal descriptor",
            Self::JournalRevoke => "journal revoke block",
            Self::JournalCommit => "journal commit block",
            Self::Block => "structure",
        })
    }
}

/// The broken rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// Another signature, or none.
    #[error("signature is \"{}\"", found.escape_ascii())]
    Signature { found: [u8; 8] },
    /// The block says that it is another block: it was written to, or read from, the wrong place.
    #[error("it calls itself block {found}")]
    OwnBlock { found: u64 },
    /// Left over from an earlier volume on the device.
    #[error("generation is {found:#010x}, the volume's {expected:#010x}")]
    Generation { found: u32, expected: u32 },
    /// A field that has one right value has another.
    #[error("{field} is {found}, must be {expected}")]
    Differs {
        field: &'static str,
        found: u64,
        expected: u64,
    },
    /// A field exceeds what its place or another field allows.
    #[error("{field} is {found}, at most {limit} possible")]
    Exceeds {
        field: &'static str,
        found: u64,
        limit: u64,
    },
    /// A field whose value breaks a rule that is not a plain limit.
    #[error("{field} is {found}: {rule}")]
    Value {
        field: &'static str,
        found: u64,
        rule: &'static str,
    },
    /// A record inside the block, at a byte offset, breaks a rule.
    #[error("at byte {offset}: {rule} ({found})")]
    At {
        offset: usize,
        rule: &'static str,
        found: u64,
    },
    /// CRC wrong and not a single flipped bit.
    #[error("checksum is {found_crc:#010x}/{found_ecc:#06x}, computed {crc:#010x}/{ecc:#06x}")]
    Checksum {
        found_crc: u32,
        found_ecc: u16,
        crc: u32,
        ecc: u16,
    },
}

/// States rules about one structure; the first that is broken becomes the [`Corrupt`].
#[derive(Debug, Clone, Copy)]
pub struct Check {
    block: BlockNr,
    what: Structure,
}

impl Check {
    /// Rules about `what` in `block`.
    pub const fn new(what: Structure, block: BlockNr) -> Self {
        Self { block, what }
    }

    /// The error itself.
    pub const fn fail(self, why: Why) -> Corrupt {
        Corrupt {
            block: self.block,
            what: self.what,
            why,
        }
    }

    /// The eight bytes must be this signature, NUL padding included. The kernel compares as C strings, so bytes behind
    /// the first NUL do not count.
    pub fn signature(self, found: &[u8; 8], expected: &[u8; 8]) -> Result<(), Corrupt> {
        let len = expected
            .iter()
            .position(|&byte| byte == 0)
            .map_or(8, |nul| nul + 1);
        if found[..len] == expected[..len] {
            Ok(())
        } else {
            Err(self.fail(Why::Signature { found: *found }))
        }
    }

    /// The block must know its own place.
    pub fn own_block(self, found: u64) -> Result<(), Corrupt> {
        if found == self.block.0 {
            Ok(())
        } else {
            Err(self.fail(Why::OwnBlock { found }))
        }
    }

    /// The block must be of this volume's generation.
    pub fn generation(self, found: u32, expected: crate::Generation) -> Result<(), Corrupt> {
        if found == expected.0 {
            Ok(())
        } else {
            Err(self.fail(Why::Generation {
                found,
                expected: expected.0,
            }))
        }
    }

    /// `found` must be `expected`.
    pub fn equals(
        self,
        field: &'static str,
        found: impl Into<u64>,
        expected: impl Into<u64>,
    ) -> Result<(), Corrupt> {
        let (found, expected) = (found.into(), expected.into());
        if found == expected {
            Ok(())
        } else {
            Err(self.fail(Why::Differs {
                field,
                found,
                expected,
            }))
        }
    }

    /// `found` must not exceed `limit`.
    pub fn at_most(
        self,
        field: &'static str,
        found: impl Into<u64>,
        limit: impl Into<u64>,
    ) -> Result<(), Corrupt> {
        let (found, limit) = (found.into(), limit.into());
        if found <= limit {
            Ok(())
        } else {
            Err(self.fail(Why::Exceeds {
                field,
                found,
                limit,
            }))
        }
    }

    /// `holds`, or the field with this value breaks the rule.
    pub fn rule(
        self,
        holds: bool,
        field: &'static str,
        found: impl Into<u64>,
        rule: &'static str,
    ) -> Result<(), Corrupt> {
        if holds {
            Ok(())
        } else {
            Err(self.fail(Why::Value {
                field,
                found: found.into(),
                rule,
            }))
        }
    }

    /// `holds`, or the record at this byte offset breaks the rule.
    pub fn at(
        self,
        holds: bool,
        offset: usize,
        rule: &'static str,
        found: impl Into<u64>,
    ) -> Result<(), Corrupt> {
        if holds {
            Ok(())
        } else {
            Err(self.fail(Why::At {
                offset,
                rule,
                found: found.into(),
            }))
        }
    }
}
