//! The agent's gRPC sockets and the connections on them.
//!
//! - [`socket`]: binding: loopback in the clear, anything else on TCP with TLS, unix sockets;
//! - [`table`]: how many connections and requests there may be, in all and of one peer, and which give way;
//! - [`connection`]: HTTP/2 on one connection, its requests and its end.
//!
//! Whatever is done here is done for callers that nobody has asked who they are: everything has a bound, in number, in bytes
//! and in time. Depends on [`super::tls`] and [`super::config`]; knows nothing of what the requests are about.

mod connection;
mod socket;
mod table;

use std::{io, sync::Arc, time::Duration};

use rustix::process::{Resource, getrlimit};
use tokio::{io::AsyncWriteExt, net::TcpStream, task::JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tonic::{service::Routes, transport::server::Connected};

pub use self::socket::Socket;
use self::{
    connection::Peering,
    socket::Accepted,
    table::{Place, Table},
};
use super::{
    config::TransportLimits,
    tls::{ALPN, Tls},
};

/// The pause after an accept that failed: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

/// Serves requests on sockets. Cheap to clone; clones share the limits.
#[derive(Clone)]
pub struct Server {
    routes: Routes,
    limits: Arc<TransportLimits>,
    table: Arc<Table>,
    tls: Arc<Tls>,
    drain: CancellationToken,
}

impl Server {
    /// A server that hands requests to `routes` until `drain`.
    pub fn new(routes: Routes, mut limits: TransportLimits, tls: Arc<Tls>, drain: CancellationToken) -> Self {
        if let Some(files) = getrlimit(Resource::Nofile).current {
            let most = usize::try_from(files / 2).unwrap_or(usize::MAX).max(1);
            if most < limits.max_connections {
                tracing::info!(
                    files,
                    connections = most,
                    "connections are limited to half of the files that this process may open"
                );
                limits.max_connections = most;
            }
        }
        let limits = Arc::new(limits);
        Self { routes, table: Arc::new(Table::new(Arc::clone(&limits))), limits, tls, drain }
    }

    /// Serves the connections that come in on `socket`, until it drains and they have ended.
    pub async fn serve(self, socket: Socket) {
        // Ends the connections when it is dropped.
        let mut connections = JoinSet::new();
        let mut pause = PAUSES.0;
        loop {
            let accepted = tokio::select! {
                accepted = socket.accept() => accepted,
                Some(_) = connections.join_next() => continue,
                () = self.drain.cancelled() => break,
            };
            match accepted {
                Ok((stream, peer)) => {
                    pause = PAUSES.0;
                    // Over the limit, and none gives way: dropping it closes it.
                    if let Some(place) = self.table.admit(peer, stream.has_handshake()) {
                        connections.spawn(self.clone().connection(stream, place));
                    }
                }
                Err(error) if is_of_one_connection(&error) => tracing::debug!(%error, "accept"),
                Err(error) => {
                    // Mostly that there are no files left. The connection waits in the kernel, so that without a pause this
                    // would spin; one that does nothing gives its file.
                    let made_room = self.table.make_room();
                    tracing::warn!(%error, made_room, "cannot accept a connection");
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = self.drain.cancelled() => break,
                    }
                    pause = (pause * 2).min(PAUSES.1);
                }
            }
        }
        drop(socket);
        while connections.join_next().await.is_some() {}
    }

    async fn connection(self, stream: Accepted, place: Place) {
        let evicted = place.evicted();
        let end = tokio::select! {
            end = self.converse(stream, place) => end,
            () = evicted.cancelled() => Err(io::Error::other("closed to make room for others")),
        };
        if let Err(error) = end {
            tracing::debug!(%error, "connection");
        }
    }

    async fn converse(self, stream: Accepted, place: Place) -> io::Result<()> {
        match stream {
            Accepted::Unix(stream) => {
                let peering = Peering::Unix(stream.connect_info());
                self.http(stream, peering, place).await
            }
            Accepted::Plain(stream) => {
                stream.set_nodelay(true)?;
                let peering = Peering::Plain(stream.connect_info());
                self.http(stream, peering, place).await
            }
            Accepted::Tls(stream) => {
                stream.set_nodelay(true)?;
                let stream = tokio::select! {
                    handshake = tokio::time::timeout(self.limits.handshake_timeout, self.handshake(stream)) => {
                        handshake.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??
                    }
                    () = self.drain.cancelled() => return Ok(()),
                };
                let peering = Peering::Tls(stream.connect_info());
                self.http(stream, peering, place).await
            }
        }
    }

    async fn handshake(&self, stream: TcpStream) -> io::Result<tokio_rustls::server::TlsStream<TcpStream>> {
        let mut stream = TlsAcceptor::from(self.tls.config()).accept(stream).await?;
        // rustls lets a client pass that names no protocol at all.
        if stream.get_ref().1.alpn_protocol() != Some(ALPN) {
            stream.shutdown().await?;
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the client does not offer HTTP/2 (ALPN h2)",
            ));
        }
        Ok(stream)
    }
}

/// Whether an accept failed for a reason that belongs to the connection and not to the socket or the process.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}
