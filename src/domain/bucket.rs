//! Token buckets: how often something may happen, for each of the things that cause it.

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

/// How often something may happen: `burst` times at once, then once each `refill`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How often it may happen without a pause.
    pub burst: u32,
    /// How long one more time takes to be earned.
    pub refill: Duration,
}

/// A bucket of one cause: full at first, emptied by what happens, refilled by time.
///
/// Its state is one point in time, the one at which it will be full again. Taking a token moves
/// that point by [`Rate::refill`]; there is none to take if it would come to lie further away than
/// a whole burst.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    full_at: Instant,
}

impl Bucket {
    fn take(&mut self, rate: Rate, now: Instant) -> bool {
        let full_at = self.full_at.max(now) + rate.refill;
        let allowed = full_at.duration_since(now) <= rate.refill.saturating_mul(rate.burst);
        if allowed {
            self.full_at = full_at;
        }
        allowed
    }
}

/// Buckets by cause, up to a fixed number. A full bucket is as good as none and is forgotten.
#[derive(Debug)]
pub struct Buckets<K> {
    rate: Rate,
    capacity: usize,
    buckets: HashMap<K, Bucket>,
}

impl<K: Eq + Hash> Buckets<K> {
    /// Buckets with this rate for up to `capacity` causes at a time.
    pub fn new(rate: Rate, capacity: usize) -> Self {
        Self { rate, capacity, buckets: HashMap::new() }
    }

    /// Whether it may happen once more because of `cause`. Where there are more causes at a time
    /// than buckets, further ones may not: whoever makes up causes gains nothing.
    pub fn take(&mut self, cause: K, now: Instant) -> bool {
        if self.buckets.len() >= self.capacity && !self.buckets.contains_key(&cause) {
            self.buckets.retain(|_, bucket| bucket.full_at > now);
            if self.buckets.len() >= self.capacity {
                return false;
            }
        }
        self.buckets.entry(cause).or_insert(Bucket { full_at: now }).take(self.rate, now)
    }

    /// Gives back one that was taken because of `cause`: it has turned out not to count.
    pub fn give_back(&mut self, cause: &K) {
        if let Some(bucket) = self.buckets.get_mut(cause) {
            bucket.full_at = bucket.full_at.checked_sub(self.rate.refill).unwrap_or(bucket.full_at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_burst_then_one_each_refill() {
        let mut buckets = Buckets::new(Rate { burst: 3, refill: SECOND }, 8);
        let start = Instant::now();
        let mut taken =
            |cause, after| (0..5).filter(|_| buckets.take(cause, start + after)).count();
        assert_eq!(taken("a", Duration::ZERO), 3);
        assert_eq!(taken("b", Duration::ZERO), 3, "causes do not share");
        assert_eq!(taken("a", SECOND / 2), 0);
        assert_eq!(taken("a", SECOND), 1);
        assert_eq!(taken("a", SECOND * 3), 2);
        assert_eq!(taken("a", SECOND * 1000), 3, "no more than a burst is earned");
    }

    #[test]
    fn there_are_no_more_buckets_than_may_be() {
        let mut buckets = Buckets::new(Rate { burst: 1, refill: SECOND }, 2);
        let start = Instant::now();
        assert!(buckets.take(1, start) && buckets.take(2, start));
        assert!(!buckets.take(3, start), "full");
        assert!(buckets.take(3, start + SECOND), "the others are full again and forgotten");
        assert_eq!(buckets.buckets.len(), 1);
    }
}
