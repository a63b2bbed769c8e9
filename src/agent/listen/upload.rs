//! The bodies of requests: limited in bytes, and in the time until they have arrived.
//!
//! Until the caller is authorised, every byte counts against `--max-buffered-bytes`, and all of the
//! request must arrive before one deadline, which no frame moves. tonic takes frames out of
//! HTTP/2's window into a buffer of its own until a message is whole, so the window alone bounds
//! nothing.
//!
//! The clients of some methods stream messages. Their first message says what they want, and nobody
//! reads on before the caller is authorised. What may lie in the window by then counts from the
//! start. After that each message is paid from the caller's part of the [budget](super::budget)
//! before a byte of it is handed on: a frame is cut at the end of a message, so that nobody waits
//! for the next one while holding the one before.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use futures::future::BoxFuture;
use hyper::body::{Body as HttpBody, Bytes, Frame, Incoming, SizeHint};
use tokio::time::{Sleep, sleep};
use tonic::Status;

use super::{budget::Held, exchange::Exchange};

/// Bytes that a request may send ahead of being read.
pub const WINDOW: u32 = 64 * 1024;
/// The bytes ahead of each message: whether it is compressed, and its length.
/// <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>
const PREFIX: usize = 5;
/// Bytes of an authorised message that must arrive in `--request-timeout`, so that slow clients
/// need not send a large message in that time.
const PROGRESS: usize = 64 * 1024;

/// A request's body.
pub(super) struct Upload {
    body: Incoming,
    exchange: Arc<Exchange>,
    /// Armed at the start, and for an authorised caller's message with each [`PROGRESS`].
    deadline: Pin<Box<Sleep>>,
    /// Bytes that were counted before the caller was authorised.
    bytes: usize,
    messages: Option<Messages>,
    failed: bool,
}

/// Where a stream of messages stands.
struct Messages {
    /// Bytes that each message may have.
    most: usize,
    /// What has arrived and is not handed on.
    arrived: Bytes,
    prefix: Vec<u8>,
    /// Bytes of the message that are still to come.
    left: usize,
    /// Whether the message that is to come next has a deadline of its own.
    armed: bool,
    /// Bytes that arrived since the deadline was armed.
    progress: usize,
    /// Where the bytes of the message come from.
    held: Option<Held>,
    asked: Option<BoxFuture<'static, Option<Held>>>,
}

impl Upload {
    /// The body of a request. `most`: its client streams messages, of which each may have that many
    /// bytes.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED if there is no room for what a stream may send ahead.
    pub(super) fn new(
        body: Incoming,
        exchange: Arc<Exchange>,
        most: Option<usize>,
    ) -> Result<Self, Status> {
        if most.is_some() && exchange.grow(WINDOW as usize).is_err() {
            return Err(too_many_bytes());
        }
        let deadline = Box::pin(sleep(exchange.activity.limits.request_timeout));
        let messages = most.map(|most| Messages {
            most,
            arrived: Bytes::new(),
            prefix: Vec::with_capacity(PREFIX),
            left: 0,
            armed: true,
            progress: 0,
            held: None,
            asked: None,
        });
        Ok(Self { body, exchange, deadline, bytes: 0, messages, failed: false })
    }

    fn rearm(&mut self) {
        let next = Instant::now() + self.exchange.activity.limits.request_timeout;
        self.deadline.as_mut().reset(next.into());
    }

