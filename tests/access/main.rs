//! Who may do what: the agent against the embedded API server's own RBAC, with the roles that are
//! shipped.
//!
//! Needs root, no packages. What is expected stands in the table; who may do what is decided by the
//! API server.
#![cfg(all(target_os = "linux", feature = "embedded"))]
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod outages;
mod rpc;
mod script;
mod streams;
mod table;
mod world;
