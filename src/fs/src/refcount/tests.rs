//! Counts against a map of clusters: the change of records alone, then whole trees on a volume.

use std::collections::BTreeMap;

use ondisk::ClusterNr;
use proptest::prelude::*;

use super::leaf::{Change, Record, apply};

/// What a list of records says of each cluster.
fn counts(records: &[Record]) -> BTreeMap<u64, u32> {
    let clusters = records
        .iter()
        .map(|rec| (rec.start..rec.start + u64::from(rec.clusters), rec.count));
    clusters
        .flat_map(|(range, count)| range.map(move |cluster| (cluster, count)))
        .collect()
}

/// The records of a map: sorted, merged.
fn records(counts: &BTreeMap<u64, u32>) -> Vec<Record> {
    let mut records: Vec<Record> = Vec::new();
    for (&start, &count) in counts {
        match records.last_mut() {
            Some(last) if last.start + u64::from(last.clusters) == start && last.count == count => {
                last.clusters += 1
            }
            _ => records.push(Record {
                start,
                clusters: 1,
                count,
            }),
        }
    }
    records
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn records_follow_the_counts(
        steps in prop::collection::vec((any::<bool>(), 0u64..64, 1u64..20), 1..40)
    ) {
        let mut model = BTreeMap::new();
        let mut list = Vec::new();
        for (more, from, len) in steps {
            let to = from + len;
            let mut unused = Vec::new();
            let covered = (from..to).all(|c| model.contains_key(&c));
            let change = if more { Change::More } else { Change::Less };
            let result = apply(&list, from, to, change, &mut unused);
            if !more && !covered {
                prop_assert!(result.is_err());
                continue;
            }
            list = result.unwrap();
            let mut gone = Vec::new();
            for cluster in from..to {
                let count = model.entry(cluster).or_insert(0);
                if more {
                    *count += 1;
                } else {
                    *count -= 1;
                    if *count == 0 {
                        model.remove(&cluster);
                        gone.push(cluster);
                    }
                }
            }
            let unused: Vec<u64> =
                unused.iter().flat_map(|&(ClusterNr(start), n)| (start..start + n).map(u64::from)).collect();
            prop_assert_eq!(unused, gone);
            prop_assert_eq!(&list, &records(&model));
            prop_assert_eq!(counts(&list), model.clone());
        }
    }
}

#[test]
fn a_count_does_not_overflow() {
    let full = [Record {
        start: 5,
        clusters: 1,
        count: u32::MAX,
    }];
    assert!(apply(&full, 5, 6, Change::More, &mut Vec::new()).is_err());
}

mod model;
