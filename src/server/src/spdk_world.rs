//! The real world: SPDK's block devices, and its reactors as the volumes' home threads.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use proto::errors::errno;
use runtime::{BlockDevice, Host};
use spdk::{
    Access, Attach, Bdev, BdevAdmin, Listed, Memory, NvmeAddress, OpenError, Options,
    ReactorHandle, Reactors, RpcError, Spdk,
};

use crate::config::{self, HugePages};
use crate::device::{DeviceRecord, DeviceSource, ImageEngine, NvmeTransport, World};
use crate::door::{FsDoor, MountOptions};
use crate::failure::{Failure, Result};
use crate::volume::{Home, Start, VolumeHandle};

/// How SPDK is to start, from the configuration.
pub fn options(config: &config::Spdk) -> Options {
    let mib = config.memory_mib;
    let defaults = Options::default();
    Options {
        memory: match config.huge_pages {
            HugePages::Auto => Memory::Auto { mib },
            HugePages::Always => Memory::HugePages { mib },
            HugePages::Never => Memory::Ordinary { mib },
        },
        reactors: if config.cores.is_empty() {
            Reactors::Floating(1)
        } else {
            Reactors::Pinned(config.cores.clone())
        },
        polling: match config.polling {
            config::Polling::Adaptive => defaults.polling,
            config::Polling::Busy => spdk::Polling::Busy,
        },
        config: match &config.config {
            Some(path) => spdk::Config::File(path.clone()),
            None => spdk::Config::None,
        },
        pci: config.huge_pages != HugePages::Never,
        ..defaults
    }
}

/// SPDK, and the devices that were attached by name.
pub struct SpdkWorld {
    spdk: Arc<Spdk>,
    attached: Mutex<BTreeMap<String, Attached>>,
    /// Volumes mounted so far: they go round the reactors.
    mounted: AtomicUsize,
}

#[derive(Clone)]
struct Attached {
    source: DeviceSource,
    /// SPDK's name for it.
    bdev: String,
}

