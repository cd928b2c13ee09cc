//! What the write path costs: 4 KiB requests at random places of a preallocated file, from inside
//! the reactor and from device memory, beside `bdevperf` on the same kind of bdev and beside the
//! same requests to the raw bdev, all in one run and taking turns.
//!
//!     cargo bench -p server --bench direct [-- [SECONDS [ROUNDS]] [malloc] [nvme] [bdevperf] [raw] [file]]
//!
//! The bdevs: malloc, and NVMe over vfio-user (a target of SPDK's own on the second processor, whose
//! disks are malloc bdevs; needs huge pages). Everything that is measured runs on processor 0.
//!
//! Prints a line of JSON for each measurement: medians over the rounds, and medians of the ratios
//! within a round. The figures are comparable within one run only. Where others use the processor
//! too, those per second of processor time say more. Allocations are counted once requests are warm.
#![allow(clippy::print_stdout, reason = "the result goes to standard output")]

#[path = "support/rig.rs"]
#[allow(dead_code, reason = "the other bench uses another part")]
mod rig;

use std::alloc::System;
use std::cell::{Cell, RefCell};
use std::error::Error;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fs::volume::{FileHandle, IfExists, MountOptions, NewInode, OpenFlags, Volume};
use runtime::{BlockDevice, BlockDeviceExt, Buffer, Host};
use spdk::{Access, Bdev, Config, Memory, Options, Polling, Reactors, Spdk};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tokio::sync::oneshot;

use rig::{FILE_BYTES, Figures};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const BLOCK: usize = 4096;
/// Requests that a worker does before anything counts.
const WARM_UP: u64 = 64;

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let wanted = WORDS.map(|word| words.iter().any(|given| given == word));
    let wanted = if wanted.contains(&true) {
        wanted
    } else {
        [true; 3]
    };
    let mut numbers = words.iter().filter_map(|word| word.parse::<u64>().ok());
    let time = Duration::from_secs(numbers.next().unwrap_or(2));
    let rounds = numbers.next().unwrap_or(3) as usize;
    let named = |name: &str| words.iter().any(|word| word == name);
    let all = !named("malloc") && !named("nvme");
    let rig = rig::Rig::start(all || named("nvme"))?;
    let spdk = Spdk::start(Options {
        config: Config::Json(rig.our_config()),
        memory: Memory::Auto { mib: 640 },
        // Asleep while it is bdevperf's turn.
        polling: Polling::default(),
        reactors: Reactors::Pinned(vec![0]),
        ..Options::default()
    })?;
    let reactor = spdk.reactor(0);
    if all || named("malloc") {
        let image = rig::format()?;
        reactor.call_and_wait(move || set_up("raw", "vol", image))??;
        compare(&rig, reactor, "malloc", wanted, time, rounds)?;
        reactor.call_and_wait(tear_down)??;
    }
    if rig.has_nvme() {
        let image = rig::format()?;
        reactor.call_and_wait(move || set_up("nvmen1", "nvmen2", image))??;
        compare(&rig, reactor, "nvme over vfio-user", wanted, time, rounds)?;
        reactor.call_and_wait(tear_down)??;
    }
    spdk.stop_and_wait()?;
    Ok(())
}

const SUBJECTS: [&str; 3] = ["bdevperf", "raw bdev", "ocelot file"];
/// How they are named on the command line; without any, all have their turn.
const WORDS: [&str; 3] = ["bdevperf", "raw", "file"];

