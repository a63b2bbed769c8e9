//! The agent's flags.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use clap::{Args, Parser};

use super::{
    access::{self, AUDIENCE, MAX_CACHE},
    audit::Sink,
};
use crate::{
    domain::{debug::DurationLimit, filter::MAX_SNAPLEN},
    kube::agents::AGENT_NAMESPACE,
    telemetry::LogFormat,
};

/// Port of the gRPC API, where clients look for it.
pub const PORT: u16 = 7463;

/// podsonde-agent: serves debug requests for the pods of its node.
#[derive(Debug, Clone, Parser)]
#[command(name = "podsonde-agent", version, about, long_about = None)]
pub struct Config {
    /// Name of the node, as Kubernetes has it; by the downward API, spec.nodeName
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub node_name: String,

    /// Address to serve gRPC on: ADDRESS:PORT or unix:///PATH; may be given several times. With TLS, but for loopback, unless
    /// that is written tls://ADDRESS:PORT
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7463")]
    pub listen: Vec<Listen>,

    /// Address to serve /healthz, /readyz and /metrics on; without it they are not served
    #[arg(long, value_name = "ADDRESS")]
    pub metrics_listen: Option<SocketAddr>,

    /// Address at which clients reach the agent from outside its pod, published in its Lease; by the downward API, status.podIP
    #[arg(long, env = "POD_IP", value_name = "IP")]
    pub advertise: Option<IpAddr>,

    /// Namespace of the agent's Lease; by the downward API, metadata.namespace
    #[arg(long, env = "POD_NAMESPACE", default_value = AGENT_NAMESPACE, value_name = "NAMESPACE")]
    pub namespace: String,

    /// UID of the agent's own pod; by the downward API, metadata.uid
    #[arg(long, env = "POD_UID", value_name = "UID")]
    pub pod_uid: Option<String>,

    /// File with a key of at least 32 bytes by which agents know their own sessions; without it each
    /// agent makes one at start
    #[arg(long, value_name = "FILE")]
    pub seal_key: Option<PathBuf>,

    /// Certificate to serve, PEM, followed by those that lead to its authority; read again when it changes. Without it the
    /// agent makes one at start
    #[arg(long, requires = "tls_key", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,

    /// Private key of that certificate, PEM
    #[arg(long, requires = "tls_cert", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,

    /// Authorities of client certificates, PEM; read again when they change. Without it those that the cluster publishes
    #[arg(long, value_name = "FILE")]
    pub client_ca: Option<PathBuf>,

    /// Kubeconfig file; without it the pod's service account, then $KUBECONFIG and ~/.kube/config
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// Format of the log on stderr
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// What to log: a level, or tracing directives such as podsonde=debug
    #[arg(long, env = "PODSONDE_LOG", default_value = "info", value_name = "LEVEL")]
    pub log_level: String,

    /// Whom to let in
    #[command(flatten)]
    pub access: AccessFlags,

    /// How much of everything
    #[command(flatten)]
    pub limits: Limits,

    /// What to do when the broker ends, the process that enters namespaces for the agent
    #[arg(long, value_enum, default_value_t = BrokerLoss::Degrade)]
    pub broker_loss: BrokerLoss,

    /// Pid of the process whose namespaces are the host's
    #[arg(long, default_value_t = 1, value_name = "PID")]
    pub host_pid: u32,
}

/// What to do when the broker ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum BrokerLoss {
    /// Go on without evidence, and say so
    Degrade,
    /// Drain and fail, to be started again by the kubelet
    Exit,
}

/// Whom to let in, and what is written down of it.
#[derive(Debug, Clone, Args)]
pub struct AccessFlags {
    /// Audience that a caller's token must be meant for; may be given several times
    #[arg(long, value_name = "AUDIENCE", default_value = AUDIENCE)]
    pub token_audience: Vec<String>,

    /// Also accept tokens that are meant for the API server itself
    #[arg(long)]
    pub accept_api_server_audience: bool,

    /// Let whoever reaches a loopback address do everything, for tests
    #[arg(long)]
    pub insecure_loopback: bool,

    /// How long an answer of the API server on who may do what counts, for requests that only read; at most 10s
    #[arg(long, default_value = "10s", value_parser = review_cache, value_name = "DURATION")]
    pub review_cache: Duration,

    /// How often requests that go on are authorized again; at least 1s
    #[arg(long, default_value = "60s", value_parser = interval, value_name = "DURATION")]
    pub reauthorize_interval: Duration,

    /// Where to write who did what, one JSON object per line: a file, or - for stdout
    #[arg(long, value_name = "FILE", default_value = "-")]
    pub audit_log: Sink,
}

