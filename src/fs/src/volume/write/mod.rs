//! Writing file data: the request, and the attempts it takes.
//!
//! ```text
//!  Iocb ── plan under the inode's lock ──► in place    shared lock, range lock; all pieces at once
//!   ▲                                  ├─► exclusive   step by step: holes, unwritten, shared, inline
//!   │                                  └─► cached      into pages (buffered), written back later
//!   └────────── bytes in ◄── guards dropped ◄── run
//! ```
//! A direct request that lies wholly in written clusters of our own needs nobody out of its way but
//! those who write the same ragged block. Everything else has the inode to itself, to the request's
//! last byte. Which it is is planned from what the inode says now, under the lock that keeps it so.
//! Direct and buffered users of a file see each other's bytes: who goes past the cache first brings
//! what is dirty there to the device, and drops what is clean afterwards.

mod back;
mod cached;
mod counters;
mod exclusive;
mod in_place;
mod iocb;
mod payload;
mod step;

use bytes::Bytes;
use runtime::{BlockDeviceExt, Buffer};

use super::{FileHandle, FileKind, Volume, Written, kind_of};
use crate::error::{Error, Result};
use crate::pages::pages_of;
use in_place::Direct;
use iocb::{Iocb, Outcome};

pub(in crate::volume) use counters::WriteCounters;
pub use counters::{Counters, WriteCounts};
pub(super) use in_place::Way;
pub use iocb::{Attempted, Fallback, LockLevel, Path};
pub(in crate::volume) use payload::Payload;
pub(in crate::volume) use step::By;

impl Volume {
    /// Writes `data` at `position`, or at the end of the file with an appending handle. What is in
    /// is in, also when an error ends it early.
    pub async fn write(&self, file: &FileHandle, position: u64, data: Bytes) -> Written {
        self.write_slice(file, position, &data, false).await
    }

    /// As [`Volume::write`], and tells what attempts it took.
    pub async fn write_explained(&self, file: &FileHandle, position: u64, data: Bytes) -> Written {
        self.write_slice(file, position, &data, true).await
    }

    /// As [`Volume::write`], from memory of the device, which comes back: whole blocks over one
    /// written extent go to the device without a copy.
    pub async fn write_buffer(
        &self,
        file: &FileHandle,
        position: u64,
        buffer: Buffer,
    ) -> (Buffer, Written) {
        let len = buffer.len() as u64;
        let held = match self.direct_now(file, Way::In, position, len) {
            Some(held) => Ok(Some(held)),
            // In a box, as all that most requests do not come by: their own future stays small.
            None => Box::pin(self.direct(file, Way::In, position, len)).await,
        };
        let (buffer, bytes, result) = match held {
            Ok(Some(held)) => {
                let (buffer, result) = self.core().device.write(held.at, buffer).await;
                self.drop_clean(file.inode(), pages_of(position, position + len));
                match result {
                    Ok(()) => {
                        self.0
                            .write_counters
                            .attempt(&self.in_place(file, len as usize, false));
                        let settled = self.settle_direct(held, file, position + len).await;
                        (buffer, len, settled)
                    }
                    Err(error) => (buffer, 0, Err(error.into())),
                }
            }
            Ok(None) => {
                let written = Box::pin(self.write_slice(file, position, &buffer, false)).await;
                return (buffer, written);
            }
            Err(error) => (buffer, 0, Err(error)),
        };
        let error = self.watch(result).err();
        let written = Written {
            bytes,
            position,
            error,
            attempts: Vec::new(),
        };
        (buffer, written)
    }

    /// A direct write's bytes are on the device: what is left to do.
    async fn settle_direct(&self, held: Direct<'_>, file: &FileHandle, end: u64) -> Result<()> {
        file.inode().data_written();
        if !self.attributes_hold(file.inode(), end) {
            Box::pin(self.finish_overwrite(file.inode(), end)).await?;
        }
        drop(held);
        if file.flags().dsync {
            Box::pin(self.finish_write(file)).await?;
        }
        Ok(())
    }

    async fn write_slice(
        &self,
        file: &FileHandle,
        position: u64,
        data: &[u8],
        explain: bool,
    ) -> Written {
        let mut iocb = Iocb::new(file, position, data, explain);
        let result = async {
            let _gate = self.enter_writing().await?;
            self.check_write(file)?;
            self.run(&mut iocb).await?;
            let commits = self.finish_write(file).await?;
            iocb.waited(commits);
            Ok(())
        }
        .await;
        self.0.write_counters.request(&result);
        let error = self.watch(result).err();
        let (bytes, position, attempts) = iocb.outcome();
        Written {
            bytes,
            position,
            error,
            attempts,
        }
    }

    /// Plans and runs until nothing is left.
    async fn run(&self, iocb: &mut Iocb<'_>) -> Result<()> {
        if iocb.rest().is_empty() {
            return Ok(());
        }
        let flags = iocb.file.flags();
        // With O_DSYNC there is nothing to wait in memory for, and the answer tells exactly what is
        // in.
        if !flags.direct && !flags.dsync {
            return self.write_buffered(iocb).await;
        }
        if self.write_in_place(iocb).await? {
            return Ok(());
        }
        self.write_exclusive(iocb).await
    }

    /// An attempt has ended: for the request, and for the volume's figures.
    fn advance(&self, iocb: &mut Iocb<'_>, outcome: Outcome) {
        self.0.write_counters.attempt(&outcome);
        iocb.advance(outcome);
    }

    fn check_write(&self, file: &FileHandle) -> Result<()> {
        if !file.flags().write {
            return Err(Error::Invalid("the handle is not open for writing".into()));
        }
        match kind_of(file.inode()) {
            FileKind::Regular => Ok(()),
            _ => Err(Error::IsDirectory(file.inode().nr())),
        }
    }

    /// With O_DSYNC the answer waits. Tells how many commits it waited for.
    async fn finish_write(&self, file: &FileHandle) -> Result<u32> {
        if !file.flags().dsync {
            return Ok(0);
        }
        let waited = self.fsync_inode(file.inode(), true).await?;
        self.0.write_counters.waited(waited);
        Ok(waited)
    }
}
