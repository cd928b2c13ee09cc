//! A directory's index against its entries: every name is found through it, and nothing else is in it.

use std::collections::HashMap;

use ondisk::hash::DirHash;
use ondisk::{BlockNr, DxEntry, DxLeaf, DxRoot, Kind, RootKind, extent_list};

use super::bits::Parts;
use super::dirs::Hole;
use super::extents::{Tree, TreeKind};
use super::view::Step;
use super::{Checker, Code, Spot};

/// Findings about one directory's index that are told one by one.
const TOLD_PER_INDEX: usize = 20;

/// A name of a directory, without its letters.
#[derive(Debug, Clone, Copy)]
pub(super) struct Name {
    pub hash: DirHash,
    /// As kernels of the other kind would hash it, if that differs.
    pub other: Option<DirHash>,
    /// Where its entry is.
    pub block: BlockNr,
    /// Tells names of one hash apart.
    pub print: u64,
}

/// All of an index.
pub(super) struct Index {
    pub entries: Parts<(DirHash, BlockNr)>,
    /// Where it says that the dots are.
    pub dots: Vec<BlockNr>,
    pub first_hole: BlockNr,
}

/// What has no counterpart.
#[derive(Default)]
pub(super) struct Lost {
    names: Vec<Name>,
    entries: Vec<(DirHash, BlockNr)>,
}

impl Lost {
    /// Names and index entries of the same hashes.
    pub fn match_part(&mut self, names: Vec<Name>, mut entries: Vec<(DirHash, BlockNr)>) {
        entries.sort_unstable();
        let mut entries = entries.into_iter().peekable();
        for name in names {
            let key = (name.hash, name.block);
            while let Some(before) = entries.next_if(|entry| *entry < key) {
                self.entries.push(before);
            }
            if entries.next_if(|entry| *entry == key).is_none() {
                self.names.push(name);
            }
        }
        self.entries.extend(entries);
    }
}

