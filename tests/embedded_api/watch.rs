//! Lists and watches: versions, selectors, pages, bookmarks, and what is too old.

use std::{collections::HashMap, pin::pin};

use futures::{Stream, StreamExt};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Event, Pod},
};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
    runtime::watcher,
};
use podsonde::embedded::Cluster;
use serde_json::{Value, json};

use super::{JSON, MERGE, cluster, curl, get, phase, run, running, wait, web, within};

/// The lines of a watch that ends by itself.
async fn watch(cluster: &Cluster, query: &str) -> Vec<Value> {
    let url = format!("{}/api/v1/pods?watch=true&{query}", cluster.url());
    let output = run("curl", vec!["--silent".into(), url]).await;
    let lines = String::from_utf8(output.stdout).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn kinds(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["type"].as_str().unwrap()).collect()
}

async fn next<T: Clone>(
    events: &mut (impl Stream<Item = kube::Result<WatchEvent<T>>> + Unpin),
) -> WatchEvent<T> {
    within(events.next()).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_tells_what_came_after_its_version() {
    let (cluster, _runtime) = cluster().await;
    let pods: Api<Pod> = Api::default_namespaced(cluster.client().unwrap());
    let list = within(pods.list(&ListParams::default())).await.unwrap();
    let version = list.metadata.resource_version.unwrap();

    let mut unscheduled = web("a");
    unscheduled["spec"]["nodeName"] = Value::Null;
    unscheduled["spec"]["schedulerName"] = "mine".into();
    cluster.create_pod(unscheduled).await.unwrap();
    let path = "/api/v1/namespaces/default/pods/a";
    for step in ["one", "two"] {
        let patch = json!({ "metadata": { "labels": { "step": step } } });
        assert_eq!(curl(&cluster, "PATCH", path, MERGE, &patch).await.0, 200);
    }
    within(pods.delete("a", &DeleteParams::default())).await.unwrap();

    // From a version: everything since, as it was then.
    let events = watch(&cluster, &format!("resourceVersion={version}&timeoutSeconds=1")).await;
    assert_eq!(kinds(&events), ["ADDED", "MODIFIED", "MODIFIED", "DELETED"]);
    let steps: Vec<&Value> =
        events.iter().map(|event| &event["object"]["metadata"]["labels"]["step"]).collect();
    assert_eq!(steps, [&Value::Null, &json!("one"), &json!("two"), &json!("two")]);
    let versions: Vec<u64> = events
        .iter()
        .map(|event| {
            event["object"]["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
        })
        .collect();
    assert!(versions.is_sorted() && versions[0] > version.parse().unwrap(), "{versions:?}");
    // From one of those: only what came after it.
    let events =
        watch(&cluster, &format!("resourceVersion={}&timeoutSeconds=1", versions[1])).await;
    assert_eq!(kinds(&events), ["MODIFIED", "DELETED"]);
    // A selector sees objects come and go that merely change.
    let events = watch(
        &cluster,
        &format!("resourceVersion={version}&timeoutSeconds=1&labelSelector=step%3Done"),
    )
    .await;
    assert_eq!(kinds(&events), ["ADDED", "DELETED"]);
    assert_eq!(events[1]["object"]["metadata"]["labels"]["step"], "one");
    assert_eq!(events[1]["object"]["metadata"]["resourceVersion"], versions[2].to_string());
    let events = watch(
        &cluster,
        &format!("resourceVersion={version}&timeoutSeconds=1&fieldSelector=spec.nodeName%3Dnode-a"),
    )
    .await;
    assert_eq!(kinds(&events), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_sees_its_own_pods() {
    let (cluster, _runtime) = cluster().await;
    let pods: Api<Pod> = Api::all(cluster.client().unwrap());
    let here = WatchParams::default().fields("spec.nodeName=node-a");
    let mut events = pin!(within(pods.watch(&here, "0")).await.unwrap());
    let mut elsewhere = web("elsewhere");
    elsewhere["spec"]["nodeName"] = "node-b".into();
    cluster.create_pod(elsewhere).await.unwrap();
    // Scheduled only after its creation: it is new to its node then.
    let mut scheduled = web("scheduled");
    scheduled["spec"]["nodeName"] = Value::Null;
    cluster.create_pod(scheduled).await.unwrap();
    let WatchEvent::Added(pod) = next(&mut events).await else { panic!("not added") };
    assert_eq!(pod.metadata.name.as_deref(), Some("scheduled"));
    loop {
        let WatchEvent::Modified(pod) = next(&mut events).await else { panic!("not modified") };
        if phase(&pod) == "Running" {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bookmarks_and_initial_events() {
    let (cluster, _runtime) = cluster().await;
    cluster.create_pod(web("web")).await.unwrap();
    wait(&cluster, "web", |pod| running(pod, "web")).await;
    let (_, list) = get(&cluster, "/api/v1/pods").await;
    let version = &list["metadata"]["resourceVersion"];

    let events = watch(&cluster, "timeoutSeconds=1&allowWatchBookmarks=true").await;
    assert_eq!(kinds(&events), ["ADDED", "BOOKMARK"]);
    assert_eq!(&events[1]["object"]["metadata"]["resourceVersion"], version);
    let query = "timeoutSeconds=1&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
    let events = watch(&cluster, query).await;
    assert_eq!(kinds(&events), ["ADDED", "BOOKMARK", "BOOKMARK"]);
    let initial = json!({ "k8s.io/initial-events-end": "true" });
    assert_eq!(events[1]["object"]["metadata"]["annotations"], initial);
    assert_eq!(events[2]["object"]["metadata"]["annotations"], Value::Null);
    let (code, _) = get(&cluster, "/api/v1/pods?watch=true&sendInitialEvents=true").await;
    assert_eq!(code, 422);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_old_is_gone() {
    let (cluster, _runtime) = cluster().await;
    let pods: Api<Pod> = Api::default_namespaced(cluster.client().unwrap());
    let version =
        within(pods.list(&ListParams::default())).await.unwrap().metadata.resource_version.unwrap();
    let mut open = pin!(within(pods.watch(&WatchParams::default(), &version)).await.unwrap());
    cluster.faults().compact();
    // One that is open, and one that is opened.
    for _ in 0..2 {
        let WatchEvent::Error(status) = next(&mut open).await else { panic!("no error") };
        assert_eq!((status.code, status.reason.as_str()), (410, "Expired"));
        assert!(
            status.message.starts_with(&format!("too old resource version: {version} (")),
            "{}",
            status.message
        );
        assert!(within(open.next()).await.is_none(), "the watch ends there");
        open.set(within(pods.watch(&WatchParams::default(), &version)).await.unwrap());
    }
    let (code, answer) = get(&cluster, &format!("/api/v1/pods?continue={version}/default/x")).await;
    assert_eq!((code, &answer["reason"]), (410, &json!("Expired")));

    // kube's watcher gets over it, and so does the kubelet.
    let mut watched = pin!(watcher(pods.clone(), watcher::Config::default()));
    let mut ready = async |name: &str| {
        loop {
            match within(watched.next()).await.unwrap() {
                Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod))
                    if phase(&pod) == "Running" && pod.metadata.name.as_deref() == Some(name) =>
                {
                    return;
                }
                _ => {}
            }
        }
    };
    cluster.create_pod(web("a")).await.unwrap();
    ready("a").await;
    cluster.faults().compact();
    let mut second = web("b");
    second["spec"]["containers"][0]["name"] = "second".into();
    cluster.create_pod(second).await.unwrap();
    ready("b").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_history_is_bounded() {
    let cluster = Cluster::builder().history(4).start().await.unwrap();
    let lease = |n: usize| json!({ "metadata": { "name": format!("l{n}") }, "spec": { "holderIdentity": "me" } });
    let leases = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
    let mut versions = Vec::new();
    for n in 0..6 {
        let (code, made) = curl(&cluster, "POST", leases, JSON, &lease(n)).await;
        assert_eq!(code, 201);
        versions.push(made["metadata"]["resourceVersion"].as_str().unwrap().to_owned());
    }
    let first = |version: &String| {
        let url =
            format!("{}{leases}?watch=1&timeoutSeconds=1&resourceVersion={version}", cluster.url());
        async move {
            let output = run("curl", vec!["--silent".into(), url]).await;
            let lines = String::from_utf8(output.stdout).unwrap();
            lines
                .lines()
                .map(|line| serde_json::from_str::<Value>(line).unwrap()["type"].clone())
                .collect::<Vec<_>>()
        }
    };
    assert_eq!(first(&versions[0]).await, ["ERROR"]);
    assert_eq!(first(&versions[1]).await, ["ADDED"; 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_come_in_pages() {
    let (cluster, _runtime) = cluster().await;
    let pods: Api<Pod> = Api::default_namespaced(cluster.client().unwrap());
    for name in ["a", "b", "c", "d", "e"] {
        let mut pod = web(name);
        pod["spec"]["schedulerName"] = "mine".into();
        pod["spec"]["nodeName"] = Value::Null;
        cluster.create_pod(pod).await.unwrap();
    }
    let mut params = ListParams::default().limit(2);
    let mut pages = Vec::new();
    loop {
        let page = within(pods.list(&params)).await.unwrap();
        let names: Vec<String> =
            page.items.into_iter().map(|pod| pod.metadata.name.unwrap()).collect();
        pages.push((names.concat(), page.metadata.remaining_item_count));
        match page.metadata.continue_ {
            Some(token) => params = params.continue_token(&token),
            None => break,
        }
    }
    let expected = [("ab", Some(3)), ("cd", Some(1)), ("e", None)];
    assert_eq!(pages, expected.map(|(names, rest)| (names.to_owned(), rest)));
    let (code, answer) = get(&cluster, "/api/v1/pods?resourceVersion=99999999").await;
    assert_eq!((code, &answer["reason"]), (504, &json!("Timeout")));
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_and_events_are_kept_like_pods() {
    let (cluster, _runtime) = cluster().await;
    let client = cluster.client().unwrap();
    let leases: Api<Lease> = Api::namespaced(client.clone(), "podsonde");
    let lease: Lease = serde_json::from_value(
        json!({ "metadata": { "name": "node-a" }, "spec": { "holderIdentity": "a" } }),
    )
    .unwrap();
    let made = within(leases.create(&PostParams::default(), &lease)).await.unwrap();
    let error = within(leases.create(&PostParams::default(), &lease)).await.unwrap_err();
    let kube::Error::Api(status) = error else { panic!("{error}") };
    assert_eq!((status.code, status.reason.as_str()), (409, "AlreadyExists"));
    assert_eq!(status.message, "leases.coordination.k8s.io \"node-a\" already exists");

    let version = made.metadata.resource_version.clone().unwrap();
    let mut events = pin!(within(leases.watch(&WatchParams::default(), &version)).await.unwrap());
    let renew = json!({ "spec": { "renewTime": "2026-01-02T03:04:05.678901Z" } });
    let renewed = within(leases.patch("node-a", &PatchParams::default(), &Patch::Merge(&renew)))
        .await
        .unwrap();
    let WatchEvent::Modified(seen) = next(&mut events).await else { panic!("not modified") };
    assert_eq!(seen, renewed);
    assert_eq!(renewed.spec.as_ref().unwrap().holder_identity.as_deref(), Some("a"));
    // An update that is based on an old version loses.
    let error = within(leases.replace("node-a", &PostParams::default(), &made)).await.unwrap_err();
    let kube::Error::Api(status) = error else { panic!("{error}") };
    assert_eq!((status.code, status.reason.as_str()), (409, "Conflict"));
    within(leases.replace("node-a", &PostParams::default(), &renewed)).await.unwrap();
    within(leases.delete("node-a", &DeleteParams::default())).await.unwrap();
    assert!(matches!(next(&mut events).await, WatchEvent::Deleted(_)));

    let api: Api<Event> = Api::default_namespaced(client);
    let event: Event = serde_json::from_value(json!({
        "metadata": { "generateName": "web." }, "reason": "Debugged", "type": "Normal",
        "involvedObject": { "kind": "Pod", "name": "web", "namespace": "default" },
    }))
    .unwrap();
    within(api.create(&PostParams::default(), &event)).await.unwrap();
    let about = |name: &str| ListParams::default().fields(&format!("involvedObject.name={name}"));
    let found = within(api.list(&about("web"))).await.unwrap().items;
    assert!(found[0].metadata.name.as_ref().unwrap().starts_with("web."));
    assert!(within(api.list(&about("db"))).await.unwrap().items.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_refused() {
    let (cluster, _runtime) = cluster().await;
    let pods = "/api/v1/namespaces/default/pods";
    let mut misspelt = web("web");
    misspelt["spec"]["nodename"] = "x".into();
    let cases: HashMap<&str, (u16, Value)> = [
        (
            "no containers",
            curl(&cluster, "POST", pods, JSON, &json!({ "metadata": { "name": "x" } })).await,
        ),
        (
            "no namespace",
            curl(&cluster, "POST", "/api/v1/namespaces/none/pods", JSON, &web("web")).await,
        ),
        (
            "wrong type",
            curl(&cluster, "POST", pods, JSON, &json!({ "spec": { "containers": 1 } })).await,
        ),
        (
            "wrong kind",
            curl(&cluster, "POST", pods, JSON, &json!({ "kind": "Node", "metadata": {} })).await,
        ),
        (
            "strict",
            curl(&cluster, "POST", &format!("{pods}?fieldValidation=Strict"), JSON, &misspelt)
                .await,
        ),
        ("no resource", get(&cluster, "/api/v1/secrets").await),
        ("no method", curl(&cluster, "PUT", pods, JSON, &json!({})).await),
        ("no subresource", get(&cluster, &format!("{pods}/web/exec")).await),
        ("no version", get(&cluster, &format!("{pods}?resourceVersion=x")).await),
    ]
    .into();
    for (case, code) in [
        ("no containers", 422),
        ("no namespace", 404),
        ("wrong type", 400),
        ("wrong kind", 400),
        ("strict", 400),
        ("no resource", 404),
        ("no method", 405),
        ("no subresource", 404),
        ("no version", 400),
    ] {
        assert_eq!(cases[case].0, code, "{case}: {}", cases[case].1);
    }
    let message = |case: &str| cases[case].1["message"].as_str().unwrap().to_owned();
    assert_eq!(message("no namespace"), "namespaces \"none\" not found");
    assert_eq!(message("no containers"), "Pod \"x\" is invalid: spec.containers: Required value");
    assert!(message("strict").ends_with("strict decoding error: unknown field \"spec.nodename\""));
    let all: Vec<Pod> = {
        let pods: Api<Pod> = Api::all(cluster.client().unwrap());
        within(pods.list(&ListParams::default())).await.unwrap().items
    };
    assert!(all.is_empty());
}
