//! Copying: to a volume ([`put`]), from a volume ([`get`], [`cat`]). Trees keep several files on
//! their way at once; a large file has several chunks in flight.

mod download;
mod get;
mod local;
mod put;
mod upload;

use std::ffi::OsStr;
use std::sync::{Arc, Mutex, PoisonError};

use proto::v1::{CloseRequest, OpenFlags, OpenRequest, WriteAttempt};
use tokio::task::JoinSet;

use crate::args::Mode;
use crate::client::{Client, Session as HandleSession};
use crate::commands::Session;
use crate::error::{About, AboutFile, Failure, Result};
use crate::output;
use crate::path::Remote;
use crate::progress::Progress;

pub use get::get;
pub use put::put;

/// Bytes in one message.
const CHUNK_BYTES: usize = 1 << 20;
/// Chunks of one large file that are on their way at once.
const CHUNKS_IN_FLIGHT: usize = 16;

/// What every copy of one command shares.
#[derive(Clone)]
struct Copying {
    client: Client,
    /// The session that handles are opened in.
    session: u64,
    mode: Mode,
    progress: Progress,
    /// How the node wrote, if that is asked for.
    explained: Option<Explained>,
}

/// What the node did, file by file.
type Explained = Arc<Mutex<Vec<(Remote, WriteAttempt)>>>;

impl Copying {
    fn flags(&self) -> OpenFlags {
        OpenFlags {
            direct: self.mode.direct,
            buffered: self.mode.buffered,
            ..OpenFlags::default()
        }
    }

    fn explains(&self) -> bool {
        self.explained.is_some()
    }

    fn note(&self, path: &Remote, attempts: Vec<WriteAttempt>) {
        if let Some(explained) = &self.explained {
            let mut list = explained.lock().unwrap_or_else(PoisonError::into_inner);
            list.extend(attempts.into_iter().map(|attempt| (path.clone(), attempt)));
        }
    }

    /// Opens a file to read it.
    async fn open_to_read(&mut self, path: &Remote) -> Result<u64> {
        let request = OpenRequest {
            at: path.location(),
            flags: Some(OpenFlags {
                read: true,
                ..self.flags()
            }),
            new: None,
            session: self.session,
        };
        Ok(self
            .client
            .files
            .open(request)
            .await
            .about(path)?
            .into_inner()
            .handle)
    }

    async fn close(&mut self, handle: u64, path: &Remote) -> Result<()> {
        self.client
            .files
            .close(CloseRequest { handle })
            .await
            .about(path)?;
        Ok(())
    }
}

/// Copies that are on their way, so many at once.
struct Jobs {
    set: JoinSet<Result<()>>,
    most: usize,
    progress: Progress,
}

impl Jobs {
    fn new(most: u16, progress: &Progress) -> Self {
        Jobs {
            set: JoinSet::new(),
            most: usize::from(most),
            progress: progress.clone(),
        }
    }

    /// Starts one, after another one has ended if there are too many.
    async fn start(
        &mut self,
        session: &mut Session,
        job: impl Future<Output = Result<()>> + Send + 'static,
    ) {
        while self.set.len() >= self.most {
            self.one(session).await;
        }
        self.set.spawn(job);
    }

    async fn finish(&mut self, session: &mut Session) {
        while !self.set.is_empty() {
            self.one(session).await;
        }
    }

    async fn one(&mut self, session: &mut Session) {
        match self.set.join_next().await {
            Some(Ok(Err(failure))) => self.progress.suspend(|| session.fail(failure)),
            Some(Err(panic)) if panic.is_panic() => std::panic::resume_unwind(panic.into_panic()),
            _ => {}
        }
    }
}

/// "-" is standard input or output.
fn is_standard(path: &OsStr) -> bool {
    path == "-"
}

pub async fn cat(session: &mut Session, client: &mut Client, paths: Vec<Remote>) -> Result<()> {
    let handles: HandleSession = client.session().await?;
    let mut copying = Copying {
        client: client.clone(),
        session: handles.id,
        mode: Mode {
            direct: false,
            buffered: false,
        },
        progress: Progress::new(true, None),
        explained: None,
    };
    for path in paths {
        let result = download::to_output(&mut copying, &path, &mut session.output).await;
        session.keep(result);
    }
    Ok(())
}

/// Splits sources from the target, which is last.
fn split<T>(mut paths: Vec<T>) -> Result<(Vec<T>, T)> {
    match paths.pop() {
        Some(target) if !paths.is_empty() => Ok((paths, target)),
        _ => Err(Failure::usage("what to copy, and where to?")),
    }
}

fn remote(path: &OsStr) -> Result<Remote> {
    Remote::parse(path).map_err(|error| Failure::usage(error.to_string()))
}

/// Runs blocking work on local files without holding up other copies.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}

/// A warning: the copy goes on.
fn warn(progress: &Progress, message: &str) {
    progress.suspend(|| output::complain(message));
}

fn current_dir_name(path: &std::path::Path) -> Result<Option<std::ffi::OsString>> {
    // "." and "x/.." have no name of their own: their content is meant.
    if path.as_os_str().is_empty() {
        return Err(std::io::Error::from(std::io::ErrorKind::NotFound)).about_file(path);
    }
    Ok(path.file_name().map(OsStr::to_owned))
}
