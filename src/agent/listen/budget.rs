//! The memory for messages of authorised callers: what they upload, and what waits for them to read
//! it.
//!
//! Whoever makes a message takes its bytes from the [`Budget`] first and waits until there are
//! some, so that slow readers and writers cost time instead of memory. A user has at most a quarter
//! of the budget, and so cannot stop all others. Nobody asks for more while holding what others
//! wait for: a message is granted as a whole, and its bytes come back when its last part is
//! dropped, wherever that happens.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes are counted in units of 1 KiB, as a semaphore counts to 2³².
const UNIT: usize = 1024;

/// Bytes that messages may take, in all and of each owner.
#[derive(Debug)]
pub struct Budget {
    all: Arc<Semaphore>,
    /// The parts of owners that have any, by name.
    owners: Mutex<HashMap<String, Weak<Semaphore>>>,
    /// Units of one owner.
    part: usize,
}

/// What one owner may take of a budget.
#[derive(Debug, Clone)]
pub struct Allowance {
    own: Arc<Semaphore>,
    all: Arc<Semaphore>,
    part: usize,
}

/// Bytes that were taken, until dropped.
#[derive(Debug)]
pub struct Held {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

/// Bytes that hold something until their last clone is dropped.
struct Kept<H> {
    data: Bytes,
    _held: H,
}

impl<H> AsRef<[u8]> for Kept<H> {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

/// The same bytes, not copied, which hold `held` until they are dropped.
pub fn keep(data: Bytes, held: impl Send + 'static) -> Bytes {
    Bytes::from_owner(Kept { data, _held: held })
}

impl Budget {
    /// A budget of `bytes`, of which each owner may take a quarter.
    pub fn new(bytes: usize) -> Self {
        let units = (bytes / UNIT).max(4);
        let all = Arc::new(Semaphore::new(units.min(Semaphore::MAX_PERMITS)));
        Self { all, owners: Mutex::default(), part: units / 4 }
    }

    /// The allowance of the owner of this name. All that one owner holds counts together.
    pub fn of(&self, owner: &str) -> Allowance {
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        owners.retain(|_, part| part.strong_count() > 0);
        let known = owners.get(owner).and_then(Weak::upgrade);
        let own = known.unwrap_or_else(|| {
            let own = Arc::new(Semaphore::new(self.part));
            owners.insert(owner.to_owned(), Arc::downgrade(&own));
            own
        });
        Allowance { own, all: Arc::clone(&self.all), part: self.part }
    }
}

impl Allowance {
    /// Takes `bytes` once the owner and the budget have them. A message larger than the owner's
    /// part gets the whole part, so that it passes alone.
    pub async fn take(self, bytes: usize) -> Option<Held> {
        let units = bytes.div_ceil(UNIT).clamp(1, self.part.max(1));
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        // The scarcer one last, so that nobody holds it while waiting for their own.
        let own = self.own.acquire_many_owned(units).await.ok()?;
        let all = self.all.acquire_many_owned(units).await.ok()?;
        Some(Held { _own: own, _all: all })
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn an_owner_has_a_quarter_and_all_share() {
        let budget = Budget::new(8 * UNIT);
        let take = |owner: &str, units: usize| budget.of(owner).take(units * UNIT).now_or_never();
        let jane = [take("jane", 1), take("jane", 1)];
        assert!(jane.iter().all(Option::is_some));
        assert!(take("jane", 1).is_none(), "a quarter of 8");
        // A message that is larger than a quarter passes alone.
        let others = [take("john", 9), take("jim", 2), take("joe", 2)];
        assert!(others.iter().all(Option::is_some));
        assert!(take("jack", 1).is_none(), "all 8 are taken");
        drop(jane);
        assert!(take("jack", 2).is_some());
        drop(others);
        assert_eq!(budget.all.available_permits(), 8);
        drop(take("jack", 1));
        assert!(budget.owners.lock().unwrap().values().all(|part| part.strong_count() == 0));
    }
}
