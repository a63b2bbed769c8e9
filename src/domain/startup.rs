//! Judges an ephemeral container's state: keep waiting, running, exited, or failed for good.
//!
//! The reasons are the kubelet's (`pkg/kubelet/images/types.go`,
//! `pkg/kubelet/container/sync_result.go`, `pkg/kubelet/kuberuntime`).

use super::{Error, Reason, pod::ContainerState};

/// What a container's state means for someone who waits for it to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Startup {
    /// It may still come to run.
    Pending {
        /// The kubelet's reason.
        reason: String,
        /// The kubelet's message.
        message: String,
    },
    /// It runs.
    Running,
    /// It has run and exited.
    Exited,
    /// It will not run.
    Failed(Error),
}

/// Judges `state`. With `wait_for_image`, a failed pull is not the end, since the kubelet keeps
/// trying.
pub fn judge(state: &ContainerState, wait_for_image: bool) -> Startup {
    match state {
        ContainerState::Absent => {
            Startup::Pending { reason: String::new(), message: String::new() }
        }
        ContainerState::Running => Startup::Running,
        // The runtime never started the container's program. These are the reasons that runtimes
        // give instead of `Error`.
        ContainerState::Terminated { reason, message, .. }
            if matches!(reason.as_str(), "StartError" | "ContainerCannotRun") =>
        {
            Startup::Failed(failed(Reason::CommandFailed, reason, message))
        }
        ContainerState::Terminated { .. } => Startup::Exited,
        ContainerState::Waiting { reason, message } => match (failure(reason), wait_for_image) {
            (Some(Reason::ImagePullFailed), true) | (None, _) => {
                Startup::Pending { reason: reason.clone(), message: message.clone() }
            }
            (Some(failure), _) => Startup::Failed(failed(failure, reason, message)),
        },
    }
}

/// The waiting reasons that end the wait.
fn failure(reason: &str) -> Option<Reason> {
    Some(match reason {
        "ErrImagePull"
        | "ImagePullBackOff"
        | "ErrImageNeverPull"
        | "ImageInspectError"
        | "RegistryUnavailable"
        | "SignatureValidationFailed" => Reason::ImagePullFailed,
        "InvalidImageName" => Reason::ImageNameInvalid,
        "CreateContainerConfigError" => Reason::ConfigRejected,
        "CreateContainerError" | "PreCreateHookError" => Reason::CreateFailed,
        "RunContainerError" | "PreStartHookError" | "PostStartHookError" | "CrashLoopBackOff" => {
            Reason::CommandFailed
        }
        _ => return None,
    })
}

fn failed(failure: Reason, reason: &str, message: &str) -> Error {
    let what = match failure {
        Reason::ImagePullFailed => "its image cannot be pulled",
        Reason::ImageNameInvalid => "its image's name is not valid",
        Reason::ConfigRejected => "the kubelet refuses its configuration",
        Reason::CreateFailed => "the runtime cannot create it",
        _ => "the runtime cannot run its command",
    };
    let separator = if message.is_empty() { "" } else { ": " };
    Error::new(failure, format!("{what} ({reason}){separator}{message}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(reason: &str) -> ContainerState {
        ContainerState::Waiting { reason: reason.into(), message: "m".into() }
    }

    fn reason_of(state: &ContainerState, wait_for_image: bool) -> Option<Reason> {
        match judge(state, wait_for_image) {
            Startup::Failed(e) => Some(e.reason),
            _ => None,
        }
    }

    #[test]
    fn every_failing_reason_ends_the_wait() {
        let table = [
            ("ErrImagePull", Reason::ImagePullFailed),
            ("ImagePullBackOff", Reason::ImagePullFailed),
            ("ErrImageNeverPull", Reason::ImagePullFailed),
            ("ImageInspectError", Reason::ImagePullFailed),
            ("RegistryUnavailable", Reason::ImagePullFailed),
            ("SignatureValidationFailed", Reason::ImagePullFailed),
            ("InvalidImageName", Reason::ImageNameInvalid),
            ("CreateContainerConfigError", Reason::ConfigRejected),
            ("CreateContainerError", Reason::CreateFailed),
            ("RunContainerError", Reason::CommandFailed),
        ];
        for (waiting_reason, expected) in table {
            assert_eq!(
                reason_of(&waiting(waiting_reason), false),
                Some(expected),
                "{waiting_reason}"
            );
        }
        assert_eq!(reason_of(&waiting("ErrImagePull"), true), None);
        assert_eq!(reason_of(&waiting("InvalidImageName"), true), Some(Reason::ImageNameInvalid));
    }

    #[test]
    fn the_way_to_running() {
        for reason in ["ContainerCreating", "PodInitializing", "SomethingNew"] {
            assert!(matches!(judge(&waiting(reason), false), Startup::Pending { .. }));
        }
        assert!(matches!(judge(&ContainerState::Absent, false), Startup::Pending { .. }));
        assert_eq!(judge(&ContainerState::Running, false), Startup::Running);
        let exited = |reason: &str| ContainerState::Terminated {
            exit_code: 128,
            reason: reason.into(),
            message: String::new(),
        };
        assert_eq!(judge(&exited("Error"), false), Startup::Exited);
        assert_eq!(reason_of(&exited("StartError"), false), Some(Reason::CommandFailed));
    }
}
