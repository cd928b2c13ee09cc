//! Files without holes, for volumes that have no sparse files.
//!
//! There a file's clusters reach as far as its size, and the kernel and fsck.ocfs2 hold the dinode
//! to it. So whoever moves the end of a file away from its last byte fills what is between with
//! zeroes first; the size grows with them. If we crash in between, the file is longer by zeroes.

use ondisk::feature::Incompat;

use super::Volume;
use super::write::{By, Payload};
use crate::error::Result;
use crate::inode::InodeRef;
use crate::limits;

impl Volume {
    /// On a volume without sparse files: gives the file zeroes from its size up to `to`. An error
    /// leaves the size as it was. The caller has the inode exclusively.
    pub(super) async fn fill_to(&self, inode: &InodeRef, to: u64) -> Result<()> {
        if self.core().geometry.has(Incompat::SPARSE_ALLOC) {
            return Ok(());
        }
        let before = inode.dinode().i_size.get();
        let zeroes = vec![0u8; limits::WRITE_STEP as usize];
        let mut at = before;
        while at < to {
            let len = (to - at).min(limits::WRITE_STEP) as usize;
            let data = Payload::Bytes(&zeroes[..len]);
            match self.write_step(inode, at, data, By::Request).await {
                Ok((_, step)) => at += step,
                Err(error) => {
                    self.take_back(inode, before).await?;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// The file ends at `size` again, after it was extended for something that failed.
    pub(super) async fn take_back(&self, inode: &InodeRef, size: u64) -> Result<()> {
        if inode.dinode().i_size.get() > size {
            self.shrink(inode, size).await?;
        }
        Ok(())
    }
}
