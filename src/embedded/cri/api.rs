//! The CRI's messages and clients, generated from `proto/cri/runtime/v1/api.proto` by `build.rs`.
#![allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    clippy::all,
    clippy::pedantic,
    clippy::restriction
)]

tonic::include_proto!("runtime.v1");
