//! Port-forward through the API server, as a byte stream that gRPC can run on.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use futures::future::{BoxFuture, FutureExt};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, api::Portforwarder};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

/// Opens a stream to a TCP port on the loopback address inside a pod.
///
/// A port that nothing listens on shows only when the stream is used. `far_end` then says so, as
/// the layers above a stream keep little of its errors.
///
/// # Errors
/// Those of the `portforward` subresource.
pub async fn open(
    client: Client,
    namespace: &str,
    pod: &str,
    port: u16,
    far_end: Arc<FarEnd>,
) -> kube::Result<Forwarded> {
    let pods: Api<Pod> = Api::namespaced(client, namespace);
    let mut forwarder = pods.portforward(pod, &[port]).await?;
    far_end.opened.store(true, Ordering::Relaxed);
    // Both exist for each requested port. Without them the stream reads as closed.
    let stream = forwarder.take_stream(port).unwrap_or_else(|| tokio::io::duplex(1).0);
    let refusal = match forwarder.take_error(port) {
        Some(refusal) => refusal.boxed(),
        None => futures::future::ready(None).boxed(),
    };
    Ok(Forwarded { stream, refusal: Some(refusal), far_end, forwarder })
}

/// What is known of the far ends of forwarded streams to one port.
#[derive(Debug, Default)]
pub struct FarEnd {
    opened: AtomicBool,
    answered: AtomicBool,
    refusal: OnceLock<String>,
}

impl FarEnd {
    /// Why an open stream never carried a byte: the kubelet's message, if it got through. `None` if
    /// something arrived, or if no stream was opened.
    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        let refusal = self
            .refusal
            .get()
            .map_or("it was closed before the far end said anything", String::as_str);
        let silent = self.opened.load(Ordering::Relaxed) && !self.answered.load(Ordering::Relaxed);
        silent.then_some(refusal)
    }
}

/// A forwarded port. Closed when dropped.
pub struct Forwarded {
    stream: DuplexStream,
    refusal: Option<BoxFuture<'static, Option<String>>>,
    far_end: Arc<FarEnd>,
    forwarder: Portforwarder,
}

impl Forwarded {
    /// Why the far end refused the stream. The message arrives beside the stream, before it ends.
    fn refusal(&mut self, context: &mut Context<'_>) -> Option<io::Error> {
        let Poll::Ready(message) = self.refusal.as_mut()?.poll_unpin(context) else { return None };
        self.refusal = None;
        let message = message?;
        Some(io::Error::new(
            io::ErrorKind::ConnectionRefused,
            self.far_end.refusal.get_or_init(|| message).clone(),
        ))
    }
}

impl Drop for Forwarded {
    fn drop(&mut self) {
        self.forwarder.abort();
    }
}

impl AsyncRead for Forwarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.far_end.answered.store(true, Ordering::Relaxed);
            return read;
        }
        // A stream that was refused may end, or stay open and silent.
        self.refusal(context).map_or(read, |refusal| Poll::Ready(Err(refusal)))
    }
}

impl AsyncWrite for Forwarded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        if matches!(written, Poll::Ready(Err(_)))
            && let Some(refusal) = self.refusal(context)
        {
            return Poll::Ready(Err(refusal));
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
