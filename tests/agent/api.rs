//! An API server that refuses, fails, is slow or is gone, and how that is told.

use std::time::Duration;

use podsonde::{
    agent::config::Limits,
    embedded::ApiStatus,
    proto::v1::{self, Outcome},
};
use serde_json::json;
use tonic::{Code, Request};

use crate::fixture::{Failure, Fixture, SLEEP, WEB, request, rest, within};

const SUBRESOURCE: &str = "pods/ephemeralcontainers";

async fn with_pod() -> Fixture {
    let f = Fixture::with(|_| {}, Limits { allow_references: true, ..Limits::default() }).await;
    f.pod("web", json!({"containers": [{"name": "web", "image": WEB}]})).await;
    f
}

fn refused(code: Code, reason: &'static str, says: &'static str) -> Failure {
    Failure { code, reason, entry: "", says }
}

fn forbidden(message: &str) -> ApiStatus {
    ApiStatus::new(403, "Forbidden", message)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_api_server_refuses() {
    let f = with_pod().await;
    let denied = |says| refused(Code::PermissionDenied, "ADMISSION_DENIED", says);
    let unreachable =
        |says, entry| Failure { code: Code::Unavailable, reason: "API_UNREACHABLE", entry, says };
    // How often it answers so, how, and what is told.
    let table = [
        (
            1,
            ApiStatus::denied_by_webhook("deny.example.com", "no debugging here"),
            denied("no debugging here"),
        ),
        (
            1,
            ApiStatus::denied_by_policy(
                "web",
                "podsonde-agent",
                "podsonde-agent",
                "only pods of its own node",
            ),
            denied("only pods of its own node"),
        ),
        (
            1,
            forbidden(
                "pods \"web\" is forbidden: violates PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false",
            ),
            denied("PodSecurity"),
        ),
        (
            1,
            forbidden(
                "pods \"web\" is forbidden: User \"system:serviceaccount:podsonde:podsonde-agent\" cannot patch resource \"pods/ephemeralcontainers\" in API group \"\" in the namespace \"default\"",
            ),
            refused(
                Code::PermissionDenied,
                "AGENT_FORBIDDEN",
                "the agent's service account may not",
            ),
        ),
        (
            1,
            ApiStatus::new(401, "Unauthorized", "Unauthorized"),
            refused(Code::PermissionDenied, "AGENT_FORBIDDEN", "Unauthorized"),
        ),
        (
            3,
            ApiStatus::pod_conflict("web"),
            refused(Code::Aborted, "CONFLICT", "the object has been modified"),
        ),
        (3, ApiStatus::too_many_requests(1), unreachable("429: Too many requests", "")),
        (
            3,
            ApiStatus::new(503, "ServiceUnavailable", "apiserver is shutting down"),
            unreachable("503", ""),
        ),
        // It may have been written before the server failed.
        (
            1,
            ApiStatus::new(500, "InternalError", "etcdserver: request timed out"),
            unreachable("etcdserver", "possible"),
        ),
        (
            1,
            ApiStatus::denied_by_webhook("long.example.com", &"very long reasons ".repeat(4000)),
            denied("very long reasons"),
        ),
    ];
    for (times, status, failure) in table {
        f.cluster.faults().fail_next(times, "patch", SUBRESOURCE, status);
        f.fails(request("web", "web"), failure).await;
        f.cluster.faults().clear();
    }
    // Its own word on a container, the real rule being broken.
    let mounts = json!({"image": SLEEP, "volumeMounts": [{"name": "absent", "mountPath": "/x"}]});
    let invalid = v1::DebugCreateRequest {
        image: String::new(),
        container_json: mounts.to_string(),
        ..request("web", "")
    };
    f.fails(
        invalid,
        refused(
            Code::InvalidArgument,
            "REJECTED_BY_API",
            "volumeMounts[0].name: Not found: \"absent\"",
        ),
    )
    .await;

    // A conflict and an overload that pass are not told at all.
    for status in [ApiStatus::pod_conflict("web"), ApiStatus::too_many_requests(1)] {
        f.cluster.faults().fail_next(2, "patch", SUBRESOURCE, status);
        within("a third try", f.created(request("web", "web"))).await;
    }
    f.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn looking_up_a_pod_fails_as_clearly() {
    let f = with_pod().await;
    let table = [
        (
            1,
            forbidden("pods \"x\" is forbidden: User \"u\" cannot get resource \"pods\""),
            "AGENT_FORBIDDEN",
        ),
        (3, ApiStatus::too_many_requests(1), "API_UNREACHABLE"),
        (1, ApiStatus::new(500, "InternalError", "no"), "API_UNREACHABLE"),
    ];
    for (times, status, expected) in table {
        f.cluster.faults().fail_next(times, "get", "pods", status);
        let status = within(expected, f.create(request("absent", ""))).await.1.unwrap_err();
        assert_eq!(crate::fixture::reason(&status).0, expected, "{status:?}");
    }
    f.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_is_gone() {
    let f = with_pod().await;
    f.created(request("web", "web")).await;
    f.cluster.faults().refuse_connections().await;
    let gone = || refused(Code::Unavailable, "API_UNREACHABLE", "cannot be reached");
    f.fails(request("web", "web"), gone()).await;
    f.fails(request("absent", ""), gone()).await;
    // What needs no API server works on.
    let pod = within("verify without an API server", f.verify("web")).await;
    assert_eq!(pod.outcome(), Outcome::Ok, "{pod:#?}");
    assert_eq!(f.sessions().await.len(), 1);
    f.cluster.faults().up().await.unwrap();
    within("and it is back", f.created(request("web", "web"))).await;
    f.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_hangs_or_is_slow() {
    let f = with_pod().await;
    // The watch knows the pod once it has told of a debug container of it.
    f.created(request("web", "web")).await;
    f.cluster.faults().hang();
    // The deadline of the call, heard of before it has passed; that of the request; and the agent's
    // own patience.
    let mut short = Request::new(request("web", "web"));
    short.set_timeout(Duration::from_secs(2));
    let stream = f.debug().create(short).await.unwrap().into_inner();
    let lost = |reason, code| Failure { code, reason, entry: "possible", says: "did not answer" };
    let status = within("hangs until the call's deadline", rest(stream)).await.1.unwrap_err();
    lost("START_DEADLINE", Code::DeadlineExceeded).check(&status, "web");
    let start_timeout = Some(prost_types::Duration { seconds: 1, nanos: 0 });
    let impatient = v1::DebugCreateRequest { start_timeout, ..request("web", "web") };
    f.fails(impatient, lost("START_DEADLINE", Code::DeadlineExceeded)).await;
    f.fails(request("web", "web"), lost("API_UNREACHABLE", Code::Unavailable)).await;
    // A pod that the watch does not know: nothing has been changed.
    let mut unknown = Request::new(request("absent", ""));
    unknown.set_timeout(Duration::from_secs(1));
    let status = within("asks for a pod until the call's deadline", f.debug().create(unknown))
        .await
        .unwrap_err();
    let lost = |reason, code, says| Failure { entry: "", code, reason, says };
    lost("DEADLINE", Code::DeadlineExceeded, "deadline").check(&status, "absent");
    f.fails(request("absent", ""), lost("API_UNREACHABLE", Code::Unavailable, "did not answer"))
        .await;
    f.cluster.faults().up().await.unwrap();

    f.cluster.faults().delay(Duration::from_millis(300));
    within("slow", f.created(request("web", "web"))).await;
    f.end().await;
}

/// The watch cannot come back, all else works: what it does not tell is asked for.
#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_is_behind_makes_nothing_wrong() {
    let f = with_pod().await;
    let before = f.verify("web").await.containers.remove(0).container.unwrap();
    let down = ApiStatus::new(500, "InternalError", "no watches today");
    for verb in ["watch", "list"] {
        f.cluster.faults().fail_next(usize::MAX, verb, "pods", down.clone());
    }
    let tried = f.cluster.faults().arrival("watch", "pods");
    f.cluster.faults().break_watches();
    within("the watch is broken", tried).await;

    // Restarted: the id that the watch knows is that of a container that is gone.
    kill(before.host_pid);
    f.wait("web", |pod| {
        let statuses = pod.status.as_ref().and_then(|s| s.container_statuses.as_ref()).unwrap();
        statuses
            .iter()
            .any(|s| s.restart_count == 1 && s.state.as_ref().is_some_and(|s| s.running.is_some()))
    })
    .await;
    let pod = within("verify a restarted container", f.verify("web")).await;
    assert_eq!(pod.outcome(), Outcome::Ok, "{pod:#?}");
    let after = pod.containers[0].container.clone().unwrap();
    assert_ne!(after.container_id, before.container_id);
    let mut all = f
        .namespaces()
        .verify_node(v1::NamespacesVerifyNodeRequest::default())
        .await
        .unwrap()
        .into_inner();
    let pod = all.message().await.unwrap().unwrap().pod.unwrap();
    assert_eq!((pod.outcome(), pod.containers[0].container.as_ref()), (Outcome::Ok, Some(&after)));

    // A pod that the watch has never heard of is not taken for a deleted one.
    f.pod("new", json!({"containers": [{"name": "web", "image": WEB}]})).await;
    let start_timeout = Some(prost_types::Duration { seconds: 2, nanos: 0 });
    let request = v1::DebugCreateRequest { start_timeout, ..request("new", "web") };
    let done = within("a debug container without a watch", f.created(request)).await;
    assert_eq!(done.verification.unwrap().outcome(), Outcome::Ok);
    f.end().await;
}

fn kill(pid: u32) {
    // 0 would be the test's own process group.
    assert_ne!(pid, 0);
    let killed =
        std::process::Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap();
    assert!(killed.success());
}
