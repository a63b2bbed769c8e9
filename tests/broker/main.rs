//! The agent's two processes, as the real binary makes them: what each may do, read from `/proc`;
//! evidence through the broker, compared with `nsenter`; the broker attacked over its socket;
//! either of them killed.
//!
//! Needs root. The messages are written by hand here, so that the tests hold the format to its
//! description.
#![cfg(all(target_os = "linux", feature = "embedded"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod agent;
mod attacks;
#[allow(dead_code)]
#[path = "../support/fuse.rs"]
mod fuse;
mod loss;
mod privileges;
mod proc;
mod stuck_root;
