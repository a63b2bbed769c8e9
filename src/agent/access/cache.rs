//! The API server's answers of the last seconds.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Answers by question, of a limited number and age.
#[derive(Debug)]
pub(super) struct Cache<K, V> {
    entries: Mutex<HashMap<K, (Instant, V)>>,
    lifetime: Duration,
    capacity: usize,
}

impl<K: Eq + Hash, V: Clone> Cache<K, V> {
    /// A cache of `capacity` answers that are given for `lifetime`; none if that is zero.
    pub(super) fn new(lifetime: Duration, capacity: usize) -> Self {
        Self { entries: Mutex::default(), lifetime, capacity }
    }

    /// The answer, unless it is too old.
    pub(super) fn get(&self, key: &K) -> Option<V> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, value) = entries.get(key)?;
        if at.elapsed() < self.lifetime {
            return Some(value.clone());
        }
        entries.remove(key);
        None
    }

    /// Remembers an answer to a question that was asked at `asked`.
    pub(super) fn put(&self, key: K, asked: Instant, value: V) {
        if self.lifetime.is_zero() {
            return;
        }
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= self.capacity {
            entries.retain(|_, (at, _)| at.elapsed() < self.lifetime);
        }
        // Full of what is new: somebody asks too much, and nobody is remembered.
        if entries.len() < self.capacity {
            entries.insert(key, (asked, value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_age_and_are_few() {
        let cache = Cache::new(Duration::from_secs(3600), 2);
        let now = Instant::now();
        for key in [1, 2, 3] {
            cache.put(key, now, key * 10);
        }
        assert_eq!([1, 2, 3].map(|key| cache.get(&key)), [Some(10), Some(20), None]);
        let second = Duration::from_secs(1);
        let cache = Cache::new(second, 2);
        for key in [1, 2] {
            cache.put(key, now.checked_sub(second).unwrap(), 10);
        }
        assert_eq!(cache.get(&1), None);
        // What is too old makes room.
        cache.put(3, Instant::now() + second, 30);
        assert_eq!(cache.get(&3), Some(30));
        let none = Cache::new(Duration::ZERO, 2);
        none.put(1, now, 10);
        assert_eq!(none.get(&1), None);
    }
}
