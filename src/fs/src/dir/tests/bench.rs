//! A volume on a simulated disk, from an image of mkfs.ocfs2 or of the kernel, as far as directories
//! need one; and the tools that judge what we leave behind.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};

use ondisk::feature::Incompat;
use ondisk::{BlockNr, Dinode, Generation, Geometry, Kind, NewDinode, SlotNr, Suballoc};
use runtime::sim::{DiskOptions, Image, SimDisk, Simulation};

use crate::alloc;
use crate::cache::Cache;
use crate::core::{Core, Late};
use crate::dir;
use crate::inode::{InodeRef, Inodes};
use crate::journal::{Handle, Journal, JournalSetup};
use crate::limits::CACHE_BYTES;
use crate::limits::COMMIT_INTERVAL;
use crate::system::{System, SystemFile};

/// An image file, deleted with it.
pub struct Volume {
    pub path: PathBuf,
    /// What fsck.ocfs2 finds before we have touched it: mkfs.ocfs2 and the kernel leave things that it
    /// does not like.
    known: Vec<String>,
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Volume {
    fn new() -> Volume {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ocelot-dir-{}-{count}.img", std::process::id());
        Volume {
            path: std::env::temp_dir().join(name),
            known: Vec::new(),
        }
    }

    /// Formats one, or says that it cannot be done here.
    pub fn mkfs(megabytes: u64, block: u32, cluster: u32, features: &str) -> Option<Volume> {
        if !["mkfs.ocfs2", "fsck.ocfs2"]
            .iter()
            .all(|tool| is_installed(tool))
        {
            eprintln!("mkfs.ocfs2 and fsck.ocfs2 are not installed: nothing tested");
            return None;
        }
        let mut volume = Volume::new();
        let file = std::fs::File::create(&volume.path).expect("a temporary file");
        file.set_len(megabytes << 20).expect("a sparse file");
        let features = format!("--fs-features={features}");
        let (block, cluster) = (block.to_string(), cluster.to_string());
        let arguments = ["-q", "-x", "-M", "local", "-N", "2"];
        let journal = if cluster == "1048576" {
            "size=64M"
        } else {
            "size=8M"
        };
        let sizes = ["-J", journal, "-b", &block, "-C", &cluster, &features];
        let (text, done) = tool(
            "mkfs.ocfs2",
            &[&arguments[..], &sizes].concat(),
            &volume.path,
        );
        assert!(done, "{text}");
        volume.known = volume.findings();
        Some(volume)
    }

    pub fn copy_of(path: &Path) -> Volume {
        let mut volume = Volume::new();
        std::fs::copy(path, &volume.path).expect("a copy of the image");
        volume.known = volume.findings();
        volume
    }

    /// The questions of fsck.ocfs2, which -n answers.
    fn findings(&self) -> Vec<String> {
        let (text, _) = tool("fsck.ocfs2", &["-f", "-n"], &self.path);
        assert!(text.contains("Pass 4b"), "{text}");
        text.lines()
            .filter(|line| line.ends_with("? n"))
            .map(str::to_owned)
            .collect()
    }

    /// # Panics
    /// If fsck.ocfs2 has found anything new.
    pub fn fsck(&self) {
        let found = self.findings();
        let new: Vec<_> = found
            .iter()
            .filter(|line| !self.known.contains(line))
            .collect();
        assert!(new.is_empty(), "fsck.ocfs2 -fn: {new:#?}");
    }

    pub fn debugfs(&self, command: &str) -> String {
        tool("debugfs.ocfs2", &["-R", command], &self.path).0
    }
}

fn command(name: &str) -> Command {
    let mut command = Command::new(name);
    let path = std::env::var("PATH").unwrap_or_default();
    command
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .env("LC_ALL", "C");
    command.stdin(std::process::Stdio::null());
    command
}

fn is_installed(name: &str) -> bool {
    command(name).arg("-V").output().is_ok()
}

fn tool(name: &str, arguments: &[&str], image: &Path) -> (String, bool) {
    let output = command(name)
        .args(arguments)
        .arg(image)
        .output()
        .expect("the tool runs");
    let text = [output.stdout, output.stderr].concat();
    (
        String::from_utf8_lossy(&text).into_owned(),
        output.status.success(),
    )
}

/// A volume in use.
pub struct Bench {
    pub core: Core,
    disk: SimDisk,
}

/// Runs a test in the simulated world, with the volume open, and writes everything back after it.
pub fn with_volume<T>(volume: &Volume, seed: u64, test: impl AsyncFnOnce(&Bench) -> T) -> T {
    let simulation = Simulation::new(seed);
    let run = async {
        let bench = Bench::open(&volume.path, &simulation).await;
        let result = test(&bench).await;
        bench.close(&volume.path).await;
        result
    };
    simulation.block_on(run).expect("the run ends")
}

impl Bench {
    async fn open(path: &Path, simulation: &Simulation) -> Bench {
        let image = Image::load(path).expect("the image is read");
        let start = image.read_vec(0, ondisk::PROBE_BYTES);
        let geometry = Rc::new(ondisk::probe(&start).expect("a volume").geometry);
        let disk = SimDisk::with(image, DiskOptions::default(), None);
        let cache = Rc::new(Cache::new(disk.device(), geometry.clone(), CACHE_BYTES));
        let site = JournalSetup {
            device: disk.device(),
            host: simulation.host(),
            geometry,
            cache,
            commit_interval: COMMIT_INTERVAL,
        };
        let core = |system, journal| Core {
            device: site.device.clone(),
            host: site.host.clone(),
            geometry: site.geometry.clone(),
            cache: site.cache.clone(),
            journal,
            slot: SlotNr(0),
            system,
            inodes: Inodes::default(),
            alloc: alloc::State::default(),
        };
        let system = find_system(&core(System::default(), Late::default())).await;
        let nr = system.of(SystemFile::Journal, SlotNr(0));
        let (journal, _) = Journal::open(site.clone(), nr)
            .await
            .expect("the journal opens");
        Bench {
            core: core(system, Late::of(journal)),
            disk,
        }
    }

