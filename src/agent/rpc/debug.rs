//! The service `Debug`.

use std::sync::Arc;

use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use super::{
    convert,
    gate::{Answers, Call, Gate},
    operation::{Operation, Subject, duration_text, enum_text},
};
use crate::{
    agent::{
        access::Method,
        config::Limits,
        expiry::{self, Ended},
        sessions::{Progress, Session, Sessions},
    },
    domain::{
        Error, Reason, Result,
        pod::{Container, ContainerState},
    },
    kube::{
        container,
        events::{Events, Happened},
    },
    proto::v1::{self, debug_create_response::Event, debug_server::Debug},
    sys::containers::Containers,
};

/// Sessions in one page of a list, at most.
const PAGE: usize = 500;

impl Operation for v1::DebugCreateRequest {
    const METHOD: Method = Method::DebugCreate;

    fn subject(&mut self) -> Subject<'_> {
        Subject::Pod(&mut self.pod)
    }

    fn parameters(&self) -> Vec<(&'static str, String)> {
        let image = if self.image.is_empty() {
            container::image_of(&self.container_json).unwrap_or_default()
        } else {
            self.image.clone()
        };
        let profile = enum_text(self.profile, self.profile().as_str_name(), "PROFILE_");
        vec![
            ("name", self.name.clone()),
            ("image", image),
            ("target_container", self.target_container.clone()),
            ("profile", profile),
            ("ttl", duration_text(self.ttl.as_ref())),
        ]
    }
}

impl Operation for v1::DebugGetRequest {
    const METHOD: Method = Method::DebugGet;

    fn subject(&mut self) -> Subject<'_> {
        Subject::Pod(&mut self.pod)
    }

    fn parameters(&self) -> Vec<(&'static str, String)> {
        vec![("session", self.session.clone())]
    }
}

impl Operation for v1::DebugListRequest {
    const METHOD: Method = Method::DebugList;

    fn subject(&mut self) -> Subject<'_> {
        Subject::Pods { namespace: &self.namespace, pod: &self.pod }
    }

    fn parameters(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
}

impl Operation for v1::DebugEndRequest {
    const METHOD: Method = Method::DebugEnd;

    fn subject(&mut self) -> Subject<'_> {
        Subject::Pod(&mut self.pod)
    }

    fn parameters(&self) -> Vec<(&'static str, String)> {
        let grace_period = duration_text(self.grace_period.as_ref());
        vec![("session", self.session.clone()), ("grace_period", grace_period)]
    }
}

/// Serves `Debug`.
pub struct DebugService {
    /// Admits the calls.
    pub gate: Arc<Gate>,
    /// The sessions.
    pub sessions: Arc<Sessions>,
    /// The containers of the node.
    pub containers: Arc<Containers>,
    /// Where pods' owners are told.
    pub events: Events,
    /// How much of everything.
    pub limits: Limits,
    /// Name of the node.
    pub node: String,
}

#[tonic::async_trait]
impl Debug for DebugService {
    type CreateStream = Answers<v1::DebugCreateResponse>;

    async fn create(
        &self,
        request: Request<v1::DebugCreateRequest>,
    ) -> Result<Response<Self::CreateStream>, Status> {
        let (sessions, node, ttl) =
            (Arc::clone(&self.sessions), self.node.clone(), self.limits.ttl());
        let events = self.events.clone();
        // A container that the API server has accepted is to be recorded, whoever hangs up.
        self.gate
            .stream_to_the_end(
                request,
                move |call: Call<v1::DebugCreateRequest>, answers| async move {
                    let request = convert::debug_request(call.message, ttl)?;
                    let by = call.caller.to_string();
                    let (progress, steps) = mpsc::channel(16);
                    let create = sessions.create(&request, &by, call.deadline, &progress);
                    let accepted = |session: &Session| {
                        call.notes.add("container", &session.container.name);
                        call.notes.add("session", &session.facts.id);
                        let Container { name, image, target, .. } = &session.container;
                        let phrase = |word: &str, what: &str| match what {
                            "" => String::new(),
                            what => format!(" {word} {what}"),
                        };
                        let (target, image) = (phrase("for", target), phrase("from image", image));
                        let message = format!("{by} created debug container {name}{target}{image}");
                        events.tell(&session.pod, name, Happened::DebugContainerCreated, &message);
                    };
                    let created = forward(create, steps, &answers, &node, accepted)
                        .await
                        .inspect_err(|error| {
                            // Whatever became of it, this is the name to look for.
                            call.notes.add("container", &error.context.container);
                        })?;
                    send(&answers, Event::Done(convert::created(&created, &node))).await;
                    Ok(())
                },
            )
            .await
    }

    async fn get(
        &self,
        request: Request<v1::DebugGetRequest>,
    ) -> Result<Response<v1::DebugGetResponse>, Status> {
        let act = |call: Call<v1::DebugGetRequest>| async move {
            let (namespace, pod, uid) = convert::pod_ref(call.message.pod.as_ref())?;
            let wanted = convert::session_name(&call.message.session)?;
            let found = self.sessions.get(&namespace, &pod, &uid, wanted).await?;
            Ok(v1::DebugGetResponse { session: Some(convert::session(&found, &self.node)) })
        };
        self.gate.unary(request, act).await
    }

    async fn list(
        &self,
        request: Request<v1::DebugListRequest>,
    ) -> Result<Response<v1::DebugListResponse>, Status> {
        let act = |call: Call<v1::DebugListRequest>| async move { self.page(&call.message) };
        self.gate.unary(request, act).await
    }

