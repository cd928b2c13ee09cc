//! What others, or crashes, have left: mounts that recover it, and crashes inside those mounts.

use std::time::Duration;

use ondisk::feature::InodeFlags;
use ondisk::{BlockNr, Dinode, Kind, SlotNr, local_alloc, truncate_log};
use runtime::sim::{Choice, CrashModel, DiskOptions, Image, SimDisk, SimRng, Simulation};

use super::remove::{REMOVE_BLOCKS, orphan_name};
use super::*;
use crate::dir;
use crate::slot_map::{NodeNr, SlotMap};
use crate::system::SystemFile;
use crate::testing;

const READ_WRITE: OpenFlags = OpenFlags {
    read: true,
    write: true,
    append: false,
    direct: false,
    dsync: false,
    nowait: false,
    truncate: false,
    fixed_size: false,
};
const SLOT_0: SlotNr = SlotNr(0);
const SLOT_1: SlotNr = SlotNr(1);

fn volume_with_append_dio() -> testing::Volume {
    let features = "--fs-features=sparse,unwritten,inline-data,extended-slotmap,metaecc,xattr,\
                    indexed-dirs,refcount,discontig-bg,append-dio";
    testing::Volume::with(4096, 4096, 40, features)
}

/// A world of its own for one disk.
struct Bench {
    sim: Simulation,
    disk: SimDisk,
}

impl Bench {
    fn new(image: Image, seed: u64) -> Bench {
        let sim = Simulation::new(seed);
        sim.set_step_budget(u64::MAX);
        let disk = SimDisk::with(image, DiskOptions::default(), Some(&sim.world()));
        Bench { sim, disk }
    }

    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.sim.block_on(future).unwrap()
    }

    async fn mount(&self, read_only: bool) -> Volume {
        let options = MountOptions {
            read_only,
            commit_interval: Duration::from_millis(1),
            ..MountOptions::default()
        };
        let mount = Volume::mount(self.disk.device(), self.sim.host(), options);
        mount.await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// What a power loss now leaves at least.
    fn durable(&self) -> Image {
        self.disk.crash_image(&Choice::default())
    }
}

async fn put(volume: &Volume, name: &[u8], content: Vec<u8>) -> Ino {
    let new = NewInode {
        permissions: 0o644,
        ..NewInode::default()
    };
    let made = volume.create(volume.root(), name, new, IfExists::Fail);
    let ino = made.await.unwrap().ino;
    let file = volume.open(ino, READ_WRITE).await.unwrap();
    let written = volume.write(&file, 0, content.into()).await;
    assert!(written.error.is_none(), "{written:?}");
    volume.fsync(&file, false).await.unwrap();
    volume.close(file).await.unwrap();
    ino
}

fn bytes(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|at| seed ^ (at / 7) as u8).collect()
}

async fn clusters_of(volume: &Volume, ino: Ino) -> u32 {
    let inode = volume.client_inode(ino).await.unwrap();
    inode.dinode().i_clusters.get()
}

async fn orphans_in(volume: &Volume, slot: SlotNr) -> Vec<Vec<u8>> {
    let core = volume.core();
    let dir = core.system.of(SystemFile::OrphanDir, slot);
    let dir = volume.inode_any(dir).await.unwrap();
    let (entries, _) = dir::read(core, &dir, 0, 100).await.unwrap();
    let names = entries.into_iter().map(|entry| entry.name);
    names.filter(|name| name != b"." && name != b"..").collect()
}

async fn dinode_of(volume: &Volume, file: SystemFile, slot: SlotNr) -> Vec<u8> {
    let core = volume.core();
    let nr = core.system.of(file, slot);
    let block = core.cache.read(nr, Kind::Dinode).await.unwrap();
    block.snapshot().to_vec()
}

/// Every power loss inside a mount of `image`, and what the next mount makes of it, for `judge`. Some go
/// to fsck.ocfs2.
fn crash_inside_a_mount(image: &Image, volume: &testing::Volume, judge: impl AsyncFn(&Volume)) {
    let bench = Bench::new(image.clone(), 5);
    bench.disk.record();
    bench.run(async {
        let mounted = bench.mount(false).await;
        mounted.unmount().await.unwrap();
    });
    let trace = bench.disk.take_trace().unwrap();
    let mut rng = SimRng::new(5);
    let mut crashes = 0;
    for point in trace.interesting_points() {
        for model in [CrashModel::LoseAll, CrashModel::KeepAll, CrashModel::Any] {
            let choice = model.choose(&trace.volatile_at(point), 512, &mut rng);
            let bench = Bench::new(trace.image_at(point, &choice), 6);
            bench.run(async {
                let mounted = bench.mount(false).await;
                judge(&mounted).await;
                mounted.unmount().await.unwrap();
            });
            crashes += 1;
            if crashes % 40 == 0 {
                volume.fsck(&bench.disk);
            }
        }
    }
    assert!(crashes > 60, "{crashes} crashes");
}

