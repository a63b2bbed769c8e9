//! A full node.

use std::time::Instant;

use futures::future::join_all;

use crate::{
    fixture::{Fixture, phase, sleeping},
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

    for run in ["first", "second"] {
        let ended = fixture.podsonde(&["verify", "-A", "-o", "json"]).await.expect(0);
        let report = ended.json();
        let lsns = Instant::now();
        let listed = node::output("sh", &["-c", "lsns -n -o NS | wc -l"]);
        let lsns = lsns.elapsed();
        println!(
            "{run} verification of {PODS} pods: {:.0?}, port-forward and all; lsns ({} namespaces): {lsns:.0?}",
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
