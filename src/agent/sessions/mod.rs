//! Debug sessions: creating, listing and finding them.
//!
//! A session *is* its ephemeral container. The agent keeps no record of its own: what it knows it
//! reads from its watch of the node's pods, so a restart loses nothing.
//!
//! - `wait`: from an accepted container to one that runs and is verified;
//! - [`seal`]: how an agent recognises the facts of a session as its own.

pub mod seal;
mod wait;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use kube::Client;
use tokio::{sync::mpsc, time::timeout_at};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::{
    seal::SealKey,
    wait::{Clock, Wait, tell},
};
use super::{
    config::Limits,
    verify::{ContainerReport, Verifier},
};
use crate::{
    domain::{
        Error, Reason, Result,
        debug::DebugRequest,
        error::SpecEntry,
        name,
        pod::{Container, ContainerKind, ContainerState, Phase, Pod},
        session::SessionFacts,
        startup::{self, Startup},
    },
    kube::{
        container::{self, References},
        ephemeral,
        pods::Pods,
    },
};

/// How long the API server has, at the end of a wait, to say how the container fares. It gets at
/// most a quarter of the caller's time.
const LAST_LOOK: Duration = Duration::from_secs(1);

/// The sessions of the node.
pub struct Sessions {
    client: Client,
    pods: Arc<Pods>,
    verifier: Arc<Verifier>,
    limits: Limits,
    key: SealKey,
    drain: CancellationToken,
}

/// A session: a container in its pod.
#[derive(Debug, Clone)]
pub struct Session {
    /// The pod that the container was added to.
    pub pod: Arc<Pod>,
    /// What the container's environment says. Anybody who may patch the pod can have written it.
    pub facts: SessionFacts,
    /// Whether the seal proves that an agent wrote the facts.
    pub sealed: bool,
    /// The ephemeral container.
    pub container: Container,
}

/// A step of [`Sessions::create`].
#[derive(Debug)]
pub enum Progress {
    /// The API server accepted the container.
    Accepted(Box<Session>),
    /// The kubelet gives a new reason or message.
    Waiting {
        /// The reason.
        reason: String,
        /// The message.
        message: String,
    },
}

/// The result of [`Sessions::create`].
#[derive(Debug)]
pub struct Created {
    /// The session.
    pub session: Session,
    /// The findings on its namespaces. None if it exited before it could be examined.
    pub report: Option<ContainerReport>,
    /// The agent's own share of the time that it took.
    pub agent_time: Duration,
}

impl Sessions {
    /// Sessions on the pods that `pods` knows.
    pub fn new(
        client: Client,
        pods: Arc<Pods>,
        verifier: Arc<Verifier>,
        limits: Limits,
        key: SealKey,
        drain: CancellationToken,
    ) -> Self {
        Self { client, pods, verifier, limits, key, drain }
    }

    /// Creates a debug container, waits until it runs, and verifies it. Reports its steps through
    /// `progress`. Ends before `deadline`, when the caller stops listening.
    ///
    /// # Errors
    /// See `Debug.Create` in `proto/podsonde/v1/debug.proto`.
    pub async fn create(
        &self,
        request: &DebugRequest,
        requested_by: &str,
        deadline: Instant,
        progress: &mpsc::Sender<Progress>,
    ) -> Result<Created> {
        let mut clock = Clock::start();
        let now = Instant::now();
        let last_look = LAST_LOOK.min(deadline.saturating_duration_since(now) / 4);
        let start_by =
            (now + request.start_timeout).min(deadline.checked_sub(last_look).unwrap_or(now));
        let prepare = |pod: &Arc<Pod>| self.prepare(pod, request, requested_by);
        let find = self.pods.find(&request.namespace, &request.pod, prepare);
        let found = clock.outside(timeout_at(start_by.into(), find)).await.unwrap_or_else(|_| {
            let message = "the API server did not answer in time when asked for the pod";
            Err(Error::new(Reason::Deadline, message).pod(&request.namespace, &request.pod))
        });
        let (pod, (container, facts)) = found?;
        let target = pod.container(&container.target).and_then(|c| c.id.clone());
        // Subscribed before the container is added, so that no change of it is missed.
        let changes = self.pods.changes();

        let references = match self.limits.allow_references {
            true => References::Allowed,
            false => References::Refused,
        };
        let definition = container::define(request, &container.name, &facts, references)?;
        let client = self.client.clone();
        clock
            .outside(ephemeral::add(
                client,
                &pod.namespace,
                &pod.name,
                &pod.uid,
                &definition,
                start_by,
            ))
            .await
            .map_err(|e| e.container(&container.name))?;
        tracing::info!(
            session = facts.id,
            pod = %format_args!("{}/{}", pod.namespace, pod.name),
            container = container.name,
            target = container.target,
            image = container.image,
            by = facts.requested_by,
            "debug container added"
        );
        let session = Session { pod: Arc::clone(&pod), facts, sealed: true, container };
        tell(progress, Progress::Accepted(Box::new(session.clone()))).await?;

        let wait = Wait {
            sessions: self,
            session: &session,
            request,
            target: target.as_ref(),
            start_by,
            last_look,
            progress,
        };
        wait.run(changes, &mut clock).await.map_err(|e| {
            e.pod(&pod.namespace, &pod.name)
                .container(&session.container.name)
                .spec_entry(SpecEntry::Permanent)
        })
    }

