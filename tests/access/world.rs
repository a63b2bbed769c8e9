//! A cluster that asks for credentials, its agent, users with rights, and what was logged.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use k8s_openapi::api::{
    authentication::v1::UserInfo,
    core::v1::Namespace,
    rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding},
};
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams},
};
use podsonde::{
    agent::{
        access,
        app::{Agent, AgentIdentity, Settings},
        audit::Sink,
        config::{FileLimits, Limits, Listen},
    },
    embedded::{
        Cluster,
        namespaces::{NamespaceOptions, NamespaceRuntime},
    },
    sys::{broker::NamespaceEntry, capture::compiler::Compiler},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tonic::{Status, transport::Channel};
use tonic_types::StatusExt;

pub(crate) const NODE: &str = "node-a";
pub(crate) const SLEEP: &str = "podsonde.dev/demo/sleep:1";
/// Never pulled.
pub(crate) const NO_IMAGE: &str = "no.such.registry/tool:1";
pub(crate) const HOUR: Duration = Duration::from_secs(3600);
/// Longer than anything here takes; what hangs fails the test.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it takes too long")
}

/// What a user is granted: a verb on a resource, in a namespace or, if that is empty, in the whole
/// cluster.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Right {
    pub(crate) verb: &'static str,
    pub(crate) resource: &'static str,
    pub(crate) namespace: &'static str,
}

pub(crate) const fn right(
    verb: &'static str,
    resource: &'static str,
    namespace: &'static str,
) -> Right {
    Right { verb, resource, namespace }
}

/// A cluster with an agent.
pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) admin: Client,
    agent: Agent,
    pub(crate) channel: Channel,
    pub(crate) audit: PathBuf,
    /// Holds the audit log.
    _directory: tempfile::TempDir,
    /// Everything that may stand in no log.
    pub(crate) secrets: Mutex<Vec<String>>,
}

/// How the agent of a world is started.
pub(crate) struct Setup {
    pub(crate) access: access::AccessOptions,
    pub(crate) limits: Limits,
    /// None: a file of the world's.
    pub(crate) audit: Option<PathBuf>,
    /// Whether anything runs the node's pods.
    pub(crate) runs: bool,
}