/// A file that a kernel was extending by a direct write when it died: clusters past the size, an
/// entry "dio-…" in the orphan directory, a flag.
async fn leave_half_extended(volume: &Volume, ino: Ino, size: u64) {
    let core = volume.core();
    let inode = volume.client_inode(ino).await.unwrap();
    let orphans = core.system.of(SystemFile::OrphanDir, SLOT_0);
    let orphans = volume.inode_any(orphans).await.unwrap();
    let mut h = core.journal.begin(2 * REMOVE_BLOCKS).await.unwrap();
    let name = [b"dio-", orphan_name(inode.nr()).as_slice()].concat();
    let kind = FileKind::Regular.dirent();
    dir::insert(core, &mut h, &orphans, &name, inode.nr(), kind)
        .await
        .unwrap();
    {
        let mut bytes = h.modify(inode.block());
        let d = Dinode::of_mut(&mut bytes);
        d.i_size.set(size);
        d.i_flags
            .set(d.i_flags.get() | InodeFlags::DIO_ORPHANED.bits());
        d.i_dio_orphaned_slot.set(0);
    }
    h.commit();
    volume.sync().await.unwrap();
}

/// Regressions 7 and 8: a direct write that was extending a file when its node died is cut back to the
/// size, and the file is kept, however often recovery is interrupted.
#[test]
fn regression_7_and_8_a_half_done_direct_extend_is_cut_and_kept() {
    let volume = volume_with_append_dio();
    let bench = Bench::new(volume.image(), 1);
    let (ino, plain) = bench.run(async {
        let mounted = bench.mount(false).await;
        let ino = put(&mounted, b"f", bytes(1, 40_000)).await;
        let plain = put(&mounted, b"g", bytes(2, 40_000)).await;
        leave_half_extended(&mounted, ino, 5000).await;
        (ino, plain)
    });
    let judge = async |mounted: &Volume| {
        let attr = mounted.getattr(ino).await.unwrap();
        assert_eq!((attr.size_bytes, attr.links), (5000, 1));
        assert_eq!(clusters_of(mounted, ino).await, 2);
        let inode = mounted.client_inode(ino).await.unwrap();
        assert!(!inode.dinode().flags().contains(InodeFlags::DIO_ORPHANED));
        assert_eq!(orphans_in(mounted, SLOT_0).await, [] as [Vec<u8>; 0]);
        assert!(mounted.read_ino(ino, 0, 9000).await.unwrap() == bytes(1, 40_000)[..5000]);
        // What lay past the size is not seen when it moves.
        let grow = SetAttr {
            size_bytes: Some(30_000),
            ..SetAttr::default()
        };
        mounted.setattr(ino, grow).await.unwrap();
        let tail = mounted.read_ino(ino, 5000, 25_000).await.unwrap();
        assert!(tail.iter().all(|byte| *byte == 0));
        let shrink = SetAttr {
            size_bytes: Some(5000),
            ..SetAttr::default()
        };
        mounted.setattr(ino, shrink).await.unwrap();
        assert_eq!(clusters_of(mounted, plain).await, 10);
    };
    crash_inside_a_mount(&bench.durable(), &volume, judge);
}

/// An entry that leads to a file which is nobody's orphan (its name may have been put there by damage)
/// deletes nothing, and does not keep the volume from being mounted.
#[test]
fn an_orphan_entry_of_a_living_file_deletes_nothing() {
    let volume = volume_with_append_dio();
    let bench = Bench::new(volume.image(), 2);
    bench.run(async {
        let mounted = bench.mount(false).await;
        let ino = put(&mounted, b"alive", bytes(3, 40_000)).await;
        let core = mounted.core();
        let orphans = core.system.of(SystemFile::OrphanDir, SLOT_0);
        let orphans = mounted.inode_any(orphans).await.unwrap();
        let mut h = core.journal.begin(3 * REMOVE_BLOCKS).await.unwrap();
        let dio = [b"dio-", orphan_name(ino.into()).as_slice()].concat();
        for name in [orphan_name(ino.into()), dio, orphan_name(BlockNr(9))] {
            let nr = if name.ends_with(b"9") {
                BlockNr(9)
            } else {
                ino.into()
            };
            let kind = FileKind::Regular.dirent();
            dir::insert(core, &mut h, &orphans, &name, nr, kind)
                .await
                .unwrap();
        }
        h.commit();
        mounted.sync().await.unwrap();
    });
    let again = Bench::new(bench.durable(), 3);
    again.run(async {
        let mounted = again.mount(false).await;
        let found = mounted.lookup(mounted.root(), b"alive").await.unwrap();
        let content = mounted.read_ino(found.ino, 0, 40_000).await.unwrap();
        assert!(content == bytes(3, 40_000));
        assert_eq!(clusters_of(&mounted, found.ino).await, 10);
        assert_eq!(
            orphans_in(&mounted, SLOT_0).await.len(),
            3,
            "left to fsck.ocfs2"
        );
        assert_eq!(mounted.read_only(), None);
        mounted.unmount().await.unwrap();
    });
}

