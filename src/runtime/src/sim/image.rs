//! The content of a disk, in memory: sparse, and shared between copies until one of them writes. A
//! copy of a disk of any size costs a few hundred pointers, which is what makes "crash at every
//! write" affordable.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

/// Bytes copied when a shared piece is written to: a few metadata blocks.
const CHUNK: usize = 16 << 10;
/// Chunks listed together; the list is shared between copies as well.
const CHUNKS_IN_REGION: usize = 256;
const REGION: u64 = (CHUNK * CHUNKS_IN_REGION) as u64;

type Chunk = Option<Arc<[u8; CHUNK]>>;

/// A disk's bytes. An absent chunk is all zero. `Send`, so that images can be judged in parallel.
#[derive(Clone, Default)]
pub struct Image {
    size_bytes: u64,
    regions: BTreeMap<u64, Arc<[Chunk; CHUNKS_IN_REGION]>>,
}

/// The pieces of `offset..offset + len` that each lie in one chunk: where the piece starts in the
/// range, its region, chunk, place in the chunk, and length.
fn pieces(offset: u64, len: u64) -> impl Iterator<Item = Piece> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at == len {
            return None;
        }
        let position = offset + at;
        let within = (position % CHUNK as u64) as usize;
        let count = (len - at).min((CHUNK - within) as u64) as usize;
        let piece = Piece {
            at,
            region: position / REGION,
            chunk: (position % REGION) as usize / CHUNK,
            within,
            count,
        };
        at += count as u64;
        Some(piece)
    })
}

struct Piece {
    at: u64,
    region: u64,
    chunk: usize,
    within: usize,
    count: usize,
}

impl Piece {
    fn in_range(&self) -> std::ops::Range<usize> {
        self.at as usize..self.at as usize + self.count
    }
    fn in_chunk(&self) -> std::ops::Range<usize> {
        self.within..self.within + self.count
    }
}

