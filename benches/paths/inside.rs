//! Ocelot: a daemon in this process, with one reactor on the first processor, on memory that carries a volume of mkfs.ocfs2.
//! In process the same loop asks the raw device and the file's; over NVMe bdevperf asks, as it does the raw device's target.

use std::cell::Cell;
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proto::v1::exports_client::ExportsClient;
use proto::v1::files_client::FilesClient;
use proto::v1::{
    CreateExportRequest, ExportKind, IoRead, IoRequest, IoWrite, Location, NewInode, OpenFlags,
    OpenRequest, RemoveExportRequest, WriteRequest, io_request::Operation,
};
use runtime::{BlockDevice, BlockDeviceExt, Host};
use server::config::{Config, ConfiguredVolume, Listen};
use server::serve::{self, Listeners};
use server::spdk_world::SpdkWorld;
use spdk::{Access, Bdev, Options, Polling, Reactors, Spdk};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::{Channel, Endpoint};

use crate::outside::{bdevperf, free_port, host};
use crate::{DEVICE_MIB, FILE_BYTES, Failure, Load, Outcome, Plan};

pub fn ocelot(plan: &mut Plan) -> Outcome<()> {
    let image = format()?;
    let malloc = |name: &str| {
        format!(
            r#"{{"method":"bdev_malloc_create","params":{{"name":"{name}","num_blocks":{},"block_size":4096}}}}"#,
            DEVICE_MIB * 256
        )
    };
    let config = format!(
        r#"{{"subsystems":[{{"subsystem":"bdev","config":[{},{}]}}]}}"#,
        malloc("raw"),
        malloc("vol")
    );
    let spdk = Arc::new(Spdk::start(Options {
        config: spdk::Config::Json(config),
        polling: Polling::Busy,
        reactors: Reactors::Pinned(vec![0]),
        memory: spdk::Memory::Auto { mib: 1024 },
        ..Options::default()
    })?);
    spdk.reactor(0).call_and_wait(move || fill(image))??;
    let tokio = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let result = tokio.block_on(daemon(plan, spdk.clone()));
    drop(tokio);
    result
}

/// The bytes of a new volume.
fn format() -> Outcome<Vec<u8>> {
    let file = tempfile::NamedTempFile::new()?;
    file.as_file().set_len(DEVICE_MIB << 20)?;
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

async fn fill(image: Vec<u8>) -> Outcome<()> {
    let device = Bdev::open("vol", Access::ReadWrite)?;
    for (at, piece) in image.chunks(1 << 20).enumerate() {
        let mut buffer = device.allocate(piece.len());
        buffer.copy_from_slice(piece);
        device.write((at as u64) << 20, buffer).await.1?;
    }
    Ok(())
}

async fn daemon(plan: &mut Plan, spdk: Arc<Spdk>) -> Outcome<()> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("s");
    let config = Config {
        listen: Listen {
            unix: socket.clone(),
            tcp: Vec::new(),
            ..Listen::default()
        },
        volumes: vec![ConfiguredVolume {
            device: "vol".into(),
            name: "v".into(),
            ..ConfiguredVolume::default()
        }],
        ..Config::default()
    };
    let listeners = Listeners::bind(&config).await?;
    let world = Arc::new(SpdkWorld::new(spdk.clone()));
    let (end, ended) = oneshot::channel::<()>();
    let serving = tokio::spawn(async move {
        serve::run(&config, listeners, world, async move {
            let _ = ended.await;
        })
        .await
    });
    let channel = Endpoint::from_shared(format!("unix:{}", socket.display()))?
        .initial_stream_window_size(8 << 20)
        .initial_connection_window_size(32 << 20)
        .connect()
        .await?;
    let result = ways(plan, &spdk, channel).await;
    drop(end);
    serving.await??;
    result
}

fn location() -> Option<Location> {
    Some(Location {
        path: Bytes::from_static(b"/file"),
        ..Location::default()
    })
}

async fn ways(plan: &mut Plan, spdk: &Spdk, channel: Channel) -> Outcome<()> {
    let mut files = FilesClient::new(channel.clone())
        .max_decoding_message_size(proto::MAX_MESSAGE_BYTES)
        .max_encoding_message_size(proto::MAX_MESSAGE_BYTES);
    let handle = make_file(&mut files).await?;
    let mut exports = ExportsClient::new(channel);
    let seconds = plan.seconds;

    export(&mut exports, ExportKind::Bdev, String::new()).await?;
    for load in Load::all() {
        for (subject, device) in [
            ("raw bdev in process", "raw"),
            ("file bdev in process", "file"),
        ] {
            let time = Duration::from_secs(seconds);
            let iops = spdk
                .reactor(0)
                .call(move || in_process(device, load, time))
                .await??;
            plan.add(subject, "raw bdev in process", load, iops);
        }
    }
    unexport(&mut exports).await?;

    let sockets = tempfile::tempdir()?;
    let path = sockets.path().to_string_lossy().into_owned();
    let port = free_port()?;
    let nqn = "nqn.2026-01.io.ocelot:file";
    let ways = [
        (
            "file over vfio-user",
            "raw over vfio-user",
            ExportKind::VfioUser,
            path.clone(),
            host("VFIOUSER", &path, 0, nqn),
        ),
        (
            "file over TCP",
            "raw over TCP",
            ExportKind::NvmeTcp,
            format!("127.0.0.1:{port}"),
            host("TCP", "127.0.0.1", port, nqn),
        ),
    ];
    for (subject, base, kind, address, config) in ways {
        export(&mut exports, kind, address).await?;
        for load in Load::all() {
            let (folder, config) = (plan.folder.clone(), config.clone());
            let run = move || bdevperf(&folder, &config, load, seconds);
            let iops = tokio::task::spawn_blocking(run).await??;
            plan.add(subject, base, load, iops);
        }
        unexport(&mut exports).await?;
    }
    for load in Load::all() {
        let iops = over_grpc(&mut files, handle, load, Duration::from_secs(seconds)).await?;
        plan.add("file over gRPC", "raw bdev in process", load, iops);
    }
    Ok(())
}

