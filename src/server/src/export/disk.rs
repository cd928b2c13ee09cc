//! A file as the disk behind an exported device, on its volume's reactor. Only words are changed on the way: locks,
//! holes and clones are the file system's.
//!
//! The device has a fixed size until the file has another one. A file that grows is noticed soon, and hosts are told. One
//! that shrinks leaves the device as it is, for hosts take it badly: what is past the file's end fails. No request ever
//! makes the file longer: it is opened with [`OpenFlags::fixed_size`](crate::door::OpenFlags).

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use fs::volume::{FileHandle, RangeMode, Volume};
use proto::errors::errno;
use runtime::{Buffer, DeviceErrorKind};
use spdk::{Disk, Export, ExportCounters, ExportError, ExportFigures, ExportOptions};
use tokio::sync::oneshot;

use crate::failure::{Failure, Result};
use crate::limits;

/// How a file is to be exported.
#[derive(Debug, Clone)]
pub struct DeviceOptions {
    pub name: String,
    pub block_size: u32,
    /// The file's. What is left after the last whole block is not reached.
    pub size_bytes: u64,
    pub read_only: bool,
    /// The volume can punch and zero ranges.
    pub ranges: bool,
    pub foreign_memory: bool,
}

/// A file's device, from any thread. It stays until [`FileExport::stop`], or until this is dropped.
#[derive(Debug)]
pub struct FileExport {
    block_size: u32,
    size_bytes: Arc<AtomicU64>,
    counters: Arc<ExportCounters>,
    /// Sending says stop; the keeper answers.
    stop: oneshot::Sender<oneshot::Sender<()>>,
}

impl FileExport {
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    pub fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Relaxed)
    }

    pub fn figures(&self) -> ExportFigures {
        self.counters.figures()
    }

    /// Takes the device away; ready when no request is under way any more.
    pub async fn stop(self) {
        let (done, when_done) = oneshot::channel();
        if self.stop.send(done).is_ok() {
            // An error is the reactor's end.
            let _ = when_done.await;
        }
    }
}

/// 4096 or 512, as the size allows.
pub fn block_size(size_bytes: u64, wanted: u32) -> Result<u32> {
    let fits = |block: u32| size_bytes > 0 && size_bytes.is_multiple_of(u64::from(block));
    let chosen = match wanted {
        0 if fits(4096) => 4096,
        0 => 512,
        wanted => wanted,
    };
    if fits(chosen) {
        return Ok(chosen);
    }
    Err(Failure::new(
        errno::EINVAL,
        format!("the file's {size_bytes} bytes are no whole blocks of {chosen} bytes"),
    ))
}

/// The same for the same file always: the volume's identity, with the inode's mixed in.
pub fn uuid_of(volume: &str, inode: u64, generation: u32) -> String {
    let digits: String = volume.chars().filter(char::is_ascii_hexdigit).collect();
    let volume = u128::from_str_radix(&digits, 16).unwrap_or_default();
    let mut bytes = volume.to_be_bytes();
    let own = inode
        .to_le_bytes()
        .into_iter()
        .chain(generation.to_le_bytes());
    for (byte, mixed) in bytes.iter_mut().zip(own) {
        *byte ^= mixed;
    }
    // Version 8, made by its own rule; the variant of RFC 9562.
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let (a, b, c, d, e) = (
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    );
    format!("{a}-{b}-{c}-{d}-{e}")
}

/// An open file as a disk.
pub struct FileDisk {
    volume: Volume,
    file: FileHandle,
    complained: Cell<Option<Instant>>,
}

impl FileDisk {
    /// Exports an open file from this reactor. It stays open as long as the device is there.
    pub async fn export(
        volume: Volume,
        file: FileHandle,
        options: DeviceOptions,
    ) -> Result<FileExport> {
        let disk = FileDisk {
            volume: volume.clone(),
            file: file.clone(),
            complained: Cell::new(None),
        };
        let block_count = options.size_bytes / u64::from(options.block_size);
        let export = Export::register(
            disk,
            ExportOptions {
                name: options.name,
                block_size: options.block_size,
                block_count,
                read_only: options.read_only,
                volatile_cache: true,
                supports_unmap: options.ranges,
                supports_write_zeroes: options.ranges,
                foreign_memory: options.foreign_memory,
            },
        )
        .await
        .map_err(export_failure)?;
        let size_bytes = block_count * u64::from(options.block_size);
        let size_bytes = Arc::new(AtomicU64::new(size_bytes));
        let counters = export.counters().clone();
        let (stop, stopped) = oneshot::channel();
        let keeper = Keeper {
            export,
            volume,
            file,
            size_bytes: size_bytes.clone(),
        };
        spdk::spawn(keeper.keep(stopped));
        Ok(FileExport {
            block_size: options.block_size,
            size_bytes,
            counters,
            stop,
        })
    }

    fn kind_of(&self, error: &fs::Error) -> DeviceErrorKind {
        let kind = match error {
            fs::Error::Device(device) => match device.kind {
                // Ours to get right, and no business of the host's.
                DeviceErrorKind::OutOfRange | DeviceErrorKind::Unaligned => DeviceErrorKind::Failed,
                kind => kind,
            },
            fs::Error::ReadOnly(_) => DeviceErrorKind::ReadOnly,
            fs::Error::NoSpace(_) => DeviceErrorKind::NoSpace,
            fs::Error::Range(_) | fs::Error::TooBig(_) => DeviceErrorKind::OutOfRange,
            fs::Error::NotSupported(_) => DeviceErrorKind::Unsupported,
            _ => DeviceErrorKind::Failed,
        };
        let now = Instant::now();
        let quiet = self
            .complained
            .get()
            .is_some_and(|last| now.duration_since(last) < limits::EXPORT_COMPLAINTS);
        if !quiet {
            self.complained.set(Some(now));
            tracing::warn!(inode = self.file.ino().0, %error, "a request to an exported file failed");
        }
        kind
    }
}

