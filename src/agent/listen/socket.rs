//! Binding the agent's gRPC sockets.

use std::{fs, io, net::SocketAddr, os::unix::fs::FileTypeExt, path::Path};

use anyhow::{Context, bail};
use nix::sys::stat::{Mode, umask};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::table::Peer;
use crate::agent::config::Listen;

/// A bound socket.
#[derive(Debug)]
pub enum Socket {
    /// On a loopback address, without TLS.
    Plain(TcpListener),
    /// On any address, with TLS.
    Tls(TcpListener),
    /// On a unix socket.
    Unix(UnixListener),
}

impl Socket {
    /// Binds.
    ///
    /// # Errors
    /// If the address is in use or may not be bound.
    pub async fn bind(listen: &Listen) -> anyhow::Result<Self> {
        match listen {
            Listen::Loopback(address) => Ok(Self::Plain(tcp(*address).await?)),
            Listen::Tls(address) => Ok(Self::Tls(tcp(*address).await?)),
            Listen::Unix(path) => {
                remove_stale(path).await?;
                // Root's alone from the moment it exists, whatever the directory allows.
                let before = umask(Mode::from_bits_truncate(0o177));
                let bound = UnixListener::bind(path);
                umask(before);
                Ok(Self::Unix(
                    bound.with_context(|| format!("cannot listen on {}", path.display()))?,
                ))
            }
        }
    }

    /// Its TCP address.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Plain(listener) | Self::Tls(listener) => listener.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }

    /// Whether it speaks TLS.
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// The next connection, and who is at its other end.
    pub(super) async fn accept(&self) -> io::Result<(Accepted, Peer)> {
        Ok(match self {
            Self::Plain(listener) => {
                let (stream, address) = listener.accept().await?;
                (Accepted::Plain(stream), Peer::at(address.ip()))
            }
            Self::Tls(listener) => {
                let (stream, address) = listener.accept().await?;
                (Accepted::Tls(stream), Peer::at(address.ip()))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let peer = Peer::User(stream.peer_cred()?.uid());
                (Accepted::Unix(stream), peer)
            }
        })
    }
}

/// A connection that has just come in.
pub(super) enum Accepted {
    /// Without TLS, from this machine or pod.
    Plain(TcpStream),
    /// Its client is to begin a TLS handshake.
    Tls(TcpStream),
    /// On a unix socket.
    Unix(UnixStream),
}

async fn tcp(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}

/// Removes the socket that an agent left behind which was killed; refuses if one still answers
/// there, or if it is not a socket.
async fn remove_stale(path: &Path) -> anyhow::Result<()> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => bail!("cannot look at {}: {e}", path.display()),
        Ok(found) if !found.file_type().is_socket() => {
            bail!("{} is there and is not a socket", path.display())
        }
        Ok(_) => {}
    }
    if UnixStream::connect(path).await.is_ok() {
        bail!("another process listens on {}", path.display());
    }
    fs::remove_file(path)
        .with_context(|| format!("cannot remove the stale socket {}", path.display()))
}
