//! For tests of this crate: volumes made by mkfs.ocfs2 on a simulated disk, and the tools as judges.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use ondisk::{BlockNr, Dinode, DirBlock, Generation, Geometry, Kind, NewDinode, SlotNr, Suballoc};
use runtime::Host;
use runtime::sim::{DiskOptions, Image, SimDisk, Simulation};

use crate::alloc;
use crate::cache::{BlockRef, Cache};
use crate::core::{Core, Late};
use crate::extent::{self, Root};
use crate::inode::Inodes;
use crate::journal::{Handle, Journal, JournalSetup};
use crate::limits::COMMIT_INTERVAL;
use crate::system::{System, SystemFile};

/// A volume's file, deleted with it.
pub struct Volume {
    _dir: tempfile::TempDir,
    pub path: PathBuf,
}

/// Runs one of ocfs2-tools: its output, and its status.
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
    /// A local volume with two slots, a journal of 4 MiB and all features.
    pub fn make(block: usize, cluster: usize, size_mb: u64) -> Volume {
        let features = "--fs-features=sparse,unwritten,inline-data,extended-slotmap,metaecc,xattr,\
                        indexed-dirs,refcount,discontig-bg";
        Volume::with(block, cluster, size_mb, features)
    }

    pub fn with(block: usize, cluster: usize, size_mb: u64, features: &str) -> Volume {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("volume");
        std::fs::File::create(&path)
            .unwrap()
            .set_len(size_mb << 20)
            .unwrap();
        let journal = if cluster < 65536 {
            "size=4M"
        } else {
            "size=16M"
        };
        let (block, cluster) = (block.to_string(), cluster.to_string());
        let text = path.to_str().unwrap();
        let args = [
            "-q", "-x", "-F", "-M", "local", "-N", "2", "-b", &block, "-C", &cluster, "-J",
            journal, features, text,
        ];
        let (output, status) = tool("mkfs.ocfs2", &args);
        assert_eq!(status, 0, "{output}");
        Volume { _dir: dir, path }
    }

    pub fn image(&self) -> Image {
        Image::load(&self.path).unwrap()
    }

    /// Saves what the disk holds and lets fsck.ocfs2 judge it, without repairs.
    pub fn fsck(&self, disk: &SimDisk) {
        disk.image().save(&self.path).unwrap();
        let (text, status) = tool("fsck.ocfs2", &["-fn", self.path.to_str().unwrap()]);
        // Findings are questions that -n answers with no.
        let complaints: Vec<&str> = text.lines().filter(|line| line.contains("<n>")).collect();
        assert!(
            status == 0 && complaints.is_empty(),
            "fsck.ocfs2 ends with {status}:\n{text}"
        );
    }
}

/// Output of one command of debugfs.ocfs2.
pub fn debugfs(image: &Path, command: &str) -> String {
    tool("debugfs.ocfs2", &["-R", command, image.to_str().unwrap()]).0
}

/// The volume on the disk, as its inner parts see it, with the journal of slot 0.
pub async fn open(sim: &Simulation, disk: &SimDisk) -> Core {
    let mut core = open_parts(sim, disk).await;
    let dinode = core.system_file(SystemFile::Journal);
    let setup = JournalSetup {
        device: core.device.clone(),
        host: core.host.clone(),
        geometry: core.geometry.clone(),
        cache: core.cache.clone(),
        commit_interval: COMMIT_INTERVAL,
    };
    let (journal, _) = Journal::open(setup, dinode).await.unwrap();
    core.journal = Late::of(journal);
    core
}

/// As [`open`], without a journal: nothing is replayed, and nothing can be changed but directly.
pub async fn open_parts(sim: &Simulation, disk: &SimDisk) -> Core {
    let geometry = geometry(&disk.image());
    let geometry = Rc::new(geometry);
    let device = disk.device();
    let host: Rc<dyn Host> = sim.host();
    let cache = Rc::new(Cache::new(device.clone(), geometry.clone(), 8 << 20));
    let mut core = Core {
        device: device.clone(),
        host: host.clone(),
        geometry: geometry.clone(),
        cache: cache.clone(),
        journal: Late::default(),
        slot: SlotNr(0),
        system: System::default(),
        inodes: Inodes::default(),
        alloc: alloc::State::default(),
    };
    core.system = system(&core).await;
    core
}

