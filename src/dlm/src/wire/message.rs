//! Messages as values.

use crate::{DomainName, LockName, Lvb, Mode, NodeNr, NodeSet};
use core::fmt;

macro_rules! msg_types {
    ($($(#[$doc:meta])* $name:ident = $nr:literal, $text:literal, $max:expr;)*) => {
        /// The kinds of message, by their numbers. 501 is not used.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u16)]
        pub enum MsgType { $($(#[$doc])* $name = $nr),* }

        impl MsgType {
            /// All of them.
            pub const ALL: [Self; 22] = [$(Self::$name),*];

            /// The kind with this number.
            pub const fn from_wire(nr: u16) -> Option<Self> {
                match nr { $($nr => Some(Self::$name),)* _ => None }
            }

            /// Bytes in its longest payload.
            pub const fn max_len(self) -> usize {
                match self { $(Self::$name => $max),* }
            }
        }

        impl fmt::Display for MsgType {
            /// The kernel's name for it.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self { $(Self::$name => $text),* })
            }
        }
    };
}

msg_types! {
    /// Who is the master of this resource, or may I be?
    MasterRequest = 500, "MASTER_REQUEST", 72;
    /// I am the master of this resource.
    AssertMaster = 502, "ASSERT_MASTER", 72;
    /// A new lock.
    CreateLock = 503, "CREATE_LOCK", 80;
    /// Another mode for a lock.
    ConvertLock = 504, "CONVERT_LOCK", 144;
    /// A lock is granted, or stands in another's way.
    ProxyAst = 505, "PROXY_AST", 144;
    /// A lock is given up, or a request withdrawn.
    UnlockLock = 506, "UNLOCK_LOCK", 144;
    /// The sender forgets the resource.
    DerefLockres = 507, "DEREF_LOCKRES", 72;
    /// The resource moves to a new master.
    MigrateRequest = 508, "MIGRATE_REQUEST", 72;
    /// A resource with its locks: to its new master, or to the one who recovers it.
    MigLockres = 509, "MIG_LOCKRES", 112 + 16 * super::MAX_RECORDS;
    /// May I join the domain?
    QueryJoin = 510, "QUERY_JOIN", 104;
    /// I have joined the domain.
    AssertJoined = 511, "ASSERT_JOINED", 68;
    /// I do not join after all.
    CancelJoin = 512, "CANCEL_JOIN", 68;
    /// I have left the domain.
    ExitDomain = 513, "EXIT_DOMAIN", 4;
    /// Who is the master of this resource? (In recovery.)
    MasterRequery = 514, "MASTER_REQUERY", 72;
    /// Send me what you know of the dead node's resources.
    LockRequest = 515, "LOCK_REQUEST", 8;
    /// That was all that I know of them.
    RecoDataDone = 516, "RECO_DATA_DONE", 72;
    /// I recover the dead node.
    BeginReco = 517, "BEGIN_RECO", 8;
    /// The dead node's resources are mine (stage 1); the recovery is over (stage 2).
    FinalizeReco = 518, "FINALIZE_RECO", 8;
    /// These are my heartbeat regions.
    QueryRegion = 519, "QUERY_REGION", 1092;
    /// These are the nodes that I know of.
    QueryNodeInfo = 520, "QUERY_NODEINFO", 2108;
    /// I am about to leave.
    BeginExitDomain = 521, "BEGIN_EXIT_DOMAIN", 4;
    /// The resource that you have forgotten is forgotten here too (the late answer to 507).
    DerefLockresDone = 522, "DEREF_LOCKRES_DONE", 72;
}

impl MsgType {
    /// Whether it travels under [`super::JOIN_KEY`] and not under its domain's own key.
    pub const fn is_join(self) -> bool {
        use MsgType::*;
        matches!(
            self,
            QueryJoin | AssertJoined | CancelJoin | QueryRegion | QueryNodeInfo
        )
    }
}

bitflags::bitflags! {
    /// What a lock request asks for. Bits that are not named here travel unchanged.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct LockFlags: u32 {
        /// Nobody else can know the name: be its master without asking.
        const LOCAL = 0x80;
        /// The value block is wanted, or supplied.
        const VALBLK = 0x100;
        /// Fail instead of waiting.
        const NOQUEUE = 0x200;
        /// A conversion.
        const CONVERT = 0x400;
        /// An unlock.
        const UNLOCK = 0x1000;
        /// Withdraw a request that waits.
        const CANCEL = 0x2000;
        /// Make the value block invalid.
        const INVVALBLK = 0x8000;
        /// Unlock whatever happens.
        const FORCE = 0x80_0000;
        /// Found by migration.
        const MIGRATION = 0x1000_0000;
        /// A value block follows, for the master to keep.
        const PUT_LVB = 0x2000_0000;
        /// The grant has to bring (in 505: brings) the value block.
        const GET_LVB = 0x4000_0000;
        /// A lock on `$RECOVERY`.
        const RECOVERY = 0x8000_0000;
        const _ = !0;
    }

    /// Why a master announces itself.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct AssertFlags: u32 {
        /// In answer to a request for a resource that it had before.
        const MLE_CLEANUP = 1;
        /// It looks for those who hold a reference.
        const REQUERY = 2;
        /// It has the resource from a migration.
        const FINISH_MIGRATION = 4;
        const _ = !0;
    }

    /// Why a resource is sent.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct MigFlags: u8 {
        /// Its master died.
        const RECOVERY = 1;
        /// Its master gives it away.
        const MIGRATION = 2;
        /// The last message of this resource.
        const ALL_DONE = 4;
        const _ = !0;
    }

    /// What a moved lock's waiting request has to do with the value block.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct RecordFlags: u8 {
        /// It brings one.
        const PUT_LVB = 2;
        /// It wants one.
        const GET_LVB = 4;
        const _ = !0;
    }

    /// Which stage of the end of a recovery.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct FinalizeFlags: u8 {
        /// The second.
        const STAGE2 = 1;
        const _ = !0;
    }
}

