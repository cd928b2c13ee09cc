//! Geometries of real volumes: all features, blocks of 512 to 4096 bytes, checksums or none.

use ondisk::{Geometry, PROBE_BYTES, probe};

const ALL: &str =
    "sparse,unwritten,inline-data,extended-slotmap,xattr,indexed-dirs,refcount,discontig-bg";

/// Block size, cluster size, checksums.
pub const KINDS: [(u32, u32, &str); 4] = [
    (4096, 4096, "metaecc"),
    (512, 4096, "metaecc"),
    (1024, 32768, "nometaecc"),
    (4096, 1 << 20, "metaecc"),
];

pub fn make() -> Vec<Geometry> {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("volume");
    let geometry = |(block, cluster, checksums): &(u32, u32, &str)| {
        let file = std::fs::File::create(&path).expect("a file");
        file.set_len(96 << 20).expect("its length");
        let features = format!("--fs-features={ALL},{checksums}");
        let journal = if *cluster >= 1 << 20 {
            "size=16M"
        } else {
            "size=4M"
        };
        let (block, cluster) = (block.to_string(), cluster.to_string());
        let done = std::process::Command::new("/usr/sbin/mkfs.ocfs2")
            .args([
                "-q", "-x", "-F", "-M", "local", "-N", "2", "-b", &block, "-C", &cluster, "-J",
                journal, &features,
            ])
            .arg(&path)
            .status();
        assert!(done.expect("mkfs.ocfs2").success());
        let bytes = std::fs::read(&path).expect("the volume");
        probe(&bytes[..PROBE_BYTES]).expect("a superblock").geometry
    };
    KINDS.iter().map(geometry).collect()
}