/// Everything home, nothing left in windows and logs: what an unmount does.
pub async fn close(core: &Core) {
    alloc::flush_truncate_log(core).await.unwrap();
    alloc::shutdown_local(core).await.unwrap();
    core.journal.close().await.unwrap();
}

pub fn geometry(image: &Image) -> Geometry {
    let mut start = vec![0; ondisk::PROBE_BYTES];
    image.read(0, &mut start);
    ondisk::probe(&start).unwrap().geometry
}

/// A fresh disk with the volume on it.
pub fn disk(sim: &Simulation, volume: &Volume) -> SimDisk {
    SimDisk::with(volume.image(), DiskOptions::default(), Some(&sim.world()))
}

/// Every entry of a directory that is neither inline nor changed meanwhile.
pub async fn entries(core: &Core, dir: BlockNr) -> Vec<(Vec<u8>, BlockNr, u8)> {
    let block = core.cache.read(dir, Kind::Dinode).await.unwrap();
    let mut found = Vec::new();
    let collect = |entries: DirBlock<'_>, found: &mut Vec<(Vec<u8>, BlockNr, u8)>| {
        for entry in entries.entries() {
            let entry = entry.unwrap();
            if entry.inode.is_some() {
                found.push((entry.name.to_vec(), entry.inode, entry.file_type));
            }
        }
    };
    let (size, trailer, inline) = {
        let data = block.data();
        let inode = ondisk::Dinode::of(&data);
        let inline = inode.body() == ondisk::Body::Inline;
        if inline {
            collect(
                DirBlock::inline(ondisk::inline_data(&data), dir),
                &mut found,
            );
        }
        (
            inode.i_size.get(),
            inode.has_dir_trailer(&core.geometry),
            inline,
        )
    };
    if inline {
        return found;
    }
    let root = Root::dinode(&block);
    for at in 0..core.geometry.blocks_for_bytes(size) {
        let per_cluster = u64::from(core.geometry.blocks_per_cluster());
        let mapping = extent::lookup(core, &root, (at / per_cluster) as u32)
            .await
            .unwrap();
        let nr = BlockNr(mapping.physical.unwrap().0 + at % per_cluster);
        let raw = core.cache.read_raw(nr, core.block_size()).await.unwrap();
        collect(DirBlock::new(&raw, nr, trailer), &mut found);
    }
    found
}

async fn system(core: &Core) -> System {
    let files = entries(core, core.geometry.system_dir).await;
    System::find(core.geometry.max_slots, |name| {
        files
            .iter()
            .find(|file| file.0 == name.as_bytes())
            .map(|file| file.1)
    })
    .unwrap()
}

/// A new regular file without data in the root directory of a volume whose directories have neither
/// trailers nor indexes.
pub async fn make_file(core: &Core, h: &mut Handle<'_>, name: &str) -> BlockRef {
    let dir = core
        .cache
        .read(core.geometry.root_dir, Kind::Dinode)
        .await
        .unwrap();
    let place = alloc::claim_inode(core, h, Some(dir.nr())).await.unwrap();
    let block = h.fresh(place.block, Kind::Dinode);
    let new = NewDinode {
        nr: place.block,
        suballoc: Suballoc {
            slot: place.slot,
            bit: place.bit,
            group: place.group,
        },
        generation: Generation(1),
        mode: 0o100_644,
        uid: 0,
        gid: 0,
        links: 1,
        rdev: 0,
        time: (1, 0),
        inline_xattr_bytes: 0,
        inline_data: false,
    };
    Dinode::init(&mut h.modify(&block), &core.geometry, &new);
    let first = extent::lookup(core, &Root::dinode(&dir), 0)
        .await
        .unwrap()
        .physical
        .unwrap();
    let entries = core
        .cache
        .read(first, Kind::DirBlock { trailer: false })
        .await
        .unwrap();
    let (offset, used, rec_len) = {
        let data = entries.data();
        let last = DirBlock::new(&data, first, false)
            .entries()
            .last()
            .unwrap()
            .unwrap();
        (
            last.offset,
            ondisk::dirent_len(last.name.len()),
            last.rec_len,
        )
    };
    let mut data = h.modify(&entries);
    ondisk::set_rec_len(&mut data, offset, used);
    let at = offset + used;
    ondisk::write_dirent(
        &mut data,
        at,
        place.block,
        rec_len - used,
        1,
        name.as_bytes(),
    );
    drop(data);
    block
}
