//! A worker's record of one container.

use k8s_openapi::{
    api::core::v1::{Container, PodSpec},
    jiff::Timestamp,
};

use super::spec::as_container;
use crate::embedded::runtime::Exit;

/// The part that a container plays in its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// An init container: it ends before the next one starts.
    Init,
    /// An init container with `restartPolicy: Always`, which keeps running.
    Sidecar,
    Regular,
    Ephemeral,
}

/// What a worker knows of one container.
#[derive(Debug)]
pub(super) struct ContainerRecord {
    pub(super) role: Role,
    pub(super) container: Container,
    /// The name of the container whose pid namespace an ephemeral container wants.
    pub(super) target: Option<String>,
    /// The number of containers that were made so far.
    pub(super) attempts: u32,
    /// The number of failures in a row, which determines the back-off.
    pub(super) failures: u32,
    pub(super) state: Stage,
    /// The end of the previous container, which `lastState` shows.
    pub(super) last: Option<Ended>,
    /// Whether a container ran at least once. A sidecar that did lets the next containers start.
    pub(super) started: bool,
}

/// The stage that a container has reached.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Stage {
    /// It waits for the sandbox or for earlier init containers.
    Pending,
    Starting,
    /// It did not start, or it ended and is in back-off.
    Waiting {
        reason: &'static str,
        message: String,
    },
    Running {
        id: String,
        image_id: String,
        since: Timestamp,
    },
    Ended(Ended, /** It will be started again. */ bool),
}

/// The end of a container.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Ended {
    /// The container's id; empty if it never ran.
    pub(super) id: String,
    pub(super) image_id: String,
    pub(super) code: i32,
    pub(super) reason: &'static str,
    pub(super) message: String,
    pub(super) since: Option<Timestamp>,
    pub(super) until: Timestamp,
}

impl ContainerRecord {
    /// A record for each container of the spec, init containers first.
    pub(super) fn all(spec: &PodSpec) -> impl Iterator<Item = Self> {
        let init = spec.init_containers.iter().flatten().map(|c| {
            let role = if c.restart_policy.as_deref() == Some("Always") {
                Role::Sidecar
            } else {
                Role::Init
            };
            (role, c.clone(), None)
        });
        let regular = spec.containers.iter().map(|c| (Role::Regular, c.clone(), None));
        let ephemeral = spec.ephemeral_containers.iter().flatten().map(|c| {
            let target = c.target_container_name.clone().filter(|name| !name.is_empty());
            (Role::Ephemeral, as_container(c), target)
        });
        init.chain(regular).chain(ephemeral).map(|(role, container, target)| Self {
            role,
            container,
            target,
            attempts: 0,
            failures: 0,
            state: Stage::Pending,
            last: None,
            started: false,
        })
    }

    /// Records the end of the running container. `restart`: it will be started again.
    pub(super) fn end(&mut self, exit: Exit, restart: bool) {
        let Stage::Running { id, image_id, since } = &self.state else { return };
        let ended = Ended {
            id: id.clone(),
            image_id: image_id.clone(),
            code: exit.code,
            reason: if exit.code == 0 { "Completed" } else { "Error" },
            message: String::new(),
            since: Some(*since),
            until: exit.finished_at,
        };
        self.state = Stage::Ended(ended, restart);
    }

    /// The id of the running container, or of the last that ran.
    pub(super) fn id(&self) -> Option<String> {
        match &self.state {
            Stage::Running { id, .. } => Some(id.clone()),
            Stage::Ended(ended, _) => Some(ended.id.clone()).filter(|id| !id.is_empty()),
            _ => self.last.as_ref().map(|last| last.id.clone()).filter(|id| !id.is_empty()),
        }
    }

    /// Whether the containers after this init container or sidecar may start.
    pub(super) fn initialized(&self) -> bool {
        match self.role {
            Role::Init => matches!(&self.state, Stage::Ended(ended, _) if ended.code == 0),
            _ => self.started,
        }
    }
}
