//! RBAC: what the roles and bindings in the store allow.
//! <https://kubernetes.io/docs/reference/access-authn-authz/rbac/>

use k8s_openapi::api::{
    authentication::v1::UserInfo,
    authorization::v1::ResourceAttributes,
    rbac::v1::{PolicyRule, RoleRef, Subject},
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    identity::MASTERS,
    object,
    request::RequestTarget,
    resources::{CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES, ROLE_BINDINGS, ROLES},
    status::ApiStatus,
    store::Store,
};

/// The reason why a user may do something, which names the binding. None: no rule allows it.
pub(crate) fn allows(
    store: &Store,
    user: &UserInfo,
    wanted: &ResourceAttributes,
) -> Option<String> {
    if user.groups.iter().flatten().any(|group| group == MASTERS) {
        return Some(String::new());
    }
    let namespace = wanted.namespace.as_deref().unwrap_or_default();
    let everywhere = store.list(&CLUSTER_ROLE_BINDINGS, None, None).0;
    let there = match namespace {
        "" => Vec::new(),
        _ => store.list(&ROLE_BINDINGS, Some(namespace), None).0,
    };
    let kinds = [("ClusterRoleBinding", everywhere), ("RoleBinding", there)];
    for (kind, bindings) in kinds {
        for binding in bindings {
            let subjects: Vec<Subject> = read(&binding, "subjects").unwrap_or_default();
            let Some(role) = read::<RoleRef>(&binding, "roleRef") else { continue };
            if subjects.iter().any(|subject| is(user, subject))
                && rules(store, namespace, &role).iter().any(|rule| covers(rule, wanted))
            {
                let name = object::name(&binding);
                return Some(format!(
                    "RBAC: allowed by {kind} {name:?} of {} {:?}",
                    role.kind, role.name
                ));
            }
        }
    }
    None
}

/// Refuses a request that no rule allows, with the real server's error.
pub(crate) fn authorize(
    store: &Store,
    user: &UserInfo,
    target: &RequestTarget,
) -> Result<(), ApiStatus> {
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let wanted = ResourceAttributes {
        verb: text(target.verb),
        group: text(target.resource.group),
        resource: text(target.resource.plural),
        subresource: text(&target.subresource),
        namespace: text(&target.namespace),
        name: text(&target.name),
        ..ResourceAttributes::default()
    };
    if allows(store, user, &wanted).is_some() {
        return Ok(());
    }
    let place = match target.namespace.as_str() {
        "" => "at the cluster scope".to_owned(),
        namespace => format!("in the namespace {namespace:?}"),
    };
    let name = if target.name.is_empty() { String::new() } else { format!(" {:?}", target.name) };
    let message = format!(
        "{}{name} is forbidden: User {:?} cannot {} resource {:?} in API group {:?} {place}",
        target.resource.qualified(),
        user.username.as_deref().unwrap_or_default(),
        target.verb,
        target.resource_path(),
        target.resource.group,
    );
    Err(ApiStatus::new(403, "Forbidden", message))
}

fn read<T: DeserializeOwned>(object: &Value, field: &str) -> Option<T> {
    serde_json::from_value(object.get(field)?.clone()).ok()
}

fn is(user: &UserInfo, subject: &Subject) -> bool {
    let name = user.username.as_deref().unwrap_or_default();
    match subject.kind.as_str() {
        "User" => subject.name == name,
        "Group" => user.groups.iter().flatten().any(|group| *group == subject.name),
        "ServiceAccount" => {
            let namespace = subject.namespace.as_deref().unwrap_or_default();
            name == format!("system:serviceaccount:{namespace}:{}", subject.name)
        }
        _ => false,
    }
}

/// The rules of a role. A RoleBinding names a Role of its own namespace, or a ClusterRole.
fn rules(store: &Store, namespace: &str, role: &RoleRef) -> Vec<PolicyRule> {
    let object = match role.kind.as_str() {
        "ClusterRole" => store.get(&CLUSTER_ROLES, "", &role.name),
        "Role" => store.get(&ROLES, namespace, &role.name),
        _ => None,
    };
    object.and_then(|role| read(&role, "rules")).unwrap_or_default()
}

fn covers(rule: &PolicyRule, wanted: &ResourceAttributes) -> bool {
    let any = |list: Option<&Vec<String>>, accepted: &[&str]| {
        list.into_iter().flatten().any(|item| accepted.contains(&item.as_str()))
    };
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let (resource, subresource, name) =
        (text(&wanted.resource), text(&wanted.subresource), text(&wanted.name));
    let path = if subresource.is_empty() { resource } else { format!("{resource}/{subresource}") };
    let of_any = format!("*/{subresource}");
    let mut resources = vec!["*", path.as_str()];
    if !subresource.is_empty() {
        resources.push(&of_any);
    }
    let names = rule.resource_names.as_ref().filter(|names| !names.is_empty());
    any(Some(&rule.verbs), &["*", &text(&wanted.verb)])
        && any(rule.api_groups.as_ref(), &["*", &text(&wanted.group)])
        && any(rule.resources.as_ref(), &resources)
        && (names.is_none() || any(names, &[&name]))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The expected answers are those of `kubectl auth can-i` on a real server.
    #[test]
    fn rules_cover_what_they_name() {
        let rule = |verbs: &[&str],
                    groups: &[&str],
                    resources: &[&str],
                    names: &[&str]|
         -> PolicyRule {
            let fields = json!({"verbs": verbs, "apiGroups": groups, "resources": resources, "resourceNames": names});
            serde_json::from_value(fields).unwrap()
        };
        let wanted: ResourceAttributes = serde_json::from_value(json!({
            "verb": "patch", "resource": "pods", "subresource": "ephemeralcontainers", "namespace": "a", "name": "web",
        }))
        .unwrap();
        for (expected, rule) in [
            (true, rule(&["patch"], &[""], &["pods/ephemeralcontainers"], &[])),
            (true, rule(&["*"], &["*"], &["*"], &[])),
            (true, rule(&["patch"], &[""], &["*/ephemeralcontainers"], &["web"])),
            (false, rule(&["patch"], &[""], &["pods"], &[])),
            (false, rule(&["update"], &[""], &["pods/ephemeralcontainers"], &[])),
            (false, rule(&["patch"], &["apps"], &["pods/ephemeralcontainers"], &[])),
            (false, rule(&["patch"], &[""], &["pods/ephemeralcontainers"], &["other"])),
            (false, rule(&["patch"], &[], &["pods/ephemeralcontainers"], &[])),
        ] {
            assert_eq!(covers(&rule, &wanted), expected, "{rule:?}");
        }
        let all = ResourceAttributes { name: None, ..wanted };
        assert!(!covers(&rule(&["patch"], &[""], &["pods/ephemeralcontainers"], &["web"]), &all));
    }
}
