//! What the agent says of its own state: gRPC health, probes and metrics.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tonic_health::{ServingStatus, server::HealthReporter};

use super::{
    access::Method,
    files::Files,
    metrics::{Metrics, Snapshot},
    probes,
    sessions::Sessions,
    verify::Verifier,
};
use crate::{domain::pod::ContainerState, kube::pods::Pods, sys::broker::NamespaceEntry};

/// Reports that the agent serves once the pods are known, and that it does not once it shuts down.
/// Then ends the streams of those who watch its health, which would keep the servers from ending.
pub(super) async fn report(
    mut health: HealthReporter,
    pods: Arc<Pods>,
    shutdown: CancellationToken,
) {
    let mut changes = pods.changes();
    let ready = async { changes.wait_for(|version| *version > 0).await.is_ok() };
    if shutdown.run_until_cancelled(ready).await == Some(true) {
        set(&health, ServingStatus::Serving).await;
        shutdown.cancelled().await;
    }
    set(&health, ServingStatus::NotServing).await;
    for service in health_names() {
        health.clear_service_status(&service).await;
    }
}

/// Tells health the status of the agent as a whole, whose name is empty, and of each service.
pub(super) async fn set(health: &HealthReporter, status: ServingStatus) {
    for service in health_names() {
        health.set_service_status(service, status).await;
    }
}

fn health_names() -> impl Iterator<Item = String> {
    std::iter::once(String::new()).chain(Method::services())
}

/// What probes and metrics answer from.
pub(super) struct Status {
    pub(super) pods: Arc<Pods>,
    pub(super) verifier: Arc<Verifier>,
    pub(super) sessions: Arc<Sessions>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) entry: Arc<NamespaceEntry>,
    pub(super) files: Arc<Files>,
    pub(super) shutdown: CancellationToken,
}

impl probes::Status for Status {
    fn ready(&self) -> Result<(), &'static str> {
        match (self.shutdown.is_cancelled(), self.pods.is_ready()) {
            (true, _) => Err("draining"),
            (_, false) => Err("the pods of the node are not read yet"),
            _ => Ok(()),
        }
    }

    fn metrics(&self) -> String {
        let mut sessions = [0; 3];
        for session in self.sessions.all() {
            let [waiting, running, ended] = &mut sessions;
            *match session.container.state {
                _ if session.has_ended() => ended,
                ContainerState::Running => running,
                _ => waiting,
            } += 1;
        }
        let verdicts = self.verifier.counts();
        let (pods, watch_errors) = (self.pods.all().len(), self.pods.watch_errors());
        let can_enter = self.entry.is_available();
        let file_threads = self.files.thread_counts();
        self.metrics.render(Snapshot {
            pods,
            sessions,
            watch_errors,
            verdicts,
            can_enter,
            file_threads,
        })
    }
}
