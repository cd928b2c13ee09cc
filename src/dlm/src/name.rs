//! Names of lock resources and of domains.

use core::fmt;

/// A name of a length that the protocol does not know.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{what} name of {length} bytes; 1 to {limit} are possible")]
pub struct BadName {
    /// What was to be named.
    pub what: &'static str,
    /// How long the name is.
    pub length: usize,
    /// How long it may be.
    pub limit: usize,
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $limit:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name {
            bytes: [u8; $limit],
            length: u8,
        }

        impl $name {
            /// Bytes in the longest name.
            pub const MAX: usize = $limit;

            /// The name `name`.
            ///
            /// # Errors
            /// It is empty or too long.
            pub fn new(name: &[u8]) -> Result<Self, BadName> {
                if name.is_empty() || name.len() > Self::MAX {
                    return Err(BadName { what: $what, length: name.len(), limit: Self::MAX });
                }
                let mut bytes = [0; Self::MAX];
                bytes[..name.len()].copy_from_slice(name);
                Ok(Self { bytes, length: name.len() as u8 })
            }

            /// Its bytes.
            pub fn as_bytes(&self) -> &[u8] {
                &self.bytes[..usize::from(self.length)]
            }

            /// How many bytes it has, as the wire says it.
            pub(crate) const fn length(&self) -> u8 {
                self.length
            }

            /// Its bytes in a field of `N` bytes, zero behind them.
            pub(crate) fn padded<const N: usize>(&self) -> [u8; N] {
                let mut field = [0; N];
                field[..usize::from(self.length)].copy_from_slice(self.as_bytes());
                field
            }
        }

        impl fmt::Display for $name {
            /// Graphic ASCII as it is, every other byte as `\xNN`: a dentry lock's name has a binary end.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.as_bytes().iter().try_for_each(|byte| match byte {
                    b'!'..=b'~' => write!(f, "{}", char::from(*byte)),
                    _ => write!(f, "\\x{byte:02x}"),
                })
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

name! {
    /// The name of a lock resource: 1 to 32 bytes of any kind. The file system's own names have 31.
    LockName, "lock", 32
}
name! {
    /// The name of a domain: a volume's UUID as 32 upper-case hexadecimal digits.
    DomainName, "domain", 64
}

impl LockName {
    /// The resource whose exclusive lock makes a node the recovery master of its domain.
    pub fn recovery() -> Self {
        Self::new(b"$RECOVERY").expect("nine bytes")
    }

    /// Whether this is [`Self::recovery`].
    pub fn is_recovery(&self) -> bool {
        self.as_bytes() == b"$RECOVERY"
    }
}

impl DomainName {
    /// The key under which the domain's messages travel: CRC-32 of the name, from 0, not inverted at the end.
    pub fn key(&self) -> u32 {
        // The library starts from the complement of what it is given and ends with a complement.
        let mut hasher = crc32fast::Hasher::new_with_initial(!0);
        hasher.update(self.as_bytes());
        !hasher.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_one_to_their_limit_bytes() {
        assert!(LockName::new(b"").is_err());
        assert!(LockName::new(&[1; 32]).is_ok());
        assert_eq!(
            LockName::new(&[1; 33]),
            Err(BadName {
                what: "lock",
                length: 33,
                limit: 32
            })
        );
        assert!(DomainName::new(&[b'A'; 64]).is_ok());
        assert!(DomainName::new(&[b'A'; 65]).is_err());
    }

    #[test]
    fn a_name_is_printed_so_that_it_can_be_read() {
        assert_eq!(
            LockName::new(b"N1\0\xff").unwrap().to_string(),
            "N1\\x00\\xff"
        );
        assert!(LockName::recovery().is_recovery());
    }

    #[test]
    fn the_key_is_the_one_two_kernels_agreed_on() {
        assert_eq!(
            DomainName::new(b"4BD61E13FD444856849E9B5CB1AEECB0")
                .unwrap()
                .key(),
            0x5762_b287
        );
    }
}
