use std::collections::BTreeSet;

use futures_util::FutureExt;
use futures_util::future::join_all;
use rand::RngCore;

use super::*;
use crate::device::BlockDeviceExt;
use crate::host::Host;
use crate::io::Buffers;
use crate::sim::{Fingerprint, Keep, Simulation};

const BLOCK: usize = 512;

fn filled(disk: &SimDisk, len: usize, value: u8) -> Buffer {
    let mut buffer = disk.allocate(len);
    buffer.fill(value);
    buffer
}

/// Without a world everything is ready at the first poll.
fn now<T>(future: impl Future<Output = T>) -> T {
    future
        .now_or_never()
        .expect("a disk without a world is ready at once")
}

fn write(disk: &SimDisk, offset: u64, len: usize, value: u8) -> Result<(), DeviceErrorKind> {
    let (_, result) = now(disk.write(offset, filled(disk, len, value)));
    result.map_err(|error| error.kind)
}

fn flush(disk: &SimDisk) {
    now(disk.flush()).unwrap();
}

/// The first byte of each of the first blocks.
fn marks(image: &Image, blocks: u64) -> Vec<u8> {
    (0..blocks)
        .map(|block| image.read_vec(block * BLOCK as u64, 1)[0])
        .collect()
}

fn attached(sim: &Simulation) -> SimDisk {
    let options = DiskOptions::default();
    SimDisk::with(Image::empty(1 << 20), options, Some(&sim.world()))
}

#[test]
fn without_a_world_requests_are_done_at_once() {
    let disk = SimDisk::new(16 << 30);
    write(&disk, 8 << 30, 4096, 7).unwrap();
    let (buffer, result) = now(disk.device().read((8 << 30) + 512, disk.allocate(512)));
    result.unwrap();
    assert!(buffer.iter().all(|byte| *byte == 7));
    assert!(disk.image().stored_bytes() < 1 << 20);
}

#[test]
fn a_part_of_a_block_at_the_end_is_not_there() {
    let disk = SimDisk::with(Image::empty(5000), DiskOptions::default(), None);
    assert_eq!(disk.info().block_count, 9);
}

/// Twenty writes in flight together; the order in which they ended.
fn race(seed: u64) -> (Vec<u64>, Fingerprint) {
    let sim = Simulation::new(seed);
    let disk = attached(&sim);
    let order = Rc::new(RefCell::new(Vec::new()));
    for number in 0..20u64 {
        let write = disk.write(number * 512, filled(&disk, 512, 1));
        let order = order.clone();
        sim.world().spawn(Box::pin(write.map(move |(_, result)| {
            result.unwrap();
            order.borrow_mut().push(number);
        })));
    }
    assert_eq!(disk.in_flight(), 20);
    sim.run_until_idle().unwrap();
    assert_eq!(disk.stats().max_in_flight, 20);
    (order.take(), sim.fingerprint())
}

#[test]
fn in_a_world_requests_overtake_each_other_as_the_seed_says() {
    let (order, fingerprint) = race(3);
    assert_eq!(order.len(), 20);
    assert!(!order.is_sorted());
    assert_eq!(race(3), (order.clone(), fingerprint));
    assert_ne!(race(4).0, order);
}

#[test]
fn overlapping_writes_in_flight_are_counted() {
    let sim = Simulation::new(1);
    let disk = attached(&sim);
    let writes = [(0, 1024), (512, 512), (1024, 512)]
        .map(|(offset, len)| disk.write(offset, filled(&disk, len, 1)));
    sim.block_on(join_all(writes)).unwrap();
    assert_eq!(disk.stats().overlapping_writes, 1);
}

// ── Power loss ───────────────────────────────────────────────────────────────────────────────────

