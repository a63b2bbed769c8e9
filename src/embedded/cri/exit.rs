//! When and how a container ended.
//!
//! The CRI's event stream is younger than containerd 1.6, and asking again and again would wake an idle node. The
//! runtime does tell the pid of the container's first process, and we are on its node: a pidfd becomes readable at
//! the moment that process ends. Only then is the runtime asked, until it has noticed too.

use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::jiff::Timestamp;
use tonic::{Code, Status, transport::Channel};

use super::{Details, api, api::runtime_service_client::RuntimeServiceClient};
use crate::{embedded::runtime::Exit, sys::process::Pidfd};

/// Pauses between questions, from the first to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// A container under watch.
pub(super) struct Watched {
    /// The image, by digest.
    pub(super) image_id: String,
    /// Resolves when it ended.
    pub(super) exit: BoxFuture<'static, Exit>,
}

/// Starts to watch a container that was started.
pub(super) async fn watch(
    mut runtime: RuntimeServiceClient<Channel>,
    container_id: String,
) -> Result<Watched, Status> {
    let (status, details) = container_status(&mut runtime, &container_id, true).await?;
    let pidfd = match details.pid.and_then(|pid| u32::try_from(pid).ok()).map(Pidfd::open) {
        Some(Ok(pidfd)) => Some(pidfd),
        // It ended already, or the runtime does not tell its pid: ask the runtime.
        Some(Err(error)) if error.is_gone() => None,
        Some(Err(error)) => {
            tracing::warn!(container_id, %error, "no pidfd; asking the runtime for the container's end");
            None
        }
        None => None,
    };
    // The pid was the container's when the pidfd was opened if the container still runs now.
    let (now, _) = container_status(&mut runtime, &container_id, false).await?;
    let pidfd = pidfd.filter(|_| now.state() == api::ContainerState::ContainerRunning);
    Ok(Watched { image_id: status.image_ref, exit: Box::pin(ended(runtime, container_id, pidfd)) })
}

async fn ended(
    mut runtime: RuntimeServiceClient<Channel>,
    container_id: String,
    pidfd: Option<Pidfd>,
) -> Exit {
    if let Some(pidfd) = pidfd
        && let Err(error) = pidfd.ended().await
    {
        tracing::warn!(container_id, %error, "pidfd");
    }
    let mut pause = FIRST_PAUSE;
    loop {
        match container_status(&mut runtime, &container_id, false).await {
            Ok((status, _)) if status.state() == api::ContainerState::ContainerExited => {
                let finished_at = Timestamp::from_nanosecond(status.finished_at.into());
                return Exit {
                    code: status.exit_code,
                    finished_at: finished_at.unwrap_or_else(|_| Timestamp::now()),
                };
            }
            Ok(_) => {}
            // Removed before it was looked at; 137 is what a kubelet reports then.
            Err(status) if status.code() == Code::NotFound => {
                return Exit { code: 137, finished_at: Timestamp::now() };
            }
            Err(status) => tracing::warn!(container_id, %status, "container status"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn container_status(
    runtime: &mut RuntimeServiceClient<Channel>,
    container_id: &str,
    verbose: bool,
) -> Result<(api::ContainerStatus, Details), Status> {
    let request = api::ContainerStatusRequest { container_id: container_id.to_owned(), verbose };
    let answer = runtime.container_status(request).await?.into_inner();
    let status =
        answer.status.ok_or_else(|| Status::internal("the runtime's answer has no status"))?;
    Ok((status, Details::of(&answer.info)))
}
