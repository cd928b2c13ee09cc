//! A rich tree and its model: what `tests/kernel.rs` writes through the door, and what each regular file must hold
//! whoever reads it.

use std::collections::BTreeMap;

use fs::volume::{FileKind, IfExists, Ino, NewInode, RenameMode, SetAttr, SetTime, Volume};
use fs::xattr::XattrMode;
use fs::{Error, Result};
use runtime::WallTime;

use crate::manifest::sha256;
use crate::support::*;

/// Contents by path, of the files that are small enough to be kept.
pub struct Tree {
    pub files: BTreeMap<Vec<u8>, Vec<u8>>,
    cluster: usize,
    /// Holes, inline data, xattrs: everything but the oldest format.
    modern: bool,
}

const KEPT_BYTES: u64 = 256 << 20;

impl Tree {
    pub fn new(cluster: u32, modern: bool) -> Tree {
        Tree {
            files: BTreeMap::new(),
            cluster: cluster as usize,
            modern,
        }
    }

    /// Lines of `sha256sum`.
    pub fn listing(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (path, content) in &self.files {
            let odd = path.iter().any(|byte| matches!(byte, b'\n' | b'\\'));
            if odd {
                out.push(b'\\');
            }
            out.extend_from_slice(sha256(content).as_bytes());
            out.extend_from_slice(b"  ");
            for &byte in path {
                match byte {
                    b'\n' => out.extend_from_slice(b"\\n"),
                    b'\\' => out.extend_from_slice(b"\\\\"),
                    _ => out.push(byte),
                }
            }
            out.push(b'\n');
        }
        out
    }

    /// The manifest has every file of the model with its content.
    pub fn check(&self, lines: &[Vec<u8>]) {
        let mut hashes: Vec<String> = self.files.values().map(|content| sha256(content)).collect();
        let mut found: Vec<String> = lines
            .iter()
            .filter(|line| line.starts_with(b"F\t") && !line.starts_with(b"F\tsparse:"))
            .map(|line| String::from_utf8(line[2..66].to_vec()).expect("a hash is ASCII"))
            .collect();
        hashes.sort();
        found.sort();
        assert_eq!(hashes.len(), found.len());
        assert!(hashes == found, "contents differ from the model");
    }

    async fn dir(&self, volume: &Volume, parent: Ino, name: &str) -> Result<Ino> {
        let new = NewInode {
            permissions: 0o755,
            ..new_inode()
        };
        Ok(volume.mkdir(parent, name.as_bytes(), new).await?.ino)
    }

    async fn file(
        &mut self,
        volume: &Volume,
        dir: (Ino, &str),
        name: &[u8],
        content: Vec<u8>,
    ) -> Result<Ino> {
        let ino = put(volume, dir.0, name, &content).await?.ino;
        self.files.insert(join(dir.1, name), content);
        Ok(ino)
    }

