//! Every bound of the daemon's front end, in one place.

use std::time::Duration;

pub use proto::{MAX_IO_BYTES, MAX_MESSAGE_BYTES};

/// Operations of one volume that are on their way or being worked on.
pub const VOLUME_IN_FLIGHT: usize = 1024;
/// Operations of one `Io` stream that were taken and whose answers are not.
pub const IO_IN_FLIGHT: usize = 256;
/// Bytes of those operations, read and written. One operation always fits.
pub const IO_BYTES_IN_FLIGHT: usize = 32 << 20;
/// Attempts of one `Write` stream that its answer tells.
pub const ATTEMPTS_TOLD: usize = 4096;
/// Chunks of one `Read` stream that are read ahead of the client.
pub const READ_AHEAD_CHUNKS: usize = 4;
/// Chunk of a `Read` stream when the client does not choose, in bytes.
pub const READ_CHUNK_BYTES: usize = 1 << 20;
/// Extents of a file fetched at a time.
pub const EXTENTS_BATCH: usize = 1024;
/// Entries fetched from a directory at a time.
pub const READDIR_BATCH: usize = 256;
/// Names' bytes in one message of a directory listing, about.
pub const READDIR_MESSAGE_BYTES: usize = 256 << 10;
/// Values sent along with a list of extended attributes, in bytes.
pub const XATTR_LIST_BYTES: usize = 3 << 20;
/// Open handles, by default.
pub const HANDLES: usize = 65536;
/// Sessions.
pub const SESSIONS: usize = 4096;
/// Devices and volumes.
pub const DEVICES: usize = 256;
/// Requests and streams of one connection at once.
pub const STREAMS_PER_CONNECTION: u32 = 1024;
/// HTTP/2 windows, in bytes: what a client may have sent that nobody has taken yet.
pub const STREAM_WINDOW: u32 = 8 << 20;
pub const CONNECTION_WINDOW: u32 = 32 << 20;
/// A handle outside of any session ends when not used for so long, by default.
pub const IDLE_HANDLE: Duration = Duration::from_secs(600);
/// At the end, how long requests may take to finish, by default.
pub const GRACE: Duration = Duration::from_secs(30);
/// A connection that shows no life for this long, and does not answer a ping, is closed; its
/// sessions with it.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest name of a volume or device, in bytes.
pub const LABEL_MAX: usize = 64;
/// Longest path in a request, in bytes (the file system's own limit).
pub const PATH_MAX: usize = 128 << 10;
/// Longest extended attribute value, in bytes.
pub const XATTR_VALUE_MAX: usize = 65536;
/// Symbolic links followed when a file is made through them.
pub const SYMLINK_FOLLOW_MAX: usize = 40;
/// Files exported as block devices.
pub const EXPORTS: usize = 256;
/// How often an exported file's size is looked at.
pub const EXPORT_SIZE_LOOKS: Duration = Duration::from_millis(250);
/// Failed requests of one export are told at most so often.
pub const EXPORT_COMPLAINTS: Duration = Duration::from_secs(1);
