//! Starting an embedded cluster, and what tests and the demo do with it.

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

/// The namespace of the agents.
const AGENT_NAMESPACE: &str = "podsonde";
/// The port that clients ask an agent's pod for.
const AGENT_PORT: u16 = 7463;
/// Changes that watches can go back.
const HISTORY: usize = 4096;

/// What an embedded cluster shall be made of.
pub struct Builder {
    nodes: BTreeMap<String, Arc<dyn Runtime>>,
    http: SocketAddr,
    https: Option<SocketAddr>,
    token: Option<String>,
    back_off: Duration,
    history: usize,
}

impl Builder {
    /// Adds a node whose pods this runtime runs.
    #[must_use]
    pub fn node(mut self, name: &str, runtime: Arc<dyn Runtime>) -> Self {
        self.nodes.insert(name.to_owned(), runtime);
        self
    }

    /// Where plain HTTP is served, which must be a loopback address. Default: a free port on 127.0.0.1.
    #[must_use]
    pub fn http(mut self, address: SocketAddr) -> Self {
        self.http = address;
        self
    }

    /// Also serves HTTPS there, with a certificate of an authority made for this cluster. The address is the one that
    /// pods are told to find the API server at. Default: not served.
    #[must_use]
    pub fn https(mut self, address: SocketAddr) -> Self {
        self.https = Some(address);
        self
    }

    /// Takes this bearer token for an administrator's, and asks RBAC about all other users. Default: who shows no token that the server
    /// knows is an administrator.
    #[must_use]
    pub fn token(mut self, token: &str) -> Self {
        self.token = Some(token.to_owned());
        self
    }

    /// The first pause before a container that failed is tried again; it doubles up to 32 times that.
    /// Default: 200 ms.
    #[must_use]
    pub fn back_off(mut self, pause: Duration) -> Self {
        self.back_off = pause;
        self
    }

    /// How many changes are remembered for watches. Default: 4096.
    #[must_use]
    pub fn history(mut self, changes: usize) -> Self {
        self.history = changes;
        self
    }

