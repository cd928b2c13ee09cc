//! Reading and writing open files; and the `Io` stream, where many of those are in flight at once.
//!
//! Rule of the stream: submissions are taken only while both the count and the bytes in flight are
//! below their limits, and completions wait in a bounded queue; so a slow client, or a fast one,
//! costs a bounded amount of memory. When the client is gone, what has begun is finished and nothing
//! new begins.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{Stream, StreamExt};
use proto::errors::errno;
use proto::v1::io_request::Operation;
use proto::v1::{IoRead, IoRequest, IoResponse, IoSync, IoWrite};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::door::Written;
use crate::failure::{Failure, Result};
use crate::handles::OpenHandle;
use crate::limits;
use crate::node::Node;

pub fn check_readable(open: &OpenHandle) -> Result<()> {
    if open.flags.read {
        return Ok(());
    }
    Err(Failure::new(errno::EBADF, "the handle is not open for reading").handle(open.id))
}

pub fn check_writable(open: &OpenHandle) -> Result<()> {
    if open.flags.write {
        return Ok(());
    }
    Err(Failure::new(errno::EBADF, "the handle is not open for writing").handle(open.id))
}

/// Offsets are below 2^63, as Linux's are.
pub fn check_range(offset: u64, length: u64) -> Result<()> {
    match offset.checked_add(length) {
        Some(end) if i64::try_from(end).is_ok() => Ok(()),
        _ => Err(Failure::new(
            errno::EFBIG,
            format!("{length} bytes at offset {offset} end beyond 2^63"),
        )),
    }
}

pub async fn read(open: &OpenHandle, offset: u64, length: usize) -> Result<Bytes> {
    let handle = open.id;
    open.file
        .call(move |file| async move { file.read(offset, length).await })
        .await
        .map_err(|failure| failure.handle(handle))
}

/// Everything that happened is in the answer, also that nothing did.
pub async fn write(open: &OpenHandle, offset: u64, data: Bytes) -> Written {
    let work = move |file: std::rc::Rc<dyn crate::door::OpenFile>| async move {
        Ok(file.write(offset, data).await)
    };
    match open.file.call(work).await {
        Ok(written) => written,
        Err(failure) => Written {
            bytes: 0,
            position: offset,
            error: Some(failure),
        },
    }
}

pub async fn sync(open: &OpenHandle, data_only: bool) -> Result<()> {
    open.file
        .call(move |file| async move { file.fsync(data_only).await })
        .await
}

/// The answers to a stream of submissions.
pub fn serve(
    node: Arc<Node>,
    incoming: Streaming<IoRequest>,
) -> impl Stream<Item = Result<IoResponse, Status>> + Send + 'static {
    let (completions, completed) = mpsc::channel(limits::IO_COMPLETIONS);
    tokio::spawn(pump(node, incoming, completions));
    ReceiverStream::new(completed)
}

/// Moves submissions in and completions out until both ends are done.
async fn pump(
    node: Arc<Node>,
    mut incoming: Streaming<IoRequest>,
    completions: mpsc::Sender<Result<IoResponse, Status>>,
) {
    let mut in_flight = FuturesUnordered::new();
    let mut bytes_in_flight = 0usize;
    let mut open_ended = true;
    loop {
        let room =
            in_flight.len() < limits::IO_IN_FLIGHT && bytes_in_flight < limits::IO_BYTES_IN_FLIGHT;
        tokio::select! {
            // Completions first: they make room.
            biased;
            done = in_flight.next(), if !in_flight.is_empty() => {
                let Some((response, bytes)) = done else { continue };
                bytes_in_flight -= bytes;
                if completions.send(Ok(response)).await.is_err() {
                    // The client is gone. Dropping the futures leaves what has begun to its end.
                    return;
                }
            }
            () = completions.closed() => return,
            () = node.ending.cancelled(), if open_ended => {
                open_ended = false;
            }
            message = incoming.message(), if open_ended && room => match message {
                Ok(Some(request)) => {
                    let bytes = weight(&request);
                    bytes_in_flight += bytes;
                    let node = node.clone();
                    in_flight.push(async move { (complete(&node, request).await, bytes) });
                }
                Ok(None) => open_ended = false,
                Err(status) => {
                    tracing::debug!(%status, "an Io stream broke off");
                    let _ = completions.send(Err(status)).await;
                    return;
                }
            },
            else => break,
        }
        if !open_ended && in_flight.is_empty() {
            break;
        }
    }
    if node.ending.is_cancelled() {
        let _ = completions
            .send(Err(Failure::gone("the node").into()))
            .await;
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

async fn complete(node: &Node, request: IoRequest) -> IoResponse {
    let IoRequest { id, operation } = request;
    let result = match operation {
        Some(Operation::Read(read)) => complete_read(node, read).await,
        Some(Operation::Write(write)) => return complete_write(node, id, write).await,
        Some(Operation::Sync(sync)) => complete_sync(node, sync).await,
        None => Err(Failure::field("operation", "must be given")),
    };
    match result {
        Ok(data) => IoResponse {
            id,
            bytes: data.len() as u64,
            data,
            ..IoResponse::default()
        },
        Err(failure) => IoResponse {
            id,
            error: Some(failure.into_detail()),
            ..IoResponse::default()
        },
    }
}

async fn complete_read(node: &Node, request: IoRead) -> Result<Bytes> {
    let open = node.handles.get(request.handle)?;
    check_readable(&open)?;
    let length = request.length as usize;
    if length > limits::MAX_IO_BYTES {
        return Err(Failure::field(
            "read.length",
            format!("{length} is more than {}", limits::MAX_IO_BYTES),
        ));
    }
    read(&open, request.offset, length).await
}

async fn complete_write(node: &Node, id: u64, request: IoWrite) -> IoResponse {
    let IoWrite {
        handle,
        offset,
        data,
    } = request;
    let length = data.len() as u64;
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
    let written = match checked {
        Ok(open) => write(&open, offset, data).await,
        Err(failure) => Written {
            bytes: 0,
            position: offset,
            error: Some(failure),
        },
    };
    let Written {
        bytes,
        position,
        error,
    } = written;
    let error = error.map(|error| error.handle(handle).bytes_written(bytes).into_detail());
    IoResponse {
        id,
        bytes,
        offset: position,
        error,
        ..IoResponse::default()
    }
}

async fn complete_sync(node: &Node, request: IoSync) -> Result<Bytes> {
    let open = node.handles.get(request.handle)?;
    sync(&open, request.data_only)
        .await
        .map_err(|failure| failure.handle(request.handle))?;
    Ok(Bytes::new())
}
