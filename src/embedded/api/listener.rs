//! Listening sockets and the connections that come in on them.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{body::Body, http::Request};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpSocket},
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::{Server, Tasks};

/// Connections at once; further ones wait.
const CONNECTIONS: usize = 1024;
/// Connections that the kernel keeps waiting.
const BACKLOG: u32 = 128;
/// How long a TLS handshake and a request's head may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A listening address that can be closed and opened again.
pub(crate) struct Listener {
    address: SocketAddr,
    /// Bound, but not listening: keeps the port ours while it is closed, so that connections are refused.
    _reserve: TcpSocket,
    server: Arc<Server>,
    tls: Option<TlsAcceptor>,
    /// Accepts and serves while it is open.
    open: Option<Tasks>,
}

impl Listener {
    /// Takes the address. Port 0 takes a free one.
    pub(crate) fn bind(address: SocketAddr, server: Arc<Server>) -> io::Result<Self> {
        let reserve = bind(address)?;
        let address = reserve.local_addr()?;
        Ok(Self { address, _reserve: reserve, server, tls: None, open: None })
    }

    /// Speaks TLS from the next [`Self::open`] on.
    pub(crate) fn set_tls(&mut self, acceptor: TlsAcceptor) {
        self.tls = Some(acceptor);
    }

    /// The address, port included.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Listens, unless it does.
    pub(crate) fn open(&mut self) -> io::Result<()> {
        if self.open.is_some() {
            return Ok(());
        }
        let listener = bind(self.address)?.listen(BACKLOG)?;
        let tasks = self.server.tasks.child();
        tasks.spawn(accept(listener, self.tls.clone(), Arc::clone(&self.server), tasks.clone()));
        self.open = Some(tasks);
        Ok(())
    }

    /// Breaks all connections and refuses new ones.
    pub(crate) async fn close(&mut self) {
        if let Some(tasks) = self.open.take() {
            tasks.end().await;
        }
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Lets the reserve and the listener share the port.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    server: Arc<Server>,
    tasks: Tasks,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => {
                // A watch's events go out one by one. That it cannot be set is no reason to refuse.
                let _ = stream.set_nodelay(true);
                stream
            }
            Err(error) => {
                tracing::warn!(%error, "accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (tls, server) = (tls.clone(), Arc::clone(&server));
        tasks.spawn(async move {
            let _place = place;
            match tls {
                None => serve(stream, server).await,
                Some(tls) => match timeout(PATIENCE, tls.accept(stream)).await {
                    Ok(Ok(stream)) => serve(stream, server).await,
                    Ok(Err(error)) => tracing::debug!(%error, "TLS handshake"),
                    Err(_) => tracing::debug!("TLS handshake took too long"),
                },
            }
        });
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, server: Arc<Server>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let server = Arc::clone(&server);
        async move { Ok::<_, Infallible>(server.answer(request.map(Body::new)).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(%error, "connection");
    }
}
