//! The objects, their versions and their recent history: what etcd and the watch cache are to a real server.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde_json::Value;
use tokio::sync::watch;

use super::{object, resources::Resource, status::ApiStatus};

/// Group, plural, namespace, name.
type Key = (&'static str, &'static str, String, String);

/// All objects of all kinds.
#[derive(Debug)]
pub(crate) struct Store {
    inner: Mutex<Inner>,
    latest: watch::Sender<u64>,
    /// How many changes are remembered for watches.
    history: usize,
}

#[derive(Debug, Default)]
struct Inner {
    /// The latest resource version. Every change takes the next one.
    version: u64,
    /// Watches from before this version are refused.
    oldest: u64,
    objects: BTreeMap<Key, Arc<Value>>,
    changes: VecDeque<Change>,
}

/// One change to one object.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) version: u64,
    pub(crate) resource: &'static Resource,
    /// The object before; none if it was created.
    pub(crate) old: Option<Arc<Value>>,
    /// The object after; none if it was deleted.
    pub(crate) new: Option<Arc<Value>>,
}

/// What an update comes to.
pub(crate) enum Next {
    /// The object becomes this.
    Store(Value),
    /// The object is gone.
    Remove,
    /// Nothing changes; this is the answer.
    Answer(Value),
}

/// At most this many objects are kept.
const MAX_OBJECTS: usize = 20_000;
/// At most this many changes are handed out at once.
const BATCH: usize = 256;

impl Store {
    /// An empty store that remembers this many changes.
    pub(crate) fn new(history: usize) -> Self {
        let inner = Inner { version: 1, oldest: 1, ..Inner::default() };
        Self { inner: Mutex::new(inner), latest: watch::Sender::new(1), history }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No invariant spans a panic: every change is applied at once, at the end.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(
        &self,
        resource: &'static Resource,
        namespace: &str,
        name: &str,
    ) -> Option<Arc<Value>> {
        self.lock().objects.get(&key(resource, namespace, name)).cloned()
    }

    /// The objects of a kind after this namespace and name, in order, and the version they are of.
    pub(crate) fn list(
        &self,
        resource: &'static Resource,
        namespace: Option<&str>,
        after: Option<(&str, &str)>,
    ) -> (Vec<Arc<Value>>, u64) {
        let inner = self.lock();
        let from = match after {
            Some((namespace, name)) => Bound::Excluded(key(resource, namespace, name)),
            None => Bound::Included(key(resource, namespace.unwrap_or_default(), "")),
        };
        let objects = inner
            .objects
            .range((from, Bound::Unbounded))
            .take_while(|((group, plural, ns, _), _)| {
                (*group, *plural) == (resource.group, resource.plural)
                    && namespace.is_none_or(|wanted| wanted == ns)
            })
            .map(|(_, object)| Arc::clone(object))
            .collect();
        (objects, inner.version)
    }

    /// Adds an object; its metadata names it.
    pub(crate) fn create(
        &self,
        resource: &'static Resource,
        mut new: Value,
    ) -> Result<Arc<Value>, ApiStatus> {
        let mut inner = self.lock();
        let key = key(resource, object::namespace(&new), object::name(&new));
        if inner.objects.contains_key(&key) {
            return Err(ApiStatus::already_exists(resource, &key.3));
        }
        if inner.objects.len() >= MAX_OBJECTS {
            return Err(ApiStatus::internal("etcdserver: mvcc: database space exceeded"));
        }
        let version = inner.next_version();
        set_version(&mut new, version);
        let new = Arc::new(new);
        inner.objects.insert(key, Arc::clone(&new));
        let change = Change { version, resource, old: None, new: Some(Arc::clone(&new)) };
        self.record(inner, change);
        Ok(new)
    }

    /// Changes one object in one step: nothing happens to it between the call of `change` and its effect.
    pub(crate) fn update(
        &self,
        resource: &'static Resource,
        namespace: &str,
        name: &str,
        change: impl FnOnce(&Value) -> Result<Next, ApiStatus>,
    ) -> Result<Arc<Value>, ApiStatus> {
        let mut inner = self.lock();
        let key = key(resource, namespace, name);
        let Some(old) = inner.objects.get(&key).cloned() else {
            return Err(ApiStatus::not_found(resource, name));
        };
        match change(&old)? {
            Next::Answer(object) => Ok(Arc::new(object)),
            Next::Store(mut new) => {
                object::copy(&mut new, &old, &["metadata", "resourceVersion"]);
                if new == *old {
                    return Ok(old);
                }
                let version = inner.next_version();
                set_version(&mut new, version);
                let new = Arc::new(new);
                inner.objects.insert(key, Arc::clone(&new));
                let change =
                    Change { version, resource, old: Some(old), new: Some(Arc::clone(&new)) };
                self.record(inner, change);
                Ok(new)
            }
            Next::Remove => {
                inner.objects.remove(&key);
                let version = inner.next_version();
                let mut last = Value::clone(&old);
                set_version(&mut last, version);
                let last = Arc::new(last);
                self.record(
                    inner,
                    Change { version, resource, old: Some(Arc::clone(&last)), new: None },
                );
                Ok(last)
            }
        }
    }

    fn record(&self, mut inner: MutexGuard<'_, Inner>, change: Change) {
        let version = change.version;
        inner.changes.push_back(change);
        while inner.changes.len() > self.history {
            if let Some(forgotten) = inner.changes.pop_front() {
                inner.oldest = forgotten.version;
            }
        }
        // Under the lock, so that watchers never see the version go back.
        self.latest.send_replace(version);
    }

    /// Changes after a version, oldest first, and the version up to which they reach; 410 if that is
    /// further back than the history.
    pub(crate) fn changes_after(&self, version: u64) -> Result<(Vec<Change>, u64), ApiStatus> {
        let inner = self.lock();
        if version < inner.oldest {
            return Err(ApiStatus::expired(version, inner.oldest));
        }
        let known = inner.changes.partition_point(|change| change.version <= version);
        let changes: Vec<Change> = inner.changes.iter().skip(known).take(BATCH).cloned().collect();
        let reached = changes.last().map_or(version, |change| change.version);
        Ok((changes, reached))
    }

    /// Tells the latest version, and when there is a later one.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.latest.subscribe()
    }

    /// The version before which nothing is remembered.
    pub(crate) fn oldest(&self) -> u64 {
        self.lock().oldest
    }

    /// Forgets the history, as a compaction does.
    pub(crate) fn compact(&self) {
        let mut inner = self.lock();
        // A version of its own, so that a watch from what is now the latest version is too old, too.
        inner.oldest = inner.next_version();
        inner.changes.clear();
        self.latest.send_replace(inner.version);
    }
}

impl Inner {
    fn next_version(&mut self) -> u64 {
        self.version += 1;
        self.version
    }
}

fn key(resource: &'static Resource, namespace: &str, name: &str) -> Key {
    (resource.group, resource.plural, namespace.to_owned(), name.to_owned())
}

fn set_version(object: &mut Value, version: u64) {
    object::set(object, &["metadata", "resourceVersion"], version.to_string());
}
