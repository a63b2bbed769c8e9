//! The kinds that the server knows, and the discovery documents that list them.

use k8s_openapi::api::{
    authentication::v1::{SelfSubjectReview, TokenReview},
    authorization::v1::{SelfSubjectAccessReview, SubjectAccessReview},
    coordination::v1::Lease,
    core::v1::{ConfigMap, Event, Namespace, Node, Pod, ServiceAccount},
    rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

/// A kind, with what the server needs to serve it.
#[derive(Debug)]
pub(crate) struct Resource {
    /// The API group; empty for the core group.
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    pub(crate) plural: &'static str,
    pub(crate) singular: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) short: &'static [&'static str],
    pub(crate) namespaced: bool,
    /// Fields that a field selector may name in addition to `metadata.name` and
    /// `metadata.namespace`.
    pub(crate) fields: &'static [&'static str],
    /// The verbs of the kind's own path.
    pub(crate) verbs: &'static [&'static str],
    /// The name and the verbs of each subresource.
    pub(crate) subresources: &'static [(&'static str, &'static [&'static str])],
    /// Whether a PUT of an absent object creates it.
    pub(crate) create_on_update: bool,
    /// Parses an object by the kind's schema, which drops fields that the schema does not have, as
    /// the real server does.
    pub(crate) decode: fn(Value) -> Result<Value, serde_json::Error>,
}

const VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const CHANGE: &[&str] = &["get", "patch", "update"];

pub(crate) static PODS: Resource = Resource {
    group: "",
    version: "v1",
    plural: "pods",
    singular: "pod",
    kind: "Pod",
    short: &["po"],
    namespaced: true,
    fields: &[
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
    ],
    verbs: VERBS,
    subresources: &[
        ("ephemeralcontainers", CHANGE),
        ("portforward", &["create", "get"]),
        ("status", CHANGE),
    ],
    create_on_update: false,
    decode: decode::<Pod>,
};

pub(crate) static NODES: Resource = Resource {
    group: "",
    version: "v1",
    plural: "nodes",
    singular: "node",
    kind: "Node",
    short: &["no"],
    namespaced: false,
    fields: &["spec.unschedulable"],
    verbs: VERBS,
    subresources: &[("status", CHANGE)],
    create_on_update: false,
    decode: decode::<Node>,
};

pub(crate) static NAMESPACES: Resource = Resource {
    group: "",
    version: "v1",
    plural: "namespaces",
    singular: "namespace",
    kind: "Namespace",
    short: &["ns"],
    namespaced: false,
    fields: &["status.phase"],
    verbs: VERBS,
    subresources: &[("status", CHANGE)],
    create_on_update: false,
    decode: decode::<Namespace>,
};

pub(crate) static CONFIG_MAPS: Resource = Resource {
    group: "",
    version: "v1",
    plural: "configmaps",
    singular: "configmap",
    kind: "ConfigMap",
    short: &["cm"],
    namespaced: true,
    fields: &[],
    verbs: VERBS,
    subresources: &[],
    create_on_update: false,
    decode: decode::<ConfigMap>,
};

static EVENTS: Resource = Resource {
    group: "",
    version: "v1",
    plural: "events",
    singular: "event",
    kind: "Event",
    short: &["ev"],
    namespaced: true,
    fields: &[
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "type",
    ],
    verbs: VERBS,
    subresources: &[],
    create_on_update: true,
    decode: decode::<Event>,
};

static LEASES: Resource = Resource {
    group: "coordination.k8s.io",
    version: "v1",
    plural: "leases",
    singular: "lease",
    kind: "Lease",
    short: &[],
    namespaced: true,
    fields: &[],
    verbs: VERBS,
    subresources: &[],
    create_on_update: true,
    decode: decode::<Lease>,
};

pub(crate) static SERVICE_ACCOUNTS: Resource = Resource {
    short: &["sa"],
    subresources: &[("token", &["create"])],
    ..stored(
        "",
        "serviceaccounts",
        "serviceaccount",
        "ServiceAccount",
        true,
        decode::<ServiceAccount>,
    )
};