#[test]
fn what_was_flushed_survives_every_crash() {
    let mut rng = SimRng::new(1);
    for _ in 0..500 {
        let disk = SimDisk::new(1 << 20);
        write(&disk, 0, 4096, 1).unwrap();
        flush(&disk);
        write(&disk, 4096, 4096, 2).unwrap();
        let after = disk.crash(CrashModel::Any, &mut rng);
        assert!(after.image().read_vec(0, 4096).iter().all(|b| *b == 1));
        let rest = after.image().read_vec(4096, 4096);
        assert!(rest.chunks(BLOCK).all(|sector| {
            // Never a torn sector, never anything else.
            sector.iter().all(|b| *b == 0) || sector.iter().all(|b| *b == 2)
        }));
    }
}

/// The outcomes of a crash after three writes, under one model.
fn outcomes(model: CrashModel) -> BTreeSet<Vec<u8>> {
    let disk = SimDisk::new(1 << 20);
    for block in 0..3u64 {
        write(&disk, block * 512, BLOCK, 1 + block as u8).unwrap();
    }
    let mut rng = SimRng::new(9);
    let volatile = disk.volatile();
    (0..500)
        .map(|_| {
            marks(
                &disk.crash_image(&model.choose(&volatile, 512, &mut rng)),
                3,
            )
        })
        .collect()
}

#[test]
fn each_crash_model_gives_all_its_outcomes_and_no_others() {
    let set = |list: &[[u8; 3]]| list.iter().map(|o| o.to_vec()).collect::<BTreeSet<_>>();
    let prefixes = set(&[[0, 0, 0], [1, 0, 0], [1, 2, 0], [1, 2, 3]]);
    assert_eq!(outcomes(CrashModel::LoseAll), set(&[[0, 0, 0]]));
    assert_eq!(outcomes(CrashModel::KeepAll), set(&[[1, 2, 3]]));
    assert_eq!(outcomes(CrashModel::Prefix), prefixes);
    assert_eq!(outcomes(CrashModel::Subset).len(), 8);
    assert_eq!(outcomes(CrashModel::Torn).len(), 8);
    assert_eq!(outcomes(CrashModel::Any).len(), 8);
}

#[test]
fn torn_writes_keep_heads_tails_and_holes() {
    let disk = SimDisk::new(1 << 20);
    write(&disk, 0, 3 * BLOCK, 7).unwrap();
    let mut rng = SimRng::new(2);
    let seen: BTreeSet<Vec<u8>> = (0..500)
        .map(|_| {
            let choice = CrashModel::Torn.choose(&disk.volatile(), 512, &mut rng);
            marks(&disk.crash_image(&choice), 3)
        })
        .collect();
    assert_eq!(seen.len(), 8);
}

#[test]
fn a_later_write_wins_where_both_are_kept() {
    let disk = SimDisk::new(1 << 20);
    write(&disk, 0, BLOCK, 1).unwrap();
    write(&disk, 0, BLOCK, 2).unwrap();
    let outcome = |kept| marks(&disk.crash_image(&Choice(kept)), 1)[0];
    use Keep::{Everything, Nothing};
    assert_eq!(outcome(vec![Everything, Everything]), 2);
    assert_eq!(outcome(vec![Everything, Nothing]), 1);
    assert_eq!(outcome(vec![Nothing, Everything]), 2);
}

#[test]
fn a_flush_covers_only_what_had_completed() {
    let sim = Simulation::new(1);
    let disk = attached(&sim);
    disk.inject(Fault::delay(Duration::from_secs(1)).within(512..1024));
    disk.inject(Fault::delay(Duration::from_secs(2)).on(Op::Flush));
    sim.block_on(async {
        disk.write(0, filled(&disk, BLOCK, 1)).await.1.unwrap();
        let slow = disk.write(512, filled(&disk, BLOCK, 2));
        let flush = disk.flush();
        slow.await.1.unwrap();
        flush.await.unwrap();
    })
    .unwrap();
    let lost = disk.crash_image(&Choice::default());
    assert_eq!(marks(&lost, 2), [1, 0]);
}

#[test]
fn without_a_volatile_cache_a_completed_write_is_durable() {
    let options = DiskOptions {
        volatile_cache: false,
        ..DiskOptions::default()
    };
    let disk = SimDisk::with(Image::empty(1 << 20), options, None);
    write(&disk, 0, BLOCK, 1).unwrap();
    assert!(disk.volatile().is_empty());
    assert_eq!(marks(&disk.crash_image(&Choice::default()), 1), [1]);
}