impl SpdkWorld {
    pub fn new(spdk: Arc<Spdk>) -> Self {
        SpdkWorld {
            spdk,
            attached: Mutex::default(),
            mounted: AtomicUsize::new(0),
        }
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<String, Attached>> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the bdev; gives its name.
    async fn make(&self, name: &str, source: &DeviceSource) -> Result<String> {
        let bdevs = self.spdk.bdevs();
        match source {
            DeviceSource::ImageFile {
                path,
                block_size,
                engine,
                read_only,
            } => {
                let path = Path::new(path);
                check_image(path, *block_size)?;
                match engine {
                    ImageEngine::Uring if *read_only => {
                        return Err(Failure::field(
                            "source.read_only",
                            "the uring engine has no read-only devices; aio has",
                        ));
                    }
                    ImageEngine::Uring => {
                        tracing::warn!(
                            device = name,
                            "the uring engine does not flush: what was synced may be lost when \
                             the host loses power"
                        );
                        bdevs.create_uring(name, path, *block_size).await
                    }
                    ImageEngine::Auto | ImageEngine::Aio => {
                        bdevs.create_aio(name, path, *block_size, *read_only).await
                    }
                }
                .map_err(rpc_failure)?;
                Ok(name.to_owned())
            }
            DeviceSource::Memory {
                size_bytes,
                block_size,
            } => {
                let block_count = size_bytes / u64::from(*block_size);
                bdevs
                    .create_malloc(name, block_count, *block_size)
                    .await
                    .map_err(rpc_failure)?;
                Ok(name.to_owned())
            }
            DeviceSource::Nvme { .. } => attach_nvme(&bdevs, name, source).await,
            DeviceSource::Bdev { bdev } => match self.find(bdev).await {
                Some(_) => Ok(bdev.clone()),
                None => Err(Failure::new(
                    errno::ENOENT,
                    format!("there is no bdev {bdev:?}"),
                )),
            },
        }
    }

    async fn find(&self, bdev: &str) -> Option<Listed> {
        self.spdk
            .bdevs()
            .list()
            .await
            .into_iter()
            .find(|listed| listed.name == bdev)
    }

    async fn unmake(&self, name: &str, attached: &Attached) -> Result<()> {
        let bdevs = self.spdk.bdevs();
        match &attached.source {
            DeviceSource::ImageFile { .. } | DeviceSource::Memory { .. } => {
                bdevs.delete(&attached.bdev).await.map_err(rpc_failure)
            }
            DeviceSource::Nvme { .. } => bdevs.detach_nvme(name).await.map_err(rpc_failure),
            // It stays where it came from.
            DeviceSource::Bdev { .. } => Ok(()),
        }
    }
}

/// What can be said better than by SPDK.
fn check_image(path: &Path, block_size: u32) -> Result<()> {
    let size = std::fs::metadata(path)
        .map(|metadata| metadata.len())
        .map_err(|error| {
            let number = error.raw_os_error().unwrap_or(errno::EIO);
            Failure::new(number, format!("{}: {error}", path.display()))
        })?;
    // A kernel block device has no length of its own.
    let is_file = path.is_file();
    if is_file && size < u64::from(block_size) {
        return Err(Failure::new(
            errno::EINVAL,
            format!("{}: {size} bytes are less than one block", path.display()),
        ));
    }
    Ok(())
}

/// Attaches the controller, and finds the namespace's bdev; without that namespace nothing stays.
async fn attach_nvme(bdevs: &BdevAdmin, name: &str, source: &DeviceSource) -> Result<String> {
    let DeviceSource::Nvme {
        transport,
        address,
        service,
        subsystem_nqn,
        namespace_id,
        host_nqn,
    } = source
    else {
        return Err(Failure::new(errno::EINVAL, "not an NVMe device"));
    };
    let address = match transport {
        NvmeTransport::Pcie => NvmeAddress::Pcie {
            address: address.clone(),
        },
        NvmeTransport::Tcp => NvmeAddress::Tcp {
            host: address.clone(),
            port: service.parse().map_err(|_| {
                Failure::field(
                    "source.service",
                    format!("{service:?} is not a port number"),
                )
            })?,
            subsystem: subsystem_nqn.clone(),
        },
        NvmeTransport::VfioUser => NvmeAddress::VfioUser {
            folder: address.clone(),
            subsystem: subsystem_nqn.clone(),
        },
    };
    let attach = Attach {
        name: name.to_owned(),
        address,
        host: (!host_nqn.is_empty()).then(|| host_nqn.clone()),
    };
    let names = bdevs.attach_nvme(&attach).await.map_err(rpc_failure)?;
    let wanted = format!("{name}n{namespace_id}");
    if names.contains(&wanted) {
        return Ok(wanted);
    }
    bdevs.detach_nvme(name).await.map_err(rpc_failure)?;
    Err(Failure::new(
        errno::ENODEV,
        format!("the controller has no namespace {namespace_id}; it has {names:?}"),
    ))
}

fn record(name: &str, source: Option<DeviceSource>, listed: &Listed) -> DeviceRecord {
    let read_only = matches!(
        &source,
        Some(DeviceSource::ImageFile {
            read_only: true,
            ..
        })
    );
    DeviceRecord {
        name: name.to_owned(),
        source,
        size_bytes: listed
            .block_count
            .saturating_mul(u64::from(listed.block_size)),
        block_size: listed.block_size,
        product: listed.product.clone(),
        read_only,
    }
}

#[async_trait]
impl World for SpdkWorld {
    async fn attach(&self, name: &str, source: &DeviceSource) -> Result<DeviceRecord> {
        let bdev = self.make(name, source).await?;
        let attached = Attached {
            source: source.clone(),
            bdev,
        };
        let Some(listed) = self.find(&attached.bdev).await else {
            let message = format!("bdev {:?} went away at once", attached.bdev);
            return Err(Failure::new(errno::ENODEV, message));
        };
        self.table().insert(name.to_owned(), attached);
        Ok(record(name, Some(source.clone()), &listed))
    }

    async fn detach(&self, name: &str) -> Result<()> {
        let Some(attached) = self.table().get(name).cloned() else {
            let message = match self.find(name).await {
                Some(_) => format!("device {name:?} is of the SPDK configuration"),
                None => format!("there is no device {name:?}"),
            };
            return Err(Failure::new(errno::ENODEV, message));
        };
        self.unmake(name, &attached).await?;
        self.table().remove(name);
        Ok(())
    }

