//! Random mixes of direct, buffered, appending and unaligned writes, truncations, punched, zeroed and
//! allocated ranges, clones, reads and fsyncs, from several clients of one file at once, against
//! arrays of bytes; with device errors in a part of the runs.
//!
//! While clients run at the same time each has bytes of its own, cut at odd places, so that they meet
//! in blocks, pages and clusters but what each must see is known exactly. Between two such rounds one
//! client changes the file as a whole. After each round every byte is looked at through the cache and
//! past it; at the end by fsck.ocfs2.
//!
//! `OCELOT_SEED=n` runs only that one, `OCELOT_SEEDS=n` more.
#![allow(clippy::print_stdout, reason = "says which seed failed")]
#![allow(clippy::unwrap_used, reason = "a test fails where it panics")]

mod support;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use fs::volume::{
    CloneAs, FileHandle, IfExists, MountOptions, OpenFlags, RangeMode, SetAttr, Volume,
};
use rand::RngCore;
use runtime::sim::{DiskOptions, Fault, SimDisk, SimRng};
use runtime::{DeviceErrorKind, Host, Op};
use support::*;

/// Block size, cluster size, megabytes, features.
const GEOMETRIES: [(u32, u32, u64, &str); 6] = [
    (4096, 4096, 40, ALL),
    (512, 4096, 40, ALL),
    (1024, 32768, 64, ALL),
    (4096, 1 << 20, 256, ALL),
    (
        2048,
        8192,
        40,
        "sparse,unwritten,noinline-data,refcount,nometaecc",
    ),
    (4096, 4096, 40, PLAIN),
];

const CLIENTS: usize = 5;

/// What a byte may be: one value, or after a failed write also another.
#[derive(Debug, Clone, Default)]
struct Model {
    bytes: Vec<u8>,
    /// Beside `bytes`, what a write that failed may have left.
    maybe: std::collections::BTreeMap<u64, Vec<u8>>,
}

impl Model {
    fn write(&mut self, at: u64, data: &[u8]) {
        let end = at as usize + data.len();
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[at as usize..end].copy_from_slice(data);
        let known: Vec<u64> = self.maybe.range(at..end as u64).map(|(&k, _)| k).collect();
        for byte in known {
            self.maybe.remove(&byte);
        }
    }

    /// A write stopped after `done` bytes: those are in, the others may be, as far as the file goes.
    fn stopped(&mut self, at: u64, data: &[u8], done: u64) {
        self.write(at, &data[..done as usize]);
        for (i, &byte) in data.iter().enumerate().skip(done as usize) {
            let place = at + i as u64;
            if (place as usize) < self.bytes.len() {
                self.maybe.entry(place).or_default().push(byte);
            }
        }
    }

    fn zero(&mut self, from: u64, to: u64) {
        let to = to.min(self.bytes.len() as u64);
        if from < to {
            self.write(from, &vec![0; (to - from) as usize]);
        }
    }

    fn resize(&mut self, size: u64) {
        self.bytes.resize(size as usize, 0);
        self.maybe.split_off(&size);
    }

    fn check(&mut self, at: u64, found: &[u8], what: &str) {
        let end = (at as usize + found.len()).min(self.bytes.len());
        assert_eq!(end - at as usize, found.len(), "{what}: bytes past the end");
        for (i, &byte) in found.iter().enumerate() {
            let place = at + i as u64;
            if self.bytes[place as usize] == byte {
                continue;
            }
            let maybe = self
                .maybe
                .get(&place)
                .is_some_and(|all| all.contains(&byte));
            assert!(
                maybe,
                "{what}: byte {place} is {byte:#x}, wanted {:#x}",
                self.bytes[place as usize]
            );
        }
    }
}

struct Player {
    volume: Volume,
    host: Rc<dyn Host>,
    rng: SimRng,
    /// Buffered, direct, buffered with O_DSYNC, direct with O_DSYNC.
    handles: Vec<FileHandle>,
    faulty: bool,
}

impl Player {
    fn below(&mut self, bound: u64) -> u64 {
        self.rng.below(bound)
    }

    fn handle(&mut self) -> FileHandle {
        let at = self.below(8);
        let at = match at {
            0..3 => 0,
            3..6 => 1,
            other => other as usize - 4,
        };
        self.handles[at].clone()
    }

