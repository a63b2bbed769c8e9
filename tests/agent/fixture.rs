//! A cluster of one node with its agent, and the oracles.

use std::{collections::BTreeMap, path::PathBuf, process::Command, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Pod;
use podsonde::{
    agent::{
        access,
        app::{self, Agent, AgentIdentity, Settings},
        audit::Sink,
        config::{Limits, Listen},
    },
    embedded::{
        Cluster,
        namespaces::{NamespaceOptions, NamespaceRuntime},
    },
    proto::v1::{
        self, debug_client::DebugClient, debug_create_response::Event,
        namespaces_client::NamespacesClient, node_client::NodeClient,
    },
    sys::{broker::NamespaceEntry, capture::compiler::Compiler},
};
use serde_json::{Value, json};
use tonic::{Code, Status, Streaming, transport::Channel};
use tonic_types::StatusExt;

pub(crate) const NODE: &str = "node-a";
pub(crate) const WEB: &str = "podsonde.dev/demo/web:1";
pub(crate) const SLEEP: &str = "podsonde.dev/demo/sleep:1";

/// A cluster with an agent.
pub(crate) struct Fixture {
    pub(crate) cluster: Cluster,
    node: String,
    agent: Option<Agent>,
    channel: Channel,
    limits: Limits,
}

pub(crate) fn runtime(change: impl FnOnce(&mut NamespaceOptions)) -> Arc<NamespaceRuntime> {
    let mut options = NamespaceOptions {
        executable: PathBuf::from(env!("CARGO_BIN_EXE_podsonde")),
        ..NamespaceOptions::default()
    };
    change(&mut options);
    Arc::new(NamespaceRuntime::new(options).unwrap())
}

impl Fixture {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}, Limits::default()).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut NamespaceOptions), limits: Limits) -> Self {
        Self::made_of(change, limits, NODE).await
    }

    /// The agent of a node that may be none of the cluster's.
    pub(crate) async fn on_node(node: &str) -> Self {
        Self::made_of(|_| {}, Limits::default(), node).await
    }

    async fn made_of(
        change: impl FnOnce(&mut NamespaceOptions),
        limits: Limits,
        node: &str,
    ) -> Self {
        let cluster = Cluster::builder()
            .node(NODE, runtime(change))
            .node("node-b", runtime(|_| {}))
            .start()
            .await
            .unwrap();
        let (agent, channel) = start_agent(&cluster, node, limits.clone()).await;
        Self { cluster, node: node.to_owned(), agent: Some(agent), channel, limits }
    }

    /// Ends the agent and starts another one, as a rolling update does.
    pub(crate) async fn restart_agent(&mut self) {
        self.stop_agent().await;
        self.start_agent().await;
    }

    pub(crate) async fn stop_agent(&mut self) {
        self.agent.take().unwrap().stop().await;
    }

    pub(crate) async fn start_agent(&mut self) {
        let (agent, channel) = start_agent(&self.cluster, &self.node, self.limits.clone()).await;
        (self.agent, self.channel) = (Some(agent), channel);
    }

    /// Where the agent is, for a client of its own.
    #[allow(dead_code, reason = "not every binary that includes this has one")]
    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.agent.as_ref().unwrap().addresses()[0])
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Where the agent serves probes and metrics.
    pub(crate) fn metrics_address(&self) -> std::net::SocketAddr {
        self.agent.as_ref().unwrap().metrics_address().unwrap()
    }

    pub(crate) fn debug(&self) -> DebugClient<Channel> {
        DebugClient::new(self.channel.clone())
    }

    pub(crate) fn namespaces(&self) -> NamespacesClient<Channel> {
        NamespacesClient::new(self.channel.clone())
    }

    pub(crate) fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(self.channel.clone())
    }

    /// Creates a pod with this spec and waits until all its containers run.
    pub(crate) async fn pod(&self, name: &str, spec: Value) -> Pod {
        self.submit(name, spec).await;
        self.wait(name, |pod| {
            pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running")
        })
        .await
    }

    /// Creates a pod with this spec on the agent's node, unless the spec names another.
    pub(crate) async fn submit(&self, name: &str, mut spec: Value) {
        spec.as_object_mut().unwrap().entry("nodeName").or_insert_with(|| NODE.into());
        let pod = json!({"metadata": {"name": name, "namespace": "default"}, "spec": spec});
        self.cluster.create_pod(pod).await.unwrap();
    }

    pub(crate) async fn wait(&self, name: &str, until: impl Fn(&Pod) -> bool) -> Pod {
        let wait = self.cluster.wait_pod("default", name, until);
        tokio::time::timeout(Duration::from_secs(30), wait)
            .await
            .expect("the pod does not get there")
            .unwrap()
    }

    /// Creates a debug container and collects everything up to the end.
    pub(crate) async fn create(
        &self,
        request: v1::DebugCreateRequest,
    ) -> (Vec<Event>, Result<v1::DebugDone, Status>) {
        match self.debug().create(request).await {
            Ok(response) => rest(response.into_inner()).await,
            Err(status) => (Vec::new(), Err(status)),
        }
    }

    pub(crate) async fn created(&self, request: v1::DebugCreateRequest) -> v1::DebugDone {
        self.create(request).await.1.unwrap()
    }

    /// Asks for a debug container and returns the stream once the API server has accepted it.
    pub(crate) async fn accepted(
        &self,
        request: v1::DebugCreateRequest,
    ) -> Streaming<v1::DebugCreateResponse> {
        let mut stream = self.debug().create(request).await.unwrap().into_inner();
        let first = stream.message().await.unwrap().unwrap();
        assert!(matches!(first.event, Some(Event::Accepted(_))), "{first:?}");
        stream
    }

    /// The names of the pod's ephemeral containers, as its spec has them.
    pub(crate) async fn entries(&self, pod: &str) -> Vec<String> {
        let pod = self.wait(pod, |_| true).await;
        let entries = pod.spec.unwrap().ephemeral_containers.unwrap_or_default();
        entries.into_iter().map(|c| c.name).collect()
    }

    /// The sessions, ended ones too, newest first.
    pub(crate) async fn sessions(&self) -> Vec<v1::Session> {
        let request = v1::DebugListRequest { include_ended: true, ..Default::default() };
        self.debug().list(request).await.unwrap().into_inner().sessions
    }

    /// Waits until the sessions are as wanted. The API has no watch of sessions, so it is asked
    /// again and again.
    pub(crate) async fn sessions_until(
        &self,
        what: &str,
        wanted: impl Fn(&[v1::Session]) -> bool,
    ) -> Vec<v1::Session> {
        within(what, async {
            loop {
                let sessions = self.sessions().await;
                if wanted(&sessions) {
                    return sessions;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
    }

    pub(crate) async fn verify(&self, pod: &str) -> v1::PodVerification {
        let request = v1::NamespacesVerifyRequest { pod: pod_ref(pod), container: String::new() };
        self.namespaces().verify(request).await.unwrap().into_inner().pod.unwrap()
    }

    pub(crate) async fn end(self) {
        if let Some(agent) = self.agent {
            agent.stop().await;
        }
        self.cluster.shutdown().await;
    }
}

/// The file with the key by which an agent knows the sessions of the one before it.
pub(crate) fn seal_key() -> PathBuf {
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/agent/seal.key").into()
}

/// A client of the API server, made as the agent makes its own.
async fn client(cluster: &Cluster) -> kube::Client {
    let kubeconfig = kube::config::Kubeconfig::from_yaml(&cluster.kubeconfig()).unwrap();
    let settings =
        kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.unwrap();
    app::client_of(settings).unwrap()
}

async fn start_agent(cluster: &Cluster, node: &str, limits: Limits) -> (Agent, Channel) {
    let settings = Settings {
        compiler: Compiler::default(),
        node: node.to_owned(),
        listen: vec!["127.0.0.1:0".parse::<Listen>().unwrap()],
        metrics_listen: Some(([127, 0, 0, 1], 0).into()),
        host_pid: std::process::id(),
        limits,
        entry: Arc::new(NamespaceEntry::InProcess),
        access: access::AccessOptions {
            insecure_loopback: true,
            ..access::AccessOptions::default()
        },
        audit: Sink::File("/dev/null".into()),
        identity: AgentIdentity { seal_key: Some(seal_key()), ..AgentIdentity::default() },
    };
    let agent = Agent::start(client(cluster).await, settings).await.unwrap();
    let endpoint = format!("http://{}", agent.addresses()[0]);
    let channel = Channel::from_shared(endpoint).unwrap().connect().await.unwrap();
    // Ready once it has read the pods.
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
    let mut watch =
        health.watch(tonic_health::pb::HealthCheckRequest::default()).await.unwrap().into_inner();
    while watch.message().await.unwrap().unwrap().status != 1 {}
    (agent, channel)
}

pub(crate) fn pod_ref(name: &str) -> Option<v1::PodRef> {
    Some(v1::PodRef { namespace: "default".into(), name: name.into(), uid: String::new() })
}

/// A request for a debug container that sleeps.
pub(crate) fn request(pod: &str, target: &str) -> v1::DebugCreateRequest {
    v1::DebugCreateRequest {
        pod: pod_ref(pod),
        target_container: target.into(),
        image: SLEEP.into(),
        ..v1::DebugCreateRequest::default()
    }
}

/// The rest of a creation.
pub(crate) async fn rest(
    mut stream: Streaming<v1::DebugCreateResponse>,
) -> (Vec<Event>, Result<v1::DebugDone, Status>) {
    let mut events = Vec::new();
    loop {
        match stream.message().await {
            Ok(Some(v1::DebugCreateResponse { event: Some(Event::Done(done)) })) => {
                return (events, Ok(done));
            }
            Ok(Some(message)) => events.push(message.event.unwrap()),
            Ok(None) => panic!("the stream ended without a result; before: {events:?}"),
            Err(status) => return (events, Err(status)),
        }
    }
}

/// Nothing that these tests wait for may hang; how long it really takes is printed, and asserted
/// nowhere.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let began = std::time::Instant::now();
    let result = tokio::time::timeout(Duration::from_secs(30), future).await;
    println!("{:>8.1?}  {what}", began.elapsed());
    result.unwrap_or_else(|_| panic!("hangs: {what}"))
}

/// What a failed creation is expected to be like.
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) reason: &'static str,
    /// `permanent`, `possible`, or empty.
    pub(crate) entry: &'static str,
    /// A part of the message.
    pub(crate) says: &'static str,
}

