//! The root of a tree: which block it is in, and where its clusters count and its last-leaf pointer
//! are. The only file that knows how the five kinds of root differ.

use ondisk::{
    BlockNr, Corrupt, Dinode, DxRoot, RefcountBlock, RootKind, Structure, Why, XattrTreeRoot,
    XattrValueRoot,
};

use crate::cache::BlockRef;
use crate::core::Core;
use crate::error::{Error, Result};
use crate::journal::Handle;
use crate::limits::EXTENT_CLUSTERS_MAX;

/// Most bytes one record of an xattr tree covers.
const XATTR_LEAF_BYTES_MAX: usize = 65536;

/// A tree, by the block that holds its root.
#[derive(Debug, Clone)]
pub struct Root {
    pub block: BlockRef,
    pub kind: RootKind,
}

impl Root {
    pub fn new(block: BlockRef, kind: RootKind) -> Root {
        Root { block, kind }
    }

    /// The tree of a file's or a directory's clusters.
    pub fn dinode(block: &BlockRef) -> Root {
        Root::new(block.clone(), RootKind::Dinode)
    }

    /// Keys are hashes or numbers that do not count clusters: a record is found as the last one not
    /// behind a key, and records may seem to overlap.
    pub(super) fn is_keyed(&self) -> bool {
        matches!(
            self.kind,
            RootKind::DxRoot | RootKind::XattrTree | RootKind::Refcount
        )
    }

    /// Whether a leaf record points to clusters and not to a single block.
    pub(super) fn holds_clusters(&self) -> bool {
        self.kind != RootKind::Refcount
    }

    /// Most clusters of one record; neighbours are not merged beyond it.
    pub(super) fn record_max(&self, core: &Core) -> u32 {
        match self.kind {
            RootKind::XattrTree => {
                let clusters = (XATTR_LEAF_BYTES_MAX / core.geometry.cluster_size()) as u32;
                clusters.clamp(1, EXTENT_CLUSTERS_MAX)
            }
            RootKind::Refcount => 1,
            _ => EXTENT_CLUSTERS_MAX,
        }
    }

    /// The rightmost leaf, or 0 while the root is the leaf.
    pub fn last_leaf(&self) -> BlockNr {
        let data = self.block.data();
        BlockNr(match self.kind {
            RootKind::Dinode => Dinode::of(&data).i_last_eb_blk.get(),
            RootKind::DxRoot => DxRoot::of(&data).dr_last_eb_blk.get(),
            RootKind::Refcount => RefcountBlock::of(&data).rf_last_eb_blk.get(),
            RootKind::XattrTree => XattrTreeRoot::of(&data).xt_last_eb_blk.get(),
            RootKind::XattrValue { offset } => {
                XattrValueRoot::at(&data, offset).xr_last_eb_blk.get()
            }
            RootKind::ExtentBlock | RootKind::GroupDesc => unreachable!("no root of a tree"),
        })
    }

    pub(super) fn set_last_leaf(&self, h: &mut Handle<'_>, leaf: BlockNr) {
        if self.last_leaf() == leaf {
            return;
        }
        let mut data = h.modify(&self.block);
        match self.kind {
            RootKind::Dinode => Dinode::of_mut(&mut data).i_last_eb_blk.set(leaf.0),
            RootKind::DxRoot => DxRoot::of_mut(&mut data).dr_last_eb_blk.set(leaf.0),
            RootKind::Refcount => RefcountBlock::of_mut(&mut data).rf_last_eb_blk.set(leaf.0),
            RootKind::XattrTree => XattrTreeRoot::of_mut(&mut data).xt_last_eb_blk.set(leaf.0),
            RootKind::XattrValue { offset } => {
                XattrValueRoot::at_mut(&mut data, offset)
                    .xr_last_eb_blk
                    .set(leaf.0);
            }
            RootKind::ExtentBlock | RootKind::GroupDesc => unreachable!("no root of a tree"),
        }
    }

    /// Clusters the whole tree holds, as counted beside the root.
    pub fn clusters(&self) -> u32 {
        let data = self.block.data();
        match self.kind {
            RootKind::Dinode => Dinode::of(&data).i_clusters.get(),
            RootKind::DxRoot => DxRoot::of(&data).dr_clusters.get(),
            RootKind::Refcount => RefcountBlock::of(&data).rf_clusters.get(),
            RootKind::XattrTree => XattrTreeRoot::of(&data).xt_clusters.get(),
            RootKind::XattrValue { offset } => XattrValueRoot::at(&data, offset).xr_clusters.get(),
            RootKind::ExtentBlock | RootKind::GroupDesc => unreachable!("no root of a tree"),
        }
    }

    fn set_clusters(&self, h: &mut Handle<'_>, clusters: u32) {
        let mut data = h.modify(&self.block);
        match self.kind {
            RootKind::Dinode => Dinode::of_mut(&mut data).i_clusters.set(clusters),
            RootKind::DxRoot => DxRoot::of_mut(&mut data).dr_clusters.set(clusters),
            RootKind::Refcount => RefcountBlock::of_mut(&mut data).rf_clusters.set(clusters),
            RootKind::XattrTree => XattrTreeRoot::of_mut(&mut data).xt_clusters.set(clusters),
            RootKind::XattrValue { offset } => {
                XattrValueRoot::at_mut(&mut data, offset)
                    .xr_clusters
                    .set(clusters);
            }
            RootKind::ExtentBlock | RootKind::GroupDesc => unreachable!("no root of a tree"),
        }
    }

    /// The tree breaks a rule, in the block of that number.
    pub(super) fn corrupt(
        nr: BlockNr,
        field: &'static str,
        found: u64,
        rule: &'static str,
    ) -> Error {
        Error::Corrupt(Corrupt {
            block: nr,
            what: Structure::ExtentList,
            why: Why::Value { field, found, rule },
        })
    }

    /// A count that follows from the tree does not fit: the tree lies.
    pub(super) fn add_clusters(&self, h: &mut Handle<'_>, added: u32) -> Result<()> {
        let before = self.clusters();
        let after = before.checked_add(added).ok_or_else(|| {
            Root::corrupt(
                self.block.nr(),
                "clusters",
                before.into(),
                "more than 2^32 with the added ones",
            )
        })?;
        self.set_clusters(h, after);
        Ok(())
    }

    pub(super) fn subtract_clusters(&self, h: &mut Handle<'_>, removed: u32) -> Result<()> {
        let before = self.clusters();
        let after = before.checked_sub(removed).ok_or_else(|| {
            Root::corrupt(
                self.block.nr(),
                "clusters",
                before.into(),
                "less than the tree holds",
            )
        })?;
        self.set_clusters(h, after);
        Ok(())
    }
}
