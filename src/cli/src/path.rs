//! Paths on a volume: `VOLUME:/path`, or `/path`. Bytes, not text.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use bytes::Bytes;
use proto::v1::Location;

/// A path on a volume. An empty volume means the only one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    pub volume: String,
    /// Starts with '/'.
    pub path: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a path on a volume (VOLUME:/path, or /path)")]
pub struct NotRemote(OsString);

impl Remote {
    pub fn parse(text: &OsStr) -> Result<Remote, NotRemote> {
        let bytes = text.as_bytes();
        let refused = || NotRemote(text.to_owned());
        if bytes.contains(&0) {
            return Err(refused());
        }
        if bytes.starts_with(b"/") {
            return Ok(Remote {
                volume: String::new(),
                path: bytes.to_vec(),
            });
        }
        let colon = bytes
            .iter()
            .position(|&byte| byte == b':')
            .ok_or_else(refused)?;
        let (volume, path) = (&bytes[..colon], &bytes[colon + 1..]);
        let volume = std::str::from_utf8(volume).map_err(|_| refused())?;
        match path {
            b"" => Ok(Remote {
                volume: volume.to_owned(),
                path: b"/".to_vec(),
            }),
            [b'/', ..] => Ok(Remote {
                volume: volume.to_owned(),
                path: path.to_vec(),
            }),
            _ => Err(refused()),
        }
    }

    pub fn root(volume: &str) -> Remote {
        Remote {
            volume: volume.to_owned(),
            path: b"/".to_vec(),
        }
    }

    pub fn location(&self) -> Option<Location> {
        Some(Location {
            volume: self.volume.clone(),
            path: Bytes::copy_from_slice(&self.path),
            ..Location::default()
        })
    }

    /// The path of an entry of this directory.
    pub fn join(&self, name: &[u8]) -> Remote {
        let mut path = self.path.clone();
        if !path.ends_with(b"/") {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        Remote {
            volume: self.volume.clone(),
            path,
        }
    }

    /// The last name; `None` for the root.
    pub fn name(&self) -> Option<&[u8]> {
        let end = self.path.iter().rposition(|&byte| byte != b'/')? + 1;
        let start = self.path[..end]
            .iter()
            .rposition(|&byte| byte == b'/')
            .map_or(0, |at| at + 1);
        Some(&self.path[start..end])
    }

    pub fn ends_with_slash(&self) -> bool {
        self.path.ends_with(b"/")
    }

    /// Every directory on the way to it and itself, from the top.
    pub fn prefixes(&self) -> Vec<Remote> {
        let mut prefixes = Vec::new();
        for (at, _) in self
            .path
            .iter()
            .enumerate()
            .filter(|&(at, &byte)| byte == b'/' && at > 0)
        {
            if self.path[at - 1] != b'/' {
                let path = self.path[..at].to_vec();
                prefixes.push(Remote {
                    volume: self.volume.clone(),
                    path,
                });
            }
        }
        if !self.ends_with_slash() {
            prefixes.push(self.clone());
        }
        prefixes
    }
}

impl std::fmt::Display for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.volume.is_empty() {
            write!(f, "{}:", self.volume)?;
        }
        f.write_str(&String::from_utf8_lossy(&self.path))
    }
}

impl From<Remote> for OsString {
    fn from(remote: Remote) -> OsString {
        let mut bytes = Vec::new();
        if !remote.volume.is_empty() {
            bytes.extend_from_slice(remote.volume.as_bytes());
            bytes.push(b':');
        }
        bytes.extend_from_slice(&remote.path);
        OsString::from_vec(bytes)
    }
}

/// For clap.
impl clap::builder::ValueParserFactory for Remote {
    type Parser = RemoteParser;
    fn value_parser() -> RemoteParser {
        RemoteParser
    }
}

#[derive(Clone)]
pub struct RemoteParser;

impl clap::builder::TypedValueParser for RemoteParser {
    type Value = Remote;

    fn parse_ref(
        &self,
        command: &clap::Command,
        _: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<Remote, clap::Error> {
        Remote::parse(value).map_err(|error| {
            clap::Error::raw(
                clap::error::ErrorKind::ValueValidation,
                format!("{error}\n"),
            )
            .with_cmd(command)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<(String, String)> {
        let remote = Remote::parse(OsStr::new(text)).ok()?;
        Some((remote.volume, String::from_utf8(remote.path).unwrap()))
    }

    #[test]
    fn with_and_without_a_volume() {
        assert_eq!(parse("/a/b"), Some(("".into(), "/a/b".into())));
        assert_eq!(parse("data:/a"), Some(("data".into(), "/a".into())));
        assert_eq!(parse("data:"), Some(("data".into(), "/".into())));
        assert_eq!(parse(":/a"), Some(("".into(), "/a".into())));
        // A colon in a name is no volume.
        assert_eq!(parse("/a:b"), Some(("".into(), "/a:b".into())));
        assert_eq!(parse("a/b"), None);
        assert_eq!(parse("data:a"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn bytes_survive() {
        let name = OsStr::from_bytes(b"/\xff\xfe");
        let remote = Remote::parse(name).unwrap();
        assert_eq!(remote.path, b"/\xff\xfe");
        assert_eq!(OsString::from(remote), name);
    }

    #[test]
    fn names_and_prefixes() {
        let remote = Remote::parse(OsStr::new("v:/a//b/c/")).unwrap();
        assert_eq!(remote.name(), Some(&b"c"[..]));
        let prefixes: Vec<_> = remote.prefixes().iter().map(Remote::to_string).collect();
        assert_eq!(prefixes, ["v:/a", "v:/a//b", "v:/a//b/c"]);
        assert_eq!(Remote::root("v").name(), None);
        assert!(Remote::root("v").prefixes().is_empty());
        assert_eq!(Remote::root("v").join(b"x").path, b"/x");
    }
}