impl Failure {
    /// Checks the status of a creation: code, reason, place, and whether the entry is said to be
    /// there.
    pub(crate) fn check(&self, status: &Status, pod: &str) {
        let (why, metadata) = reason(status);
        println!("          {:?} {why}: {}", status.code(), status.message());
        assert_eq!((status.code(), why.as_str()), (self.code, self.reason), "{status:?}");
        assert!(
            status.message().contains(self.says),
            "{:?} is not in {:?}",
            self.says,
            status.message()
        );
        let of = |key: &str| metadata.get(key).map_or("", String::as_str);
        assert_eq!(
            (of("node"), of("namespace"), of("pod")),
            (NODE, "default", pod),
            "{metadata:?}"
        );
        assert_eq!(of("spec_entry"), self.entry, "{metadata:?}");
    }
}

impl Fixture {
    /// Asks for a debug container that cannot come to run, and checks how that is told and what it
    /// leaves in the pod's spec.
    pub(crate) async fn fails(&self, request: v1::DebugCreateRequest, failure: Failure) -> Status {
        let pod = request.pod.clone().unwrap().name;
        let before = self.entries_if_any(&pod).await;
        let what = format!("{} {}", failure.reason, request.image);
        let (events, result) = within(&what, self.create(request)).await;
        let status = result.unwrap_err();
        failure.check(&status, &pod);
        let accepted = events.iter().any(|e| matches!(e, Event::Accepted(_)));
        assert_eq!(accepted, failure.entry == "permanent", "{events:?}");
        if failure.entry != "possible" {
            let added = self.entries_if_any(&pod).await.len() - before.len();
            assert_eq!(added, usize::from(failure.entry == "permanent"), "{status:?}");
        }
        status
    }

