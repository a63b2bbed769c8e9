//! Requests to domain types, with every field checked, and reports to messages.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;

use crate::{
    agent::{
        access::Object,
        sessions::{Created, Session},
        verify::{ContainerReport, PodReport, Reference},
    },
    domain::{
        Error, Result,
        debug::{self, DebugRequest, Definition, DurationLimit, Settings},
        evidence::Evidence,
        name,
        namespace::{NamespaceId, NamespaceKind},
        pod::{ContainerKind, ContainerState, Pod},
        session::ENV_PREFIX,
        verdict::{NamespaceVerdict, Outcome, ReferenceKind, Sharing},
    },
    proto::v1,
    sys::process::ContainerProcess,
};

/// How long to wait for a container to run.
const START: DurationLimit =
    DurationLimit { default: Duration::from_secs(60), max: Duration::from_secs(600) };
/// How long processes have after SIGTERM.
const GRACE: DurationLimit =
    DurationLimit { default: Duration::from_secs(5), max: Duration::from_secs(300) };

/// A pod that was named, with its namespace filled in and all parts checked: namespace, name, UID.
///
/// # Errors
/// INVALID_FIELD.
pub fn pod_ref(pod: Option<&v1::PodRef>) -> Result<(String, String, String)> {
    let v1::PodRef { namespace, name, uid } =
        pod.ok_or_else(|| Error::invalid("pod", "is required"))?;
    let namespace = if namespace.is_empty() { "default" } else { namespace };
    name::label("pod.namespace", namespace)?;
    name::subdomain("pod.name", name)?;
    if uid.len() > 64 {
        return Err(Error::invalid(
            "pod.uid",
            format!("is {} bytes long; a UID has 36", uid.len()),
        ));
    }
    Ok((namespace.to_owned(), name.clone(), uid.clone()))
}

/// The pod as the object of a call.
///
/// # Errors
/// INVALID_FIELD.
pub fn pod_object(pod: Option<&v1::PodRef>) -> Result<Object> {
    pod_ref(pod).map(|(namespace, name, uid)| Object::Pod { namespace, name, uid })
}

/// A namespace, or all of them, as the object of a call.
///
/// # Errors
/// INVALID_FIELD.
pub fn namespace_object(namespace: &str) -> Result<Object> {
    if namespace.is_empty() {
        return Ok(Object::AllNamespaces);
    }
    name::label("namespace", namespace)?;
    Ok(Object::Namespace(namespace.to_owned()))
}

/// The name of a session or container.
///
/// # Errors
/// INVALID_FIELD.
pub fn session_name(session: &str) -> Result<&str> {
    name::label("session", session)?;
    Ok(session)
}

/// How long processes have after SIGTERM.
///
/// # Errors
/// INVALID_FIELD.
pub fn grace_period(asked: Option<&prost_types::Duration>) -> Result<Duration> {
    GRACE.grant("grace_period", duration("grace_period", asked)?, true)
}

/// A request for a debug container.
///
/// # Errors
/// INVALID_FIELD.
pub fn debug_request(request: v1::DebugCreateRequest, ttl: DurationLimit) -> Result<DebugRequest> {
    let (namespace, pod, pod_uid) = pod_ref(request.pod.as_ref())?;
    if !request.target_container.is_empty() {
        name::label("target_container", &request.target_container)?;
    }
    if !request.name.is_empty() {
        name::label("name", &request.name)?;
    }
    if request.tty && !request.stdin {
        return Err(Error::invalid("tty", "needs stdin"));
    }
    let granted = ttl.grant("ttl", duration("ttl", request.ttl.as_ref())?, false)?;
    let start_timeout = duration("start_timeout", request.start_timeout.as_ref())?;
    Ok(DebugRequest {
        namespace,
        pod,
        pod_uid,
        name: (!request.name.is_empty()).then(|| request.name.clone()),
        target: request.target_container.clone(),
        pull_policy: pull_policy(request.image_pull_policy)?,
        stdin: request.stdin,
        tty: request.tty,
        ttl: granted,
        start_timeout: START.grant("start_timeout", start_timeout, false)?,
        wait_for_image: request.wait_for_image,
        definition: definition(request)?,
    })
}

