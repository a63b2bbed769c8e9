//! The privilege broker: a process of its own that enters namespaces for the agent, so that the
//! process which speaks gRPC needs neither CAP_SYS_ADMIN nor CAP_NET_RAW.
//!
//! The broker is the agent's own program, executed again with [`ARGUMENT`] before the agent listens
//! or has a second thread, and one end of a `SOCK_SEQPACKET` pair as its stdin. It takes one
//! bounded message at a time ([`wire`]): a purpose from a short list and a pidfd, and answers with
//! what that purpose yields: evidence, or a socket that lives in the process' network namespace and
//! is bound to nothing yet ([`super::socket`]). It never gets a pid, a path or a namespace, and
//! cannot be asked to run anything.
//!
//! It ends with its socket. If it is killed the agent goes on without it and says so: only a
//! process with the privileges that the agent gave up could start another one, and a process that
//! keeps them for that would be what the broker is there to avoid.
//!
//! - `server`: the broker;
//! - `client`: the agent's side;
//! - [`NamespaceEntry`]: what the rest of the agent sees.

mod client;
mod server;
pub mod wire;

use std::os::fd::{BorrowedFd, OwnedFd};

pub use client::Broker;
pub use server::serve;

use super::{
    SysError, enter, evidence,
    socket::{self, SocketKind},
};
use crate::domain::evidence::Evidence;

/// The agent's first argument that makes it the broker. Not for people: it wants a socket as stdin.
pub const ARGUMENT: &str = "namespace-broker";

/// How the agent gets inside namespaces.
#[derive(Debug)]
pub enum NamespaceEntry {
    /// By itself: the demo and tests, whose agent is one process with others.
    InProcess,
    /// Through the broker.
    Broker(Broker),
}

impl NamespaceEntry {
    /// What is seen from inside the uts, net and ipc namespaces of the process that the pidfd
    /// names. Blocks, a few seconds at most.
    ///
    /// # Errors
    /// As [`enter::inside`]; `broker` EPIPE if it has ended, ETIMEDOUT if it does not answer.
    pub fn evidence(&self, pidfd: BorrowedFd<'_>) -> Result<Evidence, SysError> {
        match self {
            Self::InProcess => enter::inside(duplicate(pidfd)?, evidence::KINDS, evidence::look),
            Self::Broker(broker) => broker.evidence(pidfd),
        }
    }

    /// A socket that lives in the net namespace of the process that the pidfd names. Blocks, a few
    /// seconds at most.
    ///
    /// # Errors
    /// As [`enter::inside`]; `socket` EPERM without CAP_NET_RAW; `broker` as for
    /// [`Self::evidence`].
    pub fn socket(&self, pidfd: BorrowedFd<'_>, kind: SocketKind) -> Result<OwnedFd, SysError> {
        match self {
            Self::InProcess => socket::open_inside(duplicate(pidfd)?, kind),
            Self::Broker(broker) => broker.socket(pidfd, kind),
        }
    }

    /// The broker, if there is one.
    pub fn broker(&self) -> Option<&Broker> {
        match self {
            Self::InProcess => None,
            Self::Broker(broker) => Some(broker),
        }
    }

    /// Whether namespaces can be entered: false once the broker has ended.
    pub fn is_available(&self) -> bool {
        self.broker().is_none_or(Broker::is_alive)
    }
}

fn duplicate(pidfd: BorrowedFd<'_>) -> Result<OwnedFd, SysError> {
    rustix::io::fcntl_dupfd_cloexec(pidfd, 0).map_err(SysError::of("dup", "pidfd"))
}
