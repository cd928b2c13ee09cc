//! SPDK threads: SPDK's stackless threads of pollers and messages, which a reactor polls.
//!
//! Ours is one a reactor; SPDK's modules may make more, and each is given to a reactor that its processor mask allows.

use std::ffi::{CStr, CString};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use spdk_sys as sys;

use super::mailbox::Message;

/// An SPDK thread. The pointer may travel; what it points to is touched by the reactor that polls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ThreadPtr(NonNull<sys::spdk_thread>);

// SAFETY: the pointer is only a name while it travels in a mailbox; the reactor that receives it is the only one to
// poll, exit and destroy the thread, and SPDK's threads are not tied to the OS thread that made them.
unsafe impl Send for ThreadPtr {}

impl ThreadPtr {
    /// Makes an SPDK thread that the reactor of `index` shall poll. SPDK calls [`on_thread_op`] for it, which hands it
    /// over.
    pub fn create(name: &str, index: usize) -> Option<ThreadPtr> {
        let name = CString::new(name).ok()?;
        let core = u32::try_from(index).ok()?;
        // SAFETY: the set is allocated, filled and freed here; SPDK copies name and set before it returns.
        unsafe {
            let set = sys::spdk_cpuset_alloc();
            if set.is_null() {
                return None;
            }
            sys::spdk_cpuset_zero(set);
            sys::spdk_cpuset_set_cpu(set, core, true);
            let thread = sys::spdk_thread_create(name.as_ptr(), set);
            sys::spdk_cpuset_free(set);
            NonNull::new(thread).map(ThreadPtr)
        }
    }

    /// Polls once. True when a message or poller had something to do.
    pub fn poll(self, now_ticks: u64) -> bool {
        // SAFETY: only the owning reactor calls this, from its OS thread, and not from within another poll.
        unsafe { sys::spdk_thread_poll(self.0.as_ptr(), 0, now_ticks) > 0 }
    }

    /// Makes it the one that SPDK calls made from here belong to.
    pub fn enter(self) {
        // SAFETY: the thread lives until its reactor destroys it, after leaving it.
        unsafe { sys::spdk_set_thread(self.0.as_ptr()) }
    }

    pub fn leave() {
        // SAFETY: no thread is always allowed.
        unsafe { sys::spdk_set_thread(std::ptr::null_mut()) }
    }

    /// Ticks until its next timed poller; 0 when it has none.
    pub fn next_timed_poller_ticks(self) -> u64 {
        // SAFETY: as for `poll`.
        unsafe { sys::spdk_thread_next_poller_expiration(self.0.as_ptr()) }
    }

    /// Asks it to end: once its channels and pollers are gone, [`Self::has_exited`].
    pub fn exit(self) {
        self.enter();
        // SAFETY: SPDK wants this called on the thread itself, which `enter` made the current one.
        unsafe { sys::spdk_thread_exit(self.0.as_ptr()) };
    }

    /// Its channels are gone and its pollers unregistered. Timed ones stay in its list until they would have been due,
    /// which may be minutes; they go with the thread.
    pub fn has_exited(self) -> bool {
        // SAFETY: as for `poll`.
        unsafe { sys::spdk_thread_is_exited(self.0.as_ptr()) }
    }

    /// Frees it. It must have exited, and nobody may use the pointer again.
    pub fn destroy(self) {
        // SAFETY: the reactor has taken it off its list and saw it exited.
        unsafe { sys::spdk_thread_destroy(self.0.as_ptr()) };
    }

    pub fn name(self) -> String {
        // SAFETY: SPDK's name of a live thread is a C string inside it.
        unsafe { CStr::from_ptr(sys::spdk_thread_get_name(self.0.as_ptr())) }
            .to_string_lossy()
            .into_owned()
    }
}

/// SPDK made a thread: hand it to a reactor that it may run on. Called from whichever thread made it.
pub(crate) unsafe extern "C" fn on_thread_op(
    thread: *mut sys::spdk_thread,
    op: sys::spdk_thread_op::Type,
) -> std::ffi::c_int {
    static TURN: AtomicUsize = AtomicUsize::new(0);
    if op != sys::spdk_thread_op::SPDK_THREAD_OP_NEW {
        return -95; // EOPNOTSUPP
    }
    let (Some(thread), Some(reactors)) = (NonNull::new(thread), crate::system::reactors()) else {
        return -22; // EINVAL
    };
    // SAFETY: SPDK passes a thread it has just made; its mask lives in it.
    let mask = unsafe { sys::spdk_thread_get_cpumask(thread.as_ptr()) };
    let allowed = |index: usize| {
        // SAFETY: `mask` points into the live thread.
        u32::try_from(index).is_ok_and(|core| unsafe { sys::spdk_cpuset_get_cpu(mask, core) })
    };
    let turn = TURN.fetch_add(1, Ordering::Relaxed);
    let count = reactors.len();
    let chosen = (0..count)
        .map(|step| (turn + step) % count)
        .find(|index| allowed(*index))
        .unwrap_or(0);
    if reactors[chosen].post(Message::Adopt(ThreadPtr(thread))) {
        0
    } else {
        -19 // ENODEV: the reactor has ended
    }
}

pub(crate) unsafe extern "C" fn supports_thread_op(op: sys::spdk_thread_op::Type) -> bool {
    op == sys::spdk_thread_op::SPDK_THREAD_OP_NEW
}
