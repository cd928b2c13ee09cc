//! Block devices on this machine, without huge pages and without root: the contract every device keeps, what SPDK's own
//! error device does to us, resizing, removal, and what the reactor promises.
#![allow(clippy::print_stdout, reason = "a test reports on its standard output")]

mod common;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{cpu_time, on, wait};
use runtime::{BlockDevice, BlockDeviceExt, Buffer, DeviceErrorKind, DeviceEvent};
use spdk::{Access, Bdev, InjectedError, Memory, OpenError, Options, Polling, Reactors, Spdk};

fn main() {
    let options = Options {
        memory: Memory::Ordinary { mib: 512 },
        reactors: Reactors::Floating(2),
        ..Options::default()
    };
    common::main(
        options,
        &[
            ("only_one_spdk_a_process", only_one),
            ("malloc_keeps_the_contract", malloc_contract),
            ("aio_keeps_the_contract", aio_contract),
            ("uring_keeps_the_contract", uring_contract),
            ("read_back_what_was_written", read_back),
            ("ordinary_and_unaligned_memory_is_bounced", bounced),
            ("bad_requests_fail_one_by_one", bad_requests),
            ("injected_errors_reach_the_request", injected_errors),
            ("a_flood_of_requests_waits_its_turn", a_flood),
            ("dropped_futures_leave_their_buffers", dropped_futures),
            ("resize_is_told", resize),
            ("removal_is_told_and_waits_for_requests", removal),
            ("open_errors_say_what_there_is", open_errors),
            ("reset", reset),
            ("ten_thousand_futures", many_futures),
            ("wakes_from_other_threads", foreign_wakes),
            ("both_reactors_serve_one_device", two_reactors),
            ("idle_takes_little_and_answers_at_once", idle),
            ("rpc_errors_are_typed", rpc_errors),
        ],
    );
}

fn only_one(_: &Spdk) {
    let error = Spdk::start(Options::default())
        .err()
        .expect("a second SPDK");
    assert!(matches!(error, spdk::StartError::AlreadyStarted), "{error}");
}

fn with_malloc(spdk: &Spdk, name: &str, block_count: u64, block_size: u32) {
    wait(spdk.bdevs().create_malloc(name, block_count, block_size)).expect("malloc device");
}

fn delete(spdk: &Spdk, name: &str) {
    wait(spdk.bdevs().delete(name)).expect("device is deleted");
}

fn open(name: &str) -> Rc<Bdev> {
    Bdev::open(name, Access::ReadWrite).expect("device opens")
}

fn read_back(spdk: &Spdk) {
    with_malloc(spdk, "rb", 2048, 512);
    on(spdk.reactor(0), || async {
        let device = open("rb");
        assert_eq!(device.info().block_size, 512);
        assert_eq!(device.info().block_count, 2048);
        for (offset, len) in [(0, 512), (512, 4096), (8192, 1 << 17), (1 << 19, 1 << 19)] {
            let mut buffer = device.allocate(len);
            for (index, byte) in buffer.iter_mut().enumerate() {
                *byte = (index * 7 + offset as usize) as u8;
            }
            let expected = buffer.to_vec();
            let (mut buffer, result) = device.write(offset, buffer).await;
            result.expect("written");
            buffer.fill(0xEE);
            let (buffer, result) = device.read(offset, buffer).await;
            result.expect("read");
            assert!(buffer[..] == expected[..], "{len} bytes at {offset}");
        }
        device.write_zeroes(512, 1024).await.expect("zeroed");
        let (buffer, result) = device.read(512, device.allocate(1024)).await;
        result.expect("read");
        assert!(buffer.iter().all(|byte| *byte == 0));
        device.flush().await.expect("flushed");
        device.unmap(0, 4096).await.expect("unmapped");
        // Pieces of a vector.
        let pieces: Vec<Buffer> = [512, 1024, 512]
            .into_iter()
            .enumerate()
            .map(|(index, len)| {
                let mut piece = device.allocate(len);
                piece.fill(index as u8 + 1);
                piece
            })
            .collect();
        let done = device.writev(4096, pieces).await;
        done.result.expect("written");
        let (buffer, result) = device.read(4096, device.allocate(2048)).await;
        result.expect("read");
        assert!(buffer[..512].iter().all(|byte| *byte == 1));
        assert!(buffer[512..1536].iter().all(|byte| *byte == 2));
        assert!(buffer[1536..].iter().all(|byte| *byte == 3));
    });
    delete(spdk, "rb");
}