pub(crate) static ROLES: Resource = stored(RBAC, "roles", "role", "Role", true, decode::<Role>);

pub(crate) static ROLE_BINDINGS: Resource =
    stored(RBAC, "rolebindings", "rolebinding", "RoleBinding", true, decode::<RoleBinding>);

pub(crate) static CLUSTER_ROLES: Resource =
    stored(RBAC, "clusterroles", "clusterrole", "ClusterRole", false, decode::<ClusterRole>);

pub(crate) static CLUSTER_ROLE_BINDINGS: Resource = stored(
    RBAC,
    "clusterrolebindings",
    "clusterrolebinding",
    "ClusterRoleBinding",
    false,
    decode::<ClusterRoleBinding>,
);

static TOKEN_REVIEWS: Resource =
    review(AUTHENTICATION, "tokenreviews", "tokenreview", "TokenReview", decode::<TokenReview>);

static SELF_REVIEWS: Resource = review(
    AUTHENTICATION,
    "selfsubjectreviews",
    "selfsubjectreview",
    "SelfSubjectReview",
    decode::<SelfSubjectReview>,
);

static ACCESS_REVIEWS: Resource = review(
    AUTHORIZATION,
    "subjectaccessreviews",
    "subjectaccessreview",
    "SubjectAccessReview",
    decode::<SubjectAccessReview>,
);

static SELF_ACCESS_REVIEWS: Resource = review(
    AUTHORIZATION,
    "selfsubjectaccessreviews",
    "selfsubjectaccessreview",
    "SelfSubjectAccessReview",
    decode::<SelfSubjectAccessReview>,
);

const RBAC: &str = "rbac.authorization.k8s.io";
const AUTHENTICATION: &str = "authentication.k8s.io";
const AUTHORIZATION: &str = "authorization.k8s.io";

type Decode = fn(Value) -> Result<Value, serde_json::Error>;

/// A stored kind with the usual verbs and no subresources.
const fn stored(
    group: &'static str,
    plural: &'static str,
    singular: &'static str,
    kind: &'static str,
    namespaced: bool,
    decode: Decode,
) -> Resource {
    Resource {
        group,
        version: "v1",
        plural,
        singular,
        kind,
        short: &[],
        namespaced,
        fields: &[],
        verbs: VERBS,
        subresources: &[],
        create_on_update: false,
        decode,
    }
}

/// A review: its create is answered at once, and nothing is stored.
const fn review(
    group: &'static str,
    plural: &'static str,
    singular: &'static str,
    kind: &'static str,
    decode: Decode,
) -> Resource {
    Resource { verbs: &["create"], ..stored(group, plural, singular, kind, false, decode) }
}

/// Every kind, in the order of the groups, as discovery wants it.
static ALL: [&Resource; 15] = [
    &PODS,
    &NODES,
    &NAMESPACES,
    &CONFIG_MAPS,
    &EVENTS,
    &SERVICE_ACCOUNTS,
    &TOKEN_REVIEWS,
    &SELF_REVIEWS,
    &ACCESS_REVIEWS,
    &SELF_ACCESS_REVIEWS,
    &LEASES,
    &ROLES,
    &ROLE_BINDINGS,
    &CLUSTER_ROLES,
    &CLUSTER_ROLE_BINDINGS,
];

fn decode<T: DeserializeOwned + Serialize>(object: Value) -> Result<Value, serde_json::Error> {
    serde_json::to_value(serde_json::from_value::<T>(object)?)
}

impl Resource {
    pub(crate) fn find(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
        ALL.into_iter().find(|r| r.group == group && r.version == version && r.plural == plural)
    }

    /// The kind as messages name it: `pods`, `leases.coordination.k8s.io`.
    pub(crate) fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.plural.to_owned()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// The prefix of the kind's paths: `api/v1`, `apis/coordination.k8s.io/v1`.
    fn root(&self) -> String {
        let prefix = if self.group.is_empty() { "api" } else { "apis" };
        format!("{prefix}/{}", self.api_version())
    }

