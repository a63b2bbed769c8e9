//! From `deployment/web` to the pods behind it, as kubectl does it for `exec` and `logs`.

use std::collections::BTreeSet;

use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::LabelSelector};
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DynamicObject, GroupVersionKind, ListParams},
    core::Selector,
};

use super::agents::each_page;

/// Kinds that own pods: names as kubectl knows them, group, version, kind, plural.
const KINDS: &[(&[&str], &str, &str, &str, &str)] = &[
    (&["deployment", "deployments", "deploy"], "apps", "v1", "Deployment", "deployments"),
    (&["replicaset", "replicasets", "rs"], "apps", "v1", "ReplicaSet", "replicasets"),
    (&["statefulset", "statefulsets", "sts"], "apps", "v1", "StatefulSet", "statefulsets"),
    (&["daemonset", "daemonsets", "ds"], "apps", "v1", "DaemonSet", "daemonsets"),
    (&["job", "jobs"], "batch", "v1", "Job", "jobs"),
    (&["service", "services", "svc"], "", "v1", "Service", "services"),
    (
        &["replicationcontroller", "replicationcontrollers", "rc"],
        "",
        "v1",
        "ReplicationController",
        "replicationcontrollers",
    ),
];

/// A kind of object that selects pods by label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadKind(ApiResource);

impl WorkloadKind {
    /// The kind that kubectl knows by this name: `deployment`, `deploy`, `deployments.apps`. `None`
    /// if it owns no pods.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        let (plain, suffix) = name.split_once('.').unwrap_or((&name, ""));
        KINDS
            .iter()
            .find(|(names, group, version, ..)| {
                let suffixes = [(*group).to_owned(), format!("{version}.{group}")];
                names.contains(&plain)
                    && (suffix.is_empty() || suffixes.iter().any(|known| known == suffix))
            })
            .map(|(_, group, version, kind, plural)| {
                let kind = GroupVersionKind::gvk(group, version, kind);
                Self(ApiResource::from_gvk_with_plural(&kind, plural))
            })
    }
}

/// Names of the pods that an object selects, those that run first, each group by name. At most 500.
///
/// # Errors
/// Those of getting the object and of listing pods in its namespace.
pub async fn pods_of(
    client: &Client,
    namespace: &str,
    kind: &WorkloadKind,
    name: &str,
) -> kube::Result<Vec<String>> {
    let pods = selected(client, namespace, kind, name).await?;
    Ok(pods.into_iter().map(|pod| pod.name_any()).collect())
}

/// Namespaces and names of the running pods with these labels, in `namespace` or, for `None`, in
/// all. Empty `labels` match every pod.
///
/// # Errors
/// Those of listing pods there.
pub async fn running(
    client: &Client,
    namespace: Option<&str>,
    labels: &str,
) -> kube::Result<BTreeSet<(String, String)>> {
    let pods = match namespace {
        Some(namespace) => Api::<Pod>::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let mut names = BTreeSet::new();
    each_page(
        ListParams::default().labels(labels),
        async |page| pods.list(page).await,
        |pod| {
            if runs(&pod) {
                names.insert((pod.namespace().unwrap_or_default(), pod.name_any()));
            }
        },
    )
    .await?;
    Ok(names)
}

/// Names of the pods that an object selects and that run. At most 500.
///
/// # Errors
/// Those of [`pods_of`].
pub async fn running_of(
    client: &Client,
    namespace: &str,
    kind: &WorkloadKind,
    name: &str,
) -> kube::Result<Vec<String>> {
    let pods = selected(client, namespace, kind, name).await?;
    Ok(pods.into_iter().filter(runs).map(|pod| pod.name_any()).collect())
}

/// Names of a pod's containers, ephemeral ones among them.
///
/// # Errors
/// Those of getting the pod.
pub async fn containers(client: &Client, namespace: &str, pod: &str) -> kube::Result<Vec<String>> {
    let pod = Api::<Pod>::namespaced(client.clone(), namespace).get(pod).await?;
    let Some(spec) = pod.spec else { return Ok(Vec::new()) };
    let ephemeral =
        spec.ephemeral_containers.unwrap_or_default().into_iter().map(|container| container.name);
    Ok(spec.containers.into_iter().map(|container| container.name).chain(ephemeral).collect())
}

async fn selected(
    client: &Client,
    namespace: &str,
    kind: &WorkloadKind,
    name: &str,
) -> kube::Result<Vec<Pod>> {
    let objects: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &kind.0);
    let object = objects.get(name).await?;
    let Some(selector) = selector(&object.data) else { return Ok(Vec::new()) };
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let parameters = ListParams::default().labels_from(&selector).limit(500);
    let mut pods = pods.list(&parameters).await?.items;
    pods.sort_by_key(|pod| (!runs(pod), pod.name_any()));
    Ok(pods)
}

fn runs(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    pod.metadata.deletion_timestamp.is_none() && phase == Some("Running")
}

/// `spec.selector`, which is a plain map in the kinds of the core group. `None` where it is missing
/// or empty: an empty selector would match every pod.
fn selector(object: &serde_json::Value) -> Option<Selector> {
    let field = object.get("spec")?.get("selector")?;
    let labels =
        match serde_json::from_value::<std::collections::BTreeMap<String, String>>(field.clone()) {
            Ok(labels) => LabelSelector { match_labels: Some(labels), match_expressions: None },
            Err(_) => serde_json::from_value(field.clone()).ok()?,
        };
    let selector = Selector::try_from(labels).ok()?;
    (!selector.selects_all()).then_some(selector)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn kinds_go_by_kubectls_names() {
        for name in
            ["deploy", "Deployment", "deployments", "deployments.apps", "deployment.v1.apps"]
        {
            assert_eq!(WorkloadKind::named(name).expect(name).0.plural, "deployments");
        }
        for name in ["node", "pod", "deploy.batch", "", "."] {
            assert_eq!(WorkloadKind::named(name), None, "{name}");
        }
    }

    #[test]
    fn a_selector_is_a_map_or_a_label_selector() {
        let service = json!({"spec": {"selector": {"app": "web"}}});
        assert_eq!(selector(&service).unwrap().to_string(), "app=web");
        let deployment = json!({"spec": {"selector": {
            "matchLabels": {"app": "web"}, "matchExpressions": [{"key": "tier", "operator": "Exists"}]}}});
        let text = selector(&deployment).unwrap().to_string();
        assert!(text.contains("app=web") && text.contains("tier"), "{text}");
        for nothing in
            [json!({}), json!({"spec": {"selector": {}}}), json!({"spec": {"selector": null}})]
        {
            assert!(selector(&nothing).is_none(), "{nothing}");
        }
    }
}
