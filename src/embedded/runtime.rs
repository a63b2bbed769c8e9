//! What the embedded cluster asks of whatever runs its containers: the container runtime's part.
//!
//! Two things implement it: [`super::namespaces`] makes containers of plain Linux namespaces, without any
//! package installed; [`super::cri`] drives a real containerd over CRI. The embedded kubelet
//! is the only caller.

use std::{collections::BTreeMap, io, net::IpAddr, path::PathBuf, time::Duration};

use futures::future::BoxFuture;
use k8s_openapi::{
    api::core::v1::{Pod, SecurityContext},
    jiff::Timestamp,
};
use tokio::io::{AsyncRead, AsyncWrite};

/// Runs sandboxes and containers for the embedded kubelet.
///
/// Every future may be dropped at any time; what it had started by then is found by [`Runtime::remove_pod`].
pub trait Runtime: Send + Sync + 'static {
    /// Scheme of the container ids in pod statuses: `containerd`.
    fn scheme(&self) -> &'static str;

    /// Makes the pod's sandbox: its net, ipc and uts namespaces, and its pause process.
    fn run_sandbox<'a>(&'a self, pod: &'a Pod) -> BoxFuture<'a, Result<Sandbox, StartError>>;

    /// Creates and starts one container in the sandbox. Resolves once its program has been executed.
    fn start_container<'a>(
        &'a self,
        pod: &'a Pod,
        sandbox: &'a Sandbox,
        container: &'a ContainerStart,
    ) -> BoxFuture<'a, Result<Started, StartError>>;

    /// Asks the container with this id to end, and ends it by force after `grace`. Resolves once it has ended; to
    /// false if it has not. By default that is so at once: the container is left to [`Runtime::remove_pod`].
    fn stop_container<'a>(&'a self, _id: &'a str, _grace: Duration) -> BoxFuture<'a, bool> {
        Box::pin(std::future::ready(false))
    }

    /// Ends the containers and the sandbox of the pod with this UID, and frees what they held.
    fn remove_pod<'a>(&'a self, pod_uid: &'a str) -> BoxFuture<'a, ()>;

    /// Connects to a TCP port on the loopback address inside the pod's network namespace, which is what a
    /// port-forward does.
    fn connect<'a>(
        &'a self,
        sandbox: &'a Sandbox,
        port: u16,
    ) -> BoxFuture<'a, io::Result<Box<dyn Stream>>>;
}

/// A two-way byte stream.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A sandbox that runs.
#[derive(Debug, Clone)]
pub struct Sandbox {
    /// The runtime's id, 64 hex digits, without scheme.
    pub id: String,
    /// The pod's address, if it has a network namespace with one.
    pub ip: Option<IpAddr>,
}

/// Which pid namespace a container gets. The CRI's `NamespaceMode`, chosen by the kubelet from the pod's spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PidMode {
    /// Its own.
    Container,
    /// The sandbox's (`shareProcessNamespace`).
    Pod,
    /// The host's (`hostPID`).
    Node,
    /// That of the container with this id (`targetContainerName`).
    Target(String),
}

/// All that is needed to start one container.
#[derive(Debug, Clone)]
pub struct ContainerStart {
    /// Its name in the pod.
    pub name: String,
    /// How often it was started before.
    pub attempt: u32,
    /// Image as the pod's spec has it.
    pub image: String,
    /// `imagePullPolicy`, with Kubernetes' default filled in: `Always`, `IfNotPresent`, `Never`.
    pub pull_policy: String,
    /// Replaces the image's entrypoint; empty keeps it.
    pub command: Vec<String>,
    /// Replaces the image's arguments; empty keeps them.
    pub args: Vec<String>,
    /// Environment, references resolved.
    pub env: Vec<(String, String)>,
    /// Working directory; none keeps the image's.
    pub working_dir: Option<String>,
    /// The container's security context, with the pod's defaults merged in.
    pub security: SecurityContext,
    /// Its pid namespace.
    pub pid: PidMode,
    /// Bind mounts: what `volumeMounts` come to on the node.
    pub mounts: Vec<Mount>,
    /// Labels for the runtime, as the kubelet sets them (`io.kubernetes.pod.name`, …).
    pub labels: BTreeMap<String, String>,
    /// Whether stdin stays open.
    pub stdin: bool,
    /// Whether it has a terminal.
    pub tty: bool,
}

/// A host path that a container sees.
#[derive(Debug, Clone)]
pub struct Mount {
    /// Path on the host.
    pub host_path: PathBuf,
    /// Path in the container.
    pub container_path: PathBuf,
    /// Whether it is read-only there.
    pub read_only: bool,
}

/// A container that runs.
pub struct Started {
    /// The runtime's id, 64 hex digits, without scheme.
    pub id: String,
    /// What the image reference was resolved to.
    pub image_id: String,
    /// Resolves when the container's first process has ended.
    pub exit: BoxFuture<'static, Exit>,
}

/// How a container ended.
#[derive(Debug, Clone)]
pub struct Exit {
    /// Exit code; 128 + n for signal n.
    pub code: i32,
    /// When.
    pub finished_at: Timestamp,
}

/// Why a container or sandbox did not start.
#[derive(Debug, Clone)]
pub struct StartError {
    /// The kubelet's reason: `ErrImagePull`, `CreateContainerConfigError`, `RunContainerError`, …
    pub reason: &'static str,
    /// The kubelet's message.
    pub message: String,
}
