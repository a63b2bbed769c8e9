//! The objects, their versions and their history: etcd and the watch cache of a real server.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde_json::Value;
use tokio::sync::watch;

use super::{object, resources::Resource, status::ApiStatus};

/// The group and plural of the kind, then namespace and name.
type Key = (&'static str, &'static str, String, String);

/// The objects of every kind.
#[derive(Debug)]
pub(crate) struct Store {
    inner: Mutex<Inner>,
    latest: watch::Sender<u64>,
    /// How many changes the history keeps.
    history: usize,
}

#[derive(Debug, Default)]
struct Inner {
    /// The latest resource version. Every change takes the next one.
    version: u64,
    /// A watch from before this version is refused with 410.
    oldest: u64,
    objects: BTreeMap<Key, Arc<Value>>,
    changes: VecDeque<Change>,
}

/// A change to one object.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) version: u64,
    pub(crate) resource: &'static Resource,
    /// The object before the change; none if the change created it.
    pub(crate) old: Option<Arc<Value>>,
    /// The object after the change; none if the change deleted it.
    pub(crate) new: Option<Arc<Value>>,
}

/// The result of an update's function.
pub(crate) enum Next {
    /// Stores this object.
    Store(Value),
    /// Deletes the object.
    Remove,
    /// Changes nothing and answers with this object.
    Answer(Value),
}

/// The most objects of a cluster.
const MAX_OBJECTS: usize = 20_000;
/// The most changes that one call returns.
const BATCH: usize = 256;

impl Store {
    /// An empty store whose history keeps this many changes.
    pub(crate) fn new(history: usize) -> Self {
        let inner = Inner { version: 1, oldest: 1, ..Inner::default() };
        Self { inner: Mutex::new(inner), latest: watch::Sender::new(1), history }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic leaves the map whole: a change is applied in one step, at the end.
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

    /// The objects of a kind in order, from after this namespace and name, and the store's version.
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

    /// Adds an object under the name in its metadata.
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

    /// Changes one object. No other change to it happens between the call of `change` and its
    /// effect.
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
        // Sent under the lock, so that watchers never see the version go back.
        self.latest.send_replace(version);
    }

    /// The changes after a version, oldest first, and the version up to which they reach. 410 if
    /// the history does not reach back to `version`.
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

    /// A receiver of the latest version.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.latest.subscribe()
    }

    /// The version at which the history begins.
    pub(crate) fn oldest(&self) -> u64 {
        self.lock().oldest
    }

    /// Forgets the history, as a compaction of etcd does.
    pub(crate) fn compact(&self) {
        let mut inner = self.lock();
        // The compaction takes a version, so that a watch from the version before it is too old,
        // too.
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
