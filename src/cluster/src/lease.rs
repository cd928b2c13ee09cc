//! The right to touch shared disks, and the gate that asks for it before every request. **Fencing is here**: a node that
//! lost its heartbeat or its quorum ends its lease, and whatever still runs in it gets errors instead of the disk. So does
//! a process that slept beyond its lease, before it knows that it slept: the gate looks at the clock itself.
//!
//! What was submitted before may still reach the medium. Where the device has reservations, survivors preempt this node
//! before they touch what it wrote.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use runtime::{
    BlockDevice, Buffer, DeviceErrorKind, DeviceEvent, DeviceInfo, Host, Request, Subscription,
};

use crate::heartbeat::RegionId;
use crate::quorum::Loss;

/// Why a node stopped touching shared disks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fence {
    #[error("no heartbeat could be written to region {} since {since:?}", region.0)]
    Disk { region: RegionId, since: Duration },
    #[error("quorum lost: {0}")]
    Quorum(Loss),
    #[error(
        "the process stood still beyond its lease, which ended at {until:?}; now it is {now:?}"
    )]
    Slept { until: Duration, now: Duration },
    /// A part of this node found that it must not go on.
    #[error("{0}")]
    Fault(String),
    /// Not a fence but the end of a life: the node left in order.
    #[error("the node has left the cluster")]
    Left,
}

struct Inner {
    host: Rc<dyn Host>,
    until: Cell<Duration>,
    fence: RefCell<Option<Fence>>,
}

/// One life's right to touch shared disks; clones are the same one. Once it is over it never comes back: a node that
/// rejoins gets another, so nothing of its old life can write in the new one.
#[derive(Clone)]
pub struct Lease {
    inner: Rc<Inner>,
}

impl Lease {
    pub(crate) fn new(host: Rc<dyn Host>) -> Self {
        Lease {
            inner: Rc::new(Inner {
                host,
                until: Cell::new(Duration::ZERO),
                fence: RefCell::new(None),
            }),
        }
    }

    pub(crate) fn renew(&self, until: Duration) {
        self.inner.until.set(until);
    }

    /// Ends it; the first reason stays.
    pub(crate) fn end(&self, fence: Fence) {
        self.inner.fence.borrow_mut().get_or_insert(fence);
    }

    /// Until when it lasts, if nothing renews or ends it.
    pub fn until(&self) -> Duration {
        self.inner.until.get()
    }

    /// Why it is over.
    pub fn fence(&self) -> Option<Fence> {
        self.inner.fence.borrow().clone()
    }

    /// Whether shared disks may be touched now.
    ///
    /// # Errors
    /// Why not. Before the node has joined, that is a lease of length zero.
    pub fn check(&self) -> Result<(), Fence> {
        if let Some(fence) = &*self.inner.fence.borrow() {
            return Err(fence.clone());
        }
        let (now, until) = (self.inner.host.now(), self.until());
        if now < until {
            return Ok(());
        }
        let fence = Fence::Slept { until, now };
        if until > Duration::ZERO {
            self.end(fence.clone());
        }
        Err(fence)
    }

    /// `device`, behind this lease.
    pub fn gate(&self, device: Rc<dyn BlockDevice>) -> Rc<dyn BlockDevice> {
        let lease = self.clone();
        Rc::new(Gate { device, lease })
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.inner.fence.borrow() {
            None => write!(f, "Lease(until {:?})", self.until()),
            Some(fence) => write!(f, "Lease(over: {fence})"),
        }
    }
}

struct Gate {
    device: Rc<dyn BlockDevice>,
    lease: Lease,
}

impl BlockDevice for Gate {
    fn info(&self) -> DeviceInfo {
        self.device.info()
    }

    fn allocate(&self, len: usize) -> Buffer {
        self.device.allocate(len)
    }

    fn submit(&self, request: Request) {
        match self.lease.check() {
            Ok(()) => self.device.submit(request),
            Err(fence) => {
                let error = request.error(DeviceErrorKind::Fenced, fence.to_string());
                request.complete(Err(error));
            }
        }
    }

    fn subscribe(&self, callback: Rc<dyn Fn(DeviceEvent)>) -> Subscription {
        self.device.subscribe(callback)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use runtime::BlockDeviceExt;
    use runtime::sim::{SimDisk, Simulation};

    #[test]
    fn the_gate_closes_when_the_lease_ends_even_if_nobody_says_so() {
        let sim = Simulation::new(1);
        let lease = Lease::new(sim.host());
        let disk = lease.gate(Rc::new(SimDisk::new(1 << 20)));
        let write = || {
            let (_, result) = disk.write(0, Buffer::zeroed(512)).now_or_never().unwrap();
            result.map_err(|error| error.kind)
        };
        assert_eq!(write(), Err(DeviceErrorKind::Fenced), "not joined yet");
        lease.renew(Duration::from_secs(5));
        assert_eq!(write(), Ok(()));
        sim.run_for(Duration::from_secs(4)).unwrap();
        assert_eq!(write(), Ok(()));
        lease.renew(Duration::from_secs(9));
        sim.run_for(Duration::from_secs(4)).unwrap();
        assert_eq!(write(), Ok(()));
        sim.run_for(Duration::from_secs(1)).unwrap();
        assert_eq!(write(), Err(DeviceErrorKind::Fenced));
        lease.renew(Duration::from_secs(100));
        assert_eq!(
            write(),
            Err(DeviceErrorKind::Fenced),
            "it does not come back"
        );
        assert!(matches!(lease.fence(), Some(Fence::Slept { .. })));
        lease.end(Fence::Left);
        assert!(
            matches!(lease.fence(), Some(Fence::Slept { .. })),
            "the first reason stays"
        );
    }
}
