//! Every RPC for everybody who may not, and for the one who may.

use std::{collections::BTreeSet, fs, time::Duration};

use prost::Message;
use tonic::Code;

use crate::{
    rpc::{self, ALL, ENV_SECRET, FILES, Rpc},
    world::{self, HOUR, Right, World, reason, records},
};

/// A namespace, two ordinary pods, one that is as powerful as the node, and a session on each; and
/// one on the node's network.
async fn populated() -> World {
    let world = World::start().await;
    world.namespace("other").await;
    world.pod("default", "web", serde_json::json!({})).await;
    world.pod("default", "powerful", serde_json::json!({"hostPID": true})).await;
    world.pod("default", "host", serde_json::json!({"hostNetwork": true})).await;
    world.pod("other", "db", serde_json::json!({})).await;
    let volumes = serde_json::json!({"volumes": [{"name": "host", "hostPath": {"path": "/var"}}]});
    world.pod("default", "host-path", volumes).await;
    let all = [
        world::right("get", "pods", ""),
        world::right("patch", "pods/ephemeralcontainers", ""),
        world::right("create", "nodes/proxy", ""),
    ];
    world.grant("founder", &all).await;
    let bearer = format!("Bearer {}", world.token("founder"));
    for (namespace, pod) in [("default", "web"), ("default", "powerful"), ("other", "db")] {
        let mut message = rpc::create(pod, "session");
        message.pod.as_mut().unwrap().namespace = namespace.into();
        rpc::created(world.channel.clone(), Some(bearer.clone()), message).await.unwrap();
    }
    world
}