    fn data(&mut self, len: u64) -> Vec<u8> {
        let seed = self.rng.next_u64();
        pattern(seed, len as usize)
    }

    /// A range in `from..to`, often on a boundary of something.
    fn range(&mut self, from: u64, to: u64, most: u64) -> (u64, u64) {
        let grain = [1, 1, 512, 4096, 32768][self.below(5) as usize];
        let start = from + self.below(to - from);
        let start = (start - start % grain).clamp(from, to - 1);
        let len = 1 + self.below((to - start).min(most));
        let end = (start + len).next_multiple_of(grain).clamp(start + 1, to);
        (start, end - start)
    }

    async fn write(&mut self, model: &mut Model, at: u64, len: u64) {
        let (file, data) = (self.handle(), self.data(len));
        let written = self
            .volume
            .write_explained(&file, at, Bytes::from(data.clone()))
            .await;
        let told: u64 = written.attempts.iter().map(|attempt| attempt.bytes).sum();
        assert_eq!(told, written.bytes, "the attempts tell the truth");
        match written.error {
            None => {
                assert_eq!((written.bytes, written.position), (len, at));
                model.write(at, &data);
            }
            Some(error) => {
                assert!(self.faulty, "{error}");
                model.stopped(at, &data, written.bytes);
            }
        }
    }

    async fn read(&mut self, model: &mut Model, at: u64, len: u64) {
        let file = self.handle();
        let direct = file.flags().direct;
        match self.volume.read(&file, at, len).await {
            Ok(bytes) => {
                let inside = (model.bytes.len() as u64).saturating_sub(at).min(len);
                assert_eq!(bytes.len() as u64, inside);
                model.check(at, &bytes, if direct { "direct" } else { "cached" });
            }
            Err(error) => assert!(self.faulty, "{error}"),
        }
    }

    async fn sync(&mut self) {
        let file = self.handle();
        if let Err(error) = self.volume.fsync(&file, true).await {
            assert!(self.faulty, "{error}");
        }
    }

    /// One of several clients: in bytes of its own only.
    async fn own_bytes(&mut self, model: &mut Model, from: u64, to: u64, steps: u64) {
        for _ in 0..steps {
            let (at, len) = self.range(from, to, 60_000);
            match self.below(10) {
                0..6 => self.write(model, at, len).await,
                6..9 => self.read(model, at, len).await,
                _ if self.below(3) == 0 => {
                    let pause = Duration::from_millis(self.below(3000));
                    self.host.sleep(pause).await;
                }
                _ => self.sync().await,
            }
        }
    }

