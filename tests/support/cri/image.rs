//! Finds or pulls an image, by the kubelet's rules and with its error messages.

use tonic::{Code, Status, transport::Channel};

use super::api::{self, image_service_client::ImageServiceClient};
use podsonde::embedded::{
    reference,
    runtime::{ContainerStart, StartError},
};

/// An image on the node.
#[derive(Debug, Clone, Default)]
pub struct Resolved {
    /// The runtime's id for it, a digest.
    pub id: String,
    /// The image's user as a number; 0 if the image names no user.
    pub uid: Option<i64>,
    /// The image's user as a name; empty if it is a number.
    pub username: String,
}

/// Finds the container's image on the node, and pulls it if its pull policy says so.
pub async fn ensure(
    images: &ImageServiceClient<Channel>,
    start: &ContainerStart,
    sandbox: &api::PodSandboxConfig,
) -> Result<Resolved, StartError> {
    let name = &start.image;
    let tagged = reference::with_default_tag(name).map_err(|error| StartError {
        reason: "InvalidImageName",
        message: format!(
            "Failed to apply default image tag {name:?}: \
             couldn't parse image name {name:?}: {error}"
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
        // The kubelet takes an image without a user for one that runs as root.
        let unnamed = image.username.is_empty().then_some(0);
        Resolved {
            id: image.id,
            uid: image.uid.map(|uid| uid.value).or(unnamed),
            username: image.username,
        }
    }))
}

/// The error of a failed pull. A runtime names two of the reasons at the start of its message.
fn pull_error(name: &str, status: &Status) -> StartError {
    let said = status.message();
    if said.starts_with("RegistryUnavailable") {
        return StartError {
            reason: "RegistryUnavailable",
            message: format!(
                "image pull failed for {name} because the registry is unavailable: {said}"
            ),
        };
    }
    if said.starts_with("SignatureValidationFailed") {
        return StartError {
            reason: "SignatureValidationFailed",
            message: format!(
                "image pull failed for {name} because the signature validation failed: {said}"
            ),
        };
    }
    StartError {
        reason: "ErrImagePull",
        message: format!("failed to pull image {name:?}: {}", rpc_error(status)),
    }
}

/// A status in the form of gRPC's Go library, which the kubelet passes on.
fn rpc_error(status: &Status) -> String {
    let code = match status.code() {
        Code::Ok => "OK".to_owned(),
        Code::Cancelled => "Canceled".to_owned(),
        code => format!("{code:?}"),
    };
    format!("rpc error: code = {code} desc = {}", status.message())
}
