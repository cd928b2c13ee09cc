//! The payloads as they lie on the wire: big-endian, every byte named.

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

macro_rules! payload {
    ($(#[$doc:meta])* $name:ident, $size:literal { $($field:ident: $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
        #[repr(C)]
        pub(super) struct $name { $(pub $field: $type),* }
        const _: () = assert!(size_of::<$name>() == $size);
    };
}

payload! {
    /// 500 and 502.
    Master, 72 { node: u8, name_len: u8, pad: U16, flags: U32, name: [u8; 64] }
}
payload! {
    /// 503 and 504; 504 may have a value block behind it.
    Request, 80 { cookie: U64, flags: U32, pad: u8, node: u8, mode: i8, name_len: u8, name: [u8; 64] }
}
payload! {
    /// 505; may have a value block behind it.
    ProxyAst, 80 { cookie: U64, flags: U32, node: u8, kind: u8, blocked: i8, name_len: u8, name: [u8; 64] }
}
payload! {
    /// 506; may have a value block behind it.
    Unlock, 80 { cookie: U64, flags: U32, pad: U16, node: u8, name_len: u8, name: [u8; 64] }
}
payload! {
    /// 507 and 522.
    Deref, 72 { pad1: U32, pad2: U16, node: u8, name_len: u8, name: [u8; 64] }
}
payload! {
    /// 508.
    Migrate, 72 { master: u8, new_master: u8, name_len: u8, pad1: u8, pad2: U32, name: [u8; 64] }
}
payload! {
    /// 509; the lock records follow.
    MigLockres, 112 {
        master: u8, name_len: u8, num_locks: u8, flags: u8, total_locks: U32, mig_cookie: U64,
        name: [u8; 32], lvb: [u8; 64],
    }
}
payload! {
    /// One lock in 509.
    MigLock, 16 {
        cookie: U64, pad: U16, list: u8, flags: u8, mode: i8, convert: i8, highest_blocked: i8, node: u8,
    }
}
payload! {
    /// 510.
    QueryJoin, 104 {
        node: u8, pad: [u8; 2], name_len: u8, dlm_major: u8, dlm_minor: u8, fs_major: u8, fs_minor: u8,
        domain: [u8; 64], node_map: [u8; 32],
    }
}
payload! {
    /// 511 and 512.
    Join, 68 { node: u8, pad: [u8; 2], name_len: u8, domain: [u8; 64] }
}
payload! {
    /// 513 and 521.
    Exit, 4 { node: u8, pad: [u8; 3] }
}
payload! {
    /// 514.
    Requery, 72 { pad1: u8, pad2: u8, node: u8, name_len: u8, pad3: U32, name: [u8; 64] }
}
payload! {
    /// 515, 517 and 518 (which alone has flags).
    Reco, 8 { node: u8, dead: u8, flags: u8, pad1: u8, pad2: U32 }
}
payload! {
    /// 516.
    RecoDone, 72 { node: u8, dead: u8, pad1: U16, pad2: U32, lvb: [u8; 64] }
}
payload! {
    /// 519.
    QueryRegion, 1092 {
        node: u8, num_regions: u8, name_len: u8, pad: u8, domain: [u8; 64], regions: [[u8; 32]; 32],
    }
}
payload! {
    /// One node in 520.
    NodeInfo, 8 { node: u8, pad: u8, port: U16, address: U32 }
}
payload! {
    /// 520.
    QueryNodeInfo, 2108 {
        node: u8, num_nodes: u8, name_len: u8, pad: u8, domain: [u8; 64], nodes: [NodeInfo; 255],
    }
}
