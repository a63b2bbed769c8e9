//! When a container ended, and with which exit code.
//!
//! containerd 1.6 has no event stream in its CRI, and polling would keep an idle node awake. The
//! runtime does tell the pid of the container's first process, and this process runs on the same
//! node: a pidfd becomes readable at the moment that process ends. Only then is the runtime asked,
//! until it has noticed too.

use std::{io, os::fd::OwnedFd, thread, time::Duration};

use futures::future::BoxFuture;
use k8s_openapi::jiff::Timestamp;
use podsonde::embedded::runtime::Exit;
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open},
};
use tokio::sync::oneshot;
use tonic::{Code, Status, transport::Channel};

use super::{Details, api, api::runtime_service_client::RuntimeServiceClient};

/// The pause after the first question; it doubles with every further one.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
/// The pause stops growing here.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// The exit code that a kubelet reports for a container that was removed before it looked.
const UNKNOWN_EXIT_CODE: i32 = 137;

/// A container under watch.
pub(super) struct Watched {
    /// The image, by digest.
    pub(super) image_id: String,
    /// Resolves when the container has ended.
    pub(super) exit: BoxFuture<'static, Exit>,
}

/// Starts to watch a container that was started.
pub(super) async fn watch(
    mut runtime: RuntimeServiceClient<Channel>,
    container_id: String,
) -> Result<Watched, Status> {
    let (status, details) = container_status(&mut runtime, &container_id, true).await?;
    let open = |pid| pidfd_open(pid, PidfdFlags::empty());
    let mut process = match details.pid.and_then(Pid::from_raw).map(open) {
        Some(Ok(process)) => Some(process),
        // The process has ended.
        Some(Err(Errno::SRCH)) => None,
        Some(Err(error)) => {
            tracing::warn!(container_id, %error, "no pidfd: polling for the container's end");
            None
        }
        None => None,
    };
    // A container that still runs now had this pid when the pidfd was opened. One that does not may
    // have left its pid to another process.
    let (now, _) = container_status(&mut runtime, &container_id, false).await?;
    if now.state() != api::ContainerState::ContainerRunning {
        process = None;
    }
    let exit = Box::pin(ended(runtime, container_id, process));
    Ok(Watched { image_id: status.image_ref, exit })
}

/// Waits until the process has ended, in a thread of its own. A blocking task of the tokio runtime
/// would hold up the end of a test that leaves its container running.
async fn wait_for(process: OwnedFd) -> io::Result<()> {
    let (sender, ended) = oneshot::channel();
    thread::Builder::new().name("container-exit".to_owned()).spawn(move || {
        let polled = poll(&mut [PollFd::new(&process, PollFlags::IN)], None);
        // A receiver that is gone no longer waits.
        let _ = sender.send(polled.map(drop).map_err(io::Error::from));
    })?;
    ended.await.map_err(|_| io::Error::other("the waiting thread panicked"))?
}

async fn ended(
    mut runtime: RuntimeServiceClient<Channel>,
    container_id: String,
    process: Option<OwnedFd>,
) -> Exit {
    if let Some(process) = process
        && let Err(error) = wait_for(process).await
    {
        tracing::warn!(container_id, %error, "cannot wait for a pidfd");
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
            Err(status) if status.code() == Code::NotFound => {
                return Exit { code: UNKNOWN_EXIT_CODE, finished_at: Timestamp::now() };
            }
            Err(status) => tracing::warn!(container_id, %status, "no container status"),
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
