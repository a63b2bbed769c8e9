//! What the agent costs: figures, printed and never asserted. `cargo bench`, or `cargo bench --
//! idle` for a part of it.
//!
//! - `verification`: verifying all pods of a node beside `lsns` of util-linux, in turns;
//! - `sessions`: the agent's share of the time from a debug request to its verdict;
//! - `idle`: memory and wake-ups of an agent that nobody asks anything. `PODSONDE_AGENT` names the
//!   binary if it shall not be the one built with the embedded cluster, `PODSONDE_IDLE_SECONDS` for
//!   how long to look (60).
//!
//! Needs root: the pods are real namespaces. They are gone when it ends, also when it is killed.
#![cfg(all(target_os = "linux", feature = "embedded"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)]

mod figures;
#[allow(dead_code)]
#[path = "../agent/fixture.rs"]
mod fixture;
mod idle;
mod node;
mod sessions;
mod verification;

#[tokio::main]
async fn main() {
    // Cargo adds `--bench`.
    let parts: Vec<_> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|p| p == part);
    println!("{}", node::machine());
    if wanted("verification") {
        verification::run().await;
    }
    if wanted("sessions") {
        sessions::run().await;
    }
    if wanted("idle") {
        idle::run().await;
    }
}
