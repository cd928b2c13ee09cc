//! One file's bytes to the daemon. Small files, pipes and appends go through a `Write` stream; large
//! files through an `Io` stream with many chunks in flight, and their holes are not sent.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use proto::v1::io_request::Operation;
use proto::v1::{IoRequest, IoWrite, TruncateRequest, WriteRequest};
use rustix::fs::SeekFrom;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use super::{CHUNK_BYTES, CHUNKS_IN_FLIGHT, Copying};
use crate::error::{About, AboutFile, Exit, Failure, Result};
use crate::path::Remote;

/// Files up to this size are sent as one stream.
const SMALL_BYTES: u64 = 4 << 20;

/// Sends the whole of a local regular file into an open, empty remote one.
pub async fn file(
    copying: &mut Copying,
    handle: u64,
    local: (File, PathBuf),
    size_bytes: u64,
    remote: &Remote,
) -> Result<()> {
    if size_bytes <= SMALL_BYTES {
        let (file, path) = local;
        return stream(copying, handle, Box::new(file), path, remote).await;
    }
    let sent = in_chunks(copying, handle, local, remote).await?;
    if sent < size_bytes {
        // It ends in a hole.
        let request = TruncateRequest {
            at: None,
            handle,
            size_bytes,
        };
        copying.client.names.truncate(request).await.about(remote)?;
    }
    Ok(())
}

/// Sends what can be read, to the end of it.
pub async fn stream(
    copying: &mut Copying,
    handle: u64,
    mut source: Box<dyn Read + Send>,
    path: PathBuf,
    remote: &Remote,
) -> Result<()> {
    let (messages, outgoing) = mpsc::channel(2);
    let progress = copying.progress.clone();
    let reader = tokio::task::spawn_blocking(move || -> io::Result<u64> {
        let mut total = 0;
        loop {
            let data = read_chunk(&mut source)?;
            if data.is_empty() {
                return Ok(total);
            }
            total += data.len() as u64;
            progress.add(data.len() as u64);
            let request = WriteRequest {
                handle,
                data,
                ..WriteRequest::default()
            };
            // The daemon has refused: its answer says why.
            if messages.blocking_send(request).is_err() {
                return Ok(total);
            }
        }
    });
    // The first message names the handle, also if there is not one byte.
    let first = tokio_stream::once(WriteRequest {
        handle,
        explain: copying.explains(),
        ..WriteRequest::default()
    });
    let outgoing = tokio_stream::StreamExt::chain(first, ReceiverStream::new(outgoing));
    let response = copying.client.files.write(outgoing).await;
    let response = response.about(remote)?.into_inner();
    copying.note(remote, response.attempts);
    let written = response.bytes_written;
    let read = match reader.await {
        Ok(read) => read.about_file(&path)?,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    };
    short(written, read, remote)
}

fn short(written: u64, read: u64, remote: &Remote) -> Result<()> {
    if written == read {
        return Ok(());
    }
    let message = format!("{remote}: {written} of {read} bytes were written");
    Err(Failure::new(Exit::Failed, message))
}

/// One message's worth, less only at the end.
fn read_chunk(source: &mut dyn Read) -> io::Result<Bytes> {
    let mut chunk = Vec::with_capacity(CHUNK_BYTES);
    source.take(CHUNK_BYTES as u64).read_to_end(&mut chunk)?;
    Ok(chunk.into())
}

/// What is on its way, by id: how many bytes each has.
type InFlight = Arc<Mutex<HashMap<u64, u64>>>;

/// Sends the data of a file, not its holes. Returns where the last data ended.
async fn in_chunks(
    copying: &mut Copying,
    handle: u64,
    (file, path): (File, PathBuf),
    remote: &Remote,
) -> Result<u64> {
    let (requests, outgoing) = mpsc::channel(1);
    let window = Arc::new(Semaphore::new(CHUNKS_IN_FLIGHT));
    let in_flight = InFlight::default();
    let feeder = Feeder {
        handle,
        explain: copying.explains(),
        requests,
        window: window.clone(),
        in_flight: in_flight.clone(),
        runtime: tokio::runtime::Handle::current(),
    };
    let feeding = {
        let path = path.clone();
        tokio::task::spawn_blocking(move || feeder.run(&file, &path))
    };
    let received = receive(copying, outgoing, &window, &in_flight, remote).await;
    // Whatever the feeder waits for, it is not coming any more.
    window.close();
    let fed = match feeding.await {
        Ok(fed) => fed,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    };
    received?;
    let end = fed?;
    let left = in_flight
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .len();
    if left > 0 {
        let message = format!("{remote}: the daemon did not answer for {left} chunks");
        return Err(Failure::new(Exit::Failed, message));
    }
    Ok(end)
}

