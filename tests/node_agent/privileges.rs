//! What the agent's container may do, as the kernel has it, beside what `deploy/README.md` says it
//! may; and what it serves to the node and to Prometheus.

use std::fs;

use serde_json::Value;

use crate::{
    fixture::{Fixture, http, nginx, pod_ip, probe, running, template},
    support::node,
};

/// The first two cells of the table of privileges in `deploy/README.md`: which, and which process
/// has it.
fn documented() -> Vec<(String, String)> {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/README.md"))
        .expect("the README");
    let section = readme.split("## What each privilege is for").nth(1).expect("the section");
    let section = section.split("\n## ").next().expect("the section");
    let rows = section.lines().filter_map(|line| {
        let (privilege, rest) = line.strip_prefix("| `")?.split_once("` | ")?;
        Some((privilege.to_owned(), rest.split(" | ").next()?.to_owned()))
    });
    rows.collect()
}

/// The mask of these capabilities, numbered by the kernel's own header.
fn mask(names: &[&str]) -> String {
    let header =
        fs::read_to_string("/usr/include/linux/capability.h").expect("the kernel's header");
    let number = |name: &&str| {
        let define = format!("#define CAP_{name} ");
        let line = header.lines().find_map(|line| line.strip_prefix(&define));
        line.and_then(|number| number.trim().parse::<u32>().ok()).expect("a capability")
    };
    format!("{:016x}", names.iter().map(number).fold(0_u64, |mask, number| mask | 1 << number))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_has_what_the_table_says_and_no_more() {
    let Some(fixture) = Fixture::start().await else { return };
    let agent = fixture.agent().await;
    let pid = node::pid(&running(&agent, "agent").expect("runs")).expect("runs");
    let table = documented();
    let has = |cell: &str| table.iter().any(|(found, _)| found == cell);
    assert!(has("hostPID: true") && has("runAsUser: 0"), "{table:?}");

    // The broker, which is the agent's only child.
    let children =
        fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("children");
    let broker: u32 = children.trim().parse().expect("one child");
    for (process, pid) in [("gRPC", pid), ("broker", broker)] {
        let of = |wanted: &[&str]| {
            let rows = table.iter().filter(|(_, by)| wanted.contains(&by.as_str()));
            rows.filter_map(|(cell, _)| cell.strip_prefix("capability ")).collect::<Vec<_>>()
        };
        let at_hand = format!("{process}, at hand");
        let (kept, permitted) = (of(&[process, "both"]), of(&[process, "both", &at_hand]));
        println!("{process}: {kept:?} of {permitted:?}");
        assert!(!kept.is_empty());
        let sets = ["CapEff", "CapPrm", "CapBnd"].map(|set| node::status_of(pid, set));
        assert_eq!(sets, [mask(&kept), mask(&permitted), mask(&permitted)], "{process}");
        let of = |field: &str| node::status_of(pid, field);
        assert_eq!([of("CapInh"), of("CapAmb")], ["0000000000000000"; 2], "{process}");
        // The container's own filter, and the process'.
        assert_eq!(
            [of("NoNewPrivs"), of("Seccomp"), of("Seccomp_filters")],
            ["1", "2", "2"],
            "{process}"
        );
    }
    let of = |field: &str| node::status_of(pid, field);
    for field in
        ["CapEff", "CapPrm", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Uid", "VmRSS", "Threads"]
    {
        println!("{field}: {}", of(field));
    }
    assert_eq!(of("Uid"), "0\t0\t0\t0");
    // Of the node's namespaces it has that of pids, and what no pod has its own of.
    let (own, host) = (node::namespaces_of(pid), node::namespaces_of(1));
    let shared: Vec<&str> = ["ipc", "net", "uts", "pid", "mnt", "user"]
        .into_iter()
        .filter(|kind| own[*kind] == host[*kind])
        .collect();
    assert_eq!(shared, ["pid", "user"]);

    // A root that cannot be written to, and from the node only what the kubelet mounts.
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).expect("mounts");
    let options = |path: &str| {
        let line = mounts.lines().find(|line| line.split(' ').nth(4) == Some(path))?;
        line.split(' ').nth(5).map(str::to_owned)
    };
    assert!(options("/").expect("a root").starts_with("ro"), "{mounts}");
    for writable in mounts.lines().filter(|line| line.split(' ').nth(5).unwrap().starts_with("rw"))
    {
        println!("writable: {writable}");
    }
    let sockets = mounts
        .lines()
        .filter(|line| line.contains("containerd.sock") || line.contains("docker.sock"));
    assert_eq!(sockets.count(), 0, "no runtime's socket: {mounts}");

    // No descriptor that a program it would execute inherits, none of a file of the node's.
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).expect("fds").flatten() {
        let number: u32 = entry.file_name().to_str().expect("a number").parse().expect("a number");
        let target = fs::read_link(entry.path()).unwrap_or_default();
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).unwrap_or_default();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap_or("0").trim();
        println!("fd {number}: {} flags {flags}", target.display());
        let close_on_exec = u32::from_str_radix(flags, 8).expect("octal") & 0o2_000_000 != 0;
        assert!(number <= 2 || close_on_exec, "fd {number} {}", target.display());
        let target = target.display().to_string();
        let known = ["socket:", "pipe:", "anon_inode:", "/proc", "/dev/null", "/sys/fs/cgroup"];
        assert!(
            number <= 2 || known.iter().any(|start| target.starts_with(start)),
            "fd {number}: {target}"
        );
    }

    // What the agent itself found, by the way that people ask.
    let ended = fixture.podsonde(&["node", "-o", "json"]).await.expect(0);
    let report = ended.json();
    println!("{}", fixture.podsonde(&["node", "-o", "wide"]).await.expect(0).stdout);
    let features = report["nodes"][0]["features"].as_array().expect("features");
    let names: Vec<&str> =
        features.iter().map(|feature| feature["name"].as_str().unwrap()).collect();
    for needed in [
        "host-pid",
        "cap-sys-ptrace",
        "cap-sys-admin",
        "cap-net-raw",
        "cap-kill",
        "pidfd",
        "host-namespaces",
        "broker",
    ] {
        assert!(names.contains(&needed), "{names:?}");
    }
    let missing: Vec<&Value> =
        features.iter().filter(|feature| feature["available"] != true).collect();
    assert!(missing.iter().all(|feature| feature["name"] == "pid-translation"), "{missing:?}");
    assert_eq!(report["nodes"][0]["node"], node::NAME);
    assert_eq!(report["nodes"][0]["kernel"], node::output("uname", &["-r"]).trim());
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_and_metrics_are_served_to_everybody_and_grpc_to_who_says_who_they_are() {
    let Some(fixture) = Fixture::start().await else { return };
    let web = fixture.pod("web", nginx()).await;
    let agent = fixture.agent().await;
    let ip = pod_ip(&agent).expect("an address");
    for (name, body) in [("livenessProbe", "ok\n"), ("readinessProbe", "ok\n")] {
        let (port, path) = probe(name);
        assert_eq!(
            http(ip, port, &path).await.expect("an answer"),
            (200, body.to_owned()),
            "{name}"
        );
    }
    let (port, _) = probe("readinessProbe");
    assert_eq!(http(ip, port, "/").await.expect("an answer").0, 404);

    let args = [
        "debug",
        "web",
        "--image=busybox",
        "--image-pull-policy=IfNotPresent",
        "--target=nginx",
        "--",
        "sleep",
        "infinity",
    ];
    fixture.podsonde(&args).await.expect(0);
    // As Prometheus gets it: from another pod.
    let id = running(&web, "nginx").expect("runs");
    let metrics = node::exec(&id, &["wget", "-qO-", &format!("http://{ip}:{port}/metrics")]);
    println!("{metrics}");
    let value = |series: &str| {
        let line = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.and_then(|value| value.parse::<f64>().ok()).unwrap_or_else(|| panic!("no {series}"))
    };
    assert_eq!(value(r#"podsonde_sessions{state="running"}"#), 1.0);
    assert_eq!(value(r#"podsonde_verdicts_total{outcome="ok"}"#), 1.0);
    assert_eq!(value(r#"podsonde_verdicts_total{outcome="drift"}"#), 0.0);
    // The agent's own pod and nginx.
    assert_eq!(value("podsonde_pods"), 2.0);
    assert_eq!(
        value(r#"podsonde_request_duration_seconds_count{method="Debug/Create",code="OK"}"#),
        1.0
    );
    assert!(value("process_resident_memory_bytes") > 0.0);
    assert!(metrics.ends_with("# EOF\n"), "OpenMetrics");

    // The API is there with TLS alone, and for whom the API server knows.
    let ports = template()["spec"]["containers"][0]["ports"].as_array().expect("ports");
    let grpc = ports
        .iter()
        .find(|port| port["name"] == "grpc")
        .and_then(|port| port["containerPort"].as_u64());
    let port = u16::try_from(grpc.expect("a port")).unwrap();
    let in_the_clear = http(ip, port, "/").await;
    assert!(!matches!(in_the_clear, Ok((1.., _))), "{in_the_clear:?}");
    fixture.podsonde(&["verify", "web", "--direct"]).await.expect(0);
    let nothing = fixture.node.dir.join("nothing");
    fs::write(&nothing, "nothing").expect("write");
    let nothing = nothing.to_str().expect("UTF-8");
    let refused =
        fixture.podsonde(&["verify", "web", "--direct", "--token-file", nothing]).await.expect(1);
    assert!(
        refused.stderr.contains("the API server does not know this token"),
        "{}",
        refused.stderr
    );
    fixture.end().await;
}
