//! A volume with one of everything, and tools to damage its metadata with the checksums repaired.

use std::collections::BTreeMap;

use fs::volume::{CloneAs, IfExists, Ino, MountOptions, Volume};
use fs::xattr::XattrMode;
use ondisk::{
    BlockNr, Body, Dinode, DirBlock, ExtentBlock, ExtentRec, Geometry, GroupDesc, Kind, RootKind,
    chain_list, extent_list, group_bitmap, inline_data,
};
use runtime::sim::{DiskOptions, Image, SimDisk, Simulation};

use super::{DIRECT, READ_WRITE, Rig, new_inode, pattern, put, write_all};

/// An image, what its superblock says, and where things are.
#[derive(Clone)]
pub struct Bench {
    pub image: Image,
    pub geometry: Geometry,
    /// Inodes by name: of the files below, and of the system directory.
    pub inodes: BTreeMap<String, u64>,
}

impl Bench {
    pub fn of(image: Image) -> Bench {
        let mut start = vec![0; ondisk::PROBE_BYTES];
        image.read(0, &mut start);
        let geometry = ondisk::probe(&start).unwrap().geometry;
        let mut bench = Bench {
            image,
            geometry,
            inodes: BTreeMap::new(),
        };
        let system = bench.geometry.system_dir;
        for (name, ino) in bench.entries(system.0) {
            bench.inodes.insert(name, ino);
        }
        bench
    }

    pub fn ino(&self, name: &str) -> u64 {
        *self.inodes.get(name).unwrap_or_else(|| panic!("no {name}"))
    }

    pub fn block(&self, nr: u64) -> Vec<u8> {
        let mut bytes = vec![0; self.geometry.block_size()];
        self.image
            .read(nr << self.geometry.block_size_bits, &mut bytes);
        bytes
    }

    pub fn put(&mut self, nr: u64, bytes: &[u8]) {
        self.image.write(nr << self.geometry.block_size_bits, bytes);
    }

    /// Changes a block and repairs its checksum.
    pub fn edit(&mut self, nr: u64, kind: Kind, change: impl FnOnce(&mut [u8])) {
        let len = match kind {
            Kind::XattrBucket => 4096.max(self.geometry.block_size()),
            _ => self.geometry.block_size(),
        };
        let mut bytes = vec![0; len];
        let offset = nr << self.geometry.block_size_bits;
        self.image.read(offset, &mut bytes);
        let before = bytes.clone();
        change(&mut bytes);
        assert!(before != bytes, "the damage changes nothing in block {nr}");
        if self.geometry.has_metaecc() {
            kind.compute(&mut bytes);
        }
        self.image.write(offset, &bytes);
    }

    pub fn inode(&mut self, name: &str, change: impl FnOnce(&mut Dinode)) {
        let nr = self.ino(name);
        self.edit(nr, Kind::Dinode, |bytes| change(Dinode::of_mut(bytes)));
    }

    /// The whole block of an inode.
    pub fn inode_block(&mut self, name: &str, change: impl FnOnce(&mut [u8])) {
        let nr = self.ino(name);
        self.edit(nr, Kind::Dinode, change);
    }

    pub fn group(&mut self, nr: u64, change: impl FnOnce(&mut GroupDesc)) {
        self.edit(nr, Kind::GroupDesc, |bytes| {
            change(GroupDesc::of_mut(bytes))
        });
    }

    /// The first group of an allocator's first chain.
    pub fn first_group(&self, allocator: &str) -> u64 {
        let block = self.block(self.ino(allocator));
        chain_list(&block).used()[0].first_group().0
    }

    /// The leaf records of an inode's data.
    pub fn extents(&self, ino: u64) -> Vec<ExtentRec> {
        let block = self.block(ino);
        self.leaves(&block, RootKind::Dinode)
    }

    pub fn leaves(&self, block: &[u8], root: RootKind) -> Vec<ExtentRec> {
        let list = extent_list(block, root);
        if list.depth() == 0 {
            let used = list.used().iter();
            return used.filter(|rec| !rec.is_empty_leaf()).copied().collect();
        }
        list.used()
            .iter()
            .flat_map(|rec| {
                let child = self.block(rec.block().0);
                assert_eq!(ExtentBlock::of(&child).h_signature, ExtentBlock::SIGNATURE);
                self.leaves(&child, RootKind::ExtentBlock)
            })
            .collect()
    }

    /// The first leaf below an inode's root.
    pub fn first_leaf(&self, name: &str) -> u64 {
        let block = self.block(self.ino(name));
        let list = extent_list(&block, RootKind::Dinode);
        assert_eq!(list.depth(), 1, "{name} has no leaves");
        let used = list.used().iter();
        let first = used
            .filter(|rec| rec.int_clusters() > 0)
            .map(|rec| rec.block().0);
        first.min_by_key(|_| 0).unwrap()
    }

