//! What a verifier holds open, seen in `/proc/self/fd`: two descriptors for each container and
//! sandbox that runs, none for those that have ended.
#![cfg(all(target_os = "linux", feature = "embedded"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)]

#[allow(dead_code)]
#[path = "agent/fixture.rs"]
mod fixture;

use std::{fs, sync::Arc};

use k8s_openapi::api::core::v1::Pod;
use podsonde::{
    agent::verify::Verifier,
    kube::pods::Pods,
    sys::{broker::NamespaceEntry, containers::Containers},
};
use serde_json::json;

use fixture::{Fixture, NODE, SLEEP};

/// How many directories of processes this process holds open, and how many pidfds.
fn held() -> (usize, usize) {
    let links: Vec<_> = fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| {
            Some(fs::read_link(entry.ok()?.path()).ok()?.to_string_lossy().into_owned())
        })
        .collect();
    let is_directory = |link: &&String| {
        link.strip_prefix("/proc/").is_some_and(|pid| pid.bytes().all(|b| b.is_ascii_digit()))
    };
    (
        links.iter().filter(is_directory).count(),
        links.iter().filter(|link| link.contains("[pidfd]")).count(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_held_of_containers_that_have_ended() {
    let f = Fixture::start().await;
    for name in ["one", "two", "three"] {
        f.pod(name, json!({"containers": [{"name": "main", "image": SLEEP}]})).await;
    }
    let pods = Arc::new(Pods::new(f.cluster.client().unwrap(), NODE));
    let mut changes = pods.changes();
    let watch = Arc::clone(&pods);
    tokio::spawn(async move { watch.run().await });
    changes.wait_for(|_| pods.all().len() == 3).await.unwrap();

    // Holds the directory of the process that stands for the host.
    let containers = Arc::new(Containers::open(std::process::id()).unwrap());
    let (directories, pidfds) = held();
    let verifier =
        Arc::new(Verifier::new(Arc::clone(&pods), containers, Arc::new(NamespaceEntry::InProcess)));
    for _ in 0..20 {
        let reports = verifier.verify(pods.all(), None).await.unwrap();
        assert!(reports.iter().flat_map(|r| &r.containers).all(|c| c.process.is_some()));
        drop(reports);
        // A container and a sandbox in each of three pods.
        let (now_directories, now_pidfds) = held();
        assert_eq!((now_directories - directories, now_pidfds - pidfds), (6, 6));
    }
    let api = kube::Api::<Pod>::namespaced(f.cluster.client().unwrap(), "default");
    api.delete_collection(&Default::default(), &Default::default()).await.unwrap();
    changes.wait_for(|_| pods.all().is_empty()).await.unwrap();
    verifier.verify(Vec::new(), None).await.unwrap();
    assert_eq!(held(), (directories, pidfds));
    f.end().await;
}
