//! What can be seen of a part of a volume, to compare before and after.
#![allow(clippy::unwrap_used, reason = "a test fails where it panics")]

use std::collections::BTreeMap;

use fs::volume::{FileKind, Ino, Volume};

use super::{get, names};

/// What can be seen of an inode, but for bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub kind: FileKind,
    pub permissions: u16,
    pub links: u32,
    pub size: u64,
    pub target: Vec<u8>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub ino: Ino,
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let xattrs: Vec<_> = self
            .xattrs
            .iter()
            .map(|(name, value)| (name.len(), value.len()))
            .collect();
        write!(
            f,
            "({:?} {:o} links {} size {} target {} xattrs {xattrs:?} inode {})",
            self.kind,
            self.permissions,
            self.links,
            self.size,
            self.target.len(),
            self.ino.0
        )
    }
}

/// All that can be seen below a directory: by path, and file bytes by inode number.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct View {
    pub paths: BTreeMap<String, Seen>,
    pub bytes: BTreeMap<Ino, Vec<u8>>,
}

impl View {
    /// The directory `home` (empty: the root) and everything below it but lost+found.
    pub async fn of(volume: &Volume, home: &str) -> fs::Result<View> {
        let mut view = View::default();
        let top = volume.resolve(volume.root(), home.as_bytes(), false).await;
        let mut todo = vec![(home.to_owned(), top?.ino)];
        while let Some((dir, ino)) = todo.pop() {
            for name in names(volume, ino).await? {
                let path = format!("{dir}/{}", String::from_utf8_lossy(&name));
                if path == "/lost+found" {
                    continue;
                }
                let attr = volume.lookup(ino, &name).await?;
                let mut seen = Seen {
                    kind: attr.kind,
                    permissions: attr.permissions,
                    links: attr.links,
                    size: 0,
                    target: Vec::new(),
                    xattrs: BTreeMap::new(),
                    ino: attr.ino,
                };
                match attr.kind {
                    FileKind::Directory => todo.push((path.clone(), attr.ino)),
                    FileKind::Symlink => seen.target = volume.readlink(attr.ino).await?,
                    _ => {
                        seen.size = attr.size_bytes;
                        view.bytes.insert(attr.ino, get(volume, attr.ino).await?);
                    }
                }
                for (name, _) in volume.listxattr(attr.ino).await? {
                    let value = volume.getxattr(attr.ino, &name).await?;
                    seen.xattrs.insert(name, value);
                }
                view.paths.insert(path, seen);
            }
        }
        Ok(view)
    }

    /// The part of it below a directory.
    pub fn below(&self, home: &str) -> View {
        let inside = |path: &str| {
            path.strip_prefix(home)
                .is_some_and(|rest| rest.starts_with('/'))
        };
        let paths: BTreeMap<String, Seen> = self
            .paths
            .iter()
            .filter(|(path, _)| inside(path))
            .map(|(path, seen)| (path.clone(), seen.clone()))
            .collect();
        let bytes = paths
            .values()
            .filter_map(|seen| Some((seen.ino, self.bytes.get(&seen.ino)?.clone())))
            .collect();
        View { paths, bytes }
    }
}
