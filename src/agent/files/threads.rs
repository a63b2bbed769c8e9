//! The threads that do file work. A file system may keep any of them for as long as it likes, so
//! they are few, nobody waits for one longer than the timeout, and no user, no namespace and no
//! container can take them all.
//!
//! A thread runs one piece of work and ends. Its permits belong to the work: they come back when
//! the work ends, not when whoever waited for it gives up. Work that nobody waits for any longer
//! counts as stuck until it ends.

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
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::{
    domain::{Error, Reason, Result},
    sys::identity::{FileIdentity, run_as},
};

/// How long a file waits to be closed after the node had no thread for that.
const RETRY: Duration = Duration::from_secs(1);

/// Permits for threads, and who has how many.
#[derive(Debug)]
pub struct FileThreads {
    all: Arc<Semaphore>,
    /// The shares of those that have work at present.
    shares: Mutex<HashMap<Sharer, Weak<Semaphore>>>,
    /// The share of a container. A user and a namespace may have twice as many.
    share: usize,
    timeout: Duration,
    count: Arc<Count>,
}

/// Who may have only some of the threads.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Sharer {
    User(String),
    Namespace(String),
    Container(String),
}

/// How many threads there are.
#[derive(Debug, Default)]
struct Count {
    busy: AtomicUsize,
    stuck: AtomicUsize,
}

/// The threads for one user's request about one container.
#[derive(Debug, Clone)]
pub struct Lane {
    /// In the order in which they are taken, the scarcest last: user, namespace, container, all.
    permits: [Arc<Semaphore>; 4],
    timeout: Duration,
    count: Arc<Count>,
    identity: FileIdentity,
    /// Where dropped files are closed from.
    runtime: Handle,
}

impl FileThreads {
    /// At most `threads` at a time, each waited for at most `timeout`.
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

    /// How many threads are at work, and how many of these are stuck: nobody waits for them.
    pub fn counts(&self) -> (usize, usize) {
        (self.count.busy.load(Ordering::Relaxed), self.count.stuck.load(Ordering::Relaxed))
    }

    /// A lane for work for `user` on a container of a pod in `namespace`, done as `identity`. Must
    /// be called within the runtime.
    pub fn lane(
        &self,
        user: &str,
        namespace: &str,
        container_id: &str,
        identity: FileIdentity,
    ) -> Lane {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        shares.retain(|_, share| share.strong_count() > 0);
        let mut share = |sharer: Sharer, size| {
            let known = shares.get(&sharer).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let made = Arc::new(Semaphore::new(size));
                shares.insert(sharer, Arc::downgrade(&made));
                made
            })
        };
        let double = self.share.saturating_mul(2);
        let user = share(Sharer::User(user.to_owned()), double);
        // Users and pods cost a tenant nothing; namespaces do.
        let namespace = share(Sharer::Namespace(namespace.to_owned()), double);
        let container = share(Sharer::Container(container_id.to_owned()), self.share);
        Lane {
            permits: [user, namespace, container, Arc::clone(&self.all)],
            timeout: self.timeout,
            count: Arc::clone(&self.count),
            identity,
            runtime: Handle::current(),
        }
    }
}

/// Who gave up or finished first.
const WAITED_FOR: u8 = 0;
const ABANDONED: u8 = 1;
const FINISHED: u8 = 2;

/// Held by the thread while it works.
struct Work {
    _permits: [OwnedSemaphorePermit; 4],
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

/// A value whose drop is file work, too: closing a file may wait for its file system as long as
/// reading it. When a `Held` is dropped, the value goes to a thread for file work.
#[derive(Debug)]
pub struct Held<T: Send + 'static> {
    /// None once it is being dropped.
    value: Option<T>,
    lane: Lane,
}

impl<T: Send + 'static> Held<T> {
    /// The value, for what asks no file system anything.
    ///
    /// # Errors
    /// BUG while it is being dropped, when nobody can call this.
    pub fn get(&self) -> Result<&T> {
        self.value.as_ref().ok_or_else(dropped)
    }

    /// Works with the value.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn with<R>(&mut self, work: impl FnOnce(&mut T) -> Result<R>) -> Result<R> {
        work(self.value.as_mut().ok_or_else(dropped)?)
    }

    /// Works with the value for the last time. To be called on a thread for file work.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn end<R>(mut self, work: impl FnOnce(T) -> Result<R>) -> Result<R> {
        work(self.value.take().ok_or_else(dropped)?)
    }
}

fn dropped() -> Error {
    Error::new(Reason::Bug, "a file is used while it is dropped")
}

