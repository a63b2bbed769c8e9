//! Pods of plain namespaces: what they share, that they work, and that they leave nothing behind.
//!
//! What must hold is read with `readlink`, `lsns`, `nsenter`, `curl` and from `/proc`, never asked
//! of the runtime.
#![cfg(all(feature = "embedded", target_os = "linux"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)]

mod containers;
mod host;
mod removal;
mod shapes;
mod support;
