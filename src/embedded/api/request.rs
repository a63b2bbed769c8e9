//! The verb, resource and options of a request, from its method, path and query.

use std::time::Duration;

use axum::http::Method;

use super::{
    resources::{PODS, Resource, SERVICE_ACCOUNTS},
    status::ApiStatus,
};

/// The target of a request for a resource, in the terms of authorisation.
#[derive(Debug, Clone)]
pub(crate) struct RequestTarget {
    pub(crate) verb: &'static str,
    pub(crate) resource: &'static Resource,
    /// For example `ephemeralcontainers`; empty if the path has none.
    pub(crate) subresource: String,
    /// Empty for all namespaces, and for cluster-scoped kinds.
    pub(crate) namespace: String,
    /// Empty for a whole collection.
    pub(crate) name: String,
}

impl RequestTarget {
    /// Parses method and path. The path of no resource gives none.
    pub(crate) fn parse(
        method: &Method,
        path: &str,
        options: &RequestOptions,
    ) -> Result<Option<Self>, ApiStatus> {
        let mut segments: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (group, version) = match segments.as_slice() {
            ["api", version, _, ..] => ("", *version),
            ["apis", group, version, _, ..] => (*group, *version),
            _ => return Ok(None),
        };
        let rest = segments.split_off(if group.is_empty() { 2 } else { 3 });
        let (namespace, rest) = match rest.as_slice() {
            // This is a subresource of the namespace itself and no kind within it.
            ["namespaces", _, "status" | "finalize"] => ("", rest.as_slice()),
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
            rest => ("", rest),
        };
        let (plural, name, subresource) = match rest {
            [plural] => (*plural, "", String::new()),
            [plural, name, rest @ ..] => (*plural, *name, rest.join("/")),
            [] => return Ok(None),
        };
        let Some(resource) = Resource::find(group, version, plural) else { return Ok(None) };
        let misplaced = !namespace.is_empty() && !resource.namespaced
            || namespace.is_empty() && resource.namespaced && !name.is_empty();
        if misplaced || !subresource.is_empty() && !resource.has_subresource(&subresource) {
            return Err(ApiStatus::no_such_path());
        }
        let verb = match (method.as_str(), name.is_empty()) {
            ("GET" | "HEAD", true) if options.watch => "watch",
            ("GET" | "HEAD", true) => "list",
            ("GET" | "HEAD", false) => "get",
            ("POST", true) => "create",
            ("POST", false) if resource.is(&PODS) && subresource == "portforward" => "create",
            ("POST", false) if resource.is(&SERVICE_ACCOUNTS) && subresource == "token" => "create",
            ("PUT", false) => "update",
            ("PATCH", false) => "patch",
            ("DELETE", true) => "deletecollection",
            ("DELETE", false) if subresource.is_empty() => "delete",
            _ => return Err(ApiStatus::method_not_allowed()),
        };
        if subresource.is_empty() && !resource.verbs.contains(&verb) {
            return Err(ApiStatus::method_not_allowed());
        }
        Ok(Some(Self {
            verb,
            resource,
            subresource,
            namespace: namespace.into(),
            name: name.into(),
        }))
    }

    /// The resource as RBAC rules name it: `pods`, `pods/ephemeralcontainers`.
    pub(crate) fn resource_path(&self) -> String {
        if self.subresource.is_empty() {
            self.resource.plural.to_owned()
        } else {
            format!("{}/{}", self.resource.plural, self.subresource)
        }
    }
}

/// The query parameters of a request. Others are ignored, as the real server does.
#[derive(Debug, Clone, Default)]
pub(crate) struct RequestOptions {
    pub(crate) label_selector: String,
    pub(crate) field_selector: String,
    /// Objects per page; 0, the default, puts all on one page.
    pub(crate) limit: usize,
    pub(crate) continue_token: String,
    pub(crate) resource_version: String,
    pub(crate) resource_version_match: String,
    pub(crate) watch: bool,
    pub(crate) bookmarks: bool,
    pub(crate) send_initial_events: bool,
    pub(crate) timeout: Option<Duration>,
    pub(crate) dry_run: bool,
    pub(crate) strict: bool,
    pub(crate) grace_period: Option<i64>,
    pub(crate) ports: Vec<u16>,
}

impl RequestOptions {
    pub(crate) fn parse(query: &[(String, String)]) -> Result<Self, ApiStatus> {
        let mut options = Self::default();
        for (key, value) in query {
            match key.as_str() {
                "labelSelector" => options.label_selector.clone_from(value),
                "fieldSelector" => options.field_selector.clone_from(value),
                "limit" => options.limit = number(key, value)?,
                "continue" => options.continue_token.clone_from(value),
                "resourceVersion" => options.resource_version.clone_from(value),
                "resourceVersionMatch" => options.resource_version_match.clone_from(value),
                "watch" => options.watch = boolean(value),
                "allowWatchBookmarks" => options.bookmarks = boolean(value),
                "sendInitialEvents" => options.send_initial_events = boolean(value),
                "timeoutSeconds" => {
                    options.timeout = Some(Duration::from_secs(number(key, value)?));
                }
                "dryRun" if value == "All" => options.dry_run = true,
                "dryRun" => {
                    return Err(ApiStatus::bad_request(format!(
                        "unsupported dryRun value {value:?}"
                    )));
                }
                "fieldValidation" => options.strict = value == "Strict",
                "gracePeriodSeconds" => options.grace_period = Some(number(key, value)?),
                "ports" => {
                    for port in value.split(',') {
                        options.ports.push(number(key, port)?);
                    }
                }
                _ => {}
            }
        }
        Ok(options)
    }

    /// The resource version; 0 if the request names none.
    pub(crate) fn version(&self) -> Result<u64, ApiStatus> {
        if self.resource_version.is_empty() {
            return Ok(0);
        }
        number("resourceVersion", &self.resource_version)
    }
}

fn boolean(value: &str) -> bool {
    matches!(value, "" | "1" | "t" | "T" | "true" | "True" | "TRUE")
}

fn number<T: std::str::FromStr>(key: &str, value: &str) -> Result<T, ApiStatus> {
    value.parse().map_err(|_| ApiStatus::bad_request(format!("invalid value {value:?} of {key}")))
}