#[test]
fn power_fails_at_the_chosen_write() {
    let sim = Simulation::new(5);
    let disk = attached(&sim);
    disk.crash_after(2);
    sim.block_on(async {
        for block in 0..2u64 {
            let write = disk.write(block * 512, filled(&disk, BLOCK, 1));
            write.await.1.unwrap();
        }
        let parked = disk.read(0, disk.allocate(BLOCK));
        let fatal = disk.write(1024, filled(&disk, BLOCK, 3));
        assert!(!disk.has_power());
        let kind = |result: Result<(), DeviceError>| result.unwrap_err().kind;
        assert_eq!(kind(fatal.await.1), DeviceErrorKind::Aborted);
        assert_eq!(kind(parked.await.1), DeviceErrorKind::Aborted);
        assert_eq!(kind(disk.flush().await), DeviceErrorKind::Aborted);
    })
    .unwrap();
    // The write in flight may have made it.
    let flags: Vec<bool> = disk.volatile().iter().map(|v| v.in_flight).collect();
    assert_eq!(flags, [false, false, true]);
    let after = disk.crash(CrashModel::KeepAll, &mut SimRng::new(1));
    assert_eq!(marks(&after.image(), 3), [1, 1, 3]);
    assert!(after.has_power());
}

/// A write-ahead log in miniature: it must be wrong in some crash exactly if its flush is missing.
fn worst_case(with_flush: bool) -> bool {
    let disk = SimDisk::new(1 << 20);
    disk.record();
    write(&disk, 0, 2 * BLOCK, 7).unwrap();
    if with_flush {
        flush(&disk);
    }
    write(&disk, 1024, BLOCK, 9).unwrap();
    let trace = disk.take_trace().unwrap();
    let mut rng = SimRng::new(1);
    trace.interesting_points().any(|point| {
        let volatile = trace.volatile_at(point).len();
        Choice::enumerate(volatile, 64, &mut rng)
            .iter()
            .any(|choice| {
                let marks = marks(&trace.image_at(point, choice), 3);
                marks[2] == 9 && marks[..2] != [7, 7]
            })
    })
}

#[test]
fn a_sweep_over_a_trace_finds_a_missing_flush() {
    assert!(!worst_case(true));
    assert!(worst_case(false));
}

#[test]
fn points_of_a_trace_tell_what_was_promised_when() {
    let disk = SimDisk::new(1 << 20);
    write(&disk, 0, BLOCK, 1).unwrap();
    disk.record();
    write(&disk, 512, BLOCK, 2).unwrap();
    let unflushed = disk.point();
    flush(&disk);
    let flushed = disk.point();
    now(disk.write_zeroes(0, 1024)).unwrap();
    let trace = disk.take_trace().unwrap();
    let none = Choice::default();
    // Out of order too: the cursor goes back when it must.
    assert_eq!(marks(&trace.image_at(flushed, &none), 2), [1, 2]);
    assert_eq!(marks(&trace.image_at(unflushed, &none), 2), [0, 0]);
    assert_eq!(
        marks(&trace.image_at(unflushed, &Choice::first(1)), 2),
        [1, 0]
    );
    let last = trace.points() - 1;
    assert_eq!(marks(&trace.image_at(last, &Choice::first(1)), 2), [0, 0]);
    assert_eq!(marks(&trace.image_at(last, &none), 2), [1, 2]);
}

