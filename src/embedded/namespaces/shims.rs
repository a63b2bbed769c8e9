//! The runtime's side of the shims of one pod.

use std::{
    collections::HashMap,
    io,
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    path::Path,
    pin::pin,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use k8s_openapi::jiff::Timestamp;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::unix::pipe,
    sync::oneshot,
};

use super::{
    create_error, lock,
    plan::{Failure, Plan, ProcessRef, ShimEvent, body_length, encode},
};
use crate::embedded::runtime::{Exit, StartError};

/// The time a shim has to kill its container and clean up, before it is killed itself.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// The order in which containers end when their pod is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// An ordinary container ends before the sandbox.
    BeforeSandbox,
    /// The pause container ends with the sandbox.
    WithSandbox,
}

/// The shims of one pod.
#[derive(Default)]
pub(super) struct PodShims(Mutex<State>);

#[derive(Default)]
struct State {
    /// Set once the pod is being removed: nothing starts any more.
    closed: bool,
    /// The key is a container's or sandbox's id.
    shims: HashMap<String, Shim>,
}

struct Shim {
    fate: Fate,
    /// The container's first process; none once it has ended.
    process: Option<ProcessRef>,
    /// Dropping it ends the container.
    _keep: oneshot::Sender<()>,
    /// Closes when the shim has ended.
    ended: oneshot::Receiver<()>,
}

impl PodShims {
    /// Starts a container. Resolves once its program was executed, to a future that resolves when
    /// it has ended. If this future is dropped, the container still starts, and ends with the pod.
    pub(super) async fn start(
        self: &Arc<Self>,
        executable: &Path,
        id: &str,
        fate: Fate,
        plan: &Plan,
    ) -> Result<(ProcessRef, impl Future<Output = Exit> + Send + use<>), StartError> {
        let failed = |error: io::Error| create_error(&format!("start the shim: {error}"));
        let frame = encode(plan).map_err(failed)?;
        let (started, start) = oneshot::channel();
        let (exited, exit) = oneshot::channel();
        {
            let mut state = lock(&self.0);
            if state.closed {
                return Err(create_error("the pod is being removed"));
            }
            let (child, control, events) = spawn(executable).map_err(failed)?;
            let (keep, kept) = oneshot::channel();
            let (ending, ended) = oneshot::channel();
            state.shims.insert(id.to_owned(), Shim { fate, process: None, _keep: keep, ended });
            let watched = Watched { pod: Arc::downgrade(self), id: id.to_owned(), started, exited };
            tokio::spawn(watch(watched, child, control, events, frame, kept, ending));
        }
        let process =
            start.await.unwrap_or_else(|_| Err(create_error("the shim ended unexpectedly")))?;
        let exit = async move {
            // A killed shim reports nothing, but its container died with it.
            exit.await.unwrap_or_else(|_| Exit { code: 137, finished_at: Timestamp::now() })
        };
        Ok((process, exit))
    }

    /// The first process of a running container.
    pub(super) fn process(&self, id: &str) -> Option<ProcessRef> {
        lock(&self.0).shims.get(id).and_then(|shim| shim.process)
    }

    /// Ends all containers and then the sandbox, and waits for their ends. They also end if this
    /// future is dropped.
    pub(super) async fn end(&self) {
        let shims = {
            let mut state = lock(&self.0);
            state.closed = true;
            std::mem::take(&mut state.shims)
        };
        let (containers, sandboxes): (Vec<_>, Vec<_>) =
            shims.into_values().partition(|shim| shim.fate == Fate::BeforeSandbox);
        for shims in [containers, sandboxes] {
            // Every shim is told before the first is waited for.
            let ending: Vec<_> = shims.into_iter().map(|Shim { ended, .. }| ended).collect();
            for ended in ending {
                let _ = ended.await;
            }
        }
    }
}

fn spawn(executable: &Path) -> io::Result<(Child, pipe::Sender, pipe::Receiver)> {
    let mut child = Command::new(executable)
        .args([super::HIDDEN, "shim"])
        .env_clear()
        .current_dir("/")
        // In a process group of its own, a shim does not get the terminal's Ctrl-C: the runtime
        // ends its containers in order.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let piped = || io::Error::other("no pipe to the shim");
    let control =
        pipe::Sender::from_owned_fd(OwnedFd::from(child.stdin.take().ok_or_else(piped)?))?;
    let events =
        pipe::Receiver::from_owned_fd(OwnedFd::from(child.stdout.take().ok_or_else(piped)?))?;
    Ok((child, control, events))
}

/// The receivers of a shim's events.
struct Watched {
    pod: Weak<PodShims>,
    id: String,
    started: oneshot::Sender<Result<ProcessRef, StartError>>,
    exited: oneshot::Sender<Exit>,
}

/// Follows one shim until it ends.
async fn watch(
    watched: Watched,
    mut child: Child,
    mut control: pipe::Sender,
    events: pipe::Receiver,
    frame: Vec<u8>,
    mut kept: oneshot::Receiver<()>,
    _ending: oneshot::Sender<()>,
) {
    let (pod, id) = (Weak::clone(&watched.pod), watched.id.clone());
    tokio::select! {
        // An error means that the shim has ended, and then the events end, too.
        _ = control.write_all(&frame) => {}
        _ = &mut kept => {}
    }
    let mut control = Some(control);
    let mut events = pin!(follow(watched, events));
    let mut deadline = pin!(futures::future::Either::Left(std::future::pending()));
    loop {
        tokio::select! {
            () = &mut events => break,
            _ = &mut kept, if control.is_some() => {
                control = None;
                deadline.set(futures::future::Either::Right(tokio::time::sleep(END_TIMEOUT)));
            }
            () = &mut deadline => {
                let _ = child.kill();
                break;
            }
        }
    }
    drop(control);
    let _ = tokio::task::spawn_blocking(move || child.wait()).await;
    if let Some(pod) = pod.upgrade() {
        lock(&pod.0).shims.remove(&id);
    }
}

/// Passes events on until the shim closes its end.
async fn follow(watched: Watched, mut events: pipe::Receiver) {
    let Watched { pod, id, started, exited } = watched;
    let set_process = |process| {
        if let Some(pod) = pod.upgrade()
            && let Some(shim) = lock(&pod.0).shims.get_mut(&id)
        {
            shim.process = process;
        }
    };
    let process = match next(&mut events).await {
        Some(ShimEvent::Started(process)) => process,
        Some(ShimEvent::Failed(failure)) => {
            let _ = started.send(Err(failure.into()));
            // The shim cleans up and then ends.
            let _ = next(&mut events).await;
            return;
        }
        Some(ShimEvent::Exited(_)) | None => return,
    };
    set_process(Some(process));
    let _ = started.send(Ok(process));
    if let Some(ShimEvent::Exited(code)) = next(&mut events).await {
        set_process(None);
        let _ = exited.send(Exit { code, finished_at: Timestamp::now() });
        let _ = next(&mut events).await;
    }
}

async fn next(events: &mut pipe::Receiver) -> Option<ShimEvent> {
    let mut header = [0; 4];
    events.read_exact(&mut header).await.ok()?;
    let mut body = vec![0; body_length(header).ok()?];
    events.read_exact(&mut body).await.ok()?;
    serde_json::from_slice(&body).ok()
}

impl From<Failure> for StartError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Create(message) => create_error(&message),
            Failure::Execute(message) => Self {
                reason: "RunContainerError",
                message: format!(
                    "failed to create containerd task: failed to create shim task: OCI runtime create failed: \
                     runc create failed: unable to start container process: {message}: unknown"
                ),
            },
        }
    }
}
