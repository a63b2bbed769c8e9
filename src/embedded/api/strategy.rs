//! What the server does to objects before it stores them: defaults, rules for updates, deletion.

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    object::{self, copy, list, remove, set, set_default, text},
    resources::{NAMESPACES, PODS, Resource},
    status::{ApiStatus, FieldError},
    store::Next,
    validation,
};

/// Where containers find the credentials of their pod's service account.
const IDENTITY_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Parses an object of this kind. Unknown fields are dropped, or refused if `strict`.
pub(crate) fn decode(
    resource: &Resource,
    mut object: Value,
    strict: bool,
) -> Result<Value, ApiStatus> {
    // A body may leave these out, as the path says them.
    set_default(&mut object, &["apiVersion"], resource.api_version());
    set_default(&mut object, &["kind"], resource.kind);
    let given = object.clone();
    let decoded = (resource.decode)(object).map_err(|why| {
        ApiStatus::bad_request(format!(
            "{} in version {:?} cannot be handled as a {}: {why}",
            resource.kind, resource.version, resource.kind
        ))
    })?;
    if strict {
        let mut unknown = Vec::new();
        unknown_fields(&given, &decoded, "", &mut unknown);
        if !unknown.is_empty() {
            return Err(ApiStatus::bad_request(format!(
                "{} in version {:?} cannot be handled as a {}: strict decoding error: {}",
                resource.kind,
                resource.version,
                resource.kind,
                unknown.join(", ")
            )));
        }
    }
    Ok(decoded)
}

fn unknown_fields(given: &Value, known: &Value, path: &str, unknown: &mut Vec<String>) {
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => {
            for (key, value) in given {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                match known.get(key) {
                    Some(known) => unknown_fields(value, known, &path, unknown),
                    None if value.is_null() => {}
                    None => unknown.push(format!("unknown field {path:?}")),
                }
            }
        }
        (Value::Array(given), Value::Array(known)) => {
            for (i, (value, known)) in given.iter().zip(known).enumerate() {
                unknown_fields(value, known, &format!("{path}[{i}]"), unknown);
            }
        }
        _ => {}
    }
}

/// Completes a parsed object that is to be created: metadata, defaults, validation.
pub(crate) fn prepare_create(
    resource: &Resource,
    namespace: &str,
    object: &mut Value,
    identities: bool,
) -> Result<(), ApiStatus> {
    let own = object::namespace(object).to_owned();
    if !own.is_empty() && own != namespace {
        return Err(ApiStatus::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    if resource.namespaced {
        set(object, &["metadata", "namespace"], namespace);
    }
    let prefix = text(object, "/metadata/generateName").to_owned();
    if object::name(object).is_empty() && !prefix.is_empty() {
        set(object, &["metadata", "name"], prefix + &random_suffix());
    }
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "managedFields", "selfLink"] {
        remove(object, &["metadata", field]);
    }
    set(object, &["metadata", "uid"], Uuid::new_v4().to_string());
    set(object, &["metadata", "creationTimestamp"], object::now());
    let errors = if resource.is(&PODS) {
        set(object, &["metadata", "generation"], 1);
        default_pod(object);
        set(object, &["status"], json!({ "phase": "Pending", "qosClass": qos_class(object) }));
        if identities {
            mount_identity(object);
        }
        validation::new_pod(object)
    } else {
        let name = object::name(object);
        if name.is_empty() {
            vec![FieldError::required("metadata.name", "name or generateName is required")]
        } else if let Some(why) = validation::subdomain(name) {
            vec![FieldError::invalid("metadata.name", &name.into(), why)]
        } else {
            Vec::new()
        }
    };
    if resource.is(&NAMESPACES) {
        let name = object::name(object).to_owned();
        set(object, &["metadata", "labels", "kubernetes.io/metadata.name"], name);
        set(object, &["spec", "finalizers"], json!(["kubernetes"]));
        set(object, &["status", "phase"], "Active");
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(ApiStatus::invalid(resource, object::name(object), &errors))
    }
}

/// Five random characters, as the real server appends them to `generateName`.
pub(crate) fn random_suffix() -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let random = Uuid::new_v4();
    let picks = random.as_bytes().iter().take(5);
    picks
        .filter_map(|byte| ALPHABET.get(usize::from(*byte) % ALPHABET.len()))
        .map(|c| char::from(*c))
        .collect()
}

