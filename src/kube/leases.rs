//! The agent's Lease: where it listens, and the certificate by which clients know it.
//!
//! Whoever may read the Lease has an authentic pin from the API server, without any PKI. The Lease
//! is named after the node, so that admission can hold an agent to the Lease of its own node.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        coordination::v1::{Lease, LeaseSpec},
        core::v1::ConfigMap,
    },
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, ObjectMeta, PostParams},
};

/// Annotation with the address that the agent serves TLS on, `ADDRESS:PORT`. Absent if it is not
/// known from outside.
pub const ADDRESS: &str = "podsonde.dev/address";
/// Annotation with the agent's version.
pub const VERSION: &str = "podsonde.dev/version";
/// Annotation with the certificate that the agent serves, PEM.
pub const CERTIFICATE: &str = "podsonde.dev/certificate";

/// How often a write is tried when somebody else writes the Lease at the same time.
const ATTEMPTS: usize = 4;

/// What an agent publishes about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The address that it serves TLS on, `ADDRESS:PORT`, if it is known.
    pub address: Option<String>,
    /// The agent's version, `0.1.0`.
    pub version: String,
    /// The certificate that it serves, PEM.
    pub certificate: String,
}

/// Name of the Lease of the agent on `node`.
#[must_use]
pub fn name(node: &str) -> String {
    format!("podsonde-agent-{node}")
}

/// The name that the certificate of the agent on `node` is made out to.
#[must_use]
pub fn server_name(node: &str) -> String {
    format!("{node}.agent.podsonde.dev")
}

/// Creates or renews the Lease of `node` for `seconds`. `holder` names this run of the agent.
///
/// # Errors
/// Those of getting, creating and updating Leases in `namespace`.
pub async fn publish(
    client: &Client,
    namespace: &str,
    node: &str,
    holder: &str,
    seconds: i32,
    published: &Published,
) -> kube::Result<()> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let name = name(node);
    let write = async || {
        let found = leases.get_opt(&name).await?;
        let exists = found.is_some();
        let lease = renewed(found.unwrap_or_default(), &name, holder, seconds, published);
        match exists {
            true => leases.replace(&name, &PostParams::default(), &lease).await,
            false => leases.create(&PostParams::default(), &lease).await,
        }
    };
    for _ in 1..ATTEMPTS {
        match write().await {
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            written => return written.map(drop),
        }
    }
    write().await.map(drop)
}

fn renewed(
    mut lease: Lease,
    name: &str,
    holder: &str,
    seconds: i32,
    published: &Published,
) -> Lease {
    // The rest of the metadata stays, above all the version that the update is based on.
    let ObjectMeta { name: own_name, labels, annotations, .. } = &mut lease.metadata;
    *own_name = Some(name.to_owned());
    labels
        .get_or_insert_with(BTreeMap::new)
        .insert("app.kubernetes.io/name".to_owned(), "podsonde-agent".to_owned());
    let annotations = annotations.get_or_insert_with(BTreeMap::new);
    match &published.address {
        Some(address) => annotations.insert(ADDRESS.to_owned(), address.clone()),
        None => annotations.remove(ADDRESS),
    };
    annotations.insert(VERSION.to_owned(), published.version.clone());
    annotations.insert(CERTIFICATE.to_owned(), published.certificate.clone());

    let now = Some(MicroTime(Timestamp::now()));
    let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
    if spec.holder_identity.as_deref() != Some(holder) {
        spec.acquire_time = now.clone();
        spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0).saturating_add(1));
    }
    spec.holder_identity = Some(holder.to_owned());
    spec.lease_duration_seconds = Some(seconds);
    spec.renew_time = now;
    lease
}

/// Marks the Lease of `node` as nobody's, if it is still this `holder`'s.
///
/// # Errors
/// Those of getting and updating Leases in `namespace`.
pub async fn release(
    client: &Client,
    namespace: &str,
    node: &str,
    holder: &str,
) -> kube::Result<()> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let name = name(node);
    let Some(mut lease) = leases.get_opt(&name).await? else { return Ok(()) };
    match &mut lease.spec {
        Some(spec) if spec.holder_identity.as_deref() == Some(holder) => {
            spec.holder_identity = Some(String::new());
        }
        _ => return Ok(()),
    }
    match leases.replace(&name, &PostParams::default(), &lease).await {
        // The agent's successor was faster.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        written => written.map(drop),
    }
}

/// What the agent on `node` publishes about itself. `None` if it has published nothing.
///
/// # Errors
/// Those of getting a Lease in `namespace`.
pub async fn of_node(
    client: &Client,
    namespace: &str,
    node: &str,
) -> kube::Result<Option<Published>> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    Ok(leases.get_opt(&name(node)).await?.and_then(read))
}

/// What the agent that serves on `address` (`ADDRESS:PORT`) publishes about itself, and its node.
/// `None` if no agent claims the address, or several do: admission holds a Lease to its node, but
/// not the address in it.
///
/// # Errors
/// Those of listing Leases in `namespace`.
pub async fn of_address(
    client: &Client,
    namespace: &str,
    address: &str,
) -> kube::Result<Option<(String, Published)>> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let found =
        leases.list(&ListParams::default().labels("app.kubernetes.io/name=podsonde-agent")).await?;
    let mut said = found.into_iter().filter_map(|lease| {
        // An agent that has ended has released its Lease.
        let held = lease
            .spec
            .as_ref()?
            .holder_identity
            .as_deref()
            .is_some_and(|holder| !holder.is_empty());
        let node = lease.name_any().strip_prefix("podsonde-agent-")?.to_owned();
        let published =
            read(lease).filter(|published| published.address.as_deref() == Some(address))?;
        held.then_some((node, published))
    });
    let first = said.next();
    Ok(first.filter(|_| said.next().is_none()))
}

fn read(lease: Lease) -> Option<Published> {
    let mut annotations = lease.metadata.annotations.unwrap_or_default();
    let certificate = annotations.remove(CERTIFICATE)?;
    let version = annotations.remove(VERSION).unwrap_or_default();
    Some(Published { address: annotations.remove(ADDRESS), version, certificate })
}

/// The authorities that sign the cluster's client certificates, PEM, as every API server publishes
/// them for those who authenticate on its behalf. `None`: it publishes none.
///
/// # Errors
/// Those of getting that ConfigMap in `kube-system`.
pub async fn client_authorities(client: &Client) -> kube::Result<Option<String>> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-system");
    let map = maps.get_opt("extension-apiserver-authentication").await?;
    Ok(map.and_then(|map| map.data).and_then(|mut data| data.remove("client-ca-file")))
}
