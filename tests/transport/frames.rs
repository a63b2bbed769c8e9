//! HTTP/2 by hand, for clients that do what no library lets them. RFC 9113, RFC 7541.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const CONTINUATION: u8 = 9;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A header, not indexed; name and value shorter than 127.
pub(crate) fn header(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0];
    for text in [name, value] {
        assert!(text.len() < 127);
        bytes.push(u8::try_from(text.len()).unwrap());
        bytes.extend(text.as_bytes());
    }
    bytes
}

/// What a gRPC request to this method begins with.
pub(crate) fn request(path: &str) -> Vec<u8> {
    [
        header(":method", "POST"),
        header(":scheme", "https"),
        header(":path", path),
        header(":authority", "localhost"),
        header("content-type", "application/grpc"),
        header("te", "trailers"),
    ]
    .concat()
}

pub(crate) fn open(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &request(path))
}

/// A whole request with an empty message.
pub(crate) fn call(stream: u32, path: &str) -> Vec<u8> {
    [open(stream, path), frame(DATA, END_STREAM, stream, &[0; 5])].concat()
}

/// A setting: 3 is the number of streams, 4 the window.
pub(crate) fn settings(settings: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<u8> = settings
        .iter()
        .flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
        .collect();
    frame(SETTINGS, 0, 0, &payload)
}

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) async fn greet(stream: &mut TlsStream<TcpStream>, own: &[(u16, u32)]) {
    stream.write_all(&[PREFACE, &settings(own)].concat()).await.unwrap();
    stream.flush().await.unwrap();
}

/// Writes `next` time after time, at most `times`, reading what comes meanwhile, until the agent
/// ends the connection. Returns how often it was written, and whether the agent ended it.
pub(crate) async fn flood(
    stream: TlsStream<TcpStream>,
    times: u32,
    mut next: impl FnMut(u32) -> Vec<u8>,
) -> (u32, bool) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let reading = tokio::spawn(async move {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(1..) = reader.read(&mut buffer).await {}
    });
    let mut written = 0;
    while written < times && !reading.is_finished() {
        if writer.write_all(&next(written)).await.is_err() || writer.flush().await.is_err() {
            break;
        }
        written += 1;
    }
    // What was written last may be what was too much.
    let ended = tokio::time::timeout(std::time::Duration::from_secs(30), reading).await.is_ok();
    (written, ended)
}
