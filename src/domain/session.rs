//! A debug session's facts, kept in the environment of its container in the pod's spec.
//!
//! An ephemeral container can never be changed, and the API ignores metadata that comes with it, so
//! the environment is the one durable place. An agent that restarts reads it back.

use jiff::Timestamp;

/// Prefix of all variables that hold a session's facts.
pub const ENV_PREFIX: &str = "PODSONDE_";
const ID: &str = "PODSONDE_SESSION_ID";
const REQUESTED_BY: &str = "PODSONDE_REQUESTED_BY";
const CREATED_AT: &str = "PODSONDE_CREATED_AT";
const EXPIRES_AT: &str = "PODSONDE_EXPIRES_AT";
const SEAL: &str = "PODSONDE_SEAL";

/// The facts of a session that its container does not show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionFacts {
    /// A UUID.
    pub id: String,
    /// Who asked for it.
    pub requested_by: String,
    /// When.
    pub created_at: Timestamp,
    /// When its processes are ended.
    pub expires_at: Timestamp,
    /// Proof that an agent wrote these facts for this container of this pod, in hex. Anybody who
    /// may patch the pod can write the facts, but not this. Empty if there is none.
    pub seal: String,
}

impl SessionFacts {
    /// The facts as environment variables.
    pub fn to_env(&self) -> Vec<(&'static str, String)> {
        let facts = [
            (ID, self.id.clone()),
            // `$(…)` in a value would be expanded by Kubernetes; `$$` stands for one `$`.
            (REQUESTED_BY, self.requested_by.replace('$', "$$")),
            (CREATED_AT, self.created_at.to_string()),
            (EXPIRES_AT, self.expires_at.to_string()),
        ];
        let seal = (!self.seal.is_empty()).then(|| (SEAL, self.seal.clone()));
        facts.into_iter().chain(seal).collect()
    }

    /// The facts out of a container's environment. None if it is not a session's.
    pub fn from_env<'a>(env: impl Iterator<Item = (&'a str, &'a str)>) -> Option<Self> {
        let (mut id, mut requested_by, mut created_at, mut expires_at) = (None, None, None, None);
        let mut seal = String::new();
        for (name, value) in env {
            match name {
                ID => id = Some(value.to_owned()),
                REQUESTED_BY => requested_by = Some(value.replace("$$", "$")),
                CREATED_AT => created_at = value.parse().ok(),
                EXPIRES_AT => expires_at = value.parse().ok(),
                SEAL => value.clone_into(&mut seal),
                _ => {}
            }
        }
        Some(Self {
            id: id?,
            requested_by: requested_by.unwrap_or_default(),
            created_at: created_at?,
            expires_at: expires_at?,
            seal,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_survive_the_environment() {
        let facts = SessionFacts {
            id: "7d1f".into(),
            requested_by: "o'neil $(HOME) $$".into(),
            created_at: "2026-01-02T03:04:05.123456789Z".parse().unwrap(),
            expires_at: "2026-01-02T04:04:05Z".parse().unwrap(),
            seal: "5ea1".into(),
        };
        let env = facts.to_env();
        assert!(env.iter().all(|(name, _)| name.starts_with(ENV_PREFIX)));
        let other = [("PATH", "/bin")];
        let read = SessionFacts::from_env(
            other.into_iter().chain(env.iter().map(|(k, v)| (*k, v.as_str()))),
        );
        assert_eq!(read, Some(facts));
    }

    #[test]
    fn other_containers_are_no_sessions() {
        assert_eq!(SessionFacts::from_env([("PATH", "/bin")].into_iter()), None);
        assert_eq!(SessionFacts::from_env([(ID, "x"), (EXPIRES_AT, "soon")].into_iter()), None);
    }
}
