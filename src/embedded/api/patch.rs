//! The three kinds of patch: JSON patch, JSON merge patch, and Kubernetes' strategic merge patch.

use serde_json::{Map, Value};

use super::status::ApiStatus;

/// The media types of the patches that are understood, as the 415 error lists them.
const ACCEPTED: &str = "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json";

/// A patch by its kind, parsed.
pub(crate) enum Patch {
    Json(json_patch::Patch),
    Merge(Value),
    Strategic(Map<String, Value>),
}

impl Patch {
    pub(crate) fn decode(media_type: &str, body: &[u8]) -> Result<Self, ApiStatus> {
        let undecodable = |why| ApiStatus::bad_request(format!("error decoding patch: {why}"));
        match media_type.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => serde_json::from_slice(body).map(Self::Json),
            "application/merge-patch+json" => serde_json::from_slice(body).map(Self::Merge),
            "application/strategic-merge-patch+json" => {
                serde_json::from_slice(body).map(Self::Strategic)
            }
            _ => return Err(ApiStatus::unsupported_media_type(ACCEPTED)),
        }
        .map_err(undecodable)
    }

    /// Returns the object after the patch.
    pub(crate) fn apply(&self, mut object: Value) -> Result<Value, ApiStatus> {
        match self {
            Self::Json(patch) => json_patch::patch(&mut object, patch).map_err(|why| {
                tracing::debug!(%why, "JSON patch refused");
                ApiStatus::new(
                    422,
                    "Invalid",
                    "the server rejected our request due to an error in our request",
                )
            })?,
            Self::Merge(patch) => json_patch::merge(&mut object, patch),
            Self::Strategic(patch) => {
                let Value::Object(fields) = &mut object else {
                    return Err(ApiStatus::internal("a stored object is no JSON object"));
                };
                merge_map(fields, patch.clone()).map_err(ApiStatus::bad_request)?;
            }
        }
        Ok(object)
    }
}

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM_LIST: &str = "$deleteFromPrimitiveList/";
const ELEMENT_ORDER: &str = "$setElementOrder/";

