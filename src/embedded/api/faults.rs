//! Faults that a test asks the server to have.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::watch;

use super::{request::RequestTarget, status::ApiStatus};

/// How the server fails at the moment.
#[derive(Debug)]
pub(crate) struct FaultState {
    gate: watch::Sender<Gate>,
    rules: Mutex<Vec<Rule>>,
    /// Counts how often all watches were broken.
    breaks: watch::Sender<u64>,
    /// Counts requests by verb and resource.
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

    /// Resolves when the next such request has arrived, whatever becomes of it.
    pub(crate) fn arrival(
        &self,
        verb: &'static str,
        resource: &str,
    ) -> impl Future<Output = ()> + use<> {
        let (key, mut arrivals) = ((verb, resource.to_owned()), self.arrivals.subscribe());
        let before = arrivals.borrow().get(&key).copied();
        async move {
            // An error means that the server is gone, and then none will arrive.
            let _ = arrivals.wait_for(|arrivals| arrivals.get(&key).copied() != before).await;
        }
    }

    /// Notices when all watches are to break.
    pub(crate) fn breaks(&self) -> watch::Receiver<u64> {
        self.breaks.subscribe()
    }

    /// Waits while the server hangs.
    pub(crate) async fn wait(&self) {
        // An error means that the sender is gone, which outlives this borrow.
        let _ = self.gate.subscribe().wait_for(|gate| !gate.hanging).await;
    }

    /// Tells those who wait for it that a request has arrived.
    pub(crate) fn arrived(&self, target: &RequestTarget) {
        self.arrivals.send_modify(|arrivals| {
            *arrivals.entry((target.verb, target.resource_path())).or_default() += 1;
        });
    }

    /// Holds every request up as long as it shall be, before anything else happens to it.
    pub(crate) async fn hold(&self) {
        self.wait().await;
        let delay = self.gate.borrow().delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
    }

    /// Refuses the request if a test wants that.
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
