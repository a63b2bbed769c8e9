//! Pods of plain namespaces: what they share, that they work, and that they leave nothing behind.
//!
//! What must hold is read with `readlink`, `lsns`, `nsenter`, `curl` and from `/proc`, never asked of the runtime. Most
//! pods run in a process of their own (the test `host`, executed again), as root and as an ordinary user, because that
//! process is also killed to see what it leaves.
#![cfg(all(feature = "embedded", target_os = "linux"))]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead, BufReader, Write as _},
    os::fd::OwnedFd,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::{Capabilities, Pod, PodSpec, SecurityContext};
use podsonde::embedded::{
    namespaces::{CgroupDriver, NamespaceRuntime, Options},
    runtime::{ContainerStart, Mount, PidMode, Runtime as _, Sandbox, StartError, Started},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const PODSONDE: &str = env!("CARGO_BIN_EXE_podsonde");
const SLEEP: &str = "podsonde.dev/demo/sleep:1";

/// Whether a test that needs root can run. Where `CI` is set it must.
fn root() -> bool {
    let root = rustix::process::geteuid().is_root();
    assert!(root || std::env::var_os("CI").is_none(), "needs root");
    if !root {
        println!("skipped: needs root");
    }
    root
}

fn options() -> Options {
    Options { executable: PathBuf::from(PODSONDE), ..Options::default() }
}

fn pod(name: &str) -> Pod {
    let mut pod = Pod { spec: Some(PodSpec::default()), ..Pod::default() };
    pod.metadata.name = Some(name.to_owned());
    pod.metadata.namespace = Some("default".to_owned());
    pod.metadata.uid = Some(uuid::Uuid::new_v4().to_string());
    pod
}

fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap()
}

fn container(name: &str, image: &str) -> ContainerStart {
    ContainerStart {
        name: name.to_owned(),
        attempt: 0,
        image: image.to_owned(),
        pull_policy: "IfNotPresent".to_owned(),
        command: Vec::new(),
        args: Vec::new(),
        env: Vec::new(),
        working_dir: None,
        security: SecurityContext::default(),
        pid: PidMode::Container,
        mounts: Vec::new(),
        labels: BTreeMap::new(),
        stdin: false,
        tty: false,
    }
}

fn shell(script: &str) -> ContainerStart {
    let mut container = container("shell", "busybox");
    container.command = ["sh", "-c", script].map(str::to_owned).to_vec();
    container
}

/// Runs a script with a shell in the namespaces in which a runtime runs, and gives what it prints.
struct View {
    prefix: Vec<String>,
}

impl View {
    fn here() -> Self {
        Self { prefix: Vec::new() }
    }

    /// The user and mount namespaces of a process of nobody's.
    fn of(pid: u32) -> Self {
        let prefix = format!(
            "setpriv --reuid=65534 --regid=65534 --clear-groups \
             nsenter --target {pid} --user --mount --preserve-credentials --"
        );
        Self { prefix: prefix.split(' ').map(str::to_owned).collect() }
    }

    fn run(&self, script: &str) -> String {
        let mut words = self.prefix.iter().map(String::as_str).chain(["sh", "-c", script]);
        let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// The pids of processes whose cgroup line names this container or sandbox.
    fn pids(&self, id: &str) -> Vec<i32> {
        let found = self.run(&format!("grep -lsE '[/-]{id}(\\.scope)?$' /proc/[0-9]*/cgroup"));
        let mut pids: Vec<i32> =
            found.lines().map(|path| path.split('/').nth(2).unwrap().parse().unwrap()).collect();
        pids.sort_by_key(|pid| start_time(*pid));
        pids
    }

    /// The first process of a container.
    fn pid(&self, id: &str) -> i32 {
        *self.pids(id).first().unwrap_or_else(|| panic!("no process with id {id}"))
    }

    /// The namespaces of a process, by kind.
    fn namespaces(&self, pid: i32) -> BTreeMap<String, String> {
        let links = self.run(&format!(
            "for kind in cgroup ipc mnt net pid time user uts; do readlink /proc/{pid}/ns/$kind; done"
        ));
        let namespaces: BTreeMap<_, _> =
            links.lines().map(|link| (link.split(':').next().unwrap().to_owned(), link.to_owned())).collect();
        assert_eq!(namespaces.len(), 8, "namespaces of {pid}: {namespaces:?}");
        namespaces
    }
}

fn start_time(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit(") ").next().unwrap_or_default();
    fields.split(' ').nth(19).and_then(|field| field.parse().ok()).unwrap_or(u64::MAX)
}

// ---- Shapes of pods -------------------------------------------------------------------------------------------------

/// A pod with the containers `a` and `b`, and what must hold for their namespaces.
struct Shape {
    name: &'static str,
    spec: fn(&mut PodSpec),
    options: fn(&mut Options),
    pid: Wanted,
    /// Namespaces of both containers that are the runtime's.
    host: &'static [&'static str],
    /// Namespaces that both containers share with the sandbox, and with nothing else.
    sandbox: &'static [&'static str],
    /// Namespaces that are each container's own.
    own: &'static [&'static str],
    /// Namespaces that `b` shares with `a`, and not with the sandbox.
    target: &'static [&'static str],
}

