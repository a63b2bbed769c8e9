//! Two pods claim one identity. Everything that a pod's author can write about their pod is a
//! claim: container ids in the status, annotations, names. None of it may lead to another pod's
//! processes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command},
};

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, Patch, PatchParams};
use podsonde::proto::v1::{self, FileTarget, Outcome, capture_client::CaptureClient};
use serde_json::{Value, json};
use tonic::{Code, Status};

use crate::{
    fixture::{Fixture, NODE, pod_ref, reason, within},
    support::{Inside, client, read, sleep, target},
};

const SECRET: &[u8] = b"of the victim";

/// A pod that has run to its end, so that no kubelet writes its status any more, with an ephemeral
/// container whose name the test uses.
async fn finished(f: &Fixture, name: &str, annotations: Value) {
    let spec = json!({
        "nodeName": NODE, "restartPolicy": "Never",
        "containers": [{"name": "app", "image": "podsonde.dev/test/exit0"}],
    });
    let metadata = json!({"name": name, "namespace": "default", "annotations": annotations});
    f.cluster.create_pod(json!({"metadata": metadata, "spec": spec})).await.unwrap();
    f.wait(name, |pod| pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Succeeded"))
        .await;
}

fn pods(f: &Fixture) -> Api<Pod> {
    Api::namespaced(f.cluster.client().unwrap(), "default")
}

/// Writes into the pod's status that its containers run and have this id, as anybody can who may
/// `update pods/status` in their own namespace.
async fn claim(f: &Fixture, pod: &str, container_id: &str) {
    let status = |name: &str| {
        json!({
            "name": name, "ready": true, "restartCount": 0, "image": "i", "imageID": "i",
            "containerID": container_id, "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
        })
    };
    let forged = json!({"status": {
        "phase": "Running",
        "containerStatuses": [status("app")],
        "ephemeralContainerStatuses": [status("debug")],
    }});
    let patch = Patch::Strategic(&forged);
    pods(f).patch_status(pod, &PatchParams::default(), &patch).await.unwrap();
    within("the agent sees the forged status", async {
        while f.verify(pod).await.containers.is_empty() {}
    })
    .await;
}

fn not_found(what: &str, status: &Status) {
    let found = (status.code(), reason(status).0);
    assert_eq!(
        found,
        (Code::FailedPrecondition, "PROCESS_NOT_FOUND".to_owned()),
        "{what}: {status:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_container_id_leads_nowhere() {
    let f = Fixture::start().await;
    let victim = Inside::start(&f, "victim", sleep(json!({}))).await;
    victim.write("/root/secret", SECRET);
    finished(&f, "attacker", json!({})).await;
    let debug = json!({"spec": {"ephemeralContainers": [{"name": "debug", "image": "busybox"}]}});
    pods(&f)
        .patch_subresource(
            "ephemeralcontainers",
            "attacker",
            &PatchParams::default(),
            &Patch::Strategic(&debug),
        )
        .await
        .unwrap();
    let status = pods(&f).get("victim").await.unwrap().status.unwrap();
    let id = status.container_statuses.unwrap().remove(0).container_id.unwrap();
    claim(&f, "attacker", &id).await;

    // The order of the attack: once the victim is known, and once the attacker was verified first.
    for round in ["first", "second"] {
        let theirs = f.verify("victim").await.containers.remove(0);
        assert_eq!(theirs.outcome(), Outcome::Ok, "{round}: {theirs:?}");
        assert_eq!(theirs.container.as_ref().unwrap().host_pid, victim.pid);
        for forged in f.verify("attacker").await.containers {
            assert_eq!(forged.outcome(), Outcome::Unknown, "{round}: {forged:?}");
            assert_eq!(forged.reason, "PROCESS_NOT_FOUND", "{round}: {forged:?}");
            assert!(forged.namespaces.is_empty(), "{forged:?}");
        }
        for container in ["app", "debug"] {
            for view in [v1::RootView::Container, v1::RootView::Proc1Root] {
                let target = FileTarget {
                    container: container.into(),
                    view: view.into(),
                    as_root: true,
                    ..target("attacker").unwrap()
                };
                let request = v1::FilesReadRequest {
                    target: Some(target.clone()),
                    path: b"/root/secret".into(),
                    ..Default::default()
                };
                not_found("read", &read(&f, request).await.unwrap_err());
                let request = v1::FilesListRequest {
                    target: Some(target),
                    path: b"/".into(),
                    ..Default::default()
                };
                not_found("list", &client(&f).list(request).await.unwrap_err());
            }
            let request = v1::CaptureStartRequest {
                pod: pod_ref("attacker"),
                container: container.into(),
                ..Default::default()
            };
            let started = CaptureClient::new(f.channel()).start(request).await;
            let refused = match started {
                Err(status) => status,
                Ok(stream) => stream.into_inner().message().await.unwrap_err(),
            };
            not_found("capture", &refused);
        }
        let request = v1::DebugEndRequest {
            pod: pod_ref("attacker"),
            session: "debug".into(),
            grace_period: Some(prost_types::Duration::default()),
        };
        not_found("end", &f.debug().end(request).await.unwrap_err());
    }
    assert_eq!(fs::read(victim.path("/root/secret")).unwrap(), SECRET, "the victim lives");
    f.end().await;
}

/// A process in the cgroup of a static pod, as a kubelet would have made it.
struct StaticPod {
    process: Child,
    cgroup: PathBuf,
}

impl StaticPod {
    fn start(hash: &str, id: &str) -> Self {
        let v1 = Path::new("/sys/fs/cgroup/pids");
        let root = if v1.exists() { v1 } else { Path::new("/sys/fs/cgroup") };
        let cgroup = root.join(format!("kubepods-of-{}", &hash[..8])).join(format!("pod{hash}"));
        let cgroup = cgroup.join(id);
        fs::create_dir_all(&cgroup).unwrap();
        let script = format!("echo $$ > {}/cgroup.procs; exec sleep 600", cgroup.display());
        let process = Command::new("unshare")
            .args(["--mount", "--net", "--uts", "--ipc", "sh", "-c", &script])
            .spawn()
            .unwrap();
        let procs = cgroup.join("cgroup.procs");
        while fs::read_to_string(&procs).unwrap().is_empty() {
            std::thread::yield_now();
        }
        Self { process, cgroup }
    }
}

impl Drop for StaticPod {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        for directory in self.cgroup.ancestors().take(3) {
            let _ = fs::remove_dir(directory);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_static_hash_makes_both_pods_unknown() {
    let f = Fixture::start().await;
    let random = uuid::Uuid::new_v4().simple().to_string();
    let (hash, id) = (random.clone(), random.repeat(2));
    let process = StaticPod::start(&hash, &id);
    let id = format!("containerd://{id}");
    let mirror = json!({"kubernetes.io/config.mirror": hash});
    finished(&f, "etcd", mirror.clone()).await;
    claim(&f, "etcd", &id).await;
    let alone = f.verify("etcd").await.containers.remove(0);
    assert_eq!(alone.container.unwrap().host_pid, process.process.id());

    finished(&f, "copy", mirror).await;
    claim(&f, "copy", &id).await;
    for pod in ["etcd", "copy"] {
        let contested = f.verify(pod).await.containers.remove(0);
        assert_eq!(contested.outcome(), Outcome::Unknown, "{contested:?}");
        assert_eq!(contested.reason, "PROCESS_NOT_FOUND", "{contested:?}");
        assert!(contested.message.contains("config.mirror"), "{contested:?}");
    }
    // The real one is itself again once the copy is gone.
    pods(&f).delete("copy", &Default::default()).await.unwrap();
    within("the copy is gone", async {
        loop {
            let again = f.verify("etcd").await.containers.remove(0);
            if again.outcome() != Outcome::Unknown {
                break assert_eq!(again.container.unwrap().host_pid, process.process.id());
            }
        }
    })
    .await;
    f.end().await;
}