    /// The blocks of a directory.
    pub fn dir_blocks(&self, ino: u64) -> Vec<u64> {
        let per_cluster = u64::from(self.geometry.blocks_per_cluster());
        let inode = self.block(ino);
        let count = Dinode::of(&inode).i_size.get() >> self.geometry.block_size_bits;
        let all = self.extents(ino).into_iter().flat_map(|rec| {
            (0..u64::from(rec.leaf_clusters()) * per_cluster).map(move |at| rec.block().0 + at)
        });
        all.take(count as usize).collect()
    }

    pub fn entries(&self, dir: u64) -> Vec<(String, u64)> {
        let inode = self.block(dir);
        let trailer = Dinode::of(&inode).has_dir_trailer(&self.geometry);
        let mut found = Vec::new();
        let mut take = |block: DirBlock<'_>| {
            for entry in block.entries() {
                let entry = entry.unwrap();
                if entry.inode.is_some() {
                    found.push((
                        String::from_utf8_lossy(entry.name).into_owned(),
                        entry.inode.0,
                    ));
                }
            }
        };
        if Dinode::of(&inode).body() == Body::Inline {
            take(DirBlock::inline(inline_data(&inode), BlockNr(dir)));
            return found;
        }
        for nr in self.dir_blocks(dir) {
            take(DirBlock::new(&self.block(nr), BlockNr(nr), trailer));
        }
        found
    }

    /// Changes the record of a name in a directory: the bytes from its start on.
    pub fn dirent(&mut self, dir: &str, name: &str, change: impl FnOnce(&mut [u8])) {
        let ino = self.ino(dir);
        let inode = self.block(ino);
        if Dinode::of(&inode).body() == Body::Inline {
            let span = ondisk::inline_data_span(&inode);
            let at = offset(DirBlock::inline(&inode[span.clone()], BlockNr(ino)), name).unwrap();
            self.edit(ino, Kind::Dinode, |bytes| {
                change(&mut bytes[span.start + at..])
            });
            return;
        }
        let trailer = Dinode::of(&inode).has_dir_trailer(&self.geometry);
        for nr in self.dir_blocks(ino) {
            let block = self.block(nr);
            if let Some(at) = offset(DirBlock::new(&block, BlockNr(nr), trailer), name) {
                self.edit(nr, Kind::DirBlock { trailer }, |bytes| {
                    change(&mut bytes[at..])
                });
                return;
            }
        }
        panic!("no {name} in {dir}");
    }

    /// A bit of a group, with the counts of group, chain and allocator: 1 sets, 0 clears.
    pub fn set_bit(&mut self, allocator: &str, group: u64, bit: u32, set: bool) {
        let change = if set { 1i64 } else { -1 };
        let block = self.block(group);
        let old = group_bitmap(&block)[bit as usize / 8] >> (bit % 8) & 1 == 1;
        assert_ne!(old, set, "bit {bit} of group {group}");
        let chain = GroupDesc::of(&block).bg_chain.get();
        self.edit(group, Kind::GroupDesc, |bytes| {
            ondisk::group_bitmap_mut(bytes)[bit as usize / 8] ^= 1 << (bit % 8);
            let free = &mut GroupDesc::of_mut(bytes).bg_free_bits_count;
            free.set((i64::from(free.get()) - change) as u16);
        });
        self.inode_block(allocator, |bytes| {
            let mut list = ondisk::chain_list_mut(bytes);
            let free = &mut list.records[usize::from(chain)].c_free;
            free.set((i64::from(free.get()) - change) as u32);
            let _ = &mut list;
            let inode = Dinode::of_mut(bytes);
            inode.set_used((i64::from(inode.used()) + change) as u32);
        });
    }

    /// A free bit of the first group of an allocator.
    pub fn free_bit(&self, allocator: &str) -> (u64, u32) {
        let group = self.first_group(allocator);
        let block = self.block(group);
        let bits = u32::from(GroupDesc::of(&block).bg_bits.get());
        let bitmap = group_bitmap(&block);
        let free = |bit: &u32| bitmap[*bit as usize / 8] >> (*bit % 8) & 1 == 0;
        (group, (0..bits).rev().find(free).unwrap())
    }
}

fn offset(block: DirBlock<'_>, name: &str) -> Option<usize> {
    block
        .find(name.as_bytes())
        .unwrap()
        .map(|entry| entry.offset)
}

/// A volume with one of everything, cleanly unmounted.
pub fn furnish(block: u32, cluster: u32, size_mb: u64, features: &str) -> Bench {
    let rig = Rig::new(block, cluster, size_mb, features);
    let sim = Simulation::new(1);
    sim.set_step_budget(u64::MAX);
    let disk = SimDisk::with(rig.disk.image(), DiskOptions::default(), None);
    let mut inodes = BTreeMap::new();
    sim.block_on(async {
        let volume = Volume::mount(disk.device(), sim.host(), MountOptions::default())
            .await
            .unwrap();
        fill(&volume, u64::from(cluster), &mut inodes).await;
        volume.unmount().await.unwrap();
    })
    .unwrap();
    let mut bench = Bench::of(disk.image());
    inodes.insert("/".into(), bench.geometry.root_dir.0);
    bench.inodes.extend(inodes);
    bench
}