/// Whether a notice says *granted* or *in the way*.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum AstKind {
    /// The request is granted.
    Ast,
    /// The lock keeps a request of this mode waiting.
    Bast(Mode),
}

/// Where a lock is on its resource.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Queue {
    /// Held.
    Granted = 0,
    /// Held, and waiting for another mode.
    Converting = 1,
    /// Waiting.
    Blocked = 2,
}

impl Queue {
    /// All of them, in the order in which they are sent.
    pub const ALL: [Self; 3] = [Self::Granted, Self::Converting, Self::Blocked];
}

/// A version of a protocol. Majors have to be equal; the lesser minor is spoken.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Version {
    /// Incompatible changes.
    pub major: u8,
    /// Compatible ones.
    pub minor: u8,
}

/// A heartbeat region's name: its volume's UUID in hexadecimal.
pub type RegionName = [u8; 32];

/// A node and where it listens, as `cluster.conf` has it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NodeAddress {
    /// Which node.
    pub node: NodeNr,
    /// Its IPv4 address.
    pub address: [u8; 4],
    /// Its TCP port.
    pub port: u16,
}

/// One lock of a resource that is sent.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MigLock {
    /// Its identity; 0 in a record that only says that `node` holds a reference.
    pub cookie: u64,
    /// Where it is.
    pub queue: Queue,
    /// Its request and the value block.
    pub flags: RecordFlags,
    /// Its mode (on the blocked queue: the one asked for).
    pub mode: Option<Mode>,
    /// The mode that it waits for.
    pub convert: Option<Mode>,
    /// The highest mode that it keeps waiting.
    pub highest_blocked: Option<Mode>,
    /// Whose it is.
    pub node: NodeNr,
}

