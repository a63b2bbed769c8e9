//! What podsonde knows about a pod: what its spec asks for and what its status claims.

use std::collections::BTreeMap;

use super::{
    Error, Reason, Result,
    cgroup::{ContainerCgroup, is_container_id},
    session::SessionFacts,
};

/// A pod of this node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pod {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// The name that the kubelet gives to the pod's cgroup: the UID or, for a static pod, a hash of
    /// its file.
    pub cgroup_uid: String,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `spec.nodeName`; empty until scheduled.
    pub node: String,
    /// `status.phase`.
    pub phase: Phase,
    /// Whether `metadata.deletionTimestamp` is set.
    pub terminating: bool,
    /// Whether it says that the kubelet runs it from a file (annotation
    /// `kubernetes.io/config.mirror`).
    pub mirror: bool,
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// `spec.hostPID`.
    pub host_pid: bool,
    /// `spec.hostIPC`.
    pub host_ipc: bool,
    /// `spec.hostUsers`, true by default.
    pub host_users: bool,
    /// Whether any of `spec.volumes` is a `hostPath`.
    pub host_path: bool,
    /// `spec.shareProcessNamespace`.
    pub share_process_namespace: bool,
    /// `spec.runtimeClassName`; empty for the default.
    pub runtime_class: String,
    /// The annotation `kubectl.kubernetes.io/default-container`; empty without.
    pub default_container: String,
    /// All containers in the order of the spec: init, regular, ephemeral.
    pub containers: Vec<Container>,
}

/// `status.phase`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Phase {
    /// Accepted, not all containers run yet.
    #[default]
    Pending,
    /// Bound to a node, at least one container runs or restarts.
    Running,
    /// All containers have ended well.
    Succeeded,
    /// All containers have ended, one with a failure.
    Failed,
    /// The node cannot be reached.
    Unknown,
}

/// A container of a pod.
#[derive(Debug, Clone, PartialEq)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// Its role.
    pub kind: ContainerKind,
    /// `image`.
    pub image: String,
    /// `securityContext.privileged`.
    pub privileged: bool,
    /// `targetContainerName`, of an ephemeral container. Empty: none.
    pub target: String,
    /// What its environment says about a session. A claim: see [`SessionFacts::seal`].
    pub session: Option<SessionFacts>,
    /// `containerID` of its status, once there is one.
    pub id: Option<ContainerId>,
    /// `state` of its status.
    pub state: ContainerState,
}

/// Role of a container in its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerKind {
    /// Runs to completion before the regular ones.
    Init,
    /// An init container with `restartPolicy: Always`.
    Sidecar,
    /// One of `spec.containers`.
    Regular,
    /// One of `spec.ephemeralContainers`.
    Ephemeral,
}

/// A runtime's container id as the pod status has it: `containerd://<64 hex>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ContainerId {
    /// `containerd`, `cri-o`, `docker`.
    pub runtime: String,
    /// 64 hex digits.
    pub id: String,
}

impl ContainerId {
    /// Parses `scheme://id`. None unless the id is 64 hex digits.
    pub fn parse(text: &str) -> Option<Self> {
        let (runtime, id) = text.split_once("://")?;
        (!runtime.is_empty() && is_container_id(id))
            .then(|| Self { runtime: runtime.to_owned(), id: id.to_owned() })
    }
}

impl std::fmt::Display for ContainerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}", self.runtime, self.id)
    }
}

/// `state` of a container's status.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ContainerState {
    /// The kubelet has written no status yet.
    #[default]
    Absent,
    /// Not running.
    Waiting {
        /// The kubelet's reason, `ContainerCreating` and the like.
        reason: String,
        /// The kubelet's message.
        message: String,
    },
    /// Running.
    Running,
    /// Ran and ended.
    Terminated {
        /// Exit code.
        exit_code: i32,
        /// The kubelet's reason, `Completed`, `Error`, `OOMKilled`, `ContainerCannotRun`.
        reason: String,
        /// The kubelet's message.
        message: String,
    },
}

impl Container {
    /// Whether its status has this id.
    pub fn has_id(&self, id: &str) -> bool {
        self.id.as_ref().is_some_and(|own| own.id == id)
    }

    /// Whether its status is Running.
    pub fn is_running(&self) -> bool {
        self.state == ContainerState::Running
    }
}

impl Pod {
    /// The container of that name.
    pub fn container(&self, name: &str) -> Option<&Container> {
        self.containers.iter().find(|c| c.name == name)
    }

    /// The default container, as kubectl chooses it: the one that the annotation names, else the
    /// first regular one.
    pub fn default_container(&self) -> Option<&Container> {
        self.container(&self.default_container)
            .or_else(|| self.containers.iter().find(|c| c.kind == ContainerKind::Regular))
    }

    /// The cgroup of one of the pod's containers. None until the status has an id. The id is a
    /// claim of whoever may write the status; the pod's UID is the API server's word.
    pub fn cgroup_of<'a>(&'a self, container: &'a Container) -> Option<ContainerCgroup<'a>> {
        Some(ContainerCgroup { pod: &self.cgroup_uid, id: &container.id.as_ref()?.id })
    }

    /// The container of that name, or CONTAINER_NOT_FOUND with the names there are.
    ///
    /// # Errors
    /// CONTAINER_NOT_FOUND.
    pub fn require(&self, name: &str) -> Result<&Container> {
        self.container(name).ok_or_else(|| {
            let names: Vec<_> = self.containers.iter().map(|c| c.name.as_str()).collect();
            Error::new(
                Reason::ContainerNotFound,
                format!("there is no such container; the pod has {}", names.join(", ")),
            )
            .pod(&self.namespace, &self.name)
            .container(name)
        })
    }

    /// The ephemeral containers, whether podsonde or `kubectl debug` added them.
    pub fn ephemeral(&self) -> impl Iterator<Item = &Container> {
        self.containers.iter().filter(|c| c.kind == ContainerKind::Ephemeral)
    }

    /// Checks that the pod has this UID. An empty one matches every pod.
    ///
    /// # Errors
    /// POD_REPLACED.
    pub fn expect_uid(&self, uid: &str) -> Result<()> {
        if uid.is_empty() || uid == self.uid {
            return Ok(());
        }
        Err(Error::new(
            Reason::PodReplaced,
            format!("has the UID {}, not {uid}: it is another pod of that name", self.uid),
        )
        .pod(&self.namespace, &self.name))
    }

    /// The name of the sandboxed runtime that hides the pod's processes from the node, judged by
    /// `runtimeClassName`.
    pub fn vm_runtime(&self) -> Option<&'static str> {
        let class = self.runtime_class.to_ascii_lowercase();
        [
            ("kata", "Kata Containers"),
            ("gvisor", "gVisor"),
            ("runsc", "gVisor"),
            ("firecracker", "Firecracker"),
        ]
        .into_iter()
        .find_map(|(mark, name)| class.contains(mark).then_some(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_ids() {
        let hex = "ab".repeat(32);
        let id = ContainerId::parse(&format!("cri-o://{hex}")).unwrap();
        assert_eq!((id.runtime.as_str(), id.id.as_str()), ("cri-o", hex.as_str()));
        assert_eq!(id.to_string(), format!("cri-o://{hex}"));
        for bad in [
            "",
            "containerd://",
            &hex,
            &format!("://{hex}"),
            &format!("docker://{hex}0"),
            "docker://../../x",
        ] {
            assert_eq!(ContainerId::parse(bad), None, "{bad}");
        }
    }
}
