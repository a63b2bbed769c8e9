//! A pod and its containers as CRI messages, with the values that a kubelet chooses. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use k8s_openapi::api::core::v1::{
    Capabilities, Container, EphemeralContainer, Pod, PodSecurityContext, PodSpec, SeccompProfile,
    SecurityContext,
};

use super::{
    api::{self, NamespaceMode, security_profile::ProfileType},
    image::Resolved,
};
use podsonde::embedded::runtime::{ContainerStart, PidMode, StartError};

const LABEL_POD_NAME: &str = "io.kubernetes.pod.name";
const LABEL_POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// The label by which a pod's removal finds its sandboxes.
pub const LABEL_POD_UID: &str = "io.kubernetes.pod.uid";
const LABEL_CONTAINER_NAME: &str = "io.kubernetes.container.name";
const ANNOTATION_RESTART_COUNT: &str = "io.kubernetes.container.restartCount";

/// The directory of `Localhost` seccomp profiles, the kubelet's default.
const SECCOMP_ROOT: &str = "/var/lib/kubelet/seccomp";

/// Paths that a container cannot see unless it has `procMount: Unmasked`; the kubelet's list.
const MASKED_PATHS: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
/// Paths that a container cannot write to unless it has `procMount: Unmasked`; the kubelet's list.
const READONLY_PATHS: &[&str] =
    &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Characters of a host name that the kubelet keeps: Linux takes 64 bytes.
const MAX_HOSTNAME: usize = 63;

/// Where a pod's cgroup may be: one path for each QoS class, as the `cgroupfs` driver names them.
pub fn cgroup_parents(pod_uid: &str) -> [String; 3] {
    ["/kubepods/besteffort", "/kubepods/burstable", "/kubepods"]
        .map(|class| format!("{class}/pod{pod_uid}"))
}

/// The request for the pod's sandbox. Without `logs` the containers write no log files.
///
/// # Errors
/// If the pod has no spec or wants a user namespace, which containerd 1.6 cannot make.
pub fn sandbox(pod: &Pod, logs: Option<&Path>) -> Result<api::PodSandboxConfig, StartError> {
    let spec = pod.spec.as_ref().ok_or_else(|| StartError {
        reason: "ConfigPodSandboxError",
        message: "the pod has no spec".to_owned(),
    })?;
    if spec.host_users == Some(false) {
        return Err(StartError {
            reason: "ConfigPodSandboxError",
            message: "can't set `spec.hostUsers: false`, runtime does not support user namespaces"
                .to_owned(),
        });
    }
    let names = PodNames::of(pod);
    let host_network = spec.host_network == Some(true);
    let hostname = if host_network {
        String::new()
    } else {
        spec.hostname.as_deref().unwrap_or(names.name).chars().take(MAX_HOSTNAME).collect()
    };
    let [besteffort, burstable, guaranteed] = cgroup_parents(names.uid);
    let cgroup_parent = match pod.status.as_ref().and_then(|status| status.qos_class.as_deref()) {
        Some("Guaranteed") => guaranteed,
        Some("Burstable") => burstable,
        _ => besteffort,
    };
    let pid = if spec.host_pid == Some(true) {
        NamespaceMode::Node
    } else if spec.share_process_namespace == Some(true) {
        NamespaceMode::Pod
    } else {
        NamespaceMode::Container
    };
    Ok(api::PodSandboxConfig {
        metadata: Some(api::PodSandboxMetadata {
            name: names.name.to_owned(),
            uid: names.uid.to_owned(),
            namespace: names.namespace.to_owned(),
            attempt: 0,
        }),
        hostname,
        log_directory: logs.map_or_else(String::new, |logs| {
            let PodNames { name, namespace, uid } = names;
            logs.join(format!("{namespace}_{name}_{uid}")).to_string_lossy().into_owned()
        }),
        dns_config: Some(dns(spec)),
        labels: labels(&names, pod.metadata.labels.as_ref()),
        annotations: pod.metadata.annotations.clone().unwrap_or_default().into_iter().collect(),
        linux: Some(api::LinuxPodSandboxConfig {
            cgroup_parent,
            security_context: Some(api::LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces(spec, pid, String::new())),
                privileged: has_privileged_container(spec),
                seccomp: Some(profile(ProfileType::RuntimeDefault)),
            }),
            sysctls: pod_security(spec)
                .and_then(|security| security.sysctls.as_ref())
                .into_iter()
                .flatten()
                .map(|sysctl| (sysctl.name.clone(), sysctl.value.clone()))
                .collect(),
        }),
    })
}