/// A volume of the oldest format: what [`furnish`] has of it.
pub fn furnish_plain(block: u32, cluster: u32, size_mb: u64, features: &str) -> Bench {
    let rig = Rig::new(block, cluster, size_mb, features);
    let mut inodes = BTreeMap::new();
    rig.run(async {
        let volume = rig.mount().await.unwrap();
        let root = volume.root();
        let few = volume.mkdir(root, b"few", new_inode()).await.unwrap().ino;
        inodes.insert("few".to_owned(), few.0);
        let data = put(&volume, root, b"data", &pattern(1, 5 * cluster as usize))
            .await
            .unwrap();
        inodes.insert("data".to_owned(), data.ino.0);
        volume.unmount().await.unwrap();
    });
    let mut bench = Bench::of(rig.disk.image());
    inodes.insert("/".into(), bench.geometry.root_dir.0);
    bench.inodes.extend(inodes);
    bench
}

async fn fill(volume: &Volume, cluster: u64, inodes: &mut BTreeMap<String, u64>) {
    let root = volume.root();
    let mut know = |name: &str, ino: Ino| {
        inodes.insert(name.to_owned(), ino.0);
    };
    for (name, count, length) in [("few", 4, 5), ("some", 80, 60), ("many", 700, 20)] {
        let dir = volume
            .mkdir(root, name.as_bytes(), new_inode())
            .await
            .unwrap()
            .ino;
        know(name, dir);
        for n in 0..count {
            let child = format!("{n:03}{}", "n".repeat(length));
            let made = volume
                .create(dir, child.as_bytes(), new_inode(), IfExists::Fail)
                .await
                .unwrap();
            if n == 1 {
                know(&format!("{name}/1"), made.ino);
            }
        }
    }
    let above = volume.mkdir(root, b"above", new_inode()).await.unwrap().ino;
    know("above", above);
    let below = volume
        .mkdir(above, b"below", new_inode())
        .await
        .unwrap()
        .ino;
    know("below", below);
    know(
        "inline",
        put(volume, root, b"inline", b"small").await.unwrap().ino,
    );
    let data = pattern(1, 5 * cluster as usize);
    know("data", put(volume, root, b"data", &data).await.unwrap().ino);
    know(
        "other",
        put(volume, root, b"other", &data).await.unwrap().ino,
    );
    let fast = volume
        .symlink(root, b"fast", b"inline", new_inode())
        .await
        .unwrap();
    know("fast", fast.ino);
    let slow = volume
        .symlink(root, b"slow", &[b's'; 4000], new_inode())
        .await
        .unwrap();
    know("slow", slow.ino);
    // Every second cluster: one record each, so that the tree grows. Another file has the clusters
    // between, so that records of their counts do not become one.
    let mut files = Vec::new();
    for name in ["sparse", "weft"] {
        let ino = put(volume, root, name.as_bytes(), b"").await.unwrap().ino;
        know(name, ino);
        files.push(volume.open(ino, DIRECT).await.unwrap()); // each piece gets its place at once
    }
    for n in 0..700 {
        for file in &files {
            write_all(volume, file, n * 2 * cluster, b"piece")
                .await
                .unwrap();
        }
    }
    for file in files {
        volume.close(file).await.unwrap();
    }
    for (name, count, length) in [
        ("xinline", 2, 10),
        ("xblock", 12, 60),
        ("xtree", 300, 70),
        ("xlarge", 3, 9000),
    ] {
        let ino = put(volume, root, name.as_bytes(), &pattern(2, 6000))
            .await
            .unwrap()
            .ino;
        know(name, ino);
        for n in 0..count {
            let key = format!("user.{name}{n:04}");
            let value = pattern(n, length);
            volume
                .setxattr(ino, key.as_bytes(), &value, XattrMode::Any)
                .await
                .unwrap();
        }
    }
    for name in ["data", "sparse"] {
        let source = volume.lookup(root, name.as_bytes()).await.unwrap().ino;
        let clone = format!("{name}-clone");
        let made = volume
            .clone_file(source, root, clone.as_bytes(), CloneAs::Same)
            .await
            .unwrap();
        know(&clone, made.ino);
    }
    // Its own clusters again, in part.
    let clone = volume.lookup(root, b"sparse-clone").await.unwrap().ino;
    let file = volume.open(clone, READ_WRITE).await.unwrap();
    for n in 100..140 {
        write_all(volume, &file, n * 2 * cluster, b"mine")
            .await
            .unwrap();
    }
    volume.close(file).await.unwrap();
}
