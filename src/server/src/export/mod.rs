//! Files as block devices: what is asked for, and the table of what there is.
//!
//! ```text
//!   node ─ table: name ─► Active { RemoteFile, FileExport, Exposed? }      any thread
//!                            │          │            └─ the NVMe subsystem (SPDK's main thread)
//!                            │          └─ keeper: a task on the volume's reactor with the spdk::Export
//!                            └─ the open file: the volume's own table of files
//! ```
//! Taking one away goes from the outside in: hosts, device, file. So nothing reaches a file that is closed.

mod disk;
mod spec;

use std::collections::BTreeMap;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use proto::errors::errno;

pub use disk::{DeviceOptions, FileDisk, FileExport};
pub use spec::{ExportAs, ExportSpec};

use crate::device::World;
use crate::door::{FileKind, Ino, OpenFlags};
use crate::failure::{Failure, Result};
use crate::limits;
use crate::node::check_label;
use crate::volume::{RemoteFile, VolumeHandle};

/// What a list of exports shows.
#[derive(Debug, Clone)]
pub struct ExportRecord {
    /// Filled in: what was left to us is as it was chosen.
    pub spec: ExportSpec,
    pub inode: u64,
    pub uuid: String,
    pub block_size: u32,
    pub size_bytes: u64,
    pub figures: spdk::ExportFigures,
    pub failure: Option<Failure>,
}

/// A file that is exported.
struct Active {
    spec: ExportSpec,
    inode: u64,
    uuid: String,
    file: RemoteFile,
    device: FileExport,
    exposed: Option<spdk::Exposed>,
}

enum Entry {
    /// Being made, or being taken away: the name is taken.
    Changing {
        volume: String,
    },
    Active(Box<Active>),
    /// The configuration wanted it, and it could not be had.
    Failed(Box<(ExportSpec, Failure)>),
}

/// All exports of the node.
#[derive(Default)]
pub struct Exports {
    table: Mutex<BTreeMap<String, Entry>>,
}

