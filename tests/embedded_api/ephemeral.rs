//! The rules of `pods/ephemeralcontainers`, and what the server says when they are broken.
//!
//! The expected texts are those of Kubernetes 1.34 and later (`pkg/apis/core/validation`).

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, Patch, PatchParams};
use podsonde::embedded::Cluster;
use serde_json::{Value, json};

use super::{
    JSON, JSON_PATCH, MERGE, STRATEGIC, cluster, curl, get, phase, running, state, status, wait,
    web, within,
};

const PATH: &str = "/api/v1/namespaces/default/pods/web/ephemeralcontainers";

async fn patch(cluster: &Cluster, media_type: &str, body: &Value) -> (u16, Value) {
    curl(cluster, "PATCH", PATH, media_type, body).await
}

async fn add(cluster: &Cluster, container: Value) -> (u16, Value) {
    patch(cluster, STRATEGIC, &json!({ "spec": { "ephemeralContainers": [container] } })).await
}

fn busybox(name: &str) -> Value {
    json!({ "name": name, "image": "busybox:1.36" })
}

fn names(pod: &Value) -> Vec<&str> {
    let containers = pod["spec"]["ephemeralContainers"].as_array().unwrap();
    containers.iter().map(|c| c["name"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_broken_rule_is_named() {
    let (cluster, _runtime) = cluster().await;
    let mut pod = web("web");
    pod["spec"]["initContainers"] =
        json!([{ "name": "setup", "image": "busybox", "restartPolicy": "Always" }]);
    pod["spec"]["volumes"] = json!([{ "name": "data", "emptyDir": {} }]);
    cluster.create_pod(pod).await.unwrap();
    let (code, before) = get(&cluster, PATH).await;
    assert_eq!(code, 200);

    const NOT_ALLOWED: &str = "Forbidden: cannot be set for an Ephemeral Container";
    let probe = json!({ "exec": { "command": ["true"] } });
    let long = "a".repeat(64);
    let with = |fields: Value| {
        let mut container = busybox("debug");
        container.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        container
    };
    let cases: Vec<(Value, &str, &str, &str)> = vec![
        (
            with(json!({ "ports": [{ "containerPort": 80 }] })),
            "ports",
            "FieldValueForbidden",
            NOT_ALLOWED,
        ),
        (
            with(json!({ "resources": { "limits": { "cpu": "1" } } })),
            "resources",
            "FieldValueForbidden",
            NOT_ALLOWED,
        ),
        (
            with(
                json!({ "resizePolicy": [{ "resourceName": "cpu", "restartPolicy": "NotRequired" }] }),
            ),
            "resizePolicy",
            "FieldValueForbidden",
            NOT_ALLOWED,
        ),
        (
            with(json!({ "restartPolicy": "Always" })),
            "restartPolicy",
            "FieldValueForbidden",
            NOT_ALLOWED,
        ),
        (
            with(json!({ "restartPolicyRules": [{ "action": "Restart" }] })),
            "restartPolicyRules",
            "FieldValueForbidden",
            NOT_ALLOWED,
        ),
        (
            with(json!({ "livenessProbe": probe })),
            "livenessProbe",
            "FieldValueForbidden",
            NOT_ALLOWED,
        ),
        (
            with(json!({ "readinessProbe": probe })),
            "readinessProbe",
            "FieldValueForbidden",
            NOT_ALLOWED,
        ),
        (
            with(json!({ "startupProbe": probe })),
            "startupProbe",
            "FieldValueForbidden",
            NOT_ALLOWED,
        ),
        (
            with(json!({ "lifecycle": { "preStop": probe } })),
            "lifecycle",
            "FieldValueForbidden",
            NOT_ALLOWED,
        ),
        (
            with(
                json!({ "volumeMounts": [{ "name": "data", "mountPath": "/d", "subPath": "x" }] }),
            ),
            "volumeMounts[0].subPath",
            "FieldValueForbidden",
            NOT_ALLOWED,
        ),
        (
            with(
                json!({ "volumeMounts": [{ "name": "data", "mountPath": "/d", "subPathExpr": "x" }] }),
            ),
            "volumeMounts[0].subPathExpr",
            "FieldValueForbidden",
            NOT_ALLOWED,
        ),
        (
            with(json!({ "volumeMounts": [{ "name": "none", "mountPath": "/d" }] })),
            "volumeMounts[0].name",
            "FieldValueNotFound",
            "Not found: \"none\"",
        ),
        (json!({ "name": "debug" }), "image", "FieldValueRequired", "Required value"),
        (
            json!({ "name": "debug", "image": "busybox " }),
            "image",
            "FieldValueInvalid",
            "Invalid value: \"busybox \": must not have leading or trailing whitespace",
        ),
        (busybox("web"), "name", "FieldValueDuplicate", "Duplicate value: \"web\""),
        (busybox("setup"), "name", "FieldValueDuplicate", "Duplicate value: \"setup\""),
        (
            busybox("a.b"),
            "name",
            "FieldValueInvalid",
            "Invalid value: \"a.b\": must not contain dots",
        ),
        (
            busybox("Debug"),
            "name",
            "FieldValueInvalid",
            "Invalid value: \"Debug\": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or \
             '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for \
             validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
        ),
        (
            with(json!({ "targetContainerName": "nobody" })),
            "targetContainerName",
            "FieldValueNotFound",
            "Not found: \"nobody\"",
        ),
        (
            with(json!({ "imagePullPolicy": "Sometimes" })),
            "imagePullPolicy",
            "FieldValueNotSupported",
            "Unsupported value: \"Sometimes\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
        ),
    ];
    for (container, field, reason, message) in cases {
        let name = container["name"].as_str().unwrap().to_owned();
        let (code, answer) = add(&cluster, container).await;
        assert_eq!(code, 422, "{field}: {answer}");
        let path = format!("spec.ephemeralContainers[0].{field}");
        let cause = json!({ "reason": reason, "message": message, "field": path });
        let details = json!({ "kind": "Pod", "name": "web", "causes": [cause] });
        let expected = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "Invalid",
            "message": format!("Pod \"web\" is invalid: {path}: {message}"), "details": details, "code": 422,
        });
        assert_eq!(answer, expected, "{name} {field}");
    }
    let (code, answer) = add(&cluster, busybox(&long)).await;
    let expected = format!("Invalid value: \"{long}\": must be no more than 63 bytes");
    assert_eq!((code, &answer["details"]["causes"][0]["message"]), (422, &json!(expected)));
    // Several at once are all named.
    let (code, answer) =
        add(&cluster, with(json!({ "targetContainerName": "x", "lifecycle": {} }))).await;
    assert_eq!((code, answer["details"]["causes"].as_array().unwrap().len()), (422, 2));
    assert_eq!(
        answer["message"],
        "Pod \"web\" is invalid: [spec.ephemeralContainers[0].targetContainerName: Not found: \"x\", \
         spec.ephemeralContainers[0].lifecycle: Forbidden: cannot be set for an Ephemeral Container]"
    );
    // Nothing of all that left a trace.
    let (_, after) = get(&cluster, PATH).await;
    assert_eq!(after["spec"], before["spec"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_allowed_is_accepted() {
    let (cluster, _runtime) = cluster().await;
    let mut pod = web("web");
    pod["spec"]["volumes"] = json!([{ "name": "data", "emptyDir": {} }]);
    cluster.create_pod(pod).await.unwrap();
    let full = json!({
        "name": "debug", "image": "busybox", "command": ["sh"], "args": ["-c", "true"], "workingDir": "/",
        "envFrom": [{ "configMapRef": { "name": "none", "optional": true } }], "env": [{ "name": "A", "value": "b" }],
        "volumeMounts": [{ "name": "data", "mountPath": "/data" }], "terminationMessagePath": "/x",
        "terminationMessagePolicy": "FallbackToLogsOnError", "imagePullPolicy": "Never",
        "securityContext": { "privileged": true }, "stdin": true, "stdinOnce": true, "tty": true,
        "targetContainerName": "web",
    });
    let (code, pod) = add(&cluster, full.clone()).await;
    assert_eq!(code, 200, "{pod}");
    let stored = &pod["spec"]["ephemeralContainers"][0];
    for (field, value) in full.as_object().unwrap() {
        assert_eq!(&stored[field], value, "{field}");
    }
    let (_, pod) = add(&cluster, json!({ "name": "plain", "image": "busybox" })).await;
    let plain = pod["spec"]["ephemeralContainers"]
        .as_array()
        .unwrap()
        .iter()
        .find(|c| c["name"] == "plain");
    let expected = json!({
        "name": "plain", "image": "busybox", "imagePullPolicy": "Always", "resources": {},
        "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
    });
    assert_eq!(plain, Some(&expected));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_patch_merges_as_it_should() {
    let (cluster, _runtime) = cluster().await;
    cluster.create_pod(web("web")).await.unwrap();
    // A real server puts what a strategic patch adds first.
    add(&cluster, busybox("a")).await;
    let (code, pod) = add(&cluster, busybox("b")).await;
    assert_eq!((code, names(&pod)), (200, vec!["b", "a"]));
    let ordered = json!({ "spec": {
        "$setElementOrder/ephemeralContainers": [{ "name": "b" }, { "name": "a" }, { "name": "c" }],
        "ephemeralContainers": [busybox("c")],
    } });
    let (code, pod) = patch(&cluster, STRATEGIC, &ordered).await;
    assert_eq!((code, names(&pod)), (200, vec!["b", "a", "c"]));

    // A merge patch replaces the list.
    let (code, answer) =
        patch(&cluster, MERGE, &json!({ "spec": { "ephemeralContainers": [busybox("d")] } })).await;
    assert_eq!(code, 422);
    let causes = answer["details"]["causes"].as_array().unwrap();
    let messages: Vec<&str> =
        causes.iter().map(|cause| cause["message"].as_str().unwrap()).collect();
    let removed = |name: &str| {
        format!("Forbidden: existing ephemeral containers {name:?} may not be removed\n")
    };
    assert_eq!(messages, [removed("b"), removed("a"), removed("c")]);
    assert!(causes.iter().all(|cause| cause["field"] == "spec.ephemeralContainers"));
    let all: Vec<Value> = ["b", "a", "c", "d"].map(busybox).into();
    let (code, pod) =
        patch(&cluster, MERGE, &json!({ "spec": { "ephemeralContainers": all } })).await;
    assert_eq!((code, names(&pod)), (200, vec!["b", "a", "c", "d"]));

    let append =
        json!([{ "op": "add", "path": "/spec/ephemeralContainers/-", "value": busybox("e") }]);
    let (code, mut pod) = patch(&cluster, JSON_PATCH, &append).await;
    assert_eq!((code, names(&pod)), (200, vec!["b", "a", "c", "d", "e"]));
    let failing = json!([{ "op": "test", "path": "/metadata/name", "value": "other" }]);
    let (code, answer) = patch(&cluster, JSON_PATCH, &failing).await;
    assert_eq!((code, &answer["reason"]), (422, &json!("Invalid")));

    pod["spec"]["ephemeralContainers"].as_array_mut().unwrap().push(busybox("f"));
    // Everything else is ignored.
    pod["spec"]["containers"][0]["image"] = "other".into();
    pod["metadata"]["labels"]["new"] = "label".into();
    pod["status"] = json!({ "phase": "Failed" });
    // The kubelet may have changed the status meanwhile, which is no conflict of ours.
    pod["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    let (code, pod) = curl(&cluster, "PUT", PATH, JSON, &pod).await;
    assert_eq!((code, names(&pod)), (200, vec!["b", "a", "c", "d", "e", "f"]), "{pod}");
    assert_eq!(pod["spec"]["containers"][0]["image"], "nginx:1.27");
    assert_eq!(pod["metadata"]["labels"], json!({ "app": "web" }));
    assert_ne!(pod["status"]["phase"], "Failed");

    let (code, answer) = patch(&cluster, "text/plain", &json!({})).await;
    assert_eq!((code, &answer["reason"]), (415, &json!("UnsupportedMediaType")));
    let (code, answer) = patch(&cluster, STRATEGIC, &json!([])).await;
    assert_eq!((code, &answer["reason"]), (400, &json!("BadRequest")));
    let nameless = json!({ "spec": { "ephemeralContainers": [{ "image": "x" }] } });
    let (code, answer) = patch(&cluster, STRATEGIC, &nameless).await;
    assert_eq!(code, 400, "{answer}");
    assert!(
        answer["message"].as_str().unwrap().contains("does not contain declared merge key: name")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_stays_as_it_is() {
    let (cluster, runtime) = cluster().await;
    cluster.create_pod(web("web")).await.unwrap();
    add(&cluster, busybox("debug")).await;
    wait(&cluster, "web", |pod| running(pod, "debug")).await;

    let (_, before) = get(&cluster, PATH).await;
    let (code, after) = add(&cluster, busybox("debug")).await;
    assert_eq!(
        (code, &after),
        (200, &before),
        "a repetition changes nothing, not even the version"
    );
    assert_eq!(runtime.starts("debug").len(), 1);

    let mut changed = busybox("debug");
    changed["image"] = "other".into();
    let (code, answer) = add(&cluster, changed).await;
    let message = answer["message"].as_str().unwrap();
    assert_eq!(code, 422);
    let expected = "spec.ephemeralContainers: Forbidden: existing ephemeral containers \"debug\" may not be changed\n";
    assert!(message.contains(expected), "{message}");
    let gone =
        json!({ "spec": { "ephemeralContainers": [{ "$patch": "delete", "name": "debug" }] } });
    let (code, answer) = patch(&cluster, STRATEGIC, &gone).await;
    assert_eq!(code, 422, "{answer}");
    // The way around the subresource is closed, too.
    let path = "/api/v1/namespaces/default/pods/web";
    let sneaky = json!({ "spec": { "ephemeralContainers": [busybox("sneaky")] } });
    let (code, answer) = curl(&cluster, "PATCH", path, STRATEGIC, &sneaky).await;
    assert_eq!(code, 422);
    assert!(
        answer["message"]
            .as_str()
            .unwrap()
            .contains("pod updates may not change fields other than")
    );

    // Preconditions: the version, and the uid.
    let stale = json!({ "metadata": { "resourceVersion": "1" }, "spec": { "ephemeralContainers": [busybox("x")] } });
    let (code, answer) = patch(&cluster, STRATEGIC, &stale).await;
    assert_eq!((code, &answer["reason"]), (409, &json!("Conflict")));
    assert_eq!(
        answer["message"],
        "Operation cannot be fulfilled on pods \"web\": the object has been modified; please apply your changes to the \
         latest version and try again"
    );
    let other = json!({ "metadata": { "uid": "other" }, "spec": { "ephemeralContainers": [busybox("x")] } });
    let (code, answer) = patch(&cluster, STRATEGIC, &other).await;
    assert_eq!((code, &answer["details"]["causes"][0]["field"]), (422, &json!("metadata.uid")));
    let (code, answer) =
        patch(&cluster, STRATEGIC, &json!({ "metadata": { "name": "other" } })).await;
    assert_eq!(code, 400, "{answer}");

    // A trial leaves nothing behind.
    let trial = json!({ "spec": { "ephemeralContainers": [busybox("trial")] } });
    let (code, pod) =
        curl(&cluster, "PATCH", &format!("{PATH}?dryRun=All"), STRATEGIC, &trial).await;
    assert_eq!((code, names(&pod)), (200, vec!["trial", "debug"]));
    let (_, pod) = get(&cluster, PATH).await;
    assert_eq!(names(&pod), ["debug"]);

    let missing = PATH.replace("/web/", "/none/");
    let (code, answer) = curl(&cluster, "PATCH", &missing, STRATEGIC, &trial).await;
    assert_eq!((code, &answer["message"]), (404, &json!("pods \"none\" not found")));
    assert_eq!(answer["details"], json!({ "kind": "pods", "name": "none" }));
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_can_run_nothing_more() {
    let (cluster, runtime) = cluster().await;
    let mut pod = web("web");
    pod["metadata"]["annotations"] = json!({ "kubernetes.io/config.mirror": "x" });
    cluster.create_pod(pod).await.unwrap();
    let (code, answer) = add(&cluster, busybox("debug")).await;
    assert_eq!(code, 422);
    assert_eq!(
        answer["details"]["causes"][0]["message"],
        "Forbidden: static pods do not support ephemeral containers"
    );

    // Finished: accepted, and never started.
    let mut pod = web("done");
    pod["spec"]["restartPolicy"] = "Never".into();
    pod["spec"]["containers"][0]["name"] = "once".into();
    cluster.create_pod(pod).await.unwrap();
    wait(&cluster, "done", |pod| running(pod, "once")).await;
    runtime.exit("once", 0);
    wait(&cluster, "done", |pod| phase(pod) == "Succeeded").await;
    let pods: Api<Pod> = Api::default_namespaced(cluster.client().unwrap());
    let late = Patch::Strategic(json!({ "spec": { "ephemeralContainers": [busybox("late")] } }));
    let pod = within(pods.patch_ephemeral_containers("done", &PatchParams::default(), &late))
        .await
        .unwrap();
    assert_eq!(pod.spec.unwrap().ephemeral_containers.unwrap().len(), 1);
    // Whatever comes of it would have come before the end of the pod's deletion.
    within(pods.delete("done", &Default::default())).await.unwrap();
    assert!(runtime.starts("late").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_has_not_started_is_waited_for() {
    let (cluster, runtime) = cluster().await;
    runtime.plan(
        "web",
        [super::fake::Outcome::Fail("ErrImagePull"), super::fake::Outcome::Fail("ErrImagePull")],
    );
    cluster.create_pod(web("web")).await.unwrap();
    wait(&cluster, "web", |pod| super::waiting(pod, "web") == "ErrImagePull").await;
    let mut debug = busybox("debug");
    debug["targetContainerName"] = "web".into();
    add(&cluster, debug).await;
    let pod =
        wait(&cluster, "web", |pod| super::waiting(pod, "debug") == "CreateContainerConfigError")
            .await;
    let message = state(&pod, "debug").waiting.unwrap().message.unwrap();
    assert_eq!(message, "unable to find target container web");
    let pod = wait(&cluster, "web", |pod| running(pod, "debug")).await;
    assert_eq!(status(&pod, "debug").unwrap().restart_count, 0);
}
