//! The protocol's cases as tables in which exactly one row matches.

use crate::wire::reply::MasterReply;

/// How a node stands to a resource when it is asked who the master is (500).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Standing {
    /// It is a full member.
    pub joined: bool,
    /// It knows the resource, and is not forgetting it.
    pub known: bool,
    /// The resource is being recovered or moved.
    pub in_motion: bool,
    /// The master, as far as the node knows.
    pub master: Master,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Master {
    Me,
    Other,
    Unknown,
}

/// Which standings a row is for; `None` is any.
pub(crate) struct MasteryRow {
    joined: Option<bool>,
    known: Option<bool>,
    in_motion: Option<bool>,
    master: Option<Master>,
    /// What it says.
    pub reply: MasterReply,
}

const fn row(
    joined: Option<bool>,
    known: Option<bool>,
    in_motion: Option<bool>,
    master: Option<Master>,
    reply: MasterReply,
) -> MasteryRow {
    MasteryRow {
        joined,
        known,
        in_motion,
        master,
        reply,
    }
}

use Master::{Me, Other, Unknown};
const Y: Option<bool> = Some(true);
const N: Option<bool> = Some(false);

/// The answers to 500.
pub(crate) const MASTERY: [MasteryRow; 6] = [
    row(N, None, None, None, MasterReply::No),
    row(Y, N, None, None, MasterReply::No),
    row(Y, Y, Y, None, MasterReply::Error),
    row(Y, Y, N, Some(Me), MasterReply::Yes),
    row(Y, Y, N, Some(Other), MasterReply::No),
    row(Y, Y, N, Some(Unknown), MasterReply::Maybe),
];

impl MasteryRow {
    fn matches(&self, standing: Standing) -> bool {
        self.joined.is_none_or(|joined| joined == standing.joined)
            && self.known.is_none_or(|known| known == standing.known)
            && self
                .in_motion
                .is_none_or(|motion| motion == standing.in_motion)
            && self.master.is_none_or(|master| master == standing.master)
    }
}

/// The answer to 500.
pub(crate) fn mastery(standing: Standing) -> MasterReply {
    let row = MASTERY.iter().find(|row| row.matches(standing));
    row.expect("the rows are exhaustive").reply
}

/// What becomes of this node's requests to a master that died.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum AfterDeath {
    /// It is made once more: nothing of it had reached the master, or it had failed if it could not be granted at once.
    Anew,
    /// It stays on its queue: whoever recovers the resource finds it there.
    Stays,
    /// It counts as done, whatever the dead master made of it.
    Done,
}

/// Which request, how far it had come, whether it must not wait: and what becomes of it. An unlock counts as done
/// because the dead master may have done it and granted the lock to another; a conversion to a lower mode stays, and is
/// granted by the next master before anything else, for the same reason.
pub(crate) const AFTER_DEATH: [(Request, Reached, Option<bool>, AfterDeath); 11] = [
    (Request::Create, Reached::No, None, AfterDeath::Anew),
    (Request::Create, Reached::Perhaps, Y, AfterDeath::Anew),
    (Request::Create, Reached::Perhaps, N, AfterDeath::Stays),
    (Request::Create, Reached::Yes, None, AfterDeath::Stays),
    (Request::Convert, Reached::No, None, AfterDeath::Anew),
    (Request::Convert, Reached::Perhaps, Y, AfterDeath::Anew),
    (Request::Convert, Reached::Perhaps, N, AfterDeath::Stays),
    (Request::Convert, Reached::Yes, None, AfterDeath::Stays),
    (Request::Unlock, Reached::No, None, AfterDeath::Anew),
    (Request::Unlock, Reached::Perhaps, None, AfterDeath::Done),
    (Request::Unlock, Reached::Yes, None, AfterDeath::Done),
];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Request {
    Create,
    Convert,
    Unlock,
}

/// Whether a request had come to the master that died.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reached {
    No,
    Perhaps,
    Yes,
}

/// What becomes of a request whose master died.
pub(crate) fn after_death(request: Request, reached: Reached, no_queue: bool) -> AfterDeath {
    let mut rows = AFTER_DEATH.iter();
    let row = rows.find(|row| {
        row.0 == request && row.1 == reached && row.2.is_none_or(|wait| wait == no_queue)
    });
    row.expect("the rows are exhaustive").3
}

/// What a node does when another says that it leads the recovery (517).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum OnBegin {
    /// Follows it.
    Follow,
    /// Gives up leading, and follows it.
    Yield,
    /// Says "not now".
    Refuse,
}

/// Who leads already, as far as this node knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Leader {
    /// Nobody, or somebody dead, or the one who says so now.
    None,
    /// Another node, that lives, with a lower number than the one who says so now.
    Lower,
    /// Another node, that lives, with a higher number.
    Higher,
    /// This node, collecting; its number is lower.
    MeLower,
    /// This node, collecting; its number is higher.
    MeHigher,
    /// This node, and the others take over what it has collected: there is no way back.
    MeFinishing,
}

/// The answers to 517. The second column says whether this node waits for the second stage of another, living, leader's
/// end. Two lead at once only if the master of `$RECOVERY` died meanwhile; the lower number wins.
pub(crate) const BEGIN: [(Leader, Option<bool>, OnBegin); 9] = [
    (Leader::None, N, OnBegin::Follow),
    (Leader::None, Y, OnBegin::Refuse),
    (Leader::Lower, None, OnBegin::Refuse),
    (Leader::Higher, N, OnBegin::Follow),
    (Leader::Higher, Y, OnBegin::Refuse),
    (Leader::MeLower, None, OnBegin::Refuse),
    (Leader::MeHigher, N, OnBegin::Yield),
    (Leader::MeHigher, Y, OnBegin::Refuse),
    (Leader::MeFinishing, None, OnBegin::Refuse),
];

/// The answer to 517.
pub(crate) fn on_begin(leader: Leader, finishing: bool) -> OnBegin {
    let mut rows = BEGIN.iter();
    let row = rows.find(|row| row.0 == leader && row.1.is_none_or(|f| f == finishing));
    row.expect("the rows are exhaustive").2
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: [bool; 2] = [false, true];

    #[test]
    fn every_standing_has_exactly_one_answer() {
        for joined in BOTH {
            for known in BOTH {
                for in_motion in BOTH {
                    for master in [Me, Other, Unknown] {
                        let standing = Standing {
                            joined,
                            known,
                            in_motion,
                            master,
                        };
                        let rows = MASTERY.iter().filter(|row| row.matches(standing));
                        assert_eq!(rows.count(), 1, "{standing:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn every_request_has_exactly_one_fate() {
        for request in [Request::Create, Request::Convert, Request::Unlock] {
            for reached in [Reached::No, Reached::Perhaps, Reached::Yes] {
                for no_queue in BOTH {
                    let rows = AFTER_DEATH.iter();
                    let rows = rows.filter(|row| {
                        row.0 == request
                            && row.1 == reached
                            && row.2.is_none_or(|wait| wait == no_queue)
                    });
                    assert_eq!(rows.count(), 1, "{request:?} {reached:?} {no_queue}");
                }
            }
        }
    }

    #[test]
    fn every_claim_to_lead_has_exactly_one_answer() {
        use Leader::*;
        for leader in [None, Lower, Higher, MeLower, MeHigher, MeFinishing] {
            for finishing in BOTH {
                let rows = BEGIN.iter();
                let rows = rows.filter(|r| r.0 == leader && r.1.is_none_or(|f| f == finishing));
                assert_eq!(rows.count(), 1, "{leader:?} {finishing}");
            }
        }
    }
}
