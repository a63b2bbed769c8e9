//! A [`Runtime`] for the embedded cluster that runs pods on a real containerd or CRI-O, over the
//! Container Runtime Interface. The node tier is its only user, so that no binary contains it.
//!
//! Requests have the form of a kubelet's: labels, cgroup parents, namespace modes, security
//! contexts, pull policies. The runtime's errors become the reasons and messages that a kubelet
//! puts into a pod's status. Needs root, and a process in the pid namespace of the runtime's node.
//!
//! - `config`: a pod and its containers as CRI messages. Pure.
//! - `image`: finds or pulls an image.
//! - `exit`: when a container ended.
//! - `network`: a TCP connection from inside a sandbox.
//!
//! Left out, because no test needs them: user-namespaced pods (`hostUsers: false`, which containerd
//! has from 2.0 on), resource limits, devices, AppArmor and SELinux options, host ports, attach and
//! exec.

pub mod api;
pub mod config;
mod exit;
pub mod image;
mod network;

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use tokio::{net::UnixStream, sync::RwLock};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use self::api::{
    image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient,
};
use podsonde::embedded::runtime::{
    ContainerStart, PidMode, Runtime, Sandbox, StartError, Started, Stream,
};

/// The deadline of every request: what a kubelet allows for its longest one, which makes a sandbox.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(240);
/// The largest answer that is accepted, in bytes: the most that containerd sends.
const MAX_ANSWER: usize = 16 << 20;

/// A container runtime that speaks CRI v1. Clones share the connection.
#[derive(Debug, Clone)]
pub struct CriRuntime {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    scheme: &'static str,
    options: CriOptions,
    /// One lock for each pod UID: starts hold it for reading, the pod's removal for writing.
    pods: Arc<Mutex<HashMap<String, Arc<RwLock<()>>>>>,
}

/// The settings of a [`CriRuntime`].
#[derive(Debug, Clone, Default)]
pub struct CriOptions {
    /// The directory of the containers' logs, `<namespace>_<name>_<uid>/<container>/<attempt>.log`.
    /// Default: no logs.
    pub log_directory: Option<PathBuf>,
    /// Silently gives a container with [`PidMode::Target`] a pid namespace of its own, as runtimes
    /// do that do not know the mode. Default: false.
    pub ignore_target: bool,
}