impl Disk for FileDisk {
    async fn read(&self, offset: u64, buffer: Buffer) -> (Buffer, Result<(), DeviceErrorKind>) {
        let len = buffer.len();
        let (buffer, result) = self.volume.read_buffer(&self.file, offset, buffer).await;
        match result {
            Ok(bytes) if bytes == len as u64 => (buffer, Ok(())),
            Ok(bytes) => self.read_on(offset, buffer, bytes).await,
            Err(error) => (buffer, Err(self.kind_of(&error))),
        }
    }

    async fn write(&self, offset: u64, buffer: Buffer) -> (Buffer, Result<(), DeviceErrorKind>) {
        let len = buffer.len() as u64;
        let (buffer, written) = self.volume.write_buffer(&self.file, offset, buffer).await;
        let result = match written.error {
            None if written.bytes == len => Ok(()),
            None => Err(DeviceErrorKind::Failed),
            Some(error) => Err(self.kind_of(&error)),
        };
        (buffer, result)
    }

    async fn flush(&self) -> Result<(), DeviceErrorKind> {
        let result = self.volume.fsync(&self.file, true).await;
        result.map_err(|error| self.kind_of(&error))
    }

    async fn unmap(&self, offset: u64, len: u64) -> Result<(), DeviceErrorKind> {
        self.change(RangeMode::PunchHole, offset, len).await
    }

    async fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), DeviceErrorKind> {
        self.change(RangeMode::Zero { keep_size: true }, offset, len)
            .await
    }
}

impl FileDisk {
    /// A long read may come in parts; one past the end of a file that has become shorter fails.
    async fn read_on(
        &self,
        offset: u64,
        mut buffer: Buffer,
        first: u64,
    ) -> (Buffer, Result<(), DeviceErrorKind>) {
        let len = buffer.len();
        let mut done = first as usize;
        while done < len {
            buffer.set_window(done, len - done);
            let at = offset + done as u64;
            let (back, result) = self.volume.read_buffer(&self.file, at, buffer).await;
            buffer = back;
            match result {
                Ok(0) => return (buffer, Err(DeviceErrorKind::OutOfRange)),
                Ok(bytes) => done += bytes as usize,
                Err(error) => return (buffer, Err(self.kind_of(&error))),
            }
        }
        (buffer, Ok(()))
    }

    async fn change(&self, mode: RangeMode, offset: u64, len: u64) -> Result<(), DeviceErrorKind> {
        let result = self.volume.fallocate(&self.file, mode, offset, len).await;
        result.map_err(|error| self.kind_of(&error))
    }
}

/// Has the device on its reactor, and looks after its size.
struct Keeper {
    export: Export,
    volume: Volume,
    file: FileHandle,
    size_bytes: Arc<AtomicU64>,
}

impl Keeper {
    async fn keep(mut self, mut stopped: oneshot::Receiver<oneshot::Sender<()>>) {
        loop {
            tokio::select! {
                biased;
                stop = &mut stopped => {
                    self.export.unregister().await;
                    drop((self.volume, self.file));
                    if let Ok(done) = stop {
                        let _ = done.send(());
                    }
                    return;
                }
                () = spdk::sleep(limits::EXPORT_SIZE_LOOKS) => self.look_at_size().await,
            }
        }
    }

    async fn look_at_size(&mut self) {
        // A volume that is going away has other worries.
        let Ok(attr) = self.volume.fstat(&self.file).await else {
            return;
        };
        let block = u64::from(self.export.options().block_size);
        let (was, now) = (self.export.options().block_count, attr.size_bytes / block);
        if now <= was {
            return;
        }
        match self.export.resize(now).await {
            Ok(()) => {
                self.size_bytes.store(now * block, Ordering::Relaxed);
                tracing::info!(
                    export = self.export.name(),
                    size_bytes = now * block,
                    "exported file has grown"
                );
            }
            Err(error) => tracing::warn!(%error, "telling the new size of an exported file"),
        }
    }
}

fn export_failure(error: ExportError) -> Failure {
    let number = match &error {
        ExportError::Exists(_) => errno::EEXIST,
        ExportError::Invalid { .. } => errno::EINVAL,
        ExportError::InUse { .. } => errno::EBUSY,
        ExportError::Failed { errno, .. } => *errno,
        ExportError::NotOnReactor => errno::EOPNOTSUPP,
        ExportError::Reactor(_) => errno::ESHUTDOWN,
    };
    Failure::new(number, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_fit_the_size() {
        assert_eq!(block_size(1 << 20, 0).unwrap(), 4096);
        assert_eq!(block_size(4096 + 512, 0).unwrap(), 512);
        assert_eq!(block_size(1 << 20, 512).unwrap(), 512);
        for (size, wanted) in [(0, 0), (513, 0), (4096 + 512, 4096), (0, 512)] {
            assert_eq!(block_size(size, wanted).unwrap_err().errno(), errno::EINVAL);
        }
    }

    #[test]
    fn each_file_has_its_own_identity() {
        let volume = "0123456789ABCDEF0123456789ABCDEF";
        let one = uuid_of(volume, 1, 1);
        assert_eq!(one, uuid_of(volume, 1, 1));
        assert_eq!(one.len(), 36);
        assert_eq!(
            one.split('-').map(str::len).collect::<Vec<_>>(),
            [8, 4, 4, 4, 12]
        );
        for other in [
            uuid_of(volume, 2, 1),
            uuid_of(volume, 1, 2),
            uuid_of("FF", 1, 1),
        ] {
            assert_ne!(one, other);
        }
    }
}
