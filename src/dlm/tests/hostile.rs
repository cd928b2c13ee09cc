//! Payloads that no node in its senses sends: each is refused by name, none does harm.
//!
//! The kernel believed lengths and counts of its peers until 2026 (CVE-2026-89494, -89495, -53043, -53309).
#![allow(clippy::unwrap_used, reason = "a test fails where it panics")]

use dlm::wire::{self, MAX_RECORDS, MAX_REGIONS, MsgType, WireError};
use proptest::prelude::*;

/// A payload with everything in order.
fn sound(msg: MsgType) -> Vec<u8> {
    let mut bytes = vec![
        0;
        if msg == MsgType::MigLockres {
            112
        } else {
            base_len(msg)
        }
    ];
    if let Some((at, _)) = name_len_at(msg) {
        bytes[at] = 9;
    }
    bytes
}

fn base_len(msg: MsgType) -> usize {
    match msg {
        MsgType::ConvertLock | MsgType::ProxyAst | MsgType::UnlockLock => 80,
        other => other.max_len(),
    }
}

/// Where a message has the length of its name, and how long the name may be.
fn name_len_at(msg: MsgType) -> Option<(usize, u8)> {
    use MsgType::*;
    Some(match msg {
        MasterRequest | AssertMaster | MigLockres => (1, 32),
        CreateLock | ConvertLock | ProxyAst | UnlockLock => (15, 32),
        DerefLockres | DerefLockresDone => (7, 32),
        MigrateRequest => (2, 32),
        MasterRequery => (3, 32),
        QueryJoin | AssertJoined | CancelJoin => (3, 64),
        QueryRegion | QueryNodeInfo => (2, 64),
        ExitDomain | BeginExitDomain | LockRequest | RecoDataDone | BeginReco | FinalizeReco => {
            return None;
        }
    })
}

#[test]
fn names_of_impossible_lengths_are_refused() {
    for msg in MsgType::ALL {
        let Some((at, limit)) = name_len_at(msg) else {
            continue;
        };
        for length in 0..=255 {
            let mut bytes = sound(msg);
            bytes[at] = length;
            let result = wire::decode(msg as u16, &bytes);
            if (1..=limit).contains(&length) {
                assert!(result.is_ok(), "{msg} {length}: {result:?}");
            } else {
                assert!(
                    matches!(result, Err(WireError::Name { .. })),
                    "{msg} {length}: {result:?}"
                );
            }
        }
    }
}

#[test]
fn payloads_of_every_other_length_are_refused() {
    for msg in MsgType::ALL {
        let bytes = sound(msg);
        let longer = [bytes.clone(), vec![0; 200]].concat();
        for length in (0..longer.len()).filter(|length| *length != bytes.len()) {
            let result = wire::decode(msg as u16, &longer[..length]);
            assert!(
                matches!(result, Err(WireError::Length { .. })),
                "{msg} {length}: {result:?}"
            );
        }
    }
}

#[test]
fn a_resource_says_no_more_locks_than_it_brings() {
    for num_locks in 0..=255u8 {
        for records in [0, 1, 239, 240, 241, 255] {
            let mut bytes = sound(MsgType::MigLockres);
            bytes[2] = num_locks;
            bytes[7] = num_locks; // total_locks
            for _ in 0..records {
                bytes.extend([0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 3, 0xff, 0xff, 1]);
            }
            let result = wire::decode(509, &bytes);
            let sound = usize::from(num_locks) == records && records <= MAX_RECORDS;
            assert_eq!(
                result.is_ok(),
                sound,
                "{num_locks} said, {records} there: {result:?}"
            );
        }
    }
}

#[test]
fn regions_beyond_the_field_are_refused() {
    for count in 0..=255u8 {
        let mut bytes = sound(MsgType::QueryRegion);
        bytes[1] = count;
        let result = wire::decode(519, &bytes);
        assert_eq!(
            result.is_ok(),
            usize::from(count) <= MAX_REGIONS,
            "{count}: {result:?}"
        );
    }
}

#[test]
fn modes_and_nodes_that_are_none_are_refused() {
    let mut bytes = sound(MsgType::CreateLock);
    bytes[14] = 4; // protected write
    let error = wire::decode(503, &bytes).unwrap_err();
    assert_eq!(error.to_string(), "CREATE_LOCK: mode is 4");
    let mut bytes = sound(MsgType::BeginReco);
    bytes[1] = 255;
    let error = wire::decode(517, &bytes).unwrap_err();
    assert_eq!(error.to_string(), "BEGIN_RECO: dead node is 255");
    assert_eq!(wire::decode(501, &[]), Err(WireError::UnknownType(501)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]
    /// Whatever decodes says the same when it is encoded and decoded again, padding apart.
    #[test]
    fn any_bytes_decode_to_an_error_or_to_what_they_encode_to(
        index in 0..MsgType::ALL.len(),
        noise in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..24),
        records in 0..4usize,
    ) {
        let msg = MsgType::ALL[index];
        let mut bytes = sound(msg);
        if msg == MsgType::MigLockres {
            bytes[2] = records as u8;
            bytes[7] = records as u8;
            bytes.extend([0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 2, 0, 3, 0xff, 0xff, 1].repeat(records));
        }
        for (at, value) in noise {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(message) = wire::decode(msg as u16, &bytes) {
            let again = message.encode();
            prop_assert_eq!(again.len(), bytes.len());
            prop_assert_eq!(wire::decode(msg as u16, &again), Ok(message));
        }
    }
}