/// Turns `new` into what an update of `old` stores, for the object itself or one of its
/// subresources.
///
/// `unconditional` tells a patch from a PUT, whose UID is a precondition.
pub(crate) fn prepare_update(
    resource: &Resource,
    subresource: &str,
    old: &Value,
    mut new: Value,
    put: bool,
) -> Result<Value, ApiStatus> {
    let name = object::name(old);
    let given = object::name(&new);
    if given != name {
        return Err(ApiStatus::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({name})"
        )));
    }
    let version = text(&new, "/metadata/resourceVersion");
    if !version.is_empty() && version != text(old, "/metadata/resourceVersion") {
        return Err(ApiStatus::modified(resource, name));
    }
    let (uid, old_uid) = (text(&new, "/metadata/uid").to_owned(), text(old, "/metadata/uid"));
    let mut errors = Vec::new();
    if !uid.is_empty() && uid != old_uid {
        if put {
            let why = format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {old_uid}"
            );
            return Err(ApiStatus::conflict(resource, name, &why));
        }
        errors.push(FieldError::invalid("metadata.uid", &uid.into(), "field is immutable"));
    }
    for field in [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
    ] {
        copy(&mut new, old, &["metadata", field]);
    }
    copy(&mut new, old, &["metadata", "namespace"]);
    remove(&mut new, &["metadata", "managedFields"]);
    match subresource {
        "status" => {
            copy(&mut new, old, &["spec"]);
            metadata_of(&mut new, old);
        }
        "ephemeralcontainers" => {
            let containers = remove(&mut new, &["spec", "ephemeralContainers"]);
            copy(&mut new, old, &["spec"]);
            copy(&mut new, old, &["status"]);
            metadata_of(&mut new, old);
            match containers {
                Some(containers) if !containers.is_null() => {
                    set(&mut new, &["spec", "ephemeralContainers"], containers);
                }
                _ => drop(remove(&mut new, &["spec", "ephemeralContainers"])),
            }
            default_containers(&mut new, "ephemeralContainers");
            errors.extend(validation::ephemeral_update(&new, old));
        }
        _ if resource.is(&PODS) => {
            copy(&mut new, old, &["status"]);
            default_pod(&mut new);
            errors.extend(validation::spec_update(&new, old));
        }
        _ if resource.has_subresource("status") => copy(&mut new, old, &["status"]),
        _ => {}
    }
    if !errors.is_empty() {
        return Err(ApiStatus::invalid(resource, name, &errors));
    }
    if new.get("spec") != old.get("spec") && old.pointer("/metadata/generation").is_some() {
        let generation =
            old.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or_default();
        set(&mut new, &["metadata", "generation"], generation.saturating_add(1));
    }
    Ok(new)
}

/// Restores the metadata that a subresource's update cannot change.
fn metadata_of(new: &mut Value, old: &Value) {
    for field in ["labels", "annotations", "finalizers", "ownerReferences"] {
        copy(new, old, &["metadata", field]);
    }
}

/// The effect of a delete. `grace` is in seconds; without it the pod's own grace period holds.
pub(crate) fn delete(resource: &Resource, object: &Value, grace: Option<i64>) -> Next {
    if !resource.is(&PODS) {
        return Next::Remove;
    }
    let nobody_runs_it = text(object, "/spec/nodeName").is_empty();
    let finished = ["Succeeded", "Failed"].contains(&text(object, "/status/phase"));
    let own = object.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_i64);
    let mut grace = grace.or(own).unwrap_or(30).max(0);
    if nobody_runs_it || finished || grace == 0 {
        return Next::Remove;
    }
    let pending = object.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64);
    if let Some(pending) = pending {
        if pending <= grace {
            return Next::Answer(object.clone());
        }
        grace = grace.min(pending);
    }
    let mut dying = object.clone();
    let deadline =
        Timestamp::now().saturating_add(SignedDuration::from_secs(grace)).unwrap_or(Timestamp::MAX);
    set(&mut dying, &["metadata", "deletionTimestamp"], object::time(deadline));
    set(&mut dying, &["metadata", "deletionGracePeriodSeconds"], grace);
    Next::Store(dying)
}

