//! What a mounted volume holds, line by line, in the words of the kernel oracle (`octool manifest -x`), so that the
//! two accounts can be compared as text. `tests/kernel.rs` calls it; the door is its only source.
//!
//! ```text
//! type  content hash  size  mode  links  uid:gid  512-byte blocks  mtime  path  [symlink target | major:minor]
//! X     value hash    size  name  path
//! ```

use std::fmt::Write as _;

use fs::Result;
use fs::volume::{Attr, FileKind, Ino, Volume};
use sha2::{Digest, Sha256};

/// Larger files are taken for sparse: only their blocks that are not zero are hashed, with their numbers.
const SPARSE_BYTES: u64 = 256 << 20;
const PIECE: u64 = 4096;

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes it");
        text
    })
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Control characters and backslashes as the oracle writes them.
fn escape(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for &byte in name {
        match byte {
            b'\\' => out.extend_from_slice(b"\\\\"),
            0..b' ' => out.extend_from_slice(format!("\\{byte:03o}").as_bytes()),
            _ => out.push(byte),
        }
    }
    out
}

/// The whole tree, a directory before its entries, these in the order of their bytes.
pub async fn manifest(volume: &Volume) -> Result<Vec<Vec<u8>>> {
    let mut lines = Vec::new();
    let root = volume.getattr(volume.root()).await?;
    let mut stack = vec![(root, Vec::new())];
    while let Some((attr, path)) = stack.pop() {
        describe(volume, &attr, &path, &mut lines).await?;
        if attr.kind != FileKind::Directory {
            continue;
        }
        let mut children = entries(volume, attr.ino).await?;
        children.sort_by(|one, two| one.0.cmp(&two.0));
        for (name, ino, kind) in children.into_iter().rev() {
            // By name, not by number: this tries the index for each entry.
            let child = volume.lookup(attr.ino, &name).await?;
            assert_eq!(child.ino, ino, "{}", name.escape_ascii());
            assert_eq!(Some(child.kind), kind, "{}", name.escape_ascii());
            let path = if path.is_empty() {
                name
            } else {
                [&path[..], b"/", &name].concat()
            };
            stack.push((child, path));
        }
    }
    Ok(lines)
}

type Child = (Vec<u8>, Ino, Option<FileKind>);

async fn entries(volume: &Volume, dir: Ino) -> Result<Vec<Child>> {
    let (mut all, mut cookie) = (Vec::new(), 0);
    loop {
        let some = volume.readdir(dir, cookie, 97).await?;
        let Some(last) = some.last() else {
            return Ok(all);
        };
        cookie = last.next;
        all.extend(
            some.into_iter()
                .filter(|entry| entry.name != b"." && entry.name != b"..")
                .map(|entry| (entry.name, entry.ino, entry.kind)),
        );
    }
}

async fn describe(
    volume: &Volume,
    attr: &Attr,
    path: &[u8],
    lines: &mut Vec<Vec<u8>>,
) -> Result<()> {
    let shown = if path.is_empty() {
        b".".to_vec()
    } else {
        escape(path)
    };
    let letter = match attr.kind {
        FileKind::Regular => 'F',
        FileKind::Directory => 'D',
        FileKind::Symlink => 'L',
        FileKind::CharDevice => 'C',
        FileKind::BlockDevice => 'B',
        FileKind::Fifo => 'P',
        FileKind::Socket => 'S',
    };
    let hash = if attr.kind == FileKind::Regular {
        content(volume, attr).await?
    } else {
        "-".into()
    };
    let size = if attr.kind == FileKind::Directory {
        0
    } else {
        attr.size_bytes
    };
    let blocks = if attr.kind == FileKind::Regular {
        attr.blocks
    } else {
        0
    };
    let mut line = format!(
        "{letter}\t{hash}\t{size}\t{:06o}\t{}\t{}:{}\t{blocks}\t{}.{:09}\t",
        attr.kind.mode_bits() | attr.permissions,
        attr.links,
        attr.uid,
        attr.gid,
        attr.mtime.seconds,
        attr.mtime.nanoseconds,
    )
    .into_bytes();
    line.extend_from_slice(&shown);
    match attr.kind {
        FileKind::Symlink => {
            line.push(b'\t');
            line.extend(escape(&volume.readlink(attr.ino).await?));
        }
        FileKind::CharDevice | FileKind::BlockDevice => {
            let major = attr.rdev >> 8 & 0xfff | attr.rdev >> 32 & !0xfff;
            let minor = attr.rdev & 0xff | attr.rdev >> 12 & !0xff;
            line.extend_from_slice(format!("\t{major}:{minor}").as_bytes());
        }
        _ => {}
    }
    lines.push(line);
    let mut names = volume.listxattr(attr.ino).await?;
    names.sort();
    for (name, size) in names {
        let value = volume.getxattr(attr.ino, &name).await?;
        assert_eq!(value.len() as u64, size, "{}", name.escape_ascii());
        let mut line = format!("X\t{}\t{size}\t", sha256(&value)).into_bytes();
        line.extend(escape(&name));
        line.push(b'\t');
        line.extend_from_slice(&shown);
        lines.push(line);
    }
    Ok(())
}

async fn content(volume: &Volume, attr: &Attr) -> Result<String> {
    let mut hash = Sha256::new();
    let sparse = attr.size_bytes > SPARSE_BYTES;
    let mut at = 0;
    while at < attr.size_bytes {
        let bytes = volume.read_ino(attr.ino, at, 1 << 20).await?;
        assert!(!bytes.is_empty(), "no bytes at {at} of {}", attr.size_bytes);
        if sparse {
            for (i, piece) in bytes.chunks(PIECE as usize).enumerate() {
                if piece.iter().any(|&byte| byte != 0) {
                    hash.update((at / PIECE + i as u64).to_le_bytes());
                    hash.update(piece);
                    hash.update(vec![0; PIECE as usize - piece.len()]);
                }
            }
        } else {
            hash.update(&bytes);
        }
        at += bytes.len() as u64;
    }
    let text = hex(&hash.finalize());
    Ok(if sparse {
        format!("sparse:{}", &text[..57])
    } else {
        text
    })
}
