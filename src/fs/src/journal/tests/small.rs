//! Small blocks, where a structure may be several of them, and where a descriptor holds few tags.

use ondisk::{BlockNr, Kind, XATTR_BUCKET_BYTES};
use runtime::sim::{Choice, Simulation};

use super::volume::{Volume, disk, open};

#[test]
fn a_bucket_of_eight_blocks_is_logged_and_replayed() {
    let max = "--fs-feature-level=max-features";
    let volume = Volume::make(
        &[
            "-b",
            "512",
            "-C",
            "4096",
            "-J",
            "size=4M",
            max,
            "--fs-features=metaecc",
        ],
        "64M",
    );
    let dinode = volume.system_block("journal:0000");
    let sim = Simulation::new(8);
    let world = sim.world();
    let disk_one = disk(volume.image(), &world);
    let home = BlockNr(8 * 15_000);
    let crashed = sim
        .block_on(async {
            let (_, journal, recovery) = open(&disk_one, &world, dinode).await;
            assert!(!recovery.dirty);
            let mut handle = journal.begin(80).await.unwrap();
            for at in 0..10u64 {
                let bucket = handle.fresh(BlockNr(home.0 + 8 * at), Kind::XattrBucket);
                let mut bytes = handle.modify(&bucket);
                assert_eq!(bytes.len(), XATTR_BUCKET_BYTES);
                bytes[100..].fill(at as u8 + 1);
            }
            assert_eq!(handle.credits(), 0, "a bucket is eight blocks of the log");
            let tid = handle.commit();
            journal.wait_committed(tid).await.unwrap();
            let crashed = disk_one.crash_image(&Choice::default());
            journal.close().await.unwrap();
            crashed
        })
        .unwrap();
    assert_eq!(crashed.read_vec(home.0 * 512 + 100, 1), [0]);
    let disk_two = disk(crashed, &world);
    sim.block_on(async {
        let (_, journal, recovery) = open(&disk_two, &world, dinode).await;
        assert_eq!((recovery.transactions, recovery.blocks), (1, 80));
        journal.close().await.unwrap();
    })
    .unwrap();
    let span = |disk: &runtime::sim::SimDisk| disk.image().read_vec(home.0 * 512, 10 * 4096);
    assert_eq!(span(&disk_one), span(&disk_two));
    // Each bucket carries the checksum of all of its eight blocks.
    for mut bucket in span(&disk_two).chunks(4096).map(<[u8]>::to_vec) {
        Kind::XattrBucket.verify(&mut bucket, home).unwrap();
    }
    volume.save(&disk_two.image());
    let (text, status) = volume.fsck("-fn");
    assert_eq!(status, 0, "{text}");
}
