//! Ending sessions, on request and when they expire.
//!
//! The API cannot remove an ephemeral container, so ending one means ending its processes. The time
//! of expiry is read from the pods' specs, so an agent that was restarted ends what its predecessor
//! started.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use rustix::process::Signal;

use super::{
    sessions::{Session, Sessions},
    work,
};
use crate::{
    domain::{
        Error, Reason, Result,
        cgroup::ContainerCgroup,
        pod::{Container, ContainerState, Pod},
    },
    kube::{
        events::{Events, Happened},
        pods::Pods,
    },
    sys::{containers::Containers, process::Pidfd, stop::Signalled},
};

/// How long an expired session's processes have between SIGTERM and SIGKILL.
const EXPIRY_GRACE: Duration = Duration::from_secs(5);
/// The pause before an expired session that still runs is ended again.
const RETRY: Duration = Duration::from_secs(30);
/// The longest that a timer runs, as the wall clock may be set meanwhile. Without sessions no timer
/// runs.
const CLOCK_CHECK: Duration = Duration::from_secs(60);
/// Rounds of SIGKILL before a container that forks faster than it is killed is given up on.
const ROUNDS: u32 = 20;
/// Rounds without a new victim before a container is given up on: its processes wait for a disk,
/// say, and do not die.
const IDLE_ROUNDS: u32 = 3;

/// How a session ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ended {
    /// Processes that were sent a signal.
    pub signalled: u32,
    /// Processes of these that were sent SIGKILL.
    pub killed: u32,
    /// Processes that still run.
    pub survivors: u32,
}

/// Ends the container's processes with SIGTERM and, after `grace`, SIGKILL. This goes on to the end
/// even if nobody waits for it. A container that has ended already is not an error.
///
/// # Errors
/// VM_ISOLATED; PROCESS_NOT_FOUND if its status says that it runs, but no process of it is found;
/// SYSTEM_CALL.
pub async fn end(
    containers: &Arc<Containers>,
    pod: &Arc<Pod>,
    container: &Container,
    grace: Duration,
) -> Result<Ended> {
    let (containers, pod, container) = (Arc::clone(containers), Arc::clone(pod), container.clone());
    let work = tokio::spawn(async move { end_all(&containers, &pod, &container, grace).await });
    work.await.map_err(|e| Error::new(Reason::Bug, e.to_string()))?
}

async fn end_all(
    containers: &Arc<Containers>,
    pod: &Pod,
    container: &Container,
    grace: Duration,
) -> Result<Ended> {
    let about = |e: Error| e.pod(&pod.namespace, &pod.name).container(&container.name);
    if let Some(runtime) = pod.vm_runtime() {
        let message = format!(
            "runs in {runtime}: its processes are not the node's, so they cannot be ended from here"
        );
        return Err(about(Error::new(Reason::VmIsolated, message)));
    }
    if matches!(container.state, ContainerState::Terminated { .. }) {
        return Ok(Ended::default());
    }
    let Some(id) = &container.id else { return Ok(Ended::default()) };
    let place = (pod.cgroup_uid.as_str(), id.id.as_str());
    let (mut signalled, mut killed) = (HashSet::new(), HashSet::new());
    let mut survivors = 0;
    if !grace.is_zero() {
        let first = signal(containers, place, Signal::TERM).await.map_err(about)?;
        signalled.extend(first.processes.iter().map(|(pid, _)| *pid));
        survivors = first.refused;
        gone(first.processes, grace).await;
    }
    let (mut none_before, mut idle) = (false, 0);
    for _ in 0..ROUNDS {
        let left = signal(containers, place, Signal::KILL).await.map_err(about)?;
        survivors = count(left.processes.len()).saturating_add(left.refused);
        if left.processes.is_empty() {
            // A scan misses a process that was forked while `/proc` was read, so two must find
            // none.
            if none_before {
                break;
            }
            none_before = true;
            continue;
        }
        none_before = false;
        let before = killed.len();
        killed.extend(left.processes.iter().map(|(pid, _)| *pid));
        idle = if killed.len() == before { idle + 1 } else { 0 };
        if idle == IDLE_ROUNDS {
            break;
        }
        gone(left.processes, Duration::from_secs(2)).await;
    }
    signalled.extend(&killed);
    if signalled.is_empty() && survivors == 0 && container.is_running() {
        let message =
            "runs by its status, but no process on the node is in a cgroup of its container id";
        return Err(about(Error::new(Reason::ProcessNotFound, message)));
    }
    Ok(Ended { signalled: count(signalled.len()), killed: count(killed.len()), survivors })
}

fn count(processes: usize) -> u32 {
    u32::try_from(processes).unwrap_or(u32::MAX)
}

async fn signal(
    containers: &Arc<Containers>,
    (pod, id): (&str, &str),
    signal: Signal,
) -> Result<Signalled> {
    let (pod, id, slot) = (pod.to_owned(), id.to_owned(), work::slot());
    let send = move |containers: &Containers| {
        let _slot = slot;
        containers.signal(ContainerCgroup { pod: &pod, id: &id }, signal)
    };
    Ok(containers.pass(send).await??)
}

/// Waits until all of the processes have ended, for `at_most`.
async fn gone(processes: Vec<(u32, Pidfd)>, at_most: Duration) {
    let all = futures::future::join_all(processes.into_iter().map(|(_, process)| process.ended()));
    // The next round counts the survivors.
    let _ = tokio::time::timeout(at_most, all).await;
}

/// Ends sessions as they expire, forever. Sleeps until the next is due or a pod changes.
pub async fn run(
    sessions: Arc<Sessions>,
    pods: Arc<Pods>,
    containers: Arc<Containers>,
    events: Events,
) {
    let mut changes = pods.changes();
    // When each overdue session was last ended, by its key, until its status says that it has
    // ended.
    let mut tried: HashMap<String, Instant> = HashMap::new();
    loop {
        changes.mark_unchanged();
        let running: Vec<_> =
            sessions.all().into_iter().filter(|s| s.container.is_running()).collect();
        tried.retain(|id, _| running.iter().any(|s| s.key() == *id));
        let mut next: Option<Duration> = None;
        for session in running {
            let mut wait = until(session.facts.expires_at);
            if let Some(at) = tried.get(&session.key()) {
                wait = wait.max(RETRY.saturating_sub(at.elapsed()));
            }
            if wait.is_zero() {
                tried.insert(session.key(), Instant::now());
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
    let requester = session.proven_requester().map(|by| format!(" of {by}")).unwrap_or_default();
    let Session { pod, facts, container, .. } = session;
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
                    "debug container {}{requester} was ended, as its time was over",
                    container.name
                );
                events.tell(&pod, &container.name, Happened::DebugContainerEnded, &message);
            }
        }
        Err(error) => tracing::warn!(session = facts.id, %error, "cannot end an expired session"),
    }
}

/// The time until `at`; zero if it has passed.
fn until(at: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default()
}
