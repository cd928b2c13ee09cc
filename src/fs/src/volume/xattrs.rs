//! Extended attributes, through the door.

use super::{Ino, Volume, acl, kind_of};
use crate::error::{Error, Result};
use crate::limits;
use crate::xattr::{self, XattrMode};

impl Volume {
    /// The full names (`user.x`) and value sizes, in no particular order.
    pub async fn listxattr(&self, ino: Ino) -> Result<Vec<(Vec<u8>, u64)>> {
        let _gate = self.enter().await?;
        let result = async {
            let inode = self.client_inode(ino).await?;
            let _shared = inode.shared().await?;
            let mut list = xattr::list(self.core(), &inode).await?;
            for (name, size) in &mut list {
                *size = acl::shown_len(name, *size);
            }
            Ok(list)
        }
        .await;
        self.watch(result)
    }

    pub async fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        let _gate = self.enter().await?;
        let result = async {
            let inode = self.client_inode(ino).await?;
            let _shared = inode.shared().await?;
            let stored = xattr::get(self.core(), &inode, name)
                .await?
                .ok_or_else(|| no_attribute(name))?;
            if acl::is_acl(name) {
                acl::show(&stored)
            } else {
                Ok(stored)
            }
        }
        .await;
        self.watch(result)
    }

    /// Sets an attribute. A failed set leaves the old value.
    pub async fn setxattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
    ) -> Result<()> {
        if value.len() > limits::XATTR_VALUE_MAX {
            return Err(Error::TooBig(format!(
                "attribute value of {} bytes",
                value.len()
            )));
        }
        let _gate = self.enter_writing().await?;
        let result = async {
            let inode = self.client_inode(ino).await?;
            let _exclusive = inode.exclusive().await?;
            if name.starts_with(b"user.")
                && !matches!(
                    kind_of(&inode),
                    super::FileKind::Regular | super::FileKind::Directory
                )
            {
                return Err(Error::NotPermitted(
                    "user.* attributes are for files and directories".into(),
                ));
            }
            if acl::is_acl(name) {
                let stored = acl::store(value)?;
                return xattr::set(self.core(), &inode, name, &stored, mode).await;
            }
            xattr::set(self.core(), &inode, name, value, mode).await
        }
        .await;
        self.watch(result)
    }

    pub async fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        let _gate = self.enter_writing().await?;
        let result = async {
            let inode = self.client_inode(ino).await?;
            let _exclusive = inode.exclusive().await?;
            xattr::remove(self.core(), &inode, name).await
        }
        .await;
        self.watch(result)
    }
}

fn no_attribute(name: &[u8]) -> Error {
    Error::NoAttribute(String::from_utf8_lossy(name).into_owned())
}
