//! The node tier: pods on a real containerd and runc, checked with independent tools. Run by
//! `tests/run node`.
#![cfg(all(target_os = "linux", feature = "embedded"))]
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "node/cri.rs"]
mod cri;
mod support;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::api::{Api, Patch, PatchParams};
use podsonde::embedded::runtime::{ContainerStart, Mount, PidMode, Runtime, Sandbox, Stream};
use serde_json::json;
use support::{
    cri::{CriOptions, CriRuntime},
    node::{self, Node},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const SLEEP: &[&str] = &["sleep", "infinity"];

/// Which of a target's namespaces a container shares, by type.
fn shared(target: u32, other: u32) -> BTreeMap<String, bool> {
    let other = node::namespaces_of(other);
    node::namespaces_of(target)
        .into_iter()
        .map(|(kind, link)| (kind.clone(), other[&kind] == link))
        .collect()
}

/// An HTTP response from the server at the other end.
async fn get(stream: &mut Box<dyn Stream>) -> String {
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.expect("request");
    let mut response = String::new();
    stream.read_to_string(&mut response).await.expect("response");
    response
}

#[tokio::test]
async fn a_targeted_container_shares_what_the_kubelet_asks_for() {
    let Some(node) = Node::get() else { return };
    let runtime = node.runtime().await;
    let pod = node::pod("web", json!({"containers": [{"name": "nginx", "image": "nginx"}]}));
    let uid = pod.metadata.uid.clone().expect("uid");
    let sandbox = runtime.run_sandbox(&pod).await.expect("sandbox");
    let nginx = runtime
        .start_container(&pod, &sandbox, &node::container("nginx", "nginx", &[]))
        .await
        .expect("nginx");
    let debug = ContainerStart {
        pid: PidMode::Target(nginx.id.clone()),
        ..node::container("debugger", "busybox", SLEEP)
    };
    let debugger = runtime.start_container(&pod, &sandbox, &debug).await.expect("debugger");

    let [nginx_pid, debugger_pid] =
        [&nginx.id, &debugger.id].map(|id| node::pid(id).expect("runs"));
    let shared = shared(nginx_pid, debugger_pid);
    for kind in ["net", "ipc", "uts", "pid", "pid_for_children", "user", "time"] {
        assert!(shared[kind], "{kind} is shared");
    }
    assert!(!shared["mnt"], "mnt is not shared");
    for (id, pid) in [(&nginx.id, nginx_pid), (&debugger.id, debugger_pid)] {
        let links = node::namespaces_of(pid);
        assert_eq!(node::namespaces_inside(id), links, "inside");
        let listed = node::namespaces_by_lsns(pid);
        assert!(listed.len() >= 7, "{listed:?}");
        for (kind, link) in listed {
            assert_eq!(links[&kind], link, "lsns");
        }
        assert_ne!(links["net"], node::namespaces_of(1)["net"]);
    }

    // The pod, as seen from inside.
    assert_eq!(node::exec(&debugger.id, &["hostname"]).trim(), "web");
    assert_eq!(node::exec(&debugger.id, &["cat", "/proc/1/comm"]).trim(), "nginx");
    assert!(node::exec(&debugger.id, &["ls", "/proc/1/root/etc"]).contains("nginx"));
    assert!(
        node::exec(&debugger.id, &["wget", "-qO-", "http://localhost:80"])
            .contains("Welcome to nginx!")
    );
    let ip = sandbox.ip.expect("an address").to_string();
    assert!(node::exec(&debugger.id, &["ip", "-o", "addr", "show", "eth0"]).contains(&ip));

    // As the agent finds it: a cgroup of the kubelet's shape, and the kubelet's labels.
    let cgroup = fs::read_to_string(format!("/proc/{nginx_pid}/cgroup")).expect("cgroup");
    let expected = format!("/kubepods/besteffort/pod{uid}/{}", nginx.id);
    assert!(cgroup.lines().any(|line| line.ends_with(&expected)), "{cgroup}");
    assert_eq!(nginx.id.len(), 64);
    let labels = node::output("ctr", &["containers", "info", &nginx.id]);
    for label in
        ["io.kubernetes.container.name\": \"nginx", "io.kubernetes.pod.name\": \"web", &uid]
    {
        assert!(labels.contains(label), "{label}");
    }
    let log = node.dir.join("logs").join(format!("default_web_{uid}/debugger/0.log"));
    assert!(log.exists(), "{}", log.display());

    // From outside, through the sandbox's network namespace.
    let mut stream = runtime.connect(&sandbox, 80).await.expect("connect");
    assert!(get(&mut stream).await.contains("Welcome to nginx!"));
    let refused = runtime.connect(&sandbox, 81).await.err().expect("nothing listens there");
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);

    // Nothing stays.
    let namespaces = node::namespaces_of(nginx_pid);
    assert!(!node::pod_cgroups(&uid).is_empty());
    runtime.remove_pod(&uid).await;
    for id in [&sandbox.id, &nginx.id, &debugger.id] {
        assert_eq!(node::pid(id), None);
        assert!(!node::output("ctr", &["containers", "ls", "-q"]).contains(id.as_str()));
    }
    assert!(!Path::new(&format!("/proc/{nginx_pid}")).exists());
    assert_eq!(node::pod_cgroups(&uid), Vec::<PathBuf>::new());
    assert!(node::is_listed_by_lsns(&node::namespaces_of(1)["net"]));
    assert!(!node::is_listed_by_lsns(&namespaces["net"]));
    assert!(runtime.connect(&sandbox, 80).await.is_err());
    // The kubelet's word for a container that is gone.
    assert_eq!(nginx.exit.await.code, 137);
    runtime.remove_pod(&uid).await;
}

