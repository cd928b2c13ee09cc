//! Every bound of this crate in one place, so that one look tells what memory and what waiting it can cost.

use std::time::Duration;

/// Messages from other threads that may wait for a reactor. Beyond it `spawn` and `call` are refused: whoever sends
/// faster than the reactor works must wait, not fill memory. Wake-ups do not count: there is one a task at most.
pub const MAILBOX_MESSAGES: usize = 65_536;

/// Requests of one reactor that SPDK has at once; more wait here, in order. Deeper queues gain nothing on any device, and
/// some of SPDK's modules fail, rather than queue, what exceeds their own pools of 2,048.
pub const WITH_SPDK: usize = 1_024;

/// Ready tasks that one turn of the loop runs before it polls the devices again.
pub const TASKS_PER_TURN: usize = 256;

/// Bytes of DMA memory a reactor keeps for reuse in each size class; of large buffers also what all keep together.
pub const POOLED_BYTES_PER_CLASS: usize = 8 << 20;

/// The largest pooled size class; larger buffers go straight back to SPDK.
pub const POOLED_BUFFER_MAX: usize = 4 << 20;

/// Requests in SPDK's block layer pool, and of these in each thread's cache. SPDK's default of 65,535 takes some 60 MiB.
pub const BDEV_POOL_REQUESTS: u32 = 16_383;
pub const BDEV_POOL_CACHED: u32 = 256;

/// SPDK's own bounce buffers: small ones of 8 KiB, large ones of 132 KiB. Its defaults take 200 MiB.
pub const IOBUF_SMALL_COUNT: u64 = 2_048;
pub const IOBUF_LARGE_COUNT: u64 = 256;

/// Of these, how many small and large ones each thread keeps for block devices, and as many for copies and checksums.
/// SPDK's defaults of 128 and 16 would be all there are for a few threads.
pub const IOBUF_SMALL_CACHED: u32 = 32;
pub const IOBUF_LARGE_CACHED: u32 = 4;

/// And how many NVMe/TCP may hold for its hosts, and each thread keeps of these.
pub const TCP_SHARED: u32 = 192;
pub const TCP_CACHED: u32 = 16;

/// Messages between SPDK threads that may be under way in the process.
pub const SPDK_MESSAGES: usize = 16_383;

/// A JSON-RPC answer of our own SPDK larger than this is not believed.
pub const RPC_ANSWER_BYTES: usize = 64 << 20;

/// JSON-RPC calls that may wait for an answer at once.
pub const RPC_CALLS: usize = 1_024;

/// How long each step of a shutdown may take before it is given up and named in the error.
pub const SHUTDOWN_STEP: Duration = Duration::from_secs(30);

/// Requests of one exported device that are served at once; more wait, in order.
pub const EXPORT_WORKERS: usize = 512;

/// While a transport serves hosts, an adaptive reactor polls on for so long after the last thing that happened, and
/// sleeps no longer than this: what comes in by a socket or by shared memory does not wake it.
pub const TRANSPORT_SPIN: Duration = Duration::from_micros(500);
pub const TRANSPORT_SLEEP: Duration = Duration::from_micros(100);
