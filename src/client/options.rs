//! Options for connections to agents.

use std::time::Duration;

use super::{
    credentials::Credentials,
    tls::{ClientIdentity, Trust},
};

/// Options for connections to agents.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// How long to wait for one answer, or for the whole of a stream of answers. `None` means for
    /// ever. Default: 1 min.
    pub request_timeout: Option<Duration>,
    /// How long connecting may take, including TLS and port-forward. Default: 15 s.
    pub connect_timeout: Duration,
    /// How many agents are asked at the same time, at least 1. Default: 32.
    pub concurrency: usize,
    /// The credentials that agents authenticate the caller with. Default: none.
    pub credentials: Credentials,
    /// The client certificate that the client presents to agents. Default: none.
    pub identity: Option<ClientIdentity>,
    /// Which certificate to accept from an agent that is reached at an endpoint. `None` means one
    /// that the system's authorities have signed.
    pub trust: Option<Trust>,
    /// Connects to the addresses that agents publish, and falls back to the API server. Default:
    /// only through the API server.
    pub direct: bool,
    /// What connections are for, which sets their windows. Default: calls.
    pub traffic: Traffic,
    /// Also connects to agents of the cluster that publish no certificate: without TLS, through the
    /// API server. Default: no.
    pub insecure: bool,
}

/// What a connection is for. This decides how many bytes may be in flight on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// Requests with small answers.
    Calls,
    /// A stream that can fill the network, on a connection of its own. The number is how many such
    /// streams run at the same time.
    Bulk(usize),
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            request_timeout: Some(Duration::from_secs(60)),
            connect_timeout: Duration::from_secs(15),
            concurrency: 32,
            credentials: Credentials::default(),
            identity: None,
            trust: None,
            direct: false,
            traffic: Traffic::Calls,
            insecure: false,
        }
    }
}
