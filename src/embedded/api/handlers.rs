//! What each verb reads from the store or does to it.

use std::sync::Arc;

use axum::{
    body::{Body, Bytes, to_bytes},
    extract::Query,
    http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header},
    response::{IntoResponse, Response},
};
use k8s_openapi::api::authentication::v1::UserInfo;
use serde_json::{Value, json};

use super::{
    Server, object,
    patch::Patch,
    portforward, rbac,
    request::{RequestOptions, RequestTarget},
    resources::{self, NAMESPACES, PODS, Resource},
    selector::Selector,
    status::{ApiStatus, json_response},
    store::Next,
    strategy, watch,
};

/// The largest request body in bytes, which is the real server's limit.
const BODY_LIMIT: usize = 3 * 1024 * 1024;

/// The options and the target of a request. Paths outside the resources have no target.
fn understand(
    request: &Request<Body>,
    path: &str,
) -> Result<(RequestOptions, Option<RequestTarget>), ApiStatus> {
    let query = Query::<Vec<(String, String)>>::try_from_uri(request.uri())
        .map_err(|why| ApiStatus::bad_request(why.to_string()))?;
    let options = RequestOptions::parse(&query)?;
    let target = RequestTarget::parse(request.method(), path, &options)?;
    Ok((options, target))
}

impl Server {
    /// Authenticates, authorises and answers a request.
    pub(super) async fn answer(self: Arc<Self>, request: Request<Body>) -> Response {
        self.serve(request).await.unwrap_or_else(IntoResponse::into_response)
    }

    async fn serve(self: Arc<Self>, mut request: Request<Body>) -> Result<Response, ApiStatus> {
        let path = request.uri().path().to_owned();
        let understood = understand(&request, &path);
        if let Ok((_, Some(target))) = &understood {
            self.faults.arrived(target);
        }
        self.faults.hold().await;
        let (options, target) = understood?;
        let Some(target) = target else { return plain(request.method(), &path) };
        let user = self.identities.authenticate(request.headers())?;
        rbac::authorize(&self.store, &user, &target)?;
        match self.faults.pass(&target) {
            Err(status) if target.verb == "watch" && status.code == 410 => {
                // The real server has sent its 200 by the time it finds this, too.
                return Ok(stream(Body::from(watch::error_line(&status))));
            }
            passed => passed?,
        }
        match (target.verb, target.subresource.as_str()) {
            ("watch", _) => {
                let body = watch::open(&self.store, &self.faults, &target, &options)?;
                Ok(stream(Body::from_stream(body)))
            }
            ("list", _) => Ok(json_response(StatusCode::OK, &self.list(&target, &options)?)),
            ("get" | "create", "portforward") => {
                portforward::answer(&self, &target, &options, &mut request)
            }
            ("get", _) => {
                let found = self.store.get(target.resource, &target.namespace, &target.name);
                let object =
                    found.ok_or_else(|| ApiStatus::not_found(target.resource, &target.name))?;
                Ok(json_response(StatusCode::OK, &object))
            }
            _ => {
                let (parts, body) = request.into_parts();
                let body = to_bytes(body, BODY_LIMIT).await.map_err(|_| {
                    let message = format!("Request entity too large: limit is {BODY_LIMIT}");
                    ApiStatus::new(413, "RequestEntityTooLarge", message)
                })?;
                self.change(&target, &user, options, &parts.headers, &body)
            }
        }
    }

