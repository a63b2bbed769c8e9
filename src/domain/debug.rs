//! Requests for debug containers, and their limits.

use std::time::Duration;

use super::{Error, Result};

/// kubectl's debugging profiles, as they are for an ephemeral container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Profile {
    /// Adds SYS_PTRACE.
    #[default]
    General,
    /// Sets nothing.
    Baseline,
    /// runAsNonRoot, drops ALL, no privilege escalation, seccomp RuntimeDefault.
    Restricted,
    /// Adds NET_ADMIN and NET_RAW.
    Netadmin,
    /// Privileged.
    Sysadmin,
}

/// Where the container's definition comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum Definition {
    /// Built from single settings.
    Settings(Box<Settings>),
    /// A whole ephemeral container as the caller gave it, JSON.
    Whole(String),
}

/// The settings a definition is built from.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Settings {
    /// Image.
    pub image: String,
    /// Replaces the entrypoint unless empty.
    pub command: Vec<String>,
    /// Replaces the arguments unless empty.
    pub args: Vec<String>,
    /// Added to the environment.
    pub env: Vec<(String, String)>,
    /// Security profile.
    pub profile: Profile,
    /// A partial container in JSON, merged over all of the above. Empty for none.
    pub custom: String,
}

/// A request for a debug container, checked as far as it can be without the pod.
#[derive(Debug, Clone, PartialEq)]
pub struct DebugRequest {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// UID of the pod, or empty.
    pub pod_uid: String,
    /// Name of the new container. None to let the agent make one up.
    pub name: Option<String>,
    /// `targetContainerName`, or empty.
    pub target: String,
    /// `imagePullPolicy`, or none for Kubernetes' default.
    pub pull_policy: Option<&'static str>,
    /// Keeps stdin open.
    pub stdin: bool,
    /// Allocates a terminal.
    pub tty: bool,
    /// The container itself.
    pub definition: Definition,
    /// How long the session may last.
    pub ttl: Duration,
    /// How long to wait for it to run.
    pub start_timeout: Duration,
    /// Whether to keep waiting for an image that cannot be pulled.
    pub wait_for_image: bool,
}

impl DebugRequest {
    /// The image asked for, as far as it can be told before the definition is parsed.
    pub fn image(&self) -> String {
        match &self.definition {
            Definition::Settings(settings) => settings.image.clone(),
            Definition::Whole(_) => String::new(),
        }
    }
}

/// A default and a maximum for how long something may last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DurationLimit {
    /// Granted if the request asks for nothing.
    pub default: Duration,
    /// At most.
    pub max: Duration,
}

impl DurationLimit {
    /// The time that is granted for what `field` asks. Zero is allowed only if `zero` is set.
    ///
    /// # Errors
    /// INVALID_FIELD beyond the maximum, or for zero where it has no meaning.
    pub fn grant(&self, field: &str, asked: Option<Duration>, zero: bool) -> Result<Duration> {
        match asked {
            None => Ok(self.default),
            Some(d) if d.is_zero() && !zero => Err(Error::invalid(field, "must be more than 0 s")),
            Some(d) if d > self.max => Err(Error::invalid(
                field,
                format!("is {} s; at most {} s are allowed", d.as_secs(), self.max.as_secs()),
            )),
            Some(d) => Ok(d),
        }
    }
}

/// Environment variables that one request may have.
pub const MAX_ENV: usize = 64;
/// Words that command and arguments may have together.
pub const MAX_WORDS: usize = 1024;
/// Bytes of JSON that one field may have.
pub const MAX_JSON: usize = 64 * 1024;
/// Bytes that an image reference may have.
pub const MAX_IMAGE: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_granted_or_named() {
        let limit =
            DurationLimit { default: Duration::from_secs(60), max: Duration::from_secs(600) };
        let grant =
            |secs: Option<u64>, zero| limit.grant("ttl", secs.map(Duration::from_secs), zero);
        assert_eq!(grant(None, false), Ok(Duration::from_secs(60)));
        assert_eq!(grant(Some(600), false), Ok(Duration::from_secs(600)));
        assert_eq!(grant(Some(0), true), Ok(Duration::ZERO));
        assert_eq!(
            grant(Some(601), false).unwrap_err().to_string(),
            "ttl: is 601 s; at most 600 s are allowed"
        );
        assert_eq!(grant(Some(0), false).unwrap_err().context.field, "ttl");
    }
}