impl AccessFlags {
    /// Whom to let in.
    pub fn options(&self) -> access::AccessOptions {
        access::AccessOptions {
            audiences: self.token_audience.clone(),
            accept_api_server_audience: self.accept_api_server_audience,
            insecure_loopback: self.insecure_loopback,
            cache: self.review_cache,
            reauthorize_interval: self.reauthorize_interval,
        }
    }
}

/// How much of everything.
#[derive(Debug, Clone, Parser)]
pub struct Limits {
    /// How long a session lasts if the request does not say
    #[arg(long, default_value = "1h", value_parser = duration, value_name = "DURATION")]
    pub default_ttl: Duration,

    /// How long a session may last at most
    #[arg(long, default_value = "24h", value_parser = duration, value_name = "DURATION")]
    pub max_ttl: Duration,

    /// How many sessions the node may have at a time
    #[arg(long, default_value_t = 100, value_name = "N")]
    pub max_sessions: usize,

    /// How many of these may be on pods of one namespace
    #[arg(long, default_value_t = 50, value_name = "N")]
    pub max_sessions_per_namespace: usize,

    /// Let debug containers take values from Secrets, ConfigMaps and fields, and mount the pod's volumes
    #[arg(long)]
    pub allow_references: bool,

    /// How many requests are worked on at a time; more are refused
    #[arg(long, default_value_t = 256, value_name = "N")]
    pub max_requests: usize,

    /// How many of these may be one user's
    #[arg(long, default_value_t = 32, value_name = "N")]
    pub max_requests_per_user: usize,

    /// How much of files
    #[command(flatten)]
    pub files: FileLimits,

    /// How long to let running requests end after SIGTERM
    #[arg(long, default_value = "10s", value_parser = duration, value_name = "DURATION")]
    pub drain_timeout: Duration,

    /// Captures of packets
    #[command(flatten)]
    pub captures: CaptureLimits,

    /// Connections and what they carry
    #[command(flatten)]
    pub transport: TransportLimits,
}

/// How much of everything for captures of packets.
#[derive(Debug, Clone, PartialEq, Eq, Parser)]
#[command(next_help_heading = "Limits of captures")]
pub struct CaptureLimits {
    /// Captures at a time
    #[arg(long, default_value_t = 16, value_name = "N")]
    pub max_captures: usize,

    /// Captures of one user at a time
    #[arg(long, default_value_t = 8, value_name = "N")]
    pub max_captures_per_user: usize,

    /// Bytes of the ring that the kernel writes a capture's packets to, if the request does not say
    #[arg(long, default_value_t = 64 << 20, value_name = "BYTES", value_parser = at_least_one)]
    pub default_ring: usize,

    /// Bytes of one capture's ring at most
    #[arg(long, default_value_t = 256 << 20, value_name = "BYTES", value_parser = at_least_one)]
    pub max_ring: usize,

    /// Bytes of all captures' rings. The kernel's memory: it does not count against the container's limit
    #[arg(long, default_value_t = 512 << 20, value_name = "BYTES", value_parser = at_least_one)]
    pub capture_memory: usize,

    /// Bytes of one capture that wait in the agent for a slow client; after that its ring fills, and the kernel drops and counts
    #[arg(long, default_value_t = 4 << 20, value_name = "BYTES", value_parser = at_least_one)]
    pub capture_queue: usize,

    /// How long a capture lasts if the request does not say
    #[arg(long, default_value = "1h", value_parser = duration, value_name = "DURATION")]
    pub default_capture_duration: Duration,

    /// How long a capture may last; at most 24h
    #[arg(long, default_value = "24h", value_parser = day, value_name = "DURATION")]
    pub max_capture_duration: Duration,

    /// Bytes of each packet that may be captured, and are if the request does not say
    #[arg(long, default_value_t = MAX_SNAPLEN, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=MAX_SNAPLEN as i64))]
    pub max_snaplen: u32,
}

impl Default for CaptureLimits {
    fn default() -> Self {
        let hour = Duration::from_secs(3600);
        Self {
            max_captures: 16,
            max_captures_per_user: 8,
            default_ring: 64 << 20,
            max_ring: 256 << 20,
            capture_memory: 512 << 20,
            capture_queue: 4 << 20,
            default_capture_duration: hour,
            max_capture_duration: 24 * hour,
            max_snaplen: MAX_SNAPLEN,
        }
    }
}

/// How much of everything on the connections, before anybody is asked who they are.
///
/// Who has one too many takes the place of a connection on which no authorised request is at work, if there is one.
///
/// A peer is an IPv4 address, an IPv6 /64 or, on a unix socket, a user. All port-forwards of the cluster are one peer: they arrive
/// from the pod's own loopback.
#[derive(Debug, Clone, PartialEq, Eq, Parser)]
#[command(next_help_heading = "Limits of connections")]
pub struct TransportLimits {
    /// Connections at a time. Never more than a quarter of the files that the process may open
    #[arg(long, default_value_t = 512, value_name = "N", value_parser = at_least_one)]
    pub max_connections: usize,

