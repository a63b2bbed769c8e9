//! The requests of one connection: which are under way, which stall, and when the connection must
//! end.

use std::{
    any::Any,
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use tokio::{sync::Notify, time::sleep_until};

use super::{
    budget::{Allowance, Budget},
    table::{ConnectionSlot, Full, Share},
};
use crate::agent::config::TransportLimits;

/// What goes on on one connection.
pub(super) struct Activity {
    slot: ConnectionSlot,
    pub(super) limits: Arc<TransportLimits>,
    budget: Arc<Budget>,
    requests: Mutex<Requests>,
    changed: Notify,
}

struct Requests {
    next: u64,
    /// Every exchange that is not over. With a time: since then the client has taken nothing of an
    /// answer that is ready.
    exchanges: HashMap<u64, Option<Instant>>,
    idle_since: Instant,
    abandoned: usize,
}

/// Why a connection must end.
pub(super) enum Expired {
    /// It had no requests for too long.
    Idle,
    /// Its client does not take an answer.
    Stalled,
    /// Its client took back too many requests.
    Abandoned,
    /// It was asked to end, has no requests and is still there.
    Lingering,
}

impl Activity {
    pub(super) fn new(
        slot: ConnectionSlot,
        limits: Arc<TransportLimits>,
        budget: Arc<Budget>,
    ) -> Self {
        let requests = Requests {
            next: 0,
            exchanges: HashMap::new(),
            idle_since: Instant::now(),
            abandoned: 0,
        };
        Self { slot, limits, budget, requests: Mutex::new(requests), changed: Notify::new() }
    }

    /// Begins an exchange, if there is room for one more.
    pub(super) fn begin(self: &Arc<Self>) -> Option<Exchange> {
        let share = self.slot.request().ok()?;
        let mut requests = self.requests();
        let id = requests.next;
        requests.next = requests.next.wrapping_add(1);
        requests.exchanges.insert(id, None);
        let first = requests.exchanges.len() == 1;
        drop(requests);
        if first {
            // `expired` waits for the end of idleness, and is now to wait for a stalled answer.
            self.changed.notify_waiters();
        }
        Some(Exchange {
            activity: Arc::clone(self),
            id,
            share: Mutex::new(share),
            complete: AtomicBool::new(false),
            user: OnceLock::new(),
            slot: Mutex::new(None),
        })
    }

    /// Waits until the connection must end. `leaving`: it was asked to end already.
    pub(super) async fn expired(&self, leaving: bool) -> Expired {
        loop {
            // Before the requests are looked at, so that no change in between is missed.
            let changed = self.changed.notified();
            let (at, why) = {
                let requests = self.requests();
                if requests.abandoned > self.limits.max_abandoned_requests {
                    return Expired::Abandoned;
                }
                match requests.exchanges.values().flatten().min() {
                    Some(since) => (*since + self.limits.stall_timeout, Expired::Stalled),
                    None if !requests.exchanges.is_empty() => {
                        // An answer that becomes ready from now on may stall.
                        (Instant::now() + self.limits.stall_timeout, Expired::Stalled)
                    }
                    // The client may take as long over its goodbye as over its handshake.
                    None if leaving => {
                        (requests.idle_since + self.limits.handshake_timeout, Expired::Lingering)
                    }
                    None => (requests.idle_since + self.limits.idle_timeout, Expired::Idle),
                }
            };
            tokio::select! {
                () = sleep_until(at.into()) => {}
                () = changed => continue,
            }
            // The answer may have moved on meanwhile.
            let requests = self.requests();
            let holds = match why {
                Expired::Stalled => requests
                    .exchanges
                    .values()
                    .flatten()
                    .min()
                    .is_some_and(|since| since.elapsed() >= self.limits.stall_timeout),
                _ => requests.exchanges.is_empty() && Instant::now() >= at,
            };
            if holds {
                return why;
            }
        }
    }

    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request and its answer. Over when both bodies are dropped.
pub(super) struct Exchange {
    pub(super) activity: Arc<Activity>,
    id: u64,
    share: Mutex<Share>,
    /// Whether the client got its whole answer.
    complete: AtomicBool,
    /// What the caller may take of the budget, once it is authorised.
    user: OnceLock<Allowance>,
    /// What is given back when the client has its answer.
    slot: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Exchange {
    /// Notes since when the client has something to take; None while it has not.
    pub(super) fn waits(&self, since: Option<Instant>) {
        self.activity.requests().exchanges.insert(self.id, since);
    }

    /// The client got its whole answer.
    pub(super) fn complete(&self) {
        self.complete.store(true, Ordering::Relaxed);
        drop(self.slot.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Counts `bytes` of the request, whose caller is not authorised yet.
    pub(super) fn grow(&self, bytes: usize) -> Result<(), Full> {
        self.share().grow(bytes)
    }

    /// What the caller may take of the budget. None: the caller is not authorised yet.
    pub(super) fn user(&self) -> Option<Allowance> {
        self.user.get().cloned()
    }

    /// What the answer is paid from: the caller's part, or the peer's if nobody asked who calls.
    pub(super) fn allowance(&self) -> Allowance {
        let of_peer = || self.activity.budget.of(&format!("peer {:?}", self.activity.slot.peer()));
        self.user().unwrap_or_else(of_peer)
    }

    fn share(&self) -> MutexGuard<'_, Share> {
        self.share.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let mut requests = self.activity.requests();
        requests.exchanges.remove(&self.id);
        if self.complete.load(Ordering::Relaxed) {
            requests.abandoned = requests.abandoned.saturating_sub(1);
        } else {
            requests.abandoned += 1;
        }
        if requests.exchanges.is_empty() {
            requests.idle_since = Instant::now();
        }
        let tell = requests.exchanges.is_empty()
            || requests.abandoned > self.activity.limits.max_abandoned_requests;
        drop(requests);
        if tell {
            self.activity.changed.notify_waiters();
        }
    }
}

/// In the extensions of every request: lets the handler say that the caller is authorised.
#[derive(Clone)]
pub struct Voucher(pub(super) Weak<Exchange>);

impl Voucher {
    /// The caller is `user` and may make the request. Until the result is dropped, the connection
    /// does not give way to others. `slot` is kept until the client has its answer, so that answers
    /// which nobody takes count as requests.
    #[must_use]
    pub fn vouch(self, user: &str, slot: impl Send + 'static) -> Vouched {
        if let Some(exchange) = self.0.upgrade() {
            let _ = exchange.user.set(exchange.activity.budget.of(&format!("user {user}")));
            *exchange.slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(slot));
            exchange.share().vouch();
        }
        Vouched(self.0)
    }
}

/// That an authorised request is at work.
#[derive(Debug)]
pub struct Vouched(Weak<Exchange>);

impl Vouched {
    /// The memory for messages of the request. None if its connection has gone.
    pub fn memory(&self) -> Option<Allowance> {
        self.0.upgrade().and_then(|exchange| exchange.user())
    }
}

impl Drop for Vouched {
    fn drop(&mut self) {
        if let Some(exchange) = self.0.upgrade() {
            exchange.share().unvouch();
        }
    }
}
