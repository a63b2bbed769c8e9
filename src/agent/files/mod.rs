//! The files of containers: whose root is meant and given out, as whom it is read, and reading it.
//!
//! - [`Files::open`] finds the root of the container that was named, or of whom `/proc/1/root` is from there, and proves whose it is;
//! - [`threads`]: what does the work, so that a file system that hangs harms nobody else;
//! - [`read`]: the content of a file, also as it grows;
//! - [`mod@write`]: writing one;
//! - [`tree`]: everything else.
//!
//! What keeps paths within the root is [`crate::sys::rooted`].

pub mod read;
pub mod threads;
pub mod tree;
pub mod write;

use std::{os::fd::AsFd, sync::Arc};

use rustix::fs::{AtFlags, StatxFlags, statx};
use tokio::sync::Semaphore;

use self::threads::{FileThreads, Held, Lane};
use super::config::FileLimits;
use crate::{
    domain::{
        Error, Reason, Result,
        namespace::NamespaceKind,
        pod::{Container, ContainerState, Pod},
        process::{Credentials, IdMap},
    },
    kube::pods::Pods,
    sys::{
        containers::{Containers, Scan},
        identity::FileIdentity,
        process::ContainerProcess,
        rooted::RootedDir,
    },
};

/// Whose files, and as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilesTarget {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// UID of the pod; empty for whichever has the name.
    pub pod_uid: String,
    /// The container; empty for the pod's default.
    pub container: String,
    /// Which root.
    pub view: View,
    /// As root instead of as the container's own user.
    pub as_root: bool,
}

/// Which root is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// The container's own.
    Container,
    /// What `/proc/1/root` is, seen from inside the container.
    Proc1Root,
}

/// Whose root it is.
#[derive(Debug, Clone)]
pub enum Owner {
    /// A container of the pod: its name and first process.
    Container(String, Arc<ContainerProcess>),
    /// The pod's sandbox.
    Sandbox(Arc<ContainerProcess>),
    /// The host.
    Host,
}

/// Gives out roots.
#[derive(Debug)]
pub struct Files {
    pods: Arc<Pods>,
    containers: Arc<Containers>,
    threads: FileThreads,
    limits: FileLimits,
    /// Passes over `/proc` at a time.
    passes: Arc<Semaphore>,
}

/// The root of a container, and all that it takes to read it.
#[derive(Debug)]
pub struct Root {
    /// The pod.
    pub pod: Arc<Pod>,
    /// The container that was named.
    pub container: String,
    /// Its first process.
    pub process: Arc<ContainerProcess>,
    /// Whose root it is.
    pub owner: Owner,
    /// Whom it is read as.
    pub identity: FileIdentity,
    /// How the container maps users and groups.
    pub maps: (IdMap, IdMap),
    dir: Arc<RootedDir>,
    lane: Lane,
    pods: Arc<Pods>,
}

impl Files {
    /// The files of the pods that `pods` knows.
    pub fn new(pods: Arc<Pods>, containers: Arc<Containers>, limits: FileLimits) -> Self {
        let threads = FileThreads::new(limits.file_threads, limits.file_timeout);
        Self { pods, containers, threads, limits, passes: Arc::new(Semaphore::new(2)) }
    }

    /// How much of everything.
    pub fn limits(&self) -> &FileLimits {
        &self.limits
    }

    /// How many threads work on files, and how many of these are stuck.
    pub fn thread_counts(&self) -> (usize, usize) {
        self.threads.counts()
    }

