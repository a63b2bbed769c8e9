//! One error type for all that can go wrong between a person and an agent, with the reason as `google.rpc.ErrorInfo` has
//! it: a fixed word for programs, beside a sentence for people.

use std::{borrow::Cow, collections::BTreeMap, error::Error as StdError, io};

use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::kube::portforward::FarEnd;

/// `ErrorInfo.domain` of podsonde's own reasons.
pub(super) const DOMAIN: &str = "podsonde.dev";
/// Longest message that is kept of what another process said, in bytes.
const LONGEST: usize = 4096;

/// Reasons that the client itself gives. The agents' are documented with each call in `proto/podsonde/v1`.
pub mod reason {
    /// What was given as an agent's endpoint is none.
    pub const ENDPOINT_INVALID: &str = "ENDPOINT_INVALID";
    /// Nothing answers at the agent's endpoint.
    pub const AGENT_UNREACHABLE: &str = "AGENT_UNREACHABLE";
    /// The agent shows another certificate than the one in its Lease, or than the one that was asked for.
    pub const CERTIFICATE_MISMATCH: &str = "CERTIFICATE_MISMATCH";
    /// No authority that is trusted has signed the agent's certificate for the name that was connected to.
    pub const CERTIFICATE_UNTRUSTED: &str = "CERTIFICATE_UNTRUSTED";
    /// A file of certificates cannot be used.
    pub const CERTIFICATE_FILE_INVALID: &str = "CERTIFICATE_FILE_INVALID";
    /// What was given as a certificate's fingerprint is none.
    pub const FINGERPRINT_INVALID: &str = "FINGERPRINT_INVALID";
    /// The agent does not believe the client's certificate.
    pub const CLIENT_CERTIFICATE_REFUSED: &str = "CLIENT_CERTIFICATE_REFUSED";
    /// The agent has no Lease that says what certificate it serves.
    pub const AGENT_NOT_PUBLISHED: &str = "AGENT_NOT_PUBLISHED";
    /// The connection to the agent ended before its answer, or in the middle of it.
    pub const CONNECTION_LOST: &str = "CONNECTION_LOST";
    /// The answer did not come within the request timeout.
    pub const REQUEST_TIMEOUT: &str = "REQUEST_TIMEOUT";
    /// The agent's answer makes no sense.
    pub const PROTOCOL: &str = "PROTOCOL";
    /// What came of a file is not what the agent says it is.
    pub const CHECKSUM_MISMATCH: &str = "CHECKSUM_MISMATCH";
    /// A file of this machine cannot be used.
    pub const LOCAL_FILE: &str = "LOCAL_FILE";
    /// There is no agent pod on the node.
    pub const AGENT_NOT_FOUND: &str = "AGENT_NOT_FOUND";
    /// The agent pod on the node is not Ready.
    pub const AGENT_NOT_READY: &str = "AGENT_NOT_READY";
    /// The API server could not forward a port to the agent pod.
    pub const PORT_FORWARD_FAILED: &str = "PORT_FORWARD_FAILED";
    /// There is no such pod.
    pub const POD_NOT_FOUND: &str = "POD_NOT_FOUND";
    /// The pod runs on no node yet.
    pub const POD_NOT_SCHEDULED: &str = "POD_NOT_SCHEDULED";
    /// There is no such object, or it selects no pods.
    pub const WORKLOAD_NOT_FOUND: &str = "WORKLOAD_NOT_FOUND";
    /// The credentials that are to be shown to agents cannot be read.
    pub const CREDENTIALS_UNUSABLE: &str = "CREDENTIALS_UNUSABLE";
    /// There is neither a kubeconfig nor a service account.
    pub const KUBECONFIG_MISSING: &str = "KUBECONFIG_MISSING";
    /// The kubeconfig cannot be used.
    pub const KUBECONFIG_INVALID: &str = "KUBECONFIG_INVALID";
    /// The API server cannot be reached.
    pub const API_UNREACHABLE: &str = "API_UNREACHABLE";
    /// The API server does not know who asks.
    pub const API_UNAUTHENTICATED: &str = "API_UNAUTHENTICATED";
    /// The API server does not let this user do it.
    pub const API_FORBIDDEN: &str = "API_FORBIDDEN";
    /// The API server has no such object.
    pub const API_NOT_FOUND: &str = "API_NOT_FOUND";
    /// The API server refused for another reason.
    pub const API_ERROR: &str = "API_ERROR";
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// Why, in UPPER_SNAKE, for programs: one of [`reason`] or of the agents' documented ones. Where the agent gave none,
    /// the gRPC code's name.
    pub reason: Cow<'static, str>,
    /// The gRPC code it has, or would have.
    pub code: Code,
    /// One sentence for a person. At most 4 KiB.
    pub message: String,
    /// What it is about: `node`, `namespace`, `pod`, `container`, `field`, `spec_entry` (`permanent` or
    /// `possible`: the container's entry stays in the pod's spec).
    pub metadata: BTreeMap<String, String>,
}

