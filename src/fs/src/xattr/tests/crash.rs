//! The power goes in the middle of random changes: afterwards the attributes are those of some moment between the last
//! commit that was waited for and the crash, large values included, and fsck.ocfs2 finds nothing.

use runtime::sim::{CrashModel, DiskOptions, SimDisk, SimRng, Simulation};

use super::super::{get, list};
use super::model::{Model, change};
use crate::testing::{self, Volume};

#[test]
fn a_crash_leaves_whole_changes() {
    let volume = Volume::make(1024, 4096, 48);
    let image = volume.image();
    let (mut lost, mut kept) = (0, 0);
    for seed in 0..6 {
        let simulation = Simulation::new(seed);
        let mut rng = SimRng::new(seed);
        let options = DiskOptions {
            volatile_cache: true,
            ..DiskOptions::default()
        };
        let disk = SimDisk::with(image.clone(), options, Some(&simulation.world()));
        // The models after each change; those before `durable` must not be seen again.
        let mut models = vec![Model::new()];
        let mut durable = 0;
        simulation
            .block_on(async {
                let core = testing::open(&simulation, &disk).await;
                let inode = core
                    .inodes
                    .get(&core, core.geometry.root_dir)
                    .await
                    .unwrap();
                disk.crash_after(rng.below(600));
                for step in 0..400 {
                    let mut model = models.last().expect("one is there").clone();
                    if change(&core, &inode, &mut model, &mut rng, step, 60, 2)
                        .await
                        .is_err()
                    {
                        // It may have been complete but for the answer.
                        return;
                    }
                    models.push(model);
                    if rng.below(12) == 0 && core.journal.force_commit().await.is_ok() {
                        durable = models.len() - 1;
                    }
                }
            })
            .unwrap();
        let disk = disk.crash(CrashModel::Any, &mut rng);
        simulation
            .block_on(async {
                let core = testing::open(&simulation, &disk).await;
                let inode = core
                    .inodes
                    .get(&core, core.geometry.root_dir)
                    .await
                    .unwrap();
                let mut found = Model::new();
                for (name, _) in list(&core, &inode).await.unwrap() {
                    let value = get(&core, &inode, &name).await.unwrap().unwrap();
                    found.insert(name, value);
                }
                let moment = (durable..models.len())
                    .rev()
                    .find(|&at| models[at] == found);
                let moment =
                    moment.unwrap_or_else(|| panic!("seed {seed}: a state that never was"));
                lost += models.len() - 1 - moment;
                kept += moment;
                testing::close(&core).await;
            })
            .unwrap();
        if seed % 3 == 0 {
            volume.fsck(&disk);
        }
    }
    assert!(lost > 0 && kept > 0, "{lost} changes lost, {kept} kept");
}
