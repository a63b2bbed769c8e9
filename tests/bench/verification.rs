//! Verifying a node: one pass as `Namespaces.VerifyNode` makes it, beside `lsns`, which looks at
//! every process, too.

use std::{fs, process::Command, sync::Arc, time::Instant};

use k8s_openapi::api::core::v1::Pod;
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::{TimeVal, TimeValLike},
};
use podsonde::{
    agent::verify::{PodReport, Verifier},
    domain::verdict::Outcome,
    kube::pods::Pods,
    proto::v1,
    sys::{broker::NamespaceEntry, containers::Containers},
};

use crate::{
    figures::{Series, table},
    fixture::{Fixture, NODE},
    node,
};

const ROUNDS: usize = 15;

pub(crate) async fn run() {
    let mut rows = Vec::new();
    for (pods, total) in [(10, 100), (110, 1000), (110, 5000)] {
        let f = Fixture::start().await;
        node::fill(&f.cluster, pods, total).await;
        rows.push(passes(&f, pods).await);
        if total == 5000 {
            calls(&f).await;
            descriptors(&f).await;
        }
        f.end().await;
    }
    table(
        "Verifying all pods of a node (median of 15, in turns; ms by the clock / ms of CPU)",
        &[
            "pods",
            "processes",
            "nothing known yet",
            "containers known",
            "lsns",
            "CPU cold : lsns",
            "known : lsns",
        ],
        &rows,
    );
}

async fn passes(f: &Fixture, count: usize) -> Vec<String> {
    let pods = watched(f, count).await;
    let open = || {
        Arc::new(Verifier::new(
            Arc::clone(&pods),
            Arc::new(Containers::open(std::process::id()).unwrap()),
            Arc::new(NamespaceEntry::InProcess),
        ))
    };
    let [mut cold, mut known, mut lsns] = [(); 3].map(|()| Cost::default());
    for _ in 0..ROUNDS {
        let verifier = open();
        for cost in [&mut cold, &mut known] {
            let began = (Instant::now(), cpu(UsageWho::RUSAGE_SELF));
            let reports = verifier.verify(pods.all(), None).await.unwrap();
            cost.add(began.0, cpu(UsageWho::RUSAGE_SELF) - began.1);
            check(&reports, count);
        }
        let began = (Instant::now(), cpu(UsageWho::RUSAGE_CHILDREN));
        // A process that ends meanwhile makes it fail.
        let output = Command::new("lsns").output().unwrap();
        lsns.add(began.0, cpu(UsageWho::RUSAGE_CHILDREN) - began.1);
        assert!(!output.stdout.is_empty());
    }
    vec![
        count.to_string(),
        node::processes().to_string(),
        cold.both(),
        known.both(),
        lsns.both(),
        format!("{:.2}", cold.cpu.ratio_to(&lsns.cpu)),
        format!("{:.2}", known.cpu.ratio_to(&lsns.cpu)),
    ]
}

/// By the clock, which others on the machine have a part in, and in CPU time, which they hardly
/// have.
#[derive(Default)]
struct Cost {
    clock: Series,
    cpu: Series,
}

impl Cost {
    fn add(&mut self, began: Instant, cpu: f64) {
        self.clock.add_time(began.elapsed());
        self.cpu.add(cpu);
    }

    fn both(&self) -> String {
        format!("{:.1} / {:.1}", self.clock.median(), self.cpu.median())
    }
}

/// Milliseconds of CPU so far.
fn cpu(who: UsageWho) -> f64 {
    let usage = getrusage(who).unwrap();
    let milliseconds = |time: TimeVal| time.num_microseconds() as f64 / 1e3;
    milliseconds(usage.user_time()) + milliseconds(usage.system_time())
}

/// A pass that did not prove all would be fast for nothing.
fn check(reports: &[PodReport], pods: usize) {
    let verified: Vec<_> = reports.iter().flat_map(|p| &p.containers).collect();
    assert_eq!(verified.len(), pods);
    for container in verified {
        assert_eq!(container.verdict.outcome, Outcome::Ok, "{container:#?}");
    }
}

/// The pods as an agent would know them, all `count`.
async fn watched(f: &Fixture, count: usize) -> Arc<Pods> {
    let pods = Arc::new(Pods::new(f.cluster.client().unwrap(), NODE));
    let mut changes = pods.changes();
    let watch = Arc::clone(&pods);
    tokio::spawn(async move { watch.run().await });
    while pods.all().len() < count {
        changes.changed().await.unwrap();
    }
    pods
}

/// The whole call, as a client sees it.
async fn calls(f: &Fixture) {
    let (mut time, mut bytes) = (Series::default(), 0);
    for _ in 0..=ROUNDS {
        let began = Instant::now();
        let request = v1::NamespacesVerifyNodeRequest::default();
        let mut stream = f.namespaces().verify_node(request).await.unwrap().into_inner();
        bytes = 0;
        while let Some(message) = stream.message().await.unwrap() {
            bytes += prost::Message::encoded_len(&message);
        }
        time.add_time(began.elapsed());
    }
    println!(
        "\nNamespaces.VerifyNode over gRPC, 110 pods, {} processes: median {:.1} ms, slowest (the first) {:.1} ms, {} KiB",
        node::processes(),
        time.median(),
        time.slowest(),
        bytes / 1024
    );
}

/// That a thousand verifications leave no descriptor behind, and containers that have ended none at
/// all.
async fn descriptors(f: &Fixture) {
    let open = || fs::read_dir("/proc/self/fd").unwrap().count();
    let pods = watched(f, 110).await;
    let verifier = Arc::new(Verifier::new(
        Arc::clone(&pods),
        Arc::new(Containers::open(std::process::id()).unwrap()),
        Arc::new(NamespaceEntry::InProcess),
    ));
    let before = open();
    verifier.verify(pods.all(), None).await.unwrap();
    let first = open() - before;
    for _ in 1..1000 {
        verifier.verify(pods.all(), None).await.unwrap();
    }
    let thousandth = open() - before;
    // The runtime holds some of its own for each container, so the verifier's are counted as those
    // that go with it.
    let api = kube::Api::<Pod>::namespaced(f.cluster.client().unwrap(), "default");
    api.delete_collection(&Default::default(), &Default::default()).await.unwrap();
    let mut changes = pods.changes();
    while !pods.all().is_empty() {
        changes.changed().await.unwrap();
    }
    verifier.verify(Vec::new(), None).await.unwrap();
    let with = open();
    drop(verifier);
    println!(
        "Descriptors held for 110 pods after one verification: {first}, after a thousand: {thousandth}, once the pods are gone: {}",
        with - open() - 1
    );
}
