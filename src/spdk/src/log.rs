//! SPDK's and DPDK's messages, as `tracing` events of target `spdk`.
//!
//! While SPDK starts, its errors are kept as well: they say what its error codes do not.

use std::ffi::{CStr, c_char};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use spdk_sys as sys;

/// Messages kept while starting; more than these explain nothing.
const KEPT: usize = 8;

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
    *lock() = Some(Vec::new());
}

/// What was kept; ends the keeping.
pub(crate) fn kept_errors() -> Vec<String> {
    lock().take().unwrap_or_default()
}

fn lock() -> std::sync::MutexGuard<'static, Option<Vec<String>>> {
    // A panic while holding it leaves a list of strings, which is still one.
    KEPT_ERRORS
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
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
    match level {
        sys::spdk_log_level::SPDK_LOG_ERROR => {
            if let Some(kept) = lock().as_mut().filter(|kept| kept.len() < KEPT) {
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
