//! Events on pods: what a pod's owner should see of what was done to it, with `kubectl describe`.
//!
//! They are told as well as can be: nothing waits for them, and what cannot be told is logged and forgotten.

use std::{fmt, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::domain::pod::{ContainerKind, Pod};

/// Events that are under way at a time; further ones are dropped.
const AT_A_TIME: usize = 16;
/// How long the API server has for one.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest message that the API server takes, in bytes.
const LONGEST: usize = 1024;
/// Who tells.
const COMPONENT: &str = "podsonde-agent";

/// What has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happened {
    /// A debug container was added to the pod.
    DebugContainerCreated,
    /// A debug container's processes were ended.
    DebugContainerEnded,
    /// Somebody captures the pod's packets.
    CaptureStarted,
    /// They do not any more.
    CaptureEnded,
}

impl Happened {
    /// The event's `reason` and `action`.
    const fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::DebugContainerCreated => ("DebugContainerCreated", "Create"),
            Self::DebugContainerEnded => ("DebugContainerEnded", "End"),
            Self::CaptureStarted => ("CaptureStarted", "Capture"),
            Self::CaptureEnded => ("CaptureEnded", "EndCapture"),
        }
    }
}

/// Tells of what happens on a node.
#[derive(Clone)]
pub struct Events {
    client: Client,
    node: String,
    places: Arc<Semaphore>,
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Events {
    /// Tells with the rights of `client`: `create events`.
    pub fn new(client: Client, node: &str) -> Self {
        Self { client, node: node.to_owned(), places: Arc::new(Semaphore::new(AT_A_TIME)) }
    }

    /// Tells that something happened to a container of the pod. Returns at once.
    pub fn tell(&self, pod: &Pod, container: &str, happened: Happened, message: &str) {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            tracing::warn!(
                ?happened,
                pod = pod.name,
                "too many events at a time, this one is not told"
            );
            return;
        };
        let event = self.event(pod, container, happened, message);
        let api: Api<Event> = Api::namespaced(self.client.clone(), &pod.namespace);
        tokio::spawn(async move {
            match tokio::time::timeout(TIMEOUT, api.create(&PostParams::default(), &event)).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::warn!(?happened, %error, "cannot create an event"),
                Err(_) => tracing::warn!(?happened, "cannot create an event: no answer"),
            }
            drop(place);
        });
    }

    fn event(&self, pod: &Pod, container: &str, happened: Happened, message: &str) -> Event {
        let (reason, action) = happened.words();
        let now = Some(Time(Timestamp::now()));
        let some = |text: &str| Some(text.to_owned());
        // A name is at most 253 bytes long, and a pod's may be.
        let prefix: String = pod.name.chars().take(200).collect();
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{}.{}", prefix.trim_end_matches('.'), Uuid::new_v4().simple())),
                namespace: some(&pod.namespace),
                ..ObjectMeta::default()
            },
            involved_object: ObjectReference {
                api_version: some("v1"),
                kind: some("Pod"),
                namespace: some(&pod.namespace),
                name: some(&pod.name),
                uid: some(&pod.uid),
                field_path: Some(format!("spec.{}{{{container}}}", list_of(pod, container))),
                ..ObjectReference::default()
            },
            type_: some("Normal"),
            reason: some(reason),
            action: some(action),
            message: Some(printable(message)),
            source: Some(EventSource { component: some(COMPONENT), host: some(&self.node) }),
            reporting_component: some(COMPONENT),
            reporting_instance: some(&self.node),
            count: Some(1),
            first_timestamp: now.clone(),
            last_timestamp: now,
            ..Event::default()
        }
    }
}

/// Which list of the spec has the container. One that was just added is ephemeral.
fn list_of(pod: &Pod, container: &str) -> &'static str {
    match pod.container(container).map(|found| found.kind) {
        Some(ContainerKind::Regular) => "containers",
        Some(ContainerKind::Init | ContainerKind::Sidecar) => "initContainers",
        Some(ContainerKind::Ephemeral) | None => "ephemeralContainers",
    }
}

/// Users may have any name, and kubectl prints messages as they are.
fn printable(message: &str) -> String {
    let mut text = String::new();
    for c in message.chars() {
        let c = if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
        if text.len() + c.len_utf8() > LONGEST {
            break;
        }
        text.push(c);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_short_and_printable() {
        assert_eq!(printable("a\u{1b}[2J\nb"), "a\u{fffd}[2J\u{fffd}b");
        assert_eq!(printable(&"ü".repeat(1000)).len(), LONGEST);
    }
}
