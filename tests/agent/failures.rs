//! What the kubelet or the pod's own state keeps from running, and how that is told.

use podsonde::{
    agent::config::Limits,
    proto::v1::{
        self, ImagePullPolicy, Outcome, Profile, SessionState, debug_create_response::Event,
    },
};
use serde_json::{Value, json};
use tonic::Code;

use crate::fixture::{Failure, Fixture, NODE, SLEEP, WEB, pod_ref, request, within};

const PERMANENT: &str = "permanent";

fn web() -> Value {
    json!({"containers": [{"name": "web", "image": WEB}]})
}

fn image(image: &str) -> v1::DebugCreateRequest {
    v1::DebugCreateRequest { image: image.into(), ..request("web", "web") }
}

fn kubelet(reason: &'static str, says: &'static str) -> Failure {
    Failure { code: Code::FailedPrecondition, reason, entry: PERMANENT, says }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_kubelet_cannot_start() {
    let f = Fixture::with(|_| {}, Limits { allow_references: true, ..Limits::default() }).await;
    f.pod("web", web()).await;
    let never = v1::DebugCreateRequest {
        image_pull_policy: ImagePullPolicy::Never.into(),
        ..image("podsonde.dev/test/missing")
    };
    let restricted = v1::DebugCreateRequest { profile: Profile::Restricted.into(), ..image(SLEEP) };
    let custom =
        |json: Value| v1::DebugCreateRequest { custom_json: json.to_string(), ..image(SLEEP) };
    let unknown_capability =
        custom(json!({"securityContext": {"capabilities": {"add": ["NO_SUCH"]}}}));
    let no_config_map = custom(json!({"envFrom": [{"configMapRef": {"name": "absent"}}]}));
    let command =
        |path: &str| v1::DebugCreateRequest { command: vec![path.into()], ..image(SLEEP) };
    let table = [
        (image("podsonde.dev/test/missing"), kubelet("IMAGE_PULL_FAILED", "ErrImagePull")),
        (never, kubelet("IMAGE_PULL_FAILED", "ErrImageNeverPull")),
        (image("Upper/Case"), kubelet("IMAGE_NAME_INVALID", "InvalidImageName")),
        (restricted, kubelet("CONFIG_REJECTED", "runAsNonRoot and image will run as root")),
        (no_config_map, kubelet("CONFIG_REJECTED", "configmap \"absent\" not found")),
        (unknown_capability, kubelet("CREATE_FAILED", "unknown capability")),
        (command("/absent"), kubelet("COMMAND_FAILED", "no such file or directory")),
        (image("podsonde.dev/test/noexec"), kubelet("COMMAND_FAILED", "permission denied")),
    ];
    for (n, (request, failure)) in table.into_iter().enumerate() {
        let name = format!("d{n}");
        let request = v1::DebugCreateRequest { name: name.clone(), ..request };
        let status = f.fails(request, failure).await;
        assert_eq!(crate::fixture::reason(&status).1["container"], name);
        assert!(f.entries("web").await.contains(&name));
    }
    // Each is still listed as what became of it, and none counts as running.
    let sessions = f.sessions().await;
    assert_eq!(sessions.len(), 8);
    assert!(
        sessions.iter().all(|s| s.state() == SessionState::Waiting && !s.reason.is_empty()),
        "{sessions:#?}"
    );
    f.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_exits_at_once_is_a_result() {
    let f = Fixture::start().await;
    f.pod("web", web()).await;
    for code in [0, 7] {
        let done =
            within("exits at once", f.created(image(&format!("podsonde.dev/test/exit{code}"))))
                .await;
        // The verdict may have been faster than the exit; then it is told as it was found.
        let (session, verification) = (done.session.unwrap(), done.verification.unwrap());
        if session.state() == SessionState::Terminated {
            assert_eq!((session.exit_code, verification.outcome()), (Some(code), Outcome::Unknown));
            assert_eq!(verification.reason, "CONTAINER_EXITED");
        }
        let ended = |s: &v1::Session| s.id == session.id && s.state() == SessionState::Terminated;
        let sessions = f.sessions_until("is listed as ended", |all| all.iter().any(ended)).await;
        let listed = sessions.into_iter().find(ended).unwrap();
        assert_eq!(listed.exit_code, Some(code));
        assert_eq!(listed.reason, if code == 0 { "Completed" } else { "Error" });
    }
    f.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_may_yet_come_is_waited_for() {
    let f = Fixture::start().await;
    f.pod("web", web()).await;
    let request = v1::DebugCreateRequest {
        wait_for_image: true,
        start_timeout: Some(prost_types::Duration { seconds: 2, nanos: 0 }),
        ..image("podsonde.dev/test/missing")
    };
    let (events, result) = within("waits for an image until the deadline", f.create(request)).await;
    let failure = Failure {
        code: Code::DeadlineExceeded,
        reason: "START_DEADLINE",
        entry: PERMANENT,
        says: "ImagePull",
    };
    failure.check(&result.unwrap_err(), "web");
    let told =
        |wanted: &str| events.iter().any(|e| matches!(e, Event::Progress(p) if p.reason == wanted));
    assert!(told("ErrImagePull") && told("ImagePullBackOff"), "{events:#?}");
    f.end().await;
}

fn refused(code: Code, reason: &'static str, says: &'static str) -> Failure {
    Failure { code, reason, entry: "", says }
}

fn precondition(reason: &'static str, says: &'static str) -> Failure {
    refused(Code::FailedPrecondition, reason, says)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_before_anything_is_changed() {
    let f = Fixture::start().await;
    let pods = [
        ("web", web()),
        (
            "crashes",
            json!({"containers": [{"name": "web", "image": "podsonde.dev/test/exit3"}, {"name": "other", "image": SLEEP}]}),
        ),
        (
            "waits",
            json!({"containers": [{"name": "web", "image": "podsonde.dev/test/missing"}, {"name": "other", "image": SLEEP}]}),
        ),
        (
            "initialized",
            json!({
                "initContainers": [{"name": "init", "image": "podsonde.dev/test/exit0"}],
                "containers": [{"name": "web", "image": WEB}],
            }),
        ),
        (
            "succeeded",
            json!({"restartPolicy": "Never", "containers": [{"name": "web", "image": "podsonde.dev/test/exit0"}]}),
        ),
        (
            "failed",
            json!({"restartPolicy": "Never", "containers": [{"name": "web", "image": "podsonde.dev/test/exit3"}]}),
        ),
        ("elsewhere", json!({"nodeName": "node-b", "containers": [{"name": "web", "image": WEB}]})),
    ];
    for (name, spec) in pods {
        f.submit(name, spec).await;
    }
    let metadata = |name: &str| json!({"name": name, "namespace": "default"});
    let mut mirror = json!({"metadata": metadata("static"), "spec": web()});
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "1"});
    mirror["spec"]["nodeName"] = NODE.into();
    f.cluster.create_pod(mirror).await.unwrap();
    let mut nowhere = json!({"metadata": metadata("nowhere"), "spec": web()});
    nowhere["spec"]["schedulerName"] = "none".into();
    f.cluster.create_pod(nowhere).await.unwrap();

    let phase = |wanted: &'static str| {
        move |pod: &k8s_openapi::api::core::v1::Pod| {
            pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some(wanted)
        }
    };
    for name in ["web", "initialized", "elsewhere", "static"] {
        f.wait(name, phase("Running")).await;
    }
    f.wait("succeeded", phase("Succeeded")).await;
    f.wait("failed", phase("Failed")).await;
    let waiting = |reason: &'static str| {
        move |pod: &k8s_openapi::api::core::v1::Pod| {
            let statuses = pod.status.as_ref().and_then(|s| s.container_statuses.as_ref());
            statuses.is_some_and(|s| {
                s.iter().any(|s| {
                    let waiting = s.state.as_ref().and_then(|s| s.waiting.as_ref());
                    waiting.is_some_and(|w| w.reason.as_deref() == Some(reason))
                })
            })
        }
    };
    f.wait("crashes", waiting("CrashLoopBackOff")).await;
    f.wait("waits", waiting("ImagePullBackOff")).await;
    let earlier = v1::DebugCreateRequest { name: "earlier".into(), ..request("web", "web") };
    within("a first one", f.created(earlier.clone())).await;

    let named = |name: &str| v1::DebugCreateRequest { name: name.into(), ..request("web", "web") };
    let mut wrong_uid = request("web", "web");
    wrong_uid.pod.as_mut().unwrap().uid = "00000000-0000-4000-8000-000000000000".into();
    let table = [
        (
            request("web", "nginx"),
            refused(
                Code::NotFound,
                "CONTAINER_NOT_FOUND",
                "there is no such container; the pod has web",
            ),
        ),
        (
            request("crashes", "web"),
            precondition("TARGET_NOT_RUNNING", "does not run, so it cannot be a target"),
        ),
        (request("waits", "web"), precondition("TARGET_NOT_RUNNING", "it is waiting (")),
        (
            request("initialized", "init"),
            precondition("TARGET_NOT_RUNNING", "has exited with 0 (Completed)"),
        ),
        (
            request("web", "earlier"),
            refused(Code::InvalidArgument, "INVALID_FIELD", "is itself a debug container"),
        ),
        (request("static", "web"), precondition("STATIC_POD", "static pod")),
        (request("succeeded", "web"), precondition("POD_FINISHED", "has run to its end")),
        (request("failed", ""), precondition("POD_FINISHED", "has run to its end")),
        (request("elsewhere", "web"), precondition("POD_ON_OTHER_NODE", "runs on node node-b")),
        (request("nowhere", "web"), precondition("POD_NOT_SCHEDULED", "not scheduled")),
        (request("absent", "web"), refused(Code::NotFound, "POD_NOT_FOUND", "does not exist")),
        (wrong_uid, precondition("POD_REPLACED", "another pod of that name")),
        (named("web"), refused(Code::AlreadyExists, "NAME_TAKEN", "container of that name")),
        (named("earlier"), refused(Code::AlreadyExists, "NAME_TAKEN", "container of that name")),
    ];
    for (request, failure) in table {
        f.fails(request, failure).await;
    }
    // The very same request once more is not taken for done, as the API server would take it.
    f.fails(earlier, refused(Code::AlreadyExists, "NAME_TAKEN", "container of that name")).await;
    // A pod of another node is none of this agent's, whatever is asked of it.
    let verify =
        v1::NamespacesVerifyRequest { pod: pod_ref("elsewhere"), container: String::new() };
    let status = f.namespaces().verify(verify).await.unwrap_err();
    assert_eq!(crate::fixture::reason(&status).0, "POD_ON_OTHER_NODE");
    f.end().await;
}

/// A pod is seen terminating only for as long as its kubelet needs; that of a node without one
/// needs for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_terminating_pod_is_refused() {
    let mut f = Fixture::on_node("node-without-kubelet").await;
    f.submit(
        "web",
        json!({"nodeName": "node-without-kubelet", "containers": [{"name": "web", "image": WEB}]}),
    )
    .await;
    f.cluster.delete_pod("default", "web", 30).await.unwrap();
    // The new one begins with a list, so it knows.
    f.restart_agent().await;
    let status = within("terminating", f.create(request("web", ""))).await.1.unwrap_err();
    let (reason, metadata) = crate::fixture::reason(&status);
    assert_eq!((status.code(), reason.as_str()), (Code::FailedPrecondition, "POD_TERMINATING"));
    assert_eq!(
        (metadata.get("spec_entry"), metadata["node"].as_str()),
        (None, "node-without-kubelet")
    );
    assert!(f.entries("web").await.is_empty());
    f.end().await;
}
