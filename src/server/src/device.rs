//! Devices, and the world that has them: what the node asks of SPDK, as a trait. In tests another
//! world stands in.

use async_trait::async_trait;
use serde::Deserialize;

use crate::door::MountOptions;
use crate::failure::{Failure, Result};
use crate::volume::VolumeHandle;

/// What a device is made of. Also the `[[device]]` tables of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub enum DeviceSource {
    /// A file of the host.
    ImageFile {
        path: String,
        #[serde(default = "default_block_size")]
        block_size: u32,
        #[serde(default)]
        engine: ImageEngine,
        #[serde(default)]
        read_only: bool,
    },
    /// Memory, gone when it is detached.
    Memory {
        size_bytes: u64,
        #[serde(default = "default_block_size")]
        block_size: u32,
    },
    Nvme {
        transport: NvmeTransport,
        address: String,
        #[serde(default)]
        service: String,
        #[serde(default)]
        subsystem_nqn: String,
        /// 1 is the first.
        #[serde(default = "first_namespace")]
        namespace_id: u32,
        #[serde(default)]
        host_nqn: String,
    },
    /// A bdev of the SPDK configuration, by its name there.
    Bdev { bdev: String },
}

pub const DEFAULT_BLOCK_SIZE: u32 = 512;

fn default_block_size() -> u32 {
    DEFAULT_BLOCK_SIZE
}

fn first_namespace() -> u32 {
    1
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageEngine {
    /// io_uring where SPDK was built with it and the kernel has it, else aio.
    #[default]
    Auto,
    Aio,
    Uring,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NvmeTransport {
    Pcie,
    Tcp,
    VfioUser,
}

impl DeviceSource {
    /// Checks what can be checked without the device. `prefix` is the path of the request's or
    /// configuration's field that holds the source.
    pub fn check(&self, prefix: &str) -> Result<()> {
        let field =
            |name: &str, message: String| Err(Failure::field(&format!("{prefix}.{name}"), message));
        let block_size_ok = |size: u32| size.is_power_of_two() && (512..=4096).contains(&size);
        match self {
            DeviceSource::ImageFile {
                path, block_size, ..
            } => {
                if !path.starts_with('/') || path.contains('\0') {
                    return field("path", format!("{path:?} is not an absolute path"));
                }
                if !block_size_ok(*block_size) {
                    return field(
                        "block_size",
                        format!("{block_size} is not 512, 1024, 2048 or 4096"),
                    );
                }
            }
            DeviceSource::Memory {
                size_bytes,
                block_size,
            } => {
                if !block_size_ok(*block_size) {
                    return field(
                        "block_size",
                        format!("{block_size} is not 512, 1024, 2048 or 4096"),
                    );
                }
                if *size_bytes == 0 || !size_bytes.is_multiple_of(u64::from(*block_size)) {
                    return field(
                        "size_bytes",
                        format!("{size_bytes} is not a positive multiple of the block size"),
                    );
                }
            }
            DeviceSource::Nvme {
                transport,
                address,
                service,
                subsystem_nqn,
                namespace_id,
                ..
            } => {
                if address.is_empty() {
                    return field("address", "must be given".into());
                }
                let fabric = *transport == NvmeTransport::Tcp;
                if fabric && service.parse::<u16>().is_err() {
                    return field("service", format!("{service:?} is not a port number"));
                }
                if fabric && subsystem_nqn.is_empty() {
                    return field("subsystem_nqn", "must be given for TCP".into());
                }
                if *namespace_id == 0 {
                    return field("namespace_id", "0 is no namespace".into());
                }
            }
            DeviceSource::Bdev { bdev } => {
                if bdev.is_empty() {
                    return field("name", "must be given".into());
                }
            }
        }
        Ok(())
    }
}

/// A device that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRecord {
    pub name: String,
    /// `None` for one that was there without anybody's attaching it.
    pub source: Option<DeviceSource>,
    pub size_bytes: u64,
    pub block_size: u32,
    pub product: String,
    pub read_only: bool,
}

/// The world the node runs in: devices, and threads that volumes live on.
#[async_trait]
pub trait World: Send + Sync + 'static {
    async fn attach(&self, name: &str, source: &DeviceSource) -> Result<DeviceRecord>;
    async fn detach(&self, name: &str) -> Result<()>;
    async fn devices(&self) -> Result<Vec<DeviceRecord>>;
    /// Opens the device on a home thread and mounts the volume on it.
    async fn mount(&self, device: &str, options: MountOptions) -> Result<VolumeHandle>;
    /// Offers a block device to NVMe hosts.
    async fn expose(&self, _subsystem: &spdk::Subsystem) -> Result<spdk::Exposed> {
        Err(Failure::new(
            proto::errors::errno::EOPNOTSUPP,
            "this world has no NVMe target",
        ))
    }
    /// The end, after all volumes are unmounted.
    async fn shutdown(&self) -> Result<()>;
}
