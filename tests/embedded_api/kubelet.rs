//! What the kubelet makes of a pod's spec, and what it says about it.

use k8s_openapi::api::core::v1::Pod;
use podsonde::embedded::runtime::PidMode;
use serde_json::{Value, json};

use super::{
    JSON, STRATEGIC, cluster, curl,
    fake::Outcome::{Exit, Fail, Hang},
    phase, running, state, status, wait, waiting, web,
};

fn condition(pod: &Pod, kind: &str) -> String {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.filter(|c| c.type_ == kind).map(|c| c.status.clone()).collect()
}

async fn debug(cluster: &podsonde::embedded::Cluster, container: Value) {
    let path = "/api/v1/namespaces/default/pods/web/ephemeralcontainers";
    let patch = json!({ "spec": { "ephemeralContainers": [container] } });
    let (code, answer) = curl(cluster, "PATCH", path, STRATEGIC, &patch).await;
    assert_eq!(code, 200, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_start_in_their_order() {
    let (cluster, runtime) = cluster().await;
    let mut pod = web("web");
    let init = |name: &str| json!({ "name": name, "image": "busybox:1" });
    let mut sidecar = init("sidecar");
    sidecar["restartPolicy"] = "Always".into();
    pod["spec"]["initContainers"] = json!([init("first"), sidecar, init("second")]);
    runtime.plan("first", [Exit(0)]);
    cluster.create_pod(pod).await.unwrap();

    // The second one still runs.
    let pod = wait(&cluster, "web", |pod| running(pod, "second")).await;
    assert_eq!(runtime.order(), ["first", "sidecar", "second"]);
    assert_eq!(phase(&pod), "Pending");
    assert_eq!(waiting(&pod, "web"), "PodInitializing");
    assert_eq!(
        (condition(&pod, "Initialized"), condition(&pod, "Ready")),
        ("False".into(), "False".into())
    );
    assert!(running(&pod, "sidecar"));
    // Ephemeral ones do not wait for init containers.
    debug(
        &cluster,
        json!({ "name": "debug", "image": "busybox:1", "targetContainerName": "sidecar" }),
    )
    .await;
    wait(&cluster, "web", |pod| running(pod, "debug")).await;

    runtime.exit("second", 0);
    let pod = wait(&cluster, "web", |pod| condition(pod, "Ready") == "True").await;
    assert_eq!(phase(&pod), "Running");
    let ended = state(&pod, "second").terminated.unwrap();
    assert_eq!((ended.exit_code, ended.reason.as_deref()), (0, Some("Completed")));
    assert_eq!(ended.container_id, status(&pod, "second").unwrap().container_id);
    // A sidecar is restarted whatever its exit code.
    runtime.exit("sidecar", 0);
    wait(&cluster, "web", |pod| {
        running(pod, "sidecar") && status(pod, "sidecar").unwrap().restart_count == 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_init_container_ends_a_pod_that_never_restarts() {
    let (cluster, runtime) = cluster().await;
    let mut pod = web("web");
    pod["spec"]["restartPolicy"] = "Never".into();
    pod["spec"]["initContainers"] = json!([{ "name": "init", "image": "busybox:1" }]);
    runtime.plan("init", [Exit(2)]);
    cluster.create_pod(pod).await.unwrap();
    let pod = wait(&cluster, "web", |pod| phase(pod) == "Failed").await;
    assert_eq!(state(&pod, "init").terminated.unwrap().exit_code, 2);
    assert_eq!(runtime.order(), ["init"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_fails_is_tried_again() {
    let (cluster, runtime) = cluster().await;
    runtime.plan("web", [Fail("ErrImagePull"), Fail("ErrImagePull")]);
    cluster.create_pod(web("web")).await.unwrap();
    let mut seen = Vec::new();
    wait(&cluster, "web", |pod| {
        let reason = waiting(pod, "web");
        if seen.last() != Some(&reason) {
            seen.push(reason);
        }
        running(pod, "web")
    })
    .await;
    seen.retain(|reason| !reason.is_empty());
    // What is before the first pull may be over before anybody looks.
    if seen.first().is_some_and(|reason| reason == "ContainerCreating") {
        seen.remove(0);
    }
    assert_eq!(seen, ["ErrImagePull", "ImagePullBackOff", "ErrImagePull", "ImagePullBackOff"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn ephemeral_containers_that_do_not_start() {
    let (cluster, runtime) = cluster().await;
    cluster.create_pod(web("web")).await.unwrap();
    wait(&cluster, "web", |pod| running(pod, "web")).await;

    runtime.plan("broken", [Fail("RunContainerError")]);
    debug(&cluster, json!({ "name": "broken", "image": "busybox:1" })).await;
    let pod = wait(&cluster, "web", |pod| waiting(pod, "broken") == "RunContainerError").await;
    let status_of = |name: &str| status(&pod, name).unwrap().clone();
    let last = status_of("broken").last_state.unwrap().terminated.unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (128, Some("StartError")));
    assert_eq!(state(&pod, "broken").waiting.unwrap().message.unwrap(), "no broken today");

    runtime.plan("late", [Fail("CreateContainerError"), Fail("ErrImageNeverPull")]);
    debug(&cluster, json!({ "name": "late", "image": "busybox:1" })).await;
    wait(&cluster, "web", |pod| running(pod, "late")).await;
    runtime.plan("hangs", [Hang]);
    debug(&cluster, json!({ "name": "hangs", "image": "busybox:1" })).await;
    let pod = wait(&cluster, "web", |pod| status(pod, "hangs").is_some()).await;
    assert_eq!(waiting(&pod, "hangs"), "ContainerCreating");
    // Retries of the others went by, and none of this one.
    assert_eq!((runtime.starts("broken").len(), runtime.starts("late").len()), (1, 3));
    assert_eq!(condition(&pod, "Ready"), "True");

    // A pod that never restarts shows the end of it.
    let mut pod = web("once");
    pod["spec"]["restartPolicy"] = "Never".into();
    pod["spec"]["containers"][0]["name"] = "fails".into();
    runtime.plan("fails", [Fail("RunContainerError")]);
    cluster.create_pod(pod).await.unwrap();
    let pod = wait(&cluster, "once", |pod| phase(pod) == "Failed").await;
    assert_eq!(state(&pod, "fails").terminated.unwrap().reason.as_deref(), Some("StartError"));
}

#[tokio::test(flavor = "multi_thread")]
async fn restarts_follow_the_policy() {
    let (cluster, runtime) = cluster().await;
    runtime.plan("web", [Exit(1), Exit(1), Exit(1)]);
    cluster.create_pod(web("web")).await.unwrap();
    let pod = wait(&cluster, "web", |pod| waiting(pod, "web") == "CrashLoopBackOff").await;
    assert_eq!(phase(&pod), "Running");
    assert_eq!(
        status(&pod, "web").unwrap().last_state.clone().unwrap().terminated.unwrap().exit_code,
        1
    );
    wait(&cluster, "web", |pod| {
        running(pod, "web") && status(pod, "web").unwrap().restart_count == 3
    })
    .await;
    let attempts: Vec<u32> = runtime.starts("web").iter().map(|start| start.attempt).collect();
    assert_eq!(attempts, [0, 1, 2, 3]);

    let mut pod = web("job");
    pod["spec"]["restartPolicy"] = "OnFailure".into();
    pod["spec"]["containers"] = json!([
        { "name": "flaky", "image": "busybox:1" }, { "name": "slow", "image": "busybox:1" },
    ]);
    runtime.plan("flaky", [Exit(1), Exit(0)]);
    cluster.create_pod(pod).await.unwrap();
    let done = |pod: &Pod| state(pod, "flaky").terminated.is_some_and(|ended| ended.exit_code == 0);
    let pod = wait(&cluster, "job", done).await;
    assert_eq!(phase(&pod), "Running");
    runtime.exit("slow", 0);
    let pod = wait(&cluster, "job", |pod| phase(pod) == "Succeeded").await;
    assert_eq!(condition(&pod, "Ready"), "False");
    assert_eq!(runtime.removed(), [pod.metadata.uid.unwrap()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_pod_ends_before_it_goes() {
    let (cluster, _runtime) = cluster().await;
    cluster.create_pod(web("web")).await.unwrap();
    wait(&cluster, "web", |pod| running(pod, "web")).await;
    let (_, list) = super::get(&cluster, "/api/v1/pods").await;
    let version = list["metadata"]["resourceVersion"].as_str().unwrap();
    let path = "/api/v1/namespaces/default/pods/web";
    assert_eq!(curl(&cluster, "DELETE", path, "", &Value::Null).await.0, 200);
    super::within(cluster.wait_deleted("default", "web")).await;
    let url =
        format!("{}/api/v1/pods?watch=1&timeoutSeconds=1&resourceVersion={version}", cluster.url());
    let output = super::run("curl", vec!["--silent".into(), url]).await.stdout;
    let events: Vec<Value> = String::from_utf8(output)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let seen: Vec<(&str, &str)> = events
        .iter()
        .map(|event| {
            (event["type"].as_str().unwrap(), event["object"]["status"]["phase"].as_str().unwrap())
        })
        .collect();
    assert_eq!(seen, [("MODIFIED", "Running"), ("MODIFIED", "Failed"), ("DELETED", "Failed")]);
    let last = &events[2]["object"]["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(last["exitCode"], 137);
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_with_one_name_after_another() {
    let (cluster, runtime) = cluster().await;
    let first = cluster.create_pod(web("web")).await.unwrap().metadata.uid.unwrap();
    wait(&cluster, "web", |pod| running(pod, "web")).await;
    let path = "/api/v1/namespaces/default/pods/web";
    let wrong = json!({ "preconditions": { "uid": "other" } });
    assert_eq!(curl(&cluster, "DELETE", path, JSON, &wrong).await.0, 409);
    let (code, pod) = curl(&cluster, "DELETE", path, JSON, &json!({})).await;
    assert_eq!(code, 200);
    assert_eq!(pod["metadata"]["deletionGracePeriodSeconds"], 30);
    assert!(pod["metadata"]["deletionTimestamp"].is_string());
    super::within(cluster.wait_deleted("default", "web")).await;
    let second = cluster.create_pod(web("web")).await.unwrap().metadata.uid.unwrap();
    let pod = wait(&cluster, "web", |pod| running(pod, "web")).await;
    assert_eq!(pod.metadata.uid, Some(second));
    assert_eq!(runtime.removed(), [first]);
    // By force: gone at once, and the runtime hears of it.
    let (code, _) = curl(&cluster, "DELETE", path, JSON, &json!({ "gracePeriodSeconds": 0 })).await;
    assert_eq!(code, 200);
    assert_eq!(curl(&cluster, "GET", path, "", &Value::Null).await.0, 404);
    let third = cluster.create_pod(web("web")).await.unwrap();
    wait(&cluster, "web", |pod| running(pod, "web") && pod.metadata.uid == third.metadata.uid)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_a_container_is_told() {
    let (cluster, runtime) = cluster().await;
    let maps = "/api/v1/namespaces/default/configmaps";
    let map = json!({ "metadata": { "name": "settings" }, "data": { "COLOR": "red", "file.txt": "text" } });
    assert_eq!(curl(&cluster, "POST", maps, JSON, &map).await.0, 201);
    let field = |path: &str| json!({ "fieldRef": { "fieldPath": path } });
    let pod = json!({
        "metadata": { "name": "web", "labels": { "app": "web" } },
        "spec": {
            "nodeName": "node-a", "shareProcessNamespace": true,
            "securityContext": { "runAsUser": 1000, "runAsGroup": 2000, "seccompProfile": { "type": "RuntimeDefault" } },
            "volumes": [
                { "name": "empty", "emptyDir": {} },
                { "name": "map", "configMap": { "name": "settings", "items": [{ "key": "file.txt", "path": "a/b.txt" }] } },
                { "name": "about", "downwardAPI": { "items": [{ "path": "name", "fieldRef": { "fieldPath": "metadata.name" } }] } },
                { "name": "host", "hostPath": { "path": "/etc" } },
            ],
            "containers": [{
                "name": "web", "image": "registry:5000/nginx", "command": ["run", "$(COLOR)"], "args": ["$$(COLOR)", "$(NONE)"],
                "workingDir": "/srv", "tty": true, "stdin": true,
                "envFrom": [{ "configMapRef": { "name": "settings" } }],
                "env": [
                    { "name": "NAME", "valueFrom": field("metadata.name") },
                    { "name": "SPACE", "valueFrom": field("metadata.namespace") },
                    { "name": "APP", "valueFrom": field("metadata.labels['app']") },
                    { "name": "NODE", "valueFrom": field("spec.nodeName") },
                    { "name": "IP", "valueFrom": field("status.podIP") },
                    { "name": "HOST", "valueFrom": field("status.hostIP") },
                    { "name": "BOTH", "value": "$(NAME)-$(COLOR)" },
                    { "name": "KEY", "valueFrom": { "configMapKeyRef": { "name": "settings", "key": "COLOR" } } },
                ],
                "securityContext": { "runAsUser": 1001, "capabilities": { "drop": ["ALL"] } },
                "volumeMounts": [
                    { "name": "empty", "mountPath": "/tmp" }, { "name": "map", "mountPath": "/map", "readOnly": true },
                    { "name": "about", "mountPath": "/about" }, { "name": "host", "mountPath": "/host" },
                ],
            }],
        },
    });
    cluster.create_pod(pod).await.unwrap();
    let pod = wait(&cluster, "web", |pod| running(pod, "web")).await;
    let start = runtime.starts("web").remove(0);
    assert_eq!(start.pull_policy, "Always");
    assert_eq!(
        (start.command, start.args),
        (vec!["run".into(), "red".into()], vec!["$(COLOR)".into(), "$(NONE)".into()])
    );
    assert_eq!((start.working_dir.as_deref(), start.stdin, start.tty), (Some("/srv"), true, true));
    assert_eq!(start.pid, PidMode::Pod);
    let security = start.security;
    assert_eq!((security.run_as_user, security.run_as_group), (Some(1001), Some(2000)));
    assert_eq!(security.seccomp_profile.unwrap().type_, "RuntimeDefault");
    assert_eq!(security.capabilities.unwrap().drop.unwrap(), ["ALL"]);
    let env: Vec<String> =
        start.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(
        env,
        [
            "COLOR=red",
            "file.txt=text",
            "NAME=web",
            "SPACE=default",
            "APP=web",
            "NODE=node-a",
            "IP=10.0.0.7",
            "HOST=127.0.0.1",
            "BOTH=web-red",
            "KEY=red",
        ]
    );
    let mounts: Vec<(&str, bool)> =
        start.mounts.iter().map(|m| (m.container_path.to_str().unwrap(), m.read_only)).collect();
    assert_eq!(mounts, [("/tmp", false), ("/map", true), ("/about", false), ("/host", false)]);
    let host = |index: usize, file: &str| start.mounts[index].host_path.join(file);
    assert_eq!(std::fs::read_dir(host(0, "")).unwrap().count(), 0);
    assert_eq!(std::fs::read_to_string(host(1, "a/b.txt")).unwrap(), "text");
    assert_eq!(std::fs::read_to_string(host(2, "name")).unwrap(), "web");
    assert_eq!(host(3, ""), std::path::Path::new("/etc"));
    let uid = pod.metadata.uid.unwrap();
    let labels = ["container.name", "pod.name", "pod.namespace", "pod.uid"]
        .map(|key| start.labels[&format!("io.kubernetes.{key}")].clone());
    assert_eq!(labels, ["web", "web", "default", uid.as_str()]);

    // The namespace is shared already: a target makes no difference.
    debug(&cluster, json!({ "name": "debug", "image": "busybox:1", "targetContainerName": "web" }))
        .await;
    wait(&cluster, "web", |pod| running(pod, "debug")).await;
    assert_eq!(runtime.starts("debug")[0].pid, PidMode::Pod);
    let directory = host(0, "");
    super::within(cluster.shutdown()).await;
    assert!(!directory.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn pid_namespaces_and_configuration_errors() {
    let (cluster, runtime) = cluster().await;
    let mut host = web("host");
    host["spec"]["hostPID"] = true.into();
    host["spec"]["hostNetwork"] = true.into();
    cluster.create_pod(host).await.unwrap();
    let pod = wait(&cluster, "host", |pod| running(pod, "web")).await;
    assert_eq!(runtime.starts("web")[0].pid, PidMode::Node);
    let status = pod.status.unwrap();
    assert_eq!(status.pod_ip, status.host_ip);

    let broken = |name: &'static str, field: Value| {
        let mut pod = web(name);
        pod["spec"]["containers"][0]["name"] = name.into();
        pod["spec"]["containers"][0]
            .as_object_mut()
            .unwrap()
            .extend(field.as_object().unwrap().clone());
        pod
    };
    for (pod, name, message) in [
        (
            broken("root", json!({ "securityContext": { "runAsNonRoot": true, "runAsUser": 0 } })),
            "root",
            "container's runAsUser breaks non-root policy",
        ),
        (
            broken("map", json!({ "envFrom": [{ "configMapRef": { "name": "none" } }] })),
            "map",
            "configmap \"none\" not found",
        ),
    ] {
        cluster.create_pod(pod).await.unwrap();
        let pod =
            wait(&cluster, name, |pod| waiting(pod, name) == "CreateContainerConfigError").await;
        let told = state(&pod, name).waiting.unwrap().message.unwrap();
        assert!(told.starts_with(message), "{told}");
        assert!(runtime.starts(name).is_empty());
    }
}
