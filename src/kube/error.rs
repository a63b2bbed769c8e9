//! What an error of the Kubernetes API means to podsonde.

use kube::core::Status;

use crate::domain::{Error, Reason};

/// Whether the API server is too busy, so that the same request may succeed soon.
pub(super) fn is_busy(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 429 | 503 | 504))
}

/// Whether a request that ended with this error is sure to have changed nothing.
pub(super) fn changed_nothing(error: &kube::Error) -> bool {
    match error {
        // A server that fails, or gives up on etcd, may have written before. All others refuse
        // first.
        kube::Error::Api(status) => !matches!(status.code, 500 | 502 | 504),
        other => sources(other).any(|e| {
            // No connection, no request.
            e.downcast_ref::<hyper_util::client::legacy::Error>().is_some_and(|e| e.is_connect())
        }),
    }
}

/// Turns an error of a call that the agent made with its own rights into a domain error. `doing`
/// completes "cannot …".
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
        // Webhooks may answer with any code and any text; the API server adds this prefix.
        _ if message.starts_with("admission webhook ") => Reason::AdmissionDenied,
        404 => Reason::PodNotFound,
        // The UID in a patch: refused as an immutable field or as a precondition, depending on the
        // release.
        409 | 422
            if message.contains("metadata.uid") || message.contains("UID in precondition") =>
        {
            Reason::PodReplaced
        }
        // Another request has taken the name meanwhile: the patch would change its container.
        422 if message.contains("existing ephemeral containers ") => Reason::NameTaken,
        409 => Reason::Conflict,
        401 => Reason::AgentForbidden,
        403 if is_rbac(message) => Reason::AgentForbidden,
        403 => Reason::AdmissionDenied,
        400 | 413 | 415 | 422 => Reason::RejectedByApi,
        429 | 500.. => Reason::ApiUnreachable,
        _ => Reason::Bug,
    };
    let text = match reason {
        Reason::AgentForbidden => {
            format!("cannot {doing}: the agent's service account may not: {message}")
        }
        Reason::AdmissionDenied => format!("cannot {doing}: admission refuses it: {message}"),
        Reason::RejectedByApi => format!("cannot {doing}: the API server refuses it: {message}"),
        Reason::ApiUnreachable => {
            format!("cannot {doing}: the API server says {}: {message}", status.code)
        }
        // The API server's message holds the whole of both containers.
        Reason::NameTaken => format!("cannot {doing}: another request has just taken its name"),
        _ => format!("cannot {doing}: {message}"),
    };
    Error::new(reason, text)
}

/// Whether a 403 comes from the authoriser and not from admission: it names the user, then the
/// verb. `staging/src/k8s.io/apiserver/pkg/endpoints/handlers/responsewriters/errors.go`
fn is_rbac(message: &str) -> bool {
    let why = message.split_once(" is forbidden: ").map_or(message, |(_, why)| why);
    why.starts_with("User \"") && why.contains("\" cannot ")
}

/// The error's sources, outermost first.
fn sources(
    error: &dyn std::error::Error,
) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(error.source(), |e| e.source())
}

/// The error and its sources, as one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    for inner in sources(error).map(ToString::to_string) {
        if !text.contains(&inner) {
            text = format!("{text}: {inner}");
        }
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
                Reason::AgentForbidden,
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
            (
                400,
                "admission webhook \"v.example.com\" denied the request: no",
                Reason::AdmissionDenied,
            ),
            (
                404,
                "admission webhook \"v.example.com\" denied the request: not found",
                Reason::AdmissionDenied,
            ),
            (
                403,
                "admission webhook \"v\" denied the request: User \"x\" cannot debug",
                Reason::AdmissionDenied,
            ),
            (
                403,
                "pods \"x\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: User \"x\" cannot do that",
                Reason::AdmissionDenied,
            ),
            (
                422,
                "Pod \"x\" is invalid: spec.ephemeralContainers: Forbidden: existing ephemeral containers \"d\" may not be changed",
                Reason::NameTaken,
            ),
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
