//! A cluster of one node with the shipped agent in it, and `podsonde` in front of it.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read, Write},
    net::IpAddr,
    path::PathBuf,
    process::{Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use k8s_openapi::api::{
    authentication::v1::UserInfo,
    core::v1::{ContainerStatus, Pod},
};
use podsonde::embedded::Cluster;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{
    cri::CriOptions,
    node::{self, NAME, Node},
};

/// Longer than anything takes on a machine that does other things too.
const LIMIT: Duration = Duration::from_secs(120);
/// Between looks at what nobody tells about.
const PAUSE: Duration = Duration::from_millis(20);

pub(crate) struct Fixture {
    pub(crate) cluster: Cluster,
    pub(crate) node: Node,
    kubeconfig: PathBuf,
    /// An administrator's, for agents.
    token: PathBuf,
}

/// How a run of `podsonde` ended.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
}

impl Fixture {
    /// None where there is no node to test on.
    pub(crate) async fn start() -> Option<Self> {
        Self::with(CriOptions::default()).await
    }

    /// The same with a runtime of these options.
    pub(crate) async fn with(options: CriOptions) -> Option<Self> {
        let fixture = Self::without_agent(options).await?;
        fixture.start_agent().await;
        Some(fixture)
    }

    async fn without_agent(options: CriOptions) -> Option<Self> {
        let node = Node::get()?;
        if Command::new("kubectl").args(["version", "--client"]).output().is_err() {
            assert!(std::env::var_os("CI").is_none(), "no kubectl, and CI is set");
            // Not through a macro, whose output is caught while a test passes.
            let _ = writeln!(io::stderr(), "skipped: no kubectl to render deploy/base with");
            return None;
        }
        let cluster = node.cluster(options).await;
        let kubeconfig = node.dir.join(format!("kubeconfig-{}", uuid::Uuid::new_v4()));
        fs::write(&kubeconfig, cluster.kubeconfig()).expect("write the kubeconfig");
        // The rights of deploy/base, and no others.
        let path = kubeconfig.to_str().expect("UTF-8");
        for file in ["rbac.yaml", "roles.yaml"] {
            let file = format!("{}/deploy/base/{file}", env!("CARGO_MANIFEST_DIR"));
            node::output(
                "kubectl",
                &["--kubeconfig", path, "create", "--validate=false", "-f", &file],
            );
        }
        let token = kubeconfig.with_extension("token");
        let user = UserInfo {
            username: Some("admin".into()),
            groups: Some(vec!["system:masters".into()]),
            ..UserInfo::default()
        };
        let day = Duration::from_secs(24 * 3600);
        fs::write(&token, cluster.issue_token(user, &["podsonde"], day)).expect("write the token");
        Some(Self { cluster, node, kubeconfig, token })
    }

    /// Creates the pod that the DaemonSet would have on this node, and waits until it passes its
    /// readiness probe.
    pub(crate) async fn start_agent(&self) -> Pod {
        let mut template = template().clone();
        template["metadata"]["generateName"] = json!("podsonde-agent-");
        template["metadata"]["namespace"] = json!("podsonde");
        template["spec"]["nodeName"] = json!(NAME);
        let pod = self.cluster.create_pod(template).await.expect("the agent's pod");
        self.agent_ready(&pod.metadata.name.expect("a name")).await
    }

    /// Waits until the agent's pod passes its readiness probe.
    pub(crate) async fn agent_ready(&self, name: &str) -> Pod {
        let pod = self.wait_in("podsonde", name, |pod| pod_ip(pod).is_some()).await;
        let (ip, (port, path)) = (pod_ip(&pod).expect("an address"), probe("readinessProbe"));
        until("the agent is ready", async || matches!(http(ip, port, &path).await, Ok((200, _))))
            .await;
        self.wait_in("podsonde", name, |pod| running(pod, "agent").is_some()).await
    }

    /// The agent's pod.
    pub(crate) async fn agent(&self) -> Pod {
        let pods = kube::Api::<Pod>::namespaced(self.cluster.client().expect("client"), "podsonde");
        let found = pods.list(&Default::default()).await.expect("list").items;
        let [pod] = &found[..] else { panic!("one agent") };
        pod.clone()
    }