    /// Refuses what the API server would accept and the kubelet never start. Settles name, target
    /// and facts.
    fn prepare(
        &self,
        pod: &Pod,
        request: &DebugRequest,
        requested_by: &str,
    ) -> Result<(Container, SessionFacts)> {
        let fail = |reason, message: &str| Err(Error::new(reason, message));
        pod.expect_uid(&request.pod_uid)?;
        if pod.mirror {
            return fail(
                Reason::StaticPod,
                "is a static pod: the kubelet runs it from a file, so no debug container can be \
                 added",
            );
        }
        if pod.terminating {
            return fail(
                Reason::PodTerminating,
                "is being deleted: a debug container would never start",
            );
        }
        if matches!(pod.phase, Phase::Succeeded | Phase::Failed) {
            return fail(
                Reason::PodFinished,
                "has run to its end: a debug container would never start",
            );
        }
        let target = match container::given_target(&request.definition)? {
            Some(target) if request.target.is_empty() => target,
            _ => request.target.clone(),
        };
        if !target.is_empty() {
            let container = pod.require(&target)?;
            if container.kind == ContainerKind::Ephemeral {
                let message = format!(
                    "the target {target} is itself a debug container; it must be a regular or init \
                     container"
                );
                return Err(Error::invalid("target_container", message));
            }
            if !container.is_running() {
                let message =
                    format!("does not run, so it cannot be a target{}", because(&container.state));
                return Err(Error::new(Reason::TargetNotRunning, message).container(&target));
            }
        }
        let given = request.name.clone().or(container::given_name(&request.definition)?);
        let name = given.unwrap_or_else(made_up_name);
        name::label("name", &name)?;
        if pod.container(&name).is_some() {
            let message = "the pod has, or had, a container of that name, and names of debug \
                containers are never free again";
            return Err(Error::new(Reason::NameTaken, message).container(&name));
        }
        self.check_limits(&pod.namespace)?;
        let now = Timestamp::now();
        let facts = SessionFacts {
            id: Uuid::new_v4().to_string(),
            requested_by: requested_by.to_owned(),
            created_at: now,
            expires_at: now
                .checked_add(request.ttl)
                .map_err(|e| Error::invalid("ttl", e.to_string()))?,
            seal: String::new(),
        };
        let facts = self.key.seal(&pod.uid, &name, facts);
        let container = Container {
            name,
            kind: ContainerKind::Ephemeral,
            image: request.image(),
            privileged: false,
            target,
            session: Some(facts.clone()),
            id: None,
            state: ContainerState::Absent,
        };
        Ok((container, facts))
    }

    /// Checks that a namespace may have one more session.
    ///
    /// Whoever may patch a pod can write what looks like a session, so only what runs counts, and
    /// what an agent is about to start. No namespace counts for more than its own limit: one
    /// namespace's sessions, forged or not, never use up the node's.
    fn check_limits(&self, namespace: &str) -> Result<()> {
        let Limits { max_sessions, max_sessions_per_namespace, .. } = self.limits;
        let mut counts: HashMap<String, usize> = HashMap::new();
        for session in self.all().iter().filter(|session| session.counts()) {
            *counts.entry(session.pod.namespace.clone()).or_default() += 1;
        }
        let of_namespace = counts.get(namespace).copied().unwrap_or_default();
        let of_node: usize = counts.values().map(|n| n.min(&max_sessions_per_namespace)).sum();
        let message = if of_namespace >= max_sessions_per_namespace {
            format!(
                "namespace {namespace} has {of_namespace} sessions on this node, as many as one may \
                 have; end one"
            )
        } else if of_node >= max_sessions {
            format!("the node has {max_sessions} sessions, as many as it may have; end one")
        } else {
            return Ok(());
        };
        Err(Error::new(Reason::TooManySessions, message))
    }

    /// The sessions of a pod.
    fn of_pod(&self, pod: &Arc<Pod>) -> impl Iterator<Item = Session> {
        pod.ephemeral().filter_map(|container| {
            let facts = container.session.clone()?;
            let sealed = self.key.is_valid(&pod.uid, &container.name, &facts);
            Some(Session { pod: Arc::clone(pod), facts, sealed, container: container.clone() })
        })
    }

    /// All sessions of the node, newest first.
    pub fn all(&self) -> Vec<Session> {
        let pods = self.pods.all();
        let mut sessions: Vec<_> = pods.iter().flat_map(|pod| self.of_pod(pod)).collect();
        sessions.sort_by(|a, b| {
            (b.facts.created_at, &b.facts.id).cmp(&(a.facts.created_at, &a.facts.id))
        });
        sessions
    }

