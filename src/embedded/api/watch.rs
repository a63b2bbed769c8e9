//! Watches: the changes from a version on to the objects that a selector selects.

use std::{collections::VecDeque, io, sync::Arc, time::Duration};

use axum::body::Bytes;
use futures::Stream;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{
    faults::FaultState,
    object,
    request::{RequestOptions, RequestTarget},
    resources::Resource,
    selector::{Selector, in_namespace},
    status::ApiStatus,
    store::{Change, Store},
};

/// The interval of the bookmarks that tell an idle watch the current version.
const BOOKMARK_PERIOD: Duration = Duration::from_secs(60);
/// The duration of a watch that does not name one.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// A change to an object from the point of view of one watch.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ObjectEvent {
    Added(Arc<Value>),
    Modified(Arc<Value>),
    Deleted(Arc<Value>),
}

/// A reader of the store's history that passes on what its selector selects.
pub(crate) struct Watch {
    store: Arc<Store>,
    latest: watch::Receiver<u64>,
    resource: &'static Resource,
    namespace: Option<String>,
    selector: Selector,
    position: u64,
    ready: VecDeque<ObjectEvent>,
}

impl Watch {
    /// Watches the changes after `version`. Version 0 begins with the objects that exist.
    pub(crate) fn new(
        store: &Arc<Store>,
        resource: &'static Resource,
        namespace: Option<String>,
        selector: Selector,
        version: u64,
    ) -> Self {
        let latest = store.subscribe();
        let mut ready = VecDeque::new();
        let mut position = version;
        if version == 0 {
            let (objects, current) = store.list(resource, namespace.as_deref(), None);
            ready.extend(
                objects.into_iter().filter(|o| selector.matches(o)).map(ObjectEvent::Added),
            );
            position = current;
        }
        Self { store: Arc::clone(store), latest, resource, namespace, selector, position, ready }
    }

    /// The next event, or 410 once the history no longer reaches back to this watch. Safe to
    /// cancel.
    pub(crate) async fn next(&mut self) -> Result<ObjectEvent, ApiStatus> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            self.latest.mark_unchanged();
            let (changes, reached) = self.store.changes_after(self.position)?;
            self.position = reached;
            if changes.is_empty() {
                // The store owns the sender, and this watch holds the store.
                let _ = self.latest.changed().await;
                continue;
            }
            let events: Vec<ObjectEvent> =
                changes.into_iter().filter_map(|change| self.event(change)).collect();
            self.ready.extend(events);
        }
    }

    fn event(&self, change: Change) -> Option<ObjectEvent> {
        if !change.resource.is(self.resource) {
            return None;
        }
        let picked = |object: &Arc<Value>| {
            in_namespace(object, self.namespace.as_deref()) && self.selector.matches(object)
        };
        let (old, new) = (change.old.filter(picked), change.new.filter(picked));
        Some(match (old, new) {
            (None, None) => return None,
            (None, Some(new)) => ObjectEvent::Added(new),
            (Some(_), Some(new)) => ObjectEvent::Modified(new),
            (Some(old), None) => {
                // The object was deleted or left the selection: the event has its last selected
                // state, with the version of the change.
                let mut last = Value::clone(&old);
                object::set(
                    &mut last,
                    &["metadata", "resourceVersion"],
                    change.version.to_string(),
                );
                ObjectEvent::Deleted(Arc::new(last))
            }
        })
    }

    /// The version up to which all events were returned.
    fn reached(&self) -> u64 {
        self.position
    }
}

/// The body of a watch's response, one line an event.
struct Body {
    watch: Watch,
    faults: Arc<FaultState>,
    breaks: watch::Receiver<u64>,
    bookmarks: bool,
    /// Whether the bookmark that ends the initial events is still to come.
    initial: bool,
    deadline: Instant,
    next_bookmark: Instant,
    ended: bool,
}

/// Opens a watch. Its body has one JSON object a line.
pub(crate) fn open(
    store: &Arc<Store>,
    faults: &Arc<FaultState>,
    target: &RequestTarget,
    options: &RequestOptions,
) -> Result<impl Stream<Item = io::Result<Bytes>> + Send + use<>, ApiStatus> {
    let selector =
        Selector::parse(target.resource, &options.label_selector, &options.field_selector)?;
    let version = options.version()?;
    if options.send_initial_events && options.resource_version_match != "NotOlderThan" {
        let why = "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
        return Err(ApiStatus::new(
            422,
            "Invalid",
            format!("ListOptions.meta.k8s.io \"\" is invalid: {why}"),
        ));
    }
    let from = if options.send_initial_events { 0 } else { version };
    let namespace = Some(target.namespace.clone()).filter(|ns| !ns.is_empty());
    let now = Instant::now();
    let timeout = options
        .timeout
        .filter(|t| !t.is_zero())
        .unwrap_or(DEFAULT_TIMEOUT)
        .min(DEFAULT_TIMEOUT * 48);
    let body = Body {
        watch: Watch::new(store, target.resource, namespace, selector, from),
        faults: Arc::clone(faults),
        breaks: faults.breaks(),
        bookmarks: options.bookmarks,
        initial: options.send_initial_events && options.bookmarks,
        deadline: now + timeout,
        next_bookmark: now + BOOKMARK_PERIOD,
        ended: false,
    };
    Ok(futures::stream::unfold(body, |mut body| async move {
        let line = body.next().await?;
        Some((line, body))
    }))
}

/// A body of one `ERROR` event, by which a watch that cannot begin reports why.
pub(crate) fn error_line(status: &ApiStatus) -> Bytes {
    line("ERROR", &status.to_object())
}

fn line(kind: &str, object: &Value) -> Bytes {
    Bytes::from(format!("{}\n", json!({ "type": kind, "object": object })))
}

impl Body {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        if self.ended {
            return None;
        }
        if self.initial && self.watch.ready.is_empty() {
            self.initial = false;
            return Some(Ok(self.bookmark(true)));
        }
        let next = tokio::select! {
            biased;
            _ = self.breaks.changed() => {
                self.ended = true;
                // An error in the body makes the connection end without its last chunk.
                return Some(Err(io::Error::new(io::ErrorKind::ConnectionReset, "the watch was broken on purpose")));
            }
            next = self.watch.next() => next,
            () = sleep_until(self.next_bookmark), if self.bookmarks => {
                self.next_bookmark += BOOKMARK_PERIOD;
                return Some(Ok(self.bookmark(false)));
            }
            () = sleep_until(self.deadline) => {
                self.ended = true;
                return self.bookmarks.then(|| Ok(self.bookmark(false)));
            }
        };
        self.faults.wait().await;
        Some(Ok(match next {
            Ok(ObjectEvent::Added(object)) => line("ADDED", &object),
            Ok(ObjectEvent::Modified(object)) => line("MODIFIED", &object),
            Ok(ObjectEvent::Deleted(object)) => line("DELETED", &object),
            Err(status) => {
                self.ended = true;
                error_line(&status)
            }
        }))
    }

    fn bookmark(&self, initial: bool) -> Bytes {
        let resource = self.watch.resource;
        let mut object = json!({
            "kind": resource.kind, "apiVersion": resource.api_version(),
            "metadata": { "resourceVersion": self.watch.reached().to_string() },
        });
        if initial {
            object::set(
                &mut object,
                &["metadata", "annotations", "k8s.io/initial-events-end"],
                "true",
            );
        }
        line("BOOKMARK", &object)
    }
}
