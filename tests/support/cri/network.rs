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

/// A loopback connection is made or refused at once, unless the listener's queue is full.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Connects to a port on the loopback address in this network namespace, or in the caller's own.
pub(super) async fn connect(
    network_namespace: Option<PathBuf>,
    port: u16,
) -> io::Result<tokio::net::TcpStream> {
    let (answer, connected) = oneshot::channel();
    // A thread that entered a foreign namespace must serve nothing else, so that this one ends
    // afterwards. The socket stays in the namespace in which it was made.
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
    // containerd's port-forward tries IPv4 first, then IPv6.
    let connect =
        |ip: IpAddr| TcpStream::connect_timeout(&SocketAddr::new(ip, port), CONNECT_TIMEOUT);
    connect(Ipv4Addr::LOCALHOST.into())
        .or_else(|error| connect(Ipv6Addr::LOCALHOST.into()).map_err(|_| error))
}