/// One pod shape: the pod's spec, the target's and the debug container's pid mode, and the
/// namespaces which these two then share. `TARGET` stands for the target's id.
struct Shape {
    name: &'static str,
    spec: serde_json::Value,
    target: PidMode,
    debugger: PidMode,
    ignore_target: bool,
    pid_shared: bool,
    /// Namespaces that are the node's.
    node: &'static [&'static str],
}

#[tokio::test]
async fn every_pod_shape_has_the_namespaces_it_asks_for() {
    let Some(node) = Node::get() else { return };
    let target = || PidMode::Target("TARGET".to_owned());
    let own = PidMode::Container;
    let plain = json!({"containers": [{"name": "app", "image": "busybox"}]});
    let with = |field: &str| {
        let mut spec = plain.clone();
        spec[field] = json!(true);
        spec
    };
    let shapes = [
        Shape {
            name: "no target",
            spec: plain.clone(),
            target: own.clone(),
            debugger: own.clone(),
            ignore_target: false,
            pid_shared: false,
            node: &[],
        },
        Shape {
            name: "target ignored",
            spec: plain.clone(),
            target: own.clone(),
            debugger: target(),
            ignore_target: true,
            pid_shared: false,
            node: &[],
        },
        Shape {
            name: "shared process namespace",
            spec: with("shareProcessNamespace"),
            target: PidMode::Pod,
            debugger: PidMode::Pod,
            ignore_target: false,
            pid_shared: true,
            node: &[],
        },
        Shape {
            name: "host pid",
            spec: with("hostPID"),
            target: PidMode::Node,
            debugger: PidMode::Node,
            ignore_target: false,
            pid_shared: true,
            node: &["pid"],
        },
        Shape {
            name: "host network",
            spec: with("hostNetwork"),
            target: own.clone(),
            debugger: target(),
            ignore_target: false,
            pid_shared: true,
            node: &["net", "uts"],
        },
        Shape {
            name: "host ipc",
            spec: with("hostIPC"),
            target: own.clone(),
            debugger: target(),
            ignore_target: false,
            pid_shared: true,
            node: &["ipc"],
        },
    ];
    for Shape { name, spec, target, debugger, ignore_target, pid_shared, node: of_node } in shapes {
        let runtime =
            node.runtime_with(CriOptions { ignore_target, ..CriOptions::default() }).await;
        let pod = node::pod("shape", spec);
        let sandbox = runtime.run_sandbox(&pod).await.expect(name);
        let app = ContainerStart { pid: target, ..node::container("app", "busybox", SLEEP) };
        let app = runtime.start_container(&pod, &sandbox, &app).await.expect(name);
        let pid = match debugger {
            PidMode::Target(_) => PidMode::Target(app.id.clone()),
            other => other,
        };
        let debugger = ContainerStart { pid, ..node::container("debugger", "busybox", SLEEP) };
        let debugger = runtime.start_container(&pod, &sandbox, &debugger).await.expect(name);

        let [app_pid, debugger_pid] =
            [&app.id, &debugger.id].map(|id| node::pid(id).expect("runs"));
        let shared = shared(app_pid, debugger_pid);
        for kind in ["net", "ipc", "uts", "user"] {
            assert!(shared[kind], "{name}: {kind} is shared");
        }
        assert_eq!(shared["pid"], pid_shared, "{name}: pid");
        assert!(!shared["mnt"], "{name}: mnt is not shared");
        let (of_debugger, of_first) = (node::namespaces_of(debugger_pid), node::namespaces_of(1));
        for kind in ["net", "ipc", "uts", "pid", "mnt"] {
            assert_eq!(
                of_debugger[kind] == of_first[kind],
                of_node.contains(&kind),
                "{name}: {kind} of the node"
            );
        }
        assert_eq!(sandbox.ip.is_none(), of_node.contains(&"net"), "{name}: address");
        runtime.remove_pod(pod.metadata.uid.as_deref().expect("uid")).await;
    }
}

