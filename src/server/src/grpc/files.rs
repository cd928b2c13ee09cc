//! The `Files` service: handles, sessions, and the two simple streams. `Io` is in [`super::io_stream`].

use std::rc::Rc;
use std::sync::Arc;

use futures_util::{StreamExt, stream};
use proto::errors::errno;
use proto::v1::files_server::Files;
use proto::v1::open_session_response::Event;
use proto::v1::{OpenFlags as FlagsMessage, *};
use tonic::{Request, Response, Status, Streaming};

use super::convert;
use super::{Api, ResponseStream};
use super::{io, io_stream};
use crate::door::{
    Door, FileKind, IfExists, Ino, NewInode, OpenFile, OpenFlags, RangeMode, SeekFor, Written,
};
use crate::failure::{Failure, Result as Outcome};
use crate::handles::{OpenHandle, Session};
use crate::limits;

#[tonic::async_trait]
impl Files for Api {
    type OpenSessionStream = ResponseStream<OpenSessionResponse>;

    async fn open_session(
        &self,
        request: Request<OpenSessionRequest>,
    ) -> Result<Response<Self::OpenSessionStream>, Status> {
        let session = self.node.handles.start_session()?;
        let client = request.into_inner().client_name;
        tracing::debug!(session = session.id, client, "session started");
        let started = Event::Started(SessionStarted {
            session: session.id,
        });
        let ending = self.node.ending.clone();
        let first = stream::once(async move {
            Ok(OpenSessionResponse {
                event: Some(started),
            })
        });
        let last = stream::once(async move {
            ending.cancelled().await;
            let reason = "the node is shutting down".to_owned();
            let event = Event::Ending(SessionEnding { reason });
            Ok(OpenSessionResponse { event: Some(event) })
        });
        // The session goes with the stream, whoever drops it.
        let stream = Sessional {
            inner: Box::pin(first.chain(last)),
            _session: session,
        };
        Ok(Response::new(Box::pin(stream)))
    }

    async fn open(&self, request: Request<OpenRequest>) -> Result<Response<OpenResponse>, Status> {
        let OpenRequest {
            at,
            flags,
            new,
            session,
        } = request.into_inner();
        let wish = Wish::check(flags.unwrap_or_default())?;
        let new = convert::new_inode(new, 0o644)?;
        let place = if wish.create.is_some() {
            convert::named_place("at", at)?
        } else {
            convert::place("at", at)?
        };
        let target = self.target(place)?;
        self.node.handles.check_session(session)?;
        self.node.handles.check_room()?;
        let (base, path) = (target.base, target.path.clone());
        let flags = wish.flags;
        let (file, attr) = target
            .volume
            .open(move |door| async move {
                let base = base.find(&door).await?;
                let ino = find_or_make(&door, base, &path, wish, new).await?;
                Ok((ino, flags))
            })
            .await
            .map_err(target.blame())?;
        let name = target.volume_name.clone();
        let handle = self
            .node
            .handles
            .insert(file, name, attr.ino, flags, session)?;
        let attributes = Some(convert::attributes(&attr));
        Ok(Response::new(OpenResponse { handle, attributes }))
    }

    async fn close(
        &self,
        request: Request<CloseRequest>,
    ) -> Result<Response<CloseResponse>, Status> {
        let handle = request.into_inner().handle;
        let open = self.node.handles.remove(handle)?;
        open.file
            .close()
            .await
            .map_err(|failure| failure.handle(handle))?;
        Ok(Response::new(CloseResponse {}))
    }

    async fn get_attributes(
        &self,
        request: Request<GetAttributesRequest>,
    ) -> Result<Response<GetAttributesResponse>, Status> {
        let handle = request.into_inner().handle;
        let open = self.node.handles.get(handle)?;
        let attr = open
            .file
            .call(|file| async move { file.attr().await })
            .await
            .map_err(|failure| failure.handle(handle))?;
        let attributes = Some(convert::attributes(&attr));
        Ok(Response::new(GetAttributesResponse { attributes }))
    }

    type ReadStream = ResponseStream<ReadResponse>;

    async fn read(
        &self,
        request: Request<ReadRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let ReadRequest {
            handle,
            offset,
            length,
            chunk_bytes,
        } = request.into_inner();
        let open = self.node.handles.get(handle)?;
        io::check_readable(&open)?;
        let chunk = match chunk_bytes as usize {
            0 => limits::READ_CHUNK_BYTES,
            most if most > limits::MAX_IO_BYTES => {
                return Err(Failure::field(
                    "chunk_bytes",
                    format!("{most} is more than {}", limits::MAX_IO_BYTES),
                )
                .into());
            }
            bytes => bytes,
        };
        let end = offset.saturating_add(length.unwrap_or(u64::MAX));
        Ok(Response::new(Box::pin(read_chunks(
            open, offset, end, chunk,
        ))))
    }

