//! The real agent, a process of its own, on an embedded cluster.

use std::{
    io::{BufRead as _, BufReader},
    net::{SocketAddr, TcpListener},
    os::fd::OwnedFd,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, mpsc},
};

use hyper_util::rt::TokioIo;
use podsonde::{
    embedded::{
        Cluster,
        namespaces::{NamespaceOptions, NamespaceRuntime},
    },
    proto::v1::{self, namespaces_client::NamespacesClient, node_client::NodeClient},
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tonic::transport::{Channel, Endpoint};

use crate::proc::{self, PATIENCE};

const NODE: &str = "node-a";

/// A cluster of one node with the pod `web`, and the agent's process.
pub(crate) struct Agent {
    pub(crate) pid: u32,
    pub(crate) broker: u32,
    pub(crate) metrics: SocketAddr,
    pub(crate) log: mpsc::Receiver<String>,
    channel: Channel,
    child: Child,
    cluster: Option<Cluster>,
    _directory: tempfile::TempDir,
}

/// Whether this can be done here. A test that cannot run is skipped, but fails when `CI` is set.
pub(crate) fn possible() -> bool {
    let root = rustix::process::geteuid().is_root();
    assert!(root || std::env::var_os("CI").is_none(), "root is needed, and CI is set");
    root
}

impl Agent {
    /// Starts it with these arguments besides, and this descriptor as its number 77, which it did
    /// not ask for.
    pub(crate) async fn start(more: &[&str], leaked: Option<OwnedFd>) -> Self {
        let options = NamespaceOptions {
            executable: PathBuf::from(env!("CARGO_BIN_EXE_podsonde")),
            ..NamespaceOptions::default()
        };
        let runtime = Arc::new(NamespaceRuntime::new(options).unwrap());
        let cluster = Cluster::builder().node(NODE, runtime).start().await.unwrap();
        create_pod(&cluster, "web").await;

        let directory = tempfile::tempdir().unwrap();
        let (kubeconfig, socket) =
            (directory.path().join("kubeconfig"), directory.path().join("agent.sock"));
        std::fs::write(&kubeconfig, cluster.kubeconfig()).unwrap();
        // Free a moment ago, and in this network namespace nobody else is in a hurry.
        let metrics = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut command = match &leaked {
            None => Command::new(env!("CARGO_BIN_EXE_podsonde-agent")),
            // A shell is what can hand a descriptor down.
            Some(_) => {
                let mut shell = Command::new("bash");
                shell.args([
                    "-c",
                    "exec 77<&0 0</dev/null \"$@\"",
                    "bash",
                    env!("CARGO_BIN_EXE_podsonde-agent"),
                ]);
                shell
            }
        };
        let mut child = command
            .arg(format!("--node-name={NODE}"))
            .arg(format!("--listen=unix://{}", socket.display()))
            .arg(format!("--kubeconfig={}", kubeconfig.display()))
            .arg(format!("--metrics-listen={metrics}"))
            .arg(format!("--host-pid={}", std::process::id()))
            .args(more)
            .stdin(leaked.map_or_else(Stdio::null, Stdio::from))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, log) = mpsc::channel();
        // Ends with the process, and the broker, which has the same stderr.
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                eprintln!("{line}");
                let _ = sender.send(line);
            }
        });
        wait_for(&log, "podsonde-agent started");
        let pid = child.id();
        let broker = proc::child_with(pid, "namespace-broker").expect("a broker");
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://localhost")
            .connect_with_connector(connector)
            .await
            .unwrap();
        // Ready once it has read the pods.
        let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
        let mut watch = health
            .watch(tonic_health::pb::HealthCheckRequest::default())
            .await
            .unwrap()
            .into_inner();
        while watch.message().await.unwrap().unwrap().status != 1 {}
        Self {
            pid,
            broker,
            metrics,
            log,
            channel,
            child,
            cluster: Some(cluster),
            _directory: directory,
        }
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Creates one more pod of one container, `web`, and waits until it runs.
    pub(crate) async fn pod(&self, name: &str) {
        create_pod(self.cluster.as_ref().unwrap(), name).await;
    }

    /// The pid of the container of a pod on the host.
    pub(crate) async fn host_pid(&self, pod: &str) -> u32 {
        self.verify_pod(pod).await.container.unwrap().host_pid
    }

    /// The verification of the container of the pod `web`.
    pub(crate) async fn verify(&self) -> v1::ContainerVerification {
        self.verify_pod("web").await
    }

    async fn verify_pod(&self, name: &str) -> v1::ContainerVerification {
        let pod = v1::PodRef { namespace: "default".into(), name: name.into(), uid: String::new() };
        let request = v1::NamespacesVerifyRequest { pod: Some(pod), container: "web".into() };
        let reply = NamespacesClient::new(self.channel.clone()).verify(request).await.unwrap();
        reply.into_inner().pod.unwrap().containers.remove(0)
    }

    /// What the agent says of a feature.
    pub(crate) async fn feature(&self, name: &str) -> v1::Feature {
        let reply = NodeClient::new(self.channel.clone()).get(v1::NodeGetRequest {}).await.unwrap();
        reply.into_inner().features.into_iter().find(|f| f.name == name).expect(name)
    }

    /// The value of a metric, by `curl`.
    pub(crate) fn metric(&self, name: &str) -> String {
        let url = format!("http://{}/metrics", self.metrics);
        let output = Command::new("curl")
            .args(["-sS", "--fail", "--max-time", "10", &url])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {name} in {text}")).to_owned()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid, signal);
    }

    /// Waits for its end.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let child = std::cell::RefCell::new(&mut self.child);
        proc::until("the agent ends", || child.borrow_mut().try_wait().unwrap().is_some());
        self.child.wait().unwrap()
    }

    /// Ends everything.
    pub(crate) async fn stop(mut self) {
        self.signal(Signal::TERM);
        assert!(self.ended().success());
        self.cluster.take().unwrap().shutdown().await;
    }

    /// Ends what is left when the agent has ended.
    pub(crate) async fn clean_up(mut self) {
        self.cluster.take().unwrap().shutdown().await;
    }
}

async fn create_pod(cluster: &Cluster, name: &str) {
    let container = json!({"name": "web", "image": "podsonde.dev/demo/web:1"});
    let spec = json!({"nodeName": NODE, "hostname": "evidence", "containers": [container]});
    cluster.create_pod(json!({"metadata": {"name": name}, "spec": spec})).await.unwrap();
    let running = |pod: &k8s_openapi::api::core::v1::Pod| {
        pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running")
    };
    let runs = cluster.wait_pod("default", name, running);
    tokio::time::timeout(PATIENCE, runs).await.unwrap().unwrap();
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Of a test that fails: nothing of it stays.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn kill(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal).unwrap();
}

/// Waits for a line of the log.
pub(crate) fn wait_for(log: &mpsc::Receiver<String>, text: &str) -> String {
    loop {
        let line =
            log.recv_timeout(PATIENCE).unwrap_or_else(|e| panic!("no {text:?} in the log: {e}"));
        if line.contains(text) {
            return line;
        }
    }
}