impl Image {
    /// All zero.
    pub fn empty(size_bytes: u64) -> Self {
        Image {
            size_bytes,
            regions: BTreeMap::new(),
        }
    }

    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut image = Image::empty(bytes.len() as u64);
        image.write_sparse(0, bytes);
        image
    }

    /// Reads a file; what is zero in it takes no memory.
    ///
    /// # Errors
    /// What opening or reading the file said.
    pub fn load(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let mut image = Image::empty(file.metadata()?.len());
        let mut piece = vec![0; 1 << 20];
        let mut offset = 0;
        while offset < image.size_bytes {
            let count = (image.size_bytes - offset).min(piece.len() as u64) as usize;
            file.read_exact(&mut piece[..count])?;
            image.write_sparse(offset, &piece[..count]);
            offset += count as u64;
        }
        Ok(image)
    }

    /// Writes a sparse file.
    ///
    /// # Errors
    /// What creating or writing the file said.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let mut file = File::create(path)?;
        file.set_len(self.size_bytes)?;
        for (offset, chunk) in self.chunks() {
            self.save_chunk(&mut file, offset, chunk)?;
        }
        Ok(())
    }

    /// Turns a file that holds `previous` into this image, writing only what is not shared between
    /// the two: cheap when one is a copy of the other with a few writes.
    ///
    /// # Errors
    /// What opening or writing the file said.
    pub fn save_over(&self, path: &Path, previous: &Image) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).open(path)?;
        file.set_len(self.size_bytes)?;
        for (offset, chunk) in self.chunks() {
            let same = previous
                .chunk_at(offset)
                .is_some_and(|old| Arc::ptr_eq(old, chunk));
            if !same {
                self.save_chunk(&mut file, offset, chunk)?;
            }
        }
        let zeroes = [0; CHUNK];
        for (offset, _) in previous.chunks() {
            if offset < self.size_bytes && self.chunk_at(offset).is_none() {
                let count = (self.size_bytes - offset).min(CHUNK as u64) as usize;
                file.seek(SeekFrom::Start(offset))?;
                file.write_all(&zeroes[..count])?;
            }
        }
        Ok(())
    }

    fn save_chunk(&self, file: &mut File, offset: u64, chunk: &[u8; CHUNK]) -> io::Result<()> {
        let count = (self.size_bytes - offset).min(CHUNK as u64) as usize;
        file.seek(SeekFrom::Start(offset))?;
        file.write_all(&chunk[..count])
    }

    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Bytes of memory that hold something, shared or not.
    pub fn stored_bytes(&self) -> u64 {
        self.chunks().count() as u64 * CHUNK as u64
    }

    /// Grows with zeroes, or cuts off.
    pub fn resize(&mut self, size_bytes: u64) {
        if size_bytes < self.size_bytes {
            self.fill(size_bytes, self.size_bytes - size_bytes, 0);
        }
        self.size_bytes = size_bytes;
    }

    fn check(&self, offset: u64, len: u64) {
        assert!(
            offset
                .checked_add(len)
                .is_some_and(|end| end <= self.size_bytes),
            "{len} bytes at {offset} are outside an image of {} bytes",
            self.size_bytes
        );
    }

    /// # Panics
    /// When the range is outside the image: a program error.
    pub fn read(&self, offset: u64, out: &mut [u8]) {
        self.check(offset, out.len() as u64);
        for piece in pieces(offset, out.len() as u64) {
            let to = &mut out[piece.in_range()];
            let chunk = self.regions.get(&piece.region);
            match chunk.and_then(|region| region[piece.chunk].as_ref()) {
                Some(chunk) => to.copy_from_slice(&chunk[piece.in_chunk()]),
                None => to.fill(0),
            }
        }
    }

    pub fn read_vec(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        self.read(offset, &mut out);
        out
    }

    /// # Panics
    /// When the range is outside the image: a program error.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.check(offset, bytes.len() as u64);
        for piece in pieces(offset, bytes.len() as u64) {
            let chunk = self.chunk_mut(piece.region, piece.chunk);
            chunk[piece.in_chunk()].copy_from_slice(&bytes[piece.in_range()]);
        }
    }

    /// Sets a range to one value; zeroes give memory back.
    ///
    /// # Panics
    /// When the range is outside the image: a program error.
    pub fn fill(&mut self, offset: u64, len: u64, value: u8) {
        self.check(offset, len);
        for piece in pieces(offset, len) {
            if value != 0 {
                self.chunk_mut(piece.region, piece.chunk)[piece.in_chunk()].fill(value);
                continue;
            }
            let Some(region) = self.regions.get_mut(&piece.region) else {
                continue;
            };
            if region[piece.chunk].is_none() {
                continue;
            }
            let chunk = &mut Arc::make_mut(region)[piece.chunk];
            if piece.count == CHUNK {
                *chunk = None;
            } else if let Some(chunk) = chunk {
                Arc::make_mut(chunk)[piece.in_chunk()].fill(0);
            }
        }
    }

    /// Writes, but leaves zeroes over nothing as nothing.
    fn write_sparse(&mut self, offset: u64, bytes: &[u8]) {
        for piece in pieces(offset, bytes.len() as u64) {
            let from = &bytes[piece.in_range()];
            if from.iter().any(|byte| *byte != 0) {
                self.chunk_mut(piece.region, piece.chunk)[piece.in_chunk()].copy_from_slice(from);
            }
        }
    }

    fn chunk_mut(&mut self, region: u64, chunk: usize) -> &mut [u8; CHUNK] {
        let region = self
            .regions
            .entry(region)
            .or_insert_with(|| Arc::new([const { None }; CHUNKS_IN_REGION]));
        let chunk = Arc::make_mut(region)[chunk].get_or_insert_with(|| Arc::new([0; CHUNK]));
        Arc::make_mut(chunk)
    }

    fn chunk_at(&self, offset: u64) -> Option<&Arc<[u8; CHUNK]>> {
        let region = self.regions.get(&(offset / REGION))?;
        region[(offset % REGION) as usize / CHUNK].as_ref()
    }

    /// Chunks that are there, in order, with their offsets.
    fn chunks(&self) -> impl Iterator<Item = (u64, &Arc<[u8; CHUNK]>)> {
        self.regions.iter().flat_map(|(number, region)| {
            let start = number * REGION;
            region.iter().enumerate().filter_map(move |(index, chunk)| {
                Some((start + (index * CHUNK) as u64, chunk.as_ref()?))
            })
        })
    }

    /// The first byte at which two images differ.
    pub fn first_difference(&self, other: &Image) -> Option<u64> {
        let zero = [0; CHUNK];
        let mut offsets: Vec<u64> = self.chunks().chain(other.chunks()).map(|c| c.0).collect();
        offsets.sort_unstable();
        offsets.dedup();
        for offset in offsets {
            let (a, b) = (self.chunk_at(offset), other.chunk_at(offset));
            if let (Some(a), Some(b)) = (a, b)
                && Arc::ptr_eq(a, b)
            {
                continue;
            }
            let a = a.map_or(&zero, |chunk| &**chunk);
            let b = b.map_or(&zero, |chunk| &**chunk);
            if let Some(index) = a.iter().zip(b).position(|(a, b)| a != b) {
                return Some(offset + index as u64);
            }
        }
        (self.size_bytes != other.size_bytes).then(|| self.size_bytes.min(other.size_bytes))
    }
}

impl PartialEq for Image {
    fn eq(&self, other: &Image) -> bool {
        self.first_difference(other).is_none()
    }
}

impl Eq for Image {}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Image({} bytes, {} stored)",
            self.size_bytes,
            self.stored_bytes()
        )
    }
}

#[cfg(test)]
#[path = "image_tests.rs"]
mod tests;