    /// Finds the root that is meant, for this user. The answer is bound to the container as it is now: when it restarts, it is over.
    ///
    /// # Errors
    /// POD_NOT_FOUND, CONTAINER_NOT_FOUND, POD_ON_OTHER_NODE, POD_REPLACED, CONTAINER_NOT_RUNNING, VM_ISOLATED, PROCESS_NOT_FOUND, HOST_ROOT,
    /// FILE_PERMISSION, PROCESS_GONE.
    pub async fn open(self: &Arc<Self>, user: &str, target: FilesTarget) -> Result<Root> {
        let check = |pod: &Arc<Pod>| {
            pod.expect_uid(&target.pod_uid)?;
            running(pod, &target.container).cloned()
        };
        let (pod, container) = self.pods.find(&target.namespace, &target.pod, check).await?;
        let permit = Arc::clone(&self.passes).acquire_owned().await;
        let permit = permit.map_err(|_| Error::new(Reason::Bug, "the semaphore was closed"))?;
        let (this, user) = (Arc::clone(self), user.to_owned());
        let work = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            this.find(&user, &pod, &container, &target)
                .map_err(|error| error.pod(&pod.namespace, &pod.name).container(&container.name))
        });
        work.await.map_err(|e| Error::new(Reason::Bug, e.to_string()))?
    }

    fn find(
        &self,
        user: &str,
        pod: &Arc<Pod>,
        container: &Container,
        target: &FilesTarget,
    ) -> Result<Root> {
        let mut scan = None;
        let process = self.process(pod, container, &mut scan)?;
        let credentials = process.credentials()?;
        let owner = match target.view {
            View::Container => Owner::Container(container.name.clone(), Arc::clone(&process)),
            View::Proc1Root => self.first_in_pid_namespace(pod, container, &process, &mut scan)?,
        };
        let root = match &owner {
            Owner::Host => self.containers.host_root()?,
            Owner::Container(_, of) | Owner::Sandbox(of) => {
                let root = of.root()?;
                // While a container is being set up its first process is already in its cgroup, but still in the host's root.
                let own_mounts = of.namespaces()?.get(NamespaceKind::Mnt);
                if identity_of(&root)? == identity_of(&self.containers.host_root()?)?
                    || own_mounts.is_none()
                    || own_mounts == self.containers.host().namespaces.get(NamespaceKind::Mnt)
                {
                    let message =
                        "its root is the host's: it is still being set up, or it has moved there";
                    return Err(Error::new(Reason::HostRoot, message));
                }
                if !Arc::ptr_eq(of, &process) && !target.as_root {
                    may_look(&credentials, &of.credentials()?)?;
                }
                root
            }
        };
        let identity =
            if target.as_root { FileIdentity::ROOT } else { self.identity(&process, credentials)? };
        let maps = process.id_maps()?;
        process.check_alive()?;
        let lane = self.threads.lane(user, &process.container_id, identity.clone());
        Ok(Root {
            pod: Arc::clone(pod),
            container: container.name.clone(),
            owner,
            identity,
            maps,
            dir: Arc::new(RootedDir::new(root)?),
            lane,
            pods: Arc::clone(&self.pods),
            process,
        })
    }

    /// The first process of a container.
    fn process(
        &self,
        pod: &Pod,
        container: &Container,
        scan: &mut Option<Scan>,
    ) -> Result<Arc<ContainerProcess>> {
        let missing = || {
            let message = "no process on the node is in a cgroup of its container id";
            Error::new(Reason::ProcessNotFound, message)
        };
        let wanted = pod.cgroup_of(container).ok_or_else(missing)?;
        self.containers.resolve(std::iter::once(wanted), scan)?.remove(&wanted).ok_or_else(missing)
    }

    /// Who a process of the container reads files as. In the host's user namespace its capabilities count; in one of its own they do
    /// so only for files whose owner is mapped there, which no capability of the agent can express: they count for nothing.
    fn identity(
        &self,
        process: &ContainerProcess,
        credentials: Credentials,
    ) -> Result<FileIdentity> {
        let (uid, gid) = credentials.for_files();
        let user = process.namespaces()?.get(NamespaceKind::User);
        let of_host =
            user.is_some() && user == self.containers.host().namespaces.get(NamespaceKind::User);
        let reads_any = of_host && credentials.reads_any();
        Ok(FileIdentity { uid, gid, groups: credentials.groups, reads_any })
    }

    /// Whose process has pid 1 where the container's processes are.
    fn first_in_pid_namespace(
        &self,
        pod: &Arc<Pod>,
        container: &Container,
        process: &Arc<ContainerProcess>,
        scan: &mut Option<Scan>,
    ) -> Result<Owner> {
        let pid_namespace = |process: &ContainerProcess| {
            Ok::<_, Error>(process.namespaces()?.get(NamespaceKind::Pid))
        };
        let wanted = pid_namespace(process)?;
        if wanted.is_none() {
            return Err(Error::new(Reason::Unreadable, "its pid namespace may not be read"));
        }
        if wanted == self.containers.host().namespaces.get(NamespaceKind::Pid) {
            // Only of such a pod is it known that the caller may act on the node.
            if pod.host_pid {
                return Ok(Owner::Host);
            }
            let message =
                "its processes are in the host's pid namespace, which its pod does not ask for";
            return Err(Error::new(Reason::HostRoot, message));
        }
        let is_first = |of: &ContainerProcess| {
            Ok::<_, Error>(
                of.facts.own_pid() == 1 && pid_namespace(of).is_ok_and(|ns| ns == wanted),
            )
        };
        let mut of_pod = vec![(container.name.clone(), Arc::clone(process))];
        for other in pod.containers.iter().filter(|c| c.is_running() && c.name != container.name) {
            of_pod.extend(
                self.process(pod, other, scan).ok().map(|found| (other.name.clone(), found)),
            );
        }
        for (name, of) in &of_pod {
            if is_first(of)? {
                return Ok(Owner::Container(name.clone(), Arc::clone(of)));
            }
        }
        let processes: Vec<_> = of_pod.iter().map(|(_, process)| process).collect();
        let sandbox = self.containers.sandbox(pod, &processes, scan)?;
        match sandbox {
            Some(sandbox) if is_first(&sandbox)? => Ok(Owner::Sandbox(sandbox)),
            _ => {
                let message = "pid 1 of its pid namespace is of no container of the pod";
                Err(Error::new(Reason::ProcessNotFound, message))
            }
        }
    }
}

