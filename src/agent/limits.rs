//! The agent's limits: how much it does at a time, and what it may cost.
//!
//! Every limit is a flag, and its default stands in the flag alone. `deploy/README.md` has them as
//! a table, which a test compares. Another test adds up what they allow and proves that the sum is
//! below the memory limit of the shipped pod.

use std::time::Duration;

use clap::Parser;

use crate::domain::{debug::DurationLimit, filter::MAX_SNAPLEN};

/// Bytes that a connection may cost by itself: TLS, HTTP/2 and their buffers. A test of the
/// transport measures it.
pub const CONNECTION_BYTES: u64 = 48 * 1024;

/// What limits are parsed from to have their defaults, which stand in the flags alone.
const NO_FLAGS: [&str; 1] = ["podsonde-agent"];

/// What the agent does at a time for all its callers, and what all of it may take.
#[derive(Debug, Clone, Parser)]
pub struct Limits {
    /// Lifetime of a session for which the request names none
    #[arg(long, default_value = "1h", value_parser = duration, value_name = "DURATION")]
    pub default_ttl: Duration,

    /// Longest lifetime of a session
    #[arg(long, default_value = "24h", value_parser = duration, value_name = "DURATION")]
    pub max_ttl: Duration,

    /// Sessions that the node may have at a time
    #[arg(long, default_value_t = 100, value_name = "N")]
    pub max_sessions: usize,

    /// Sessions that the pods of one namespace may have at a time
    #[arg(long, default_value_t = 50, value_name = "N")]
    pub max_sessions_per_namespace: usize,

    /// Let debug containers take values from Secrets, ConfigMaps and fields, and mount the pod's
    /// volumes
    #[arg(long)]
    pub allow_references: bool,

    /// Requests that are worked on at a time; more are refused
    #[arg(long, default_value_t = 256, value_name = "N")]
    pub max_requests: usize,

    /// Requests of one user that are worked on at a time
    #[arg(long, default_value_t = 32, value_name = "N")]
    pub max_requests_per_user: usize,

    /// Limits of file access
    #[command(flatten)]
    pub files: FileLimits,

    /// Time that running requests have to end after SIGTERM
    #[arg(long, default_value = "10s", value_parser = duration, value_name = "DURATION")]
    pub drain_timeout: Duration,

    /// Limits of packet captures
    #[command(flatten)]
    pub captures: CaptureLimits,

    /// Limits of connections
    #[command(flatten)]
    pub transport: TransportLimits,
}

/// Limits of packet captures.
#[derive(Debug, Clone, PartialEq, Eq, Parser)]
#[command(next_help_heading = "Limits of captures")]
pub struct CaptureLimits {
    /// Captures at a time
    #[arg(long, default_value_t = 16, value_name = "N")]
    pub max_captures: usize,

    /// Captures of one user at a time
    #[arg(long, default_value_t = 8, value_name = "N")]
    pub max_captures_per_user: usize,

    /// Bytes of the ring into which the kernel writes the packets of a capture whose request names
    /// no size
    #[arg(long, default_value_t = 64 << 20, value_name = "BYTES", value_parser = at_least_one)]
    pub default_ring: usize,

    /// Bytes of the largest ring of one capture
    #[arg(long, default_value_t = 256 << 20, value_name = "BYTES", value_parser = at_least_one)]
    pub max_ring: usize,

    /// Bytes of the rings of all captures; this is kernel memory, which does not count against the
    /// container's limit
    #[arg(long, default_value_t = 512 << 20, value_name = "BYTES", value_parser = at_least_one)]
    pub capture_memory: usize,

    /// Bytes of one capture that wait in the agent for a slow client; after that the ring fills,
    /// and the kernel drops packets and counts them
    #[arg(long, default_value_t = 2 << 20, value_name = "BYTES", value_parser = at_least_one)]
    pub capture_queue: usize,

    /// Duration of a capture whose request names none
    #[arg(long, default_value = "1h", value_parser = duration, value_name = "DURATION")]
    pub default_capture_duration: Duration,

    /// Longest duration of a capture, at most 24h
    #[arg(long, default_value = "24h", value_parser = day, value_name = "DURATION")]
    pub max_capture_duration: Duration,

    /// Bytes of each packet that may be captured; also used if the request names no snaplen
    #[arg(long, default_value_t = MAX_SNAPLEN, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=MAX_SNAPLEN as i64))]
    pub max_snaplen: u32,
}

impl Default for CaptureLimits {
    fn default() -> Self {
        Self::parse_from(NO_FLAGS)
    }
}

