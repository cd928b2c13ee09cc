//! Generates the messages, clients and servers from `proto/`, with the system's `protoc`.

use std::io::Error;
use std::path::PathBuf;

fn main() -> Result<(), Error> {
    let root = PathBuf::from(env("CARGO_MANIFEST_DIR")?).join("../../proto");
    let descriptors = PathBuf::from(env("OUT_DIR")?).join("ocelot.v1.bin");
    let files = [
        "error",
        "types",
        "volumes",
        "namespace",
        "files",
        "exports",
        "node",
    ]
    .map(|name| root.join(format!("ocelot/v1/{name}.proto")));
    for file in &files {
        println!("cargo:rerun-if-changed={}", file.display());
    }
    // Bytes rather than Vec<u8>: data of a message is a view of the received frame, not a copy.
    tonic_prost_build::configure()
        .bytes(".")
        .file_descriptor_set_path(descriptors)
        .compile_protos(&files, &[root])
        .map_err(|error| Error::other(format!("protoc (package protobuf-compiler): {error}")))
}

fn env(name: &str) -> Result<String, Error> {
    std::env::var(name).map_err(|error| Error::other(format!("{name}: {error}")))
}
