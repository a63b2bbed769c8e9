//! What to do about an error, by its reason.

use crate::client::{Error, reason};

/// What a person can do next. `program`: what they call podsonde by. `None`: the message says it all.
pub(super) fn hint(error: &Error, program: &str) -> Option<String> {
    let fact = |key: &str, otherwise: &str| error.fact(key).unwrap_or(otherwise).to_owned();
    let (namespace, pod) = (fact("namespace", "NAMESPACE"), fact("pod", "POD"));
    let (node, agents) = (fact("node", "NODE"), fact("agent_namespace", "podsonde"));
    Some(match &*error.reason {
        // Finding and reaching an agent.
        reason::AGENT_NOT_FOUND => format!(
            "see whether the DaemonSet is installed and scheduled there: kubectl -n {agents} get daemonset,pods -o wide; \
             agents of another namespace are found with --agent-namespace"
        ),
        reason::AGENT_NOT_READY => format!(
            "see why: kubectl -n {agents} get pods -o wide --field-selector spec.nodeName={node}, then kubectl -n {agents} \
             describe pod"
        ),
        reason::AGENT_UNREACHABLE => {
            "see whether the agent runs and listens there; without --agent and PODSONDE_AGENT it is reached through the API server"
                .to_owned()
        }
        reason::CERTIFICATE_MISMATCH => format!(
            "if the agent was just restarted, try again in a moment; if it goes on, somebody may stand between you and the agent: \
             compare with kubectl -n {agents} get lease podsonde-agent-{node} -o yaml and the agent's log before you trust it"
        ),
        reason::CERTIFICATE_UNTRUSTED => {
            "name its authority with --agent-ca or its certificate with --agent-fingerprint; without --agent its Lease vouches for it"
                .to_owned()
        }
        reason::CERTIFICATE_FILE_INVALID => "give a file of PEM certificates".to_owned(),
        reason::FINGERPRINT_INVALID => "print it with openssl x509 -in CERTIFICATE -noout -fingerprint -sha256".to_owned(),
        reason::CLIENT_CERTIFICATE_REFUSED => {
            "the agent believes client certificates of the cluster's authority only: see whether yours has expired, or use a token"
                .to_owned()
        }
        reason::AGENT_NOT_PUBLISHED => format!(
            "see whether it may write its Lease: kubectl -n {agents} get leases, and the agent's log; an agent that serves no TLS is \
             talked to with --insecure-agent"
        ),
        reason::CONNECTION_LOST => "see whether the agent was restarted, then try again".to_owned(),
        reason::REQUEST_TIMEOUT => "wait longer with --request-timeout (debug: --start-timeout), or see the agent's log".to_owned(),
        reason::ENDPOINT_INVALID => "write https://HOST:PORT, http://127.0.0.1:PORT or unix:///PATH".to_owned(),
        reason::PORT_FORWARD_FAILED => {
            format!("try it by hand: kubectl -n {agents} port-forward POD 7463; the agent's pod must be Ready")
        }
        "INTERFACE_NOT_FOUND" => format!("see which there are: {program} capture {pod} -n {namespace} -D"),
        "TOO_MANY_CAPTURES" | "CAPTURE_MEMORY" => {
            "wait for other captures to end, capture fewer pods at once, or ask for a smaller buffer with -B".to_owned()
        }
        "INVALID_FIELD" if error.fact("field") == Some("filter") => {
            "see pcap-filter(7); hosts and networks must be numbers".to_owned()
        }
        "UNIMPLEMENTED" => format!("the agent is older than this client: see {program} version"),
        // The API server.
        reason::KUBECONFIG_MISSING => {
            "set KUBECONFIG or --kubeconfig, or ask an agent directly with --agent ENDPOINT".to_owned()
        }
        reason::KUBECONFIG_INVALID => "see what kubectl makes of it: kubectl config view; kubectl config get-contexts".to_owned(),
        reason::API_UNREACHABLE => "see whether kubectl reaches it: kubectl get --raw /readyz".to_owned(),
        reason::API_UNAUTHENTICATED => "see who you are: kubectl auth whoami".to_owned(),
        reason::API_FORBIDDEN => format!(
            "podsonde needs: get pods in the pod's namespace, and list pods, get leases, and get and create pods/portforward in \
             namespace {agents}; see what you have: kubectl auth can-i --list -n {agents}"
        ),
        "AGENT_FORBIDDEN" => {
            "the agent's own service account lacks a right; see whether deploy/base is applied as this version has it".to_owned()
        }
        "ADMISSION_DENIED" => {
            "an admission policy refuses such a container; a more restricted one may pass: --profile=restricted".to_owned()
        }
        // What the agent makes of the caller.
        reason::CREDENTIALS_UNUSABLE => "see --token-file, or what kubectl makes of the kubeconfig: kubectl auth whoami".to_owned(),
        "NO_CREDENTIALS" => {
            "show a token: kubectl create token ACCOUNT --audience podsonde > FILE, then --token-file FILE".to_owned()
        }
        "WRONG_AUDIENCE" => "get a token for agents: kubectl create token ACCOUNT --audience podsonde > FILE, then --token-file \
             FILE; or run the agents with --accept-api-server-audience"
            .to_owned(),
        "BAD_TOKEN" | "TOKEN_EXPIRED" | "BAD_CERTIFICATE" => "get a new one; log in again".to_owned(),
        "FORBIDDEN" if error.message.contains("captures.podsonde.dev") => format!(
            "an administrator can bind the ClusterRole podsonde-capturer to you there: kubectl -n {namespace} create rolebinding \
             NAME --clusterrole=podsonde-capturer --user=USER"
        ),
        "FORBIDDEN" => format!(
            "see what you may do: kubectl auth can-i --list -n {namespace}; an administrator can bind the ClusterRole podsonde-viewer or \
             podsonde-debugger to you there"
        ),
        "REVIEW_FAILED" => {
            format!("see whether the agent may ask the API server who you are: kubectl -n {agents} logs -l app.kubernetes.io/name=podsonde-agent")
        }
        "AUDIT_FAILED" => "the agent does nothing that it cannot write to its audit log; see its --audit-log".to_owned(),
        // The pod and its containers.
        reason::POD_NOT_FOUND => {
            format!("see which there are: kubectl get pods -n {namespace}; another namespace with -n")
        }
        reason::POD_NOT_SCHEDULED => format!("see why: kubectl describe pod {pod} -n {namespace}"),
        reason::WORKLOAD_NOT_FOUND => "name a pod, or a deployment, statefulset, daemonset, job or service".to_owned(),
        "CONTAINER_NOT_FOUND" => format!(
            "see which there are: kubectl get pod {pod} -n {namespace} -o jsonpath='{{.spec.containers[*].name}}'"
        ),
        "POD_ON_OTHER_NODE" => {
            format!("leave out --agent (and PODSONDE_AGENT) to be led to the right one, or ask the agent of node {node}")
        }
        "POD_REPLACED" => "another pod has that name now; ask again to mean that one".to_owned(),
        "POD_FINISHED" | "POD_TERMINATING" => {
            "nothing can be started in it any more; debug a pod that runs, or a copy: kubectl debug --copy-to".to_owned()
        }
        "STATIC_POD" => "Kubernetes allows no debug containers in static pods; debug the node: kubectl debug node/NODE".to_owned(),
        "TARGET_NOT_RUNNING" => format!(
            "see its state: kubectl describe pod {pod} -n {namespace}; name another with --target, or none for a pid namespace \
             of its own"
        ),
        "NAME_TAKEN" => {
            "a name is taken for as long as the pod lives: choose another with -c, or none for a random one".to_owned()
        }
        "TOO_MANY_SESSIONS" => format!("end one: {program} sessions -n {namespace}; {program} end POD SESSION"),
        "SESSION_NOT_FOUND" => format!("see which there are: {program} sessions --all -n {namespace}"),
        // Files.
        "FILE_PERMISSION" if error.fact("as_root").is_some() => return None,
        "FILE_PERMISSION" => {
            "the container's own user may not; --as-root reads it, if you may patch pods/ephemeralcontainers".to_owned()
        }
        "PATH_REFUSED" => {
            "procfs, sysfs and their like show the node, not the container; what /proc/1/root is to a debug container: --view=proc1"
                .to_owned()
        }
        "CONTAINER_NOT_RUNNING" => {
            format!("see its state: kubectl describe pod {pod} -n {namespace}; another container with -c")
        }
        "WRITES_DISABLED" => {
            "the agent writes files only if it is started with --allow-file-writes".to_owned()
        }
        "FILE_EXISTS" => "replace it with --force".to_owned(),
        "NOT_A_FILE" => format!("directories: {program} ls, {program} cp"),
        "TOO_MANY_FILE_REQUESTS" => "others are reading, too; try again in a moment".to_owned(),
        "FILE_SYSTEM_STUCK" => "it does not answer: a network or FUSE file system, most likely; nothing else is held up by it".to_owned(),
        // The kubelet.
        "IMAGE_PULL_FAILED" => {
            "check the image's name and the pod's imagePullSecrets; --wait-for-image keeps waiting while the kubelet retries"
                .to_owned()
        }
        "IMAGE_NAME_INVALID" => "write [REGISTRY/]NAME[:TAG]".to_owned(),
        "CONFIG_REJECTED" => {
            "with --profile=restricted the image must not run as root; try another profile or image".to_owned()
        }
        "CREATE_FAILED" => format!("see the node's events: kubectl describe pod {pod} -n {namespace}"),
        "COMMAND_FAILED" => "see whether the image has that command; it is not run by a shell".to_owned(),
        "START_DEADLINE" => format!(
            "the container may still start: {program} sessions -n {namespace}; wait longer with --start-timeout"
        ),
        "POD_DELETED" | "CONTAINER_RESTARTED" => "ask again".to_owned(),
        "DRAINING" => "try again in a moment".to_owned(),
        "INTERNAL" => format!("the agent's log has the details: kubectl -n {agents} logs -l app.kubernetes.io/name=podsonde-agent"),
        _ => return None,
    })
}
