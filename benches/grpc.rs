//! What the front end costs: the same requests to `ocelotd`'s services and to a bare tonic server
//! whose answers have the same shapes, over the same transports, taking turns in one run.
//!
//!     cargo bench -p server --bench grpc [-- [SECONDS [ROUNDS [MIB]]]]
//!
//! 4 KiB operations on an `Io` stream, 32 in flight, to a direct handle; and MIB (1024) in messages
//! of 1 MiB on a `Write` stream, buffered, over a file that is there. The volume is on a malloc bdev.
//! Both servers are processes of their own with the daemon's settings.
//!
//! Prints a line of JSON for each measurement: medians over the rounds, and medians of the ratio to
//! the bare server's within a round, by the clock and by the servers' time on the processor.
#![allow(clippy::print_stdout, reason = "the result goes to standard output")]

#[path = "support/bare.rs"]
mod bare;
#[path = "support/rig.rs"]
#[allow(dead_code, reason = "the other bench uses another part")]
mod rig;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proto::v1::files_client::FilesClient;
use proto::v1::io_request::Operation;
use proto::v1::*;
use runtime::{BlockDevice, BlockDeviceExt};
use serde_json::json;
use server::config::{Config, ConfiguredVolume};
use server::serve::{self, Listeners};
use server::spdk_world::SpdkWorld;
use spdk::{Access, Bdev, Memory, Options, Spdk};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

const BLOCK: u64 = 4096;
const DEPTH: u64 = 32;
const MESSAGE: usize = 1 << 20;
/// The file that the 4 KiB operations go to: as much of the one that is written.
const FILE_BYTES: u64 = 64 << 20;
/// Set in the processes that serve: which server, its folder, and MiB of the file.
const ROLE: &str = "OCELOT_BENCH_ROLE";

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    if let Ok(role) = std::env::var(ROLE) {
        let words: Vec<&str> = role.splitn(3, ' ').collect();
        let [role, mib, folder] = words[..] else {
            return Err("no such role".into());
        };
        let folder = Path::new(folder);
        return match role {
            "bare" => bare::serve(folder),
            _ => daemon(folder, mib.parse()?),
        };
    }
    let numbers: Vec<u64> = std::env::args()
        .skip(1)
        .filter_map(|word| word.parse().ok())
        .collect();
    let number = |at: usize, default| numbers.get(at).copied().unwrap_or(default);
    let (seconds, rounds, mib) = (number(0, 2), number(1, 3), number(2, 1024));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(compare(Duration::from_secs(seconds), rounds, mib))
}

