//! Adding an ephemeral container to a pod.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use super::error::from_kube;
use crate::domain::{Error, Reason, Result, error::SpecEntry};

/// How long one request to the API server may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How often a conflict is met with another try. The API server itself retries a patch without a resourceVersion five times.
const TRIES: u32 = 3;

/// Adds `container` to the pod by strategic merge patch: the merge key is the name, so what is there already stays.
///
/// # Errors
/// The API server's refusal, typed. If its answer was lost, the error says that the entry may be there.
pub async fn add(client: Client, namespace: &str, pod: &str, uid: &str, container: &Value) -> Result<()> {
    let api = Api::<Pod>::namespaced(client, namespace);
    // Of the metadata the API server ignores all but the UID: with it, it refuses if another pod has taken the name meanwhile.
    let patch = json!({"metadata": {"uid": uid}, "spec": {"ephemeralContainers": [container]}});
    let (patch, params) = (Patch::Strategic(patch), PatchParams::apply("podsonde"));
    let params = PatchParams { field_manager: params.field_manager, ..PatchParams::default() };
    let mut tries = 0;
    loop {
        tries += 1;
        let call = api.patch_ephemeral_containers(pod, &params, &patch);
        let error = match tokio::time::timeout(TIMEOUT, call).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(kube::Error::Api(status))) if status.code == 409 && tries < TRIES => continue,
            Ok(Err(error)) => {
                let error_ = from_kube("add the debug container", &error);
                let answered = matches!(error, kube::Error::Api(_));
                error_.spec_entry(if answered { SpecEntry::None } else { SpecEntry::Possible })
            }
            Err(_) => {
                let message = format!("the API server did not answer within {} s", TIMEOUT.as_secs());
                Error::new(Reason::ApiUnreachable, message).spec_entry(SpecEntry::Possible)
            }
        };
        return Err(error.pod(namespace, pod));
    }
}
