//! The embedded kubelet: runs the pods of its nodes on their runtimes and reports on them in the store.
//!
//! One [`worker`] for each pod; this module finds out which pods there are. It is driven by watches and by what the
//! runtime's futures resolve to. Depends on the API server's store and on [`super::runtime`].

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

/// The nodes' own address: they are all this machine.
pub(crate) const HOST_IP: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// What the kubelet of every node shares.
pub(crate) struct Kubelet {
    server: Arc<Server>,
    nodes: BTreeMap<String, Arc<dyn Runtime>>,
    /// Holds the pods' volumes.
    volumes: PathBuf,
    /// The first pause before something that failed is tried again; it doubles up to [`Self::max_back_off`].
    back_off: Duration,
    max_back_off: Duration,
    /// Where pods find the API server, if they can.
    api_server: Option<SocketAddr>,
    tasks: Tasks,
    /// Pods that a runtime was asked to run and not yet to remove, by UID.
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

    /// Registers the nodes and starts to run their pods.
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
                // The history was lost: pods may be gone without a word.
                let (objects, _) = self.server.store.list(&PODS, None, None);
                workers.retain(|uid, _| {
                    objects.iter().any(|pod| object::text(pod, "/metadata/uid") == uid)
                });
            }
            loop {
                match pods.next().await {
                    Ok(ObjectEvent::Added(pod) | ObjectEvent::Modified(pod)) => {
                        self.changed(&pod, &mut workers)
                    }
                    // The worker sees its channel close.
                    Ok(ObjectEvent::Deleted(pod)) => {
                        drop(workers.remove(object::text(&pod, "/metadata/uid")))
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
            // An agent in this process: nothing runs it, so nothing needs to be stopped.
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

    /// The scheduler: gives a pod that asks for the default one to the node with the fewest pods.
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

    /// Changes a pod in the store, unless it is gone or another one has its name.
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

    /// Removes a pod from the store: the last step of its deletion.
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

    /// Has the runtime end a pod, and forgets what was kept for it.
    async fn remove(&self, uid: &str, runtime: &dyn Runtime) {
        runtime.remove_pod(uid).await;
        self.started.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
        self.server.remove_forward(uid);
        self.server.identities.revoke(uid);
        if let Err(error) = volumes::remove(&self.volumes, uid).await {
            tracing::warn!(%error, uid, "volumes of a removed pod");
        }
    }

    /// Removes all pods from their runtimes. Call it when no worker runs any more.
    pub(crate) async fn remove_all(&self) {
        let started =
            std::mem::take(&mut *self.started.lock().unwrap_or_else(PoisonError::into_inner));
        let removals = started.iter().map(|(uid, runtime)| self.remove(uid, runtime.as_ref()));
        futures::future::join_all(removals).await;
    }
}

/// Creates the Node object of a node.
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