    /// Starts the cluster. Errors: an address that can't be listened on, plain HTTP not
    /// on loopback, no room for volumes.
    pub async fn start(self) -> anyhow::Result<Cluster> {
        // Whoever reaches it is let in, and what it runs may run as root.
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

/// An embedded cluster that runs. Dropping it ends its tasks; [`Cluster::shutdown`] also ends its pods.
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
    /// A cluster without nodes, to be added to.
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

    /// Where it is reached without TLS: `http://127.0.0.1:36001`.
    pub fn url(&self) -> String {
        format!("http://{}", self.http)
    }

    /// Where it is reached with TLS, if it is.
    pub fn https_url(&self) -> Option<String> {
        self.https.map(|address| format!("https://{address}"))
    }

    /// The certificate of its authority, PEM, if it serves HTTPS.
    pub fn ca_pem(&self) -> Option<&str> {
        self.authority.as_ref().map(Authority::pem)
    }

    /// A client for it, without TLS. Errors: the client can't be made.
    pub fn client(&self) -> anyhow::Result<kube::Client> {
        let mut config = Config::new(self.url().parse()?);
        config.auth_info = self.auth_info();
        Ok(kube::Client::try_from(config)?)
    }

    /// A client for it that shows this token instead of the administrator's. Errors: the client can't be made.
    pub fn client_with(&self, token: &str) -> anyhow::Result<kube::Client> {
        let mut config = Config::new(self.url().parse()?);
        config.auth_info = AuthInfo { token: Some(token.to_owned().into()), ..AuthInfo::default() };
        Ok(kube::Client::try_from(config)?)
    }

    /// A new token for a user, which TokenReview knows. `audiences`: whom it is meant for; none: the API server.
    /// What the user may do is up to the roles and bindings that the cluster holds.
    pub fn issue_token(&self, user: UserInfo, audiences: &[&str], lifetime: Duration) -> String {
        self.server.identities.issue(TokenIdentity {
            user,
            audiences: audiences.iter().map(|&audience| audience.to_owned()).collect(),
            expires_at: expiry(lifetime),
            pod_uid: String::new(),
        })
    }

    /// Makes a token worthless.
    pub fn revoke_token(&self, token: &str) {
        self.server.identities.revoke_token(token);
    }

    /// A client for its HTTPS address. Errors: it has none, or the client can't be made.
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

    /// A kubeconfig for it, as JSON, which is YAML, too. It names the HTTPS address if there is one.
    pub fn kubeconfig(&self) -> String {
        let mut cluster = json!({ "server": self.https_url().unwrap_or_else(|| self.url()) });
        if let Some(pem) = self.ca_pem() {
            let base64 =
                serde_json::to_value(ByteString(pem.as_bytes().to_vec())).unwrap_or_default();
            object::set(&mut cluster, &["certificate-authority-data"], base64);
        }
        // Without any credentials kubectl asks for a user name as soon as it speaks TLS.
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

    /// Creates a pod, as a request would; its namespace is the one in its metadata, or `default`.
    /// Errors: the API's.
    pub async fn create_pod(&self, pod: Value) -> Result<Pod, ApiStatus> {
        let namespace = match object::namespace(&pod) {
            "" => "default".to_owned(),
            namespace => namespace.to_owned(),
        };
        typed(&*self.server.create(&PODS, &namespace, pod)?)
    }

    /// Deletes a pod, as a request would that gives it so many seconds to end; 0 removes it from the API at once.
    /// Errors: the API's.
    pub async fn delete_pod(
        &self,
        namespace: &str,
        name: &str,
        grace: i64,
    ) -> Result<(), ApiStatus> {
        self.server.delete_pod(namespace, name, grace)
    }

    /// Waits until a pod is as wanted and returns it. Errors: 404 once the pod is deleted. It has no deadline: put
    /// one around it.
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

    /// Waits until no pod has this name. It has no deadline, either.
    pub async fn wait_deleted(&self, namespace: &str, name: &str) {
        let mut latest = self.server.store.subscribe();
        while self.server.store.get(&PODS, namespace, name).is_some() {
            // The sender lives in the store.
            let _ = latest.changed().await;
        }
    }

    /// Adds a running agent pod on this node that no runtime runs: port-forwards to any of its ports lead to
    /// `address`. Makes the node if there is none of that name. Returns the pod's name. Errors: the API's.
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
                // Nobody schedules it until its address is known.
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

    /// What can be made to fail.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Stops serving and removes all pods from their runtimes.
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

/// Makes the API server of a cluster fail. All of it can be set and undone while it runs; none of it touches the
/// kubelet.
#[derive(Clone)]
pub struct Faults {
    state: Arc<FaultState>,
    store: Arc<Store>,
    listeners: Arc<tokio::sync::Mutex<Vec<Listener>>>,
}

impl Faults {
    /// Breaks all connections and refuses new ones until [`Self::up`].
    pub async fn refuse_connections(&self) {
        for listener in self.listeners.lock().await.iter_mut() {
            listener.close().await;
        }
    }

    /// Accepts connections and answers nothing, watches included, until [`Self::up`].
    pub fn hang(&self) {
        self.state.hang(true);
    }

    /// Ends what [`Self::refuse_connections`] and [`Self::hang`] began. Errors: the address can't be listened on.
    pub async fn up(&self) -> io::Result<()> {
        self.state.hang(false);
        for listener in self.listeners.lock().await.iter_mut() {
            listener.open()?;
        }
        Ok(())
    }

    /// Answers every request so much later. Zero, the default, undoes it.
    pub fn delay(&self, delay: Duration) {
        self.state.delay(delay);
    }

    /// Answers the next `times` requests with this verb (`patch`) for this resource (`pods/ephemeralcontainers`) with
    /// this status instead; `*` stands for any. A watch that is answered 410 gets it as an `ERROR` event.
    pub fn fail_next(&self, times: usize, verb: &str, resource: &str, status: ApiStatus) {
        self.state.fail(verb, resource, times, status);
    }

    /// Resolves when the next request with this verb for this resource has arrived, also if it then hangs or fails.
    pub fn arrival(&self, verb: &'static str, resource: &str) -> impl Future<Output = ()> + use<> {
        self.state.arrival(verb, resource)
    }

    /// Breaks the connections of all watches that are open.
    pub fn break_watches(&self) {
        self.state.break_watches();
    }

    /// Forgets all history: watches that are open or from a known version are too old from now on.
    pub fn compact(&self) {
        self.store.compact();
    }

    /// Undoes [`Self::hang`], [`Self::delay`] and what is left of [`Self::fail_next`].
    pub fn clear(&self) {
        self.state.clear();
    }
}

/// A directory of our own, removed when dropped.
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
