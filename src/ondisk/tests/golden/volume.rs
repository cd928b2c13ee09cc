//! A volume in an image file, read through the structures under test.

use crate::debugfs::{self, Report};
use crate::walk;
use ondisk::{
    BlockNr, Dinode, DirBlock, Geometry, Kind, RootKind, SlotNr, SystemFile, inline_data, probe,
};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use tempfile::TempDir;

pub struct Volume {
    file: File,
    path: PathBuf,
    geometry: Geometry,
    super_block: Vec<u8>,
    _directory: Option<TempDir>,
}

impl Volume {
    /// A new volume.
    pub fn format(block: u32, cluster: &str, megabytes: u64, journal: &str) -> Self {
        let directory = TempDir::new().expect("a place for temporary files");
        let path = directory.path().join("image");
        File::create(&path)
            .and_then(|file| file.set_len(megabytes << 20))
            .expect("a sparse file");
        debugfs::mkfs(&path, block, cluster, journal);
        Self {
            _directory: Some(directory),
            ..Self::open(path)
        }
    }

    /// An existing one.
    pub fn open(path: PathBuf) -> Self {
        let file = File::open(&path).expect("the image");
        let mut start = vec![0; ondisk::PROBE_BYTES];
        file.read_exact_at(&mut start, 0)
            .expect("a superblock's worth");
        let probed = probe(&start).expect("a superblock");
        assert_eq!(probed.verdict, ondisk::metaecc::Verdict::Clean);
        Self {
            file,
            path,
            geometry: probed.geometry,
            super_block: probed.block,
            _directory: None,
        }
    }

    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    pub fn super_block(&self) -> &[u8] {
        &self.super_block
    }

    pub fn len(&self) -> u64 {
        self.file.metadata().expect("a file").len()
    }

    pub fn debugfs(&self, request: &str) -> Report {
        debugfs::run(&self.path, request)
    }

    /// `count` blocks from `nr` on.
    pub fn blocks(&self, nr: BlockNr, count: u64) -> Vec<u8> {
        let mut buffer = vec![0; (count << self.geometry.block_size_bits) as usize];
        self.file
            .read_exact_at(&mut buffer, nr.0 << self.geometry.block_size_bits)
            .expect("inside the image");
        buffer
    }

    pub fn block(&self, nr: BlockNr) -> Vec<u8> {
        self.blocks(nr, 1)
    }

    /// A block whose checksum holds.
    pub fn verified(&self, kind: Kind, nr: BlockNr) -> Vec<u8> {
        let mut block = self.block(nr);
        if self.geometry.has_metaecc() {
            let verdict = kind.verify(&mut block, nr).expect("a checksum that holds");
            assert_eq!(verdict, ondisk::metaecc::Verdict::Clean, "{kind:?} in {nr}");
            // And what we would write is what is there.
            let before = block.clone();
            kind.compute(&mut block);
            assert!(block == before, "{kind:?} in {nr}");
        }
        block
    }

    /// A valid inode's block.
    pub fn dinode(&self, nr: BlockNr) -> Vec<u8> {
        let block = self.verified(Kind::Dinode, nr);
        Dinode::validate(&block, nr, &self.geometry).expect("a valid inode");
        block
    }

    /// Entries of a directory, dots included.
    pub fn entries(&self, dir: BlockNr) -> Vec<(Vec<u8>, BlockNr)> {
        let block = self.dinode(dir);
        let dinode = Dinode::of(&block);
        let mut found = Vec::new();
        let mut take = |area: DirBlock<'_>| {
            for entry in area.entries() {
                let entry = entry.expect("a sound entry");
                if !entry.is_free() {
                    assert!(ondisk::is_legal_name(entry.name));
                    found.push((entry.name.to_vec(), entry.inode));
                }
            }
        };
        if dinode.body() == ondisk::Body::Inline {
            take(DirBlock::inline(inline_data(&block), dir));
            return found;
        }
        let trailer = dinode.has_dir_trailer(&self.geometry);
        let indexed = dinode
            .dyn_features()
            .contains(ondisk::feature::DynFeatures::INDEXED_DIR);
        let blocks = dinode.i_size.get() >> self.geometry.block_size_bits;
        for nr in walk::file_blocks(self, &block)
            .into_iter()
            .take(blocks as usize)
        {
            let data = self.verified(Kind::DirBlock { trailer }, nr);
            DirBlock::validate(&data, nr, &self.geometry, dir, indexed)
                .expect("a valid directory block");
            take(DirBlock::new(&data, nr, trailer));
        }
        found
    }

    /// Names and inodes of the system directory, without dots.
    pub fn system_files(&self) -> Vec<(String, BlockNr)> {
        self.entries(self.geometry.system_dir)
            .into_iter()
            .map(|(name, nr)| (String::from_utf8(name).expect("ASCII"), nr))
            .filter(|(name, _)| !name.starts_with('.'))
            .collect()
    }

    pub fn system_file(&self, file: SystemFile, slot: SlotNr) -> BlockNr {
        let wanted = file.name(slot);
        let files = self.system_files();
        files
            .iter()
            .find(|(name, _)| *name == wanted)
            .unwrap_or_else(|| panic!("no {wanted}"))
            .1
    }

    /// A system file's content, as far as its size goes.
    pub fn content(&self, file: SystemFile, slot: SlotNr) -> Vec<u8> {
        let block = self.dinode(self.system_file(file, slot));
        let size = Dinode::of(&block).i_size.get() as usize;
        let bits = self.geometry.cluster_size_bits - self.geometry.block_size_bits;
        let mut content = Vec::new();
        for rec in walk::extents(self, &block, RootKind::Dinode) {
            content.extend(self.blocks(rec.block(), u64::from(rec.leaf_clusters()) << bits));
        }
        assert!(content.len() >= size);
        content.truncate(size);
        content
    }
}
