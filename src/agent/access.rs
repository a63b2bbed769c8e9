//! Who is calling, and what each method asks of them.
//!
//! Every method goes through [`Access::authorize`] by way of [`super::rpc::gate`], before it does anything. Callers have no identity of
//! their own yet: the agent listens on loopback and a unix socket alone, and whoever reaches these is let in.

use std::{fmt, net::SocketAddr};

use crate::domain::{Error, Reason, Result};

/// The methods of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// `Debug/Create`
    DebugCreate,
    /// `Debug/Get`
    DebugGet,
    /// `Debug/List`
    DebugList,
    /// `Debug/End`
    DebugEnd,
    /// `Namespaces/Verify`
    NamespacesVerify,
    /// `Namespaces/VerifyNode`
    NamespacesVerifyNode,
    /// `Node/Get`
    NodeGet,
}

/// What a method asks of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permission {
    /// To see the pod.
    SeePod,
    /// To add an ephemeral container to the pod, or end one.
    DebugPod,
    /// To see the whole node.
    SeeNode,
}

impl Method {
    /// Its name in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::DebugCreate => "Debug/Create",
            Self::DebugGet => "Debug/Get",
            Self::DebugList => "Debug/List",
            Self::DebugEnd => "Debug/End",
            Self::NamespacesVerify => "Namespaces/Verify",
            Self::NamespacesVerifyNode => "Namespaces/VerifyNode",
            Self::NodeGet => "Node/Get",
        }
    }

    /// What it asks of its caller. There is no default: a new method does not compile without.
    pub const fn permission(self) -> Permission {
        match self {
            Self::DebugCreate | Self::DebugEnd => Permission::DebugPod,
            Self::DebugGet | Self::DebugList | Self::NamespacesVerify | Self::NamespacesVerifyNode => {
                Permission::SeePod
            }
            Self::NodeGet => Permission::SeeNode,
        }
    }
}

/// What a call is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    /// One pod.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// All pods of a namespace.
    Namespace(String),
    /// All pods.
    AllNamespaces,
    /// The node.
    Node,
}

/// Who is calling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// A process on the node, over the unix socket.
    Local {
        /// Its user.
        uid: u32,
    },
    /// Something on the loopback address: a port-forward by the API server, or a process on the node.
    Loopback(SocketAddr),
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local { uid } => write!(f, "local:uid={uid}"),
            Self::Loopback(_) => f.write_str("loopback"),
        }
    }
}

/// Decides.
#[derive(Debug, Clone)]
pub struct Access {
    /// The user of the agent, who may use the unix socket besides root.
    uid: u32,
}

impl Access {
    /// Lets in root, and the agent's own user.
    pub fn new() -> Self {
        Self { uid: rustix::process::getuid().as_raw() }
    }

    /// Whether `caller` may call `method` on `object`.
    ///
    /// # Errors
    /// PEER_REFUSED.
    // Asynchronous and with all it takes to decide, as the API server will be asked.
    #[allow(clippy::unused_async)]
    pub async fn authorize(&self, caller: &Caller, method: Method, object: &Object) -> Result<()> {
        tracing::debug!(%caller, method = method.as_str(), permission = ?method.permission(), ?object, "authorize");
        match caller {
            Caller::Local { uid } if *uid != 0 && *uid != self.uid => {
                Err(Error::new(Reason::PeerRefused, format!("user {uid} may not use this socket; root may")))
            }
            Caller::Loopback(address) if !address.ip().is_loopback() => {
                Err(Error::new(Reason::PeerRefused, format!("{address} is not a loopback address")))
            }
            Caller::Local { .. } | Caller::Loopback(_) => Ok(()),
        }
    }
}

impl Default for Access {
    fn default() -> Self {
        Self::new()
    }
}