    pub(crate) fn is(&self, other: &Resource) -> bool {
        self.group == other.group && self.plural == other.plural
    }

    pub(crate) fn has_subresource(&self, name: &str) -> bool {
        self.subresources.iter().any(|(known, _)| *known == name)
    }
}

/// The document at a path outside the resources: versions, discovery, health.
pub(crate) fn document(path: &str) -> Option<Value> {
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    Some(match segments.as_slice() {
        ["version"] => json!({
            "major": "1", "minor": "36", "gitVersion": "v1.36.0+podsonde", "gitCommit": "", "gitTreeState": "clean",
            "buildDate": "1970-01-01T00:00:00Z", "goVersion": "none", "compiler": "rustc",
            "platform": "linux/amd64",
        }),
        ["api"] => {
            json!({ "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [] })
        }
        ["apis"] => {
            let groups: Vec<Value> = groups().into_iter().map(api_group).collect();
            json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
        }
        ["api", "v1"] => resource_list("", "v1")?,
        ["apis", group] if groups().contains(group) => {
            let mut document = api_group(group);
            let document_fields = document.as_object_mut()?;
            document_fields.insert("kind".into(), "APIGroup".into());
            document_fields.insert("apiVersion".into(), "v1".into());
            document
        }
        ["apis", group, version] => resource_list(group, version)?,
        ["openapi", "v3"] => {
            let paths: Map<String, Value> = ALL
                .iter()
                .map(|r| {
                    (r.root(), json!({ "serverRelativeURL": format!("/openapi/v3/{}", r.root()) }))
                })
                .collect();
            json!({ "paths": paths })
        }
        ["openapi", "v3", root @ ..] => openapi(&root.join("/"))?,
        _ => return None,
    })
}

/// The least schema that makes kubectl leave the validation of fields to the server.
fn openapi(root: &str) -> Option<Value> {
    let resources: Vec<&Resource> = ALL.into_iter().filter(|r| r.root() == root).collect();
    if resources.is_empty() {
        return None;
    }
    let mut paths = Map::new();
    for r in resources {
        let namespace = if r.namespaced { "namespaces/{namespace}/" } else { "" };
        let patch = json!({
            "operationId": format!("patch{}", r.kind),
            "parameters": [{ "name": "fieldValidation", "in": "query", "schema": { "type": "string" } }],
            "responses": {},
            "x-kubernetes-group-version-kind": { "group": r.group, "version": r.version, "kind": r.kind },
        });
        paths
            .insert(format!("/{root}/{namespace}{}/{{name}}", r.plural), json!({ "patch": patch }));
    }
    let title = json!({ "title": "podsonde embedded cluster", "version": "v1.36.0" });
    Some(json!({ "openapi": "3.0.0", "info": title, "paths": paths }))
}

fn groups() -> Vec<&'static str> {
    let mut groups: Vec<&str> = ALL.iter().map(|r| r.group).filter(|g| !g.is_empty()).collect();
    groups.dedup();
    groups
}

fn api_group(group: &str) -> Value {
    let version = json!({ "groupVersion": format!("{group}/v1"), "version": "v1" });
    json!({ "name": group, "versions": [version], "preferredVersion": version })
}

fn resource_list(group: &str, version: &str) -> Option<Value> {
    let mut resources = Vec::new();
    for r in ALL.iter().filter(|r| r.group == group && r.version == version) {
        resources.push(json!({
            "name": r.plural, "singularName": r.singular, "namespaced": r.namespaced, "kind": r.kind,
            "verbs": r.verbs, "shortNames": r.short,
        }));
        for (name, verbs) in r.subresources {
            let kind = match *name {
                "portforward" => "PodPortForwardOptions",
                "token" => "TokenRequest",
                _ => r.kind,
            };
            resources.push(json!({
                "name": format!("{}/{name}", r.plural), "singularName": "", "namespaced": r.namespaced, "kind": kind,
                "verbs": verbs,
            }));
        }
    }
    let first = ALL.iter().find(|r| r.group == group && r.version == version)?;
    Some(json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": first.api_version(), "resources": resources,
    }))
}
