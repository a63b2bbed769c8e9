//! A full node.

use std::time::{Duration, Instant};

use futures::future::join_all;

use crate::{
    fixture::{Fixture, http, phase, pod_ip, probe, sleeping},
    support::node,
};

/// As many pods as a kubelet runs by default.
const PODS: usize = 110;

#[tokio::test(flavor = "multi_thread")]
async fn a_full_node_is_verified_at_once() {
    let Some(fixture) = Fixture::start().await else { return };
    let began = Instant::now();
    // A few at a time: a kubelet does not start them all at once, either.
    let names: Vec<String> = (0..PODS).map(|number| format!("pod-{number}")).collect();
    for batch in names.chunks(6) {
        join_all(batch.iter().map(|name| fixture.create(name, sleeping()))).await;
        join_all(batch.iter().map(|name| fixture.wait(name, |pod| phase(pod) == "Running"))).await;
    }
    println!("{PODS} pods started in {:.1?}", began.elapsed());

    let ip = pod_ip(&fixture.agent().await).expect("an address");
    let mut before = 0.0;
    for run in ["first", "second"] {
        let ended = fixture.podsonde(&["verify", "-A", "-o", "json"]).await.expect(0);
        let report = ended.json();
        let lsns = Instant::now();
        let listed = node::output("sh", &["-c", "lsns -n -o NS | wc -l"]);
        let lsns = lsns.elapsed();
        let (port, _) = probe("readinessProbe");
        let (_, metrics) = http(ip, port, "/metrics").await.expect("metrics");
        let sum =
            "podsonde_request_duration_seconds_sum{method=\"Namespaces/VerifyNode\",code=\"OK\"} ";
        let sum = metrics.lines().find_map(|line| line.strip_prefix(sum)).expect("the sum");
        let sum: f64 = sum.parse().expect("seconds");
        let own = Duration::from_secs_f64(sum - before);
        before = sum;
        println!(
            "{run} verification of {PODS} pods: {:.0?}, port-forward and all, {own:.0?} in the agent; lsns ({} namespaces): {lsns:.0?}",
            ended.took,
            listed.trim()
        );
        // Each of them, and the agent's own.
        let (summary, all) = (&report["summary"], PODS + 1);
        assert_eq!(
            (&summary["pods"], &summary["ok"], &summary["errors"]),
            (&all.into(), &all.into(), &0.into()),
            "{summary}"
        );
    }
    let ended = Instant::now();
    fixture.end().await;
    println!("{PODS} pods removed in {:.1?}", ended.elapsed());
}