fn bounced(spdk: &Spdk) {
    let file = image(1 << 20);
    wait(spdk.bdevs().create_aio("bounce", file.path(), 512, false)).expect("aio device");
    on(spdk.reactor(0), || async {
        let device = open("bounce");
        // Memory of the heap, and a window that begins at an odd address.
        let mut ordinary = Buffer::zeroed(4096);
        ordinary.fill(0x5A);
        let (ordinary, result) = device.write(0, ordinary).await;
        result.expect("written from ordinary memory");
        let mut odd = device.allocate(8192);
        odd.set_window(3, 4096);
        let (odd, result) = device.read(0, odd).await;
        result.expect("read to an odd address");
        assert!(odd[..] == ordinary[..]);
        // Pieces that are no whole blocks.
        let mut pieces = vec![device.allocate(100), device.allocate(412)];
        pieces[0].fill(1);
        pieces[1].fill(2);
        device.writev(4096, pieces).await.result.expect("written");
        let pieces = vec![
            device.allocate(512),
            device.allocate(99),
            device.allocate(413),
        ];
        let done = device.readv(3584, pieces).await;
        done.result.expect("read");
        let pieces = done.buffers.into_vec();
        assert!(pieces[0].iter().all(|byte| *byte == 0x5A));
        assert!(pieces[1].iter().all(|byte| *byte == 1));
        assert!(pieces[2][0] == 1 && pieces[2][1..].iter().all(|byte| *byte == 2));
    });
    delete(spdk, "bounce");
}

fn image(size: u64) -> tempfile::NamedTempFile {
    let file = tempfile::Builder::new()
        .tempfile_in(env!("CARGO_TARGET_TMPDIR"))
        .expect("a file on a disk");
    file.as_file().set_len(size).expect("its size");
    file
}

fn bad_requests(spdk: &Spdk) {
    with_malloc(spdk, "bad", 64, 4096);
    on(spdk.reactor(0), || async {
        let device = open("bad");
        let read = async |offset, len| device.read(offset, device.allocate(len)).await.1;
        let kind = async |offset, len| read(offset, len).await.expect_err("a bad request").kind;
        assert_eq!(kind(64 * 4096, 4096).await, DeviceErrorKind::OutOfRange);
        assert_eq!(kind(60 * 4096, 8 * 4096).await, DeviceErrorKind::OutOfRange);
        assert_eq!(kind(!0xFFF, 4096).await, DeviceErrorKind::OutOfRange);
        assert_eq!(kind(1, 4096).await, DeviceErrorKind::Unaligned);
        assert_eq!(kind(0, 512).await, DeviceErrorKind::Unaligned);
        read(0, 4096).await.expect("a good one");
        let error = read(0, 512).await.expect_err("unaligned");
        assert!(error.to_string().contains("4096"), "{error}");
        let read_only = Bdev::open("bad", Access::ReadOnly).expect("opens");
        let (_, result) = read_only.write(0, read_only.allocate(4096)).await;
        assert_eq!(
            result.expect_err("read-only").kind,
            DeviceErrorKind::ReadOnly
        );
        read_only.flush().await.expect("nothing to flush");
    });
    delete(spdk, "bad");
}

fn injected_errors(spdk: &Spdk) {
    with_malloc(spdk, "base", 1024, 4096);
    let name = wait(spdk.bdevs().create_error("base")).expect("error device");
    wait(
        spdk.bdevs()
            .inject_error(&name, "write", InjectedError::Fail, 3),
    )
    .expect("injected");
    on(spdk.reactor(0), move || async move {
        let device = open(&name);
        let writes: Vec<_> = (0..8u64)
            .map(|block| device.write(block * 4096, device.allocate(4096)))
            .collect();
        let mut failed = 0;
        for write in writes {
            let (buffer, result) = write.await;
            assert_eq!(buffer.len(), 4096, "the buffer comes back");
            if let Err(error) = result {
                assert_eq!(error.kind, DeviceErrorKind::Failed);
                failed += 1;
            }
        }
        assert_eq!(failed, 3);
    });
    delete(spdk, "EE_base");
    delete(spdk, "base");
}

