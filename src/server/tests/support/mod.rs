//! A daemon without SPDK: volumes of mkfs.ocfs2 on simulated disks, on a plain thread; the services
//! on a Unix socket.
#![allow(clippy::unwrap_used, reason = "a test fails where it panics")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use runtime::sim::{DiskOptions, Image, SimDisk};
use runtime::{Host, LocalFuture, WallTime};
use server::config::{Config, ConfiguredDevice, ConfiguredVolume};
use server::device::{DeviceRecord, DeviceSource, World};
use server::door::{FsDoor, MountOptions};
use server::failure::{Failure, Result};
use server::serve::{self, Listeners, ServeError};
use server::volume::{Home, Start, VolumeHandle};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};

/// A thread that runs what is sent to it.
struct ThreadHome(mpsc::UnboundedSender<Start>);

impl ThreadHome {
    fn new() -> Self {
        let (starts, mut queue) = mpsc::unbounded_channel::<Start>();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build();
            let host: Rc<dyn Host> = Rc::new(ThreadHost(Instant::now()));
            let work = async move {
                while let Some(start) = queue.recv().await {
                    tokio::task::spawn_local(start(host.clone()));
                }
            };
            tokio::task::LocalSet::new().block_on(&runtime.unwrap(), work);
        });
        ThreadHome(starts)
    }
}

impl Home for ThreadHome {
    fn start(&self, start: Start) -> Result<()> {
        self.0.send(start).map_err(|_| Failure::gone("the thread"))
    }
}

struct ThreadHost(Instant);

impl Host for ThreadHost {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn wall(&self) -> WallTime {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        WallTime {
            seconds: since.as_secs() as i64,
            nanoseconds: since.subsec_nanos(),
        }
    }

    fn random(&self) -> u64 {
        rand::random()
    }

    fn spawn(&self, future: LocalFuture<()>) {
        tokio::task::spawn_local(future);
    }

    fn sleep(&self, duration: Duration) -> LocalFuture<()> {
        Box::pin(tokio::time::sleep(duration))
    }
}

/// Image files, loaded into simulated disks when they are mounted.
struct SimWorld {
    home: ThreadHome,
    devices: Mutex<Vec<DeviceRecord>>,
}

#[async_trait]
impl World for SimWorld {
    async fn attach(&self, name: &str, source: &DeviceSource) -> Result<DeviceRecord> {
        let DeviceSource::ImageFile {
            path, block_size, ..
        } = source
        else {
            return Err(Failure::new(95, "only image files are simulated"));
        };
        let metadata = std::fs::metadata(path)
            .map_err(|error| Failure::new(error.raw_os_error().unwrap_or(5), error.to_string()))?;
        let record = DeviceRecord {
            name: name.into(),
            source: Some(source.clone()),
            size_bytes: metadata.len(),
            block_size: *block_size,
            product: "simulated".into(),
            read_only: false,
        };
        self.devices.lock().unwrap().push(record.clone());
        Ok(record)
    }

    async fn detach(&self, name: &str) -> Result<()> {
        self.devices
            .lock()
            .unwrap()
            .retain(|device| device.name != name);
        Ok(())
    }

    async fn devices(&self) -> Result<Vec<DeviceRecord>> {
        Ok(self.devices.lock().unwrap().clone())
    }

    async fn mount(&self, device: &str, options: MountOptions) -> Result<VolumeHandle> {
        let devices = self.devices().await?;
        let found = devices.into_iter().find(|found| found.name == device);
        let Some(DeviceSource::ImageFile { path, .. }) = found.and_then(|found| found.source)
        else {
            return Err(Failure::new(19, "no such device"));
        };
        VolumeHandle::launch(&self.home, move |host| async move {
            let image = Image::load(Path::new(&path)).unwrap();
            let disk = SimDisk::with(image, DiskOptions::default(), None);
            FsDoor::mount(disk.device(), host, options).await
        })
        .await
    }

    async fn shutdown(&self) -> Result<()> {
        Ok(())
    }
}

/// A daemon, and how to reach and end it.
pub struct Daemon {
    pub folder: tempfile::TempDir,
    end: Option<oneshot::Sender<()>>,
    running: JoinHandle<Result<(), ServeError>>,
}

impl Daemon {
    /// With volumes of those names; each image is made by `make`.
    pub async fn start(volumes: &[&str], make: impl Fn(&Path)) -> Daemon {
        Daemon::configured(volumes, make, |_| {}).await
    }

    pub async fn configured(
        volumes: &[&str],
        make: impl Fn(&Path),
        change: impl Fn(&mut Config),
    ) -> Daemon {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.listen.unix = folder.path().join("socket");
        config.listen.tcp.clear();
        config.limits.grace_seconds = 5;
        for name in volumes {
            let path = folder.path().join(format!("{name}.img"));
            make(&path);
            let source = DeviceSource::ImageFile {
                path: path.to_str().unwrap().into(),
                block_size: 512,
                engine: Default::default(),
                read_only: false,
            };
            config.devices.push(ConfiguredDevice {
                name: format!("{name}-disk"),
                source,
            });
            config.volumes.push(ConfiguredVolume {
                device: format!("{name}-disk"),
                name: (*name).into(),
                read_only: false,
                ..ConfiguredVolume::default()
            });
        }
        change(&mut config);
        config.check().unwrap();
        let listeners = Listeners::bind(&config).await.unwrap();
        let world = Arc::new(SimWorld {
            home: ThreadHome::new(),
            devices: Mutex::default(),
        });
        let (end, ended) = oneshot::channel();
        let running = tokio::spawn(async move {
            let end = async move {
                let _ = ended.await;
            };
            serve::run(&config, listeners, world, end).await
        });
        Daemon {
            folder,
            end: Some(end),
            running,
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    pub async fn channel(&self) -> Channel {
        let address = format!("unix:{}", self.socket().display());
        Endpoint::from_shared(address)
            .unwrap()
            .connect()
            .await
            .unwrap()
    }

    /// Ends it as a signal does.
    pub async fn stop(mut self) {
        let _ = self.end.take().unwrap().send(());
        let ended = tokio::time::timeout(Duration::from_secs(20), &mut self.running).await;
        ended
            .expect("it ends in time")
            .unwrap()
            .expect("it ends well");
        assert!(!self.socket().exists());
    }
}

/// A volume with all features, as small as they come.
pub fn volume(path: &Path) {
    std::fs::File::create(path)
        .unwrap()
        .set_len(48 << 20)
        .unwrap();
    let output = Command::new("/usr/sbin/mkfs.ocfs2")
        .args(["-q", "-x", "-F", "-M", "local", "-N", "1", "-J", "size=4M"])
        .args([
            "-b",
            "4096",
            "-C",
            "4096",
            "--fs-feature-level=max-features",
        ])
        .arg(path)
        .output()
        .expect("ocfs2-tools are installed");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
