//! Listening sockets and their connections.

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

/// Connections that are served at a time; more wait to be accepted.
const CONNECTIONS: usize = 1024;
/// The backlog of `listen`: connections that the kernel queues.
const BACKLOG: u32 = 128;
/// The time limit of a TLS handshake, and of a request's head.
const PATIENCE: Duration = Duration::from_secs(30);

/// A listening address that can be closed and opened again.
pub(crate) struct Listener {
    address: SocketAddr,
    /// Bound but not listening: the port stays this listener's while it is closed, and the kernel
    /// refuses connections.
    _reserve: TcpSocket,
    server: Arc<Server>,
    tls: Option<TlsAcceptor>,
    /// The tasks that accept and serve; none while the listener is closed.
    open: Option<Tasks>,
}

impl Listener {
    /// Binds the address. Port 0 takes a free port.
    pub(crate) fn bind(address: SocketAddr, server: Arc<Server>) -> io::Result<Self> {
        let reserve = bind(address)?;
        let address = reserve.local_addr()?;
        Ok(Self { address, _reserve: reserve, server, tls: None, open: None })
    }

    /// Makes the next [`Self::open`] speak TLS.
    pub(crate) fn set_tls(&mut self, acceptor: TlsAcceptor) {
        self.tls = Some(acceptor);
    }

    /// The bound address, with the port that was chosen for 0.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts to listen; an open listener stays as it is.
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

    /// Closes all connections and refuses new ones.
    pub(crate) async fn close(&mut self) {
        if let Some(tasks) = self.open.take() {
            tasks.end().await;
        }
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // The reserved socket and the listening one share the port.
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
                // A watch sends small events one by one, which Nagle's algorithm would delay.
                // Without the option it is only slower.
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