impl MigLock {
    /// A record of no lock: `node` holds a reference.
    pub const fn reference(node: NodeNr) -> Self {
        let flags = RecordFlags::empty();
        let queue = Queue::Blocked;
        Self {
            cookie: 0,
            queue,
            flags,
            mode: None,
            convert: None,
            highest_blocked: None,
            node,
        }
    }

    /// Whether it only stands for a reference.
    pub const fn is_reference(&self) -> bool {
        self.cookie == 0
    }
}

/// A resource with locks of it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct MigLockres {
    /// The master that it has or had, if the sender knows.
    pub master: Option<NodeNr>,
    /// Why it is sent.
    pub flags: MigFlags,
    /// Locks that belong to it over all messages with the same `mig_cookie`.
    pub total_locks: u32,
    /// Holds together the messages of one big resource; 0 if one message is enough.
    pub mig_cookie: u64,
    /// Which resource.
    pub name: LockName,
    /// Its value block, as far as the sender can vouch for it.
    pub lvb: [u8; Lvb::SIZE],
    /// Locks.
    pub locks: Vec<MigLock>,
}

/// A message of o2dlm. `node` is its sender wherever nothing else is said.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs)] // the fields say what they are
pub enum Message {
    /// See [`MsgType::MasterRequest`].
    MasterRequest {
        node: NodeNr,
        flags: LockFlags,
        name: LockName,
    },
    /// See [`MsgType::AssertMaster`].
    AssertMaster {
        node: NodeNr,
        flags: AssertFlags,
        name: LockName,
    },
    /// See [`MsgType::CreateLock`].
    CreateLock {
        node: NodeNr,
        cookie: u64,
        flags: LockFlags,
        mode: Mode,
        name: LockName,
    },
    /// See [`MsgType::ConvertLock`]. There is a value block if and only if the flags say [`LockFlags::PUT_LVB`].
    ConvertLock {
        node: NodeNr,
        cookie: u64,
        flags: LockFlags,
        mode: Mode,
        name: LockName,
        lvb: Option<Lvb>,
    },
    /// See [`MsgType::ProxyAst`]. There is a value block if and only if the flags say [`LockFlags::GET_LVB`].
    ProxyAst {
        node: NodeNr,
        cookie: u64,
        flags: LockFlags,
        kind: AstKind,
        name: LockName,
        lvb: Option<Lvb>,
    },
    /// See [`MsgType::UnlockLock`]. There is a value block if and only if the flags say [`LockFlags::PUT_LVB`].
    UnlockLock {
        node: NodeNr,
        cookie: u64,
        flags: LockFlags,
        name: LockName,
        lvb: Option<Lvb>,
    },
    /// See [`MsgType::DerefLockres`].
    DerefLockres { node: NodeNr, name: LockName },
    /// See [`MsgType::MigrateRequest`]. Sent by the new master.
    MigrateRequest {
        master: NodeNr,
        new_master: NodeNr,
        name: LockName,
    },
    /// See [`MsgType::MigLockres`].
    MigLockres(MigLockres),
    /// See [`MsgType::QueryJoin`]. `live` are the nodes that the sender sees beating.
    QueryJoin {
        node: NodeNr,
        dlm: Version,
        fs: Version,
        domain: DomainName,
        live: NodeSet,
    },
    /// See [`MsgType::AssertJoined`].
    AssertJoined { node: NodeNr, domain: DomainName },
    /// See [`MsgType::CancelJoin`].
    CancelJoin { node: NodeNr, domain: DomainName },
    /// See [`MsgType::ExitDomain`].
    ExitDomain { node: NodeNr },
    /// See [`MsgType::MasterRequery`].
    MasterRequery { node: NodeNr, name: LockName },
    /// See [`MsgType::LockRequest`].
    LockRequest { node: NodeNr, dead: NodeNr },
    /// See [`MsgType::RecoDataDone`].
    RecoDataDone { node: NodeNr, dead: NodeNr },
    /// See [`MsgType::BeginReco`].
    BeginReco { node: NodeNr, dead: NodeNr },
    /// See [`MsgType::FinalizeReco`].
    FinalizeReco {
        node: NodeNr,
        dead: NodeNr,
        flags: FinalizeFlags,
    },
    /// See [`MsgType::QueryRegion`].
    QueryRegion {
        node: NodeNr,
        domain: DomainName,
        regions: Vec<RegionName>,
    },
    /// See [`MsgType::QueryNodeInfo`].
    QueryNodeInfo {
        node: NodeNr,
        domain: DomainName,
        nodes: Vec<NodeAddress>,
    },
    /// See [`MsgType::BeginExitDomain`].
    BeginExitDomain { node: NodeNr },
    /// See [`MsgType::DerefLockresDone`].
    DerefLockresDone { node: NodeNr, name: LockName },
}

