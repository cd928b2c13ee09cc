//! Starting and stopping SPDK: the environment, its threads, its subsystems, in order, and the same backwards.
//!
//! SPDK's own application framework is not used: it installs signal handlers, owns the main thread, and cannot run
//! futures. What is started here never calls `exit` and never touches a signal.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Instant;

use futures_channel::oneshot;
use spdk_sys as sys;

use crate::config::{self, Calls, Round};
use crate::error::{ConfigError, StartError, StopError};
use crate::options::{Options, Polling};
use crate::reactor::{
    Attention, Message, Phase, Reactor, ReactorHandle, Shared, ThreadPtr, on_thread_op,
    supports_thread_op,
};
use crate::{dma, environment, limits, log, rpc};

/// What the threads of the one SPDK in a process share.
pub(crate) struct System {
    reactors: Vec<Arc<Shared>>,
    polling: Polling,
    /// Reactors other than the main one that poll, that are quiet, that have ended.
    up: AtomicUsize,
    quiet: AtomicUsize,
    ended: AtomicUsize,
    /// Those that failed to start.
    failed: AtomicUsize,
    /// The subsystems are gone: SPDK's threads may exit.
    may_exit: AtomicBool,
}

static STARTED: AtomicBool = AtomicBool::new(false);
static SYSTEM: OnceLock<Arc<System>> = OnceLock::new();

/// All reactors, once SPDK has started.
pub(crate) fn reactors() -> Option<&'static [Arc<Shared>]> {
    SYSTEM.get().map(|system| &system.reactors[..])
}

/// The reactor that SPDK's own management runs on.
pub(crate) fn main_reactor() -> Option<ReactorHandle> {
    let shared = reactors()?.first()?.clone();
    Some(ReactorHandle { shared })
}

/// SPDK could not go on: what is up must be taken down again.
struct Failed {
    error: StartError,
    subsystems_up: bool,
}

/// The main reactor's thread, from start to end. `ready` is told how the start went.
pub(crate) fn main_thread(
    options: &Options,
    ready: impl FnOnce(Result<Vec<ReactorHandle>, StartError>),
) -> Result<(), StopError> {
    let up = Calls::read(&options.config)
        .map_err(StartError::from)
        .and_then(|calls| Ok((calls, bring_up(options)?)));
    let (calls, (system, reactor)) = match up {
        Ok(up) => up,
        Err(error) => {
            ready(Err(error));
            return Ok(());
        }
    };
    match start_subsystems(options, Rc::new(calls), &reactor) {
        Ok(()) => {
            drop(log::kept_errors());
            let handles = system.reactors.iter().map(|shared| ReactorHandle {
                shared: shared.clone(),
            });
            ready(Ok(handles.collect()));
            reactor.run_until(None, || reactor.phase() == Phase::Quieting);
            take_down(&system, &reactor, true)
        }
        Err(failed) => {
            ready(Err(failed.error));
            for shared in &system.reactors {
                shared.post(Message::Stop);
            }
            take_down(&system, &reactor, failed.subsystems_up)
        }
    }
}

/// From nothing to reactors that poll.
fn bring_up(options: &Options) -> Result<(Arc<System>, Rc<Reactor>), StartError> {
    let count = options.reactors.count();
    if count == 0 || count > 128 {
        return Err(StartError::Options(format!("{count} reactors")));
    }
    let prepared = environment::prepare(options)?;
    // What failed until here may be tried again, better; what fails from here on may not.
    if STARTED.swap(true, Ordering::SeqCst) {
        return Err(StartError::AlreadyStarted);
    }
    log::open(options.notices);
    log::keep_errors();
    let reactors = (0..count)
        .map(|index| Shared::new(index).map(Arc::new))
        .collect::<Result<Vec<_>, _>>()?;
    environment::start(&prepared)?;
    dma::open();
    let system = Arc::new(System {
        reactors,
        polling: options.polling,
        up: AtomicUsize::new(0),
        quiet: AtomicUsize::new(0),
        ended: AtomicUsize::new(0),
        failed: AtomicUsize::new(0),
        may_exit: AtomicBool::new(false),
    });
    // Before the first SPDK thread is made: it is handed to a reactor through this.
    let set = SYSTEM.set(system.clone());
    assert!(set.is_ok(), "STARTED lets only one come here");
    // SAFETY: the environment is up; the functions live as long as the program.
    let rc = unsafe {
        sys::spdk_thread_lib_init_ext(
            Some(on_thread_op),
            Some(supports_thread_op),
            0,
            limits::SPDK_MESSAGES,
        )
    };
    if rc != 0 {
        return Err(StartError::Environment {
            errno: -rc,
            log: log::kept_errors(),
        });
    }
    let reactor = start_reactor(&system, 0)?;
    start_other_reactors(&system)?;
    Ok((system, reactor))
}

fn start_reactor(system: &Arc<System>, index: usize) -> Result<Rc<Reactor>, StartError> {
    let name = format!("reactor_{index}");
    let thread = ThreadPtr::create(&name, index).ok_or(StartError::Thread(name))?;
    dma::open_pool();
    Ok(Reactor::install(
        system.reactors[index].clone(),
        thread,
        system.polling,
    ))
}

