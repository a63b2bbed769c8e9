//! The agent's gRPC sockets: loopback addresses and unix sockets, nothing else.

use std::{fs, io, net::SocketAddr, os::unix::fs::FileTypeExt, path::Path};

use anyhow::{Context, bail};
use nix::sys::stat::{Mode, umask};
use tokio::net::{TcpListener, UnixListener, UnixStream};

use super::config::Listen;

/// A bound socket.
#[derive(Debug)]
pub enum Socket {
    /// On a loopback address.
    Tcp(TcpListener),
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
            Listen::Loopback(address) => {
                let bound = TcpListener::bind(address)
                    .await
                    .with_context(|| format!("cannot listen on {address}"))?;
                Ok(Self::Tcp(bound))
            }
            Listen::Unix(path) => {
                remove_stale(path).await?;
                // Root's alone from the moment it exists, whatever the directory allows.
                let before = umask(Mode::from_bits_truncate(0o177));
                let bound = UnixListener::bind(path);
                umask(before);
                Ok(Self::Unix(bound.with_context(|| format!("cannot listen on {}", path.display()))?))
            }
        }
    }

    /// Its TCP address.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }
}

/// Removes the socket that an agent left behind which was killed; refuses if one still answers there, or if it is not a socket.
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
    fs::remove_file(path).with_context(|| format!("cannot remove the stale socket {}", path.display()))
}
