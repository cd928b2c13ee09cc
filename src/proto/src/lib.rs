//! The gRPC interface, generated from `proto/ocelot/v1`: what the server implements and the client
//! calls, and the descriptors that the reflection service hands out.
//!
//! By hand are only the [`errors`]: errno names, the gRPC code of each, and how an
//! [`v1::ErrorDetail`] travels in a status.
#![forbid(unsafe_code)]

pub mod errors;

/// Package `ocelot.v1`.
#[allow(clippy::all, missing_docs)]
pub mod v1 {
    tonic::include_proto!("ocelot.v1");
}

/// All of `proto/`, for the reflection service.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("ocelot.v1");

/// Longest message that either side sends or takes, in bytes: 4 MiB of data and room around it.
pub const MAX_MESSAGE_BYTES: usize = (4 << 20) + (64 << 10);
/// Most bytes of data that one message carries.
pub const MAX_IO_BYTES: usize = 4 << 20;