    async fn end(
        &self,
        request: Request<v1::DebugEndRequest>,
    ) -> Result<Response<v1::DebugEndResponse>, Status> {
        let (sessions, containers, events) =
            (Arc::clone(&self.sessions), Arc::clone(&self.containers), self.events.clone());
        let act = |call: Call<v1::DebugEndRequest>| async move {
            let (namespace, pod, uid) = convert::pod_ref(call.message.pod.as_ref())?;
            let wanted = convert::session_name(&call.message.session)?;
            let grace = convert::grace_period(call.message.grace_period.as_ref())?;
            let (pod, container) = sessions.started(&namespace, &pod, &uid, wanted).await?;
            call.notes.add("container", &container.name);
            let had_ended = matches!(container.state, ContainerState::Terminated { .. });
            let ended = match expiry::end(&containers, &pod, &container, grace).await {
                // Its processes have just ended, and its status does not say so yet.
                Err(e)
                    if e.reason == Reason::ProcessNotFound
                        && sessions.ends_soon(&pod, &container.name).await =>
                {
                    Ended::default()
                }
                ended => ended?,
            };
            let Ended { signalled, killed, survivors } = ended;
            let outcome = match (survivors, had_ended || signalled == 0) {
                (0, false) => v1::EndOutcome::Ended,
                (0, true) => v1::EndOutcome::AlreadyEnded,
                _ => v1::EndOutcome::Partial,
            };
            for (name, count) in
                [("signalled", signalled), ("killed", killed), ("survivors", survivors)]
            {
                call.notes.add(name, count);
            }
            if signalled > 0 {
                let message = format!("{} ended debug container {}", call.caller, container.name);
                events.tell(&pod, &container.name, Happened::DebugContainerEnded, &message);
            }
            let pod = format!("{}/{}", pod.namespace, pod.name);
            tracing::info!(pod, container = container.name, by = %call.caller, signalled, killed, survivors, "session ended");
            Ok(v1::DebugEndResponse { outcome: outcome.into(), signalled, killed, survivors })
        };
        // Processes that were told to end do, so their end is written down.
        self.gate.unary_to_the_end(request, act).await
    }
}

impl DebugService {
    /// One page of the sessions. The token is the key of the last one of the page before, whose place in the order never changes.
    fn page(&self, request: &v1::DebugListRequest) -> Result<v1::DebugListResponse> {
        let v1::DebugListRequest { namespace, pod, include_ended, page_size, page_token } = request;
        let size = match usize::try_from(*page_size) {
            Ok(size @ 1..=PAGE) => size,
            _ => PAGE,
        };
        let mut sessions = self.sessions.all();
        if !page_token.is_empty() {
            let last = sessions.iter().position(|s| s.key() == *page_token);
            let last = last.ok_or_else(|| {
                Error::invalid("page_token", "is none of this agent's, or its session is gone")
            })?;
            sessions.drain(..=last);
        }
        let wanted = |pod_namespace: &str, pod_name: &str| {
            (namespace.is_empty() || namespace == pod_namespace)
                && (pod.is_empty() || pod == pod_name)
        };
        sessions.retain(|s| {
            wanted(&s.pod.namespace, &s.pod.name) && (*include_ended || !s.has_ended())
        });
        let more = sessions.len() > size;
        sessions.truncate(size);
        let next_page_token =
            sessions.last().filter(|_| more).map(Session::key).unwrap_or_default();
        Ok(v1::DebugListResponse {
            sessions: sessions.iter().map(|s| convert::session(s, &self.node)).collect(),
            next_page_token,
        })
    }
}

/// Runs `create` and sends its steps on while it does. A caller that has hung up is noticed by the
/// steps' receiver being closed, but not before the container is there, or is not: that it was
/// created is to be told in any case.
async fn forward<T>(
    create: impl Future<Output = Result<T>>,
    mut steps: mpsc::Receiver<Progress>,
    answers: &mpsc::Sender<v1::DebugCreateResponse>,
    node: &str,
    accepted: impl Fn(&Session),
) -> Result<T> {
    tokio::pin!(create);
    let (mut listening, mut there) = (true, false);
    let done = loop {
        tokio::select! {
            // What was already told comes before the end.
            biased;
            Some(step) = steps.recv() => {
                if let Progress::Accepted(session) = &step {
                    accepted(session);
                    there = true;
                }
                send(answers, event(step, node)).await;
            }
            done = &mut create => break done,
            () = answers.closed(), if listening && there => {
                listening = false;
                steps.close();
            }
        }
    };
    // What it told of in the same breath in which it ended.
    while let Ok(step) = steps.try_recv() {
        if let Progress::Accepted(session) = &step {
            accepted(session);
        }
        send(answers, event(step, node)).await;
    }
    done
}

fn event(step: Progress, node: &str) -> Event {
    match step {
        Progress::Accepted(session) => {
            Event::Accepted(v1::DebugAccepted { session: Some(convert::session(&session, node)) })
        }
        Progress::Waiting { reason, message } => {
            Event::Progress(v1::DebugProgress { reason, message })
        }
    }
}

/// Nobody listens once the caller has hung up.
async fn send(answers: &mpsc::Sender<v1::DebugCreateResponse>, event: Event) {
    let _ = answers.send(v1::DebugCreateResponse { event: Some(event) }).await;
}
