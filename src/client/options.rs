//! How to talk to agents.

use std::time::Duration;

use super::{
    credentials::Credentials,
    tls::{ClientIdentity, Trust},
};

/// How to talk to agents.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// How long to wait for one answer; of streams, for the whole of it. `None`: for ever. Default:
    /// 1 min.
    pub request_timeout: Option<Duration>,
    /// How long connecting may take, TLS and port-forward included. Default: 15 s.
    pub connect_timeout: Duration,
    /// How many agents are asked at the same time. At least 1. Default: 32.
    pub concurrency: usize,
    /// Who asks.
    pub credentials: Credentials,
    /// The client certificate that is shown to agents. Default: none.
    pub identity: Option<ClientIdentity>,
    /// Which certificate is believed of an agent that is asked at an endpoint. `None`: what the
    /// system's authorities signed.
    pub trust: Option<Trust>,
    /// Connect to the addresses that agents publish; where that fails, through the API server.
    /// Default: only the latter.
    pub direct: bool,
    /// What connections are for. Default: calls.
    pub traffic: Traffic,
    /// Talk also to agents of the cluster that publish no certificate: without TLS, through the API
    /// server. Default: no.
    pub insecure: bool,
}

/// What a connection is for, which decides how much may be under way on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// Questions and their answers.
    Calls,
    /// A stream that is as fast as the network is, on a connection of its own; one of so many at
    /// the same time.
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
