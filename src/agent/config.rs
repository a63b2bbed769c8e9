//! The agent's flags.

use std::{net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, Parser};

use super::{
    access::{self, AUDIENCE, MAX_CACHE},
    audit::Sink,
};
use crate::{domain::debug::DurationLimit, telemetry::LogFormat};

/// Port of the gRPC API, where clients look for it.
pub const PORT: u16 = 7463;

/// podsonde-agent: serves debug requests for the pods of its node.
#[derive(Debug, Clone, Parser)]
#[command(name = "podsonde-agent", version, about, long_about = None)]
pub struct Config {
    /// Name of the node, as Kubernetes has it; by the downward API, spec.nodeName
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub node_name: String,

    /// Address to serve gRPC on: a loopback ADDRESS:PORT or unix:///PATH; may be given several times
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7463")]
    pub listen: Vec<Listen>,

    /// Address to serve /healthz, /readyz and /metrics on; without it they are not served
    #[arg(long, value_name = "ADDRESS")]
    pub metrics_listen: Option<SocketAddr>,

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
    pub fn options(&self) -> access::Options {
        access::Options {
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

    /// How many requests are worked on at a time; more are refused
    #[arg(long, default_value_t = 256, value_name = "N")]
    pub max_requests: usize,

    /// How many of these may be one user's
    #[arg(long, default_value_t = 32, value_name = "N")]
    pub max_requests_per_user: usize,

    /// How long to let running requests end after SIGTERM
    #[arg(long, default_value = "10s", value_parser = duration, value_name = "DURATION")]
    pub drain_timeout: Duration,
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
            max_requests: 256,
            max_requests_per_user: 32,
            drain_timeout: Duration::from_secs(10),
        }
    }
}

/// Where to serve gRPC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// On a loopback address.
    Loopback(SocketAddr),
    /// On a unix socket.
    Unix(PathBuf),
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix://") {
            return match path {
                path if path.starts_with('/') => Ok(Self::Unix(path.into())),
                _ => Err(format!("{text:?} has no absolute path: write unix:///run/podsonde/agent.sock")),
            };
        }
        let address: SocketAddr = text.parse().map_err(|_| {
            format!(
                "{text:?} is neither ADDRESS:PORT, such as 127.0.0.1:{PORT} or [::1]:{PORT}, nor unix:///PATH"
            )
        })?;
        if !address.ip().is_loopback() {
            return Err(format!(
                "{address} is not a loopback address: callers have no identity yet, so the agent serves loopback and unix sockets only"
            ));
        }
        Ok(Self::Loopback(address))
    }
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

fn interval(text: &str) -> Result<Duration, String> {
    let given = duration(text)?;
    (given >= Duration::from_secs(1)).then_some(given).ok_or_else(|| format!("{text} is less than 1s"))
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
            (config.limits.max_sessions, config.limits.max_requests, config.limits.max_requests_per_user),
            (defaults.max_sessions, defaults.max_requests, defaults.max_requests_per_user)
        );
        assert_eq!(config.access.options(), access::Options::default());
        assert_eq!(config.access.audit_log, Sink::Stdout);
        assert_eq!(config.listen, [Listen::Loopback(([127, 0, 0, 1], PORT).into())]);
    }

    #[test]
    fn only_loopback_and_unix() {
        for good in ["127.0.0.1:1", "[::1]:7463", "unix:///run/x.sock"] {
            assert!(good.parse::<Listen>().is_ok(), "{good}");
        }
        for bad in ["0.0.0.0:1", "10.0.0.1:7463", "[::]:1", "localhost:1", "unix://x", "unix://", "x", ""] {
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
        assert!(review_cache("10s").is_ok() && review_cache("0s").is_ok() && review_cache("11s").is_err());
        assert!(interval("1s").is_ok() && interval("999ms").is_err());
    }
}