    /// Changes of the file as a whole, one at a time.
    async fn whole_file(
        &mut self,
        model: &mut Model,
        features: &str,
        clones: &mut Vec<(fs::volume::Ino, Vec<u8>)>,
    ) {
        let size = model.bytes.len() as u64;
        let file = self.handles[self.rng.below(2) as usize].clone();
        let sparse = features != PLAIN;
        match self.below(7) {
            0 => {
                let new = self.below(size + 200_000);
                let set = SetAttr {
                    size_bytes: Some(new),
                    ..SetAttr::default()
                };
                match self.volume.setattr(file.ino(), set).await {
                    Ok(attr) => {
                        assert_eq!(attr.size_bytes, new);
                        model.resize(new);
                    }
                    Err(error) => self.unclear(model, &error, new.min(size), size).await,
                }
            }
            1 => {
                // O_APPEND, however stale the offset.
                let flags = OpenFlags {
                    append: true,
                    direct: self.below(2) == 0,
                    ..READ_WRITE
                };
                let appender = self.volume.open(file.ino(), flags).await.unwrap();
                for _ in 0..3 {
                    let len = 1 + self.below(20_000);
                    let data = self.data(len);
                    let written = self
                        .volume
                        .write(&appender, 3, Bytes::from(data.clone()))
                        .await;
                    let at = model.bytes.len() as u64;
                    match written.error {
                        None => {
                            assert_eq!((written.position, written.bytes), (at, len));
                            model.write(at, &data);
                        }
                        Some(error) => {
                            assert!(self.faulty, "{error}");
                            model.write(at, &data[..written.bytes as usize]);
                            model.resize(self.size(&file).await);
                        }
                    }
                }
                self.volume.close(appender).await.unwrap();
            }
            2 if sparse && size > 0 => {
                let (at, len) = self.range(0, size, 300_000);
                match self
                    .volume
                    .fallocate(&file, RangeMode::PunchHole, at, len)
                    .await
                {
                    Ok(()) => model.zero(at, at + len),
                    Err(error) => self.unclear(model, &error, at, at + len).await,
                }
            }
            3 if sparse && size > 0 => {
                let (at, len) = self.range(0, size, 300_000);
                let mode = RangeMode::Zero { keep_size: true };
                match self.volume.fallocate(&file, mode, at, len).await {
                    Ok(()) => model.zero(at, at + len),
                    Err(error) => self.unclear(model, &error, at, at + len).await,
                }
            }
            4 if sparse => {
                let (at, len) = (self.below(size + 50_000), 1 + self.below(200_000));
                let keep_size = self.below(2) == 0;
                let mode = RangeMode::Allocate { keep_size };
                match self.volume.fallocate(&file, mode, at, len).await {
                    Ok(()) if !keep_size && at + len > size => model.resize(at + len),
                    Ok(()) => {}
                    Err(error) => self.unclear(model, &error, size, size).await,
                }
            }
            5 if features.contains(",refcount") && clones.len() < 3 => {
                let name = format!("clone{}", self.rng.next_u64());
                let root = self.volume.root();
                let made = self
                    .volume
                    .clone_file(file.ino(), root, name.as_bytes(), CloneAs::Same)
                    .await;
                match made {
                    Ok(attr) if model.maybe.is_empty() => {
                        clones.push((attr.ino, model.bytes.clone()))
                    }
                    Ok(_) => {}
                    Err(error) => assert!(self.faulty, "{error}"),
                }
            }
            _ => {
                // Past the end, with a gap before it.
                let at = size + self.below(100_000);
                let len = 1 + self.below(50_000);
                let before = model.bytes.len() as u64;
                self.write(model, at, len).await;
                if self.faulty {
                    let now = self.size(&file).await;
                    assert!(now >= before);
                    model.resize(now);
                }
            }
        }
    }

    async fn size(&self, file: &FileHandle) -> u64 {
        self.volume.fstat(file).await.unwrap().size_bytes
    }

    /// An operation failed on the way: its range is what it was, or zero; the size tells.
    async fn unclear(&self, model: &mut Model, error: &fs::Error, from: u64, to: u64) {
        assert!(self.faulty, "{error}");
        let size = self.size(&self.handles[0]).await;
        for place in from..to.min(model.bytes.len() as u64) {
            model.maybe.entry(place).or_default().push(0);
        }
        model.resize(size);
    }

    /// Every byte, through the cache and past it.
    async fn look(&mut self, model: &mut Model) {
        for handle in [0, 1] {
            let file = self.handles[handle].clone();
            let size = model.bytes.len() as u64;
            assert_eq!(self.size(&file).await, size);
            let mut at = 0;
            while at < size {
                let len = (size - at).min(300_001);
                let found = match self.volume.read(&file, at, len).await {
                    Ok(found) => found,
                    Err(error) => {
                        assert!(self.faulty, "{error}");
                        break;
                    }
                };
                assert_eq!(found.len() as u64, len);
                model.check(at, &found, ["cached", "direct"][handle]);
                at += len;
            }
        }
    }
}

/// Errors where the file has its data by now. Errors of metadata stop the journal, which is the
/// business of other tests.
async fn plant_faults(volume: &Volume, ino: fs::volume::Ino, disk: &SimDisk, rng: &mut SimRng) {
    let extents = volume.extents(ino, 0, 64).await.unwrap_or_default();
    for _ in 0..2 {
        let extent = match extents.get(rng.below(extents.len() as u64) as usize) {
            Some(extent) if !extent.inline => extent,
            _ => continue,
        };
        let kind = [DeviceErrorKind::Failed, DeviceErrorKind::Aborted][rng.below(2) as usize];
        let op = [Op::Write, Op::Read][rng.below(2) as usize];
        let reached = [0, 512, 4096, 70_000][rng.below(4) as usize];
        let fault = Fault::fail_after_bytes(kind, reached)
            .on(op)
            .within(extent.physical..extent.physical + extent.length)
            .after(rng.below(20))
            .times(1 + rng.below(3));
        disk.inject(fault);
    }
}

