//! From an image reference to an image on the node, by the kubelet's rules and with its errors.

use tonic::{Code, Status, transport::Channel};

use super::api::{self, image_service_client::ImageServiceClient};
use crate::embedded::{
    reference,
    runtime::{ContainerStart, StartError},
};

/// An image on the node.
#[derive(Debug, Clone, Default)]
pub(super) struct Resolved {
    /// The runtime's id for it.
    pub(super) id: String,
    /// The user it asks for, by number. An image that asks for none has 0 here.
    pub(super) uid: Option<i64>,
    /// The user it asks for, by name; empty if by number.
    pub(super) username: String,
}

/// Finds the container's image on the node, pulling it as its pull policy says.
pub(super) async fn ensure(
    images: &ImageServiceClient<Channel>,
    start: &ContainerStart,
    sandbox: &api::PodSandboxConfig,
) -> Result<Resolved, StartError> {
    let name = &start.image;
    let tagged = reference::with_default_tag(name).map_err(|error| StartError {
        reason: "InvalidImageName",
        message: format!(
            "Failed to apply default image tag {name:?}: couldn't parse image name {name:?}: {error}"
        ),
    })?;
    let inspect_error = |status: Status| StartError {
        reason: "ImageInspectError",
        message: format!("Failed to inspect image {name:?}: {}", rpc_error(&status)),
    };
    let present = status(images, &tagged).await.map_err(inspect_error)?;
    match (present, start.pull_policy.as_str()) {
        (Some(image), "Never" | "IfNotPresent") => return Ok(image),
        (None, "Never") => {
            return Err(StartError {
                reason: "ErrImageNeverPull",
                message: format!(
                    "Container image {name:?} is not present with pull policy of Never"
                ),
            });
        }
        _ => {}
    }
    let request = api::PullImageRequest {
        image: Some(api::ImageSpec { image: tagged }),
        sandbox_config: Some(sandbox.clone()),
    };
    let pulled =
        images.clone().pull_image(request).await.map_err(|status| pull_error(name, &status))?;
    status(images, &pulled.into_inner().image_ref).await.map_err(inspect_error)?.ok_or_else(|| {
        StartError {
            reason: "ImageInspectError",
            message: format!("Failed to inspect image {name:?}: it is gone after its pull"),
        }
    })
}

async fn status(
    images: &ImageServiceClient<Channel>,
    image: &str,
) -> Result<Option<Resolved>, Status> {
    let request =
        api::ImageStatusRequest { image: Some(api::ImageSpec { image: image.to_owned() }) };
    let found = images.clone().image_status(request).await?.into_inner().image;
    Ok(found.map(|image| {
        // The kubelet takes an image that asks for no user for one that runs as root.
        let unnamed = image.username.is_empty().then_some(0);
        Resolved {
            id: image.id,
            uid: image.uid.map(|uid| uid.value).or(unnamed),
            username: image.username,
        }
    }))
}

/// A failed pull. Runtimes mark two cases at the start of their message.
fn pull_error(name: &str, status: &Status) -> StartError {
    let marked = ["RegistryUnavailable", "SignatureValidationFailed"]
        .into_iter()
        .find(|mark| status.message().starts_with(mark));
    match marked {
        Some(reason @ "RegistryUnavailable") => StartError {
            reason,
            message: format!(
                "image pull failed for {name} because the registry is unavailable: {}",
                status.message()
            ),
        },
        Some(reason) => StartError {
            reason,
            message: format!(
                "image pull failed for {name} because the signature validation failed: {}",
                status.message()
            ),
        },
        None => StartError {
            reason: "ErrImagePull",
            message: format!("failed to pull image {name:?}: {}", rpc_error(status)),
        },
    }
}

/// A status as gRPC's Go library, and with it the kubelet, writes it.
fn rpc_error(status: &Status) -> String {
    let code = match status.code() {
        Code::Ok => "OK".to_owned(),
        Code::Cancelled => "Canceled".to_owned(),
        code => format!("{code:?}"),
    };
    format!("rpc error: code = {code} desc = {}", status.message())
}
