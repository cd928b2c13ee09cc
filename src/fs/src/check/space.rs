//! The global bitmap against the clusters that somebody uses: both ways.

use ondisk::{GroupDesc, Kind, group_bitmap};

use super::report::Phase;
use super::view::Step;
use super::{Checker, Clusters, Code, Spot};

/// A run of clusters with the same fault.
#[derive(Default, Clone, Copy)]
struct Run {
    first: u64,
    count: u64,
    /// Used and not set, or set and not used.
    used: bool,
}

impl Checker<'_> {
    pub(super) async fn check_clusters(&mut self) -> Step<()> {
        let groups = std::mem::take(&mut self.bitmap_groups);
        self.report.begin(Phase::Clusters, groups.len() as u64)?;
        for nr in groups {
            let Ok((bytes, _)) = self.view.read(nr, Kind::GroupDesc).await? else {
                continue; // told when its chain was followed
            };
            let Some(first) = ondisk::group_first_cluster(nr, &self.geometry) else {
                continue;
            };
            let bits = u64::from(GroupDesc::of(&bytes).bg_bits.get());
            let bitmap = group_bitmap(&bytes);
            let bits = bits.min(bitmap.len() as u64 * 8);
            let bits = bits.min(self.used.len().saturating_sub(u64::from(first.0)));
            let spot = Spot::block(nr);
            let mut run = Run::default();
            for at in 0..bits.div_ceil(8) {
                let used = self.used.byte(u64::from(first.0) + at * 8);
                let set = bitmap[at as usize];
                if used == set && run.count == 0 {
                    continue;
                }
                for bit in at * 8..(at * 8 + 8).min(bits) {
                    let cluster = u64::from(first.0) + bit;
                    let is_used = used >> (bit % 8) & 1 == 1;
                    let is_set = set >> (bit % 8) & 1 == 1;
                    if is_used != is_set && run.count > 0 && run.used == is_used {
                        run.count += 1;
                        continue;
                    }
                    self.tell_run(spot, &mut run);
                    if is_used != is_set {
                        run = Run {
                            first: cluster,
                            count: 1,
                            used: is_used,
                        };
                    }
                }
            }
            self.tell_run(spot, &mut run);
            self.report.advance(1)?;
        }
        Ok(())
    }

    fn tell_run(&mut self, spot: Spot, run: &mut Run) {
        if run.count > 0 {
            let what = if run.used {
                "in use, but not set in the global bitmap"
            } else {
                "set in the global bitmap, but not in use"
            };
            let message = format!("{}: {what}", Clusters(run.first, run.count));
            self.find(Code::ClusterAllocBit, spot, message);
            run.count = 0;
        }
    }
}
