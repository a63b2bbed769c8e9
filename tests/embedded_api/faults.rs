//! Faults that a test can ask for, and what a client sees of them.

use std::{
    io::{BufRead, BufReader},
    pin::pin,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{ListParams, Patch, PatchParams, WatchEvent, WatchParams},
};
use podsonde::embedded::{ApiStatus, Cluster};
use serde_json::{Value, json};
use tokio::{net::TcpStream, task::spawn_blocking, time::timeout};

use super::{Fake, cluster, curl, get, run, running, wait, web, within};

fn api(error: kube::Error) -> (u16, String, String) {
    match error {
        kube::Error::Api(status) => (status.code, status.reason, status.message),
        other => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn chosen_requests_fail_as_often_as_wanted() {
    let (cluster, _runtime) = cluster().await;
    cluster.create_pod(web("web")).await.unwrap();
    let pods: Api<Pod> = Api::default_namespaced(cluster.client().unwrap());
    let debug = Patch::Strategic(
        json!({ "spec": { "ephemeralContainers": [{ "name": "d", "image": "busybox" }] } }),
    );
    let patch = async || {
        within(pods.patch_ephemeral_containers("web", &PatchParams::default(), &debug)).await
    };

    let webhook = ApiStatus::denied_by_webhook("policy.example.com", "no debugging on Fridays");
    let policy =
        ApiStatus::denied_by_policy("web", "podsonde", "podsonde-binding", "not your node");
    for (status, code, reason, message) in [
        (
            webhook,
            403,
            "Forbidden",
            "admission webhook \"policy.example.com\" denied the request: no debugging on Fridays",
        ),
        (
            policy,
            403,
            "Forbidden",
            "pods \"web\" is forbidden: ValidatingAdmissionPolicy 'podsonde' with binding 'podsonde-binding' denied \
             request: not your node",
        ),
        (
            ApiStatus::pod_conflict("web"),
            409,
            "Conflict",
            "Operation cannot be fulfilled on pods \"web\": the object has \
             been modified; please apply your changes to the latest version and try again",
        ),
        (ApiStatus::new(422, "Invalid", "no"), 422, "Invalid", "no"),
        (ApiStatus::new(500, "InternalError", "boom"), 500, "InternalError", "boom"),
    ] {
        cluster.faults().fail_next(1, "patch", "pods/ephemeralcontainers", status);
        within(pods.get("web")).await.unwrap();
        assert_eq!(api(patch().await.unwrap_err()), (code, reason.to_owned(), message.to_owned()));
    }
    patch().await.unwrap();

    cluster.faults().fail_next(2, "*", "pods", ApiStatus::too_many_requests(7));
    let arguments =
        ["--silent", "--include", &format!("{}/api/v1/pods", cluster.url())].map(str::to_owned);
    let answer = String::from_utf8(run("curl", arguments.to_vec()).await.stdout).unwrap();
    assert!(answer.starts_with("HTTP/1.1 429"), "{answer}");
    assert!(answer.contains("retry-after: 7\r\n"), "{answer}");
    assert_eq!(get(&cluster, "/api/v1/pods").await.0, 429);
    assert_eq!(get(&cluster, "/api/v1/pods").await.0, 200);

    cluster.faults().fail_next(
        9,
        "watch",
        "pods",
        ApiStatus::new(410, "Expired", "too old resource version: 1 (2)"),
    );
    let mut events = pin!(within(pods.watch(&WatchParams::default(), "0")).await.unwrap());
    let WatchEvent::Error(status) = within(events.next()).await.unwrap().unwrap() else {
        panic!("no error")
    };
    assert_eq!((status.code, status.message.as_str()), (410, "too old resource version: 1 (2)"));
    cluster.faults().clear();
    assert_eq!(get(&cluster, "/api/v1/pods?watch=1&timeoutSeconds=1").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_down_comes_back() {
    let (cluster, _runtime) = cluster().await;
    let address = cluster.url().strip_prefix("http://").unwrap().to_owned();
    let pods: Api<Pod> = Api::default_namespaced(cluster.client().unwrap());
    for _ in 0..3 {
        let mut events = pin!(within(pods.watch(&WatchParams::default(), "0")).await.unwrap());
        cluster.faults().refuse_connections().await;
        assert!(within(events.next()).await.is_none_or(|event| event.is_err()), "the watch breaks");
        let error = within(TcpStream::connect(&address)).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
        // The kubelet goes on.
        within(pods.list(&ListParams::default())).await.unwrap_err();
        cluster.faults().up().await.unwrap();
        within(pods.list(&ListParams::default())).await.unwrap();
    }
    cluster.create_pod(web("web")).await.unwrap();
    wait(&cluster, "web", |pod| running(pod, "web")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_goes_on() {
    let (cluster, _runtime) = cluster().await;
    let pods: Api<Pod> = Api::default_namespaced(cluster.client().unwrap());
    let mut events = pin!(within(pods.watch(&WatchParams::default(), "0")).await.unwrap());
    cluster.faults().hang();
    cluster.create_pod(web("web")).await.unwrap();
    wait(&cluster, "web", |pod| running(pod, "web")).await;
    let list = tokio::spawn({
        let pods = pods.clone();
        async move { pods.list(&ListParams::default()).await }
    });
    // Nothing can be awaited that shows that nothing comes.
    assert!(timeout(Duration::from_millis(200), events.next()).await.is_err());
    assert!(!list.is_finished());
    cluster.faults().up().await.unwrap();
    assert_eq!(within(list).await.unwrap().unwrap().items.len(), 1);
    assert!(matches!(within(events.next()).await, Some(Ok(WatchEvent::Added(_)))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_server_is_slow() {
    let (cluster, _runtime) = cluster().await;
    cluster.faults().delay(Duration::from_secs(3600));
    let pods: Api<Pod> = Api::default_namespaced(cluster.client().unwrap());
    assert!(timeout(Duration::from_millis(200), pods.list(&ListParams::default())).await.is_err());
    cluster.faults().delay(Duration::ZERO);
    within(pods.list(&ListParams::default())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_break_without_an_end() {
    let (cluster, _runtime) = cluster().await;
    cluster.create_pod(web("web")).await.unwrap();
    let url = format!("{}/api/v1/pods?watch=true", cluster.url());
    let mut curl = Command::new("curl")
        .args(["--silent", "--no-buffer", &url])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(curl.stdout.take().unwrap()).lines();
    let first = within(spawn_blocking(move || lines.next())).await.unwrap().unwrap().unwrap();
    assert!(first.starts_with("{\"object\":{\"apiVersion\":\"v1\",\"kind\":\"Pod\""), "{first}");
    cluster.faults().break_watches();
    // 18: "a file was only partially transferred".
    let status = within(spawn_blocking(move || curl.wait())).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(18));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_of_a_cluster() {
    // In good order.
    let (cluster, runtime) = cluster().await;
    let address = cluster.url().strip_prefix("http://").unwrap().to_owned();
    cluster.create_pod(web("web")).await.unwrap();
    let pod = wait(&cluster, "web", |pod| running(pod, "web")).await;
    within(cluster.shutdown()).await;
    assert_eq!(runtime.removed(), [pod.metadata.uid.unwrap()]);
    assert_eq!(Arc::strong_count(&runtime), 1);
    within(TcpStream::connect(&address)).await.unwrap_err();

    // Just dropped: its tasks hold the runtime no longer than until they run next.
    let runtime = Arc::new(Fake::default());
    let cluster = Cluster::builder().node("node-a", runtime.clone()).start().await.unwrap();
    cluster.create_pod(web("web")).await.unwrap();
    wait(&cluster, "web", |pod| running(pod, "web")).await;
    let (code, _) = curl(&cluster, "GET", "/healthz", "", &Value::Null).await;
    assert_eq!(code, 200);
    drop(cluster);
    within(async {
        while Arc::strong_count(&runtime) > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
