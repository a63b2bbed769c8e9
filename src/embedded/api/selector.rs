//! Label and field selectors of list and watch requests.
//!
//! The label syntax is that of `k8s.io/apimachinery/pkg/labels`. The agent has a parser of its own
//! (`domain::selector`), which `tests/embedded_api/selectors.rs` compares with this one.

use serde_json::Value;

use super::{object, resources::Resource, status::ApiStatus};

/// Which objects a list or watch wants.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selector {
    labels: Vec<(String, Requirement)>,
    fields: Vec<(String, Requirement)>,
}

/// What a term demands of the value of its label or field.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Requirement {
    OneOf(Vec<String>),
    NoneOf(Vec<String>),
    Present,
    Absent,
}

impl Requirement {
    fn accepts(&self, value: Option<&str>) -> bool {
        match self {
            Self::OneOf(wanted) => value.is_some_and(|value| wanted.iter().any(|w| w == value)),
            // As in Kubernetes, an object without the label passes.
            Self::NoneOf(refused) => value.is_none_or(|value| refused.iter().all(|r| r != value)),
            Self::Present => value.is_some(),
            Self::Absent => value.is_none(),
        }
    }
}

impl Selector {
    /// Parses `labelSelector` and `fieldSelector`, either of which may be empty.
    pub(crate) fn parse(
        resource: &Resource,
        labels: &str,
        fields: &str,
    ) -> Result<Self, ApiStatus> {
        let unable = |why: String| {
            ApiStatus::bad_request(format!(
                "Unable to find {:?} that match label selector {labels:?}, \
                 field selector {fields:?}: {why}",
                format!("{}, Resource={}", resource.api_version(), resource.plural),
            ))
        };
        let mut selector = Self::default();
        if !labels.trim().is_empty() {
            for term in split(labels) {
                let requirement = label_requirement(term).ok_or_else(|| {
                    unable(format!("couldn't parse the selector string {term:?}"))
                })?;
                selector.labels.push(requirement);
            }
        }
        for term in fields.split(',').map(str::trim).filter(|term| !term.is_empty()) {
            let (path, requirement) = equality(term).ok_or_else(|| {
                unable(format!("invalid selector: '{term}'; can't understand '{term}'"))
            })?;
            let known = ["metadata.name", "metadata.namespace"].contains(&path.as_str())
                || resource.fields.contains(&path.as_str());
            if !known {
                return Err(unable(format!("field label not supported: {path}")));
            }
            selector.fields.push((path, requirement));
        }
        Ok(selector)
    }

    pub(crate) fn matches(&self, object: &Value) -> bool {
        let label = |key: &str| object.get("metadata")?.get("labels")?.get(key)?.as_str();
        self.labels.iter().all(|(key, requirement)| requirement.accepts(label(key)))
            && self
                .fields
                .iter()
                .all(|(path, requirement)| requirement.accepts(Some(&field(object, path))))
    }
}

/// The terms between the commas that are outside parentheses.
fn split(selector: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let (mut start, mut nested) = (0, false);
    for (at, byte) in selector.bytes().enumerate() {
        match byte {
            b'(' => nested = true,
            b')' => nested = false,
            b',' if !nested => {
                terms.push(selector.get(start..at).unwrap_or_default().trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    terms.push(selector.get(start..).unwrap_or_default().trim());
    terms
}

/// `key=value`, `key==value` or `key!=value`.
fn equality(term: &str) -> Option<(String, Requirement)> {
    let requirement = |value: &str, of: fn(Vec<String>) -> Requirement| {
        let value = value.trim().to_owned();
        of(vec![value])
    };
    let key = |key: &str| key.trim().to_owned();
    if let Some((name, value)) = term.split_once("!=") {
        return Some((key(name), requirement(value, Requirement::NoneOf)));
    }
    let (name, value) = term.split_once("==").or_else(|| term.split_once('='))?;
    Some((key(name), requirement(value, Requirement::OneOf)))
}

/// One term of a label selector: an equality, `key in (a,b)`, `key notin (a,b)`, `key` or `!key`.
fn label_requirement(term: &str) -> Option<(String, Requirement)> {
    let (key, requirement) = if let Some((head, tail)) = term.split_once('(') {
        let values = tail.strip_suffix(')')?.split(',').map(|value| value.trim().to_owned());
        let words: Vec<&str> = head.split_whitespace().collect();
        match words[..] {
            [key, "in"] => (key.to_owned(), Requirement::OneOf(values.collect())),
            [key, "notin"] => (key.to_owned(), Requirement::NoneOf(values.collect())),
            _ => return None,
        }
    } else if term.contains('=') {
        equality(term)?
    } else if let Some(key) = term.strip_prefix('!') {
        (key.trim().to_owned(), Requirement::Absent)
    } else {
        (term.to_owned(), Requirement::Present)
    };
    let values_are_valid = match &requirement {
        Requirement::OneOf(values) | Requirement::NoneOf(values) => {
            values.iter().all(|value| is_label_value(value))
        }
        Requirement::Present | Requirement::Absent => true,
    };
    (is_label_key(&key) && values_are_valid).then_some((key, requirement))
}

/// An optional DNS prefix and a name, in the characters that both may have.
fn is_label_key(key: &str) -> bool {
    !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b))
}

/// At most 63 characters, as a label's value is.
fn is_label_value(value: &str) -> bool {
    value.len() <= 63 && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

/// A field's value as selectors compare it. An absent field is empty, or `false` if it is boolean.
fn field(object: &Value, path: &str) -> String {
    match object.pointer(&format!("/{}", path.replace('.', "/"))) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(value)) => value.to_string(),
        _ if ["spec.hostNetwork", "spec.unschedulable"].contains(&path) => "false".to_owned(),
        _ => String::new(),
    }
}

/// Whether the object is in this namespace; without a namespace every object is.
pub(crate) fn in_namespace(object: &Value, namespace: Option<&str>) -> bool {
    namespace.is_none_or(|wanted| wanted == object::namespace(object))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::embedded::api::resources::PODS;

    /// The cases of apimachinery's `selector_test.go` that selectors without `<` and `>` have, and
    /// what `kubectl get pods -l` accepts and refuses.
    const CASES: &[(&str, Option<bool>)] = &[
        ("", Some(true)),
        ("app", Some(true)),
        ("!app", Some(false)),
        ("app=web", Some(true)),
        ("app == web, example.com/tier!=back", Some(true)),
        ("app!=web", Some(false)),
        ("env!=x", Some(true)),
        ("app in (db, web)", Some(true)),
        ("app notin (db, web)", Some(false)),
        ("env notin (x)", Some(true)),
        ("env in (x)", Some(false)),
        ("app,!env", Some(true)),
        ("app in (web),example.com/tier=front", Some(true)),
        ("=x", None),
        ("a b", None),
        ("app in", None),
        ("app in (x", None),
        ("in (x)", None),
        ("!a=b", None),
        ("a;b", None),
        ("a=b=c", None),
        ("a=b c", None),
        ("a,,b", None),
        (",", None),
        ("a,", None),
    ];

    #[test]
    fn label_selectors_are_those_of_kubernetes() {
        let pod = json!({"metadata": {"name": "p", "labels": {"app": "web", "example.com/tier": "front"}}});
        for (text, expected) in CASES {
            let found = Selector::parse(&PODS, text, "").ok().map(|s| s.matches(&pod));
            assert_eq!(found, *expected, "{text}");
        }
    }
}
