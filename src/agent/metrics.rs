//! What the agent counts, in Prometheus' text format. Names and units by its conventions.
//! <https://prometheus.io/docs/practices/naming/>

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use tonic::Code;

use super::access::Method;
use crate::domain::{Reason, verdict::Outcome};

/// The agent's metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Histogram>,
    errors: Family<ReasonLabels, Counter>,
    api_errors: Family<ReasonLabels, Counter>,
    verdicts: Family<OutcomeLabels, Counter>,
    watch_errors: Counter,
    sessions: Family<StateLabels, Gauge>,
    pods: Gauge,
    can_enter: Gauge,
    captures: Gauge,
    captured_packets: Counter,
    captured_bytes: Counter,
    capture_drops: Family<ByLabels, Counter>,
    file_threads: Family<StateLabels, Gauge>,
    resident: Gauge,
    cpu: Counter<f64, AtomicU64>,
    fds: Gauge,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: &'static str,
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByLabels {
    by: &'static str,
}

/// What is read anew for each scrape.
#[derive(Debug, Clone, Copy)]
pub struct Snapshot {
    /// Pods of the node.
    pub pods: usize,
    /// Sessions that wait, run, have ended.
    pub sessions: [usize; 3],
    /// Failures of the watch so far.
    pub watch_errors: u64,
    /// Verdicts so far, by outcome.
    pub verdicts: [(Outcome, u64); 3],
    /// Whether namespaces can be entered.
    pub can_enter: bool,
    /// Threads at work on files, and how many of these are stuck.
    pub file_threads: (usize, usize),
}

