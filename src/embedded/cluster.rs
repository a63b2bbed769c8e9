//! Starts an embedded cluster, and gives tests and the demo a handle on it.

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use k8s_openapi::{
    ByteString,
    api::{authentication::v1::UserInfo, core::v1::Pod},
};
use kube::config::{AuthInfo, Config};
use serde_json::{Value, json};
use tokio_util::sync::DropGuard;
use uuid::Uuid;

pub use super::api::status::ApiStatus;
use super::{
    api::{
        Address, Authority, FaultState, Forward, Identities, Listener, Server, Tasks,
        TokenIdentity, expiry, object, random_suffix,
        resources::{CONFIG_MAPS, NAMESPACES, NODES, PODS},
        store::{Next, Store},
        watch::{ObjectEvent, Watch},
    },
    kubelet::{self, HOST_IP, Kubelet},
    runtime::Runtime,
};

/// The namespace in which clients look for agents.
const AGENT_NAMESPACE: &str = "podsonde";
/// The port of an agent's pod that clients forward to. The product has a constant of its own, so
/// that a change of one alone fails the tests.
const AGENT_PORT: u16 = 7463;
/// The default number of changes that watches can go back.
const HISTORY: usize = 4096;

/// The configuration of an embedded cluster.
pub struct Builder {
    nodes: BTreeMap<String, Arc<dyn Runtime>>,
    http: SocketAddr,
    https: Option<SocketAddr>,
    token: Option<String>,
    back_off: Duration,
    history: usize,
}

impl Builder {
    /// Adds a node, whose pods this runtime runs.
    #[must_use]
    pub fn node(mut self, name: &str, runtime: Arc<dyn Runtime>) -> Self {
        self.nodes.insert(name.to_owned(), runtime);
        self
    }

    /// The address for plain HTTP, which must be a loopback address. Default: a free port of
    /// 127.0.0.1.
    #[must_use]
    pub fn http(mut self, address: SocketAddr) -> Self {
        self.http = address;
        self
    }

    /// The address for HTTPS, with a certificate by an authority of this cluster. Pods find the API
    /// server at this address. Default: no HTTPS.
    #[must_use]
    pub fn https(mut self, address: SocketAddr) -> Self {
        self.https = Some(address);
        self
    }

    /// Makes this bearer token the administrator's, and applies RBAC to all other users. Default: a
    /// request that shows no known token is an administrator's.
    #[must_use]
    pub fn token(mut self, token: &str) -> Self {
        self.token = Some(token.to_owned());
        self
    }

    /// The pause before the first retry of a container that failed. It doubles with each retry, up
    /// to 32 times this pause. Default: 200 ms.
    #[must_use]
    pub fn back_off(mut self, pause: Duration) -> Self {
        self.back_off = pause;
        self
    }

    /// The number of changes that watches can go back. Default: 4096.
    #[must_use]
    pub fn history(mut self, changes: usize) -> Self {
        self.history = changes;
        self
    }

    /// Starts the cluster.
    ///
    /// # Errors
    /// If an address cannot be listened on, if plain HTTP is not on loopback, or if the directory
    /// of the volumes cannot be made.
    pub async fn start(self) -> anyhow::Result<Cluster> {
        // Every request on this address may be an administrator's, whose containers run as root.
        anyhow::ensure!(self.http.ip().is_loopback(), "{} is no loopback address", self.http);
        let tasks = Tasks::new();
        let guard = tasks.token.clone().drop_guard();
        let volumes = Directory::new().context("make the directory of the volumes")?;
        let store = Arc::new(Store::new(self.history));
        let identities = Identities::new(self.token.clone(), self.https.is_some());
        let server = Arc::new(Server::new(store, identities, tasks.clone()));
        let listen = |address| {
            Listener::bind(address, Arc::clone(&server))
                .with_context(|| format!("listen on {address}"))
        };
        let mut listeners = vec![listen(self.http)?];
        let (http, mut https, mut authority) =
            (listeners.first().map_or(self.http, Listener::address), None, None);
        if let Some(address) = self.https {
            let mut listener = listen(address)?;
            let made =
                Authority::new(listener.address()).context("make a certificate authority")?;
            listener.set_tls(made.acceptor());
            https = Some(listener.address());
            authority = Some(made);
            listeners.push(listener);
        }
        for namespace in ["default", "kube-system", AGENT_NAMESPACE] {
            server.create(&NAMESPACES, "", json!({ "metadata": { "name": namespace } }))?;
            if let Some(authority) = &authority {
                let map = json!({
                    "metadata": { "name": "kube-root-ca.crt" }, "data": { "ca.crt": authority.pem() },
                });
                server.create(&CONFIG_MAPS, namespace, map)?;
            }
        }
        let path = volumes.0.clone();
        let kubelet = Kubelet::new(
            Arc::clone(&server),
            self.nodes,
            path,
            self.back_off,
            https,
            tasks.clone(),
        );
        let kubelet = Arc::new(kubelet);
        kubelet.start()?;
        for listener in &mut listeners {
            listener.open().with_context(|| format!("listen on {}", listener.address()))?;
        }
        let listeners = Arc::new(tokio::sync::Mutex::new(listeners));
        let faults = Faults {
            state: Arc::clone(&server.faults),
            store: Arc::clone(&server.store),
            listeners,
        };
        Ok(Cluster {
            server,
            kubelet,
            tasks,
            faults,
            http,
            https,
            authority,
            token: self.token,
            _volumes: volumes,
            _guard: guard,
        })
    }
}