    /// The next bytes of the body; None at its end.
    fn poll_bytes(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) else {
            ready!(self.deadline.as_mut().poll(context));
            return Poll::Ready(Some(Err(Status::deadline_exceeded(
                "the request did not arrive in time",
            ))));
        };
        Poll::Ready(frame.map(|frame| frame.map_err(|e| Status::from_error(Box::new(e)))))
    }

    /// Counts bytes of a caller who is not authorised.
    fn count(&mut self, bytes: usize) -> Result<(), Status> {
        self.bytes = self.bytes.saturating_add(bytes);
        let limit = self.exchange.activity.limits.max_request_bytes;
        if self.bytes > limit.saturating_add(PREFIX) {
            // The code that tonic has for a message that is too large.
            let message = format!("the request is too large; it may have {limit} bytes");
            return Err(Status::out_of_range(message));
        }
        self.exchange.grow(bytes).map_err(|_| too_many_bytes())
    }

    fn poll_message(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Poll::Ready(frame) = self.poll_bytes(context) else { return Poll::Pending };
        let counted = frame.map(|frame| {
            let frame = frame?;
            self.count(frame.data_ref().map_or(0, Bytes::len))?;
            Ok(frame)
        });
        Poll::Ready(counted)
    }

    /// The next part of a stream, never of two messages at once.
    fn poll_stream(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            let user = self.exchange.user();
            let Some(messages) = &mut self.messages else { return Poll::Ready(None) };
            if let Some(asked) = &mut messages.asked {
                messages.held = ready!(asked.as_mut().poll(context));
                messages.asked = None;
                self.rearm();
                continue;
            }
            if user.is_some() && !messages.armed {
                // Whoever asks for the next message is done with the one before.
                (messages.armed, messages.progress, messages.held) = (true, 0, None);
                self.rearm();
                continue;
            }
            if messages.prefix.len() == PREFIX {
                let prefix = Bytes::from(std::mem::take(&mut messages.prefix));
                if messages.left == 0 {
                    messages.armed = false;
                }
                return Poll::Ready(Some(Ok(Frame::data(prefix))));
            }
            if !messages.arrived.is_empty() && messages.left > 0 {
                let length = messages.left.min(messages.arrived.len());
                messages.left -= length;
                messages.armed = messages.left > 0;
                return Poll::Ready(Some(Ok(Frame::data(messages.arrived.split_to(length)))));
            }
            if !messages.arrived.is_empty() {
                let wanted = PREFIX.saturating_sub(messages.prefix.len());
                let part = messages.arrived.split_to(wanted.min(messages.arrived.len()));
                messages.prefix.extend_from_slice(&part);
                if let [_, length @ ..] = messages.prefix.as_slice()
                    && let Ok(length) = <[u8; 4]>::try_from(length)
                {
                    messages.left = u32::from_be_bytes(length) as usize;
                    if messages.left > messages.most {
                        return Poll::Ready(Some(Err(Status::resource_exhausted(format!(
                            "a message has {} bytes; at most {} are allowed",
                            messages.left, messages.most
                        )))));
                    }
                    messages.asked = user.map(|user| {
                        let asked: BoxFuture<'static, _> = Box::pin(user.take(messages.left));
                        asked
                    });
                }
                continue;
            }
            let frame = match ready!(self.poll_bytes(context)) {
                Some(Ok(frame)) => frame,
                other => return Poll::Ready(other),
            };
            let Ok(data) = frame.into_data() else { continue };
            match user {
                None => {
                    if let Err(status) = self.count(data.len()) {
                        return Poll::Ready(Some(Err(status)));
                    }
                }
                Some(_) => {
                    let Some(messages) = &mut self.messages else { return Poll::Ready(None) };
                    messages.progress += data.len();
                    if messages.progress >= PROGRESS {
                        messages.progress = 0;
                        self.rearm();
                    }
                }
            }
            if let Some(messages) = &mut self.messages {
                messages.arrived = data;
            }
        }
    }
}

fn too_many_bytes() -> Status {
    Status::resource_exhausted("the agent holds too many bytes of open requests")
}

impl HttpBody for Upload {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if this.failed {
            return Poll::Ready(None);
        }
        let polled = match &this.messages {
            None => this.poll_message(context),
            Some(_) => this.poll_stream(context),
        };
        this.failed = matches!(polled, Poll::Ready(Some(Err(_))));
        polled
    }

    fn is_end_stream(&self) -> bool {
        let handed_on = |messages: &Messages| {
            messages.arrived.is_empty() && messages.prefix.is_empty() && messages.left == 0
        };
        self.messages.as_ref().is_none_or(handed_on) && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