    /// Connections of one peer at a time
    #[arg(long, default_value_t = 128, value_name = "N", value_parser = at_least_one)]
    pub max_connections_per_peer: usize,

    /// Connections beside these whose TLS handshake is not over; for one more, the oldest is given up once it
    /// had 100 ms. Never more than a quarter
    /// of the files, either
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = at_least_one)]
    pub max_handshakes: usize,

    /// How long a TLS handshake may take
    #[arg(long, default_value = "10s", value_parser = duration, value_name = "DURATION")]
    pub handshake_timeout: Duration,

    /// How long a connection may be without a request
    #[arg(long, default_value = "5m", value_parser = duration, value_name = "DURATION")]
    pub idle_timeout: Duration,

    /// How long the other end may be silent before it is asked whether it is there, and then until it answers
    #[arg(long, default_value = "20s", value_parser = duration, value_name = "DURATION")]
    pub keepalive: Duration,

    /// How long a request may take to arrive
    #[arg(long, default_value = "10s", value_parser = duration, value_name = "DURATION")]
    pub request_timeout: Duration,

    /// How long a client may take nothing of an answer that is ready before its connection is closed
    #[arg(long, default_value = "60s", value_parser = duration, value_name = "DURATION")]
    pub stall_timeout: Duration,

    /// Requests at a time on one connection
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_streams: u32,

    /// Requests at a time of one peer, from their first byte on
    #[arg(long, default_value_t = 256, value_name = "N", value_parser = at_least_one)]
    pub max_requests_per_peer: usize,

    /// Requests at a time of all peers, from their first byte on
    #[arg(long, default_value_t = 1024, value_name = "N", value_parser = at_least_one)]
    pub max_open_requests: usize,

    /// Bytes of one request
    #[arg(long, default_value_t = 256 * 1024, value_name = "BYTES", value_parser = at_least_one)]
    pub max_request_bytes: usize,

    /// Bytes of all requests whose callers are not authorized yet; of these one peer may have a quarter
    #[arg(long, default_value_t = 8 * 1024 * 1024, value_name = "BYTES", value_parser = at_least_one)]
    pub max_buffered_bytes: usize,

    /// Bytes of the headers of one request
    #[arg(long, default_value_t = 16 * 1024, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1024..))]
    pub max_header_bytes: u32,

    /// Requests that one connection may take back before they are looked at
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = at_least_one)]
    pub max_pending_resets: usize,

    /// Faulty requests of one connection that are answered with a reset before it is closed
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = at_least_one)]
    pub max_faulty_requests: usize,

    /// Requests that one connection may take back unanswered, less those it waited for, before it is closed
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = at_least_one)]
    pub max_abandoned_requests: usize,
}

impl Default for TransportLimits {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            max_connections: 512,
            max_connections_per_peer: 128,
            max_handshakes: 64,
            handshake_timeout: seconds(10),
            idle_timeout: seconds(300),
            keepalive: seconds(20),
            request_timeout: seconds(10),
            stall_timeout: seconds(60),
            max_streams: 64,
            max_requests_per_peer: 256,
            max_open_requests: 1024,
            max_request_bytes: 256 * 1024,
            max_buffered_bytes: 8 * 1024 * 1024,
            max_header_bytes: 16 * 1024,
            max_pending_resets: 20,
            max_faulty_requests: 100,
            max_abandoned_requests: 100,
        }
    }
}

impl Limits {
    /// How long a session may last.
    pub fn ttl(&self) -> DurationLimit {
        DurationLimit { default: self.default_ttl.min(self.max_ttl), max: self.max_ttl }
    }
}

impl Default for Limits {
    fn default() -> Self {
        let hour = Duration::from_secs(3600);
        Self {
            default_ttl: hour,
            max_ttl: 24 * hour,
            max_sessions: 100,
            max_sessions_per_namespace: 50,
            allow_references: false,
            max_requests: 256,
            max_requests_per_user: 32,
            drain_timeout: Duration::from_secs(10),
            captures: CaptureLimits::default(),
            files: FileLimits::default(),
            transport: TransportLimits::default(),
        }
    }
}

/// How much of files.
#[derive(Debug, Clone, Args, PartialEq, Eq)]
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

    /// Directories that a walk may go down
    #[arg(long, default_value_t = 128, value_name = "N")]
    pub max_walk_depth: u32,

    /// Let files be written
    #[arg(long)]
    pub allow_file_writes: bool,

    /// Bytes that one request may write
    #[arg(long, default_value_t = 1 << 30, value_name = "BYTES")]
    pub max_write_bytes: u64,
}

