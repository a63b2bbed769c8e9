//! All agents of a cluster: finds the right one, and sends requests to many at once.

use std::{collections::BTreeMap, future::Future};

use futures::{StreamExt, stream};
use kube::Client;

use super::{
    agent::Agent,
    connect,
    endpoint::Endpoint,
    error::Error,
    options::{ConnectOptions, Traffic},
    reason::Reason,
};
use crate::domain::Reason as AgentReason;
use crate::kube::agents::{self, AGENT_NAMESPACE, AgentPod};

/// The agents that can be asked: either one named agent, or all that the cluster runs.
#[derive(Clone)]
pub struct Fleet {
    route: Route,
    options: ConnectOptions,
}

#[derive(Clone)]
enum Route {
    Direct(Endpoint),
    Cluster { client: Client, namespace: String },
}

/// Where an agent is, or why there is none.
#[derive(Debug, Clone)]
pub struct AgentLocation {
    /// The node's name, or the endpoint when the agent is asked directly.
    pub name: String,
    target: Destination,
}

#[derive(Debug, Clone)]
enum Destination {
    Endpoint(Endpoint),
    Pod(AgentPod),
    Nowhere(Error),
}

/// One part of a request to many agents that failed.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The object of the request: `node n1`, `pod default/web`.
    pub subject: String,
    /// Why this part failed.
    pub error: Error,
}

/// The answers of many agents.
#[derive(Debug)]
pub struct Gathered<T> {
    /// The answers, in the order of the locations that were asked.
    pub answers: Vec<T>,
    /// The failures, in the same order.
    pub failures: Vec<Failure>,
}

/// Groups failures by their reason, because a person acts on the reason: one missing permission can
/// fail on a thousand nodes.
#[must_use]
pub fn by_reason(failures: &[Failure]) -> BTreeMap<&str, Vec<&Failure>> {
    let mut groups: BTreeMap<&str, Vec<&Failure>> = BTreeMap::new();
    for failure in failures {
        groups.entry(failure.error.reason.as_str()).or_default().push(failure);
    }
    groups
}

impl Fleet {
    /// Uses only the agent that listens at `endpoint`.
    #[must_use]
    pub fn direct(endpoint: Endpoint, options: ConnectOptions) -> Self {
        Self { route: Route::Direct(endpoint), options }
    }

    /// Uses the agents of a cluster, reached by port-forward through its API server. `namespace` is
    /// where they are installed; `None` means `podsonde`.
    #[must_use]
    pub fn cluster(client: Client, namespace: Option<&str>, options: ConnectOptions) -> Self {
        let namespace = namespace.unwrap_or(AGENT_NAMESPACE).to_owned();
        Self { route: Route::Cluster { client, namespace }, options }
    }

    /// Finds the agent of the node that a pod runs on.
    ///
    /// # Errors
    /// `POD_NOT_FOUND`, `POD_NOT_SCHEDULED`, and the `API_…` reasons. If the node has no agent,
    /// [`Fleet::connect`] says so.
    pub async fn place_of_pod(&self, namespace: &str, pod: &str) -> Result<AgentLocation, Error> {
        let client = match &self.route {
            Route::Direct(endpoint) => return Ok(AgentLocation::direct(endpoint)),
            Route::Cluster { client, .. } => client,
        };
        let about = |error: Error| error.about("namespace", namespace).about("pod", pod);
        let doing = format!("get pod {namespace}/{pod}");
        match self.api(&doing, agents::node_of(client, namespace, pod)).await {
            Ok(Some(node)) => self.place_of_node(&node).await,
            Ok(None) => {
                let message = format!("pod {namespace}/{pod} has not been scheduled to a node yet");
                Err(about(Error::new(Reason::Agent(AgentReason::PodNotScheduled), message)))
            }
            Err(error) if error.reason == Reason::ApiNotFound => Err(about(Error::new(
                Reason::Agent(AgentReason::PodNotFound),
                format!("there is no pod {namespace}/{pod}"),
            ))),
            Err(error) => Err(about(error)),
        }
    }

    /// Finds the agent of a node.
    ///
    /// # Errors
    /// The `API_…` reasons. If the node has no agent, [`Fleet::connect`] says so.
    pub async fn place_of_node(&self, node: &str) -> Result<AgentLocation, Error> {
        let (client, namespace) = match &self.route {
            Route::Direct(endpoint) => return Ok(AgentLocation::direct(endpoint)),
            Route::Cluster { client, namespace } => (client, namespace),
        };
        let doing = format!("list pods in namespace {namespace}");
        let found = self.api(&doing, agents::on_node(client, namespace, node)).await;
        Ok(place(node, found.map_err(|error| error.about("node", node))?, namespace))
    }

    /// Finds the agents of all nodes. If the user may not list nodes, it returns only the nodes
    /// that have an agent.
    ///
    /// # Errors
    /// The `API_…` reasons.
    pub async fn places(&self) -> Result<Vec<AgentLocation>, Error> {
        let (client, namespace) = match &self.route {
            Route::Direct(endpoint) => return Ok(vec![AgentLocation::direct(endpoint)]),
            Route::Cluster { client, namespace } => (client, namespace),
        };
        let mut found = self.agents(client, namespace).await?;
        let nodes = match self.api("list nodes", agents::node_names(client)).await {
            Err(error) if error.reason == Reason::ApiForbidden => {
                tracing::warn!("nodes may not be listed: a node without an agent is not missed");
                Default::default()
            }
            nodes => nodes?,
        };
        let nodes = nodes
            .into_iter()
            .chain(found.keys().cloned())
            .collect::<std::collections::BTreeSet<_>>();
        Ok(nodes.iter().map(|node| place(node, found.remove(node), namespace)).collect())
    }

