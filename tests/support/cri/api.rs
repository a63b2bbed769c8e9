//! The CRI's messages and clients. `build.rs` generates them from `proto/cri/runtime/v1/api.proto`;
//! only the tests that include this module compile them.
#![allow(clippy::all, clippy::pedantic, clippy::restriction)]

tonic::include_proto!("runtime.v1");