impl Default for Setup {
    fn default() -> Self {
        let often = Duration::from_millis(200);
        let access = access::AccessOptions {
            reauthorize_interval: often,
            ..access::AccessOptions::default()
        };
        let files = FileLimits { allow_file_writes: true, ..FileLimits::default() };
        let limits = Limits { files, ..Limits::default() };
        Self { access, limits, audit: None, runs: true }
    }
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::with(Setup::default()).await
    }

    pub(crate) async fn with(setup: Setup) -> Self {
        log();
        let options = NamespaceOptions {
            executable: PathBuf::from(env!("CARGO_BIN_EXE_podsonde")),
            ..NamespaceOptions::default()
        };
        let admin_token = uuid::Uuid::new_v4().to_string();
        let mut cluster = Cluster::builder().token(&admin_token).https(([127, 0, 0, 1], 0).into());
        if setup.runs {
            cluster = cluster.node(NODE, Arc::new(NamespaceRuntime::new(options).unwrap()));
        }
        let cluster = cluster.start().await.unwrap();
        let admin = cluster.client().unwrap();
        // The agent has the rights that it has when it is installed, and no others.
        apply(&admin, &Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/base/rbac.yaml")).await;
        let account = user("system:serviceaccount:podsonde:podsonde-agent");
        let agent_token = cluster.issue_token(account, &[], HOUR);
        let directory = tempfile::tempdir().unwrap();
        let audit = setup.audit.unwrap_or_else(|| directory.path().join("audit.json"));
        let settings = Settings {
            compiler: Compiler::by(env!("CARGO_BIN_EXE_podsonde-agent").into()),
            node: NODE.to_owned(),
            listen: ["127.0.0.1:0", "tls://127.0.0.1:0"]
                .map(|at| at.parse::<Listen>().unwrap())
                .into(),
            metrics_listen: None,
            host_pid: std::process::id(),
            limits: setup.limits,
            entry: Arc::new(NamespaceEntry::InProcess),
            access: setup.access,
            audit: Sink::File(audit.clone()),
            identity: AgentIdentity::default(),
        };
        let agent =
            Agent::start(cluster.client_with(&agent_token).unwrap(), settings).await.unwrap();
        let endpoint = format!("http://{}", agent.addresses()[0]);
        let channel = Channel::from_shared(endpoint).unwrap().connect().await.unwrap();
        let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
        let mut watch = health
            .watch(tonic_health::pb::HealthCheckRequest::default())
            .await
            .unwrap()
            .into_inner();
        within(async { while watch.message().await.unwrap().unwrap().status != 1 {} }).await;
        let secrets = Mutex::new(vec![admin_token, agent_token]);
        Self { cluster, admin, agent, channel, audit, _directory: directory, secrets }
    }

    /// Where it serves TLS.
    pub(crate) fn tls_address(&self) -> std::net::SocketAddr {
        self.agent.addresses()[1]
    }

    pub(crate) fn address(&self) -> std::net::SocketAddr {
        self.agent.addresses()[0]
    }

    pub(crate) async fn namespace(&self, name: &str) {
        let namespace = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
        Api::<Namespace>::all(self.admin.clone())
            .create(&PostParams::default(), &namespace)
            .await
            .unwrap();
    }

    /// A pod that runs.
    pub(crate) async fn pod(&self, namespace: &str, name: &str, more: Value) {
        let mut spec = json!({"nodeName": NODE, "containers": [{"name": "web", "image": SLEEP}]});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let pod = json!({"metadata": {"name": name, "namespace": namespace}, "spec": spec});
        self.cluster.create_pod(pod).await.unwrap();
        let running = |pod: &k8s_openapi::api::core::v1::Pod| {
            pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running")
        };
        within(self.cluster.wait_pod(namespace, name, running)).await.unwrap();
    }

    /// A pod that runs, with annotations, in the namespace `default`.
    pub(crate) async fn annotated_pod(&self, name: &str, annotations: Value) {
        let spec = json!({"nodeName": NODE, "containers": [{"name": "web", "image": SLEEP}]});
        let metadata = json!({"name": name, "namespace": "default", "annotations": annotations});
        self.cluster.create_pod(json!({"metadata": metadata, "spec": spec})).await.unwrap();
        let running = |pod: &k8s_openapi::api::core::v1::Pod| {
            pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running")
        };
        within(self.cluster.wait_pod("default", name, running)).await.unwrap();
    }

    /// A token for the agent.
    pub(crate) fn token(&self, name: &str) -> String {
        self.token_for(name, &["podsonde"], HOUR)
    }

    pub(crate) fn token_for(&self, name: &str, audiences: &[&str], lifetime: Duration) -> String {
        let token = self.cluster.issue_token(user(name), audiences, lifetime);
        self.secrets.lock().unwrap().push(token.clone());
        token
    }

    /// Gives a user rights.
    pub(crate) async fn grant(&self, name: &str, rights: &[Right]) {
        let create = PostParams::default();
        for (index, right) in rights.iter().enumerate() {
            let role = format!("{name}-{index}");
            let (group, resource) = match right.resource.split_once(':') {
                Some((group, resource)) => (group, resource),
                None => ("", right.resource),
            };
            let rules =
                json!([{"apiGroups": [group], "resources": [resource], "verbs": [right.verb]}]);
            let definition = json!({"metadata": {"name": role}, "rules": rules});
            let roles: Api<ClusterRole> = Api::all(self.admin.clone());
            roles.create(&create, &serde_json::from_value(definition).unwrap()).await.unwrap();
            let binding = json!({
                "metadata": {"name": role},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name}],
            });
            if right.namespace.is_empty() {
                let bindings: Api<ClusterRoleBinding> = Api::all(self.admin.clone());
                bindings.create(&create, &serde_json::from_value(binding).unwrap()).await.unwrap();
            } else {
                let bindings: Api<RoleBinding> =
                    Api::namespaced(self.admin.clone(), right.namespace);
                bindings.create(&create, &serde_json::from_value(binding).unwrap()).await.unwrap();
            }
        }
    }

    /// Takes the first right that was granted in a namespace.
    pub(crate) async fn revoke(&self, name: &str, namespace: &str) {
        let bindings: Api<RoleBinding> = Api::namespaced(self.admin.clone(), namespace);
        bindings.delete(&format!("{name}-0"), &DeleteParams::default()).await.unwrap();
    }

    /// The lines of the audit log.
    pub(crate) fn audited(&self) -> Vec<Value> {
        let text = fs::read_to_string(&self.audit).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}")))
            .collect()
    }

    pub(crate) async fn end(self) {
        self.agent.stop().await;
        self.cluster.shutdown().await;
    }
}