/// The bound is generous; a copy or a replay for each image would miss it by far.
#[test]
fn ten_thousand_crash_images_of_a_large_disk_are_cheap() {
    let mut image = Image::empty(16 << 30);
    for megabyte in 0..256 {
        image.write(megabyte << 20, &[1; 1 << 16]);
    }
    let disk = SimDisk::with(image, DiskOptions::default(), None);
    disk.record();
    let mut rng = SimRng::new(1);
    for number in 0..10_000 {
        write(&disk, rng.below(1 << 15) * 4096, 4096, 5).unwrap();
        if number % 20 == 0 {
            flush(&disk);
        }
    }
    let trace = disk.take_trace().unwrap();
    let start = std::time::Instant::now();
    let mut images = 0;
    for point in trace.interesting_points() {
        let choice = CrashModel::Any.choose(&trace.volatile_at(point), 512, &mut rng);
        images += u64::from(trace.image_at(point, &choice).size_bytes() > 0);
    }
    assert!(images > 10_000);
    assert!(
        start.elapsed() < Duration::from_secs(60),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn enumeration_is_complete_when_it_fits_and_bounded_when_not() {
    let mut rng = SimRng::new(1);
    assert_eq!(Choice::enumerate(0, 10, &mut rng).len(), 1);
    let all = Choice::enumerate(4, 16, &mut rng);
    let distinct: BTreeSet<String> = all.iter().map(|c| format!("{c:?}")).collect();
    assert_eq!(distinct.len(), 16);
    assert_eq!(Choice::enumerate(40, 500, &mut rng).len(), 500);
    assert_eq!(Choice::enumerate(40, 7, &mut rng).len(), 7);
}

#[test]
fn a_disk_that_is_never_flushed_destages_by_itself() {
    let disk = SimDisk::new(1 << 20);
    for _ in 0..MAX_CACHED_CHANGES + 1 {
        write(&disk, 0, BLOCK, 1).unwrap();
    }
    assert!((disk.volatile().len() as u64) < MAX_CACHED_CHANGES);
    assert_eq!(marks(&disk.crash_image(&Choice::default()), 1), [1]);
}

// ── Faults ───────────────────────────────────────────────────────────────────────────────────────

#[test]
fn a_fault_hits_the_requests_it_names() {
    let disk = SimDisk::new(1 << 20);
    let fault = Fault::fail(DeviceErrorKind::Failed)
        .on(Op::Write)
        .within(4096..8192)
        .after(1)
        .times(2);
    let id = disk.inject(fault);
    let failed = Err(DeviceErrorKind::Failed);
    assert_eq!(write(&disk, 0, 4096, 1), Ok(()), "outside the range");
    assert_eq!(write(&disk, 4096, 512, 1), Ok(()), "the first passes");
    now(disk.read(4096, disk.allocate(512))).1.unwrap();
    assert_eq!(write(&disk, 3584, 1024, 2), failed, "touches the range");
    assert_eq!(write(&disk, 7680, 512, 2), failed);
    assert_eq!(write(&disk, 7680, 512, 3), Ok(()), "used up");
    assert_eq!(disk.fault_hits(id), 2);
    assert_eq!(disk.stats().errors, 2);
    assert_eq!(disk.image().read_vec(4096, 1), [1], "nothing was written");
}

#[test]
fn all_requests_fail_until_the_fault_is_removed() {
    let disk = SimDisk::new(1 << 20);
    let id = disk.inject(Fault::fail(DeviceErrorKind::NoSpace));
    assert_eq!(write(&disk, 0, 512, 1), Err(DeviceErrorKind::NoSpace));
    let flushed = now(disk.flush());
    assert_eq!(flushed.unwrap_err().kind, DeviceErrorKind::NoSpace);
    disk.remove_fault(id);
    assert_eq!(write(&disk, 0, 512, 1), Ok(()));
    disk.inject(Fault::fail(DeviceErrorKind::Reserved));
    assert_eq!(write(&disk, 0, 512, 1), Err(DeviceErrorKind::Reserved));
    disk.clear_faults();
    assert_eq!(write(&disk, 0, 512, 1), Ok(()));
}

#[test]
fn a_failure_in_the_middle_leaves_part_of_the_transfer() {
    let disk = SimDisk::new(1 << 20);
    disk.inject(Fault::fail_after_bytes(DeviceErrorKind::Failed, 1600).times(2));
    let list = vec![filled(&disk, 1024, 1), filled(&disk, 1024, 2)];
    let completion = now(disk.writev(0, list));
    assert_eq!(completion.result.unwrap_err().kind, DeviceErrorKind::Failed);
    // 1600 bytes are three sectors: no sector is torn.
    assert_eq!(marks(&disk.image(), 4), [1, 1, 2, 0]);
    disk.poke(0, &[9; 2048]);
    let list = vec![filled(&disk, 1024, 0), filled(&disk, 1024, 0)];
    let completion = now(disk.readv(0, list));
    completion.result.unwrap_err();
    let buffers = completion.buffers.into_vec();
    assert_eq!(
        (buffers[0][1023], buffers[1][511], buffers[1][512]),
        (9, 9, 0)
    );
}

#[test]
fn a_flush_that_failed_or_lied_made_nothing_durable() {
    for fault in [Fault::fail(DeviceErrorKind::Failed), Fault::lose()] {
        let disk = SimDisk::new(1 << 20);
        write(&disk, 0, 512, 1).unwrap();
        disk.inject(fault.on(Op::Flush).times(1));
        let _ = now(disk.flush());
        assert_eq!(marks(&disk.crash_image(&Choice::default()), 1), [0]);
        flush(&disk);
        assert_eq!(marks(&disk.crash_image(&Choice::default()), 1), [1]);
    }
}

#[test]
fn a_lost_write_succeeds_and_is_not_there() {
    let disk = SimDisk::new(1 << 20);
    disk.inject(Fault::lose().on(Op::Write).times(1));
    assert_eq!(write(&disk, 0, 512, 1), Ok(()));
    assert_eq!(marks(&disk.image(), 1), [0]);
    assert!(disk.volatile().is_empty());
}

#[test]
fn a_forgotten_request_ends_as_aborted_with_its_buffer() {
    let disk = SimDisk::new(1 << 20);
    disk.inject(Fault::forget());
    let (buffer, result) = now(disk.write(0, filled(&disk, 512, 1)));
    assert_eq!(result.unwrap_err().kind, DeviceErrorKind::Aborted);
    assert_eq!(buffer.len(), 512);
}

#[test]
fn a_request_dropped_by_any_device_ends_as_aborted() {
    let (request, io) = Request::new(Op::Read, 0, 512, Buffers::One(Buffer::zeroed(512)));
    drop(request);
    let completion = now(io);
    assert_eq!(
        completion.result.unwrap_err().kind,
        DeviceErrorKind::Aborted
    );
    assert_eq!(completion.buffers.len(), 512);
}

#[test]
fn a_disk_that_is_dropped_ends_its_requests() {
    let sim = Simulation::new(1);
    let disk = attached(&sim);
    let read = disk.read(0, disk.allocate(512));
    drop(disk);
    let (_, result) = sim.block_on(read).unwrap();
    assert_eq!(result.unwrap_err().kind, DeviceErrorKind::Aborted);
}

#[test]
fn a_delay_delays_and_a_hold_holds() {
    let sim = Simulation::new(1);
    let disk = attached(&sim);
    disk.inject(Fault::delay(Duration::from_secs(5)).on(Op::Read));
    disk.inject(Fault::hold().on(Op::Write));
    let write = disk.write(0, filled(&disk, 512, 8));
    sim.block_on(disk.read(0, disk.allocate(512)))
        .unwrap()
        .1
        .unwrap();
    assert!(sim.world().now() >= Duration::from_secs(5));
    sim.run_for(Duration::from_secs(3600)).unwrap();
    assert_eq!((disk.in_flight(), marks(&disk.image(), 1)), (1, vec![0]));
    disk.release_held();
    sim.block_on(write).unwrap().1.unwrap();
    assert_eq!((disk.in_flight(), marks(&disk.image(), 1)), (0, vec![8]));
}

#[test]
fn an_abandoned_write_still_happens() {
    let sim = Simulation::new(1);
    let disk = attached(&sim);
    drop(disk.write(0, filled(&disk, 512, 8)));
    sim.run_until_idle().unwrap();
    assert_eq!(marks(&disk.image(), 1), [8]);
}

#[test]
fn a_removed_disk_fails_everything_and_says_so_once() {
    let sim = Simulation::new(1);
    let disk = attached(&sim);
    let events = Rc::new(RefCell::new(Vec::new()));
    let seen = events.clone();
    let subscription = disk.subscribe(Rc::new(move |event| seen.borrow_mut().push(event)));
    let flying = disk.read(0, disk.allocate(512));
    disk.remove();
    let kind = |result: Result<(), DeviceError>| result.unwrap_err().kind;
    sim.block_on(async {
        assert_eq!(kind(flying.await.1), DeviceErrorKind::Removed);
        let (_, late) = disk.write(0, filled(&disk, 512, 1)).await;
        assert_eq!(kind(late), DeviceErrorKind::Removed);
    })
    .unwrap();
    assert_eq!(*events.borrow(), [DeviceEvent::Removed]);
    drop(subscription);
    disk.remove();
    assert_eq!(events.borrow().len(), 1);
}

#[test]
fn a_resize_is_announced_and_moves_the_end() {
    let sim = Simulation::new(1);
    let disk = attached(&sim);
    let events = Rc::new(RefCell::new(Vec::new()));
    let seen = events.clone();
    let subscription = disk.subscribe(Rc::new(move |event| seen.borrow_mut().push(event)));
    let old_end = 1 << 20;
    let flying = disk.write(old_end - 512, filled(&disk, 512, 1));
    disk.resize(1024);
    let kind = |result: Result<(), DeviceError>| result.unwrap_err().kind;
    let late = sim.block_on(flying).unwrap().1;
    assert_eq!(kind(late), DeviceErrorKind::OutOfRange);
    assert!(disk.volatile().is_empty());
    disk.resize(4096);
    let write = disk.write(2 << 20, filled(&disk, 512, 1));
    assert_eq!(
        kind(sim.block_on(write).unwrap().1),
        DeviceErrorKind::OutOfRange
    );
    let write = disk.write((2 << 20) - 512, filled(&disk, 512, 1));
    sim.block_on(write).unwrap().1.unwrap();
    assert_eq!(disk.info().block_count, 4096);
    let resized = |block_count| DeviceEvent::Resized { block_count };
    assert_eq!(*events.borrow(), [resized(1024), resized(4096)]);
    drop(subscription);
}

#[test]
fn a_disk_turned_read_only_refuses_changes_only() {
    let disk = SimDisk::new(1 << 20);
    disk.set_read_only(true);
    assert!(disk.info().read_only);
    assert_eq!(write(&disk, 0, 512, 1), Err(DeviceErrorKind::ReadOnly));
    let unmap = now(disk.unmap(0, 512)).unwrap_err();
    assert_eq!(unmap.kind, DeviceErrorKind::ReadOnly);
    now(disk.read(0, disk.allocate(512))).1.unwrap();
    flush(&disk);
    disk.set_read_only(false);
    assert_eq!(write(&disk, 0, 512, 1), Ok(()));
}

#[test]
fn unmapped_blocks_read_as_the_options_say() {
    for (unmap, wanted) in [
        (UnmapContent::Zeroes, 0),
        (UnmapContent::Garbage, GARBAGE),
        (UnmapContent::Unchanged, 6),
    ] {
        let options = DiskOptions {
            unmap,
            ..DiskOptions::default()
        };
        let disk = SimDisk::with(Image::empty(1 << 20), options, None);
        write(&disk, 0, 1024, 6).unwrap();
        now(disk.unmap(0, 512)).unwrap();
        assert_eq!(marks(&disk.image(), 2), [wanted, 6]);
    }
}

#[test]
fn the_generator_keeps_its_meaning() {
    // Seeds are written down in tests: these numbers must never change.
    let mut rng = SimRng::new(0);
    assert_eq!(rng.next_u64(), 0xe220_a839_7b1d_cdaf);
    assert_eq!(rng.next_u64(), 0x6e78_9e6a_a1b9_65f4);
    assert_eq!(SimRng::new(1).below(0), 0);
}
