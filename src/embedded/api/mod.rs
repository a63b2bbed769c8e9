//! The embedded API server: the slice of the Kubernetes API that podsonde uses, over HTTP/1.1.
//!
//! Objects are JSON in one [`store`], their kinds a table in [`resources`], and the rules of each
//! kind are in [`strategy`] and [`validation`]. The kubelet reads and writes the same store. The
//! only thing that the server uses of the rest is the runtime, to which port-forwards lead.

mod faults;
mod handlers;
mod identity;
mod listener;
pub(crate) mod object;
mod patch;
mod portforward;
mod rbac;
mod request;
pub(crate) mod resources;
mod reviews;
mod selector;
pub(crate) mod status;
pub(crate) mod store;
mod strategy;
mod tls;
mod validation;
pub(crate) mod watch;

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
};

use serde_json::Value;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(crate) use self::{
    faults::FaultState,
    identity::{Identities, TokenIdentity, expiry, service_account},
    listener::Listener,
    strategy::random_suffix,
    tls::Authority,
};
use self::{resources::Resource, status::ApiStatus, store::Store};
use super::runtime::{Runtime, Sandbox};

/// Where the port-forwards of a pod lead.
#[derive(Clone)]
pub(crate) enum Forward {
    /// Into the pod's network namespace.
    Sandbox(Arc<dyn Runtime>, Sandbox),
    /// To this address, whatever port is asked for.
    Address(Address),
}

/// Where a program outside any pod listens.
#[derive(Debug, Clone)]
pub enum Address {
    /// A TCP address.
    Tcp(SocketAddr),
    /// The path of a unix socket.
    Unix(PathBuf),
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl From<PathBuf> for Address {
    fn from(path: PathBuf) -> Self {
        Self::Unix(path)
    }
}

/// Tasks that end together, when the token is cancelled. Dropping the cluster cancels it.
#[derive(Debug, Clone)]
pub(crate) struct Tasks {
    pub(crate) token: CancellationToken,
    tracker: TaskTracker,
}

impl Tasks {
    pub(crate) fn new() -> Self {
        Self { token: CancellationToken::new(), tracker: TaskTracker::new() }
    }

    /// A group that also ends when this one does.
    pub(crate) fn child(&self) -> Self {
        Self { token: self.token.child_token(), tracker: TaskTracker::new() }
    }

    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let token = self.token.clone();
        self.tracker.spawn(async move {
            token.run_until_cancelled(task).await;
        });
    }

    /// Cancels the tasks and waits until each has ended.
    pub(crate) async fn end(&self) {
        self.token.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

/// The server, without its listeners.
pub(crate) struct Server {
    pub(crate) store: Arc<Store>,
    pub(crate) faults: Arc<FaultState>,
    pub(crate) identities: Identities,
    /// The key is the pod's UID.
    forwards: RwLock<HashMap<String, Forward>>,
    tasks: Tasks,
}

impl Server {
    pub(crate) fn new(store: Arc<Store>, identities: Identities, tasks: Tasks) -> Self {
        let faults = Arc::new(FaultState::new());
        Self { store, faults, identities, forwards: RwLock::default(), tasks }
    }

    /// Enables port-forwards to a pod.
    pub(crate) fn set_forward(&self, pod_uid: &str, forward: Forward) {
        let mut forwards = self.forwards.write().unwrap_or_else(PoisonError::into_inner);
        forwards.insert(pod_uid.to_owned(), forward);
    }

    pub(crate) fn remove_forward(&self, pod_uid: &str) {
        self.forwards.write().unwrap_or_else(PoisonError::into_inner).remove(pod_uid);
    }

    pub(crate) fn forward(&self, pod_uid: &str) -> Option<Forward> {
        self.forwards.read().unwrap_or_else(PoisonError::into_inner).get(pod_uid).cloned()
    }

    /// Creates an object under the rules that a request is under, without authorisation.
    pub(crate) fn create(
        &self,
        resource: &'static Resource,
        namespace: &str,
        object: Value,
    ) -> Result<Arc<Value>, ApiStatus> {
        self.create_object(resource, namespace, object, &request::RequestOptions::default())
    }

    /// Deletes a pod as a request would. `grace` is the grace period in seconds; 0 removes it at
    /// once.
    pub(crate) fn delete_pod(
        &self,
        namespace: &str,
        name: &str,
        grace: i64,
    ) -> Result<(), ApiStatus> {
        let delete = |pod: &Value| Ok(strategy::delete(&resources::PODS, pod, Some(grace)));
        self.store.update(&resources::PODS, namespace, name, delete).map(drop)
    }
}