fn user(name: &str) -> UserInfo {
    let groups = Some(vec!["system:authenticated".to_owned()]);
    UserInfo { username: Some(name.to_owned()), groups, ..UserInfo::default() }
}

/// Creates the roles and bindings of a file.
async fn apply(admin: &Client, file: &Path) {
    let text = fs::read_to_string(file).unwrap();
    for document in text.split("\n---\n") {
        let object: Value = serde_saphyr::from_str(document).unwrap();
        let create = PostParams::default();
        let cluster = admin.clone();
        match object["kind"].as_str().unwrap() {
            "ClusterRole" => {
                let role = ClusterRole::deserialize(&object).unwrap();
                Api::all(cluster).create(&create, &role).await.map(drop).unwrap();
            }
            // Another namespace's role, which every real cluster has.
            "RoleBinding" if object["metadata"]["namespace"] == "kube-system" => {}
            "Role" => {
                let role = Role::deserialize(&object).unwrap();
                let namespace = role.metadata.namespace.clone().unwrap();
                Api::namespaced(cluster, &namespace)
                    .create(&create, &role)
                    .await
                    .map(drop)
                    .unwrap();
            }
            "RoleBinding" => {
                let binding = RoleBinding::deserialize(&object).unwrap();
                let namespace = binding.metadata.namespace.clone().unwrap();
                Api::namespaced(cluster, &namespace)
                    .create(&create, &binding)
                    .await
                    .map(drop)
                    .unwrap();
            }
            "ClusterRoleBinding" => {
                let binding = ClusterRoleBinding::deserialize(&object).unwrap();
                Api::all(cluster).create(&create, &binding).await.map(drop).unwrap();
            }
            _ => {}
        }
    }
}

/// What ErrorInfo says: the reason.
pub(crate) fn reason(status: &Status) -> String {
    let details = status.get_error_details();
    details
        .error_info()
        .map(|info| info.reason.clone())
        .unwrap_or_else(|| panic!("no ErrorInfo: {status:?}"))
}

/// Logs everything that this process logs, at every level, to one file, whose path it returns.
pub(crate) fn log() -> &'static Path {
    static LOG: OnceLock<tempfile::NamedTempFile> = OnceLock::new();
    LOG.get_or_init(|| {
        let file = tempfile::NamedTempFile::new().unwrap();
        let writer = Mutex::new(Flushing(file.reopen().unwrap()));
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_ansi(false)
            .with_writer(writer)
            .init();
        file
    })
    .path()
}

struct Flushing(File);

impl Write for Flushing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

/// Each record's lines, in their order.
pub(crate) fn records(lines: &[Value]) -> BTreeMap<String, Vec<Value>> {
    let mut records: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for line in lines {
        records.entry(line["id"].as_str().unwrap().to_owned()).or_default().push(line.clone());
    }
    records
}
