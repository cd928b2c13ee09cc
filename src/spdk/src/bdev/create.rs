//! Making and removing block devices at run time, through SPDK's JSON-RPC methods.

use std::path::Path;

use serde_json::{Value, json};

use super::Listed;
use crate::error::RpcError;
use crate::reactor::ReactorHandle;
use crate::rpc::RpcClient;

/// Makes, changes and removes block devices, from any thread.
#[derive(Debug, Clone)]
pub struct BdevAdmin {
    rpc: RpcClient,
    reactor: ReactorHandle,
}

/// Where an NVMe controller is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NvmeAddress {
    /// On this machine's bus, for example `0000:01:00.0`. Its kernel driver must have let it go.
    Pcie { address: String },
    Tcp {
        host: String,
        port: u16,
        subsystem: String,
    },
    /// Emulated by another process, which serves the socket folder.
    VfioUser { folder: String, subsystem: String },
}

/// An NVMe controller to attach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attach {
    /// The devices are called by this and their namespace: `nvme0` gives `nvme0n1`.
    pub name: String,
    pub address: NvmeAddress,
    /// Who we say we are; None for SPDK's default.
    pub host: Option<String>,
}

/// What an error bdev does to requests; see [`BdevAdmin::inject_error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InjectedError {
    Fail,
    /// Never completed, until injection is cleared.
    Pending,
    /// SPDK says it has no memory for it.
    NoMemory,
}

impl BdevAdmin {
    pub(crate) fn new(rpc: RpcClient, reactor: ReactorHandle) -> Self {
        BdevAdmin { rpc, reactor }
    }

    pub async fn list(&self) -> Vec<Listed> {
        self.reactor
            .call(|| async { super::list() })
            .await
            .unwrap_or_default()
    }

    /// A device over a file or a kernel block device, by Linux AIO. A flush reaches the medium.
    pub async fn create_aio(
        &self,
        name: &str,
        path: &Path,
        block_size: u32,
        read_only: bool,
    ) -> Result<(), RpcError> {
        let params = json!({
            "name": name,
            "filename": path,
            "block_size": block_size,
            "readonly": read_only,
        });
        self.call("bdev_aio_create", params).await?;
        self.examined().await
    }

    /// A device over a file, by io_uring. SPDK's module has no flush: not for data that matters.
    pub async fn create_uring(
        &self,
        name: &str,
        path: &Path,
        block_size: u32,
    ) -> Result<(), RpcError> {
        let params = json!({ "name": name, "filename": path, "block_size": block_size });
        self.call("bdev_uring_create", params).await?;
        self.examined().await
    }

    /// A device of memory.
    pub async fn create_malloc(
        &self,
        name: &str,
        block_count: u64,
        block_size: u32,
    ) -> Result<(), RpcError> {
        let params = json!({ "name": name, "num_blocks": block_count, "block_size": block_size });
        self.call("bdev_malloc_create", params).await?;
        self.examined().await
    }

    /// A device that forgets: writes go nowhere, reads leave buffers as they are.
    pub async fn create_null(
        &self,
        name: &str,
        block_count: u64,
        block_size: u32,
    ) -> Result<(), RpcError> {
        let params = json!({ "name": name, "num_blocks": block_count, "block_size": block_size });
        self.call("bdev_null_create", params).await?;
        self.examined().await
    }

    /// Changes the size of a null device.
    pub async fn resize_null(&self, name: &str, size_mib: u64) -> Result<(), RpcError> {
        let params = json!({ "name": name, "new_size": size_mib });
        self.call("bdev_null_resize", params).await.map(drop)
    }

    /// Looks again at the size of an AIO device's file.
    pub async fn rescan_aio(&self, name: &str) -> Result<(), RpcError> {
        self.call("bdev_aio_rescan", json!({ "name": name }))
            .await
            .map(drop)
    }

    /// Puts a device over `base` that errors can be injected into; its name is `EE_` and the base's.
    pub async fn create_error(&self, base: &str) -> Result<String, RpcError> {
        let params = json!({ "base_name": base });
        self.call("bdev_error_create", params).await?;
        self.examined().await?;
        Ok(format!("EE_{base}"))
    }

