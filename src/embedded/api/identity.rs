//! Who makes a request. Authentication and authorisation of requests are decided here and nowhere else.

use std::{
    collections::HashMap,
    sync::{PoisonError, RwLock},
};

use axum::http::{HeaderMap, header};
use uuid::Uuid;

use super::{request::Target, status::Status};

/// Credentials that the server knows.
#[derive(Debug, Default)]
pub(crate) struct Identities {
    /// What an administrator shows. None lets everyone in.
    admin_token: Option<String>,
    /// The tokens of pods' service accounts.
    pods: RwLock<HashMap<String, PodIdentity>>,
    /// Whether pods can use one, that is, whether they find the server by an address and trust its certificate.
    pub(crate) for_pods: bool,
}

/// Whom a pod's token stands for.
#[derive(Debug, Clone)]
pub(crate) struct PodIdentity {
    pub(crate) namespace: String,
    pub(crate) service_account: String,
    pub(crate) pod_uid: String,
}

impl Identities {
    pub(crate) fn new(admin_token: Option<String>, for_pods: bool) -> Self {
        Self { admin_token, pods: RwLock::default(), for_pods }
    }

    /// A new token for a pod.
    pub(crate) fn issue(&self, identity: PodIdentity) -> String {
        let token = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
        self.pods.write().unwrap_or_else(PoisonError::into_inner).insert(token.clone(), identity);
        token
    }

    /// Makes a pod's tokens worthless.
    pub(crate) fn revoke(&self, pod_uid: &str) {
        let mut pods = self.pods.write().unwrap_or_else(PoisonError::into_inner);
        pods.retain(|_, identity| identity.pod_uid != pod_uid);
    }

    /// Lets a request pass or refuses it. Every request for a stored kind comes through here, before anything is
    /// read or changed: this is the place for TokenReview's answers and role bindings.
    pub(crate) fn authorize(&self, target: &Target, headers: &HeaderMap) -> Result<(), Status> {
        let Some(admin_token) = &self.admin_token else { return Ok(()) };
        let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let shown = shown.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        let user = match pods.get(shown) {
            _ if shown == admin_token => "system:admin".to_owned(),
            Some(pod) => format!("system:serviceaccount:{}:{}", pod.namespace, pod.service_account),
            None => return Err(Status::new(401, "Unauthorized", "Unauthorized")),
        };
        tracing::trace!(user, verb = target.verb, resource = target.resource_path(), "request");
        Ok(())
    }
}
