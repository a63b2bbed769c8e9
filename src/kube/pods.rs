//! The pods of the agent's node, kept up to date by a watch. The agent serves no others.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1 as core;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt, watcher, watcher::Event},
};
use tokio::sync::watch;

use super::{
    error::{from_kube, is_busy},
    retry::retried,
};
use crate::domain::{
    Error, ErrorKind, Reason, Result,
    pod::{Container, ContainerId, ContainerKind, ContainerState, Phase, Pod},
    session::SessionFacts,
};

/// The annotation of a static pod's mirror. Its value is the hash that names the pod's cgroup.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// The annotation that names the default container.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";
/// How long reading one pod may take.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Namespace and name.
type Key = (String, String);

/// The pods of one node.
#[derive(Debug)]
pub struct Pods {
    node: String,
    api: Api<core::Pod>,
    pods: RwLock<BTreeMap<Key, Arc<Pod>>>,
    /// Counts changes; 0 until the first list is complete.
    version: watch::Sender<u64>,
    watch_errors: AtomicU64,
}

impl Pods {
    /// Creates an empty store for `node`; [`Pods::run`] fills it.
    pub fn new(client: Client, node: &str) -> Self {
        Self {
            node: node.to_owned(),
            api: Api::all(client),
            pods: RwLock::default(),
            version: watch::Sender::new(0),
            watch_errors: AtomicU64::new(0),
        }
    }

    /// Watches until dropped. Errors are retried with a back-off; meanwhile the pods stay as last
    /// seen.
    pub async fn run(&self) {
        let config = watcher::Config::default().fields(&format!("spec.nodeName={}", self.node));
        let mut events = watcher(self.api.clone(), config).default_backoff().boxed();
        let mut listed = BTreeMap::new();
        loop {
            match events.try_next().await {
                Ok(Some(event)) => self.apply(event, &mut listed),
                Ok(None) => return,
                Err(error) => {
                    self.watch_errors.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(%error, "cannot watch the pods of this node, retrying");
                }
            }
        }
    }

    /// Whether the first list is complete.
    pub fn is_ready(&self) -> bool {
        *self.version.borrow() > 0
    }

    /// How often the watch has failed since the start.
    pub fn watch_errors(&self) -> u64 {
        self.watch_errors.load(Ordering::Relaxed)
    }

    /// A receiver that is notified of each change from now on.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// All pods, ordered by namespace and name.
    pub fn all(&self) -> Vec<Arc<Pod>> {
        self.pods.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The pod of that name, if the watch knows it.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let key = (namespace.to_owned(), name.to_owned());
        self.pods.read().unwrap_or_else(PoisonError::into_inner).get(&key).cloned()
    }

    /// The pod of that name, if it is on this node and passes `check`. The watch may lag behind the
    /// API server, so a pod that fails is read from the API server and checked once more.
    ///
    /// # Errors
    /// POD_NOT_FOUND, POD_ON_OTHER_NODE, POD_NOT_SCHEDULED, NOT_READY, API_UNREACHABLE,
    /// AGENT_FORBIDDEN, and those of `check`.
    pub async fn find<T>(
        &self,
        namespace: &str,
        name: &str,
        check: impl Fn(&Arc<Pod>) -> Result<T>,
    ) -> Result<(Arc<Pod>, T)> {
        let about = |e: Error| e.pod(namespace, name).node(&self.node);
        let known = self.get(namespace, name).map(|pod| check(&pod).map(|checked| (pod, checked)));
        match known {
            Some(Err(error))
                if !matches!(error.kind(), ErrorKind::FailedPrecondition | ErrorKind::NotFound) =>
            {
                Err(about(error))
            }
            Some(Ok(found)) => Ok(found),
            Some(Err(_)) | None => {
                let pod = self.fetch(namespace, name).await.map_err(about)?;
                let checked = check(&pod).map_err(about)?;
                Ok((pod, checked))
            }
        }
    }

    /// Reads the pod from the API server and checks that it is on this node.
    async fn fetch(&self, namespace: &str, name: &str) -> Result<Arc<Pod>> {
        if !self.is_ready() {
            return Err(Error::new(
                Reason::NotReady,
                "the agent has not read the pods of its node yet",
            ));
        }
        let pod = self.read(namespace, name).await?;
        let pod =
            pod.map(convert).ok_or_else(|| Error::new(Reason::PodNotFound, "does not exist"))?;
        match pod.node.as_str() {
            node if node == self.node => Ok(Arc::new(pod)),
            "" => Err(Error::new(Reason::PodNotScheduled, "is not scheduled to a node yet")),
            node => {
                let message =
                    format!("runs on node {node}; this is the agent of node {}", self.node);
                Err(Error::new(Reason::PodOnOtherNode, message))
            }
        }
    }

    /// Reads the same pod from the API server. None if it is gone, or if another pod has its name.
    ///
    /// # Errors
    /// API_UNREACHABLE, AGENT_FORBIDDEN.
    pub async fn current(&self, pod: &Pod) -> Result<Option<Arc<Pod>>> {
        let found = self.read(&pod.namespace, &pod.name).await?.map(convert);
        Ok(found.filter(|found| found.uid == pod.uid).map(Arc::new))
    }

    async fn read(&self, namespace: &str, name: &str) -> Result<Option<core::Pod>> {
        let api = Api::<core::Pod>::namespaced(self.api.clone().into_client(), namespace);
        match tokio::time::timeout(READ_TIMEOUT, retried(is_busy, || api.get_opt(name))).await {
            Ok(found) => found.map_err(|e| from_kube("read the pod", &e)),
            Err(_) => {
                let message =
                    format!("the API server did not answer within {} s", READ_TIMEOUT.as_secs());
                Err(Error::new(Reason::ApiUnreachable, message))
            }
        }
    }

