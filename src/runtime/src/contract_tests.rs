use super::*;
use crate::device::{DeviceEvent, Subscription};
use crate::io::Request;
use crate::sim::{DiskOptions, Image, SimDisk, Simulation, UnmapContent};

/// Beyond what 32 bits of bytes can name.
const DISK: u64 = 6 << 30;

/// A way to break the contract, for one rule to notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    None,
    ShortAllocation,
    Misaligned,
    OddBlocks,
    RoundsUnaligned,
    WrongKind,
    SwapsVectors,
    IgnoresWindow,
    ZeroesTooMuch,
    UnmapsTooMuch,
    LosesWrites,
    LeaksAbandoned,
    AcceptsWritesReadOnly,
    FailsFlush,
}

/// A simulated disk with a flaw.
struct Flawed {
    disk: SimDisk,
    flaw: Flaw,
    writes: std::cell::Cell<u64>,
    leaked: std::cell::RefCell<Vec<Buffer>>,
}

impl BlockDevice for Flawed {
    fn info(&self) -> DeviceInfo {
        let mut info = self.disk.info();
        match self.flaw {
            Flaw::Misaligned => info.buffer_align = 4096,
            Flaw::OddBlocks => info.block_size = 500,
            Flaw::AcceptsWritesReadOnly => info.read_only = true,
            _ => {}
        }
        info
    }

    fn allocate(&self, len: usize) -> Buffer {
        match self.flaw {
            Flaw::ShortAllocation => self.disk.allocate(len.min(4096)),
            Flaw::Misaligned => {
                let mut buffer = self.disk.allocate(len + 1);
                buffer.set_window(1, len);
                buffer
            }
            _ => self.disk.allocate(len),
        }
    }

    fn submit(&self, mut request: Request) {
        match (self.flaw, request.op) {
            (Flaw::RoundsUnaligned, _) => request.offset &= !511,
            (Flaw::WrongKind, Op::Read) if request.offset >= self.disk.info().size_bytes() => {
                let error = request.error(DeviceErrorKind::Failed, "wrong");
                return request.complete(Err(error));
            }
            (Flaw::SwapsVectors, Op::Read) => request.buffers.as_mut_slice().reverse(),
            (Flaw::IgnoresWindow, Op::Read) => {
                if let [buffer] = request.buffers.as_mut_slice()
                    && buffer.len() < buffer.capacity()
                {
                    let len = buffer.len();
                    buffer.set_window(0, len);
                }
            }
            (Flaw::ZeroesTooMuch, Op::WriteZeroes) | (Flaw::UnmapsTooMuch, Op::Unmap)
                if request.len > 1024 =>
            {
                request.len += 512;
            }
            (Flaw::LosesWrites, Op::Write) => {
                let number = self.writes.get();
                self.writes.set(number + 1);
                if number == 100 {
                    return request.complete(Ok(()));
                }
            }
            // A block that only the rule about abandoned requests reads alone.
            (Flaw::LeaksAbandoned, Op::Read)
                if request.len == 512 && request.offset == DISK - MIN_AREA_BYTES + 67 * 512 =>
            {
                let buffers = std::mem::take(&mut request.buffers);
                self.leaked.borrow_mut().extend(buffers.into_vec());
                return request.complete(Ok(()));
            }
            (Flaw::FailsFlush, Op::Flush) => {
                let error = request.error(DeviceErrorKind::Unsupported, "no flush");
                return request.complete(Err(error));
            }
            _ => {}
        }
        self.disk.submit(request);
    }

    fn subscribe(&self, callback: Rc<dyn Fn(DeviceEvent)>) -> Subscription {
        self.disk.subscribe(callback)
    }
}

fn judge(options: DiskOptions, seed: u64, flaw: Flaw) -> Result<(), Violation> {
    let sim = Simulation::new(seed);
    let world = sim.world();
    let disk = SimDisk::with(Image::empty(DISK), options, Some(&world));
    let device = Rc::new(Flawed {
        disk,
        flaw,
        writes: Default::default(),
        leaked: Default::default(),
    });
    let area = DISK - MIN_AREA_BYTES..DISK;
    sim.block_on(run(device, &world, area, seed)).unwrap()
}

#[test]
fn the_simulated_disk_passes() {
    for (seed, block_size) in (0..6).zip([512, 4096, 1024].into_iter().cycle()) {
        let options = DiskOptions {
            block_size,
            unmap: [
                UnmapContent::Zeroes,
                UnmapContent::Garbage,
                UnmapContent::Unchanged,
            ][seed as usize % 3],
            supports_unmap: seed != 4,
            volatile_cache: seed != 5,
            ..DiskOptions::default()
        };
        judge(options, seed, Flaw::None).unwrap();
    }
}

#[test]
fn the_simulated_disk_passes_without_a_world_of_its_own() {
    let sim = Simulation::new(1);
    let disk = SimDisk::new(64 << 20);
    let area = 1 << 20..33 << 20;
    sim.block_on(run(disk.device(), &sim.world(), area, 1))
        .unwrap()
        .unwrap();
}

#[test]
fn a_read_only_disk_passes() {
    let options = DiskOptions {
        read_only: true,
        ..DiskOptions::default()
    };
    judge(options, 1, Flaw::None).unwrap();
}

#[test]
fn an_area_that_does_not_fit_is_said() {
    let sim = Simulation::new(1);
    let disk = SimDisk::new(4 << 20);
    let world = sim.world();
    let area = 0..MIN_AREA_BYTES;
    let verdict = sim.block_on(run(disk.device(), &world, area, 1)).unwrap();
    assert_eq!(verdict.unwrap_err().rule, "describes_itself");
}

/// The suite is worth what it notices.
#[test]
fn every_flaw_is_noticed_by_its_rule() {
    let flaws = [
        (Flaw::ShortAllocation, "allocates_what_was_asked_for"),
        (Flaw::Misaligned, "allocates_what_was_asked_for"),
        (Flaw::OddBlocks, "describes_itself"),
        (Flaw::RoundsUnaligned, "refuses_bad_requests"),
        (Flaw::WrongKind, "refuses_bad_requests"),
        (Flaw::SwapsVectors, "vectored_equals_flat"),
        (Flaw::IgnoresWindow, "transfers_the_window_only"),
        (Flaw::ZeroesTooMuch, "zeroes_and_unmaps_its_range_only"),
        (Flaw::UnmapsTooMuch, "zeroes_and_unmaps_its_range_only"),
        (Flaw::LosesWrites, "takes_many_at_once"),
        (Flaw::LeaksAbandoned, "survives_abandoned_requests"),
        (Flaw::AcceptsWritesReadOnly, "read_only_means_read_only"),
        (Flaw::FailsFlush, "keeps_order_within_each_lane"),
    ];
    for (flaw, rule) in flaws {
        let violation =
            judge(DiskOptions::default(), 1, flaw).expect_err(&format!("{flaw:?} went unnoticed"));
        assert_eq!(violation.rule, rule, "{flaw:?}: {violation}");
    }
}