impl CriRuntime {
    /// Connects to the runtime's socket.
    ///
    /// # Errors
    /// If nothing answers, or if what answers does not speak CRI v1.
    pub async fn connect(socket: &Path, options: CriOptions) -> io::Result<Self> {
        let channel = channel(socket).await?;
        let mut runtime =
            RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MAX_ANSWER);
        let images = ImageServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER);
        let version =
            runtime.version(api::VersionRequest {}).await.map_err(failed("Version"))?.into_inner();
        tracing::info!(
            name = version.runtime_name,
            version = version.runtime_version,
            "container runtime"
        );
        let scheme = if version.runtime_name == "cri-o" { "cri-o" } else { "containerd" };
        Ok(Self { runtime, images, scheme, options, pods: Arc::default() })
    }

    async fn sandbox(&self, pod: &Pod) -> Result<Sandbox, StartError> {
        const REASON: &str = "CreatePodSandboxError";
        let config = config::sandbox(pod, self.options.log_directory.as_deref())?;
        make_directory(Path::new(&config.log_directory), REASON)?;
        let mut runtime = self.runtime.clone();
        let request = api::RunPodSandboxRequest { config: Some(config) };
        let id = self
            .to_its_end(pod, REASON, async move {
                let answer = runtime.run_pod_sandbox(request).await;
                Ok(answer.map_err(start_error(REASON))?.into_inner().pod_sandbox_id)
            })
            .await?;
        let (status, _) = self.sandbox_status(&id).await.map_err(start_error(REASON))?;
        let ip = status.network.and_then(|network| network.ip.parse().ok());
        Ok(Sandbox { id, ip })
    }

    async fn container(
        &self,
        pod: &Pod,
        sandbox: &Sandbox,
        start: &ContainerStart,
    ) -> Result<Started, StartError> {
        const REASON: &str = "CreateContainerError";
        let mut sandbox_config = config::sandbox(pod, self.options.log_directory.as_deref())?;
        let image = image::ensure(&self.images, start, &sandbox_config).await?;
        let mut start = start.clone();
        if self.options.ignore_target && matches!(start.pid, PidMode::Target(_)) {
            start.pid = PidMode::Container;
        }
        let container_config = config::container(pod, &start, &image)?;
        if let Some(directory) =
            Path::new(&sandbox_config.log_directory).join(&container_config.log_path).parent()
        {
            make_directory(directory, REASON)?;
        }
        config::permit(&mut sandbox_config, &container_config);

        let mut runtime = self.runtime.clone();
        let request = api::CreateContainerRequest {
            pod_sandbox_id: sandbox.id.clone(),
            config: Some(container_config),
            sandbox_config: Some(sandbox_config),
        };
        self.to_its_end(pod, REASON, async move {
            let answer = runtime.create_container(request).await;
            let id = answer.map_err(start_error(REASON))?.into_inner().container_id;
            let request = api::StartContainerRequest { container_id: id.clone() };
            runtime.start_container(request).await.map_err(start_error("RunContainerError"))?;
            let watched =
                exit::watch(runtime, id.clone()).await.map_err(start_error("RunContainerError"))?;
            Ok(Started { id, image_id: watched.image_id, exit: watched.exit })
        })
        .await
    }

    /// Completes `work` even if the caller's future is dropped, and makes the pod's removal wait
    /// for it. The runtime would go on for a while with a request that was abandoned midway, and
    /// the removal could miss what it makes.
    async fn to_its_end<T: Send + 'static>(
        &self,
        pod: &Pod,
        reason: &'static str,
        work: impl Future<Output = Result<T, StartError>> + Send + 'static,
    ) -> Result<T, StartError> {
        let started =
            self.lock_of(pod.metadata.uid.as_deref().unwrap_or_default()).read_owned().await;
        let work = tokio::spawn(async move {
            let _started = started;
            work.await
        });
        work.await.unwrap_or_else(|error| Err(StartError { reason, message: error.to_string() }))
    }

    fn lock_of(&self, pod_uid: &str) -> Arc<RwLock<()>> {
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(pods.entry(pod_uid.to_owned()).or_default())
    }

    async fn remove(&self, pod_uid: &str) -> Result<(), Status> {
        let _nothing_starts = self.lock_of(pod_uid).write_owned().await;
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).remove(pod_uid);
        let mut runtime = self.runtime.clone();
        let label_selector =
            HashMap::from([(config::LABEL_POD_UID.to_owned(), pod_uid.to_owned())]);
        let filter = Some(api::PodSandboxFilter { label_selector });
        let found =
            runtime.list_pod_sandbox(api::ListPodSandboxRequest { filter }).await?.into_inner();
        for api::PodSandbox { id: pod_sandbox_id } in found.items {
            let stop = api::StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() };
            runtime.stop_pod_sandbox(stop).await?;
            runtime.remove_pod_sandbox(api::RemovePodSandboxRequest { pod_sandbox_id }).await?;
        }
        remove_cgroups(pod_uid);
        Ok(())
    }

    /// A sandbox's status, with the runtime's own details.
    async fn sandbox_status(&self, id: &str) -> Result<(api::PodSandboxStatus, Details), Status> {
        let request = api::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
        let answer = self.runtime.clone().pod_sandbox_status(request).await?.into_inner();
        let status =
            answer.status.ok_or_else(|| Status::internal("the runtime's answer has no status"))?;
        Ok((status, Details::of(&answer.info)))
    }
}