impl Error {
    /// An error of the client's own.
    #[must_use]
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        let code = match reason {
            reason::ENDPOINT_INVALID | reason::KUBECONFIG_INVALID => Code::InvalidArgument,
            reason::FINGERPRINT_INVALID | reason::CERTIFICATE_FILE_INVALID => Code::InvalidArgument,
            reason::CLIENT_CERTIFICATE_REFUSED => Code::Unauthenticated,
            reason::AGENT_NOT_FOUND | reason::POD_NOT_FOUND => Code::NotFound,
            reason::WORKLOAD_NOT_FOUND | reason::API_NOT_FOUND => Code::NotFound,
            reason::REQUEST_TIMEOUT => Code::DeadlineExceeded,
            reason::API_UNAUTHENTICATED | reason::CREDENTIALS_UNUSABLE => Code::Unauthenticated,
            reason::API_FORBIDDEN => Code::PermissionDenied,
            reason::POD_NOT_SCHEDULED | reason::KUBECONFIG_MISSING => Code::FailedPrecondition,
            reason::AGENT_NOT_PUBLISHED => Code::FailedPrecondition,
            reason::PROTOCOL | reason::API_ERROR => Code::Internal,
            reason::CHECKSUM_MISMATCH => Code::Aborted,
            reason::LOCAL_FILE => Code::FailedPrecondition,
            _ => Code::Unavailable,
        };
        Self {
            reason: reason.into(),
            code,
            message: shorten(message.into()),
            metadata: BTreeMap::new(),
        }
    }

    /// Says what the error is about.
    #[must_use]
    pub fn about(mut self, key: &str, value: impl Into<String>) -> Self {
        self.metadata.entry(key.to_owned()).or_insert_with(|| value.into());
        self
    }

    /// One of the facts in [`Error::metadata`].
    #[must_use]
    pub fn fact(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The error that a call to the API server ended with. `doing`: `get pod default/web`.
    #[must_use]
    pub fn from_kube(error: &kube::Error, doing: &str) -> Self {
        match error {
            kube::Error::Api(status) => {
                let reason = match status.code {
                    401 => reason::API_UNAUTHENTICATED,
                    403 => reason::API_FORBIDDEN,
                    404 => reason::API_NOT_FOUND,
                    429 | 502..=504 => reason::API_UNREACHABLE,
                    _ => reason::API_ERROR,
                };
                let said = if status.message.is_empty() { &status.reason } else { &status.message };
                Self::new(reason, format!("cannot {doing}: the API server says: {said}"))
            }
            kube::Error::InferKubeconfig(_)
            | kube::Error::InferConfig(_)
            | kube::Error::RustlsTls(_) => {
                Self::new(reason::KUBECONFIG_INVALID, format!("cannot {doing}: {error}"))
            }
            kube::Error::Auth(_) => {
                Self::new(reason::API_UNAUTHENTICATED, format!("cannot {doing}: {error}"))
            }
            kube::Error::HyperError(_) | kube::Error::Service(_) | kube::Error::ReadEvents(_) => {
                // Behind the service's error may stand one of the authentication layer.
                let reason = match find::<kube::Error>(error.source()) {
                    Some(kube::Error::Auth(_)) => reason::API_UNAUTHENTICATED,
                    _ => reason::API_UNREACHABLE,
                };
                Self::new(reason, format!("cannot {doing}: {}", innermost(error)))
            }
            _ => Self::new(reason::API_ERROR, format!("cannot {doing}: {error}")),
        }
    }

    /// The error that connecting to an agent ended with. `to`: the endpoint or the agent's pod.
    pub(super) fn from_connect(error: &(dyn StdError + 'static), to: &str) -> Self {
        if let Some(known) = find::<Self>(Some(error)) {
            return known.clone();
        }
        if let Some(error) = find::<kube::Error>(Some(error)) {
            let mut error = Self::from_kube(error, &format!("forward a port to {to}"));
            if [reason::API_ERROR, reason::API_NOT_FOUND].contains(&&*error.reason) {
                error.reason = reason::PORT_FORWARD_FAILED.into();
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
        Self::new(reason::AGENT_UNREACHABLE, format!("cannot connect to the agent at {to}: {why}"))
    }

    /// The same error, unless it is what a refused port-forward to the agent on `node` looks like from the layers above it.
    pub(super) fn through(self, far_end: &FarEnd, node: &str) -> Self {
        match far_end.failure() {
            Some(why)
                if [reason::CONNECTION_LOST, reason::AGENT_UNREACHABLE]
                    .contains(&&*self.reason) =>
            {
                let message = format!("cannot forward a port to the agent on node {node}: {why}");
                Self::new(reason::PORT_FORWARD_FAILED, message).about("node", node)
            }
            _ => self,
        }
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        let details = status.get_details_error_info();
        if let Some(details) =
            details.filter(|details| details.domain == DOMAIN && is_reason(&details.reason))
        {
            let metadata = details.metadata.into_iter().map(|(key, value)| (key, shorten(value)));
            return Self {
                reason: details.reason.into(),
                code: status.code(),
                message: shorten(status.message().to_owned()),
                metadata: metadata.take(32).collect(),
            };
        }
        // Without details and with a cause, the status was made on this side of the connection.
        if let Some(cause) = status.source() {
            if let Some(known) = find::<Self>(Some(cause)) {
                return known.clone();
            }
            let lost = format!("the connection to the agent was lost: {}", innermost(cause));
            return Self::new(reason::CONNECTION_LOST, lost);
        }
        let (code, said) = (status.code(), status.message());
        let said = if said.is_empty() { code.description() } else { said };
        let message = shorten(format!("the agent says: {said}"));
        Self { reason: code_name(code).into(), code, message, metadata: BTreeMap::new() }
    }
}

/// The shape that `google.rpc.ErrorInfo` prescribes for a reason.
fn is_reason(text: &str) -> bool {
    let upper_snake = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
    (1..=63).contains(&text.len()) && text.bytes().all(upper_snake)
}

/// The code's name in the gRPC specification.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

fn shorten(mut text: String) -> String {
    if text.len() > LONGEST {
        let room = LONGEST - '…'.len_utf8();
        let kept = text
            .char_indices()
            .map(|(at, c)| at + c.len_utf8())
            .take_while(|end| *end <= room)
            .last();
        text.truncate(kept.unwrap_or(0));
        text.push('…');
    }
    text
}

/// What the error at the end of the chain says: the others only say that something failed.
fn innermost(error: &(dyn StdError + 'static)) -> String {
    let mut said = chain(Some(error)).last().map(ToString::to_string).unwrap_or_default();
    // rustls adds the address of a page for programmers.
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
