//! The embedded kubelet: runs the pods of all nodes on their runtimes and writes their statuses to
//! the store.
//!
//! Each pod has a [`worker`]; this module watches which pods exist. It acts on changes in the store
//! and on the runtime's futures. It uses the API server's store and [`super::runtime`].

mod record;
mod spec;
mod status;
mod volumes;
mod worker;

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use tokio::sync::watch;

use self::worker::Worker;
use super::{
    api::{
        Forward, Server, Tasks, object,
        resources::{NODES, PODS},
        status::ApiStatus,
        store::Next,
        watch::{ObjectEvent, Watch},
    },
    runtime::Runtime,
};

/// The address of every node: all of them are this machine.
pub(crate) const HOST_IP: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// The kubelet of all nodes.
pub(crate) struct Kubelet {
    server: Arc<Server>,
    nodes: BTreeMap<String, Arc<dyn Runtime>>,
    /// The directory with the pods' volumes.
    volumes: PathBuf,
    /// The pause before the first retry; it doubles with each, up to [`Self::max_back_off`].
    back_off: Duration,
    max_back_off: Duration,
    /// The API server's address for pods; none if they cannot reach it.
    api_server: Option<SocketAddr>,
    tasks: Tasks,
    /// The pods that a runtime was asked to run, and not yet to remove, by UID.
    started: Mutex<HashMap<String, Arc<dyn Runtime>>>,
}

impl Kubelet {
    pub(crate) fn new(
        server: Arc<Server>,
        nodes: BTreeMap<String, Arc<dyn Runtime>>,
        volumes: PathBuf,
        back_off: Duration,
        api_server: Option<SocketAddr>,
        tasks: Tasks,
    ) -> Self {
        let max_back_off = back_off * 32;
        let started = Mutex::default();
        Self { server, nodes, volumes, back_off, max_back_off, api_server, tasks, started }
    }

    /// Creates the Node objects and starts to run pods.
    pub(crate) fn start(self: &Arc<Self>) -> Result<(), ApiStatus> {
        for (name, runtime) in &self.nodes {
            register_node(&self.server, name, runtime.scheme())?;
        }
        self.tasks.spawn(Arc::clone(self).run());
        Ok(())
    }

    async fn run(self: Arc<Self>) {
        let mut workers: HashMap<String, watch::Sender<Pod>> = HashMap::new();
        loop {
            let mut pods = Watch::new(&self.server.store, &PODS, None, Default::default(), 0);
            if !workers.is_empty() {
                // Deletions may be missing from the lost history.
                let (objects, _) = self.server.store.list(&PODS, None, None);
                workers.retain(|uid, _| {
                    objects.iter().any(|pod| object::text(pod, "/metadata/uid") == uid)
                });
            }
            loop {
                match pods.next().await {
                    Ok(ObjectEvent::Added(pod) | ObjectEvent::Modified(pod)) => {
                        self.changed(&pod, &mut workers);
                    }
                    // The worker sees its channel close and takes the pod down.
                    Ok(ObjectEvent::Deleted(pod)) => {
                        drop(workers.remove(object::text(&pod, "/metadata/uid")));
                    }
                    Err(expired) => {
                        tracing::debug!(%expired.message, "listing pods again");
                        break;
                    }
                }
            }
        }
    }

    fn changed(
        self: &Arc<Self>,
        object: &Value,
        workers: &mut HashMap<String, watch::Sender<Pod>>,
    ) {
        let uid = object::text(object, "/metadata/uid");
        if let Some(Forward::Address(_)) = self.server.forward(uid) {
            // The pod of an agent in this process has no containers to stop.
            if object.pointer("/metadata/deletionTimestamp").is_some() {
                self.delete(object);
            }
            return;
        }
        if object::text(object, "/spec/nodeName").is_empty() {
            return self.schedule(object);
        }
        let Some(runtime) = self.nodes.get(object::text(object, "/spec/nodeName")) else { return };
        let pod: Pod = match serde_json::from_value(object.clone()) {
            Ok(pod) => pod,
            Err(error) => return tracing::error!(%error, "a stored pod is no pod"),
        };
        if let Some(worker) = workers.get(uid) {
            worker.send_replace(pod);
        } else {
            let (sender, receiver) = watch::channel(pod);
            workers.insert(uid.to_owned(), sender);
            let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
            started.insert(uid.to_owned(), Arc::clone(runtime));
            self.tasks.spawn(Worker::run(Arc::clone(self), Arc::clone(runtime), receiver));
        }
    }