/// A running embedded cluster. Dropping it ends its tasks; [`Cluster::shutdown`] also ends its
/// pods.
pub struct Cluster {
    server: Arc<Server>,
    kubelet: Arc<Kubelet>,
    tasks: Tasks,
    faults: Faults,
    http: SocketAddr,
    https: Option<SocketAddr>,
    authority: Option<Authority>,
    token: Option<String>,
    _volumes: Directory,
    _guard: DropGuard,
}

impl Cluster {
    /// A cluster without nodes, to configure and start.
    pub fn builder() -> Builder {
        Builder {
            nodes: BTreeMap::new(),
            http: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            https: None,
            token: None,
            back_off: Duration::from_millis(200),
            history: HISTORY,
        }
    }

    /// The address without TLS, for example `http://127.0.0.1:36001`.
    pub fn url(&self) -> String {
        format!("http://{}", self.http)
    }

    /// The address with TLS, if HTTPS is served.
    pub fn https_url(&self) -> Option<String> {
        self.https.map(|address| format!("https://{address}"))
    }

    /// The certificate of the cluster's authority as PEM, if HTTPS is served.
    pub fn ca_pem(&self) -> Option<&str> {
        self.authority.as_ref().map(Authority::pem)
    }

    /// An administrator's client, without TLS.
    ///
    /// # Errors
    /// If the client cannot be made.
    pub fn client(&self) -> anyhow::Result<kube::Client> {
        let mut config = Config::new(self.url().parse()?);
        config.auth_info = self.auth_info();
        Ok(kube::Client::try_from(config)?)
    }

    /// A client that shows this token, without TLS.
    ///
    /// # Errors
    /// If the client cannot be made.
    pub fn client_with(&self, token: &str) -> anyhow::Result<kube::Client> {
        let mut config = Config::new(self.url().parse()?);
        config.auth_info = AuthInfo { token: Some(token.to_owned().into()), ..AuthInfo::default() };
        Ok(kube::Client::try_from(config)?)
    }

    /// Issues a token for a user, which TokenReview then knows. Without `audiences` it is for the
    /// API server. The roles and bindings in the cluster decide what the user may do.
    pub fn issue_token(&self, user: UserInfo, audiences: &[&str], lifetime: Duration) -> String {
        self.server.identities.issue(TokenIdentity {
            user,
            audiences: audiences.iter().map(|&audience| audience.to_owned()).collect(),
            expires_at: expiry(lifetime),
            pod_uid: String::new(),
        })
    }

    /// Revokes a token.
    pub fn revoke_token(&self, token: &str) {
        self.server.identities.revoke_token(token);
    }

    /// An administrator's client for the HTTPS address.
    ///
    /// # Errors
    /// If HTTPS is not served, or if the client cannot be made.
    pub fn https_client(&self) -> anyhow::Result<kube::Client> {
        let (url, authority) = self
            .https_url()
            .zip(self.authority.as_ref())
            .context("the cluster does not serve HTTPS")?;
        let mut config = Config::new(url.parse()?);
        config.root_cert = Some(vec![authority.der().to_vec()]);
        config.auth_info = self.auth_info();
        Ok(kube::Client::try_from(config)?)
    }

