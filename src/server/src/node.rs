//! The node: its devices, its volumes by name, open handles, and the way to the end. The gRPC
//! services and the start-up both act through it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use proto::errors::errno;
use tokio::sync::Mutex as AsyncMutex;
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::device::{DeviceRecord, DeviceSource, World};
use crate::door::{MountOptions, VolumeInfo};
use crate::export::{ExportRecord, ExportSpec, Exports};
use crate::failure::{Failure, Result};
use crate::handles::Handles;
use crate::limits;
use crate::volume::VolumeHandle;

/// Settings of the node that do not change.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    pub name: String,
    pub max_handles: usize,
    pub idle_handle: Duration,
    /// Hosts elsewhere may be served, by whoever reaches them.
    pub insecure_remote: bool,
}

impl Default for NodeOptions {
    fn default() -> Self {
        NodeOptions {
            name: "ocelot".into(),
            max_handles: limits::HANDLES,
            idle_handle: limits::IDLE_HANDLE,
            insecure_remote: false,
        }
    }
}

/// A volume's entry in the node's table.
#[derive(Clone)]
enum Entry {
    Mounted {
        device: String,
        volume: VolumeHandle,
    },
    /// The configuration wanted it, and it could not be had.
    Failed { device: String, failure: Failure },
}

/// What a list of volumes shows.
pub struct VolumeRecord {
    pub name: String,
    pub device: String,
    pub state: Result<VolumeInfo>,
    pub root: u64,
    pub open_handles: usize,
}

pub struct Node {
    pub options: NodeOptions,
    pub handles: Arc<Handles>,
    pub exports: Exports,
    /// Cancelled when the node is about to end: long streams finish by themselves.
    pub ending: CancellationToken,
    pub started: Instant,
    /// What is configured has been mounted and exported, as far as that goes, and the end has not begun.
    ready: AtomicBool,
    world: Arc<dyn World>,
    volumes: Mutex<BTreeMap<String, Entry>>,
    /// Attach, detach, mount and unmount, one at a time.
    changes: AsyncMutex<()>,
    health: HealthReporter,
}

