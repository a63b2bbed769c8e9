//! Events on pods: what a pod's owner should see of what was done to it, with `kubectl describe`.
//!
//! Nothing waits for an Event to be written, and one that cannot be written is logged and
//! forgotten. `correlator` keeps a pod's Events few, however often something is done to it.

mod correlator;

use std::{fmt, time::Duration, time::Instant};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::sync::mpsc;
use uuid::Uuid;

use self::correlator::{Correlator, Observed, Told};
use crate::domain::{
    pod::{ContainerKind, Pod},
    text,
};

/// Events that wait to be written; further ones are dropped.
const QUEUE: usize = 256;
/// How long the API server has for one.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest message that the API server takes, in bytes.
const LONGEST: usize = 1024;
/// The component that the Events say they come from.
const COMPONENT: &str = "podsonde-agent";
/// How client-go marks an event that stands for several.
const COMBINED: &str = "(combined from similar events): ";

/// What has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Happened {
    /// A debug container was added to the pod.
    DebugContainerCreated,
    /// A debug container's processes were ended.
    DebugContainerEnded,
    /// A capture of the pod's packets has started.
    CaptureStarted,
    /// It has ended.
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

/// Writes Events about the pods of a node.
#[derive(Clone)]
pub struct Events {
    queue: mpsc::Sender<Pending>,
    node: String,
}

/// An Event that is to be written, and what it is about.
#[derive(Debug)]
struct Pending {
    happened: Happened,
    container: String,
    event: Box<Event>,
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Events {
    /// Events written with the rights of `client`, which are `create` and `patch` of `events`, by a
    /// task of the calling runtime. It ends with the last clone of this.
    pub fn new(client: Client, node: &str) -> Self {
        let (queue, mut pending) = mpsc::channel(QUEUE);
        let mut writer = Writer { client, correlator: Correlator::new() };
        // One after the other: what is told twice must find the object of the first time.
        tokio::spawn(async move {
            while let Some(event) = pending.recv().await {
                writer.write(event).await;
            }
        });
        Self { queue, node: node.to_owned() }
    }

    /// Tells that something happened to a container of the pod. Returns at once.
    pub fn tell(&self, pod: &Pod, container: &str, happened: Happened, message: &str) {
        let event = Box::new(self.event(pod, container, happened, message));
        let pending = Pending { happened, container: container.to_owned(), event };
        if self.queue.try_send(pending).is_err() {
            tracing::warn!(?happened, pod = pod.name, "too many events wait, this one is dropped");
        }
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

/// The task that writes.
struct Writer {
    client: Client,
    correlator: Correlator,
}

impl Writer {
    /// Writes an event as a new object or as one more of an object that there is, or only counts
    /// it.
    async fn write(&mut self, Pending { happened, container, mut event }: Pending) {
        let told = Told {
            pod_uid: event.involved_object.uid.as_deref().unwrap_or_default(),
            container: &container,
            happened,
            message: event.message.as_deref().unwrap_or_default(),
        };
        let Some(observed) = self.correlator.observe(told, Instant::now()) else { return };
        if observed.is_combined {
            let message = event.message.unwrap_or_default();
            event.message = Some(printable(&format!("{COMBINED}{message}")));
        }
        event.count = Some(observed.count);
        let namespace = event.metadata.namespace.clone().unwrap_or_default();
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        match tokio::time::timeout(TIMEOUT, store(&api, &event, &observed)).await {
            Ok(Ok(name)) => self.correlator.named(observed.key, Some(name)),
            Ok(Err(error)) => {
                tracing::warn!(?happened, %error, "cannot write an event");
            }
            Err(_) => tracing::warn!(?happened, "cannot write an event: no answer"),
        }
    }
}

/// Creates the object, or has the one that there is say what happened last and how often. Returns
/// its name.
async fn store(api: &Api<Event>, event: &Event, observed: &Observed) -> kube::Result<String> {
    if let Some(name) = &observed.name {
        let change = json!({
            "count": event.count,
            "lastTimestamp": event.last_timestamp,
            "message": event.message,
        });
        match api.patch(name, &PatchParams::default(), &Patch::Merge(change)).await {
            // The API server keeps Events for an hour, so it is made anew.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            done => return done.map(|_| name.clone()),
        }
    }
    let created = api.create(&PostParams::default(), event).await?;
    Ok(created.metadata.name.unwrap_or_default())
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
    let mut printable = String::new();
    for c in message.chars() {
        let c = if text::is_unsafe(c) { char::REPLACEMENT_CHARACTER } else { c };
        if printable.len() + c.len_utf8() > LONGEST {
            break;
        }
        printable.push(c);
    }
    printable
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
