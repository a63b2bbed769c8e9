//! From an accepted container to one that runs and is verified.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, watch},
    time::timeout_at,
};

use super::{Created, Progress, Session, Sessions};
use crate::{
    agent::verify::ContainerReport,
    domain::{
        Error, Reason, Result,
        debug::DebugRequest,
        pod::{ContainerId, ContainerState, Phase, Pod},
        startup::{self, Startup},
    },
};

pub(super) async fn tell(progress: &mpsc::Sender<Progress>, step: Progress) -> Result<()> {
    progress.send(step).await.map_err(|_| Error::new(Reason::PeerGone, "the caller has hung up"))
}

/// The wait for a container that the API server accepted.
pub(super) struct Wait<'a> {
    pub(super) sessions: &'a Sessions,
    pub(super) session: &'a Session,
    pub(super) request: &'a DebugRequest,
    /// The id that the target had when the request arrived.
    pub(super) target: Option<&'a ContainerId>,
    pub(super) start_by: Instant,
    /// How long the last look may take after `start_by`.
    pub(super) last_look: Duration,
    pub(super) progress: &'a mpsc::Sender<Progress>,
}

/// What a look at the container showed.
enum Look {
    /// The container runs and was verified, or has exited.
    Done(Created),
    /// The container should run, but no process of it was found.
    InVain(Created),
    /// The container does not run yet: the kubelet's reason and message.
    Pending(String, String),
}

impl Wait<'_> {
    pub(super) async fn run(
        &self,
        mut changes: watch::Receiver<u64>,
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
                // The container may have exited, or its target restarted, between the status and
                // this look. A change of the pod tells; if none comes within a second, this is the
                // answer.
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
                next = clock.outside(timeout_at(until.into(), changes.changed())) => match next {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => {
                        return Err(Error::new(Reason::Bug, "the watch of pods has ended"));
                    }
                    Err(_) if until < self.start_by => {}
                    Err(_) => return self.last_look(&last, clock).await,
                },
                () = self.sessions.drain.cancelled() => {
                    let message = "the agent is shutting down; the container may still start";
                    return Err(Error::new(Reason::Draining, message));
                }
                () = self.progress.closed() => {
                    return Err(Error::new(Reason::PeerGone, "the caller has hung up"));
                }
            }
        }
    }

    /// The session as the watch has it. A pod that the watch once showed and no longer does is
    /// gone. One that it has not shown yet is asked for at the API server.
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
                // The pod existed a moment ago. The last look will tell if it does not.
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
        Ok(Session { pod, container, ..self.session.clone() })
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

    /// Asks the API server how the container fares, once the time is up: the watch may have been
    /// cut off.
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

/// Measures the agent's own share of the time that a request takes.
pub(super) struct Clock {
    started: Instant,
    outside: Duration,
}

impl Clock {
    pub(super) fn start() -> Self {
        Self { started: Instant::now(), outside: Duration::ZERO }
    }

    /// Awaits the API server or the kubelet, whose time is not the agent's.
    pub(super) async fn outside<T>(&mut self, wait: impl Future<Output = T>) -> T {
        let began = Instant::now();
        let result = wait.await;
        self.outside += began.elapsed();
        result
    }

    fn created(&self, session: Session, report: Option<ContainerReport>) -> Created {
        Created { session, report, agent_time: self.started.elapsed().saturating_sub(self.outside) }
    }
}
