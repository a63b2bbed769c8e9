//! What `-o json` and `-o yaml` print. The format belongs to the command line, in Kubernetes'
//! camelCase, and does not depend on the gRPC API. Fields are added and never renamed. A field
//! without a value is left out.

use prost_types::Timestamp;
use serde::Serialize;

use crate::{
    client::{Failure, Gathered},
    proto::v1::{
        ContainerIdentity, ContainerKind, ContainerVerification, DebugDone, Evidence, NamespaceId,
        NamespaceKind, NamespaceVerdict, NodeGetResponse, Outcome, PodVerification, ReferenceKind,
        Session, SessionState, Sharing, evidence,
    },
};

/// The result of `podsonde verify`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct VerifyReport {
    pub(super) summary: Summary,
    /// Sorted by namespace and name.
    pub(super) pods: Vec<PodReport>,
    /// The nodes and pods that could not be asked about.
    pub(super) errors: Vec<ErrorReport>,
}

/// The number of containers with each verdict, and of errors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Summary {
    pub(super) pods: usize,
    pub(super) containers: usize,
    pub(super) ok: usize,
    pub(super) drift: usize,
    pub(super) unknown: usize,
    pub(super) errors: usize,
}

/// A pod and the verdicts on its running containers.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodReport {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) node: String,
    /// `OK`, `DRIFT`, `UNKNOWN`, or `NONE` when no container runs.
    pub(super) verdict: &'static str,
    pub(super) containers: Vec<ContainerReport>,
}

/// A container and the verdict on it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ContainerReport {
    #[serde(flatten)]
    pub(super) container: ContainerName,
    /// `OK`, `DRIFT` or `UNKNOWN`.
    pub(super) verdict: &'static str,
    /// The reason for UNKNOWN, in UPPER_SNAKE. Empty for other verdicts.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reference: Option<ReferenceReport>,
    pub(super) namespaces: Vec<NamespaceReport>,
}

/// A container and its process.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ContainerName {
    pub(super) name: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(super) kind: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) container_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) host_pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ns_pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) started_at: Option<String>,
}

/// The reference that a container was compared with.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ReferenceReport {
    /// `target`, `sandbox`, `peer` or `none`.
    pub(super) kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) container: Option<ContainerName>,
}

/// The verdict on one namespace.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NamespaceReport {
    /// `ipc`, `net`, `uts`, `pid`, `mnt`, `cgroup`, `user` or `time`.
    pub(super) kind: &'static str,
    pub(super) verdict: &'static str,
    /// `shared`, `private` or `host`.
    pub(super) actual: &'static str,
    pub(super) expected: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<IdReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reference_id: Option<IdReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) host_id: Option<IdReport>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) because: String,
    pub(super) foreign_containers: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) evidence: Option<EvidenceReport>,
}

/// A namespace's device and inode number, which identify it.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct IdReport {
    pub(super) dev: u64,
    pub(super) inode: u64,
}

/// What the agent saw from inside the namespace.
#[derive(Debug, Serialize)]
#[serde(untagged, rename_all_fields = "camelCase")]
pub(super) enum EvidenceReport {
    Uts { hostname: String },
    // The cookie is text, because it has 64 bits and many JSON readers keep only 53.
    Net { cookie: String, interfaces: Vec<InterfaceReport>, interface_count: u32 },
    Ipc { shared_memory_ids: Vec<i32>, semaphore_ids: Vec<i32>, message_queue_ids: Vec<i32> },
    Pid { reference_seen_from_container: u32, container_seen_from_reference: u32 },
}

/// A network interface.
#[derive(Debug, Serialize)]
pub(super) struct InterfaceReport {
    pub(super) name: String,
    pub(super) addresses: Vec<String>,
}

/// An object that could not be asked about, and the reason.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ErrorReport {
    /// `node n1`, `pod default/web`.
    pub(super) subject: String,
    pub(super) reason: String,
    pub(super) message: String,
}

/// The result of `podsonde debug`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DebugReport {
    pub(super) session: SessionReport,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) verification: Option<ContainerReport>,
    /// The agent's share of the time between request and verdict.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) agent_milliseconds: Option<f64>,
}

/// The result of `podsonde sessions`.
#[derive(Debug, Serialize)]
pub(super) struct SessionsReport {
    /// Sorted by age, newest first.
    pub(super) sessions: Vec<SessionReport>,
    pub(super) errors: Vec<ErrorReport>,
}

/// A debug session.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SessionReport {
    pub(super) id: String,
    pub(super) node: String,
    pub(super) namespace: String,
    pub(super) pod: String,
    pub(super) pod_uid: String,
    pub(super) container: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) target_container: String,
    pub(super) image: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) requested_by: String,
    pub(super) requester_verified: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) created_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) expires_at: Option<String>,
    /// `Waiting`, `Running` or `Terminated`.
    pub(super) state: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) exit_code: Option<i32>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) container_id: String,
}

