//! What every [`BlockDevice`] must do, as a suite that any of them can be put through: the simulated
//! disk here, the SPDK bdevs in their crate. It uses the two traits only, so it runs on any
//! executor, and it returns what is violated instead of panicking on someone's reactor.
//!
//! A device that passes may be put under the filesystem. What the filesystem assumes beyond it
//! (what a power loss may do) is in `docs/media.md`, and only the simulated disk can show that.

use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::future::join_all;
use rand::RngCore;

use crate::buffer::{Buffer, Memory};
use crate::device::{BlockDevice, BlockDeviceExt, DeviceError, DeviceErrorKind, DeviceInfo};
use crate::host::Host;
use crate::io::{Buffers, Op};
use crate::sim::SimRng;

/// The smallest area the suite can work in.
pub const MIN_AREA_BYTES: u64 = 8 << 20;

/// Requests in flight at once in the widest test.
const WIDE: u64 = 256;
/// The largest single transfer tried.
const LARGE: usize = 1 << 20;
/// Independent sequences of operations in the storm, and operations in each.
const LANES: u64 = 16;
const OPS_IN_LANE: u64 = 60;
/// How long an abandoned request may keep its buffers.
const ABANDONED_PATIENCE: Duration = Duration::from_secs(10);

/// A rule that the device broke.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{rule}: {what} (seed {seed})")]
pub struct Violation {
    /// The name of the rule's function below.
    pub rule: &'static str,
    pub what: String,
    pub seed: u64,
}

/// One rule's verdict: nothing, or what is wrong.
type Verdict = Result<(), String>;

struct Suite<'a> {
    device: &'a dyn BlockDevice,
    host: &'a dyn Host,
    info: DeviceInfo,
    block: u64,
    /// What may be overwritten, in bytes from the start of the device.
    area: Range<u64>,
}

/// Puts the device through all rules. Destroys what is in `area`, which must begin and end at a
/// block and hold [`MIN_AREA_BYTES`]. A read-only device is only tried as far as that goes.
///
/// # Errors
/// The first rule that is violated.
pub async fn run(
    device: Rc<dyn BlockDevice>,
    host: &dyn Host,
    area: Range<u64>,
    seed: u64,
) -> Result<(), Violation> {
    let info = device.info();
    let suite = Suite {
        device: &*device,
        host,
        block: u64::from(info.block_size),
        info,
        area,
    };
    let rng = &mut SimRng::new(seed);
    let name = |rule| move |what| Violation { rule, what, seed };
    suite.describes_itself().map_err(name("describes_itself"))?;
    suite
        .allocates_what_was_asked_for()
        .map_err(name("allocates_what_was_asked_for"))?;
    let rule = name("refuses_bad_requests");
    suite.refuses_bad_requests().await.map_err(rule)?;
    if suite.info.read_only {
        let rule = name("read_only_means_read_only");
        return suite.read_only_means_read_only().await.map_err(rule);
    }
    let rule = name("reads_what_was_written");
    suite.reads_what_was_written(rng).await.map_err(rule)?;
    let rule = name("vectored_equals_flat");
    suite.vectored_equals_flat(rng).await.map_err(rule)?;
    let rule = name("transfers_the_window_only");
    suite.transfers_the_window_only(rng).await.map_err(rule)?;
    let rule = name("zeroes_and_unmaps_its_range_only");
    suite
        .zeroes_and_unmaps_its_range_only(rng)
        .await
        .map_err(rule)?;
    let rule = name("takes_many_at_once");
    suite.takes_many_at_once(rng).await.map_err(rule)?;
    let rule = name("wakes_whoever_polled_last");
    suite.wakes_whoever_polled_last().await.map_err(rule)?;
    let rule = name("survives_abandoned_requests");
    suite.survives_abandoned_requests(rng).await.map_err(rule)?;
    let rule = name("keeps_order_within_each_lane");
    suite
        .keeps_order_within_each_lane(rng)
        .await
        .map_err(rule)?;
    let rule = name("flushes");
    suite.flushes(rng).await.map_err(rule)
}

/// A result that had to be good.
fn good<T>(what: &str, result: Result<T, DeviceError>) -> Result<T, String> {
    result.map_err(|error| format!("{what}: {error}"))
}