/// DPDK has a thread for each reactor but the first, and runs ours on it.
fn start_other_reactors(system: &Arc<System>) -> Result<(), StartError> {
    let others = system.reactors.len() - 1;
    for index in 1..=others {
        let argument = Box::into_raw(Box::new((system.clone(), index)));
        let core = u32::try_from(index).expect("few reactors");
        // SAFETY: the core is one of those the environment was started with, and idle; `other_thread` takes the box.
        let rc = unsafe {
            sys::spdk_env_thread_launch_pinned(core, Some(other_thread), argument.cast())
        };
        if rc != 0 {
            // SAFETY: it was not launched, so the box is still ours.
            drop(unsafe { Box::from_raw(argument) });
            return Err(StartError::Thread(format!("reactor_{index}")));
        }
    }
    loop {
        let up = system.up.load(Ordering::SeqCst);
        if system.failed.load(Ordering::SeqCst) > 0 {
            return Err(StartError::Thread("reactor".to_owned()));
        }
        if up == others {
            return Ok(());
        }
        std::thread::yield_now();
    }
}

unsafe extern "C" fn other_thread(argument: *mut c_void) -> c_int {
    // SAFETY: `start_other_reactors` passes such a box, to this call alone.
    let (system, index) = *unsafe { Box::from_raw(argument.cast::<(Arc<System>, usize)>()) };
    let reactor = match start_reactor(&system, index) {
        Ok(reactor) => reactor,
        Err(_) => {
            system.failed.fetch_add(1, Ordering::SeqCst);
            return -1;
        }
    };
    system.up.fetch_add(1, Ordering::SeqCst);
    let die = AbortOnPanic;
    reactor.run_until(None, || {
        reactor.phase() == Phase::Quieting && reactor.is_quiet()
    });
    system.quiet.fetch_add(1, Ordering::SeqCst);
    reactor.run_until(None, || system.may_exit.load(Ordering::SeqCst));
    dma::close_pool();
    reactor.exit_threads(Instant::now() + limits::SHUTDOWN_STEP);
    std::mem::forget(die);
    reactor.shared.close();
    reactor.uninstall();
    system.ended.fetch_add(1, Ordering::SeqCst);
    0
}

/// A reactor that panics has broken an invariant with requests under way: nothing may run on, and the process ends as
/// a power cut would end it. What that leaves on disk is what journals are for.
pub(crate) struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("a reactor panicked; ending the process");
            std::process::abort();
        }
    }
}

/// Runs a future on this reactor from outside its loop.
fn run<T: 'static>(reactor: &Rc<Reactor>, future: impl Future<Output = T> + 'static) -> Option<T> {
    let (sender, mut receiver) = oneshot::channel();
    reactor.executor.spawn(Box::pin(async move {
        let _ = sender.send(future.await);
    }));
    let mut result = None;
    reactor.run_until(None, || {
        result = receiver.try_recv().ok().flatten();
        result.is_some() || reactor.phase() == Phase::Quieting
    });
    result
}

fn start_subsystems(
    options: &Options,
    calls: Rc<Calls>,
    reactor: &Rc<Reactor>,
) -> Result<(), Failed> {
    let before = |error: StartError| Failed {
        error,
        subsystems_up: false,
    };
    let after = |error: StartError| Failed {
        error,
        subsystems_up: true,
    };
    let ended = || StartError::Died("it was stopped".to_owned());
    set_pools().map_err(before)?;
    rpc::open().map_err(|error| before(error.into()))?;
    let early = {
        let calls = calls.clone();
        async move {
            config::make_safe()
                .await
                .map_err(|error| ConfigError::Call {
                    subsystem: "bdev".to_owned(),
                    method: "bdev_nvme_set_options".to_owned(),
                    error,
                })?;
            calls.make(Round::BeforeStart).await
        }
    };
    run(reactor, early)
        .unwrap_or(Ok(()))
        .map_err(|error| before(error.into()))?;
    init_subsystems(reactor).map_err(after)?;
    // SAFETY: a plain flag of SPDK's, on its main thread.
    unsafe { sys::spdk_rpc_set_state(sys::SPDK_RPC_RUNTIME) };
    run(reactor, async move { calls.make(Round::AfterStart).await })
        .ok_or_else(|| after(ended()))?
        .map_err(|error| after(error.into()))?;
    if let Some(path) = &options.rpc_socket {
        rpc::listen_for_others(path).map_err(after)?;
    }
    Ok(())
}

