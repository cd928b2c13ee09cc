//! A connection's two tasks: one reads and tells the mesh, one writes what the mesh wants written.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use runtime::Stream;

use crate::limits::{OUTGOING_BYTES, RECEIVE_BYTES};
use crate::signal::Signal;

pub(super) struct Conn {
    stream: Rc<dyn Stream>,
    out: RefCell<Vec<u8>>,
    /// Bytes in `out` and in the send that is under way.
    out_bytes: Cell<usize>,
    written: Signal,
    wanted: Signal,
    closed: Cell<bool>,
}

impl Conn {
    pub fn new(stream: Rc<dyn Stream>) -> Rc<Self> {
        Rc::new(Conn {
            stream,
            out: RefCell::default(),
            out_bytes: Cell::new(0),
            written: Signal::default(),
            wanted: Signal::default(),
            closed: Cell::new(false),
        })
    }

    pub fn write(&self, bytes: &[u8]) {
        if !self.closed.get() {
            self.out.borrow_mut().extend_from_slice(bytes);
            self.out_bytes.set(self.out_bytes.get() + bytes.len());
            self.wanted.set();
        }
    }

    pub fn close(&self) {
        self.closed.set(true);
        self.stream.close();
        self.wanted.set();
        self.written.set();
    }

    /// Hands what comes in to `take`, until the connection ends.
    pub async fn read_loop(&self, take: impl Fn(Vec<u8>)) {
        loop {
            // A peer that takes no answers may not ask.
            let free =
                || (self.closed.get() || self.out_bytes.get() <= OUTGOING_BYTES).then_some(());
            self.written.wait_until(free).await;
            match self.stream.receive(RECEIVE_BYTES).await {
                Ok(bytes) if bytes.is_empty() => return,
                Ok(bytes) => take(bytes),
                Err(_) => return,
            }
        }
    }

    /// Sends what is wanted, until the connection ends.
    pub async fn write_loop(&self) {
        loop {
            let wanted = || (self.closed.get() || !self.out.borrow().is_empty()).then_some(());
            self.wanted.wait_until(wanted).await;
            if self.closed.get() {
                return;
            }
            let bytes = self.out.take();
            let count = bytes.len();
            if self.stream.send(bytes).await.is_err() {
                return;
            }
            self.out_bytes.set(self.out_bytes.get() - count);
            self.written.set();
        }
    }
}
