//! The agent's gRPC sockets and the connections on them.
//!
//! - `socket`: binding: loopback in the clear, anything else on TCP with TLS, unix sockets;
//! - `table`: how many connections and requests there may be, in all and of one peer, and which
//!   give way;
//! - `connection`: HTTP/2 on one connection; `exchange`: its requests and its end;
//! - `upload`, `download`: the bodies of requests and answers, and [`budget`]: the memory for them;
//! - [`bulk`]: answers that are nearly all bytes.
//!
//! Most of this happens before anybody knows who calls, so everything has a limit in number, in
//! bytes and in time. Depends on [`super::tls`] and [`super::config`]. It knows nothing of what
//! requests are about: which of them are streams it is told.

pub mod budget;
pub mod bulk;
mod connection;
mod download;
mod exchange;
mod socket;
mod table;
mod upload;

use std::{collections::HashMap, io, sync::Arc, time::Duration};

use rustix::{
    net::sockopt::set_tcp_user_timeout,
    process::{Resource, getrlimit},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tonic::{service::Routes, transport::server::Connected};

use self::{
    budget::Budget,
    connection::Peering,
    socket::Accepted,
    table::{ConnectionSlot, Table},
};
pub use self::{
    exchange::{Vouched, Voucher},
    socket::Socket,
    upload::WINDOW,
};
use super::{
    config::TransportLimits,
    tls::{ALPN, Tls},
};

/// The pause after an accept that failed: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));
/// What every handshake gets before it may have to give way: many times what one takes.
const HANDSHAKE: Duration = Duration::from_millis(100);
/// How often it is looked for room meanwhile.
const STEP: Duration = Duration::from_millis(5);
/// Connections that have given way and not ended yet, at most.
const SPARE: usize = 8;
/// How long a client that was refused may take to read why.
const GOODBYE: Duration = Duration::from_secs(1);

/// The paths whose requests are streams of messages, with the bytes that each message may have.
/// Requests to all other paths have one message.
pub type Streams = HashMap<String, usize>;

/// Serves requests on sockets. Cheap to clone; clones share the limits.
#[derive(Clone)]
pub struct Server {
    routes: Routes,
    streams: Arc<Streams>,
    limits: Arc<TransportLimits>,
    table: Arc<Table>,
    budget: Arc<Budget>,
    tls: Arc<Tls>,
    drain: CancellationToken,
}

impl Server {
    /// A server that hands requests to `routes` until `drain`.
    pub fn new(
        routes: Routes,
        streams: Streams,
        mut limits: TransportLimits,
        tls: Arc<Tls>,
        drain: CancellationToken,
    ) -> Self {
        // The other half is for the agent's own work.
        if let Some(files) = getrlimit(Resource::Nofile).current {
            let quarter = usize::try_from(files / 4).unwrap_or(usize::MAX).max(1);
            for (limit, what) in [
                (&mut limits.max_connections, "connections"),
                (&mut limits.max_handshakes, "TLS handshakes"),
            ] {
                if quarter < *limit {
                    tracing::info!(
                        files,
                        "at most {quarter} {what}: a quarter of the files that may be open"
                    );
                    *limit = quarter;
                }
            }
        }
        let limits = Arc::new(limits);
        let table = Arc::new(Table::new(Arc::clone(&limits)));
        let budget = Arc::new(Budget::new(limits.max_message_bytes));
        Self { routes, streams: Arc::new(streams), table, budget, limits, tls, drain }
    }

    /// Serves the connections that come in on `socket`, until it drains and they have ended.
    pub async fn serve(self, socket: Socket) {
        // Ends the connections when it is dropped.
        let mut connections = JoinSet::new();
        let mut pause = PAUSES.0;
        let most = self
            .limits
            .max_connections
            .saturating_add(self.limits.max_handshakes)
            .saturating_add(SPARE);
        loop {
            // Those that gave way are about to end; until then they have a file.
            while connections.len() >= most {
                connections.join_next().await;
            }
            // In a burst the kernel's queue waits instead.
            if socket.is_tls()
                && let Some(wait) = self.table.handshake_wait(HANDSHAKE)
            {
                tokio::select! {
                    // One that is over makes room earlier.
                    () = tokio::time::sleep(wait.min(STEP)) => continue,
                    () = self.drain.cancelled() => break,
                }
            }
            let accepted = tokio::select! {
                accepted = socket.accept() => accepted,
                Some(_) = connections.join_next() => continue,
                () = self.drain.cancelled() => break,
            };
            match accepted {
                Ok((stream, peer)) => {
                    pause = PAUSES.0;
                    let place = self.table.admit(peer);
                    connections.spawn(self.clone().connection(stream, place));
                }
                Err(error) if is_of_one_connection(&error) => tracing::debug!(%error, "accept"),
                Err(error) => {
                    // Mostly that there are no files left. The connection waits in the kernel, so
                    // that without a pause this would spin. Once that was no help, a connection
                    // that does nothing gives its file.
                    let made_room = pause > PAUSES.0 && self.table.make_room();
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

    async fn connection(self, stream: Accepted, place: ConnectionSlot) {
        let evicted = place.evicted();
        let end = tokio::select! {
            end = self.converse(stream, place) => end,
            () = evicted.cancelled() => Err(io::Error::other("closed to make room for others")),
        };
        if let Err(error) = end {
            tracing::debug!(%error, "connection");
        }
    }

    async fn converse(self, stream: Accepted, place: ConnectionSlot) -> io::Result<()> {
        match stream {
            Accepted::Unix(stream) => {
                let peering = Peering::Unix(stream.connect_info());
                self.http(stream, peering, place).await
            }
            Accepted::Plain(stream) => {
                self.tune(&stream)?;
                let peering = Peering::Plain(stream.connect_info());
                self.http(stream, peering, place).await
            }
            Accepted::Tls(stream) => {
                self.tune(&stream)?;
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

    /// A client that takes nothing at all would also keep the connection from being closed in good
    /// order: the kernel ends it.
    fn tune(&self, stream: &TcpStream) -> io::Result<()> {
        let patience = u32::try_from(self.limits.stall_timeout.as_millis()).unwrap_or(u32::MAX);
        set_tcp_user_timeout(stream, patience)?;
        stream.set_nodelay(true)
    }

    async fn handshake(
        &self,
        stream: TcpStream,
    ) -> io::Result<tokio_rustls::server::TlsStream<TcpStream>> {
        let accepted = TlsAcceptor::from(self.tls.config()).accept(stream).into_fallible().await;
        let (error, mut stream) = match accepted {
            // rustls lets a client pass that names no protocol at all.
            Ok(stream) if stream.get_ref().1.alpn_protocol() == Some(ALPN) => return Ok(stream),
            Ok(mut stream) => {
                stream.shutdown().await?;
                let error = "the client does not offer HTTP/2 (ALPN h2)";
                (io::Error::new(io::ErrorKind::InvalidData, error), stream.into_inner().0)
            }
            Err(refused) => refused,
        };
        // The client is told why, in an alert. Closed with bytes of its own unread, the kernel
        // would drop that and reset.
        let goodbye = async {
            stream.shutdown().await?;
            let mut rest = [0; 4096];
            for _ in 0..16 {
                if stream.read(&mut rest).await? == 0 {
                    break;
                }
            }
            io::Result::Ok(())
        };
        // The reason is what counts, however the goodbye ends.
        let _ = tokio::time::timeout(GOODBYE, goodbye).await;
        Err(error)
    }
}

/// Whether an accept failed for a reason that belongs to the connection and not to the socket or
/// the process.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}
