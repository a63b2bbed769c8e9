//! An agent that nobody asks anything: what it holds, and what wakes it up.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Child, Command},
    time::Duration,
};

use podsonde::{
    embedded::Cluster,
    proto::v1::{NamespacesVerifyNodeRequest, namespaces_client::NamespacesClient},
};
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{
    figures::table,
    fixture::{NODE, runtime},
    node,
};

pub(crate) async fn run() {
    let seconds =
        std::env::var("PODSONDE_IDLE_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(60);
    // Over TLS, as from within a real cluster.
    let cluster = Cluster::builder().node(NODE, runtime(|_| {})).https(([127, 0, 0, 1], 0).into());
    let cluster = cluster.start().await.unwrap();
    node::fill(&cluster, 110, 1000).await;
    let directory = tempfile::tempdir().unwrap();
    let agent = start(&cluster, directory.path());
    let socket = directory.path().join("agent.sock");
    ready(&socket).await;

    let mut rows = Vec::new();
    rows.push(look("started", agent.0.id(), seconds).await);
    verify(&socket, 100).await;
    rows.push(look("after 100 verifications of the node", agent.0.id(), seconds).await);
    drop(agent);
    cluster.shutdown().await;
    table(
        &format!("An idle agent, 110 pods, over {seconds} s"),
        &["", "RSS MiB", "anonymous", "PSS MiB", "CPU ms", "wake-ups", "threads", "descriptors"],
        &rows,
    );
}

/// Ends with the value.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(cluster: &Cluster, directory: &Path) -> Agent {
    let kubeconfig = directory.join("kubeconfig");
    fs::write(&kubeconfig, cluster.kubeconfig()).unwrap();
    let binary = std::env::var("PODSONDE_AGENT")
        .unwrap_or_else(|_| env!("CARGO_BIN_EXE_podsonde-agent").into());
    let child = Command::new(binary)
        .args(["--node-name", NODE, "--log-level", "warn", "--metrics-listen", "127.0.0.1:0"])
        .args(["--host-pid", &std::process::id().to_string()])
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .arg(format!("--listen=unix://{}", directory.join("agent.sock").display()))
        .spawn()
        .unwrap();
    Agent(child)
}

async fn channel(socket: &Path) -> Channel {
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap();
    while !socket.exists() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    endpoint.connect().await.unwrap()
}

/// Waits until the agent has read the pods.
async fn ready(socket: &Path) {
    let mut health = HealthClient::new(channel(socket).await);
    let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    while watch.message().await.unwrap().unwrap().status != 1 {}
}

async fn verify(socket: &Path, times: usize) {
    let mut namespaces = NamespacesClient::new(channel(socket).await);
    for _ in 0..times {
        let mut stream = namespaces
            .verify_node(NamespacesVerifyNodeRequest::default())
            .await
            .unwrap()
            .into_inner();
        while stream.message().await.unwrap().is_some() {}
    }
}

async fn look(what: &str, pid: u32, seconds: u64) -> Vec<String> {
    // Connections that were just used still end.
    tokio::time::sleep(Duration::from_secs(15)).await;
    let before = usage(pid);
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let after = usage(pid);
    let (mut cpu, mut switches) = (0, 0);
    for (thread, now) in &after {
        let then = before.get(thread).copied().unwrap_or_default();
        cpu += now.0 - then.0;
        switches += now.1 - then.1;
    }
    let memory = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let mebibytes = |name: &str| format!("{:.1}", field(&memory, name) as f64 / 1024.0);
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    vec![
        what.to_owned(),
        mebibytes("Rss"),
        mebibytes("Anonymous"),
        mebibytes("Pss"),
        format!("{:.1}", cpu as f64 / 1e6),
        switches.to_string(),
        after.len().to_string(),
        descriptors.to_string(),
    ]
}

/// Nanoseconds on a CPU and voluntary switches, by thread.
fn usage(pid: u32) -> BTreeMap<String, (u64, u64)> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let read = |path: &Path, name: &str| fs::read_to_string(path.join(name)).unwrap_or_default();
    threads
        .map(|thread| {
            let path = thread.path();
            let time = read(&path, "schedstat")
                .split(' ')
                .next()
                .and_then(|t| t.parse().ok())
                .unwrap_or_default();
            let switches = field(&read(&path, "status"), "voluntary_ctxt_switches");
            (thread.file_name().to_string_lossy().into_owned(), (time, switches))
        })
        .collect()
}

/// The number after `name:` at the beginning of a line.
fn field(text: &str, name: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.and_then(|v| v.split_ascii_whitespace().next()?.parse().ok()).unwrap_or_default()
}