/// More requests than SPDK's modules can hold: the rest waits, and all complete.
fn a_flood(spdk: &Spdk) {
    with_malloc(spdk, "flood", 1024, 512);
    let count = 30_000u64;
    let done = on(spdk.reactor(0), move || async move {
        let device = open("flood");
        let requests: Vec<_> = (0..count)
            .map(|index| device.write_zeroes(index % 1024 * 512, 512))
            .collect();
        let mut done = 0u64;
        for request in requests {
            request.await.expect("written");
            done += 1;
        }
        done
    });
    assert_eq!(done, count);
    delete(spdk, "flood");
}

fn dropped_futures(spdk: &Spdk) {
    with_malloc(spdk, "drop", 1024, 4096);
    on(spdk.reactor(0), || async {
        let device = open("drop");
        for round in 0..50u8 {
            for block in 0..32u64 {
                let mut buffer = device.allocate(4096);
                buffer.fill(round);
                drop(device.write(block * 4096, buffer));
            }
        }
        // A device that is dropped with requests under way completes them first.
        drop(device);
        let device = open("drop");
        device.flush().await.expect("flushed");
        spdk::sleep(Duration::from_millis(20)).await;
        let (buffer, result) = device.read(31 * 4096, device.allocate(4096)).await;
        result.expect("read");
        assert!(buffer.iter().all(|byte| *byte == 49));
    });
    delete(spdk, "drop");
}

