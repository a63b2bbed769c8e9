//! TCP connections from inside a sandbox's network namespace.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    path::PathBuf,
    thread,
    time::Duration,
};

use nix::sched::{CloneFlags, setns};
use tokio::sync::oneshot;

/// On loopback a connection is made or refused at once, unless the listener's queue is full.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Connects to a port on the loopback address in this network namespace; none: in the one we are in.
pub(super) async fn connect(
    network_namespace: Option<PathBuf>,
    port: u16,
) -> io::Result<tokio::net::TcpStream> {
    let (answer, connected) = oneshot::channel();
    // A thread of its own, which ends afterwards: one that entered a foreign namespace may serve nothing else. The
    // socket stays in the namespace it was made in.
    thread::Builder::new().name("sandbox-connect".to_owned()).spawn(move || {
        let _ = answer.send(connect_here(network_namespace, port));
    })?;
    let stream =
        connected.await.map_err(|_| io::Error::other("the connecting thread panicked"))??;
    stream.set_nonblocking(true)?;
    tokio::net::TcpStream::from_std(stream)
}

/// Moves the calling thread into the namespace and connects.
fn connect_here(network_namespace: Option<PathBuf>, port: u16) -> io::Result<TcpStream> {
    if let Some(path) = network_namespace {
        let namespace = File::open(&path).map_err(|error| {
            io::Error::new(error.kind(), format!("open {}: {error}", path.display()))
        })?;
        setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(|errno| {
            io::Error::new(
                io::Error::from(errno).kind(),
                format!("setns {}: {errno}", path.display()),
            )
        })?;
    }
    // As containerd's own port-forward: IPv4, then IPv6.
    let connect =
        |ip: IpAddr| TcpStream::connect_timeout(&SocketAddr::new(ip, port), CONNECT_TIMEOUT);
    connect(Ipv4Addr::LOCALHOST.into())
        .or_else(|error| connect(Ipv6Addr::LOCALHOST.into()).map_err(|_| error))
}
