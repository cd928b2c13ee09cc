//! What the ocfs2-tools say about volumes that our journal has written.

use ondisk::{BlockNr, Dinode, Kind};
use runtime::sim::Simulation;

use super::volume::{Volume, disk, open};
use crate::cache::Cache;
use crate::journal::{Journal, Tid, recover_slot};

/// Sets an inode's modification time in a handle of its own.
async fn touch(cache: &Cache, journal: &Journal, inode: BlockNr, seconds: u64) -> Tid {
    let block = cache.read(inode, Kind::Dinode).await.unwrap();
    let mut handle = journal.begin(1).await.unwrap();
    Dinode::of_mut(&mut handle.modify(&block))
        .i_mtime
        .set(seconds);
    handle.commit()
}

fn journal_field(volume: &Volume, field: &str) -> String {
    let text = volume.debugfs("stat //journal:0000");
    let line = text
        .lines()
        .find(|line| line.contains(field))
        .unwrap_or_default();
    line.split(field)
        .nth(1)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

#[test]
fn changes_of_a_clean_journal_are_home_after_close() {
    let volume = Volume::usual();
    let dinode = volume.system_block("journal:0000");
    let root = super::volume::geometry(&volume.image()).root_dir;
    let sim = Simulation::new(1);
    let disk = disk(volume.image(), &sim.world());
    sim.block_on(async {
        let (setup, journal, recovery) = open(&disk, &sim.world(), dinode).await;
        assert!(!recovery.dirty);
        let tid = touch(&setup.cache, &journal, root, 1_000_000).await;
        journal.wait_committed(tid).await.unwrap();
        touch(&setup.cache, &journal, root, 2_000_000).await;
        journal.close().await.unwrap();
        assert!(journal.begin(1).await.is_err());
    })
    .unwrap();
    assert_eq!(sim.run_until_idle(), Ok(0), "the timer's task has ended");
    assert_eq!(disk.stats().overlapping_writes, 0);
    volume.save(&disk.image());
    let (text, status) = volume.fsck("-fn");
    assert_eq!(status, 0, "{text}");
    assert!(text.contains("All passes succeeded"), "{text}");
    assert!(volume.debugfs("stat /").contains("mtime: 0x1e8480 "));
}

/// The volume as a crash after the commit, before the checkpoint leaves it.
fn crashed(volume: &Volume, dinode: BlockNr, change: impl AsyncFnOnce(&Cache, &Journal)) {
    let sim = Simulation::new(2);
    let disk = disk(volume.image(), &sim.world());
    sim.block_on(async {
        let (setup, journal, _) = open(&disk, &sim.world(), dinode).await;
        change(&setup.cache, &journal).await;
        journal.force_commit().await.unwrap();
    })
    .unwrap();
    volume.save(&disk.crash_image(&runtime::sim::Choice::default()));
}

#[test]
fn fsck_replays_what_we_have_committed() {
    let volume = Volume::usual();
    let dinode = volume.system_block("journal:0000");
    let root = super::volume::geometry(&volume.image()).root_dir;
    crashed(&volume, dinode, async |cache, journal| {
        touch(cache, journal, root, 1_000_000).await;
        journal.force_commit().await.unwrap();
        touch(cache, journal, root, 2_000_000).await;
    });
    assert!(
        !volume.debugfs("stat /").contains("mtime: 0x1e8480 "),
        "nothing is home yet"
    );
    assert_eq!(journal_field(&volume, "Journal Flags:"), "Dirty");
    let text = volume.fsck_repair();
    assert!(
        volume.debugfs("stat /").contains("mtime: 0x1e8480 "),
        "{text}"
    );
    let (text, status) = volume.fsck("-fn");
    assert_eq!(status, 0, "{text}");
}

/// Regression 30: whoever comes second to a dead node's slot sees that it was recovered.
#[test]
fn a_dead_slot_is_recovered_once() {
    let volume = Volume::usual();
    let (ours, dead) = (
        volume.system_block("journal:0000"),
        volume.system_block("journal:0001"),
    );
    let root = super::volume::geometry(&volume.image()).root_dir;
    crashed(&volume, dead, async |cache, journal| {
        touch(cache, journal, root, 2_000_000).await;
    });
    let sim = Simulation::new(3);
    let disk = disk(volume.image(), &sim.world());
    sim.block_on(async {
        let (setup, journal, recovery) = open(&disk, &sim.world(), ours).await;
        assert!(!recovery.dirty);
        let recovery = recover_slot(&setup, dead).await.unwrap().unwrap();
        assert_eq!(
            (recovery.transactions, recovery.blocks, recovery.generation),
            (1, 1, 1)
        );
        assert_eq!(recover_slot(&setup, dead).await.unwrap(), None);
        let block = setup.cache.read(root, Kind::Dinode).await.unwrap();
        assert_eq!(Dinode::of(&block.data()).i_mtime.get(), 2_000_000);
        journal.close().await.unwrap();
    })
    .unwrap();
    volume.save(&disk.image());
    let (text, status) = volume.fsck("-fn");
    assert_eq!(status, 0, "{text}");
    assert!(!text.contains("journal"), "both are clean: {text}");
}

/// A volume that was pulled away from the kernel: `OCELOT_DIRTY_IMAGE` names it (made by the VM
/// that plays the kernel, see the testing notes). fsck.ocfs2 and we must make the same of its log.
#[test]
#[ignore = "needs OCELOT_DIRTY_IMAGE, a volume that the kernel left dirty"]
fn a_log_of_the_kernel_is_replayed_as_fsck_does() {
    let source = std::env::var("OCELOT_DIRTY_IMAGE").unwrap();
    let theirs = Volume::copy_of(source.as_ref());
    let ours = Volume::copy_of(source.as_ref());
    let dinode = ours.system_block("journal:0000");
    let sim = Simulation::new(5);
    let disk = disk(ours.image(), &sim.world());
    sim.block_on(async {
        let (_, journal, recovery) = open(&disk, &sim.world(), dinode).await;
        assert!(recovery.dirty && recovery.transactions > 0, "{recovery:?}");
        assert_eq!(recovery.generation, 1);
        journal.close().await.unwrap();
    })
    .unwrap();
    ours.save(&disk.image());
    let (text, _) = theirs.fsck("-fy"); // stops after the replay
    assert!(text.contains("journal replayed successfully"), "{text}");
    let (a, b) = (ours.image(), theirs.image());
    let block_size = super::volume::geometry(&a).block_size();
    let differing: Vec<u64> = (0..a.size_bytes() / block_size as u64)
        .filter(|at| {
            let at = at * block_size as u64;
            a.read_vec(at, block_size) != b.read_vec(at, block_size)
        })
        .collect();
    // The journal's inode (its flag, its generation), the journal's superblock (the number), and
    // block 2, where fsck leaves its mark.
    let own: Vec<u64> = vec![dinode.0, ours.journal_start().0, 2];
    assert!(differing.iter().all(|at| own.contains(at)), "{differing:?}");
    // What is left are orphans, local alloc and truncate log, which are not the journal's.
    let (ours_text, _) = ours.fsck("-fy");
    let (theirs_text, _) = theirs.fsck("-fy");
    let findings = |text: &str| -> Vec<String> {
        text.lines()
            .filter(|line| line.starts_with('['))
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(findings(&ours_text), findings(&theirs_text));
    let (text, status) = ours.fsck("-fn");
    assert_eq!(status, 0, "{text}");
}
