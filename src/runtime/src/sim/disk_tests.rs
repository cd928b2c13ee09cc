use futures_util::FutureExt;

use super::*;
use crate::device::BlockDeviceExt;
use crate::host::Host;
use crate::sim::Simulation;

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

#[test]
fn without_a_world_requests_are_done_at_once() {
    let disk = SimDisk::new(16 << 30);
    let device = disk.device();
    now(device.write(8 << 30, filled(&disk, 4096, 7)))
        .1
        .unwrap();
    let (buffer, result) = now(device.read((8 << 30) + 512, disk.allocate(512)));
    result.unwrap();
    assert!(buffer.iter().all(|byte| *byte == 7));
    assert!(disk.image().stored_bytes() < 1 << 20);
}

#[test]
fn in_a_world_requests_overtake_each_other() {
    let sim = Simulation::new(3);
    let disk = SimDisk::with(
        Image::empty(1 << 20),
        DiskOptions::default(),
        Some(&sim.world()),
    );
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
    assert_eq!(order.borrow().len(), 20);
    assert!(!order.borrow().is_sorted());
    assert_eq!(disk.stats().max_in_flight, 20);
}