    fn change(
        &self,
        target: &RequestTarget,
        user: &UserInfo,
        mut options: RequestOptions,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> Result<Response, ApiStatus> {
        let resource = target.resource;
        match target.verb {
            "create" => {
                let given = parse(headers, body)?;
                let object = match self.review(target, user, &given) {
                    Some(answered) => answered?,
                    None => self.create_object(resource, &target.namespace, given, &options)?,
                };
                Ok(json_response(StatusCode::CREATED, &object))
            }
            "update" => {
                let given = strategy::decode(resource, parse(headers, body)?, options.strict)?;
                let absent = self.store.get(resource, &target.namespace, &target.name).is_none();
                if absent && resource.create_on_update {
                    let object =
                        self.create_object(resource, &target.namespace, given, &options)?;
                    return Ok(json_response(StatusCode::CREATED, &object));
                }
                self.update(target, &options, true, |_| Ok(given))
            }
            "patch" => {
                let media_type =
                    headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
                let patch = Patch::decode(media_type.unwrap_or_default(), body)?;
                let strict = options.strict;
                self.update(target, &options, false, |old| {
                    strategy::decode(resource, patch.apply(old.clone())?, strict)
                })
            }
            _ => {
                let delete: Value =
                    if body.is_empty() { Value::Null } else { parse(headers, body)? };
                options.dry_run |=
                    object::list(&delete, "/dryRun").iter().any(|stage| stage == "All");
                let grace = delete
                    .get("gracePeriodSeconds")
                    .and_then(Value::as_i64)
                    .or(options.grace_period);
                if target.verb == "delete" {
                    self.delete(target, &delete, grace, options.dry_run)
                } else {
                    self.delete_collection(target, &options, grace)
                }
            }
        }
    }

    pub(super) fn create_object(
        &self,
        resource: &'static Resource,
        namespace: &str,
        object: Value,
        options: &RequestOptions,
    ) -> Result<Arc<Value>, ApiStatus> {
        let mut object = strategy::decode(resource, object, options.strict)?;
        let namespace = match (resource.namespaced, namespace) {
            (true, "") => return Err(ApiStatus::method_not_allowed()),
            (true, namespace) => namespace,
            (false, _) => "",
        };
        strategy::prepare_create(resource, namespace, &mut object, self.identities.for_pods)?;
        if resource.namespaced && self.store.get(&NAMESPACES, "", namespace).is_none() {
            return Err(ApiStatus::not_found(&NAMESPACES, namespace));
        }
        if options.dry_run {
            if self.store.get(resource, namespace, object::name(&object)).is_some() {
                return Err(ApiStatus::already_exists(resource, object::name(&object)));
            }
            return Ok(Arc::new(object));
        }
        self.store.create(resource, object)
    }

    fn update(
        &self,
        target: &RequestTarget,
        options: &RequestOptions,
        put: bool,
        change: impl FnOnce(&Value) -> Result<Value, ApiStatus>,
    ) -> Result<Response, ApiStatus> {
        let object =
            self.store.update(target.resource, &target.namespace, &target.name, |old| {
                let new = strategy::prepare_update(
                    target.resource,
                    &target.subresource,
                    old,
                    change(old)?,
                    put,
                )?;
                Ok(if options.dry_run { Next::Answer(new) } else { Next::Store(new) })
            })?;
        Ok(json_response(StatusCode::OK, &object))
    }

    fn delete(
        &self,
        target: &RequestTarget,
        delete: &Value,
        grace: Option<i64>,
        dry_run: bool,
    ) -> Result<Response, ApiStatus> {
        let resource = target.resource;
        if resource.is(&NAMESPACES) {
            // Every object in the namespace would have to be deleted with it.
            return Err(ApiStatus::method_not_allowed());
        }
        let object = self.store.update(resource, &target.namespace, &target.name, |old| {
            for (field, title) in [("uid", "UID"), ("resourceVersion", "ResourceVersion")] {
                let wanted = object::text(delete, &format!("/preconditions/{field}"));
                let is = object::text(old, &format!("/metadata/{field}"));
                if !wanted.is_empty() && wanted != is {
                    let why = format!(
                        "Precondition failed: {title} in precondition: {wanted}, {title} in object meta: {is}"
                    );
                    return Err(ApiStatus::conflict(resource, &target.name, &why));
                }
            }
            Ok(if dry_run { Next::Answer(old.clone()) } else { strategy::delete(resource, old, grace) })
        })?;
        if resource.is(&PODS) {
            return Ok(json_response(StatusCode::OK, &object));
        }
        let details = json!({
            "name": target.name, "kind": resource.plural, "uid": object::text(&object, "/metadata/uid"),
        });
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details,
        });
        Ok(json_response(StatusCode::OK, &status))
    }

    fn delete_collection(
        &self,
        target: &RequestTarget,
        options: &RequestOptions,
        grace: Option<i64>,
    ) -> Result<Response, ApiStatus> {
        let (objects, version) = self.picked(target, options)?;
        for object in &objects {
            let (namespace, name) = (object::namespace(object), object::name(object));
            if options.dry_run {
                continue;
            }
            let deleted = self.store.update(target.resource, namespace, name, |old| {
                Ok(strategy::delete(target.resource, old, grace))
            });
            match deleted {
                Err(status) if status.code != 404 => return Err(status),
                _ => {}
            }
        }
        Ok(json_response(StatusCode::OK, &list_of(target.resource, &objects, version)))
    }

    /// The objects that a list or a delete of a collection selects.
    fn picked(
        &self,
        target: &RequestTarget,
        options: &RequestOptions,
    ) -> Result<(Vec<Arc<Value>>, u64), ApiStatus> {
        let selector =
            Selector::parse(target.resource, &options.label_selector, &options.field_selector)?;
        let namespace = Some(target.namespace.as_str()).filter(|ns| !ns.is_empty());
        let after = continue_after(&options.continue_token, self.store.oldest())?;
        let after = after.as_ref().map(|(namespace, name)| (namespace.as_str(), name.as_str()));
        let (mut objects, version) = self.store.list(target.resource, namespace, after);
        objects.retain(|object| selector.matches(object));
        Ok((objects, version))
    }

    fn list(&self, target: &RequestTarget, options: &RequestOptions) -> Result<Value, ApiStatus> {
        let (mut objects, version) = self.picked(target, options)?;
        let asked = options.version()?;
        if asked > version {
            let message =
                format!("Timeout: Too large resource version: {asked}, current: {version}");
            let cause = json!({ "reason": "ResourceVersionTooLarge", "message": "Too large resource version" });
            let details = json!({ "retryAfterSeconds": 1, "causes": [cause] });
            return Err(ApiStatus { details, ..ApiStatus::new(504, "Timeout", message) });
        }
        let total = objects.len();
        let more = options.limit > 0 && total > options.limit;
        if more {
            objects.truncate(options.limit);
        }
        let mut list = list_of(target.resource, &objects, version);
        if let (true, Some(last)) = (more, objects.last()) {
            let token = format!("{version}/{}/{}", object::namespace(last), object::name(last));
            object::set(&mut list, &["metadata", "continue"], token);
            if options.label_selector.is_empty() && options.field_selector.is_empty() {
                object::set(&mut list, &["metadata", "remainingItemCount"], total - objects.len());
            }
        }
        Ok(list)
    }
}