#[tokio::test]
async fn a_connection_into_a_host_network_pod_stays_on_the_node() {
    let Some(node) = Node::get() else { return };
    let runtime = node.runtime().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let port = listener.local_addr().expect("address").port();
    let spec = json!({"hostNetwork": true, "containers": [{"name": "app", "image": "busybox"}]});
    let pod = node::pod("host", spec);
    let sandbox = runtime.run_sandbox(&pod).await.expect("sandbox");
    runtime.connect(&sandbox, port).await.expect("connect");
    runtime.remove_pod(pod.metadata.uid.as_deref().expect("uid")).await;
}

async fn started(runtime: &CriRuntime, name: &str) -> (Pod, Sandbox) {
    let pod = node::pod(name, json!({"containers": [{"name": "app", "image": "busybox"}]}));
    let sandbox = runtime.run_sandbox(&pod).await.expect("sandbox");
    (pod, sandbox)
}

#[tokio::test]
async fn each_failure_has_the_kubelet_s_reason_and_message() {
    let Some(node) = Node::get() else { return };
    let runtime = node.runtime().await;
    let (pod, sandbox) = started(&runtime, "failures").await;
    let uid = pod.metadata.uid.as_deref().expect("uid");
    let base = |name: &str| node::container(name, "busybox", SLEEP);
    let with_security = |name: &str, image: &str, security: serde_json::Value| ContainerStart {
        security: serde_json::from_value(security).expect("a security context"),
        ..node::container(name, image, &[])
    };
    let in_pod = format!("(pod: \"failures_default({uid})\", container: root)");
    let cases = [
        (
            ContainerStart { image: "registry.test/absent:1".into(), ..base("absent") },
            "ErrImagePull",
            "failed to pull and unpack image \"registry.test/absent:1\"",
        ),
        (
            ContainerStart { pull_policy: "Always".into(), ..base("always") },
            "ErrImagePull",
            "docker.io/library/busybox:latest",
        ),
        (
            ContainerStart { image: "absent".into(), pull_policy: "Never".into(), ..base("never") },
            "ErrImageNeverPull",
            "Container image \"absent\" is not present with pull policy of Never",
        ),
        (
            ContainerStart { image: "Not A Name".into(), ..base("name") },
            "InvalidImageName",
            "Failed to apply default image tag \"Not A Name\"",
        ),
        (
            with_security("root", "busybox", json!({"runAsNonRoot": true})),
            "CreateContainerConfigError",
            &format!("container has runAsNonRoot and image will run as root {in_pod}"),
        ),
        (
            with_security(
                "root",
                "registry.test/distroless:1",
                json!({"runAsNonRoot": true, "runAsUser": 0}),
            ),
            "CreateContainerConfigError",
            &format!("container's runAsUser breaks non-root policy {in_pod}"),
        ),
        (
            ContainerStart { pid: PidMode::Target("0".repeat(64)), ..base("target") },
            "CreateContainerError",
            "target container",
        ),
        (
            ContainerStart { command: vec!["no-such-program".into()], ..base("command") },
            "RunContainerError",
            "executable file not found in $PATH",
        ),
        (
            ContainerStart {
                mounts: vec![Mount {
                    host_path: "/proc/1/no-such-path".into(),
                    container_path: "/mounted".into(),
                    read_only: true,
                }],
                ..base("mount")
            },
            "CreateContainerError",
            "/proc/1/no-such-path",
        ),
    ];
    for (start, reason, message) in cases {
        let Err(error) = runtime.start_container(&pod, &sandbox, &start).await else {
            panic!("{} started", start.name);
        };
        assert_eq!(error.reason, reason, "{}: {}", start.name, error.message);
        assert!(error.message.contains(message), "{}: {}", start.name, error.message);
    }
    // The name is taken: the kubelet would have counted the attempt.
    let first = runtime.start_container(&pod, &sandbox, &base("twice")).await.expect("first");
    let Err(second) = runtime.start_container(&pod, &sandbox, &base("twice")).await else {
        panic!("started twice")
    };
    assert_eq!(second.reason, "CreateContainerError");
    assert!(second.message.contains(&first.id), "{}", second.message);
    let again = ContainerStart { attempt: 1, ..base("twice") };
    runtime.start_container(&pod, &sandbox, &again).await.expect("second attempt");
    runtime.remove_pod(uid).await;

    // Not possible with this runtime.
    let spec = json!({"hostUsers": false, "containers": [{"name": "app", "image": "busybox"}]});
    let refused =
        runtime.run_sandbox(&node::pod("userns", spec)).await.expect_err("no user namespaces");
    assert!(
        refused.message.contains("runtime does not support user namespaces"),
        "{}",
        refused.message
    );
}