/// A result that had to be this error.
fn bad(what: &str, kind: DeviceErrorKind, result: Result<(), DeviceError>) -> Verdict {
    match result {
        Err(error) if error.kind == kind => Ok(()),
        Err(error) => Err(format!("{what} should be {kind:?}, is: {error}")),
        Ok(()) => Err(format!("{what} should be {kind:?}, succeeded")),
    }
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Verdict {
    match holds {
        true => Ok(()),
        false => Err(what()),
    }
}

/// Equal bytes, or where they are not.
fn same(what: &str, offset: u64, got: &[u8], wanted: &[u8]) -> Verdict {
    ensure(got.len() == wanted.len(), || {
        format!("{what}: {} bytes instead of {}", got.len(), wanted.len())
    })?;
    match got
        .iter()
        .zip(wanted)
        .position(|(got, wanted)| got != wanted)
    {
        None => Ok(()),
        Some(index) => Err(format!(
            "{what}: byte {} is {:#04x}, not {:#04x}",
            offset + index as u64,
            got[index],
            wanted[index]
        )),
    }
}

/// Splits `total` blocks into up to `most` runs.
fn split_blocks(total: u64, most: u64, rng: &mut SimRng) -> Vec<u64> {
    let mut left = total;
    let mut runs = Vec::new();
    while left > 0 {
        let last = runs.len() as u64 + 1 >= most;
        let run = if last { left } else { 1 + rng.below(left) };
        runs.push(run);
        left -= run;
    }
    runs
}

/// Which memory each buffer is.
fn places(buffers: &[Buffer]) -> Vec<(usize, usize)> {
    let place = |buffer: &Buffer| (buffer.as_ptr().addr(), buffer.len());
    buffers.iter().map(place).collect()
}

/// A device's buffer that tells when it is given back.
struct Watched {
    buffer: Buffer,
    returned: Arc<AtomicUsize>,
}

impl Memory for Watched {
    fn bytes(&self) -> &[u8] {
        &self.buffer
    }
    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buffer
    }
    fn is_device_memory(&self) -> bool {
        self.buffer.is_device_memory()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.returned.fetch_add(1, Ordering::Relaxed);
    }
}

