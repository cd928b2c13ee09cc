//! Every bound of this crate, in one place.

use std::time::Duration;

/// Longest name of a directory entry, in bytes.
pub const NAME_MAX: usize = 255;
/// Longest path that is resolved, in bytes. POSIX's PATH_MAX is 4096; gRPC clients may walk deeper.
pub const PATH_MAX: usize = 128 * 1024;
/// Symbolic links followed while one path is resolved.
pub const SYMLINK_FOLLOW_MAX: u32 = 40;
/// Longest symbolic link target, in bytes.
pub const SYMLINK_MAX: usize = 4095;
/// Longest extended attribute value, in bytes (the VFS's limit).
pub const XATTR_VALUE_MAX: usize = 65536;
/// Deepest extent tree that is walked. 2^32 clusters need far less even at 512-byte blocks.
pub const TREE_DEPTH_MAX: u16 = 10;
/// Clean metadata blocks kept in memory, in bytes.
pub const CACHE_BYTES: usize = 64 << 20;
/// A commit is started at the latest this long after a transaction's first change.
pub const COMMIT_INTERVAL: Duration = Duration::from_secs(5);
/// Most clusters one leaf extent record holds.
pub const EXTENT_CLUSTERS_MAX: u32 = 65535;
/// Most bytes one read returns.
pub const READ_MAX: u64 = 16 << 20;
/// Most extents one listing returns.
pub const EXTENTS_MAX: usize = 4096;
/// Most bytes one step of a write covers; a longer write is several steps.
pub const WRITE_STEP: u64 = 4 << 20;
/// Largest single write of file data to the device; a step's are in flight together.
pub const DATA_IO_BYTES: usize = 1 << 20;
/// Shared clusters are copied in aligned pieces of so many bytes, as the kernel does, unless the
/// mount says otherwise.
pub const COPY_ON_WRITE_BYTES: u32 = 1 << 20;
/// File data in memory, in bytes, unless the mount says otherwise.
pub const PAGE_CACHE_BYTES: usize = 64 << 20;
/// Cached data is written back when it has waited so long.
pub const WRITE_BACK_AGE: Duration = Duration::from_secs(5);
/// How often it is looked at.
pub const WRITE_BACK_INTERVAL: Duration = Duration::from_secs(1);
/// Runs of pages of one file that are written back together.
pub const WRITE_BACK_RUNS: usize = 32;
/// Least and most bytes that are read ahead of a sequential reader.
pub const READ_AHEAD_MIN: u64 = 128 << 10;
pub const READ_AHEAD_MAX: u64 = 2 << 20;
/// Largest single write of a commit, a checkpoint or a replay, in bytes.
pub const JOURNAL_IO_BYTES: usize = 512 << 10;
/// Writes of one commit, checkpoint or replay that are in flight together.
pub const JOURNAL_IOS_IN_FLIGHT: usize = 32;
/// A journal file is at least this long, in bytes: the kernel's limit.
pub const JOURNAL_MIN_BYTES: u64 = 4 << 20;
/// Blocks that a replay holds in memory at a time.
pub const REPLAY_BATCH_BLOCKS: usize = 4096;
/// How long freed clusters wait in the truncate log for more to come.
pub const TRUNCATE_LOG_DELAY: Duration = Duration::from_secs(2);
/// Inodes out of use of which it is remembered one by one what their fsync has to wait for.
pub const UNSETTLED_INODES: usize = 4096;
/// Old metadata that is kept for a check of a volume in use, in bytes.
pub const CHECK_KEPT_BYTES: usize = 256 << 20;
/// How often a check begins again because more changed than is kept.
pub const CHECK_ATTEMPTS: u32 = 4;
/// Findings that a check tells one by one; beyond, it counts them.
pub const CHECK_FINDINGS_MAX: usize = 10_000;
/// How often a check tells its progress, a phase.
pub const CHECK_PROGRESS_STEPS: u64 = 50;
/// What a check reads at once of a group of inodes, in bytes.
pub const CHECK_READ_BYTES: usize = 256 << 10;
/// Corrected blocks that wait to be written again.
pub const HEAL_MAX: usize = 256;
