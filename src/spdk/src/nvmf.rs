//! SPDK's NVMe-oF target in this process: block devices offered to NVMe hosts, over TCP and over vfio-user sockets.
//!
//! Each device has a subsystem of its own with one namespace and one listener. The target's poll groups are SPDK threads
//! that our reactors poll; what arrives by a socket or by shared memory does not wake a sleeping reactor, so while
//! something is exposed, reactors sleep shortly ([`limits::TRANSPORT_SLEEP`]).

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::lock::Mutex;
use serde_json::{Value, json};

use crate::error::RpcError;
use crate::limits;
use crate::rpc::RpcClient;

/// What can be offered where; from any thread. Clones are the same.
#[derive(Debug, Clone)]
pub struct Nvmf {
    rpc: RpcClient,
}

/// Where hosts find a subsystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listener {
    Tcp(SocketAddr),
    /// A folder that is there; the socket in it is called `cntrl`.
    VfioUser {
        folder: String,
    },
}

/// A subsystem with one namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subsystem {
    /// Its NVMe qualified name.
    pub nqn: String,
    /// At most 20 characters.
    pub serial: String,
    /// At most 40 characters.
    pub model: String,
    /// What hosts recognise the namespace by.
    pub uuid: String,
    /// The block device.
    pub bdev: String,
    pub listener: Listener,
}

/// A subsystem that hosts can reach. [`Exposed::conceal`] ends it; dropped, it only lets reactors sleep longer again.
#[derive(Debug)]
pub struct Exposed {
    rpc: RpcClient,
    nqn: String,
    _serving: Serving,
}

/// Transports that were made in this process: once each.
static TRANSPORTS: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());

/// Subsystems that hosts can reach.
static SERVED: AtomicUsize = AtomicUsize::new(0);

/// While one lives, reactors sleep shortly.
#[derive(Debug)]
struct Serving(());

impl Serving {
    fn new() -> Self {
        SERVED.fetch_add(1, Ordering::Relaxed);
        for shared in crate::system::reactors().into_iter().flatten() {
            shared.ring();
        }
        Serving(())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        SERVED.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Hosts are served.
pub(crate) fn serves() -> bool {
    SERVED.load(Ordering::Relaxed) > 0
}

/// An NVMe controller of another process, by vfio-user, reaches this process's own memory only, not what a host of ours
/// has shared with us.
static OWN_MEMORY_ONLY: AtomicBool = AtomicBool::new(false);

pub(crate) fn devices_need_own_memory() -> bool {
    OWN_MEMORY_ONLY.load(Ordering::Relaxed)
}

/// A management call that may attach such a controller.
pub(crate) fn note_call(method: &str, params: &Value) {
    let vfio_user = |params: &Value| {
        params["trtype"]
            .as_str()
            .is_some_and(|kind| kind.eq_ignore_ascii_case("VFIOUSER"))
    };
    if method == "bdev_nvme_attach_controller" && vfio_user(params) {
        OWN_MEMORY_ONLY.store(true, Ordering::Relaxed);
    }
}

impl Listener {
    fn transport(&self) -> &'static str {
        match self {
            Listener::Tcp(_) => "TCP",
            Listener::VfioUser { .. } => "VFIOUSER",
        }
    }

    fn address(&self) -> Value {
        match self {
            Listener::Tcp(address) => json!({
                "trtype": self.transport(),
                "adrfam": if address.is_ipv6() { "IPv6" } else { "IPv4" },
                "traddr": address.ip().to_string(),
                "trsvcid": address.port().to_string(),
            }),
            Listener::VfioUser { folder } => json!({
                "trtype": self.transport(),
                "traddr": folder,
            }),
        }
    }
}

impl Nvmf {
    pub(crate) fn new(rpc: RpcClient) -> Self {
        Nvmf { rpc }
    }

    /// Offers a block device to any host that reaches the listener. After an error nothing of it stays.
    pub async fn expose(&self, subsystem: &Subsystem) -> Result<Exposed, RpcError> {
        self.make_transport(subsystem.listener.transport()).await?;
        let Subsystem {
            nqn,
            serial,
            model,
            uuid,
            bdev,
            listener,
        } = subsystem;
        let make = json!({
            "nqn": nqn,
            "allow_any_host": true,
            "serial_number": serial,
            "model_number": model,
            "max_namespaces": 1,
        });
        self.rpc.call("nvmf_create_subsystem", make).await?;
        let exposed = Exposed {
            rpc: self.rpc.clone(),
            nqn: nqn.clone(),
            _serving: Serving::new(),
        };
        // By default the second is the block device's, which may be another one each time.
        let globally_unique = uuid.replace('-', "");
        let namespace =
            json!({ "bdev_name": bdev, "nsid": 1, "uuid": uuid, "nguid": globally_unique });
        let namespace = json!({ "nqn": nqn, "namespace": namespace });
        let listen = json!({ "nqn": nqn, "listen_address": listener.address() });
        let filled = async {
            self.rpc.call("nvmf_subsystem_add_ns", namespace).await?;
            self.rpc.call("nvmf_subsystem_add_listener", listen).await
        };
        match filled.await {
            Ok(_) => Ok(exposed),
            Err(error) => {
                if let Err(also) = exposed.conceal().await {
                    tracing::error!(%also, "a subsystem that failed to start stays");
                }
                Err(error)
            }
        }
    }

    async fn make_transport(&self, kind: &'static str) -> Result<(), RpcError> {
        let mut made = TRANSPORTS.lock().await;
        if made.contains(kind) {
            return Ok(());
        }
        match self
            .rpc
            .call("nvmf_create_transport", transport_options(kind))
            .await
        {
            Ok(_) => {}
            // A configuration has made it, in its own way.
            Err(RpcError::Refused { message, .. }) if message.contains("already exists") => {}
            Err(error) => return Err(error),
        }
        made.insert(kind);
        Ok(())
    }
}

/// SPDK's defaults, but for TCP's share of the buffer pool: by default three quarters of what it would like to have.
fn transport_options(kind: &str) -> Value {
    if kind == "TCP" {
        json!({ "trtype": kind, "buf_cache_size": limits::TCP_CACHED, "num_shared_buffers": limits::TCP_SHARED })
    } else {
        json!({ "trtype": kind })
    }
}

impl Exposed {
    pub fn nqn(&self) -> &str {
        &self.nqn
    }

    /// Ends it: hosts are disconnected, requests under way are finished first, and the block device is let go.
    pub async fn conceal(self) -> Result<(), RpcError> {
        let params = json!({ "nqn": self.nqn });
        self.rpc
            .call("nvmf_delete_subsystem", params)
            .await
            .map(drop)
    }
}
