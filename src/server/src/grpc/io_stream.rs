//! The `Io` stream: many operations in flight at once.
//!
//! ```text
//!   poll ─► completions that have gathered ─► answers
//!      └──► submissions that have gathered ─► one message to the volume's thread ─► a task for each
//!                                                 └─ each, as it ends, adds to the completions ─► wake
//! ```
//! The stream of answers does all of it: there is no task between it and the volume's thread, and one
//! wake either way carries whatever has gathered meanwhile.
//!
//! Rule: submissions are taken only while both the count and the bytes in flight are below their
//! limits, and an operation is in flight until its answer is taken; so a slow client, or a fast one,
//! costs a bounded amount of memory. When the client is gone, the stream is dropped: what has begun
//! is finished and nothing new begins.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures_util::Stream;
use futures_util::task::AtomicWaker;
use proto::v1::io_request::Operation;
use proto::v1::{IoRead, IoRequest, IoResponse, IoSync, IoWrite};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::{Status, Streaming};

use super::convert;
use super::io::{self, check_range, check_readable, check_writable};
use crate::door::Written;
use crate::failure::{Failure, Result};
use crate::handles::OpenHandle;
use crate::limits;
use crate::node::Node;
use crate::volume::Batch;

/// The answers to a stream of submissions.
pub fn serve(
    node: Arc<Node>,
    incoming: Streaming<IoRequest>,
) -> impl Stream<Item = Result<IoResponse, Status>> + Send + 'static {
    Answers {
        ending: Box::pin(node.ending.clone().cancelled_owned()),
        node,
        incoming: Some(incoming),
        completions: Arc::default(),
        ready: VecDeque::new(),
        in_flight: 0,
        bytes_in_flight: 0,
        last: None,
    }
}

struct Answers {
    node: Arc<Node>,
    /// None once no more is taken.
    incoming: Option<Streaming<IoRequest>>,
    ending: Pin<Box<WaitForCancellationFutureOwned>>,
    completions: Arc<Completions>,
    /// Completions that were fetched.
    ready: VecDeque<Done>,
    /// Operations that were taken, and whose answer is not.
    in_flight: usize,
    bytes_in_flight: usize,
    /// The stream's own end, after all else.
    last: Option<Status>,
}

struct Done {
    response: IoResponse,
    weight: usize,
}

/// What the volume's thread adds to and the stream fetches.
#[derive(Default)]
struct Completions {
    done: Mutex<VecDeque<Done>>,
    waker: AtomicWaker,
}

impl Completions {
    fn add(&self, done: Done) {
        let first = {
            let mut list = self.done.lock().unwrap_or_else(PoisonError::into_inner);
            list.push_back(done);
            list.len() == 1
        };
        // Who added the first has woken the stream, which fetches all.
        if first {
            self.waker.wake();
        }
    }

    fn fetch(&self, into: &mut VecDeque<Done>) {
        let mut list = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut *list, into);
    }
}

/// An operation in flight. It is answered once, also if it is dropped before it has run.
struct Pending {
    id: u64,
    weight: usize,
    completions: Option<Arc<Completions>>,
    /// In use, so that it does not end for disuse.
    open: Option<Arc<OpenHandle>>,
}

impl Pending {
    fn answer(&mut self, response: IoResponse) {
        if let Some(completions) = self.completions.take() {
            self.open = None;
            completions.add(Done {
                response,
                weight: self.weight,
            });
        }
    }

    fn finish(mut self, result: Result<bytes::Bytes>) {
        let response = match result {
            Ok(data) => IoResponse {
                id: self.id,
                bytes: data.len() as u64,
                data,
                ..IoResponse::default()
            },
            Err(failure) => failed(self.id, failure),
        };
        self.answer(response);
    }

    fn finish_write(mut self, handle: u64, written: Written) {
        let Written {
            bytes,
            position,
            error,
            attempts,
        } = written;
        let error = error.map(|error| error.handle(handle).bytes_written(bytes).into_detail());
        self.answer(IoResponse {
            id: self.id,
            bytes,
            offset: position,
            error,
            attempts: attempts.iter().map(convert::attempt).collect(),
            ..IoResponse::default()
        });
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if self.completions.is_some() {
            self.answer(failed(self.id, Failure::gone("the volume")));
        }
    }
}

fn failed(id: u64, failure: Failure) -> IoResponse {
    IoResponse {
        id,
        error: Some(failure.into_detail()),
        ..IoResponse::default()
    }
}

impl Stream for Answers {
    type Item = Result<IoResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.ready.is_empty() {
            // Before the look: whoever adds to an empty list from here on wakes us.
            this.completions.waker.register(cx.waker());
            this.completions.fetch(&mut this.ready);
            this.take_submissions(cx);
        }
        if let Some(Done { response, weight }) = this.ready.pop_front() {
            this.in_flight -= 1;
            this.bytes_in_flight -= weight;
            return Poll::Ready(Some(Ok(response)));
        }
        if this.incoming.is_some() || this.in_flight > 0 {
            return Poll::Pending;
        }
        Poll::Ready(this.last.take().map(Err))
    }
}