/// The pid namespace that `b` asks for; `a` gets the same, but its own instead of a target's.
#[derive(Clone, Copy, PartialEq)]
enum Wanted {
    Container,
    Pod,
    Node,
    Target,
}

const NONE: fn(&mut Options) = |_| {};

fn shapes() -> Vec<Shape> {
    let plain = Shape {
        name: "plain",
        spec: |_| {},
        options: NONE,
        pid: Wanted::Container,
        host: &["cgroup", "time", "user"],
        sandbox: &["net", "ipc", "uts"],
        own: &["mnt", "pid"],
        target: &[],
    };
    vec![
        Shape { name: "target", pid: Wanted::Target, own: &["mnt"], target: &["pid"], ..plain },
        Shape {
            name: "ignored-target",
            options: |options| options.ignore_target = true,
            pid: Wanted::Target,
            ..plain
        },
        Shape {
            name: "share-process-namespace",
            spec: |spec| spec.share_process_namespace = Some(true),
            pid: Wanted::Pod,
            sandbox: &["net", "ipc", "uts", "pid"],
            own: &["mnt"],
            ..plain
        },
        Shape {
            name: "host-pid",
            spec: |spec| spec.host_pid = Some(true),
            pid: Wanted::Node,
            host: &["cgroup", "time", "user", "pid"],
            own: &["mnt"],
            ..plain
        },
        Shape {
            name: "host-network",
            spec: |spec| spec.host_network = Some(true),
            host: &["cgroup", "time", "user", "net", "uts"],
            sandbox: &["ipc"],
            ..plain
        },
        Shape {
            name: "host-ipc",
            spec: |spec| spec.host_ipc = Some(true),
            host: &["cgroup", "time", "user", "ipc"],
            sandbox: &["net", "uts"],
            ..plain
        },
        Shape {
            name: "user-namespace",
            spec: |spec| spec.host_users = Some(false),
            pid: Wanted::Target,
            host: &["cgroup", "time"],
            sandbox: &["net", "ipc", "uts", "user"],
            own: &["mnt"],
            target: &["pid"],
            ..plain
        },
        Shape {
            name: "cgroup-namespace",
            options: |options| options.cgroup_namespace = Some(true),
            host: &["time", "user"],
            own: &["mnt", "pid", "cgroup"],
            ..plain
        },
        Shape {
            name: "systemd-driver",
            options: |options| options.cgroup_driver = CgroupDriver::Systemd,
            ..plain
        },
        plain,
    ]
}

/// What `host` says about one pod.
#[derive(Debug, Serialize, Deserialize)]
struct Running {
    shape: String,
    uid: String,
    sandbox: String,
    a: String,
    b: String,
}

/// Not a test: a process with a runtime and a pod of every shape. Says what runs, a line each, then `ready`. When its
/// stdin ends it removes the pods and says `removed`.
#[test]
#[ignore = "executed by the other tests"]
fn host() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut pods = Vec::new();
        for shape in shapes() {
            let mut options = options();
            (shape.options)(&mut options);
            let runtime = NamespaceRuntime::new(options).unwrap();
            let mut pod = pod(shape.name);
            (shape.spec)(pod.spec.as_mut().unwrap());
            let began = Instant::now();
            let sandbox = runtime.run_sandbox(&pod).await.unwrap();
            let mut a = container("a", SLEEP);
            a.pid = match shape.pid {
                Wanted::Container | Wanted::Target => PidMode::Container,
                Wanted::Pod => PidMode::Pod,
                Wanted::Node => PidMode::Node,
            };
            let mut b = container("b", SLEEP);
            b.pid = a.pid.clone();
            let a = runtime.start_container(&pod, &sandbox, &a).await.unwrap();
            let took = began.elapsed();
            if shape.pid == Wanted::Target {
                b.pid = PidMode::Target(a.id.clone());
            }
            let b = runtime.start_container(&pod, &sandbox, &b).await.unwrap();
            println!("\n{}: sandbox and container started in {took:?}", shape.name);
            let running = Running {
                shape: shape.name.to_owned(),
                uid: uid(&pod).to_owned(),
                sandbox: sandbox.id,
                a: a.id,
                b: b.id,
            };
            println!("{}", serde_json::to_string(&running).unwrap());
            pods.push((runtime, pod));
        }
        println!("ready");
        tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink()))
            .await
            .unwrap()
            .unwrap();
        for (runtime, pod) in &pods {
            runtime.remove_pod(uid(pod)).await;
        }
        println!("removed");
    });
}

