//! SPDK's and DPDK's messages, as `tracing` events of target `spdk`.
//!
//! A device that fails makes SPDK complain about each request. Of one complaint (one line of its source), a few a second
//! are passed on, and how many more there were.
//!
//! While SPDK starts, its errors are kept as well: they say what its error codes do not.

use std::collections::HashMap;
use std::ffi::{CStr, c_char};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use spdk_sys as sys;

/// Messages kept while starting; more than these explain nothing.
const KEPT: usize = 8;

/// Complaints of one kind passed on in each [`WINDOW`].
const PASSED: u32 = 5;
const WINDOW: Duration = Duration::from_secs(1);

/// How often SPDK complained from one place of its source in the current window.
struct Complaints {
    since: Instant,
    count: u32,
}

/// By file name and line.
static COMPLAINTS: LazyLock<Mutex<HashMap<(String, i32), Complaints>>> =
    LazyLock::new(Mutex::default);

static KEPT_ERRORS: Mutex<Option<Vec<String>>> = Mutex::new(None);
static NOTICES_AT_INFO: AtomicBool = AtomicBool::new(false);

/// Sends messages here from now on.
pub(crate) fn open(notices_at_info: bool) {
    NOTICES_AT_INFO.store(notices_at_info, Ordering::Relaxed);
    // SAFETY: `on_message` has the signature the shim wants and lives as long as the program.
    unsafe { sys::shim_log_open(Some(on_message)) };
}

/// Begins to keep errors.
pub(crate) fn keep_errors() {
    *lock(&KEPT_ERRORS) = Some(Vec::new());
}

/// What was kept; ends the keeping.
pub(crate) fn kept_errors() -> Vec<String> {
    lock(&KEPT_ERRORS).take().unwrap_or_default()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while holding one of these leaves plain values, which are still what they are.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// May this complaint be passed on? And how many were not, in the window that has just ended.
fn pass(file: &str, line: i32, now: Instant) -> (bool, u32) {
    let mut complaints = lock(&COMPLAINTS);
    let one = complaints
        .entry((file.to_owned(), line))
        .or_insert(Complaints {
            since: now,
            count: 0,
        });
    let mut squashed = 0;
    if now.duration_since(one.since) >= WINDOW {
        squashed = one.count.saturating_sub(PASSED);
        *one = Complaints {
            since: now,
            count: 0,
        };
    }
    one.count += 1;
    (one.count <= PASSED, squashed)
}

unsafe extern "C" fn on_message(
    level: i32,
    file: *const c_char,
    line: i32,
    function: *const c_char,
    text: *const c_char,
) {
    // SAFETY: the shim passes C strings that live during the call, or null.
    let (file, function, text) = unsafe { (text_of(file), text_of(function), text_of(text)) };
    let file = file.rsplit('/').next().unwrap_or_default();
    if matches!(
        level,
        sys::spdk_log_level::SPDK_LOG_ERROR | sys::spdk_log_level::SPDK_LOG_WARN
    ) {
        let (passed, squashed) = pass(file, line, Instant::now());
        if squashed > 0 {
            tracing::warn!(target: "spdk", file, line, squashed, "more of the next message");
        }
        if !passed {
            return;
        }
    }
    match level {
        sys::spdk_log_level::SPDK_LOG_ERROR => {
            if let Some(kept) = lock(&KEPT_ERRORS).as_mut().filter(|kept| kept.len() < KEPT) {
                kept.push(text.clone().into_owned());
            }
            tracing::error!(target: "spdk", file, line, function = &*function, "{text}");
        }
        sys::spdk_log_level::SPDK_LOG_WARN => {
            tracing::warn!(target: "spdk", file, line, function = &*function, "{text}");
        }
        sys::spdk_log_level::SPDK_LOG_NOTICE if NOTICES_AT_INFO.load(Ordering::Relaxed) => {
            tracing::info!(target: "spdk", file, line, function = &*function, "{text}");
        }
        sys::spdk_log_level::SPDK_LOG_NOTICE | sys::spdk_log_level::SPDK_LOG_INFO => {
            tracing::debug!(target: "spdk", file, line, function = &*function, "{text}");
        }
        _ => tracing::trace!(target: "spdk", file, line, function = &*function, "{text}"),
    }
}

/// # Safety
/// `text` is null, or a C string that outlives the result.
unsafe fn text_of<'a>(text: *const c_char) -> std::borrow::Cow<'a, str> {
    if text.is_null() {
        return "".into();
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(text) }.to_string_lossy()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_complaints_is_counted() {
        let start = Instant::now();
        let passed = (0..100).filter(|_| pass("flood.c", 1, start).0).count();
        assert_eq!(passed, PASSED as usize);
        assert_eq!(pass("flood.c", 2, start), (true, 0));
        let (passed, squashed) = pass("flood.c", 1, start + WINDOW);
        assert!(passed);
        assert_eq!(squashed, 100 - PASSED);
    }
}
