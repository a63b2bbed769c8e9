//! A node with many pods and processes.

use std::{fs, time::Duration};

use k8s_openapi::api::core::v1::Pod;
use podsonde::embedded::Cluster;
use serde_json::json;

use crate::fixture::NODE;

/// Where it was measured: figures mean nothing without.
pub(crate) fn machine() -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let cpus = std::thread::available_parallelism().unwrap();
    let cgroup = match fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap() {
        true => "v2",
        false => "v1",
    };
    format!("{cpus} CPUs, Linux {}, cgroup {cgroup}", kernel.trim())
}

/// How many processes the machine has.
pub(crate) fn processes() -> usize {
    let is_process = |name: &str| name.bytes().all(|b| b.is_ascii_digit());
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|e| e.file_name().to_str().is_some_and(is_process))
        .count()
}

/// Adds `pods` pods of one container, whose processes bring the machine to about `total`. Waits
/// until all of them are there.
pub(crate) async fn fill(cluster: &Cluster, pods: usize, total: usize) {
    // Shim and first process of both sandbox and container.
    let others = processes() + 4 * pods;
    let children = total.saturating_sub(others) / pods;
    let script = format!(
        "i=0; while [ $i -lt {children} ]; do sleep infinity & i=$((i+1)); done; exec sleep infinity"
    );
    for name in (0..pods).map(pod) {
        let container = json!({"name": "main", "image": "podsonde.dev/demo/host:1", "command": ["sh", "-c", script]});
        let spec = json!({"nodeName": NODE, "containers": [container]});
        cluster.create_pod(json!({"metadata": {"name": name}, "spec": spec})).await.unwrap();
    }
    for name in (0..pods).map(pod) {
        let runs =
            |pod: &Pod| pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running");
        cluster.wait_pod("default", &name, runs).await.unwrap();
    }
    // The shells still fork: until the number stands still.
    let mut before = 0;
    while before < processes() {
        before = processes();
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Name of a pod that [`fill`] made.
pub(crate) fn pod(number: usize) -> String {
    format!("pod-{number:03}")
}
