//! The three hashes of the format: names in indexed directories, xattr names, and the volume's UUID.
//!
//! # Signedness
//! Kernels before 6.2 on x86 took the bytes of a name as *signed*, so names outside ASCII hash differently there.
//! New entries are written as [`Bytes::WRITTEN`] says; a look-up that fails has to be repeated with [`Bytes::OTHER`], or
//! entries written by somebody of the other kind are not found. `docs/decisions/003-signed-name-hashes.md` says why.

/// How the bytes of a name enter a hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bytes {
    /// As 0–255: Linux from 6.2 on, and before it where `char` has no sign.
    Unsigned,
    /// As −128–127: Linux before 6.2 and ocfs2-tools, on x86.
    Signed,
}

impl Bytes {
    /// How new entries are hashed: as fsck.ocfs2 on x86 checks them, as Linux before 6.2 finds them there, and newer
    /// kernels at their second look-up.
    pub const WRITTEN: Self = Self::Signed;
    /// What else may be on a volume.
    pub const OTHER: Self = Self::Unsigned;

    /// The byte as it enters 32-bit arithmetic.
    const fn widen(self, byte: u8) -> u32 {
        match self {
            Self::Unsigned => byte as u32,
            Self::Signed => byte as i8 as i32 as u32,
        }
    }

    /// Whether the two readings of `name` differ at all, i.e. whether the second look-up is of any use.
    pub fn matters_for(name: &[u8]) -> bool {
        !name.is_ascii()
    }
}

/// Place of a name in a directory's index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DirHash {
    /// Selects the cluster, through the extent tree of the index.
    pub major: u32,
    /// Selects the leaf block inside the cluster.
    pub minor: u32,
}

/// The hash of `name` in a directory index. `seed` is [`Geometry::dx_seed`](crate::Geometry::dx_seed): three words of
/// the superblock and the UUID's hash.
pub fn dir_hash(seed: &[u32; 4], name: &[u8], bytes: Bytes) -> DirHash {
    if name == b"." || name == b".." {
        return DirHash { major: 0, minor: 0 };
    }
    let mut state = [seed[0], seed[1]];
    let mut rest = name;
    while !rest.is_empty() {
        tea_mix(&mut state, pack(rest, bytes));
        rest = rest.get(16..).unwrap_or_default();
    }
    DirHash {
        major: state[0],
        minor: state[1],
    }
}

/// The first 16 bytes of `rest` as four words. What a word lacks of four bytes, and words beyond the name, are filled
/// from the length that remains.
fn pack(rest: &[u8], bytes: Bytes) -> [u32; 4] {
    let len = rest.len() as u32;
    let pad = len | len << 8;
    let pad = pad | pad << 16;
    let mut words = [pad; 4];
    for (word, chunk) in words.iter_mut().zip(rest.chunks(4)) {
        for &byte in chunk {
            *word = bytes.widen(byte).wrapping_add(*word << 8);
        }
    }
    words
}

/// Sixteen rounds of the Tiny Encryption Algorithm, added to the state.
fn tea_mix(state: &mut [u32; 2], key: [u32; 4]) {
    const DELTA: u32 = 0x9E37_79B9;
    let [mut b0, mut b1] = *state;
    let mut sum = 0u32;
    for _ in 0..16 {
        sum = sum.wrapping_add(DELTA);
        b0 = b0.wrapping_add(
            (b1 << 4).wrapping_add(key[0]) ^ b1.wrapping_add(sum) ^ (b1 >> 5).wrapping_add(key[1]),
        );
        b1 = b1.wrapping_add(
            (b0 << 4).wrapping_add(key[2]) ^ b0.wrapping_add(sum) ^ (b0 >> 5).wrapping_add(key[3]),
        );
    }
    state[0] = state[0].wrapping_add(b0);
    state[1] = state[1].wrapping_add(b1);
}

/// The hash of an xattr's name, *without* its prefix (`user.` and so on). Seeded with the UUID's hash.
pub fn xattr_name_hash(uuid_hash: u32, name: &[u8], bytes: Bytes) -> u32 {
    fold(uuid_hash, name, bytes)
}

/// The hash of the volume's UUID, which seeds the others. Stored in the superblock as `s_uuid_hash`.
pub fn uuid_hash(uuid: &[u8; 16]) -> u32 {
    fold(0, uuid, Bytes::Unsigned)
}

fn fold(start: u32, data: &[u8], bytes: Bytes) -> u32 {
    data.iter().fold(start, |hash, &byte| {
        hash << 5 ^ hash >> 27 ^ bytes.widen(byte)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Vectors of the kernel's own code, facts/ocfs2-format.md section 8.2.
    #[test]
    fn directory_hash_is_the_kernels() {
        let long = [b'x'; 255];
        let vectors: [(&[u8], u32, u32); 6] = [
            (b"a", 0x9f6c_a25e, 0x08ec_3d3e),
            (b"abcd", 0x12c0_50c9, 0x9fef_7233),
            (b"lost+found", 0x8ef6_095a, 0x27c3_ab27),
            (b"0123456789abcdef", 0x41d4_68e7, 0xde38_81a1),
            (b"0123456789abcdef0", 0xcc1f_1fd7, 0xed04_0281),
            (&long, 0x35c5_1fdf, 0x7bb7_5ba0),
        ];
        for (name, major, minor) in vectors {
            for bytes in [Bytes::Unsigned, Bytes::Signed] {
                let found = dir_hash(&[1, 2, 3, 4], name, bytes);
                assert_eq!(found, DirHash { major, minor }, "{}", name.escape_ascii());
            }
        }
    }

    #[test]
    fn bytes_above_127_hash_by_signedness() {
        let name = [0xc3, 0xbc, 0x62, 0x65, 0x72];
        let hash = |bytes| dir_hash(&[1, 2, 3, 4], &name, bytes);
        assert_eq!(
            hash(Bytes::Unsigned),
            DirHash {
                major: 0x5d50_265d,
                minor: 0xa2b1_720f
            }
        );
        assert_eq!(
            hash(Bytes::Signed),
            DirHash {
                major: 0x279a_748c,
                minor: 0xcb0d_f948
            }
        );
        assert!(Bytes::matters_for(&name));
    }

    #[test]
    fn dot_and_dotdot_hash_to_zero() {
        for name in [b".".as_slice(), b".."] {
            assert_eq!(
                dir_hash(&[1, 2, 3, 4], name, Bytes::Unsigned),
                DirHash { major: 0, minor: 0 }
            );
        }
    }

    /// Facts, section 9.
    #[test]
    fn xattr_hash_is_the_kernels() {
        assert_eq!(
            xattr_name_hash(0x93e3_8655, b"foo", Bytes::Unsigned),
            0xc32b_5c7e
        );
        assert_eq!(
            xattr_name_hash(0x93e3_8655, b"selinux", Bytes::Unsigned),
            0x93e9_0468
        );
    }
}