impl Exports {
    fn table(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Exports of a volume; with `name`, all that keep it from being unmounted.
    pub fn of_volume(&self, name: &str) -> Vec<String> {
        let table = self.table();
        let of = table.iter().filter(|(_, entry)| match entry {
            Entry::Changing { volume } => volume == name,
            Entry::Active(active) => active.spec.volume == name,
            Entry::Failed(_) => false,
        });
        of.map(|(name, _)| name.clone()).collect()
    }

    pub fn names(&self) -> Vec<String> {
        self.table().keys().cloned().collect()
    }

    /// Exports a file of `volume`.
    pub async fn create(
        &self,
        world: &dyn World,
        mut spec: ExportSpec,
        (volume_name, volume): (&str, VolumeHandle),
    ) -> Result<ExportRecord> {
        spec.complete()?;
        spec.check("")?;
        spec.volume = volume_name.to_owned();
        let name = spec.name.clone();
        {
            let mut table = self.table();
            match table.get(&name) {
                None | Some(Entry::Failed(_)) => {}
                Some(_) => {
                    return Err(Failure::new(
                        errno::EEXIST,
                        format!("there is an export {name:?} already"),
                    ));
                }
            }
            if table.len() >= limits::EXPORTS {
                return Err(Failure::new(
                    errno::ENOSPC,
                    format!("{} exports are there, the most allowed", limits::EXPORTS),
                ));
            }
            if let Some(other) = clash(&table, &spec) {
                return Err(Failure::new(
                    errno::EEXIST,
                    format!("export {other:?} has the same NQN or socket folder"),
                ));
            }
            let volume = spec.volume.clone();
            table.insert(name.clone(), Entry::Changing { volume });
        }
        // A caller that gives up must not leave the name taken: whatever happens, it ends here.
        let unfinished = Unfinished {
            exports: self,
            name: &name,
        };
        let active = make(world, spec, volume).await?;
        std::mem::forget(unfinished);
        let record = active.record();
        tracing::info!(
            export = name,
            volume = record.spec.volume,
            path = %record.spec.path_text(),
            kind = ?record.spec.kind,
            nqn = record.spec.nqn,
            address = record.spec.address,
            size_bytes = record.size_bytes,
            block_size = record.block_size,
            read_only = record.spec.read_only,
            "file exported"
        );
        self.table().insert(name, Entry::Active(Box::new(active)));
        Ok(record)
    }

    /// Keeps a configured export that could not be made in the list, with the reason.
    pub fn note_failed(&self, mut spec: ExportSpec, failure: Failure) {
        // The name may be what is wrong with it.
        let _ = spec.complete();
        tracing::error!(export = spec.name, %failure, "file is not exported");
        let mut table = self.table();
        if !matches!(table.get(&spec.name), None | Some(Entry::Failed(_))) {
            return;
        }
        let name = spec.name.clone();
        table.insert(name, Entry::Failed(Box::new((spec, failure))));
    }

    /// Takes an export away.
    pub async fn remove(&self, name: &str) -> Result<()> {
        let active = {
            let mut table = self.table();
            match table.remove(name) {
                Some(Entry::Active(active)) => {
                    let volume = active.spec.volume.clone();
                    table.insert(name.to_owned(), Entry::Changing { volume });
                    active
                }
                Some(Entry::Failed(_)) => return Ok(()),
                Some(entry @ Entry::Changing { .. }) => {
                    table.insert(name.to_owned(), entry);
                    return Err(Failure::new(
                        errno::EBUSY,
                        format!("export {name:?} is being made or taken away"),
                    ));
                }
                None => {
                    return Err(Failure::new(
                        errno::ENODEV,
                        format!("there is no export {name:?}"),
                    ));
                }
            }
        };
        let result = unmake(*active).await;
        self.table().remove(name);
        tracing::info!(export = name, clean = result.is_ok(), "export removed");
        result
    }

    pub fn list(&self) -> Vec<ExportRecord> {
        let table = self.table();
        let records = table.values().filter_map(|entry| match entry {
            Entry::Changing { .. } => None,
            Entry::Active(active) => Some(active.record()),
            Entry::Failed(failed) => Some(ExportRecord {
                spec: failed.0.clone(),
                inode: 0,
                uuid: String::new(),
                block_size: 0,
                size_bytes: 0,
                figures: spdk::ExportFigures::default(),
                failure: Some(failed.1.clone()),
            }),
        });
        records.collect()
    }
}

/// Frees the name of an export that was not made.
struct Unfinished<'e> {
    exports: &'e Exports,
    name: &'e str,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        self.exports.table().remove(self.name);
    }
}

/// Another export with the same subsystem or socket.
fn clash(table: &BTreeMap<String, Entry>, spec: &ExportSpec) -> Option<String> {
    let transports = spec.kind != ExportAs::Bdev;
    table.iter().find_map(|(name, entry)| match entry {
        Entry::Active(active) if transports && active.spec.kind != ExportAs::Bdev => {
            let other = &active.spec;
            let same_folder = spec.kind == ExportAs::VfioUser && spec.address == other.address;
            (spec.nqn == other.nqn || same_folder).then(|| name.clone())
        }
        _ => None,
    })
}

async fn make(world: &dyn World, spec: ExportSpec, volume: VolumeHandle) -> Result<Active> {
    let (file, attr) = {
        let (base, generation, path) = (spec.base, spec.generation, spec.path.clone());
        let flags = OpenFlags {
            read: true,
            write: !spec.read_only,
            direct: true,
            fixed_size: true,
            ..OpenFlags::default()
        };
        volume
            .open(move |door| async move {
                let start = base.map_or(door.root(), Ino);
                if base.is_some()
                    && door.getattr(start).await?.generation != generation
                    && generation != 0
                {
                    return Err(Failure::new(errno::ESTALE, "the inode is another one now"));
                }
                let attr = door.resolve(start, &path, true).await?;
                if attr.kind != FileKind::Regular {
                    let number = match attr.kind {
                        FileKind::Directory => errno::EISDIR,
                        _ => errno::EINVAL,
                    };
                    return Err(Failure::new(number, "only a regular file can be exported"));
                }
                Ok((attr.ino, flags))
            })
            .await
            .map_err(|failure| failure.path(&spec.path).volume(&spec.volume))?
    };
    let info = volume.call(|door| async move { Ok(door.info()) }).await?;
    let uuid = disk::uuid_of(&info.uuid, attr.ino.0, attr.generation);
    let block_size = disk::block_size(attr.size_bytes, spec.block_size)
        .map_err(|failure| failure.path(&spec.path).volume(&spec.volume))?;
    let sparse = info.features.iter().any(|name| name == "unwritten");
    let options = DeviceOptions {
        name: spec.bdev_name(),
        block_size,
        size_bytes: attr.size_bytes,
        read_only: spec.read_only,
        ranges: sparse,
        foreign_memory: spec.kind == ExportAs::VfioUser,
    };
    let device = file
        .call(move |file| async move { file.export(options).await })
        .await?;
    let mut active = Active {
        inode: attr.ino.0,
        uuid,
        file,
        device,
        exposed: None,
        spec,
    };
    match expose(world, &active).await {
        Ok(exposed) => {
            active.exposed = exposed;
            Ok(active)
        }
        Err(failure) => {
            if let Err(also) = unmake(active).await {
                tracing::warn!(failure = %also, "after an export failed");
            }
            Err(failure)
        }
    }
}

