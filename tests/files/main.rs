//! The files of containers: hostile roots, first by themselves, then through a real agent with pods
//! of real namespaces.
//!
//! Needs root, no packages but coreutils and findutils as oracles. Every hostile root has files of
//! the host planted beside it, whose content must never be seen.
#![cfg(all(target_os = "linux", feature = "embedded"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test fails by panicking, and prints what it counted"
)]

mod claims;
mod command_line;
mod content;
#[allow(dead_code)]
#[path = "../agent/fixture.rs"]
mod fixture;
mod follow;
#[allow(dead_code)]
#[path = "../support/fuse.rs"]
mod fuse;
mod kinds;
mod lab;
mod links;
mod roots;
mod service;
mod slow;
mod storm;
mod support;
mod walks;
mod writing;
