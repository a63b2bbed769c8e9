//! Port-forward through the API server, as a byte stream that gRPC can run on.

use std::{
    io,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
};

use futures::future::{BoxFuture, FutureExt};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, api::Portforwarder};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

/// Opens a stream to a TCP port on the loopback address inside a pod.
///
/// A port that nothing listens on shows only when the stream is read. The kubelet's message for it is left in `refused`, as
/// the layers above a stream keep little of its errors.
///
/// # Errors
/// Those of the `portforward` subresource.
pub async fn open(
    client: Client,
    namespace: &str,
    pod: &str,
    port: u16,
    refused: Arc<OnceLock<String>>,
) -> kube::Result<Forwarded> {
    let pods: Api<Pod> = Api::namespaced(client, namespace);
    let mut forwarder = pods.portforward(pod, &[port]).await?;
    // Both are there for each port that was asked for; without, the stream reads as closed.
    let stream = forwarder.take_stream(port).unwrap_or_else(|| tokio::io::duplex(1).0);
    let refusal = match forwarder.take_error(port) {
        Some(refusal) => refusal.boxed(),
        None => futures::future::ready(None).boxed(),
    };
    Ok(Forwarded { stream, refusal: Some(refusal), refused, forwarder })
}

/// A forwarded port. Closed when dropped.
pub struct Forwarded {
    stream: DuplexStream,
    refusal: Option<BoxFuture<'static, Option<String>>>,
    refused: Arc<OnceLock<String>>,
    forwarder: Portforwarder,
}

impl Forwarded {
    /// Why the stream came to its end, if the far side has said so: its reason arrives beside the stream, ahead of its end.
    fn refusal(&mut self, context: &mut Context<'_>) -> Option<io::Error> {
        let Poll::Ready(message) = self.refusal.as_mut()?.poll_unpin(context) else { return None };
        self.refusal = None;
        let message = message?;
        Some(io::Error::new(io::ErrorKind::ConnectionRefused, self.refused.get_or_init(|| message).clone()))
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
        let ended = matches!(read, Poll::Ready(Ok(()))) && buffer.filled().len() == before;
        if ended && let Some(refusal) = self.refusal(context) {
            return Poll::Ready(Err(refusal));
        }
        read
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
