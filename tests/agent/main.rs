//! The embedded tier: a real agent, the embedded API server and pods of real Linux namespaces, over
//! real HTTP and gRPC.
//!
//! Needs root, no packages but util-linux for `lsns`. What is expected comes from the kernel by way
//! of `readlink` and `lsns`.
#![cfg(all(target_os = "linux", feature = "embedded"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test fails by panicking, and prints what it measured"
)]

mod api;
mod daemon;
mod failures;
mod fixture;
mod forged;
mod input;
mod lifetime;
mod shapes;
mod waiting;
