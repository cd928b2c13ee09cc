//! The handle on the one SPDK of this process.

use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

use futures_channel::oneshot;
use futures_util::FutureExt;
use futures_util::future::Shared;

use crate::bdev::BdevAdmin;
use crate::error::{StartError, StopError};
use crate::nvmf::Nvmf;
use crate::options::Options;
use crate::reactor::{Message, ReactorHandle};
use crate::rpc::RpcClient;
use crate::system;

/// SPDK, running. Share it by reference or in an `Arc`; the last one dropped stops it.
pub struct Spdk {
    reactors: Vec<ReactorHandle>,
    ended: Shared<oneshot::Receiver<Result<(), StopError>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Spdk {
    /// Starts SPDK: once a process. Blocks for about a second; afterwards the reactors run on threads of their own.
    pub fn start(options: Options) -> Result<Spdk, StartError> {
        let (ready, started) = std::sync::mpsc::sync_channel(1);
        let (ended, when_ended) = oneshot::channel();
        let thread = system::spawn(
            options,
            move |outcome| {
                let _ = ready.send(outcome);
            },
            move |outcome| {
                let _ = ended.send(outcome);
            },
        )?;
        let outcome = started
            .recv()
            .unwrap_or_else(|_| Err(StartError::Died("no word from it".to_owned())));
        match outcome {
            Ok(reactors) => Ok(Spdk {
                reactors,
                ended: when_ended.shared(),
                thread: Mutex::new(Some(thread)),
            }),
            Err(error) => {
                // It takes down by itself what was up.
                let _ = thread.join();
                Err(error)
            }
        }
    }

    pub fn reactors(&self) -> &[ReactorHandle] {
        &self.reactors
    }

    /// A reactor by its number; numbers beyond the last start over, so that any number spreads evenly.
    pub fn reactor(&self, index: usize) -> &ReactorHandle {
        &self.reactors[index % self.reactors.len()]
    }

    /// Any method of SPDK's management interface.
    pub fn rpc(&self) -> RpcClient {
        RpcClient::new(self.reactors[0].clone())
    }

    /// Making and removing block devices.
    pub fn bdevs(&self) -> BdevAdmin {
        BdevAdmin::new(self.rpc(), self.reactors[0].clone())
    }

    /// Offering block devices to NVMe hosts.
    pub fn nvmf(&self) -> Nvmf {
        Nvmf::new(self.rpc())
    }

    /// Stops SPDK: drops all tasks, waits for requests under way, closes all devices, and takes everything down. Whoever
    /// serves clients should have stopped that first: tasks are dropped where they wait. May be called more than once.
    pub fn stop(&self) -> impl Future<Output = Result<(), StopError>> + Send + use<> {
        self.tell_to_stop();
        let ended = self.ended.clone();
        async move { ended.await.unwrap_or(Err(StopError::Died)) }
    }

    /// [`Self::stop`] for a plain thread, which waits.
    pub fn stop_and_wait(&self) -> Result<(), StopError> {
        self.tell_to_stop();
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
        match self.ended.clone().now_or_never() {
            Some(Ok(outcome)) => outcome,
            // Somebody else waits for the thread, or it died.
            _ => Err(StopError::Died),
        }
    }

    fn tell_to_stop(&self) {
        for reactor in &self.reactors {
            reactor.shared.post(Message::Stop);
        }
    }
}

impl Drop for Spdk {
    fn drop(&mut self) {
        // A process that ends without this leaves SPDK's threads in the middle of work.
        if let Err(error) = self.stop_and_wait() {
            tracing::error!(%error, "SPDK did not stop");
        }
    }
}
