//! Packets, really captured: the engine on network namespaces that the tests make, and the agent's
//! service over gRPC.
//!
//! Needs root, and Debian's tcpdump and tshark. What is expected is what the generator sent, and
//! what tcpdump says.
#![cfg(all(target_os = "linux", feature = "embedded"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking, and prints what it measured"
)]

mod engine;
mod filters;
mod fixture;
mod service;
#[path = "../support/mod.rs"]
mod support;
mod traffic;

/// Whether this can be done here. A test that cannot run is skipped, but fails when `CI` is set.
fn possible() -> bool {
    let root = rustix::process::geteuid().is_root();
    assert!(root || std::env::var_os("CI").is_none(), "root is needed, and CI is set");
    root
}
