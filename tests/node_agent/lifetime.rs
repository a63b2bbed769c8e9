//! What lasts when the agent does not: sessions and their expiry. And how the agent goes.

use std::{fs, time::Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams};
use serde_json::Value;

use crate::{
    fixture::{Fixture, nginx, phase, running, status, until},
    support::node,
};

const DEBUG: [&str; 5] =
    ["debug", "web", "--image=busybox", "--image-pull-policy=IfNotPresent", "--target=nginx"];

/// Starts a debug container with these flags; returns its container id and pid.
async fn debug(fixture: &Fixture, name: &str, flags: &[&str]) -> (String, u32) {
    let mut args = DEBUG.to_vec();
    args.extend(["-c", name]);
    args.extend(flags);
    args.extend(["--", "sh", "-c", "sleep 1000 & sleep infinity"]);
    fixture.podsonde(&args).await.expect(0);
    let pod = fixture.wait("web", |pod| running(pod, name).is_some()).await;
    let id = running(&pod, name).expect("runs");
    let pid = node::pid(&id).expect("runs");
    (id, pid)
}

/// The pids in a container's cgroup, by grep.
fn processes(id: &str) -> Vec<u32> {
    let script = format!("grep -ls '/{id}$' /proc/[0-9]*/cgroup || true");
    let found = node::output("sh", &["-c", &script]);
    found.lines().map(|path| path.split('/').nth(2).unwrap().parse().unwrap()).collect()
}

