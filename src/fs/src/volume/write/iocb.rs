//! The request, and what became of it.
//!
//! An [`Iocb`] is all that survives an attempt: the file, where the rest goes, and the rest. It has
//! no word about how the last attempt went about it: what an attempt decides dies with the attempt.

use crate::volume::FileHandle;

/// A write request on its way.
pub(super) struct Iocb<'a> {
    pub file: &'a FileHandle,
    position: u64,
    rest: &'a [u8],
    done: u64,
    /// Where the first byte went.
    start: u64,
    /// For those who ask.
    attempts: Option<Vec<Attempted>>,
}

/// How an attempt went about its range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Path {
    /// Into the page cache.
    Cached,
    /// Over allocated, written, unshared clusters, straight to the device.
    InPlace,
    /// Into the dinode.
    Inline,
    /// Into allocated but unwritten clusters.
    Unwritten,
    /// Into a hole or past the end: clusters were claimed.
    Hole,
    /// Nothing was written: shared clusters were replaced by copies of our own.
    CopyOnWrite,
}

/// Why a request of a direct handle was not done as direct I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fallback {
    /// The file's data is in its inode, and still is afterwards.
    InlineData,
    /// Past the end of the file, on a volume without the append-dio feature.
    NoAppendDirect,
}

/// What other nodes see of a request: the level of its cluster write lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LockLevel {
    /// Protected read: others may write in place at the same time.
    Shared,
    /// The file is this node's.
    Exclusive,
}

/// What one attempt did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempted {
    pub path: Path,
    pub position: u64,
    /// How much it was asked for.
    pub length: u64,
    /// How much of that is in.
    pub bytes: u64,
    /// As direct I/O: on the device, past the cache, when the request was answered.
    pub direct: bool,
    /// Why not, though the handle asked for it.
    pub fallback: Option<Fallback>,
    /// It held a ragged edge's block against others.
    pub edges_serialised: bool,
    /// It had the inode to itself.
    pub exclusive: bool,
    /// The level of the request's cluster write lock.
    pub lock: LockLevel,
    /// Commits that were waited for until its bytes were durable, if the request asked for that.
    pub commits_waited: u32,
}

/// How an attempt has ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outcome {
    pub path: Path,
    pub bytes: usize,
    pub direct: bool,
    pub fallback: Option<Fallback>,
    pub edges_serialised: bool,
    pub exclusive: bool,
    pub lock: LockLevel,
}

impl<'a> Iocb<'a> {
    pub fn new(file: &'a FileHandle, position: u64, data: &'a [u8], explain: bool) -> Self {
        let attempts = explain.then(Vec::new);
        Iocb {
            file,
            position,
            rest: data,
            done: 0,
            start: position,
            attempts,
        }
    }

    pub fn position(&self) -> u64 {
        self.position
    }

    /// What is still to be written.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// One past the last byte of the rest; `None` beyond 64 bits.
    pub fn end(&self) -> Option<u64> {
        self.position.checked_add(self.rest.len() as u64)
    }

    /// An appending request finds its place. Only before its first byte is in.
    pub fn move_to_end(&mut self, size: u64) {
        assert_eq!(self.done, 0, "an append has one place");
        self.position = size;
        self.start = size;
    }

    /// An attempt has ended.
    pub fn advance(&mut self, outcome: Outcome) {
        let Outcome {
            path,
            bytes,
            direct,
            fallback,
            edges_serialised,
            exclusive,
            lock,
        } = outcome;
        if let Some(attempts) = &mut self.attempts {
            attempts.push(Attempted {
                path,
                position: self.position,
                length: self.rest.len() as u64,
                bytes: bytes as u64,
                direct,
                fallback,
                edges_serialised,
                exclusive,
                lock,
                commits_waited: 0,
            });
        }
        self.rest = &self.rest[bytes..];
        self.position += bytes as u64;
        self.done += bytes as u64;
    }

    /// The request, as it is, waited for commits to be durable: its last attempt tells.
    pub fn waited(&mut self, commits: u32) {
        if let Some(last) = self.attempts.as_mut().and_then(|all| all.last_mut()) {
            last.commits_waited += commits;
        }
    }

    /// Bytes in, where the first one went, and the attempts if they were asked for.
    pub fn outcome(self) -> (u64, u64, Vec<Attempted>) {
        (self.done, self.start, self.attempts.unwrap_or_default())
    }
}
