//! A real volume on a simulated disk, and a journal on it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use ondisk::{BlockNr, Geometry};
use runtime::Host;
use runtime::sim::{DiskOptions, Image, SimDisk, World};

use crate::cache::Cache;
use crate::journal::{Journal, JournalSetup, Recovery};

/// A volume file made by mkfs.ocfs2, deleted with it.
pub struct Volume {
    _dir: tempfile::TempDir,
    pub path: PathBuf,
}

pub fn tool(name: &str, args: &[&str]) -> (String, i32) {
    let out = Command::new(format!("/usr/sbin/{name}"))
        .args(args)
        .output()
        .expect("ocfs2-tools");
    let text = [out.stdout, out.stderr].concat();
    (
        String::from_utf8_lossy(&text).into_owned(),
        out.status.code().unwrap_or(-1),
    )
}

impl Volume {
    pub fn make(options: &[&str], size: &str) -> Volume {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("volume");
        let file = std::fs::File::create(&path).unwrap();
        drop(file);
        let path_text = path.to_str().unwrap().to_owned();
        Command::new("truncate")
            .args(["-s", size, &path_text])
            .status()
            .unwrap();
        let mut args = vec!["-q", "-x", "-F", "-M", "local", "-N", "2"];
        args.extend(options);
        args.push(&path_text);
        let (text, status) = tool("mkfs.ocfs2", &args);
        assert_eq!(status, 0, "{text}");
        Volume { _dir: dir, path }
    }

    /// With checksums, 4 KiB blocks and a journal of 4 MiB.
    pub fn usual() -> Volume {
        let max = "--fs-feature-level=max-features";
        Volume::make(
            &[
                "-b",
                "4096",
                "-C",
                "4096",
                "-J",
                "size=4M",
                max,
                "--fs-features=metaecc",
            ],
            "64M",
        )
    }

    pub fn copy_of(source: &Path) -> Volume {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("volume");
        std::fs::copy(source, &path).unwrap();
        Volume { _dir: dir, path }
    }

    /// The first block of slot 0's journal.
    pub fn journal_start(&self) -> BlockNr {
        let text = self.debugfs("stat //journal:0000");
        let mut extents = text.lines().skip_while(|line| !line.contains("## Offset"));
        let first = extents.nth(1).expect(&text);
        BlockNr(first.split_whitespace().nth(3).unwrap().parse().unwrap())
    }

    pub fn image(&self) -> Image {
        Image::load(&self.path).unwrap()
    }

    pub fn save(&self, image: &Image) {
        image.save(&self.path).unwrap();
    }

    /// Output of debugfs.ocfs2.
    pub fn debugfs(&self, command: &str) -> String {
        tool(
            "debugfs.ocfs2",
            &["-R", command, self.path.to_str().unwrap()],
        )
        .0
    }

    pub fn fsck(&self, flags: &str) -> (String, i32) {
        tool("fsck.ocfs2", &[flags, self.path.to_str().unwrap()])
    }

    /// Replay and repair. fsck 1.8.7 forgets after a replay that the volume is local, looks for a
    /// cluster and stops: the second run does the rest.
    pub fn fsck_repair(&self) -> String {
        let (first, _) = self.fsck("-fy");
        assert!(first.contains("journal replayed successfully"), "{first}");
        let (second, status) = self.fsck("-fy");
        assert!(status <= 1, "{second}");
        first + &second
    }

    /// The inode's block of a file of the system directory.
    pub fn system_block(&self, name: &str) -> BlockNr {
        let text = self.debugfs(&format!("stat //{name}"));
        let words: Vec<&str> = text.split_whitespace().collect();
        let at = words.iter().position(|&w| w == "Inode:").expect(&text);
        BlockNr(words[at + 1].parse().unwrap())
    }
}

pub fn geometry(image: &Image) -> Geometry {
    let mut start = vec![0; ondisk::PROBE_BYTES];
    image.read(0, &mut start);
    ondisk::probe(&start).unwrap().geometry
}

pub fn setup(disk: &SimDisk, world: &World) -> JournalSetup {
    let geometry = Rc::new(geometry(&disk.image()));
    let device = disk.device();
    let cache = Rc::new(Cache::new(device.clone(), geometry.clone(), 1 << 20));
    JournalSetup {
        device,
        host: Rc::new(world.clone()) as Rc<dyn Host>,
        geometry,
        cache,
        commit_interval: crate::limits::COMMIT_INTERVAL,
    }
}

pub fn disk(image: Image, world: &World) -> SimDisk {
    SimDisk::with(image, DiskOptions::default(), Some(world))
}

/// Opens journal `dinode` on the disk.
pub async fn open(
    disk: &SimDisk,
    world: &World,
    dinode: BlockNr,
) -> (JournalSetup, Journal, Recovery) {
    let setup = setup(disk, world);
    let (journal, recovery) = Journal::open(setup.clone(), dinode).await.unwrap();
    (setup, journal, recovery)
}