#[tokio::test]
async fn an_end_is_reported_with_its_exit_code() {
    let Some(node) = Node::get() else { return };
    let runtime = node.runtime().await;
    let (pod, sandbox) = started(&runtime, "exits").await;
    let start = |name: &str, command: &[&str]| node::container(name, "busybox", command);
    for (name, script, code) in
        [("zero", "exit 0", 0), ("three", "exit 3", 3), ("killed", "kill -9 $$", 137)]
    {
        // In a shell of its own: a pid namespace's first process cannot kill itself.
        let command = ["sh", "-c", &format!("sh -c '{script}'; exit $?")];
        let ended =
            runtime.start_container(&pod, &sandbox, &start(name, &command)).await.expect(name);
        assert_eq!(ended.exit.await.code, code, "{name}");
    }
    let running =
        runtime.start_container(&pod, &sandbox, &start("running", SLEEP)).await.expect("running");
    let exit = tokio::spawn(running.exit);
    let pid = node::pid(&running.id).expect("runs");
    assert!(!exit.is_finished());
    node::output("kill", &["-KILL", &pid.to_string()]);
    assert_eq!(exit.await.expect("exit").code, 137);
    runtime.remove_pod(pod.metadata.uid.as_deref().expect("uid")).await;
}

#[tokio::test]
async fn what_nobody_waited_for_is_removed_with_the_pod() {
    let Some(node) = Node::get() else { return };
    let runtime = node.runtime().await;
    let start = node::container("app", "busybox", SLEEP);
    // Abandoned at every stage there is: each request ends within a second when nobody is in its
    // way.
    for stage in 0..12 {
        let pod =
            node::pod("abandoned", json!({"containers": [{"name": "app", "image": "busybox"}]}));
        let uid = pod.metadata.uid.as_deref().expect("uid");
        let both = async {
            let sandbox = runtime.run_sandbox(&pod).await.expect("sandbox");
            runtime.start_container(&pod, &sandbox, &start).await.expect("container");
        };
        let _ = tokio::time::timeout(Duration::from_millis(stage * 40), both).await;
        runtime.remove_pod(uid).await;
        let containers = node::output(
            "ctr",
            &["containers", "ls", &format!("labels.\"io.kubernetes.pod.uid\"=={uid}")],
        );
        assert_eq!(containers.lines().count(), 1, "only the heading: {containers}");
        assert_eq!(node::pod_cgroups(uid), Vec::<PathBuf>::new());
    }
}