impl Suite<'_> {
    fn at(&self, block: u64) -> u64 {
        self.area.start + block * self.block
    }

    fn bytes(&self, blocks: u64) -> usize {
        (blocks * self.block) as usize
    }

    fn noise(&self, blocks: u64, rng: &mut SimRng) -> Vec<u8> {
        let mut bytes = vec![0; self.bytes(blocks)];
        rng.fill_bytes(&mut bytes);
        bytes
    }

    fn buffer_of(&self, bytes: &[u8]) -> Buffer {
        let mut buffer = self.device.allocate(bytes.len());
        buffer.copy_from_slice(bytes);
        buffer
    }

    async fn put(&self, offset: u64, bytes: &[u8]) -> Verdict {
        let (buffer, result) = self.device.write(offset, self.buffer_of(bytes)).await;
        good("write", result)?;
        same("the buffer after a write", 0, &buffer, bytes)
    }

    async fn get(&self, offset: u64, len: usize) -> Result<Buffer, String> {
        let mut buffer = self.device.allocate(len);
        // What the read does not fill must not look like a success.
        buffer.fill(0xa5);
        let (buffer, result) = self.device.read(offset, buffer).await;
        good("read", result)?;
        Ok(buffer)
    }

    async fn expect(&self, what: &str, offset: u64, wanted: &[u8]) -> Verdict {
        let got = self.get(offset, wanted.len()).await?;
        same(what, offset, &got, wanted)
    }

    fn describes_itself(&self) -> Verdict {
        let info = &self.info;
        ensure(
            info.block_size >= 512 && info.block_size.is_power_of_two(),
            || format!("blocks of {} bytes", info.block_size),
        )?;
        ensure(info.buffer_align.is_power_of_two(), || {
            format!("buffers aligned to {} bytes", info.buffer_align)
        })?;
        let Range { start, end } = self.area;
        let whole = start.is_multiple_of(self.block) && end.is_multiple_of(self.block);
        ensure(whole && end <= info.size_bytes(), || {
            format!("no whole blocks of the device: {start}..{end}")
        })?;
        ensure(end.saturating_sub(start) >= MIN_AREA_BYTES, || {
            format!("an area of {} bytes", end.saturating_sub(start))
        })?;
        // Ending a subscription at once is allowed.
        drop(self.device.subscribe(Rc::new(|_| {})));
        ensure(self.device.info() == *info, || "info changes".into())
    }

    fn allocates_what_was_asked_for(&self) -> Verdict {
        let mut kept = Vec::new();
        for blocks in [1, 1, 3, 8, 1, 200, 8] {
            let mut buffer = self.device.allocate(self.bytes(blocks));
            ensure(buffer.len() == self.bytes(blocks), || {
                format!("{} bytes for {blocks} blocks", buffer.len())
            })?;
            let address = buffer.as_ptr().addr();
            let align = self.info.buffer_align;
            ensure(address.is_multiple_of(align), || {
                format!("{address:#x} is not aligned to {align}")
            })?;
            buffer.fill(kept.len() as u8);
            kept.push(buffer);
        }
        for (index, buffer) in kept.iter().enumerate() {
            ensure(
                buffer.iter().all(|byte| usize::from(*byte) == index),
                || "two buffers share memory".into(),
            )?;
        }
        Ok(())
    }

    /// Each with its kind, each with its buffer back, and none of them disturbs the device.
    async fn refuses_bad_requests(&self) -> Verdict {
        use DeviceErrorKind::{OutOfRange, Unaligned};
        let block = self.block;
        let size = self.info.size_bytes();
        let last_block = u64::MAX - (block - 1);
        let mut cases = vec![
            (
                "a read that ends past the end",
                Op::Read,
                size - block,
                2,
                OutOfRange,
            ),
            ("a read past the end", Op::Read, size, 1, OutOfRange),
            (
                "a read whose end overflows",
                Op::Read,
                last_block,
                2,
                OutOfRange,
            ),
            (
                "a read from half a block",
                Op::Read,
                self.area.start + block / 2,
                1,
                Unaligned,
            ),
            (
                "a read from byte 1",
                Op::Read,
                self.area.start + 1,
                1,
                Unaligned,
            ),
        ];
        if !self.info.read_only {
            cases.extend([
                (
                    "a write that ends past the end",
                    Op::Write,
                    size - block,
                    2,
                    OutOfRange,
                ),
                ("a write past the end", Op::Write, size, 1, OutOfRange),
                (
                    "a write to half a block",
                    Op::Write,
                    self.area.start + block / 2,
                    1,
                    Unaligned,
                ),
                ("zeroes past the end", Op::WriteZeroes, size, 1, OutOfRange),
                (
                    "zeroes whose end overflows",
                    Op::WriteZeroes,
                    last_block,
                    2,
                    OutOfRange,
                ),
                (
                    "zeroes from half a block",
                    Op::WriteZeroes,
                    self.area.start + block / 2,
                    1,
                    Unaligned,
                ),
            ]);
        }
        if self.info.supports_unmap && !self.info.read_only {
            cases.extend([
                ("an unmap past the end", Op::Unmap, size, 1, OutOfRange),
                (
                    "an unmap from half a block",
                    Op::Unmap,
                    self.area.start + block / 2,
                    1,
                    Unaligned,
                ),
            ]);
        }
        for (what, op, offset, blocks, kind) in cases {
            let len = blocks * block;
            let buffers = match op {
                Op::Read | Op::Write => Buffers::One(self.device.allocate(len as usize)),
                _ => Buffers::None,
            };
            let held = buffers.len();
            let completion = self.device.start(op, offset, len, buffers).await;
            bad(what, kind, completion.result.clone())?;
            ensure(completion.buffers.len() == held, || {
                format!("{what}: its buffer did not come back")
            })?;
            if let Err(error) = completion.result {
                let named = (error.op, error.offset, error.len) == (op, offset, len);
                ensure(named, || {
                    format!("{what}: the error names another: {error}")
                })?;
            }
        }
        let mut part = self.device.allocate(self.bytes(1));
        part.set_window(0, self.bytes(1) / 2);
        let (part, result) = self.device.read(self.area.start, part).await;
        bad("a read of half a block", Unaligned, result)?;
        ensure(part.len() == self.bytes(1) / 2, || "another buffer".into())?;
        self.get(self.area.start, self.bytes(1)).await.map(drop)
    }

    async fn read_only_means_read_only(&self) -> Verdict {
        let before = self.get(self.area.start, self.bytes(8)).await?;
        let changed: Vec<u8> = before.iter().map(|byte| !byte).collect();
        let kind = DeviceErrorKind::ReadOnly;
        let write = self.device.write(self.area.start, self.buffer_of(&changed));
        bad("a write", kind, write.await.1)?;
        let len = changed.len() as u64;
        let zeroes = self.device.write_zeroes(self.area.start, len).await;
        bad("zeroes", kind, zeroes)?;
        self.expect("after refused writes", self.area.start, &before)
            .await
    }

    async fn reads_what_was_written(&self, rng: &mut SimRng) -> Verdict {
        let large = LARGE as u64 / self.block;
        for (start, blocks) in [(0, 1), (1, 1), (3, 5), (0, 16), (7, large), (large, large)] {
            let bytes = self.noise(blocks, rng);
            self.put(self.at(start), &bytes).await?;
            self.expect("read after write", self.at(start), &bytes)
                .await?;
            // Again in part, and written over in part.
            let inner = blocks / 3;
            let tail = &bytes[self.bytes(inner)..];
            self.expect("part of it", self.at(start + inner), tail)
                .await?;
            let mut mixed = bytes.clone();
            let patch = self.noise(1, rng);
            mixed[self.bytes(inner)..self.bytes(inner + 1)].copy_from_slice(&patch);
            self.put(self.at(start + inner), &patch).await?;
            self.expect("overwritten in part", self.at(start), &mixed)
                .await?;
        }
        // The two ends of the area: offsets beyond 4 GiB when the caller gave such an area.
        let last = (self.area.end - self.area.start) / self.block - 1;
        let bytes = self.noise(1, rng);
        self.put(self.at(last), &bytes).await?;
        self.expect("the last block", self.at(last), &bytes).await
    }

    async fn vectored_equals_flat(&self, rng: &mut SimRng) -> Verdict {
        for blocks in [1, 2, 7, 16, 64, 256] {
            for most in [2, 5, 24] {
                let start = rng.below(100);
                let bytes = self.noise(blocks, rng);
                let mut rest = &bytes[..];
                let mut list = Vec::new();
                for run in split_blocks(blocks, most, rng) {
                    let (head, tail) = rest.split_at(self.bytes(run));
                    list.push(self.buffer_of(head));
                    rest = tail;
                }
                let before = places(&list);
                let completion = self.device.writev(self.at(start), list).await;
                good("vectored write", completion.result)?;
                ensure(places(completion.buffers.as_slice()) == before, || {
                    "a vectored write gave back other buffers, or in another order".into()
                })?;
                self.expect("flat read of a vectored write", self.at(start), &bytes)
                    .await?;
                let list: Vec<Buffer> = split_blocks(blocks, most, rng)
                    .into_iter()
                    .map(|run| self.device.allocate(self.bytes(run)))
                    .collect();
                let before = places(&list);
                let completion = self.device.readv(self.at(start), list).await;
                good("vectored read", completion.result)?;
                ensure(places(completion.buffers.as_slice()) == before, || {
                    "a vectored read gave back other buffers, or in another order".into()
                })?;
                let mut got = Vec::new();
                for buffer in completion.buffers.as_slice() {
                    got.extend_from_slice(buffer);
                }
                same("vectored read", self.at(start), &got, &bytes)?;
            }
        }
        Ok(())
    }

    async fn transfers_the_window_only(&self, rng: &mut SimRng) -> Verdict {
        let base = self.noise(8, rng);
        self.put(self.at(0), &base).await?;
        // Windows stay aligned for the device, which may need more than a block.
        let align = (self.info.buffer_align as u64).div_ceil(self.block).max(1);
        let (start, len) = (self.bytes(align), self.bytes(2));
        let mut buffer = self.device.allocate(self.bytes(align * 2 + 2));
        buffer.fill(0x77);
        buffer.set_window(start, len);
        let (mut buffer, result) = self.device.read(self.at(3), buffer).await;
        good("read into a window", result)?;
        let wanted = &base[self.bytes(3)..self.bytes(5)];
        same("the window", self.at(3), &buffer, wanted)?;
        buffer.reset_window();
        let outside = buffer[..start].iter().chain(&buffer[start + len..]);
        ensure(outside.copied().all(|byte| byte == 0x77), || {
            "a read changed bytes outside its window".into()
        })?;

        let fresh = self.noise(2, rng);
        buffer.set_window(start, len);
        buffer.copy_from_slice(&fresh);
        let (buffer, result) = self.device.write(self.at(5), buffer).await;
        good("write from a window", result)?;
        ensure(buffer.len() == len, || "another window came back".into())?;
        let mut wanted = base;
        wanted[self.bytes(5)..self.bytes(7)].copy_from_slice(&fresh);
        self.expect("after a write from a window", self.at(0), &wanted)
            .await
    }

    async fn zeroes_and_unmaps_its_range_only(&self, rng: &mut SimRng) -> Verdict {
        let large = LARGE as u64 / self.block;
        for (start, blocks) in [(1, 1), (5, 9), (2, large)] {
            let mut bytes = self.noise(start + blocks + 3, rng);
            self.put(self.at(0), &bytes).await?;
            let range = self.bytes(start)..self.bytes(start + blocks);
            let zeroes = self
                .device
                .write_zeroes(self.at(start), range.len() as u64)
                .await;
            good("write-zeroes", zeroes)?;
            bytes[range.clone()].fill(0);
            self.expect("after write-zeroes", self.at(0), &bytes)
                .await?;

            let mut bytes = self.noise(start + blocks + 3, rng);
            self.put(self.at(0), &bytes).await?;
            let unmap = self.device.unmap(self.at(start), range.len() as u64).await;
            if !self.info.supports_unmap {
                bad("unmap", DeviceErrorKind::Unsupported, unmap)?;
                self.expect("after a refused unmap", self.at(0), &bytes)
                    .await?;
                continue;
            }
            good("unmap", unmap)?;
            // Its content is anyone's guess, its neighbours are not; and it can be written again.
            let mut got = self.get(self.at(0), bytes.len()).await?;
            got[range.clone()].copy_from_slice(&bytes[range.clone()]);
            same("around an unmap", self.at(0), &got, &bytes)?;
            bytes[range.clone()].fill(0x3c);
            self.put(self.at(start), &bytes[range]).await?;
            self.expect("written after an unmap", self.at(0), &bytes)
                .await?;
        }
        Ok(())
    }

    async fn takes_many_at_once(&self, rng: &mut SimRng) -> Verdict {
        let contents: Vec<Vec<u8>> = (0..WIDE).map(|_| self.noise(2, rng)).collect();
        let place = |index: usize| self.at(index as u64 * 3);
        let writes = contents.iter().enumerate().map(|(index, bytes)| {
            let buffer = self.buffer_of(bytes);
            self.device.write(place(index), buffer)
        });
        // Collected first: all of them are submitted before the first is waited for.
        let writes: Vec<_> = writes.collect();
        for (index, (buffer, result)) in join_all(writes).await.into_iter().enumerate() {
            good("one of many writes", result)?;
            same(
                "a buffer of one of many writes",
                0,
                &buffer,
                &contents[index],
            )?;
        }
        let reads: Vec<_> = (0..contents.len())
            .map(|index| {
                let buffer = self.device.allocate(self.bytes(2));
                self.device.read(place(index), buffer)
            })
            .collect();
        for (index, (buffer, result)) in join_all(reads).await.into_iter().enumerate() {
            good("one of many reads", result)?;
            same("one of many reads", place(index), &buffer, &contents[index])?;
        }
        Ok(())
    }

    /// A future may be polled by one task and waited for by another.
    async fn wakes_whoever_polled_last(&self) -> Verdict {
        let buffer = self.device.allocate(self.bytes(1));
        let mut read = Box::pin(self.device.read(self.at(0), buffer));
        let first = read.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        let (_, result) = match first {
            Poll::Ready(done) => done,
            Poll::Pending => read.await,
        };
        good("a read polled twice", result)
    }

    /// Dropping a future does not cancel its request: the device has the buffers until it is done,
    /// then gives them back; the range holds the old or the new, and other requests are not hurt.
    async fn survives_abandoned_requests(&self, rng: &mut SimRng) -> Verdict {
        let count = 64u64;
        let old = self.noise(1, rng);
        let new = self.noise(1, rng);
        for index in 0..count {
            self.put(self.at(index), &old).await?;
        }
        let returned = Arc::new(AtomicUsize::new(0));
        let watched = |bytes: &[u8]| {
            Buffer::new(Box::new(Watched {
                buffer: self.buffer_of(bytes),
                returned: returned.clone(),
            }))
        };
        for index in 0..count {
            drop(self.device.write(self.at(index), watched(&new)));
            let place = self.at(count + index);
            drop(self.device.read(place, watched(&old)));
            // Buffers handed out now must not be those still in use.
            let bytes = self.noise(1, rng);
            let place = self.at(count * 2 + index);
            self.put(place, &bytes).await?;
            self.expect("beside abandoned requests", place, &bytes)
                .await?;
        }
        let wanted = count as usize * 2;
        let deadline = self.host.now() + ABANDONED_PATIENCE;
        while returned.load(Ordering::Relaxed) < wanted && self.host.now() < deadline {
            self.host.sleep(Duration::from_millis(1)).await;
        }
        let got = returned.load(Ordering::Relaxed);
        ensure(got == wanted, || {
            format!("{got} of {wanted} buffers of abandoned requests came back")
        })?;
        for index in 0..count {
            let block = self.get(self.at(index), self.bytes(1)).await?;
            ensure(*block == *old || *block == *new, || {
                format!("block {index} is neither old nor new after an abandoned write")
            })?;
        }
        Ok(())
    }

    /// Random operations in independent parts of the area, all at once, each against its model.
    async fn keeps_order_within_each_lane(&self, rng: &mut SimRng) -> Verdict {
        let lanes = (0..LANES).map(|lane| self.lane(lane, rng.fork()));
        let verdicts = join_all(lanes.collect::<Vec<_>>()).await;
        verdicts.into_iter().collect()
    }

    async fn lane(&self, lane: u64, mut rng: SimRng) -> Verdict {
        let rng = &mut rng;
        let lane_blocks = 64;
        let start = self.at(lane * lane_blocks);
        let mut model = self.noise(lane_blocks, rng);
        self.put(start, &model).await?;
        for _ in 0..OPS_IN_LANE {
            let from = rng.below(lane_blocks);
            let blocks = 1 + rng.below(lane_blocks - from);
            let range = self.bytes(from)..self.bytes(from + blocks);
            let offset = start + range.start as u64;
            match rng.below(6) {
                0 => {
                    let bytes = self.noise(blocks, rng);
                    self.put(offset, &bytes).await?;
                    model[range].copy_from_slice(&bytes);
                }
                1 => {
                    let bytes = self.noise(blocks, rng);
                    let half = self.bytes(blocks / 2);
                    let (head, tail) = bytes.split_at(half);
                    let parts = [head, tail].into_iter().filter(|part| !part.is_empty());
                    let list = parts.map(|part| self.buffer_of(part)).collect();
                    good("writev", self.device.writev(offset, list).await.result)?;
                    model[range].copy_from_slice(&bytes);
                }
                2 => {
                    let len = range.len() as u64;
                    good("zeroes", self.device.write_zeroes(offset, len).await)?;
                    model[range].fill(0);
                }
                3 => good("flush", self.device.flush().await)?,
                _ => self.expect("in a lane", offset, &model[range]).await?,
            }
        }
        self.expect("a lane at its end", start, &model).await
    }

    /// With nothing to do, after a write, and beside writes.
    async fn flushes(&self, rng: &mut SimRng) -> Verdict {
        good("flush", self.device.flush().await)?;
        good("flush again", self.device.flush().await)?;
        let bytes = self.noise(4, rng);
        self.put(self.at(0), &bytes).await?;
        let other = self.device.write(self.at(8), self.buffer_of(&bytes));
        good("flush beside a write", self.device.flush().await)?;
        good("write beside a flush", other.await.1)?;
        self.expect("after a flush", self.at(0), &bytes).await?;
        self.expect("after a flush", self.at(8), &bytes).await
    }
}

#[cfg(test)]
#[path = "contract_tests.rs"]
mod tests;
