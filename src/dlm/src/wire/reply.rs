//! What the status word of a reply means. It depends on the message that is answered.

use super::Version;
use crate::NodeNr;

macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = $nr:literal,)*) => {
        /// How a lock request fares: the reply to 503 to 506.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(i32)]
        pub enum DlmStatus { $($(#[$doc])* $name = $nr),* }

        impl DlmStatus {
            /// All that are in use.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The status of a reply's word.
            pub const fn from_wire(word: i32) -> Option<Self> {
                match word { $($nr => Some(Self::$name),)* _ => None }
            }
        }
    };
}

statuses! {
    /// Accepted. A grant is told by an AST.
    Normal = 0,
    /// Granted.
    Granted = 1,
    /// Refused.
    Denied = 2,
    /// Out of memory.
    DeniedNoLocks = 3,
    /// Broken.
    SysErr = 8,
    /// The request that was to be withdrawn has been granted.
    CancelGrant = 10,
    /// No such lock.
    IvLockId = 11,
    /// The request makes no sense.
    BadArgs = 19,
    /// It would have to wait, and must not.
    NotQueued = 21,
    /// A name of an impossible length.
    IvBufLen = 22,
    /// The lock is not granted.
    CvtUngrant = 23,
    /// No such mode, or a lock that cannot do this now.
    BadParam = 24,
    /// The value block is invalid.
    ValNotValid = 25,
    /// Not a member of the domain.
    Rejected = 26,
    /// A waiting request was withdrawn.
    Abort = 27,
    /// A conversion was withdrawn.
    Cancel = 28,
    /// Not the master: find out who is, and ask again.
    Forward = 32,
    /// The resource is being recovered: ask again.
    Recovering = 39,
    /// The resource is moving to another master: ask again.
    Migrating = 40,
}

impl DlmStatus {
    /// The reply's word.
    pub const fn to_wire(self) -> i32 {
        self as i32
    }

    /// Whether the request has to be made again once the resource has a usable master.
    pub const fn is_retry(self) -> bool {
        matches!(self, Self::Forward | Self::Recovering | Self::Migrating)
    }
}

/// What a node says to a request for mastery: the reply to 500.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(i32)]
pub enum MasterReply {
    /// Not I.
    No = 0,
    /// I am the master.
    Yes = 1,
    /// I am asking too: the lowest number of those who ask becomes master.
    Maybe = 2,
    /// Not now: ask again.
    Error = 3,
}

impl MasterReply {
    /// The meaning of a reply's word.
    pub const fn from_wire(word: i32) -> Option<Self> {
        match word {
            0 => Some(Self::No),
            1 => Some(Self::Yes),
            2 => Some(Self::Maybe),
            3 => Some(Self::Error),
            _ => None,
        }
    }
}

bitflags::bitflags! {
    /// The reply to 502, if it is not negative.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct AssertReply: i32 {
        /// Others may have asked the replying node meanwhile: announce yourself to all once more.
        const REASSERT = 1;
        /// The replying node holds a reference on the resource.
        const MASTERY_REF = 2;
    }
}

/// The reply to 507.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(i32)]
pub enum DerefReply {
    /// Forgotten.
    Done = 0,
    /// Will be forgotten; 522 says when.
    InProgress = 1,
}

/// The reply to 508 with a reference: the replying node holds one on the resource.
pub const MIGRATE_MASTERY_REF: i32 = 1;
/// `EINVAL`, negative: the message was not for this node, or made no sense.
pub const EINVAL: i32 = -22;
/// `ENOMEM`, negative.
pub const ENOMEM: i32 = -12;
/// `EAGAIN`, positive, as the reply to 517 while the end of the recovery before is still awaited.
pub const EAGAIN: i32 = 11;

/// The word for 514's reply.
pub const fn owner(node: Option<NodeNr>) -> i32 {
    NodeNr::byte(node) as i32
}

/// Whether a node may join: the reply to 510.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum JoinReply {
    /// Not now.
    Disallow,
    /// It may; these minor versions are to be spoken.
    Ok {
        /// Between lock managers.
        dlm_minor: u8,
        /// Between file systems.
        fs_minor: u8,
    },
    /// It may, as far as this node is concerned, which is not in the domain.
    OkNoMap,
    /// Its versions do not go with ours.
    ProtocolMismatch,
}

impl JoinReply {
    /// The meaning of a reply's word: four bytes, the code first.
    pub const fn from_wire(word: i32) -> Option<Self> {
        let [code, dlm_minor, fs_minor, _] = word.to_be_bytes();
        match code {
            0 => Some(Self::Disallow),
            1 => Some(Self::Ok {
                dlm_minor,
                fs_minor,
            }),
            2 => Some(Self::OkNoMap),
            3 => Some(Self::ProtocolMismatch),
            _ => None,
        }
    }

    /// The reply's word.
    pub const fn to_wire(self) -> i32 {
        i32::from_be_bytes(match self {
            Self::Disallow => [0; 4],
            Self::Ok {
                dlm_minor,
                fs_minor,
            } => [1, dlm_minor, fs_minor, 0],
            Self::OkNoMap => [2, 0, 0, 0],
            Self::ProtocolMismatch => [3, 0, 0, 0],
        })
    }
}

/// The version that is spoken between two nodes that speak these, the other one's request first.
pub fn negotiate(asked: Version, ours: Version) -> Option<Version> {
    (asked.major == ours.major).then(|| Version {
        major: ours.major,
        minor: asked.minor.min(ours.minor),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_back() {
        for status in DlmStatus::ALL {
            assert_eq!(DlmStatus::from_wire(status.to_wire()), Some(*status));
        }
        let ok = JoinReply::Ok {
            dlm_minor: 3,
            fs_minor: 0,
        };
        assert_eq!(ok.to_wire(), 16_973_824); // as in the kernels' traces
        assert_eq!(JoinReply::from_wire(33_554_432), Some(JoinReply::OkNoMap));
        for reply in [
            JoinReply::Disallow,
            ok,
            JoinReply::OkNoMap,
            JoinReply::ProtocolMismatch,
        ] {
            assert_eq!(JoinReply::from_wire(reply.to_wire()), Some(reply));
        }
    }

    #[test]
    fn the_lesser_minor_is_spoken_and_another_major_is_not() {
        let v = |major, minor| Version { major, minor };
        assert_eq!(negotiate(v(1, 2), v(1, 3)), Some(v(1, 2)));
        assert_eq!(negotiate(v(1, 4), v(1, 3)), Some(v(1, 3)));
        assert_eq!(negotiate(v(2, 3), v(1, 3)), None);
    }
}
