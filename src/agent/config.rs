//! The agent's flags.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use clap::{Args, Parser};

pub use super::limits::{CONNECTION_BYTES, CaptureLimits, FileLimits, Limits, TransportLimits};
use super::{
    access::{self, AUDIENCE, MAX_CACHE},
    audit::Sink,
    limits::duration,
};
pub use crate::kube::agents::AGENT_PORT;
use crate::{kube::agents::AGENT_NAMESPACE, telemetry::LogFormat};

/// podsonde-agent: serves debug requests for the pods of its node.
#[derive(Debug, Clone, Parser)]
#[command(name = "podsonde-agent", version, about, long_about = None)]
pub struct Config {
    /// Name of the node in Kubernetes; the downward API has it as spec.nodeName
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub node_name: String,

    /// Address to serve gRPC on: ADDRESS:PORT, tls://ADDRESS:PORT or unix:///PATH; repeatable. A
    /// loopback ADDRESS:PORT is served without TLS
    #[arg(long, value_name = "ADDRESS", default_values_t = [Listen::default()])]
    pub listen: Vec<Listen>,

    /// Address to serve /healthz, /readyz and /metrics on; they are not served by default
    #[arg(long, value_name = "ADDRESS")]
    pub metrics_listen: Option<SocketAddr>,

    /// Address at which clients outside of the pod reach the agent, published in its Lease; the
    /// downward API has it as status.podIP
    #[arg(long, env = "POD_IP", value_name = "IP")]
    pub advertise: Option<IpAddr>,

    /// Namespace of the agent's Lease; the downward API has it as metadata.namespace
    #[arg(long, env = "POD_NAMESPACE", default_value = AGENT_NAMESPACE, value_name = "NAMESPACE")]
    pub namespace: String,

    /// UID of the agent's own pod; by the downward API, metadata.uid
    #[arg(long, env = "POD_UID", value_name = "UID")]
    pub pod_uid: Option<String>,

    /// File with a key of at least 32 bytes by which agents know their own sessions; by default each
    /// agent makes one at start
    #[arg(long, value_name = "FILE")]
    pub seal_key: Option<PathBuf>,

    /// Certificate to serve, a PEM file with its chain, reread when it changes; by default the
    /// agent makes one at start
    #[arg(long, requires = "tls_key", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,

    /// Private key of --tls-cert, a PEM file
    #[arg(long, requires = "tls_cert", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,

    /// Authorities of client certificates, a PEM file, reread when it changes; by default those
    /// that the cluster publishes
    #[arg(long, value_name = "FILE")]
    pub client_ca: Option<PathBuf>,

    /// Kubeconfig file; by default the pod's service account, then $KUBECONFIG and ~/.kube/config
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// Format of the log on stderr
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// What to log: a level, or tracing directives such as podsonde=debug
    #[arg(long, env = "PODSONDE_LOG", default_value = "info", value_name = "LEVEL")]
    pub log_level: String,

    /// Authentication and authorization of callers
    #[command(flatten)]
    pub access: AccessFlags,

    /// Limits
    #[command(flatten)]
    pub limits: Limits,

    /// What to do when the broker ends, which enters namespaces for the agent
    #[arg(long, value_enum, default_value_t = BrokerLoss::Degrade)]
    pub broker_loss: BrokerLoss,

    /// Pid of the process whose namespaces are the host's
    #[arg(long, default_value_t = 1, value_name = "PID")]
    pub host_pid: u32,
}

/// What to do when the broker ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum BrokerLoss {
    /// Go on without evidence from inside of namespaces, and say so
    Degrade,
    /// Shut down with an error, so that the kubelet starts the agent again
    Exit,
}

/// How callers are authenticated and authorised, and where that is recorded.
#[derive(Debug, Clone, Args)]
pub struct AccessFlags {
    /// Audience that callers' tokens must have; repeatable
    #[arg(long, value_name = "AUDIENCE", default_value = AUDIENCE)]
    pub token_audience: Vec<String>,

    /// Also accept tokens whose audience is the API server itself
    #[arg(long)]
    pub accept_api_server_audience: bool,

    /// Let everybody who reaches a loopback address do everything; for tests only
    #[arg(long)]
    pub insecure_loopback: bool,

    /// Time that the API server's answers on rights are cached for requests that only read, at most
    /// 10s
    #[arg(long, default_value = "10s", value_parser = review_cache, value_name = "DURATION")]
    pub review_cache: Duration,

    /// How often running requests are authorized again, at least 1s
    #[arg(long, default_value = "60s", value_parser = interval, value_name = "DURATION")]
    pub reauthorize_interval: Duration,

    /// File for the audit log, one JSON object per line; - is stdout
    #[arg(long, value_name = "FILE", default_value = "-")]
    pub audit_log: Sink,
}

impl AccessFlags {
    /// The same for [`access::Access`].
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

impl Default for Listen {
    fn default() -> Self {
        Self::Loopback((Ipv4Addr::LOCALHOST, AGENT_PORT).into())
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loopback(address) => write!(f, "{address}"),
            Self::Tls(address) => write!(f, "tls://{address}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
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
            format!("{text:?} is none of ADDRESS:PORT, such as 127.0.0.1:{AGENT_PORT} or [::]:{AGENT_PORT}, tls://ADDRESS:PORT and unix:///PATH")
        })?;
        Ok(if tls || !address.ip().is_loopback() {
            Self::Tls(address)
        } else {
            Self::Loopback(address)
        })
    }
}

fn review_cache(text: &str) -> Result<Duration, String> {
    let given = duration(text)?;
    (given <= MAX_CACHE).then_some(given).ok_or_else(|| format!("{text} is more than 10s"))
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
        assert_eq!(config.access.options(), access::AccessOptions::default());
        assert_eq!(config.access.audit_log, Sink::Stdout);
        let defaults = Limits::default();
        assert_eq!(config.limits.transport, defaults.transport);
        assert_eq!((defaults.max_requests, defaults.max_requests_per_user), (256, 32));
        assert_eq!(config.listen, [Listen::Loopback(([127, 0, 0, 1], 7463).into())]);
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
        for written in ["127.0.0.1:1", "tls://10.0.0.1:7463", "tls://[::]:1", "unix:///run/x.sock"]
        {
            assert_eq!(listen(written).to_string(), written);
        }
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
}
