//! Debug sessions: from a request to a container that runs and is verified; listing; ending.
//!
//! A session *is* its ephemeral container. The agent keeps nothing of it: what it knows it reads from its watch of the node's pods, so
//! a restart loses nothing.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use kube::Client;
use tokio::{sync::mpsc, time::timeout_at};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

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
    kube::{container, ephemeral, pods::Pods},
};

/// At the end of a wait, the API server has so long to say how the container fares, at most a quarter of the caller's time.
const LAST_LOOK: Duration = Duration::from_secs(1);

/// The sessions of the node.
pub struct Sessions {
    client: Client,
    pods: Arc<Pods>,
    verifier: Arc<Verifier>,
    limits: Limits,
    drain: CancellationToken,
}

/// A session: its container in its pod.
#[derive(Debug, Clone)]
pub struct Session {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Its facts.
    pub facts: SessionFacts,
    /// The container.
    pub container: Container,
}

/// A step of [`Sessions::create`].
#[derive(Debug)]
pub enum Progress {
    /// The API server accepted the container.
    Accepted(Box<Session>),
    /// The kubelet's reason and message have changed.
    Waiting {
        /// The reason.
        reason: String,
        /// The message.
        message: String,
    },
}

/// What came of [`Sessions::create`].
#[derive(Debug)]
pub struct Created {
    /// The session.
    pub session: Session,
    /// What was found about its namespaces. None if it has exited before it could be looked at.
    pub report: Option<ContainerReport>,
    /// The agent's own share of the time it took.
    pub agent_time: Duration,
}

impl Sessions {
    /// Sessions on the pods that `pods` knows.
    pub fn new(
        client: Client,
        pods: Arc<Pods>,
        verifier: Arc<Verifier>,
        limits: Limits,
        drain: CancellationToken,
    ) -> Self {
        Self { client, pods, verifier, limits, drain }
    }

    /// Creates a debug container, waits until it runs, verifies it. Tells of its steps through `progress`. Has come to a result when
    /// `deadline` comes, at which the caller stops listening.
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

        let definition = container::define(request, &container.name, &facts)?;
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
        tracing::info!(session = facts.id, pod = %format_args!("{}/{}", pod.namespace, pod.name), container = container.name,
            target = container.target, image = container.image, by = facts.requested_by, "debug container added");
        let session = Session { pod: Arc::clone(&pod), facts, container };
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

    /// Checks what the API server would accept and never start, and settles name, target and facts.
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
                "is a static pod: the kubelet runs it from a file, so no debug container can be added",
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
                    "the target {target} is itself a debug container; it must be a regular or init container"
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
            let message = "the pod has, or had, a container of that name, and names of debug containers are never free again";
            return Err(Error::new(Reason::NameTaken, message).container(&name));
        }
        let running: Vec<_> = self.all().into_iter().filter(Session::may_run).collect();
        let of_namespace = running.iter().filter(|s| s.pod.namespace == pod.namespace).count();
        let Limits { max_sessions, max_sessions_per_namespace, .. } = self.limits;
        let message = if of_namespace >= max_sessions_per_namespace {
            format!(
                "namespace {} has {of_namespace} sessions on this node, as many as one may have; end one",
                pod.namespace
            )
        } else if running.len() >= max_sessions {
            format!("the node has {max_sessions} sessions, as many as it may have; end one")
        } else {
            String::new()
        };
        if !message.is_empty() {
            return Err(Error::new(Reason::TooManySessions, message));
        }
        let now = Timestamp::now();
        let facts = SessionFacts {
            id: Uuid::new_v4().to_string(),
            requested_by: requested_by.to_owned(),
            created_at: now,
            expires_at: now
                .checked_add(request.ttl)
                .map_err(|e| Error::invalid("ttl", e.to_string()))?,
        };
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

    /// All sessions of the node, newest first.
    pub fn all(&self) -> Vec<Session> {
        let mut sessions: Vec<_> = self.pods.all().iter().flat_map(of_pod).collect();
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
            of_pod(pod).find(is_it).ok_or_else(|| no_session(pod, session))
        };
        self.pods.find(namespace, pod, check).await.map(|(_, session)| session)
    }

    /// The container of a session, or any ephemeral container by name, that has processes to end, or has had.
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
                let message = "has not started, so it has no process to end; should it start after its time, it is ended then";
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
    /// Whether the status of a container that should run comes to say that it does not, within two seconds.
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
    /// Whether its container has run and ended, or its pod has, or its time was over before it ran.
    pub fn has_ended(&self) -> bool {
        matches!(self.container.state, ContainerState::Terminated { .. })
            || matches!(self.pod.phase, Phase::Succeeded | Phase::Failed)
            || !self.container.is_running() && self.facts.expires_at <= Timestamp::now()
    }

    /// Whether it runs, or is on the way to it. One that failed to start holds nothing, and its entry stays for as long as its pod.
    fn may_run(&self) -> bool {
        !self.has_ended()
            && !matches!(startup::judge(&self.container.state, false), Startup::Failed(_))
    }
}