/// A file that is written all over.
async fn make_file(files: &mut FilesClient<Channel>) -> Outcome<u64> {
    let request = OpenRequest {
        at: location(),
        flags: Some(OpenFlags {
            read: true,
            write: true,
            create: true,
            direct: true,
            ..OpenFlags::default()
        }),
        new: Some(NewInode::default()),
        ..OpenRequest::default()
    };
    let mut deadline = 100;
    let handle = loop {
        // The volume is being mounted.
        match files.open(request.clone()).await {
            Ok(response) => break response.into_inner().handle,
            Err(error) if deadline == 0 => return Err(error.into()),
            Err(_) => {
                deadline -= 1;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    };
    let piece = Bytes::from(vec![7u8; 1 << 20]);
    let messages = (0..FILE_BYTES >> 20).map(move |at| WriteRequest {
        handle,
        offset: Some(at << 20),
        data: piece.clone(),
        ..WriteRequest::default()
    });
    files.write(tokio_stream::iter(messages)).await?;
    Ok(handle)
}

async fn export(
    exports: &mut ExportsClient<Channel>,
    kind: ExportKind,
    address: String,
) -> Outcome<()> {
    let request = CreateExportRequest {
        at: location(),
        kind: kind.into(),
        address,
        ..CreateExportRequest::default()
    };
    exports.create_export(request).await?;
    Ok(())
}

async fn unexport(exports: &mut ExportsClient<Channel>) -> Outcome<()> {
    let name = "file".to_owned();
    exports.remove_export(RemoveExportRequest { name }).await?;
    Ok(())
}

/// So many requests in flight for so long, from inside the reactor; requests a second.
async fn in_process(name: &'static str, load: Load, time: Duration) -> Outcome<f64> {
    let device: Rc<dyn BlockDevice> = Bdev::open(name, Access::ReadWrite)?;
    let host: Rc<dyn Host> = spdk::host().ok_or("not on a reactor")?;
    let done = Rc::new(Cell::new(0u64));
    let working = Rc::new(Cell::new(load.depth));
    let failed: Rc<Cell<Option<Failure>>> = Rc::default();
    let block = u64::from(load.block);
    let start = Instant::now();
    for _ in 0..load.depth {
        let (device, host, done) = (device.clone(), host.clone(), done.clone());
        let (working, failed) = (working.clone(), failed.clone());
        spdk::spawn(async move {
            let mut buffer = device.allocate(load.block as usize);
            let mut mine = 0u64;
            // The clock is looked at now and then: it is not what is measured.
            while !mine.is_multiple_of(64) || start.elapsed() < time {
                let offset = host.random() % (FILE_BYTES / block) * block;
                let (back, result) = if load.read {
                    device.read(offset, buffer).await
                } else {
                    device.write(offset, buffer).await
                };
                buffer = back;
                if let Err(error) = result {
                    failed.set(Some(error.into()));
                    break;
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

/// One Io stream with so many operations in flight.
async fn over_grpc(
    files: &mut FilesClient<Channel>,
    handle: u64,
    load: Load,
    time: Duration,
) -> Outcome<f64> {
    let (send, requests) = mpsc::unbounded_channel();
    let data = Bytes::from(vec![9u8; load.block as usize]);
    let block = u64::from(load.block);
    let mut place = 1u64;
    let mut next = move |id: u64| {
        // A linear congruential generator will do to choose places.
        place = place
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let offset = (place >> 33) % (FILE_BYTES / block) * block;
        let operation = if load.read {
            let length = load.block;
            Operation::Read(IoRead {
                handle,
                offset,
                length,
            })
        } else {
            let data = data.clone();
            Operation::Write(IoWrite {
                handle,
                offset,
                data,
                ..IoWrite::default()
            })
        };
        IoRequest {
            id,
            operation: Some(operation),
        }
    };
    for id in 0..u64::from(load.depth) {
        send.send(next(id))?;
    }
    let mut answers = files
        .io(UnboundedReceiverStream::new(requests))
        .await?
        .into_inner();
    let start = Instant::now();
    let mut done = 0u64;
    while start.elapsed() < time {
        let answer = answers.message().await?.ok_or("the stream has ended")?;
        if let Some(error) = answer.error {
            return Err(error.message.into());
        }
        done += 1;
        send.send(next(answer.id))?;
    }
    let iops = done as f64 / start.elapsed().as_secs_f64();
    drop(send);
    while answers.message().await?.is_some() {}
    Ok(iops)
}