    /// Creates a pod on this node and waits until its containers run.
    pub(crate) async fn pod(&self, name: &str, spec: Value) -> Pod {
        self.create(name, spec).await;
        self.wait(name, |pod| phase(pod) == "Running").await
    }

    /// Creates a pod on this node.
    pub(crate) async fn create(&self, name: &str, spec: Value) {
        let mut spec = spec;
        for containers in ["initContainers", "containers"] {
            for container in spec[containers].as_array_mut().into_iter().flatten() {
                // There is no registry to ask whether the tag `latest` has moved.
                container["imagePullPolicy"] = json!("IfNotPresent");
            }
        }
        spec["nodeName"] = json!(NAME);
        let pod = json!({"metadata": {"name": name, "namespace": "default"}, "spec": spec});
        self.cluster.create_pod(pod).await.expect("create the pod");
    }

    pub(crate) async fn wait(&self, name: &str, wanted: impl Fn(&Pod) -> bool) -> Pod {
        self.wait_in("default", name, wanted).await
    }

    pub(crate) async fn wait_in(
        &self,
        namespace: &str,
        name: &str,
        wanted: impl Fn(&Pod) -> bool,
    ) -> Pod {
        let wait = self.cluster.wait_pod(namespace, name, wanted);
        match tokio::time::timeout(LIMIT, wait).await {
            Ok(pod) => pod.expect("the pod is there"),
            Err(_) => panic!("pod {namespace}/{name} does not get there"),
        }
    }

    /// The flag of `podsonde debug` that makes a container run as user 1000.
    pub(crate) fn user_1000(&self) -> String {
        let custom = self.node.dir.join(format!("custom-{}.json", uuid::Uuid::new_v4()));
        fs::write(&custom, r#"{"securityContext": {"runAsUser": 1000}}"#).expect("write");
        format!("--custom={}", custom.display())
    }

    /// The agent, as the client library reaches it.
    pub(crate) async fn agent_client(&self) -> podsonde::client::Agent {
        use podsonde::client::{ConnectOptions, Credentials, Fleet};
        let options = ConnectOptions {
            credentials: Credentials::token_file(&self.token),
            ..ConnectOptions::default()
        };
        let client = self.cluster.https_client().expect("a client");
        let fleet = Fleet::cluster(client, None, options);
        let place = fleet.place_of_node(NAME).await.expect("an agent");
        fleet.connect(&place).await.expect("the agent")
    }

    /// Runs `podsonde` with these arguments.
    pub(crate) async fn podsonde(&self, args: &[&str]) -> Ended {
        self.spawn(args).ended().await
    }

    /// Starts `podsonde` with these arguments, in an environment that knows this cluster only.
    pub(crate) fn spawn(&self, args: &[&str]) -> Run {
        let mut command = Command::new(env!("CARGO_BIN_EXE_podsonde"));
        for variable in
            ["PODSONDE_AGENT", "RUST_LOG", "NO_COLOR", "KUBERNETES_SERVICE_HOST", "HTTPS_PROXY"]
        {
            command.env_remove(variable);
        }
        command.env("KUBECONFIG", &self.kubeconfig).env("PODSONDE_TOKEN_FILE", &self.token);
        command.env("HOME", &self.node.dir).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Run { child: command.spawn().expect("podsonde"), began: Instant::now() }
    }

    /// Ends everything.
    pub(crate) async fn end(self) {
        self.cluster.shutdown().await;
    }
}

/// A `podsonde` that runs.
pub(crate) struct Run {
    pub(crate) child: std::process::Child,
    began: Instant,
}

impl Run {
    pub(crate) async fn ended(mut self) -> Ended {
        let wait = tokio::task::spawn_blocking(move || {
            let mut stderr = self.child.stderr.take().expect("stderr");
            let reader = std::thread::spawn(move || {
                let mut text = String::new();
                stderr.read_to_string(&mut text).expect("UTF-8");
                text
            });
            let mut stdout = String::new();
            self.child.stdout.take().expect("stdout").read_to_string(&mut stdout).expect("UTF-8");
            let code = self.child.wait().expect("its end").code();
            Ended {
                code,
                stdout,
                stderr: reader.join().expect("stderr"),
                took: self.began.elapsed(),
            }
        });
        tokio::time::timeout(LIMIT, wait).await.expect("podsonde ends").expect("its output")
    }
}

impl Ended {
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|_| panic!("{}\n{}", self.stdout, self.stderr))
    }
}

