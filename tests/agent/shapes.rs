//! Every shape a pod can have, and the verdict on each.

use podsonde::proto::v1::{self, Outcome, ReferenceKind};
use serde_json::{Value, json};

use crate::fixture::{Fixture, SLEEP, WEB, links, lsns, readlinks, request, sharing};

fn web(more: Value) -> Value {
    let mut spec = json!({"containers": [{"name": "web", "image": WEB}]});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    spec
}

/// The ids are those that `readlink` and `lsns` see.
fn assert_ids_are_real(verification: &v1::ContainerVerification) {
    let container = verification.container.as_ref().unwrap();
    let ours = links(verification);
    assert_eq!(ours, readlinks(container.host_pid), "{container:?}");
    assert_eq!(ours, lsns(container.host_pid), "{container:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_pod_shape_gets_the_right_verdict() {
    let f = Fixture::start().await;
    // Cgroup and time namespaces are the host's here: cgroup v1, and no runtime makes time
    // namespaces.
    let cgroup = if std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        "private"
    } else {
        "host"
    };
    // Name, spec, target, how the namespaces are shared: ipc net uts pid mnt user.
    let table: [(&str, Value, &str, [&str; 6]); 9] = [
        (
            "target",
            web(json!({})),
            "web",
            ["shared", "shared", "shared", "shared", "private", "host"],
        ),
        (
            "no-target",
            web(json!({})),
            "",
            ["shared", "shared", "shared", "private", "private", "host"],
        ),
        (
            "share",
            web(json!({"shareProcessNamespace": true})),
            "",
            ["shared", "shared", "shared", "shared", "private", "host"],
        ),
        (
            "share-target",
            web(json!({"shareProcessNamespace": true})),
            "web",
            ["shared", "shared", "shared", "shared", "private", "host"],
        ),
        (
            "host-pid",
            web(json!({"hostPID": true})),
            "web",
            ["shared", "shared", "shared", "host", "private", "host"],
        ),
        (
            "host-ipc",
            web(json!({"hostIPC": true})),
            "web",
            ["host", "shared", "shared", "shared", "private", "host"],
        ),
        (
            "host-net",
            json!({"hostNetwork": true, "containers": [{"name": "web", "image": SLEEP}]}),
            "web",
            ["shared", "host", "host", "shared", "private", "host"],
        ),
        (
            "user",
            web(json!({"hostUsers": false})),
            "web",
            ["shared", "shared", "shared", "shared", "private", "shared"],
        ),
        (
            "sidecar",
            json!({
                "initContainers": [{"name": "side", "image": SLEEP, "restartPolicy": "Always"}],
                "containers": [{"name": "web", "image": WEB}, {"name": "log", "image": SLEEP}],
            }),
            "side",
            ["shared", "shared", "shared", "shared", "private", "host"],
        ),
    ];
    for (name, spec, target, expected) in table {
        f.pod(name, spec).await;
        let done = f.created(request(name, target)).await;
        let verification = done.verification.unwrap();
        let [ipc, net, uts, pid, mnt, user] = expected;
        let expected = format!(
            "ipc={ipc} net={net} uts={uts} pid={pid} mnt={mnt} cgroup={cgroup} user={user} time=host"
        );
        assert_eq!(sharing(&verification), expected, "{name}: {verification:#?}");
        assert_eq!(verification.outcome(), Outcome::Ok, "{name}: {}", verification.message);
        assert_ids_are_real(&verification);
        let reference = verification.reference.as_ref().unwrap();
        let kind = if target.is_empty() { ReferenceKind::Sandbox } else { ReferenceKind::Target };
        assert_eq!(reference.kind(), kind, "{name}");
        assert_eq!(reference.container.as_ref().unwrap().container, target, "{name}");

        // All containers of the pod are right, too, and so is everything said about them.
        let pod = f.verify(name).await;
        assert_eq!(pod.outcome(), Outcome::Ok, "{name}: {pod:#?}");
        pod.containers.iter().for_each(assert_ids_are_real);
    }
    let mut stream = f
        .namespaces()
        .verify_node(v1::NamespacesVerifyNodeRequest::default())
        .await
        .unwrap()
        .into_inner();
    let mut pods = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        let pod = message.pod.unwrap();
        assert_eq!(pod.outcome(), Outcome::Ok, "{pod:#?}");
        pods.push(pod.name);
    }
    assert_eq!(
        pods,
        [
            "host-ipc",
            "host-net",
            "host-pid",
            "no-target",
            "share",
            "share-target",
            "sidecar",
            "target",
            "user"
        ]
    );
    f.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_that_ignores_the_target_is_found_out() {
    let f = Fixture::with(|o| o.ignore_target = true, Default::default()).await;
    f.pod("web", web(json!({}))).await;
    let verification = f.created(request("web", "web")).await.verification.unwrap();
    assert_eq!(verification.outcome(), Outcome::Drift);
    assert_eq!(verification.message, "pid is private, expected shared (targetContainerName: web)");
    assert!(sharing(&verification).contains("pid=private!"));
    assert_ids_are_real(&verification);
    // The other containers of the pod are not blamed for it.
    let pod = f.verify("web").await;
    let outcomes: Vec<_> = pod
        .containers
        .iter()
        .map(|c| (c.container.as_ref().unwrap().container.as_str(), c.outcome()))
        .collect();
    assert_eq!(outcomes[0], ("web", Outcome::Ok));
    assert_eq!((outcomes[1].1, pod.outcome()), (Outcome::Drift, Outcome::Drift));
    f.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn evidence_is_what_is_seen_inside() {
    let f = Fixture::start().await;
    f.pod("web", web(json!({"hostname": "evidence"}))).await;
    let done = f.created(request("web", "web")).await;
    let verification = done.verification.unwrap();
    let pid = verification.container.as_ref().unwrap().host_pid.to_string();
    let inside = |args: &[&str]| {
        let output =
            std::process::Command::new("nsenter").args(["-t", &pid]).args(args).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    for namespace in &verification.namespaces {
        use v1::evidence::Kind;
        match namespace.evidence.as_ref().and_then(|e| e.kind.as_ref()) {
            Some(Kind::Uts(uts)) => {
                assert_eq!(uts.hostname, inside(&["-u", "uname", "-n"]).trim().as_bytes());
            }
            Some(Kind::Net(net)) => {
                let links: Value =
                    serde_json::from_str(&inside(&["-n", "ip", "-j", "addr"])).unwrap();
                let links = links.as_array().unwrap();
                assert_eq!(net.interface_count as usize, links.len());
                for (ours, theirs) in net.interfaces.iter().zip(links) {
                    assert_eq!(ours.name, theirs["ifname"].as_str().unwrap().as_bytes());
                    let addresses = theirs["addr_info"].as_array().unwrap().iter();
                    let addresses: Vec<_> = addresses
                        .map(|a| format!("{}/{}", a["local"].as_str().unwrap(), a["prefixlen"]))
                        .collect();
                    assert_eq!(ours.addresses, addresses);
                }
                assert_ne!(net.cookie, 0);
            }
            Some(Kind::Pid(pids)) => {
                let reference =
                    verification.reference.as_ref().unwrap().container.as_ref().unwrap();
                assert_eq!((pids.reference_seen_from_container, reference.ns_pid), (1, 1));
                assert_eq!(
                    pids.container_seen_from_reference,
                    verification.container.as_ref().unwrap().ns_pid
                );
                let seen = inside(&["-p", "-m", "/podsonde", "--version"]);
                assert!(seen.starts_with("podsonde"), "{seen}");
            }
            Some(Kind::Ipc(ipc)) => assert_eq!(ipc.shared_memory_ids, Vec::<i32>::new()),
            None => {}
        }
    }
    let kinds = verification.namespaces.iter().filter(|n| n.evidence.is_some()).count();
    assert_eq!(kinds, 4, "{verification:#?}");
    f.end().await;
}