/// The request for one container of the pod, made from an image that is on the node.
///
/// # Errors
/// If the container must not run as root and its image would.
pub fn container(
    pod: &Pod,
    start: &ContainerStart,
    image: &Resolved,
) -> Result<api::ContainerConfig, StartError> {
    let names = PodNames::of(pod);
    let spec = pod.spec.clone().unwrap_or_default();
    verify_non_root(&names, start, image)?;
    let (pid, target_id) = match &start.pid {
        PidMode::Container => (NamespaceMode::Container, String::new()),
        PidMode::Pod => (NamespaceMode::Pod, String::new()),
        PidMode::Node => (NamespaceMode::Node, String::new()),
        PidMode::Target(id) => (NamespaceMode::Target, id.clone()),
    };
    let mut labels = labels(&names, Some(&start.labels));
    labels.insert(LABEL_CONTAINER_NAME.to_owned(), start.name.clone());
    let guaranteed =
        pod.status.as_ref().is_some_and(|status| status.qos_class.as_deref() == Some("Guaranteed"));
    Ok(api::ContainerConfig {
        metadata: Some(api::ContainerMetadata { name: start.name.clone(), attempt: start.attempt }),
        image: Some(api::ImageSpec { image: image.id.clone() }),
        command: start.command.clone(),
        args: start.args.clone(),
        working_dir: start.working_dir.clone().unwrap_or_default(),
        envs: start
            .env
            .iter()
            .map(|(key, value)| api::KeyValue { key: key.clone(), value: value.clone() })
            .collect(),
        mounts: start
            .mounts
            .iter()
            .map(|mount| api::Mount {
                container_path: mount.container_path.to_string_lossy().into_owned(),
                host_path: mount.host_path.to_string_lossy().into_owned(),
                readonly: mount.read_only,
            })
            .collect(),
        labels,
        annotations: HashMap::from([(
            ANNOTATION_RESTART_COUNT.to_owned(),
            start.attempt.to_string(),
        )]),
        log_path: format!("{}/{}.log", start.name, start.attempt),
        stdin: start.stdin,
        stdin_once: false,
        tty: start.tty,
        linux: Some(api::LinuxContainerConfig {
            resources: Some(api::LinuxContainerResources {
                // The kernel's least share, which a container without requests gets.
                cpu_shares: 2,
                oom_score_adj: if guaranteed { -997 } else { 1000 },
            }),
            security_context: Some(security(
                &spec,
                &start.security,
                image,
                namespaces(&spec, pid, target_id),
            )),
        }),
    })
}

/// Marks the sandbox as privileged if this container is: containerd refuses to start a privileged
/// container in a sandbox that is not.
pub fn permit(sandbox: &mut api::PodSandboxConfig, container: &api::ContainerConfig) {
    let privileged = container
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref())
        .is_some_and(|security| security.privileged);
    if let Some(security) = sandbox.linux.as_mut().and_then(|linux| linux.security_context.as_mut())
    {
        security.privileged |= privileged;
    }
}

/// By what a pod is told from others.
struct PodNames<'a> {
    name: &'a str,
    namespace: &'a str,
    uid: &'a str,
}

impl<'a> PodNames<'a> {
    fn of(pod: &'a Pod) -> Self {
        Self {
            name: pod.metadata.name.as_deref().unwrap_or_default(),
            namespace: pod.metadata.namespace.as_deref().unwrap_or("default"),
            uid: pod.metadata.uid.as_deref().unwrap_or_default(),
        }
    }
}

/// The labels in `own`, and those that the kubelet adds.
fn labels(names: &PodNames<'_>, own: Option<&BTreeMap<String, String>>) -> HashMap<String, String> {
    let mut labels: HashMap<_, _> = own.cloned().unwrap_or_default().into_iter().collect();
    labels.extend(
        [
            (LABEL_POD_NAME, names.name),
            (LABEL_POD_NAMESPACE, names.namespace),
            (LABEL_POD_UID, names.uid),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned())),
    );
    labels
}

fn namespaces(spec: &PodSpec, pid: NamespaceMode, target_id: String) -> api::NamespaceOption {
    let node_or_pod = |host: Option<bool>| {
        if host == Some(true) { NamespaceMode::Node } else { NamespaceMode::Pod }
    };
    api::NamespaceOption {
        network: node_or_pod(spec.host_network).into(),
        ipc: node_or_pod(spec.host_ipc).into(),
        pid: pid.into(),
        target_id,
    }
}