/// All of a bdev: each kind of request, subject after subject, round after round.
fn compare(
    rig: &rig::Rig,
    reactor: &spdk::ReactorHandle,
    bdev: &str,
    wanted: [bool; 3],
    time: Duration,
    rounds: usize,
) -> Result<(), Failure> {
    for (depth, read) in [(1, false), (32, false), (1, true), (32, true)] {
        let mut figures: [Vec<Figures>; 3] = Default::default();
        for _ in 0..rounds {
            if wanted[0] {
                figures[0].push(rig.bdevperf(bdev == "malloc", depth, read, time)?);
            }
            for subject in [1, 2].into_iter().filter(|subject| wanted[*subject]) {
                let run = move || measure(subject - 1, depth, read, time);
                figures[subject].push(reactor.call_and_wait(run)??);
            }
        }
        let named = SUBJECTS.iter().enumerate();
        for (subject, name) in named.filter(|(subject, _)| wanted[*subject]) {
            let own = &figures[subject];
            let ratio = |to: usize, of: fn(&Figures) -> f64| {
                let pairs = own.iter().zip(&figures[to]);
                median(pairs.map(|(own, other)| of(own) / of(other)).collect())
            };
            let wall = |figures: &Figures| figures.iops;
            let cpu = |figures: &Figures| figures.iops_per_cpu_second;
            println!(
                concat!(
                    r#"{{"bdev":"{}","subject":"{}","operation":"{}","block_bytes":{},"depth":{},"#,
                    r#""iops":{:.0},"to_bdevperf":{},"to_raw":{},"#,
                    r#""iops_per_cpu_second":{:.0},"cpu_to_bdevperf":{},"cpu_to_raw":{},"#,
                    r#""allocations_per_request":{}}}"#
                ),
                bdev,
                name,
                if read { "random read" } else { "random write" },
                BLOCK,
                depth,
                median(own.iter().map(wall).collect()),
                number(ratio(0, wall)),
                number(ratio(1, wall)),
                median(own.iter().map(cpu).collect()),
                number(ratio(0, cpu)),
                number(ratio(1, cpu)),
                number(median(
                    own.iter().map(|f| f.allocations_per_request).collect()
                )),
            );
        }
    }
    Ok(())
}

