//! Writes what fuzzing begins with: `seed_corpus FOLDER` makes FOLDER/structures from the metadata blocks of
//! real volumes, FOLDER/journal and FOLDER/volume from short inputs of every kind.

#[path = "../../src/fs/tests/support/damaged.rs"]
#[allow(dead_code, reason = "only its volumes are used here")]
mod damaged;
#[path = "../../src/fs/tests/support/mod.rs"]
mod support;

use std::path::Path;

use damaged::{NO_CHECKSUMS, furnish, metadata};
use support::{ALL, Rig, pattern};

/// Blocks of each signature that are enough.
const EACH: usize = 12;

fn main() -> std::io::Result<()> {
    let folder = std::env::args().nth(1).expect("a folder");
    let folder = Path::new(&folder);
    let save = |target: &str, name: String, bytes: &[u8]| {
        let folder = folder.join(target);
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(name), bytes)
    };
    for (how, block, features) in [(0u8, 4096u64, ALL), (1, 512, ALL), (2, 1024, NO_CHECKSUMS)] {
        let image = furnish(&Rig::new(block as u32, 4096, 24, features));
        let mut counts = std::collections::BTreeMap::new();
        for nr in metadata(&image, block) {
            let bytes = image.read_vec(nr * block, block as usize);
            let kind = match &bytes[..6] {
                b"OCFSV2" => 0,
                b"INODE0" => 1,
                b"EXBLK0" => 4,
                b"GROUP0" => 5,
                b"DXDIR0" => 6,
                b"DXLEAF" => 7,
                b"XATTR0" => 8,
                b"REFCNT" => 10,
                [0xC0, 0x3B, 0x39, 0x98, ..] => 13,
                _ => 11,
            };
            let count = counts.entry(kind).or_insert(0);
            *count += 1;
            if *count <= EACH {
                let mut input = vec![kind, how | 0x80];
                input.extend((nr as u32).to_le_bytes());
                input.extend(bytes);
                save("structures", format!("{block}-{nr}"), &input)?;
            }
        }
    }
    for n in 0..64 {
        save("volume", n.to_string(), &pattern(n, 20 + n as usize))?;
        save("journal", n.to_string(), &pattern(n, 40 + 4 * n as usize))?;
    }
    Ok(())
}
