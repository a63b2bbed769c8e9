//! Opens gRPC channels to agents: over TLS, loopback, a unix socket, or a port-forward.
//!
//! The client authenticates an agent of the cluster by the certificate in the agent's Lease, both
//! directly and through a port-forward. It refuses an agent that has no Lease: whoever can delete a
//! Lease could otherwise impersonate the agent. [`ConnectOptions::insecure`] lifts this for agents
//! that serve a unix socket or plain loopback.

use std::{
    error::Error as StdError,
    io,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use kube::Client;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tonic::transport::{Endpoint as Transport, Uri};
use tower::service_fn;

use super::{
    agent::Agent,
    endpoint::Endpoint,
    error::Error,
    options::{ConnectOptions, Traffic},
    reason::Reason,
    tls::{Secured, TlsIo, Trust},
};
use crate::domain::Reason as AgentReason;
use crate::kube::{
    agents::{AGENT_PORT, AgentPod},
    leases::{self, Published},
    portforward::{self, FarEnd},
};

/// Bytes in 1 MiB.
const MIB: u32 = 1024 * 1024;
/// How long a direct connection may take before the client falls back to the API server.
const DIRECT: Duration = Duration::from_secs(3);
/// How often the client reads the Lease again when an agent shows another certificate. The agent
/// may have just restarted and not yet updated its Lease.
const REREADS: usize = 4;
/// The pause between two reads of the Lease.
const PAUSE: Duration = Duration::from_millis(500);

/// Connects to the agent at `endpoint`. The connection timeout of `options` applies.
///
/// # Errors
/// `AGENT_UNREACHABLE`, `CERTIFICATE_MISMATCH`, `CERTIFICATE_UNTRUSTED` and
/// `CLIENT_CERTIFICATE_REFUSED`.
pub async fn connect(endpoint: &Endpoint, options: &ConnectOptions) -> Result<Agent, Error> {
    let name = endpoint.to_string();
    let failed = |error: tonic::transport::Error| Error::from_connect(&error, &name);
    let channel = match endpoint {
        Endpoint::Https(uri) => return connect_tls(uri, &name, options).await,
        Endpoint::Loopback(uri) => transport(uri.clone(), options).connect().await,
        Endpoint::Unix(path) => {
            let path = path.clone();
            let connector = service_fn(move |_: Uri| open_unix(path.clone()));
            transport(Uri::from_static("http://localhost"), options)
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
    Err(std::io::Error::new(
        std::io::ErrorKind::Unsupported,
        "this system has no unix sockets for it",
    ))
}

/// Reads the certificate that the agent at `address` (`ADDRESS:PORT`) has published in `namespace`.
/// Returns `None` if no agent has published this address.
///
/// # Errors
/// The `API_…` reasons.
pub async fn published_trust(
    client: &Client,
    namespace: &str,
    address: &str,
    options: &ConnectOptions,
) -> Result<Option<Trust>, Error> {
    let find = leases::of_address(client, namespace, address);
    let doing = format!("list leases in namespace {namespace}");
    match tokio::time::timeout(options.connect_timeout, find).await {
        Ok(found) => {
            let found = found.map_err(|error| Error::from_kube(&error, &doing))?;
            found.map(|(_, published)| Trust::pin(&published.certificate)).transpose()
        }
        Err(_) => Err(Error::new(
            Reason::Agent(AgentReason::ApiUnreachable),
            format!("cannot {doing}: no answer in time"),
        )),
    }
}

async fn connect_tls(uri: &Uri, name: &str, options: &ConnectOptions) -> Result<Agent, Error> {
    let (host, port) =
        (uri.host().unwrap_or_default().to_owned(), uri.port_u16().unwrap_or(AGENT_PORT));
    let trust = options.trust.clone().unwrap_or_else(Trust::system);
    let secured = Secured::new(&trust, options.identity.as_ref(), &host, name)?;
    let refusal = Arc::new(OnceLock::new());
    let told = Arc::clone(&refusal);
    let connector = service_fn(move |_: Uri| {
        let (secured, host, told) = (secured.clone(), host.clone(), Arc::clone(&told));
        async move {
            let host = host.trim_start_matches('[').trim_end_matches(']');
            let stream = TcpStream::connect((host, port)).await?;
            stream.set_nodelay(true)?;
            Ok::<_, Box<dyn StdError + Send + Sync>>(TokioIo::new(
                secured.handshake(stream, told).await?,
            ))
        }
    });
    let transport = transport(Uri::from_static("http://localhost"), options);
    let channel = transport.connect_with_connector(connector).await;
    let channel = channel.map_err(|error| Error::from_connect(&error, name))?;
    Ok(Agent::new(name.to_owned(), channel, options.clone()).secured(refusal))
}

/// Connects to the agent of a pod. With [`ConnectOptions::direct`] it tries the published address
/// first; otherwise, and if that fails, it uses a port-forward of the API server.
///
/// # Errors
/// `CERTIFICATE_MISMATCH`, `CLIENT_CERTIFICATE_REFUSED`, `AGENT_NOT_PUBLISHED`,
/// `PORT_FORWARD_FAILED`, `AGENT_UNREACHABLE` and the `API_…` reasons.
pub(super) async fn connect_pod(
    client: Client,
    pod: &AgentPod,
    options: &ConnectOptions,
) -> Result<Agent, Error> {
    let route = Route {
        client,
        pod: pod.clone(),
        options: options.clone(),
        published: Mutex::default(),
        far_end: Arc::default(),
        refusal: Arc::default(),
    };
    let published = route.lease().await?;
    let is_secured = match (published.is_some(), options.insecure) {
        (true, _) => true,
        (false, true) => false,
        (false, false) => {
            let message = format!(
                "the agent on node {} (pod {}/{}) has published no \
                 certificate that it could be known by",
                pod.node, pod.namespace, pod.name
            );
            return Err(Error::new(Reason::AgentNotPublished, message)
                .about("node", &pod.node)
                .about("agent_namespace", &pod.namespace));
        }
    };
    *route.published.lock().unwrap_or_else(PoisonError::into_inner) = published;
    let (far_end, refusal) = (Arc::clone(&route.far_end), Arc::clone(&route.refusal));
    let route = Arc::new(route);
    let transport = transport(Uri::from_static("http://localhost"), options);
    let channel = match is_secured {
        true => {
            let connector = service_fn(move |_: Uri| {
                let route = Arc::clone(&route);
                async move { route.secured().await.map(TokioIo::new) }
            });
            transport.connect_with_connector(connector).await
        }
        false => {
            let connector = service_fn(move |_: Uri| {
                let route = Arc::clone(&route);
                async move { route.forwarded(AGENT_PORT).await.map(TokioIo::new) }
            });
            transport.connect_with_connector(connector).await
        }
    };
    let channel = channel.map_err(|error| {
        let to = format!("agent pod {}/{} on node {}", pod.namespace, pod.name, pod.node);
        Error::from_connect(&error, &to).through(&far_end, &pod.node).about("node", &pod.node)
    })?;
    Ok(Agent::new(pod.node.clone(), channel, options.clone()).forwarded(far_end).secured(refusal))
}

/// Opens the connections to the agent of one pod, again after each loss.
struct Route {
    client: Client,
    pod: AgentPod,
    options: ConnectOptions,
    /// The Lease as it was last read. `None` only for an insecure connection.
    published: Mutex<Option<Published>>,
    far_end: Arc<FarEnd>,
    refusal: Arc<OnceLock<Error>>,
}

trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Duplex for S {}

impl Route {
    /// Reads what the agent publishes in its Lease now.
    async fn lease(&self) -> Result<Option<Published>, Error> {
        let AgentPod { node, namespace, .. } = &self.pod;
        let read = leases::of_node(&self.client, namespace, node);
        let read = tokio::time::timeout(self.options.connect_timeout, read).await;
        let doing = format!("get lease {namespace}/{}", leases::name(node));
        match read {
            Ok(found) => found.map_err(|error| {
                Error::from_kube(&error, &doing)
                    .about("node", node)
                    .about("agent_namespace", namespace)
            }),
            Err(_) => {
                let message =
                    format!("cannot {doing}: no answer within {:?}", self.options.connect_timeout);
                Err(Error::new(Reason::Agent(AgentReason::ApiUnreachable), message))
            }
        }
    }

    /// Opens a stream to the agent, and completes it only if the agent shows the certificate in its
    /// Lease.
    ///
    /// A restarted agent has a new certificate and may not have published it yet. On a mismatch the
    /// client therefore reads the Lease again, up to [`REREADS`] times with [`PAUSE`] between the
    /// reads.
    async fn secured(&self) -> Result<TlsIo<Box<dyn Duplex>>, Error> {
        let known = || self.published.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let missing = || Error::new(Reason::AgentNotPublished, "the agent's Lease is gone");
        let mut published = known().ok_or_else(missing)?;
        let mismatch = match self.attempt(&published).await {
            Err(error) if error.reason == Reason::CertificateMismatch => error,
            ended => return ended,
        };
        for _ in 0..REREADS {
            let now = self.lease().await?.ok_or_else(missing)?;
            if now.certificate != published.certificate {
                tracing::debug!(
                    node = self.pod.node,
                    "the agent has published another certificate"
                );
                published = now;
                let ended = self.attempt(&published).await;
                if ended.is_ok() {
                    *self.published.lock().unwrap_or_else(PoisonError::into_inner) =
                        Some(published);
                }
                return ended;
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err(mismatch)
    }

    async fn attempt(&self, published: &Published) -> Result<TlsIo<Box<dyn Duplex>>, Error> {
        let AgentPod { node, namespace, name, .. } = &self.pod;
        let to = format!("{namespace}/{name} on node {node}");
        let trust = Trust::pin(&published.certificate)?;
        let secured =
            Secured::new(&trust, self.options.identity.as_ref(), &leases::server_name(node), &to)?;
        let stream = self.open(published).await?;
        let ended = secured.handshake(stream, Arc::clone(&self.refusal)).await;
        ended.map_err(|error| error.about("node", node).about("agent_namespace", namespace))
    }

    async fn open(&self, published: &Published) -> Result<Box<dyn Duplex>, Error> {
        let address = published.address.as_deref();
        if let Some(address) = address.filter(|_| self.options.direct) {
            match direct(address).await {
                Ok(stream) => return Ok(Box::new(stream)),
                Err(error) => {
                    tracing::info!(
                        %error,
                        address,
                        "not reached directly, going through the API server"
                    );
                }
            }
        }
        let port = address
            .and_then(|address| address.rsplit_once(':')?.1.parse().ok())
            .unwrap_or(AGENT_PORT);
        let to =
            format!("agent pod {}/{} on node {}", self.pod.namespace, self.pod.name, self.pod.node);
        let forwarded = self.forwarded(port).await;
        forwarded
            .map(|stream| Box::new(stream) as _)
            .map_err(|error| Error::from_connect(&*error, &to))
    }

    async fn forwarded(
        &self,
        port: u16,
    ) -> Result<portforward::Forwarded, Box<dyn StdError + Send + Sync>> {
        let AgentPod { namespace, name, .. } = &self.pod;
        let far_end = Arc::clone(&self.far_end);
        Ok(portforward::open(self.client.clone(), namespace, name, port, far_end).await?)
    }
}

async fn direct(address: &str) -> io::Result<TcpStream> {
    let connect = TcpStream::connect(address);
    let stream =
        tokio::time::timeout(DIRECT, connect).await.map_err(|_| io::ErrorKind::TimedOut)??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn transport(uri: Uri, options: &ConnectOptions) -> Transport {
    // The flow-control window bounds the rate: a sender that has filled the window waits one round
    // trip for more. The verification of a full node takes a few hundred kilobytes. A capture can
    // fill a link, so captures get larger windows and share a fixed amount of memory. h2's adaptive
    // window stays off, because it would start at 64 KiB whatever is set here.
    let (stream, connection, frame) = match options.traffic {
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
