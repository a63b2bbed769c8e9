//! Where the agents are: which node a pod runs on, and which agent pod runs on that node.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ListParams, ObjectList, PartialObjectMeta},
};

/// Label selector of the agent's pods.
pub const AGENT_SELECTOR: &str = "app.kubernetes.io/name=podsonde-agent";
/// TCP port of the agent's gRPC API inside its pod.
pub const AGENT_PORT: u16 = 7463;
/// Namespace that the agent is installed in unless told otherwise.
pub const AGENT_NAMESPACE: &str = "podsonde";

/// Objects per page of a list.
const PAGE: u32 = 500;

/// An agent's pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentPod {
    /// Node that the pod runs on.
    pub node: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// Whether the pod is Ready and is not being deleted.
    pub ready: bool,
}

/// The agent's pod on one node. Several exist during an update; then one that is ready. `None` if
/// the node has no agent.
///
/// # Errors
/// Those of listing pods in `namespace`.
pub async fn on_node(
    client: &Client,
    namespace: &str,
    node: &str,
) -> kube::Result<Option<AgentPod>> {
    let field = format!("spec.nodeName={node}");
    let parameters = ListParams::default().labels(AGENT_SELECTOR).fields(&field);
    Ok(find(client, namespace, parameters).await?.remove(node))
}

/// The agents' pods of the cluster, one per node, by node name.
///
/// # Errors
/// Those of listing pods in `namespace`.
pub async fn all(client: &Client, namespace: &str) -> kube::Result<BTreeMap<String, AgentPod>> {
    find(client, namespace, ListParams::default().labels(AGENT_SELECTOR)).await
}

async fn find(
    client: &Client,
    namespace: &str,
    parameters: ListParams,
) -> kube::Result<BTreeMap<String, AgentPod>> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let mut found: BTreeMap<String, AgentPod> = BTreeMap::new();
    each_page(
        parameters,
        async |page| pods.list(page).await,
        |pod| {
            // Checked here too, in case the API server does not know the selector's field.
            if let Some(agent) = agent_pod(pod)
                && found.get(&agent.node).is_none_or(|known| !known.ready)
            {
                found.insert(agent.node.clone(), agent);
            }
        },
    )
    .await?;
    Ok(found)
}

fn agent_pod(pod: Pod) -> Option<AgentPod> {
    let node = pod.spec.as_ref()?.node_name.clone()?;
    let conditions =
        pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let ready = pod.metadata.deletion_timestamp.is_none()
        && conditions
            .iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True");
    Some(AgentPod {
        node,
        namespace: pod.namespace().unwrap_or_default(),
        name: pod.name_any(),
        ready,
    })
}

/// Names of all nodes of the cluster.
///
/// # Errors
/// Those of listing nodes, which people who may only see their own namespaces are not allowed to.
pub async fn node_names(client: &Client) -> kube::Result<BTreeSet<String>> {
    let nodes: Api<Node> = Api::all(client.clone());
    let mut names = BTreeSet::new();
    let list = async |page: &ListParams| nodes.list_metadata(page).await;
    each_page(ListParams::default(), list, |node: PartialObjectMeta<Node>| {
        names.insert(node.name_any());
    })
    .await?;
    Ok(names)
}

/// Names of the nodes that pods with these labels were scheduled to, and the number of these pods,
/// in `namespace` or, for `None`, in all.
///
/// # Errors
/// Those of listing pods there.
pub async fn nodes_with(
    client: &Client,
    namespace: Option<&str>,
    selector: &str,
) -> kube::Result<BTreeSet<String>> {
    let pods = match namespace {
        Some(namespace) => Api::<Pod>::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let mut names = BTreeSet::new();
    each_page(
        ListParams::default().labels(selector),
        async |page| pods.list(page).await,
        |pod| {
            names.extend(pod.spec.and_then(|spec| spec.node_name));
        },
    )
    .await?;
    Ok(names)
}

/// The node that a pod was scheduled to. `None` if it was not yet.
///
/// # Errors
/// Those of getting the pod, 404 among them.
pub async fn node_of(client: &Client, namespace: &str, pod: &str) -> kube::Result<Option<String>> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let pod = pods.get(pod).await?;
    Ok(pod.spec.and_then(|spec| spec.node_name).filter(|node| !node.is_empty()))
}

/// Reads a list page by page and passes every object to `take`.
pub(super) async fn each_page<K: Resource + Clone>(
    parameters: ListParams,
    list: impl AsyncFn(&ListParams) -> kube::Result<ObjectList<K>>,
    mut take: impl FnMut(K),
) -> kube::Result<()> {
    let mut parameters = parameters.limit(PAGE);
    loop {
        let page = list(&parameters).await?;
        page.items.into_iter().for_each(&mut take);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => parameters = parameters.continue_token(&token),
            None => return Ok(()),
        }
    }
}
