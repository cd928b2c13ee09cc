//! One node's way to a device that it shares with others: can be cut or stalled for this node alone,
//! and tells a watcher of every write that sets out, so that a test can judge who wrote when.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use crate::buffer::Buffer;
use crate::device::{BlockDevice, DeviceErrorKind, DeviceEvent, DeviceInfo, Subscription};
use crate::io::{Op, Request};

/// How a node's path to the device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortState {
    Up,
    /// Every request fails at once.
    Failing,
    /// Requests neither fail nor end until the path is up again; then they are done.
    Stalled,
}

type Watcher = Box<dyn Fn(Op, u64, u64)>;

/// A node's port; clones are the same one.
#[derive(Clone)]
pub struct SimPort {
    inner: Rc<Inner>,
}

struct Inner {
    device: Rc<dyn BlockDevice>,
    state: Cell<PortState>,
    stalled: RefCell<Vec<Request>>,
    watcher: RefCell<Option<Watcher>>,
}

impl SimPort {
    pub fn new(device: Rc<dyn BlockDevice>) -> Self {
        SimPort {
            inner: Rc::new(Inner {
                device,
                state: Cell::new(PortState::Up),
                stalled: RefCell::default(),
                watcher: RefCell::default(),
            }),
        }
    }

    /// Calls `watcher` with kind, offset and length of each request that the node sends on its way, whenever it
    /// arrives.
    pub fn watch(&self, watcher: impl Fn(Op, u64, u64) + 'static) {
        *self.inner.watcher.borrow_mut() = Some(Box::new(watcher));
    }

    pub fn set(&self, state: PortState) {
        self.inner.state.set(state);
        if state != PortState::Stalled {
            let waiting = std::mem::take(&mut *self.inner.stalled.borrow_mut());
            match state {
                PortState::Up => waiting
                    .into_iter()
                    .for_each(|request| self.inner.device.submit(request)),
                _ => waiting.into_iter().for_each(|request| self.submit(request)),
            }
        }
    }

    /// The node is gone: what waited in its path is never done.
    pub fn forget_stalled(&self) {
        let waiting = std::mem::take(&mut *self.inner.stalled.borrow_mut());
        drop(waiting);
    }
}

impl Inner {
    fn see(&self, request: &Request) {
        if let Some(watcher) = &*self.watcher.borrow() {
            watcher(request.op, request.offset, request.len);
        }
    }
}

impl BlockDevice for SimPort {
    fn info(&self) -> DeviceInfo {
        self.inner.device.info()
    }

    fn allocate(&self, len: usize) -> Buffer {
        self.inner.device.allocate(len)
    }

    fn submit(&self, request: Request) {
        match self.inner.state.get() {
            PortState::Failing => {
                let error = request.error(DeviceErrorKind::Failed, "the path is cut");
                request.complete(Err(error));
            }
            PortState::Stalled => {
                self.inner.see(&request);
                self.inner.stalled.borrow_mut().push(request);
            }
            PortState::Up => {
                self.inner.see(&request);
                self.inner.device.submit(request);
            }
        }
    }

    fn subscribe(&self, callback: Rc<dyn Fn(DeviceEvent)>) -> Subscription {
        self.inner.device.subscribe(callback)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::BlockDeviceExt;
    use crate::sim::SimDisk;
    use futures_util::FutureExt;

    #[test]
    fn a_port_cuts_and_stalls_for_one_node_only() {
        let disk = SimDisk::new(1 << 20);
        let (one, other) = (
            SimPort::new(Rc::new(disk.clone())),
            SimPort::new(Rc::new(disk)),
        );
        let seen = Rc::new(RefCell::new(Vec::new()));
        let log = seen.clone();
        one.watch(move |op, offset, len| log.borrow_mut().push((op, offset, len)));
        one.set(PortState::Failing);
        let (_, result) = one
            .write(0, Buffer::zeroed(512))
            .now_or_never()
            .expect("done");
        assert_eq!(
            result.map_err(|error| error.kind),
            Err(DeviceErrorKind::Failed)
        );
        one.set(PortState::Stalled);
        let mut write = Box::pin(one.write(512, Buffer::zeroed(512)));
        assert!((&mut write).now_or_never().is_none());
        let (_, result) = other
            .write(0, Buffer::zeroed(512))
            .now_or_never()
            .expect("done");
        result.expect("the other's path is whole");
        one.set(PortState::Up);
        let (_, result) = write.now_or_never().expect("done");
        result.expect("done late");
        assert_eq!(
            *seen.borrow(),
            [(Op::Write, 512, 512)],
            "once, when it set out"
        );
        one.set(PortState::Stalled);
        let write = one.write(1024, Buffer::zeroed(512));
        one.forget_stalled();
        let (_, result) = write.now_or_never().expect("aborted");
        assert_eq!(
            result.map_err(|error| error.kind),
            Err(DeviceErrorKind::Aborted)
        );
    }
}
