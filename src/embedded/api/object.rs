//! Reads and writes fields of objects that are kept as JSON.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use serde_json::{Map, Value};

/// The string at this JSON pointer; empty if there is none.
pub(crate) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The list at this JSON pointer; empty if there is none.
pub(crate) fn list<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// The object's name.
pub(crate) fn name(object: &Value) -> &str {
    text(object, "/metadata/name")
}

/// The object's namespace; empty for a cluster-scoped object.
pub(crate) fn namespace(object: &Value) -> &str {
    text(object, "/metadata/namespace")
}

/// Sets the field at a path of keys and creates missing objects on the way.
pub(crate) fn set(object: &mut Value, path: &[&str], value: impl Into<Value>) {
    let Some((last, parents)) = path.split_last() else { return };
    let mut at = object;
    for key in parents {
        let Some(fields) = fields(at) else { return };
        at = fields.entry((*key).to_owned()).or_insert(Value::Null);
    }
    if let Some(fields) = fields(at) {
        fields.insert((*last).to_owned(), value.into());
    }
}

/// Sets the field unless it has a value other than null.
pub(crate) fn set_default(object: &mut Value, path: &[&str], value: impl Into<Value>) {
    let pointer: String = path.iter().flat_map(|key| ["/", key]).collect();
    if object.pointer(&pointer).is_none_or(Value::is_null) {
        set(object, path, value);
    }
}

/// Removes the field at a path of keys and returns it.
pub(crate) fn remove(object: &mut Value, path: &[&str]) -> Option<Value> {
    let (last, parents) = path.split_last()?;
    let mut at = object;
    for key in parents {
        at = at.get_mut(key)?;
    }
    at.as_object_mut()?.remove(*last)
}

/// Makes a field of `to` equal to that of `from`; a missing field is removed.
pub(crate) fn copy(to: &mut Value, from: &Value, path: &[&str]) {
    let pointer: String = path.iter().flat_map(|key| ["/", key]).collect();
    match from.pointer(&pointer) {
        Some(value) => set(to, path, value.clone()),
        None => drop(remove(to, path)),
    }
}

/// The fields of an object; anything else becomes an empty object first.
fn fields(value: &mut Value) -> Option<&mut Map<String, Value>> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut()
}

/// The current time in the form of the API: UTC, whole seconds.
pub(crate) fn now() -> Value {
    time(Timestamp::now())
}

/// A time in the form of the API.
pub(crate) fn time(at: Timestamp) -> Value {
    serde_json::to_value(Time(at)).unwrap_or_default()
}
