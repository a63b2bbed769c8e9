//! The client's only error type: a reason for programs, as in `google.rpc.ErrorInfo`, and a
//! sentence for people.

use std::{collections::BTreeMap, error::Error as StdError, io};

use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::reason::Reason;
use crate::{
    codec::code_name,
    domain::{Reason as AgentReason, text::shorten},
    kube::portforward::FarEnd,
};

/// The `ErrorInfo.domain` of podsonde's own reasons.
pub(super) const DOMAIN: &str = "podsonde.dev";
/// Longest message that is kept from another process, in bytes.
const LONGEST: usize = 4096;

/// A failed request, to an agent or to the API server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// Why it failed, for programs.
    pub reason: Reason,
    /// The gRPC code of the answer, or the code that fits an error of the client's own.
    pub code: Code,
    /// One sentence for a person. At most 4 KiB.
    pub message: String,
    /// The objects that the error concerns: `node`, `namespace`, `pod`, `container`, `field`,
    /// `permission` (the one that is missing), `spec_entry` (`permanent` or `possible`: the
    /// container's entry stays in the pod's spec).
    pub metadata: BTreeMap<String, String>,
}

impl Error {
    /// Makes an error of the client's own, with the gRPC code that fits the reason.
    #[must_use]
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            code: reason.code(),
            reason,
            message: shorten(&message.into(), LONGEST).into_owned(),
            metadata: BTreeMap::new(),
        }
    }

    /// Adds a fact to [`Error::metadata`]. A fact that is already there stays.
    #[must_use]
    pub fn about(mut self, key: &str, value: impl Into<String>) -> Self {
        self.metadata.entry(key.to_owned()).or_insert_with(|| value.into());
        self
    }

    /// Returns a fact from [`Error::metadata`], unless it is missing or empty.
    #[must_use]
    pub fn fact(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Converts an error of a call to the API server. `doing` is like `get pod default/web`.
    #[must_use]
    pub fn from_kube(error: &kube::Error, doing: &str) -> Self {
        match error {
            kube::Error::Api(status) => {
                let reason = match status.code {
                    401 => Reason::ApiUnauthenticated,
                    403 => Reason::ApiForbidden,
                    404 => Reason::ApiNotFound,
                    429 | 502..=504 => Reason::Agent(AgentReason::ApiUnreachable),
                    _ => Reason::ApiError,
                };
                let said = if status.message.is_empty() { &status.reason } else { &status.message };
                Self::new(reason, format!("cannot {doing}: the API server says: {said}"))
            }
            kube::Error::InferKubeconfig(_)
            | kube::Error::InferConfig(_)
            | kube::Error::RustlsTls(_) => {
                Self::new(Reason::KubeconfigInvalid, format!("cannot {doing}: {error}"))
            }
            kube::Error::Auth(_) => {
                Self::new(Reason::ApiUnauthenticated, format!("cannot {doing}: {error}"))
            }
            kube::Error::HyperError(_) | kube::Error::Service(_) | kube::Error::ReadEvents(_) => {
                // The service's error may wrap one of the authentication layer.
                let reason = match find::<kube::Error>(error.source()) {
                    Some(kube::Error::Auth(_)) => Reason::ApiUnauthenticated,
                    _ => Reason::Agent(AgentReason::ApiUnreachable),
                };
                Self::new(reason, format!("cannot {doing}: {}", innermost(error)))
            }
            _ => Self::new(Reason::ApiError, format!("cannot {doing}: {error}")),
        }
    }

    /// Converts an error of connecting to an agent. `to` is the endpoint or the agent's pod.
    pub(super) fn from_connect(error: &(dyn StdError + 'static), to: &str) -> Self {
        if let Some(known) = find::<Self>(Some(error)) {
            return known.clone();
        }
        if let Some(error) = find::<kube::Error>(Some(error)) {
            let mut error = Self::from_kube(error, &format!("forward a port to {to}"));
            if matches!(error.reason, Reason::ApiError | Reason::ApiNotFound) {
                error.reason = Reason::PortForwardFailed;
                error.code = Code::Unavailable;
            }
            return error;
        }
        let why = match find::<io::Error>(Some(error)).map(io::Error::kind) {
            Some(io::ErrorKind::NotFound) => "there is no such socket".to_owned(),
            Some(io::ErrorKind::PermissionDenied) => "permission denied".to_owned(),
            Some(io::ErrorKind::TimedOut) => "no answer in time".to_owned(),
            _ => innermost(error),
        };
        Self::new(Reason::AgentUnreachable, format!("cannot connect to the agent at {to}: {why}"))
    }

    /// Replaces the error if its cause is a refused port-forward to the agent on `node`. The layers
    /// above report such a refusal only as a lost connection.
    pub(super) fn through(self, far_end: &FarEnd, node: &str) -> Self {
        match far_end.failure() {
            Some(why)
                if matches!(self.reason, Reason::ConnectionLost | Reason::AgentUnreachable) =>
            {
                let message = format!("cannot forward a port to the agent on node {node}: {why}");
                Self::new(Reason::PortForwardFailed, message).about("node", node)
            }
            _ => self,
        }
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        if let Some(details) = status.get_details_error_info()
            && details.domain == DOMAIN
            && is_reason(&details.reason)
        {
            let shortened = |text: &str| shorten(text, LONGEST).into_owned();
            let metadata =
                details.metadata.into_iter().map(|(key, value)| (key, shortened(&value)));
            return Self {
                reason: Reason::parse(&details.reason),
                code: status.code(),
                message: shortened(status.message()),
                metadata: metadata.take(32).collect(),
            };
        }
        // A status without details but with a cause was made by this side of the connection.
        if let Some(cause) = status.source() {
            if let Some(known) = find::<Self>(Some(cause)) {
                return known.clone();
            }
            let lost = format!("the connection to the agent was lost: {}", innermost(cause));
            return Self::new(Reason::ConnectionLost, lost);
        }
        let (code, said) = (status.code(), status.message());
        let said = if said.is_empty() { code.description() } else { said };
        let message = shorten(&format!("the agent says: {said}"), LONGEST).into_owned();
        let reason = Reason::parse(code_name(code));
        Self { reason, code, message, metadata: BTreeMap::new() }
    }
}

/// Checks the form that `google.rpc.ErrorInfo` prescribes for a reason.
fn is_reason(text: &str) -> bool {
    let upper_snake = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
    (1..=63).contains(&text.len()) && text.bytes().all(upper_snake)
}

/// The message of the last error in the chain. The others only say that something failed.
fn innermost(error: &(dyn StdError + 'static)) -> String {
    let mut said = chain(Some(error)).last().map(ToString::to_string).unwrap_or_default();
    // rustls appends the address of a page for programmers.
    if let Some((end, _)) = said.rmatch_indices(": https://docs.rs/").next() {
        said.truncate(end);
    }
    said
}

fn find<'a, E: StdError + 'static>(error: Option<&'a (dyn StdError + 'static)>) -> Option<&'a E> {
    chain(error).find_map(|error| error.downcast_ref())
}