/// Offers the device to NVMe hosts, if it is for them.
async fn expose(world: &dyn World, active: &Active) -> Result<Option<spdk::Exposed>> {
    let spec = &active.spec;
    let listener = match spec.kind {
        ExportAs::Bdev => return Ok(None),
        ExportAs::NvmeTcp => spdk::Listener::Tcp(spec.tcp_address("")?),
        ExportAs::VfioUser => {
            let mut folder = std::fs::DirBuilder::new();
            folder.recursive(true).mode(0o700);
            folder.create(&spec.address).map_err(|error| {
                let number = error.raw_os_error().unwrap_or(errno::EIO);
                Failure::new(number, format!("making {}: {error}", spec.address))
            })?;
            clear_socket(&spec.address)?;
            spdk::Listener::VfioUser {
                folder: spec.address.clone(),
            }
        }
    };
    let subsystem = spdk::Subsystem {
        nqn: spec.nqn.clone(),
        serial: active.uuid.replace('-', "").chars().take(20).collect(),
        model: "Ocelot file".to_owned(),
        uuid: active.uuid.clone(),
        bdev: spec.bdev_name(),
        listener,
    };
    world.expose(&subsystem).await.map(Some)
}

/// Removes the socket that a dead daemon left in a folder; one that is served is not ours to take.
fn clear_socket(folder: &str) -> Result<()> {
    let path = Path::new(folder).join("cntrl");
    let failed = |what: &str, error: std::io::Error| {
        let number = error.raw_os_error().unwrap_or(errno::EIO);
        Failure::new(number, format!("{what} {}: {error}", path.display()))
    };
    match std::fs::symlink_metadata(&path) {
        Ok(found) if found.file_type().is_socket() => {
            if UnixStream::connect(&path).is_ok() {
                return Err(Failure::new(
                    errno::EBUSY,
                    format!("{} is served already", path.display()),
                ));
            }
            std::fs::remove_file(&path).map_err(|error| failed("removing the old", error))
        }
        Ok(_) => Err(Failure::new(
            errno::EEXIST,
            format!("{} is no socket", path.display()),
        )),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("looking at", error)),
    }
}

async fn unmake(active: Active) -> Result<()> {
    let mut result = Ok(());
    if let Some(exposed) = active.exposed {
        result = exposed
            .conceal()
            .await
            .map_err(|error| Failure::new(errno::EIO, error.to_string()));
    }
    // Also when that failed: the device tells its users that it goes.
    active.device.stop().await;
    result.and(active.file.close().await)
}

impl Active {
    fn record(&self) -> ExportRecord {
        ExportRecord {
            spec: self.spec.clone(),
            inode: self.inode,
            uuid: self.uuid.clone(),
            block_size: self.device.block_size(),
            size_bytes: self.device.size_bytes(),
            figures: self.device.figures(),
            failure: None,
        }
    }
}

/// A name made of a file's: its last part, as far as names go.
fn name_of_path(path: &[u8]) -> Result<String> {
    let last = path
        .rsplit(|&byte| byte == b'/')
        .find(|part| !part.is_empty());
    let name = String::from_utf8_lossy(last.unwrap_or_default()).into_owned();
    check_label("name", &name).map_err(|_| {
        Failure::field(
            "name",
            "must be given: the file's own name cannot be one (letters, digits, '.', '_', '-')",
        )
    })?;
    Ok(name)
}
