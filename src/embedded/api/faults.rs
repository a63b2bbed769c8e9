//! The faults that a test can give the server.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::watch;

use super::{request::RequestTarget, status::ApiStatus};

/// The faults that are in force.
#[derive(Debug)]
pub(crate) struct FaultState {
    gate: watch::Sender<Gate>,
    rules: Mutex<Vec<Rule>>,
    /// Counts how often [`Self::break_watches`] was called.
    breaks: watch::Sender<u64>,
    /// Requests so far by verb and resource.
    arrivals: watch::Sender<HashMap<(&'static str, String), u64>>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Gate {
    hanging: bool,
    delay: Duration,
}

#[derive(Debug)]
struct Rule {
    verb: String,
    resource: String,
    times: usize,
    status: ApiStatus,
}

impl FaultState {
    pub(crate) fn new() -> Self {
        Self {
            gate: watch::Sender::default(),
            rules: Mutex::default(),
            breaks: watch::Sender::default(),
            arrivals: watch::Sender::default(),
        }
    }

    pub(crate) fn hang(&self, hanging: bool) {
        self.gate.send_modify(|gate| gate.hanging = hanging);
    }

    pub(crate) fn delay(&self, delay: Duration) {
        self.gate.send_modify(|gate| gate.delay = delay);
    }

    pub(crate) fn fail(&self, verb: &str, resource: &str, times: usize, status: ApiStatus) {
        let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        rules.push(Rule { verb: verb.to_owned(), resource: resource.to_owned(), times, status });
    }

    pub(crate) fn clear(&self) {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.gate.send_replace(Gate::default());
    }

    pub(crate) fn break_watches(&self) {
        self.breaks.send_modify(|breaks| *breaks += 1);
    }

    /// Resolves when the next such request has arrived, even if it then hangs or fails.
    pub(crate) fn arrival(
        &self,
        verb: &'static str,
        resource: &str,
    ) -> impl Future<Output = ()> + use<> {
        let (key, mut arrivals) = ((verb, resource.to_owned()), self.arrivals.subscribe());
        let before = arrivals.borrow().get(&key).copied();
        async move {
            // The sender is dropped with the server, after which no request arrives.
            let _ = arrivals.wait_for(|arrivals| arrivals.get(&key).copied() != before).await;
        }
    }

    /// Changes whenever all watches are to break.
    pub(crate) fn breaks(&self) -> watch::Receiver<u64> {
        self.breaks.subscribe()
    }

    /// Waits until the server does not hang.
    pub(crate) async fn wait(&self) {
        // The sender is a field of `self` and cannot be dropped while this waits.
        let _ = self.gate.subscribe().wait_for(|gate| !gate.hanging).await;
    }

    /// Counts a request that has arrived.
    pub(crate) fn arrived(&self, target: &RequestTarget) {
        self.arrivals.send_modify(|arrivals| {
            *arrivals.entry((target.verb, target.resource_path())).or_default() += 1;
        });
    }

    /// Delays a request by the set delay, and for as long as the server hangs.
    pub(crate) async fn hold(&self) {
        self.wait().await;
        let delay = self.gate.borrow().delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
    }

    /// Returns the failure that a test wants for this request, if there is one.
    pub(crate) fn pass(&self, target: &RequestTarget) -> Result<(), ApiStatus> {
        let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        let resource = target.resource_path();
        let matches = |pattern: &str, value: &str| pattern == "*" || pattern == value;
        let hit = rules.iter_mut().find(|rule| {
            rule.times > 0 && matches(&rule.verb, target.verb) && matches(&rule.resource, &resource)
        });
        let Some(rule) = hit else { return Ok(()) };
        rule.times -= 1;
        let status = rule.status.clone();
        rules.retain(|rule| rule.times > 0);
        Err(status)
    }
}