fn chain<'a>(
    error: Option<&'a (dyn StdError + 'static)>,
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(error, |error| (*error).source()).take(64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::ErrorDetails;

    fn status(reason: &str, domain: &str) -> Status {
        let facts = [
            ("node".to_owned(), "n1".to_owned()),
            ("spec_entry".to_owned(), "permanent".to_owned()),
        ];
        let details = ErrorDetails::with_error_info(reason, domain, facts);
        Status::with_error_details(Code::FailedPrecondition, "the image cannot be pulled", details)
    }

    #[test]
    fn a_status_keeps_its_reason_and_facts() {
        let error = Error::from(status("IMAGE_PULL_FAILED", "podsonde.dev"));
        assert_eq!(error.reason, "IMAGE_PULL_FAILED");
        assert_eq!(error.code, Code::FailedPrecondition);
        assert_eq!(error.to_string(), "the image cannot be pulled");
        assert_eq!(
            (error.fact("node"), error.fact("spec_entry"), error.fact("pod")),
            (Some("n1"), Some("permanent"), None)
        );
    }

    #[test]
    fn a_reason_of_somebody_else_is_not_believed() {
        for status in [
            status("IMAGE_PULL_FAILED", "example.com"),
            status("no reason", DOMAIN),
            status("", DOMAIN),
        ] {
            let error = Error::from(status);
            assert_eq!(error.reason, "FAILED_PRECONDITION");
            assert_eq!(error.message, "the agent says: the image cannot be pulled");
        }
        assert_eq!(Error::from(Status::unauthenticated("")).reason, "UNAUTHENTICATED");
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        let error = Error::from(Status::internal("é".repeat(4096)));
        assert!(
            error.message.len() <= LONGEST && error.message.ends_with("é…"),
            "{}",
            error.message.len()
        );
    }

    #[test]
    fn the_api_servers_answer_decides_the_reason() {
        for (code, expected) in [
            (401, "API_UNAUTHENTICATED"),
            (403, "API_FORBIDDEN"),
            (503, "API_UNREACHABLE"),
            (404, "API_NOT_FOUND"),
            (418, "API_ERROR"),
        ] {
            let status =
                kube::core::Status { code, message: "no".into(), ..kube::core::Status::default() };
            let error =
                Error::from_kube(&kube::Error::Api(Box::new(status)), "get pod default/web");
            assert_eq!(error.reason, expected);
            assert_eq!(error.message, "cannot get pod default/web: the API server says: no");
        }
    }
}