    /// As [`Self::entries`], past the API server, which may be made to fail; none if there is no
    /// such pod.
    async fn entries_if_any(&self, pod: &str) -> Vec<String> {
        tokio::select! {
            biased;
            entries = self.entries(pod) => entries,
            () = tokio::task::yield_now() => Vec::new(),
        }
    }
}

/// What ErrorInfo says: the reason, and its metadata.
pub(crate) fn reason(status: &Status) -> (String, BTreeMap<String, String>) {
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("no ErrorInfo: {status:?}"));
    (info.reason.clone(), info.metadata.clone().into_iter().collect())
}

/// The verdict's ids, as `readlink` writes them.
pub(crate) fn links(verification: &v1::ContainerVerification) -> BTreeMap<String, String> {
    let link = |n: &v1::NamespaceVerdict| {
        let kind =
            n.kind().as_str_name().trim_start_matches("NAMESPACE_KIND_").to_ascii_lowercase();
        let link = format!("{kind}:[{}]", n.id.as_ref().unwrap().inode);
        (kind, link)
    };
    verification.namespaces.iter().map(link).collect()
}

/// What coreutils' `readlink` says of the process' namespaces.
pub(crate) fn readlinks(pid: u32) -> BTreeMap<String, String> {
    let kinds = ["ipc", "net", "uts", "pid", "mnt", "cgroup", "user", "time"];
    let paths = kinds.map(|kind| format!("/proc/{pid}/ns/{kind}"));
    let output = Command::new("readlink").args(paths).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    kinds.into_iter().map(str::to_owned).zip(text.lines().map(str::to_owned)).collect()
}

/// What util-linux' `lsns` says of the process' namespaces.
pub(crate) fn lsns(pid: u32) -> BTreeMap<String, String> {
    // It gives up when any process of the machine ends while it looks.
    let list: Value = (0..50)
        .find_map(|_| {
            let args = ["-J", "-o", "NS,TYPE", "-p", &pid.to_string()];
            serde_json::from_slice(&Command::new("lsns").args(args).output().unwrap().stdout).ok()
        })
        .expect("lsns says something");
    let entry = |n: &Value| {
        let kind = n["type"].as_str().unwrap().to_owned();
        let link = format!("{kind}:[{}]", n["ns"]);
        (kind, link)
    };
    list["namespaces"].as_array().unwrap().iter().map(entry).collect()
}

/// How each kind is shared, in one word each: `ipc=shared net=shared …`.
pub(crate) fn sharing(verification: &v1::ContainerVerification) -> String {
    let word = |n: &v1::NamespaceVerdict| {
        let kind =
            n.kind().as_str_name().trim_start_matches("NAMESPACE_KIND_").to_ascii_lowercase();
        let drift = if n.outcome() == v1::Outcome::Drift { "!" } else { "" };
        let sharing = n.actual().as_str_name().trim_start_matches("SHARING_").to_ascii_lowercase();
        format!("{kind}={sharing}{drift}")
    };
    verification.namespaces.iter().map(word).collect::<Vec<_>>().join(" ")
}