/// How a strategic merge treats a list.
enum ListStrategy {
    Replace,
    /// Items with the same value of this key are merged.
    ByKey(&'static str),
    /// Items are strings, and the result is the union of both lists.
    Union,
}

/// The `patchStrategy` and `patchMergeKey` of a field of the stored kinds. Most field names have
/// one strategy wherever they occur; `ports` and `conditions` do not in general, but in all kinds
/// that are stored here.
fn list_strategy(field: &str) -> ListStrategy {
    match field {
        "containers"
        | "initContainers"
        | "ephemeralContainers"
        | "env"
        | "volumes"
        | "imagePullSecrets"
        | "resourceClaims"
        | "schedulingGates" => ListStrategy::ByKey("name"),
        "volumeMounts" => ListStrategy::ByKey("mountPath"),
        "volumeDevices" => ListStrategy::ByKey("devicePath"),
        "ports" => ListStrategy::ByKey("containerPort"),
        "conditions" | "addresses" => ListStrategy::ByKey("type"),
        "podIPs" | "hostIPs" | "hostAliases" => ListStrategy::ByKey("ip"),
        "ownerReferences" => ListStrategy::ByKey("uid"),
        "topologySpreadConstraints" => ListStrategy::ByKey("topologyKey"),
        "finalizers" | "podCIDRs" => ListStrategy::Union,
        _ => ListStrategy::Replace,
    }
}

fn merge_map(
    original: &mut Map<String, Value>,
    mut patch: Map<String, Value>,
) -> Result<(), String> {
    match patch.remove(DIRECTIVE) {
        None => {}
        Some(Value::String(directive)) if directive == "replace" => {
            *original = patch;
            return Ok(());
        }
        Some(Value::String(directive)) if directive == "delete" => {
            original.clear();
            return Ok(());
        }
        Some(other) => return Err(format!("unknown patch type: {other} in map: {patch:?}")),
    }
    if let Some(Value::Array(retained)) = patch.remove(RETAIN_KEYS) {
        original.retain(|key, _| retained.iter().any(|kept| kept == key));
    }
    let mut orders = Vec::new();
    for (key, value) in patch {
        if let Some(list) = key.strip_prefix(ELEMENT_ORDER) {
            orders.push((list.to_owned(), value));
        } else if let Some(list) = key.strip_prefix(DELETE_FROM_LIST) {
            let (Some(Value::Array(items)), Value::Array(gone)) = (original.get_mut(list), value)
            else {
                continue;
            };
            items.retain(|item| !gone.contains(item));
        } else {
            merge_field(original, key, value)?;
        }
    }
    for (list, order) in orders {
        let (Some(Value::Array(items)), Value::Array(order)) = (original.get_mut(&list), order)
        else {
            continue;
        };
        let key = match list_strategy(&list) {
            ListStrategy::ByKey(key) => Some(key),
            ListStrategy::Union | ListStrategy::Replace => None,
        };
        let server_order = items.clone();
        *items = in_order(std::mem::take(items), &order, &server_order, key);
    }
    Ok(())
}

fn merge_field(original: &mut Map<String, Value>, key: String, value: Value) -> Result<(), String> {
    match (original.get_mut(&key), value) {
        (_, Value::Null) => {
            original.remove(&key);
        }
        (Some(Value::Object(old)), Value::Object(new)) => merge_map(old, new)?,
        (Some(Value::Array(old)), Value::Array(new)) => merge_list(&key, old, new)?,
        (_, Value::Object(new)) => {
            // Merging into an empty object removes the directives.
            let mut fresh = Map::new();
            merge_map(&mut fresh, new)?;
            original.insert(key, Value::Object(fresh));
        }
        (_, Value::Array(new)) => {
            let mut fresh = Vec::new();
            merge_list(&key, &mut fresh, new)?;
            original.insert(key, Value::Array(fresh));
        }
        (_, value) => {
            original.insert(key, value);
        }
    }
    Ok(())
}

fn merge_list(field: &str, original: &mut Vec<Value>, patch: Vec<Value>) -> Result<(), String> {
    match list_strategy(field) {
        ListStrategy::Replace => *original = patch,
        ListStrategy::Union => {
            let server_order = original.clone();
            for item in &patch {
                if !original.contains(item) {
                    original.push(item.clone());
                }
            }
            *original = in_order(std::mem::take(original), &patch, &server_order, None);
        }
        ListStrategy::ByKey(key) => {
            let directive =
                |item: &Value| item.get(DIRECTIVE).and_then(Value::as_str).map(str::to_owned);
            if patch.iter().any(|item| directive(item).as_deref() == Some("replace")) {
                *original = patch.into_iter().filter(|item| directive(item).is_none()).collect();
                return Ok(());
            }
            let server_order = original.clone();
            let mut order = Vec::new();
            for item in patch {
                let id = item.get(key).cloned().ok_or_else(|| {
                    format!("map: {item} does not contain declared merge key: {key}")
                })?;
                match directive(&item).as_deref() {
                    None => {}
                    Some("delete") => {
                        original.retain(|old| old.get(key) != Some(&id));
                        continue;
                    }
                    Some(other) => {
                        return Err(format!("unknown patch type: {other} in map: {item}"));
                    }
                }
                order.push(item.clone());
                let Value::Object(item) = item else { continue };
                if let Some(Value::Object(old)) =
                    original.iter_mut().find(|old| old.get(key) == Some(&id))
                {
                    merge_map(old, item)?;
                } else {
                    let mut fresh = Map::new();
                    merge_map(&mut fresh, item)?;
                    original.push(Value::Object(fresh));
                }
            }
            *original = in_order(std::mem::take(original), &order, &server_order, Some(key));
        }
    }
    Ok(())
}

/// Orders merged items as a real server does.
///
/// Items that `order` names come in that order, others as they stood on the server. Where the two
/// sequences meet, the server's order decides if it knows both items; otherwise the patch's item
/// goes first. A container that a patch adds without an order therefore comes *first*.
fn in_order(
    items: Vec<Value>,
    order: &[Value],
    server_order: &[Value],
    key: Option<&str>,
) -> Vec<Value> {
    let id = |item: &Value| match key {
        Some(key) => item.get(key).cloned().unwrap_or_default(),
        None => item.clone(),
    };
    let place = |list: &[Value], item: &Value| list.iter().position(|other| id(other) == id(item));
    let (mut named, others): (Vec<Value>, Vec<Value>) =
        items.into_iter().partition(|item| place(order, item).is_some());
    named.sort_by_key(|item| place(order, item));
    let mut named = named.into_iter().peekable();
    let mut others = others.into_iter().peekable();
    let mut merged = Vec::new();
    loop {
        let other_first = match (named.peek(), others.peek()) {
            (None, None) => return merged,
            (None, Some(_)) => true,
            (Some(_), None) => false,
            (Some(named), Some(other)) => {
                match (place(server_order, other), place(server_order, named)) {
                    (Some(other), Some(named)) => other < named,
                    _ => false,
                }
            }
        };
        merged.extend(if other_first { others.next() } else { named.next() });
    }
}