fn default_pod(pod: &mut Value) {
    let defaults = [
        ("restartPolicy", json!("Always")),
        ("terminationGracePeriodSeconds", json!(30)),
        ("dnsPolicy", json!("ClusterFirst")),
        ("schedulerName", json!("default-scheduler")),
        ("enableServiceLinks", json!(true)),
        ("securityContext", json!({})),
    ];
    for (field, value) in defaults {
        set_default(pod, &["spec", field], value);
    }
    for field in ["containers", "initContainers", "ephemeralContainers"] {
        default_containers(pod, field);
    }
}

fn default_containers(pod: &mut Value, field: &str) {
    let containers = pod.pointer_mut(&format!("/spec/{field}")).and_then(Value::as_array_mut);
    for container in containers.into_iter().flatten() {
        let policy = default_pull_policy(text(container, "/image"));
        set_default(container, &["imagePullPolicy"], policy);
        set_default(container, &["resources"], json!({}));
        set_default(container, &["terminationMessagePath"], "/dev/termination-log");
        set_default(container, &["terminationMessagePolicy"], "File");
        for port in container.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            set_default(port, &["protocol"], "TCP");
        }
    }
}

fn default_pull_policy(image: &str) -> &'static str {
    let last = image.rsplit('/').next().unwrap_or_default();
    if last.contains('@') {
        return "IfNotPresent";
    }
    match last.split_once(':') {
        None | Some((_, "latest")) => "Always",
        Some(_) => "IfNotPresent",
    }
}

/// The pod's QoS class, from the resources of its containers.
fn qos_class(pod: &Value) -> &'static str {
    let mut any = false;
    let mut all_limited = true;
    for c in list(pod, "/spec/containers").iter().chain(list(pod, "/spec/initContainers")) {
        for resource in ["cpu", "memory"] {
            let request = text(c, &format!("/resources/requests/{resource}"));
            let limit = text(c, &format!("/resources/limits/{resource}"));
            any |= !request.is_empty() || !limit.is_empty();
            all_limited &= !limit.is_empty() && (request.is_empty() || request == limit);
        }
    }
    match (any, all_limited) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// Mounts the service account's credentials, as the ServiceAccount admission plugin does.
fn mount_identity(pod: &mut Value) {
    let declined = pod.pointer("/spec/automountServiceAccountToken") == Some(&Value::Bool(false));
    if declined || text(pod, "/spec/serviceAccountName").is_empty() {
        return;
    }
    let volume = format!("kube-api-access-{}", random_suffix());
    let sources = json!([
        { "serviceAccountToken": { "expirationSeconds": 3607, "path": "token" } },
        { "configMap": { "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
        { "downwardAPI": { "items": [
            { "path": "namespace", "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.namespace" } }
        ] } },
    ]);
    push(
        pod,
        "volumes",
        json!({ "name": volume, "projected": { "defaultMode": 0o644, "sources": sources } }),
    );
    for field in ["containers", "initContainers"] {
        let containers = pod.pointer_mut(&format!("/spec/{field}")).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let taken = list(container, "/volumeMounts")
                .iter()
                .any(|m| text(m, "/mountPath") == IDENTITY_PATH);
            if !taken {
                let mount = json!({ "name": volume, "mountPath": IDENTITY_PATH, "readOnly": true });
                set_default(container, &["volumeMounts"], json!([]));
                if let Some(mounts) =
                    container.get_mut("volumeMounts").and_then(Value::as_array_mut)
                {
                    mounts.push(mount);
                }
            }
        }
    }
}

fn push(pod: &mut Value, field: &str, item: Value) {
    set_default(pod, &["spec", field], json!([]));
    if let Some(items) = pod.pointer_mut(&format!("/spec/{field}")).and_then(Value::as_array_mut) {
        items.push(item);
    }
}