/// Limits of connections, which hold before anybody knows who calls.
///
/// A connection or request above a limit takes the place of a connection on which no authorised
/// request is at work, if there is one.
///
/// A peer is an IPv4 address, an IPv6 /64 or, on a unix socket, a user. All port-forwards of the
/// cluster are one peer: they arrive from the pod's own loopback.
#[derive(Debug, Clone, PartialEq, Eq, Parser)]
#[command(next_help_heading = "Limits of connections")]
pub struct TransportLimits {
    /// Connections at a time; never more than a quarter of the files that the process may open
    #[arg(long, default_value_t = 512, value_name = "N", value_parser = at_least_one)]
    pub max_connections: usize,

    /// Connections of one peer at a time
    #[arg(long, default_value_t = 128, value_name = "N", value_parser = at_least_one)]
    pub max_connections_per_peer: usize,

    /// Connections in a TLS handshake, which count separately; one more ends the oldest, if that
    /// had at least 100 ms. Never more than a quarter of the files either
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = at_least_one)]
    pub max_handshakes: usize,

    /// Time that a TLS handshake may take
    #[arg(long, default_value = "10s", value_parser = duration, value_name = "DURATION")]
    pub handshake_timeout: Duration,

    /// Time that a connection may be without a request
    #[arg(long, default_value = "5m", value_parser = duration, value_name = "DURATION")]
    pub idle_timeout: Duration,

    /// Silence after which the agent pings a client, and the time that the client has to answer
    #[arg(long, default_value = "20s", value_parser = duration, value_name = "DURATION")]
    pub keepalive: Duration,

    /// Time that a request may take to arrive; for an upload, each 64 KiB of it
    #[arg(long, default_value = "10s", value_parser = duration, value_name = "DURATION")]
    pub request_timeout: Duration,

    /// Time that a client may leave an answer unread before its connection is closed
    #[arg(long, default_value = "60s", value_parser = duration, value_name = "DURATION")]
    pub stall_timeout: Duration,

    /// Requests at a time on one connection
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_streams: u32,

    /// Requests of one peer at a time, counted from their first byte
    #[arg(long, default_value_t = 256, value_name = "N", value_parser = at_least_one)]
    pub max_requests_per_peer: usize,

    /// Requests of all peers at a time, counted from their first byte
    #[arg(long, default_value_t = 1024, value_name = "N", value_parser = at_least_one)]
    pub max_open_requests: usize,

    /// Bytes of one request
    #[arg(long, default_value_t = 256 * 1024, value_name = "BYTES", value_parser = at_least_one)]
    pub max_request_bytes: usize,

    /// Bytes of all requests whose callers are not authorized yet; one peer may have a quarter
    #[arg(long, default_value_t = 8 * 1024 * 1024, value_name = "BYTES", value_parser = at_least_one)]
    pub max_buffered_bytes: usize,

    /// Bytes of messages of authorized requests that are held at a time, both uploads and answers
    /// that clients have not read; one user may have a quarter
    #[arg(long, default_value_t = 24 * 1024 * 1024, value_name = "BYTES", value_parser = at_least_one)]
    pub max_message_bytes: usize,

    /// Bytes of the headers of one request
    #[arg(long, default_value_t = 16 * 1024, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1024..))]
    pub max_header_bytes: u32,

    /// Requests that one connection may cancel before the agent has looked at them
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = at_least_one)]
    pub max_pending_resets: usize,

    /// Faulty requests of one connection that are answered with a reset before it is closed
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = at_least_one)]
    pub max_faulty_requests: usize,

    /// Requests that one connection may cancel unanswered, less those that it waited for, before it
    /// is closed
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = at_least_one)]
    pub max_abandoned_requests: usize,
}

impl Default for TransportLimits {
    fn default() -> Self {
        Self::parse_from(NO_FLAGS)
    }
}

impl Limits {
    /// The lifetime of sessions.
    pub fn ttl(&self) -> DurationLimit {
        DurationLimit { default: self.default_ttl.min(self.max_ttl), max: self.max_ttl }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::parse_from(NO_FLAGS)
    }
}

/// Limits of file access.
#[derive(Debug, Clone, PartialEq, Eq, Parser)]
pub struct FileLimits {
    /// Threads for file work; a user or a namespace may have half of them, a container a quarter
    #[arg(long, default_value_t = 16, value_name = "N")]
    pub file_threads: usize,