/// Writes the slot map, on a volume that nobody has mounted.
fn set_slots(image: Image, slots: [Option<u32>; 2]) -> Image {
    let bench = Bench::new(image, 4);
    bench.run(async {
        // A volume with a dirty journal is not mounted to be read only; the parts of one will do.
        let core = testing::open_parts(&bench.sim, &bench.disk).await;
        for (slot, node) in [SLOT_0, SLOT_1].into_iter().zip(slots) {
            SlotMap::set(&core, slot, node.map(NodeNr)).await.unwrap();
        }
    });
    bench.durable()
}

/// A node died in slot 1, with a window, a truncate log, an orphan and transactions in its log. We take
/// slot 0 and recover it; wherever that is interrupted, the next mount goes on. And the slot is never
/// free with its journal clean and window or truncate log in use: the kernel refuses to mount that, and
/// nobody would look there again. (Once, the slot was given free while the transaction that empties them was not committed.)
#[test]
fn a_dead_nodes_slot_is_recovered_whole_whatever_interrupts_it() {
    let volume = volume_with_append_dio();
    let dead = Bench::new(set_slots(volume.image(), [Some(5), None]), 1);
    let (kept, orphan) = dead.run(async {
        let mounted = dead.mount(false).await;
        assert_eq!(mounted.info().slot, 1, "slot 0 is node 5's");
        let kept = put(&mounted, b"kept", bytes(1, 60_000)).await;
        let orphan = put(&mounted, b"orphan", bytes(2, 50_000)).await;
        put(&mounted, b"gone", bytes(3, 90_000)).await;
        let held = mounted.open(orphan, READ_WRITE).await.unwrap();
        mounted.unlink(mounted.root(), b"orphan").await.unwrap();
        mounted.unlink(mounted.root(), b"gone").await.unwrap();
        mounted.sync().await.unwrap();
        assert_eq!(orphans_in(&mounted, SLOT_1).await.len(), 1);
        let window = dinode_of(&mounted, SystemFile::LocalAlloc, SLOT_1).await;
        assert!(local_alloc(&window).dinode.total() > 0);
        let log = dinode_of(&mounted, SystemFile::TruncateLog, SLOT_1).await;
        assert!(!truncate_log(&log).used().is_empty());
        drop(held);
        (kept, orphan)
    });
    let image = set_slots(dead.durable(), [None, Some(7)]);
    let after = async |mounted: &Volume| {
        assert_eq!(mounted.info().slot, 0);
        assert!(mounted.read_ino(kept, 0, 60_000).await.unwrap() == bytes(1, 60_000));
        let gone = mounted.getattr(orphan).await.unwrap_err();
        assert_eq!(gone.errno(), crate::Errno::ESTALE);
        assert_eq!(orphans_in(mounted, SLOT_1).await, [] as [Vec<u8>; 0]);
        mounted.sync().await.unwrap();
        let journal = dinode_of(mounted, SystemFile::Journal, SLOT_1).await;
        let journal = Dinode::of(&journal);
        assert!(!journal.journal_is_dirty());
        assert!(journal.journal_recovery_generation() >= 1);
        let window = dinode_of(mounted, SystemFile::LocalAlloc, SLOT_1).await;
        assert_eq!(local_alloc(&window).dinode.total(), 0, "a window is left");
        let log = dinode_of(mounted, SystemFile::TruncateLog, SLOT_1).await;
        assert!(
            truncate_log(&log).used().is_empty(),
            "a truncate log is left"
        );
    };
    crash_inside_a_mount(&image, &volume, after);
}

/// Regression 33: every cluster of a window that a crash has left is given back, once.
#[test]
fn regression_33_a_window_left_by_a_crash_goes_back_once() {
    let volume = volume_with_append_dio();
    let bench = Bench::new(volume.image(), 1);
    let free = bench.run(async {
        let mounted = bench.mount(false).await;
        put(&mounted, b"f", bytes(1, 40_000)).await;
        mounted.sync().await.unwrap();
        let window = dinode_of(&mounted, SystemFile::LocalAlloc, SLOT_0).await;
        assert!(
            !local_alloc(&window).is_empty(),
            "there is a window to lose"
        );
        mounted.statfs().await.unwrap().free_bytes
    });
    let after = async |mounted: &Volume| {
        // Either bitmap or window has them: the sum is what it was.
        assert_eq!(mounted.statfs().await.unwrap().free_bytes, free);
    };
    crash_inside_a_mount(&bench.durable(), &volume, after);
}