fn run(seed: u64) {
    let mut rng = SimRng::new(seed ^ 0x0CE1_0715);
    let (block, cluster, megabytes, features) = GEOMETRIES[(seed % 6) as usize];
    let rig = Rig::new(block, cluster, megabytes, features);
    let world = rig.sim.world();
    let disk = SimDisk::with(rig.disk.image(), DiskOptions::default(), Some(&world));
    let host = rig.sim.host();
    // A third of the runs with a cache of very few pages.
    let options = MountOptions {
        page_cache_bytes: [256 << 10, 1 << 20, 16 << 20][rng.below(3) as usize],
        ..MountOptions::default()
    };
    rig.run(async {
        let volume = Volume::mount(disk.device(), host.clone(), options)
            .await
            .unwrap();
        let root = volume.root();
        let ino = volume
            .create(root, b"f", new_inode(), IfExists::Fail)
            .await
            .unwrap()
            .ino;
        let mut handles = Vec::new();
        for (direct, dsync) in [(false, false), (true, false), (false, true), (true, true)] {
            let flags = OpenFlags {
                direct,
                dsync,
                ..READ_WRITE
            };
            handles.push(volume.open(ino, flags).await.unwrap());
        }
        let mut model = Model::default();
        let mut clones = Vec::new();
        let mut player = Player {
            volume: volume.clone(),
            host: host.clone(),
            rng: rng.fork(),
            handles: handles.clone(),
            faulty: rng.coin(),
        };
        for _ in 0..8 {
            // Several at once, each with bytes of its own.
            let size = model.bytes.len() as u64;
            if size > 1000 {
                let mut cuts: Vec<u64> = (0..CLIENTS - 1).map(|_| rng.below(size)).collect();
                cuts.extend([0, size]);
                cuts.sort_unstable();
                let shared = Rc::new(RefCell::new(Vec::new()));
                let mut clients = Vec::new();
                for pair in cuts.windows(2) {
                    let (from, to) = (pair[0], pair[1]);
                    if from == to {
                        continue;
                    }
                    let mut own = model.clone();
                    let mut player = Player {
                        volume: volume.clone(),
                        host: host.clone(),
                        rng: rng.fork(),
                        handles: handles.clone(),
                        faulty: player.faulty,
                    };
                    let shared = shared.clone();
                    clients.push(async move {
                        player.own_bytes(&mut own, from, to, 12).await;
                        shared.borrow_mut().push((from, to, own));
                    });
                }
                if player.faulty {
                    plant_faults(&volume, ino, &disk, &mut rng).await;
                }
                futures_util::future::join_all(clients).await;
                for (from, to, own) in shared.take() {
                    model.bytes[from as usize..to as usize]
                        .copy_from_slice(&own.bytes[from as usize..to as usize]);
                    let mine = own.maybe.range(from..to);
                    let stale: Vec<u64> = model.maybe.range(from..to).map(|(&k, _)| k).collect();
                    for byte in stale {
                        model.maybe.remove(&byte);
                    }
                    model.maybe.extend(mine.map(|(&k, v)| (k, v.clone())));
                }
            }
            player.whole_file(&mut model, features, &mut clones).await;
            disk.clear_faults();
            player.look(&mut model).await;
        }
        for handle in handles {
            volume.close(handle).await.unwrap();
        }
        player.handles.clear();
        for (ino, bytes) in &clones {
            assert!(
                get(&volume, *ino).await.unwrap() == *bytes,
                "a clone is as it was"
            );
        }
        assert_eq!(volume.read_only(), None);
        volume.unmount().await.unwrap();
        // And once more from the device alone.
        let volume = Volume::mount(disk.device(), host.clone(), MountOptions::default())
            .await
            .unwrap();
        let found = get(&volume, ino).await.unwrap();
        assert_eq!(found.len(), model.bytes.len());
        model.check(0, &found, "mounted again");
        volume.unmount().await.unwrap();
    });
    // Space past the end, kept by fallocate, makes fsck.ocfs2 grumble; at the kernel's as well.
    rig.fsck_image(&disk.image(), &["INODE_SPARSE_SIZE"]);
}

struct Witness(u64);

impl Drop for Witness {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("OCELOT_SEED={} fails", self.0);
        }
    }
}

/// The property of issue and catalogue: whatever mix of ways, every user sees the same bytes.
#[test]
fn every_way_to_the_bytes_agrees() {
    for seed in seeds(12) {
        let _witness = Witness(seed);
        run(seed);
    }
}
