//! Attributes that the Linux driver has written, against its own account of them.
//!
//! `OCELOT_KERNEL_IMAGE` names an image that the oracle's `kernel-make` has made, with its manifest beside it
//! (`x.img`, `x.man`). Without it there is nothing to compare, and the test says so.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use ondisk::BlockNr;
use runtime::sim::{DiskOptions, Image, SimDisk, SimRng, Simulation};

use super::super::{XattrMode, get, list, remove, set};
use super::model::{Model, change, compare, value};
use super::sha256;
use crate::testing;

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

/// The image and its manifest.
fn made_by_the_kernel() -> (PathBuf, Manifest) {
    let image =
        PathBuf::from(std::env::var_os("OCELOT_KERNEL_IMAGE").expect("OCELOT_KERNEL_IMAGE"));
    let files = manifest(&image.with_extension("man"));
    assert!(files.len() > 5, "the manifest has no attributes");
    (image, files)
}

fn disk(image: &Path, simulation: &Simulation) -> SimDisk {
    let image = Image::load(image).unwrap();
    SimDisk::with(image, DiskOptions::default(), Some(&simulation.world()))
}

#[test]
#[ignore = "needs OCELOT_KERNEL_IMAGE, a volume that the kernel made, and its manifest"]
fn every_attribute_of_a_kernel_made_volume_is_read() {
    let (image, files) = made_by_the_kernel();
    let numbers = inodes(&image, files.keys().cloned());
    let simulation = Simulation::new(1);
    let disk = disk(&image, &simulation);
    let mut read = 0;
    simulation
        .block_on(async {
            let core = testing::open(&simulation, &disk).await;
            for (path, attributes) in &files {
                let inode = core.inodes.get(&core, numbers[path]).await.unwrap();
                let mut names = list(&core, &inode).await.unwrap();
                names.sort();
                let sizes = attributes
                    .iter()
                    .map(|(name, (_, size))| (name.clone(), *size));
                assert_eq!(names, Vec::from_iter(sizes), "{path}");
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

/// What the kernel wrote, inline, in blocks, in buckets, shared or not, is changed. With `OCELOT_CHANGED_IMAGE` the
/// result is kept there, with a manifest of what the kernel has to find.
#[test]
#[ignore = "needs OCELOT_KERNEL_IMAGE, a volume that the kernel made, and its manifest"]
fn attributes_of_a_kernel_made_volume_are_changed() {
    let (image, files) = made_by_the_kernel();
    // Linux has no `user.` attributes on symbolic links.
    let paths = files.keys().filter(|path| *path != "xa/lnk").cloned();
    let numbers = inodes(&image, paths.chain(["sizes/s0".into(), "sizes/s60".into()]));
    let simulation = Simulation::new(2);
    let disk = disk(&image, &simulation);
    let mut rng = SimRng::new(2);
    let mut models = BTreeMap::new();
    simulation
        .block_on(async {
            let core = testing::open(&simulation, &disk).await;
            for (path, nr) in &numbers {
                let inode = core.inodes.get(&core, *nr).await.unwrap();
                let mut model = Model::new();
                for (name, _) in list(&core, &inode).await.unwrap() {
                    let value = get(&core, &inode, &name).await.unwrap().unwrap();
                    model.insert(name, value);
                }
                // Some of the kernel's own attributes, then ours.
                for (name, _) in list(&core, &inode).await.unwrap() {
                    match rng.below(4) {
                        0 => {
                            remove(&core, &inode, &name).await.unwrap();
                            model.remove(&name);
                        }
                        1 => {
                            let value = value(&mut rng, 7);
                            set(&core, &inode, &name, &value, XattrMode::Replace)
                                .await
                                .unwrap();
                            model.insert(name, value);
                        }
                        _ => {}
                    }
                }
                for step in 0..400 {
                    change(&core, &inode, &mut model, &mut rng, step, 200, 3)
                        .await
                        .unwrap();
                }
                models.insert(path.clone(), model);
            }
            for (path, nr) in &numbers {
                compare(
                    &core,
                    &core.inodes.get(&core, *nr).await.unwrap(),
                    &models[path],
                )
                .await;
            }
            testing::close(&core).await;
        })
        .unwrap();
    if let Some(kept) = std::env::var_os("OCELOT_CHANGED_IMAGE").map(PathBuf::from) {
        disk.image().save(&kept).unwrap();
        let mut text = String::new();
        for (path, model) in &models {
            for (name, value) in model {
                let name = String::from_utf8_lossy(name);
                text += &format!("X\t{}\t{}\t{name}\t{path}\n", sha256(value), value.len());
            }
        }
        std::fs::write(kept.with_extension("man"), text).unwrap();
    }
}
