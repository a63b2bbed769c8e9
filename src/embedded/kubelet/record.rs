//! What a worker knows of one container.

use k8s_openapi::{
    api::core::v1::{Container, PodSpec},
    jiff::Timestamp,
};

use super::spec::as_container;
use crate::embedded::runtime::Exit;

/// What a container is to its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Runs to its end before the next one starts.
    Init,
    /// An init container that keeps running.
    Sidecar,
    Regular,
    Ephemeral,
}

/// What is known of one container.
#[derive(Debug)]
pub(super) struct ContainerRecord {
    pub(super) role: Role,
    pub(super) container: Container,
    /// Name of the container whose pid namespace an ephemeral one wants.
    pub(super) target: Option<String>,
    /// Containers made so far.
    pub(super) attempts: u32,
    /// Failures in a row, which the back-off grows with.
    pub(super) failures: u32,
    pub(super) state: Stage,
    /// How the one before ended.
    pub(super) last: Option<Ended>,
    /// Ran at least once: a sidecar that did does not hold up the others any more.
    pub(super) started: bool,
}

/// Where a container stands.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Stage {
    /// Its turn has not come.
    Pending,
    Starting,
    /// Did not start, or ended and is in back-off.
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

/// A container that ended.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Ended {
    /// Empty for one that never ran.
    pub(super) id: String,
    pub(super) image_id: String,
    pub(super) code: i32,
    pub(super) reason: &'static str,
    pub(super) message: String,
    pub(super) since: Option<Timestamp>,
    pub(super) until: Timestamp,
}

impl ContainerRecord {
    /// One for each container of the spec, init containers first.
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

    /// It ended; `restart` tells whether it will be started again.
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

    /// The id of the container that runs or ran last.
    pub(super) fn id(&self) -> Option<String> {
        match &self.state {
            Stage::Running { id, .. } => Some(id.clone()),
            Stage::Ended(ended, _) => Some(ended.id.clone()).filter(|id| !id.is_empty()),
            _ => self.last.as_ref().map(|last| last.id.clone()).filter(|id| !id.is_empty()),
        }
    }

    /// Whether what comes after this init container or sidecar may start.
    pub(super) fn initialized(&self) -> bool {
        match self.role {
            Role::Init => matches!(&self.state, Stage::Ended(ended, _) if ended.code == 0),
            _ => self.started,
        }
    }
}