/// A number in JSON; what was not measured is null.
fn number(value: f64) -> String {
    match value.is_nan() {
        true => "null".to_owned(),
        false => format!("{value:.5}"),
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// One thing that can be read and written at an offset.
#[derive(Clone)]
enum Subject {
    Raw(Rc<dyn BlockDevice>),
    File(Volume, FileHandle),
}

impl Subject {
    async fn go(&self, read: bool, offset: u64, buffer: Buffer) -> Result<Buffer, Failure> {
        let (buffer, result) = match (self, read) {
            (Subject::Raw(device), true) => {
                let (buffer, result) = device.read(offset, buffer).await;
                (buffer, result.map_err(Failure::from))
            }
            (Subject::Raw(device), false) => {
                let (buffer, result) = device.write(offset, buffer).await;
                (buffer, result.map_err(Failure::from))
            }
            (Subject::File(volume, file), true) => {
                let (buffer, result) = volume.read_buffer(file, offset, buffer).await;
                (buffer, result.map(|_| ()).map_err(Failure::from))
            }
            (Subject::File(volume, file), false) => {
                let (buffer, written) = volume.write_buffer(file, offset, buffer).await;
                (
                    buffer,
                    written.error.map_or(Ok(()), |error| Err(error.into())),
                )
            }
        };
        result.map(|()| buffer)
    }
}

thread_local! {
    /// The reactor's: the raw bdev, and the file.
    static OPEN: RefCell<Vec<Subject>> = const { RefCell::new(Vec::new()) };
}

/// Makes a volume with a file on one bdev, and opens another.
async fn set_up(raw: &str, vol: &str, image: Vec<u8>) -> Result<(), Failure> {
    let raw: Rc<dyn BlockDevice> = Bdev::open(raw, Access::ReadWrite)?;
    let device: Rc<dyn BlockDevice> = Bdev::open(vol, Access::ReadWrite)?;
    for (at, piece) in image.chunks(1 << 20).enumerate() {
        let mut buffer = device.allocate(piece.len());
        buffer.copy_from_slice(piece);
        device.write((at as u64) << 20, buffer).await.1?;
    }
    let host: Rc<dyn Host> = spdk::host().ok_or("not on a reactor")?;
    let volume = Volume::mount(device, host, MountOptions::default()).await?;
    let new = NewInode {
        permissions: 0o600,
        uid: 0,
        gid: 0,
    };
    let ino = volume
        .create(volume.root(), b"file", new, IfExists::Fail)
        .await?
        .ino;
    let flags = OpenFlags {
        read: true,
        write: true,
        direct: true,
        ..OpenFlags::default()
    };
    let file = volume.open(ino, flags).await?;
    let filling = Bytes::from(vec![7; 1 << 20]);
    for at in (0..FILE_BYTES).step_by(1 << 20) {
        if let Some(error) = volume.write(&file, at, filling.clone()).await.error {
            return Err(error.into());
        }
        let mut buffer = raw.allocate(filling.len());
        buffer.copy_from_slice(&filling);
        raw.write(at, buffer).await.1?;
    }
    volume.sync().await?;
    OPEN.set(vec![Subject::Raw(raw), Subject::File(volume, file)]);
    Ok(())
}

async fn tear_down() -> Result<(), Failure> {
    for subject in OPEN.take() {
        if let Subject::File(volume, file) = subject {
            volume.close(file).await?;
            volume.unmount().await?;
        }
    }
    Ok(())
}

/// A moment in the middle of the work.
#[derive(Clone, Copy)]
struct Mark {
    at: Instant,
    cpu: Duration,
    done: u64,
    allocations: usize,
}

struct Progress {
    time: Duration,
    depth: u64,
    working: Cell<u64>,
    done: Cell<u64>,
    /// All are warm.
    start: Cell<Option<Mark>>,
    /// The first has seen that the time is over.
    end: Cell<Option<Mark>>,
    finished: RefCell<Option<oneshot::Sender<Result<(), Failure>>>>,
}

impl Progress {
    fn mark(&self) -> Mark {
        Mark {
            at: Instant::now(),
            cpu: rig::cpu_time("/proc/thread-self/schedstat"),
            done: self.done.get(),
            allocations: ALLOCATOR.stats().allocations,
        }
    }

    /// After each request; false once it is over.
    fn goes_on(&self, mine: u64) -> bool {
        self.done.set(self.done.get() + 1);
        if self.start.get().is_none() {
            if self.done.get() >= WARM_UP * self.depth {
                self.start.set(Some(self.mark()));
            }
            return true;
        }
        // The clock is looked at now and then: it is not what is measured.
        let over = || {
            let start = self.start.get();
            start.is_some_and(|start| start.at.elapsed() >= self.time)
        };
        if self.end.get().is_none() && mine.is_multiple_of(64) && over() {
            self.end.set(Some(self.mark()));
        }
        self.end.get().is_none()
    }

    fn finish(&self, result: Result<(), Failure>) {
        self.working.set(self.working.get() - 1);
        if (self.working.get() == 0 || result.is_err())
            && let Some(sender) = self.finished.take()
        {
            let _ = sender.send(result);
        }
    }
}

/// So many requests in flight for so long.
async fn measure(
    subject: usize,
    depth: u64,
    read: bool,
    time: Duration,
) -> Result<Figures, Failure> {
    let subject = OPEN.with_borrow(|open| open[subject].clone());
    let device = match &subject {
        Subject::Raw(device) => device.clone(),
        Subject::File(..) => match OPEN.with_borrow(|open| open[0].clone()) {
            Subject::Raw(device) => device,
            Subject::File(..) => return Err("no raw bdev".into()),
        },
    };
    let host: Rc<dyn Host> = spdk::host().ok_or("not on a reactor")?;
    let (sender, finished) = oneshot::channel();
    let progress = Rc::new(Progress {
        time,
        depth,
        working: Cell::new(depth),
        done: Cell::new(0),
        start: Cell::default(),
        end: Cell::default(),
        finished: RefCell::new(Some(sender)),
    });
    for _ in 0..depth {
        let (subject, host, progress) = (subject.clone(), host.clone(), progress.clone());
        let mut buffer = device.allocate(BLOCK);
        spdk::spawn(async move {
            for mine in 1.. {
                let offset = host.random() % (FILE_BYTES / BLOCK as u64) * BLOCK as u64;
                match subject.go(read, offset, buffer).await {
                    Ok(back) => buffer = back,
                    Err(error) => return progress.finish(Err(error)),
                }
                if !progress.goes_on(mine) {
                    break;
                }
            }
            progress.finish(Ok(()));
        });
    }
    finished.await??;
    let (Some(start), Some(end)) = (progress.start.get(), progress.end.get()) else {
        return Err("no request was measured".into());
    };
    let done = (end.done - start.done) as f64;
    Ok(Figures {
        iops: done / (end.at - start.at).as_secs_f64(),
        iops_per_cpu_second: done / (end.cpu - start.cpu).as_secs_f64(),
        allocations_per_request: (end.allocations - start.allocations) as f64 / done,
    })
}
