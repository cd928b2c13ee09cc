//! Faults that a test plants in a simulated disk: which requests they hit, and what they do.

use std::ops::Range;
use std::time::Duration;

use crate::device::DeviceErrorKind;
use crate::io::Op;

/// What a fault does to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Effect {
    Fail {
        kind: DeviceErrorKind,
        /// Bytes transferred before the failure.
        reached: u64,
    },
    Delay(Duration),
    Hold,
    Drop,
    Lose,
}

/// Bad luck for some requests. The first planted fault that matches a request has it.
#[derive(Debug, Clone)]
pub struct Fault {
    op: Option<Op>,
    range: Range<u64>,
    skip: u64,
    times: u64,
    pub(super) effect: Effect,
}

impl Fault {
    fn new(effect: Effect) -> Self {
        Fault {
            op: None,
            range: 0..u64::MAX,
            skip: 0,
            times: u64::MAX,
            effect,
        }
    }

    /// The request fails, with nothing transferred.
    pub fn fail(kind: DeviceErrorKind) -> Self {
        Fault::new(Effect::Fail { kind, reached: 0 })
    }

    /// The request fails after the first `reached` bytes were transferred, over as many of its
    /// buffers as they fill.
    pub fn fail_after_bytes(kind: DeviceErrorKind, reached: u64) -> Self {
        Fault::new(Effect::Fail { kind, reached })
    }

    /// The request takes longer. Of no effect on a disk without a world.
    pub fn delay(by: Duration) -> Self {
        Fault::new(Effect::Delay(by))
    }

    /// The request stays in flight until `SimDisk::release_held`.
    pub fn hold() -> Self {
        Fault::new(Effect::Hold)
    }

    /// The device forgets the request, which ends as aborted.
    pub fn forget() -> Self {
        Fault::new(Effect::Drop)
    }

    /// The device says yes and does nothing: a lost write, an unchanged read buffer, or a flush
    /// that lies.
    pub fn lose() -> Self {
        Fault::new(Effect::Lose)
    }

    /// Only requests of this kind.
    #[must_use]
    pub fn on(mut self, op: Op) -> Self {
        self.op = Some(op);
        self
    }

    /// Only requests that touch this range of bytes.
    #[must_use]
    pub fn within(mut self, range: Range<u64>) -> Self {
        self.range = range;
        self
    }

    /// The first `count` matching requests pass.
    #[must_use]
    pub fn after(mut self, count: u64) -> Self {
        self.skip = count;
        self
    }

    /// Only `count` requests are hit.
    #[must_use]
    pub fn times(mut self, count: u64) -> Self {
        self.times = count;
        self
    }
}

/// Names a planted fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FaultId(u64);

struct Planted {
    id: FaultId,
    fault: Fault,
    hits: u64,
}

#[derive(Default)]
pub(super) struct Faults {
    planted: Vec<Planted>,
    next: u64,
}

impl Faults {
    pub fn plant(&mut self, fault: Fault) -> FaultId {
        let id = FaultId(self.next);
        self.next += 1;
        let hits = 0;
        self.planted.push(Planted { id, fault, hits });
        id
    }

    pub fn remove(&mut self, id: FaultId) {
        self.planted.retain(|planted| planted.id != id);
    }

    pub fn clear(&mut self) {
        self.planted.clear();
    }

    pub fn hits(&self, id: FaultId) -> u64 {
        let planted = self.planted.iter().find(|planted| planted.id == id);
        planted.map_or(0, |planted| planted.hits)
    }

    /// The effect on this request, if any.
    pub fn strike(&mut self, op: Op, offset: u64, len: u64) -> Option<Effect> {
        for planted in &mut self.planted {
            let fault = &mut planted.fault;
            let everywhere = fault.range == (0..u64::MAX);
            let touches =
                offset < fault.range.end && fault.range.start < offset.saturating_add(len);
            if fault.op.is_some_and(|only| only != op) || !(everywhere || touches) {
                continue;
            }
            if fault.skip > 0 {
                fault.skip -= 1;
            } else if planted.hits < fault.times {
                planted.hits += 1;
                return Some(fault.effect.clone());
            }
        }
        None
    }
}
