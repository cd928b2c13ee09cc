//! Lock value blocks.

use core::fmt;

/// 64 bytes that travel with a lock: what the last exclusive holder wanted the next holder to know. All zero is "no
/// information": that is what a resource starts with, and what is left when an exclusive holder died.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lvb(pub [u8; Self::SIZE]);

impl Lvb {
    /// Bytes in a value block.
    pub const SIZE: usize = 64;
    /// No information.
    pub const EMPTY: Self = Self([0; Self::SIZE]);

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::EMPTY
    }
}

impl Default for Lvb {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl fmt::Debug for Lvb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let used = self
            .0
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1);
        write!(f, "Lvb(")?;
        self.0[..used]
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))?;
        write!(f, ")")
    }
}
