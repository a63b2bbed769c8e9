//! The threads that do file work. A file system may keep any of them for as long as it likes, so they are few, nobody waits for one longer
//! than the deadline, and no user and no container can take them all.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU8, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::{Instant, timeout_at},
};

use crate::{
    domain::{Error, Reason, Result},
    sys::identity::FileIdentity,
};

/// The threads there may be.
#[derive(Debug)]
pub struct FileThreads {
    all: Arc<Semaphore>,
    /// The shares of users and containers that have work, by who it is.
    shares: Mutex<HashMap<String, Weak<Semaphore>>>,
    share: usize,
    timeout: Duration,
    count: Arc<Count>,
}

/// How many threads there are.
#[derive(Debug, Default)]
struct Count {
    busy: AtomicUsize,
    stuck: AtomicUsize,
}

/// The way to the threads for one user's request about one container.
#[derive(Debug, Clone)]
pub struct Lane {
    /// In the order in which they are taken: what is scarcest last.
    permits: [Arc<Semaphore>; 3],
    timeout: Duration,
    count: Arc<Count>,
    identity: FileIdentity,
    /// Where what is given up is seen to.
    runtime: Handle,
}

impl FileThreads {
    /// At most so many, each waited for at most so long.
    pub fn new(threads: usize, timeout: Duration) -> Self {
        let threads = threads.max(1);
        Self {
            all: Arc::new(Semaphore::new(threads)),
            shares: Mutex::default(),
            share: (threads / 4).max(1),
            timeout,
            count: Arc::default(),
        }
    }

    /// How many are at work, and how many of these are stuck: nobody waits for them any more.
    pub fn counts(&self) -> (usize, usize) {
        (self.count.busy.load(Ordering::Relaxed), self.count.stuck.load(Ordering::Relaxed))
    }

    /// For work for this user on this container, done as `identity`. To be called within the runtime.
    pub fn lane(&self, user: &str, container_id: &str, identity: FileIdentity) -> Lane {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        shares.retain(|_, share| share.strong_count() > 0);
        let mut share = |key: String, size| {
            let known = shares.get(&key).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let made = Arc::new(Semaphore::new(size));
                shares.insert(key, Arc::downgrade(&made));
                made
            })
        };
        // A user may be busy with several containers.
        let user = share(format!("user {user}"), self.share.saturating_mul(2));
        let container = share(format!("container {container_id}"), self.share);
        let permits = [user, container, Arc::clone(&self.all)];
        let count = Arc::clone(&self.count);
        Lane { permits, timeout: self.timeout, count, identity, runtime: Handle::current() }
    }
}

/// Who has given up or finished first.
const WAITED_FOR: u8 = 0;
const ABANDONED: u8 = 1;
const FINISHED: u8 = 2;

/// Held by the thread while it works.
struct Work {
    _permits: [OwnedSemaphorePermit; 3],
    count: Arc<Count>,
    state: Arc<AtomicU8>,
}

impl Drop for Work {
    fn drop(&mut self) {
        self.count.busy.fetch_sub(1, Ordering::Relaxed);
        if self.state.swap(FINISHED, Ordering::AcqRel) == ABANDONED {
            self.count.stuck.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Held by whoever waits for the thread.
struct Waiter {
    count: Arc<Count>,
    state: Arc<AtomicU8>,
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.count.stuck.fetch_add(1, Ordering::Relaxed);
        if self
            .state
            .compare_exchange(WAITED_FOR, ABANDONED, Ordering::AcqRel, Ordering::Acquire)
            .is_err()
        {
            self.count.stuck.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Something whose end is file work, too: closing a file may wait for its file system as long as reading it. When dropped it is
/// given to a thread, once there is one.
#[derive(Debug)]
pub struct Held<T: Send + 'static> {
    /// None once it is being dropped.
    value: Option<T>,
    lane: Lane,
}

impl<T: Send + 'static> Held<T> {
    /// Works with it.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn with<R>(&mut self, work: impl FnOnce(&mut T) -> Result<R>) -> Result<R> {
        // It is there until it is dropped.
        self.value.as_mut().map_or_else(|| Err(Error::new(Reason::Bug, "it is dropped")), work)
    }

    /// Works with it for the last time, on a thread for file work.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn end<R>(mut self, work: impl FnOnce(T) -> Result<R>) -> Result<R> {
        self.value.take().map_or_else(|| Err(Error::new(Reason::Bug, "it is dropped")), work)
    }
}

impl<T: Send + 'static> Drop for Held<T> {
    fn drop(&mut self) {
        if let Some(value) = self.value.take() {
            self.lane.runtime.spawn(self.lane.clone().dispose(value));
        }
    }
}

