//! The acceptance test of the node tier: pods on a real containerd and runc, the agent as a
//! container as `deploy/` ships it, and the `podsonde` binary, which reaches it as a person's does:
//! by the API server's port-forward.
//!
//! Expected values come from the kernel (`/proc`, `readlink` and `ls` executed inside the
//! containers), from `lsns`, `ctr`, `kubectl` and the manifests. Run by `tests/run node`.
#![cfg(all(target_os = "linux", feature = "embedded"))]
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test fails by panicking and prints its figures"
)]

#[path = "../support/mod.rs"]
mod support;

mod capture;
mod failures;
mod files;
mod fixture;
mod lifetime;
mod privileges;
mod scale;
mod scenario;
mod shapes;
