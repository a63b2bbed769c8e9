//! The container runtime's interface, which only the embedded kubelet calls.
//!
//! There are two implementations: [`super::namespaces`] makes containers of plain Linux namespaces
//! and needs no package; that of the node tier (`tests/support/cri`) drives a real containerd over
//! CRI.

use std::{collections::BTreeMap, io, net::IpAddr, path::PathBuf, time::Duration};

use futures::future::BoxFuture;
use k8s_openapi::{
    api::core::v1::{Pod, SecurityContext},
    jiff::Timestamp,
};
use tokio::io::{AsyncRead, AsyncWrite};

/// Runs sandboxes and containers for the embedded kubelet.
///
/// Every future may be dropped at any time. [`Runtime::remove_pod`] finds what it had started by
/// then.
pub trait Runtime: Send + Sync + 'static {
    /// The scheme of container ids in pod statuses, for example `containerd`.
    fn scheme(&self) -> &'static str;

    /// Makes the pod's sandbox: its pause process and its net, ipc and uts namespaces.
    fn run_sandbox<'a>(&'a self, pod: &'a Pod) -> BoxFuture<'a, Result<Sandbox, StartError>>;

    /// Creates and starts one container in the sandbox. Resolves once its program was executed.
    fn start_container<'a>(
        &'a self,
        pod: &'a Pod,
        sandbox: &'a Sandbox,
        container: &'a ContainerStart,
    ) -> BoxFuture<'a, Result<Started, StartError>>;

    /// Asks the container with this id to end, and kills it after `grace`. Resolves to whether it
    /// has ended. The default resolves to false at once and leaves the container to
    /// [`Runtime::remove_pod`].
    fn stop_container<'a>(&'a self, _id: &'a str, _grace: Duration) -> BoxFuture<'a, bool> {
        Box::pin(std::future::ready(false))
    }

    /// Ends the containers and the sandbox of the pod with this UID, and frees their resources.
    fn remove_pod<'a>(&'a self, pod_uid: &'a str) -> BoxFuture<'a, ()>;

    /// Connects to a TCP port on the loopback address in the pod's network namespace, as a
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

/// A running sandbox.
#[derive(Debug, Clone)]
pub struct Sandbox {
    /// The runtime's id, 64 hex digits, without scheme.
    pub id: String,
    /// The pod's address; none if it has no network namespace of its own.
    pub ip: Option<IpAddr>,
}

/// The pid namespace of a container: the CRI's `NamespaceMode`, which the kubelet derives from the
/// pod's spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PidMode {
    /// A new one for this container.
    Container,
    /// The sandbox's: `shareProcessNamespace`.
    Pod,
    /// The host's: `hostPID`.
    Node,
    /// That of the container with this id: `targetContainerName`.
    Target(String),
}

/// The parameters of one container.
#[derive(Debug, Clone)]
pub struct ContainerStart {
    /// The container's name in the pod.
    pub name: String,
    /// The number of earlier starts; the first start has 0.
    pub attempt: u32,
    /// The image reference in the pod's spec, as it stands there.
    pub image: String,
    /// `imagePullPolicy`: `Always`, `IfNotPresent` or `Never`, with Kubernetes' default filled in.
    pub pull_policy: String,
    /// Replaces the image's entrypoint; empty keeps it.
    pub command: Vec<String>,
    /// Replaces the image's arguments; empty keeps them.
    pub args: Vec<String>,
    /// The environment, with all references resolved.
    pub env: Vec<(String, String)>,
    /// The working directory; none keeps the image's.
    pub working_dir: Option<String>,
    /// The container's security context, with the pod's defaults merged in.
    pub security: SecurityContext,
    /// The pid namespace that it runs in.
    pub pid: PidMode,
    /// Bind mounts: the container's `volumeMounts`, with the volumes' paths on the node.
    pub mounts: Vec<Mount>,
    /// Labels for the runtime, as the kubelet sets them (`io.kubernetes.pod.name`, …).
    pub labels: BTreeMap<String, String>,
    /// Whether stdin stays open; otherwise reading it ends at once.
    pub stdin: bool,
    /// Whether the program gets a terminal.
    pub tty: bool,
}

/// A host path that is mounted into a container.
#[derive(Debug, Clone)]
pub struct Mount {
    /// The path on the node.
    pub host_path: PathBuf,
    /// The path in the container.
    pub container_path: PathBuf,
    /// Whether the container sees it read-only.
    pub read_only: bool,
}

/// A running container.
pub struct Started {
    /// The runtime's id: 64 hex digits, without a scheme.
    pub id: String,
    /// The image that the reference was resolved to, by digest if the runtime knows one.
    pub image_id: String,
    /// Resolves when the container's first process has ended.
    pub exit: BoxFuture<'static, Exit>,
}

/// The end of a container.
#[derive(Debug, Clone)]
pub struct Exit {
    /// The exit code; 128 + n if signal n ended the process.
    pub code: i32,
    /// The time at which the process ended.
    pub finished_at: Timestamp,
}

/// The reason why a container or sandbox did not start.
#[derive(Debug, Clone)]
pub struct StartError {
    /// The kubelet's reason: `ErrImagePull`, `CreateContainerConfigError`, `RunContainerError` and
    /// others.
    pub reason: &'static str,
    /// The kubelet's message, which pod statuses carry.
    pub message: String,
}
