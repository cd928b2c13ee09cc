//! OCFS2's and jbd2's structures as typed bytes, with their checksums and their validity.
//!
//! No I/O, no async, no `unsafe`: bytes in, references and verdicts out. Above this crate nobody counts offsets, and
//! nobody handles a block that was not validated here.
//!
//! # How to use it
//! - A block is a `&[u8]` of the volume's block size. `Dinode::of(block)` sees its start as the structure; field names
//!   are those of the format (`i_clusters`), values are byte-order integers with `get` and `set`.
//! - What follows the fixed part has a view: [`extent_list`] (of any root, see [`RootKind`]), [`chain_list`],
//!   [`truncate_log`], [`local_alloc`], [`inline_data`], [`fast_symlink`], [`group_bitmap`], [`DxLeaf::entries`],
//!   [`XattrArea`], [`refcount_list`], [`DirBlock`]. Views never reach outside the block, whatever the bytes say.
//! - `X::validate(block, nr, geometry)` holds a block that was read from `nr` to the rules of its kind, and
//!   [`Kind::verify`] to its checksum: first the checksum (it may repair), then the rules.
//! - `X::init(...)` makes a new block with the fields that Linux writes. [`Kind::compute`] gives it its checksum when it
//!   goes into the journal.
//! - [`probe`] finds the superblock on a device; [`Geometry`] is what follows from it.
#![forbid(unsafe_code)]

mod access;
mod block_check;
pub mod capacity;
mod chain_list;
mod corrupt;
mod dinode;
mod dir_block;
mod dir_trailer;
mod dx;
mod dx_leaf;
mod dx_root;
mod extent_block;
mod extent_list;
pub mod feature;
mod file_type;
mod geometry;
mod group_desc;
pub mod hash;
mod heartbeat;
mod inline_data;
pub mod jbd2;
mod kind;
mod local_alloc;
pub mod metaecc;
pub mod quota;
mod refcount;
mod slot_map;
mod super_block;
mod system_file;
mod truncate_log;
mod units;
mod xattr;
mod xattr_block;

/// Little-endian integers: OCFS2's own structures.
pub mod le {
    pub use zerocopy::little_endian::{I64, U16, U32, U64};
}

/// Big-endian integers: the journal's structures.
pub mod be {
    pub use zerocopy::big_endian::{I32, U16, U32, U64};
}

pub use block_check::*;
pub use chain_list::*;
pub use corrupt::*;
pub use dinode::*;
pub use dir_block::*;
pub use dir_trailer::*;
pub use dx::*;
pub use dx_leaf::*;
pub use dx_root::*;
pub use extent_block::*;
pub use extent_list::*;
pub use file_type::*;
pub use geometry::*;
pub use group_desc::*;
pub use heartbeat::*;
pub use inline_data::*;
pub use kind::*;
pub use local_alloc::*;
pub use refcount::*;
pub use slot_map::*;
pub use super_block::{
    ClusterInfoRaw, MAX_SLOTS, PROBE_BYTES, Probed, SUPER_BLOCK, SuperBlock, SuperError, probe,
};
pub use system_file::*;
pub use truncate_log::*;
pub use units::*;
pub use xattr::*;
pub use xattr_block::*;