    /// One session, by its id or the name of its container.
    ///
    /// # Errors
    /// SESSION_NOT_FOUND, and as [`Pods::find`].
    pub async fn get(
        &self,
        namespace: &str,
        pod: &str,
        uid: &str,
        session: &str,
    ) -> Result<Session> {
        let is_it = |s: &Session| s.facts.id == session || s.container.name == session;
        let check = |pod: &Arc<Pod>| {
            pod.expect_uid(uid)?;
            self.of_pod(pod).find(is_it).ok_or_else(|| no_session(pod, session))
        };
        self.pods.find(namespace, pod, check).await.map(|(_, session)| session)
    }

    /// The started container of a session, or any started ephemeral container by its name.
    ///
    /// # Errors
    /// SESSION_NOT_FOUND, SESSION_NOT_STARTED, and as [`Pods::find`].
    pub async fn started(
        &self,
        namespace: &str,
        pod: &str,
        uid: &str,
        session: &str,
    ) -> Result<(Arc<Pod>, Container)> {
        let is_it = |c: &&Container| {
            c.name == session || c.session.as_ref().is_some_and(|s| s.id == session)
        };
        let check = |pod: &Arc<Pod>| {
            pod.expect_uid(uid)?;
            let container =
                pod.ephemeral().find(is_it).cloned().ok_or_else(|| no_session(pod, session))?;
            if container.id.is_none()
                && !matches!(container.state, ContainerState::Terminated { .. })
            {
                let message = "has not started, so it has no process to end; should it start after \
                    its time, it is ended then";
                return Err(
                    Error::new(Reason::SessionNotStarted, message).container(&container.name)
                );
            }
            Ok(container)
        };
        self.pods.find(namespace, pod, check).await
    }
}

impl Sessions {
    /// Waits up to two seconds for the status of a running container to say that it has ended.
    pub async fn ends_soon(&self, pod: &Pod, container: &str) -> bool {
        let mut changes = self.pods.changes();
        let ended = async {
            loop {
                let now = self.pods.get(&pod.namespace, &pod.name).filter(|p| p.uid == pod.uid);
                if !now.is_some_and(|p| p.container(container).is_some_and(Container::is_running)) {
                    return true;
                }
                if changes.changed().await.is_err() {
                    return false;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(2), ended).await.unwrap_or(false)
    }
}

impl Session {
    /// Whether its container or its pod has ended, or it expired before it ran.
    pub fn has_ended(&self) -> bool {
        matches!(self.container.state, ContainerState::Terminated { .. })
            || matches!(self.pod.phase, Phase::Succeeded | Phase::Failed)
            || !self.container.is_running() && self.facts.expires_at <= Timestamp::now()
    }

    /// Who asked for it. None if that cannot be proven.
    pub fn proven_requester(&self) -> Option<&str> {
        self.sealed.then_some(self.facts.requested_by.as_str())
    }

    /// Identifies the session on the node. Its id does not, as another pod's author can copy that.
    pub fn key(&self) -> String {
        format!("{}/{}", self.pod.uid, self.container.name)
    }

    /// Whether it counts against the limits: it runs, or an agent added it and it may still come to
    /// run. One that failed to start holds nothing, though its entry stays as long as its pod.
    fn counts(&self) -> bool {
        let may_start = || {
            self.sealed
                && !matches!(startup::judge(&self.container.state, false), Startup::Failed(_))
        };
        !self.has_ended() && (self.container.is_running() || may_start())
    }
}

fn no_session(pod: &Pod, session: &str) -> Error {
    let names: Vec<_> = pod.ephemeral().map(|c| c.name.as_str()).collect();
    let there =
        if names.is_empty() { "has none".to_owned() } else { format!("has {}", names.join(", ")) };
    Error::new(Reason::SessionNotFound, format!("has no debug session {session:?}; it {there}"))
        .pod(&pod.namespace, &pod.name)
}

fn because(state: &ContainerState) -> String {
    match state {
        ContainerState::Waiting { reason, .. } if !reason.is_empty() => {
            format!(": it is waiting ({reason})")
        }
        ContainerState::Terminated { exit_code, reason, .. } => {
            format!(": it has exited with {exit_code} ({reason})")
        }
        _ => String::new(),
    }
}

/// Makes up a name: `podsonde-` and five characters of an alphabet that forms no words, as
/// Kubernetes does.
fn made_up_name() -> String {
    const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let random = Uuid::new_v4();
    let letters = random
        .as_bytes()
        .iter()
        .take(5)
        .filter_map(|b| ALPHABET.get(usize::from(*b) % ALPHABET.len()));
    format!("podsonde-{}", letters.map(|b| char::from(*b)).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_names_are_labels_and_differ() {
        let names: std::collections::HashSet<_> = (0..50).map(|_| made_up_name()).collect();
        assert!(names.len() > 40);
        assert!(names.iter().all(|n| name::label("name", n).is_ok() && n.len() == 14));
    }
}
