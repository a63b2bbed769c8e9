//! HTTP/2 on one connection: what a request may take, and when the connection ends.

use std::{
    collections::HashMap,
    convert::Infallible,
    io,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Instant,
};

use hyper::{
    Request, Response,
    body::{Body as HttpBody, Buf, Bytes, Frame, Incoming, SizeHint},
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Notify,
    time::{Sleep, sleep, sleep_until},
};
use tonic::{
    Status,
    body::Body,
    transport::server::{TcpConnectInfo, TlsConnectInfo, UdsConnectInfo},
};
use tower::ServiceExt;

use super::{
    Server, bulk,
    table::{ConnectionSlot, Share},
};
use crate::agent::config::TransportLimits;

/// What a connection may send ahead of being read, in bytes, and one request.
const WINDOWS: (u32, u32) = (512 * 1024, 256 * 1024);
/// The most that is kept of an answer which the client does not take, in bytes.
const SEND_BUFFER: usize = 64 * 1024;
/// The largest frame that is taken, in bytes; the smallest limit that HTTP/2 allows.
const FRAME: u32 = 16 * 1024;
/// Memory for what headers have in common, in bytes.
const HEADER_TABLE: u32 = 4096;

/// Who is at the other end, for the services: in the extensions of every request.
#[derive(Clone)]
pub(super) enum Peering {
    /// Of a unix socket.
    Unix(UdsConnectInfo),
    /// Of TCP without TLS.
    Plain(TcpConnectInfo),
    /// Of TCP with TLS; holds the client's certificates, if it showed any. They were verified.
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
        place: ConnectionSlot,
    ) -> io::Result<()> {
        let limits = &self.limits;
        if place.establish().is_err() {
            return Err(io::Error::other("there are enough connections, all at work"));
        }
        let has_certificate = matches!(&peering, Peering::Tls(peer) if peer.peer_certs().is_some());
        let activity = Arc::new(Activity::new(place, Arc::clone(limits)));
        let service = service_fn({
            let (activity, routes) = (Arc::clone(&activity), self.routes.clone());
            let streams = Arc::clone(&self.streams);
            move |mut request: Request<Incoming>| {
                peering.describe(&mut request);
                let streams = streams.contains_key(request.uri().path());
                answer(Arc::clone(&activity), routes.clone(), request, streams)
            }
        });
        let (window, stream_window) = WINDOWS;
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_connection_window_size(window)
            .initial_stream_window_size(stream_window)
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
        // A certificate is looked at when a connection begins: where it must be looked at anew, that takes another connection.
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

async fn answer(
    activity: Arc<Activity>,
    routes: tonic::service::Routes,
    mut request: Request<Incoming>,
    streams: bool,
) -> Result<Response<Download>, Infallible> {
    let Some(exchange) = Activity::begin(&activity) else {
        // Also when it is the transport that says no, the client is to read a gRPC status.
        let refusal = Status::resource_exhausted("the agent has too many open requests");
        return Ok(refusal
            .into_http()
            .map(|()| Download { body: Content::Tonic(Body::empty()), exchange: None }));
    };
    let exchange = Arc::new(exchange);
    request.extensions_mut().insert(Voucher(Arc::downgrade(&exchange)));
    let deadline = Box::pin(sleep(activity.limits.request_timeout));
    let request = request.map(|body| {
        Body::new(Upload {
            body,
            exchange: Arc::clone(&exchange),
            bytes: 0,
            deadline,
            streams,
            ended: false,
        })
    });
    let mut response = routes.oneshot(request).await?;
    // A client without room for a first byte is never asked about.
    exchange.waits(Some(Instant::now()));
    let bulk = response.extensions_mut().remove::<bulk::Messages>();
    Ok(response.map(|body| {
        let body =
            bulk.map_or(Content::Tonic(body), |messages| Content::Bulk(messages.into_body()));
        Download { body, exchange: Some(exchange) }
    }))
}

/// In the extensions of every request: how its handler says that the caller may make it.
#[derive(Clone)]
pub struct Voucher(Weak<Exchange>);

impl Voucher {
    /// The caller was asked who they are, and may do it: the request's connection does not give way to others until what is
    /// returned is dropped.
    #[must_use]
    pub fn vouch(&self) -> Vouched {
        if let Some(exchange) = self.0.upgrade() {
            exchange.share().vouch();
        }
        Vouched(self.0.clone())
    }
}

/// That an authorised request is at work.
#[derive(Debug)]
pub struct Vouched(Weak<Exchange>);

impl Drop for Vouched {
    fn drop(&mut self) {
        if let Some(exchange) = self.0.upgrade() {
            exchange.share().unvouch();
        }
    }
}

/// What goes on on a connection.
struct Activity {
    place: ConnectionSlot,
    limits: Arc<TransportLimits>,
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    next: u64,
    /// Every exchange that is not over, with the moment since which the client has taken nothing of its answer.
    exchanges: HashMap<u64, Option<Instant>>,
    idle_since: Instant,
    abandoned: usize,
}

/// Why a connection is to end.
enum Expired {
    /// It had no requests.
    Idle,
    /// Its client does not take what it asked for.
    Stalled,
    /// Its client asks and goes away, time after time.
    Abandoned,
    /// Asked to end, it has no requests and stays.
    Lingering,
}

impl Activity {
    fn new(place: ConnectionSlot, limits: Arc<TransportLimits>) -> Self {
        let state =
            State { next: 0, exchanges: HashMap::new(), idle_since: Instant::now(), abandoned: 0 };
        Self { place, limits, state: Mutex::new(state), changed: Notify::new() }
    }

    fn begin(self: &Arc<Self>) -> Option<Exchange> {
        let share = self.place.request().ok()?;
        let mut state = self.state();
        let id = state.next;
        state.next = state.next.wrapping_add(1);
        state.exchanges.insert(id, None);
        let first = state.exchanges.len() == 1;
        drop(state);
        if first {
            // From waiting for requests to watching over them.
            self.changed.notify_waiters();
        }
        let share = Mutex::new(share);
        Some(Exchange { activity: Arc::clone(self), id, share, complete: AtomicBool::new(false) })
    }

    /// Waits until the connection is to end. `leaving`: it was asked to already.
    async fn expired(&self, leaving: bool) -> Expired {
        loop {
            // Taken before the look, so that what changes meanwhile is noticed.
            let changed = self.changed.notified();
            let (at, why) = {
                let state = self.state();
                if state.abandoned > self.limits.max_abandoned_requests {
                    return Expired::Abandoned;
                }
                match state.exchanges.values().flatten().min() {
                    Some(since) => (*since + self.limits.stall_timeout, Expired::Stalled),
                    None if !state.exchanges.is_empty() => {
                        // An answer that is ready from now on may stall.
                        (Instant::now() + self.limits.stall_timeout, Expired::Stalled)
                    }
                    // The client may take as long over its goodbye as over its handshake.
                    None if leaving => {
                        (state.idle_since + self.limits.handshake_timeout, Expired::Lingering)
                    }
                    None => (state.idle_since + self.limits.idle_timeout, Expired::Idle),
                }
            };
            tokio::select! {
                () = sleep_until(at.into()) => {}
                () = changed => continue,
            }
            // What was waited for may have gone on meanwhile.
            let state = self.state();
            let holds = match why {
                Expired::Stalled => state
                    .exchanges
                    .values()
                    .flatten()
                    .min()
                    .is_some_and(|since| since.elapsed() >= self.limits.stall_timeout),
                _ => state.exchanges.is_empty() && Instant::now() >= at,
            };
            if holds {
                return why;
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request and its answer. Over when both bodies are dropped.
struct Exchange {
    activity: Arc<Activity>,
    id: u64,
    share: Mutex<Share>,
    /// Whether the client got its whole answer.
    complete: AtomicBool,
}

impl Exchange {
    /// The client has, or has not, been handed something that it is yet to take.
    fn waits(&self, since: Option<Instant>) {
        self.activity.state().exchanges.insert(self.id, since);
    }

    fn share(&self) -> MutexGuard<'_, Share> {
        self.share.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let mut state = self.activity.state();
        state.exchanges.remove(&self.id);
        if self.complete.load(Ordering::Relaxed) {
            state.abandoned = state.abandoned.saturating_sub(1);
        } else {
            state.abandoned += 1;
        }
        if state.exchanges.is_empty() {
            state.idle_since = Instant::now();
        }
        let tell = state.exchanges.is_empty()
            || state.abandoned > self.activity.limits.max_abandoned_requests;
        drop(state);
        if tell {
            self.activity.changed.notify_waiters();
        }
    }
}

/// A request's body: limited in bytes, and in the time until it has all arrived.
///
/// Those of a method that takes a stream of messages are its own to limit: of them only the next one has to arrive in time, and no more is
/// held than the window lets through.
struct Upload {
    body: Incoming,
    exchange: Arc<Exchange>,
    bytes: usize,
    deadline: Pin<Box<Sleep>>,
    streams: bool,
    ended: bool,
}

impl HttpBody for Upload {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) else {
            ready!(this.deadline.as_mut().poll(context));
            let late = "the request did not arrive in time";
            return Poll::Ready(
                (!std::mem::replace(&mut this.ended, true))
                    .then(|| Err(Status::deadline_exceeded(late))),
            );
        };
        Poll::Ready(match frame {
            None => {
                this.ended = true;
                None
            }
            Some(Err(error)) => Some(Err(Status::from_error(Box::new(error)))),
            Some(Ok(frame)) if this.streams => {
                let next = Instant::now() + this.exchange.activity.limits.request_timeout;
                this.deadline.as_mut().reset(next.into());
                Some(Ok(frame))
            }
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                this.bytes = this.bytes.saturating_add(bytes);
                // The five bytes are gRPC's own, ahead of each message.
                let too_long =
                    this.bytes > this.exchange.activity.limits.max_request_bytes.saturating_add(5);
                if too_long {
                    Some(Err(Status::resource_exhausted("the request is too long")))
                } else if this.exchange.share().grow(bytes).is_err() {
                    Some(Err(Status::resource_exhausted(
                        "the agent holds too many bytes of open requests",
                    )))
                } else {
                    Some(Ok(frame))
                }
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What an answer's body is made of.
enum Content {
    Tonic(Body),
    Bulk(bulk::Body),
}

/// An answer's body, which notices whether it is taken: HTTP/2 asks for the next part only when the client has room for it.
struct Download {
    body: Content,
    /// None: it was refused one.
    exchange: Option<Arc<Exchange>>,
}

impl HttpBody for Download {
    type Data = bulk::Data;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<bulk::Data>, Status>>> {
        let this = &mut *self;
        let polled = match &mut this.body {
            Content::Bulk(body) => body.poll_frame(context).map(|frame| frame.map(Ok)),
            Content::Tonic(body) => Pin::new(body)
                .poll_frame(context)
                .map_ok(|frame| frame.map_data(|data| data.chain(Bytes::new()))),
        };
        let Some(exchange) = &this.exchange else { return polled };
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if frame.is_trailers() {
                    exchange.complete.store(true, Ordering::Relaxed);
                }
                exchange.waits(Some(Instant::now()));
            }
            Poll::Ready(None) => exchange.complete.store(true, Ordering::Relaxed),
            Poll::Ready(Some(Err(_))) => {}
            Poll::Pending => exchange.waits(None),
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        let Content::Tonic(body) = &self.body else { return false };
        let ends = body.is_end_stream();
        if ends && let Some(exchange) = &self.exchange {
            // A status without a message has no body.
            exchange.complete.store(true, Ordering::Relaxed);
        }
        ends
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            Content::Tonic(body) => body.size_hint(),
            Content::Bulk(_) => SizeHint::default(),
        }
    }
}