    fn auth_info(&self) -> AuthInfo {
        let token = self.token.clone().map(Into::into);
        AuthInfo { token, ..AuthInfo::default() }
    }

    /// A kubeconfig for the cluster, with the HTTPS address if there is one. It is JSON, which is
    /// also YAML.
    pub fn kubeconfig(&self) -> String {
        let mut cluster = json!({ "server": self.https_url().unwrap_or_else(|| self.url()) });
        if let Some(pem) = self.ca_pem() {
            let base64 =
                serde_json::to_value(ByteString(pem.as_bytes().to_vec())).unwrap_or_default();
            object::set(&mut cluster, &["certificate-authority-data"], base64);
        }
        // kubectl asks for a user name if it has no credentials and speaks TLS.
        let user = json!({ "token": self.token.as_deref().unwrap_or("anyone") });
        let name = "podsonde-embedded";
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": name,
            "clusters": [{ "name": name, "cluster": cluster }],
            "users": [{ "name": name, "user": user }],
            "contexts": [{ "name": name, "context": { "cluster": name, "user": name } }],
        });
        format!("{config:#}")
    }

    /// Creates a pod as a request would, in the namespace of its metadata, or in `default`.
    ///
    /// # Errors
    /// Those of the API.
    pub async fn create_pod(&self, pod: Value) -> Result<Pod, ApiStatus> {
        let namespace = match object::namespace(&pod) {
            "" => "default".to_owned(),
            namespace => namespace.to_owned(),
        };
        typed(&*self.server.create(&PODS, &namespace, pod)?)
    }

    /// Deletes a pod as a request would. `grace` is the grace period in seconds; 0 removes the pod
    /// from the API at once.
    ///
    /// # Errors
    /// Those of the API.
    pub async fn delete_pod(
        &self,
        namespace: &str,
        name: &str,
        grace: i64,
    ) -> Result<(), ApiStatus> {
        self.server.delete_pod(namespace, name, grace)
    }

    /// Waits until `wanted` accepts the pod, and returns it. There is no deadline.
    ///
    /// # Errors
    /// 404 once the pod is deleted.
    pub async fn wait_pod(
        &self,
        namespace: &str,
        name: &str,
        mut wanted: impl FnMut(&Pod) -> bool,
    ) -> Result<Pod, ApiStatus> {
        let store = &self.server.store;
        loop {
            let mut events =
                Watch::new(store, &PODS, Some(namespace.to_owned()), Default::default(), 0);
            loop {
                match events.next().await {
                    Ok(ObjectEvent::Added(pod) | ObjectEvent::Modified(pod))
                        if object::name(&pod) == name =>
                    {
                        let pod = typed(&pod)?;
                        if wanted(&pod) {
                            return Ok(pod);
                        }
                    }
                    Ok(ObjectEvent::Deleted(pod)) if object::name(&pod) == name => {
                        return Err(ApiStatus::not_found(&PODS, name));
                    }
                    Ok(_) => {}
                    Err(_expired) => break,
                }
            }
        }
    }

    /// Waits until no pod has this name. There is no deadline.
    pub async fn wait_deleted(&self, namespace: &str, name: &str) {
        let mut latest = self.server.store.subscribe();
        while self.server.store.get(&PODS, namespace, name).is_some() {
            // The store owns the sender, and this cluster the store.
            let _ = latest.changed().await;
        }
    }

    /// Registers an agent that is no container: adds a running pod for it on this node, whose
    /// port-forwards all lead to `address`. Creates the node if it does not exist. Returns the
    /// pod's name.
    ///
    /// # Errors
    /// Those of the API.
    pub async fn register_agent(
        &self,
        node: &str,
        address: impl Into<Address>,
    ) -> Result<String, ApiStatus> {
        if self.server.store.get(&NODES, "", node).is_none() {
            kubelet::register_node(&self.server, node, "none")?;
        }
        let name = format!("podsonde-agent-{}", random_suffix());
        let pod = json!({
            "metadata": { "name": name, "labels": { "app.kubernetes.io/name": "podsonde-agent" } },
            "spec": {
                // An unknown scheduler leaves the pod alone until its address is known.
                "schedulerName": "none",
                "serviceAccountName": "podsonde-agent", "automountServiceAccountToken": false,
                "containers": [{
                    "name": "agent", "image": "podsonde-agent:in-process",
                    "ports": [{ "name": "grpc", "containerPort": AGENT_PORT }],
                }],
            },
        });
        let created = self.server.create(&PODS, AGENT_NAMESPACE, pod)?;
        self.server
            .set_forward(object::text(&created, "/metadata/uid"), Forward::Address(address.into()));
        let now = object::now();
        let condition =
            |kind: &str| json!({ "type": kind, "status": "True", "lastTransitionTime": now });
        let conditions = ["PodScheduled", "Initialized", "ContainersReady", "Ready"].map(condition);
        let status = json!({
            "phase": "Running", "qosClass": "BestEffort", "startTime": now, "hostIP": HOST_IP, "podIP": HOST_IP,
            "podIPs": [{ "ip": HOST_IP }],
            "conditions": conditions,
            "containerStatuses": [{
                "name": "agent", "image": "podsonde-agent:in-process", "imageID": "", "ready": true, "started": true,
                "restartCount": 0, "state": { "running": { "startedAt": now } }, "lastState": {},
            }],
        });
        self.server.store.update(&PODS, AGENT_NAMESPACE, &name, |pod| {
            let mut pod = pod.clone();
            object::set(&mut pod, &["spec", "nodeName"], node);
            object::set(&mut pod, &["status"], status);
            Ok(Next::Store(pod))
        })?;
        Ok(name)
    }

    /// The faults that tests can give the API server.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Stops the API server, and removes all pods from their runtimes.
    pub async fn shutdown(self) {
        for listener in self.faults.listeners.lock().await.iter_mut() {
            listener.close().await;
        }
        self.tasks.end().await;
        self.kubelet.remove_all().await;
    }
}

