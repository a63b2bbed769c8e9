//! The transport: TLS, pins, and what people do to an agent before it asks who they are.
//!
//! The agent is the real `podsonde-agent`, a process of its own, so that its memory and its files
//! are read from `/proc`. Needs root and, for a view that is not rustls', `openssl`.
#![cfg(all(target_os = "linux", feature = "embedded"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test fails by panicking, and prints what it measured"
)]

mod abuse;
mod agent;
mod frames;
mod pins;
#[path = "../support/mod.rs"]
mod support;
mod tls;
