//! The embedded cluster, seen from outside: by the `kube` client, by `kubectl` and by `curl`.
#![cfg(all(feature = "embedded", target_os = "linux"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

mod ephemeral;
mod fake;
mod faults;
mod kubectl;
mod kubelet;
mod portforward;
mod selectors;
mod watch;

use std::{
    process::{Command, Output},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod};
use podsonde::embedded::Cluster;
use serde_json::{Value, json};
use tokio::{task::spawn_blocking, time::timeout};

use self::fake::Fake;

/// Longer than anything here takes; what hangs fails the test.
const PATIENCE: Duration = Duration::from_secs(30);

/// A cluster of one node, `node-a`.
async fn cluster() -> (Cluster, Arc<Fake>) {
    let runtime = Arc::new(Fake::default());
    let builder =
        Cluster::builder().node("node-a", runtime.clone()).back_off(Duration::from_millis(20));
    (builder.start().await.unwrap(), runtime)
}

/// A pod on `node-a` with one container, `web`.
fn web(name: &str) -> Value {
    json!({
        "metadata": { "name": name, "labels": { "app": "web" } },
        "spec": { "nodeName": "node-a", "containers": [{ "name": "web", "image": "nginx:1.27" }] },
    })
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("it takes too long")
}

/// Waits until the pod in `default` is as wanted.
async fn wait(cluster: &Cluster, name: &str, wanted: impl FnMut(&Pod) -> bool) -> Pod {
    within(cluster.wait_pod("default", name, wanted)).await.unwrap()
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// The status of a container, of whatever kind.
fn status<'a>(pod: &'a Pod, container: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    [
        &status.container_statuses,
        &status.init_container_statuses,
        &status.ephemeral_container_statuses,
    ]
    .into_iter()
    .flatten()
    .flatten()
    .find(|status| status.name == container)
}

fn state(pod: &Pod, container: &str) -> ContainerState {
    status(pod, container).and_then(|status| status.state.clone()).unwrap_or_default()
}

fn running(pod: &Pod, container: &str) -> bool {
    state(pod, container).running.is_some()
}

/// Why a container waits; empty if it does not.
fn waiting(pod: &Pod, container: &str) -> String {
    state(pod, container).waiting.and_then(|waiting| waiting.reason).unwrap_or_default()
}

async fn run(program: &'static str, arguments: Vec<String>) -> Output {
    let command =
        move || Command::new(program).args(arguments).env("KUBECONFIG", "/dev/null").output();
    within(spawn_blocking(command))
        .await
        .unwrap()
        .unwrap_or_else(|error| panic!("{program}: {error}"))
}

/// Runs `curl` and returns the answer's code and body.
async fn curl(
    cluster: &Cluster,
    method: &str,
    path: &str,
    media_type: &str,
    body: &Value,
) -> (u16, Value) {
    let mut arguments = vec![
        "--silent".to_owned(),
        "--write-out".into(),
        "\n%{http_code}".into(),
        "--request".into(),
        method.into(),
        "--globoff".into(),
        format!("{}{path}", cluster.url()),
    ];
    if !body.is_null() {
        arguments.extend(["--header".into(), format!("Content-Type: {media_type}")]);
        arguments.extend(["--data-binary".into(), body.to_string()]);
    }
    let output = String::from_utf8(run("curl", arguments).await.stdout).unwrap();
    let (body, code) = output.rsplit_once('\n').unwrap();
    (code.parse().unwrap(), serde_json::from_str(body).unwrap_or_else(|_| body.into()))
}

async fn get(cluster: &Cluster, path: &str) -> (u16, Value) {
    curl(cluster, "GET", path, "", &Value::Null).await
}

const JSON: &str = "application/json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const MERGE: &str = "application/merge-patch+json";
const JSON_PATCH: &str = "application/json-patch+json";