fn typed(pod: &Value) -> Result<Pod, ApiStatus> {
    serde_json::from_value(pod.clone()).map_err(ApiStatus::internal)
}

/// Makes the API server of a cluster fail. Every fault can be set and undone while it runs, and
/// none affects the kubelet.
#[derive(Clone)]
pub struct Faults {
    state: Arc<FaultState>,
    store: Arc<Store>,
    listeners: Arc<tokio::sync::Mutex<Vec<Listener>>>,
}

impl Faults {
    /// Closes all connections and refuses new ones until [`Self::up`].
    pub async fn refuse_connections(&self) {
        for listener in self.listeners.lock().await.iter_mut() {
            listener.close().await;
        }
    }

    /// Accepts connections but answers nothing, not even on open watches, until [`Self::up`].
    pub fn hang(&self) {
        self.state.hang(true);
    }

    /// Ends [`Self::refuse_connections`] and [`Self::hang`].
    ///
    /// # Errors
    /// If an address cannot be listened on.
    pub async fn up(&self) -> io::Result<()> {
        self.state.hang(false);
        for listener in self.listeners.lock().await.iter_mut() {
            listener.open()?;
        }
        Ok(())
    }

    /// Delays every answer by this much. Zero, the default, ends the delay.
    pub fn delay(&self, delay: Duration) {
        self.state.delay(delay);
    }

    /// Answers the next `times` requests with this verb (`patch`) for this resource
    /// (`pods/ephemeralcontainers`) with `status`; `*` stands for any. A watch gets a 410 as an
    /// `ERROR` event.
    pub fn fail_next(&self, times: usize, verb: &str, resource: &str, status: ApiStatus) {
        self.state.fail(verb, resource, times, status);
    }

    /// Resolves when the next request with this verb for this resource has arrived, even if it then
    /// hangs or fails.
    pub fn arrival(&self, verb: &'static str, resource: &str) -> impl Future<Output = ()> + use<> {
        self.state.arrival(verb, resource)
    }

    /// Closes the connections of all open watches.
    pub fn break_watches(&self) {
        self.state.break_watches();
    }

    /// Forgets the history: all open watches, and all watches from a known version, are too old
    /// from now on.
    pub fn compact(&self) {
        self.store.compact();
    }

    /// Ends [`Self::hang`], [`Self::delay`] and the rest of [`Self::fail_next`].
    pub fn clear(&self) {
        self.state.clear();
    }
}

/// A new directory, which is removed when this is dropped.
struct Directory(PathBuf);

impl Directory {
    fn new() -> io::Result<Self> {
        let path =
            std::env::temp_dir().join(format!("podsonde-embedded-{}", Uuid::new_v4().simple()));
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_dir_all(path) {
        tracing::warn!(%error, path = %path.display(), "directory of the volumes");
    }
}
