//! Which namespaces the containers of a pod share, for pods of every shape, as root and without.

use std::{collections::BTreeSet, fs, os::fd::OwnedFd, path::Path};

use rustix::process::{Signal, pidfd_send_signal};

use crate::{
    host::{Host, ROOTLESS},
    support::*,
};
use k8s_openapi::api::core::v1::PodSpec;
use podsonde::embedded::namespaces::{CgroupDriver, NamespaceOptions};

/// A pod with the containers `a` and `b`, and what must hold for their namespaces.
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    pub(crate) spec: fn(&mut PodSpec),
    pub(crate) options: fn(&mut NamespaceOptions),
    pub(crate) pid: Wanted,
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
pub(crate) enum Wanted {
    Container,
    Pod,
    Node,
    Target,
}

const NONE: fn(&mut NamespaceOptions) = |_| {};

pub(crate) fn shapes() -> Vec<Shape> {
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

fn check_shapes(host: &Host, view: &View) {
    let mine = view.namespaces(i32::try_from(host.process.id()).unwrap());
    let shapes = shapes();
    assert_eq!(host.pods.len(), shapes.len());
    for (pod, shape) in host.pods.iter().zip(shapes) {
        assert_eq!(pod.shape, shape.name);
        let [sandbox, a, b] =
            [&pod.sandbox, &pod.a, &pod.b].map(|id| view.namespaces(view.pid(id)));
        let all: BTreeSet<&str> = [shape.host, shape.sandbox, shape.own, shape.target]
            .into_iter()
            .flatten()
            .copied()
            .collect();
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
    // What a container of this one left behind has its uid among its arguments.
    let host_pid = host.pods.iter().find(|pod| pod.shape == "host-pid").unwrap();
    wait_until(|| !View::here().run("ps -eo args=").contains(&host_pid.uid));
    println!("{} shapes as expected", host.pods.len());
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
    let lsns: serde_json::Value =
        serde_json::from_str(&view.run("lsns -J -o NS,TYPE,PID")).unwrap();
    for pod in &host.pods {
        for (kind, link) in view.namespaces(view.pid(&pod.a)) {
            let inode: u64 = link
                .trim_start_matches(|c: char| !c.is_ascii_digit())
                .trim_end_matches(']')
                .parse()
                .unwrap();
            let listed =
                lsns["namespaces"].as_array().unwrap().iter().any(|namespace| {
                    namespace["ns"] == inode && namespace["type"] == kind.as_str()
                });
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
    assert!(
        map[0] == 0 && map[1] >= 65536 && map[1].is_multiple_of(65536) && map[2] == 65536,
        "{map:?}"
    );

    host.end();
    check_nothing_left(&host);
}

#[test]
fn a_killed_runtime_leaves_nothing() {
    if !root() {
        return;
    }
    let mut host = Host::start(&[]);
    let processes = descendants(host.process.id());
    // A shim and a first process each for a sandbox and two containers, and for a web server.
    assert_eq!(processes.len(), host.pods.len() * 6 + 2, "{processes:?}");
    let interfaces = interfaces_of(&host);
    let pidfds: Vec<OwnedFd> = processes.iter().map(|pid| pidfd(*pid)).collect();
    host.process.kill().unwrap();
    host.process.wait().unwrap();
    wait_for_end(&pidfds);
    check_nothing_left(&host);
    // Every pod with a network of its own had one.
    assert_eq!(interfaces.len(), host.pods.len() - 1);
    wait_until(|| interfaces.iter().all(|name| !Path::new("/sys/class/net").join(name).exists()));
}

/// The processes have ended: their namespaces are gone unless something else holds them.
fn check_nothing_left(host: &Host) {
    for pod in &host.pods {
        assert_eq!(left_of(&pod.uid), "", "{}", pod.shape);
    }
    // The places at which the runtime mounts, and namespaces that are mounted.
    let view = View::here();
    assert_eq!(view.run("findmnt -rn -o TARGET | grep -E '^(/tmp|/proc/[0-9]+/cgroup)$'"), "");
    assert_eq!(view.run("findmnt -rn -t nsfs -o TARGET | grep -i podsonde"), "");
}

/// The host's ends of the pods' interfaces, found from inside the pods: `eth0@if7` is connected to
/// number 7 here.
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

#[test]
fn pods_of_every_shape_work_without_root() {
    if !root() {
        return;
    }
    let mut host = Host::start(&ROOTLESS);
    let status = fs::read_to_string(format!("/proc/{}/status", host.process.id())).unwrap();
    assert!(status.contains("Uid:\t65534\t65534\t65534\t65534\n"), "{status}");
    let view = View::of(host.process.id());
    check_shapes(&host, &view);
    assert_eq!(view.pids(&host.pods[0].a).len(), 1);
    assert!(
        host.said.contains("HTTP/1.1 200 OK") && host.said.contains("<h1>It works</h1>"),
        "{}",
        host.said
    );
    // Only the view of the runtime's mount namespace has the ids: the real cgroup is another.
    assert_eq!(View::here().pids(&host.pods[0].a), Vec::<i32>::new());
    host.end();
}

#[test]
fn a_killed_runtime_leaves_nothing_without_root() {
    if !root() {
        return;
    }
    let mut host = Host::start(&ROOTLESS);
    let processes = descendants(host.process.id());
    assert_eq!(processes.len(), host.pods.len() * 6 + 2, "{processes:?}");
    let pidfds: Vec<OwnedFd> = processes.iter().map(|pid| pidfd(*pid)).collect();
    host.process.kill().unwrap();
    host.process.wait().unwrap();
    wait_for_end(&pidfds);
    let left = View::here().run("ls -A /tmp | grep '^.podsonde-cgroup' ");
    assert_eq!(left, "");
}

/// Killed while it starts pods.
#[test]
fn a_runtime_killed_in_the_middle_leaves_nothing() {
    let hybrid = Path::new("/sys/fs/cgroup/unified");
    let root_directory = if hybrid.exists() { hybrid } else { Path::new("/sys/fs/cgroup") };
    if !root() {
        return;
    }
    for pods in 0..6 {
        let hierarchy = root_directory.join(format!("podsonde-test-{}", uuid::Uuid::new_v4()));
        fs::create_dir(&hierarchy).unwrap();
        let mut host = Host::execute(&[], Some(&hierarchy));
        for _ in 0..pods {
            assert!(host.next_pod());
        }
        // Stopped first, so that no process is overlooked.
        let pid = pidfd(i32::try_from(host.process.id()).unwrap());
        pidfd_send_signal(&pid, Signal::STOP).unwrap();
        wait_until(|| stopped(host.process.id()));
        let shims = View::here().run(&format!("ps -o pid= --ppid {}", host.process.id()));
        let shims: Vec<OwnedFd> =
            shims.lines().map(|pid| pidfd(pid.trim().parse().unwrap())).collect();
        host.process.kill().unwrap();
        host.process.wait().unwrap();
        wait_for_end(&shims);
        // All cgroups that it made were below this directory, and their processes in them.
        let left = View::here().run(&format!("find {} -mindepth 1 -type d", hierarchy.display()));
        assert_eq!(left, "", "killed after {pods} pods");
        for pod in &host.pods {
            assert_eq!(left_of(&pod.uid), "");
        }
        fs::remove_dir(&hierarchy).unwrap();
    }
}

/// All its threads.
fn stopped(pid: u32) -> bool {
    let states = View::here().run(&format!("grep -h ^State: /proc/{pid}/task/*/status"));
    states.lines().all(|state| state.contains('T'))
}

#[test]
fn what_keeps_an_ordinary_user_out_is_named() {
    if !root() {
        return;
    }
    // In a user namespace whose own limit for further ones is 0, without capabilities in it.
    let script = "echo 0 >/proc/sys/user/max_user_namespaces; \
                  exec setpriv --securebits=+noroot --inh-caps=-all \"$0\" embedded-container rootless true";
    let output = std::process::Command::new("setpriv")
        .args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "unshare",
            "-Ur",
            "sh",
            "-c",
            script,
            PODSONDE,
        ])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(
        said.starts_with(
            "this system does not let ordinary users make user namespaces: run as root, or"
        ),
        "{said}"
    );
    assert!(said.contains("sysctl user.max_user_namespaces="), "{said}");
}