impl Answers {
    /// Begins what has arrived, as far as there is room.
    fn take_submissions(&mut self, cx: &mut Context<'_>) {
        let Some(incoming) = &mut self.incoming else {
            return;
        };
        if self.ending.as_mut().poll(cx).is_ready() {
            self.last = Some(Failure::gone("the node").into());
            self.incoming = None;
            return;
        }
        let mut batch = Batch::default();
        // With what is ready counted as gone: it is on its way out.
        while self.in_flight < limits::IO_IN_FLIGHT
            && self.bytes_in_flight < limits::IO_BYTES_IN_FLIGHT
        {
            let Poll::Ready(message) = Pin::new(&mut *incoming).poll_next(cx) else {
                break;
            };
            match message {
                Some(Ok(request)) => {
                    let weight = weight(&request);
                    self.in_flight += 1;
                    self.bytes_in_flight += weight;
                    let pending = Pending {
                        id: request.id,
                        weight,
                        completions: Some(self.completions.clone()),
                        open: None,
                    };
                    begin(&self.node, request.operation, pending, &mut batch);
                }
                Some(Err(status)) => {
                    tracing::debug!(%status, "an Io stream broke off");
                    self.last = Some(status);
                    self.incoming = None;
                    break;
                }
                None => {
                    self.incoming = None;
                    break;
                }
            }
        }
        batch.send();
    }
}

/// Bytes of memory that an operation holds while it is in flight.
fn weight(request: &IoRequest) -> usize {
    match &request.operation {
        Some(Operation::Read(read)) => (read.length as usize).min(limits::MAX_IO_BYTES),
        Some(Operation::Write(write)) => write.data.len(),
        Some(Operation::Sync(_)) | None => 0,
    }
}

fn begin(node: &Node, operation: Option<Operation>, pending: Pending, batch: &mut Batch) {
    match operation {
        Some(Operation::Read(read)) => begin_read(node, read, pending, batch),
        Some(Operation::Write(write)) => begin_write(node, write, pending, batch),
        Some(Operation::Sync(sync)) => begin_sync(node, sync, pending),
        None => pending.finish(Err(Failure::field("operation", "must be given"))),
    }
}

fn begin_read(node: &Node, request: IoRead, mut pending: Pending, batch: &mut Batch) {
    let IoRead {
        handle,
        offset,
        length,
    } = request;
    let length = length as usize;
    let checked = node.handles.get(handle).and_then(|open| {
        check_readable(&open)?;
        if length > limits::MAX_IO_BYTES {
            return Err(Failure::field(
                "read.length",
                format!("{length} is more than {}", limits::MAX_IO_BYTES),
            ));
        }
        Ok(open)
    });
    let open = match checked {
        Ok(open) => open,
        Err(failure) => return pending.finish(Err(failure)),
    };
    pending.open = Some(open.clone());
    let work = move |file: Result<std::rc::Rc<dyn crate::door::OpenFile>>| async move {
        let result = match file {
            Ok(file) => file.read(offset, length).await,
            Err(failure) => Err(failure),
        };
        pending.finish(result.map_err(|failure| failure.handle(handle)));
    };
    if let Err(work) = batch.add(&open.file, work) {
        wait_and_run(open, work);
    }
}

fn begin_write(node: &Node, request: IoWrite, mut pending: Pending, batch: &mut Batch) {
    let IoWrite {
        handle,
        offset,
        data,
        explain,
    } = request;
    let length = data.len() as u64;
    let nothing = move |failure| Written::failed(offset, failure);
    let checked = node.handles.get(handle).and_then(|open| {
        check_writable(&open)?;
        check_range(offset, length)?;
        if data.len() > limits::MAX_IO_BYTES {
            return Err(Failure::field(
                "write.data",
                format!("{length} bytes are more than {}", limits::MAX_IO_BYTES),
            ));
        }
        Ok(open)
    });
    let open = match checked {
        Ok(open) => open,
        Err(failure) => return pending.finish_write(handle, nothing(failure)),
    };
    pending.open = Some(open.clone());
    let work = move |file: Result<std::rc::Rc<dyn crate::door::OpenFile>>| async move {
        let written = match file {
            Ok(file) => file.write(offset, data, explain).await,
            Err(failure) => nothing(failure),
        };
        pending.finish_write(handle, written);
    };
    if let Err(work) = batch.add(&open.file, work) {
        wait_and_run(open, work);
    }
}

/// The volume has too much to do: waits for its turn beside the stream.
fn wait_and_run<F, Fut>(open: Arc<OpenHandle>, work: F)
where
    F: FnOnce(Result<std::rc::Rc<dyn crate::door::OpenFile>>) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + 'static,
{
    tokio::spawn(async move {
        let work = move |file| async move {
            work(Ok(file)).await;
            Ok(())
        };
        // What fails was dropped, and has answered so.
        let _ = open.file.call(work).await;
    });
}

fn begin_sync(node: &Node, request: IoSync, mut pending: Pending) {
    let open = match node.handles.get(request.handle) {
        Ok(open) => open,
        Err(failure) => return pending.finish(Err(failure)),
    };
    pending.open = Some(open.clone());
    tokio::spawn(async move {
        let result = io::sync(&open, request.data_only).await;
        let result = result.map(|()| bytes::Bytes::new());
        pending.finish(result.map_err(|failure| failure.handle(request.handle)));
    });
}
