//! Label and field selectors, as list and watch take them.

use serde_json::Value;

use super::{object, resources::Resource, status::Status};
use crate::domain::selector::{LabelSelector, Requirement, equality, terms};

/// Which objects a list or watch wants.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selector {
    labels: LabelSelector,
    fields: Vec<(String, Requirement)>,
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
        let labels = LabelSelector::parse(labels)
            .map_err(|term| unable(format!("couldn't parse the selector string {term:?}")))?;
        let fields = terms(fields)
            .map(|term| {
                let (key, test) = equality(term).ok_or_else(|| {
                    unable(format!("invalid selector: '{term}'; can't understand '{term}'"))
                })?;
                let known = ["metadata.name", "metadata.namespace"].contains(&key.as_str())
                    || resource.fields.contains(&key.as_str());
                if known {
                    Ok((key, test))
                } else {
                    Err(unable(format!("field label not supported: {key}")))
                }
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { labels, fields })
    }

    pub(crate) fn matches(&self, object: &Value) -> bool {
        let label = |key: &str| object.get("metadata")?.get("labels")?.get(key)?.as_str();
        self.labels.matches(label)
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

/// Whether the object is in this namespace; no namespace means all.
pub(crate) fn in_namespace(object: &Value, namespace: Option<&str>) -> bool {
    namespace.is_none_or(|wanted| wanted == object::namespace(object))
}
