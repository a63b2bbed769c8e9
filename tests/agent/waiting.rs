//! What happens between the request and the container's start.

use std::time::Duration;

use podsonde::{
    agent::config::Limits,
    proto::v1::{self, Outcome, SessionState},
};
use serde_json::json;
use tonic::{Code, Request};

use crate::fixture::{Failure, Fixture, NODE, WEB, reason, request, rest, within};

const SUBRESOURCE: &str = "pods/ephemeralcontainers";

/// A cluster whose containers take so long to start, with one pod.
async fn slow(start: Duration, limits: Limits) -> Fixture {
    let f = Fixture::with(|o| o.start_delay = start, limits).await;
    f.pod("web", json!({"containers": [{"name": "web", "image": WEB}]})).await;
    f
}

fn permanent(code: Code, reason: &'static str, says: &'static str) -> Failure {
    Failure { code, reason, entry: "permanent", says }
}

fn is_running(session: &v1::Session) -> bool {
    session.state() == SessionState::Running
}

fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_deadline_to_start() {
    let f = slow(Duration::from_secs(4), Limits::default()).await;
    let late =
        || permanent(Code::DeadlineExceeded, "START_DEADLINE", "it is waiting (ContainerCreating)");
    f.fails(v1::DebugCreateRequest { start_timeout: seconds(1), ..request("web", "web") }, late())
        .await;
    // The call's own deadline: told of before the caller gives up.
    let mut call = Request::new(request("web", "web"));
    call.set_timeout(Duration::from_secs(1));
    let stream = f.debug().create(call).await.unwrap().into_inner();
    late()
        .check(&within("START_DEADLINE by grpc-timeout", rest(stream)).await.1.unwrap_err(), "web");
    f.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_goes_away() {
    let f = slow(Duration::from_millis(1500), Limits::default()).await;
    let gone = permanent(Code::Unavailable, "API_UNREACHABLE", "cannot be reached");
    let stream = f
        .accepted(v1::DebugCreateRequest { start_timeout: seconds(1), ..request("web", "web") })
        .await;
    f.cluster.faults().refuse_connections().await;
    gone.check(&within("gone until the deadline", rest(stream)).await.1.unwrap_err(), "web");
    f.cluster.faults().up().await.unwrap();

    // It hangs until the deadline.
    let stream = f
        .accepted(v1::DebugCreateRequest { start_timeout: seconds(1), ..request("web", "web") })
        .await;
    f.cluster.faults().hang();
    let late = permanent(
        Code::DeadlineExceeded,
        "START_DEADLINE",
        "the API server does not say how it fares",
    );
    late.check(&within("hangs until the deadline", rest(stream)).await.1.unwrap_err(), "web");
    f.cluster.faults().up().await.unwrap();

    // It comes back in time, with its watches broken and their history forgotten: nothing is lost.
    let stream = f.accepted(request("web", "web")).await;
    f.cluster.faults().refuse_connections().await;
    f.cluster.faults().compact();
    f.cluster.faults().up().await.unwrap();
    let done = within("comes back", rest(stream)).await.1.unwrap();
    assert_eq!(done.verification.unwrap().outcome(), Outcome::Ok);

    let stream = f.accepted(request("web", "web")).await;
    f.cluster.faults().break_watches();
    f.cluster.faults().fail_next(
        2,
        "watch",
        "pods",
        podsonde::embedded::ApiStatus::new(410, "Expired", "too old resource version"),
    );
    let done = within("410 and a broken watch", rest(stream)).await.1.unwrap();
    assert_eq!(done.session.unwrap().state(), SessionState::Running);
    f.end().await;
}

fn pod(name: &str) -> serde_json::Value {
    json!({
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"nodeName": NODE, "containers": [{"name": "web", "image": WEB}]},
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_goes_away() {
    let f = slow(Duration::from_secs(1), Limits::default()).await;
    let deleted = || permanent(Code::Aborted, "POD_DELETED", "was deleted");
    for grace in [0, 30] {
        let name = format!("grace-{grace}");
        f.pod(&name, json!({"containers": [{"name": "web", "image": WEB}]})).await;
        let stream = f.accepted(request(&name, "web")).await;
        f.cluster.delete_pod("default", &name, grace).await.unwrap();
        deleted().check(&within("deleted", rest(stream)).await.1.unwrap_err(), &name);
    }
    // Recreated at once: the new pod has no such container, and is not taken for the old one.
    let stream = f.accepted(request("web", "web")).await;
    f.cluster.delete_pod("default", "web", 0).await.unwrap();
    f.cluster.create_pod(pod("web")).await.unwrap();
    deleted().check(&within("deleted and recreated", rest(stream)).await.1.unwrap_err(), "web");
    assert!(f.entries("web").await.is_empty());
    f.end().await;
}

/// What changes while the request to the API server is under way. The watch hangs with it, so the
/// agent's checks have passed.
#[tokio::test(flavor = "multi_thread")]
async fn what_changes_between_the_checks_and_the_patch() {
    let f = slow(Duration::ZERO, Limits::default()).await;
    let faults = f.cluster.faults();
    let underway = async |request: v1::DebugCreateRequest| {
        faults.hang();
        let patch = faults.arrival("patch", SUBRESOURCE);
        let stream = f.debug().create(request).await.unwrap().into_inner();
        within("the patch arrives", patch).await;
        stream
    };
    // The watch knows a pod once it has told of a debug container of it.
    f.created(request("web", "")).await;
    // Another pod has the name.
    let stream = underway(request("web", "")).await;
    f.cluster.delete_pod("default", "web", 0).await.unwrap();
    f.cluster.create_pod(pod("web")).await.unwrap();
    faults.up().await.unwrap();
    let replaced =
        Failure { code: Code::FailedPrecondition, reason: "POD_REPLACED", entry: "", says: "uid" };
    replaced.check(&within("POD_REPLACED", rest(stream)).await.1.unwrap_err(), "web");
    assert!(f.entries("web").await.is_empty());
    f.wait("web", |pod| pod.status.as_ref().unwrap().phase.as_deref() == Some("Running")).await;

    // No pod has the name.
    f.pod("other", json!({"containers": [{"name": "web", "image": WEB}]})).await;
    f.created(request("other", "")).await;
    let stream = underway(request("other", "")).await;
    f.cluster.delete_pod("default", "other", 0).await.unwrap();
    faults.up().await.unwrap();
    let absent =
        Failure { code: Code::NotFound, reason: "POD_NOT_FOUND", entry: "", says: "not found" };
    absent.check(&within("POD_NOT_FOUND", rest(stream)).await.1.unwrap_err(), "other");

    // Another request takes the name.
    let named = || v1::DebugCreateRequest { name: "same".into(), ..request("web", "") };
    let (first, second) = (underway(named()).await, underway(named()).await);
    faults.up().await.unwrap();
    let (first, second) =
        within("NAME_TAKEN", async { tokio::join!(rest(first), rest(second)) }).await;
    let loser = match (first.1, second.1) {
        (Ok(_), Err(status)) | (Err(status), Ok(_)) => status,
        both => panic!("exactly one gets the name: {both:?}"),
    };
    Failure {
        code: Code::AlreadyExists,
        reason: "NAME_TAKEN",
        entry: "",
        says: "just taken its name",
    }
    .check(&loser, "web");

    // The target restarts.
    f.created(request("web", "web")).await;
    let target = f.verify("web").await.containers[0].container.clone().unwrap();
    let stream = underway(request("web", "web")).await;
    assert_ne!(target.host_pid, 0, "that would be the test's own process group");
    let killed =
        std::process::Command::new("kill").args(["-KILL", &target.host_pid.to_string()]).status();
    assert!(killed.unwrap().success());
    f.wait("web", |pod| {
        let statuses = pod.status.as_ref().and_then(|s| s.container_statuses.as_ref()).unwrap();
        statuses
            .iter()
            .any(|s| s.restart_count == 1 && s.state.as_ref().is_some_and(|s| s.running.is_some()))
    })
    .await;
    faults.up().await.unwrap();
    let restarted =
        permanent(Code::Aborted, "CONTAINER_RESTARTED", "the target web was restarted meanwhile");
    restarted.check(&within("CONTAINER_RESTARTED", rest(stream)).await.1.unwrap_err(), "web");
    f.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_drains() {
    let mut f = slow(Duration::from_secs(2), Limits::default()).await;
    let stream = f.accepted(request("web", "web")).await;
    within("the agent stops", f.stop_agent()).await;
    let draining = permanent(Code::Unavailable, "DRAINING", "the container may still start");
    draining.check(&within("DRAINING", rest(stream)).await.1.unwrap_err(), "web");
    // The next agent finds the session.
    f.start_agent().await;
    let sessions = f.sessions_until("the container starts", |all| all.iter().all(is_running)).await;
    assert_eq!(sessions.len(), 1);
    f.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn as_many_as_may_be() {
    let limits = Limits { max_sessions: 1, ..Limits::default() };
    let f = slow(Duration::ZERO, limits).await;
    let done = f.created(request("web", "web")).await;
    let full = || Failure {
        code: Code::ResourceExhausted,
        reason: "TOO_MANY_SESSIONS",
        entry: "",
        says: "end one",
    };
    f.fails(request("web", "web"), full()).await;
    let session = done.session.unwrap();
    let end = v1::DebugEndRequest {
        pod: crate::fixture::pod_ref("web"),
        session: session.id,
        grace_period: None,
    };
    f.debug().end(end).await.unwrap();
    let ended = |s: &v1::Session| s.state() == SessionState::Terminated;
    f.sessions_until("is listed as ended", |all| all.iter().all(ended)).await;
    within("there is room again", f.created(request("web", "web"))).await;
    f.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_hangs_up() {
    let limits = Limits { max_requests: 1, ..Limits::default() };
    let f = slow(Duration::from_secs(2), limits).await;
    let stream = f.accepted(request("web", "web")).await;
    let list = || async { f.debug().list(v1::DebugListRequest::default()).await };
    let status = list().await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).0.as_str()),
        (Code::ResourceExhausted, "TOO_MANY_REQUESTS")
    );
    drop(stream);
    // The only permit comes back while the container is still starting: nobody waits for it any
    // more.
    let sessions = within("the agent notices", async {
        loop {
            if let Ok(list) = list().await {
                break list.into_inner().sessions;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(sessions[0].state(), SessionState::Waiting);
    // The container starts all the same, and is a session like any other.
    f.sessions_until("the container starts", |all| all.iter().all(is_running)).await;
    f.end().await;
}