/// The container that is named, or the default one, if it runs and its files are on the node.
fn running<'p>(pod: &'p Pod, name: &str) -> Result<&'p Container> {
    let container =
        if name.is_empty() { pod.default_container() } else { Some(pod.require(name)?) };
    let container = container
        .ok_or_else(|| Error::new(Reason::ContainerNotFound, "the pod has no regular container"))?;
    let about = |error: Error| error.container(&container.name);
    if let Some(runtime) = pod.vm_runtime() {
        let message = format!("runs in {runtime}: its files are not the node's to read");
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

/// Checks that the kernel would let `viewer` look into `other` by way of `/proc`.
fn may_look(viewer: &Credentials, other: &Credentials) -> Result<()> {
    if viewer.may_look_into(other) {
        return Ok(());
    }
    let message = "from there /proc/1/root may not be looked into: it has neither CAP_SYS_PTRACE nor the same user and capabilities as \
                   process 1";
    Err(Error::new(Reason::FilePermission, message))
}

/// Device and inode.
fn identity_of(root: impl AsFd) -> Result<(u32, u32, u64)> {
    let stat = statx(root.as_fd(), c"", AtFlags::EMPTY_PATH, StatxFlags::INO)
        .map_err(|errno| Error::new(Reason::SystemCall, format!("statx(root): {errno}")))?;
    Ok((stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino))
}

impl Root {
    /// Works on the files, as whom it is to be done. What came of it counts only if the container has not ended meanwhile.
    ///
    /// # Errors
    /// CONTAINER_RESTARTED, PROCESS_GONE, TOO_MANY_FILE_REQUESTS, FILE_SYSTEM_STUCK, and those of `work`.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<RootedDir>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let result = self.run_past_end(work).await;
        if self.is_alive() { result } else { Err(self.ended().await) }
    }

    /// The same for what may go on after the container has ended: what is open stays.
    async fn run_past_end<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<RootedDir>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let dir = Arc::clone(&self.dir);
        let result = self.lane.run(move || work(&dir)).await;
        result.map_err(|error| {
            error.pod(&self.pod.namespace, &self.pod.name).container(&self.container)
        })
    }

    /// The same for something that stays open between steps of work.
    async fn open<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<RootedDir>) -> Result<T> + Send + 'static,
    ) -> Result<Held<T>> {
        let lane = self.lane.clone();
        self.run(move |root| work(root).map(|opened| lane.hold(opened))).await
    }

    fn is_alive(&self) -> bool {
        let owner = match &self.owner {
            Owner::Container(_, of) | Owner::Sandbox(of) => of.is_alive(),
            Owner::Host => true,
        };
        owner && self.process.is_alive()
    }

    /// Why it is over.
    async fn ended(&self) -> Error {
        let about = |error: Error| {
            error.pod(&self.pod.namespace, &self.pod.name).container(&self.container)
        };
        // The watch may not have seen it yet.
        let now = match self.pods.current(&self.pod).await {
            Ok(Some(pod)) => pod,
            Ok(None) => {
                return about(Error::new(Reason::PodDeleted, "the pod was deleted meanwhile"));
            }
            Err(_) => Arc::clone(&self.pod),
        };
        let id = now.container(&self.container).and_then(|c| c.id.as_ref());
        about(match id.filter(|id| id.id != self.process.container_id) {
            Some(id) => Error::new(
                Reason::ContainerRestarted,
                format!("was restarted meanwhile; it is {id} now"),
            ),
            None => Error::new(Reason::ProcessGone, "has ended meanwhile"),
        })
    }
}
