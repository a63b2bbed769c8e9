//! Finding a root and proving whose it is.
//!
//! [`find`] asks `/proc` alone, which always answers. [`open_root`] asks the root itself, whose
//! file system may never answer, so it runs on a thread that may be lost.

use std::sync::Arc;

use super::View;
use crate::{
    domain::{
        Error, Reason, Result,
        namespace::NamespaceKind,
        pod::{Container, Pod},
        process::{Credentials, IdMap},
    },
    sys::{
        containers::{Containers, Scan},
        identity::FileIdentity,
        process::ContainerProcess,
        rooted::RootedDir,
    },
};

/// Whose root it is.
#[derive(Debug, Clone)]
pub enum Owner {
    /// A container of the pod: its name and first process.
    Container(String, Arc<ContainerProcess>),
    /// The pod's sandbox: its first process.
    Sandbox(Arc<ContainerProcess>),
    /// The host. Only for pods with `hostPID`.
    Host,
}

/// The container, and what it takes to read below the root that is meant.
pub(super) struct Found {
    /// The first process of the named container.
    pub(super) process: Arc<ContainerProcess>,
    pub(super) owner: Owner,
    /// Whom files are read as.
    pub(super) identity: FileIdentity,
    /// How the container maps users and groups.
    pub(super) maps: (IdMap, IdMap),
}

/// Finds whose root is meant and as whom it is read, from `/proc` alone.
pub(super) fn find(
    containers: &Containers,
    pod: &Arc<Pod>,
    container: &Container,
    view: View,
    as_root: bool,
) -> Result<Found> {
    let mut scan = None;
    let process = first_process(containers, pod, container, &mut scan)?;
    let credentials = process.credentials()?;
    let owner = match view {
        View::Container => Owner::Container(container.name.clone(), Arc::clone(&process)),
        View::Proc1Root => pid_1(containers, pod, container, &process, &mut scan)?,
    };
    if let Owner::Container(_, of) | Owner::Sandbox(of) = &owner {
        let mounts = of.namespaces()?.get(NamespaceKind::Mnt);
        let host_mounts = containers.host().namespaces.get(NamespaceKind::Mnt);
        if mounts.is_none() || mounts == host_mounts {
            return Err(is_of_host());
        }
        if !Arc::ptr_eq(of, &process) && !as_root {
            check_may_look(&credentials, &of.credentials()?)?;
        }
    }
    let identity =
        if as_root { FileIdentity::ROOT } else { identity(containers, &process, credentials)? };
    let maps = process.id_maps()?;
    process.check_alive()?;
    Ok(Found { process, owner, identity, maps })
}

/// Opens the root of `owner`. While a container is being set up its first process is already in
/// its cgroup but still in the host's root: that one is refused.
///
/// Needs the agent's CAP_SYS_PTRACE, and may block for as long as the file system of the root
/// likes: opening it may have it revalidated, and comparing it has it asked for its inode.
pub(super) fn open_root(containers: &Containers, owner: &Owner) -> Result<RootedDir> {
    let host = RootedDir::new(containers.host_root()?)?;
    let of = match owner {
        Owner::Host => return Ok(host),
        Owner::Container(_, of) | Owner::Sandbox(of) => of,
    };
    let root = RootedDir::new(of.root()?)?.trusted_if_mounted(|| containers.host_mounts())?;
    if root.is_same_directory(&host)? { Err(is_of_host()) } else { Ok(root) }
}

fn is_of_host() -> Error {
    let message = "its root is the host's: it is still being set up, or it has moved there";
    Error::new(Reason::HostRoot, message)
}

/// The first process of a container of the pod.
fn first_process(
    containers: &Containers,
    pod: &Pod,
    container: &Container,
    scan: &mut Option<Scan>,
) -> Result<Arc<ContainerProcess>> {
    let missing = || {
        let message = "no process on the node is in a cgroup of its container id";
        Error::new(Reason::ProcessNotFound, message)
    };
    let wanted = pod.cgroup_of(container).ok_or_else(missing)?;
    containers.resolve(std::iter::once(wanted), scan)?.remove(&wanted).ok_or_else(missing)
}

/// Whom a process of the container reads files as. In the host's user namespace its capabilities
/// count. In a user namespace of its own they reach only files whose owner is mapped there, which
/// no capability of the agent can express, so they count for nothing.
fn identity(
    containers: &Containers,
    process: &ContainerProcess,
    credentials: Credentials,
) -> Result<FileIdentity> {
    let (uid, gid) = credentials.for_files();
    let user = process.namespaces()?.get(NamespaceKind::User);
    let of_host = user.is_some() && user == containers.host().namespaces.get(NamespaceKind::User);
    let reads_any = of_host && credentials.reads_any();
    Ok(FileIdentity { uid, gid, groups: credentials.groups, reads_any })
}

/// Who has pid 1 in the pid namespace of the container's processes.
fn pid_1(
    containers: &Containers,
    pod: &Arc<Pod>,
    container: &Container,
    process: &Arc<ContainerProcess>,
    scan: &mut Option<Scan>,
) -> Result<Owner> {
    let pid_namespace =
        |process: &ContainerProcess| Ok::<_, Error>(process.namespaces()?.get(NamespaceKind::Pid));
    let wanted = pid_namespace(process)?;
    if wanted.is_none() {
        return Err(Error::new(Reason::Unreadable, "its pid namespace may not be read"));
    }
    if wanted == containers.host().namespaces.get(NamespaceKind::Pid) {
        // The caller was asked for the right to act on the node only if the pod says `hostPID`.
        if pod.host_pid {
            return Ok(Owner::Host);
        }
        let message =
            "its processes are in the host's pid namespace, which its pod does not ask for";
        return Err(Error::new(Reason::HostRoot, message));
    }
    let is_first = |of: &ContainerProcess| {
        of.facts.own_pid() == 1 && pid_namespace(of).is_ok_and(|namespace| namespace == wanted)
    };
    let mut of_pod = vec![(container.name.clone(), Arc::clone(process))];
    for other in pod.containers.iter().filter(|c| c.is_running() && c.name != container.name) {
        if let Ok(found) = first_process(containers, pod, other, scan) {
            of_pod.push((other.name.clone(), found));
        }
    }
    if let Some((name, of)) = of_pod.iter().find(|(_, of)| is_first(of)) {
        return Ok(Owner::Container(name.clone(), Arc::clone(of)));
    }
    let processes: Vec<_> = of_pod.iter().map(|(_, process)| process).collect();
    match containers.sandbox(pod, &processes, scan)? {
        Some(sandbox) if is_first(&sandbox) => Ok(Owner::Sandbox(sandbox)),
        _ => {
            let message = "pid 1 of its pid namespace belongs to no container of the pod";
            Err(Error::new(Reason::ProcessNotFound, message))
        }
    }
}

/// Checks that the kernel would let `viewer` look into `other` through `/proc`.
fn check_may_look(viewer: &Credentials, other: &Credentials) -> Result<()> {
    if viewer.may_look_into(other) {
        return Ok(());
    }
    let message = "/proc/1/root may not be looked into from there: the container has neither \
                   CAP_SYS_PTRACE nor the same user and capabilities as process 1";
    Err(Error::new(Reason::FilePermission, message))
}
