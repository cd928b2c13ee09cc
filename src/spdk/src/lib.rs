//! SPDK made safe: the real world of an Ocelot node.
//!
//! * [`Spdk::start`]: memory, reactors, SPDK's subsystems and its JSON configuration; [`Spdk::stop`] takes it all down.
//! * [`ReactorHandle`]: from any thread, run a `!Send` future on a reactor ([`ReactorHandle::call`]).
//! * On a reactor: [`spawn`], [`sleep`], [`host`] (which is [`runtime::Host`]), [`Bdev::open`] (which is
//!   [`runtime::BlockDevice`]).
//! * [`Export`]: offers a [`Disk`] of ours as a block device; [`Nvmf`] offers that to NVMe hosts.
//! * [`BdevAdmin`]: make, attach and remove block devices, from any thread.
//! * [`dma`]: buffers that devices reach, from any thread.
//!
//! ```no_run
//! # async fn demo() -> Result<(), Box<dyn std::error::Error>> {
//! use runtime::{BlockDevice, BlockDeviceExt};
//! let spdk = spdk::Spdk::start(spdk::Options::default())?;
//! spdk.bdevs().create_malloc("m0", 1024, 4096).await?;
//! let sum = spdk
//!     .reactor(0)
//!     .call(|| async {
//!         let device = spdk::Bdev::open("m0", spdk::Access::ReadWrite)?;
//!         let (buffer, result) = device.read(0, device.allocate(4096)).await;
//!         result.map(|()| buffer.iter().map(|byte| u64::from(*byte)).sum::<u64>()).map_err(Box::from)
//!             as Result<u64, Box<dyn std::error::Error + Send + Sync>>
//!     })
//!     .await?;
//! # drop(sum);
//! spdk.stop().await?;
//! # Ok(())
//! # }
//! ```
//!
//! All unsafe code of Ocelot is in this crate and in `spdk-sys`.

mod bdev;
mod config;
pub mod dma;
mod environment;
mod error;
mod export;
pub mod limits;
mod log;
mod nvmf;
mod options;
mod reactor;
mod rpc;
mod spdk;
mod system;

pub use bdev::{Access, Attach, Bdev, BdevAdmin, InjectedError, Listed, NvmeAddress, list};
pub use error::{
    ConfigError, OpenError, ReactorError, ResetError, RpcError, StartError, StopError,
};
pub use export::{Disk, Export, ExportCounters, ExportError, ExportFigures, ExportOptions};
pub use nvmf::{Exposed, Listener, Nvmf, Subsystem};
pub use options::{Config, Memory, Options, Polling, Reactors};
pub use reactor::{
    Counters, ReactorHandle, ReactorHost, Sleep, current_handle, host, on_reactor, sleep, spawn,
    yield_now,
};
pub use rpc::RpcClient;
pub use spdk::Spdk;
