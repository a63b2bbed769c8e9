//! Composes a pod's status in the kubelet's words.

use k8s_openapi::jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{
    HOST_IP,
    record::{ContainerRecord, Ended, Role, Stage},
    worker::Worker,
};
use crate::embedded::api::object::{self, list, text};

/// The status of the worker's pod. `stored` is the pod in the store; `phase` is the final phase,
/// once the pod has one.
pub(super) fn of(worker: &Worker, stored: &Value, phase: Option<&'static str>) -> Value {
    let mut status = stored.get("status").cloned().unwrap_or_else(|| json!({}));
    let phase = phase.unwrap_or_else(|| running_phase(&worker.records));
    object::set(&mut status, &["phase"], phase);
    object::set_default(&mut status, &["startTime"], object::time(worker.since));
    object::set(&mut status, &["hostIP"], HOST_IP.to_string());
    object::set(&mut status, &["hostIPs"], json!([{ "ip": HOST_IP }]));
    if let Some(ip) = worker.ip() {
        object::set(&mut status, &["podIP"], ip.to_string());
        object::set(&mut status, &["podIPs"], json!([{ "ip": ip }]));
    }
    for (field, roles) in [
        ("initContainerStatuses", &[Role::Init, Role::Sidecar][..]),
        ("containerStatuses", &[Role::Regular]),
        ("ephemeralContainerStatuses", &[Role::Ephemeral]),
    ] {
        let statuses: Vec<Value> = worker
            .records
            .iter()
            .filter(|record| roles.contains(&record.role))
            .map(|record| container_status(worker, record))
            .collect();
        if !statuses.is_empty() {
            object::set(&mut status, &[field], statuses);
        }
    }
    let conditions = conditions(worker, phase, list(&status, "/conditions"));
    object::set(&mut status, &["conditions"], conditions);
    status
}

/// The phase of a pod that has not ended: `Pending` or `Running`.
fn running_phase(records: &[ContainerRecord]) -> &'static str {
    let initialized = records.iter().all(|record| {
        record.role == Role::Regular || record.is_ephemeral() || record.initialized()
    });
    let waiting = |record: &ContainerRecord| match record.state {
        Stage::Pending | Stage::Starting | Stage::Waiting { .. } => record.last.is_none(),
        Stage::Running { .. } | Stage::Ended(..) => false,
    };
    if initialized && !records.iter().any(|record| record.role == Role::Regular && waiting(record))
    {
        "Running"
    } else {
        "Pending"
    }
}

impl ContainerRecord {
    fn is_ephemeral(&self) -> bool {
        self.role == Role::Ephemeral
    }

    fn running(&self) -> bool {
        matches!(self.state, Stage::Running { .. })
    }
}

fn container_status(worker: &Worker, record: &ContainerRecord) -> Value {
    let has_init =
        worker.records.iter().any(|record| matches!(record.role, Role::Init | Role::Sidecar));
    let default_reason = if has_init { "PodInitializing" } else { "ContainerCreating" };
    let scheme = worker.scheme();
    let state = match &record.state {
        Stage::Pending | Stage::Starting => json!({ "waiting": { "reason": default_reason } }),
        Stage::Waiting { reason, message } => {
            json!({ "waiting": { "reason": reason, "message": message } })
        }
        Stage::Running { since, .. } => json!({ "running": { "startedAt": object::time(*since) } }),
        Stage::Ended(ended, _) => terminated(scheme, ended),
    };
    let (id, image_id) = match &record.state {
        Stage::Running { id, image_id, .. } => (id.as_str(), image_id.as_str()),
        Stage::Ended(ended, _) => (ended.id.as_str(), ended.image_id.as_str()),
        _ => record
            .last
            .as_ref()
            .map(|last| (last.id.as_str(), last.image_id.as_str()))
            .unwrap_or_default(),
    };
    let ready = match record.role {
        Role::Init => record.initialized(),
        Role::Sidecar | Role::Regular => record.running(),
        Role::Ephemeral => false,
    };
    let mut status = json!({
        "name": record.container.name,
        "image": record.container.image.as_deref().unwrap_or_default(),
        "imageID": image_id,
        "ready": ready,
        "started": record.running() && record.role != Role::Ephemeral,
        "restartCount": record.attempts.saturating_sub(1),
        "state": state,
        "lastState": record.last.as_ref().map_or_else(|| json!({}), |last| terminated(scheme, last)),
    });
    if !id.is_empty() {
        object::set(&mut status, &["containerID"], format!("{scheme}://{id}"));
    }
    status
}

