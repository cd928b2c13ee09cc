//! What an export is asked to be: from a request, or from an `[[export]]` table of the configuration.

use std::net::SocketAddr;

use bytes::Bytes;
use serde::Deserialize;

use super::name_of_path;
use crate::failure::{Failure, Result};
use crate::node::check_label;

/// To whom a file is offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExportAs {
    /// To the node's own SPDK.
    Bdev,
    NvmeTcp,
    VfioUser,
}

/// A file, and how it is to be offered.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportSpec {
    /// Empty: the only one.
    #[serde(default)]
    pub volume: String,
    #[serde(deserialize_with = "path_of_text")]
    pub path: Bytes,
    /// The directory that the path starts from; the volume's root if not given.
    #[serde(skip)]
    pub base: Option<u64>,
    /// Of `base`; 0: any.
    #[serde(skip)]
    pub generation: u32,
    #[serde(rename = "as")]
    pub kind: ExportAs,
    /// Empty: made of the file's name.
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub nqn: String,
    #[serde(default)]
    pub address: String,
    #[serde(default)]
    pub read_only: bool,
    /// 0: as the file's size allows.
    #[serde(default)]
    pub block_size: u32,
}

fn path_of_text<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
    Ok(Bytes::from(String::deserialize(from)?))
}

/// NVMe's own bound on a qualified name.
const NQN_MAX: usize = 223;
/// Room for a socket's path, with `/cntrl` behind the folder.
const FOLDER_MAX: usize = 100;

impl ExportSpec {
    /// Fills in what is left to us.
    pub fn complete(&mut self) -> Result<()> {
        if self.name.is_empty() {
            self.name = name_of_path(&self.path)?;
        }
        match self.kind {
            ExportAs::Bdev => return Ok(()),
            ExportAs::NvmeTcp if self.address.is_empty() => {
                self.address = "127.0.0.1:4420".into();
            }
            ExportAs::VfioUser if self.address.is_empty() => {
                self.address = format!("/run/ocelot/vfio-user/{}", self.name);
            }
            ExportAs::NvmeTcp | ExportAs::VfioUser => {}
        }
        if self.nqn.is_empty() {
            self.nqn = format!("nqn.2026-01.io.ocelot:{}", self.name);
        }
        Ok(())
    }

    /// Checks what can be checked without the file. `prefix` is the path of the configuration's table, or empty.
    pub fn check(&self, prefix: &str) -> Result<()> {
        let field = |name: &str| match prefix {
            "" => name.to_owned(),
            prefix => format!("{prefix}.{name}"),
        };
        let bad = |name: &str, message: String| Err(Failure::field(&field(name), message));
        if !self.name.is_empty() {
            check_label(&field("name"), &self.name)?;
        }
        if self.path.is_empty() {
            return bad("path", "must name a file".into());
        }
        if self.base.is_none() && !self.path.starts_with(b"/") {
            return bad(
                "path",
                format!("{:?} does not start with '/'", self.path_text()),
            );
        }
        if !matches!(self.block_size, 0 | 512 | 4096) {
            return bad(
                "block_size",
                format!("{} is not 512 or 4096", self.block_size),
            );
        }
        match self.kind {
            ExportAs::Bdev => {
                if !self.nqn.is_empty() {
                    return bad("nqn", "means nothing for a bdev".into());
                }
                if !self.address.is_empty() {
                    return bad("address", "means nothing for a bdev".into());
                }
            }
            ExportAs::NvmeTcp => {
                if !self.address.is_empty() {
                    self.tcp_address(prefix)?;
                }
            }
            ExportAs::VfioUser => {
                let folder = &self.address;
                let good = folder.starts_with('/') && !folder.contains('\0');
                if !folder.is_empty() && (!good || folder.len() > FOLDER_MAX) {
                    return bad(
                        "address",
                        format!("{folder:?} is not an absolute path of at most {FOLDER_MAX} bytes"),
                    );
                }
            }
        }
        let nqn_good =
            self.nqn.starts_with("nqn.") && self.nqn.bytes().all(|b| b.is_ascii_graphic());
        if !self.nqn.is_empty() && (!nqn_good || self.nqn.len() > NQN_MAX) {
            return bad(
                "nqn",
                format!(
                    "{:?} is not an NVMe qualified name (nqn.YYYY-MM.DOMAIN:NAME)",
                    self.nqn
                ),
            );
        }
        Ok(())
    }