fn of_pod(pod: &Arc<Pod>) -> impl Iterator<Item = Session> {
    pod.ephemeral().filter_map(|c| {
        Some(Session { pod: Arc::clone(pod), facts: c.session.clone()?, container: c.clone() })
    })
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

/// `podsonde-` and five characters, from those that make no words, as Kubernetes makes names up.
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

async fn tell(progress: &mpsc::Sender<Progress>, step: Progress) -> Result<()> {
    progress.send(step).await.map_err(|_| Error::new(Reason::PeerGone, "the caller has hung up"))
}

/// Waiting for a container that was accepted.
struct Wait<'a> {
    sessions: &'a Sessions,
    session: &'a Session,
    request: &'a DebugRequest,
    /// The target's id when the request came.
    target: Option<&'a crate::domain::pod::ContainerId>,
    start_by: Instant,
    /// How long the last look may take after that.
    last_look: Duration,
    progress: &'a mpsc::Sender<Progress>,
}

/// What a look at the container came to.
enum Look {
    /// It runs and was verified, or has exited.
    Done(Created),
    /// It should run, and no process of it was found.
    InVain(Created),
    /// It does not run yet: the kubelet's reason and message.
    Pending(String, String),
}

impl Wait<'_> {
    async fn run(
        &self,
        mut changes: tokio::sync::watch::Receiver<u64>,
        clock: &mut Clock,
    ) -> Result<Created> {
        let mut last = (String::new(), String::new());
        let (mut seen, mut give_up) = (false, None);
        loop {
            changes.mark_unchanged();
            let now = self.now(&mut seen, clock).await?;
            let mut until = self.start_by;
            match self.look(now, clock).await? {
                Look::Done(created) => return Ok(created),
                // It may have exited, or its target been restarted, between the status and the look at it: a change of the pod tells.
                // Should none come soon, what is known is the answer.
                Look::InVain(created) => {
                    let give_up =
                        *give_up.get_or_insert_with(|| Instant::now() + Duration::from_secs(1));
                    if Instant::now() >= give_up {
                        return Ok(created);
                    }
                    until = until.min(give_up);
                }
                Look::Pending(reason, message) => {
                    let step = (reason, message);
                    if step != last {
                        let (reason, message) = step.clone();
                        tell(self.progress, Progress::Waiting { reason, message }).await?;
                        last = step;
                    }
                }
            }
            tokio::select! {
                changed = clock.outside(timeout_at(until.into(), changes.changed())) => match changed {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return Err(Error::new(Reason::Bug, "the watch of pods has ended")),
                    Err(_) if until < self.start_by => {}
                    Err(_) => return self.last_look(&last, clock).await,
                },
                () = self.sessions.drain.cancelled() => {
                    return Err(Error::new(Reason::Draining, "the agent is shutting down; the container may still start"));
                }
                () = self.progress.closed() => return Err(Error::new(Reason::PeerGone, "the caller has hung up")),
            }
        }
    }

    /// The session as the watch has it. The watch may not have come to the pod yet, and then the API server is asked: a pod is gone if the
    /// watch knew it, or the API server does not.
    async fn now(&self, seen: &mut bool, clock: &mut Clock) -> Result<Session> {
        let asked = &self.session.pod;
        let known =
            self.sessions.pods.get(&asked.namespace, &asked.name).filter(|p| p.uid == asked.uid);
        let pod = match known {
            Some(pod) => {
                *seen = true;
                Some(pod)
            }
            None if *seen => None,
            None => match clock.outside(self.sessions.pods.current(asked)).await {
                Ok(found) => found,
                // It was there a moment ago, and the last look tells if it is not.
                Err(_) => Some(Arc::clone(asked)),
            },
        };
        self.session_on(pod)
    }

    /// The session on its pod as it is now.
    fn session_on(&self, pod: Option<Arc<Pod>>) -> Result<Session> {
        let deleted =
            || Error::new(Reason::PodDeleted, "was deleted while its debug container was starting");
        let pod = pod.ok_or_else(deleted)?;
        if matches!(pod.phase, Phase::Succeeded | Phase::Failed) {
            return Err(Error::new(
                Reason::PodFinished,
                "ended while its debug container was starting",
            ));
        }
        // The watch may be behind the API server's answer: then the container is not there yet.
        let container =
            pod.container(&self.session.container.name).unwrap_or(&self.session.container).clone();
        if pod.terminating && container.state != ContainerState::Running {
            return Err(deleted());
        }
        Ok(Session { pod, facts: self.session.facts.clone(), container })
    }

    async fn look(&self, now: Session, clock: &mut Clock) -> Result<Look> {
        Ok(match startup::judge(&now.container.state, self.request.wait_for_image) {
            Startup::Failed(error) => return Err(error),
            Startup::Exited => Look::Done(clock.created(now, None)),
            Startup::Running => {
                let report = self.verify(&now).await?;
                let in_vain = report.process.is_none()
                    || report.verdict.reason == Some(Reason::TargetNotRunning);
                let created = clock.created(now, Some(report));
                if in_vain { Look::InVain(created) } else { Look::Done(created) }
            }
            Startup::Pending { reason, message } => Look::Pending(reason, message),
        })
    }

    /// Time is up. The watch may have been cut off from the API server, so that one is asked how things stand.
    async fn last_look(&self, last: &(String, String), clock: &mut Clock) -> Result<Created> {
        let too_late = |state: String| {
            Err(Error::new(
                Reason::StartDeadline,
                format!("the container did not run in time; {state}"),
            ))
        };
        let look = async {
            let pod = clock.outside(self.sessions.pods.current(&self.session.pod)).await?;
            self.look(self.session_on(pod)?, clock).await
        };
        let (reason, message) =
            match timeout_at((self.start_by + self.last_look).into(), look).await {
                Ok(Err(error)) => return Err(error),
                Ok(Ok(Look::Done(created) | Look::InVain(created))) => return Ok(created),
                Ok(Ok(Look::Pending(reason, message))) if !reason.is_empty() => (reason, message),
                Ok(Ok(Look::Pending(..))) => last.clone(),
                Err(_) => {
                    return too_late("the API server does not say how it fares".to_owned());
                }
            };
        too_late(match (reason.as_str(), message.as_str()) {
            ("", _) => "the kubelet has said nothing about it".to_owned(),
            (reason, "") => format!("it is waiting ({reason})"),
            (reason, message) => format!("it is waiting ({reason}): {message}"),
        })
    }

    async fn verify(&self, now: &Session) -> Result<ContainerReport> {
        let target = now.pod.container(&now.container.target).and_then(|c| c.id.as_ref());
        if let (Some(old), Some(new)) = (self.target, target)
            && old != new
        {
            let message = format!(
                "the target {} was restarted meanwhile and is now {new}",
                now.container.target
            );
            return Err(Error::new(Reason::ContainerRestarted, message));
        }
        let name = now.container.name.clone();
        let mut reports =
            self.sessions.verifier.verify(vec![Arc::clone(&now.pod)], Some(name)).await?;
        let report = reports.pop().and_then(|mut r| r.containers.pop());
        report
            .ok_or_else(|| Error::new(Reason::Bug, "the verifier did not report on the container"))
    }
}

/// Measures the agent's own share of a request's time.
struct Clock {
    started: Instant,
    outside: Duration,
}

impl Clock {
    fn start() -> Self {
        Self { started: Instant::now(), outside: Duration::ZERO }
    }

    /// Awaits something that is not the agent's: the API server, the kubelet.
    async fn outside<T>(&mut self, wait: impl Future<Output = T>) -> T {
        let began = Instant::now();
        let result = wait.await;
        self.outside += began.elapsed();
        result
    }

    fn created(&self, session: Session, report: Option<ContainerReport>) -> Created {
        Created { session, report, agent_time: self.started.elapsed().saturating_sub(self.outside) }
    }
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
