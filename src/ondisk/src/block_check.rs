//! The eight bytes of checksum that every metadata block carries on a volume with META_ECC.

use crate::access::layout;
use crate::le::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// CRC and error-correcting code of a block; all zero where the volume has no META_ECC.
#[derive(
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
)]
#[repr(C)]
pub struct BlockCheck {
    /// CRC-32 (reflected, no final inversion) over the block with these eight bytes zero.
    pub bc_crc32e: U32,
    /// Hamming parity over the same bytes.
    pub bc_ecc: U16,
    pub bc_reserved1: U16,
}
layout!(BlockCheck, 8, bc_crc32e @ 0, bc_ecc @ 4, bc_reserved1 @ 6);