    async fn write(
        &self,
        request: Request<Streaming<WriteRequest>>,
    ) -> Result<Response<WriteResponse>, Status> {
        let mut incoming = request.into_inner();
        let Some(mut message) = incoming.message().await? else {
            return Err(Failure::field("handle", "the stream has no message").into());
        };
        let handle = message.handle;
        let open = self.node.handles.get(handle)?;
        io::check_writable(&open)?;
        let mut total = 0u64;
        let mut start = None;
        let mut next_offset = 0u64;
        let (mut sync, mut explain) = (false, false);
        let mut attempts = Vec::new();
        let blame = |failure: Failure, total| failure.handle(handle).bytes_written(total);
        loop {
            if message.handle != 0 && message.handle != handle {
                let failure = Failure::field("handle", "differs from the first message's");
                return Err(blame(failure, total).into());
            }
            sync |= message.sync;
            explain |= message.explain;
            let offset = message.offset.unwrap_or(next_offset);
            let length = message.data.len() as u64;
            io::check_range(offset, length).map_err(|failure| blame(failure, total))?;
            // The next message is taken off the wire while this one is written; never more.
            let (written, next) = tokio::join!(
                io::write(&open, offset, message.data, explain),
                incoming.message()
            );
            let Written {
                bytes,
                position,
                error,
                attempts: took,
            } = written;
            total += bytes;
            let room = limits::ATTEMPTS_TOLD - attempts.len();
            attempts.extend(took.iter().take(room).map(convert::attempt));
            start.get_or_insert(position);
            if let Some(failure) = error {
                return Err(blame(failure, total).into());
            }
            if bytes < length {
                let failure =
                    Failure::new(errno::EIO, format!("{bytes} of {length} bytes went in"));
                return Err(blame(failure, total).into());
            }
            next_offset = offset + length;
            // A client that breaks off gets no answer; what is in stays in.
            match next? {
                Some(next) => message = next,
                None => break,
            }
        }
        if sync {
            io::sync(&open, true)
                .await
                .map_err(|failure| blame(failure, total))?;
        }
        let offset = start.unwrap_or(0);
        Ok(Response::new(WriteResponse {
            bytes_written: total,
            offset,
            attempts,
        }))
    }

    type IoStream = ResponseStream<IoResponse>;

    async fn io(
        &self,
        request: Request<Streaming<IoRequest>>,
    ) -> Result<Response<Self::IoStream>, Status> {
        Ok(Response::new(Box::pin(io_stream::serve(
            self.node.clone(),
            request.into_inner(),
        ))))
    }

    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        let AllocateRequest {
            handle,
            offset,
            length,
            mode,
            keep_size,
        } = request.into_inner();
        let mode = match allocate_request::Mode::try_from(mode) {
            Ok(allocate_request::Mode::Unspecified) => RangeMode::Allocate { keep_size },
            Ok(allocate_request::Mode::PunchHole) => RangeMode::PunchHole,
            Ok(allocate_request::Mode::ZeroRange) => RangeMode::Zero { keep_size },
            Err(_) => return Err(Failure::field("mode", format!("{mode} is unknown")).into()),
        };
        if length == 0 {
            return Err(Failure::field("length", "must be at least 1").into());
        }
        let open = self.node.handles.get(handle)?;
        io::check_writable(&open)?;
        io::check_range(offset, length).map_err(|failure| failure.handle(handle))?;
        let work =
            move |file: Rc<dyn OpenFile>| async move { file.fallocate(mode, offset, length).await };
        let done = open.file.call(work).await;
        done.map_err(|failure| failure.handle(handle))?;
        Ok(Response::new(AllocateResponse {}))
    }

    async fn seek(&self, request: Request<SeekRequest>) -> Result<Response<SeekResponse>, Status> {
        let SeekRequest {
            handle,
            offset,
            target,
        } = request.into_inner();
        let what = match seek_request::Target::try_from(target) {
            Ok(seek_request::Target::Unspecified) => SeekFor::Data,
            Ok(seek_request::Target::Hole) => SeekFor::Hole,
            Err(_) => return Err(Failure::field("target", format!("{target} is unknown")).into()),
        };
        let open = self.node.handles.get(handle)?;
        let offset = open
            .file
            .call(move |file| async move { file.seek(what, offset).await })
            .await
            .map_err(|failure| failure.handle(handle))?;
        Ok(Response::new(SeekResponse { offset }))
    }

    async fn sync(&self, request: Request<SyncRequest>) -> Result<Response<SyncResponse>, Status> {
        let SyncRequest { handle, data_only } = request.into_inner();
        let open = self.node.handles.get(handle)?;
        io::sync(&open, data_only)
            .await
            .map_err(|failure| failure.handle(handle))?;
        Ok(Response::new(SyncResponse {}))
    }
}