impl Default for FileLimits {
    fn default() -> Self {
        Self {
            file_threads: 16,
            file_timeout: Duration::from_secs(10),
            max_read_bytes: 64 << 30,
            max_walk_entries: 1_000_000,
            max_walk_depth: 128,
            allow_file_writes: false,
            max_write_bytes: 1 << 30,
        }
    }
}

/// Where to serve gRPC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// On a loopback address, without TLS.
    Loopback(SocketAddr),
    /// On any address, with TLS.
    Tls(SocketAddr),
    /// On a unix socket.
    Unix(PathBuf),
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix://") {
            return match path {
                path if path.starts_with('/') => Ok(Self::Unix(path.into())),
                _ => Err(format!(
                    "{text:?} has no absolute path: write unix:///run/podsonde/agent.sock"
                )),
            };
        }
        let (tls, rest) = text.strip_prefix("tls://").map_or((false, text), |rest| (true, rest));
        let address: SocketAddr = rest.parse().map_err(|_| {
            format!("{text:?} is none of ADDRESS:PORT, such as 127.0.0.1:{PORT} or [::]:{PORT}, tls://ADDRESS:PORT and unix:///PATH")
        })?;
        Ok(if tls || !address.ip().is_loopback() {
            Self::Tls(address)
        } else {
            Self::Loopback(address)
        })
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| format!("{text:?} is not a number from 1 on"))
}

/// A duration as Kubernetes writes it: `90s`, `1h30m`, `500ms`.
fn duration(text: &str) -> Result<Duration, String> {
    let parsed = text.parse::<jiff::SignedDuration>().ok().and_then(|d| Duration::try_from(d).ok());
    parsed.ok_or_else(|| format!("{text:?} is not a duration such as 90s, 15m or 1h30m"))
}

fn review_cache(text: &str) -> Result<Duration, String> {
    let given = duration(text)?;
    (given <= MAX_CACHE).then_some(given).ok_or_else(|| format!("{text} is more than 10s"))
}

fn day(text: &str) -> Result<Duration, String> {
    let given = duration(text)?;
    (given <= Duration::from_secs(24 * 3600))
        .then_some(given)
        .ok_or_else(|| format!("{text} is more than 24h"))
}

fn interval(text: &str) -> Result<Duration, String> {
    let given = duration(text)?;
    (given >= Duration::from_secs(1))
        .then_some(given)
        .ok_or_else(|| format!("{text} is less than 1s"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn flags_are_sound() {
        Config::command().debug_assert();
        let config = Config::try_parse_from(["podsonde-agent", "--node-name", "n"]).unwrap();
        let defaults = Limits::default();
        assert_eq!(config.limits.ttl(), defaults.ttl());
        assert_eq!(
            (
                config.limits.max_sessions,
                config.limits.max_requests,
                config.limits.max_requests_per_user
            ),
            (defaults.max_sessions, defaults.max_requests, defaults.max_requests_per_user)
        );
        assert_eq!(config.limits.files, FileLimits::default());
        assert_eq!(config.access.options(), access::AccessOptions::default());
        assert_eq!(config.access.audit_log, Sink::Stdout);
        assert_eq!(config.limits.transport, defaults.transport);
        assert_eq!(config.limits.captures, defaults.captures);
        assert_eq!(config.listen, [Listen::Loopback(([127, 0, 0, 1], PORT).into())]);
    }

    #[test]
    fn the_address_decides_whether_there_is_tls() {
        let listen = |text: &str| text.parse::<Listen>().unwrap();
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        for plain in ["127.0.0.1:1", "[::1]:7463", "127.9.9.9:2"] {
            assert_eq!(listen(plain), Listen::Loopback(address(plain)));
            assert_eq!(listen(&format!("tls://{plain}")), Listen::Tls(address(plain)));
        }
        for tls in ["0.0.0.0:1", "10.0.0.1:7463", "[::]:1", "[::ffff:127.0.0.1]:1"] {
            assert_eq!(listen(tls), Listen::Tls(address(tls)));
            assert_eq!(listen(&format!("tls://{tls}")), Listen::Tls(address(tls)));
        }
        assert_eq!(listen("unix:///run/x.sock"), Listen::Unix("/run/x.sock".into()));
        for bad in [
            "localhost:1",
            "unix://x",
            "unix://",
            "tls://",
            "tls://x:1",
            "tcp://127.0.0.1:1",
            "x",
            "",
        ] {
            assert!(bad.parse::<Listen>().is_err(), "{bad}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        for bad in ["", "5", "-1s", "x"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert!(
            review_cache("10s").is_ok()
                && review_cache("0s").is_ok()
                && review_cache("11s").is_err()
        );
        assert!(interval("1s").is_ok() && interval("999ms").is_err());
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