    async fn close(self, path: &Path) {
        let core = &self.core;
        alloc::flush_truncate_log(core)
            .await
            .expect("the truncate log is flushed");
        alloc::shutdown_local(core)
            .await
            .expect("the window goes back");
        core.journal.close().await.expect("the journal closes");
        self.disk.image().save(path).expect("the image is written");
    }

    pub fn geometry(&self) -> &Geometry {
        &self.core.geometry
    }

    pub async fn begin(&self, blocks: u32) -> Handle<'_> {
        self.core.journal.begin(blocks).await.expect("a handle")
    }

    pub async fn root(&self) -> InodeRef {
        self.inode(self.geometry().root_dir).await
    }

    pub async fn inode(&self, nr: BlockNr) -> InodeRef {
        self.core
            .inodes
            .get(&self.core, nr)
            .await
            .expect("an inode")
    }

    /// A new inode with one link less than it will have names, in no directory yet.
    async fn new_inode(&self, h: &mut Handle<'_>, mode: u16, links: u32) -> InodeRef {
        let core = &self.core;
        let place = alloc::claim_inode(core, h, None).await.expect("an inode");
        let block = h.fresh(place.block, Kind::Dinode);
        let directory = mode >> 12 == 4;
        let new = NewDinode {
            nr: place.block,
            suballoc: Suballoc {
                slot: place.slot,
                bit: place.bit,
                group: place.group,
            },
            generation: Generation(7),
            mode,
            uid: 0,
            gid: 0,
            links,
            rdev: 0,
            time: (1_700_000_000, 0),
            inline_xattr_bytes: 0,
            inline_data: directory && self.geometry().has(Incompat::INLINE_DATA),
        };
        Dinode::init(&mut h.modify(&block), self.geometry(), &new);
        core.inodes.adopt(place.block, block)
    }

    /// A directory in the root directory.
    pub async fn mkdir(&self, name: &[u8]) -> InodeRef {
        let (core, root) = (&self.core, self.root().await);
        let mut h = self.begin(100).await;
        let new = self.new_inode(&mut h, 0o040_755, 2).await;
        dir::init_new(core, &mut h, new.block(), root.nr())
            .await
            .expect("a directory");
        dir::insert(core, &mut h, &root, name, new.nr(), 2)
            .await
            .expect("its name");
        add_links(&mut h, &root, 1);
        h.commit();
        new
    }

    /// A regular file without a name.
    pub async fn file(&self) -> InodeRef {
        let mut h = self.begin(50).await;
        let file = self.new_inode(&mut h, 0o100_644, 0).await;
        h.commit();
        file
    }

    /// Adds a name for `file` and counts the link.
    pub async fn link(&self, dir: &InodeRef, name: &[u8], file: &InodeRef) -> crate::Result<()> {
        let blocks = dir::insert_blocks(&self.core, dir, name).await?;
        let mut h = self.begin(blocks + 1).await;
        dir::insert(&self.core, &mut h, dir, name, file.nr(), 1).await?;
        add_links(&mut h, file, 1);
        // The estimate covers it all.
        assert!(
            h.len() as u32 <= blocks + 1,
            "{} blocks changed, {blocks} foreseen",
            h.len()
        );
        h.commit();
        Ok(())
    }

    pub async fn unlink(&self, dir: &InodeRef, name: &[u8], file: &InodeRef) -> crate::Result<()> {
        let mut h = self.begin(dir::REMOVE_BLOCKS + 1).await;
        dir::remove(&self.core, &mut h, dir, name).await?;
        add_links(&mut h, file, -1);
        assert!(h.len() as u32 <= dir::REMOVE_BLOCKS + 1);
        h.commit();
        Ok(())
    }

    /// All entries, in calls of at most `max`.
    pub async fn list(&self, dir: &InodeRef, max: usize) -> Vec<dir::Entry> {
        let (mut all, mut cookie) = (Vec::new(), 0);
        loop {
            let (part, done) = dir::read(&self.core, dir, cookie, max)
                .await
                .expect("entries");
            assert!(part.len() <= max);
            cookie = part.last().map_or(cookie, |entry| entry.cookie_next);
            assert!(done || !part.is_empty(), "no progress at {cookie}");
            all.extend(part);
            if done {
                return all;
            }
        }
    }
}

pub fn add_links(h: &mut Handle<'_>, inode: &InodeRef, by: i32) {
    let mut data = h.modify(inode.block());
    let dinode = Dinode::of_mut(&mut data);
    dinode.set_links(
        dinode
            .links()
            .checked_add_signed(by)
            .expect("a sound count"),
    );
}

async fn find_system(core: &Core) -> System {
    let dir = core
        .inodes
        .get(core, core.geometry.system_dir)
        .await
        .expect("an inode");
    let (entries, done) = dir::read(core, &dir, 0, 10_000)
        .await
        .expect("the system directory");
    assert!(done);
    let files: HashMap<_, _> = entries.into_iter().map(|e| (e.name, e.ino)).collect();
    let find = |name: &str| files.get(name.as_bytes()).copied();
    System::find(core.geometry.max_slots, find).expect("all system files")
}