impl Node {
    pub fn new(options: NodeOptions, world: Arc<dyn World>, health: HealthReporter) -> Arc<Node> {
        Arc::new(Node {
            handles: Arc::new(Handles::new(options.max_handles)),
            exports: Exports::default(),
            options,
            ending: CancellationToken::new(),
            started: Instant::now(),
            ready: AtomicBool::new(false),
            world,
            volumes: Mutex::default(),
            changes: AsyncMutex::new(()),
            health,
        })
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A mounted volume by name; the only one, if the name is empty.
    pub fn volume(&self, name: &str) -> Result<(Arc<str>, VolumeHandle)> {
        let table = self.table();
        if !name.is_empty() {
            return match table.get(name) {
                Some(Entry::Mounted { volume, .. }) => Ok((name.into(), volume.clone())),
                Some(Entry::Failed { failure, .. }) => Err(Failure::new(
                    errno::ENODEV,
                    format!("volume {name:?} is not mounted: {failure}"),
                )
                .volume(name)),
                None => Err(
                    Failure::new(errno::ENODEV, format!("no volume {name:?} is mounted"))
                        .volume(name),
                ),
            };
        }
        let mut mounted = table.iter().filter_map(|(name, entry)| match entry {
            Entry::Mounted { volume, .. } => Some((Arc::from(name.as_str()), volume.clone())),
            Entry::Failed { .. } => None,
        });
        match (mounted.next(), mounted.next()) {
            (Some(only), None) => Ok(only),
            (None, _) => Err(Failure::new(errno::ENODEV, "no volume is mounted")),
            (Some(_), Some(_)) => Err(Failure::field(
                "volume",
                "several volumes are mounted; say which one is meant",
            )),
        }
    }

    pub async fn attach(&self, name: &str, source: &DeviceSource) -> Result<DeviceRecord> {
        check_label("name", name)?;
        source.check("source")?;
        let _one = self.changes.lock().await;
        self.check_running()?;
        let devices = self.world.devices().await?;
        if devices.iter().any(|device| device.name == name) {
            return Err(Failure::new(
                errno::EEXIST,
                format!("there is a device {name:?} already"),
            ));
        }
        if devices.len() >= limits::DEVICES {
            return Err(Failure::new(
                errno::ENOSPC,
                format!("{} devices are attached, the most allowed", limits::DEVICES),
            ));
        }
        let record = self.world.attach(name, source).await?;
        tracing::info!(
            device = name,
            ?source,
            size_bytes = record.size_bytes,
            "device attached"
        );
        Ok(record)
    }

    pub async fn detach(&self, name: &str) -> Result<()> {
        let _one = self.changes.lock().await;
        if let Some(volume) = self.volume_on(name) {
            return Err(Failure::new(
                errno::EBUSY,
                format!("device {name:?} has volume {volume:?} mounted"),
            ));
        }
        self.world.detach(name).await?;
        tracing::info!(device = name, "device detached");
        Ok(())
    }

    /// All devices, each with the volume mounted on it.
    pub async fn devices(&self) -> Result<Vec<(DeviceRecord, Option<String>)>> {
        let devices = self.world.devices().await?;
        Ok(devices
            .into_iter()
            .map(|device| {
                let volume = self.volume_on(&device.name);
                (device, volume)
            })
            .collect())
    }

    fn volume_on(&self, device_name: &str) -> Option<String> {
        self.table().iter().find_map(|(name, entry)| match entry {
            Entry::Mounted { device, .. } if device == device_name => Some(name.clone()),
            _ => None,
        })
    }

    /// Mounts the volume of a device. An empty name means the volume's own.
    pub async fn mount(
        &self,
        device: &str,
        name: &str,
        options: MountOptions,
    ) -> Result<VolumeRecord> {
        if device.is_empty() {
            return Err(Failure::field("device", "must be given"));
        }
        if !name.is_empty() {
            check_label("name", name)?;
        }
        let _one = self.changes.lock().await;
        self.check_running()?;
        if let Some(volume) = self.volume_on(device) {
            return Err(Failure::new(
                errno::EBUSY,
                format!("device {device:?} is mounted as volume {volume:?}"),
            ));
        }
        self.check_name_free(name)?;
        let volume = self.world.mount(device, options).await?;
        let info = volume.call(|door| async move { Ok(door.info()) }).await?;
        let name = if name.is_empty() {
            own_name(&info)
        } else {
            name.to_owned()
        };
        if let Err(failure) = self.check_name_free(&name) {
            volume.unmount().await?;
            return Err(failure);
        }
        tracing::info!(
            volume = name,
            device,
            uuid = info.uuid,
            label = info.label,
            recovered = info.recovered,
            read_only = info.read_only,
            "volume mounted"
        );
        let root = volume.root().0;
        self.table().insert(
            name.clone(),
            Entry::Mounted {
                device: device.to_owned(),
                volume,
            },
        );
        self.report_health(&name).await;
        Ok(VolumeRecord {
            name,
            device: device.to_owned(),
            state: Ok(info),
            root,
            open_handles: 0,
        })
    }

    fn check_name_free(&self, name: &str) -> Result<()> {
        match self.table().get(name) {
            Some(Entry::Mounted { .. }) => Err(Failure::new(
                errno::EEXIST,
                format!("there is a volume {name:?} already"),
            )
            .volume(name)),
            // Trying again is how a failed one gets mounted after all.
            Some(Entry::Failed { .. }) | None => Ok(()),
        }
    }

    /// Keeps a configured volume that could not be mounted in the list, with the reason.
    pub async fn note_failed(&self, name: &str, device: &str, failure: Failure) {
        tracing::error!(volume = name, device, %failure, "volume is not mounted");
        let entry = Entry::Failed {
            device: device.to_owned(),
            failure,
        };
        self.table().insert(name.to_owned(), entry);
        self.report_health(name).await;
    }

    pub async fn unmount(&self, name: &str, close_handles: bool) -> Result<()> {
        if name.is_empty() {
            return Err(Failure::field("volume", "must be given"));
        }
        let _one = self.changes.lock().await;
        let failed = matches!(self.table().get(name), Some(Entry::Failed { .. }));
        if failed {
            self.table().remove(name);
            self.report_health(name).await;
            return Ok(());
        }
        let (_, volume) = self.volume(name)?;
        if !close_handles {
            let open = self.handles.count_of(name);
            if open > 0 {
                return Err(
                    Failure::new(errno::EBUSY, format!("{open} handles are open")).volume(name),
                );
            }
        }
        let exports = self.exports.of_volume(name);
        if !exports.is_empty() && !close_handles {
            let message = format!("files of it are exported: {}", exports.join(", "));
            return Err(Failure::new(errno::EBUSY, message).volume(name));
        }
        for export in exports {
            self.exports.remove(&export).await?;
        }
        // Nobody finds it from here on. If it is busy it is put back; after any other failure it is
        // gone all the same, and will be recovered by the next mount.
        let entry = self.table().remove(name);
        drop(self.handles.remove_volume(name));
        let result = volume.unmount().await;
        if let (Err(failure), Some(entry)) = (&result, entry)
            && failure.errno() == errno::EBUSY
        {
            self.table().insert(name.to_owned(), entry);
            return result.map_err(|failure| failure.volume(name));
        }
        tracing::info!(volume = name, clean = result.is_ok(), "volume unmounted");
        self.health
            .set_service_status(health_name(name), ServingStatus::Unknown)
            .await;
        self.report_overall().await;
        result.map_err(|failure| failure.volume(name))
    }

    /// Offers a file as a block device.
    pub async fn export(&self, spec: ExportSpec) -> Result<ExportRecord> {
        if spec.is_remote() && !self.options.insecure_remote {
            return Err(Failure::new(
                errno::EACCES,
                format!(
                    "{} is not loopback, and whoever reaches it may do anything; the daemon is not \
                     configured for that (listen.insecure_remote)",
                    spec.address
                ),
            ));
        }
        let _one = self.changes.lock().await;
        self.check_running()?;
        let (name, volume) = self.volume(&spec.volume)?;
        self.exports
            .create(&*self.world, spec, (&name, volume))
            .await
    }

    /// Takes a block device of a file away.
    pub async fn remove_export(&self, name: &str) -> Result<()> {
        let _one = self.changes.lock().await;
        self.exports.remove(name).await
    }

    pub async fn volumes(&self) -> Vec<VolumeRecord> {
        let entries: Vec<_> = self
            .table()
            .iter()
            .map(|(name, entry)| (name.clone(), entry.clone()))
            .collect();
        let mut records = Vec::with_capacity(entries.len());
        for (name, entry) in entries {
            let open_handles = self.handles.count_of(&name);
            records.push(match entry {
                Entry::Mounted { device, volume } => VolumeRecord {
                    state: volume.call(|door| async move { Ok(door.info()) }).await,
                    root: volume.root().0,
                    name,
                    device,
                    open_handles,
                },
                Entry::Failed { device, failure } => VolumeRecord {
                    name,
                    device,
                    state: Err(failure),
                    root: 0,
                    open_handles,
                },
            });
        }
        records
    }

    /// The end: unmounts everything and shuts the world down. The first failure is returned, and
    /// nothing is left out because of it.
    pub async fn shut_down(&self) -> Result<()> {
        self.ending.cancel();
        let mut result = Ok(());
        for name in self.exports.names() {
            if let Err(failure) = self.remove_export(&name).await {
                tracing::error!(export = name, %failure, "removing an export at the end");
                result = result.and(Err(failure));
            }
        }
        let names: Vec<_> = self.table().keys().cloned().collect();
        for name in names {
            if let Err(failure) = self.unmount(&name, true).await {
                tracing::error!(volume = name, %failure, "unmounting at the end");
                result = result.and(Err(failure));
            }
        }
        self.table().clear();
        let world = self.world.shutdown().await;
        if let Err(failure) = &world {
            tracing::error!(%failure, "shutting the devices down");
        }
        result.and(world)
    }

    fn check_running(&self) -> Result<()> {
        if self.ending.is_cancelled() {
            Err(Failure::gone("the node"))
        } else {
            Ok(())
        }
    }

    /// The node is ready once its configured volumes and exports are; see [`Node::report_overall`].
    pub async fn report_ready(&self) {
        self.ready.store(true, Ordering::SeqCst);
        self.report_overall().await;
    }

    async fn report_health(&self, name: &str) {
        let status = match self.table().get(name) {
            Some(Entry::Mounted { .. }) => ServingStatus::Serving,
            Some(Entry::Failed { .. }) => ServingStatus::NotServing,
            None => ServingStatus::Unknown,
        };
        self.health
            .set_service_status(health_name(name), status)
            .await;
        self.report_overall().await;
    }

    /// The service "" serves if no volume that should be mounted is not: one bad disk does not stop
    /// the others from being served, but whoever watches is told.
    async fn report_overall(&self) {
        let failed = self
            .table()
            .values()
            .any(|entry| matches!(entry, Entry::Failed { .. }));
        let status = if failed || !self.ready.load(Ordering::SeqCst) {
            ServingStatus::NotServing
        } else {
            ServingStatus::Serving
        };
        self.health.set_service_status("", status).await;
    }

    /// Before the configured volumes are mounted, and from the beginning of the end.
    pub async fn report_not_ready(&self) {
        self.ready.store(false, Ordering::SeqCst);
        self.health
            .set_service_status("", ServingStatus::NotServing)
            .await;
    }

    /// Closes handles that nobody uses, for as long as the node runs.
    pub async fn expire_handles(self: Arc<Self>) {
        let idle = self.options.idle_handle;
        let mut tick = tokio::time::interval((idle / 4).max(Duration::from_millis(10)));
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = self.ending.cancelled() => return,
            }
            for handle in self.handles.remove_idle(idle) {
                tracing::info!(
                    handle = handle.id,
                    volume = &*handle.volume_name,
                    inode = handle.ino.0,
                    "idle handle closed"
                );
            }
        }
    }
}

/// The health service's name for a volume.
pub fn health_name(volume: &str) -> String {
    format!("ocelot.volume/{volume}")
}

/// What a volume is called if nobody says: its label if it can be a name, else its UUID.
fn own_name(info: &VolumeInfo) -> String {
    if check_label("name", &info.label).is_ok() {
        info.label.clone()
    } else {
        info.uuid.clone()
    }
}

/// Names of devices and volumes: short, and safe in paths, logs and `VOLUME:/path`.
pub fn check_label(field: &str, name: &str) -> Result<()> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if name.is_empty() {
        return Err(Failure::field(field, "must be given"));
    }
    if name.len() > limits::LABEL_MAX || !name.bytes().all(good) {
        return Err(Failure::field(
            field,
            format!(
                "{name:?} is not a name (letters, digits, '.', '_' and '-', at most {})",
                limits::LABEL_MAX
            ),
        ));
    }
    Ok(())
}