/// SPDK's pools, before a configuration may say otherwise. Smaller than its defaults: those are for appliances.
fn set_pools() -> Result<(), StartError> {
    // SAFETY: all set numbers that the subsystems read when they start, later.
    let set = unsafe {
        [
            sys::shim_bdev_set_pool(limits::BDEV_POOL_REQUESTS, limits::BDEV_POOL_CACHED),
            sys::shim_iobuf_set_pools(limits::IOBUF_SMALL_COUNT, limits::IOBUF_LARGE_COUNT),
            sys::shim_iobuf_set_caches(limits::IOBUF_SMALL_CACHED, limits::IOBUF_LARGE_CACHED),
        ]
    };
    let rc = set.into_iter().find(|rc| *rc != 0).unwrap_or(0);
    if rc == 0 {
        Ok(())
    } else {
        Err(StartError::Subsystems {
            errno: -rc,
            log: log::kept_errors(),
        })
    }
}

/// Where SPDK says that it has started, or stopped, its subsystems.
#[derive(Default)]
struct Done {
    rc: Cell<Option<i32>>,
}

unsafe extern "C" fn on_subsystems_up(rc: c_int, argument: *mut c_void) {
    // SAFETY: `init_subsystems` passes a `Done` that it keeps until it was called, on this thread.
    unsafe { &*argument.cast::<Done>() }.rc.set(Some(rc));
}

unsafe extern "C" fn on_subsystems_down(argument: *mut c_void) {
    // SAFETY: as above, by `stop_subsystems`.
    unsafe { &*argument.cast::<Done>() }.rc.set(Some(0));
}

fn init_subsystems(reactor: &Rc<Reactor>) -> Result<(), StartError> {
    let _attention = Attention::new();
    // Leaked if SPDK never answers: it would write into it.
    let done: &'static Done = Box::leak(Box::default());
    // SAFETY: on SPDK's main thread, which the loop below polls; `done` lives for ever.
    unsafe {
        sys::spdk_subsystem_init(
            Some(on_subsystems_up),
            std::ptr::from_ref(done).cast_mut().cast(),
        );
    }
    reactor.run_until(None, || {
        done.rc.get().is_some() || reactor.phase() == Phase::Quieting
    });
    match done.rc.get() {
        Some(0) => Ok(()),
        rc => Err(StartError::Subsystems {
            errno: rc.unwrap_or(-4).abs(),
            log: log::kept_errors(),
        }),
    }
}

fn stop_subsystems(reactor: &Rc<Reactor>) -> bool {
    let done: &'static Done = Box::leak(Box::default());
    // SAFETY: as for `init_subsystems`.
    unsafe {
        sys::spdk_subsystem_fini(
            Some(on_subsystems_down),
            std::ptr::from_ref(done).cast_mut().cast(),
        );
    }
    let deadline = Instant::now() + limits::SHUTDOWN_STEP;
    reactor.run_until(Some(deadline), || done.rc.get().is_some())
}

/// Everything back down. On a failure what is left stays as it is, and the process should end.
fn take_down(
    system: &Arc<System>,
    reactor: &Rc<Reactor>,
    subsystems_up: bool,
) -> Result<(), StopError> {
    let _attention = Attention::new();
    let others = system.reactors.len() - 1;
    let stuck = |waiting_for: &'static str| StopError::Stuck {
        waiting_for,
        seconds: limits::SHUTDOWN_STEP.as_secs(),
    };
    let deadline = Instant::now() + limits::SHUTDOWN_STEP;
    let quiet = reactor.run_until(Some(deadline), || {
        reactor.phase() == Phase::Quieting
            && reactor.is_quiet()
            && system.quiet.load(Ordering::SeqCst) == others
    });
    if !quiet {
        return Err(stuck("requests under way and open block devices"));
    }
    rpc::close();
    if subsystems_up && !stop_subsystems(reactor) {
        return Err(stuck("its subsystems to stop"));
    }
    system.may_exit.store(true, Ordering::SeqCst);
    for shared in &system.reactors {
        shared.ring();
    }
    let deadline = Instant::now() + limits::SHUTDOWN_STEP * 2;
    let ended = || system.ended.load(Ordering::SeqCst) == others;
    if !reactor.run_until(Some(deadline), ended) {
        return Err(stuck("its other reactors"));
    }
    dma::close_pool();
    if !reactor.exit_threads(Instant::now() + limits::SHUTDOWN_STEP) {
        return Err(stuck("its threads"));
    }
    reactor.shared.close();
    reactor.uninstall();
    let nothing_held = dma::close();
    // SAFETY: all reactors have ended, no SPDK thread is left, and no buffer either if its memory goes.
    unsafe {
        sys::spdk_env_thread_wait_all();
        sys::spdk_thread_lib_fini();
        if nothing_held {
            sys::spdk_env_fini();
        }
    }
    if !nothing_held {
        tracing::warn!("buffers outlive SPDK: its memory stays until the process ends");
    }
    Ok(())
}

/// The thread that [`main_thread`] runs on.
pub(crate) fn spawn(
    options: Options,
    ready: impl FnOnce(Result<Vec<ReactorHandle>, StartError>) + Send + 'static,
    ended: impl FnOnce(Result<(), StopError>) + Send + 'static,
) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name("reactor_0".to_owned())
        .spawn(move || {
            let die = AbortOnPanic;
            let outcome = main_thread(&options, ready);
            drop(die);
            ended(outcome);
        })
}
