//! Opens gRPC channels to agents: TLS, loopback, unix socket, or through the API server.

use std::{error::Error as StdError, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use kube::Client;
use tonic::transport::{ClientTlsConfig, Endpoint as Transport, Uri};
use tower::service_fn;

use super::{agent::Agent, credentials::Credentials, endpoint::Endpoint, error::Error};
use crate::kube::{
    agents::{AGENT_PORT, AgentPod},
    portforward::{self, FarEnd},
};

/// How to talk to agents.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long to wait for one answer; of streams, for the whole of it. `None`: for ever. Default: 1 min.
    pub request_timeout: Option<Duration>,
    /// How long connecting may take, TLS and port-forward included. Default: 15 s.
    pub connect_timeout: Duration,
    /// How many agents are asked at the same time. At least 1. Default: 32.
    pub concurrency: usize,
    /// Who asks.
    pub credentials: Credentials,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            request_timeout: Some(Duration::from_secs(60)),
            connect_timeout: Duration::from_secs(15),
            concurrency: 32,
            credentials: Credentials::default(),
        }
    }
}

/// 1 MiB.
const MIB: u32 = 1024 * 1024;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Traffic {
    /// Questions and their answers.
    Calls,
    /// A stream that is as fast as the network is, on a connection of its own; one of so many.
    Bulk(usize),
}

/// Connects to the agent at `endpoint`.
///
/// # Errors
/// `AGENT_UNREACHABLE`, saying why.
pub async fn connect(endpoint: &Endpoint, options: &Options) -> Result<Agent, Error> {
    connect_for(Traffic::Calls, endpoint, options).await
}

pub(super) async fn connect_for(
    traffic: Traffic,
    endpoint: &Endpoint,
    options: &Options,
) -> Result<Agent, Error> {
    let name = endpoint.to_string();
    let failed = |error: tonic::transport::Error| Error::from_connect(&error, &name);
    let channel = match endpoint {
        Endpoint::Https(uri) => {
            let tls = ClientTlsConfig::new().with_native_roots();
            transport(uri.clone(), options, traffic).tls_config(tls).map_err(failed)?.connect().await
        }
        Endpoint::Loopback(uri) => transport(uri.clone(), options, traffic).connect().await,
        Endpoint::Unix(path) => {
            let path = path.clone();
            let connector = service_fn(move |_: Uri| open_unix(path.clone()));
            transport(Uri::from_static("http://localhost"), options, traffic)
                .connect_with_connector(connector)
                .await
        }
    };
    Ok(Agent::new(name.clone(), channel.map_err(failed)?, options.clone()))
}

#[cfg(unix)]
async fn open_unix(path: std::path::PathBuf) -> std::io::Result<TokioIo<tokio::net::UnixStream>> {
    Ok(TokioIo::new(tokio::net::UnixStream::connect(path).await?))
}

#[cfg(not(unix))]
async fn open_unix(_: std::path::PathBuf) -> std::io::Result<TokioIo<tokio::io::DuplexStream>> {
    Err(std::io::Error::new(std::io::ErrorKind::Unsupported, "this system has no unix sockets for it"))
}

/// Connects to an agent through a port-forward of the API server.
///
/// # Errors
/// `PORT_FORWARD_FAILED`, `AGENT_UNREACHABLE` and the `API_…` reasons.
pub(super) async fn connect_pod(
    client: Client,
    pod: &AgentPod,
    options: &Options,
    traffic: Traffic,
) -> Result<Agent, Error> {
    let far_end = Arc::new(FarEnd::default());
    let (namespace, name, told) = (pod.namespace.clone(), pod.name.clone(), far_end.clone());
    let connector = service_fn(move |_: Uri| {
        let (client, namespace, name, told) = (client.clone(), namespace.clone(), name.clone(), told.clone());
        async move {
            let stream = portforward::open(client, &namespace, &name, AGENT_PORT, told).await;
            stream.map(TokioIo::new).map_err(|error| Box::new(error) as Box<dyn StdError + Send + Sync>)
        }
    });
    let transport = transport(Uri::from_static("http://localhost"), options, traffic);
    let channel = transport.connect_with_connector(connector).await.map_err(|error| {
        let to = format!("agent pod {}/{} on node {}", pod.namespace, pod.name, pod.node);
        Error::from_connect(&error, &to).through(&far_end, &pod.node).about("node", &pod.node)
    })?;
    Ok(Agent::new(pod.node.clone(), channel, options.clone()).forwarded(far_end))
}

fn transport(uri: Uri, options: &Options, traffic: Traffic) -> Transport {
    // What the receiver grants and the sender may fill decides the rate: a stream that has filled its window waits a round trip for each
    // window's worth. A verification of a full node is a few hundred kilobytes; a capture is what a link carries, and many of them
    // share what may be under way. h2's adaptive window stays off: it would begin with 64 KiB whatever stands here.
    let (stream, connection, frame) = match traffic {
        Traffic::Calls => (MIB, 4 * MIB, None),
        Traffic::Bulk(streams) => {
            let share = u32::try_from(128 / streams.max(1)).unwrap_or(1).clamp(1, 16) * MIB;
            (share, 2 * share, Some(256 * 1024))
        }
    };
    Transport::from(uri)
        .connect_timeout(options.connect_timeout)
        .initial_stream_window_size(stream)
        .initial_connection_window_size(connection)
        .max_frame_size(frame)
        .http2_keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10))
}