/// A stream that keeps a session.
struct Sessional {
    inner: ResponseStream<OpenSessionResponse>,
    _session: Session,
}

impl futures_util::Stream for Sessional {
    type Item = Result<OpenSessionResponse, Status>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.inner.as_mut().poll_next(context)
    }
}

/// What an open asks for, checked.
#[derive(Clone, Copy)]
struct Wish {
    flags: OpenFlags,
    create: Option<IfExists>,
    no_follow: bool,
}

impl Wish {
    fn check(flags: FlagsMessage) -> Outcome<Wish> {
        let bad =
            |name: &str, message: &str| Err(Failure::field(&format!("flags.{name}"), message));
        if !flags.read && !flags.write {
            return bad("read", "neither read nor write is asked for");
        }
        if flags.direct && flags.buffered {
            return bad("buffered", "excludes direct");
        }
        if flags.truncate && !flags.write {
            return bad("truncate", "needs write");
        }
        if flags.append && !flags.write {
            return bad("append", "needs write");
        }
        if flags.exclusive && !flags.create {
            return bad("exclusive", "needs create");
        }
        let create = match (flags.create, flags.exclusive) {
            (false, _) => None,
            (true, false) => Some(IfExists::Use),
            (true, true) => Some(IfExists::Fail),
        };
        Ok(Wish {
            flags: OpenFlags {
                read: flags.read,
                write: flags.write,
                append: flags.append,
                direct: flags.direct,
                dsync: flags.data_sync,
                nowait: flags.no_wait,
                truncate: flags.truncate,
                fixed_size: false,
            },
            create,
            no_follow: flags.no_follow,
        })
    }
}

/// The inode to open, as open(2) finds it: made if it may be, also where a dangling symbolic link
/// points.
async fn find_or_make(
    door: &Rc<dyn Door>,
    base: Ino,
    path: &[u8],
    wish: Wish,
    new: NewInode,
) -> Outcome<Ino> {
    let Some(taken) = wish.create else {
        if path.is_empty() {
            return Ok(base);
        }
        let attr = door.resolve(base, path, !wish.no_follow).await?;
        if attr.kind == FileKind::Symlink {
            return Err(no_follow());
        }
        return Ok(attr.ino);
    };
    if path.ends_with(b"/") {
        return Err(Failure::new(
            errno::EISDIR,
            "a path with a '/' at its end names no file",
        ));
    }
    let (mut base, mut path) = (base, path.to_vec());
    for _ in 0..limits::SYMLINK_FOLLOW_MAX {
        let (parent, name) = door.resolve_parent(base, &path).await?;
        if taken == IfExists::Fail {
            return Ok(door.create(parent, &name, new, IfExists::Fail).await?.ino);
        }
        match door.lookup(parent, &name).await {
            Ok(attr) if attr.kind == FileKind::Symlink => {
                if wish.no_follow {
                    return Err(no_follow());
                }
                path = door.readlink(attr.ino).await?;
                base = parent;
            }
            Ok(attr) => return Ok(attr.ino),
            Err(failure) if failure.errno() == errno::ENOENT => {
                return Ok(door.create(parent, &name, new, IfExists::Use).await?.ino);
            }
            Err(failure) => return Err(failure),
        }
    }
    Err(Failure::new(
        errno::ELOOP,
        "too many symbolic links on the way",
    ))
}

fn no_follow() -> Failure {
    Failure::new(
        errno::ELOOP,
        "is a symbolic link, and those are not to be followed",
    )
}

/// The chunks of a range, in order, a few of them read ahead of the client.
fn read_chunks(
    open: Arc<OpenHandle>,
    start: u64,
    end: u64,
    chunk: usize,
) -> impl futures_util::Stream<Item = Result<ReadResponse, Status>> + Send + 'static {
    let step = chunk as u64;
    let starts = stream::unfold(start, move |at| async move {
        (at < end).then(|| (at, at.saturating_add(step)))
    });
    let reads = starts.map(move |at| {
        let open = open.clone();
        let wanted = usize::try_from(end - at).unwrap_or(usize::MAX).min(chunk);
        async move { (at, wanted, io::read(&open, at, wanted).await) }
    });
    // A short chunk is the last one; what was read ahead of it is thrown away.
    reads
        .buffered(limits::READ_AHEAD_CHUNKS)
        .scan(false, |done, (offset, wanted, result)| {
            let item = if *done {
                None
            } else {
                match result {
                    Ok(data) => {
                        *done = data.len() < wanted;
                        (!data.is_empty()).then_some(Ok(ReadResponse { offset, data }))
                    }
                    Err(failure) => {
                        *done = true;
                        Some(Err(Status::from(failure)))
                    }
                }
            };
            std::future::ready(item)
        })
}