impl Lane {
    /// Sees to it that the end of `value` is file work.
    pub fn hold<T: Send + 'static>(&self, value: T) -> Held<T> {
        Held { value: Some(value), lane: self.clone() }
    }

    async fn dispose<T: Send + 'static>(self, value: T) {
        let [user, container, all] = &self.permits;
        let take = |from: &Arc<Semaphore>| Arc::clone(from).acquire_owned();
        // However long it takes: who has no thread left opens nothing else, either.
        let (Ok(user), Ok(container), Ok(all)) =
            (take(user).await, take(container).await, take(all).await)
        else {
            return;
        };
        self.count.busy.fetch_add(1, Ordering::Relaxed);
        let state = Arc::new(AtomicU8::new(WAITED_FOR));
        let held = Work { _permits: [user, container, all], count: Arc::clone(&self.count), state };
        let done = self.identity.run(
            || drop(value),
            |result| {
                drop(result);
                drop(held);
            },
        );
        if let Err(error) = done {
            tracing::error!(%error, "no thread to close a file with");
        }
    }

    /// Runs `work` on a thread of its own.
    ///
    /// # Errors
    /// TOO_MANY_FILE_REQUESTS if no thread came free in time, FILE_SYSTEM_STUCK if it did not finish in time; those of `work`.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let deadline = Instant::now() + self.timeout;
        let [user, container, all] = &self.permits;
        let take = |from: &Arc<Semaphore>, whose: &'static str| {
            let permit = timeout_at(deadline, Arc::clone(from).acquire_owned());
            async move {
                let busy = || Error::new(Reason::TooManyFileRequests, format!("{whose} are taken"));
                permit.await.map_err(|_| busy())?.map_err(|_| busy())
            }
        };
        let permits = [
            take(user, "the threads for file work that one user may have").await?,
            take(container, "the threads for file work that one container may have").await?,
            take(all, "all threads for file work").await?,
        ];
        let state = Arc::new(AtomicU8::new(WAITED_FOR));
        self.count.busy.fetch_add(1, Ordering::Relaxed);
        let held =
            Work { _permits: permits, count: Arc::clone(&self.count), state: Arc::clone(&state) };
        let waiter = Waiter { count: Arc::clone(&self.count), state };
        let (sender, done) = oneshot::channel();
        self.identity.clone().run(work, move |result| {
            // Nobody waits any more after the deadline.
            drop(sender.send(result));
            drop(held);
        })?;
        // The time that it waited for its turn is not the file system's fault.
        let done = tokio::time::timeout(self.timeout, done).await;
        drop(waiter);
        match done {
            Ok(Ok(result)) => {
                result.map_err(|error| Error::new(Reason::SystemCall, error.to_string()))?
            }
            Ok(Err(_)) => Err(Error::new(Reason::Bug, "panic in a thread for file work")),
            Err(_) => {
                let message = format!("the file system did not answer within {:?}", self.timeout);
                Err(Error::new(Reason::FileSystemStuck, message))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn own() -> FileIdentity {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        FileIdentity { uid, gid, groups: Vec::new(), reads_any: false }
    }

    #[tokio::test]
    async fn a_stuck_one_costs_its_container_one() {
        if rustix::process::geteuid().as_raw() != 0 {
            return;
        }
        let threads = FileThreads::new(4, Duration::from_millis(200));
        let hung = threads.lane("jane", "a", own());
        let (free, stuck) = mpsc::channel::<()>();
        let result = hung.run(move || Ok(stuck.recv().is_ok())).await;
        assert_eq!(result.unwrap_err().reason, Reason::FileSystemStuck);
        assert_eq!(threads.counts(), (1, 1));
        // That container has no other, everybody else has.
        let again = threads.lane("joe", "a", own()).run(|| Ok(())).await;
        assert_eq!(again.unwrap_err().reason, Reason::TooManyFileRequests);
        assert_eq!(threads.lane("jane", "b", own()).run(|| Ok(7)).await, Ok(7));
        assert_eq!(threads.lane("joe", "c", own()).run(|| Ok(8)).await, Ok(8));
        drop(free);
        // It comes back once the file system does.
        while threads.counts() != (0, 0) {
            tokio::task::yield_now().await;
        }
        assert_eq!(hung.run(|| Ok(9)).await, Ok(9));
    }

    #[tokio::test]
    async fn a_panic_is_one_requests() {
        if rustix::process::geteuid().as_raw() != 0 {
            return;
        }
        let threads = FileThreads::new(1, Duration::from_secs(20));
        let lane = threads.lane("jane", "a", own());
        let panics: fn() -> Result<u8> = || panic!("on purpose");
        assert_eq!(lane.run(panics).await.unwrap_err().reason, Reason::Bug);
        assert_eq!(lane.run(|| Ok(1)).await, Ok(1));
        while threads.counts() != (0, 0) {
            tokio::task::yield_now().await;
        }
    }

    /// Says on which thread it ended.
    struct Ending(mpsc::Sender<std::thread::ThreadId>);

    impl Drop for Ending {
        fn drop(&mut self) {
            let _ = self.0.send(std::thread::current().id());
        }
    }

    #[tokio::test]
    async fn what_is_held_ends_on_a_thread_for_file_work() {
        if rustix::process::geteuid().as_raw() != 0 {
            return;
        }
        let threads = FileThreads::new(1, Duration::from_secs(20));
        let lane = threads.lane("jane", "a", own());
        let (sender, ended) = mpsc::channel();
        let own_thread = std::thread::current().id();
        for given_up in [false, true] {
            let held = lane.hold(Ending(sender.clone()));
            if given_up {
                // Whoever waits hangs up before there is a thread.
                drop(lane.run(move || Ok(held)));
            } else {
                drop(held);
            }
            let on = loop {
                match ended.try_recv() {
                    Ok(on) => break on,
                    Err(_) => tokio::task::yield_now().await,
                }
            };
            assert_ne!(on, own_thread);
        }
    }
}