fn definition(request: v1::DebugCreateRequest) -> Result<Definition> {
    for (field, json) in
        [("custom_json", &request.custom_json), ("container_json", &request.container_json)]
    {
        if json.len() > debug::MAX_JSON {
            return Err(Error::invalid(
                field,
                format!("is {} bytes long; at most {} are allowed", json.len(), debug::MAX_JSON),
            ));
        }
    }
    if !request.container_json.is_empty() {
        let also = [
            ("image", !request.image.is_empty()),
            ("command", !request.command.is_empty()),
            ("args", !request.args.is_empty()),
            ("env", !request.env.is_empty()),
            ("profile", request.profile != 0),
            ("custom_json", !request.custom_json.is_empty()),
        ];
        return match also.into_iter().find(|(_, set)| *set) {
            Some((field, _)) => {
                Err(Error::invalid(field, "may not be set together with container_json"))
            }
            None => Ok(Definition::Whole(request.container_json)),
        };
    }
    if request.image.is_empty() {
        return Err(Error::invalid("image", "is required"));
    }
    if request.image.len() > debug::MAX_IMAGE {
        let message = format!(
            "is {} bytes long; at most {} are allowed",
            request.image.len(),
            debug::MAX_IMAGE
        );
        return Err(Error::invalid("image", message));
    }
    let words = request.command.len().saturating_add(request.args.len());
    if words > debug::MAX_WORDS {
        let message =
            format!("has, with args, {words} words; at most {} are allowed", debug::MAX_WORDS);
        return Err(Error::invalid("command", message));
    }
    let profile = match v1::Profile::try_from(request.profile) {
        Ok(v1::Profile::Unspecified | v1::Profile::General) => debug::Profile::General,
        Ok(v1::Profile::Baseline) => debug::Profile::Baseline,
        Ok(v1::Profile::Restricted) => debug::Profile::Restricted,
        Ok(v1::Profile::Netadmin) => debug::Profile::Netadmin,
        Ok(v1::Profile::Sysadmin) => debug::Profile::Sysadmin,
        Err(_) => {
            let message = format!(
                "{} is no profile: general 1, baseline 2, restricted 3, netadmin 4, sysadmin 5",
                request.profile
            );
            return Err(Error::invalid("profile", message));
        }
    };
    Ok(Definition::Settings(Box::new(Settings {
        env: env(request.env)?,
        image: request.image,
        command: request.command,
        args: request.args,
        profile,
        custom: request.custom_json,
    })))
}

fn env(env: Vec<v1::EnvVar>) -> Result<Vec<(String, String)>> {
    if env.len() > debug::MAX_ENV {
        return Err(Error::invalid(
            "env",
            format!("has {} variables; at most {} are allowed", env.len(), debug::MAX_ENV),
        ));
    }
    let check = |(index, v1::EnvVar { name, value }): (usize, v1::EnvVar)| {
        let field = || format!("env[{index}].name");
        if name.is_empty() || name.contains('=') || name.contains('\0') {
            return Err(Error::invalid(field(), format!("{name:?} is no name of a variable")));
        }
        if name.starts_with(ENV_PREFIX) {
            return Err(Error::invalid(
                field(),
                format!("{name} is reserved: names with {ENV_PREFIX} hold the session's facts"),
            ));
        }
        Ok((name, value))
    };
    env.into_iter().enumerate().map(check).collect()
}

fn pull_policy(policy: i32) -> Result<Option<&'static str>> {
    match v1::ImagePullPolicy::try_from(policy) {
        Ok(v1::ImagePullPolicy::Unspecified) => Ok(None),
        Ok(v1::ImagePullPolicy::Always) => Ok(Some("Always")),
        Ok(v1::ImagePullPolicy::IfNotPresent) => Ok(Some("IfNotPresent")),
        Ok(v1::ImagePullPolicy::Never) => Ok(Some("Never")),
        Err(_) => Err(Error::invalid(
            "image_pull_policy",
            format!("{policy} is none: Always 1, IfNotPresent 2, Never 3"),
        )),
    }
}

/// A duration of a request; none if it is not set.
///
/// # Errors
/// INVALID_FIELD if it is negative or out of range.
pub fn duration(field: &str, duration: Option<&prost_types::Duration>) -> Result<Option<Duration>> {
    // Not by prost's own conversion, which panics where `nanos` is the least there is.
    let convert =
        |d: &prost_types::Duration| match (u64::try_from(d.seconds), u32::try_from(d.nanos)) {
            (Ok(seconds), Ok(nanos @ 0..1_000_000_000)) => Ok(Duration::new(seconds, nanos)),
            _ => Err(Error::invalid(field, "is negative or out of range")),
        };
    duration.map(convert).transpose()
}

/// A point in time.
pub fn timestamp(at: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: at.as_second(), nanos: at.subsec_nanosecond() }
}

