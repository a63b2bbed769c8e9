//! Sessions from their start to their end: listed, ended, expired, also by an agent that did not
//! make them.

use std::{collections::HashMap, process::Command, time::Duration};

use podsonde::{
    agent::config::Limits,
    proto::v1::{self, EndOutcome, SessionState},
};
use serde_json::json;
use tonic::Code;

use crate::fixture::{Fixture, SLEEP, WEB, pod_ref, reason, request, within};

/// An image with the host's programs.
const HOST: &str = "podsonde.dev/demo/host:1";

async fn with_pod() -> Fixture {
    let f = Fixture::start().await;
    f.pod("web", json!({"containers": [{"name": "web", "image": WEB}]})).await;
    f
}

/// A debug container that runs this shell script among the target's processes.
fn script(script: &str) -> v1::DebugCreateRequest {
    let command = ["sh", "-c", script].map(str::to_owned).to_vec();
    v1::DebugCreateRequest { image: HOST.into(), command, ..request("web", "web") }
}

fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

/// The pids in the container's cgroup, as `grep` finds them in `/proc`, of processes that have not
/// ended, as `ps` has it: the target's init inherits what its guests leave behind, and need not
/// reap it.
fn pids(container_id: &str) -> Vec<u32> {
    let id = container_id.rsplit('/').next().unwrap();
    let all = format!("$(grep -ls -- {id} /proc/[0-9]*/cgroup | cut -d/ -f3 | paste -sd,)");
    let list = "ps -o pid=,stat= -p $all | awk '$2 !~ /^Z/ { print $1 }'";
    let find = format!("all={all}; test -z \"$all\" || {list}");
    let output = Command::new("sh").args(["-c", &find]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(|pid| pid.parse().unwrap()).collect()
}

fn assert_gone(container_id: &str) {
    assert_eq!(pids(container_id), Vec::<u32>::new());
}

async fn pids_until(container_id: &str, what: &str, wanted: impl Fn(usize) -> bool) {
    within(what, async {
        while !wanted(pids(container_id).len()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

impl Fixture {
    async fn end_session(
        &self,
        session: &str,
        grace: Option<prost_types::Duration>,
    ) -> Result<v1::DebugEndResponse, tonic::Status> {
        let request = v1::DebugEndRequest {
            pod: pod_ref("web"),
            session: session.into(),
            grace_period: grace,
        };
        within("end", async { self.debug().end(request).await })
            .await
            .map(tonic::Response::into_inner)
    }

    async fn session(&self, request: v1::DebugCreateRequest) -> v1::Session {
        within("create", self.created(request)).await.session.unwrap()
    }

    async fn ended(&self, id: &str) -> v1::Session {
        let is_it = |s: &v1::Session| s.id == id && s.state() == SessionState::Terminated;
        let sessions = self.sessions_until("is listed as ended", |all| all.iter().any(is_it)).await;
        sessions.into_iter().find(is_it).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_restarts_knows_its_sessions() {
    let mut f = with_pod().await;
    let named =
        v1::DebugCreateRequest { name: "a".into(), ttl: seconds(600), ..request("web", "web") };
    let first = f.session(named).await;
    let second = f.session(request("web", "")).await;
    let failed = v1::DebugCreateRequest { command: vec!["/absent".into()], ..request("web", "") };
    f.create(failed).await.1.unwrap_err();
    let before = f.sessions().await;
    f.restart_agent().await;
    assert_eq!(f.sessions().await, before);
    assert_eq!(before[1..], [second, first.clone()]);
    let get = v1::DebugGetRequest { pod: pod_ref("web"), session: "a".into() };
    assert_eq!(f.debug().get(get).await.unwrap().into_inner().session, Some(first.clone()));
    let lasts = first.expires_at.unwrap().seconds - first.created_at.unwrap().seconds;
    assert_eq!(lasts, 600);
    f.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_expires_after_a_restart_and_while_no_agent_runs() {
    let mut f = with_pod().await;
    let short = || v1::DebugCreateRequest { ttl: seconds(2), ..request("web", "web") };
    let lasting = f.session(request("web", "web")).await;
    let session = f.session(short()).await;
    f.restart_agent().await;
    assert_eq!(pids(&session.container_id).len(), 1);
    let ended = f.ended(&session.id).await;
    // SIGTERM, which the program in that image honours.
    assert_eq!((ended.exit_code, ended.reason.as_str()), (Some(143), "Error"));
    assert_gone(&session.container_id);

    let session = f.session(short()).await;
    f.stop_agent().await;
    let left = session.expires_at.unwrap();
    let left =
        std::time::SystemTime::try_from(left).unwrap().duration_since(std::time::SystemTime::now());
    tokio::time::sleep(left.unwrap_or_default()).await;
    assert_eq!(pids(&session.container_id).len(), 1, "nothing but an agent ends it");
    f.start_agent().await;
    f.ended(&session.id).await;
    assert_gone(&session.container_id);

    // What has not expired runs on, and all entries stay.
    assert_eq!(pids(&lasting.container_id).len(), 1);
    assert_eq!(f.entries("web").await.len(), 3);
    f.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ending_a_session_ends_its_processes_and_no_others() {
    let f = with_pod().await;
    let target = f.verify("web").await.containers[0].container.clone().unwrap().container_id;
    let before = pids(&target);
    // Script, processes it comes to, grace in seconds, whether it needs SIGKILL.
    let table = [
        ("exec sleep 1000", 1, 20, false),
        ("trap '' TERM; while :; do sleep 1000; done", 2, 1, true),
        ("for i in 1 2 3; do (sleep 1000; :) & done; wait", 7, 20, false),
        ("trap '' TERM; for i in 1 2 3; do (sleep 1000; :) & done; wait", 7, 1, true),
        // Never the same processes for long.
        (
            "trap '' TERM; for i in 1 2 3 4; do (while :; do sh -c 'sleep 0.01'; done) & done; wait",
            5,
            1,
            true,
        ),
        // Never the same process for long, each the parent of the next.
        (
            "trap '' TERM; next() { sleep 0.05; next & exit; }; next & while :; do sleep 1000; done",
            2,
            1,
            true,
        ),
        ("exec sleep 1000", 1, 0, true),
    ];
    for (script_, processes, grace, killed) in table {
        println!("{script_}");
        let session = f.session(script(script_)).await;
        pids_until(&session.container_id, "runs", |n| n >= processes).await;
        let end = f.end_session(&session.id, seconds(grace)).await.unwrap();
        assert_eq!((end.outcome(), end.survivors), (EndOutcome::Ended, 0), "{end:?}");
        assert_eq!(end.killed > 0, killed, "{end:?}");
        // Not all of them: once the first has ended, the runtime ends the others.
        assert!(end.signalled >= 1, "{end:?}");
        assert_gone(&session.container_id);
        let ended = f.ended(&session.id).await;
        assert!(matches!(ended.exit_code, Some(137 | 143)), "{ended:?}");
        assert!(f.entries("web").await.contains(&session.container));
        // Once more, by name.
        let again = f.end_session(&session.container, None).await.unwrap();
        assert_eq!((again.outcome(), again.signalled), (EndOutcome::AlreadyEnded, 0));
    }
    assert_eq!(pids(&target), before, "the target's processes run on");
    f.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_ended() {
    let f = Fixture::with(|o| o.start_delay = Duration::from_secs(1), Limits::default()).await;
    f.pod("web", json!({"containers": [{"name": "web", "image": WEB}]})).await;
    let stream = f
        .accepted(v1::DebugCreateRequest { name: "starting".into(), ..request("web", "web") })
        .await;
    let table = [
        ("starting", Code::FailedPrecondition, "SESSION_NOT_STARTED", "has not started"),
        ("absent", Code::NotFound, "SESSION_NOT_FOUND", "it has starting"),
        // The pod's own containers are not for podsonde to end.
        ("web", Code::NotFound, "SESSION_NOT_FOUND", "no debug session"),
        (
            "7d1f0c6e-0000-4000-8000-000000000000",
            Code::NotFound,
            "SESSION_NOT_FOUND",
            "no debug session",
        ),
    ];
    for (session, code, why, says) in table {
        let status = f.end_session(session, None).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).0.as_str()), (code, why), "{status:?}");
        assert!(status.message().contains(says), "{}", status.message());
        let get = v1::DebugGetRequest { pod: pod_ref("web"), session: session.into() };
        let got = f.debug().get(get).await;
        assert_eq!(got.is_ok(), session == "starting");
    }
    drop(stream);
    f.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_of_kubectl_debug_is_ended_by_name() {
    let f = with_pod().await;
    let server = f.cluster.url();
    let kubectl = tokio::task::spawn_blocking(move || {
        let args = [
            "--server",
            &server,
            "debug",
            "web",
            "--image",
            SLEEP,
            "--target",
            "web",
            "-c",
            "by-kubectl",
        ];
        Command::new("kubectl").args(args).env("KUBECONFIG", "/dev/null").output().unwrap()
    });
    let output = within("kubectl debug", kubectl).await.unwrap();
    assert!(output.status.success(), "{output:?}");
    let pod = f
        .wait("web", |pod| {
            let statuses =
                pod.status.as_ref().and_then(|s| s.ephemeral_container_statuses.as_ref());
            statuses.is_some_and(|s| s.iter().any(|s| s.container_id.is_some()))
        })
        .await;
    let statuses = pod.status.unwrap().ephemeral_container_statuses.unwrap();
    let id = statuses[0].container_id.clone().unwrap();
    assert_eq!(pids(&id).len(), 1);
    // It is no session, and is verified and ended all the same.
    assert_eq!(f.sessions().await, []);
    let verified = f.verify("web").await;
    assert_eq!(verified.outcome(), v1::Outcome::Ok, "{verified:#?}");
    let end = f.end_session("by-kubectl", None).await.unwrap();
    assert_eq!((end.outcome(), end.signalled, end.killed), (EndOutcome::Ended, 1, 0));
    assert_gone(&id);
    f.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_listed_in_pages() {
    let f = with_pod().await;
    f.pod("other", json!({"containers": [{"name": "web", "image": WEB}]})).await;
    let (mut made, mut tokens) = (Vec::new(), HashMap::new());
    for pod in ["web", "web", "web", "other", "web"] {
        let session = f.session(request(pod, "")).await;
        // A session's id can be copied into another pod; these two cannot.
        let token = format!("{}/{}", session.pod_uid, session.container);
        tokens.insert(session.id.clone(), token);
        made.insert(0, session.id);
    }
    let page = async |request: v1::DebugListRequest| {
        let v1::DebugListResponse { sessions, next_page_token } =
            f.debug().list(request).await.unwrap().into_inner();
        (sessions.into_iter().map(|s| s.id).collect::<Vec<_>>(), next_page_token)
    };
    let (mut listed, mut page_token, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let (ids, next) =
            page(v1::DebugListRequest { page_size: 2, page_token, ..Default::default() }).await;
        assert!((1..=2).contains(&ids.len()));
        (listed, pages) = ([listed, ids].concat(), pages + 1);
        page_token = next;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!((listed, pages), (made.clone(), 3));
    // Of one pod; and without those that have ended, which still serve as the token.
    let of_web = |include_ended, page_token: &str| v1::DebugListRequest {
        namespace: "default".into(),
        pod: "web".into(),
        include_ended,
        page_token: page_token.into(),
        ..Default::default()
    };
    let web: Vec<_> = [0, 2, 3, 4].map(|n: usize| made[n].clone()).to_vec();
    assert_eq!(page(of_web(true, "")).await, (web.clone(), String::new()));
    f.end_session(&web[1], seconds(0)).await.unwrap();
    f.ended(&web[1]).await;
    assert_eq!(page(of_web(false, "")).await.0, [&web[..1], &web[2..]].concat());
    assert_eq!(page(of_web(false, &tokens[&web[1]])).await.0, web[2..]);
    assert_eq!(page(of_web(true, &tokens[&web[0]])).await.0, web[1..]);
    f.end().await;
}
