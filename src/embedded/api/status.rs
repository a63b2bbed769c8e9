//! Failures in the API's form: `kind: Status` with reason, code and causes, in the real server's
//! words.

use axum::{
    body::Body,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::resources::Resource;

/// A failure, which the API answers as an object of `kind: Status`.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiStatus {
    /// The HTTP status code, 400 or above.
    pub code: u16,
    /// Kubernetes' machine-readable reason: `NotFound`, `Conflict`, …
    pub reason: String,
    /// The message for people.
    pub message: String,
    /// The `details` of the object; null if it has none.
    pub details: Value,
}

impl ApiStatus {
    /// A failure without details.
    pub fn new(code: u16, reason: &str, message: impl Into<String>) -> Self {
        Self { code, reason: reason.to_owned(), message: message.into(), details: Value::Null }
    }

    fn of(code: u16, reason: &str, resource: &Resource, name: &str, message: String) -> Self {
        let mut details = json!({ "kind": resource.plural });
        if let Some(details) = details.as_object_mut() {
            if !name.is_empty() {
                details.insert("name".into(), name.into());
            }
            if !resource.group.is_empty() {
                details.insert("group".into(), resource.group.into());
            }
        }
        Self { details, ..Self::new(code, reason, message) }
    }

    /// 404: no such object.
    pub(crate) fn not_found(resource: &Resource, name: &str) -> Self {
        Self::of(
            404,
            "NotFound",
            resource,
            name,
            format!("{} {name:?} not found", resource.qualified()),
        )
    }

    /// 404: no such path.
    pub(crate) fn no_such_path() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource")
    }

    pub(crate) fn already_exists(resource: &Resource, name: &str) -> Self {
        let message = format!("{} {name:?} already exists", resource.qualified());
        Self::of(409, "AlreadyExists", resource, name, message)
    }

    /// 409; `why` ends the message.
    pub(crate) fn conflict(resource: &Resource, name: &str, why: &str) -> Self {
        let message =
            format!("Operation cannot be fulfilled on {} {name:?}: {why}", resource.qualified());
        Self::of(409, "Conflict", resource, name, message)
    }

    pub(crate) fn modified(resource: &Resource, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(resource, name, why)
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    pub(crate) fn unsupported_media_type(accepted: &str) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {accepted}"
        );
        Self::new(415, "UnsupportedMediaType", message)
    }

    pub(crate) fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(405, "MethodNotAllowed", message)
    }

    pub(crate) fn internal(message: impl std::fmt::Display) -> Self {
        let details = json!({ "causes": [{ "message": message.to_string() }] });
        Self {
            details,
            ..Self::new(500, "InternalError", format!("Internal error occurred: {message}"))
        }
    }

    /// 410: the version `asked` is older than the history, which begins at `oldest`.
    pub(crate) fn expired(asked: u64, oldest: u64) -> Self {
        Self::new(410, "Expired", format!("too old resource version: {asked} ({oldest})"))
    }

    /// 422 with one cause for each wrong field.
    pub(crate) fn invalid(resource: &Resource, name: &str, errors: &[FieldError]) -> Self {
        let mut texts: Vec<String> = Vec::new();
        for error in errors {
            let text = format!("{}: {}", error.field, error.body);
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        let all = match texts.as_slice() {
            [one] => one.clone(),
            _ => format!("[{}]", texts.join(", ")),
        };
        let kind = match resource.group {
            "" => resource.kind.to_owned(),
            group => format!("{}.{group}", resource.kind),
        };
        let causes: Vec<Value> = errors
            .iter()
            .map(|e| json!({ "reason": e.kind, "message": e.body, "field": e.field }))
            .collect();
        let mut status =
            Self::of(422, "Invalid", resource, name, format!("{kind} {name:?} is invalid: {all}"));
        if let Some(details) = status.details.as_object_mut() {
            details.insert("kind".into(), resource.kind.into());
            details.insert("causes".into(), causes.into());
        }
        status
    }

    /// 403 with the text of a refusal by an admission webhook.
    pub fn denied_by_webhook(webhook: &str, why: &str) -> Self {
        Self::new(
            403,
            "Forbidden",
            format!("admission webhook {webhook:?} denied the request: {why}"),
        )
    }

    /// 403 with the text of a refusal by a `ValidatingAdmissionPolicy` of a change to this pod.
    pub fn denied_by_policy(pod: &str, policy: &str, binding: &str, why: &str) -> Self {
        let message = format!(
            "pods {pod:?} is forbidden: ValidatingAdmissionPolicy '{policy}' with binding '{binding}' denied request: {why}"
        );
        Self {
            details: json!({ "kind": "pods", "name": pod }),
            ..Self::new(403, "Forbidden", message)
        }
    }

    /// 409 with the text of a lost race for a pod.
    pub fn pod_conflict(pod: &str) -> Self {
        Self::modified(&super::resources::PODS, pod)
    }

    /// 429 with this `Retry-After`, in seconds.
    pub fn too_many_requests(retry_after: u32) -> Self {
        Self {
            details: json!({ "retryAfterSeconds": retry_after }),
            ..Self::new(429, "TooManyRequests", "Too many requests, please try again later.")
        }
    }

    /// The failure as an object.
    pub(crate) fn to_object(&self) -> Value {
        let mut object = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if let (Some(object), false) = (object.as_object_mut(), self.details.is_null()) {
            object.insert("details".into(), self.details.clone());
        }
        object
    }
}

impl IntoResponse for ApiStatus {
    fn into_response(self) -> Response {
        let code = StatusCode::from_u16(self.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = json_response(code, &self.to_object());
        let retry_after = self.details.get("retryAfterSeconds").and_then(Value::as_u64);
        if let Some(seconds) = retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// An HTTP answer with this object as its body.
pub(crate) fn json_response(code: StatusCode, object: &Value) -> Response {
    let mut response = Response::new(Body::from(object.to_string()));
    *response.status_mut() = code;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A wrong field of an object, with its path and what is wrong.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct FieldError {
    kind: &'static str,
    field: String,
    body: String,
}

impl FieldError {
    fn new(kind: &'static str, field: impl Into<String>, body: String) -> Self {
        Self { kind, field: field.into(), body }
    }

    pub(crate) fn required(field: impl Into<String>, detail: &str) -> Self {
        let body = if detail.is_empty() {
            "Required value".into()
        } else {
            format!("Required value: {detail}")
        };
        Self::new("FieldValueRequired", field, body)
    }

    pub(crate) fn forbidden(field: impl Into<String>, detail: impl std::fmt::Display) -> Self {
        Self::new("FieldValueForbidden", field, format!("Forbidden: {detail}"))
    }

    pub(crate) fn invalid(
        field: impl Into<String>,
        value: &Value,
        detail: impl std::fmt::Display,
    ) -> Self {
        Self::new("FieldValueInvalid", field, format!("Invalid value: {value}: {detail}"))
    }

    pub(crate) fn duplicate(field: impl Into<String>, value: &str) -> Self {
        Self::new("FieldValueDuplicate", field, format!("Duplicate value: {value:?}"))
    }

    pub(crate) fn not_found(field: impl Into<String>, value: &str) -> Self {
        Self::new("FieldValueNotFound", field, format!("Not found: {value:?}"))
    }

    pub(crate) fn not_supported(field: impl Into<String>, value: &str, supported: &[&str]) -> Self {
        let supported: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        let body =
            format!("Unsupported value: {value:?}: supported values: {}", supported.join(", "));
        Self::new("FieldValueNotSupported", field, body)
    }
}
