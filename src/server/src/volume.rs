//! A mounted volume, reached from any thread. The volume itself lives on its home thread (an SPDK
//! reactor), behind an actor: a task there that takes closures from a bounded queue and runs each as
//! a task of its own. Callers await the answers.
//!
//! Rule: what has begun on the home thread runs to its end, also if nobody waits for the answer any
//! more; and an open file that nobody can name any more is closed ([`RemoteFile`]'s drop).

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use runtime::{Host, LocalFuture};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::door::{Attr, Door, Ino, OpenFile, OpenFlags};
use crate::failure::{Failure, Result};
use crate::limits;

/// What starts on a home thread.
pub type Start = Box<dyn FnOnce(Rc<dyn Host>) -> LocalFuture<()> + Send>;

/// A thread that volumes live on: an SPDK reactor in production.
pub trait Home: Send + Sync {
    /// Calls `start` on the thread and runs the future it returns there, to its end.
    fn start(&self, start: Start) -> Result<()>;
}

/// What a message to the home thread does there: it begins tasks of its own.
type Job = Box<dyn FnOnce(&Rc<Local>) + Send>;

/// The volume's side of the actor: only ever on the home thread.
struct Local {
    door: Rc<dyn Door>,
    host: Rc<dyn Host>,
    /// Files on their way to be closed: no longer in `files`, and not closed yet.
    closing: Cell<usize>,
    files: RefCell<HashMap<FileKey, Rc<dyn OpenFile>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct FileKey(u64);

/// A mounted volume. Clones are the same volume.
#[derive(Clone)]
pub struct VolumeHandle(Arc<Shared>);

struct Shared {
    root: Ino,
    jobs: mpsc::Sender<Job>,
    /// Files to close because their owner was dropped. Not bounded here: it never holds more than
    /// there are open files, and those are.
    closes: mpsc::UnboundedSender<FileKey>,
    in_flight: Arc<Semaphore>,
    next_file: AtomicU64,
}

impl std::fmt::Debug for VolumeHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VolumeHandle(root {})", self.0.root.0)
    }
}

