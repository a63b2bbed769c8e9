//! A cluster of one node with its agent and pods of real namespaces, and captures of them over
//! gRPC.

use std::{path::PathBuf, sync::Arc, time::Duration};

use podsonde::{
    agent::{
        access,
        app::{self, Agent, AgentIdentity, Settings},
        audit::Sink,
        config::{CaptureLimits, Limits, Listen},
    },
    embedded::{
        Cluster,
        namespaces::{NamespaceOptions, NamespaceRuntime},
    },
    proto::v1::{
        self, capture_client::CaptureClient, capture_start_response::Event,
        namespaces_client::NamespacesClient,
    },
    sys::{broker::NamespaceEntry, capture::compiler::Compiler},
};
use serde_json::{Value, json};
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt;

use crate::{
    filters::compiler,
    support::{PATIENCE, netns::inside, pcap},
};

pub(crate) const NODE: &str = "node-a";

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it takes too long")
}

/// A cluster with an agent, whose audit log is a file.
pub(crate) struct Fixture {
    pub(crate) cluster: Cluster,
    pub(crate) agent: Agent,
    pub(crate) audit: PathBuf,
    _directory: tempfile::TempDir,
}

impl Fixture {
    pub(crate) async fn start(captures: CaptureLimits) -> Self {
        Self::start_with(captures, compiler()).await
    }

    /// The same, with filters compiled by a program of the test's own.
    pub(crate) async fn start_with(captures: CaptureLimits, compiler: Compiler) -> Self {
        let options = NamespaceOptions {
            executable: PathBuf::from(env!("CARGO_BIN_EXE_podsonde")),
            ..NamespaceOptions::default()
        };
        let runtime = Arc::new(NamespaceRuntime::new(options).unwrap());
        let cluster = Cluster::builder().node(NODE, runtime).start().await.unwrap();
        let kubeconfig = kube::config::Kubeconfig::from_yaml(&cluster.kubeconfig()).unwrap();
        let client =
            kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let audit = directory.path().join("audit.json");
        let settings = Settings {
            node: NODE.to_owned(),
            listen: vec!["127.0.0.1:0".parse::<Listen>().unwrap()],
            metrics_listen: Some(([127, 0, 0, 1], 0).into()),
            host_pid: std::process::id(),
            limits: Limits { captures, max_requests_per_user: 256, ..Limits::default() },
            entry: Arc::new(NamespaceEntry::InProcess),
            compiler,
            access: access::AccessOptions {
                insecure_loopback: true,
                ..access::AccessOptions::default()
            },
            audit: Sink::File(audit.clone()),
            identity: AgentIdentity::default(),
        };
        let agent = Agent::start(app::client_of(client).unwrap(), settings).await.unwrap();
        let fixture = Self { cluster, agent, audit, _directory: directory };
        let mut health =
            tonic_health::pb::health_client::HealthClient::new(fixture.channel().await);
        let mut watch = health
            .watch(tonic_health::pb::HealthCheckRequest::default())
            .await
            .unwrap()
            .into_inner();
        within(async { while watch.message().await.unwrap().unwrap().status != 1 {} }).await;
        fixture
    }

    /// A connection of its own, as bulk captures have, with windows as the client library sets
    /// them.
    pub(crate) async fn channel(&self) -> Channel {
        let endpoint =
            Endpoint::from_shared(format!("http://{}", self.agent.addresses()[0])).unwrap();
        endpoint
            .initial_stream_window_size(16 << 20)
            .initial_connection_window_size(32 << 20)
            .connect()
            .await
            .unwrap()
    }

    pub(crate) async fn client(&self) -> CaptureClient<Channel> {
        CaptureClient::new(self.channel().await).max_decoding_message_size(8 << 20)
    }

    /// A pod that runs, and the pid of its container `web`.
    pub(crate) async fn pod(&self, name: &str, more: Value) -> u32 {
        let container = json!({"name": "web", "image": "podsonde.dev/demo/web:1"});
        let mut spec = json!({"nodeName": NODE, "containers": [container]});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let pod = json!({"metadata": {"name": name}, "spec": spec});
        self.cluster.create_pod(pod).await.unwrap();
        let running = |pod: &k8s_openapi::api::core::v1::Pod| {
            pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running")
        };
        within(self.cluster.wait_pod("default", name, running)).await.unwrap();
        let request = v1::NamespacesVerifyRequest { pod: pod_ref(name), container: "web".into() };
        let reply =
            NamespacesClient::new(self.channel().await).verify(request).await.unwrap().into_inner();
        reply.pod.unwrap().containers.remove(0).container.unwrap().host_pid
    }

