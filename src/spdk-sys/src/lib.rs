//! SPDK's C interface as bindgen sees it, and a few functions of `shim/shim.h` for what Rust cannot call (inline
//! functions, variadic log callbacks, structures whose fields change between releases). Used by the `spdk` crate only.
//!
//! Nothing is safe here and nothing is decided here.
#![allow(
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    dead_code,
    unsafe_op_in_unsafe_fn,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    clippy::unwrap_used,
    reason = "generated code"
)]

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
