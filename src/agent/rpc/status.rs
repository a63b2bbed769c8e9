//! Errors to gRPC statuses: the one table of codes, and `google.rpc.ErrorInfo` for programs.

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::domain::{
    Error, ErrorKind,
    error::{Context, SpecEntry},
};

/// `domain` of every ErrorInfo.
pub const DOMAIN: &str = "podsonde.dev";

/// A status travels in HTTP/2 headers, of which many clients take no more than 8 KiB in all, and
/// its message stands in them three times. The API server and webhooks may say far more than that.
const MAX_MESSAGE: usize = 1024;
/// A field's path may hold a name that the caller gave.
const MAX_FIELD: usize = 256;

/// The gRPC code of a class of failure.
pub const fn code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::InvalidArgument => Code::InvalidArgument,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::AlreadyExists => Code::AlreadyExists,
        ErrorKind::Unauthenticated => Code::Unauthenticated,
        ErrorKind::PermissionDenied => Code::PermissionDenied,
        ErrorKind::FailedPrecondition => Code::FailedPrecondition,
        ErrorKind::Aborted => Code::Aborted,
        ErrorKind::ResourceExhausted => Code::ResourceExhausted,
        ErrorKind::Unimplemented => Code::Unimplemented,
        ErrorKind::Unavailable => Code::Unavailable,
        ErrorKind::DeadlineExceeded => Code::DeadlineExceeded,
        ErrorKind::Internal => Code::Internal,
    }
}

/// The status of an error. What an INTERNAL one says stays in the log.
pub fn status(error: &Error, node: &str) -> Status {
    let Context { namespace, pod, container, field, resource, spec_entry, .. } = &*error.context;
    let field = &cut(field, MAX_FIELD);
    let spec_entry = match spec_entry {
        SpecEntry::None => "",
        SpecEntry::Possible => "possible",
        SpecEntry::Permanent => "permanent",
    };
    let message = match error.kind() {
        ErrorKind::Internal => "internal error; the agent's log has the details".to_owned(),
        _ => cut(&error.to_string(), MAX_MESSAGE),
    };
    let fields = [
        ("node", node),
        ("namespace", namespace),
        ("pod", pod),
        ("container", container),
        ("field", field),
        ("resource", resource),
        ("spec_entry", spec_entry),
    ];
    let metadata: HashMap<_, _> = fields
        .into_iter()
        .filter(|(_, v)| !v.is_empty())
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect();
    let mut details = ErrorDetails::with_error_info(error.reason.as_str(), DOMAIN, metadata);
    if !field.is_empty() {
        details.add_bad_request_violation(field.clone(), cut(&error.message, MAX_MESSAGE));
    }
    Status::with_error_details(code(error.kind()), message, details)
}

/// The first `max` bytes of a text, with `…` if that is not all.
fn cut(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    let fits =
        text.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= max).last();
    format!("{}…", text.get(..fits.unwrap_or_default()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Reason;

    #[test]
    fn info_carries_reason_and_place() {
        let error = Error::new(Reason::ImagePullFailed, "no such image")
            .pod("default", "web")
            .container("d")
            .spec_entry(SpecEntry::Permanent);
        let status = status(&error, "node-a");
        assert_eq!(status.code(), Code::FailedPrecondition);
        let details = status.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!((info.reason.as_str(), info.domain.as_str()), ("IMAGE_PULL_FAILED", DOMAIN));
        let metadata: std::collections::BTreeMap<_, _> =
            info.metadata.clone().into_iter().collect();
        let expected = [
            ("container", "d"),
            ("namespace", "default"),
            ("node", "node-a"),
            ("pod", "web"),
            ("spec_entry", "permanent"),
        ];
        assert_eq!(metadata, expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
    }

    #[test]
    fn internal_errors_keep_their_details() {
        let status = status(&Error::new(Reason::SystemCall, "setns(/proc/7/ns/net): EPERM"), "n");
        assert!(!status.message().contains("setns"));
        assert_eq!(status.code(), Code::Internal);
    }

    #[test]
    fn what_is_too_long_for_headers_is_cut() {
        let long = "é".repeat(5000);
        let status = status(&Error::invalid(format!("custom_json.{long}"), long), "n");
        assert!(
            status.message().len() < 1100 && status.message().ends_with("é…"),
            "{}",
            status.message()
        );
        assert!(status.details().len() < 4000, "{}", status.details().len());
        assert_eq!(cut("éé", 3), "é…");
        assert_eq!(cut("éé", 4), "éé");
    }

    #[test]
    fn a_field_is_a_violation() {
        let status = status(&Error::invalid("pod.name", "is required"), "n");
        let details = status.get_error_details();
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, "pod.name");
    }
}