    /// Overwrites in the volume and in the model.
    async fn overwrite(
        &mut self,
        volume: &Volume,
        ino: Ino,
        path: &[u8],
        at: usize,
        bytes: &[u8],
    ) -> Result<()> {
        let file = volume.open(ino, READ_WRITE).await?;
        let result = write_all(volume, &file, at as u64, bytes).await;
        volume.close(file).await?;
        result?;
        let content = self.files.get_mut(path).expect("a file of the model");
        if content.len() < at + bytes.len() {
            content.resize(at + bytes.len(), 0);
        }
        content[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    async fn resize(&mut self, volume: &Volume, ino: Ino, path: &[u8], size: usize) -> Result<()> {
        let set = SetAttr {
            size_bytes: Some(size as u64),
            ..SetAttr::default()
        };
        volume.setattr(ino, set).await?;
        self.files
            .get_mut(path)
            .expect("a file of the model")
            .resize(size, 0);
        Ok(())
    }

    pub async fn write(&mut self, volume: &Volume) -> Result<()> {
        self.directories(volume).await?;
        self.sizes(volume).await?;
        self.extents(volume).await?;
        self.links(volume).await?;
        if self.modern {
            self.attributes(volume).await?;
        }
        self.moves(volume).await
    }

    async fn directories(&mut self, volume: &Volume) -> Result<()> {
        let root = volume.root();
        let mut here = self.dir(volume, root, "nest").await?;
        let mut path = "nest".to_owned();
        // A directory that is not inline takes a cluster.
        let depth = if self.modern { 60 } else { 20 };
        for i in 0..depth {
            let name = format!("level{i}");
            here = self.dir(volume, here, &name).await?;
            path = format!("{path}/{name}");
        }
        self.file(volume, (here, &path), b"deep", pattern(1, 777))
            .await?;
        let odd = self.dir(volume, root, "names").await?;
        let long = "x".repeat(255);
        let utf8 = "ü".repeat(127) + "z";
        for (i, name) in [&long, &utf8, "with space", "tab\tnl\nback\\slash", "日本語"]
            .into_iter()
            .enumerate()
        {
            let content = pattern(i as u64, 10 + i);
            self.file(volume, (odd, "names"), name.as_bytes(), content)
                .await?;
        }
        let many = self.dir(volume, root, "many").await?;
        let padding = b"-abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ";
        let name = |i: usize| {
            let mut name = format!("f{i:06}").into_bytes();
            name.extend_from_slice(&padding[..i * 7 % 60]);
            name
        };
        let count = 5000;
        for i in 0..count {
            let every = if self.modern && self.cluster < 1 << 20 {
                25
            } else {
                500
            };
            let size = if i % every == 0 { 100 } else { 0 };
            self.file(volume, (many, "many"), &name(i), pattern(i as u64, size))
                .await?;
        }
        for i in (0..count).step_by(3) {
            volume.unlink(many, &name(i)).await?;
            self.files.remove(&join("many", &name(i)));
        }
        for i in count..count + 400 {
            self.file(volume, (many, "many"), &name(i), Vec::new())
                .await?;
        }
        Ok(())
    }

    async fn sizes(&mut self, volume: &Volume) -> Result<()> {
        let dir = self.dir(volume, volume.root(), "sizes").await?;
        for size in [
            0, 1, 60, 255, 256, 300, 511, 512, 513, 3000, 3800, 3900, 4000, 4095, 4096, 4097,
            32767, 32768, 65535, 65537, 1_000_003,
        ] {
            let name = format!("s{size}");
            self.file(
                volume,
                (dir, "sizes"),
                name.as_bytes(),
                pattern(size as u64, size),
            )
            .await?;
        }
        self.file(volume, (dir, "sizes"), b"big", pattern(99, 20_000_000))
            .await?;
        // Grown by small appends, over the border of inline data.
        let ino = self
            .file(volume, (dir, "sizes"), b"appended", vec![])
            .await?;
        for i in 0..60 {
            self.overwrite(
                volume,
                ino,
                b"sizes/appended",
                i * 143,
                &pattern(i as u64, 143),
            )
            .await?;
        }
        Ok(())
    }

    async fn extents(&mut self, volume: &Volume) -> Result<()> {
        let ext = self.dir(volume, volume.root(), "ext").await?;
        let dir = (ext, "ext");
        let cluster = self.cluster;
        let sparse = self.file(volume, dir, b"sparse", pattern(3, 5000)).await?;
        if self.modern {
            self.overwrite(volume, sparse, b"ext/sparse", 50_000_000, &pattern(4, 7000))
                .await?;
            self.resize(volume, sparse, b"ext/sparse", 83_456_789)
                .await?;
            // Too big for the model: the manifests are compared.
            let far = put(volume, ext, b"farhole", b"").await?.ino;
            let file = volume.open(far, READ_WRITE).await?;
            write_all(volume, &file, 10_000_000_000, &pattern(5, 4096)).await?;
            volume.close(file).await?;
        } else {
            self.overwrite(volume, sparse, b"ext/sparse", 1_000_000, &pattern(4, 7000))
                .await?;
        }
        // Every other cluster: many extents, many leaves; then some of the holes are filled.
        let count = if cluster >= 1 << 20 { 60 } else { 700 };
        let step = if self.modern { 2 } else { 1 };
        let frag = self.file(volume, dir, b"frag", vec![]).await?;
        for i in 0..count {
            let bytes = pattern(i as u64, 1000);
            self.overwrite(volume, frag, b"ext/frag", i * step * cluster, &bytes)
                .await?;
        }
        for i in (1..count * step - 1).step_by(6).rev() {
            let bytes = pattern(i as u64, 700);
            self.overwrite(volume, frag, b"ext/frag", i * cluster + 300, &bytes)
                .await?;
        }
        // Two files that take turns.
        let one = self.file(volume, dir, b"turn1", vec![]).await?;
        let two = self.file(volume, dir, b"turn2", vec![]).await?;
        for i in 0..count / 3 {
            for (ino, path) in [(one, &b"ext/turn1"[..]), (two, b"ext/turn2")] {
                let bytes = pattern((i + 7) as u64, cluster);
                self.overwrite(volume, ino, path, i * cluster, &bytes)
                    .await?;
            }
        }
        let shrunk = self
            .file(volume, dir, b"shrunk", pattern(14, 3_000_000))
            .await?;
        self.resize(volume, shrunk, b"ext/shrunk", 1_234_567)
            .await?;
        self.resize(volume, shrunk, b"ext/shrunk", 2_234_567)
            .await?;
        self.overwrite(volume, shrunk, b"ext/shrunk", 2_000_001, &pattern(15, 77))
            .await?;
        let rewritten = self
            .file(volume, dir, b"rewritten", pattern(16, 1_500_000))
            .await?;
        for i in 0..40 {
            let bytes = pattern(i, 1 + 997 * i as usize);
            let at = (i as usize * 70_001) % 1_490_000;
            self.overwrite(volume, rewritten, b"ext/rewritten", at, &bytes)
                .await?;
        }
        self.resize(volume, one, b"ext/turn1", cluster * (count / 6) + 5)
            .await?;
        Ok(())
    }

    async fn links(&mut self, volume: &Volume) -> Result<()> {
        let misc = self.dir(volume, volume.root(), "misc").await?;
        for len in [1usize, 60, 100, 255, 256, 319, 320, 1000, 3900, 4000, 4095] {
            let target: Vec<u8> = (0..len).map(|i| b"long/"[i % 5]).collect();
            let name = format!("link{len}");
            volume
                .symlink(misc, name.as_bytes(), &target, new_inode())
                .await?;
        }
        let content = pattern(16, 5000);
        let hard = self
            .file(volume, (misc, "misc"), b"hl", content.clone())
            .await?;
        for i in 0..30 {
            let name = format!("hl{i}");
            volume.link(hard, misc, name.as_bytes()).await?;
            self.files
                .insert(join("misc", name.as_bytes()), content.clone());
        }
        for (name, kind, rdev) in [
            ("chr", FileKind::CharDevice, 1 << 8 | 3),
            ("blk", FileKind::BlockDevice, 259 << 8 | 7 | 0x12 << 20),
            ("fifo", FileKind::Fifo, 0),
            ("sock", FileKind::Socket, 0),
        ] {
            volume
                .mknod(misc, name.as_bytes(), kind, rdev, new_inode())
                .await?;
        }
        let modes = self
            .file(volume, (misc, "misc"), b"modes", pattern(17, 10))
            .await?;
        let at = |seconds, nanoseconds| {
            Some(SetTime::At(WallTime {
                seconds,
                nanoseconds,
            }))
        };
        let set = SetAttr {
            permissions: Some(0o4751),
            uid: Some(1234),
            gid: Some(65999),
            atime: at(981_173_106, 1),
            mtime: at(2_145_916_799, 999_999_999),
            ..SetAttr::default()
        };
        volume.setattr(modes, set).await?;
        let sticky = self.dir(volume, misc, "sticky").await?;
        let set = SetAttr {
            permissions: Some(0o3777),
            ..SetAttr::default()
        };
        volume.setattr(sticky, set).await?;
        Ok(())
    }

    async fn attributes(&mut self, volume: &Volume) -> Result<()> {
        let xa = self.dir(volume, volume.root(), "xa").await?;
        let dir = (xa, "xa");
        for (name, size, count, value) in [
            ("inline", 100, 3, 5),
            ("block", 5000, 12, 70),
            ("bucket", 5000, 900, 60),
            ("tree", 100, 2500, 150),
            ("large", 100, 5, 20_000),
            ("largest", 0, 1, 65_536),
            ("removed", 100, 300, 50),
        ] {
            let content = pattern(count as u64, size);
            let ino = self.file(volume, dir, name.as_bytes(), content).await?;
            for i in 0..count {
                let name = format!("user.{name}{i:05}");
                let value = pattern(i as u64, value);
                set(volume, ino, &name, &value).await?;
            }
            match name {
                "inline" => {
                    set(volume, ino, "trusted.t", b"t").await?;
                    set(volume, ino, "security.s", b"").await?;
                }
                "removed" => {
                    for i in (0..count).step_by(3) {
                        let name = format!("user.{name}{i:05}");
                        volume.removexattr(ino, name.as_bytes()).await?;
                    }
                }
                // Other sizes for old names: over the border between entry and clusters, both ways.
                "bucket" => {
                    for i in (0..count).step_by(7) {
                        let name = format!("user.{name}{i:05}");
                        let value = pattern(i as u64, if i % 2 == 0 { 7 } else { 300 });
                        set(volume, ino, &name, &value).await?;
                    }
                }
                _ => {}
            }
        }
        let inner = self.dir(volume, xa, "dir").await?;
        for i in 0..20 {
            set(volume, inner, &format!("user.d{i}"), &pattern(i, 30)).await?;
        }
        self.file(volume, (inner, "xa/dir"), b"child", pattern(29, 10))
            .await?;
        let link = volume.symlink(xa, b"lnk", b"x", new_inode()).await?.ino;
        set(volume, link, "trusted.onlink", b"l").await
    }

    async fn moves(&mut self, volume: &Volume) -> Result<()> {
        let root = volume.root();
        let from = self.dir(volume, root, "from").await?;
        let to = self.dir(volume, root, "to").await?;
        for i in 0..120u64 {
            let name = format!("m{i}");
            self.file(volume, (from, "from"), name.as_bytes(), pattern(i, 20))
                .await?;
        }
        for i in (0..120).step_by(2) {
            // Some replace what went there before.
            let (old, new) = (format!("m{i}"), format!("n{}", i % 90));
            volume
                .rename(
                    from,
                    old.as_bytes(),
                    to,
                    new.as_bytes(),
                    RenameMode::Replace,
                )
                .await?;
            let content = self
                .files
                .remove(&join("from", old.as_bytes()))
                .expect("a file of the model");
            self.files.insert(join("to", new.as_bytes()), content);
        }
        volume
            .rename(from, b"m1", to, b"n0", RenameMode::Exchange)
            .await?;
        let (one, two) = (
            self.files.remove(&b"from/m1"[..]),
            self.files.remove(&b"to/n0"[..]),
        );
        self.files.insert(b"from/m1".to_vec(), two.expect("to/n0"));
        self.files.insert(b"to/n0".to_vec(), one.expect("from/m1"));
        volume
            .rename(root, b"nest", to, b"nest", RenameMode::NoReplace)
            .await?;
        let moved: Vec<Vec<u8>> = self
            .files
            .keys()
            .filter(|path| path.starts_with(b"nest/"))
            .cloned()
            .collect();
        for path in moved {
            let content = self.files.remove(&path).expect("it was listed");
            self.files.insert([b"to/", &path[..]].concat(), content);
        }
        let gone = self.dir(volume, root, "gone").await?;
        for i in 0..200u64 {
            let name = format!("g{i}");
            let size = if i < 20 { 5000 } else { 0 };
            put(volume, gone, name.as_bytes(), &pattern(i, size)).await?;
        }
        for i in 0..200 {
            volume.unlink(gone, format!("g{i}").as_bytes()).await?;
        }
        volume.rmdir(root, b"gone").await?;
        let again = volume
            .create(from, b"m3", new_inode(), IfExists::Use)
            .await?;
        self.resize(volume, again.ino, b"from/m3", 0).await
    }

    /// The model of what a volume holds now.
    pub async fn of(volume: &Volume) -> Result<Tree> {
        let info = volume.info();
        let modern = info.features.iter().any(|name| name == "sparse");
        let mut tree = Tree::new(info.cluster_size, modern);
        let mut stack = vec![(volume.root(), Vec::new())];
        while let Some((dir, path)) = stack.pop() {
            for name in names(volume, dir).await? {
                let attr = volume.lookup(dir, &name).await?;
                let path = if path.is_empty() {
                    name
                } else {
                    [&path[..], b"/", &name].concat()
                };
                match attr.kind {
                    FileKind::Directory => stack.push((attr.ino, path)),
                    FileKind::Regular if attr.size_bytes <= KEPT_BYTES => {
                        let content = get(volume, attr.ino).await?;
                        tree.files.insert(path, content);
                    }
                    _ => {}
                }
            }
        }
        Ok(tree)
    }

    /// Changes every file that the kernel's `kernel-make` leaves, one way or another; hard links and empty files
    /// stay. The model knows nothing of clones, so that a change that shows in another clone is a difference.
    pub async fn change_all(&mut self, volume: &Volume) -> Result<()> {
        let root = volume.root();
        let paths: Vec<Vec<u8>> = self.files.keys().cloned().collect();
        for (i, path) in paths.iter().enumerate() {
            let attr = volume.resolve(root, path, false).await?;
            let size = attr.size_bytes as usize;
            if attr.links > 1 || (size == 0 && i % 50 != 0) {
                continue;
            }
            let seed = i as u64;
            match i % 6 {
                0 => {
                    for k in 0..12usize {
                        let at = (k * 650_003 + i * 31) % (size + 1);
                        self.overwrite(volume, attr.ino, path, at, &pattern(seed, 3001))
                            .await?;
                    }
                }
                1 => self.resize(volume, attr.ino, path, size / 3).await?,
                2 => {
                    let bytes = pattern(seed, size);
                    self.overwrite(volume, attr.ino, path, 0, &bytes).await?;
                }
                3 => {
                    self.resize(volume, attr.ino, path, 0).await?;
                    self.overwrite(volume, attr.ino, path, 0, &pattern(seed, 60_000))
                        .await?;
                }
                4 => {
                    self.overwrite(volume, attr.ino, path, size, &pattern(seed, 9999))
                        .await?;
                    self.overwrite(volume, attr.ino, path, size / 2, &pattern(seed, 1))
                        .await?;
                }
                _ => {
                    self.resize(volume, attr.ino, path, size + 100_001).await?;
                    self.overwrite(volume, attr.ino, path, size / 2, &pattern(seed, 50_000))
                        .await?;
                }
            }
            self.change_attributes(volume, attr.ino).await?;
        }
        Ok(())
    }

    async fn change_attributes(&self, volume: &Volume, ino: Ino) -> Result<()> {
        let list = match volume.listxattr(ino).await {
            Err(Error::NotSupported(_)) => return Ok(()),
            list => list?,
        };
        for (i, (name, size)) in list.iter().enumerate() {
            if name.starts_with(b"system.") {
                continue; // the kernel wants well-formed ACLs
            }
            match i % 4 {
                0 => volume.removexattr(ino, name).await?,
                1 => {
                    let value = pattern(i as u64, (*size as usize + 37) % 400);
                    volume
                        .setxattr(ino, name, &value, XattrMode::Replace)
                        .await?;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

async fn set(volume: &Volume, ino: Ino, name: &str, value: &[u8]) -> Result<()> {
    volume
        .setxattr(ino, name.as_bytes(), value, XattrMode::Any)
        .await
}

fn join(dir: &str, name: &[u8]) -> Vec<u8> {
    [dir.as_bytes(), b"/", name].concat()
}