    /// A pod with an interface `gen0` that frames can be sent from, and its index.
    pub(crate) async fn pod_with_generator(&self, name: &str) -> (u32, u32) {
        let pid = self.pod(name, json!({})).await;
        run(pid, &["ip", "link", "add", "gen0", "type", "veth", "peer", "name", "gen1"]);
        for interface in ["gen0", "gen1"] {
            run(pid, &["ip", "link", "set", interface, "up"]);
        }
        let links: Value = serde_json::from_str(&run(pid, &["ip", "-j", "link"])).unwrap();
        let gen0 = links.as_array().unwrap().iter().find(|link| link["ifname"] == "gen0").unwrap();
        (pid, u32::try_from(gen0["ifindex"].as_u64().unwrap()).unwrap())
    }

    pub(crate) async fn start_capture(
        &self,
        request: v1::CaptureStartRequest,
    ) -> Result<Stream, Status> {
        Stream::start(&mut self.client().await, request).await
    }

    /// The value of a metric, by `curl`.
    pub(crate) fn metric(&self, name: &str) -> String {
        let url = format!("http://{}/metrics", self.agent.metrics_address().unwrap());
        let output =
            std::process::Command::new("curl").args(["-sS", "--fail", &url]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {name} in {text}")).to_owned()
    }

    pub(crate) async fn end(self) {
        self.agent.stop().await;
        self.cluster.shutdown().await;
    }
}

pub(crate) fn pod_ref(name: &str) -> Option<v1::PodRef> {
    Some(v1::PodRef { namespace: "default".into(), name: name.into(), uid: String::new() })
}

/// A capture of the generator's frames in a pod.
pub(crate) fn generated(pod: &str) -> v1::CaptureStartRequest {
    v1::CaptureStartRequest {
        pod: pod_ref(pod),
        interface: "gen0".into(),
        filter: "udp dst port 40404".into(),
        ..v1::CaptureStartRequest::default()
    }
}

pub(crate) fn run(pid: u32, args: &[&str]) -> String {
    let output = inside(pid, args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

/// A capture that runs.
pub(crate) struct Stream {
    pub(crate) started: v1::CaptureStarted,
    pub(crate) stream: Streaming<v1::CaptureStartResponse>,
    pub(crate) file: Vec<u8>,
}

impl Stream {
    pub(crate) async fn start(
        client: &mut CaptureClient<Channel>,
        request: v1::CaptureStartRequest,
    ) -> Result<Self, Status> {
        let mut stream = client.start(request).await?.into_inner();
        let first = within(stream.message()).await?.expect("a message");
        let Some(Event::Started(started)) = first.event else { panic!("{first:?}") };
        Ok(Self { started, stream, file: Vec::new() })
    }

    /// Reads to the end; checks that the figures add up and that the file holds what they say.
    pub(crate) async fn end(mut self) -> Result<(Vec<u8>, v1::CaptureEnded), Status> {
        let mut last = None;
        while let Some(message) =
            tokio::time::timeout(Duration::from_secs(60), self.stream.message())
                .await
                .expect("an end")?
        {
            assert!(last.is_none(), "something comes after the end");
            match message.event.expect("an event") {
                Event::Pcapng(bytes) => self.file.extend_from_slice(&bytes),
                Event::Statistics(_) => {}
                Event::Ended(ended) => last = Some(ended),
                Event::Started(_) => panic!("started twice"),
            }
        }
        let ended = last.expect("an end");
        let v1::CaptureStatistics {
            received, captured, dropped_by_kernel, dropped_by_agent, ..
        } = ended.statistics.unwrap();
        assert_eq!(received, captured + dropped_by_kernel + dropped_by_agent, "{ended:?}");
        assert_eq!(pcap::accepted(&self.file), captured, "{ended:?}");
        Ok((self.file, ended))
    }
}
