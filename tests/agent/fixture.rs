//! A cluster of one node with its agent, and the oracles.

use std::{collections::BTreeMap, path::PathBuf, process::Command, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Pod;
use podsonde::{
    agent::{
        app::{Agent, Identity, Settings},
        config::{Limits, Listen},
    },
    embedded::{
        Cluster,
        namespaces::{NamespaceRuntime, Options},
    },
    proto::v1::{
        self, debug_client::DebugClient, debug_create_response::Event, namespaces_client::NamespacesClient,
        node_client::NodeClient,
    },
};
use serde_json::{Value, json};
use tonic::{Status, transport::Channel};
use tonic_types::StatusExt;

pub(crate) const NODE: &str = "node-a";
pub(crate) const WEB: &str = "podsonde.dev/demo/web:1";
pub(crate) const SLEEP: &str = "podsonde.dev/demo/sleep:1";

/// A cluster with an agent.
pub(crate) struct Fixture {
    pub(crate) cluster: Cluster,
    agent: Option<Agent>,
    channel: Channel,
    limits: Limits,
}

pub(crate) fn runtime(change: impl FnOnce(&mut Options)) -> Arc<NamespaceRuntime> {
    let mut options =
        Options { executable: PathBuf::from(env!("CARGO_BIN_EXE_podsonde")), ..Options::default() };
    change(&mut options);
    Arc::new(NamespaceRuntime::new(options).unwrap())
}

impl Fixture {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}, Limits::default()).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Options), limits: Limits) -> Self {
        let cluster = Cluster::builder()
            .node(NODE, runtime(change))
            .node("node-b", runtime(|_| {}))
            .start()
            .await
            .unwrap();
        let (agent, channel) = start_agent(&cluster, limits.clone()).await;
        Self { cluster, agent: Some(agent), channel, limits }
    }

    /// Ends the agent and starts another one, as a rolling update does.
    pub(crate) async fn restart_agent(&mut self) {
        self.stop_agent().await;
        let (agent, channel) = start_agent(&self.cluster, self.limits.clone()).await;
        (self.agent, self.channel) = (Some(agent), channel);
    }

    pub(crate) async fn stop_agent(&mut self) {
        self.agent.take().unwrap().stop().await;
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
        self.wait(name, |pod| pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running")).await
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
        let mut events = Vec::new();
        let mut stream = match self.debug().create(request).await {
            Ok(response) => response.into_inner(),
            Err(status) => return (events, Err(status)),
        };
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

    pub(crate) async fn created(&self, request: v1::DebugCreateRequest) -> v1::DebugDone {
        self.create(request).await.1.unwrap()
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

async fn start_agent(cluster: &Cluster, limits: Limits) -> (Agent, Channel) {
    let settings = Settings {
        node: NODE.to_owned(),
        listen: vec!["127.0.0.1:0".parse::<Listen>().unwrap()],
        metrics_listen: Some(([127, 0, 0, 1], 0).into()),
        host_pid: std::process::id(),
        limits,
        identity: Identity::default(),
    };
    let agent = Agent::start(cluster.client().unwrap(), settings).await.unwrap();
    let endpoint = format!("http://{}", agent.addresses()[0]);
    let channel = Channel::from_shared(endpoint).unwrap().connect().await.unwrap();
    // Ready once it has read the pods.
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
    let mut watch = health.watch(tonic_health::pb::HealthCheckRequest::default()).await.unwrap().into_inner();
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

/// What ErrorInfo says: the reason, and its metadata.
pub(crate) fn reason(status: &Status) -> (String, BTreeMap<String, String>) {
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("no ErrorInfo: {status:?}"));
    (info.reason.clone(), info.metadata.clone().into_iter().collect())
}

/// The verdict's ids, as `readlink` writes them.
pub(crate) fn links(verification: &v1::ContainerVerification) -> BTreeMap<String, String> {
    let link = |n: &v1::NamespaceVerdict| {
        let kind = n.kind().as_str_name().trim_start_matches("NAMESPACE_KIND_").to_ascii_lowercase();
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
    let output = Command::new("lsns").args(["-J", "-o", "NS,TYPE", "-p", &pid.to_string()]).output().unwrap();
    let list: Value = serde_json::from_slice(&output.stdout).unwrap();
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
        let kind = n.kind().as_str_name().trim_start_matches("NAMESPACE_KIND_").to_ascii_lowercase();
        let drift = if n.outcome() == v1::Outcome::Drift { "!" } else { "" };
        let sharing = n.actual().as_str_name().trim_start_matches("SHARING_").to_ascii_lowercase();
        format!("{kind}={sharing}{drift}")
    };
    verification.namespaces.iter().map(word).collect::<Vec<_>>().join(" ")
}
