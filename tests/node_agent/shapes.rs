//! Every shape that a pod can have here, and the verdict on each. User-namespaced pods are the
//! embedded tier's: containerd 1.6 refuses them.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::{
    fixture::{Fixture, assert_ids, links, nginx, running, sleeping, until, with},
    support::{cri::CriOptions, node},
};

/// One pod shape and one debug container.
struct Shape {
    name: &'static str,
    spec: Value,
    /// The container that is targeted; empty for none.
    target: &'static str,
    /// Further flags of `podsonde debug`.
    flags: &'static [&'static str],
    /// Whose ipc, net, uts, pid, mnt and cgroup are; user and time are the host's in all of them.
    sharing: [&'static str; 6],
}

/// What a container gets that asks for nothing: on cgroup v1 the runtime's cgroup namespace.
fn cgroup() -> &'static str {
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { "private" } else { "host" }
}

fn shapes() -> Vec<Shape> {
    let init = json!({"name": "init", "image": "busybox", "command": ["sleep", "infinity"]});
    let privileged = json!({"privileged": true});
    let cgroup = cgroup();
    let usual = ["shared", "shared", "shared", "shared", "private", cgroup];
    let shape = |name, spec, target, sharing| Shape { name, spec, target, flags: &[], sharing };
    vec![
        shape("target", nginx(), "nginx", usual),
        shape(
            "no-target",
            nginx(),
            "",
            ["shared", "shared", "shared", "private", "private", cgroup],
        ),
        shape("share", with(nginx(), json!({"shareProcessNamespace": true})), "", usual),
        shape(
            "share-target",
            with(nginx(), json!({"shareProcessNamespace": true})),
            "nginx",
            usual,
        ),
        shape(
            "host-pid",
            with(nginx(), json!({"hostPID": true})),
            "nginx",
            ["shared", "shared", "shared", "host", "private", cgroup],
        ),
        shape(
            "host-network",
            with(sleeping(), json!({"hostNetwork": true})),
            "app",
            ["shared", "host", "host", "shared", "private", cgroup],
        ),
        shape(
            "host-ipc",
            with(nginx(), json!({"hostIPC": true})),
            "nginx",
            ["host", "shared", "shared", "shared", "private", cgroup],
        ),
        shape(
            "host-all",
            with(sleeping(), json!({"hostPID": true, "hostNetwork": true, "hostIPC": true})),
            "",
            ["host", "host", "host", "host", "private", cgroup],
        ),
        shape("init", with(sleeping(), json!({"initContainers": [init]})), "init", usual),
        shape(
            "sidecar",
            with(
                sleeping(),
                json!({"initContainers": [with(init, json!({"restartPolicy": "Always"}))]}),
            ),
            "init",
            usual,
        ),
        shape(
            "several",
            json!({"containers": [nginx()["containers"][0], sleeping()["containers"][0]]}),
            "app",
            usual,
        ),
        shape(
            "distroless",
            json!({"containers": [{"name": "app", "image": "registry.test/distroless:1"}]}),
            "app",
            usual,
        ),
        shape(
            "privileged",
            json!({"containers": [with(sleeping()["containers"][0].clone(), json!({"securityContext": privileged}))]}),
            "app",
            usual,
        ),
        Shape {
            name: "sysadmin",
            spec: nginx(),
            target: "nginx",
            flags: &["--profile=sysadmin"],
            sharing: ["shared", "shared", "shared", "shared", "private", "host"],
        },
        Shape {
            name: "unprivileged",
            spec: nginx(),
            target: "nginx",
            flags: &["--profile=restricted", "--custom=USER-1000"],
            sharing: usual,
        },
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_pod_shape_gets_the_right_verdict() {
    let Some(fixture) = Fixture::start().await else { return };
    let custom = fixture.user_1000();
    let host = node::namespaces_of(1);

    let shapes = shapes();
    for shape in &shapes {
        fixture.create(shape.name, shape.spec.clone()).await;
    }
    for Shape { name, spec, target, flags, sharing } in shapes {
        // An init container that never ends holds up the others.
        let awaited = if target.is_empty() {
            spec["containers"][0]["name"].as_str().expect("a name")
        } else {
            target
        };
        let pod = fixture.wait(name, |pod| running(pod, awaited).is_some()).await;

        let target_flag = format!("--target={target}");
        let mut args = vec![
            "debug",
            name,
            "--image=busybox",
            "--image-pull-policy=IfNotPresent",
            "-c",
            "debugger",
        ];
        args.extend(["-o", "json"]);
        args.extend(
            flags
                .iter()
                .map(|flag| if *flag == "--custom=USER-1000" { custom.as_str() } else { *flag }),
        );
        if !target.is_empty() {
            args.push(&target_flag);
        }
        args.extend(["--", "sleep", "infinity"]);
        let ended = fixture.podsonde(&args).await.expect(0);
        let report = ended.json();
        let verdict = &report["verification"];
        assert_eq!(verdict["verdict"], "OK", "{name}: {verdict:#}");

        // Whose each namespace is.
        let [ipc, net, uts, pid, mnt, cgroup] = sharing;
        let expected = [
            ("ipc", ipc),
            ("net", net),
            ("uts", uts),
            ("pid", pid),
            ("mnt", mnt),
            ("cgroup", cgroup),
            ("user", "host"),
            ("time", "host"),
        ];
        let found = verdict["namespaces"].as_array().expect("namespaces").iter();
        let found: Vec<_> = found
            .map(|namespace| {
                (namespace["kind"].as_str().unwrap(), namespace["actual"].as_str().unwrap())
            })
            .collect();
        assert_eq!(found, expected, "{name}: {verdict:#}");
        println!("{name:14} {:?} agent's own share {} ms", ended.took, report["agentMilliseconds"]);

        // Which process, and its ids: as seen inside, by readlink, by lsns.
        let pod_now = fixture.wait(name, |pod| running(pod, "debugger").is_some()).await;
        let debugger = running(&pod_now, "debugger").expect("runs");
        let debugger_pid = node::pid(&debugger).expect("runs");
        assert_eq!(verdict["hostPid"], debugger_pid, "{name}");
        assert_eq!(verdict["containerId"], format!("containerd://{debugger}"), "{name}");
        let own = links(verdict, "id");
        assert_ids(name, &own, node::namespaces_inside(&debugger));
        assert_ids(name, &own, node::namespaces_by_lsns(debugger_pid));
        assert_ids(name, &links(verdict, "hostId"), host.clone());

        // The same of what it was compared with: its target, else the sandbox, which holds what its
        // containers share.
        let reference = &verdict["reference"];
        let reference_pid = if target.is_empty() {
            assert_eq!(reference["kind"], "sandbox", "{name}");
            reference["container"]["hostPid"].as_u64().expect("a pid").try_into().expect("a pid")
        } else {
            assert_eq!(
                (&reference["kind"], &reference["container"]["name"]),
                (&json!("target"), &json!(target)),
                "{name}"
            );
            let id = running(&pod, target).expect("runs");
            if !Path::new(&format!("/proc/{}/root/httpd", node::pid(&id).expect("runs"))).exists() {
                assert_ids(name, &links(verdict, "referenceId"), node::namespaces_inside(&id));
            }
            node::pid(&id).expect("runs")
        };
        assert_eq!(reference["container"]["hostPid"], reference_pid, "{name}");
        assert_ids(name, &links(verdict, "referenceId"), node::namespaces_of(reference_pid));
        assert_ids(name, &links(verdict, "referenceId"), node::namespaces_by_lsns(reference_pid));

        // All containers of the pod.
        let verified = fixture.podsonde(&["verify", name, "-o", "json"]).await.expect(0).json();
        let containers = verified["pods"][0]["containers"].as_array().expect("containers");
        for container in containers {
            let id = container["containerId"]
                .as_str()
                .expect("an id")
                .trim_start_matches("containerd://");
            let pid = node::pid(id).expect("runs");
            assert_eq!(
                (&container["verdict"], &container["hostPid"]),
                (&json!("OK"), &json!(pid)),
                "{name}"
            );
            assert_ids(name, &links(container, "id"), node::namespaces_by_lsns(pid));
        }
        assert!(containers.len() >= 2, "{name}: {containers:#?}");
    }
    let all = fixture.podsonde(&["verify", "-A", "-o", "name"]).await.expect(0);
    assert_eq!(all.stdout, "", "none is not OK");
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_target_it_is_said_that_pid_is_private() {
    let Some(fixture) = Fixture::start().await else { return };
    fixture.pod("web", nginx()).await;
    let args = [
        "debug",
        "web",
        "--image=busybox",
        "--image-pull-policy=IfNotPresent",
        "--",
        "sleep",
        "infinity",
    ];
    let ended = fixture.podsonde(&args).await.expect(0);
    println!("{}{}", ended.stdout, ended.stderr);
    let pid = ended.stdout.lines().find(|line| line.starts_with("pid ")).expect("a line for pid");
    let words: Vec<&str> = pid.split_whitespace().collect();
    assert_eq!(words[1..3], ["private", "private"]);
    assert!(pid.contains("no targetContainerName"), "{pid}");
    assert!(ended.stderr.contains("verdict OK"), "{}", ended.stderr);
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_that_ignores_the_target_is_found_out() {
    let options = CriOptions { ignore_target: true, ..CriOptions::default() };
    let Some(fixture) = Fixture::with(options).await else { return };
    fixture.pod("web", nginx()).await;
    let args = [
        "debug",
        "web",
        "--image=busybox",
        "--image-pull-policy=IfNotPresent",
        "-c",
        "debugger",
        "--target=nginx",
        "-o",
        "json",
        "--",
        "sleep",
        "infinity",
    ];
    let report = fixture.podsonde(&args).await.expect(3).json();
    let verdict = &report["verification"];
    assert_eq!(verdict["verdict"], "DRIFT");
    assert_eq!(verdict["message"], "pid is private, expected shared (targetContainerName: nginx)");
    let pod = fixture.wait("web", |pod| running(pod, "debugger").is_some()).await;
    assert_ids(
        "debugger",
        &links(verdict, "id"),
        node::namespaces_inside(&running(&pod, "debugger").unwrap()),
    );

    // The others of the pod are not blamed for it.
    let text = fixture.podsonde(&["verify", "web"]).await.expect(3);
    println!("{}{}", text.stdout, text.stderr);
    assert!(text.stdout.contains("container nginx: OK"), "{}", text.stdout);
    assert!(text.stdout.contains("container debugger: DRIFT"), "{}", text.stdout);
    assert!(text.stderr.contains("1 pod, 2 containers: 1 OK, 1 DRIFT"), "{}", text.stderr);
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_that_change_their_namespaces_are_found_out() {
    let Some(fixture) = Fixture::start().await else { return };
    let doing = |command: &[&str]| {
        let container = json!({
            "name": "app", "image": "busybox", "command": command, "securityContext": {"privileged": true},
        });
        json!({"hostPID": true, "containers": [container]})
    };
    let victim = fixture.pod("victim", sleeping()).await;
    let victim_pid = node::pid(&running(&victim, "app").expect("runs")).expect("runs").to_string();
    // What the first process does, and which namespaces then are whose.
    let cases: [(&str, &[&str], &str, &str); 4] = [
        (
            "leaves",
            &["unshare", "-n", "sleep", "infinity"],
            "net",
            "net is private, expected shared (the pod's)",
        ),
        (
            "escapes",
            &["nsenter", "-t", "1", "-u", "sleep", "infinity"],
            "uts",
            "uts is host, expected shared (the pod's)",
        ),
        (
            "mounts",
            &["nsenter", "-t", "1", "-m", "/bin/sleep", "infinity"],
            "mnt",
            "mnt is host, expected private (always its own)",
        ),
        (
            "intrudes",
            &["nsenter", "-t", &victim_pid, "-n", "sleep", "infinity"],
            "net",
            "net is private, expected shared (the pod's)",
        ),
    ];
    for (name, command, kind, message) in cases {
        let pod = fixture.pod(name, doing(command)).await;
        let id = running(&pod, "app").expect("runs");
        let pid = node::pid(&id).expect("runs");
        // Started as what it is told to become: it is seen to be that once it sleeps.
        until("it sleeps", async || {
            fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
                line.contains("sleep\0infinity") && !line.contains("-t\0") && !line.contains("-n\0")
            })
        })
        .await;
        let ended = fixture.podsonde(&["verify", name, "-o", "json"]).await.expect(3);
        let container = ended.json()["pods"][0]["containers"][0].clone();
        assert_eq!(
            (&container["verdict"], &container["message"]),
            (&json!("DRIFT"), &json!(message)),
            "{name}"
        );
        assert_ids(name, &links(&container, "id"), node::namespaces_by_lsns(pid));
        let drifting = container["namespaces"].as_array().unwrap().iter();
        let drifting: Vec<_> = drifting
            .filter(|namespace| namespace["verdict"] == "DRIFT")
            .map(|namespace| &namespace["kind"])
            .collect();
        assert_eq!(drifting, [kind], "{name}");
    }
    // Whom somebody broke in on learns of it.
    let ended = fixture.podsonde(&["verify", "victim"]).await.expect(3);
    println!("{}{}", ended.stdout, ended.stderr);
    assert!(
        ended.stdout.contains("net is also that of 1 container that should not be in it"),
        "{}",
        ended.stdout
    );
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_works_in_the_node_s_files_is_judged_like_any_other() {
    let Some(fixture) = Fixture::start().await else { return };
    // What many agents of nodes do. The mount namespace stays the container's own.
    let container = json!({
        "name": "app", "image": "busybox", "command": ["chroot", "/host", "/bin/busybox", "sleep", "infinity"],
        "securityContext": {"privileged": true}, "volumeMounts": [{"name": "host", "mountPath": "/host"}],
    });
    let volumes = json!([{"name": "host", "hostPath": {"path": "/"}}]);
    let pod = fixture.pod("chroot", json!({"containers": [container], "volumes": volumes})).await;
    let pid = node::pid(&running(&pod, "app").expect("runs")).expect("runs");
    let root = |path: &str| node::output("stat", &["-L", "-c", "%d:%i", path]);
    until("it has the node's root", async || root(&format!("/proc/{pid}/root")) == root("/")).await;
    let report = fixture.podsonde(&["verify", "chroot", "-o", "json"]).await.expect(0).json();
    let container = &report["pods"][0]["containers"][0];
    assert_eq!((&container["verdict"], &container["hostPid"]), (&json!("OK"), &json!(pid)));
    assert_ids("chroot", &links(container, "id"), node::namespaces_by_lsns(pid));
    fixture.end().await;
}
