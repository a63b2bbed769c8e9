//! The files of containers: finding a root, proving whose it is, and working below it.
//!
//! - [`Files::open`] finds the root of the named container, or the root that `/proc/1/root` is
//!   from inside it, and proves whose it is (`find`);
//! - [`root`]: an open root, and the one way to work below it;
//! - [`threads`]: the threads that work runs on, so that a file system that hangs harms only the
//!   container that has it;
//! - [`read`]: the content of a file, also while it grows;
//! - [`mod@write`]: writing a file;
//! - [`tree`]: describing, listing, walking, checksums.
//!
//! [`crate::sys::rooted`] keeps paths within the root.
//!
//! **Invariant**: a container may make any directory its root, so the root itself may be on a file
//! system that never answers. Whatever asks such a file system anything, if only for the inode of
//! the root, runs on a thread that may be lost. `tests/architecture.rs` names the files that may
//! open a root.

mod find;
pub mod read;
pub mod root;
pub mod threads;
pub mod tree;
pub mod write;

use std::sync::Arc;

use self::{find::Found, threads::FileThreads};
pub use self::{find::Owner, root::Root};
use super::{config::FileLimits, work};
use crate::{
    domain::{
        Error, Reason, Result,
        pod::{Container, ContainerState, Pod},
    },
    kube::pods::Pods,
    sys::containers::Containers,
};

/// Which container's files a request is about, and with whose rights they are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilesTarget {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// UID of the pod. Empty: of whichever pod has the name.
    pub pod_uid: String,
    /// Name of the container. Empty: the pod's default container.
    pub container: String,
    /// Which root, as seen from that container.
    pub view: View,
    /// Reads as root with CAP_DAC_READ_SEARCH instead of as the container's own user.
    pub as_root: bool,
}

/// Which root is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// The container's own.
    Container,
    /// The one that `/proc/1/root` leads to inside the container.
    Proc1Root,
}

/// Opens the roots of containers.
#[derive(Debug)]
pub struct Files {
    pods: Arc<Pods>,
    containers: Arc<Containers>,
    threads: FileThreads,
    limits: FileLimits,
}

impl Files {
    /// Opens roots of the pods that `pods` knows.
    pub fn new(pods: Arc<Pods>, containers: Arc<Containers>, limits: FileLimits) -> Self {
        let threads = FileThreads::new(limits.file_threads, limits.file_timeout);
        Self { pods, containers, threads, limits }
    }

    /// The limits that the agent was started with.
    pub fn limits(&self) -> &FileLimits {
        &self.limits
    }

    /// How many threads do file work, and how many of these are stuck.
    pub fn thread_counts(&self) -> (usize, usize) {
        self.threads.counts()
    }

    /// Opens the root that `target` means, for this user. It belongs to the container as it is
    /// now: once that one restarts, the root serves nothing more.
    ///
    /// # Errors
    /// POD_NOT_FOUND, CONTAINER_NOT_FOUND, POD_ON_OTHER_NODE, POD_REPLACED, CONTAINER_NOT_RUNNING,
    /// VM_ISOLATED, PROCESS_NOT_FOUND, HOST_ROOT, FILE_PERMISSION, PROCESS_GONE, and those of
    /// [`Root::run`].
    pub async fn open(self: &Arc<Self>, user: &str, target: FilesTarget) -> Result<Root> {
        let check = |pod: &Arc<Pod>| {
            pod.expect_uid(&target.pod_uid)?;
            running(pod, &target.container).cloned()
        };
        let (pod, container) = self.pods.find(&target.namespace, &target.pod, check).await?;
        let about = {
            let (pod, container) = (Arc::clone(&pod), container.name.clone());
            move |error: Error| error.pod(&pod.namespace, &pod.name).container(&container)
        };
        let found = {
            let (pod, container, slot) = (Arc::clone(&pod), container.clone(), work::slot());
            let find = move |containers: &Containers| {
                let _slot = slot;
                find::find(containers, &pod, &container, target.view, target.as_root)
            };
            self.containers.pass(find).await?.map_err(&about)?
        };
        let lane = self.threads.lane(
            user,
            &pod.namespace,
            &found.process.container_id,
            found.identity.clone(),
        );
        let dir = {
            let (containers, owner) = (Arc::clone(&self.containers), found.owner.clone());
            let holder = lane.clone();
            let open = move || Ok(holder.hold(Arc::new(find::open_root(&containers, &owner)?)));
            lane.run_as_agent(open).await.map_err(&about)?
        };
        found.process.check_alive().map_err(&about)?;
        let Found { process, owner, identity, maps } = found;
        let pods = Arc::clone(&self.pods);
        let container = container.name;
        Ok(Root { pod, container, process, owner, identity, maps, dir, lane, pods })
    }
}

/// The named container, or the pod's default one, if it runs and its files are on the node.
fn running<'p>(pod: &'p Pod, name: &str) -> Result<&'p Container> {
    let container =
        if name.is_empty() { pod.default_container() } else { Some(pod.require(name)?) };
    let container = container
        .ok_or_else(|| Error::new(Reason::ContainerNotFound, "the pod has no regular container"))?;
    let about = |error: Error| error.container(&container.name);
    if let Some(runtime) = pod.vm_runtime() {
        let message = format!("runs in {runtime}: the node cannot read its files");
        return Err(about(Error::new(Reason::VmIsolated, message)));
    }
    let state = match &container.state {
        ContainerState::Running => return Ok(container),
        ContainerState::Absent => "has not started".to_owned(),
        ContainerState::Waiting { reason, .. } => format!("waits ({reason})"),
        ContainerState::Terminated { exit_code, reason, .. } => {
            format!("has ended ({reason}, exit code {exit_code})")
        }
    };
    Err(about(Error::new(Reason::ContainerNotRunning, format!("{state}, so it has no files"))))
}
