//! Compiles `proto/` to Rust and to a descriptor set for gRPC reflection. No `protoc` is needed.

use std::{env, error::Error, fs, path::PathBuf};

use tonic_prost_build::Config;

/// The directory of podsonde's own API. Every file in it is compiled; imports are found below
/// `proto`.
const API: &str = "proto/podsonde/v1";

/// Bulk payloads, which are passed on without being copied.
const BULK: &[&str] = &[
    ".podsonde.v1.CaptureStartResponse.pcapng",
    ".podsonde.v1.FilesReadResponse.data",
    ".podsonde.v1.FilesWriteRequest.data",
];

/// The container runtime's API, which only the node tier compiles (`tests/support/cri`).
const CRI: &[&str] = &["cri/runtime/v1/api.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let mut files = Vec::new();
    for entry in fs::read_dir(API)? {
        files.push(entry?.path());
    }
    // The order of a directory is arbitrary, and builds are to be reproducible.
    files.sort();
    let descriptors = protox::compile(files, ["proto"])?;
    fs::write(out.join("podsonde.v1.bin"), prost_bytes(&descriptors))?;
    let mut config = Config::new();
    config.bytes(BULK);
    tonic_prost_build::configure()
        .codec_path("crate::codec::StrictCodec")
        .compile_fds_with_config(descriptors, config)?;
    if env::var_os("CARGO_FEATURE_EMBEDDED").is_some() {
        let descriptors = protox::compile(CRI, ["proto"])?;
        tonic_prost_build::configure()
            .build_server(false)
            .compile_fds_with_config(descriptors, Config::new())?;
    }
    Ok(())
}

/// The descriptor set in protobuf's wire form, comments left out as reflection does not need them.
fn prost_bytes(descriptors: &prost_types::FileDescriptorSet) -> Vec<u8> {
    use prost::Message;
    let mut bare = descriptors.clone();
    for file in &mut bare.file {
        file.source_code_info = None;
    }
    bare.encode_to_vec()
}
