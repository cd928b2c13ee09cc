//! Attributes that the Linux driver has written, against its own account of them.
//!
//! `OCELOT_KERNEL_IMAGE` names an image that the oracle's `kernel-make` has made, with its manifest beside it
//! (`x.img`, `x.man`). Without it there is nothing to compare, and the test says so.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use ondisk::{BlockNr, Probed, SlotNr};
use runtime::sim::{DiskOptions, Image, SimDisk, Simulation};

use super::super::{get, list};
use super::sha256;
use crate::cache::Cache;
use crate::core::{Core, Late};
use crate::system::System;

/// Path → name → (sha256 of the value, its size).
type Manifest = BTreeMap<String, BTreeMap<Vec<u8>, (String, u64)>>;

fn manifest(path: &Path) -> Manifest {
    let mut files = Manifest::new();
    for line in std::fs::read_to_string(path).unwrap().lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        if let ["X", hash, size, name, path] = fields[..] {
            let value = (hash.to_owned(), size.parse().unwrap());
            files
                .entry(path.to_owned())
                .or_default()
                .insert(name.as_bytes().to_vec(), value);
        }
    }
    files
}

/// Inode numbers of paths, from debugfs.ocfs2.
pub(super) fn inodes(
    image: &Path,
    paths: impl Iterator<Item = String>,
) -> BTreeMap<String, BlockNr> {
    let number = |path: &str| {
        let request = format!("stat /{path}");
        let output = Command::new("debugfs.ocfs2")
            .arg("-R")
            .arg(request)
            .arg(image)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let number = text
            .split("Inode: ")
            .nth(1)
            .and_then(|rest| rest.split_whitespace().next());
        BlockNr(
            number
                .unwrap_or_else(|| panic!("{path}: {text}"))
                .parse()
                .unwrap(),
        )
    };
    paths.map(|path| (path.clone(), number(&path))).collect()
}

/// A volume that is only read: no journal.
pub(super) fn open(image: &Path, simulation: &Simulation) -> (Core, SimDisk) {
    let bytes = Image::load(image).unwrap();
    let mut start = vec![0; ondisk::PROBE_BYTES];
    bytes.read(0, &mut start);
    let Probed { geometry, .. } = ondisk::probe(&start).unwrap();
    let geometry = Rc::new(geometry);
    let disk = SimDisk::with(bytes, DiskOptions::default(), None);
    let device = disk.device();
    let mut next = 100;
    let system = System::find(geometry.max_slots, |_| {
        next += 1;
        Some(BlockNr(next))
    });
    let core = Core {
        cache: Rc::new(Cache::new(device.clone(), geometry.clone(), 8 << 20)),
        device,
        host: simulation.host(),
        geometry,
        journal: Late::default(),
        slot: SlotNr(0),
        system: system.unwrap(),
        inodes: Default::default(),
        alloc: Default::default(),
    };
    (core, disk)
}

#[test]
fn every_attribute_of_a_kernel_made_volume_is_read() {
    let Some(image) = std::env::var_os("OCELOT_KERNEL_IMAGE").map(PathBuf::from) else {
        eprintln!("OCELOT_KERNEL_IMAGE is not set: nothing to read");
        return;
    };
    let files = manifest(&image.with_extension("man"));
    assert!(files.len() > 5, "the manifest has no attributes");
    let numbers = inodes(&image, files.keys().cloned());
    let simulation = Simulation::new(1);
    let (core, _disk) = open(&image, &simulation);
    let mut read = 0;
    simulation
        .block_on(async {
            for (path, attributes) in &files {
                let inode = core.inodes.get(&core, numbers[path]).await.unwrap();
                let mut names = list(&core, &inode).await.unwrap();
                names.sort();
                let expected: Vec<_> = attributes
                    .iter()
                    .map(|(name, (_, size))| (name.clone(), *size))
                    .collect();
                assert_eq!(names, expected, "{path}");
                for (name, (hash, size)) in attributes {
                    let value = get(&core, &inode, name).await.unwrap().unwrap();
                    assert_eq!(value.len() as u64, *size, "{path}: {}", name.escape_ascii());
                    assert_eq!(sha256(&value), *hash, "{path}: {}", name.escape_ascii());
                    read += 1;
                }
                assert_eq!(get(&core, &inode, b"user.not there").await.unwrap(), None);
            }
        })
        .unwrap();
    eprintln!("{read} attributes of {} files", files.len());
}
