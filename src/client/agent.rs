//! A connected agent and its calls.

use std::{
    future::Future,
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures::{Stream, StreamExt, stream};
use tonic::transport::Channel;

use super::{credentials::Authenticated, error::Error, options::ConnectOptions, reason::Reason};
use crate::kube::portforward::FarEnd;
use crate::proto::v1::{
    DebugCreateRequest, DebugEndRequest, DebugEndResponse, DebugGetRequest, DebugListRequest,
    NamespacesVerifyNodeRequest, NamespacesVerifyRequest, NodeGetRequest, NodeGetResponse, PodRef,
    PodVerification, Session, debug_client::DebugClient, debug_create_response::Event,
    namespaces_client::NamespacesClient, node_client::NodeClient,
};

/// Most pods accepted in one answer. Kubernetes supports 110 pods on a node, so an agent that sends
/// more than this is broken.
const MOST_PODS: usize = 10_000;
/// Most sessions of one node that are accepted, over all pages.
const MOST_SESSIONS: usize = 50_000;

/// A connected agent. Cheap to clone; clones share the connection.
#[derive(Debug, Clone)]
pub struct Agent {
    name: String,
    channel: Channel,
    options: ConnectOptions,
    /// The far end of a port-forward, which knows why it failed. `None` for other connections.
    far_end: Option<Arc<FarEnd>>,
    /// Why the agent refused the client's certificate, once it has said so.
    refusal: Arc<OnceLock<Error>>,
}

impl Agent {
    pub(super) fn new(name: String, channel: Channel, options: ConnectOptions) -> Self {
        Self { name, channel, options, far_end: None, refusal: Arc::default() }
    }

    /// Attaches the far end of the port-forward that carries the connection.
    pub(super) fn forwarded(self, far_end: Arc<FarEnd>) -> Self {
        Self { far_end: Some(far_end), ..self }
    }

    /// Attaches the place where the TLS stream stores why the client's certificate was refused.
    pub(super) fn secured(self, refusal: Arc<OnceLock<Error>>) -> Self {
        Self { refusal, ..self }
    }

    /// The node on which the agent was found, or the endpoint at which it was reached.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Asks for the agent's version and capabilities, and for its node.
    ///
    /// # Errors
    /// Those of every call: `REQUEST_TIMEOUT`, `CONNECTION_LOST`, and the agent's own errors.
    pub async fn node(&self) -> Result<NodeGetResponse, Error> {
        let mut client = NodeClient::new(self.channel());
        self.answered(async move { Ok(client.get(NodeGetRequest {}).await?.into_inner()) }).await
    }

    /// Verifies the containers of one pod. An empty `container` means all that run.
    ///
    /// # Errors
    /// As documented in `namespaces.proto`.
    pub async fn verify(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
    ) -> Result<PodVerification, Error> {
        let mut client = NamespacesClient::new(self.channel());
        let request = NamespacesVerifyRequest {
            pod: Some(pod_ref(namespace, pod)),
            container: container.to_owned(),
        };
        self.answered(async move {
            let answer = client.verify(request).await?.into_inner();
            answer
                .pod
                .ok_or_else(|| Error::new(Reason::Protocol, "the agent's answer holds no pod"))
        })
        .await
    }

    /// Verifies the pods of the agent's node. An empty `namespace` or `label_selector` selects all.
    ///
    /// # Errors
    /// As documented in `namespaces.proto`, and `PROTOCOL` for more than 10 000 pods.
    pub async fn verify_node(
        &self,
        namespace: &str,
        label_selector: &str,
    ) -> Result<Vec<PodVerification>, Error> {
        let mut client = NamespacesClient::new(self.channel());
        let request = NamespacesVerifyNodeRequest {
            namespace: namespace.to_owned(),
            label_selector: label_selector.to_owned(),
        };
        self.answered(async move {
            let mut answers = client.verify_node(request).await?.into_inner();
            let mut pods = Vec::new();
            while let Some(answer) = answers.message().await? {
                pods.extend(answer.pod);
                at_most(MOST_PODS, pods.len(), "pods")?;
            }
            Ok(pods)
        })
        .await
    }

    /// Creates a debug container. The stream ends after [`Event::Done`], or with an error.
    ///
    /// The agent stops waiting after the request's `start_timeout`. The request timeout does not
    /// apply, so the caller needs a limit of its own.
    ///
    /// # Errors
    /// As documented in `debug.proto`.
    pub async fn create(
        &self,
        request: DebugCreateRequest,
    ) -> Result<impl Stream<Item = Result<Event, Error>> + Send + use<>, Error> {
        let mut client = DebugClient::new(self.channel());
        let answers = client
            .create(request)
            .await
            .map_err(|status| self.explain(status.into()))?
            .into_inner();
        Ok(stream::unfold(Some(answers), async |answers| {
            let mut answers = answers?;
            match answers.message().await {
                Ok(Some(answer)) => match answer.event {
                    Some(Event::Done(done)) => Some((Ok(Event::Done(done)), None)),
                    Some(event) => Some((Ok(event), Some(answers))),
                    None => Some((
                        Err(Error::new(Reason::Protocol, "the agent sent an event without a kind")),
                        None,
                    )),
                },
                Ok(None) => Some((
                    Err(Error::new(
                        Reason::Protocol,
                        "the agent ended its answer without a result",
                    )),
                    None,
                )),
                Err(status) => Some((Err(status.into()), None)),
            }
        })
        .boxed())
    }

    /// Reads one session, by its pod and by the session's id or container name.
    ///
    /// # Errors
    /// As documented in `debug.proto`.
    pub async fn session(
        &self,
        namespace: &str,
        pod: &str,
        session: &str,
    ) -> Result<Session, Error> {
        let mut client = DebugClient::new(self.channel());
        let request =
            DebugGetRequest { pod: Some(pod_ref(namespace, pod)), session: session.to_owned() };
        self.answered(async move {
            let answer = client.get(request).await?.into_inner();
            answer
                .session
                .ok_or_else(|| Error::new(Reason::Protocol, "the agent's answer holds no session"))
        })
        .await
    }

    /// Lists the sessions of the agent's node, newest first, over all pages. An empty `namespace`
    /// means all namespaces.
    ///
    /// # Errors
    /// As documented in `debug.proto`, and `PROTOCOL` for more than 50 000 sessions.
    pub async fn sessions(
        &self,
        namespace: &str,
        include_ended: bool,
    ) -> Result<Vec<Session>, Error> {
        let mut client = DebugClient::new(self.channel());
        let mut request = DebugListRequest {
            namespace: namespace.to_owned(),
            include_ended,
            ..DebugListRequest::default()
        };
        self.answered(async move {
            let mut sessions = Vec::new();
            loop {
                let page = client.list(request.clone()).await?.into_inner();
                if page.sessions.is_empty() && !page.next_page_token.is_empty() {
                    return Err(Error::new(
                        Reason::Protocol,
                        "the agent sent an empty page and promised more",
                    ));
                }
                sessions.extend(page.sessions);
                at_most(MOST_SESSIONS, sessions.len(), "sessions")?;
                if page.next_page_token.is_empty() {
                    return Ok(sessions);
                }
                request.page_token = page.next_page_token;
            }
        })
        .await
    }

    /// Ends a session, given by its id or container name. Extends the request timeout by
    /// `grace_period`.
    ///
    /// # Errors
    /// As documented in `debug.proto`.
    pub async fn end(
        &self,
        namespace: &str,
        pod: &str,
        session: &str,
        grace_period: Duration,
    ) -> Result<DebugEndResponse, Error> {
        let mut client = DebugClient::new(self.channel());
        let request = DebugEndRequest {
            pod: Some(pod_ref(namespace, pod)),
            session: session.to_owned(),
            grace_period: prost_types::Duration::try_from(grace_period).ok(),
        };
        let limit = self.options.request_timeout.map(|limit| limit.saturating_add(grace_period));
        self.within(limit, async move { Ok(client.end(request).await?.into_inner()) }).await
    }

    pub(super) fn channel(&self) -> Authenticated {
        Authenticated::new(self.channel.clone(), self.options.credentials.clone())
    }

    /// Waits for a call to finish within the request timeout.
    pub(super) async fn answered<T>(
        &self,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        self.within(self.options.request_timeout, call).await
    }

    pub(super) fn request_timeout(&self) -> Option<Duration> {
        self.options.request_timeout
    }

    pub(super) async fn within<T>(
        &self,
        limit: Option<Duration>,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let answer = match limit {
            None => call.await,
            Some(limit) => tokio::time::timeout(limit, call).await.unwrap_or_else(|_| {
                let message = format!("the agent at {} did not answer within {limit:?}", self.name);
                Err(Error::new(Reason::RequestTimeout, message))
            }),
        };
        answer.map_err(|error| self.explain(error))
    }

    pub(super) fn explain(&self, error: Error) -> Error {
        if let Some(refusal) = self.refusal.get().filter(|_| error.reason == Reason::ConnectionLost)
        {
            return refusal.clone();
        }
        match &self.far_end {
            Some(far_end) => error.through(far_end, &self.name),
            None => error,
        }
    }
}

pub(super) fn pod_ref(namespace: &str, name: &str) -> PodRef {
    PodRef { namespace: namespace.to_owned(), name: name.to_owned(), uid: String::new() }
}

fn at_most(most: usize, count: usize, what: &str) -> Result<(), Error> {
    if count > most {
        return Err(Error::new(
            Reason::Protocol,
            format!("the agent sent more than {most} {what}"),
        ));
    }
    Ok(())
}