fn resize(spdk: &Spdk) {
    let file = image(1 << 20);
    wait(spdk.bdevs().create_aio("grow", file.path(), 4096, false)).expect("aio device");
    let (sender, told) = std::sync::mpsc::channel();
    let admin = spdk.bdevs();
    let larger = file.reopen().expect("reopened");
    on(spdk.reactor(1), move || async move {
        let device = open("grow");
        let _subscription = device.subscribe(Rc::new(move |event| {
            let _ = sender.send(event);
        }));
        assert!(device.read(1 << 20, device.allocate(4096)).await.1.is_err());
        larger.set_len(2 << 20).expect("grown");
        admin.rescan_aio("grow").await.expect("rescanned");
        let until = Instant::now() + Duration::from_secs(5);
        while device.info().block_count == 256 && Instant::now() < until {
            spdk::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(device.info().block_count, 512);
        device
            .read(1 << 20, device.allocate(4096))
            .await
            .1
            .expect("in range now");
    });
    assert_eq!(
        told.try_recv().expect("one event"),
        DeviceEvent::Resized { block_count: 512 }
    );
    delete(spdk, "grow");
}

fn removal(spdk: &Spdk) {
    with_malloc(spdk, "gone", 1024, 4096);
    let admin = spdk.bdevs();
    let removed = Arc::new(AtomicBool::new(false));
    let seen = removed.clone();
    on(spdk.reactor(1), move || async move {
        let device = open("gone");
        let _subscription = device.subscribe(Rc::new(move |event| {
            assert_eq!(event, DeviceEvent::Removed);
            seen.store(true, Ordering::SeqCst);
        }));
        // The deletion is answered when we have let go, which happens by itself, though `device` stays here.
        let outcomes = Rc::new(RefCell::new(Vec::new()));
        let finished = Rc::new(Cell::new(0));
        for worker in 0..16u64 {
            let (device, outcomes) = (device.clone(), outcomes.clone());
            let finished = finished.clone();
            spdk::spawn(async move {
                loop {
                    let (_, result) = device.write(worker * 4096, device.allocate(4096)).await;
                    if let Err(error) = result {
                        outcomes.borrow_mut().push(error.kind);
                        finished.set(finished.get() + 1);
                        break;
                    }
                }
            });
        }
        spdk::sleep(Duration::from_millis(5)).await;
        admin.delete("gone").await.expect("deleted");
        while finished.get() < 16 {
            spdk::sleep(Duration::from_millis(1)).await;
        }
        assert!(
            outcomes
                .borrow()
                .iter()
                .all(|kind| *kind == DeviceErrorKind::Removed)
        );
        let (_, result) = device.read(0, device.allocate(4096)).await;
        assert_eq!(result.expect_err("gone").kind, DeviceErrorKind::Removed);
        assert_eq!(
            device.flush().await.expect_err("gone").kind,
            DeviceErrorKind::Removed
        );
    });
    assert!(removed.load(Ordering::SeqCst));
}

fn open_errors(spdk: &Spdk) {
    with_malloc(spdk, "there", 64, 512);
    on(spdk.reactor(0), || async {
        match Bdev::open("not there", Access::ReadWrite) {
            Err(OpenError::NotFound { present, .. }) => assert_eq!(present, ["there"]),
            other => panic!("{other:?}"),
        }
    });
    assert_eq!(
        Bdev::open("there", Access::ReadOnly).err(),
        Some(OpenError::NotOnReactor)
    );
    delete(spdk, "there");
}

fn reset(spdk: &Spdk) {
    with_malloc(spdk, "reset", 64, 512);
    on(spdk.reactor(0), || async {
        open("reset").reset().await.expect("reset");
    });
    delete(spdk, "reset");
}

fn many_futures(spdk: &Spdk) {
    with_malloc(spdk, "many", 16_384, 512);
    let sum = on(spdk.reactor(0), || async {
        let device = open("many");
        let done = Rc::new(Cell::new(0u64));
        for index in 0..10_000u64 {
            let (device, done) = (device.clone(), done.clone());
            spdk::spawn(async move {
                let mut buffer = device.allocate(512);
                buffer.fill(index as u8);
                let (buffer, result) = device.write(index * 512, buffer).await;
                result.expect("written");
                spdk::sleep(Duration::from_micros(index % 100)).await;
                let (buffer, result) = device.read(index * 512, buffer).await;
                result.expect("read");
                assert!(buffer.iter().all(|byte| *byte == index as u8));
                done.set(done.get() + 1);
            });
        }
        while done.get() < 10_000 {
            spdk::sleep(Duration::from_millis(1)).await;
        }
        done.get()
    });
    assert_eq!(sum, 10_000);
    delete(spdk, "many");
}

/// Wakers go to other threads, are woken there at any time, and outlive their tasks.
fn foreign_wakes(spdk: &Spdk) {
    let wakers: Arc<std::sync::Mutex<Vec<std::task::Waker>>> = Arc::default();
    let stop = Arc::new(AtomicBool::new(false));
    let wakers_there = wakers.clone();
    let stop_there = stop.clone();
    let waker_thread = std::thread::spawn(move || {
        let mut woken = 0u64;
        while !stop_there.load(Ordering::Relaxed) {
            let some = wakers_there.lock().expect("not poisoned").clone();
            for waker in some {
                waker.wake();
                woken += 1;
            }
            std::thread::yield_now();
        }
        woken
    });
    on(spdk.reactor(1), move || async move {
        let done = Rc::new(Cell::new(0));
        for _ in 0..100 {
            let (done, wakers) = (done.clone(), wakers.clone());
            spdk::spawn(async move {
                let mut polls = 0;
                std::future::poll_fn(|cx| {
                    polls += 1;
                    wakers
                        .lock()
                        .expect("not poisoned")
                        .push(cx.waker().clone());
                    if polls >= 3 {
                        std::task::Poll::Ready(())
                    } else {
                        std::task::Poll::Pending
                    }
                })
                .await;
                done.set(done.get() + 1);
            });
        }
        while done.get() < 100 {
            spdk::sleep(Duration::from_millis(1)).await;
        }
    });
    stop.store(true, Ordering::Relaxed);
    assert!(waker_thread.join().expect("it ran") >= 300);
}

fn two_reactors(spdk: &Spdk) {
    with_malloc(spdk, "both", 1024, 4096);
    let parts: Vec<_> = (0..2usize)
        .map(|index| {
            spdk.reactor(index).call(move || async move {
                let device = open("both");
                for block in 0..200u64 {
                    let offset = (block * 2 + index as u64) * 4096;
                    let mut buffer = device.allocate(4096);
                    buffer.fill(index as u8 + 1);
                    let (_, result) = device.write(offset, buffer).await;
                    result.expect("written");
                }
            })
        })
        .collect();
    for part in parts {
        wait(part).expect("both reactors run");
    }
    on(spdk.reactor(1), || async {
        let device = open("both");
        let (buffer, result) = device.read(0, device.allocate(16 * 4096)).await;
        result.expect("read");
        for (index, block) in buffer.chunks(4096).enumerate() {
            assert!(block.iter().all(|byte| *byte == (index % 2) as u8 + 1));
        }
    });
    delete(spdk, "both");
}

/// The words: under 5 % of a core when idle, and the first request answered at once.
fn idle(spdk: &Spdk) {
    with_malloc(spdk, "idle", 1024, 4096);
    let reactor = spdk.reactor(0);
    let mut latencies: Vec<Duration> = Vec::new();
    // Idle with an open device and a task that waits, as a daemon with a mounted volume is.
    reactor
        .spawn(|| async {
            let device = open("idle");
            spdk::sleep(Duration::from_secs(6)).await;
            drop(device);
        })
        .expect("spawned");
    std::thread::sleep(Duration::from_millis(200));
    let (before, clock) = (cpu_time(), Instant::now());
    std::thread::sleep(Duration::from_secs(4));
    let used = (cpu_time() - before).as_secs_f64() / clock.elapsed().as_secs_f64() * 100.0;
    for _ in 0..50 {
        std::thread::sleep(Duration::from_millis(23));
        let start = Instant::now();
        on(reactor, || async {
            let device = open("idle");
            device.read(0, device.allocate(4096)).await.1.expect("read");
        });
        latencies.push(start.elapsed());
    }
    latencies.sort();
    let (median, worst) = (latencies[25], latencies[49]);
    print!(
        "[idle: {used:.2} % of a core for 2 reactors; first request: median {median:?}, worst {worst:?}] "
    );
    assert!(used < 5.0, "idle takes {used:.2} % of a core");
    assert!(
        median < Duration::from_millis(2),
        "first request took {median:?}"
    );
    on(reactor, || spdk::sleep(Duration::from_secs(2)));
    delete(spdk, "idle");
}

fn rpc_errors(spdk: &Spdk) {
    let error =
        wait(spdk.rpc().call("no_such_method", serde_json::Value::Null)).expect_err("unknown");
    assert!(error.to_string().contains("Method not found"), "{error}");
    let missing = wait(
        spdk.bdevs()
            .create_aio("x", "/nowhere/at/all".as_ref(), 512, false),
    )
    .expect_err("no such file");
    assert_eq!(missing.errno(), Some(2), "{missing}");
    let polling = Polling::default();
    assert!(matches!(polling, Polling::Adaptive { .. }));
}

fn malloc_contract(spdk: &Spdk) {
    for block_size in [512, 4096] {
        with_malloc(
            spdk,
            "contract",
            (16 << 20) / u64::from(block_size),
            block_size,
        );
        keeps_the_contract(spdk, "contract");
        delete(spdk, "contract");
    }
}

fn aio_contract(spdk: &Spdk) {
    for block_size in [512, 4096] {
        let file = image(16 << 20);
        wait(
            spdk.bdevs()
                .create_aio("contract", file.path(), block_size, false),
        )
        .expect("aio device");
        keeps_the_contract(spdk, "contract");
        delete(spdk, "contract");
    }
}

fn uring_contract(spdk: &Spdk) {
    let file = image(16 << 20);
    wait(spdk.bdevs().create_uring("contract", file.path(), 4096)).expect("uring device");
    keeps_the_contract(spdk, "contract");
    delete(spdk, "contract");
}

fn keeps_the_contract(spdk: &Spdk, name: &'static str) {
    for seed in [1, 2] {
        let verdict = on(spdk.reactor(seed), move || async move {
            let device = open(name);
            let host = spdk::host().expect("on a reactor");
            let area = 4 << 20..16 << 20;
            runtime::contract::run(device, &*host, area, seed as u64).await
        });
        verdict.unwrap_or_else(|violation| panic!("{violation}"));
    }
}
