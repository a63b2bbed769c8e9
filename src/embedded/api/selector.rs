//! Label and field selectors, as list and watch take them.

use serde_json::Value;

use super::{object, resources::Resource, status::Status};

/// Which objects a list or watch wants.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selector {
    labels: Vec<(String, Test)>,
    fields: Vec<(String, Test)>,
}

#[derive(Debug, Clone)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
}

impl Test {
    fn matches(&self, value: Option<&str>) -> bool {
        match (self, value) {
            (Self::In(wanted), Some(value)) => wanted.iter().any(|w| w == value),
            (Self::NotIn(refused), Some(value)) => refused.iter().all(|r| r != value),
            (Self::Exists, value) => value.is_some(),
            (Self::Absent, value) => value.is_none(),
            (Self::In(_), None) => false,
            (Self::NotIn(_), None) => true,
        }
    }
}

impl Selector {
    /// Parses `labelSelector` and `fieldSelector`, either of which may be empty.
    pub(crate) fn parse(resource: &Resource, labels: &str, fields: &str) -> Result<Self, Status> {
        let unable = |why: String| {
            Status::bad_request(format!(
                "Unable to find {:?} that match label selector {labels:?}, field selector {fields:?}: {why}",
                format!("{}, Resource={}", resource.api_version(), resource.plural),
            ))
        };
        let labels = split(labels)
            .map(|term| {
                label_test(term).ok_or_else(|| unable(format!("couldn't parse the selector string {term:?}")))
            })
            .collect::<Result<_, _>>()?;
        let fields = split(fields)
            .map(|term| {
                let (key, test) = equality(term).ok_or_else(|| {
                    unable(format!("invalid selector: '{term}'; can't understand '{term}'"))
                })?;
                let known = ["metadata.name", "metadata.namespace"].contains(&key.as_str())
                    || resource.fields.contains(&key.as_str());
                if known { Ok((key, test)) } else { Err(unable(format!("field label not supported: {key}"))) }
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { labels, fields })
    }

    pub(crate) fn matches(&self, object: &Value) -> bool {
        let label = |key: &str| object.get("metadata")?.get("labels")?.get(key)?.as_str();
        self.labels.iter().all(|(key, test)| test.matches(label(key)))
            && self.fields.iter().all(|(path, test)| test.matches(Some(&field(object, path))))
    }
}

/// A field's value as selectors compare it; absent ones are empty, or `false` where the field is a yes or no.
fn field(object: &Value, path: &str) -> String {
    match object.pointer(&format!("/{}", path.replace('.', "/"))) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(yes)) => yes.to_string(),
        _ if ["spec.hostNetwork", "spec.unschedulable"].contains(&path) => "false".to_owned(),
        _ => String::new(),
    }
}

/// The terms of a selector: split at the commas that are outside parentheses.
fn split(selector: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_u32;
    selector
        .split(move |c| {
            match c {
                '(' => depth += 1,
                ')' => depth = depth.saturating_sub(1),
                _ => {}
            }
            c == ',' && depth == 0
        })
        .map(str::trim)
        .filter(|term| !term.is_empty())
}

fn equality(term: &str) -> Option<(String, Test)> {
    let (key, value, equal) = if let Some((key, value)) = term.split_once("!=") {
        (key, value, false)
    } else if let Some((key, value)) = term.split_once("==") {
        (key, value, true)
    } else {
        let (key, value) = term.split_once('=')?;
        (key, value, true)
    };
    let values = vec![value.trim().to_owned()];
    Some((key.trim().to_owned(), if equal { Test::In(values) } else { Test::NotIn(values) }))
}

fn label_test(term: &str) -> Option<(String, Test)> {
    if let Some(list) = term.strip_suffix(')') {
        let (head, values) = list.split_once('(')?;
        let values = values.split(',').map(|value| value.trim().to_owned()).collect();
        let mut words = head.split_whitespace();
        return match (words.next()?, words.next()?, words.next()) {
            (key, "in", None) => Some((key.to_owned(), Test::In(values))),
            (key, "notin", None) => Some((key.to_owned(), Test::NotIn(values))),
            _ => None,
        };
    }
    let (key, test) = match (term.strip_prefix('!'), term.contains('=')) {
        (Some(key), false) => (key.trim().to_owned(), Test::Absent),
        (None, true) => equality(term)?,
        (None, false) => (term.to_owned(), Test::Exists),
        (Some(_), true) => return None,
    };
    let valid = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    (!key.is_empty() && key.chars().all(valid)).then_some((key, test))
}

/// Whether the object is in this namespace; no namespace means all.
pub(crate) fn in_namespace(object: &Value, namespace: Option<&str>) -> bool {
    namespace.is_none_or(|wanted| wanted == object::namespace(object))
}