async fn sessions(fixture: &Fixture) -> Vec<(String, String)> {
    let listed = fixture.podsonde(&["sessions", "--all", "-o", "json"]).await.expect(0).json();
    let text = |session: &Value, key: &str| session[key].as_str().unwrap().to_owned();
    let mut found: Vec<_> = listed["sessions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|session| (text(session, "container"), text(session, "state")))
        .collect();
    found.sort();
    found
}

async fn delete_agent(fixture: &Fixture) {
    let name = fixture.agent().await.metadata.name.expect("a name");
    let pods: Api<Pod> = Api::namespaced(fixture.cluster.client().expect("client"), "podsonde");
    pods.delete(&name, &DeleteParams::default()).await.expect("delete");
    fixture.cluster.wait_deleted("podsonde", &name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_outlive_the_agent() {
    let Some(fixture) = Fixture::start().await else { return };
    fixture.pod("web", nginx()).await;
    let user = fixture.user_1000();
    let (lasting, pid) =
        debug(&fixture, "lasting", &["--ttl=1h", "--profile=restricted", &user]).await;
    // Another user's than the agent's, so that it takes a capability to end it.
    assert!(node::status_of(pid, "Uid").starts_with("1000\t"));
    let (short, short_pid) =
        debug(&fixture, "short", &["--ttl=10s", "--profile=restricted", &user]).await;
    assert!(processes(&short).len() >= 2 && processes(&short).contains(&short_pid));

    // Its process is killed; the kubelet starts another one.
    let agent = fixture.agent().await;
    let name = agent.metadata.name.clone().expect("a name");
    let first = running(&agent, "agent").expect("runs");
    node::output("kill", &["-KILL", &node::pid(&first).expect("runs").to_string()]);
    assert!(!processes(&short).is_empty(), "still runs when no agent does");
    let again = |pod: &Pod| running(pod, "agent").is_some_and(|id| id != first);
    let agent = fixture.wait_in("podsonde", &name, again).await;
    fixture.agent_ready(&name).await;
    assert_eq!(status(&agent, "agent").unwrap().restart_count, 1);
    let names: Vec<String> = sessions(&fixture).await.into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["lasting", "short"]);

    // The other agent ends what the first one started.
    until("the session has expired", async || processes(&short).is_empty()).await;
    let code =
        |pod: &Pod| Some(status(pod, "short")?.state.as_ref()?.terminated.as_ref()?.exit_code);
    let pod = fixture.wait("web", |pod| code(pod).is_some()).await;
    // 143 is by SIGTERM, 137 by SIGKILL: a shell that waits for a child ends by the first.
    assert_eq!(code(&pod), Some(143));

    // The whole pod is replaced, as by an update.
    delete_agent(&fixture).await;
    assert_eq!(node::pid(&first), None);
    assert!(!processes(&lasting).is_empty(), "still runs when no agent does");
    let none = fixture.podsonde(&["sessions"]).await.expect(1);
    println!("{}", none.stderr);
    let said = |text: &str| none.stderr.contains(text);
    assert!(
        said("error: there is no podsonde agent on node node") && said("hint: "),
        "{}",
        none.stderr
    );
    assert!(!said("No sessions found"), "nobody knows: {}", none.stderr);
    fixture.start_agent().await;
    let expected = [("lasting", "Running"), ("short", "Terminated")]
        .map(|(a, b)| (a.to_owned(), b.to_owned()));
    assert_eq!(sessions(&fixture).await, expected);

    let ended = fixture.podsonde(&["end", "web", "lasting"]).await.expect(0);
    println!("{}", ended.stdout);
    assert!(
        ended.stdout.starts_with("session lasting in pod default/web ended: "),
        "{}",
        ended.stdout
    );
    assert_eq!(processes(&lasting), Vec::<u32>::new());
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_agent_drains_within_its_grace_period() {
    let Some(fixture) = Fixture::start().await else { return };
    fixture.pod("web", nginx()).await;
    let agent = fixture.agent().await;
    let (name, uid) =
        (agent.metadata.name.clone().expect("a name"), agent.metadata.uid.clone().expect("a uid"));

    // A request that would wait for a minute.
    let mut args = DEBUG.to_vec();
    args[2] = "--image=registry.test/absent:1";
    args.extend(["-c", "waiting", "--wait-for-image", "--", "sleep", "infinity"]);
    let request = fixture.spawn(&args);
    fixture.wait("web", |pod| status(pod, "waiting").is_some()).await;

    let began = Instant::now();
    let pods: Api<Pod> = Api::namespaced(fixture.cluster.client().expect("client"), "podsonde");
    pods.delete(&name, &DeleteParams::default()).await.expect("delete");
    let last = async {
        fixture
            .wait_in("podsonde", &name, |pod| phase(pod) == "Succeeded" || phase(pod) == "Failed")
            .await
    };
    let (last, refused) = tokio::join!(last, request.ended());
    println!("drained in {:?}; the request: {}", began.elapsed(), refused.stderr);
    let terminated =
        status(&last, "agent").unwrap().state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!(
        terminated.exit_code, 0,
        "not killed at the end of its grace period: it ended by itself"
    );
    let refused = refused.expect(1);
    assert!(
        refused.stderr.contains("the agent is shutting down; the container may still start"),
        "{}",
        refused.stderr
    );
    assert!(
        refused.stderr.contains("container waiting stays in the pod's spec"),
        "{}",
        refused.stderr
    );
    assert!(refused.stderr.contains("hint: try again in a moment"), "{}", refused.stderr);

    let log = fixture.node.dir.join("logs").join(format!("podsonde_{name}_{uid}/agent/0.log"));
    let log = fs::read_to_string(&log).expect("the agent's log");
    println!("{log}");
    let messages: Vec<Value> = log
        .lines()
        .filter_map(|line| serde_json::from_str(line.splitn(4, ' ').nth(3)?).ok())
        .collect();
    let position = |wanted: &str| {
        messages
            .iter()
            .position(|line| line["fields"]["message"] == wanted || line["message"] == wanted)
    };
    assert!(position("podsonde-agent started") < position("draining"), "{messages:#?}");
    assert!(
        position("draining").is_some() && position("draining") < position("stopped"),
        "{messages:#?}"
    );
    fixture.end().await;
}