    /// The scheduler: assigns a pod of the default scheduler to the node with the fewest pods.
    fn schedule(&self, pod: &Value) {
        if object::text(pod, "/spec/schedulerName") != "default-scheduler" {
            return;
        }
        let (pods, _) = self.server.store.list(&PODS, None, None);
        let load = |node: &&String| {
            pods.iter().filter(|p| object::text(p, "/spec/nodeName") == node.as_str()).count()
        };
        let Some(node) = self.nodes.keys().min_by_key(load) else { return };
        self.update(pod, |pod| object::set(pod, &["spec", "nodeName"], node.as_str()));
    }

    /// Changes a pod in the store, unless it was deleted or replaced by another of its name.
    fn update(&self, pod: &Value, change: impl FnOnce(&mut Value)) {
        let uid = object::text(pod, "/metadata/uid");
        let updated =
            self.server.store.update(&PODS, object::namespace(pod), object::name(pod), |current| {
                let mut new = current.clone();
                if object::text(current, "/metadata/uid") == uid {
                    change(&mut new);
                }
                Ok(Next::Store(new))
            });
        if let Err(status) = updated {
            tracing::debug!(status.message, "pod not updated");
        }
    }

    /// Removes a pod from the store, which ends its deletion.
    fn delete(&self, pod: &Value) {
        let uid = object::text(pod, "/metadata/uid");
        let deleted =
            self.server.store.update(&PODS, object::namespace(pod), object::name(pod), |current| {
                let same = object::text(current, "/metadata/uid") == uid;
                Ok(if same { Next::Remove } else { Next::Store(current.clone()) })
            });
        if let Err(status) = deleted {
            tracing::debug!(status.message, "pod not deleted");
        }
    }

    /// Ends a pod in its runtime, and frees its volumes, tokens and port-forwards.
    async fn remove(&self, uid: &str, runtime: &dyn Runtime) {
        runtime.remove_pod(uid).await;
        self.started.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
        self.server.remove_forward(uid);
        self.server.identities.revoke(uid);
        if let Err(error) = volumes::remove(&self.volumes, uid).await {
            tracing::warn!(%error, uid, "volumes of a removed pod");
        }
    }

    /// Removes all pods from their runtimes. No worker may run any more.
    pub(crate) async fn remove_all(&self) {
        let started =
            std::mem::take(&mut *self.started.lock().unwrap_or_else(PoisonError::into_inner));
        let removals = started.iter().map(|(uid, runtime)| self.remove(uid, runtime.as_ref()));
        futures::future::join_all(removals).await;
    }
}

/// Creates the object of a node.
pub(crate) fn register_node(server: &Server, name: &str, runtime: &str) -> Result<(), ApiStatus> {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let condition = json!({
        "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "kubelet is posting ready status",
        "lastHeartbeatTime": object::now(), "lastTransitionTime": object::now(),
    });
    let node = json!({
        "metadata": { "name": name, "labels": {
            "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": std::env::consts::ARCH,
        } },
        "spec": {},
        "status": {
            "addresses": [
                { "type": "InternalIP", "address": HOST_IP },
                { "type": "Hostname", "address": name },
            ],
            "conditions": [condition],
            "nodeInfo": {
                "architecture": std::env::consts::ARCH, "bootID": "", "machineID": "", "systemUUID": "",
                "containerRuntimeVersion": format!("{runtime}://embedded"), "kernelVersion": kernel.trim(),
                "kubeProxyVersion": "", "kubeletVersion": "v1.36.0+podsonde", "operatingSystem": "linux",
                "osImage": "embedded",
            },
        },
    });
    server.create(&NODES, "", node).map(drop)
}