    async fn devices(&self) -> Result<Vec<DeviceRecord>> {
        let listed = self.spdk.bdevs().list().await;
        let table = self.table().clone();
        let mut records = Vec::with_capacity(listed.len());
        for bdev in &listed {
            let mut names = table
                .iter()
                .filter(|(_, attached)| attached.bdev == bdev.name);
            match names.next() {
                None => records.push(record(&bdev.name, None, bdev)),
                Some(first) => {
                    for (name, attached) in std::iter::once(first).chain(names) {
                        records.push(record(name, Some(attached.source.clone()), bdev));
                    }
                }
            }
        }
        Ok(records)
    }

    async fn mount(&self, device: &str, options: MountOptions) -> Result<VolumeHandle> {
        let attached = self.table().get(device).cloned();
        let device_read_only = matches!(
            &attached,
            Some(Attached {
                source: DeviceSource::ImageFile {
                    read_only: true,
                    ..
                },
                ..
            })
        );
        let bdev = attached.map_or_else(|| device.to_owned(), |attached| attached.bdev);
        let access = if options.read_only || device_read_only {
            Access::ReadOnly
        } else {
            Access::ReadWrite
        };
        let index = self.mounted.fetch_add(1, Ordering::Relaxed);
        let home = Reactor(self.spdk.reactor(index).clone());
        VolumeHandle::launch(&home, move |host| async move {
            let device: Rc<dyn BlockDevice> = Bdev::open(&bdev, access).map_err(open_failure)?;
            FsDoor::mount(device, host, options).await
        })
        .await
    }

    async fn expose(&self, subsystem: &spdk::Subsystem) -> Result<spdk::Exposed> {
        let exposed = self.spdk.nvmf().expose(subsystem).await;
        exposed.map_err(|error| explain(rpc_failure(error), &subsystem.listener))
    }

    async fn shutdown(&self) -> Result<()> {
        self.spdk
            .stop()
            .await
            .map_err(|error| Failure::new(errno::EIO, error.to_string()))
    }
}

/// SPDK only says that it cannot listen.
fn explain(failure: Failure, listener: &spdk::Listener) -> Failure {
    let spdk::Listener::Tcp(address) = listener else {
        return failure;
    };
    match std::net::TcpListener::bind(address) {
        Ok(_) => failure,
        Err(error) => {
            let number = match error.kind() {
                std::io::ErrorKind::AddrInUse => errno::EBUSY,
                _ => errno::EINVAL,
            };
            Failure::new(number, format!("{address}: {error}: {}", failure.message()))
        }
    }
}

struct Reactor(ReactorHandle);

impl Home for Reactor {
    fn start(&self, start: Start) -> Result<()> {
        let begin = move || async move {
            match spdk::host() {
                Some(host) => start(host as Rc<dyn Host>).await,
                // Dropping `start` tells the caller.
                None => tracing::error!("a reactor's task runs on another thread"),
            }
        };
        self.0
            .spawn(begin)
            .map_err(|error| Failure::new(errno::ESHUTDOWN, error.to_string()))
    }
}

fn rpc_failure(error: RpcError) -> Failure {
    /// JSON-RPC's code for parameters that the method does not take.
    const INVALID_PARAMS: i64 = -32602;
    let number = match &error {
        RpcError::Refused {
            code: INVALID_PARAMS,
            ..
        } => errno::EINVAL,
        RpcError::Reactor { .. } => errno::ESHUTDOWN,
        other => other.errno().unwrap_or(errno::EIO),
    };
    Failure::new(number, error.to_string())
}

fn open_failure(error: OpenError) -> Failure {
    let number = match &error {
        OpenError::NotFound { .. } => errno::ENODEV,
        OpenError::Busy { .. } => errno::EBUSY,
        OpenError::Unsuitable { .. } => errno::EINVAL,
        OpenError::Failed { errno, .. } => *errno,
        OpenError::NotOnReactor => errno::EIO,
    };
    Failure::new(number, error.to_string())
}