/// The pod's own DNS settings. There is no cluster DNS here; without settings the runtime takes the
/// node's.
fn dns(spec: &PodSpec) -> api::DnsConfig {
    let Some(config) = &spec.dns_config else { return api::DnsConfig::default() };
    api::DnsConfig {
        servers: config.nameservers.clone().unwrap_or_default(),
        searches: config.searches.clone().unwrap_or_default(),
        options: config
            .options
            .iter()
            .flatten()
            .filter_map(|option| {
                let name = option.name.as_deref()?;
                Some(
                    option
                        .value
                        .as_ref()
                        .map_or_else(|| name.to_owned(), |value| format!("{name}:{value}")),
                )
            })
            .collect(),
    }
}

fn security(
    spec: &PodSpec,
    security: &SecurityContext,
    image: &Resolved,
    namespaces: api::NamespaceOption,
) -> api::LinuxContainerSecurityContext {
    let Capabilities { add, drop } = security.capabilities.clone().unwrap_or_default();
    let unmasked = security.proc_mount.as_deref() == Some("Unmasked");
    let paths = |paths: &[&str]| {
        if unmasked { Vec::new() } else { paths.iter().map(|p| (*p).to_owned()).collect() }
    };
    let uid = security.run_as_user.or(image.uid);
    let groups = pod_security(spec).map(|security| {
        security.supplemental_groups.iter().flatten().copied().chain(security.fs_group).collect()
    });
    api::LinuxContainerSecurityContext {
        capabilities: Some(api::Capability {
            add_capabilities: add.unwrap_or_default(),
            drop_capabilities: drop.unwrap_or_default(),
        }),
        privileged: security.privileged == Some(true),
        namespace_options: Some(namespaces),
        run_as_user: uid.map(|value| api::Int64Value { value }),
        run_as_username: if uid.is_none() { image.username.clone() } else { String::new() },
        run_as_group: security.run_as_group.map(|value| api::Int64Value { value }),
        readonly_rootfs: security.read_only_root_filesystem == Some(true),
        supplemental_groups: groups.unwrap_or_default(),
        no_new_privs: security.allow_privilege_escalation == Some(false),
        masked_paths: paths(MASKED_PATHS),
        readonly_paths: paths(READONLY_PATHS),
        seccomp: Some(seccomp(security.seccomp_profile.as_ref().or_else(|| {
            pod_security(spec).and_then(|security| security.seccomp_profile.as_ref())
        }))),
    }
}

pub fn seccomp(chosen: Option<&SeccompProfile>) -> api::SecurityProfile {
    match chosen.map(|chosen| (chosen.type_.as_str(), chosen.localhost_profile.as_deref())) {
        Some(("RuntimeDefault", _)) => profile(ProfileType::RuntimeDefault),
        Some(("Localhost", Some(file))) => api::SecurityProfile {
            localhost_ref: Path::new(SECCOMP_ROOT).join(file).to_string_lossy().into_owned(),
            ..profile(ProfileType::Localhost)
        },
        _ => profile(ProfileType::Unconfined),
    }
}

pub fn profile(profile: ProfileType) -> api::SecurityProfile {
    api::SecurityProfile { profile_type: profile.into(), localhost_ref: String::new() }
}

fn pod_security(spec: &PodSpec) -> Option<&PodSecurityContext> {
    spec.security_context.as_ref()
}

fn has_privileged_container(spec: &PodSpec) -> bool {
    let privileged =
        |security: Option<&SecurityContext>| security.is_some_and(|s| s.privileged == Some(true));
    let of_container = |container: &Container| privileged(container.security_context.as_ref());
    let of_ephemeral =
        |container: &EphemeralContainer| privileged(container.security_context.as_ref());
    spec.containers.iter().any(of_container)
        || spec.init_containers.iter().flatten().any(of_container)
        || spec.ephemeral_containers.iter().flatten().any(of_ephemeral)
}

/// Refuses root where `runAsNonRoot` is set, with the kubelet's messages.
fn verify_non_root(
    names: &PodNames<'_>,
    start: &ContainerStart,
    image: &Resolved,
) -> Result<(), StartError> {
    if start.security.run_as_non_root != Some(true) {
        return Ok(());
    }
    let broken = match (start.security.run_as_user, image.uid) {
        (Some(0), _) => "container's runAsUser breaks non-root policy".to_owned(),
        (Some(_), _) => return Ok(()),
        (None, Some(0)) => "container has runAsNonRoot and image will run as root".to_owned(),
        (None, Some(_)) => return Ok(()),
        (None, None) if image.username.is_empty() => return Ok(()),
        (None, None) => format!(
            "container has runAsNonRoot and image has non-numeric user ({}), \
             cannot verify user is non-root",
            image.username
        ),
    };
    let PodNames { name, namespace, uid } = names;
    Err(StartError {
        reason: "CreateContainerConfigError",
        message: format!(
            "{broken} (pod: \"{name}_{namespace}({uid})\", container: {})",
            start.name
        ),
    })
}
