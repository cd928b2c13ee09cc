//! Nodes of the cluster and sets of them.

use core::fmt;

/// A node's number in `cluster.conf`: 0 to 254.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeNr(u8);

impl NodeNr {
    /// On the wire: no node, or an owner that is not known.
    pub const UNKNOWN: u8 = 255;

    /// Node `nr`, unless that is the number that stands for none.
    pub const fn new(nr: u8) -> Option<Self> {
        if nr == Self::UNKNOWN {
            None
        } else {
            Some(Self(nr))
        }
    }

    /// The plain number.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// The byte that stands for `node` on the wire.
    pub const fn byte(node: Option<Self>) -> u8 {
        match node {
            Some(node) => node.0,
            None => Self::UNKNOWN,
        }
    }
}

impl fmt::Display for NodeNr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for NodeNr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

/// A set of nodes. As bytes: node n is bit n % 8 of byte n / 8, as the kernel's bitmaps are on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct NodeSet([u64; 4]);

impl NodeSet {
    /// Nobody.
    pub const EMPTY: Self = Self([0; 4]);

    /// From the wire. The last bit stands for no node and is dropped.
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        let mut set = Self::EMPTY;
        for nr in 0..NodeNr::UNKNOWN {
            if bytes[usize::from(nr / 8)] >> (nr % 8) & 1 == 1 {
                set.insert(NodeNr(nr));
            }
        }
        set
    }

    /// For the wire.
    pub fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(self.0) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Adds a node; whether it was not there.
    pub fn insert(&mut self, node: NodeNr) -> bool {
        let (word, bit) = Self::place(node);
        let new = self.0[word] & bit == 0;
        self.0[word] |= bit;
        new
    }

    /// Takes a node out; whether it was there.
    pub fn remove(&mut self, node: NodeNr) -> bool {
        let (word, bit) = Self::place(node);
        let old = self.0[word] & bit != 0;
        self.0[word] &= !bit;
        old
    }

    /// Whether the node is in it.
    pub fn contains(&self, node: NodeNr) -> bool {
        let (word, bit) = Self::place(node);
        self.0[word] & bit != 0
    }

    /// The same set with one node more.
    #[must_use]
    pub fn with(mut self, node: NodeNr) -> Self {
        self.insert(node);
        self
    }

    /// The same set without a node.
    #[must_use]
    pub fn without(mut self, node: NodeNr) -> Self {
        self.remove(node);
        self
    }

    /// Nodes of either set.
    #[must_use]
    pub fn union(mut self, other: Self) -> Self {
        self.0.iter_mut().zip(other.0).for_each(|(a, b)| *a |= b);
        self
    }

    /// Nodes of both sets.
    #[must_use]
    pub fn intersection(mut self, other: Self) -> Self {
        self.0.iter_mut().zip(other.0).for_each(|(a, b)| *a &= b);
        self
    }

    /// Nodes of this set that are not in the other.
    #[must_use]
    pub fn difference(mut self, other: Self) -> Self {
        self.0.iter_mut().zip(other.0).for_each(|(a, b)| *a &= !b);
        self
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether nobody is in it.
    pub fn is_empty(&self) -> bool {
        self.0 == [0; 4]
    }

    /// The lowest number in it.
    pub fn first(&self) -> Option<NodeNr> {
        self.iter().next()
    }

    /// Nodes in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = NodeNr> + use<> {
        let words = self.0;
        words.into_iter().enumerate().flat_map(|(index, mut word)| {
            core::iter::from_fn(move || {
                let bit = word.trailing_zeros();
                word &= word.wrapping_sub(1);
                (bit < 64).then(|| NodeNr((index * 64) as u8 + bit as u8))
            })
        })
    }

    fn place(node: NodeNr) -> (usize, u64) {
        (usize::from(node.0 / 64), 1 << (node.0 % 64))
    }
}

impl FromIterator<NodeNr> for NodeSet {
    fn from_iter<T: IntoIterator<Item = NodeNr>>(nodes: T) -> Self {
        let mut set = Self::EMPTY;
        nodes.into_iter().for_each(|node| {
            set.insert(node);
        });
        set
    }
}

impl fmt::Debug for NodeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn set_of(nrs: &BTreeSet<u8>) -> NodeSet {
        nrs.iter().filter_map(|nr| NodeNr::new(*nr)).collect()
    }

    proptest! {
        #[test]
        fn a_node_set_is_a_set(a: BTreeSet<u8>, b: BTreeSet<u8>) {
            let (a, b): (BTreeSet<u8>, BTreeSet<u8>) =
                (a.into_iter().filter(|n| *n < 255).collect(), b.into_iter().filter(|n| *n < 255).collect());
            let (x, y) = (set_of(&a), set_of(&b));
            prop_assert_eq!(x.iter().map(NodeNr::get).collect::<BTreeSet<_>>(), a.clone());
            prop_assert_eq!(x.count(), a.len());
            prop_assert_eq!(x.first().map(NodeNr::get), a.first().copied());
            prop_assert_eq!(x.union(y), set_of(&(&a | &b)));
            prop_assert_eq!(x.intersection(y), set_of(&(&a & &b)));
            prop_assert_eq!(x.difference(y), set_of(&(&a - &b)));
            prop_assert_eq!(NodeSet::from_bytes(&x.to_bytes()), x);
        }
    }

    #[test]
    fn bit_n_of_the_wire_is_node_n() {
        let mut bytes = [0; 32];
        bytes[1] = 0b101;
        bytes[31] = 0x80; // node 255: nobody
        let set = NodeSet::from_bytes(&bytes);
        assert_eq!(set.iter().map(NodeNr::get).collect::<Vec<_>>(), [8, 10]);
    }
}