    /// How long a thread for file work is waited for; one that takes longer counts as stuck
    #[arg(long, default_value = "10s", value_parser = duration, value_name = "DURATION")]
    pub file_timeout: Duration,

    /// Bytes that one request may read
    #[arg(long, default_value_t = 64 << 30, value_name = "BYTES")]
    pub max_read_bytes: u64,

    /// Entries that one walk may list
    #[arg(long, default_value_t = 1_000_000, value_name = "N")]
    pub max_walk_entries: u64,

    /// Directories that a walk may descend
    #[arg(long, default_value_t = 128, value_name = "N")]
    pub max_walk_depth: u32,

    /// Let callers write files
    #[arg(long)]
    pub allow_file_writes: bool,

    /// Bytes that one request may write
    #[arg(long, default_value_t = 1 << 30, value_name = "BYTES")]
    pub max_write_bytes: u64,
}

impl Default for FileLimits {
    fn default() -> Self {
        Self::parse_from(NO_FLAGS)
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| format!("{text:?} is not a number from 1 on"))
}

/// A duration as Kubernetes writes it: `90s`, `1h30m`, `500ms`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let parsed = text.parse::<jiff::SignedDuration>().ok().and_then(|d| Duration::try_from(d).ok());
    parsed.ok_or_else(|| format!("{text:?} is not a duration such as 90s, 15m or 1h30m"))
}

fn day(text: &str) -> Result<Duration, String> {
    let given = duration(text)?;
    (given <= Duration::from_secs(24 * 3600))
        .then_some(given)
        .ok_or_else(|| format!("{text} is more than 24h"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// Whatever clients do, the agent stays below the memory limit of its pod: each limit at its
    /// maximum, at once.
    #[test]
    fn the_sum_of_all_limits_is_below_the_memory_of_the_pod() {
        use crate::{
            agent::{capture::COMPILERS, listen::WINDOW},
            sys::capture::compiler::MAX_MEMORY,
        };
        let manifest =
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/base/daemonset.yaml"));
        let (_, limits) = manifest.split_once(" limits:").unwrap();
        let memory = limits.split_once("memory: ").unwrap().1.lines().next().unwrap();
        let pod = memory.strip_suffix("Mi").unwrap().parse::<u64>().unwrap() << 20;

        let Limits { max_requests, captures, transport, .. } = Limits::default();
        let of = |number: usize, bytes: usize| number as u64 * bytes as u64;
        let connections = (transport.max_connections + transport.max_handshakes) as u64;
        let parts = [
            ("the agent with nothing to do, pods and caches", 16 << 20),
            ("connections", connections * CONNECTION_BYTES),
            ("headers", of(transport.max_open_requests, transport.max_header_bytes as usize)),
            ("requests of callers who are not authorised", transport.max_buffered_bytes as u64),
            ("uploads that are sent ahead", of(max_requests, WINDOW as usize)),
            ("messages", transport.max_message_bytes as u64),
            ("captures", of(captures.max_captures, captures.capture_queue)),
            ("compilers", COMPILERS as u64 * MAX_MEMORY),
        ];
        let sum: u64 = parts.iter().map(|(_, bytes)| bytes).sum();
        assert!(sum <= pod - pod / 16, "{} MiB of {}: {parts:?}", sum >> 20, pod >> 20);
    }

    /// The flags that limit something, as a table. They are what is flattened from [`Limits`].
    fn table() -> String {
        let limits = Limits::command();
        let rows = limits
            .get_arguments()
            .filter(|flag| !matches!(flag.get_id().as_str(), "help" | "version"));
        let row = |flag: &clap::Arg| {
            let help = flag.get_help().unwrap().to_string();
            let default = flag.get_default_values().iter().map(|value| value.to_str().unwrap());
            let default = match default.collect::<Vec<_>>().join(",") {
                default if default.is_empty() => "off".to_owned(),
                default => format!("`{default}`"),
            };
            format!("| `--{}` | {default} | {help} |\n", flag.get_long().unwrap())
        };
        format!("| flag | default | what |\n|---|---|---|\n{}", rows.map(row).collect::<String>())
    }

    #[test]
    fn the_limits_are_documented() {
        let readme =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/README.md"))
                .unwrap();
        let (_, rest) = readme.split_once("<!-- limits:").unwrap();
        let documented =
            rest.split_once("-->\n").unwrap().1.split_once("<!-- end of limits -->").unwrap().0;
        assert!(
            documented == table(),
            "the table of limits in deploy/README.md is to be:\n{}",
            table()
        );
    }
}
