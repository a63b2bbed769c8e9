//! Hints: what a user can do about an error, chosen by its reason.

use crate::{
    client::{Error, Reason},
    domain::Reason as AgentReason,
};

/// A resource that only the ClusterRole podsonde-capturer grants permissions on.
const CAPTURES: &str = "captures.podsonde.dev";

/// What the user can do next. `None` if the message already says it. `program` is the name under
/// which the user runs podsonde.
pub(super) fn hint(error: &Error, program: &str) -> Option<String> {
    let names = Names::of(error, program);
    let Names { namespace, node, agents, .. } = names;
    Some(match &error.reason {
        Reason::AgentNotFound => format!(
            "check that the DaemonSet is installed and scheduled there: \
             kubectl -n {agents} get daemonset,pods -o wide; \
             for agents in another namespace, use --agent-namespace"
        ),
        Reason::AgentNotReady => format!(
            "see why: kubectl -n {agents} get pods -o wide \
             --field-selector spec.nodeName={node}, then kubectl -n {agents} describe pod"
        ),
        Reason::AgentUnreachable => {
            "see whether the agent runs and listens there; without --agent and PODSONDE_AGENT it is \
             reached through the API server"
                .to_owned()
        }
        Reason::CertificateMismatch => format!(
            "if the agent was just restarted, try again in a moment; if this goes on, somebody may \
             stand between you and the agent: compare \
             kubectl -n {agents} get lease podsonde-agent-{node} -o yaml with the agent's log \
             before you trust it"
        ),
        Reason::CertificateUntrusted => {
            "name its authority with --agent-ca or its certificate with --agent-fingerprint; \
             without --agent its Lease vouches for it"
                .to_owned()
        }
        Reason::CertificateFileInvalid => "give a file of PEM certificates".to_owned(),
        Reason::FingerprintInvalid => {
            "print it with openssl x509 -in CERTIFICATE -noout -fingerprint -sha256".to_owned()
        }
        Reason::ClientCertificateRefused => {
            "the agent accepts client certificates of the cluster's authority only: check whether \
             yours has expired, or use a token"
                .to_owned()
        }
        Reason::AgentNotPublished => format!(
            "check that it may write its Lease: kubectl -n {agents} get leases, and the agent's \
             log; for an agent that serves no TLS, use --insecure-agent"
        ),
        Reason::ConnectionLost => {
            "check whether the agent was restarted, then try again".to_owned()
        }
        Reason::RequestTimeout => {
            "wait longer with --request-timeout (debug: --start-timeout), or see the agent's log"
                .to_owned()
        }
        Reason::EndpointInvalid => {
            "write https://HOST:PORT, http://127.0.0.1:PORT or unix:///PATH".to_owned()
        }
        Reason::PortForwardFailed => format!(
            "try it by hand: kubectl -n {agents} port-forward POD {}; the agent's pod must be Ready",
            crate::kube::agents::AGENT_PORT
        ),
        Reason::KubeconfigMissing => {
            "set KUBECONFIG or --kubeconfig, or ask an agent directly with --agent ENDPOINT"
                .to_owned()
        }
        Reason::KubeconfigInvalid => {
            "see what kubectl makes of it: kubectl config view; kubectl config get-contexts"
                .to_owned()
        }
        Reason::ApiUnauthenticated => "see who you are: kubectl auth whoami".to_owned(),
        Reason::ApiForbidden => format!(
            "podsonde needs: get pods in the pod's namespace, and list pods, get leases, and get \
             and create pods/portforward in namespace {agents}; see what you have: \
             kubectl auth can-i --list -n {agents}"
        ),
        Reason::CredentialsUnusable => {
            "check --token-file, or what kubectl makes of the kubeconfig: kubectl auth whoami"
                .to_owned()
        }
        Reason::WorkloadNotFound => {
            "name a pod, or a deployment, statefulset, daemonset, job or service".to_owned()
        }
        Reason::Other(code) if code == "UNIMPLEMENTED" => {
            format!("the agent is older than this client: see {program} version")
        }
        Reason::Other(code) if code == "INTERNAL" => format!(
            "the agent's log has the details: \
             kubectl -n {agents} logs -l app.kubernetes.io/name=podsonde-agent"
        ),
        Reason::Agent(AgentReason::Forbidden) => {
            return Some(if error.fact("resource") == Some(CAPTURES) {
                format!(
                    "an administrator can bind the ClusterRole podsonde-capturer to you: \
                     kubectl -n {namespace} create rolebinding NAME \
                     --clusterrole=podsonde-capturer --user=USER"
                )
            } else {
                format!(
                    "see what you may do: kubectl auth can-i --list -n {namespace}; an \
                     administrator can bind the ClusterRole podsonde-viewer or podsonde-debugger \
                     to you"
                )
            });
        }
        Reason::Agent(reason) => return of_agent(*reason, error, &names),
        Reason::Protocol
        | Reason::ChecksumMismatch
        | Reason::LocalFile
        | Reason::ApiNotFound
        | Reason::ApiError
        | Reason::Other(_) => return None,
    })
}

/// The names for the commands in hints: those from the error, or placeholders.
struct Names<'a> {
    namespace: &'a str,
    pod: &'a str,
    node: &'a str,
    /// The namespace that the agents run in.
    agents: &'a str,
    program: &'a str,
}

impl<'a> Names<'a> {
    fn of(error: &'a Error, program: &'a str) -> Self {
        Self {
            namespace: error.fact("namespace").unwrap_or("NAMESPACE"),
            pod: error.fact("pod").unwrap_or("POD"),
            node: error.fact("node").unwrap_or("NODE"),
            agents: error.fact("agent_namespace").unwrap_or("podsonde"),
            program,
        }
    }
}

