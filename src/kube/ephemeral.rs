//! Adding an ephemeral container to a pod.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{
    error::{changed_nothing, from_kube, is_busy},
    retry::retried,
};
use crate::domain::{Error, Reason, Result, error::SpecEntry};

/// How long one request to the API server may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Adds `container` to the pod by strategic merge patch. The merge key is the name, so existing
/// containers stay. Gives up at `deadline`, or after 10 s without an answer.
///
/// # Errors
/// The API server's refusal, typed; START_DEADLINE. If the answer was lost, the error says that the
/// entry may exist.
pub async fn add(
    client: Client,
    namespace: &str,
    pod: &str,
    uid: &str,
    container: &Value,
    deadline: Instant,
) -> Result<()> {
    let api = Api::<Pod>::namespaced(client, namespace);
    // The API server ignores all metadata but the UID, by which it refuses to patch another pod
    // that has taken the name.
    let patch = json!({"metadata": {"uid": uid}, "spec": {"ephemeralContainers": [container]}});
    let patch = Patch::Strategic(patch);
    let params =
        PatchParams { field_manager: Some("podsonde".to_owned()), ..PatchParams::default() };
    // The API server retries a patch without a resourceVersion five times before it reports a
    // conflict.
    let again = |error: &kube::Error| {
        is_busy(error) || matches!(error, kube::Error::Api(s) if s.code == 409)
    };
    let call = retried(again, || api.patch_ephemeral_containers(pod, &params, &patch));
    let patience = Instant::now() + TIMEOUT;
    let error = match tokio::time::timeout_at(patience.min(deadline).into(), call).await {
        Ok(Ok(_)) => return Ok(()),
        Ok(Err(error)) => {
            let entry = if changed_nothing(&error) { SpecEntry::None } else { SpecEntry::Possible };
            from_kube("add the debug container", &error).spec_entry(entry)
        }
        Err(_) => {
            let (reason, when) = if deadline < patience {
                (Reason::StartDeadline, "in time".to_owned())
            } else {
                (Reason::ApiUnreachable, format!("within {} s", TIMEOUT.as_secs()))
            };
            Error::new(reason, format!("the API server did not answer {when}"))
                .spec_entry(SpecEntry::Possible)
        }
    };
    Err(error.pod(namespace, pod))
}
