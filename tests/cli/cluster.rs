//! The way through an API server: discovery, port-forward, fan-out.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
};

use crate::{Ended, Fixture, capture::has, fake_api, podsonde, podsonde_ended};

/// podsonde with a kubeconfig for a fake API server in front of the fake agent.
struct Cluster(Fixture, String);

impl Cluster {
    fn new() -> Self {
        let fixture = Fixture::new();
        let port = fixture.runtime.block_on(fake_api::serve(fixture.port));
        let kubeconfig = fixture.file(
            "kubeconfig",
            &format!(
                "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
                 clusters: [{{name: c, cluster: {{server: 'http://127.0.0.1:{port}'}}}}]\n\
                 contexts: [{{name: c, context: {{cluster: c, user: u}}}}, {{name: locked, context: {{cluster: c, user: u, namespace: locked}}}}]\n\
                 users: [{{name: u, user: {{}}}}]\n"
            ),
        );
        Self(fixture, kubeconfig)
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        podsonde_ended(podsonde(self.0.directory.path()).env("KUBECONFIG", &self.1).args(arguments))
    }
}

#[test]
fn the_agent_of_the_pod_s_node_is_found_and_forwarded_to() {
    let cluster = Cluster::new();
    let ended = cluster.run(&["verify", "web"]).expect(0);
    assert!(ended.stdout.starts_with("pod default/web on node n1\n"));
    cluster.run(&["verify", "web", "drift"]).expect(3);
    cluster.run(&["debug", "drift", "--image=a"]).expect(3).says("connecting to the agent at n1\n");
    cluster.run(&["verify", "--node", "n2"]).expect(3);
}

#[test]
fn a_workload_leads_to_a_pod_that_runs() {
    let cluster = Cluster::new();
    cluster
        .run(&["debug", "deploy/web", "--image=a"])
        .expect(0)
        .says("deploy/web has 2 pods, using pod/web\n");
    cluster
        .run(&["debug", "deploy/nope", "--image=a"])
        .expect(1)
        .says("error: there is no deploy/nope in namespace default");
    cluster.run(&["debug", "node/n1", "--image=a"]).expect(2).says("kubectl debug node/");
}

#[test]
fn what_stands_in_the_way_is_said() {
    let cluster = Cluster::new();
    for (pod, error, hint) in [
        ("nope", "there is no pod default/nope", "kubectl get pods -n default"),
        (
            "pending",
            "pod default/pending has not been scheduled to a node yet",
            "kubectl describe pod pending -n default",
        ),
        (
            "lonely",
            "there is no podsonde agent on node n4 (looked in namespace podsonde)",
            "kubectl -n podsonde get daemonset",
        ),
        ("unready", "the agent on node n3 (pod podsonde/podsonde-agent-3) is not ready", "spec.nodeName=n3"),
        (
            "refused",
            "cannot forward a port to the agent on node n5: error forwarding port 7463 to pod: dial",
            "port-forward",
        ),
        ("hung-up", "cannot forward a port to the agent on node n7: it was closed before", "port-forward"),
    ] {
        for command in [vec!["verify", pod], vec!["debug", pod, "--image=a", "-q"]] {
            cluster.run(&command).expect(1).says(error).says(hint);
        }
    }
    cluster
        .run(&["verify", "web", "--context", "locked"])
        .expect(1)
        .says("error: cannot get pod locked/web: the API server says: pods is forbidden")
        .says("kubectl auth can-i");
    cluster
        .run(&["verify", "web", "--context", "nope"])
        .expect(1)
        .says("nope")
        .says("kubectl config get-contexts");
    cluster
        .run(&["verify", "web", "-n", "default", "--agent-namespace", "locked"])
        .expect(1)
        .says("is forbidden");
}

#[test]
fn one_agent_that_is_missing_does_not_stop_the_others() {
    let cluster = Cluster::new();
    let ended = cluster.run(&["verify", "-A", "-o", "json"]).expect(3);
    let json = ended.json();
    // Two agents answered, and both are the same fake.
    assert_eq!(json["summary"]["pods"], 8);
    assert_eq!(json["summary"]["errors"], 3);
    assert_eq!(json["errors"][0]["subject"], "node n3");
    assert_eq!(json["errors"][0]["reason"], "AGENT_NOT_READY");
    ended
        .says(
            "error: 2 times AGENT_NOT_FOUND (node n4, node n6), first: there is no podsonde agent on node n4",
        )
        .says("error: the agent on node n3 (pod podsonde/podsonde-agent-3) is not ready");
    // Labels lead to the nodes that have such pods.
    cluster.run(&["verify", "-l", "app=web"]).expect(0).says("1 pod, 1 container: 1 OK\n");
    cluster.run(&["verify", "-l", "app=nothing"]).expect(4).says("0 pods, 0 containers: 0 OK\n");
    cluster.run(&["version"]).expect(1).says("AGENT_NOT_FOUND");
}

