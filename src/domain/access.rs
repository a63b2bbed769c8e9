//! Users and permissions, in the terms of Kubernetes' authorisation.

use std::{collections::BTreeMap, fmt};

/// A user, as the API server knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct User {
    /// Name: `jane`, `system:serviceaccount:ci:runner`. Never empty for somebody who is
    /// authenticated.
    pub name: String,
    /// UID; empty where the authenticator gives none.
    pub uid: String,
    /// Groups, `system:authenticated` among them.
    pub groups: Vec<String>,
    /// What else the authenticator says, for authorisers.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// A permission, as a rule of RBAC names it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Attributes {
    /// `get`, `patch`, `create`.
    pub verb: &'static str,
    /// API group; empty for the core group.
    pub group: &'static str,
    /// `pods`.
    pub resource: &'static str,
    /// `ephemeralcontainers`; empty for the resource itself.
    pub subresource: &'static str,
    /// Namespace; empty for all, and for what has none.
    pub namespace: String,
    /// Name; empty for all.
    pub name: String,
}

impl Attributes {
    /// The resource as kubectl writes it: `pods/exec`, `captures.podsonde.dev`.
    pub fn full_resource(&self) -> String {
        let mut full = self.resource.to_owned();
        for (mark, part) in [('/', self.subresource), ('.', self.group)] {
            if !part.is_empty() {
                full.push(mark);
                full.push_str(part);
            }
        }
        full
    }
}

impl fmt::Display for Attributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { verb, resource, namespace, name, .. } = self;
        write!(f, "{verb} {}", self.full_resource())?;
        if !name.is_empty() {
            write!(f, " {name}")?;
        }
        match (namespace.as_str(), *resource) {
            ("", "nodes") => Ok(()),
            ("", _) => f.write_str(" in all namespaces"),
            (namespace, _) => write!(f, " in namespace {namespace}"),
        }
    }
}

/// What somebody must be allowed before something is done for them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Requirement {
    /// The permission that RBAC must grant.
    pub right: Attributes,
    /// A permission that is as good. It is asked for if the first one is denied.
    pub alternative: Option<Attributes>,
}

impl From<Attributes> for Requirement {
    fn from(right: Attributes) -> Self {
        Self { right, alternative: None }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.right)?;
        match &self.alternative {
            Some(alternative) => write!(f, " or {alternative}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_read_like_kubectl_auth_can_i() {
        let attributes = Attributes {
            verb: "patch",
            resource: "pods",
            subresource: "ephemeralcontainers",
            namespace: "default".into(),
            name: "web".into(),
            ..Attributes::default()
        };
        assert_eq!(
            attributes.to_string(),
            "patch pods/ephemeralcontainers web in namespace default"
        );
        let attributes = Attributes { verb: "list", resource: "pods", ..Attributes::default() };
        assert_eq!(attributes.to_string(), "list pods in all namespaces");
        let attributes = Attributes {
            verb: "get",
            resource: "nodes",
            name: "n".into(),
            ..Attributes::default()
        };
        assert_eq!(attributes.to_string(), "get nodes n");
        let own = Attributes { group: "podsonde.dev", ..attributes.clone() };
        let either = Requirement { right: attributes, alternative: Some(own) };
        assert_eq!(either.to_string(), "get nodes n or get nodes.podsonde.dev n");
    }
}
