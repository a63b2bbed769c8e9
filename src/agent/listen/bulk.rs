//! Answers whose messages are nearly all bytes, sent without a copy of them.
//!
//! tonic encodes every message into a buffer of its own, and so copies what is in it. Here only
//! what stands before the bytes is encoded; they follow in the same HTTP/2 frame, from where they
//! are.

use std::{
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use futures::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};
use hyper::{
    HeaderMap,
    body::{Buf, Bytes, Frame},
};
use prost::{
    Message,
    bytes::{BufMut, buf::Chain},
    encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len},
};
use tonic::{Response, Status};

/// A message of which one field holds nearly all there is.
pub trait Bulk: Message {
    /// Number of that field, which is of the type `bytes`.
    const FIELD: u32;

    /// Takes the bytes out, if it is set.
    fn take(&mut self) -> Option<Bytes>;
}

/// A part of an answer's body: what was encoded, and bytes that follow.
pub(super) type Data = Chain<Bytes, Bytes>;

type Results<A> = BoxStream<'static, Result<A, Status>>;

/// A response with these messages, of which tonic sees none.
pub fn response<A: Bulk + 'static>(
    messages: impl Stream<Item = Result<A, Status>> + Send + 'static,
) -> Response<Results<A>> {
    let mut response: Response<Results<A>> = Response::new(Box::pin(stream::empty()));
    let encoded: Results<Data> = Box::pin(messages.map(|message| message.map(encode)));
    response.extensions_mut().insert(Messages(Arc::new(Mutex::new(Some(encoded)))));
    response
}

/// The messages of a response, among its extensions.
#[derive(Clone)]
pub(super) struct Messages(Arc<Mutex<Option<Results<Data>>>>);

impl Messages {
    /// The body with these messages instead of the one that tonic made.
    pub(super) fn into_body(self) -> Body {
        Body(self.0.lock().unwrap_or_else(PoisonError::into_inner).take())
    }
}

/// A body of gRPC messages, and the status in its trailers. None: it was all sent.
/// <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>
pub(super) struct Body(Option<Results<Data>>);

impl Body {
    pub(super) fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Frame<Data>>> {
        let Some(messages) = &mut self.0 else { return Poll::Ready(None) };
        let status = match ready!(messages.poll_next_unpin(context)) {
            Some(Ok(message)) => return Poll::Ready(Some(Frame::data(message))),
            Some(Err(status)) => status,
            None => Status::ok(""),
        };
        self.0 = None;
        let mut trailers = HeaderMap::new();
        if status.add_header(&mut trailers).is_err() {
            // Something in it cannot be a header. The code can.
            let _ = Status::new(status.code(), "").add_header(&mut trailers);
        }
        Poll::Ready(Some(Frame::trailers(trailers)))
    }
}

/// The message behind gRPC's prefix.
fn encode<A: Bulk>(mut message: A) -> Data {
    let bulk = message.take();
    let length = message.encoded_len()
        + bulk.as_ref().map_or(0, |bulk| {
            key_len(A::FIELD) + encoded_len_varint(bulk.len() as u64) + bulk.len()
        });
    let mut head = Vec::new();
    // Not compressed.
    head.put_u8(0);
    head.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // The order of fields is free, so the bytes may come last.
    message.encode_raw(&mut head);
    if let Some(bulk) = &bulk {
        encode_key(A::FIELD, WireType::LengthDelimited, &mut head);
        encode_varint(bulk.len() as u64, &mut head);
    }
    Bytes::from(head).chain(bulk.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tonic::Code;

    use super::*;
    use crate::proto::v1::{CaptureEnded, CaptureStartResponse, capture_start_response::Event};

    async fn body(messages: Vec<Result<CaptureStartResponse, Status>>) -> (Vec<u8>, HeaderMap) {
        let mut response = response(stream::iter(messages));
        let mut body = response.extensions_mut().remove::<Messages>().unwrap().into_body();
        let mut bytes = Vec::new();
        loop {
            let frame = poll_fn(|context| body.poll_frame(context)).await.unwrap();
            match frame.into_data() {
                Ok(data) => bytes.put(data),
                Err(frame) => {
                    assert!(poll_fn(|context| body.poll_frame(context)).await.is_none());
                    return (bytes, frame.into_trailers().unwrap());
                }
            }
        }
    }

    #[tokio::test]
    async fn messages_are_what_prost_encodes() {
        let ended = CaptureEnded { message: "done".to_owned(), ..CaptureEnded::default() };
        let events = [
            Some(Event::Pcapng(Bytes::from_static(b"blocks"))),
            Some(Event::Pcapng(Bytes::new())),
            Some(Event::Ended(ended)),
            None,
        ];
        let messages = events.map(|event| CaptureStartResponse { event });
        let (bytes, trailers) = body(messages.iter().cloned().map(Ok).collect()).await;
        let mut expected = Vec::new();
        for message in messages {
            expected.put_u8(0);
            expected.put_u32(message.encoded_len().try_into().unwrap());
            message.encode_raw(&mut expected);
        }
        assert_eq!(bytes, expected);
        assert_eq!(Status::from_header_map(&trailers).unwrap().code(), Code::Ok);
    }

    #[tokio::test]
    async fn an_error_is_the_status_at_the_end() {
        let (bytes, trailers) = body(vec![Err(Status::not_found("no\npod"))]).await;
        let status = Status::from_header_map(&trailers).unwrap();
        assert_eq!((bytes.len(), status.code(), status.message()), (0, Code::NotFound, "no\npod"));
    }
}
