//! What an error of the Kubernetes API means to podsonde.

use kube::core::Status;

use crate::domain::{Error, Reason};

/// Turns an error of a call that the agent made with its own rights into a domain error. `doing` completes "cannot …".
pub fn from_kube(doing: &str, error: &kube::Error) -> Error {
    match error {
        kube::Error::Api(status) => from_status(doing, status),
        other => Error::new(
            Reason::ApiUnreachable,
            format!("cannot {doing}: the API server cannot be reached: {}", chain(other)),
        ),
    }
}

fn from_status(doing: &str, status: &Status) -> Error {
    let message = &status.message;
    let reason = match status.code {
        404 => Reason::PodNotFound,
        // The UID in a patch: refused as an immutable field or as a precondition, depending on the release.
        409 | 422 if message.contains("metadata.uid") || message.contains("UID in precondition") => {
            Reason::PodReplaced
        }
        409 => Reason::Conflict,
        401 => Reason::ApiForbidden,
        403 if is_rbac(message) => Reason::ApiForbidden,
        403 => Reason::AdmissionDenied,
        // Webhooks may answer with any code of theirs; the API server then says so in these words.
        400.. if message.starts_with("admission webhook ") => Reason::AdmissionDenied,
        400 | 413 | 415 | 422 => Reason::RejectedByApi,
        429 | 500.. => Reason::ApiUnreachable,
        _ => Reason::Bug,
    };
    let text = match reason {
        Reason::ApiForbidden => format!("cannot {doing}: the agent's service account may not: {message}"),
        Reason::AdmissionDenied => format!("cannot {doing}: admission refuses it: {message}"),
        Reason::RejectedByApi => format!("cannot {doing}: the API server refuses it: {message}"),
        Reason::ApiUnreachable => format!("cannot {doing}: the API server says {}: {message}", status.code),
        _ => format!("cannot {doing}: {message}"),
    };
    Error::new(reason, text)
}

/// Whether a 403 comes from the authoriser and not from admission: it names the user and the verb.
/// `staging/src/k8s.io/apiserver/pkg/endpoints/handlers/responsewriters/errors.go`
fn is_rbac(message: &str) -> bool {
    message.contains("User \"") && message.contains("cannot ")
}

/// The error and its sources, as one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        source = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_messages_of_real_servers() {
        let table = [
            (404, "pods \"x\" not found", Reason::PodNotFound),
            (
                409,
                "Operation cannot be fulfilled on pods \"x\": the object has been modified",
                Reason::Conflict,
            ),
            (
                403,
                "pods \"x\" is forbidden: User \"system:serviceaccount:podsonde:agent\" cannot patch resource \"pods/ephemeralcontainers\" in API group \"\" in the namespace \"d\"",
                Reason::ApiForbidden,
            ),
            (
                403,
                "pods \"x\" is forbidden: violates PodSecurity \"restricted:latest\": privileged",
                Reason::AdmissionDenied,
            ),
            (
                403,
                "pods \"x\" is forbidden: ValidatingAdmissionPolicy 'podsonde-agent' with binding 'b' denied request: own node only",
                Reason::AdmissionDenied,
            ),
            (400, "admission webhook \"v.example.com\" denied the request: no", Reason::AdmissionDenied),
            (
                422,
                "Pod \"x\" is invalid: spec.ephemeralContainers[0].name: Invalid value",
                Reason::RejectedByApi,
            ),
            (429, "too many requests", Reason::ApiUnreachable),
            (503, "apiserver is shutting down", Reason::ApiUnreachable),
        ];
        for (code, message, reason) in table {
            let status = Status { code, message: message.into(), ..Status::default() };
            assert_eq!(from_status("do it", &status).reason, reason, "{code} {message}");
        }
    }
}
