//! A request of whole blocks over a written extent takes no memory: neither alone nor with many in
//! flight, neither reading nor writing.
#![allow(clippy::unwrap_used, reason = "a test fails where it panics")]

mod support;

use std::alloc::System;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use fs::volume::{FileHandle, MountOptions, Volume};
use runtime::{BlockDevice, Buffer, DeviceEvent, DeviceInfo, Op, Request, Subscription};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use support::*;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const BLOCK: usize = 4096;
const DEPTH: u64 = 32;
const FILE_BYTES: u64 = 8 << 20;

/// Memory. Completes requests at once, or when it is told to.
struct MemoryDevice {
    bytes: RefCell<Vec<u8>>,
    holding: Cell<bool>,
    held: RefCell<Vec<Request>>,
}

impl MemoryDevice {
    fn work(&self, mut request: Request) {
        let mut bytes = self.bytes.borrow_mut();
        let (mut at, end) = (request.offset as usize, request.offset + request.len);
        match request.op {
            Op::Read | Op::Write => {
                for buffer in request.buffers.as_mut_slice() {
                    let place = &mut bytes[at..at + buffer.len()];
                    match request.op {
                        Op::Read => buffer.copy_from_slice(place),
                        _ => place.copy_from_slice(buffer),
                    }
                    at += buffer.len();
                }
            }
            Op::Unmap | Op::WriteZeroes => bytes[at..end as usize].fill(0),
            Op::Flush => {}
        }
        drop(bytes);
        request.complete(Ok(()));
    }

    fn let_go(&self) {
        loop {
            let next = self.held.borrow_mut().pop();
            let Some(request) = next else { return };
            self.work(request);
        }
    }
}

impl BlockDevice for MemoryDevice {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            name: "memory".into(),
            block_size: 512,
            block_count: self.bytes.borrow().len() as u64 / 512,
            buffer_align: 1,
            volatile_cache: false,
            supports_unmap: true,
            read_only: false,
        }
    }

    fn allocate(&self, len: usize) -> Buffer {
        Buffer::zeroed(len)
    }

    fn submit(&self, request: Request) {
        if self.holding.get() {
            self.held.borrow_mut().push(request);
        } else {
            self.work(request);
        }
    }

    fn subscribe(&self, _: Rc<dyn Fn(DeviceEvent)>) -> Subscription {
        Subscription::none()
    }
}

/// One of many in flight: writes its own blocks and reads them back, again and again.
async fn worker(volume: Volume, file: FileHandle, number: u64, requests: u64, done: Rc<Cell<u64>>) {
    let mut buffer = Buffer::zeroed(BLOCK);
    let places = FILE_BYTES / BLOCK as u64 / DEPTH;
    for i in 0..requests {
        let at = ((i * 37 % places) * DEPTH + number) * BLOCK as u64;
        let byte = (number ^ i) as u8;
        buffer.fill(byte);
        let (back, written) = volume.write_buffer(&file, at, buffer).await;
        assert_eq!(
            (written.bytes, written.error.is_some()),
            (BLOCK as u64, false)
        );
        buffer = back;
        buffer.fill(!byte);
        let (back, read) = volume.read_buffer(&file, at, buffer).await;
        assert_eq!(read.unwrap(), BLOCK as u64);
        buffer = back;
        assert!(buffer.iter().all(|b| *b == byte));
        done.set(done.get() + 1);
    }
}

#[test]
fn direct_requests_take_no_memory() {
    let dir = scratch();
    let path = dir.path().join("volume");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(64 << 20).unwrap();
    let name = path.to_str().unwrap();
    let options = ["-q", "-x", "-F", "-M", "local", "-N", "1", "-J", "size=4M"];
    let features = "--fs-feature-level=max-features";
    let args = [&options[..], &["-b", "4096", "-C", "4096", features, name]].concat();
    assert_eq!(tool("mkfs.ocfs2", &args).1, 0);

    let sim = runtime::sim::Simulation::new(7);
    let device = Rc::new(MemoryDevice {
        bytes: RefCell::new(std::fs::read(&path).unwrap()),
        holding: Cell::new(false),
        held: RefCell::new(Vec::with_capacity(DEPTH as usize)),
    });
    let host = sim.host();
    let mounting = Volume::mount(device.clone(), host, MountOptions::default());
    let volume = sim.block_on(mounting).unwrap().unwrap();
    let file = sim
        .block_on(async {
            let ino = put(&volume, volume.root(), b"f", b"").await.unwrap().ino;
            let file = volume.open(ino, READ_WRITE).await.unwrap();
            let data = Bytes::from(vec![1; 1 << 20]);
            for at in (0..FILE_BYTES).step_by(1 << 20) {
                assert!(volume.write(&file, at, data.clone()).await.error.is_none());
            }
            volume.sync().await.unwrap();
            file
        })
        .unwrap();

    let (warm, all) = (20, 2020);
    let done = Rc::new(Cell::new(0));
    let mut workers: Vec<Pin<Box<dyn Future<Output = ()>>>> = (0..DEPTH)
        .map(|number| {
            let work = worker(volume.clone(), file.clone(), number, all, done.clone());
            Box::pin(work) as Pin<Box<dyn Future<Output = ()>>>
        })
        .collect();
    device.holding.set(true);
    let mut cx = Context::from_waker(Waker::noop());
    let mut region = None;
    let mut counted_from = 0;
    let mut change = None;
    while !workers.is_empty() {
        if region.is_none() && done.get() >= warm * DEPTH {
            counted_from = done.get();
            region = Some(Region::new(ALLOCATOR));
        }
        workers.retain_mut(|worker| worker.as_mut().poll(&mut cx) == Poll::Pending);
        device.let_go();
        // While all are at work: at the end the pools take back what was in flight.
        if let Some(region) = region.as_ref().filter(|_| workers.len() as u64 == DEPTH) {
            change = Some((region.change(), done.get() - counted_from));
        }
    }
    let (change, counted) = change.unwrap();
    assert_eq!(done.get(), all * DEPTH);
    assert!(counted > 60_000, "{counted}");
    assert_eq!(
        (change.allocations, change.reallocations),
        (0, 0),
        "by {counted} writes and as many reads"
    );

    device.holding.set(false);
    sim.block_on(async {
        volume.close(file).await.unwrap();
        volume.unmount().await.unwrap();
    })
    .unwrap();
    std::fs::write(&path, &*device.bytes.borrow()).unwrap();
    let (says, status) = tool("fsck.ocfs2", &["-fn", name]);
    assert_eq!(status, 0, "{says}");
}
