//! The bodies of answers: whether the client takes them, and what they hold while it does not.
//!
//! HTTP/2 asks for the next part of a body only when the client has room for its first byte, and
//! keeps all of that part until the client has taken it. So a part is paid from the caller's part
//! of the [budget](super::budget), or from the peer's where nobody is asked who calls. Answers that
//! are nearly all bytes were paid for when these were made.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use futures::future::BoxFuture;
use hyper::body::{Body as HttpBody, Buf, Bytes, Frame, SizeHint};
use tonic::{Status, body::Body};

use super::{
    budget::{self, Held},
    bulk,
    exchange::Exchange,
};

/// An answer's body.
pub(super) struct Download {
    content: Content,
    /// None: the exchange was refused before it began.
    exchange: Option<Arc<Exchange>>,
    /// A part that is yet to be paid for.
    unpaid: Option<(Bytes, BoxFuture<'static, Option<Held>>)>,
}

/// What makes the body.
enum Content {
    Tonic(Body),
    Bulk(bulk::Body),
}

impl Download {
    /// The body of the answer to `exchange`; `bulk` replaces the one that tonic made.
    pub(super) fn new(body: Body, bulk: Option<bulk::Messages>, exchange: Arc<Exchange>) -> Self {
        let content = match bulk {
            None => Content::Tonic(body),
            Some(messages) => Content::Bulk(messages.into_body()),
        };
        Self { content, exchange: Some(exchange), unpaid: None }
    }

    /// No body: the status of a refusal stands in the headers.
    pub(super) fn empty() -> Self {
        Self { content: Content::Tonic(Body::empty()), exchange: None, unpaid: None }
    }

    fn poll(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<bulk::Data>, Status>>> {
        if self.unpaid.is_none() {
            let body = match &mut self.content {
                Content::Bulk(body) => {
                    return body.poll_frame(context).map(|frame| frame.map(Ok));
                }
                Content::Tonic(body) => body,
            };
            let frame = match ready!(Pin::new(body).poll_frame(context)) {
                Some(Ok(frame)) => frame,
                Some(Err(status)) => return Poll::Ready(Some(Err(status))),
                None => return Poll::Ready(None),
            };
            let data = match (frame.into_data(), &self.exchange) {
                (Ok(data), Some(exchange)) if !data.is_empty() => {
                    let paid = Box::pin(exchange.allowance().take(data.len()));
                    self.unpaid = Some((data, paid));
                    None
                }
                (Ok(data), _) => Some(Frame::data(data)),
                (Err(trailers), _) => Some(trailers),
            };
            if let Some(frame) = data {
                return Poll::Ready(Some(Ok(frame.map_data(|data| data.chain(Bytes::new())))));
            }
        }
        let Some((_, paid)) = &mut self.unpaid else { return Poll::Pending };
        let held = ready!(paid.as_mut().poll(context));
        let data = self.unpaid.take().map(|(data, _)| budget::keep(data, held)).unwrap_or_default();
        Poll::Ready(Some(Ok(Frame::data(data.chain(Bytes::new())))))
    }
}

impl HttpBody for Download {
    type Data = bulk::Data;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<bulk::Data>, Status>>> {
        let polled = self.poll(context);
        let Some(exchange) = &self.exchange else { return polled };
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if frame.is_trailers() {
                    exchange.complete();
                }
                exchange.waits(Some(Instant::now()));
            }
            Poll::Ready(None) => exchange.complete(),
            Poll::Ready(Some(Err(_))) => {}
            Poll::Pending => exchange.waits(None),
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        let Content::Tonic(body) = &self.content else { return false };
        let ends = self.unpaid.is_none() && body.is_end_stream();
        if ends && let Some(exchange) = &self.exchange {
            // A status without a message has no body.
            exchange.complete();
        }
        ends
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Tonic(body) if self.unpaid.is_none() => body.size_hint(),
            _ => SizeHint::default(),
        }
    }
}