    /// Where NVMe/TCP listens.
    pub fn tcp_address(&self, prefix: &str) -> Result<SocketAddr> {
        let field = match prefix {
            "" => "address".to_owned(),
            prefix => format!("{prefix}.address"),
        };
        match self.address.parse::<SocketAddr>() {
            Ok(address) if address.port() != 0 => Ok(address),
            _ => Err(Failure::field(
                &field,
                format!(
                    "{:?} is not an address and port, like 127.0.0.1:4420",
                    self.address
                ),
            )),
        }
    }

    /// What the block device is called: for NVMe hosts it is our own affair, and takes no name from others.
    pub fn bdev_name(&self) -> String {
        match self.kind {
            ExportAs::Bdev => self.name.clone(),
            ExportAs::NvmeTcp | ExportAs::VfioUser => format!("export.{}", self.name),
        }
    }

    /// Hosts elsewhere could reach it.
    pub fn is_remote(&self) -> bool {
        self.kind == ExportAs::NvmeTcp
            && self
                .tcp_address("")
                .is_ok_and(|address| !address.ip().to_canonical().is_loopback())
    }

    pub fn path_text(&self) -> String {
        self.path.escape_ascii().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(kind: ExportAs) -> ExportSpec {
        ExportSpec {
            volume: String::new(),
            path: Bytes::from_static(b"/images/vm0.img"),
            base: None,
            generation: 0,
            kind,
            name: String::new(),
            nqn: String::new(),
            address: String::new(),
            read_only: false,
            block_size: 0,
        }
    }

    #[test]
    fn what_is_left_out_is_filled_in() {
        let mut tcp = spec(ExportAs::NvmeTcp);
        tcp.complete().unwrap();
        assert_eq!(tcp.name, "vm0.img");
        assert_eq!(tcp.nqn, "nqn.2026-01.io.ocelot:vm0.img");
        assert_eq!(tcp.address, "127.0.0.1:4420");
        assert!(!tcp.is_remote());
        tcp.check("").unwrap();
        let mut bdev = spec(ExportAs::Bdev);
        bdev.complete().unwrap();
        bdev.check("").unwrap();
        assert!(bdev.nqn.is_empty() && bdev.address.is_empty());
        let mut odd = spec(ExportAs::Bdev);
        odd.path = Bytes::from_static(b"/a b");
        assert_eq!(odd.complete().unwrap_err().into_detail().field, "name");
    }

    #[test]
    fn mistakes_are_named() {
        let field = |change: &dyn Fn(&mut ExportSpec), kind| {
            let mut spec = spec(kind);
            spec.complete().unwrap();
            change(&mut spec);
            spec.check("export[0]").unwrap_err().into_detail().field
        };
        use ExportAs::{Bdev, NvmeTcp, VfioUser};
        assert_eq!(field(&|s| s.name = "a/b".into(), Bdev), "export[0].name");
        assert_eq!(
            field(&|s| s.path = Bytes::from_static(b"x"), Bdev),
            "export[0].path"
        );
        assert_eq!(field(&|s| s.nqn = "nqn.x".into(), Bdev), "export[0].nqn");
        assert_eq!(field(&|s| s.block_size = 520, Bdev), "export[0].block_size");
        for address in ["127.0.0.1", "127.0.0.1:0", "localhost:4420", "[::1]"] {
            let bad = field(&|s| s.address = address.into(), NvmeTcp);
            assert_eq!(bad, "export[0].address", "{address}");
        }
        assert_eq!(field(&|s| s.nqn = "iqn.x".into(), NvmeTcp), "export[0].nqn");
        assert_eq!(
            field(&|s| s.nqn = format!("nqn.{:300}", 1), NvmeTcp),
            "export[0].nqn"
        );
        assert_eq!(
            field(&|s| s.address = "run/x".into(), VfioUser),
            "export[0].address"
        );
        let mut remote = spec(NvmeTcp);
        remote.address = "0.0.0.0:4420".into();
        assert!(remote.is_remote());
    }
}