fn terminated(scheme: &str, ended: &Ended) -> Value {
    let mut fields = json!({
        "exitCode": ended.code,
        "reason": ended.reason,
        "finishedAt": object::time(ended.until),
        "startedAt": object::time(ended.since.unwrap_or(Timestamp::UNIX_EPOCH)),
    });
    if !ended.id.is_empty() {
        object::set(&mut fields, &["containerID"], format!("{scheme}://{}", ended.id));
    }
    if !ended.message.is_empty() {
        object::set(&mut fields, &["message"], ended.message.as_str());
    }
    json!({ "terminated": fields })
}

fn conditions(worker: &Worker, phase: &str, stored: &[Value]) -> Vec<Value> {
    let unready = |roles: &[Role], ready: fn(&ContainerRecord) -> bool| -> Vec<String> {
        let records =
            worker.records.iter().filter(|record| roles.contains(&record.role) && !ready(record));
        records.map(|record| record.container.name.clone()).collect()
    };
    let initializing = unready(&[Role::Init, Role::Sidecar], ContainerRecord::initialized);
    let not_running = unready(&[Role::Sidecar, Role::Regular], ContainerRecord::running);
    let told = |what: &str, names: &[String]| {
        format!("containers with {what} status: [{}]", names.join(" "))
    };
    let initialized = match (phase, initializing.is_empty()) {
        ("Succeeded", _) => (true, "PodCompleted", String::new()),
        (_, true) => (true, "", String::new()),
        (_, false) => (false, "ContainersNotInitialized", told("incomplete", &initializing)),
    };
    let ready = match (phase, not_running.is_empty()) {
        ("Succeeded", _) => (false, "PodCompleted", String::new()),
        ("Failed", _) => (false, "PodFailed", String::new()),
        (_, true) => (true, "", String::new()),
        (_, false) => (false, "ContainersNotReady", told("unready", &not_running)),
    };
    let sandbox =
        (worker.sandbox.is_some() && !matches!(phase, "Succeeded" | "Failed"), "", String::new());
    let ours = [
        ("PodReadyToStartContainers", sandbox),
        ("Initialized", initialized),
        ("Ready", ready.clone()),
        ("ContainersReady", ready),
        ("PodScheduled", (true, "", String::new())),
    ];
    let mut conditions: Vec<Value> = Vec::new();
    for (kind, (holds, reason, message)) in &ours {
        let status = if *holds { "True" } else { "False" };
        let before =
            stored.iter().find(|c| text(c, "/type") == *kind && text(c, "/status") == status);
        let since = before.and_then(|c| c.get("lastTransitionTime")).cloned();
        let mut condition = Map::new();
        condition.insert("type".into(), (*kind).into());
        condition.insert("status".into(), status.into());
        condition.insert("lastProbeTime".into(), Value::Null);
        condition.insert("lastTransitionTime".into(), since.unwrap_or_else(object::now));
        if !reason.is_empty() {
            condition.insert("reason".into(), (*reason).into());
        }
        if !message.is_empty() {
            condition.insert("message".into(), message.as_str().into());
        }
        conditions.push(Value::Object(condition));
    }
    // Conditions of other types belong to others and stay.
    conditions.extend(
        stored.iter().filter(|c| ours.iter().all(|(kind, _)| text(c, "/type") != *kind)).cloned(),
    );
    conditions
}