#[test]
fn an_api_server_that_is_gone_is_said() {
    let fixture = Fixture::new();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let kubeconfig = fixture.file(
        "kubeconfig",
        &format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             clusters: [{{name: c, cluster: {{server: 'http://127.0.0.1:{port}'}}}}]\n\
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\nusers: [{{name: u, user: {{}}}}]\n"
        ),
    );
    podsonde_ended(podsonde(fixture.directory.path()).args(["--kubeconfig", &kubeconfig, "verify", "web"]))
        .expect(1)
        .says("error: cannot get pod default/web: ")
        .says("onnection refused")
        .says("hint: see whether kubectl reaches it");
}

#[test]
fn captures_find_their_pods_by_label_and_workload() {
    let cluster = Cluster::new();
    let ended = cluster.run(&["capture", "-l", "app=both", "--count", "10", "port", "80"]).expect(0);
    assert_eq!(ended.stdout.lines().filter(|line| line.starts_with("[web] ")).count(), 5);
    assert_eq!(ended.stdout.lines().filter(|line| line.starts_with("[replacing] ")).count(), 5);
    ended.says("listening on any in pod default/replacing");
    let requests = cluster.0.captures();
    assert!(requests.len() == 2 && requests.iter().all(|request| request.filter == "port 80"));

    cluster.run(&["capture", "deploy/web", "--count", "5"]).expect(0).says("pod default/web ");
    cluster.run(&["capture", "-A", "--count", "5"]).expect(0).says("pod default/web ");
    cluster
        .run(&["capture", "-l", "app=nothing"])
        .expect(1)
        .says("error: no pod with labels app=nothing runs in namespace default\nhint: ");
    cluster
        .run(&["capture", "deploy/nope"])
        .expect(1)
        .says("error: there is no deploy/nope in namespace default");
    cluster.run(&["capture", "lonely"]).expect(1).says("error: there is no podsonde agent on node n4");
    cluster.run(&["capture", "-l", "app=both", "--max-pods", "1"]).expect(2).says("2 captures at once");
}

/// tshark with podsonde in its extcap directory. It looks there for ordinary users only.
struct Tshark<'a>(&'a Cluster);

impl Tshark<'_> {
    fn command(&self, arguments: &[&str]) -> Command {
        let home = self.0.0.directory.path();
        let directory = home.join("extcap");
        if !directory.exists() {
            fs::create_dir(&directory).unwrap();
            let program = directory.join("podsonde-extcap");
            // Not a link: an ordinary user may not see where this was built.
            fs::copy(env!("CARGO_BIN_EXE_podsonde"), &program).unwrap();
            for path in [home, &directory, &program] {
                fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
            }
            fs::set_permissions(&self.0.1, fs::Permissions::from_mode(0o644)).unwrap();
        }
        let mut command = Command::new("setpriv");
        if nix::unistd::geteuid().is_root() {
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        }
        command.arg("tshark").args(arguments).stdin(Stdio::null());
        command
            .env("HOME", "/nonexistent")
            .env("WIRESHARK_EXTCAP_DIR", directory)
            .env("KUBECONFIG", &self.0.1);
        command.env_remove("PODSONDE_AGENT");
        command
    }
}

#[test]
fn wireshark_lists_pods_and_captures_from_them() {
    if !has("tshark") {
        return;
    }
    let cluster = Cluster::new();
    let tshark = Tshark(&cluster);
    let listed = podsonde_ended(&mut tshark.command(&["-D"])).expect(0);
    let names: Vec<&str> =
        listed.stdout.lines().filter_map(|line| line.split_once(". ")).map(|(_, name)| name).collect();
    assert!(names.contains(&"podsonde (Kubernetes: pods by name or label)"), "{}", listed.stdout);
    assert!(names.contains(&"podsonde:default/web (Kubernetes pod default/web)"), "{}", listed.stdout);
    assert!(!listed.stdout.contains("pending"));
    let links = podsonde_ended(&mut tshark.command(&["-i", "podsonde:default/web", "-L"])).expect(0);
    assert!(links.stdout.contains("LINUX_SLL2 (Linux cooked v2)"), "{}", links.stdout);

    let captured = tshark.command(&[
        "-i",
        "podsonde:default/web",
        "-f",
        "not arp",
        "-c",
        "5",
        "-o",
        "extcap.podsonde_default_web.container:app",
        "-T",
        "fields",
        "-e",
        "frame.interface_name",
        "-e",
        "frame.len",
    ]);
    let mut captured = captured;
    let captured = podsonde_ended(&mut captured).expect(0);
    let lengths: Vec<&str> = captured.stdout.lines().map(|line| line.split_once('\t').unwrap().1).collect();
    assert_eq!(lengths, ["60", "68", "54", "83", "47"], "{}", captured.stdout);
    let request = cluster.0.captures().remove(0);
    assert_eq!((request.filter.as_str(), request.container.as_str()), ("not arp", "app"));
}
