//! HTTP/2 on one connection: its settings, its requests, and when it ends.

use std::{convert::Infallible, io, pin::pin, sync::Arc, time::Instant};

use hyper::{Request, Response, body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::{
    Status,
    body::Body,
    transport::server::{TcpConnectInfo, TlsConnectInfo, UdsConnectInfo},
};
use tower::ServiceExt;

use super::{
    Server, bulk,
    download::Download,
    exchange::{Activity, Expired, Voucher},
    table::ConnectionSlot,
    upload::{self, Upload},
};

/// Bytes that all requests of a connection may send ahead of being read.
const WINDOW: u32 = 256 * 1024;
/// Bytes of an answer that are kept for a client that does not take them, beyond the part that is
/// being sent.
const SEND_BUFFER: usize = 64 * 1024;
/// Bytes of the largest frame that is taken: the smallest limit that HTTP/2 allows.
const FRAME: u32 = 16 * 1024;
/// Bytes for headers that a client sends again and again: the default of HTTP/2.
const HEADER_TABLE: u32 = 4096;

/// The other end of a connection. Services find it in the extensions of every request.
#[derive(Clone)]
pub(super) enum Peering {
    /// A unix socket, with the user at the other end.
    Unix(UdsConnectInfo),
    /// TCP without TLS, with both addresses.
    Plain(TcpConnectInfo),
    /// TCP with TLS, with the client's verified certificates, if it showed any.
    Tls(TlsConnectInfo<TcpConnectInfo>),
}

impl Peering {
    fn describe<B>(&self, request: &mut Request<B>) {
        let extensions = request.extensions_mut();
        match self {
            Self::Unix(peer) => {
                extensions.insert(peer.clone());
            }
            Self::Plain(peer) => {
                extensions.insert(peer.clone());
            }
            Self::Tls(peer) => {
                extensions.insert(peer.get_ref().clone());
                extensions.insert(peer.clone());
            }
        }
    }
}

impl Server {
    /// Serves requests until either side ends the connection.
    pub(super) async fn http(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        peering: Peering,
        slot: ConnectionSlot,
    ) -> io::Result<()> {
        let limits = &self.limits;
        if slot.establish().is_err() {
            return Err(io::Error::other("there are enough connections, all at work"));
        }
        let has_certificate = matches!(&peering, Peering::Tls(peer) if peer.peer_certs().is_some());
        let activity = Arc::new(Activity::new(slot, Arc::clone(limits), Arc::clone(&self.budget)));
        let service = service_fn({
            let (activity, routes) = (Arc::clone(&activity), self.routes.clone());
            let streams = Arc::clone(&self.streams);
            move |mut request: Request<Incoming>| {
                peering.describe(&mut request);
                let most = streams.get(request.uri().path()).copied();
                answer(Arc::clone(&activity), routes.clone(), request, most)
            }
        });
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_connection_window_size(WINDOW)
            .initial_stream_window_size(upload::WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .max_frame_size(FRAME)
            .header_table_size(HEADER_TABLE)
            .max_header_list_size(limits.max_header_bytes)
            .max_concurrent_streams(limits.max_streams)
            .max_pending_accept_reset_streams(limits.max_pending_resets)
            .max_local_error_reset_streams(limits.max_faulty_requests)
            .keep_alive_interval(limits.keepalive)
            .keep_alive_timeout(limits.keepalive)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
        let mut leaving = false;
        // A client's certificate is verified when its connection begins. When the authorities change,
        // the client must connect again.
        let mut believed = self.tls.believed();
        let outdated = async {
            match has_certificate && believed.changed().await.is_ok() {
                true => (),
                false => std::future::pending().await,
            }
        };
        let mut outdated = pin!(outdated);
        loop {
            tokio::select! {
                end = connection.as_mut() => return end.map_err(io::Error::other),
                () = self.drain.cancelled(), if !leaving => leaving = true,
                () = outdated.as_mut(), if !leaving => leaving = true,
                why = activity.expired(leaving) => match why {
                    Expired::Idle => leaving = true,
                    Expired::Stalled => return Err(io::Error::other("the client does not take its answers")),
                    Expired::Abandoned => return Err(io::Error::other("the client took back too many requests")),
                    Expired::Lingering => return Err(io::Error::other("the client does not end the connection")),
                },
            }
            if leaving {
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Answers one request. `most`: its client streams messages, of which each may have that many
/// bytes.
async fn answer(
    activity: Arc<Activity>,
    routes: tonic::service::Routes,
    mut request: Request<Incoming>,
    most: Option<usize>,
) -> Result<Response<Download>, Infallible> {
    // The client reads a gRPC status also if the transport refuses it.
    let refuse = |status: Status| Ok(status.into_http().map(|()| Download::empty()));
    let Some(exchange) = Activity::begin(&activity) else {
        return refuse(Status::resource_exhausted("the agent has too many open requests"));
    };
    let exchange = Arc::new(exchange);
    request.extensions_mut().insert(Voucher(Arc::downgrade(&exchange)));
    let (parts, body) = request.into_parts();
    let body = match Upload::new(body, Arc::clone(&exchange), most) {
        Ok(body) => Body::new(body),
        Err(status) => return refuse(status),
    };
    let mut response = routes.oneshot(Request::from_parts(parts, body)).await?;
    // The stall timeout runs from now on: HTTP/2 does not ask for the body of a client without room
    // for a first byte.
    exchange.waits(Some(Instant::now()));
    let bulk = response.extensions_mut().remove::<bulk::Messages>();
    Ok(response.map(|body| Download::new(body, bulk, exchange)))
}