impl VolumeHandle {
    /// Runs `open` on the home thread and, if it gives a volume, serves that one until the last
    /// handle is gone.
    pub async fn launch<F, Fut>(home: &dyn Home, open: F) -> Result<VolumeHandle>
    where
        F: FnOnce(Rc<dyn Host>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<Rc<dyn Door>>> + 'static,
    {
        let (jobs, job_queue) = mpsc::channel(limits::VOLUME_IN_FLIGHT);
        let (closes, close_queue) = mpsc::unbounded_channel();
        let (answer, opened) = oneshot::channel();
        home.start(Box::new(move |host| {
            Box::pin(async move {
                match open(host.clone()).await {
                    Ok(door) => {
                        let root = door.root();
                        // If the caller has given up, its ends of the queues are gone as well, and
                        // the actor unmounts at once.
                        let _ = answer.send(Ok(root));
                        serve(host, door, job_queue, close_queue).await;
                    }
                    Err(failure) => {
                        let _ = answer.send(Err(failure));
                    }
                }
            })
        }))?;
        let root = opened
            .await
            .map_err(|_| Failure::gone("the volume's thread"))??;
        Ok(VolumeHandle(Arc::new(Shared {
            root,
            jobs,
            closes,
            in_flight: Arc::new(Semaphore::new(limits::VOLUME_IN_FLIGHT)),
            next_file: AtomicU64::new(1),
        })))
    }

    pub fn root(&self) -> Ino {
        self.0.root
    }

    /// Runs `work` with the volume on its home thread.
    pub async fn call<T, F, Fut>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(Rc<dyn Door>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T>> + 'static,
    {
        self.post(move |local| work(local.door.clone())).await
    }

    async fn post<T, F, Fut>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Rc<Local>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T>> + 'static,
    {
        let permit = self.permit().await?;
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |local| {
            let future = work(local);
            local.host.spawn(Box::pin(async move {
                let result = future.await;
                drop(permit);
                let _ = answer.send(result);
            }));
        });
        self.0
            .jobs
            .send(job)
            .await
            .map_err(|_| Failure::gone("the volume"))?;
        answered.await.map_err(|_| Failure::gone("the volume"))?
    }

    async fn permit(&self) -> Result<OwnedSemaphorePermit> {
        let gate = self.0.in_flight.clone();
        gate.acquire_owned()
            .await
            .map_err(|_| Failure::gone("the volume"))
    }

    /// Opens a file that `find` has found (or made). The file is closed when the [`RemoteFile`] is
    /// dropped, at the latest.
    pub async fn open<F, Fut>(&self, find: F) -> Result<(RemoteFile, Attr)>
    where
        F: FnOnce(Rc<dyn Door>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<(Ino, OpenFlags)>> + 'static,
    {
        let key = FileKey(self.0.next_file.fetch_add(1, Ordering::Relaxed));
        let volume = self.clone();
        self.post(move |local| {
            let local = local.clone();
            async move {
                let (ino, flags) = find(local.door.clone()).await?;
                let file = local.door.open(ino, flags).await?;
                local.files.borrow_mut().insert(key, file.clone());
                // From here on somebody owns it: if the caller has given up, the answer is dropped,
                // and with it the file is closed.
                let remote = RemoteFile {
                    volume,
                    key,
                    closed: AtomicBool::new(false),
                };
                let attr = file.attr().await?;
                Ok((remote, attr))
            }
        })
        .await
    }

    /// Closes all files and unmounts. The handle is of no use afterwards if this succeeds.
    pub async fn unmount(&self) -> Result<()> {
        self.post(|local| {
            let local = local.clone();
            async move {
                close_all(&local).await;
                local.door.unmount().await
            }
        })
        .await
    }
}

/// An open file of a volume, from any thread.
pub struct RemoteFile {
    volume: VolumeHandle,
    key: FileKey,
    closed: AtomicBool,
}

impl RemoteFile {
    pub fn volume(&self) -> &VolumeHandle {
        &self.volume
    }

    /// Runs `work` with the file on its home thread.
    pub async fn call<T, F, Fut>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(Rc<dyn OpenFile>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T>> + 'static,
    {
        let key = self.key;
        self.volume
            .post(move |local| {
                let file = local.files.borrow().get(&key).cloned();
                let future = file.map(work);
                async move {
                    match future {
                        Some(future) => future.await,
                        None => Err(Failure::gone("the file")),
                    }
                }
            })
            .await
    }

    /// Closes it (once), and says what the volume says to that.
    pub async fn close(&self) -> Result<()> {
        if self.closed.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let key = self.key;
        self.volume
            .post(move |local| {
                let file = local.files.borrow_mut().remove(&key);
                let local = local.clone();
                async move {
                    match file {
                        Some(file) => close(&local, file).await,
                        None => Ok(()),
                    }
                }
            })
            .await
    }
}

/// Work with open files of any volumes that begins together: one message to each home thread, and
/// nothing comes back but what the work itself sends.
#[derive(Default)]
pub struct Batch {
    by_volume: Vec<(VolumeHandle, Vec<FileJob>)>,
}

type FileJob = Box<dyn FnOnce(&Rc<Local>) + Send>;

impl Batch {
    /// Adds work with a file; it gets a failure if the file is gone. It is given back if the volume
    /// has too much to do: then [`RemoteFile::call`] waits.
    ///
    /// If the volume goes before it begins, the work is dropped.
    pub fn add<F, Fut>(&mut self, file: &RemoteFile, work: F) -> std::result::Result<(), F>
    where
        F: FnOnce(Result<Rc<dyn OpenFile>>) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + 'static,
    {
        let volume = &file.volume;
        let Ok(permit) = volume.0.in_flight.clone().try_acquire_owned() else {
            return Err(work);
        };
        let key = file.key;
        let job: FileJob = Box::new(move |local| {
            let file = local.files.borrow().get(&key).cloned();
            let future = work(file.ok_or_else(|| Failure::gone("the file")));
            local.host.spawn(Box::pin(async move {
                future.await;
                drop(permit);
            }));
        });
        let known = self
            .by_volume
            .iter_mut()
            .find(|(other, _)| Arc::ptr_eq(&other.0, &volume.0));
        match known {
            Some((_, jobs)) => jobs.push(job),
            None => self.by_volume.push((volume.clone(), vec![job])),
        }
        Ok(())
    }

    /// Begins it.
    pub fn send(self) {
        for (volume, jobs) in self.by_volume {
            let all: Job = Box::new(move |local| {
                for job in jobs {
                    job(local);
                }
            });
            // There is room: every message has a permit, and there are as many places as permits.
            // If the volume is gone, so is the work.
            let _ = volume.0.jobs.try_send(all);
        }
    }
}

impl Drop for RemoteFile {
    fn drop(&mut self) {
        if !self.closed.swap(true, Ordering::Relaxed) {
            // No actor, no files.
            let _ = self.volume.0.closes.send(self.key);
        }
    }
}

/// The actor. Ends when the last [`VolumeHandle`] is gone.
async fn serve(
    host: Rc<dyn Host>,
    door: Rc<dyn Door>,
    mut jobs: mpsc::Receiver<Job>,
    mut closes: mpsc::UnboundedReceiver<FileKey>,
) {
    let local = Rc::new(Local {
        door,
        host,
        closing: Cell::new(0),
        files: RefCell::default(),
    });
    loop {
        tokio::select! {
            biased;
            job = jobs.recv() => match job {
                Some(job) => job(&local),
                None => break,
            },
            key = closes.recv() => match key {
                Some(key) => close_dropped(&local, key),
                None => break,
            },
        }
    }
    // Without an explicit unmount (which leaves nothing to do here) the volume is given up by the
    // last handle's drop.
    close_all(&local).await;
    if let Err(failure) = local.door.unmount().await {
        tracing::debug!(%failure, "unmount after the last handle was dropped");
    }
}

/// Closes a file that was taken out of the table; an unmount waits for it.
async fn close(local: &Local, file: Rc<dyn OpenFile>) -> Result<()> {
    local.closing.set(local.closing.get() + 1);
    let result = file.close().await;
    local.closing.set(local.closing.get() - 1);
    result
}

/// Closes a file whose owner is gone.
fn close_dropped(local: &Rc<Local>, key: FileKey) {
    let Some(file) = local.files.borrow_mut().remove(&key) else {
        return;
    };
    let inode = file.ino().0;
    let owner = local.clone();
    let closed = async move {
        if let Err(failure) = close(&owner, file).await {
            tracing::warn!(%failure, inode, "closing a file that was left open");
        }
    };
    // Counted before anything else can run: an unmount sees it in the table or here.
    local.closing.set(local.closing.get() + 1);
    let counted = local.clone();
    local.host.spawn(Box::pin(async move {
        closed.await;
        counted.closing.set(counted.closing.get() - 1);
    }));
}

async fn close_all(local: &Rc<Local>) {
    let files: Vec<_> = local.files.borrow_mut().drain().collect();
    for (_, file) in files {
        let inode = file.ino().0;
        if let Err(failure) = close(local, file).await {
            tracing::warn!(%failure, inode, "closing a file at unmount");
        }
    }
    while local.closing.get() > 0 {
        local.host.sleep(std::time::Duration::from_millis(1)).await;
    }
}