impl Metrics {
    /// Metrics that are all zero.
    pub fn new(node: &str) -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            requests: Family::new_with_constructor(|| {
                Histogram::new([0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0])
            }),
            errors: Family::default(),
            api_errors: Family::default(),
            verdicts: Family::default(),
            watch_errors: Counter::default(),
            sessions: Family::default(),
            pods: Gauge::default(),
            can_enter: Gauge::default(),
            captures: Gauge::default(),
            captured_packets: Counter::default(),
            captured_bytes: Counter::default(),
            capture_drops: Family::default(),
            file_threads: Family::default(),
            resident: Gauge::default(),
            cpu: Counter::default(),
            fds: Gauge::default(),
        };
        metrics.register(node);
        metrics
    }

    fn register(&mut self, node: &str) {
        let r = &mut self.registry;
        r.register_with_unit(
            "process_resident_memory",
            "Resident memory size",
            Unit::Bytes,
            self.resident.clone(),
        );
        r.register_with_unit(
            "process_cpu",
            "User and system CPU time spent",
            Unit::Seconds,
            self.cpu.clone(),
        );
        r.register("process_open_fds", "Open file descriptors", self.fds.clone());
        let r = r.sub_registry_with_prefix("podsonde");
        let version =
            [("version", env!("CARGO_PKG_VERSION").to_owned()), ("node", node.to_owned())];
        let build = prometheus_client::metrics::info::Info::new(version.to_vec());
        r.register("build", "Version of the agent and its node", build);
        r.register_with_unit(
            "request_duration",
            "Time from a gRPC request to its end",
            Unit::Seconds,
            self.requests.clone(),
        );
        r.register("request_errors", "gRPC requests that failed, by reason", self.errors.clone());
        r.register(
            "api_errors",
            "Requests to the API server that failed, by reason",
            self.api_errors.clone(),
        );
        r.register(
            "watch_errors",
            "Failures of the watch of the node's pods",
            self.watch_errors.clone(),
        );
        r.register("verdicts", "Verdicts on containers, by outcome", self.verdicts.clone());
        r.register(
            "sessions",
            "Debug sessions in the specs of the node's pods, by state",
            self.sessions.clone(),
        );
        r.register("pods", "Pods of the node that the agent knows", self.pods.clone());
        r.register(
            "broker_up",
            "Whether namespaces can be entered: 0 once the broker has ended",
            self.can_enter.clone(),
        );
        r.register(
            "file_threads",
            "Threads at work on files; those that are stuck in a file system were given up, but are not free",
            self.file_threads.clone(),
        );
        r.register("captures", "Captures that run", self.captures.clone());
        r.register(
            "captured_packets",
            "Packets that captures have sent",
            self.captured_packets.clone(),
        );
        r.register(
            "captured_bytes",
            "Bytes of pcapng that captures have sent",
            self.captured_bytes.clone(),
        );
        r.register(
            "capture_dropped_packets",
            "Packets that passed a capture's filter and were lost, by whom",
            self.capture_drops.clone(),
        );
    }

    /// A capture begins.
    pub fn capture_started(&self) {
        self.captures.inc();
    }

    /// A capture has ended.
    pub fn capture_ended(&self) {
        self.captures.dec();
    }

    /// So much of a capture was sent.
    pub fn captured(&self, packets: u64, bytes: u64) {
        self.captured_packets.inc_by(packets);
        self.captured_bytes.inc_by(bytes);
    }

    /// So many packets more of a capture were lost by the kernel or the agent.
    pub fn capture_drops(&self, by: &'static str, packets: u64) {
        self.capture_drops.get_or_create(&ByLabels { by }).inc_by(packets);
    }

    /// A request has ended.
    pub fn request(&self, method: Method, code: Code, reason: Option<Reason>, took: Duration) {
        let labels = RequestLabels { method: method.as_str(), code: crate::codec::code_name(code) };
        self.requests.get_or_create(&labels).observe(took.as_secs_f64());
        let Some(reason) = reason else { return };
        let labels = ReasonLabels { reason: reason.as_str() };
        self.errors.get_or_create(&labels).inc();
        if matches!(
            reason,
            Reason::ApiUnreachable
                | Reason::AgentForbidden
                | Reason::AdmissionDenied
                | Reason::ReviewFailed
                | Reason::Conflict
                | Reason::RejectedByApi
        ) {
            self.api_errors.get_or_create(&labels).inc();
        }
    }

    /// Everything as text.
    pub fn render(&self, snapshot: Snapshot) -> String {
        let gauge = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.pods.set(gauge(snapshot.pods));
        self.can_enter.set(i64::from(snapshot.can_enter));
        let (busy, stuck) = snapshot.file_threads;
        for (state, count) in [("busy", busy.saturating_sub(stuck)), ("stuck", stuck)] {
            self.file_threads.get_or_create(&StateLabels { state }).set(gauge(count));
        }
        for (state, count) in ["waiting", "running", "ended"].into_iter().zip(snapshot.sessions) {
            self.sessions.get_or_create(&StateLabels { state }).set(gauge(count));
        }
        for (outcome, count) in snapshot.verdicts {
            let outcome = match outcome {
                Outcome::Ok => "ok",
                Outcome::Unknown => "unknown",
                Outcome::Drift => "drift",
            };
            self.verdicts
                .get_or_create(&OutcomeLabels { outcome })
                .inner()
                .store(count, Ordering::Relaxed);
        }
        self.watch_errors.inner().store(snapshot.watch_errors, Ordering::Relaxed);
        self.observe_self();
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    fn observe_self(&self) {
        let Ok(own) = procfs::process::Process::myself() else { return };
        if let Ok(stat) = own.stat() {
            let bytes = stat.rss.saturating_mul(procfs::page_size());
            self.resident.set(i64::try_from(bytes).unwrap_or(i64::MAX));
            let ticks = u32::try_from(stat.utime.saturating_add(stat.stime)).unwrap_or(u32::MAX);
            let per_second = u32::try_from(procfs::ticks_per_second()).unwrap_or(100);
            let seconds = f64::from(ticks) / f64::from(per_second);
            self.cpu.inner().store(seconds.to_bits(), std::sync::atomic::Ordering::Relaxed);
        }
        self.fds.set(own.fd_count().ok().and_then(|n| i64::try_from(n).ok()).unwrap_or_default());
    }
}