impl Runtime for CriRuntime {
    fn scheme(&self) -> &'static str {
        self.scheme
    }

    fn run_sandbox<'a>(&'a self, pod: &'a Pod) -> BoxFuture<'a, Result<Sandbox, StartError>> {
        Box::pin(self.sandbox(pod))
    }

    fn start_container<'a>(
        &'a self,
        pod: &'a Pod,
        sandbox: &'a Sandbox,
        container: &'a ContainerStart,
    ) -> BoxFuture<'a, Result<Started, StartError>> {
        Box::pin(self.container(pod, sandbox, container))
    }

    fn stop_container<'a>(&'a self, id: &'a str, grace: Duration) -> BoxFuture<'a, bool> {
        let timeout = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
        let request = api::StopContainerRequest { container_id: id.to_owned(), timeout };
        Box::pin(async move {
            let stopped = self.runtime.clone().stop_container(request).await;
            if let Err(status) = &stopped {
                tracing::warn!(id, %status, "container not stopped");
            }
            stopped.is_ok()
        })
    }

    fn remove_pod<'a>(&'a self, pod_uid: &'a str) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            if let Err(status) = self.remove(pod_uid).await {
                tracing::warn!(pod_uid, %status, "pod not removed from the runtime");
            }
        })
    }

    fn connect<'a>(
        &'a self,
        sandbox: &'a Sandbox,
        port: u16,
    ) -> BoxFuture<'a, io::Result<Box<dyn Stream>>> {
        Box::pin(async move {
            let (status, details) =
                self.sandbox_status(&sandbox.id).await.map_err(failed("PodSandboxStatus"))?;
            if status.state() != api::PodSandboxState::SandboxReady {
                return Err(io::Error::new(
                    io::ErrorKind::NotConnected,
                    "the sandbox does not run",
                ));
            }
            let stream = network::connect(details.network_namespace, port).await?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }
}

/// The parts that are used of `info` in a verbose status, which holds the container's OCI bundle.
#[derive(Debug, Default)]
struct Details {
    /// The host pid of the first process; none if it has ended.
    pid: Option<i32>,
    /// The path of the network namespace; none if the pod is in the node's.
    network_namespace: Option<PathBuf>,
}

impl Details {
    fn of(info: &HashMap<String, String>) -> Self {
        let bundle: serde_json::Value =
            info.get("info").and_then(|json| serde_json::from_str(json).ok()).unwrap_or_default();
        let pid = bundle.get("pid").and_then(serde_json::Value::as_i64);
        let network_namespace = bundle
            .pointer("/runtimeSpec/linux/namespaces")
            .and_then(serde_json::Value::as_array)
            .into_iter()
            .flatten()
            .find(|namespace| namespace.get("type").is_some_and(|kind| kind == "network"))
            .and_then(|namespace| namespace.get("path")?.as_str())
            .map(PathBuf::from);
        Self {
            pid: pid.and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 0),
            network_namespace,
        }
    }
}

async fn channel(socket: &Path) -> io::Result<Channel> {
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The connector ignores the address, but gRPC servers refuse a request without an authority.
    Endpoint::from_static("http://localhost")
        .timeout(REQUEST_TIMEOUT)
        .connect_with_connector(connector)
        .await
        .map_err(|error| io::Error::other(format!("{}: {error:?}", socket.display())))
}

/// Creates a directory for logs with its parents. The path is empty if there shall be no logs.
fn make_directory(path: &Path, reason: &'static str) -> Result<(), StartError> {
    if path.is_relative() {
        return Ok(());
    }
    fs::create_dir_all(path).map_err(|error| StartError {
        reason,
        message: format!("mkdir {}: {error}", path.display()),
    })
}

/// Turns a failed request into a start error with the runtime's message, which a kubelet shows.
fn start_error(reason: &'static str) -> impl FnOnce(Status) -> StartError {
    move |status| StartError { reason, message: status.message().to_owned() }
}

/// Turns a failed request into an I/O error that names the request.
fn failed(request: &'static str) -> impl FnOnce(Status) -> io::Error {
    move |status| io::Error::other(format!("CRI {request}: {status}"))
}

/// Removes the pod's own cgroup, the parent of its containers' cgroups, as a kubelet does.
/// Directories that are missing or not empty are left as they are.
fn remove_cgroups(pod_uid: &str) {
    let root = Path::new("/sys/fs/cgroup");
    // cgroup v2 has one hierarchy at the root, cgroup v1 one in each directory below it.
    let below = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    for hierarchy in below.chain([root.to_owned()]) {
        for parent in config::cgroup_parents(pod_uid) {
            let _ = fs::remove_dir(hierarchy.join(parent.trim_start_matches('/')));
        }
    }
}
