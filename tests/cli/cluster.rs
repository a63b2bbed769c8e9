//! The way through an API server: discovery, port-forward, fan-out.

use crate::{Ended, Fixture, fake_api, podsonde, podsonde_ended};

/// podsonde with a kubeconfig for a fake API server in front of the fake agent.
pub(crate) struct Cluster(pub(crate) Fixture, pub(crate) String);

impl Cluster {
    pub(crate) fn new() -> Self {
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

    pub(crate) fn run(&self, arguments: &[&str]) -> Ended {
        // The fake agent serves no TLS.
        let mut podsonde = podsonde(self.0.directory.path());
        podsonde.env("PODSONDE_INSECURE_AGENT", "true");
        podsonde_ended(podsonde.env("KUBECONFIG", &self.1).args(arguments))
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
fn an_agent_without_a_certificate_is_refused_unless_asked_for() {
    let cluster = Cluster::new();
    let run = |arguments: &[&str]| {
        let mut podsonde = podsonde(cluster.0.directory.path());
        podsonde_ended(podsonde.env("KUBECONFIG", &cluster.1).args(arguments))
    };
    run(&["verify", "web"])
        .expect(1)
        .says("error: the agent on node n1 (pod podsonde/podsonde-agent-1) has published no certificate")
        .says("kubectl -n podsonde get leases");
    run(&["verify", "web", "--insecure-agent"]).expect(0);
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
        (
            "unready",
            "the agent on node n3 (pod podsonde/podsonde-agent-3) is not ready",
            "spec.nodeName=n3",
        ),
        (
            "refused",
            "cannot forward a port to the agent on node n5: error forwarding port 7463 to pod: dial",
            "port-forward",
        ),
        (
            "hung-up",
            "cannot forward a port to the agent on node n7: it was closed before",
            "port-forward",
        ),
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
    podsonde_ended(podsonde(fixture.directory.path()).args([
        "--kubeconfig",
        &kubeconfig,
        "verify",
        "web",
    ]))
    .expect(1)
    .says("error: cannot get pod default/web: ")
    .says("onnection refused")
    .says("hint: see whether kubectl reaches it");
}
