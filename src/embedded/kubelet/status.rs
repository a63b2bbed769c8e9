//! A pod's status, as a kubelet words it.

use k8s_openapi::jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{
    HOST_IP,
    slot::{Ended, Role, Slot, State},
    worker::Worker,
};
use crate::embedded::api::object::{self, list, text};

/// The status of the worker's pod. `stored` is the pod as the store has it now; `phase` is the pod's last, if it has
/// come to its end.
pub(super) fn of(worker: &Worker, stored: &Value, phase: Option<&'static str>) -> Value {
    let mut status = stored.get("status").cloned().unwrap_or_else(|| json!({}));
    let phase = phase.unwrap_or_else(|| running_phase(&worker.slots));
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
            .slots
            .iter()
            .filter(|slot| roles.contains(&slot.role))
            .map(|slot| container_status(worker, slot))
            .collect();
        if !statuses.is_empty() {
            object::set(&mut status, &[field], statuses);
        }
    }
    let conditions = conditions(worker, phase, list(&status, "/conditions"));
    object::set(&mut status, &["conditions"], conditions);
    status
}

/// The phase of a pod that has not come to its end.
fn running_phase(slots: &[Slot]) -> &'static str {
    let initialized = slots
        .iter()
        .all(|slot| slot.role == Role::Regular || slot.is_ephemeral() || slot.initialized());
    let waiting = |slot: &Slot| match slot.state {
        State::Pending | State::Starting | State::Waiting { .. } => slot.last.is_none(),
        State::Running { .. } | State::Ended(..) => false,
    };
    if initialized && !slots.iter().any(|slot| slot.role == Role::Regular && waiting(slot)) {
        "Running"
    } else {
        "Pending"
    }
}

impl Slot {
    fn is_ephemeral(&self) -> bool {
        self.role == Role::Ephemeral
    }

    fn running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }
}

fn container_status(worker: &Worker, slot: &Slot) -> Value {
    let has_init = worker.slots.iter().any(|slot| matches!(slot.role, Role::Init | Role::Sidecar));
    let default_reason = if has_init { "PodInitializing" } else { "ContainerCreating" };
    let scheme = worker.scheme();
    let state = match &slot.state {
        State::Pending | State::Starting => json!({ "waiting": { "reason": default_reason } }),
        State::Waiting { reason, message } => {
            json!({ "waiting": { "reason": reason, "message": message } })
        }
        State::Running { since, .. } => json!({ "running": { "startedAt": object::time(*since) } }),
        State::Ended(ended, _) => terminated(scheme, ended),
    };
    let (id, image_id) = match &slot.state {
        State::Running { id, image_id, .. } => (id.as_str(), image_id.as_str()),
        State::Ended(ended, _) => (ended.id.as_str(), ended.image_id.as_str()),
        _ => slot
            .last
            .as_ref()
            .map(|last| (last.id.as_str(), last.image_id.as_str()))
            .unwrap_or_default(),
    };
    let ready = match slot.role {
        Role::Init => slot.initialized(),
        Role::Sidecar | Role::Regular => slot.running(),
        Role::Ephemeral => false,
    };
    let mut status = json!({
        "name": slot.container.name,
        "image": slot.container.image.as_deref().unwrap_or_default(),
        "imageID": image_id,
        "ready": ready,
        "started": slot.running() && slot.role != Role::Ephemeral,
        "restartCount": slot.attempts.saturating_sub(1),
        "state": state,
        "lastState": slot.last.as_ref().map_or_else(|| json!({}), |last| terminated(scheme, last)),
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
    let unready = |roles: &[Role], ready: fn(&Slot) -> bool| -> Vec<String> {
        let slots = worker.slots.iter().filter(|slot| roles.contains(&slot.role) && !ready(slot));
        slots.map(|slot| slot.container.name.clone()).collect()
    };
    let initializing = unready(&[Role::Init, Role::Sidecar], Slot::initialized);
    let not_running = unready(&[Role::Sidecar, Role::Regular], Slot::running);
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
    // Others may add conditions of their own.
    conditions.extend(
        stored.iter().filter(|c| ours.iter().all(|(kind, _)| text(c, "/type") != *kind)).cloned(),
    );
    conditions
}
