//! From a debug request to its verdict.

use std::time::{Duration, Instant};

use crate::{
    figures::{Series, table},
    fixture::{Fixture, request},
    node,
};

const SESSIONS: usize = 30;

pub(crate) async fn run() {
    let mut rows = Vec::new();
    for (pods, total) in [(10, 100), (110, 1000)] {
        let f = Fixture::start().await;
        node::fill(&f.cluster, pods, total).await;
        rows.push(sessions(&f, pods).await);
        f.end().await;
    }
    table(
        "From a debug request to its verdict (30 sessions; ms)",
        &[
            "pods",
            "processes",
            "whole, median",
            "from `running` to verdict, median",
            "agent's share, median",
            "agent's share, slowest",
        ],
        &rows,
    );
}

async fn sessions(f: &Fixture, pods: usize) -> Vec<String> {
    let [mut whole, mut after, mut share] = [(); 3].map(|()| Series::default());
    for number in 0..SESSIONS {
        let (pod, name) = (node::pod(number % pods), format!("debug-{number}"));
        let mut debug = request(&pod, "main");
        debug.name.clone_from(&name);
        let began = Instant::now();
        // When the kubelet says that it runs, seen inside the API server.
        let running = async {
            f.wait(&pod, |pod| {
                let statuses =
                    pod.status.as_ref().and_then(|s| s.ephemeral_container_statuses.as_ref());
                let running = |s: &k8s_openapi::api::core::v1::ContainerStatus| {
                    s.name == name && s.state.as_ref().is_some_and(|s| s.running.is_some())
                };
                statuses.is_some_and(|all| all.iter().any(running))
            })
            .await;
            began.elapsed()
        };
        let verdict = async { (f.created(debug).await, began.elapsed()) };
        let (running, (done, verdict)) = tokio::join!(running, verdict);
        whole.add_time(verdict);
        after.add_time(verdict.saturating_sub(running));
        share.add_time(Duration::try_from(done.agent_time.unwrap()).unwrap());
    }
    let milliseconds = |value: f64| format!("{value:.1}");
    vec![
        pods.to_string(),
        node::processes().to_string(),
        milliseconds(whole.median()),
        milliseconds(after.median()),
        milliseconds(share.median()),
        milliseconds(share.slowest()),
    ]
}
