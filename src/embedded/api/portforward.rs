//! `pods/portforward` over WebSocket, subprotocol `v4.channel.k8s.io`.
//!
//! Each port has two channels, one for data and one for errors. Each channel begins with a frame
//! that holds the port's number.

use std::{io, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, HeaderValue, Request, StatusCode, header},
    response::Response,
};
use futures::{SinkExt, StreamExt};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        handshake::derive_accept_key,
        protocol::{Role, WebSocketConfig},
    },
};

use super::{
    Address, Forward, Server, object,
    request::{RequestOptions, RequestTarget},
    resources::PODS,
    status::ApiStatus,
};
use crate::embedded::runtime::Stream;

const PROTOCOL: &str = "v4.channel.k8s.io";
/// The most ports of one connection: a channel number is one byte, and a port has two.
const MAX_PORTS: usize = 128;
/// Frames that are queued for a slow side.
const QUEUE: usize = 16;
/// Bytes of data in one frame to the client.
const CHUNK: usize = 32 * 1024;
/// How long the server waits for the client's side of the close.
const LINGER: Duration = Duration::from_secs(5);
/// The largest frame from the client, in bytes.
const MAX_FRAME: usize = 4 * 1024 * 1024;

/// Answers the upgrade request; a task then forwards.
pub(super) fn answer(
    server: &Arc<Server>,
    target: &RequestTarget,
    options: &RequestOptions,
    request: &mut Request<Body>,
) -> Result<Response, ApiStatus> {
    let pod = server
        .store
        .get(&PODS, &target.namespace, &target.name)
        .ok_or_else(|| ApiStatus::not_found(&PODS, &target.name))?;
    let key = websocket_key(request.headers())?;
    if options.ports.is_empty() || options.ports.len() > MAX_PORTS {
        return Err(ApiStatus::bad_request(
            "query parameter \"ports\" must name between 1 and 128 ports",
        ));
    }
    let phase = object::text(&pod, "/status/phase");
    let forward =
        server.forward(object::text(&pod, "/metadata/uid")).filter(|_| phase == "Running");
    let Some(forward) = forward else {
        let message =
            format!("unable to forward port because pod is not running. Current status={phase}");
        return Err(ApiStatus::new(500, "InternalError", message));
    };
    let Some(upgrade) = request.extensions_mut().remove::<OnUpgrade>() else {
        return Err(ApiStatus::bad_request("the connection can't be upgraded"));
    };
    let accept =
        HeaderValue::from_str(&derive_accept_key(key.as_bytes())).map_err(ApiStatus::internal)?;
    let ports = options.ports.clone();
    server.tasks.spawn(async move {
        let stream = match upgrade.await {
            Ok(stream) => TokioIo::new(stream),
            Err(error) => return tracing::debug!(%error, "upgrade to WebSocket"),
        };
        let config = WebSocketConfig::default()
            .max_message_size(Some(MAX_FRAME))
            .max_frame_size(Some(MAX_FRAME));
        let socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await;
        forward_ports(socket, &forward, &ports).await;
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(PROTOCOL));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    Ok(response)
}

fn websocket_key(headers: &HeaderMap) -> Result<String, ApiStatus> {
    let value = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let offers = |name, wanted: &str| {
        value(name).split(',').any(|item| item.trim().eq_ignore_ascii_case(wanted))
    };
    let key = value(header::SEC_WEBSOCKET_KEY.as_str());
    let websocket =
        offers("connection", "upgrade") && offers("upgrade", "websocket") && !key.is_empty();
    if !websocket || !offers("sec-websocket-protocol", PROTOCOL) {
        return Err(ApiStatus::bad_request(format!(
            "unable to upgrade: only WebSocket with subprotocol {PROTOCOL} is supported"
        )));
    }
    Ok(key.to_owned())
}

async fn forward_ports<S>(socket: WebSocketStream<S>, forward: &Forward, ports: &[u16])
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let (mut to_client, mut from_client) = socket.split();
    let (frames, mut outgoing) = mpsc::channel::<Bytes>(QUEUE);
    let mut to_pod = Vec::new();
    // Dropping the set ends the ports' tasks, however this function returns.
    let mut tasks = JoinSet::new();
    for (channel, port) in (0_u8..).step_by(2).zip(ports) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        to_pod.push(sender);
        tasks.spawn(forward_port(forward.clone(), *port, channel, frames.clone(), receiver));
    }
    // The queue ends once its last sender is dropped.
    drop(frames);
    // Both directions run at the same time, as each may wait for the other side.
    let write = async {
        while let Some(frame) = outgoing.recv().await {
            if to_client.send(Message::Binary(frame)).await.is_err() {
                return;
            }
        }
    };
    let read = async {
        while let Some(Ok(message)) = from_client.next().await {
            match message {
                Message::Binary(mut frame) if !frame.is_empty() => {
                    let channel =
                        usize::from(frame.split_to(1).first().copied().unwrap_or_default());
                    // Even channels carry data. The client sends nothing on the error channels,
                    // which are odd.
                    if let Some(port) = to_pod.get(channel / 2).filter(|_| channel % 2 == 0) {
                        // An error means that the port's task has ended, and the data with it.
                        let _ = port.send(frame).await;
                    }
                }
                Message::Close(_) => return,
                _ => {}
            }
        }
    };
    tokio::select! {
        () = write => {}
        () = read => {}
    }
    // Reads what the client still sends: unread bytes would turn the close into a reset, which can
    // destroy the answer on its way.
    let goodbye = async {
        let _ = to_client.close().await;
        while let Some(Ok(_)) = from_client.next().await {}
    };
    let _ = timeout(LINGER, goodbye).await;
}

async fn forward_port(
    forward: Forward,
    port: u16,
    channel: u8,
    frames: mpsc::Sender<Bytes>,
    mut from_client: mpsc::Receiver<Bytes>,
) {
    let frame = |channel: u8, data: &[u8]| Bytes::from([&[channel], data].concat());
    for channel in [channel, channel + 1] {
        if frames.send(frame(channel, &port.to_le_bytes())).await.is_err() {
            return;
        }
    }
    let forwarded = async {
        let (mut from_pod, mut to_pod) = tokio::io::split(connect(&forward, port).await?);
        let read = async {
            let mut buffer = vec![0; CHUNK];
            loop {
                let length = from_pod.read(&mut buffer).await?;
                let data = buffer.get(..length).unwrap_or_default();
                if data.is_empty() || frames.send(frame(channel, data)).await.is_err() {
                    return io::Result::Ok(());
                }
            }
        };
        let write = async {
            while let Some(data) = from_client.recv().await {
                to_pod.write_all(&data).await?;
            }
            io::Result::Ok(())
        };
        tokio::select! {
            end = read => end,
            end = write => end,
        }
    };
    if let Err(error) = forwarded.await {
        let message = format!("error forwarding port {port} to pod: {error}");
        let _ = frames.send(frame(channel + 1, message.as_bytes())).await;
    }
}

async fn connect(forward: &Forward, port: u16) -> io::Result<Box<dyn Stream>> {
    match forward {
        Forward::Sandbox(runtime, sandbox) => runtime.connect(sandbox, port).await,
        Forward::Address(Address::Tcp(address)) => Ok(Box::new(TcpStream::connect(address).await?)),
        Forward::Address(Address::Unix(path)) => Ok(Box::new(UnixStream::connect(path).await?)),
    }
}