impl Message {
    /// Its kind.
    pub const fn msg_type(&self) -> MsgType {
        match self {
            Self::MasterRequest { .. } => MsgType::MasterRequest,
            Self::AssertMaster { .. } => MsgType::AssertMaster,
            Self::CreateLock { .. } => MsgType::CreateLock,
            Self::ConvertLock { .. } => MsgType::ConvertLock,
            Self::ProxyAst { .. } => MsgType::ProxyAst,
            Self::UnlockLock { .. } => MsgType::UnlockLock,
            Self::DerefLockres { .. } => MsgType::DerefLockres,
            Self::MigrateRequest { .. } => MsgType::MigrateRequest,
            Self::MigLockres(_) => MsgType::MigLockres,
            Self::QueryJoin { .. } => MsgType::QueryJoin,
            Self::AssertJoined { .. } => MsgType::AssertJoined,
            Self::CancelJoin { .. } => MsgType::CancelJoin,
            Self::ExitDomain { .. } => MsgType::ExitDomain,
            Self::MasterRequery { .. } => MsgType::MasterRequery,
            Self::LockRequest { .. } => MsgType::LockRequest,
            Self::RecoDataDone { .. } => MsgType::RecoDataDone,
            Self::BeginReco { .. } => MsgType::BeginReco,
            Self::FinalizeReco { .. } => MsgType::FinalizeReco,
            Self::QueryRegion { .. } => MsgType::QueryRegion,
            Self::QueryNodeInfo { .. } => MsgType::QueryNodeInfo,
            Self::BeginExitDomain { .. } => MsgType::BeginExitDomain,
            Self::DerefLockresDone { .. } => MsgType::DerefLockresDone,
        }
    }

    /// The key for the frame's header, in a domain.
    pub fn key(&self, domain: &DomainName) -> u32 {
        if self.msg_type().is_join() {
            super::JOIN_KEY
        } else {
            domain.key()
        }
    }

    /// The node that the message says it is from. A [`Message::MigLockres`] does not say.
    pub const fn sender(&self) -> Option<NodeNr> {
        match self {
            Self::MasterRequest { node, .. }
            | Self::AssertMaster { node, .. }
            | Self::CreateLock { node, .. }
            | Self::ConvertLock { node, .. }
            | Self::ProxyAst { node, .. }
            | Self::UnlockLock { node, .. }
            | Self::DerefLockres { node, .. }
            | Self::MigrateRequest {
                new_master: node, ..
            }
            | Self::QueryJoin { node, .. }
            | Self::AssertJoined { node, .. }
            | Self::CancelJoin { node, .. }
            | Self::ExitDomain { node }
            | Self::MasterRequery { node, .. }
            | Self::LockRequest { node, .. }
            | Self::RecoDataDone { node, .. }
            | Self::BeginReco { node, .. }
            | Self::FinalizeReco { node, .. }
            | Self::QueryRegion { node, .. }
            | Self::QueryNodeInfo { node, .. }
            | Self::BeginExitDomain { node }
            | Self::DerefLockresDone { node, .. } => Some(*node),
            Self::MigLockres(_) => None,
        }
    }
}