/// The DaemonSet's pod template, as `kubectl kustomize` renders it.
pub(crate) fn template() -> &'static Value {
    static TEMPLATE: OnceLock<Value> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let base = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/base");
        let rendered = node::output("kubectl", &["kustomize", base]);
        let mut objects = rendered
            .split("\n---\n")
            .map(|object| serde_saphyr::from_str::<Value>(object).expect("an object"));
        let daemonset = objects.find(|object| object["kind"] == "DaemonSet").expect("a DaemonSet");
        daemonset["spec"]["template"].clone()
    })
}

/// Port and path of a probe of the agent's container.
pub(crate) fn probe(name: &str) -> (u16, String) {
    let container = &template()["spec"]["containers"][0];
    let get = &container[name]["httpGet"];
    let ports = container["ports"].as_array().expect("ports");
    let port = ports.iter().find(|port| port["name"] == get["port"]).expect("the probe's port");
    let number = port["containerPort"].as_u64().expect("a number");
    (u16::try_from(number).expect("a port"), get["path"].as_str().expect("a path").to_owned())
}

/// Status and body of an HTTP GET.
pub(crate) async fn http(ip: IpAddr, port: u16, path: &str) -> io::Result<(u16, String)> {
    let mut stream = tokio::net::TcpStream::connect((ip, port)).await?;
    stream
        .write_all(
            format!("GET {path} HTTP/1.1\r\nHost: {ip}\r\nConnection: close\r\n\r\n").as_bytes(),
        )
        .await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_default();
    Ok((status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()))
}

/// For what nobody tells about: the end of a process of somebody else's, what a container does by
/// itself.
pub(crate) async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let began = Instant::now();
    while !condition().await {
        assert!(began.elapsed() < LIMIT, "not so after {LIMIT:?}: {what}");
        tokio::time::sleep(PAUSE).await;
    }
}

pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

pub(crate) fn pod_ip(pod: &Pod) -> Option<IpAddr> {
    pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()
}

/// The status of a container of any kind.
pub(crate) fn status<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let all = [
        &status.init_container_statuses,
        &status.container_statuses,
        &status.ephemeral_container_statuses,
    ];
    all.into_iter().flatten().flatten().find(|container| container.name == name)
}

/// The id of a container that runs, without its scheme.
pub(crate) fn running(pod: &Pod, name: &str) -> Option<String> {
    let status = status(pod, name)?;
    status.state.as_ref()?.running.as_ref()?;
    Some(status.container_id.as_ref()?.strip_prefix("containerd://")?.to_owned())
}

/// The ids in a verdict, as `net` → `net:[4026531840]`; `id`, `referenceId` or `hostId`.
pub(crate) fn links(container: &Value, which: &str) -> BTreeMap<String, String> {
    let namespaces = container["namespaces"].as_array().expect("namespaces");
    let link = |namespace: &Value| {
        let kind = namespace["kind"].as_str().expect("a kind").to_owned();
        let link = format!("{kind}:[{}]", namespace[which]["inode"]);
        (kind, link)
    };
    namespaces.iter().map(link).collect()
}

/// Asserts that these ids are those that a tool found. Links for children's namespaces are no
/// namespaces of its own.
#[track_caller]
pub(crate) fn assert_ids(
    what: &str,
    ours: &BTreeMap<String, String>,
    theirs: BTreeMap<String, String>,
) {
    let theirs: BTreeMap<_, _> =
        theirs.into_iter().filter(|(kind, _)| !kind.ends_with("_for_children")).collect();
    assert_eq!(*ours, theirs, "{what}");
    assert!(theirs.len() >= 7, "{what}: {theirs:?}");
}

/// A pod's spec of one container that sleeps.
pub(crate) fn sleeping() -> Value {
    json!({"containers": [{"name": "app", "image": "busybox", "command": ["sleep", "infinity"]}]})
}

/// A pod's spec of nginx.
pub(crate) fn nginx() -> Value {
    json!({"containers": [{"name": "nginx", "image": "nginx"}]})
}

/// A spec with more fields.
pub(crate) fn with(mut spec: Value, more: Value) -> Value {
    spec.as_object_mut().expect("a spec").extend(more.as_object().expect("fields").clone());
    spec
}