impl<T: Send + 'static> Drop for Held<T> {
    fn drop(&mut self) {
        if let Some(value) = self.value.take() {
            self.lane.runtime.spawn(self.lane.clone().dispose(value));
        }
    }
}

impl Lane {
    /// How long work is waited for once it has a thread.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Has `value` dropped on a thread for file work.
    pub fn hold<T: Send + 'static>(&self, value: T) -> Held<T> {
        Held { value: Some(value), lane: self.clone() }
    }

    /// Drops `value` on a thread of this lane, however long it waits for one: a container or user
    /// without a free thread cannot open anything else, either, so these waits are bounded.
    async fn dispose<T: Send + 'static>(self, value: T) {
        let Ok(work) = self.work(None, Arc::default()).await else { return };
        // Shared, so that the value is still here if no thread can be started. Whichever closure
        // the thread runs last, it takes the value.
        let waits = Arc::new(Mutex::new(Some((value, work))));
        let take = |from: &Arc<Mutex<Option<_>>>| {
            let from = Arc::clone(from);
            move || drop(from.lock().unwrap_or_else(PoisonError::into_inner).take())
        };
        loop {
            let (close, close_at_least) = (take(&waits), take(&waits));
            let started = run_as(Some(self.identity.clone()), close, move |_| close_at_least());
            let Err(error) = started else { return };
            tracing::warn!(%error, "no thread to close a file with; trying again");
            sleep(RETRY).await;
        }
    }

    /// Runs `work` with the identity of the lane, on a thread of its own.
    ///
    /// # Errors
    /// TOO_MANY_FILE_REQUESTS if no thread comes free in time, FILE_SYSTEM_STUCK if the work does
    /// not end in time; those of `work`.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.run_as(Some(self.identity.clone()), work).await
    }

    /// As [`Lane::run`] with the agent's own identity, which alone may open the root.
    ///
    /// # Errors
    /// As [`Lane::run`].
    pub async fn run_as_agent<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.run_as(None, work).await
    }

    async fn run_as<T: Send + 'static>(
        &self,
        identity: Option<FileIdentity>,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let state = Arc::new(AtomicU8::new(WAITED_FOR));
        let held = self.work(Some(Instant::now() + self.timeout), Arc::clone(&state)).await?;
        let waiter = Waiter { count: Arc::clone(&self.count), state };
        let (sender, done) = oneshot::channel();
        run_as(identity, work, move |result| {
            // Nobody receives it after the timeout; it is dropped here then.
            drop(sender.send(result));
            drop(held);
        })?;
        // The timeout starts anew: waiting for a thread is not the file system's fault.
        let done = timeout(self.timeout, done).await;
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

    /// Takes all permits for one thread, until `deadline` if there is one.
    async fn work(&self, deadline: Option<Instant>, state: Arc<AtomicU8>) -> Result<Work> {
        let take = |from: &Arc<Semaphore>, whose: &'static str| {
            let permit = Arc::clone(from).acquire_owned();
            let busy = move || {
                let message = format!("{whose} are busy");
                Error::new(Reason::TooManyFileRequests, message)
            };
            async move {
                match deadline {
                    Some(deadline) => timeout_at(deadline, permit).await.map_err(|_| busy())?,
                    None => permit.await,
                }
                .map_err(|_| busy())
            }
        };
        let [user, namespace, container, all] = &self.permits;
        let permits = [
            take(user, "the threads for file work that one user may have").await?,
            take(namespace, "the threads for file work that one namespace may have").await?,
            take(container, "the threads for file work that one container may have").await?,
            take(all, "all threads for file work").await?,
        ];
        self.count.busy.fetch_add(1, Ordering::Relaxed);
        Ok(Work { _permits: permits, count: Arc::clone(&self.count), state })
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
        let hung = threads.lane("jane", "ns", "a", own());
        let (free, stuck) = mpsc::channel::<()>();
        let result = hung.run(move || Ok(stuck.recv().is_ok())).await;
        assert_eq!(result.unwrap_err().reason, Reason::FileSystemStuck);
        assert_eq!(threads.counts(), (1, 1));
        // That container has no other, everybody else has.
        let again = threads.lane("joe", "ns", "a", own()).run(|| Ok(())).await;
        assert_eq!(again.unwrap_err().reason, Reason::TooManyFileRequests);
        assert_eq!(threads.lane("jane", "ns", "b", own()).run(|| Ok(7)).await, Ok(7));
        assert_eq!(threads.lane("joe", "other", "c", own()).run(|| Ok(8)).await, Ok(8));
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
        let lane = threads.lane("jane", "ns", "a", own());
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
        let lane = threads.lane("jane", "ns", "a", own());
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