fn of_agent(reason: AgentReason, error: &Error, names: &Names<'_>) -> Option<String> {
    use AgentReason as Agent;
    let Names { namespace, pod, node, agents, program } = names;
    Some(match reason {
        Agent::InterfaceNotFound => {
            format!("see which there are: {program} capture {pod} -n {namespace} -D")
        }
        Agent::TooManyCaptures | Agent::CaptureMemory => {
            "wait for other captures to end, capture fewer pods at once, or ask for a smaller \
             buffer with -B"
                .to_owned()
        }
        Agent::InvalidField if error.fact("field") == Some("filter") => {
            "see pcap-filter(7); hosts and networks must be numbers".to_owned()
        }
        Agent::ApiUnreachable => "see whether kubectl reaches it: kubectl get --raw /readyz".into(),
        Agent::AgentForbidden => {
            "the agent's own service account lacks a permission; check that deploy/base of this \
             version is applied"
                .to_owned()
        }
        Agent::AdmissionDenied => {
            "an admission policy refuses such a container; a more restricted one may pass: \
             --profile=restricted"
                .to_owned()
        }
        Agent::NoCredentials => {
            "show a token: kubectl create token ACCOUNT --audience podsonde > FILE, then \
             --token-file FILE"
                .to_owned()
        }
        Agent::WrongAudience => {
            "get a token for agents: kubectl create token ACCOUNT --audience podsonde > FILE, then \
             --token-file FILE; or run the agents with --accept-api-server-audience"
                .to_owned()
        }
        Agent::BadToken | Agent::TokenExpired | Agent::BadCertificate => {
            "get a new one; log in again".to_owned()
        }
        Agent::ReviewFailed => format!(
            "check that the agent may ask the API server who you are: \
             kubectl -n {agents} logs -l app.kubernetes.io/name=podsonde-agent"
        ),
        Agent::AuditFailed => {
            "the agent does nothing that it cannot write to its audit log; see its --audit-log"
                .to_owned()
        }
        Agent::PodNotFound => format!(
            "see which there are: kubectl get pods -n {namespace}; for another namespace, use -n"
        ),
        Agent::PodNotScheduled => format!("see why: kubectl describe pod {pod} -n {namespace}"),
        Agent::ContainerNotFound => format!(
            "see which there are: kubectl get pod {pod} -n {namespace} \
             -o jsonpath='{{.spec.containers[*].name}}'"
        ),
        Agent::PodOnOtherNode => format!(
            "leave out --agent (and PODSONDE_AGENT) to be led to the right one, or ask the agent \
             of node {node}"
        ),
        Agent::PodReplaced => {
            "another pod has that name now; ask again if you mean that one".to_owned()
        }
        Agent::PodFinished | Agent::PodTerminating => {
            "nothing more can be started in it; debug a running pod, or a copy: \
             kubectl debug --copy-to"
                .to_owned()
        }
        Agent::StaticPod => {
            "Kubernetes allows no debug containers in static pods; debug the node: \
             kubectl debug node/NODE"
                .to_owned()
        }
        Agent::TargetNotRunning => format!(
            "see its state: kubectl describe pod {pod} -n {namespace}; name another with --target, \
             or none for a pid namespace of its own"
        ),
        Agent::NameTaken => {
            "a name is taken for as long as the pod lives: choose another with -c, or none for a \
             random one"
                .to_owned()
        }
        Agent::TooManySessions => {
            format!("end one: {program} sessions -n {namespace}; {program} end POD SESSION")
        }
        Agent::SessionNotFound => {
            format!("see which there are: {program} sessions --all -n {namespace}")
        }
        Agent::FilePermission => {
            // Root was refused too, so --as-root would not help.
            if error.fact("as_root").is_some() {
                return None;
            }
            "the container's own user may not; --as-root can, if you may patch \
             pods/ephemeralcontainers"
                .to_owned()
        }
        Agent::PathRefused => {
            "procfs, sysfs and their like show the node, not the container; for what /proc/1/root \
             is to a debug container, use --view=proc1"
                .to_owned()
        }
        Agent::ContainerNotRunning => format!(
            "see its state: kubectl describe pod {pod} -n {namespace}; name another container \
             with -c"
        ),
        Agent::WritesDisabled => {
            "the agent writes files only if it is started with --allow-file-writes".to_owned()
        }
        Agent::FileExists => "replace it with --force".to_owned(),
        Agent::NotAFile => format!("directories: {program} ls, {program} cp"),
        Agent::TooManyFileRequests => {
            "others are reading files too; try again in a moment".to_owned()
        }
        Agent::FileSystemStuck => {
            "it does not answer: most likely a network or FUSE file system; nothing else is held \
             up by it"
                .to_owned()
        }
        Agent::ImagePullFailed => {
            "check the image's name and the pod's imagePullSecrets; --wait-for-image keeps waiting \
             while the kubelet retries"
                .to_owned()
        }
        Agent::ImageNameInvalid => "write [REGISTRY/]NAME[:TAG]".to_owned(),
        Agent::ConfigRejected => {
            "with --profile=restricted the image must not run as root; try another profile or image"
                .to_owned()
        }
        Agent::CreateFailed => {
            format!("see the pod's events: kubectl describe pod {pod} -n {namespace}")
        }
        Agent::CommandFailed => {
            "check that the image has that command; it is not run by a shell".to_owned()
        }
        Agent::StartDeadline => format!(
            "the container may still start: {program} sessions -n {namespace}; wait longer with \
             --start-timeout"
        ),
        Agent::PodDeleted | Agent::ContainerRestarted => "ask again".to_owned(),
        Agent::Draining => "try again in a moment".to_owned(),
        _ => return None,
    })
}
