//! What several test programs share. Each uses only a part of it.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

pub mod cri;
pub mod generator;
pub mod memory;
pub mod netns;
pub mod node;
pub mod pcap;

use std::time::{Duration, Instant};

/// Longer than anything takes; what hangs fails the test.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until something is so that tells nobody of it.
pub fn wait_until(what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < end, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