#[tokio::test]
async fn a_security_context_reaches_the_process() {
    let Some(node) = Node::get() else { return };
    let runtime = node.runtime().await;
    let (pod, sandbox) = started(&runtime, "security").await;
    let volume = node.dir.join(format!("volume-{}", sandbox.id));
    fs::create_dir(&volume).expect("volume");
    fs::write(volume.join("file"), "volume").expect("file");
    let start = |name: &str, security: serde_json::Value| ContainerStart {
        security: serde_json::from_value(security).expect("a security context"),
        env: vec![("KEY".to_owned(), "value with = and space".to_owned())],
        working_dir: Some("/tmp".to_owned()),
        mounts: vec![Mount {
            host_path: volume.clone(),
            container_path: "/volume".into(),
            read_only: true,
        }],
        ..node::container(name, "busybox", SLEEP)
    };
    let plain =
        runtime.start_container(&pod, &sandbox, &start("plain", json!({}))).await.expect("plain");
    let pid = node::pid(&plain.id).expect("runs");
    // containerd's default set, as runc's and Docker's.
    assert_eq!(node::status_of(pid, "CapEff"), "00000000a80425fb");
    assert_eq!(node::status_of(pid, "Seccomp"), "0");
    assert_eq!(node::status_of(pid, "NoNewPrivs"), "0");
    assert_eq!(
        node::exec(&plain.id, &["sh", "-c", "echo $KEY $PWD $(cat /volume/file)"]).trim(),
        "value with = and space /tmp volume"
    );
    assert_eq!(
        node::exec(&plain.id, &["sh", "-c", "touch /volume/x 2>&1 || true"]).trim(),
        "touch: /volume/x: Read-only file system"
    );

    let tight = json!({
        "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]}, "runAsUser": 1000, "runAsGroup": 2000,
        "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false, "runAsNonRoot": true,
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    let tight =
        runtime.start_container(&pod, &sandbox, &start("tight", tight)).await.expect("tight");
    let pid = node::pid(&tight.id).expect("runs");
    // CAP_NET_ADMIN is number 12; a uid other than 0 has it only in the bounding set.
    assert_eq!(node::status_of(pid, "CapBnd"), format!("{:016x}", 1 << 12));
    assert_eq!(node::status_of(pid, "Uid"), "1000\t1000\t1000\t1000");
    assert_eq!(node::status_of(pid, "Gid"), "2000\t2000\t2000\t2000");
    assert_eq!(node::status_of(pid, "Seccomp"), "2");
    assert_eq!(node::status_of(pid, "NoNewPrivs"), "1");
    assert!(
        node::exec(&tight.id, &["sh", "-c", "touch /x 2>&1 || true"])
            .contains("Read-only file system")
    );

    let privileged = start("privileged", json!({"privileged": true}));
    let privileged =
        runtime.start_container(&pod, &sandbox, &privileged).await.expect("privileged");
    let pid = node::pid(&privileged.id).expect("runs");
    assert_eq!(node::status_of(pid, "CapEff"), node::status_of(1, "CapBnd"));

    let distroless = node::container("distroless", "registry.test/distroless:1", &[]);
    let distroless =
        runtime.start_container(&pod, &sandbox, &distroless).await.expect("distroless");
    let pid = node::pid(&distroless.id).expect("runs");
    assert_eq!(node::status_of(pid, "Uid"), "65532\t65532\t65532\t65532");
    let root = format!("/proc/{pid}/root");
    assert!(Path::new(&root).join("httpd").exists() && !Path::new(&root).join("bin").exists());
    runtime.remove_pod(pod.metadata.uid.as_deref().expect("uid")).await;
}

/// The id of a container that runs, without its scheme.
fn running(statuses: Option<&Vec<ContainerStatus>>, name: &str) -> Option<String> {
    let status = statuses?.iter().find(|status| status.name == name)?;
    status.state.as_ref()?.running.as_ref()?;
    Some(status.container_id.as_ref()?.strip_prefix("containerd://")?.to_owned())
}

#[tokio::test]
async fn the_cluster_s_kubelet_runs_its_pods_here() {
    let Some(node) = Node::get() else { return };
    let cluster = node.cluster(CriOptions::default()).await;
    let pod = json!({
        "metadata": {"name": "web"},
        "spec": {"containers": [{"name": "nginx", "image": "nginx", "imagePullPolicy": "IfNotPresent"}]},
    });
    cluster.create_pod(pod).await.expect("create");
    let nginx = |pod: &Pod| running(pod.status.as_ref()?.container_statuses.as_ref(), "nginx");
    let web = cluster.wait_pod("default", "web", |pod| nginx(pod).is_some()).await.expect("runs");
    let nginx = nginx(&web).expect("an id");

    let pods: Api<Pod> = Api::default_namespaced(cluster.client().expect("client"));
    let debugger = json!({"spec": {"ephemeralContainers": [{
        "name": "debugger", "image": "busybox", "imagePullPolicy": "IfNotPresent", "command": SLEEP, "targetContainerName": "nginx",
    }]}});
    pods.patch_ephemeral_containers("web", &PatchParams::default(), &Patch::Strategic(debugger))
        .await
        .expect("patch");
    let debugger =
        |pod: &Pod| running(pod.status.as_ref()?.ephemeral_container_statuses.as_ref(), "debugger");
    let web =
        cluster.wait_pod("default", "web", |pod| debugger(pod).is_some()).await.expect("runs");
    let debugger = debugger(&web).expect("an id");
    let [nginx_pid, debugger_pid] = [&nginx, &debugger].map(|id| node::pid(id).expect("runs"));
    assert!(shared(nginx_pid, debugger_pid)["pid"]);

    cluster.shutdown().await;
    assert_eq!([node::pid(&nginx), node::pid(&debugger)], [None, None]);
}