/// Takes the completions.
async fn receive(
    copying: &mut Copying,
    outgoing: mpsc::Receiver<IoRequest>,
    window: &Semaphore,
    in_flight: &InFlight,
    remote: &Remote,
) -> Result<()> {
    let responses = copying.client.files.io(ReceiverStream::new(outgoing)).await;
    let mut responses = responses.about(remote)?.into_inner();
    while let Some(response) = responses.message().await.about(remote)? {
        if let Some(detail) = response.error {
            return Err(Failure::of_detail(remote, &detail));
        }
        let expected = in_flight
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&response.id);
        short(response.bytes, expected.unwrap_or(0), remote)?;
        copying.note(remote, response.attempts);
        copying.progress.add(response.bytes);
        window.add_permits(1);
    }
    Ok(())
}

/// Reads the file, on a thread of its own.
struct Feeder {
    handle: u64,
    explain: bool,
    requests: mpsc::Sender<IoRequest>,
    window: Arc<Semaphore>,
    in_flight: InFlight,
    runtime: tokio::runtime::Handle,
}

impl Feeder {
    /// Returns where the last data ended; early if nobody listens any more.
    fn run(&self, file: &File, path: &Path) -> Result<u64> {
        let mut id = 0;
        let mut end = 0;
        while let Some((start, stop)) = next_data(file, end).about_file(path)? {
            let mut offset = start;
            while offset < stop {
                let Ok(permit) = self.runtime.block_on(self.window.acquire()) else {
                    return Ok(end);
                };
                permit.forget();
                let most = usize::try_from(stop - offset)
                    .unwrap_or(CHUNK_BYTES)
                    .min(CHUNK_BYTES);
                let mut data = vec![0; most];
                let length = read_at(file, offset, &mut data).about_file(path)?;
                if length == 0 {
                    // The file has become shorter.
                    return Ok(end);
                }
                data.truncate(length);
                id += 1;
                let length = length as u64;
                self.in_flight
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(id, length);
                let write = IoWrite {
                    handle: self.handle,
                    offset,
                    data: data.into(),
                    explain: self.explain,
                };
                let request = IoRequest {
                    id,
                    operation: Some(Operation::Write(write)),
                };
                if self.requests.blocking_send(request).is_err() {
                    return Ok(end);
                }
                offset += length;
                end = offset;
            }
        }
        Ok(end)
    }
}

/// The next stretch of data from `from` on. A file system without holes has one, the whole file.
fn next_data(file: &File, from: u64) -> io::Result<Option<(u64, u64)>> {
    let start = match rustix::fs::seek(file, SeekFrom::Data(from)) {
        Ok(start) => start,
        Err(rustix::io::Errno::NXIO) => return Ok(None),
        Err(rustix::io::Errno::INVAL) => {
            let size = file.metadata()?.len();
            return Ok((from < size).then_some((from, size)));
        }
        Err(error) => return Err(error.into()),
    };
    let stop = rustix::fs::seek(file, SeekFrom::Hole(start))?;
    Ok(Some((start, stop)))
}

fn read_at(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(length) => done += length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_of_a_sparse_file_is_found() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(&[1; 4096], 16 << 20).unwrap();
        let (start, stop) = next_data(&file, 0).unwrap().unwrap();
        assert!(start <= 16 << 20 && stop >= (16 << 20) + 4096);
        // Every byte of the file that is not zero is in one of the stretches.
        let mut from = 0;
        let mut seen = 0;
        while let Some((start, stop)) = next_data(&file, from).unwrap() {
            assert!(start >= from && stop > start);
            seen += stop - start;
            from = stop;
        }
        assert!((4096..=64 << 20).contains(&seen));
    }

    #[test]
    fn chunks_are_full_but_for_the_last() {
        let mut source = io::Cursor::new(vec![7; CHUNK_BYTES + 5]);
        assert_eq!(read_chunk(&mut source).unwrap().len(), CHUNK_BYTES);
        assert_eq!(read_chunk(&mut source).unwrap().len(), 5);
        assert!(read_chunk(&mut source).unwrap().is_empty());
    }
}
