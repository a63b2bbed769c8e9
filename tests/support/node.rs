//! The throw-away node of `tests/node/run`, and what independent tools say about what runs on it.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{self, Write},
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use k8s_openapi::api::core::v1::Pod;
use podsonde::embedded::{
    Cluster,
    runtime::{ContainerStart, PidMode},
};
use serde_json::{Value, json};

use super::cri::{CriOptions, CriRuntime};

/// The node's name in the cluster, and its host name.
pub const NAME: &str = "node";

/// A node with a container runtime of its own. This process runs on it.
pub struct Node {
    /// The runtime's CRI socket.
    pub socket: PathBuf,
    /// For logs, volumes and sockets; removed with the node.
    pub dir: PathBuf,
    /// The node's address in the pod network: a server that listens there is reached from pods.
    pub address: IpAddr,
}

impl Node {
    /// The node that this process runs on. None if it runs on none: the test is then to return, it
    /// cannot run.
    ///
    /// # Panics
    /// If it runs on none although `CI` is set: there every test must run.
    pub fn get() -> Option<Self> {
        let Some(socket) = env::var_os("PODSONDE_NODE_CRI") else {
            assert!(
                env::var_os("CI").is_none(),
                "no node to test on, and CI is set: use tests/run node"
            );
            // Not through a macro, whose output is caught while a test passes.
            let _ = writeln!(io::stderr(), "skipped: no node to test on; use tests/run node");
            return None;
        };
        let variable = |name: &str| env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
        Some(Self {
            socket: socket.into(),
            dir: variable("PODSONDE_NODE_DIR").into(),
            address: variable("PODSONDE_NODE_ADDRESS").parse().expect("an address"),
        })
    }

    /// The node's runtime, with logs below the node's directory.
    pub async fn runtime(&self) -> CriRuntime {
        self.runtime_with(CriOptions::default()).await
    }

    /// The node's runtime, with logs below the node's directory and these options.
    pub async fn runtime_with(&self, options: CriOptions) -> CriRuntime {
        let options = CriOptions { log_directory: Some(self.dir.join("logs")), ..options };
        CriRuntime::connect(&self.socket, options).await.expect("connect to the runtime")
    }

    /// A cluster of this one node, [`NAME`]. Its API server is at the address that pods reach.
    pub async fn cluster(&self, options: CriOptions) -> Cluster {
        let runtime = Arc::new(self.runtime_with(options).await);
        let cluster = Cluster::builder().node(NAME, runtime).https((self.address, 0).into());
        cluster.start().await.expect("start the cluster")
    }
}

/// A pod as an API server would have it, with a UID of its own.
pub fn pod(name: &str, spec: Value) -> Pod {
    let uid = uuid::Uuid::new_v4().to_string();
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "default", "uid": uid},
        "spec": spec,
        "status": {"qosClass": "BestEffort"},
    }))
    .expect("a pod")
}

/// A container as the kubelet would ask for it: image by pull policy `IfNotPresent`, all else by
/// default.
pub fn container(name: &str, image: &str, command: &[&str]) -> ContainerStart {
    ContainerStart {
        name: name.to_owned(),
        attempt: 0,
        image: image.to_owned(),
        pull_policy: "IfNotPresent".to_owned(),
        command: command.iter().map(|&word| word.to_owned()).collect(),
        args: Vec::new(),
        env: Vec::new(),
        working_dir: None,
        security: Default::default(),
        pid: PidMode::Container,
        mounts: Vec::new(),
        labels: BTreeMap::new(),
        stdin: false,
        tty: false,
    }
}

/// Runs a program and returns what it writes.
///
/// # Panics
/// If it fails.
pub fn output(program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {}: {stderr}", output.status);
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Executes a program in a container, by `ctr`.
pub fn exec(container_id: &str, command: &[&str]) -> String {
    let exec_id = uuid::Uuid::new_v4().to_string();
    let mut args = vec!["tasks", "exec", "--exec-id", &exec_id, container_id];
    args.extend(command);
    output("ctr", &args)
}

/// The pid of a container's or sandbox's first process, by `ctr`. None if it does not run.
pub fn pid(id: &str) -> Option<u32> {
    let tasks = output("ctr", &["tasks", "ls"]);
    let line = tasks.lines().find(|line| line.starts_with(id))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// A process' namespaces, as `net` → `net:[4026531840]`, by `readlink`.
pub fn namespaces_of(pid: u32) -> BTreeMap<String, String> {
    links(&output(
        "sh",
        &["-c", &format!("cd /proc/{pid}/ns && for n in *; do echo \"$n $(readlink $n)\"; done")],
    ))
}

/// The same, read by a process inside the container. Its image must have a shell and `readlink`.
pub fn namespaces_inside(container_id: &str) -> BTreeMap<String, String> {
    // Of the shell itself: `readlink` is a child, and would be in the namespaces for children.
    links(&exec(
        container_id,
        &["sh", "-c", "cd /proc/$$/ns && for n in *; do echo \"$n $(readlink $n)\"; done"],
    ))
}

/// The same of a process, by `lsns`, which has no links for children's namespaces.
pub fn namespaces_by_lsns(pid: u32) -> BTreeMap<String, String> {
    // Its exit status says that a process ended while it looked, which others here do all the time.
    let list = || {
        Command::new("lsns")
            .args(["-J", "-o", "NS,TYPE", "-p", &pid.to_string()])
            .output()
            .expect("lsns")
    };
    let mut tries = std::iter::repeat_with(list).take(50);
    let listed = tries.find(|output| output.status.success()).expect("lsns succeeds");
    let listed: Value = serde_json::from_slice(&listed.stdout).expect("JSON");
    let namespaces = listed["namespaces"].as_array().expect("a list");
    namespaces
        .iter()
        .map(|namespace| {
            let kind = namespace["type"].as_str().expect("a type").to_owned();
            let link = format!("{kind}:[{}]", namespace["ns"]);
            (kind, link)
        })
        .collect()
}

/// Whether `lsns` finds a process in the namespace of this link.
pub fn is_listed_by_lsns(link: &str) -> bool {
    // Whatever its exit status is, as above.
    let listed = Command::new("lsns").args(["-n", "-o", "NS"]).output().expect("lsns").stdout;
    let inode = link.trim_matches(|c: char| !c.is_ascii_digit());
    String::from_utf8(listed).expect("UTF-8").lines().any(|line| line.trim() == inode)
}

fn links(lines: &str) -> BTreeMap<String, String> {
    let pairs = lines.lines().filter_map(|line| line.split_once(' '));
    pairs.map(|(name, link)| (name.to_owned(), link.to_owned())).collect()
}

/// A line of `/proc/<pid>/status`: `CapEff`, `NoNewPrivs`, `Seccomp`, `Uid`.
pub fn status_of(pid: u32, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    value.unwrap_or_else(|| panic!("no {field}")).trim().to_owned()
}

/// The directories of a pod's cgroup, in every hierarchy.
pub fn pod_cgroups(pod_uid: &str) -> Vec<PathBuf> {
    let found = output(
        "find",
        &["/sys/fs/cgroup", "-ignore_readdir_race", "-type", "d", "-name", &format!("*{pod_uid}*")],
    );
    found.lines().map(|line| Path::new(line).to_owned()).collect()
}