/// The result of `podsonde node`.
#[derive(Debug, Serialize)]
pub(super) struct NodesReport {
    pub(super) nodes: Vec<NodeReport>,
    pub(super) errors: Vec<ErrorReport>,
}

/// An agent and its node.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NodeReport {
    pub(super) node: String,
    pub(super) version: String,
    pub(super) kernel: String,
    pub(super) architecture: String,
    pub(super) runtimes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) started_at: Option<String>,
    pub(super) pods: u32,
    pub(super) features: Vec<FeatureReport>,
}

/// A capability that the agent needs from the node.
#[derive(Debug, Serialize)]
pub(super) struct FeatureReport {
    pub(super) name: String,
    pub(super) available: bool,
    pub(super) message: String,
}

/// The result of `podsonde version`.
#[derive(Debug, Serialize)]
pub(super) struct VersionReport {
    /// Version of the client.
    pub(super) client: &'static str,
    pub(super) agents: Vec<AgentVersion>,
    pub(super) errors: Vec<ErrorReport>,
}

/// An agent's version.
#[derive(Debug, Serialize)]
pub(super) struct AgentVersion {
    pub(super) node: String,
    pub(super) version: String,
}

impl VerifyReport {
    /// `errors` gets the failures that are not counted as pods.
    pub(super) fn new(mut pods: Vec<PodVerification>, failures: &[Failure]) -> Self {
        pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        let mut summary =
            Summary { pods: pods.len(), errors: failures.len(), ..Summary::default() };
        for container in pods.iter().flat_map(|pod| &pod.containers) {
            summary.containers += 1;
            match container.outcome() {
                Outcome::Ok => summary.ok += 1,
                Outcome::Drift => summary.drift += 1,
                Outcome::Unknown | Outcome::Unspecified => summary.unknown += 1,
            }
        }
        let pods = pods.into_iter().map(PodReport::from).collect();
        Self { summary, pods, errors: errors(failures) }
    }
}

/// Converts failures to their printed form.
pub(super) fn errors(failures: &[Failure]) -> Vec<ErrorReport> {
    let report = |failure: &Failure| ErrorReport {
        subject: failure.subject.clone(),
        reason: failure.error.reason.to_string(),
        message: failure.error.message.clone(),
    };
    failures.iter().map(report).collect()
}

impl From<PodVerification> for PodReport {
    fn from(pod: PodVerification) -> Self {
        // A pod without running containers has no verdict. An outcome from a later API version
        // counts as unknown.
        let verdict = if pod.containers.is_empty() { "NONE" } else { verdict(pod.outcome()) };
        Self {
            verdict,
            namespace: pod.namespace,
            name: pod.name,
            uid: pod.uid,
            node: pod.node,
            containers: pod.containers.into_iter().map(ContainerReport::from).collect(),
        }
    }
}

impl From<ContainerVerification> for ContainerReport {
    fn from(container: ContainerVerification) -> Self {
        let verdict = verdict(container.outcome());
        let reference = container.reference.map(|reference| ReferenceReport {
            kind: match reference.kind() {
                ReferenceKind::Target => "target",
                ReferenceKind::Sandbox => "sandbox",
                ReferenceKind::Peer => "peer",
                ReferenceKind::None | ReferenceKind::Unspecified => "none",
            },
            container: reference.container.map(ContainerName::from),
        });
        Self {
            verdict,
            reference,
            container: container.container.unwrap_or_default().into(),
            reason: container.reason,
            message: container.message,
            namespaces: container.namespaces.into_iter().map(NamespaceReport::from).collect(),
        }
    }
}

impl From<ContainerIdentity> for ContainerName {
    fn from(container: ContainerIdentity) -> Self {
        let kind = match container.kind() {
            ContainerKind::Unspecified => "",
            ContainerKind::Regular => "regular",
            ContainerKind::Init => "init",
            ContainerKind::Sidecar => "sidecar",
            ContainerKind::Ephemeral => "ephemeral",
        };
        let pid = |pid: u32| (pid != 0).then_some(pid);
        Self {
            kind,
            name: container.container,
            container_id: container.container_id,
            host_pid: pid(container.host_pid),
            ns_pid: pid(container.ns_pid),
            started_at: container.started_at.and_then(rfc3339),
        }
    }
}

impl From<NamespaceVerdict> for NamespaceReport {
    fn from(namespace: NamespaceVerdict) -> Self {
        let id = |id: Option<NamespaceId>| id.map(|id| IdReport { dev: id.dev, inode: id.inode });
        Self {
            kind: namespace_kind(namespace.kind()),
            verdict: verdict(namespace.outcome()),
            actual: sharing(namespace.actual()),
            expected: namespace.expected().map(sharing).collect(),
            id: id(namespace.id),
            reference_id: id(namespace.reference_id),
            host_id: id(namespace.host_id),
            because: namespace.because,
            foreign_containers: namespace.foreign_containers,
            evidence: namespace.evidence.and_then(evidence_report),
        }
    }
}