    /// Makes the next `count` requests of a kind (`read`, `write`, `flush`, `unmap`, `all`) fail.
    pub async fn inject_error(
        &self,
        name: &str,
        kind: &str,
        error: InjectedError,
        count: u32,
    ) -> Result<(), RpcError> {
        let error = match error {
            InjectedError::Fail => "failure",
            InjectedError::Pending => "pending",
            InjectedError::NoMemory => "nomem",
        };
        let params = json!({ "name": name, "io_type": kind, "error_type": error, "num": count });
        self.call("bdev_error_inject_error", params).await.map(drop)
    }

    /// Ends the injection of errors; what was kept pending fails.
    pub async fn clear_errors(&self, name: &str) -> Result<(), RpcError> {
        let params = json!({ "name": name, "io_type": "clear", "error_type": "failure" });
        self.call("bdev_error_inject_error", params).await.map(drop)
    }

    /// Attaches an NVMe controller; its namespaces become devices, whose names are returned.
    pub async fn attach_nvme(&self, attach: &Attach) -> Result<Vec<String>, RpcError> {
        let mut params = json!({ "name": attach.name });
        let fields: Vec<(&str, Value)> = match &attach.address {
            NvmeAddress::Pcie { address } => {
                vec![
                    ("trtype", "PCIe".into()),
                    ("traddr", address.as_str().into()),
                ]
            }
            NvmeAddress::Tcp {
                host,
                port,
                subsystem,
            } => vec![
                ("trtype", "TCP".into()),
                (
                    "adrfam",
                    if host.contains(':') { "IPv6" } else { "IPv4" }.into(),
                ),
                ("traddr", host.as_str().into()),
                ("trsvcid", port.to_string().into()),
                ("subnqn", subsystem.as_str().into()),
            ],
            NvmeAddress::VfioUser { folder, subsystem } => vec![
                ("trtype", "VFIOUSER".into()),
                ("traddr", folder.as_str().into()),
                ("subnqn", subsystem.as_str().into()),
            ],
        };
        for (name, value) in fields {
            params[name] = value;
        }
        if let Some(host) = &attach.host {
            params["hostnqn"] = host.as_str().into();
        }
        let answer = self.call("bdev_nvme_attach_controller", params).await?;
        self.examined().await?;
        let names = answer.as_array().into_iter().flatten();
        Ok(names
            .filter_map(|name| name.as_str().map(str::to_owned))
            .collect())
    }

    /// Detaches an NVMe controller; its devices are hot-removed.
    pub async fn detach_nvme(&self, name: &str) -> Result<(), RpcError> {
        self.call("bdev_nvme_detach_controller", json!({ "name": name }))
            .await
            .map(drop)
    }

    /// Removes a device that one of the `create` calls made. Whoever has it open sees it hot-removed; the answer comes
    /// when all have let it go.
    pub async fn delete(&self, name: &str) -> Result<(), RpcError> {
        let product = self
            .list()
            .await
            .into_iter()
            .find(|one| one.name == name)
            .map(|one| one.product)
            .unwrap_or_default();
        let method = match product.as_str() {
            "AIO disk" => "bdev_aio_delete",
            "URING bdev" => "bdev_uring_delete",
            "Null disk" => "bdev_null_delete",
            "Error Injection Disk" => "bdev_error_delete",
            _ => "bdev_malloc_delete",
        };
        self.call(method, json!({ "name": name })).await.map(drop)
    }

    /// Any other method of SPDK.
    pub async fn call(&self, method: &str, params: Value) -> Result<Value, RpcError> {
        self.rpc.call(method, params).await
    }

    /// Waits until SPDK's modules have looked at new devices, so that what they find on them is there too.
    async fn examined(&self) -> Result<(), RpcError> {
        self.call("bdev_wait_for_examine", Value::Null)
            .await
            .map(drop)
    }
}
