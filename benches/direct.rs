//! What the write path costs: 4 KiB requests at random places of a preallocated file, from inside
//! the reactor and from device memory, beside the same requests to the raw bdev in the same run.
//!
//!     cargo bench -p server --bench direct [-- SECONDS]
//!
//! One malloc bdev carries a volume of mkfs.ocfs2, another is raw. Prints a line of JSON for each
//! measurement, with the ratio to raw; the figures are comparable within one run only.
#![allow(clippy::print_stdout, reason = "the result goes to standard output")]

use std::cell::Cell;
use std::error::Error;
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fs::volume::{FileHandle, IfExists, MountOptions, NewInode, OpenFlags, Volume};
use runtime::{BlockDevice, BlockDeviceExt, Buffer, Host};
use spdk::{Access, Bdev, Config, Options, Polling, Spdk};

const BLOCK: usize = 4096;
const VOLUME_MIB: u64 = 256;
const FILE_BYTES: u64 = 128 << 20;

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let seconds = std::env::args()
        .skip(1)
        .find_map(|word| word.parse().ok())
        .unwrap_or(3);
    let image = format()?;
    let blocks = VOLUME_MIB * 256;
    let malloc = |name: &str| {
        format!(
            r#"{{"method":"bdev_malloc_create","params":{{"name":"{name}","num_blocks":{blocks},"block_size":4096}}}}"#
        )
    };
    let config = format!(
        r#"{{"subsystems":[{{"subsystem":"bdev","config":[{},{}]}}]}}"#,
        malloc("raw"),
        malloc("vol")
    );
    let spdk = Spdk::start(Options {
        config: Config::Json(config),
        polling: Polling::Busy,
        ..Options::default()
    })?;
    let time = Duration::from_secs(seconds);
    spdk.reactor(0)
        .call_and_wait(move || measure(image, time))??;
    spdk.stop_and_wait()?;
    Ok(())
}

/// The bytes of a new volume.
fn format() -> Result<Vec<u8>, Failure> {
    let file = tempfile::NamedTempFile::new()?;
    file.as_file().set_len(VOLUME_MIB << 20)?;
    let options = [
        "-q", "-x", "-F", "-M", "local", "-N", "1", "-b", "4096", "-C", "4096", "-J", "size=16M",
    ];
    let done = Command::new("/usr/sbin/mkfs.ocfs2")
        .args(options)
        .arg("--fs-feature-level=max-features")
        .arg(file.path())
        .output()?;
    if !done.status.success() {
        return Err(String::from_utf8_lossy(&done.stderr).into());
    }
    Ok(std::fs::read(file.path())?)
}

/// One thing that can be read and written at an offset.
#[derive(Clone)]
enum Subject {
    Raw(Rc<dyn BlockDevice>),
    File(Volume, FileHandle),
}

impl Subject {
    fn name(&self) -> &'static str {
        match self {
            Subject::Raw(_) => "raw bdev",
            Subject::File(..) => "ocelot file",
        }
    }

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

async fn measure(image: Vec<u8>, time: Duration) -> Result<(), Failure> {
    let raw: Rc<dyn BlockDevice> = Bdev::open("raw", Access::ReadWrite)?;
    let device: Rc<dyn BlockDevice> = Bdev::open("vol", Access::ReadWrite)?;
    for (at, piece) in image.chunks(1 << 20).enumerate() {
        let mut buffer = device.allocate(piece.len());
        buffer.copy_from_slice(piece);
        device.write((at as u64) << 20, buffer).await.1?;
    }
    let host: Rc<dyn Host> = spdk::host().ok_or("not on a reactor")?;
    let volume = Volume::mount(device.clone(), host.clone(), MountOptions::default()).await?;
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
    let zeroes = Bytes::from(vec![7; 1 << 20]);
    for at in (0..FILE_BYTES).step_by(1 << 20) {
        if let Some(error) = volume.write(&file, at, zeroes.clone()).await.error {
            return Err(error.into());
        }
    }
    volume.sync().await?;
    let subjects = [
        Subject::Raw(raw),
        Subject::File(volume.clone(), file.clone()),
    ];
    for (depth, read) in [(1, false), (32, false), (1, true), (32, true)] {
        let mut base = None;
        for subject in &subjects {
            let iops = run(subject, &device, &host, depth, read, time).await?;
            let ratio = iops / *base.get_or_insert(iops);
            println!(
                r#"{{"subject":"{}","operation":"{}","block_bytes":{BLOCK},"depth":{depth},"iops":{iops:.0},"ratio":{ratio:.3}}}"#,
                subject.name(),
                if read { "random read" } else { "random write" }
            );
        }
    }
    volume.close(file).await?;
    drop(subjects);
    volume.unmount().await?;
    Ok(())
}

/// So many requests in flight for so long; requests a second.
async fn run(
    subject: &Subject,
    device: &Rc<dyn BlockDevice>,
    host: &Rc<dyn Host>,
    depth: u64,
    read: bool,
    time: Duration,
) -> Result<f64, Failure> {
    let done = Rc::new(Cell::new(0u64));
    let working = Rc::new(Cell::new(depth));
    let failed = Rc::new(Cell::new(None));
    let start = Instant::now();
    for _ in 0..depth {
        let (subject, device, host) = (subject.clone(), device.clone(), host.clone());
        let (done, working, failed) = (done.clone(), working.clone(), failed.clone());
        spdk::spawn(async move {
            let mut buffer = device.allocate(BLOCK);
            let mut mine = 0u64;
            // The clock is looked at now and then: it is not what is measured.
            while !mine.is_multiple_of(64) || start.elapsed() < time {
                let offset = host.random() % (FILE_BYTES / BLOCK as u64) * BLOCK as u64;
                match subject.go(read, offset, buffer).await {
                    Ok(back) => buffer = back,
                    Err(error) => {
                        failed.set(Some(error));
                        break;
                    }
                }
                mine += 1;
                done.set(done.get() + 1);
            }
            working.set(working.get() - 1);
        });
    }
    while working.get() > 0 {
        spdk::sleep(Duration::from_millis(1)).await;
    }
    match failed.take() {
        Some(error) => Err(error),
        None => Ok(done.get() as f64 / start.elapsed().as_secs_f64()),
    }
}
