//! Ending sessions: on request, and when they have lasted long enough.
//!
//! The API has no way to remove an ephemeral container, so ending one means ending its processes. When that is due is read from the pods'
//! specs again and again, so an agent that was restarted ends what another one started.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use rustix::process::Signal;

use super::sessions::{Session, Sessions};
use crate::{
    domain::{
        Error, Reason, Result,
        pod::{Container, ContainerState, Pod},
    },
    kube::{
        events::{Events, Happened},
        pods::Pods,
    },
    sys::{containers::Containers, process::Pidfd, stop::Signalled},
};

/// How long a session's processes have after SIGTERM when its time is over.
const EXPIRY_GRACE: Duration = Duration::from_secs(5);
/// A session that is over and still runs is ended again after so long.
const RETRY: Duration = Duration::from_secs(30);
/// The wall clock may be set while a timer runs, so a timer runs at most this long. Without sessions there is none.
const CLOCK_CHECK: Duration = Duration::from_secs(60);
/// A container that forks faster than it is killed is given up on after so many rounds.
const ROUNDS: u32 = 20;

/// How a session ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ended {
    /// How many processes were sent a signal.
    pub signalled: u32,
    /// How many of these needed SIGKILL.
    pub killed: u32,
    /// How many run on.
    pub survivors: u32,
}

/// Ends the container's processes: SIGTERM, SIGKILL to what is left after `grace`. Nothing to end is not an error.
///
/// # Errors
/// SESSION_NOT_STARTED if there is nothing yet that could be ended; VM_ISOLATED; SYSTEM_CALL.
pub async fn end(
    containers: &Arc<Containers>,
    pod: &Pod,
    container: &Container,
    grace: Duration,
) -> Result<Ended> {
    let about = |e: Error| e.pod(&pod.namespace, &pod.name).container(&container.name);
    if let Some(runtime) = pod.vm_runtime() {
        let message =
            format!("runs in {runtime}: its processes are not the node's, so they cannot be ended from here");
        return Err(about(Error::new(Reason::VmIsolated, message)));
    }
    if matches!(container.state, ContainerState::Terminated { .. }) {
        return Ok(Ended::default());
    }
    let Some(id) = &container.id else {
        let message = "has not started, so it has no process to end; it is ended when its time is over";
        return Err(about(Error::new(Reason::SessionNotStarted, message)));
    };
    let mut ended = Ended::default();
    if !grace.is_zero() {
        let first = signal(containers, &id.id, Signal::TERM).await.map_err(about)?;
        ended.signalled = count(&first.processes);
        gone(first.processes, grace).await;
    }
    for _ in 0..ROUNDS {
        let left = signal(containers, &id.id, Signal::KILL).await.map_err(about)?;
        if left.processes.is_empty() {
            ended.survivors = left.refused;
            break;
        }
        let killed = count(&left.processes);
        ended.killed = ended.killed.saturating_add(killed);
        ended.signalled = ended.signalled.max(ended.killed);
        ended.survivors = killed.saturating_add(left.refused);
        gone(left.processes, Duration::from_secs(2)).await;
    }
    Ok(ended)
}

fn count(processes: &[Pidfd]) -> u32 {
    u32::try_from(processes.len()).unwrap_or(u32::MAX)
}

async fn signal(containers: &Arc<Containers>, id: &str, signal: Signal) -> Result<Signalled> {
    let (containers, id) = (Arc::clone(containers), id.to_owned());
    let work = tokio::task::spawn_blocking(move || containers.signal(&id, signal));
    Ok(work.await.map_err(|e| Error::new(Reason::Bug, e.to_string()))??)
}

/// Waits until all of them have ended, at most so long.
async fn gone(processes: Vec<Pidfd>, at_most: Duration) {
    let all = futures::future::join_all(processes.into_iter().map(Pidfd::ended));
    // Who is left is counted anew.
    let _ = tokio::time::timeout(at_most, all).await;
}

/// Ends sessions whose time is over, for ever. Sleeps until the next is due or a pod changes.
pub async fn run(sessions: Arc<Sessions>, pods: Arc<Pods>, containers: Arc<Containers>, events: Events) {
    let mut changes = pods.changes();
    // When each session that is over was last ended, until its status says that it is.
    let mut tried: HashMap<String, Instant> = HashMap::new();
    loop {
        changes.mark_unchanged();
        let running: Vec<_> = sessions.all().into_iter().filter(|s| s.container.is_running()).collect();
        tried.retain(|id, _| running.iter().any(|s| s.facts.id == *id));
        let mut next: Option<Duration> = None;
        for session in running {
            let mut wait = until(session.facts.expires_at);
            if let Some(at) = tried.get(&session.facts.id) {
                wait = wait.max(RETRY.saturating_sub(at.elapsed()));
            }
            if wait.is_zero() {
                tried.insert(session.facts.id.clone(), Instant::now());
                tokio::spawn(expire(session, Arc::clone(&containers), events.clone()));
                wait = RETRY;
            }
            next = Some(next.map_or(wait, |n| n.min(wait)));
        }
        let sleep = async {
            match next {
                Some(wait) => tokio::time::sleep(wait.min(CLOCK_CHECK)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = sleep => {}
            changed = changes.changed() => if changed.is_err() { return },
        }
    }
}

async fn expire(session: Session, containers: Arc<Containers>, events: Events) {
    let Session { pod, facts, container } = session;
    let pod_name = format!("{}/{}", pod.namespace, pod.name);
    match end(&containers, &pod, &container, EXPIRY_GRACE).await {
        Ok(Ended { signalled, killed, survivors }) => {
            tracing::info!(
                session = facts.id,
                pod = pod_name,
                container = container.name,
                signalled,
                killed,
                survivors,
                "session expired"
            );
            if signalled > 0 {
                let message = format!(
                    "debug container {} of {} was ended, as its time was over",
                    container.name, facts.requested_by
                );
                events.tell(&pod, &container.name, Happened::DebugContainerEnded, &message);
            }
        }
        Err(error) => tracing::warn!(session = facts.id, %error, "cannot end an expired session"),
    }
}

/// How long until then; zero if it has passed.
fn until(at: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default()
}