/// Who calls: what they show, and what must come of it.
struct Case {
    name: String,
    header: Option<String>,
    expected: Option<(Code, &'static str)>,
    /// Whom the audit log must name.
    user: String,
}

async fn cases(world: &World, rpc: &Rpc) -> Vec<Case> {
    let unauthenticated = |name: &str, header: Option<String>, reason| Case {
        name: name.to_owned(),
        header,
        expected: Some((Code::Unauthenticated, reason)),
        user: String::new(),
    };
    let bearer = |token: String| Some(format!("Bearer {token}"));
    // Somebody with all rights whose token is not good enough.
    let entitled = format!("{}-entitled", rpc.name);
    world.grant(&entitled, rpc.needs).await;
    let garbage = "garbage-token-that-nobody-issued";
    world.secrets.lock().unwrap().push(garbage.to_owned());
    // Its claims are right, but nobody knows it.
    let real = world.token(&entitled);
    let forged = format!("{}.c2lnbmF0dXJl", real.rsplit_once('.').unwrap().0);
    let mut cases = vec![
        unauthenticated("no credentials", None, "NO_CREDENTIALS"),
        unauthenticated("not a bearer token", Some("Basic dXNlcjpwYXNz".into()), "BAD_TOKEN"),
        unauthenticated("an empty token", Some("Bearer ".into()), "BAD_TOKEN"),
        unauthenticated("a garbage token", bearer(garbage.into()), "BAD_TOKEN"),
        unauthenticated("a forged token", bearer(forged), "BAD_TOKEN"),
        unauthenticated(
            "a token for somebody else",
            bearer(world.token_for(&entitled, &["vault"], HOUR)),
            "WRONG_AUDIENCE",
        ),
        unauthenticated(
            "a token for the API server",
            bearer(world.token_for(&entitled, &[], HOUR)),
            "WRONG_AUDIENCE",
        ),
        unauthenticated(
            "an expired token",
            bearer(world.token_for(&entitled, &["podsonde"], Duration::ZERO)),
            "TOKEN_EXPIRED",
        ),
    ];
    let mut known = async |what: &str, rights: &[Right], allowed: bool| {
        let user = format!("{}-{what}", rpc.name);
        world.grant(&user, rights).await;
        cases.push(Case {
            name: what.to_owned(),
            header: bearer(world.token(&user)),
            expected: (!allowed).then_some((Code::PermissionDenied, "FORBIDDEN")),
            user,
        });
    };
    known("nobody", &[], false).await;
    let elsewhere = rpc.needs.iter().map(|needed| match needed.resource {
        "nodes" | "nodes/proxy" | "podsonde.dev:nodes" => world::right(needed.verb, "pods", ""),
        _ => Right { namespace: "other", ..needed.clone() },
    });
    known("elsewhere", &elsewhere.collect::<Vec<_>>(), false).await;
    // Everything but what is needed: other verbs on the same things.
    let others = rpc.needs.iter().map(|needed| Right { verb: "delete", ..needed.clone() });
    known("other-verbs", &others.collect::<Vec<_>>(), false).await;
    for missing in 0..rpc.needs.len() {
        let mut rights = rpc.needs.to_vec();
        rights.remove(missing);
        known(&format!("without-{missing}"), &rights, false).await;
    }
    known("all", rpc.needs, true).await;
    cases
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_has_all_rights_may() {
    let world = populated().await;
    let mut seen = world.audited().len();
    let mut requests = 0;
    for rpc in ALL.iter().chain(FILES) {
        for case in cases(&world, rpc).await {
            let at = format!("{}: {}", rpc.name, case.name);
            let result = world::within((rpc.call)(world.channel.clone(), case.header)).await;
            let got = result.as_ref().err().map(|status| (status.code(), reason(status)));
            let expected = case.expected.map(|(code, reason)| (code, reason.to_owned()));
            assert_eq!(got, expected, "{at}: {result:?}");
            requests += 1;

            // Exactly one line at its start and one at its end, and they say what happened.
            let lines = world.audited();
            let [start, end] = &lines[seen..] else { panic!("{at}: {:?}", &lines[seen..]) };
            seen = lines.len();
            assert_eq!((&start["audit"], &end["audit"]), (&"start".into(), &"end".into()), "{at}");
            assert_eq!(start["id"], end["id"], "{at}");
            assert_eq!(start["user"], case.user, "{at}");
            assert_eq!(
                format!("podsonde.v1.{}", start["operation"].as_str().unwrap()),
                rpc.method,
                "{at}"
            );
            let decision = match (&case.expected, case.user.as_str()) {
                (None, _) => "allow",
                (Some(_), "") => "none",
                (Some(_), _) => "deny",
            };
            assert_eq!(start["decision"], decision, "{at}");
            let (code, outcome) = match &case.expected {
                None => ("OK", "ok"),
                Some((Code::Unauthenticated, _)) => ("UNAUTHENTICATED", "failed"),
                Some(_) => ("PERMISSION_DENIED", "failed"),
            };
            assert_eq!(
                (end["code"].as_str(), end["outcome"].as_str()),
                (Some(code), Some(outcome)),
                "{at}"
            );
            let expected = case.expected.map(|(_, reason)| reason);
            assert_eq!(end["reason"].as_str(), expected, "{at}");
            if decision == "allow" {
                let why = start["decision_reason"].as_str().unwrap();
                assert!(why.starts_with("RBAC: allowed by "), "{at}: {why}");
            }
        }
    }
    assert_eq!(records(&world.audited()[6..]).len(), requests);

    let lines = world.audited();
    let made =
        lines.iter().find(|line| line["user"] == "create-all" && line["audit"] == "end").unwrap();
    assert_eq!((&made["namespace"], &made["pod"]), (&"default".into(), &"web".into()));
    assert_eq!(made["parameters"]["image"], world::SLEEP);
    assert_eq!(
        (&made["parameters"]["target_container"], &made["results"]["container"]),
        (&"web".into(), &"made".into())
    );
    assert_eq!(made["pod_uid"].as_str().unwrap().len(), 36);

    // The pod's owner is told.
    let events: kube::Api<k8s_openapi::api::core::v1::Event> =
        kube::Api::namespaced(world.admin.clone(), "default");
    let told = async |reason: &str, message: &str| {
        let events = events.list(&Default::default()).await.unwrap().items;
        events
            .iter()
            .any(|e| e.reason.as_deref() == Some(reason) && e.message.as_deref() == Some(message))
    };
    let created =
        "create-all created debug container made for web from image podsonde.dev/demo/sleep:1";
    for (reason, message) in [
        ("DebugContainerCreated", created),
        ("DebugContainerEnded", "end-all ended debug container session"),
    ] {
        world::within(async {
            while !told(reason, message).await {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
    }

    // The log is complete, and holds none of the secrets that went through the agent.
    let log = fs::read_to_string(world::log()).unwrap();
    for sign in ["tokenreviews", "TRACE h2", "reason=\"FORBIDDEN\""] {
        assert!(log.contains(sign), "the log lacks {sign}");
    }
    let mut secrets = world.secrets.lock().unwrap().clone();
    // Of a token, the last part is what nobody can make up.
    for secret in &mut secrets {
        *secret = secret.rsplit('.').next().unwrap().to_owned();
    }
    secrets.push(ENV_SECRET.to_owned());
    let audit = fs::read_to_string(&world.audit).unwrap();
    for secret in secrets {
        for (name, text) in [("log", &log), ("audit log", &audit)] {
            let line = text.lines().find(|line| line.contains(&secret));
            assert!(line.is_none(), "a secret stands in the {name}: {line:?}");
        }
    }
    world.end().await;
}

/// The table misses no RPC. Health and reflection are for everybody: they tell nothing of pods.
#[test]
fn the_table_is_complete() {
    let set = prost_types::FileDescriptorSet::decode(podsonde::proto::v1::DESCRIPTORS).unwrap();
    let mut methods = BTreeSet::new();
    for file in &set.file {
        for service in &file.service {
            for method in &service.method {
                methods.insert(format!("{}.{}/{}", file.package(), service.name(), method.name()));
            }
        }
    }
    let tested: BTreeSet<_> = ALL.iter().chain(FILES).map(|rpc| rpc.method.to_owned()).collect();
    assert_eq!(tested, methods);
}

/// Who may not see a pod does not learn whether there is one.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_does_not_tell_whether_a_pod_exists() {
    let world = populated().await;
    let bearer = format!("Bearer {}", world.token("stranger"));
    let mut said = Vec::new();
    for pod in ["web", "bew"] {
        let verify =
            rpc::verify(world.channel.clone(), Some(bearer.clone()), pod).await.unwrap_err();
        let create =
            rpc::created(world.channel.clone(), Some(bearer.clone()), rpc::create(pod, "x"));
        let create = create.await.unwrap_err();
        said.push(
            [verify, create].map(|s| (s.code(), reason(&s), s.message().replace(pod, "POD"))),
        );
    }
    assert_eq!(said[0], said[1]);
    world.end().await;
}

/// Any pod's author can copy the annotation of a static pod, which names its cgroup. So every pod
/// with that annotation takes the right to the node, and a denial names both rights that give it.
#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_annotation_takes_the_right_to_the_node() {
    let world = populated().await;
    let annotation = serde_json::json!({
        "kubernetes.io/config.mirror": "0123456789abcdef0123456789abcdef",
    });
    world.annotated_pod("mirror", annotation).await;
    let on_pod = [
        world::right("get", "pods", "default"),
        world::right("create", "pods/exec", "default"),
        world::right("create", "podsonde.dev:captures", "default"),
        world::right("patch", "pods/ephemeralcontainers", "default"),
    ];
    let node = [
        None,
        Some(world::right("create", "nodes/proxy", "")),
        Some(world::right("create", "podsonde.dev:nodes", "")),
    ];
    for (index, more) in node.into_iter().enumerate() {
        let user = format!("tenant-{index}");
        // What the pod takes beyond the rights on it; with those the forgery leads nowhere.
        let expected = match &more {
            None => {
                world.grant(&user, &on_pod).await;
                ["FORBIDDEN"; 3]
            }
            Some(right) => {
                let all: Vec<_> = on_pod.iter().chain([right]).cloned().collect();
                world.grant(&user, &all).await;
                ["PROCESS_NOT_FOUND", "PROCESS_NOT_FOUND", "STATIC_POD"]
            }
        };
        let header = Some(format!("Bearer {}", world.token(&user)));
        let statuses = [
            rpc::read(world.channel.clone(), header.clone(), "mirror").await.unwrap_err(),
            rpc::capture(world.channel.clone(), header.clone(), "mirror").await.unwrap_err(),
            rpc::created(world.channel.clone(), header, rpc::create("mirror", "x"))
                .await
                .unwrap_err(),
        ];
        for (status, expected) in statuses.iter().zip(expected) {
            assert_eq!(reason(status), expected, "{user}: {status:?}");
            if expected == "FORBIDDEN" {
                let both = "create nodes/proxy node-a or create nodes.podsonde.dev node-a";
                assert!(status.message().contains(both), "{status:?}");
            }
        }
    }
    world.end().await;
}