    /// Finds the agents of the nodes that run pods with these labels. A `namespace` of `None` means
    /// all namespaces.
    ///
    /// # Errors
    /// The `API_…` reasons.
    pub async fn places_of(
        &self,
        namespace: Option<&str>,
        selector: &str,
    ) -> Result<Vec<AgentLocation>, Error> {
        let (client, own) = match &self.route {
            Route::Direct(endpoint) => return Ok(vec![AgentLocation::direct(endpoint)]),
            Route::Cluster { client, namespace } => (client, namespace),
        };
        let doing = format!("list pods with labels {selector}");
        let nodes = self.api(&doing, agents::nodes_with(client, namespace, selector)).await?;
        let mut found = self.agents(client, own).await?;
        Ok(nodes.iter().map(|node| place(node, found.remove(node), own)).collect())
    }

    /// Connects to an agent, for calls.
    ///
    /// # Errors
    /// `AGENT_NOT_FOUND`, `AGENT_NOT_READY`, `AGENT_UNREACHABLE`, `PORT_FORWARD_FAILED` and the
    /// `API_…` reasons.
    pub async fn connect(&self, place: &AgentLocation) -> Result<Agent, Error> {
        self.connect_with(place, &self.options).await
    }

    /// Connects to an agent for a stream that can fill the network. Such a stream needs a
    /// connection of its own, with larger windows than calls need. `streams` is the number of such
    /// streams that run at the same time; they share the memory for their windows.
    ///
    /// # Errors
    /// Those of [`Fleet::connect`].
    pub async fn connect_bulk(
        &self,
        place: &AgentLocation,
        streams: usize,
    ) -> Result<Agent, Error> {
        let options = ConnectOptions { traffic: Traffic::Bulk(streams), ..self.options.clone() };
        self.connect_with(place, &options).await
    }

    async fn connect_with(
        &self,
        place: &AgentLocation,
        options: &ConnectOptions,
    ) -> Result<Agent, Error> {
        match (&place.target, &self.route) {
            (Destination::Nowhere(error), _) => Err(error.clone()),
            (Destination::Pod(pod), Route::Cluster { client, .. }) => {
                connect::connect_pod(client.clone(), pod, options).await
            }
            (Destination::Endpoint(endpoint), _)
            | (Destination::Pod(_), Route::Direct(endpoint)) => {
                connect::connect(endpoint, options).await
            }
        }
    }

    /// Connects to all these agents, at most [`ConnectOptions::concurrency`] at a time. Sends each
    /// of them `question` with the value that stands beside its location. A failure does not stop
    /// the others.
    pub async fn gather<W, T, F>(
        &self,
        places: Vec<(AgentLocation, W)>,
        question: impl Fn(Agent, W) -> F,
    ) -> Gathered<T>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let question = &question;
        let asked = stream::iter(places).enumerate().map(|(index, (place, with))| async move {
            let answer = match self.connect(&place).await {
                Ok(agent) => question(agent, with).await,
                Err(error) => Err(error),
            };
            (index, answer.map_err(|error| Failure { subject: place.subject(), error }))
        });
        // Unordered, because one slow agent would otherwise hold up those that wait for their turn.
        let mut answers: Vec<_> =
            asked.buffer_unordered(self.options.concurrency.max(1)).collect().await;
        answers.sort_unstable_by_key(|(index, _)| *index);
        let mut gathered = Gathered { answers: Vec::new(), failures: Vec::new() };
        for (_, answer) in answers {
            match answer {
                Ok(answer) => gathered.answers.push(answer),
                Err(failure) => gathered.failures.push(failure),
            }
        }
        gathered
    }

    async fn agents(
        &self,
        client: &Client,
        namespace: &str,
    ) -> Result<BTreeMap<String, AgentPod>, Error> {
        self.api(&format!("list pods in namespace {namespace}"), agents::all(client, namespace))
            .await
    }

    async fn api<T>(
        &self,
        doing: &str,
        call: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Error> {
        let answer = match self.options.request_timeout {
            None => call.await,
            Some(limit) => tokio::time::timeout(limit, call).await.map_err(|_| {
                Error::new(
                    Reason::Agent(AgentReason::ApiUnreachable),
                    format!("cannot {doing}: no answer within {limit:?}"),
                )
            })?,
        };
        answer.map_err(|error| Error::from_kube(&error, doing))
    }
}

impl AgentLocation {
    fn direct(endpoint: &Endpoint) -> Self {
        Self { name: endpoint.to_string(), target: Destination::Endpoint(endpoint.clone()) }
    }

    /// Names the agent in messages: `node n1`, `agent unix:///run/agent.sock`.
    #[must_use]
    pub fn subject(&self) -> String {
        match self.target {
            Destination::Endpoint(_) => format!("agent {}", self.name),
            Destination::Pod(_) | Destination::Nowhere(_) => format!("node {}", self.name),
        }
    }
}

fn place(node: &str, agent: Option<AgentPod>, namespace: &str) -> AgentLocation {
    let target = match agent {
        Some(pod) if pod.ready => Destination::Pod(pod),
        Some(pod) => {
            let message = format!(
                "the agent on node {node} (pod {}/{}) is not ready",
                pod.namespace, pod.name
            );
            Destination::Nowhere(Error::new(Reason::AgentNotReady, message))
        }
        None => {
            let message = format!(
                "there is no podsonde agent on node {node} (looked in namespace {namespace})"
            );
            Destination::Nowhere(Error::new(Reason::AgentNotFound, message))
        }
    };
    let target = match target {
        Destination::Nowhere(error) => {
            Destination::Nowhere(error.about("node", node).about("agent_namespace", namespace))
        }
        found => found,
    };
    AgentLocation { name: node.to_owned(), target }
}