/// `ocelotd`, but that the volume is made first.
fn daemon(folder: &Path, mib: u64) -> Result<(), Failure> {
    let bytes = (mib << 20).max(FILE_BYTES) + (64 << 20);
    let image = rig::format_of(bytes)?;
    let spdk = Arc::new(Spdk::start(Options {
        memory: Memory::Auto {
            mib: (bytes >> 20) as u32 + 320,
        },
        config: spdk::Config::Json(rig::malloc_config("vol", bytes)),
        ..Options::default()
    })?);
    spdk.reactor(0).call_and_wait(move || async move {
        let device = Bdev::open("vol", Access::ReadWrite)?;
        for (at, piece) in image.chunks(MESSAGE).enumerate() {
            // What is zero is zero already.
            if piece.iter().any(|byte| *byte != 0) {
                let mut buffer = device.allocate(piece.len());
                buffer.copy_from_slice(piece);
                device.write((at * MESSAGE) as u64, buffer).await.1?;
            }
        }
        Ok::<(), Failure>(())
    })??;
    let mut config = Config::default();
    config.listen.unix = folder.join("socket");
    config.listen.tcp = vec!["127.0.0.1:0".parse()?];
    config.volumes.push(ConfiguredVolume {
        device: "vol".into(),
        name: "data".into(),
        read_only: false,
        ..ConfiguredVolume::default()
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let world = Arc::new(SpdkWorld::new(spdk.clone()));
    let end = std::future::pending();
    runtime.block_on(async {
        let listeners = Listeners::bind(&config).await?;
        let port = listeners.tcp_addresses().first().map(|at| at.port());
        bare::tell_port(folder, port.unwrap_or(0))?;
        Ok::<_, Failure>(serve::run(&config, listeners, world, end).await?)
    })
}

/// A server in a process of its own; it ends with us.
struct Serving {
    child: Child,
    folder: PathBuf,
}

impl Serving {
    fn start(role: &str, folder: PathBuf, mib: u64) -> Result<Serving, Failure> {
        std::fs::create_dir(&folder)?;
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(std::env::current_exe()?)
            .env(ROLE, format!("{role} {mib} {}", folder.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        Ok(Serving { child, folder })
    }

    async fn connect(&mut self, unix: bool) -> Result<Channel, Failure> {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let port = std::fs::read_to_string(self.folder.join("port"));
            if let Ok(port) = port {
                let address = match unix {
                    true => format!("unix:{}", self.folder.join("socket").display()),
                    false => format!("http://127.0.0.1:{port}"),
                };
                let endpoint = Endpoint::from_shared(address)?
                    .initial_stream_window_size(8 << 20)
                    .initial_connection_window_size(32 << 20)
                    .tcp_nodelay(true);
                if let Ok(channel) = endpoint.connect().await {
                    return Ok(channel);
                }
            }
            if Instant::now() > until || self.child.try_wait()?.is_some() {
                return Err("a server does not start".into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What all its threads have had of processors.
    fn cpu_time(&self) -> Duration {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id()));
        let tasks = tasks.into_iter().flatten().flatten();
        tasks
            .map(|task| rig::cpu_time(&task.path().join("schedstat").to_string_lossy()))
            .sum()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[derive(Debug, Clone, Copy)]
enum Load {
    Read,
    Write,
    Stream,
}

/// So many a second: by the clock, and of the server's processor time.
type Rates = (f64, f64);

async fn compare(time: Duration, rounds: u64, mib: u64) -> Result<(), Failure> {
    let folder = tempfile::tempdir()?;
    let mut servers = [
        Serving::start("bare", folder.path().join("bare"), mib)?,
        Serving::start("ocelot", folder.path().join("ocelot"), mib)?,
    ];
    for unix in [true, false] {
        let mut clients = Vec::new();
        for server in &mut servers {
            let channel = server.connect(unix).await?;
            let client = FilesClient::new(channel)
                .max_decoding_message_size(proto::MAX_MESSAGE_BYTES)
                .max_encoding_message_size(proto::MAX_MESSAGE_BYTES);
            clients.push(client);
        }
        let mut handles = Vec::new();
        for client in &mut clients {
            let direct = open(client, true).await?;
            let buffered = open(client, false).await?;
            // The file is there, to its end, before anything counts.
            stream(client, buffered, mib.max(FILE_BYTES >> 20)).await?;
            handles.push((direct, buffered));
        }
        for load in [Load::Read, Load::Write, Load::Stream] {
            let mut rates: [Vec<Rates>; 2] = Default::default();
            for _ in 0..rounds {
                for (at, server) in servers.iter().enumerate() {
                    let (start, cpu) = (Instant::now(), server.cpu_time());
                    let (client, (direct, buffered)) = (&mut clients[at], handles[at]);
                    let count = match load {
                        Load::Read => operations(client, direct, true, time).await?,
                        Load::Write => operations(client, direct, false, time).await?,
                        Load::Stream => stream(client, buffered, mib).await?,
                    };
                    let took = start.elapsed().as_secs_f64();
                    let cpu = (server.cpu_time() - cpu).as_secs_f64();
                    rates[at].push((count as f64 / took, count as f64 / cpu));
                }
            }
            for (at, name) in ["bare tonic", "ocelotd"].iter().enumerate() {
                tell(name, unix, load, &rates[at], &rates[0]);
            }
        }
    }
    Ok(())
}

fn tell(server: &str, unix: bool, load: Load, own: &[Rates], bare: &[Rates]) {
    let of = |pick: fn(&Rates) -> f64| median(own.iter().map(pick).collect());
    let ratio = |pick: fn(&Rates) -> f64| {
        let pairs = own.iter().zip(bare);
        median(pairs.map(|(own, bare)| pick(own) / pick(bare)).collect())
    };
    let (what, unit) = match load {
        Load::Read => ("Io stream, 4 KiB random reads, depth 32", "operations"),
        Load::Write => ("Io stream, 4 KiB random writes, depth 32", "operations"),
        Load::Stream => ("Write stream, messages of 1 MiB, buffered", "MiB"),
    };
    let line = json!({
        "server": server,
        "transport": if unix { "unix" } else { "tcp" },
        "load": what,
        "unit": unit,
        "per_second": of(|rates| rates.0).round(),
        "to_bare": (ratio(|rates| rates.0) * 1e3).round() / 1e3,
        "per_server_cpu_second": of(|rates| rates.1).round(),
        "cpu_to_bare": (ratio(|rates| rates.1) * 1e3).round() / 1e3,
    });
    println!("{line}");
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

async fn open(client: &mut FilesClient<Channel>, direct: bool) -> Result<u64, Failure> {
    let request = OpenRequest {
        at: Some(Location {
            path: Bytes::from_static(b"/file"),
            ..Location::default()
        }),
        flags: Some(OpenFlags {
            read: true,
            write: true,
            create: true,
            direct,
            buffered: !direct,
            ..OpenFlags::default()
        }),
        ..OpenRequest::default()
    };
    // The volume may still be on its way.
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        match client.open(request.clone()).await {
            Ok(response) => return Ok(response.into_inner().handle),
            Err(status) if Instant::now() > until => return Err(status.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Operations on an `Io` stream for some time; how many.
async fn operations(
    client: &mut FilesClient<Channel>,
    handle: u64,
    read: bool,
    time: Duration,
) -> Result<u64, Failure> {
    let (requests, outgoing) = tokio::sync::mpsc::channel(DEPTH as usize);
    let mut answers = client.io(ReceiverStream::new(outgoing)).await?.into_inner();
    let data = Bytes::from(vec![7; BLOCK as usize]);
    let request = |id: u64| {
        // A walk that is as good as random, and the same for both.
        let block = id.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let offset = block % (FILE_BYTES / BLOCK) * BLOCK;
        let operation = match read {
            true => Operation::Read(IoRead {
                handle,
                offset,
                length: BLOCK as u32,
            }),
            false => Operation::Write(IoWrite {
                handle,
                offset,
                data: data.clone(),
                ..IoWrite::default()
            }),
        };
        IoRequest {
            id,
            operation: Some(operation),
        }
    };
    let start = Instant::now();
    let mut sent = 0;
    while sent < DEPTH {
        requests.send(request(sent)).await?;
        sent += 1;
    }
    let mut done = 0;
    while done < sent {
        let answer = answers.message().await?.ok_or("the stream has ended")?;
        if answer.error.is_some() || answer.bytes != BLOCK {
            return Err(format!("{answer:?}").into());
        }
        done += 1;
        if start.elapsed() < time {
            requests.send(request(sent)).await?;
            sent += 1;
        }
    }
    Ok(done)
}

/// MiB on a `Write` stream, over what is there; how many.
async fn stream(client: &mut FilesClient<Channel>, handle: u64, mib: u64) -> Result<u64, Failure> {
    let data = Bytes::from(vec![7; MESSAGE]);
    let messages = (0..mib).map(move |_| WriteRequest {
        handle,
        data: data.clone(),
        ..WriteRequest::default()
    });
    let response = client.write(tokio_stream::iter(messages)).await?;
    let written = response.into_inner().bytes_written;
    if written != mib << 20 {
        return Err(format!("{written} of {mib} MiB were written").into());
    }
    Ok(mib)
}