    fn apply(&self, event: Event<core::Pod>, listed: &mut BTreeMap<Key, Arc<Pod>>) {
        let key = |pod: &Pod| (pod.namespace.clone(), pod.name.clone());
        let mut pods = self.pods.write().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Init => return listed.clear(),
            Event::InitApply(pod) => {
                let pod = Arc::new(convert(pod));
                listed.insert(key(&pod), pod);
                return;
            }
            Event::InitDone => *pods = std::mem::take(listed),
            Event::Apply(pod) => {
                let pod = Arc::new(convert(pod));
                pods.insert(key(&pod), pod);
            }
            Event::Delete(pod) => {
                pods.remove(&key(&convert(pod)));
            }
        }
        drop(pods);
        self.version.send_modify(|v| *v = v.saturating_add(1));
    }
}

/// Keeps what podsonde needs of a pod. Everything in it but the UID may be written by people: see
/// `is_powerful` for what is relied on.
pub fn convert(pod: core::Pod) -> Pod {
    let spec = pod.spec.unwrap_or_default();
    let status = pod.status.unwrap_or_default();
    let mut states = Statuses::default();
    states.add(status.init_container_statuses);
    states.add(status.container_statuses);
    states.add(status.ephemeral_container_statuses);

    let is_sidecar = |c: &core::Container| c.restart_policy.as_deref() == Some("Always");
    let init = spec.init_containers.unwrap_or_default().into_iter().map(|c| {
        let kind = if is_sidecar(&c) { ContainerKind::Sidecar } else { ContainerKind::Init };
        (kind, c.name, c.image, c.security_context, String::new(), Vec::new())
    });
    let regular = spec.containers.into_iter().map(|c| {
        (ContainerKind::Regular, c.name, c.image, c.security_context, String::new(), Vec::new())
    });
    let ephemeral = spec.ephemeral_containers.unwrap_or_default().into_iter().map(|c| {
        let target = c.target_container_name.unwrap_or_default();
        (
            ContainerKind::Ephemeral,
            c.name,
            c.image,
            c.security_context,
            target,
            c.env.unwrap_or_default(),
        )
    });
    let containers =
        init.chain(regular).chain(ephemeral).map(|(kind, name, image, security, target, env)| {
            let (id, state) = states.take(&name);
            let env = env.iter().map(|v| (v.name.as_str(), v.value.as_deref().unwrap_or_default()));
            Container {
                session: SessionFacts::from_env(env),
                kind,
                image: image.unwrap_or_default(),
                privileged: security.and_then(|s| s.privileged).unwrap_or_default(),
                target,
                id,
                state,
                name,
            }
        });
    let containers = containers.collect();
    let annotations = pod.metadata.annotations.unwrap_or_default();
    let uid = pod.metadata.uid.unwrap_or_default();
    Pod {
        namespace: pod.metadata.namespace.unwrap_or_default(),
        name: pod.metadata.name.unwrap_or_default(),
        // The mirror of a static pod has a UID of its own, but the kubelet names the cgroup by the
        // hash in the annotation. Anybody who may create pods may write it, so it counts only in a
        // form that can be no pod's UID, and every pod with it takes the right to the node.
        cgroup_uid: annotations.get(MIRROR).filter(|hash| is_hash(hash)).unwrap_or(&uid).clone(),
        uid,
        labels: pod.metadata.labels.unwrap_or_default(),
        node: spec.node_name.unwrap_or_default(),
        phase: match status.phase.as_deref() {
            Some("Running") => Phase::Running,
            Some("Succeeded") => Phase::Succeeded,
            Some("Failed") => Phase::Failed,
            Some("Unknown") => Phase::Unknown,
            _ => Phase::Pending,
        },
        terminating: pod.metadata.deletion_timestamp.is_some(),
        mirror: annotations.contains_key(MIRROR),
        host_network: spec.host_network.unwrap_or_default(),
        host_pid: spec.host_pid.unwrap_or_default(),
        host_ipc: spec.host_ipc.unwrap_or_default(),
        host_users: spec.host_users.unwrap_or(true),
        host_path: spec.volumes.iter().flatten().any(|volume| volume.host_path.is_some()),
        default_container: annotations.get(DEFAULT_CONTAINER).cloned().unwrap_or_default(),
        share_process_namespace: spec.share_process_namespace.unwrap_or_default(),
        runtime_class: spec.runtime_class_name.unwrap_or_default(),
        containers,
    }
}

/// Whether `text` is a hash as the kubelet makes them: 32 hexadecimal digits, without the hyphens
/// of a UID.
fn is_hash(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The container statuses of a pod, by container name.
#[derive(Default)]
struct Statuses(HashMap<String, (Option<ContainerId>, ContainerState)>);

impl Statuses {
    fn add(&mut self, statuses: Option<Vec<core::ContainerStatus>>) {
        for status in statuses.unwrap_or_default() {
            let id = status.container_id.as_deref().and_then(ContainerId::parse);
            self.0.insert(status.name, (id, state(status.state.unwrap_or_default())));
        }
    }

    fn take(&mut self, name: &str) -> (Option<ContainerId>, ContainerState) {
        self.0.remove(name).unwrap_or_default()
    }
}

fn state(state: core::ContainerState) -> ContainerState {
    if state.running.is_some() {
        return ContainerState::Running;
    }
    if let Some(t) = state.terminated {
        let (reason, message) = (t.reason.unwrap_or_default(), t.message.unwrap_or_default());
        return ContainerState::Terminated { exit_code: t.exit_code, reason, message };
    }
    state.waiting.map_or(ContainerState::Absent, |w| ContainerState::Waiting {
        reason: w.reason.unwrap_or_default(),
        message: w.message.unwrap_or_default(),
    })
}
