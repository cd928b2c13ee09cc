//! Group commit on real devices: appends of 4 KiB, each followed by an fsync, by one writer and by 32, on an
//! image file (Linux AIO, whose flush is an fsync of that file) and on a namespace of SPDK's NVMe target.
//!
//!     cargo bench -p server --bench group_commit [-- SECONDS]
//!
//! Prints a line of JSON for each measurement; `times` is against one writer on the same device.
//! `fs/tests/group_commit.rs` is the same on a simulated device, and asks for 8.
#![allow(clippy::print_stdout, reason = "the result goes to standard output")]

use std::cell::Cell;
use std::error::Error;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fs::volume::{IfExists, MountOptions, NewInode, OpenFlags, Volume};
use runtime::{BlockDevice, Host};
use spdk::{Access, Bdev, Config, Options, Polling, Spdk};

const BLOCK: usize = 4096;
const WRITERS: u64 = 32;
const NQN: &str = "nqn.2026-01.io.ocelot:bench";

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let seconds = std::env::args()
        .skip(1)
        .find_map(|word| word.parse().ok())
        .unwrap_or(3);
    // On a file system with a real fsync.
    let folder = tempfile::tempdir_in("/var/tmp")?;
    let (file, exported) = (folder.path().join("file"), folder.path().join("exported"));
    format(&file)?;
    format(&exported)?;
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let target = Target::start(folder.path(), &exported, port)?;
    let config = format!(
        r#"{{"subsystems":[{{"subsystem":"bdev","config":[
            {{"method":"bdev_aio_create","params":{{"name":"image file","filename":"{}","block_size":512}}}},
            {{"method":"bdev_nvme_attach_controller","params":{{"name":"nvme","trtype":"TCP","adrfam":"IPv4",
              "traddr":"127.0.0.1","trsvcid":"{port}","subnqn":"{NQN}"}}}}]}}]}}"#,
        file.display()
    );
    let spdk = Spdk::start(Options {
        config: Config::Json(config),
        polling: Polling::default(),
        ..Options::default()
    })?;
    let time = Duration::from_secs(seconds);
    let result = spdk
        .reactor(0)
        .call_and_wait(move || measure(time))
        .map_err(Failure::from);
    spdk.stop_and_wait()?;
    drop(target);
    result?
}

fn format(path: &Path) -> Result<(), Failure> {
    std::fs::File::create(path)?.set_len(512 << 20)?;
    let options = [
        "-q", "-x", "-F", "-M", "local", "-N", "1", "-b", "4096", "-C", "4096", "-J", "size=32M",
    ];
    let done = Command::new("/usr/sbin/mkfs.ocfs2")
        .args(options)
        .arg("--fs-feature-level=max-features")
        .arg(path)
        .output()?;
    if !done.status.success() {
        return Err(String::from_utf8_lossy(&done.stderr).into());
    }
    Ok(())
}

/// SPDK's NVMe target with a file as its namespace, ended with this.
struct Target(Child);

impl Target {
    fn start(folder: &Path, image: &Path, port: u16) -> Result<Target, Failure> {
        let prefix = std::env::var("SPDK_PREFIX").unwrap_or_else(|_| "/opt/spdk".into());
        let config = format!(
            r#"{{"subsystems":[{{"subsystem":"bdev","config":[
                {{"method":"bdev_aio_create","params":{{"name":"disk","filename":"{}","block_size":512}}}}]}},
               {{"subsystem":"nvmf","config":[
                {{"method":"nvmf_create_transport","params":{{"trtype":"TCP"}}}},
                {{"method":"nvmf_create_subsystem","params":{{"nqn":"{NQN}","allow_any_host":true,
                  "serial_number":"OCELOT0"}}}},
                {{"method":"nvmf_subsystem_add_ns","params":{{"nqn":"{NQN}",
                  "namespace":{{"bdev_name":"disk","nsid":1}}}}}},
                {{"method":"nvmf_subsystem_add_listener","params":{{"nqn":"{NQN}","listen_address":
                  {{"trtype":"TCP","adrfam":"IPv4","traddr":"127.0.0.1","trsvcid":"{port}"}}}}}}]}}]}}"#,
            image.display()
        );
        let path = folder.join("target.json");
        std::fs::write(&path, config)?;
        let child = Command::new(PathBuf::from(prefix).join("bin/nvmf_tgt"))
            .args(["-m", "0x1", "-s", "256", "--disable-cpumask-locks", "-r"])
            .arg(folder.join("rpc"))
            .arg("-c")
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let target = Target(child);
        let deadline = Instant::now() + Duration::from_secs(60);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            if Instant::now() > deadline {
                return Err("nvmf_tgt did not start".into());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(target)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn measure(time: Duration) -> Result<(), Failure> {
    let host: Rc<dyn Host> = spdk::host().ok_or("not on a reactor")?;
    for name in ["image file", "nvmen1"] {
        let device: Rc<dyn BlockDevice> = Bdev::open(name, Access::ReadWrite)?;
        let volume = Volume::mount(device, host.clone(), MountOptions::default()).await?;
        let mut base = None;
        for writers in [1, WRITERS] {
            let rate = run(&volume, writers, time).await?;
            let times = rate / *base.get_or_insert(rate);
            println!(
                r#"{{"device":"{name}","writers":{writers},"block_bytes":{BLOCK},"fsyncs_per_second":{rate:.0},"times":{times:.1}}}"#
            );
        }
        volume.unmount().await?;
    }
    Ok(())
}

/// Fsyncs a second.
async fn run(volume: &Volume, writers: u64, time: Duration) -> Result<f64, Failure> {
    let done = Rc::new(Cell::new(0u64));
    let working = Rc::new(Cell::new(writers));
    let failed = Rc::new(Cell::new(None));
    let start = Instant::now();
    for writer in 0..writers {
        let (volume, done) = (volume.clone(), done.clone());
        let (working, failed) = (working.clone(), failed.clone());
        spdk::spawn(async move {
            let result = append(&volume, &format!("{writers}-{writer}"), start, time, &done).await;
            if let Err(error) = result {
                failed.set(Some(error));
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

async fn append(
    volume: &Volume,
    name: &str,
    start: Instant,
    time: Duration,
    done: &Cell<u64>,
) -> Result<(), Failure> {
    let new = NewInode {
        permissions: 0o600,
        uid: 0,
        gid: 0,
    };
    let made = volume.create(volume.root(), name.as_bytes(), new, IfExists::Use);
    let flags = OpenFlags {
        write: true,
        append: true,
        ..OpenFlags::default()
    };
    let file = volume.open(made.await?.ino, flags).await?;
    let data = Bytes::from(vec![7; BLOCK]);
    while start.elapsed() < time {
        if let Some(error) = volume.write(&file, 0, data.clone()).await.error {
            return Err(error.into());
        }
        volume.fsync(&file, false).await?;
        done.set(done.get() + 1);
    }
    volume.close(file).await?;
    Ok(())
}
