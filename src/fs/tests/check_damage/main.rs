//! The checker and `fsck.ocfs2 -fn` on the same damaged volumes: one thing is changed, its checksum
//! repaired, and both are asked. Each damage says what we must find, and what fsck.ocfs2 does.

#![allow(clippy::print_stdout, reason = "says which damage, and the tally")]
#![allow(clippy::unwrap_used, reason = "a test fails where it panics")]

mod allocators;
mod directories;
mod inodes;
mod random;
mod shared;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::process::Command;

use fs::check::Code;
use ondisk::feature::{DynFeatures, ExtentFlags, InodeFlags};
use ondisk::{
    BlockNr, Dinode, DirTrailer, DxEntry, DxLeaf, DxRoot, ExtentBlock, Kind, RefcountBlock,
    RootKind, SUPER_BLOCK, XattrBlock, XattrHeader, chain_list_mut, extent_list_mut,
    group_bitmap_mut, local_alloc_mut, refcount_list_mut, truncate_log_mut,
};
use rand::RngCore;
use runtime::sim::{Image, SimRng};
use support::bench::{Bench, furnish};
use support::checker::check_image;
use support::*;
use zerocopy::FromBytes;

/// What fsck.ocfs2 does with a damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fsck {
    /// It has the same code.
    Same,
    /// It has another one for it.
    Other(&'static str),
    /// It complains, without a code, or gives up.
    Complains,
    /// It does not look there: with `-n` not at the journals' superblocks, nor at the text of symlinks
    /// in their inodes, nor for an overlap of extents beyond a hole, nor at what no inode names.
    Silent,
}
use Fsck::{Complains, Other, Same, Silent};

type Damage = (&'static str, Code, Fsck, fn(&mut Bench));

/// Codes, and any line that a sound volume does not get.
fn fsck(
    image: &Image,
    path: &std::path::Path,
    sound: &BTreeSet<String>,
) -> (BTreeSet<String>, BTreeSet<String>) {
    image.save(path).unwrap();
    // Some damages send it round in circles.
    let out = Command::new("timeout")
        .args(["100", "/usr/sbin/fsck.ocfs2", "-fn", path.to_str().unwrap()])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
    let status = out.status.code().unwrap_or(-1);
    let mut lines: BTreeSet<String> = text.lines().map(str::to_owned).collect();
    lines.retain(|line| !sound.contains(line) && !line.trim().is_empty());
    if status != 0 {
        lines.insert(format!("status {status}"));
    }
    let codes = lines
        .iter()
        .filter_map(|line| line.strip_prefix('[')?.split_once(']'))
        .map(|(code, _)| code.to_owned())
        .collect();
    (codes, lines)
}

/// Runs all damages on one volume; what is not as it says is collected.
fn run(bench: &Bench, damages: &[Damage]) {
    let dir = scratch();
    let path = dir.path().join("damaged");
    let (_, sound) = fsck(&bench.image, &path, &BTreeSet::new());
    let clean = check_image(&bench.image).unwrap();
    assert!(clean.summary.is_clean(), "{:#?}", clean.findings);
    let only = std::env::var("OCELOT_ONLY").ok();
    let mut wrong = Vec::new();
    for (name, code, expected, damage) in damages {
        if only.as_deref().is_some_and(|only| !name.contains(only)) {
            continue;
        }
        let mut bench = bench.clone();
        damage(&mut bench);
        let (theirs, lines) = fsck(&bench.image, &path, &sound);
        let as_expected = match expected {
            Same => theirs.contains(code.name()),
            Other(other) => theirs.contains(*other),
            Complains => !lines.is_empty(),
            Silent => lines.is_empty(),
        };
        let ours = match check_image(&bench.image) {
            Ok(checked) => checked.codes(),
            Err(error) => {
                wrong.push(format!("{name}: we end with {error}"));
                continue;
            }
        };
        if !ours.contains(code.name()) || !as_expected {
            wrong.push(format!(
                "{name}: we say {ours:?}, {code} is expected; fsck.ocfs2 says {theirs:?}, {expected:?} is expected\n    {lines:?}"
            ));
        }
    }
    println!("{} damages", damages.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
