//! Sessions that nobody asked an agent for: their facts were written by hand into the pod's spec.

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{Api, Patch, PatchParams};
use podsonde::{agent::config::Limits, proto::v1};
use serde_json::json;
use tonic::Code;

use crate::fixture::{Fixture, NODE, SLEEP, WEB, reason, request, within};

/// Adds ephemeral containers to the pod `web` that say of themselves what sessions say.
async fn forge(f: &Fixture, prefix: &str, count: usize, image: &str) {
    let containers: Vec<_> = (0..count)
        .map(|index| {
            let env = [
                // All with one id, as a copy of a real session would have.
                ("PODSONDE_SESSION_ID", "00000000-0000-4000-8000-000000000000"),
                ("PODSONDE_REQUESTED_BY", "system:admin"),
                ("PODSONDE_CREATED_AT", "2026-01-02T03:04:05Z"),
                ("PODSONDE_EXPIRES_AT", "2099-01-02T03:04:05Z"),
                (
                    "PODSONDE_SEAL",
                    "0000000000000000000000000000000000000000000000000000000000000000",
                ),
            ];
            let env = env.map(|(name, value)| json!({"name": name, "value": value}));
            json!({"name": format!("{prefix}-{index}"), "image": image, "env": env})
        })
        .collect();
    let patch = json!({"spec": {"ephemeralContainers": containers}});
    Api::<Pod>::namespaced(f.cluster.client().unwrap(), "default")
        .patch_subresource(
            "ephemeralcontainers",
            "web",
            &PatchParams::default(),
            &Patch::Strategic(&patch),
        )
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_sessions_take_no_other_namespaces_quota_and_prove_nobody() {
    let limits = Limits { max_sessions: 4, max_sessions_per_namespace: 3, ..Limits::default() };
    let mut f = Fixture::with(|_| {}, limits).await;
    let web = || json!({"containers": [{"name": "web", "image": WEB}]});
    f.pod("web", web()).await;
    let client = f.cluster.client().unwrap();
    let namespace: Namespace =
        serde_json::from_value(json!({"metadata": {"name": "other"}})).unwrap();
    Api::<Namespace>::all(client).create(&Default::default(), &namespace).await.unwrap();
    let mut other = json!({"metadata": {"name": "web", "namespace": "other"}, "spec": web()});
    other["spec"]["nodeName"] = NODE.into();
    f.cluster.create_pod(other).await.unwrap();
    let running =
        |pod: &Pod| pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running");
    within("the other pod", f.cluster.wait_pod("other", "web", running)).await.unwrap();

    // Twenty that never run count for nothing.
    forge(&f, "absent", 20, "podsonde.dev/test/missing").await;
    f.sessions_until("the forged ones are seen", |all| all.len() == 20).await;
    let real = v1::DebugCreateRequest { name: "real".into(), ..request("web", "web") };
    let real = f.created(real).await.session.unwrap();
    assert!(real.requester_verified && !real.requested_by.is_empty(), "{real:?}");

    // Ten that run fill their own namespace, and no other.
    forge(&f, "runs", 10, SLEEP).await;
    f.sessions_until("they run", |all| {
        let runs = |s: &&v1::Session| {
            s.container.starts_with("runs") && s.state() == v1::SessionState::Running
        };
        all.iter().filter(runs).count() == 10
    })
    .await;
    let refused = f.create(request("web", "web")).await.1.unwrap_err();
    let found = (refused.code(), reason(&refused).0);
    assert_eq!(found, (Code::ResourceExhausted, "TOO_MANY_SESSIONS".to_owned()), "{refused:?}");
    assert!(refused.message().contains("namespace default"), "{refused:?}");
    let mut elsewhere = request("web", "web");
    elsewhere.pod.as_mut().unwrap().namespace = "other".into();
    f.created(elsewhere).await;

    // Pages have each once, though all the forged ones have one id.
    let (mut listed, mut page_token) = (Vec::new(), String::new());
    loop {
        let page = v1::DebugListRequest { page_size: 7, page_token, ..Default::default() };
        let page = f.debug().list(page).await.unwrap().into_inner();
        listed.extend(page.sessions);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(listed.len(), 32, "{listed:?}");
    let only_forged_ones_are_unverified = |sessions: &[v1::Session]| {
        for session in sessions {
            let forged = session.requested_by == "system:admin";
            assert_eq!(session.requester_verified, !forged, "{session:?}");
        }
    };
    only_forged_ones_are_unverified(&listed);
    // An agent that is started with the key of the one before it knows whose each is.
    f.restart_agent().await;
    let all = f.sessions_until("they are listed again", |all| all.len() == 32).await;
    only_forged_ones_are_unverified(&all);
    f.end().await;
}
