//! How often a pod's owner is told of the same thing, after client-go's `EventCorrelator`.
//! <https://pkg.go.dev/k8s.io/client-go/tools/record#EventCorrelator>
//!
//! Whoever may start captures may start and end them in a loop, and each Event is an object in the
//! API server's store for an hour. So three rules hold, with client-go's figures:
//!
//! 1. An event that says what one before said is no new object: the first one's count grows.
//! 2. After [`MAX_SIMILAR`] events with the same reason and different messages, further ones are
//!    one object with a count, too.
//! 3. A pod has a bucket of [`RATE`]. What is beyond is not written, only counted, so that the next
//!    write tells the whole number.

use std::{
    collections::{HashMap, HashSet, hash_map::RandomState},
    hash::{BuildHasher, Hash},
    time::{Duration, Instant},
};

use super::Happened;
use crate::domain::bucket::{Buckets, Rate};

/// How many writes a pod may cause.
pub(super) const RATE: Rate = Rate { burst: 25, refill: Duration::from_secs(300) };
/// Different messages of one reason on one pod before they are combined.
pub(super) const MAX_SIMILAR: usize = 10;
/// Messages that are further apart than this are not combined, and an event that was last seen so
/// long ago gets a new object. The API server keeps Events for an hour.
const INTERVAL: Duration = Duration::from_secs(600);
/// Entries of each table. Beyond, the oldest are forgotten.
const CAPACITY: usize = 4096;

/// What happened, by the words that decide whether it is the same.
#[derive(Debug, Clone, Copy, Hash)]
pub(super) struct Told<'t> {
    pub(super) pod_uid: &'t str,
    pub(super) container: &'t str,
    pub(super) happened: Happened,
    pub(super) message: &'t str,
}

/// What is to be written of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Observed {
    /// Identifies the object that counts it.
    pub(super) key: u64,
    /// Name of the object if there is one already.
    pub(super) name: Option<String>,
    /// How often it happened.
    pub(super) count: i32,
    /// Whether it stands for events with other messages, too.
    pub(super) is_combined: bool,
}

/// What was told lately. Keys are hashes with a random seed: events that share one by chance would
/// share an object, and nobody can bring that about.
#[derive(Debug)]
pub(super) struct Correlator {
    hasher: RandomState,
    pods: Buckets<u64>,
    similar: HashMap<u64, Similar>,
    objects: HashMap<u64, Object>,
}

#[derive(Debug)]
struct Similar {
    messages: HashSet<u64>,
    seen: Instant,
}

#[derive(Debug)]
struct Object {
    name: Option<String>,
    count: i32,
    seen: Instant,
}

impl Correlator {
    pub(super) fn new() -> Self {
        Self {
            hasher: RandomState::new(),
            pods: Buckets::new(RATE, CAPACITY),
            similar: HashMap::new(),
            objects: HashMap::new(),
        }
    }

    /// Counts an event. None if nothing is to be written of it now.
    pub(super) fn observe(&mut self, told: Told<'_>, now: Instant) -> Option<Observed> {
        let exact = self.key(told);
        let group = self.key((told.pod_uid, told.happened));
        forget(&mut self.similar, group, now, |similar| similar.seen);
        let similar = self
            .similar
            .entry(group)
            .or_insert_with(|| Similar { messages: HashSet::new(), seen: now });
        similar.seen = now;
        let is_combined =
            !similar.messages.contains(&exact) && similar.messages.len() >= MAX_SIMILAR;
        if !is_combined {
            similar.messages.insert(exact);
        }

        let key = if is_combined { group } else { exact };
        forget(&mut self.objects, key, now, |object| object.seen);
        let object = self.objects.entry(key).or_insert(Object { name: None, count: 0, seen: now });
        object.seen = now;
        object.count = object.count.saturating_add(1);
        let observed =
            Observed { key, name: object.name.clone(), count: object.count, is_combined };
        let pod = self.key(told.pod_uid);
        self.pods.take(pod, now).then_some(observed)
    }

    /// Remembers which object counts the events of this key; none if it is gone.
    pub(super) fn named(&mut self, key: u64, name: Option<String>) {
        if let Some(object) = self.objects.get_mut(&key) {
            object.name = name;
        }
    }

    fn key(&self, of: impl Hash) -> u64 {
        self.hasher.hash_one(of)
    }
}

/// Makes room for `key` in a table: drops its entry if that is too old to be continued, and the
/// oldest entries of a full table.
fn forget<V>(table: &mut HashMap<u64, V>, key: u64, now: Instant, seen: impl Fn(&V) -> Instant) {
    let is_old = |value: &V| now.duration_since(seen(value)) > INTERVAL;
    if table.get(&key).is_some_and(is_old) {
        table.remove(&key);
    }
    if table.len() >= CAPACITY && !table.contains_key(&key) {
        table.retain(|_, value| !is_old(value));
        if table.len() >= CAPACITY
            && let Some(oldest) =
                table.iter().min_by_key(|(_, value)| seen(value)).map(|(key, _)| *key)
        {
            table.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(message: &str) -> Told<'_> {
        Told { pod_uid: "u", container: "c", happened: Happened::CaptureStarted, message }
    }

    #[test]
    fn the_same_event_is_counted_in_one_object() {
        let mut correlator = Correlator::new();
        let now = Instant::now();
        let first = correlator.observe(told("a"), now).unwrap();
        assert_eq!((first.count, &first.name, first.is_combined), (1, &None, false));
        correlator.named(first.key, Some("web.1".into()));
        let second = correlator.observe(told("a"), now).unwrap();
        assert_eq!((second.count, second.name.as_deref()), (2, Some("web.1")));
        // The object is gone: the next write makes another, with the whole count.
        correlator.named(first.key, None);
        let third = correlator.observe(told("a"), now).unwrap();
        assert_eq!((third.count, third.name), (3, None));
        // Nobody looks for an event of the day before.
        let later = correlator.observe(told("a"), now + INTERVAL * 2).unwrap();
        assert_eq!(later.count, 1);
    }

    #[test]
    fn different_messages_are_combined_and_a_pod_is_limited() {
        let mut correlator = Correlator::new();
        let now = Instant::now();
        let messages: Vec<String> = (0..10_000).map(|number| format!("capture {number}")).collect();
        let written: Vec<_> =
            messages.iter().filter_map(|message| correlator.observe(told(message), now)).collect();
        assert_eq!(written.len(), 25, "the burst");
        let objects: HashSet<_> = written.iter().map(|observed| observed.key).collect();
        assert_eq!(objects.len(), MAX_SIMILAR + 1);
        assert!(written[MAX_SIMILAR..].iter().all(|observed| observed.is_combined));
        // What was not written has been counted.
        let next = correlator.observe(told("one more"), now + RATE.refill).unwrap();
        assert_eq!((next.count, next.is_combined), (10_001 - 10, true));
        // Another pod has a bucket of its own.
        let other = Told { pod_uid: "v", ..told("capture") };
        assert_eq!(correlator.observe(other, now).unwrap().count, 1);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut correlator = Correlator::new();
        let now = Instant::now();
        for number in 0..CAPACITY + 1000 {
            let uid = number.to_string();
            correlator.observe(Told { pod_uid: &uid, ..told("a") }, now);
        }
        assert_eq!((correlator.objects.len(), correlator.similar.len()), (CAPACITY, CAPACITY));
    }
}