fn evidence_report(evidence: Evidence) -> Option<EvidenceReport> {
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Some(match evidence.kind? {
        evidence::Kind::Uts(uts) => EvidenceReport::Uts { hostname: text(uts.hostname) },
        evidence::Kind::Net(net) => {
            let interface = |interface: crate::proto::v1::NetInterface| InterfaceReport {
                name: text(interface.name),
                addresses: interface.addresses,
            };
            EvidenceReport::Net {
                cookie: net.cookie.to_string(),
                interfaces: net.interfaces.into_iter().map(interface).collect(),
                interface_count: net.interface_count,
            }
        }
        evidence::Kind::Ipc(ipc) => EvidenceReport::Ipc {
            shared_memory_ids: ipc.shared_memory_ids,
            semaphore_ids: ipc.semaphore_ids,
            message_queue_ids: ipc.message_queue_ids,
        },
        evidence::Kind::Pid(pid) => EvidenceReport::Pid {
            reference_seen_from_container: pid.reference_seen_from_container,
            container_seen_from_reference: pid.container_seen_from_reference,
        },
    })
}

impl From<DebugDone> for DebugReport {
    fn from(done: DebugDone) -> Self {
        let spent = done.agent_time.and_then(|time| std::time::Duration::try_from(time).ok());
        Self {
            session: done.session.unwrap_or_default().into(),
            verification: done.verification.map(ContainerReport::from),
            agent_milliseconds: spent.map(|spent| (spent.as_secs_f64() * 1e6).round() / 1e3),
        }
    }
}

impl From<Session> for SessionReport {
    fn from(session: Session) -> Self {
        let state = match session.state() {
            SessionState::Unspecified => "Unknown",
            SessionState::Waiting => "Waiting",
            SessionState::Running => "Running",
            SessionState::Terminated => "Terminated",
        };
        Self {
            state,
            id: session.id,
            node: session.node,
            namespace: session.namespace,
            pod: session.pod,
            pod_uid: session.pod_uid,
            container: session.container,
            target_container: session.target_container,
            image: session.image,
            requested_by: session.requested_by,
            requester_verified: session.requester_verified,
            created_at: session.created_at.and_then(rfc3339),
            expires_at: session.expires_at.and_then(rfc3339),
            reason: session.reason,
            message: session.message,
            exit_code: session.exit_code,
            container_id: session.container_id,
        }
    }
}

impl From<&Gathered<NodeGetResponse>> for NodesReport {
    fn from(gathered: &Gathered<NodeGetResponse>) -> Self {
        let node = |node: &NodeGetResponse| NodeReport {
            node: node.node.clone(),
            version: node.version.clone(),
            kernel: node.kernel.clone(),
            architecture: node.architecture.clone(),
            runtimes: node.runtimes.clone(),
            started_at: node.started_at.and_then(rfc3339),
            pods: node.pods,
            features: node
                .features
                .iter()
                .map(|feature| FeatureReport {
                    name: feature.name.clone(),
                    available: feature.available,
                    message: feature.message.clone(),
                })
                .collect(),
        };
        Self {
            nodes: gathered.answers.iter().map(node).collect(),
            errors: errors(&gathered.failures),
        }
    }
}

/// The word for an outcome: `OK`, `DRIFT` or `UNKNOWN`.
pub(super) fn verdict(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Ok => "OK",
        Outcome::Drift => "DRIFT",
        Outcome::Unknown | Outcome::Unspecified => "UNKNOWN",
    }
}

fn sharing(sharing: Sharing) -> &'static str {
    match sharing {
        Sharing::Shared => "shared",
        Sharing::Private => "private",
        Sharing::Host => "host",
        Sharing::Unspecified => "unknown",
    }
}

fn namespace_kind(kind: NamespaceKind) -> &'static str {
    match kind {
        NamespaceKind::Ipc => "ipc",
        NamespaceKind::Net => "net",
        NamespaceKind::Uts => "uts",
        NamespaceKind::Pid => "pid",
        NamespaceKind::Mnt => "mnt",
        NamespaceKind::Cgroup => "cgroup",
        NamespaceKind::User => "user",
        NamespaceKind::Time => "time",
        NamespaceKind::Unspecified => "unknown",
    }
}

/// Converts a time. Returns `None` for years that do not have four digits.
pub(super) fn instant(time: Timestamp) -> Option<jiff::Timestamp> {
    jiff::Timestamp::new(time.seconds, time.nanos).ok()
}

/// Formats a time as RFC 3339 in UTC.
pub(super) fn rfc3339(time: Timestamp) -> Option<String> {
    instant(time).map(|time| time.to_string())
}