/// A process that runs `host`.
struct Host {
    process: Child,
    pods: Vec<Running>,
    output: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Host {
    /// `prefix` is what it is executed with.
    fn start(prefix: &[&str]) -> Self {
        let test = std::env::current_exe().unwrap();
        let words =
            [prefix, &[test.to_str().unwrap(), "host", "--exact", "--ignored", "--nocapture"]].concat();
        let mut process = Command::new(words[0])
            .args(&words[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut pods = Vec::new();
        loop {
            let line = output.next().expect("the host ended").unwrap();
            match line.as_str() {
                "ready" => break,
                json if json.starts_with('{') => pods.push(serde_json::from_str(json).unwrap()),
                other => println!("{other}"),
            }
        }
        Self { process, pods, output }
    }

    /// Lets it remove its pods and end.
    fn end(&mut self) {
        drop(self.process.stdin.take());
        assert!(self.output.any(|line| line.unwrap() == "removed"));
        assert!(self.process.wait().unwrap().success());
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn check_shapes(host: &Host, view: &View) {
    let mine = view.namespaces(i32::try_from(host.process.id()).unwrap());
    let shapes = shapes();
    assert_eq!(host.pods.len(), shapes.len());
    for (pod, shape) in host.pods.iter().zip(shapes) {
        assert_eq!(pod.shape, shape.name);
        let [sandbox, a, b] = [&pod.sandbox, &pod.a, &pod.b].map(|id| view.namespaces(view.pid(id)));
        let all: BTreeSet<&str> =
            [shape.host, shape.sandbox, shape.own, shape.target].into_iter().flatten().copied().collect();
        assert_eq!(all.len(), 8, "{}: every namespace has an expectation", shape.name);
        let relation = |kind: &str| {
            (
                a[kind] == mine[kind],
                a[kind] == sandbox[kind],
                a[kind] == b[kind],
                b[kind] == mine[kind],
                b[kind] == sandbox[kind],
            )
        };
        for kind in all {
            let expected = if shape.host.contains(&kind) {
                (true, true, true, true, true)
            } else if shape.sandbox.contains(&kind) {
                (false, true, true, false, true)
            } else if shape.own.contains(&kind) {
                (false, false, false, false, false)
            } else {
                (false, false, true, false, false)
            };
            assert_eq!(
                relation(kind),
                expected,
                "{}, {kind}: (a = host, a = sandbox, a = b, b = host, b = sandbox)\nhost {mine:#?}\nsandbox {sandbox:#?}\na {a:#?}\nb {b:#?}",
                shape.name
            );
        }
    }
    println!("{} shapes as expected", host.pods.len());
}

/// What is left of a pod anywhere: processes and cgroups.
fn left_of(uid: &str) -> String {
    let systemd = uid.replace('-', "_");
    View::here().run(&format!(
        "grep -sE '{uid}|{systemd}' /proc/[0-9]*/cgroup; find /sys/fs/cgroup -name '*{uid}*' -o -name '*{systemd}*'"
    ))
}

/// Every descendant of a process.
fn descendants(pid: u32) -> Vec<i32> {
    let listed = View::here().run("ps -eo pid=,ppid=");
    let pairs: Vec<(u32, u32)> = listed
        .lines()
        .filter_map(|line| {
            let mut numbers = line.split_whitespace().map(|number| number.parse().unwrap());
            Some((numbers.next()?, numbers.next()?))
        })
        .collect();
    let mut found = vec![pid];
    let mut at = 0;
    while let Some(parent) = found.get(at).copied() {
        found.extend(pairs.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    found.into_iter().skip(1).map(|pid| i32::try_from(pid).unwrap()).collect()
}

fn pidfd(pid: i32) -> OwnedFd {
    pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap()
}

/// Waits until all of the processes have ended.
fn wait_for_end(processes: &[OwnedFd]) {
    let timeout = Timespec { tv_sec: 20, tv_nsec: 0 };
    for process in processes {
        let ready = poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&timeout)).unwrap();
        assert_eq!(ready, 1, "a process is still there after 20 s");
    }
}

#[test]
fn pods_of_every_shape_share_what_they_must() {
    if !root() {
        return;
    }
    let mut host = Host::start(&[]);
    let view = View::here();
    check_shapes(&host, &view);

    // The same figures from lsns, which reads them in its own way.
    let lsns: serde_json::Value = serde_json::from_str(&view.run("lsns -J -o NS,TYPE,PID")).unwrap();
    for pod in &host.pods {
        for (kind, link) in view.namespaces(view.pid(&pod.a)) {
            let inode: u64 =
                link.trim_start_matches(|c: char| !c.is_ascii_digit()).trim_end_matches(']').parse().unwrap();
            let listed = lsns["namespaces"]
                .as_array()
                .unwrap()
                .iter()
                .any(|namespace| namespace["ns"] == inode && namespace["type"] == kind.as_str());
            assert!(listed, "{}: {link} not in lsns", pod.shape);
        }
    }

    let systemd = host.pods.iter().find(|pod| pod.shape == "systemd-driver").unwrap();
    let line = fs::read_to_string(format!("/proc/{}/cgroup", view.pid(&systemd.a))).unwrap();
    let tail = format!(
        "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{}.slice/cri-containerd-{}.scope\n",
        systemd.uid.replace('-', "_"),
        systemd.a
    );
    assert!(line.contains(&tail), "{line}");

    let users = host.pods.iter().find(|pod| pod.shape == "user-namespace").unwrap();
    let map = fs::read_to_string(format!("/proc/{}/uid_map", view.pid(&users.a))).unwrap();
    let map: Vec<u32> = map.split_whitespace().map(|number| number.parse().unwrap()).collect();
    assert!(map[0] == 0 && map[1] >= 65536 && map[1] % 65536 == 0 && map[2] == 65536, "{map:?}");

    let before = host_state();
    host.end();
    for pod in &host.pods {
        assert_eq!(left_of(&pod.uid), "", "{}", pod.shape);
    }
    assert_eq!(before.mounts, host_state().mounts);
}

#[test]
fn a_killed_runtime_leaves_nothing() {
    if !root() {
        return;
    }
    let mut host = Host::start(&[]);
    let processes = descendants(host.process.id());
    // A shim and a first process each for a sandbox and two containers.
    assert_eq!(processes.len(), host.pods.len() * 6, "{processes:?}");
    let interfaces: BTreeSet<String> = interfaces_of(&host);
    let pidfds: Vec<OwnedFd> = processes.iter().map(|pid| pidfd(*pid)).collect();
    host.process.kill().unwrap();
    host.process.wait().unwrap();
    wait_for_end(&pidfds);
    for pod in &host.pods {
        assert_eq!(left_of(&pod.uid), "", "{}", pod.shape);
    }
    assert!(!interfaces.is_empty());
    wait_until(|| interfaces.iter().all(|name| !PathBuf::from(format!("/sys/class/net/{name}")).exists()));
}

/// The host's ends of the pods' interfaces, found from inside the pods: `eth0@if7` is connected to number 7 here.
fn interfaces_of(host: &Host) -> BTreeSet<String> {
    let view = View::here();
    let numbers: BTreeSet<String> = host
        .pods
        .iter()
        .map(|pod| {
            let pid = view.pid(&pod.sandbox);
            view.run(&format!("nsenter -t {pid} -n ip -o link show dev eth0 2>/dev/null"))
        })
        .filter_map(|line| Some(line.split("eth0@if").nth(1)?.split(':').next()?.to_owned()))
        .collect();
    view.run("ip -o link")
        .lines()
        .filter(|line| line.split(':').next().is_some_and(|number| numbers.contains(number)))
        .map(|line| line.split([':', '@']).nth(1).unwrap().trim().to_owned())
        .collect()
}

/// For what the kernel does by and by and tells nobody: the removal of an interface after its namespace.
fn wait_until(condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < Duration::from_secs(20), "still not so after 20 s");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What must be the same afterwards.
struct HostState {
    mounts: String,
}

fn host_state() -> HostState {
    HostState { mounts: fs::read_to_string("/proc/self/mountinfo").unwrap() }
}

const NOBODY: [&str; 6] =
    ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", PODSONDE, "embedded-container"];

#[test]
fn pods_of_every_shape_work_without_root() {
    if !root() {
        return;
    }
    let mut host = Host::start(&[&NOBODY[..], &["rootless"]].concat());
    let status = fs::read_to_string(format!("/proc/{}/status", host.process.id())).unwrap();
    assert!(status.contains("Uid:\t65534\t65534\t65534\t65534\n"), "{status}");
    let view = View::of(host.process.id());
    check_shapes(&host, &view);
    // Only the view of the runtime's mount namespace has the ids: the real cgroup is another.
    assert_eq!(View::here().pids(&host.pods[0].a), Vec::<i32>::new());
    host.end();
}

#[test]
fn a_killed_runtime_leaves_nothing_without_root() {
    if !root() {
        return;
    }
    let mut host = Host::start(&[&NOBODY[..], &["rootless"]].concat());
    let processes = descendants(host.process.id());
    assert_eq!(processes.len(), host.pods.len() * 6, "{processes:?}");
    let pidfds: Vec<OwnedFd> = processes.iter().map(|pid| pidfd(*pid)).collect();
    host.process.kill().unwrap();
    host.process.wait().unwrap();
    wait_for_end(&pidfds);
    let left = View::here().run("ls -A /tmp | grep '^.podsonde-cgroup' ");
    assert_eq!(left, "");
}
