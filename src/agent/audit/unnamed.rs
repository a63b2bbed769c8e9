//! Requests of nobody: those that show no credentials, or none that are worth anything.
//!
//! Whoever reaches the port can send any number of them, and each would be two lines. A container
//! log of five files of 10 MiB was full of nothing else within 16 s. So some of these requests are
//! written as any other, and the rest are counted in a line of their own.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde::Serialize;

use crate::domain::bucket::{Buckets, Rate};

/// How many of these requests are written: a person's mistakes always, and at most 9 MB a day.
pub(super) const RATE: Rate = Rate { burst: 500, refill: Duration::from_secs(10) };
/// Addresses that are counted one by one until the next line.
const MAX_PEERS: usize = 16;

/// What becomes of the lines of these requests.
#[derive(Debug)]
pub(super) struct Unnamed(Mutex<State>);

#[derive(Debug)]
struct State {
    buckets: Buckets<()>,
    omitted: Option<Omitted>,
}

/// The line that stands for those that were left out.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Omitted {
    audit: &'static str,
    time: String,
    node: String,
    /// When the first of them came.
    since: String,
    /// Requests, each of which would have had two lines.
    pub(super) requests: u64,
    /// Requests by address, for the first [`MAX_PEERS`] addresses.
    peers: BTreeMap<String, u64>,
}

impl Unnamed {
    pub(super) fn new() -> Self {
        Self(Mutex::new(State { buckets: Buckets::new(RATE, 1), omitted: None }))
    }

    /// Whether a request from this peer is written. If not, it has been counted.
    pub(super) fn is_written(&self, peer: &str) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.buckets.take((), Instant::now()) {
            return true;
        }
        let omitted = state.omitted.get_or_insert_with(|| Omitted {
            audit: "omitted",
            time: String::new(),
            node: String::new(),
            since: Timestamp::now().to_string(),
            requests: 0,
            peers: BTreeMap::new(),
        });
        omitted.requests = omitted.requests.saturating_add(1);
        // The port is another one each time.
        let peer =
            peer.parse().map_or_else(|_| peer.to_owned(), |at: SocketAddr| at.ip().to_string());
        if omitted.peers.len() < MAX_PEERS || omitted.peers.contains_key(&peer) {
            let count = omitted.peers.entry(peer).or_default();
            *count = count.saturating_add(1);
        }
        false
    }

    /// What was left out since this was last asked, if anything.
    pub(super) fn take_omitted(&self, node: &str) -> Option<Omitted> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let omitted = state.omitted.take()?;
        Some(Omitted { time: Timestamp::now().to_string(), node: node.to_owned(), ..omitted })
    }
}