fn list_of(resource: &Resource, objects: &[Arc<Value>], version: u64) -> Value {
    let items: Vec<&Value> = objects.iter().map(AsRef::as_ref).collect();
    json!({
        "kind": format!("{}List", resource.kind), "apiVersion": resource.api_version(),
        "metadata": { "resourceVersion": version.to_string() }, "items": items,
    })
}

/// The namespace and name of the previous page's last object. A token from before the history is
/// refused.
fn continue_after(token: &str, oldest: u64) -> Result<Option<(String, String)>, ApiStatus> {
    if token.is_empty() {
        return Ok(None);
    }
    let invalid = || ApiStatus::bad_request("continue key is not valid");
    let (version, rest) = token.split_once('/').ok_or_else(invalid)?;
    let (namespace, name) = rest.split_once('/').ok_or_else(invalid)?;
    if version.parse::<u64>().map_err(|_| invalid())? < oldest {
        let message = "The provided continue parameter is too old to display a consistent list result. You must \
                       start a new list without the continue parameter.";
        return Err(ApiStatus::new(410, "Expired", message));
    }
    Ok(Some((namespace.to_owned(), name.to_owned())))
}

fn parse(headers: &HeaderMap, body: &Bytes) -> Result<Value, ApiStatus> {
    let media_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type =
        media_type.unwrap_or("application/json").split(';').next().unwrap_or_default().trim();
    if media_type != "application/json" {
        return Err(ApiStatus::unsupported_media_type("application/json"));
    }
    serde_json::from_slice(body).map_err(|why| {
        ApiStatus::bad_request(format!("the object provided is unrecognized: {why}"))
    })
}

/// Answers for paths that are no resource: health, version, discovery.
fn plain(method: &Method, path: &str) -> Result<Response, ApiStatus> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return Err(ApiStatus::no_such_path());
    }
    match path.trim_end_matches('/') {
        "/healthz" | "/livez" | "/readyz" => Ok("ok".into_response()),
        path => {
            let document = resources::document(path).ok_or_else(ApiStatus::no_such_path)?;
            Ok(json_response(StatusCode::OK, &document))
        }
    }
}

fn stream(body: Body) -> Response {
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
