//! Random writes (or reads) through `runtime::BlockDevice`, to compare with SPDK's `bdevperf` on the same configuration:
//!
//!     cargo run --release -p spdk --example randwrite -- spdk-config/malloc.json malloc0 32 5
//!     /opt/spdk/bin/bdevperf -c spdk-config/malloc.json -q 32 -o 4096 -w randwrite -t 5
//!
//! Arguments: configuration, device, requests in flight, seconds, and `read` or `busy` if wanted.
#![allow(clippy::print_stdout, reason = "the result goes to standard output")]

use std::cell::Cell;
use std::error::Error;
use std::rc::Rc;
use std::time::{Duration, Instant};

use runtime::{BlockDevice, BlockDeviceExt, Host};
use spdk::{Access, Bdev, Config, Options, Polling, Spdk};

const BLOCK: usize = 4096;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [config, device, depth, seconds, rest @ ..] = &arguments[..] else {
        return Err("usage: randwrite CONFIG DEVICE DEPTH SECONDS [read] [busy]".into());
    };
    let (depth, seconds): (u64, u64) = (depth.parse()?, seconds.parse()?);
    let has = |word: &str| rest.iter().any(|one| one == word);
    let read = has("read");
    let spdk = Spdk::start(Options {
        config: Config::File(config.into()),
        polling: match has("busy") {
            true => Polling::Busy,
            false => Polling::default(),
        },
        ..Options::default()
    })?;
    let device = device.clone();
    let time = Duration::from_secs(seconds);
    let (count, took) = spdk
        .reactor(0)
        .call_and_wait(move || work(device, depth, time, read))??;
    let iops = count as f64 / took.as_secs_f64();
    println!("{iops:.0} IOPS at queue depth {depth}");
    let counters = spdk.reactor(0).counters();
    println!("{counters:?}");
    spdk.stop_and_wait()?;
    Ok(())
}

async fn work(
    name: String,
    depth: u64,
    time: Duration,
    read: bool,
) -> Result<(u64, Duration), spdk::OpenError> {
    let device = Bdev::open(&name, Access::ReadWrite)?;
    let host = spdk::host().ok_or(spdk::OpenError::NotOnReactor)?;
    let blocks = device.info().size_bytes() / BLOCK as u64;
    let done = Rc::new(Cell::new(0u64));
    let working = Rc::new(Cell::new(depth));
    let start = Instant::now();
    for _ in 0..depth {
        let (device, host) = (device.clone(), host.clone());
        let (done, working) = (done.clone(), working.clone());
        spdk::spawn(async move {
            let mut buffer = device.allocate(BLOCK);
            let mut mine = 0u64;
            // The clock is looked at now and then: it is not what is measured.
            while !mine.is_multiple_of(64) || start.elapsed() < time {
                let offset = host.random() % blocks * BLOCK as u64;
                let (back, result) = match read {
                    true => device.read(offset, buffer).await,
                    false => device.write(offset, buffer).await,
                };
                if let Err(error) = result {
                    println!("{error}");
                    break;
                }
                buffer = back;
                mine += 1;
                done.set(done.get() + 1);
            }
            working.set(working.get() - 1);
        });
    }
    while working.get() > 0 {
        spdk::sleep(Duration::from_millis(1)).await;
    }
    Ok((done.get(), start.elapsed()))
}
