//! Limits how many requests are worked on at a time, in all and for each user.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::domain::{Error, Reason, Result};

/// All slots, free and taken.
#[derive(Debug)]
pub struct RequestSlots {
    all: Arc<Semaphore>,
    /// How many slots each user has; only users who have some.
    users: Mutex<HashMap<String, usize>>,
    per_user: usize,
}

/// A slot that is taken, until dropped.
#[derive(Debug)]
pub struct RequestSlot {
    slots: Arc<RequestSlots>,
    user: Option<String>,
    _permit: OwnedSemaphorePermit,
}

impl RequestSlots {
    /// `all` slots, of which one user may have `per_user`.
    pub fn new(all: usize, per_user: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), users: Mutex::default(), per_user }
    }

    /// Takes a slot before it is known for whom.
    ///
    /// # Errors
    /// TOO_MANY_REQUESTS.
    pub fn take(self: &Arc<Self>) -> Result<RequestSlot> {
        let busy = |_| {
            Error::new(
                Reason::TooManyRequests,
                "the agent is working on as many requests as it may",
            )
        };
        let permit = Arc::clone(&self.all).try_acquire_owned().map_err(busy)?;
        Ok(RequestSlot { slots: Arc::clone(self), user: None, _permit: permit })
    }
}

impl RequestSlot {
    /// Counts the slot for `user`, who may have too many already.
    ///
    /// # Errors
    /// TOO_MANY_REQUESTS.
    pub fn assign(&mut self, user: &str) -> Result<()> {
        let mut users = self.slots.users.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = users.get(user).copied().unwrap_or_default();
        if taken >= self.slots.per_user {
            let most = self.slots.per_user;
            let message =
                format!("the agent is working on {most} requests of this user, as many as it may");
            return Err(Error::new(Reason::TooManyRequests, message));
        }
        users.insert(user.to_owned(), taken.saturating_add(1));
        drop(users);
        self.user = Some(user.to_owned());
        Ok(())
    }
}

impl Drop for RequestSlot {
    fn drop(&mut self) {
        let Some(user) = self.user.take() else { return };
        let mut users = self.slots.users.lock().unwrap_or_else(PoisonError::into_inner);
        match users.get_mut(&user) {
            Some(taken) if *taken > 1 => *taken -= 1,
            _ => drop(users.remove(&user)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_user_has_its_own_and_all_share() {
        let slots = Arc::new(RequestSlots::new(3, 2));
        let take = |user: &str| {
            let mut slot = slots.take()?;
            slot.assign(user).map(|()| slot)
        };
        let first = take("a").unwrap();
        let second = take("a").unwrap();
        assert_eq!(take("a").unwrap_err().reason, Reason::TooManyRequests);
        let _other = take("b").unwrap();
        assert_eq!(take("c").unwrap_err().reason, Reason::TooManyRequests);
        drop(first);
        let third = take("a").unwrap();
        drop((second, third));
        assert_eq!(*slots.users.lock().unwrap(), HashMap::from([("b".to_owned(), 1)]));
    }
}