impl Checker<'_> {
    /// Reads an index. `None` if its root was found wrong before.
    pub(super) async fn index_entries(
        &mut self,
        dir: BlockNr,
        root: BlockNr,
        parts: usize,
    ) -> Step<Option<Index>> {
        let Some(bytes) = self.read_index_root(dir, root, false).await? else {
            return Ok(None);
        };
        let head = *DxRoot::of(&bytes);
        // Parts of the same size as those of the names, so that they hold the same hashes.
        let mut entries = Parts::new(2048 * (parts as u64 - 1));
        let mut dots = Vec::new();
        let mut count = 0u64;
        let mut take = |list: &[DxEntry]| {
            for entry in list {
                count += 1;
                let hash = entry.hash();
                // The dots are in it or not, as it was made.
                if hash == (DirHash { major: 0, minor: 0 }) {
                    dots.push(entry.dirent_block());
                } else {
                    entries.push(hash.major, (hash, entry.dirent_block()));
                }
            }
        };
        if head.is_inline() {
            take(DxRoot::entries(&bytes).used());
        } else {
            let tree = Tree {
                kind: TreeKind::Keyed,
                spot: Spot::of(dir, root),
                capacity: RootKind::DxRoot.capacity(&bytes),
                may_share: false,
                quiet: true,
            };
            let mut walk = self.walk(tree, extent_list(&bytes, RootKind::DxRoot));
            let mut extents = Vec::new();
            while let Some(leaf) = self.next_leaf(&mut walk).await? {
                extents.extend(leaf);
            }
            if extents.first().is_none_or(|first| first.cpos != 0) {
                let message = "the index does not begin with hash 0";
                self.find(Code::DxTreeCorrupt, Spot::of(dir, root), message);
            }
            for (at, extent) in extents.iter().enumerate() {
                let next = extents
                    .get(at + 1)
                    .map_or(1 << 32, |next| u64::from(next.cpos));
                for cluster in 0..extent.clusters {
                    let low = u64::from(extent.cpos) + u64::from(cluster);
                    let high = if cluster + 1 == extent.clusters {
                        next
                    } else {
                        low + 1
                    };
                    let per_cluster = self.geometry.blocks_per_cluster();
                    for leaf in 0..per_cluster {
                        let into = u64::from(cluster) * u64::from(per_cluster) + u64::from(leaf);
                        let nr = BlockNr(extent.start.0 + into);
                        if let Some(list) = self.index_leaf(dir, nr, (low, high), leaf).await? {
                            take(&list);
                        }
                    }
                }
            }
        }
        if u64::from(head.dr_num_entries.get()) != count {
            let message = format!(
                "the index counts {} entries, it has {count}",
                head.dr_num_entries.get()
            );
            self.find(Code::DxEntryCount, Spot::of(dir, root), message);
        }
        Ok(Some(Index {
            entries,
            dots,
            first_hole: BlockNr(head.dr_free_blk.get()),
        }))
    }

    /// The entries of a leaf, whose hashes a look-up must find there.
    async fn index_leaf(
        &mut self,
        dir: BlockNr,
        nr: BlockNr,
        (low, high): (u64, u64),
        leaf: u32,
    ) -> Step<Option<Vec<DxEntry>>> {
        let spot = Spot::of(dir, nr);
        let Some(bytes) = self.read(nr, Kind::DxLeaf, Some(dir)).await? else {
            return Ok(None);
        };
        if let Err(error) = DxLeaf::validate(&bytes, nr, &self.geometry) {
            self.find(Code::DxTreeCorrupt, spot, error.to_string());
            return Ok(None);
        }
        let list = DxLeaf::entries(&bytes).used().to_vec();
        let mask = self.geometry.blocks_per_cluster() - 1;
        let astray = list.iter().find(|entry| {
            let hash = entry.hash();
            !(low..high).contains(&u64::from(hash.major)) || hash.minor & mask != leaf
        });
        if let Some(entry) = astray {
            let hash = entry.hash();
            let message = format!(
                "hash {:#010x}/{:#010x} is not looked for in leaf {leaf} of {low:#x} to {high:#x}",
                hash.major, hash.minor
            );
            self.find(Code::DxLookupFailed, spot, message);
        }
        Ok(Some(list))
    }

    pub(super) async fn tell_lost(&mut self, dir: BlockNr, lost: Lost) -> Step<()> {
        let Lost { names, entries } = lost;
        let mut left: HashMap<(DirHash, BlockNr), usize> = HashMap::new();
        for entry in entries {
            *left.entry(entry).or_default() += 1;
        }
        let mut missing = Vec::new();
        for name in names {
            let key = name.other.map(|hash| (hash, name.block));
            match key.and_then(|key| left.get_mut(&key)) {
                Some(count) if *count > 0 => *count -= 1,
                _ => missing.push(name),
            }
        }
        let count = missing.len();
        for name in missing.into_iter().take(TOLD_PER_INDEX) {
            let text = self.name_in_block(true, &name).await?;
            let message = format!("the index does not lead to {text} ({count} such names)");
            self.find(Code::DxLookupFailed, Spot::of(dir, name.block), message);
        }
        let mut excess: Vec<_> = left.into_iter().filter(|(_, count)| *count > 0).collect();
        excess.sort_unstable();
        let count = excess.len();
        for ((hash, block), _) in excess.into_iter().take(TOLD_PER_INDEX) {
            let message = format!(
                "the index leads to block {block} for hash {:#010x}/{:#010x}, where no such name is ({count} such entries)",
                hash.major, hash.minor
            );
            self.find(Code::DxTreeCorrupt, Spot::of(dir, block), message);
        }
        Ok(())
    }

    /// The list of blocks with holes: of this directory, each once, and never more than there is.
    pub(super) fn check_free_list(
        &mut self,
        dir: BlockNr,
        first: BlockNr,
        holes: &HashMap<BlockNr, Hole>,
    ) {
        let mut next = first;
        let mut listed = std::collections::HashSet::new();
        while next.is_some() {
            let Some(hole) = holes.get(&next) else {
                let message = format!("the list of blocks with holes leads to block {next}");
                self.find(Code::DirFreeList, Spot::of(dir, next), message);
                break;
            };
            if !listed.insert(next) {
                let message = format!("the list of blocks with holes leads to block {next} again");
                self.find(Code::DirFreeList, Spot::of(dir, next), message);
                break;
            }
            next = hole.next;
        }
        let mut odd: Vec<(&BlockNr, &Hole)> = holes
            .iter()
            .filter(|(nr, hole)| {
                usize::from(hole.said) > hole.largest || (hole.said > 0) != listed.contains(*nr)
            })
            .collect();
        odd.sort_by_key(|(nr, _)| **nr);
        for (nr, hole) in odd.into_iter().take(TOLD_PER_INDEX) {
            let message = format!(
                "the block says that it has {} bytes for a name, it has {}, and it is {}on the list",
                hole.said,
                hole.largest,
                if listed.contains(nr) { "" } else { "not " }
            );
            self.find(Code::DirFreeHint, Spot::of(dir, *nr), message);
        }
    }
}