/// A session.
pub fn session(session: &Session, node: &str) -> v1::Session {
    let Session { pod, facts, sealed, container } = session;
    let (state, reason, message, exit_code) = match &container.state {
        ContainerState::Absent => (v1::SessionState::Waiting, "", "", None),
        ContainerState::Waiting { reason, message } => {
            (v1::SessionState::Waiting, reason.as_str(), message.as_str(), None)
        }
        ContainerState::Running => (v1::SessionState::Running, "", "", None),
        ContainerState::Terminated { exit_code, reason, message } => {
            (v1::SessionState::Terminated, reason.as_str(), message.as_str(), Some(*exit_code))
        }
    };
    v1::Session {
        id: facts.id.clone(),
        node: node.to_owned(),
        namespace: pod.namespace.clone(),
        pod: pod.name.clone(),
        pod_uid: pod.uid.clone(),
        container: container.name.clone(),
        target_container: container.target.clone(),
        image: container.image.clone(),
        requested_by: facts.requested_by.clone(),
        requester_verified: *sealed,
        created_at: Some(timestamp(facts.created_at)),
        expires_at: Some(timestamp(facts.expires_at)),
        state: state.into(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        exit_code,
        container_id: container.id.as_ref().map(ToString::to_string).unwrap_or_default(),
    }
}

/// The end of a creation.
pub fn created(created: &Created, node: &str) -> v1::DebugDone {
    let Created { session: made, report, agent_time } = created;
    let verification = match report {
        Some(report) => container_report(&made.pod, report, node),
        None => v1::ContainerVerification {
            container: Some(identity(&made.pod, &made.container.name, None, node)),
            outcome: v1::Outcome::Unknown.into(),
            reason: crate::domain::Reason::ContainerExited.as_str().to_owned(),
            message: "it had exited before its namespaces could be looked at".to_owned(),
            ..v1::ContainerVerification::default()
        },
    };
    v1::DebugDone {
        session: Some(session(made, node)),
        verification: Some(verification),
        agent_time: prost_types::Duration::try_from(*agent_time).ok(),
    }
}

/// A report on a pod.
pub fn pod_report(report: &PodReport, node: &str) -> v1::PodVerification {
    let PodReport { pod, containers } = report;
    let worst = containers.iter().map(|c| c.verdict.outcome).max();
    v1::PodVerification {
        node: node.to_owned(),
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        uid: pod.uid.clone(),
        outcome: worst.map_or(v1::Outcome::Unspecified, outcome).into(),
        containers: containers.iter().map(|c| container_report(pod, c, node)).collect(),
    }
}

fn container_report(pod: &Pod, report: &ContainerReport, node: &str) -> v1::ContainerVerification {
    let namespaces = report.verdict.namespaces.iter().map(|n| namespace_verdict(n, report));
    v1::ContainerVerification {
        container: Some(identity(pod, &report.name, report.process.as_deref(), node)),
        reference: Some(reference(pod, &report.reference, node)),
        outcome: outcome(report.verdict.outcome).into(),
        reason: report.verdict.reason.map(|r| r.as_str().to_owned()).unwrap_or_default(),
        message: report.verdict.message.clone(),
        namespaces: namespaces.collect(),
    }
}

fn reference(pod: &Pod, reference: &Reference, node: &str) -> v1::Reference {
    let kind = match reference.kind {
        ReferenceKind::Target => v1::ReferenceKind::Target,
        ReferenceKind::Sandbox => v1::ReferenceKind::Sandbox,
        ReferenceKind::Peer => v1::ReferenceKind::Peer,
        ReferenceKind::None => v1::ReferenceKind::None,
    };
    let container = reference.process.as_deref().map(|process| {
        let mut identity = identity(pod, &reference.name, Some(process), node);
        if identity.container_id.is_empty() {
            // The sandbox: no status names its id, so there is no scheme either.
            identity.container_id.clone_from(&process.container_id);
        }
        identity
    });
    v1::Reference { kind: kind.into(), container }
}

/// A container, with the process that was proven to be its first.
pub fn identity(
    pod: &Pod,
    container: &str,
    process: Option<&ContainerProcess>,
    node: &str,
) -> v1::ContainerIdentity {
    let found = pod.container(container);
    let kind = found.map_or(v1::ContainerKind::Unspecified, |c| match c.kind {
        ContainerKind::Regular => v1::ContainerKind::Regular,
        ContainerKind::Init => v1::ContainerKind::Init,
        ContainerKind::Sidecar => v1::ContainerKind::Sidecar,
        ContainerKind::Ephemeral => v1::ContainerKind::Ephemeral,
    });
    let id = found.and_then(|c| c.id.as_ref()).map(ToString::to_string);
    v1::ContainerIdentity {
        node: node.to_owned(),
        namespace: pod.namespace.clone(),
        pod: pod.name.clone(),
        pod_uid: pod.uid.clone(),
        container: container.to_owned(),
        kind: kind.into(),
        container_id: id.unwrap_or_default(),
        host_pid: process.map_or(0, |p| p.facts.pid),
        ns_pid: process.map_or(0, |p| p.facts.own_pid()),
        started_at: process.and_then(ContainerProcess::started_at).map(SystemTime::into),
    }
}

fn namespace_verdict(verdict: &NamespaceVerdict, report: &ContainerReport) -> v1::NamespaceVerdict {
    let kind = match verdict.kind {
        NamespaceKind::Ipc => v1::NamespaceKind::Ipc,
        NamespaceKind::Net => v1::NamespaceKind::Net,
        NamespaceKind::Uts => v1::NamespaceKind::Uts,
        NamespaceKind::Pid => v1::NamespaceKind::Pid,
        NamespaceKind::Mnt => v1::NamespaceKind::Mnt,
        NamespaceKind::Cgroup => v1::NamespaceKind::Cgroup,
        NamespaceKind::User => v1::NamespaceKind::User,
        NamespaceKind::Time => v1::NamespaceKind::Time,
    };
    v1::NamespaceVerdict {
        kind: kind.into(),
        actual: verdict.actual.map_or(v1::Sharing::Unspecified, sharing).into(),
        expected: verdict.expected.allowed.iter().map(|s| sharing(*s).into()).collect(),
        outcome: outcome(verdict.outcome).into(),
        id: verdict.id.map(namespace_id),
        reference_id: verdict.reference_id.map(namespace_id),
        host_id: verdict.host_id.map(namespace_id),
        because: verdict.expected.because.clone(),
        foreign_containers: u32::try_from(verdict.foreign).unwrap_or(u32::MAX),
        evidence: evidence(verdict.kind, report),
    }
}

fn evidence(kind: NamespaceKind, report: &ContainerReport) -> Option<v1::Evidence> {
    use v1::evidence::Kind;
    let Evidence { hostname, net, ipc } = &report.evidence;
    let kind = match kind {
        NamespaceKind::Uts => Kind::Uts(v1::UtsEvidence { hostname: hostname.clone()? }),
        NamespaceKind::Net => {
            let net = net.as_ref()?;
            let interfaces = net.interfaces.iter();
            let interfaces = interfaces
                .map(|i| v1::NetInterface { name: i.name.clone(), addresses: i.addresses.clone() })
                .collect();
            Kind::Net(v1::NetEvidence {
                cookie: net.cookie,
                interfaces,
                interface_count: net.interface_count,
            })
        }
        NamespaceKind::Ipc => {
            let ipc = ipc.as_ref()?;
            Kind::Ipc(v1::IpcEvidence {
                shared_memory_ids: ipc.shm.clone(),
                semaphore_ids: ipc.sem.clone(),
                message_queue_ids: ipc.msg.clone(),
            })
        }
        NamespaceKind::Pid if report.reference.process.is_some() => Kind::Pid(v1::PidEvidence {
            reference_seen_from_container: report.pids.reference_from_container.unwrap_or_default(),
            container_seen_from_reference: report.pids.container_from_reference.unwrap_or_default(),
        }),
        NamespaceKind::Pid
        | NamespaceKind::Mnt
        | NamespaceKind::Cgroup
        | NamespaceKind::User
        | NamespaceKind::Time => return None,
    };
    Some(v1::Evidence { kind: Some(kind) })
}

const fn namespace_id(id: NamespaceId) -> v1::NamespaceId {
    v1::NamespaceId { dev: id.dev, inode: id.ino }
}

const fn outcome(outcome: Outcome) -> v1::Outcome {
    match outcome {
        Outcome::Ok => v1::Outcome::Ok,
        Outcome::Drift => v1::Outcome::Drift,
        Outcome::Unknown => v1::Outcome::Unknown,
    }
}

const fn sharing(sharing: Sharing) -> v1::Sharing {
    match sharing {
        Sharing::Shared => v1::Sharing::Shared,
        Sharing::Private => v1::Sharing::Private,
        Sharing::Host => v1::Sharing::Host,
    }
}
